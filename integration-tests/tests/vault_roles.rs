//! Every built-in role against every operation of the vault, on the wire (`vault-roles.txt`).
use custody_proto::vault::{self as kv, key_vault_client::KeyVaultClient};
use custody_testkit::Deployment;
use std::fmt::Write as _;
use tonic::{Code, Status};

/// A role and who holds it: a duty for people, none for a workload.
const HOLDERS: [(&str, Option<&str>); 9] = [
    ("(none)", Some("security_officer")),
    ("Key Vault Administrator", Some("security_officer")),
    ("Key Vault Crypto Officer", Some("security_officer")),
    ("Key Vault Purge Operator", Some("security_officer")),
    ("Key Vault Data Access Administrator", Some("security_officer")),
    ("Key Vault Reader", Some("system_administrator")),
    ("Custody Auditor", Some("auditor")),
    ("Key Vault Crypto User", None),
    ("Key Vault Crypto Service Encryption User", None),
];

type Client = KeyVaultClient<custody_clients::AuthenticatedChannel>;

/// Calls an operation on names that do not exist: who may, learns so; who may not, learns nothing.
async fn call(mut c: Client, operation: &str) -> Result<(), Status> {
    let (parent, name) = ("vaults/m".to_owned(), "vaults/m/keys/none".to_owned());
    let version = format!("{name}/versions/{}", "0".repeat(32));
    let mask = Some(prost_types::FieldMask { paths: vec!["enabled".to_owned()] });
    match operation {
        "GetVault" => c.get_vault(kv::GetVaultRequest { name: parent }).await.map(drop),
        "CreateKey" => c
            .create_key(kv::CreateKeyRequest { parent, key_id: "taken".into(), ..Default::default() })
            .await
            .map(drop),
        "ImportKey" => c
            .import_key(kv::ImportKeyRequest {
                parent,
                key_id: "taken".into(),
                private_key: vec![1],
                ..Default::default()
            })
            .await
            .map(drop),
        "GetKey" => c.get_key(kv::GetKeyRequest { name }).await.map(drop),
        "ListKeys" => c.list_keys(kv::ListKeysRequest { parent, ..Default::default() }).await.map(drop),
        "UpdateKey" => c
            .update_key(kv::UpdateKeyRequest { name, update_mask: mask, ..Default::default() })
            .await
            .map(drop),
        "DeleteKey" => c.delete_key(kv::DeleteKeyRequest { name }).await.map(drop),
        "UndeleteKey" => c.undelete_key(kv::UndeleteKeyRequest { name }).await.map(drop),
        "PurgeKey" => c.purge_key(kv::PurgeKeyRequest { name }).await.map(drop),
        "RotateKey" => c.rotate_key(kv::RotateKeyRequest { name }).await.map(drop),
        "GetKeyVersion" => c.get_key_version(kv::GetKeyVersionRequest { name: version }).await.map(drop),
        "ListKeyVersions" => c
            .list_key_versions(kv::ListKeyVersionsRequest { parent: name, ..Default::default() })
            .await
            .map(drop),
        "UpdateKeyVersion" => c
            .update_key_version(kv::UpdateKeyVersionRequest {
                name: version,
                update_mask: mask,
                ..Default::default()
            })
            .await
            .map(drop),
        "WrapKey" => {
            c.wrap_key(kv::WrapKeyRequest { name, plaintext: vec![1], ..Default::default() }).await.map(drop)
        }
        "UnwrapKey" => {
            c.unwrap_key(kv::UnwrapKeyRequest { name: version, ..Default::default() }).await.map(drop)
        }
        "RewrapKey" => c
            .rewrap_key(kv::RewrapKeyRequest { name: version, target: name, ..Default::default() })
            .await
            .map(drop),
        "Encrypt" => {
            c.encrypt(kv::EncryptRequest { name, plaintext: vec![1], ..Default::default() }).await.map(drop)
        }
        "Decrypt" => c.decrypt(kv::DecryptRequest { name: version, ..Default::default() }).await.map(drop),
        "Sign" => {
            let algorithm = "PS256".to_owned();
            c.sign(kv::SignRequest { name, algorithm, digest: vec![0; 32] }).await.map(drop)
        }
        "Verify" => {
            let algorithm = "PS256".to_owned();
            let (digest, signature) = (vec![0; 32], vec![0]);
            c.verify(kv::VerifyRequest { name, algorithm, digest, signature }).await.map(drop)
        }
        "BackupKey" => c.backup_key(kv::BackupKeyRequest { name }).await.map(drop),
        "RestoreKey" => c.restore_key(kv::RestoreKeyRequest { parent, backup: vec![1] }).await.map(drop),
        "WatchKeys" => c.watch_keys(kv::WatchKeysRequest { parent }).await.map(drop),
        "CreateRoleAssignment" => {
            let assignment = kv::RoleAssignment {
                principal: "principals/someone".into(),
                role: "Key Vault Reader".into(),
                scope: name,
                ..Default::default()
            };
            c.create_role_assignment(kv::CreateRoleAssignmentRequest {
                parent,
                role_assignment: Some(assignment),
            })
            .await
            .map(drop)
        }
        "ListRoleAssignments" => c
            .list_role_assignments(kv::ListRoleAssignmentsRequest { parent, ..Default::default() })
            .await
            .map(drop),
        "DeleteRoleAssignment" => c
            .delete_role_assignment(kv::DeleteRoleAssignmentRequest {
                name: format!("{parent}/roleAssignments/none"),
            })
            .await
            .map(drop),
        other => unreachable!("no such operation {other}"),
    }
}

