//! Sealing of small records: how a vault keeps private keys, and the keys above them, at rest.

use crate::keys::secret_key;
use crate::{CryptoProvider, KEY_LEN, Nonce, OpenError, Provider, RandomError, TAG_LEN, random};
use std::fmt;
use zeroize::Zeroizing;

secret_key!(
    /// Seals small records at rest: private keys, and other sealing keys.
    SealingKey
);

/// A sealed record: nonce, ciphertext, tag.
pub type SealedRecord = Vec<u8>;

impl SealingKey {
    /// Seals `plain` for the place that `context` names.
    ///
    /// # Errors
    /// The operating system's random source failed.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<SealedRecord, RandomError> {
        let mut nonce = Nonce::default();
        random(&mut nonce)?;
        let mut out = Vec::with_capacity(12 + plain.len() + TAG_LEN);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plain);
        let (_, body) = out.split_at_mut(12);
        let tag = Provider::AwsLc.aead(&self.0).seal(&nonce, context, body);
        out.extend_from_slice(&tag);
        Ok(out)
    }

    /// Opens a record sealed for the same place.
    ///
    /// # Errors
    /// Altered, cut, of another place or another key.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let (nonce, rest) = sealed.split_first_chunk::<12>().ok_or(OpenError)?;
        let (body, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(OpenError)?;
        let mut plain = Zeroizing::new(vec![0; body.len()]);
        Provider::AwsLc.aead(&self.0).open(nonce, context, body, tag, &mut plain)?;
        Ok(plain)
    }
}
