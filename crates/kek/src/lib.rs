//! The vault's private keys: key-encryption keys that wrap and unwrap, and keys that sign.
//!
//! The only user of `rsa` and of RustCrypto's curves, and only `custody-vault` may depend on this crate
//! (`deny.toml`): no other process can even name a private KEK. Keys in an HSM are private keys as any other: only what
//! holds them differs. They parse and check imported keys and are the
//! portable backend; `aws-lc-rs` is the default backend for what a network peer can time. Where the operator names Intel's
//! `crypto_mb`, private operations that wait together are done at once by it.

mod backend;
mod batch;
mod ec;
mod emsa;
mod import;
mod key_wrap;
mod mgf1;
mod oaep;
mod private_key;
mod token;

pub use backend::Backend;
pub use batch::Batch;
pub use custody_hsm::{Token, TokenError, TokenSettings};
pub use custody_multi_buffer::{Library as MultiBuffer, LoadError as MultiBufferError};
use custody_types::SignatureAlgorithm;
pub use import::{ImportError, PrivateJwk};
pub use key_wrap::{Padding, aes_unwrap, aes_wrap};
pub use private_key::{PrivateKey, verify};
pub use token::TokenKeyError;

/// The wrapped key does not open under this key version. Wrong key, wrong padding, wrong length and damaged
/// bytes are one answer, in text and in time (RFC 8017 §7.1.2 note).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("wrapped key does not open under this key version")]
pub struct UnwrapFailed;

/// Nothing was unwrapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnwrapError {
    /// It does not open.
    #[error(transparent)]
    Failed(#[from] UnwrapFailed),
    /// The token that has the key cannot be asked.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// The key material cannot be wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WrapError {
    /// Nothing to wrap.
    #[error("`plaintext` is empty; give the key material to wrap")]
    Empty,
    /// OAEP leaves less room than asked for.
    #[error("`plaintext` has {len} bytes, and this key and algorithm wrap at most {len_max}; use a data key")]
    TooLong {
        /// Bytes given.
        len: usize,
        /// Most bytes that fit.
        len_max: usize,
    },
    /// An EC key signs and does nothing else.
    #[error("an EC key does not wrap or encrypt; use an RSA key")]
    NotForThisKey,
    /// The backend failed; nothing was wrapped.
    #[error("the cryptographic backend failed")]
    Backend,
}

/// The digest cannot be signed, or the signature not be checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    /// The backend failed; nothing was signed.
    #[error("the cryptographic backend failed")]
    Backend,
    /// What was given is no digest of the algorithm's hash.
    #[error("`digest` has {len} bytes; {algorithm} signs a digest of {}", algorithm.digest_len())]
    DigestLength {
        /// The algorithm.
        algorithm: SignatureAlgorithm,
        /// Bytes given.
        len: usize,
    },
    /// The algorithm is for another kind of key.
    #[error("{0} is not for this kind of key")]
    NotForThisKey(SignatureAlgorithm),
    /// The token that has the key cannot be asked.
    #[error(transparent)]
    Token(#[from] TokenError),
}
