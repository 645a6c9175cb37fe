//! Private operations that many callers ask for are done at once, and nobody can tell but by the time.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
use custody_clients::Vault;
use custody_proto::vault as kv;
use custody_rpc::status::reason;
use custody_testkit::Deployment;
use tokio::task::JoinSet;

/// Where `scripts/crypto-mb` puts the library.
const LIBRARY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/crypto-mb/libcrypto_mb.so");

/// Callers at the same time.
const CALLERS: u32 = 200;

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_has_its_own_answer_and_its_record() {
    let deployment = Deployment::start_with(&["--crypto-mb", LIBRARY]);
    let log = std::fs::read_to_string(deployment.dir().join("logs/vault.log")).unwrap();
    assert!(
        ["that wait together are done at once", "has no AVX-512 IFMA"].iter().any(|said| log.contains(said)),
        "the vault says which: {log}"
    );
    let (key, identity, _) = deployment.key_and_identity("acme");
    let other = "vaults/acme/keys/large";
    _ = deployment.run(&["key", "create", other, "--size", "4096"]);
    _ = deployment.run(&["access", "grant", &identity, "Key Vault Crypto User", "vaults/acme"]);
    deployment.bind(&identity).await.unwrap();
    let app = Vault::new(deployment.channel("vault", &identity).unwrap());
    // Wrapped before, so that they come together.
    let mut wrapped = Vec::new();
    for n in 0..CALLERS {
        let name = if n % 5 == 0 { other.to_owned() } else { key.clone() };
        let plaintext = n.to_be_bytes().repeat(8);
        wrapped
            .push(app.clone().wrap_key(kv::WrapKeyRequest { name, plaintext, ..Default::default() }).await);
    }
    let mut calls = JoinSet::new();
    for (n, wrapped) in (0..CALLERS).zip(wrapped) {
        let (mut app, wrapped) = (app.clone(), wrapped.unwrap().into_inner());
        calls.spawn(async move {
            let (algorithm, mut ciphertext) = (wrapped.algorithm, wrapped.ciphertext);
            // Every seventh is damaged, and every eleventh signs.
            if n % 7 == 0 {
                *ciphertext.last_mut().unwrap() ^= 1;
            }
            let name = wrapped.key_version;
            if n % 11 == 0 {
                let digest = n.to_be_bytes().repeat(8);
                let ask = kv::SignRequest { name, algorithm: "PS256".to_owned(), digest: digest.clone() };
                let signed = app.sign(ask).await.unwrap().into_inner();
                let (name, algorithm, signature) = (signed.key_version, "PS256".to_owned(), signed.signature);
                let held = app.verify(kv::VerifyRequest { name, algorithm, digest, signature }).await;
                assert!(held.unwrap().into_inner().valid, "{n}");
                return "KeySign Success";
            }
            match app.unwrap_key(kv::UnwrapKeyRequest { name, algorithm, ciphertext }).await {
                Ok(opened) => {
                    assert_eq!(opened.into_inner().plaintext, n.to_be_bytes().repeat(8));
                    "KeyUnwrap Success"
                }
                Err(refused) => {
                    assert_eq!((n % 7, reason(&refused).as_str()), (0, "UNWRAP_FAILED"), "{refused}");
                    "KeyUnwrap Failed"
                }
            }
        });
    }
    let mut answers = calls.join_all().await;
    assert_eq!(answers.len(), CALLERS as usize);
    assert!(answers.contains(&"KeyUnwrap Failed"));
    // Each is in the trail, with what came of it, and nothing else is.
    let mut recorded: Vec<String> = Vec::new();
    for operation in ["KeySign", "KeyUnwrap"] {
        let listed = deployment.run(&["audit", "list", "--operation", operation, "--caller", &identity]);
        let results = listed.as_array().unwrap().iter().map(|record| record["result"].as_str().unwrap());
        let ended = results.filter(|result| *result != "Started");
        recorded.extend(ended.map(|result| format!("{operation} {result}")));
    }
    answers.sort();
    recorded.sort();
    assert_eq!(answers, recorded);
}

#[test]
fn a_library_that_is_none_is_named() {
    for (library, why) in
        [("/nowhere/libcrypto_mb.so", "is no library that can be loaded"), ("libm.so.6", "is not crypto_mb")]
    {
        // The end of the log is told, and a backtrace would be all of it.
        let quiet = [("RUST_BACKTRACE".to_owned(), "0".to_owned())];
        let started = Deployment::start_with_environment(&["--crypto-mb", library], &quiet);
        let refused = started.unwrap_err().to_string();
        assert!(["`crypto_mb`", why, library].iter().all(|said| refused.contains(said)), "{refused}");
    }
}
