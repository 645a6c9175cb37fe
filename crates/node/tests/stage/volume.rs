//! A volume that a test makes.

#[path = "protector.rs"]
mod protector;

use custody_envelope::VolumeKey;
use custody_node::{Volume, VolumeOptions};
use protector::protector;
use std::path::Path;

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
pub(crate) fn volume(path: &Path, size: u64, options: VolumeOptions) -> Volume {
    Volume::create(path, size, &VolumeKey::generate().unwrap(), protector(), options).unwrap()
}
