//! What is stored of vaults, keys and versions, and how they are shown.

use crate::uses::{UseCounts, Uses};
use custody_kek::PrivateKey;
use custody_types::{
    KeyAttributes, KeyName, KeyOperation, KeyState, KeyVersionName, Protection, PublicKey, UnixMillis,
    VaultName,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

/// What an owner notes on a version: at most 15 names, each with a text. Not secret.
pub type Tags = BTreeMap<String, String>;

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
    /// Who must agree to what cannot be undone.
    #[serde(default)]
    pub approvals: ApprovalPolicy,
}

/// Who must agree to what cannot be undone: see `approval`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalPolicy {
    /// A second officer, within an hour.
    #[default]
    TwoOfficers,
    /// Nobody else, as in Azure Key Vault.
    OneOfficer,
}

/// A key as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct KeyRecord {
    pub(crate) name: KeyName,
    pub(crate) create_time: UnixMillis,
    /// Oldest first; the last one wraps.
    pub(crate) versions: Vec<KeyVersionName>,
    pub(crate) deleted: Option<Deletion>,
}

/// When a key was soft-deleted, and when its retention ends.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Deletion {
    pub(crate) delete_time: UnixMillis,
    pub(crate) purge_time: UnixMillis,
    /// What the retention clock showed, in milliseconds: see `retention`.
    pub(crate) passed_ms: u64,
}

/// A version as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VersionRecord {
    pub(crate) name: KeyVersionName,
    pub(crate) create_time: UnixMillis,
    pub(crate) update_time: UnixMillis,
    pub(crate) attributes: KeyAttributes,
    pub(crate) key_ops: Vec<KeyOperation>,
    pub(crate) tags: Tags,
    #[serde(with = "public_key")]
    pub(crate) public: PublicKey,
    /// Where the private half is.
    #[serde(default)]
    pub(crate) protection: Protection,
    /// Which of the vault's keys seals the private half.
    pub(crate) seal_generation: u32,
    /// The private half, or its id in the HSM, sealed under that key for this version's name.
    #[serde(with = "base64_bytes")]
    pub(crate) sealed: Vec<u8>,
}

/// A version in memory: its private half is opened at first use and then kept.
#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) record: VersionRecord,
    pub(crate) private: Arc<OnceLock<Box<PrivateKey>>>,
    pub(crate) uses: Arc<Uses>,
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

impl KeyView {
    /// Azure's name of what its vault says of recovery ("Key Vault soft-delete overview"): customized where the
    /// retention is below 90 days.
    #[must_use]
    pub fn recovery_level(&self) -> String {
        let customized = if self.recoverable_days < 90 { "Customized" } else { "" };
        let purgeable = if self.purge_protection { "" } else { "+Purgeable" };
        format!("{customized}Recoverable{purgeable}")
    }
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
    /// What it may be asked to do.
    pub key_ops: Vec<KeyOperation>,
    /// What its owner noted.
    pub tags: Tags,
    /// The public half.
    pub public: PublicKey,
    /// When it was made.
    pub create_time: UnixMillis,
    /// When its owner last changed it.
    pub update_time: UnixMillis,
    /// Where the private half is.
    pub protection: Protection,
    /// How often it was used.
    pub uses: UseCounts,
}

pub(crate) mod base64_bytes {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// The numbers as base64url text, as in a JWK; as lists of numbers they would take four times as much.
pub(crate) mod public_key {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as B64};
    use custody_types::{Curve, PublicKey};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

    #[derive(Serialize, Deserialize)]
    #[serde(tag = "kty")]
    enum Jwk {
        #[serde(rename = "EC")]
        Ec { crv: Curve, x: String, y: String },
        #[serde(rename = "RSA")]
        Rsa { n: String, e: String },
    }

    pub(crate) fn serialize<S: Serializer>(key: &PublicKey, to: S) -> Result<S::Ok, S::Error> {
        match key {
            PublicKey::Ec { crv, x, y } => Jwk::Ec { crv: *crv, x: B64.encode(x), y: B64.encode(y) },
            PublicKey::Rsa { n, e } => Jwk::Rsa { n: B64.encode(n), e: B64.encode(e) },
        }
        .serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PublicKey, D::Error> {
        let bytes = |text: String| B64.decode(text).map_err(D::Error::custom);
        Ok(match Jwk::deserialize(from)? {
            Jwk::Ec { crv, x, y } => PublicKey::Ec { crv, x: bytes(x)?, y: bytes(y)? },
            Jwk::Rsa { n, e } => PublicKey::Rsa { n: bytes(n)?, e: bytes(e)? },
        })
    }
}
