//! Bringing a key from outside: every form is parsed in Rust and the key is checked before it is taken.

use crate::ec;
use custody_types::{Curve, KeyType, RsaSize};
use rsa::{
    pkcs1::DecodeRsaPrivateKey as _,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, SecretDocument},
    traits::PublicKeyParts as _,
};
use std::fmt;
use zeroize::Zeroizing;

/// Why a key cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// A number of an EC key has another length than its curve's.
    #[error("`private_key`: d, x and y must have {len} bytes on this curve")]
    Coordinate {
        /// Bytes of a coordinate.
        len: usize,
    },
    /// The public exponent is not 65537.
    #[error("`private_key` has a public exponent other than 65537 (NIST SP 800-56B §6.2)")]
    Exponent,
    /// The numbers do not make a key.
    #[error("`private_key` is inconsistent: its numbers do not belong together")]
    Inconsistent,
    /// A size that is not offered.
    #[error("`private_key` has {bits} bits; use 2048, 3072 or 4096")]
    Size {
        /// Bits of the modulus.
        bits: usize,
    },
    /// No form is recognised.
    #[error(
        "`private_key` is not a private key in PKCS#8 (RSA, or EC on P-256, P-256K, P-384 or P-521) or PKCS#1, PEM or DER, unencrypted"
    )]
    Unreadable,
}

/// A private key as a JWK (RFC 7518 §6.2.2, §6.3.2): numbers big-endian, erased on drop.
pub enum PrivateJwk {
    /// On a curve.
    Ec {
        /// The curve.
        crv: Curve,
        /// The private scalar.
        d: Zeroizing<Vec<u8>>,
        /// The point.
        x: Vec<u8>,
        /// The point.
        y: Vec<u8>,
    },
    /// RSA. The other members follow from these.
    Rsa {
        /// The modulus.
        n: Vec<u8>,
        /// The public exponent.
        e: Vec<u8>,
        /// The private exponent.
        d: Zeroizing<Vec<u8>>,
        /// One prime.
        p: Zeroizing<Vec<u8>>,
        /// The other.
        q: Zeroizing<Vec<u8>>,
    },
}

impl fmt::Debug for PrivateJwk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateJwk(..)")
    }
}

/// Longest import accepted, in bytes; a 4096-bit key in PEM takes about 3,300.
const IMPORT_LEN_MAX: usize = 16 * 1024;

/// A key that has been checked: PKCS#8 DER, and what kind it is.
pub(crate) type Checked = (Zeroizing<Vec<u8>>, KeyType);

/// Parses, checks and re-encodes a key as PKCS#8 DER.
pub(crate) fn parse(text_or_der: &[u8]) -> Result<Checked, ImportError> {
    if text_or_der.len() > IMPORT_LEN_MAX {
        return Err(ImportError::Unreadable);
    }
    let pem = std::str::from_utf8(text_or_der).ok().map(str::trim).filter(|t| t.starts_with("-----"));
    let pkcs8 = match pem {
        Some(pem) => SecretDocument::from_pem(pem)
            .ok()
            .filter(|(label, _)| *label == "PRIVATE KEY")
            .map(|(_, document)| Zeroizing::new(document.as_bytes().to_vec())),
        None => Some(Zeroizing::new(text_or_der.to_vec())),
    };
    if let Some((curve, pkcs8)) = pkcs8.as_ref().and_then(|der| ec::parse(der)) {
        return Ok((pkcs8, KeyType::Ec(curve)));
    }
    let key = match (&pkcs8, pem) {
        (Some(der), _) => {
            rsa::PrivateKey::from_pkcs8_der(der).ok().or_else(|| rsa::PrivateKey::from_pkcs1_der(der).ok())
        }
        (None, Some(pem)) => rsa::PrivateKey::from_pkcs1_pem(pem).ok(),
        (None, None) => None,
    };
    check_rsa(&key.ok_or(ImportError::Unreadable)?)
}

/// Checks a key that came as a JWK.
pub(crate) fn parse_jwk(jwk: PrivateJwk) -> Result<Checked, ImportError> {
    match jwk {
        PrivateJwk::Ec { crv, d, x, y } => Ok((ec::from_scalar(crv, &d, &x, &y)?, KeyType::Ec(crv))),
        PrivateJwk::Rsa { n, e, d, p, q } => {
            if [&n, &e, &*d, &*p, &*q].iter().any(|number| number.len() > IMPORT_LEN_MAX) {
                return Err(ImportError::Unreadable);
            }
            let number = |bytes: &[u8]| rsa::BoxedUint::from_be_slice_vartime(bytes);
            let primes = vec![number(&p), number(&q)];
            let key = rsa::PrivateKey::from_components(number(&n), number(&e), number(&d), primes)
                .map_err(|_| ImportError::Inconsistent)?;
            check_rsa(&key)
        }
    }
}

fn check_rsa(key: &rsa::PrivateKey) -> Result<Checked, ImportError> {
    let bits = key.n().bit_width() as usize;
    let size = u32::try_from(bits).ok().and_then(|bits| RsaSize::try_from(bits).ok());
    let size = size.ok_or(ImportError::Size { bits })?;
    if key.e_bytes().as_ref() != [1, 0, 1] {
        return Err(ImportError::Exponent);
    }
    key.validate().map_err(|_| ImportError::Inconsistent)?;
    let der = key.to_pkcs8_der().map_err(|_| ImportError::Unreadable)?;
    Ok((Zeroizing::new(der.as_bytes().to_vec()), KeyType::Rsa(size)))
}
