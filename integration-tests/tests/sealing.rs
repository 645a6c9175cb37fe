//! Sealing with real processes: a start that waits for its officers, and a customer's vault that is closed.
use custody_clients::{Seals, Vault};
use custody_proto::vault::{self as kv, unseal_vault_request::Key};
use custody_rpc::status::reason;
use custody_testkit::{Deployment, eventually, memory::occurrences};
use std::time::Duration;
use tonic::Code;

const KEY: &str = "vaults/acme/keys/brought";
/// The middle of a prime of `rsa-2048.pkcs8.pem`, most significant byte first.
const PRIME: &str = "8d15df296461eb64e831d2bec693a6529b6326f5f90aa6b6e0270419048c8df8";

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn shares(answer: &serde_json::Value) -> Vec<String> {
    let all = answer["new_shares"].as_array().unwrap();
    all.iter().map(|s| s.as_str().unwrap().to_owned()).collect()
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
async fn give(
    deployment: &Deployment,
    who: &str,
    name: &str,
    share: &str,
) -> Result<kv::Seal, tonic::Status> {
    let mut seals = Seals::new(deployment.channel("vault", who).unwrap());
    let key = Some(Key::Share(share.to_owned()));
    let request = kv::UnsealVaultRequest { name: name.to_owned(), key };
    seals.unseal_vault(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_two_officers() {
    let deployment = Deployment::start();
    _ = deployment.run(&["vault", "create", "acme", "--one-officer"]);
    _ = deployment.run(&["key", "create", "vaults/acme/keys/k"]);
    let status = deployment.run(&["vault", "seal-status"]);
    assert_eq!((status["type"].as_str(), status["sealed"].as_bool()), (Some("key file"), Some(false)));
    let made = shares(&deployment.run(&["vault", "change-seal", "--shares", "2/3"]));
    assert_eq!(made.len(), 3);
    deployment.kill("vault");
    let sealed = || deployment.cli(&["vault", "seal-status"]).ok().filter(|s| s["sealed"] == true);
    _ = eventually("the vault to start sealed", Duration::from_secs(30), sealed);

    // Nothing is answered, by either face, and it is no refusal of access.
    let mut vault = Vault::new(deployment.channel("vault", "officer").unwrap());
    let name = "vaults/acme/keys/k".to_owned();
    let refused = vault.get_key(kv::GetKeyRequest { name: name.clone() }).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "SEALED"));
    let sysadmin = give(&deployment, "sysadmin", "seal", &made[0]).await.unwrap_err();
    assert_eq!(sysadmin.code(), Code::PermissionDenied);
    assert!(give(&deployment, "officer", "seal", &made[0]).await.unwrap().sealed);
    let twice = give(&deployment, "officer", "seal", &made[1]).await.unwrap_err();
    assert_eq!(twice.code(), Code::InvalidArgument, "one officer is not two: {twice}");
    assert!(!give(&deployment, "custodian", "seal", &made[2]).await.unwrap().sealed);
    vault.get_key(kv::GetKeyRequest { name }).await.unwrap();
    let rotated = deployment.run(&["vault", "rotate-root-key"]);
    assert_eq!(rotated["generation"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_vaults_keys_leave_the_memory() {
    let deployment = Deployment::start();
    _ = deployment.run(&["vault", "create", "acme", "--one-officer"]);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/kek/tests/imports/rsa-2048.pkcs8.pem");
    _ = deployment.run(&["key", "import", KEY, file]);
    _ = deployment.run(&["identity", "create", "app"]);
    _ = deployment.run(&["access", "grant", "managedIdentities/app", "Key Vault Crypto User", "vaults/acme"]);
    deployment.bind("managedIdentities/app").await.unwrap();
    let mut app = Vault::new(deployment.channel("vault", "managedIdentities/app").unwrap());
    let plaintext = vec![7; 32];
    let wrap = kv::WrapKeyRequest { name: KEY.to_owned(), plaintext, ..kv::WrapKeyRequest::default() };
    let wrapped = app.wrap_key(wrap.clone()).await.unwrap().into_inner();
    let unwrap = kv::UnwrapKeyRequest {
        name: wrapped.key_version,
        algorithm: wrapped.algorithm,
        ciphertext: wrapped.ciphertext,
    };
    app.unwrap_key(unwrap.clone()).await.unwrap();
    let pid = deployment.pid("vault");
    let prime = hex::decode(PRIME).unwrap();
    assert!(occurrences(pid, &prime).unwrap() > 0, "the search finds a key that is in use");

    let made = shares(&deployment.run(&["vault", "change-seal", "vaults/acme", "--shares", "2/2"]));
    let mut watch = app.watch_keys(kv::WatchKeysRequest { parent: "vaults/acme".to_owned() }).await.unwrap();
    assert_eq!(watch.get_mut().message().await.unwrap().unwrap().r#type(), kv::KeyEventType::Started);
    assert_eq!(deployment.run(&["vault", "seal", "vaults/acme"])["sealed"], true);
    assert_eq!(watch.get_mut().message().await.unwrap().unwrap().r#type(), kv::KeyEventType::Sealed);
    let refused = app.unwrap_key(unwrap.clone()).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "VAULT_SEALED"));
    assert_eq!(app.wrap_key(wrap).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(occurrences(pid, &prime).unwrap(), 0, "a part of the key is still in the vault's memory");

    let grant = ["access", "grant", "principals/custodian", "Key Vault Administrator", "vaults/acme"];
    _ = deployment.run(&grant);
    assert!(give(&deployment, "officer", "vaults/acme/seal", &made[0]).await.unwrap().sealed);
    assert!(!give(&deployment, "custodian", "vaults/acme/seal", &made[1]).await.unwrap().sealed);
    let opened = app.unwrap_key(unwrap).await.unwrap().into_inner();
    assert_eq!(opened.plaintext, vec![7; 32]);
}
