//! Keys in a PKCS#11 token. The token does the bare private operation; padding is taken off here, in constant time, since
//! tokens differ in which paddings they know and in what a failure tells.

use super::{KeyBackend, aws_lc, rsa_public};
use crate::{SignError, UnwrapError, UnwrapFailed, WrapError, oaep};
use aws_lc_rs::rsa::{OaepPublicEncryptingKey, PublicEncryptingKey};
use custody_hsm::Token;
use custody_types::{PublicKey, SignatureAlgorithm, WrapAlgorithm};
use rsa::pkcs8::EncodePublicKey as _;
use std::sync::Arc;
use zeroize::Zeroizing;

struct InToken {
    token: Arc<Token>,
    id: Vec<u8>,
    /// Modulus and public key of an RSA key.
    rsa: Option<(Vec<u8>, OaepPublicEncryptingKey)>,
}

/// A key of the token, by its id and its public half. The token is not asked.
pub(crate) fn load(token: Arc<Token>, id: &[u8], public: &PublicKey) -> Option<Box<dyn KeyBackend>> {
    let rsa = match public {
        PublicKey::Ec { .. } => None,
        PublicKey::Rsa { n, e } => {
            let der = rsa_public(n, e)?.to_public_key_der().ok()?;
            let key = PublicEncryptingKey::from_der(der.as_bytes()).ok()?;
            Some((n.clone(), OaepPublicEncryptingKey::new(key).ok()?))
        }
    };
    Some(Box::new(InToken { token, id: id.to_vec(), rsa }))
}

impl KeyBackend for InToken {
    fn wrap_key(&self, algorithm: WrapAlgorithm, plain: &[u8]) -> Result<Vec<u8>, WrapError> {
        let (_, public) = self.rsa.as_ref().ok_or(WrapError::NotForThisKey)?;
        aws_lc::wrap(public, algorithm, plain)
    }

    fn unwrap_key(
        &self,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, UnwrapError> {
        let (n, _) = self.rsa.as_ref().ok_or(UnwrapFailed)?;
        // RFC 8017 §5.1.2: what is not below the modulus is no ciphertext. Both are public.
        if wrapped.len() != n.len() || wrapped >= n.as_slice() {
            return Err(UnwrapFailed.into());
        }
        let mut padded = self.token.rsa_raw(&self.id, wrapped)?;
        Ok(oaep::decode(algorithm, &mut padded)?)
    }

    fn sign(&self, algorithm: SignatureAlgorithm, digest: &[u8]) -> Result<Vec<u8>, SignError> {
        Ok(self.token.sign(&self.id, algorithm, digest)?)
    }
}
