//! The RSA implementations behind one small trait.

use crate::{UnwrapFailed, WrapError, oaep};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey,
    OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use custody_types::WrapAlgorithm;
use rsa::{pkcs8::DecodePrivateKey as _, traits::PublicKeyParts as _};
use zeroize::Zeroizing;

/// Which RSA implementation to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// `aws-lc-rs`: constant time. The default.
    #[default]
    AwsLc,
    /// The `rsa` crate, 0.10 or newer (RUSTSEC-2023-0071 covers everything before).
    RustCrypto,
}

/// A loaded private key, parsed and checked once.
pub(crate) trait KekBackend: Send + Sync {
    fn wrap_key(&self, algorithm: WrapAlgorithm, plain: &[u8]) -> Result<Vec<u8>, WrapError>;
    fn unwrap_key(
        &self,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, UnwrapFailed>;
}

impl Backend {
    /// Loads a PKCS#8 key that has been checked before.
    pub(crate) fn load(self, pkcs8: &[u8]) -> Option<Box<dyn KekBackend>> {
        Some(match self {
            Self::AwsLc => {
                let key = PrivateDecryptingKey::from_pkcs8(pkcs8).ok()?;
                let public = OaepPublicEncryptingKey::new(key.public_key()).ok()?;
                Box::new(AwsLcKek { private: OaepPrivateDecryptingKey::new(key).ok()?, public })
            }
            Self::RustCrypto => Box::new(RustCryptoKek(rsa::PrivateKey::from_pkcs8_der(pkcs8).ok()?)),
        })
    }
}

struct AwsLcKek {
    private: OaepPrivateDecryptingKey,
    public: OaepPublicEncryptingKey,
}

fn aws_lc_algorithm(algorithm: WrapAlgorithm) -> &'static OaepAlgorithm {
    match algorithm {
        WrapAlgorithm::RsaOaep => &OAEP_SHA1_MGF1SHA1,
        _ => &OAEP_SHA256_MGF1SHA256,
    }
}

impl KekBackend for AwsLcKek {
    fn wrap_key(&self, algorithm: WrapAlgorithm, plain: &[u8]) -> Result<Vec<u8>, WrapError> {
        let mut out = vec![0; self.public.ciphertext_size()];
        let len = self
            .public
            .encrypt(aws_lc_algorithm(algorithm), plain, &mut out, None)
            .map_err(|_| WrapError::Backend)?
            .len();
        out.truncate(len);
        Ok(out)
    }

    fn unwrap_key(
        &self,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, UnwrapFailed> {
        let mut out = Zeroizing::new(vec![0; self.private.min_output_size()]);
        let len = self
            .private
            .decrypt(aws_lc_algorithm(algorithm), wrapped, &mut out, None)
            .map_err(|_| UnwrapFailed)?
            .len();
        out.truncate(len);
        Ok(out)
    }
}

struct RustCryptoKek(rsa::PrivateKey);

impl KekBackend for RustCryptoKek {
    fn wrap_key(&self, algorithm: WrapAlgorithm, plain: &[u8]) -> Result<Vec<u8>, WrapError> {
        let public = self.0.to_public_key();
        match algorithm {
            WrapAlgorithm::RsaOaep => public.oaep_encrypt::<sha1::Sha1>(plain),
            _ => public.oaep_encrypt::<sha2::Sha256>(plain),
        }
        .map_err(|_| WrapError::Backend)
    }

    // `rsa` 0.10.0 does not look at the first byte of the padded message (Wycheproof's `InvalidOaepPadding` case 23
    // opens), so the padding is taken off by `oaep` and `rsa` does the blinded private operation only.
    fn unwrap_key(
        &self,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, UnwrapFailed> {
        let bits = u32::try_from(self.0.size() * 8).map_err(|_| UnwrapFailed)?;
        if wrapped.len() != self.0.size() {
            return Err(UnwrapFailed);
        }
        let number = rsa::BoxedUint::from_be_slice(wrapped, bits).map_err(|_| UnwrapFailed)?;
        if number >= *self.0.n().as_ref() {
            return Err(UnwrapFailed);
        }
        let padded = rsa::hazmat::rsa_decrypt_and_check(&self.0, Some(&mut rand::rng()), &number);
        let padded = padded.map_err(|_| UnwrapFailed)?;
        let mut padded = Zeroizing::new(padded.to_be_bytes().to_vec());
        match algorithm {
            WrapAlgorithm::RsaOaep => oaep::decode::<sha1::Sha1>(&mut padded),
            _ => oaep::decode::<sha2::Sha256>(&mut padded),
        }
    }
}
