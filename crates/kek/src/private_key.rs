//! The private half of a key, and its public view.

use crate::{
    Backend, ImportError, PrivateJwk, SignError, UnwrapError, WrapError, backend::KeyBackend, ec, import,
};
use custody_envelope::{OpenError, RandomError, SealedRecord, SealingKey};
use custody_hsm::Token;
use custody_multi_buffer::{CrtKey, CrtNumbers};
use custody_types::{KeyType, PublicKey, SignatureAlgorithm, WrapAlgorithm};
use rsa::{
    pkcs1,
    pkcs8::{DecodePrivateKey as _, PrivateKeyInfoRef},
    traits::PublicKeyParts as _,
};
use std::{
    fmt,
    sync::{Arc, OnceLock},
};
use zeroize::Zeroizing;

/// A private key, loaded and checked once. It never leaves the vault's process, and leaves its memory only sealed; one in a
/// token is not even there.
pub struct PrivateKey {
    pub(crate) held: Held,
    pub(crate) backend: Box<dyn KeyBackend>,
    pub(crate) public: PublicKey,
    pub(crate) kind: KeyType,
    /// As it is used at once with others, made when it first is.
    pub(crate) crt: OnceLock<Option<Arc<CrtKey>>>,
}

/// Where the private half is.
pub(crate) enum Held {
    /// In this process: PKCS#8.
    Here(Zeroizing<Vec<u8>>),
    /// In a token, under an id.
    InToken {
        /// The token.
        token: Arc<Token>,
        /// The id.
        id: Vec<u8>,
    },
}

impl PrivateKey {
    /// Makes a new key. RSA takes from a tenth of a second (2048 bits) to some seconds (4096): never call it on a
    /// thread that answers requests.
    ///
    /// # Errors
    /// The backend failed to make a key.
    pub fn generate(kind: KeyType, backend: Backend) -> Result<Self, WrapError> {
        let pkcs8 = backend.generate(kind).ok_or(WrapError::Backend)?;
        Self::load(pkcs8, kind, backend).ok_or(WrapError::Backend)
    }

    /// Takes a key from outside: PKCS#8 or PKCS#1, PEM or DER.
    ///
    /// # Errors
    /// See [`ImportError`]; nothing of the key's bytes is in it.
    pub fn import(bytes: &[u8], backend: Backend) -> Result<Self, ImportError> {
        let (pkcs8, kind) = import::parse(bytes)?;
        Self::load(pkcs8, kind, backend).ok_or(ImportError::Inconsistent)
    }

    /// Takes a key from outside as a JWK.
    ///
    /// # Errors
    /// As [`PrivateKey::import`].
    pub fn import_jwk(jwk: PrivateJwk, backend: Backend) -> Result<Self, ImportError> {
        let (pkcs8, kind) = import::parse_jwk(jwk)?;
        Self::load(pkcs8, kind, backend).ok_or(ImportError::Inconsistent)
    }

    fn load(pkcs8: Zeroizing<Vec<u8>>, kind: KeyType, backend: Backend) -> Option<Self> {
        let public = match kind {
            KeyType::Ec(curve) => ec::public(curve, &pkcs8)?,
            KeyType::Rsa(_) => {
                let parsed = rsa::PrivateKey::from_pkcs8_der(&pkcs8).ok()?;
                PublicKey::Rsa { n: parsed.n_bytes().to_vec(), e: parsed.e_bytes().to_vec() }
            }
        };
        if public.key_type() != Some(kind) {
            return None;
        }
        let loaded = backend.load(&pkcs8, kind)?;
        Some(Self::new(Held::Here(pkcs8), loaded, public, kind))
    }

    /// A key that is held there, and has been checked.
    pub(crate) fn new(held: Held, backend: Box<dyn KeyBackend>, public: PublicKey, kind: KeyType) -> Self {
        Self { held, backend, public, kind, crt: OnceLock::new() }
    }

    /// Seals the key for storage at the place that `context` names; of one in a token its id there.
    ///
    /// # Errors
    /// The operating system's random source failed.
    pub fn seal(&self, root: &SealingKey, context: &[u8]) -> Result<SealedRecord, RandomError> {
        match &self.held {
            Held::Here(pkcs8) => root.seal(context, pkcs8),
            Held::InToken { id, .. } => root.seal(context, id),
        }
    }

