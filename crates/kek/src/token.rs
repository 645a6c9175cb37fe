//! Private keys that live in a token: made there, moved there, used there.

use crate::{
    Backend, ImportError, Padding, PrivateKey, UnwrapError, UnwrapFailed, aes_wrap, backend, ec,
    private_key::{Held, verify},
};
use custody_envelope::random;
use custody_hsm::{Token, TokenError};
use custody_types::{KeyFamily, KeyType, PublicKey, SignatureAlgorithm, WrapAlgorithm};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Bytes of a key's id in its token.
const ID_LEN: usize = 16;

/// A key in a token that was not done with what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenKeyError {
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// What was to be brought is no key that is offered.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// What was wrapped does not open.
    #[error(transparent)]
    Unwrap(#[from] UnwrapFailed),
    /// The token's signatures are of no one key.
    #[error("the HSM's signatures with the key that was brought are not of one key; it was not taken")]
    Signatures,
    /// A transfer into the token begins in it.
    #[error("the key exchange key is not in the HSM; make one there, of type RSA-HSM")]
    ExchangeOutside,
    /// The cryptographic backend, or the random source.
    #[error("the cryptographic backend failed")]
    Backend,
}

impl From<UnwrapError> for TokenKeyError {
    fn from(e: UnwrapError) -> Self {
        match e {
            UnwrapError::Failed(e) => e.into(),
            UnwrapError::Token(e) => e.into(),
        }
    }
}

fn new_id() -> Result<[u8; ID_LEN], TokenKeyError> {
    let mut id = [0; ID_LEN];
    random(&mut id).map_err(|_| TokenKeyError::Backend)?;
    Ok(id)
}

/// The public half of an RSA key that came in wrapped: the token tells it, and it must be one that is offered.
fn rsa_half(token: &Token, id: &[u8]) -> Result<(PublicKey, KeyType), TokenKeyError> {
    let public = token.rsa_public(id)?;
    match (public.key_type(), &public) {
        (Some(kind), PublicKey::Rsa { e, .. }) if e.as_slice() == [1, 0, 1] => Ok((public, kind)),
        (Some(_), _) => Err(ImportError::Exponent.into()),
        (None, PublicKey::Rsa { n, .. }) => Err(ImportError::Size { bits: n.len() * 8 }.into()),
        (None, _) => Err(ImportError::Unreadable.into()),
    }
}

/// The public half of an EC key that came in wrapped. A token does not tell it; but a signature holds under two keys only, and
/// what a second one, over another digest, has in common with it is the key. A third one checks that, with other code.
fn ec_half(token: &Token, id: &[u8]) -> Result<(PublicKey, KeyType), TokenKeyError> {
    let curve = token.curve(id)?.ok_or(ImportError::Unreadable)?;
    let kind = KeyType::Ec(curve);
    let algorithm =
        SignatureAlgorithm::ALL.into_iter().find(|a| a.fits(kind)).ok_or(TokenKeyError::Backend)?;
    let signed = || -> Result<_, TokenKeyError> {
        let mut digest = vec![0; algorithm.digest_len()];
        random(&mut digest).map_err(|_| TokenKeyError::Backend)?;
        let signature = token.sign(id, algorithm, &digest)?;
        Ok((digest, signature))
    };
    let signers = || signed().map(|(digest, signature)| ec::signers(curve, &digest, &signature));
    let (first, second) = (signers()?, signers()?);
    let mut common = first.into_iter().filter(|public| second.contains(public));
    let (Some(public), None) = (common.next(), common.next()) else { return Err(TokenKeyError::Signatures) };
    let (digest, signature) = signed()?;
    match verify(&public, algorithm, &digest, &signature, Backend::default()) {
        Ok(true) => Ok((public, kind)),
        _ => Err(TokenKeyError::Signatures),
    }
}

impl PrivateKey {
    /// Makes a key in a token. It is not there when this fails.
    ///
    /// # Errors
    /// See [`TokenKeyError`].
    pub fn generate_in(token: &Arc<Token>, kind: KeyType) -> Result<Self, TokenKeyError> {
        let id = new_id()?;
        let public = token.generate(kind, &id)?;
        Self::taken_in(token, &id, Ok((public, kind)))
    }

