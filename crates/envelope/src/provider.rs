//! The two implementations of the primitives, behind one small trait.

use crate::{KEY_LEN, OpenError, TAG_LEN, Tag};
use aes_gcm::{
    Aes256Gcm,
    aead::{AeadInOut, KeyInit, inout::InOutBuf},
};
use hmac::Mac as _;
use std::fmt;
use zeroize::Zeroizing;

/// AES-256-GCM under one key; the key schedule is kept.
pub trait Aead: Send + Sync {
    /// Seals in place.
    fn seal(&self, nonce: &[u8; 12], aad: &[u8], in_out: &mut [u8]) -> Tag;

    /// Opens `sealed` into `out` (of the same length). On failure `out` holds zeros.
    ///
    /// # Errors
    /// The tag does not authenticate.
    fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        sealed: &[u8],
        tag: &Tag,
        out: &mut [u8],
    ) -> Result<(), OpenError>;
}

/// HMAC-SHA-256 under one key (FIPS 198-1).
pub trait Mac: Send + Sync {
    /// The tag over the concatenation of `parts`.
    fn tag(&self, parts: &[&[u8]]) -> [u8; 32];
}

/// What a provider must offer.
pub trait CryptoProvider: Send + Sync {
    /// Expands an AES-256-GCM key.
    fn aead(&self, key: &[u8; KEY_LEN]) -> Box<dyn Aead>;
    /// Prepares an HMAC-SHA-256 key.
    fn mac(&self, key: &[u8; KEY_LEN]) -> Box<dyn Mac>;
    /// HKDF-SHA-256 (RFC 5869) with an empty salt.
    fn derive(&self, secret: &[u8; KEY_LEN], info: &[u8]) -> Zeroizing<[u8; KEY_LEN]>;
}

/// Which implementation of the primitives to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Provider {
    /// `aws-lc-rs`: vectorised, constant time. The default.
    #[default]
    AwsLc,
    /// RustCrypto: portable, and the reference in differential tests.
    RustCrypto,
}

impl CryptoProvider for Provider {
    fn aead(&self, key: &[u8; KEY_LEN]) -> Box<dyn Aead> {
        match self {
            Self::AwsLc => Box::new(AwsLcAead::new(key)),
            Self::RustCrypto => Box::new(RustCryptoAead(Aes256Gcm::new(key.into()))),
        }
    }

    fn mac(&self, key: &[u8; KEY_LEN]) -> Box<dyn Mac> {
        match self {
            Self::AwsLc => Box::new(AwsLcMac(aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key))),
            Self::RustCrypto => Box::new(RustCryptoMac(
                hmac::Hmac::<sha2::Sha256>::new_from_slice(key).expect("HMAC takes keys of any length"),
            )),
        }
    }

    fn derive(&self, secret: &[u8; KEY_LEN], info: &[u8]) -> Zeroizing<[u8; KEY_LEN]> {
        let mut out = Zeroizing::new([0; KEY_LEN]);
        match self {
            Self::AwsLc => {
                let prk = aws_lc_rs::hkdf::Salt::new(aws_lc_rs::hkdf::HKDF_SHA256, &[]).extract(secret);
                prk.expand(&[info], aws_lc_rs::hkdf::HKDF_SHA256)
                    .and_then(|okm| okm.fill(&mut out[..]))
                    .expect("32 bytes are within HKDF-SHA-256's limit");
            }
            Self::RustCrypto => hkdf::Hkdf::<sha2::Sha256>::new(None, secret)
                .expand(info, &mut out[..])
                .expect("32 bytes are within HKDF-SHA-256's limit"),
        }
        out
    }
}

struct AwsLcAead(aws_lc_rs::aead::LessSafeKey);

impl AwsLcAead {
    fn new(key: &[u8; KEY_LEN]) -> Self {
        let key = aws_lc_rs::aead::UnboundKey::new(&aws_lc_rs::aead::AES_256_GCM, key)
            .expect("an AES-256 key has 32 bytes");
        Self(aws_lc_rs::aead::LessSafeKey::new(key))
    }
}

impl Aead for AwsLcAead {
    fn seal(&self, nonce: &[u8; 12], aad: &[u8], in_out: &mut [u8]) -> Tag {
        let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(*nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, aws_lc_rs::aead::Aad::from(aad), in_out)
            .expect("blocks are far below GCM's length limit");
        let mut out = [0; TAG_LEN];
        out.copy_from_slice(tag.as_ref());
        out
    }

    fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        sealed: &[u8],
        tag: &Tag,
        out: &mut [u8],
    ) -> Result<(), OpenError> {
        let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(*nonce);
        self.0.open_separate_gather(nonce, aws_lc_rs::aead::Aad::from(aad), sealed, tag, out).map_err(|_| {
            out.fill(0);
            OpenError
        })
    }
}

struct AwsLcMac(aws_lc_rs::hmac::Key);

impl Mac for AwsLcMac {
    fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = aws_lc_rs::hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(part);
        }
        let mut out = [0; 32];
        out.copy_from_slice(context.sign().as_ref());
        out
    }
}

struct RustCryptoAead(Aes256Gcm);

impl Aead for RustCryptoAead {
    fn seal(&self, nonce: &[u8; 12], aad: &[u8], in_out: &mut [u8]) -> Tag {
        self.0
            .encrypt_inout_detached(nonce.into(), aad, InOutBuf::from(in_out))
            .expect("blocks are far below GCM's length limit")
            .into()
    }

    fn open(
        &self,
        nonce: &[u8; 12],
        aad: &[u8],
        sealed: &[u8],
        tag: &Tag,
        out: &mut [u8],
    ) -> Result<(), OpenError> {
        let buffers = InOutBuf::new(sealed, out).map_err(|_| OpenError)?;
        let opened = self.0.decrypt_inout_detached(nonce.into(), aad, buffers, tag.into());
        opened.map_err(|_| {
            out.fill(0);
            OpenError
        })
    }
}

struct RustCryptoMac(hmac::Hmac<sha2::Sha256>);

impl Mac for RustCryptoMac {
    fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = self.0.clone();
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for dyn Aead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Aead(..)")
    }
}

impl fmt::Debug for dyn Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mac(..)")
    }
}
