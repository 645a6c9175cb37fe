//! How a key signs, by JOSE name (RFC 7518 §3.1; ES256K: RFC 8812 §3.2).

use crate::{Curve, KeyType};
use std::{fmt, str::FromStr};

/// A signature algorithm over a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureAlgorithm {
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on secp256k1 with SHA-256.
    Es256K,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// ECDSA on P-521 with SHA-512.
    Es512,
    /// RSASSA-PSS with SHA-256, the salt as long as the hash.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
}

impl SignatureAlgorithm {
    /// Every algorithm.
    pub const ALL: [Self; 10] = [
        Self::Es256,
        Self::Es256K,
        Self::Es384,
        Self::Es512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
    ];

    /// The JOSE name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Es256K => "ES256K",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
        }
    }

    /// Bytes of the digest that is signed.
    #[must_use]
    pub fn digest_len(self) -> usize {
        match self {
            Self::Es256 | Self::Es256K | Self::Ps256 | Self::Rs256 => 32,
            Self::Es384 | Self::Ps384 | Self::Rs384 => 48,
            Self::Es512 | Self::Ps512 | Self::Rs512 => 64,
        }
    }

    /// Whether a key of this kind can sign so.
    #[must_use]
    pub fn fits(self, kind: KeyType) -> bool {
        match (self, kind) {
            (Self::Es256, KeyType::Ec(Curve::P256))
            | (Self::Es256K, KeyType::Ec(Curve::P256K))
            | (Self::Es384, KeyType::Ec(Curve::P384))
            | (Self::Es512, KeyType::Ec(Curve::P521)) => true,
            (Self::Es256 | Self::Es256K | Self::Es384 | Self::Es512, _) | (_, KeyType::Ec(_)) => false,
            (_, KeyType::Rsa(_)) => true,
        }
    }
}

impl fmt::Display for SignatureAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no signature algorithm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no signature algorithm; use RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES256K, ES384 or ES512"
)]
pub struct UnknownSignatureAlgorithm(String);

impl FromStr for SignatureAlgorithm {
    type Err = UnknownSignatureAlgorithm;
    fn from_str(text: &str) -> Result<Self, UnknownSignatureAlgorithm> {
        let found = Self::ALL.into_iter().find(|a| a.as_str() == text);
        found.ok_or_else(|| UnknownSignatureAlgorithm(text.chars().take(40).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RsaSize;

    #[test]
    fn each_algorithm_fits_one_kind_of_key() {
        let kinds = Curve::ALL.map(KeyType::Ec).into_iter().chain([KeyType::Rsa(RsaSize::Bits2048)]);
        let kinds: Vec<_> = kinds.collect();
        for algorithm in SignatureAlgorithm::ALL {
            let fitting = kinds.iter().filter(|k| algorithm.fits(**k)).count();
            assert_eq!(fitting, 1, "{algorithm}");
            assert_eq!(algorithm.as_str().parse(), Ok(algorithm));
        }
        assert!("HS256".parse::<SignatureAlgorithm>().is_err());
    }
}
