//! AES key wrap (NIST SP 800-38F: KW is RFC 3394, KWP is RFC 5649), and what PKCS#11 calls RSA AES key wrap, in which
//! private keys travel to a vault or an HSM.

use crate::{Backend, PrivateKey, UnwrapError, UnwrapFailed, WrapError};
use aes::cipher::KeyInit as _;
use aes_kw::{KwAes128, KwAes192, KwAes256, KwpAes128, KwpAes192, KwpAes256};
use aws_lc_rs::key_wrap::{AES_128, AES_256, AesKek, KeyWrap as _, KeyWrapPadded as _};
use custody_types::WrapAlgorithm;
use zeroize::Zeroizing;

/// Longest material, in bytes: a PKCS#8 key of 16,384 bits has less.
const LEN_MAX: usize = 16 * 1024;
/// What a wrapped key is longer by, in bytes.
const OVERHEAD: usize = 8;

/// Which of the two modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// KW: whole blocks of eight bytes, at least two.
    None,
    /// KWP: any length.
    Padded,
}

impl Padding {
    fn takes(self, len: usize) -> bool {
        match self {
            Self::None => len >= 16 && len.is_multiple_of(8),
            Self::Padded => len > 0,
        }
    }

    fn opens(self, len: usize) -> bool {
        let least = if self == Self::None { 24 } else { 16 };
        len >= least && len.is_multiple_of(8)
    }
}

/// Protects key material with an AES key of 16, 24 or 32 bytes.
///
/// # Errors
/// The material has a length that the mode does not take, or the key is not one of AES.
pub fn aes_wrap(backend: Backend, key: &[u8], padding: Padding, plain: &[u8]) -> Result<Vec<u8>, WrapError> {
    if plain.len() > LEN_MAX {
        return Err(WrapError::TooLong { len: plain.len(), len_max: LEN_MAX });
    }
    if !padding.takes(plain.len()) {
        return Err(WrapError::Empty);
    }
    let mut out = vec![0; plain.len().next_multiple_of(8) + OVERHEAD];
    let done = match (backend, key.len()) {
        (Backend::AwsLc, 16) => aws_wrap(AesKek::new(&AES_128, key).ok(), padding, plain, &mut out),
        (Backend::AwsLc, 32) => aws_wrap(AesKek::new(&AES_256, key).ok(), padding, plain, &mut out),
        // AWS-LC's crate offers no 192 bits.
        _ => rust_wrap(key, padding, plain, &mut out),
    };
    done.map(|()| out).ok_or(WrapError::Backend)
}

/// Opens wrapped key material.
///
/// # Errors
/// One answer for every cause.
pub fn aes_unwrap(
    backend: Backend,
    key: &[u8],
    padding: Padding,
    wrapped: &[u8],
) -> Result<Zeroizing<Vec<u8>>, UnwrapFailed> {
    if wrapped.len() > LEN_MAX + 16 || !padding.opens(wrapped.len()) {
        return Err(UnwrapFailed);
    }
    let mut out = Zeroizing::new(vec![0; wrapped.len()]);
    let len = match (backend, key.len()) {
        (Backend::AwsLc, 16) => aws_unwrap(AesKek::new(&AES_128, key).ok(), padding, wrapped, &mut out),
        (Backend::AwsLc, 32) => aws_unwrap(AesKek::new(&AES_256, key).ok(), padding, wrapped, &mut out),
        _ => rust_unwrap(key, padding, wrapped, &mut out),
    };
    out.truncate(len.ok_or(UnwrapFailed)?);
    Ok(out)
}

type AwsKek = AesKek;

fn aws_wrap(kek: Option<AwsKek>, padding: Padding, plain: &[u8], out: &mut [u8]) -> Option<()> {
    let kek = kek?;
    match padding {
        Padding::None => kek.wrap(plain, out).map(drop).ok(),
        Padding::Padded => kek.wrap_with_padding(plain, out).map(drop).ok(),
    }
}

fn aws_unwrap(kek: Option<AwsKek>, padding: Padding, wrapped: &[u8], out: &mut [u8]) -> Option<usize> {
    let kek = kek?;
    match padding {
        Padding::None => kek.unwrap(wrapped, out).map(|plain| plain.len()).ok(),
        Padding::Padded => kek.unwrap_with_padding(wrapped, out).map(|plain| plain.len()).ok(),
    }
}

macro_rules! with_cipher {
    ($key:expr, $padding:expr, |$cipher:ident| $act:expr) => {
        match ($padding, $key.len()) {
            (Padding::None, 16) => KwAes128::new_from_slice($key).ok().and_then(|$cipher| $act),
            (Padding::None, 24) => KwAes192::new_from_slice($key).ok().and_then(|$cipher| $act),
            (Padding::None, 32) => KwAes256::new_from_slice($key).ok().and_then(|$cipher| $act),
            (Padding::Padded, 16) => KwpAes128::new_from_slice($key).ok().and_then(|$cipher| $act),
            (Padding::Padded, 24) => KwpAes192::new_from_slice($key).ok().and_then(|$cipher| $act),
            (Padding::Padded, 32) => KwpAes256::new_from_slice($key).ok().and_then(|$cipher| $act),
            _ => None,
        }
    };
}

fn rust_wrap(key: &[u8], padding: Padding, plain: &[u8], out: &mut [u8]) -> Option<()> {
    with_cipher!(key, padding, |cipher| cipher.wrap_key(plain, out).map(drop).ok())
}

fn rust_unwrap(key: &[u8], padding: Padding, wrapped: &[u8], out: &mut [u8]) -> Option<usize> {
    with_cipher!(key, padding, |cipher| cipher.unwrap_key(wrapped, out).map(<[u8]>::len).ok())
}

impl PrivateKey {
    /// Opens `CKM_RSA_AES_KEY_WRAP` (PKCS#11 v3.1 section 6.1.20): an AES key under RSA-OAEP with SHA-1, as Azure asks
    /// for it, then the material under that key with padding.
    ///
    /// # Errors
    /// One answer for every cause.
    pub fn unwrap_rsa_aes(
        &self,
        wrapped: &[u8],
        backend: Backend,
    ) -> Result<Zeroizing<Vec<u8>>, UnwrapError> {
        let (head, tail) = wrapped.split_at_checked(self.kind().bits() as usize / 8).ok_or(UnwrapFailed)?;
        let key = self.unwrap_key(WrapAlgorithm::RsaOaep, head)?;
        Ok(aes_unwrap(backend, &key, Padding::Padded, tail)?)
    }
}