    /// Moves a key into a token: it goes in wrapped, and the copy here is erased.
    ///
    /// # Errors
    /// See [`TokenKeyError`].
    pub fn move_into(self, token: &Arc<Token>) -> Result<Self, TokenKeyError> {
        let Held::Here(pkcs8) = &self.held else { return Ok(self) };
        let mut transport = Zeroizing::new([0; 32]);
        random(&mut *transport).map_err(|_| TokenKeyError::Backend)?;
        let wrapped = aes_wrap(Backend::default(), &*transport, Padding::Padded, pkcs8)
            .map_err(|_| TokenKeyError::Backend)?;
        let id = new_id()?;
        token.unwrap_private(&*transport, &wrapped, self.kind().family(), &id)?;
        Self::taken_in(token, &id, Ok((self.public().clone(), self.kind())))
    }

    /// Takes a key in that was wrapped elsewhere for `exchange`, a key of the token (`CKM_RSA_AES_KEY_WRAP`, PKCS#11 v3.1
    /// §6.1.20): it is unwrapped inside. Tokens that do not know the mechanism as one do it in its two steps. Where it is not
    /// said what kind of key it is, both are tried.
    ///
    /// # Errors
    /// See [`TokenKeyError`].
    pub fn transfer_into(
        token: &Arc<Token>,
        exchange: &Self,
        wrapped: &[u8],
        family: Option<KeyFamily>,
    ) -> Result<Self, TokenKeyError> {
        if !matches!(exchange.held, Held::InToken { .. }) {
            return Err(TokenKeyError::ExchangeOutside);
        }
        let (head, tail) =
            wrapped.split_at_checked(exchange.kind().bits() as usize / 8).ok_or(UnwrapFailed)?;
        let transport = exchange.unwrap_key(WrapAlgorithm::RsaOaep, head)?;
        if ![16, 24, 32].contains(&transport.len()) {
            return Err(UnwrapFailed.into());
        }
        let both = [KeyFamily::Rsa, KeyFamily::Ec];
        for family in family.as_ref().map_or(&both[..], std::slice::from_ref) {
            match Self::unwrapped_in(token, &transport, tail, *family) {
                Err(TokenKeyError::Unwrap(_)) => {}
                done => return done,
            }
        }
        Err(UnwrapFailed.into())
    }

    /// Takes a private key in that the token unwraps. It is not there when this fails.
    fn unwrapped_in(
        token: &Arc<Token>,
        transport: &[u8],
        wrapped: &[u8],
        family: KeyFamily,
    ) -> Result<Self, TokenKeyError> {
        let id = new_id()?;
        token.unwrap_private(transport, wrapped, family, &id).map_err(|e| match e {
            TokenError::Refused(_) => TokenKeyError::Unwrap(UnwrapFailed),
            other => other.into(),
        })?;
        let half = match family {
            KeyFamily::Rsa => rsa_half(token, &id),
            KeyFamily::Ec => ec_half(token, &id),
        };
        Self::taken_in(token, &id, half)
    }

    /// A key that a token has, by its id and public half.
    ///
    /// # Errors
    /// The public half is no key.
    pub fn in_token(
        token: Arc<Token>,
        id: &[u8],
        public: PublicKey,
        kind: KeyType,
    ) -> Result<Self, TokenKeyError> {
        let backend = backend::in_token(token.clone(), id, &public).ok_or(TokenKeyError::Backend)?;
        Ok(Self::new(Held::InToken { token, id: id.to_vec() }, backend, public, kind))
    }

    /// As [`PrivateKey::in_token`], of one that came there just now: where its public half is not to be had, it goes again.
    fn taken_in(
        token: &Arc<Token>,
        id: &[u8],
        half: Result<(PublicKey, KeyType), TokenKeyError>,
    ) -> Result<Self, TokenKeyError> {
        let made = half.and_then(|(public, kind)| Self::in_token(token.clone(), id, public, kind));
        if made.is_err() {
            token.destroy(id)?;
        }
        made
    }

    /// Whether it lives in a token.
    #[must_use]
    pub fn is_in_token(&self) -> bool {
        matches!(self.held, Held::InToken { .. })
    }

    /// Its id, where it lives in a token.
    #[must_use]
    pub fn token_id(&self) -> Option<&[u8]> {
        match &self.held {
            Held::Here(_) => None,
            Held::InToken { id, .. } => Some(id),
        }
    }

    /// Destroys it where it lives in a token; one that does not is destroyed with its sealed copies.
    ///
    /// # Errors
    /// The token is lost, or keeps it.
    pub fn destroy(&self) -> Result<(), TokenError> {
        match &self.held {
            Held::Here(_) => Ok(()),
            Held::InToken { token, id } => token.destroy(id),
        }
    }
}
