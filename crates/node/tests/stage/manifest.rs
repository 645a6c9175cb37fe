//! The manifest of a backup that a test makes.

use custody_node::{BackupManifest, Volume};
use custody_types::{UnixMillis, WrapAlgorithm, WrappedKey};

/// The manifest of a full backup that is to be made.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
pub(crate) fn manifest(id: u8, volume: &Volume) -> BackupManifest {
    BackupManifest {
        version: BackupManifest::VERSION,
        backup_id: [id; 16],
        source: "volumes/v".into(),
        volume_id: volume.id(),
        base: None,
        size_bytes: volume.size_bytes(),
        create_time: UnixMillis::from_secs(1),
        wrapped: WrappedKey {
            key_version: "vaults/v/keys/k/versions/00000000000000000000000000000000".parse().unwrap(),
            algorithm: WrapAlgorithm::RsaOaep256,
            ciphertext: vec![1],
        },
        bound: None,
        managed_identity: "managedIdentities/m".into(),
        chunks: 0,
        marks_from: None,
    }
}
