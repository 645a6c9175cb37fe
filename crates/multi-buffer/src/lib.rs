//! Private RSA operations eight at a time, by `crypto_mb` of Intel's Cryptography Primitives Library (Apache-2.0), which is
//! loaded when the process starts: a vector register has a number of another operation in each of its lanes.
//!
//! Only `custody-kek` may depend on this crate (`deny.toml`), and with `custody-thread` it is the only one with `unsafe` code: calls into a library in C.
//! What is passed to them is owned here, of the length that they read or write.
//!
//! No result leaves unchecked: each is raised to the public exponent and compared with what was given, so that a fault in the
//! half of a computation does not give a factor of the modulus away (Boneh, DeMillo and Lipton, "On the Importance of Checking
//! Cryptographic Protocols for Faults", 1997).

mod key;
mod library;
mod scratch;

pub use key::{CrtKey, CrtNumbers};
pub use library::{Lane, Library, LoadError};
pub use scratch::Scratch;

/// Operations that are done at once.
pub const LANES: usize = 8;
