//! Every built-in role against every operation of the vault, on the wire (`vault-roles.txt`).
use custody_proto::vault::{
    self as kv, access_control_client::AccessControlClient, key_lineage_client::KeyLineageClient,
    key_vault_client::KeyVaultClient, lease_manager_client::LeaseManagerClient,
    seal_manager_client::SealManagerClient,
};
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
type AccessClient = AccessControlClient<custody_clients::AuthenticatedChannel>;
type SealClient = SealManagerClient<custody_clients::AuthenticatedChannel>;
type LineageClient = KeyLineageClient<custody_clients::AuthenticatedChannel>;
type LeaseClient = LeaseManagerClient<custody_clients::AuthenticatedChannel>;

/// One caller's clients.
#[derive(Clone)]
struct Clients {
    keys: Client,
    access: AccessClient,
    seals: SealClient,
    leases: LeaseClient,
    lineage: LineageClient,
}

/// Calls an operation on names that do not exist: who may, learns so; who may not, learns nothing.
async fn call(clients: Clients, operation: &str) -> Result<(), Status> {
    let Clients { keys: mut c, access, seals, leases, lineage } = clients;
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
        "PurgeKey" => c.purge_key(kv::PurgeKeyRequest { name, crypto_shred: false }).await.map(drop),
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
        "UpdateVault" => c
            .update_vault(kv::UpdateVaultRequest {
                vault: Some(kv::Vault { name: parent, purge_protection: true, ..Default::default() }),
                update_mask: Some(prost_types::FieldMask { paths: vec!["purge_protection".to_owned()] }),
            })
            .await
            .map(drop),
        "GetRandomBytes" => {
            c.get_random_bytes(kv::GetRandomBytesRequest { parent, count: 1 }).await.map(drop)
        }
        "GetRotationPolicy" => {
            let name = format!("{name}/rotationPolicy");
            c.get_rotation_policy(kv::GetRotationPolicyRequest { name }).await.map(drop)
        }
        "UpdateRotationPolicy" => {
            let policy = kv::RotationPolicy { name: format!("{name}/rotationPolicy"), ..Default::default() };
            let request = kv::UpdateRotationPolicyRequest { rotation_policy: Some(policy) };
            c.update_rotation_policy(request).await.map(drop)
        }
        "GetSeal" | "SealVault" | "UnsealVault" | "ChangeSeal" | "RotateRootKey" => {
            call_seal(seals, operation).await
        }
        "ListLeases" | "GetLeasePolicy" | "UpdateLeasePolicy" | "RevokeKey" | "ReinstateKey"
        | "GetRevocation" | "ListRevocations" | "WatchRevocation" => call_lease(leases, operation).await,
        "GetLineage" | "ListDependents" | "GetShredReport" => call_lineage(lineage, operation).await,
        other => call_access(access, other).await,
    }
}

/// As [`call`], of the operations on what depends on a key.
async fn call_lineage(mut c: LineageClient, operation: &str) -> Result<(), Status> {
    let key = "vaults/m/keys/none".to_owned();
    let (lineage, report) = (format!("{key}/lineage"), format!("{key}/shredReport"));
    match operation {
        "GetLineage" => c.get_lineage(kv::GetLineageRequest { name: lineage }).await.map(drop),
        "ListDependents" => {
            c.list_dependents(kv::ListDependentsRequest { parent: key, ..Default::default() }).await.map(drop)
        }
        _ => c.get_shred_report(kv::GetShredReportRequest { name: report }).await.map(drop),
    }
}

