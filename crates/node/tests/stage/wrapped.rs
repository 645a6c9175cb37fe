//! Keys of archived logs that no test needs opened.

use custody_node::WalKeyEntry;
use custody_types::{WrapAlgorithm, WrappedKey};

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
pub(crate) fn wrapped(n: u8) -> WrappedKey {
    WrappedKey {
        key_version: "vaults/v/keys/k/versions/00000000000000000000000000000000".parse().unwrap(),
        algorithm: WrapAlgorithm::RsaOaep256,
        ciphertext: vec![n; 256],
    }
}

pub(crate) fn key_entry(n: u8) -> WalKeyEntry {
    WalKeyEntry { managed_identity: "managedIdentities/m".into(), wrapped: wrapped(n) }
}