const OPERATIONS: [&str; 26] = [
    "GetVault",
    "CreateKey",
    "ImportKey",
    "GetKey",
    "ListKeys",
    "UpdateKey",
    "DeleteKey",
    "UndeleteKey",
    "PurgeKey",
    "RotateKey",
    "GetKeyVersion",
    "ListKeyVersions",
    "UpdateKeyVersion",
    "WrapKey",
    "UnwrapKey",
    "RewrapKey",
    "Encrypt",
    "Decrypt",
    "Sign",
    "Verify",
    "BackupKey",
    "RestoreKey",
    "WatchKeys",
    "CreateRoleAssignment",
    "ListRoleAssignments",
    "DeleteRoleAssignment",
];

/// Those that no role decides: they follow from the duty, or are open to everyone.
const BY_DUTY: [&str; 3] = ["CreateVault", "ListVaults", "ListRoleDefinitions"];

#[test]
fn every_operation_of_the_schema_is_tried() {
    for method in custody_proto::Method::ALL {
        if let Some(operation) = method.path().strip_prefix("/custody.vault.v1.KeyVault/") {
            assert!(
                OPERATIONS.contains(&operation) || BY_DUTY.contains(&operation),
                "{operation} has no row"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_against_every_operation() {
    let deployment = Deployment::start();
    _ = deployment.run(&["vault", "create", "m"]);
    _ = deployment.run(&["key", "create", "vaults/m/keys/taken"]);
    let mut columns: Vec<(String, Client)> = Vec::new();
    for (n, (role, duty)) in HOLDERS.iter().enumerate() {
        let who = match duty {
            Some(duty) => {
                let made = deployment.run(&["identity", "create-principal", &format!("holder-{n}"), duty]);
                let path = deployment.dir().join(format!("credentials/holder-{n}.json"));
                std::fs::write(path, made.to_string()).unwrap();
                format!("holder-{n}")
            }
            None => {
                let id = format!("holder-{n}");
                _ = deployment.run(&["identity", "create", &id]);
                deployment.bind(&format!("managedIdentities/{id}")).await.unwrap();
                format!("managedIdentities/{id}")
            }
        };
        if *role != "(none)" {
            let principal = if duty.is_some() { format!("principals/{who}") } else { who.clone() };
            _ = deployment.run(&["access", "grant", &principal, role, "vaults/m"]);
        }
        columns.push(((*role).to_owned(), KeyVaultClient::new(deployment.channel("vault", &who).unwrap())));
    }
    let mut table = String::new();
    for (n, (role, duty)) in HOLDERS.iter().enumerate() {
        writeln!(table, "{}  {role} ({})", n + 1, duty.unwrap_or("workload")).unwrap();
    }
    table += "\n";
    for operation in OPERATIONS {
        write!(table, "{operation:24}").unwrap();
        for (_, client) in &columns {
            let verdict = match call(client.clone(), operation).await {
                Err(e) if e.code() == Code::PermissionDenied => "-",
                Err(e) if matches!(e.code(), Code::Unavailable | Code::Unauthenticated | Code::Internal) => {
                    panic!("{operation}: {e}")
                }
                _ => "yes",
            };
            write!(table, "{verdict:5}").unwrap();
        }
        table = table.trim_end().to_owned() + "\n";
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/vault-roles.txt");
    if std::env::var_os("CUSTODY_BLESS").is_some() {
        std::fs::write(golden, &table).unwrap();
    }
    assert_eq!(
        table,
        std::fs::read_to_string(golden).unwrap_or_default(),
        "what a role may has changed; if that is meant, run with CUSTODY_BLESS=1 and review the diff"
    );
}
