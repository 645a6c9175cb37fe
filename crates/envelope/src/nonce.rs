//! Nonces: random, 96 bits, drawn in batches.

use crate::{RandomError, random};
use std::fmt;

/// A 96-bit GCM nonce from the RBG-based construction (NIST SP 800-38D §8.2.2).
///
/// Random rather than counted, so that a disk restored from a snapshot cannot repeat one; the price is the
/// limit of [`crate::SEALS_PER_KEY_MAX`] seals under a key, after which the key rotates.
pub type Nonce = [u8; 12];

const BATCH: usize = 256;

/// Draws nonces from the operating system, 256 at a time, so that a seal does not pay for a system call.
pub struct NonceSource {
    pool: Box<[u8; BATCH * 12]>,
    used: usize,
}

impl NonceSource {
    /// An empty source; the first draw fills it.
    #[must_use]
    pub fn new() -> Self {
        Self { pool: Box::new([0; BATCH * 12]), used: BATCH * 12 }
    }

    /// A nonce that has not been given before.
    ///
    /// # Errors
    /// The operating system's random source failed.
    pub fn draw(&mut self) -> Result<Nonce, RandomError> {
        if self.used == self.pool.len() {
            random(&mut self.pool[..])?;
            self.used = 0;
        }
        let mut nonce = Nonce::default();
        let next = self.pool.get(self.used..self.used + 12).ok_or(RandomError)?;
        nonce.copy_from_slice(next);
        self.used += 12;
        Ok(nonce)
    }
}

impl Default for NonceSource {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for NonceSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NonceSource(..)")
    }
}
