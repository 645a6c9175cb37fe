//! What is stored of vaults, keys and versions, and how they are shown.

use custody_kek::KekPrivateKey;
use custody_types::{KeyAttributes, KeyName, KeyState, KeyVersionName, UnixMillis, VaultName};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock};

/// A vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultRecord {
    /// Its name.
    pub name: VaultName,
    /// Days that a deleted key can be recovered.
    pub soft_delete_retention_days: u32,
    /// Whether deleted keys are kept for all of that time.
    pub purge_protection: bool,
    /// When it was made.
    pub create_time: UnixMillis,
}

/// A key as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct KeyRecord {
    pub(crate) name: KeyName,
    pub(crate) create_time: UnixMillis,
    /// Oldest first; the last one wraps.
    pub(crate) versions: Vec<KeyVersionName>,
    /// Delete and purge times of a soft-deleted key.
    pub(crate) deleted: Option<(UnixMillis, UnixMillis)>,
}

/// A version as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VersionRecord {
    pub(crate) name: KeyVersionName,
    pub(crate) create_time: UnixMillis,
    pub(crate) attributes: KeyAttributes,
    pub(crate) size_bits: u32,
    #[serde(with = "base64_bytes")]
    pub(crate) n: Vec<u8>,
    #[serde(with = "base64_bytes")]
    pub(crate) e: Vec<u8>,
    /// The private half, sealed under the root key for this version's name.
    #[serde(with = "base64_bytes")]
    pub(crate) sealed: Vec<u8>,
}

/// A version in memory: its private half is opened at first use and then kept.
#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) record: VersionRecord,
    pub(crate) private: Arc<OnceLock<KekPrivateKey>>,
}

/// A key as it is shown.
#[derive(Clone, Debug)]
pub struct KeyView {
    /// Its name.
    pub name: KeyName,
    /// The version that wraps.
    pub current: VersionView,
    /// When it was made.
    pub create_time: UnixMillis,
    /// Delete and purge times of a soft-deleted key.
    pub deleted: Option<(UnixMillis, UnixMillis)>,
    /// Whether a deletion can be cut short.
    pub purge_protection: bool,
    /// Days that it can be recovered.
    pub recoverable_days: u32,
}

/// A version as it is shown.
#[derive(Clone, Debug)]
pub struct VersionView {
    /// Its name.
    pub name: KeyVersionName,
    /// What its owner set.
    pub attributes: KeyAttributes,
    /// Where it is in its life.
    pub state: KeyState,
    /// Bits of the modulus.
    pub size_bits: u32,
    /// The modulus.
    pub n: Vec<u8>,
    /// The public exponent.
    pub e: Vec<u8>,
    /// When it was made.
    pub create_time: UnixMillis,
}

mod base64_bytes {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}