/// As [`call`], of the operations on leases and revocations.
async fn call_lease(mut c: LeaseClient, operation: &str) -> Result<(), Status> {
    let key = "vaults/m/keys/none".to_owned();
    let (policy, revocation) = (format!("{key}/leasePolicy"), format!("{key}/revocations/1"));
    match operation {
        "ListLeases" => {
            c.list_leases(kv::ListLeasesRequest { parent: key, ..Default::default() }).await.map(drop)
        }
        "GetLeasePolicy" => c.get_lease_policy(kv::GetLeasePolicyRequest { name: policy }).await.map(drop),
        "UpdateLeasePolicy" => {
            let lease_policy = Some(kv::LeasePolicy { name: policy, ..Default::default() });
            c.update_lease_policy(kv::UpdateLeasePolicyRequest { lease_policy }).await.map(drop)
        }
        "RevokeKey" => c.revoke_key(kv::RevokeKeyRequest { name: key }).await.map(drop),
        "ReinstateKey" => c.reinstate_key(kv::ReinstateKeyRequest { name: key }).await.map(drop),
        "GetRevocation" => c.get_revocation(kv::GetRevocationRequest { name: revocation }).await.map(drop),
        "ListRevocations" => c
            .list_revocations(kv::ListRevocationsRequest { parent: key, ..Default::default() })
            .await
            .map(drop),
        "WatchRevocation" => {
            c.watch_revocation(kv::WatchRevocationRequest { name: revocation }).await.map(drop)
        }
        other => unreachable!("no such operation {other}"),
    }
}

/// As [`call`], of the operations on a vault's seal.
async fn call_seal(mut c: SealClient, operation: &str) -> Result<(), Status> {
    let name = "vaults/m/seal".to_owned();
    match operation {
        "GetSeal" => c.get_seal(kv::GetSealRequest { name }).await.map(drop),
        "SealVault" => c.seal_vault(kv::SealVaultRequest { name }).await.map(drop),
        "UnsealVault" => {
            let key = Some(kv::unseal_vault_request::Key::Share("none".to_owned()));
            c.unseal_vault(kv::UnsealVaultRequest { name, key }).await.map(drop)
        }
        "ChangeSeal" => c.change_seal(kv::ChangeSealRequest { name, ..Default::default() }).await.map(drop),
        "RotateRootKey" => c.rotate_root_key(kv::RotateRootKeyRequest { name }).await.map(drop),
        other => unreachable!("no such operation {other}"),
    }
}

/// As [`call`], of the operations on access.
async fn call_access(mut c: AccessClient, operation: &str) -> Result<(), Status> {
    let (parent, key) = ("vaults/m".to_owned(), "vaults/m/keys/none".to_owned());
    let group = || "vaults/m/groups/none".to_owned();
    let approval = || format!("vaults/m/approvals/{}", "0".repeat(32));
    match operation {
        "CreateRoleAssignment" => {
            let assignment = kv::RoleAssignment {
                principal: "principals/someone".into(),
                role: "Key Vault Reader".into(),
                scope: key,
                ..Default::default()
            };
            let role_assignment = Some(assignment);
            c.create_role_assignment(kv::CreateRoleAssignmentRequest { parent, role_assignment })
                .await
                .map(drop)
        }
        "ListRoleAssignments" => c
            .list_role_assignments(kv::ListRoleAssignmentsRequest { parent, ..Default::default() })
            .await
            .map(drop),
        "DeleteRoleAssignment" => {
            let name = format!("{parent}/roleAssignments/none");
            c.delete_role_assignment(kv::DeleteRoleAssignmentRequest { name }).await.map(drop)
        }
        "ListRoleDefinitions" => {
            c.list_role_definitions(kv::ListRoleDefinitionsRequest { parent }).await.map(drop)
        }
        "CreateRoleDefinition" => {
            let role = kv::RoleDefinition { permissions: vec!["get".into()], ..Default::default() };
            let (role_definition_id, role_definition) = ("made".into(), Some(role));
            let request = kv::CreateRoleDefinitionRequest { parent, role_definition_id, role_definition };
            c.create_role_definition(request).await.map(drop)
        }
        "DeleteRoleDefinition" => {
            let name = "vaults/m/roleDefinitions/none".to_owned();
            c.delete_role_definition(kv::DeleteRoleDefinitionRequest { name }).await.map(drop)
        }
        "CreateGroup" => {
            c.create_group(kv::CreateGroupRequest { parent, group_id: "made".into() }).await.map(drop)
        }
        "ListGroups" => c.list_groups(kv::ListGroupsRequest { parent, ..Default::default() }).await.map(drop),
        "DeleteGroup" => c.delete_group(kv::DeleteGroupRequest { name: group() }).await.map(drop),
        "AddGroupMember" => {
            let request = kv::AddGroupMemberRequest { name: group(), member: "principals/someone".into() };
            c.add_group_member(request).await.map(drop)
        }
        "RemoveGroupMember" => {
            let request = kv::RemoveGroupMemberRequest { name: group(), member: "principals/someone".into() };
            c.remove_group_member(request).await.map(drop)
        }
        "ExplainAccess" => {
            let (principal, permission) = ("principals/someone".into(), "get".into());
            let request =
                kv::ExplainAccessRequest { principal, permission, resource: key, ..Default::default() };
            c.explain_access(request).await.map(drop)
        }
        "ReviewAccess" => {
            c.review_access(kv::ReviewAccessRequest { parent, ..Default::default() }).await.map(drop)
        }
        "ListApprovals" => {
            c.list_approvals(kv::ListApprovalsRequest { parent, ..Default::default() }).await.map(drop)
        }
        "ApproveApproval" => {
            c.approve_approval(kv::ApproveApprovalRequest { name: approval() }).await.map(drop)
        }
        "RejectApproval" => c.reject_approval(kv::RejectApprovalRequest { name: approval() }).await.map(drop),
        other => unreachable!("no such operation {other}"),
    }
}

