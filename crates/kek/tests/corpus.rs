//! Private keys cut anywhere and with any one bit turned: nothing panics, and what is taken in still works.

use custody_kek::{Backend, PrivateKey};
use custody_types::WrapAlgorithm::RsaOaep256;

#[test]
fn damaged_private_keys_are_refused_or_harmless() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/imports");
    let mut tried = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.path().extension().is_none_or(|e| e != "pem") {
            continue;
        }
        let pem = std::fs::read(entry.path()).unwrap();
        for step in 0..120 {
            let at = step * pem.len() / 120;
            for backend in [Backend::AwsLc, Backend::RustCrypto] {
                _ = PrivateKey::import(&pem[..at], backend);
                let mut turned = pem.clone();
                turned[at] ^= 1 << (step % 7);
                // A bit of the armour or of an ignored attribute may turn without harm.
                if let Ok(key) = PrivateKey::import(&turned, backend)
                    && let Ok(wrapped) = key.wrap_key(RsaOaep256, b"k")
                {
                    assert_eq!(key.unwrap_key(RsaOaep256, &wrapped).unwrap()[..], *b"k", "{entry:?} {at}");
                }
            }
        }
        tried += 1;
    }
    assert!(tried >= 8, "only {tried} keys");
}
