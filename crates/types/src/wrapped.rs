//! Key material in its wrapped form: safe to store, print and send.

use crate::KeyVersionName;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How an RSA key wraps, by its JOSE name (RFC 7518 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum WrapAlgorithm {
    /// RSAES-OAEP with SHA-256 and MGF1-SHA-256. The default.
    #[serde(rename = "RSA-OAEP-256")]
    RsaOaep256,
    /// RSAES-OAEP with SHA-1 and MGF1-SHA-1, for clients of Azure that still ask for it.
    #[serde(rename = "RSA-OAEP")]
    RsaOaep,
}

impl WrapAlgorithm {
    /// The JOSE name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RsaOaep256 => "RSA-OAEP-256",
            Self::RsaOaep => "RSA-OAEP",
        }
    }

    /// Bytes of the modulus that padding takes: 2·hash + 2 (RFC 8017 §7.1.1).
    #[must_use]
    pub fn overhead(self) -> usize {
        match self {
            Self::RsaOaep256 => 66,
            Self::RsaOaep => 42,
        }
    }
}

impl fmt::Display for WrapAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no algorithm that wraps here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("algorithm `{0}` is not supported for wrapping; use RSA-OAEP-256 (or RSA-OAEP)")]
pub struct UnknownAlgorithm(String);

impl FromStr for WrapAlgorithm {
    type Err = UnknownAlgorithm;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "" | "RSA-OAEP-256" => Ok(Self::RsaOaep256),
            "RSA-OAEP" => Ok(Self::RsaOaep),
            other => Err(UnknownAlgorithm(other.chars().take(40).collect())),
        }
    }
}

/// Key material wrapped by one version of a key-encryption key. Carries the *versioned* name, since only that
/// version opens it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// The version that wrapped it.
    pub key_version: KeyVersionName,
    /// How.
    pub algorithm: WrapAlgorithm,
    /// The RSA ciphertext; as long as the modulus.
    pub ciphertext: Vec<u8>,
}
