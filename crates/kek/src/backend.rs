//! The implementations behind one small trait.

mod aws_lc;
mod rust_crypto;
mod token;

use crate::{SignError, UnwrapError, UnwrapFailed, WrapError};
use custody_types::{KeyType, PublicKey, SignatureAlgorithm, WrapAlgorithm};
pub(crate) use token::load as in_token;
use zeroize::Zeroizing;

/// Which implementation to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// `aws-lc-rs`: constant time. The default.
    #[default]
    AwsLc,
    /// The `rsa` crate, 0.10 or newer (RUSTSEC-2023-0071 covers everything before), and RustCrypto's curves.
    RustCrypto,
}

/// A loaded private key, parsed and checked once. What a kind of key cannot do, it answers with its error.
pub(crate) trait KeyBackend: Send + Sync {
    fn wrap_key(&self, _: WrapAlgorithm, _: &[u8]) -> Result<Vec<u8>, WrapError> {
        Err(WrapError::NotForThisKey)
    }

    fn unwrap_key(&self, _: WrapAlgorithm, _: &[u8]) -> Result<Zeroizing<Vec<u8>>, UnwrapError> {
        Err(UnwrapFailed.into())
    }

    /// `digest` is as long as the algorithm asks, and the algorithm fits the key.
    fn sign(&self, algorithm: SignatureAlgorithm, digest: &[u8]) -> Result<Vec<u8>, SignError>;
}

/// An RSA public key of its numbers.
fn rsa_public(n: &[u8], e: &[u8]) -> Option<rsa::PublicKey> {
    let number = |bytes: &[u8]| rsa::BoxedUint::from_be_slice_vartime(bytes);
    rsa::PublicKey::new(number(n), number(e)).ok()
}

/// A point as SEC 1 §2.3.3 writes it, uncompressed.
fn point(x: &[u8], y: &[u8]) -> Vec<u8> {
    [&[4], x, y].concat()
}

impl Backend {
    /// Loads a PKCS#8 key that has been checked before.
    pub(crate) fn load(self, pkcs8: &[u8], kind: KeyType) -> Option<Box<dyn KeyBackend>> {
        match self {
            Self::AwsLc => aws_lc::load(pkcs8, kind),
            Self::RustCrypto => rust_crypto::load(pkcs8, kind),
        }
    }

    /// Checks a signature. The digest is as long as the algorithm asks, and the algorithm fits the key.
    pub(crate) fn verify(
        self,
        public: &PublicKey,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
        signature: &[u8],
    ) -> bool {
        match self {
            Self::AwsLc => aws_lc::verify(public, algorithm, digest, signature),
            Self::RustCrypto => rust_crypto::verify(public, algorithm, digest, signature),
        }
    }

    /// Makes a key, in PKCS#8.
    pub(crate) fn generate(self, kind: KeyType) -> Option<Zeroizing<Vec<u8>>> {
        match self {
            Self::AwsLc => aws_lc::generate(kind),
            Self::RustCrypto => rust_crypto::generate(kind),
        }
    }
}
