//! Bringing a key from outside: every form is parsed by `rsa` and the key is checked before it is taken.

use crate::{RsaSize, private_key::size_of_modulus};
use rsa::{
    pkcs1::DecodeRsaPrivateKey as _,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _},
    traits::PublicKeyParts as _,
};
use zeroize::Zeroizing;

/// Why a key cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// Neither form is recognised.
    #[error("`private_key` is not an RSA private key in PKCS#8 or PKCS#1, PEM or DER, unencrypted")]
    Unreadable,
    /// The numbers do not make a key.
    #[error("`private_key` is inconsistent: its numbers do not belong together")]
    Inconsistent,
    /// A size that is not offered.
    #[error("`private_key` has {bits} bits; use 2048, 3072 or 4096")]
    Size {
        /// Bits of the modulus.
        bits: usize,
    },
    /// The public exponent is not 65537.
    #[error("`private_key` has a public exponent other than 65537 (NIST SP 800-56B §6.2)")]
    Exponent,
}

/// Longest import accepted, in bytes; a 4096-bit key in PEM takes about 3,300.
const IMPORT_LEN_MAX: usize = 16 * 1024;

/// Parses, checks and re-encodes a key as PKCS#8 DER.
pub(crate) fn parse(text_or_der: &[u8]) -> Result<(Zeroizing<Vec<u8>>, RsaSize), ImportError> {
    if text_or_der.len() > IMPORT_LEN_MAX {
        return Err(ImportError::Unreadable);
    }
    let key = match std::str::from_utf8(text_or_der).ok().map(str::trim).filter(|t| t.starts_with("-----")) {
        Some(pem) => {
            rsa::PrivateKey::from_pkcs8_pem(pem).ok().or_else(|| rsa::PrivateKey::from_pkcs1_pem(pem).ok())
        }
        None => rsa::PrivateKey::from_pkcs8_der(text_or_der)
            .ok()
            .or_else(|| rsa::PrivateKey::from_pkcs1_der(text_or_der).ok()),
    }
    .ok_or(ImportError::Unreadable)?;
    let bits = key.n().bit_width() as usize;
    let size = size_of_modulus(key.size()).filter(|s| s.bits() as usize == bits);
    let size = size.ok_or(ImportError::Size { bits })?;
    if key.e_bytes().as_ref() != [1, 0, 1] {
        return Err(ImportError::Exponent);
    }
    key.validate().map_err(|_| ImportError::Inconsistent)?;
    let der = key.to_pkcs8_der().map_err(|_| ImportError::Unreadable)?;
    Ok((Zeroizing::new(der.as_bytes().to_vec()), size))
}