    /// Loads a sealed key of this kind.
    ///
    /// # Errors
    /// It was not sealed under this root key for this place, or is of another kind.
    pub fn open(
        root: &SealingKey,
        context: &[u8],
        sealed: &[u8],
        kind: KeyType,
        backend: Backend,
    ) -> Result<Self, OpenError> {
        Self::load(root.open(context, sealed)?, kind, backend).ok_or(OpenError)
    }

    /// Protects key material.
    ///
    /// # Errors
    /// See [`WrapError`].
    pub fn wrap_key(&self, algorithm: WrapAlgorithm, plain: &[u8]) -> Result<Vec<u8>, WrapError> {
        let len_max = (self.kind.bits() as usize / 8).saturating_sub(algorithm.overhead());
        match (self.kind, plain.len()) {
            (KeyType::Ec(_), _) => Err(WrapError::NotForThisKey),
            (_, 0) => Err(WrapError::Empty),
            (_, len) if len > len_max => Err(WrapError::TooLong { len, len_max }),
            _ => self.backend.wrap_key(algorithm, plain),
        }
    }

    /// Opens wrapped key material.
    ///
    /// # Errors
    /// One answer for every cause that lies in what is given; another for a token that cannot be asked.
    pub fn unwrap_key(
        &self,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, UnwrapError> {
        self.backend.unwrap_key(algorithm, wrapped)
    }

    /// Signs a digest: of EC keys r and s, each of full length (RFC 7518 §3.4).
    ///
    /// # Errors
    /// See [`SignError`].
    pub fn sign(&self, algorithm: SignatureAlgorithm, digest: &[u8]) -> Result<Vec<u8>, SignError> {
        check_sign(self.kind, algorithm, digest)?;
        self.backend.sign(algorithm, digest)
    }

    /// The key as it is used at once with others, if it can be: an RSA key in this process.
    pub(crate) fn crt(&self) -> Option<Arc<CrtKey>> {
        let made = self.crt.get_or_init(|| match (&self.held, self.kind) {
            (Held::Here(pkcs8), KeyType::Rsa(_)) => crt(pkcs8).map(Arc::new),
            _ => None,
        });
        made.clone()
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> KeyType {
        self.kind
    }
}

/// Checks a signature over a digest with the public half.
///
/// # Errors
/// The algorithm is not for this key, or the digest has another length than its.
pub fn verify(
    public: &PublicKey,
    algorithm: SignatureAlgorithm,
    digest: &[u8],
    signature: &[u8],
    backend: Backend,
) -> Result<bool, SignError> {
    let kind = public.key_type().ok_or(SignError::NotForThisKey(algorithm))?;
    check_sign(kind, algorithm, digest)?;
    Ok(backend.verify(public, algorithm, digest, signature))
}

/// The numbers of a PKCS#8 key, where it is one that can be used at once with others.
fn crt(pkcs8: &[u8]) -> Option<CrtKey> {
    let info = PrivateKeyInfoRef::try_from(pkcs8).ok()?;
    let key = pkcs1::RsaPrivateKeyRef::try_from(info.private_key.as_bytes()).ok()?;
    CrtKey::new(&CrtNumbers {
        n: key.modulus.as_bytes(),
        p: key.prime1.as_bytes(),
        q: key.prime2.as_bytes(),
        dp: key.exponent1.as_bytes(),
        dq: key.exponent2.as_bytes(),
        q_inv: key.coefficient.as_bytes(),
    })
}

pub(crate) fn check_sign(
    kind: KeyType,
    algorithm: SignatureAlgorithm,
    digest: &[u8],
) -> Result<(), SignError> {
    if !algorithm.fits(kind) {
        return Err(SignError::NotForThisKey(algorithm));
    }
    if digest.len() != algorithm.digest_len() {
        return Err(SignError::DigestLength { algorithm, len: digest.len() });
    }
    Ok(())
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({}, {} bits, ..)", self.kind.kty(), self.kind.bits())
    }
}
