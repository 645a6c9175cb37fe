//! `aws-lc-rs`: what a network peer can time is constant time.

use super::{KeyBackend, point, rsa_public};
use crate::{SignError, UnwrapError, UnwrapFailed, WrapError};
use aws_lc_rs::{
    digest::{self, Digest},
    encoding::{AsDer as _, Pkcs8V1Der},
    rand::SystemRandom,
    rsa::{
        KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey,
        OaepPublicEncryptingKey, PrivateDecryptingKey,
    },
    signature::{
        self, EcdsaKeyPair, EcdsaSigningAlgorithm, RsaKeyPair, UnparsedPublicKey, VerificationAlgorithm,
    },
};
use custody_types::{Curve, KeyType, PublicKey, RsaSize, SignatureAlgorithm, WrapAlgorithm};
use rsa::pkcs1::EncodeRsaPublicKey as _;
use zeroize::Zeroizing;

pub(super) fn load(pkcs8: &[u8], kind: KeyType) -> Option<Box<dyn KeyBackend>> {
    Some(match kind {
        KeyType::Rsa(_) => {
            let key = PrivateDecryptingKey::from_pkcs8(pkcs8).ok()?;
            let public = OaepPublicEncryptingKey::new(key.public_key()).ok()?;
            Box::new(Rsa {
                private: OaepPrivateDecryptingKey::new(key).ok()?,
                public,
                signer: RsaKeyPair::from_pkcs8(pkcs8).ok()?,
            })
        }
        KeyType::Ec(curve) => Box::new(Ec(EcdsaKeyPair::from_pkcs8(signing(curve), pkcs8).ok()?)),
    })
}

pub(super) fn generate(kind: KeyType) -> Option<Zeroizing<Vec<u8>>> {
    let bytes = match kind {
        KeyType::Rsa(size) => {
            let key = PrivateDecryptingKey::generate(match size {
                RsaSize::Bits2048 => KeySize::Rsa2048,
                RsaSize::Bits3072 => KeySize::Rsa3072,
                RsaSize::Bits4096 => KeySize::Rsa4096,
            })
            .ok()?;
            let der: Pkcs8V1Der<'static> = key.as_der().ok()?;
            der.as_ref().to_vec()
        }
        KeyType::Ec(curve) => {
            EcdsaKeyPair::generate_pkcs8(signing(curve), &SystemRandom::new()).ok()?.as_ref().to_vec()
        }
    };
    Some(Zeroizing::new(bytes))
}

/// A digest that the caller made, of the length that the algorithm asks for.
fn import(algorithm: SignatureAlgorithm, bytes: &[u8]) -> Option<Digest> {
    let algorithm = match algorithm.digest_len() {
        32 => &digest::SHA256,
        48 => &digest::SHA384,
        _ => &digest::SHA512,
    };
    Digest::import_less_safe(bytes, algorithm).ok()
}

struct Rsa {
    private: OaepPrivateDecryptingKey,
    public: OaepPublicEncryptingKey,
    signer: RsaKeyPair,
}

fn oaep(algorithm: WrapAlgorithm) -> &'static OaepAlgorithm {
    match algorithm {
        WrapAlgorithm::RsaOaep => &OAEP_SHA1_MGF1SHA1,
        _ => &OAEP_SHA256_MGF1SHA256,
    }
}

/// Wraps with a public half: also that of a key whose private half is elsewhere.
pub(super) fn wrap(
    public: &OaepPublicEncryptingKey,
    algorithm: WrapAlgorithm,
    plain: &[u8],
) -> Result<Vec<u8>, WrapError> {
    let mut out = vec![0; public.ciphertext_size()];
    let len = public.encrypt(oaep(algorithm), plain, &mut out, None).map_err(|_| WrapError::Backend)?.len();
    out.truncate(len);
    Ok(out)
}

impl KeyBackend for Rsa {
    fn wrap_key(&self, algorithm: WrapAlgorithm, plain: &[u8]) -> Result<Vec<u8>, WrapError> {
        wrap(&self.public, algorithm, plain)
    }

    fn unwrap_key(
        &self,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, UnwrapError> {
        let mut out = Zeroizing::new(vec![0; self.private.min_output_size()]);
        let done = self.private.decrypt(oaep(algorithm), wrapped, &mut out, None);
        let len = done.map_err(|_| UnwrapFailed)?.len();
        out.truncate(len);
        Ok(out)
    }

    fn sign(&self, algorithm: SignatureAlgorithm, digest: &[u8]) -> Result<Vec<u8>, SignError> {
        use SignatureAlgorithm::*;
        let padding: &'static dyn signature::RsaEncoding = match algorithm {
            Rs256 => &signature::RSA_PKCS1_SHA256,
            Rs384 => &signature::RSA_PKCS1_SHA384,
            Rs512 => &signature::RSA_PKCS1_SHA512,
            Ps256 => &signature::RSA_PSS_SHA256,
            Ps384 => &signature::RSA_PSS_SHA384,
            Ps512 => &signature::RSA_PSS_SHA512,
            Es256 | Es256K | Es384 | Es512 => return Err(SignError::NotForThisKey(algorithm)),
        };
        let digest = import(algorithm, digest).ok_or(SignError::Backend)?;
        let mut out = vec![0; self.signer.public_modulus_len()];
        self.signer.sign_digest(padding, &digest, &mut out).map_err(|_| SignError::Backend)?;
        Ok(out)
    }
}

fn signing(curve: Curve) -> &'static EcdsaSigningAlgorithm {
    match curve {
        Curve::P256 => &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        Curve::P256K => &signature::ECDSA_P256K1_SHA256_FIXED_SIGNING,
        Curve::P384 => &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
        Curve::P521 => &signature::ECDSA_P521_SHA512_FIXED_SIGNING,
    }
}

struct Ec(EcdsaKeyPair);

impl KeyBackend for Ec {
    fn sign(&self, algorithm: SignatureAlgorithm, digest: &[u8]) -> Result<Vec<u8>, SignError> {
        let digest = import(algorithm, digest).ok_or(SignError::Backend)?;
        let signed = self.0.sign_digest(&digest).map_err(|_| SignError::Backend)?;
        Ok(signed.as_ref().to_vec())
    }
}

pub(super) fn verify(
    public: &PublicKey,
    algorithm: SignatureAlgorithm,
    digest: &[u8],
    signed: &[u8],
) -> bool {
    use SignatureAlgorithm::*;
    let parameters: &'static dyn VerificationAlgorithm = match algorithm {
        Es256 => &signature::ECDSA_P256_SHA256_FIXED,
        Es256K => &signature::ECDSA_P256K1_SHA256_FIXED,
        Es384 => &signature::ECDSA_P384_SHA384_FIXED,
        Es512 => &signature::ECDSA_P521_SHA512_FIXED,
        Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
        Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
        Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
        Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
    };
    let encoded = match public {
        PublicKey::Ec { x, y, .. } => Some(point(x, y)),
        // An RSAPublicKey (RFC 8017 §A.1.1).
        PublicKey::Rsa { n, e } => {
            rsa_public(n, e).and_then(|key| key.to_pkcs1_der().ok()).map(|der| der.as_bytes().to_vec())
        }
    };
    let (Some(encoded), Some(digest)) = (encoded, import(algorithm, digest)) else { return false };
    UnparsedPublicKey::new(parameters, encoded).verify_digest(&digest, signed).is_ok()
}
