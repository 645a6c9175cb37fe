//! A vault with an HSM: keys that are in it, a seal that it opens, and a day on which it is gone.
use custody_clients::Vault;
use custody_proto::vault as kv;
use custody_rpc::status::reason;
use custody_testkit::{Caller, Cluster, Deployment, Service, State, eventually};
use std::{
    process::Command,
    time::{Duration, Instant},
};
use tonic::Code;

/// A workload that may use the keys of a vault.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
async fn user(deployment: &Deployment, vault: &str) -> Vault {
    _ = deployment.run(&["identity", "create", "app"]);
    _ = deployment.run(&["access", "grant", "managedIdentities/app", "Key Vault Crypto User", vault]);
    deployment.bind("managedIdentities/app").await.unwrap();
    Vault::new(deployment.channel("vault", "managedIdentities/app").unwrap())
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
async fn wrap(app: &mut Vault, key: &str) -> kv::UnwrapKeyRequest {
    let wrap = kv::WrapKeyRequest { name: key.to_owned(), plaintext: vec![7; 32], ..Default::default() };
    let wrapped = app.wrap_key(wrap).await.unwrap().into_inner();
    kv::UnwrapKeyRequest {
        name: wrapped.key_version,
        algorithm: wrapped.algorithm,
        ciphertext: wrapped.ciphertext,
    }
}

/// A transfer file, made with OpenSSL as Azure's customers make one.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn transfer_file(dir: &std::path::Path, exchange: &serde_json::Value, pem: &str) -> std::path::PathBuf {
    let exchange_pem = dir.join("exchange.pem");
    std::fs::write(&exchange_pem, exchange["public"].as_str().unwrap()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sdk/transfer.sh");
    let kid = exchange["name"].as_str().unwrap();
    let made = Command::new(script).arg(pem).arg(exchange_pem).arg(kid).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::write(dir.join("transfer.byok"), made.stdout).unwrap();
    dir.join("transfer.byok")
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_the_hsm_are_used_rotated_purged_and_never_leave() {
    let (deployment, _hsm) = Deployment::start_with_hsm(&[]).unwrap();
    let vault =
        ["vault", "create", "acme", "--one-officer", "--no-purge-protection", "--retention-days", "7"];
    _ = deployment.run(&vault);
    let key = "vaults/acme/keys/inside";
    let made = deployment.run(&["key", "create", key, "--hsm"]);
    assert_eq!(made["type"], "RSA-HSM");
    let mut app = user(&deployment, "vaults/acme").await;
    let old = wrap(&mut app, key).await;
    let rotated = deployment.run(&["key", "rotate", key]);
    assert_eq!(rotated["type"], "RSA-HSM", "a new version is where the key is");
    let new = wrap(&mut app, key).await;
    assert_ne!(old.name, new.name);
    for wrapped in [old, new] {
        assert_eq!(app.unwrap_key(wrapped).await.unwrap().into_inner().plaintext, vec![7; 32]);
    }
    let mut officer = Vault::new(deployment.channel("vault", "officer").unwrap());
    let refused = officer.backup_key(kv::BackupKeyRequest { name: key.to_owned() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    // Brought, and transferred so that nobody here sees it.
    let pem = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/kek/tests/imports/rsa-2048.pkcs8.pem");
    let brought = deployment.run(&["key", "import", "vaults/acme/keys/brought", pem, "--hsm"]);
    let exchange = "vaults/acme/keys/exchange";
    _ = deployment.run(&["key", "create", exchange, "--hsm", "--ops", "import"]);
    let public = deployment.run(&["key", "public", exchange]);
    let file = transfer_file(deployment.dir(), &public, pem).display().to_string();
    let transferred =
        deployment.run(&["key", "import", "vaults/acme/keys/transferred", &file, "--byok", "--hsm"]);
    assert_eq!((&brought["type"], &transferred["type"]), (&"RSA-HSM".into(), &"RSA-HSM".into()));
    // An EC key too, although no token tells the public half of what it unwraps.
    let pem = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/kek/tests/imports/ec-p256.pem");
    let file = transfer_file(deployment.dir(), &public, pem).display().to_string();
    let signs = "vaults/acme/keys/signs";
    let transferred = deployment.run(&["key", "import", signs, &file, "--byok", "--hsm"]);
    assert_eq!((&transferred["type"], &transferred["curve"]), (&"EC-HSM".into(), &"P-256".into()));
    let outside = Command::new("openssl").args(["pkey", "-pubout", "-in", pem]).output().unwrap();
    let told = deployment.run(&["key", "public", signs]);
    assert_eq!(told["public"].as_str().unwrap().as_bytes(), outside.stdout, "it is the very key");
    let sign = kv::SignRequest { name: signs.to_owned(), algorithm: "ES256".to_owned(), digest: vec![1; 32] };
    assert_eq!(app.sign(sign).await.unwrap().into_inner().signature.len(), 64);
    // It is the same key: what one wraps the other opens.
    let by_brought = wrap(&mut app, "vaults/acme/keys/brought").await;
    let name = wrap(&mut app, "vaults/acme/keys/transferred").await.name;
    let opened = app.unwrap_key(kv::UnwrapKeyRequest { name, ..by_brought }).await.unwrap();
    assert_eq!(opened.into_inner().plaintext, vec![7; 32]);
    let sign = kv::SignRequest { name: key.to_owned(), algorithm: "PS256".to_owned(), digest: vec![1; 32] };
    let signed = app.sign(sign.clone()).await.unwrap().into_inner();
    let verify = kv::VerifyRequest {
        name: signed.key_version,
        algorithm: sign.algorithm,
        digest: sign.digest,
        signature: signed.signature,
    };
    assert!(app.verify(verify).await.unwrap().into_inner().valid);

    let objects = || {
        let tokens = deployment.dir().join("hsm/tokens");
        let token = std::fs::read_dir(tokens).unwrap().next().unwrap().unwrap().path();
        let object = |e: &std::fs::DirEntry| {
            let name = e.file_name().to_string_lossy().into_owned();
            name.ends_with(".object") && name != "token.object"
        };
        std::fs::read_dir(token).unwrap().map(Result::unwrap).filter(object).count()
    };
    let before = objects();
    _ = deployment.run(&["key", "delete", key]);
    _ = deployment.cli(&["key", "purge", key]).unwrap();
    assert_eq!(objects() + 2, before, "both versions are gone from the HSM");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_key_is_in_an_hsm_waits_for_it_and_loses_nothing() {
    const LIMIT: Duration = Duration::from_secs(60);
    let cluster = Cluster::builder().in_hsm().start().await.unwrap();
    cluster.query("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id").await.unwrap();
    let count = "SELECT count(*) FROM t";
    let lost = cluster.lose_hsm().unwrap();
    // Leases are renewed without the HSM, for longer than one lasts.
    let leases = cluster.leases(&Caller::Officer).unwrap();
    let granted = async || {
        let request = kv::ListLeasesRequest { parent: cluster.key().to_owned(), ..Default::default() };
        let leases = leases.clone().list_leases(request).await.unwrap().into_inner().leases;
        leases[0].grant_time.unwrap().seconds
    };
    let (first, until) = (granted().await, Instant::now() + LIMIT);
    while granted().await < first + 5 {
        assert!(Instant::now() < until, "the lease is not renewed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(cluster.query(count).await.unwrap(), "1000");
    // A node that starts has no key in memory.
    cluster.kill(Service::Storage).await.unwrap();
    cluster.wait_for(State::Inaccessible, LIMIT).await.unwrap();
    eventually("it says why", LIMIT, || {
        let seen = cluster.deployment().run(&["cluster", "get", "clusters/sut"]);
        (seen["reason"] == "HSM_UNAVAILABLE").then_some(())
    });
    drop(lost);
    assert_eq!(cluster.wait_for_answer(count, LIMIT).await.unwrap(), "1000");
    cluster.wait_for(State::Ready, LIMIT).await.unwrap();
}

#[test]
fn a_deployment_finds_the_keys_in_its_token_again() {
    let (deployment, _hsm) = Deployment::start_with_hsm(&[]).unwrap();
    _ = deployment.run(&["vault", "create", "acme", "--one-officer"]);
    _ = deployment.run(&["key", "create", "vaults/acme/keys/inside", "--hsm"]);
    let pin = std::fs::read_to_string(deployment.dir().join("hsm/pin")).unwrap();
    assert_eq!(pin.len(), 16, "drawn for this deployment");
    let dir = deployment.stop();
    let deployment = Deployment::start_in(dir, &["--soft-hsm"]).unwrap();
    assert_eq!(std::fs::read_to_string(deployment.dir().join("hsm/pin")).unwrap(), pin);
    let rotated = deployment.run(&["key", "rotate", "vaults/acme/keys/inside"]);
    assert_eq!(rotated["type"], "RSA-HSM");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hsm_that_is_lost_is_said_to_be_and_comes_back() {
    let (deployment, hsm) = Deployment::start_with_hsm(&[]).unwrap();
    _ = deployment.run(&["vault", "create", "acme", "--one-officer"]);
    _ = deployment.run(&["key", "create", "vaults/acme/keys/inside", "--hsm"]);
    _ = deployment.run(&["key", "create", "vaults/acme/keys/outside"]);
    let mut app = user(&deployment, "vaults/acme").await;
    let (inside, outside) =
        (wrap(&mut app, "vaults/acme/keys/inside").await, wrap(&mut app, "vaults/acme/keys/outside").await);
    app.unwrap_key(inside.clone()).await.unwrap();
    hsm.take_away().unwrap();
    let lost = app.unwrap_key(inside.clone()).await.unwrap_err();
    // No refusal of access: whoever depends on the key waits, and takes nothing away.
    assert_eq!((lost.code(), reason(&lost).as_str()), (Code::Unavailable, "HSM_UNAVAILABLE"), "{lost}");
    app.unwrap_key(outside.clone()).await.unwrap();
    let made = deployment.cli(&["key", "create", "vaults/acme/keys/other", "--hsm"]);
    assert!(made.is_err());
    hsm.bring_back().unwrap();
    let back = || deployment.cli(&["key", "create", "vaults/acme/keys/other", "--hsm"]).ok();
    _ = eventually("the HSM to be back", Duration::from_secs(30), back);
    app.unwrap_key(inside.clone()).await.unwrap();

    // The seal is the HSM's from now on: a start without it waits for it, and a start with it does not.
    let changed = deployment.run(&["vault", "change-seal", "--hsm"]);
    assert_eq!((&changed["type"], &changed["sealed"]), (&"HSM".into(), &false.into()));
    hsm.take_away().unwrap();
    deployment.kill("vault");
    let status = |sealed: bool| {
        move |d: &Deployment| d.cli(&["vault", "seal-status"]).ok().filter(|s| s["sealed"] == sealed)
    };
    let limit = Duration::from_secs(40);
    _ = eventually("a start that waits for the HSM", limit, || status(true)(&deployment));
    hsm.bring_back().unwrap();
    _ = eventually("the vault to open by itself", limit, || status(false)(&deployment));
    let opened = || async { app.clone().unwrap_key(inside.clone()).await };
    assert_eq!(opened().await.unwrap().into_inner().plaintext, vec![7; 32]);
}