const OPERATIONS: [&str; 59] = [
    "GetLineage",
    "ListDependents",
    "GetShredReport",
    "GetVault",
    "UpdateVault",
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
    "GetRandomBytes",
    "GetRotationPolicy",
    "UpdateRotationPolicy",
    "WatchKeys",
    "CreateRoleAssignment",
    "ListRoleAssignments",
    "DeleteRoleAssignment",
    "ListRoleDefinitions",
    "CreateRoleDefinition",
    "DeleteRoleDefinition",
    "CreateGroup",
    "ListGroups",
    "DeleteGroup",
    "AddGroupMember",
    "RemoveGroupMember",
    "ExplainAccess",
    "ReviewAccess",
    "ListApprovals",
    "ApproveApproval",
    "RejectApproval",
    "GetSeal",
    "SealVault",
    "UnsealVault",
    "ChangeSeal",
    "RotateRootKey",
    "ListLeases",
    "GetLeasePolicy",
    "UpdateLeasePolicy",
    "RevokeKey",
    "ReinstateKey",
    "GetRevocation",
    "ListRevocations",
    "WatchRevocation",
];

/// Those that no role decides: they follow from the duty, are open to everyone, or are decided by the role of another identity.
const BY_DUTY: [&str; 8] = [
    "BreakGlass",
    "CreateVault",
    "ListVaults",
    "GetProofKey",
    "RenewLeases",
    "ReportErasures",
    "ReportDependents",
    "ListReportedDependents",
];

#[test]
fn every_operation_of_the_schema_is_tried() {
    for method in custody_proto::Method::ALL {
        let path = method.path();
        let of = |service: &str| path.strip_prefix(&format!("/custody.vault.v1.{service}/"));
        let services = ["KeyVault", "AccessControl", "SealManager", "LeaseManager", "KeyLineage"];
        if let Some(operation) = services.into_iter().find_map(of) {
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
    let mut columns: Vec<Clients> = Vec::new();
    for (n, (role, duty)) in HOLDERS.iter().enumerate() {
        let who = match duty {
            Some(duty) => {
                let who = format!("holder-{n}");
                _ = deployment.principal(&who, duty);
                who
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
        let channel = deployment.channel("vault", &who).unwrap();
        columns.push(Clients {
            keys: KeyVaultClient::new(channel.clone()),
            access: AccessControlClient::new(channel.clone()),
            leases: LeaseManagerClient::new(channel.clone()),
            lineage: KeyLineageClient::new(channel.clone()),
            seals: SealManagerClient::new(channel),
        });
    }
    let mut table = String::new();
    for (n, (role, duty)) in HOLDERS.iter().enumerate() {
        writeln!(table, "{}  {role} ({})", n + 1, duty.unwrap_or("workload")).unwrap();
    }
    table += "\n";
    for operation in OPERATIONS {
        write!(table, "{operation:24}").unwrap();
        for clients in &columns {
            let verdict = match call(clients.clone(), operation).await {
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
