//! What kind of key: RSA of a size, or EC on a curve; and its public half (RFC 7518 §6).

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Bits of an RSA modulus that are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RsaSize {
    /// 2048 bits.
    Bits2048,
    /// 3072 bits.
    Bits3072,
    /// 4096 bits.
    Bits4096,
}

impl RsaSize {
    /// The number of bits.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Bits2048 => 2048,
            Self::Bits3072 => 3072,
            Self::Bits4096 => 4096,
        }
    }
}

/// No key of this size is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an RSA key of {0} bits is not offered; use 2048, 3072 or 4096")]
pub struct UnknownRsaSize(pub u32);

impl TryFrom<u32> for RsaSize {
    type Error = UnknownRsaSize;
    fn try_from(bits: u32) -> Result<Self, UnknownRsaSize> {
        [Self::Bits2048, Self::Bits3072, Self::Bits4096]
            .into_iter()
            .find(|s| s.bits() == bits)
            .ok_or(UnknownRsaSize(bits))
    }
}

/// A curve, by its JOSE name (RFC 7518 §6.2.1.1); `P-256K` is Azure's name of secp256k1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Curve {
    /// NIST P-256.
    #[serde(rename = "P-256")]
    P256,
    /// secp256k1.
    #[serde(rename = "P-256K")]
    P256K,
    /// NIST P-384.
    #[serde(rename = "P-384")]
    P384,
    /// NIST P-521.
    #[serde(rename = "P-521")]
    P521,
}

impl Curve {
    /// Every curve.
    pub const ALL: [Self; 4] = [Self::P256, Self::P256K, Self::P384, Self::P521];

    /// The JOSE name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P256K => "P-256K",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// Bytes of a coordinate, and of each half of a signature.
    #[must_use]
    pub fn coordinate_len(self) -> usize {
        match self {
            Self::P256 | Self::P256K => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// Bits of the field.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::P256 | Self::P256K => 256,
            Self::P384 => 384,
            Self::P521 => 521,
        }
    }
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no curve that is offered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the curve `{0}` is not offered; use P-256, P-256K, P-384 or P-521")]
pub struct UnknownCurve(String);

impl FromStr for Curve {
    type Err = UnknownCurve;
    fn from_str(text: &str) -> Result<Self, UnknownCurve> {
        let found = Self::ALL.into_iter().find(|c| c.as_str() == text);
        found.ok_or_else(|| UnknownCurve(text.chars().take(40).collect()))
    }
}

/// What kind of key, whatever its size or its curve: what a JWK's `kty` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFamily {
    /// Signs.
    Ec,
    /// Wraps, encrypts and signs.
    Rsa,
}

/// What kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// Signs.
    Ec(Curve),
    /// Wraps, encrypts and signs.
    Rsa(RsaSize),
}

impl KeyType {
    /// What its kind has in common.
    #[must_use]
    pub fn family(self) -> KeyFamily {
        match self {
            Self::Ec(_) => KeyFamily::Ec,
            Self::Rsa(_) => KeyFamily::Rsa,
        }
    }

    /// The JWK member `kty`.
    #[must_use]
    pub fn kty(self) -> &'static str {
        match self.family() {
            KeyFamily::Ec => "EC",
            KeyFamily::Rsa => "RSA",
        }
    }

    /// Bits of the modulus or of the field.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Ec(curve) => curve.bits(),
            Self::Rsa(size) => size.bits(),
        }
    }
}

/// Where a private half is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// In an HSM, which it never leaves.
    Hsm,
    /// In the vault's store, sealed.
    #[default]
    Software,
}

impl Protection {
    /// Azure's `kty` of such a key: `RSA-HSM` and `EC-HSM` beside those of RFC 7518.
    #[must_use]
    pub fn kty(self, kind: KeyType) -> &'static str {
        match (self, kind) {
            (Self::Software, kind) => kind.kty(),
            (Self::Hsm, KeyType::Ec(_)) => "EC-HSM",
            (Self::Hsm, KeyType::Rsa(_)) => "RSA-HSM",
        }
    }
}

/// The public half of a key; numbers are big-endian, as in a JWK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// A point, its coordinates of full length (RFC 7518 §6.2.1).
    Ec {
        /// The curve.
        crv: Curve,
        /// One coordinate.
        x: Vec<u8>,
        /// The other.
        y: Vec<u8>,
    },
    /// Modulus and exponent, without leading zeros (RFC 7518 §6.3.1).
    Rsa {
        /// The modulus.
        n: Vec<u8>,
        /// The public exponent.
        e: Vec<u8>,
    },
}

impl PublicKey {
    /// What kind it is; none where a modulus has a size that is not offered.
    #[must_use]
    pub fn key_type(&self) -> Option<KeyType> {
        match self {
            Self::Ec { crv, .. } => Some(KeyType::Ec(*crv)),
            Self::Rsa { n, .. } => {
                let bits = u32::try_from(n.len() * 8).ok()?;
                RsaSize::try_from(bits).ok().map(KeyType::Rsa)
            }
        }
    }
}
