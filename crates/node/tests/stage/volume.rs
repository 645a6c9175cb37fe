//! A volume that a test makes.

use custody_envelope::VolumeKey;
use custody_node::{Protector, ProtectorKind, Volume, VolumeOptions};
use std::path::Path;

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
pub(crate) fn volume(path: &Path, size: u64, options: VolumeOptions) -> Volume {
    let protector = Protector {
        kind: ProtectorKind::CustomerManaged,
        key: "vaults/v/keys/k".into(),
        managed_identity: "managedIdentities/m".into(),
        wrapped: None,
    };
    Volume::create(path, size, &VolumeKey::generate().unwrap(), protector, options).unwrap()
}
