//! Envelope encryption: data keys, volume keys, and sealing with the address as associated data.
//!
//! The only user of `aes-gcm`, and the one place where nonces, associated data and usage limits are decided. Two
//! providers stand behind [`Provider`]; both pass the same vectors and open each other's output.
//!
//! Words: keys are *wrapped* and *unwrapped*, data is *sealed* and *opened*.

mod block;
mod keys;
mod nonce;
mod provider;
mod record;
mod stream;

pub use block::{BlockAddress, BlockSealer};
pub use keys::{Dek, DekAddress, VolumeKey, VolumeKeys, WrappedDek};
pub use nonce::{Nonce, NonceSource};
pub use provider::{Aead, CryptoProvider, Mac, Provider};
pub use record::{SealedRecord, SealingKey};
pub use stream::{CHUNK_HEAD_LEN, CHUNK_LEN, CHUNK_OVERHEAD_LEN, StreamKey, StreamSealer};

/// Bytes of an AES-256 key.
pub const KEY_LEN: usize = 32;
/// Bytes of a GCM tag (NIST SP 800-38D §5.2.1.2: 128 bits).
pub const TAG_LEN: usize = 16;
/// Most blocks sealed under one data key: NIST SP 800-38D §8.3 allows 2^32 random nonces under one key.
pub const SEALS_PER_KEY_MAX: u64 = 1 << 32;

/// A GCM tag.
pub type Tag = [u8; TAG_LEN];

/// The sealed bytes are not what was sealed here under this key: altered, moved, stale or of another key. Says
/// nothing of which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sealed bytes do not authenticate")]
pub struct OpenError;

/// The operating system gave no random bytes. Nothing may be sealed or made without them.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the operating system's random source failed")]
pub struct RandomError;

/// Fills `bytes` from the operating system's random source.
///
/// # Errors
/// The source failed.
pub fn random(bytes: &mut [u8]) -> Result<(), RandomError> {
    getrandom::fill(bytes).map_err(|_| RandomError)
}

/// SHA-256: finds damage where no key is at hand. Proves nothing about who wrote the bytes.
#[must_use]
pub fn checksum(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    out
}
