//! The portable backend, in Rust alone: the `rsa` crate and RustCrypto's curves.

use super::{KeyBackend, point, rsa_public};
use crate::{SignError, UnwrapError, UnwrapFailed, WrapError, oaep};
use custody_types::{Curve, KeyType, PublicKey, RsaSize, SignatureAlgorithm, WrapAlgorithm};
use rsa::{
    Generate as _,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _},
    signature::hazmat::{PrehashSigner as _, PrehashVerifier as _},
    traits::PublicKeyParts as _,
};
use sha2::{Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

pub(super) fn load(pkcs8: &[u8], kind: KeyType) -> Option<Box<dyn KeyBackend>> {
    Some(match kind {
        KeyType::Rsa(_) => Box::new(Rsa(rsa::PrivateKey::from_pkcs8_der(pkcs8).ok()?)),
        KeyType::Ec(Curve::P256) => Box::new(P256(p256::SecretKey::from_pkcs8_der(pkcs8).ok()?.into())),
        KeyType::Ec(Curve::P256K) => Box::new(P256K(k256::SecretKey::from_pkcs8_der(pkcs8).ok()?.into())),
        KeyType::Ec(Curve::P384) => Box::new(P384(p384::SecretKey::from_pkcs8_der(pkcs8).ok()?.into())),
        KeyType::Ec(Curve::P521) => Box::new(P521(p521::SecretKey::from_pkcs8_der(pkcs8).ok()?.into())),
    })
}

pub(super) fn generate(kind: KeyType) -> Option<Zeroizing<Vec<u8>>> {
    let rng = &mut rand::rng();
    let der = match kind {
        KeyType::Rsa(size) => {
            let bits = match size {
                RsaSize::Bits2048 => 2048,
                RsaSize::Bits3072 => 3072,
                RsaSize::Bits4096 => 4096,
            };
            rsa::PrivateKey::new(rng, bits).ok()?.to_pkcs8_der()
        }
        KeyType::Ec(Curve::P256) => p256::SecretKey::generate_from_rng(rng).to_pkcs8_der(),
        KeyType::Ec(Curve::P256K) => k256::SecretKey::generate_from_rng(rng).to_pkcs8_der(),
        KeyType::Ec(Curve::P384) => p384::SecretKey::generate_from_rng(rng).to_pkcs8_der(),
        KeyType::Ec(Curve::P521) => p521::SecretKey::generate_from_rng(rng).to_pkcs8_der(),
    };
    Some(Zeroizing::new(der.ok()?.as_bytes().to_vec()))
}

struct Rsa(rsa::PrivateKey);

impl KeyBackend for Rsa {
    fn wrap_key(&self, algorithm: WrapAlgorithm, plain: &[u8]) -> Result<Vec<u8>, WrapError> {
        let public = self.0.to_public_key();
        match algorithm {
            WrapAlgorithm::RsaOaep => public.oaep_encrypt::<sha1::Sha1>(plain),
            _ => public.oaep_encrypt::<Sha256>(plain),
        }
        .map_err(|_| WrapError::Backend)
    }

    // `rsa` 0.10.0 does not look at the first byte of the padded message (Wycheproof's `InvalidOaepPadding` case 23
    // opens), so the padding is taken off by `oaep` and `rsa` does the blinded private operation only.
    fn unwrap_key(
        &self,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, UnwrapError> {
        let bits = u32::try_from(self.0.size() * 8).map_err(|_| UnwrapFailed)?;
        if wrapped.len() != self.0.size() {
            return Err(UnwrapFailed.into());
        }
        let number = rsa::BoxedUint::from_be_slice(wrapped, bits).map_err(|_| UnwrapFailed)?;
        if number >= *self.0.n().as_ref() {
            return Err(UnwrapFailed.into());
        }
        let padded = rsa::hazmat::rsa_decrypt_and_check(&self.0, Some(&mut rand::rng()), &number);
        let padded = padded.map_err(|_| UnwrapFailed)?;
        let mut padded = Zeroizing::new(padded.to_be_bytes().to_vec());
        Ok(oaep::decode(algorithm, &mut padded)?)
    }

    fn sign(&self, algorithm: SignatureAlgorithm, digest: &[u8]) -> Result<Vec<u8>, SignError> {
        use SignatureAlgorithm::*;
        let rng = &mut rand::rng();
        match algorithm {
            Rs256 => self.0.pkcs1v15_sign_prehash_with_rng::<Sha256, _>(rng, digest),
            Rs384 => self.0.pkcs1v15_sign_prehash_with_rng::<Sha384, _>(rng, digest),
            Rs512 => self.0.pkcs1v15_sign_prehash_with_rng::<Sha512, _>(rng, digest),
            Ps256 => self.0.pss_sign_prehash_with_rng::<Sha256, _>(rng, digest),
            Ps384 => self.0.pss_sign_prehash_with_rng::<Sha384, _>(rng, digest),
            Ps512 => self.0.pss_sign_prehash_with_rng::<Sha512, _>(rng, digest),
            Es256 | Es256K | Es384 | Es512 => return Err(SignError::NotForThisKey(algorithm)),
        }
        .map_err(|_| SignError::Backend)
    }
}

macro_rules! curve {
    ($name:ident, $krate:ident) => {
        struct $name($krate::ecdsa::SigningKey);

        impl KeyBackend for $name {
            fn sign(&self, _: SignatureAlgorithm, digest: &[u8]) -> Result<Vec<u8>, SignError> {
                let signed: $krate::ecdsa::Signature =
                    self.0.sign_prehash(digest).map_err(|_| SignError::Backend)?;
                Ok(signed.to_bytes().to_vec())
            }
        }
    };
}

curve!(P256, p256);
curve!(P256K, k256);
curve!(P384, p384);
curve!(P521, p521);

pub(super) fn verify(
    public: &PublicKey,
    algorithm: SignatureAlgorithm,
    digest: &[u8],
    signature: &[u8],
) -> bool {
    match public {
        PublicKey::Ec { crv, x, y } => verify_ec(*crv, &point(x, y), digest, signature),
        PublicKey::Rsa { n, e } => verify_rsa(n, e, algorithm, digest, signature),
    }
}

fn verify_ec(curve: Curve, point: &[u8], digest: &[u8], signature: &[u8]) -> bool {
    macro_rules! verify {
        ($krate:ident) => {{
            let key = $krate::ecdsa::VerifyingKey::from_sec1_bytes(point);
            let signed = $krate::ecdsa::Signature::from_slice(signature);
            // Both s and -s are signatures (FIPS 186-5 §6.4); a verifier of one form takes the lower only.
            matches!((key, signed), (Ok(k), Ok(s)) if k.verify_prehash(digest, &s.normalize_s()).is_ok())
        }};
    }
    match curve {
        Curve::P256 => verify!(p256),
        Curve::P256K => verify!(k256),
        Curve::P384 => verify!(p384),
        Curve::P521 => verify!(p521),
    }
}

fn verify_rsa(n: &[u8], e: &[u8], algorithm: SignatureAlgorithm, digest: &[u8], signature: &[u8]) -> bool {
    use SignatureAlgorithm::*;
    let Some(key) = rsa_public(n, e) else { return false };
    match algorithm {
        Rs256 => key.pkcs1v15_verify_prehash::<Sha256>(digest, signature),
        Rs384 => key.pkcs1v15_verify_prehash::<Sha384>(digest, signature),
        Rs512 => key.pkcs1v15_verify_prehash::<Sha512>(digest, signature),
        Ps256 => key.pss_verify_prehash::<Sha256>(digest, signature),
        Ps384 => key.pss_verify_prehash::<Sha384>(digest, signature),
        Ps512 => key.pss_verify_prehash::<Sha512>(digest, signature),
        Es256 | Es256K | Es384 | Es512 => return false,
    }
    .is_ok()
}
