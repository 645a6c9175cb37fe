//! RSA key-encryption keys: private halves, wrapping and unwrapping.
//!
//! The only user of `rsa`, and only `custody-vault` may depend on this crate (`deny.toml`): no other process can
//! even name a private KEK. `rsa` parses and checks imported keys and is the portable backend; `aws-lc-rs` is the
//! default backend for what a network peer can time.

mod backend;
mod import;
mod oaep;
mod private_key;

pub use backend::Backend;
pub use import::ImportError;
pub use private_key::{KekPrivateKey, PublicKek, RsaSize, UnknownRsaSize};

/// The wrapped key does not open under this key version. Wrong key, wrong padding, wrong length and damaged
/// bytes are one answer, in text and in time (RFC 8017 §7.1.2 note).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("wrapped key does not open under this key version")]
pub struct UnwrapFailed;

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
    /// The backend failed; nothing was wrapped.
    #[error("the cryptographic backend failed")]
    Backend,
}
