//! The private half of a key-encryption key, and its public view.

use crate::{Backend, ImportError, UnwrapFailed, WrapError, backend::KekBackend, import};
use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der},
    rsa::{KeySize, PrivateDecryptingKey},
};
use custody_envelope::{OpenError, RandomError, RootKey, SealedRecord};
use custody_types::WrapAlgorithm;
use rsa::{pkcs8::DecodePrivateKey as _, traits::PublicKeyParts as _};
use std::fmt;
use zeroize::Zeroizing;

/// Bits of an RSA modulus that are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

pub(crate) fn size_of_modulus(bytes: usize) -> Option<RsaSize> {
    u32::try_from(bytes * 8).ok().and_then(|bits| RsaSize::try_from(bits).ok())
}

/// The public half: big-endian, no leading zeros (as in a JWK, RFC 7518 §6.3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKek {
    /// The modulus.
    pub n: Vec<u8>,
    /// The public exponent.
    pub e: Vec<u8>,
}

/// The private half of a key-encryption key, loaded and checked once. It never leaves the vault's process, and
/// leaves its memory only sealed.
pub struct KekPrivateKey {
    pkcs8: Zeroizing<Vec<u8>>,
    backend: Box<dyn KekBackend>,
    public: PublicKek,
    size: RsaSize,
}

impl KekPrivateKey {
    /// Makes a new key. Takes from a tenth of a second (2048 bits) to some seconds (4096): never call it on a
    /// thread that answers requests.
    ///
    /// # Errors
    /// The backend failed to make a key.
    pub fn generate(size: RsaSize, backend: Backend) -> Result<Self, WrapError> {
        let pkcs8 = match backend {
            Backend::AwsLc => {
                let key = PrivateDecryptingKey::generate(match size {
                    RsaSize::Bits2048 => KeySize::Rsa2048,
                    RsaSize::Bits3072 => KeySize::Rsa3072,
                    RsaSize::Bits4096 => KeySize::Rsa4096,
                })
                .map_err(|_| WrapError::Backend)?;
                let der: Pkcs8V1Der<'static> = key.as_der().map_err(|_| WrapError::Backend)?;
                Zeroizing::new(der.as_ref().to_vec())
            }
            Backend::RustCrypto => {
                use rsa::pkcs8::EncodePrivateKey as _;
                let key = rsa::PrivateKey::new(&mut rand::rng(), size.bits() as usize)
                    .map_err(|_| WrapError::Backend)?;
                Zeroizing::new(key.to_pkcs8_der().map_err(|_| WrapError::Backend)?.as_bytes().to_vec())
            }
        };
        Self::load(pkcs8, size, backend).ok_or(WrapError::Backend)
    }

    /// Takes a key from outside: PKCS#8 or PKCS#1, PEM or DER.
    ///
    /// # Errors
    /// See [`ImportError`]; nothing of the key's bytes is in it.
    pub fn import(bytes: &[u8], backend: Backend) -> Result<Self, ImportError> {
        let (pkcs8, size) = import::parse(bytes)?;
        Self::load(pkcs8, size, backend).ok_or(ImportError::Inconsistent)
    }

    fn load(pkcs8: Zeroizing<Vec<u8>>, size: RsaSize, backend: Backend) -> Option<Self> {
        let parsed = rsa::PrivateKey::from_pkcs8_der(&pkcs8).ok()?;
        let public = PublicKek { n: parsed.n_bytes().to_vec(), e: parsed.e_bytes().to_vec() };
        Some(Self { backend: backend.load(&pkcs8)?, pkcs8, public, size })
    }

    /// Seals the key for storage at the place that `context` names.
    ///
    /// # Errors
    /// The operating system's random source failed.
    pub fn seal(&self, root: &RootKey, context: &[u8]) -> Result<SealedRecord, RandomError> {
        root.seal(context, &self.pkcs8)
    }

    /// Loads a sealed key.
    ///
    /// # Errors
    /// It was not sealed under this root key for this place.
    pub fn open(root: &RootKey, context: &[u8], sealed: &[u8], backend: Backend) -> Result<Self, OpenError> {
        let pkcs8 = root.open(context, sealed)?;
        let modulus = rsa::PrivateKey::from_pkcs8_der(&pkcs8).map_err(|_| OpenError)?.size();
        let size = size_of_modulus(modulus).ok_or(OpenError)?;
        Self::load(pkcs8, size, backend).ok_or(OpenError)
    }

    /// Protects key material.
    ///
    /// # Errors
    /// See [`WrapError`].
    pub fn wrap_key(&self, algorithm: WrapAlgorithm, plain: &[u8]) -> Result<Vec<u8>, WrapError> {
        let len_max = (self.size.bits() as usize / 8).saturating_sub(algorithm.overhead());
        match plain.len() {
            0 => Err(WrapError::Empty),
            len if len > len_max => Err(WrapError::TooLong { len, len_max }),
            _ => self.backend.wrap_key(algorithm, plain),
        }
    }

    /// Opens wrapped key material.
    ///
    /// # Errors
    /// One answer for every cause.
    pub fn unwrap_key(
        &self,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, UnwrapFailed> {
        self.backend.unwrap_key(algorithm, wrapped)
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &PublicKek {
        &self.public
    }

    /// Bits of the modulus.
    #[must_use]
    pub fn size(&self) -> RsaSize {
        self.size
    }
}

impl fmt::Debug for KekPrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KekPrivateKey({} bits, ..)", self.size.bits())
    }
}
