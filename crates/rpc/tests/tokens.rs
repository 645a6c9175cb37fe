//! The fuzzers' corpus of tokens (`fuzz/corpus/tokens`) with every test run: under a key whose private half nobody has, none is
//! taken, and nothing panics.
use custody_rpc::{status::reason, token::TokenVerifier};

#[tokio::test]
async fn no_forged_token_is_taken() {
    let fuzz = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz");
    let jwks = std::fs::read_to_string(format!("{fuzz}/nobodys.jwks.json")).unwrap();
    let verifier = TokenVerifier::fixed("https://identity.custody.localhost", "custody-vault", &jwks);
    let mut causes = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(format!("{fuzz}/corpus/tokens")).unwrap() {
        let token = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let refused = verifier.verify(&token).await.unwrap_err();
        assert_eq!(reason(&refused), "INVALID_TOKEN", "{token}");
        causes.insert(refused.message().to_owned());
        for at in 0..token.len().min(600) {
            assert!(verifier.verify(&token[..at]).await.is_err());
            let mut turned = token.clone().into_bytes();
            turned[at] ^= 1 << (at % 8);
            if let Ok(turned) = String::from_utf8(turned) {
                assert!(verifier.verify(&turned).await.is_err());
            }
        }
    }
    // One reaches the signature, so that the others are refused for what is wrong with them.
    assert!(causes.iter().any(|c| c.contains("signature does not verify")), "{causes:?}");
    assert!(causes.len() >= 4, "{causes:?}");
}
