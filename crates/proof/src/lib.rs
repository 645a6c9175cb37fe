//! What is said of leases and erasures, and signed, so that it can be checked by whoever was not there.
//!
//! Start at [`verify`]: it takes a bundle and two public keys, and no word of the services that made it.

mod authority;
mod lease;
mod receipt;
mod revocation;
mod statement;

pub use custody_note::{NoteError, SigningKey, VerifyingKey};

pub use authority::{Authority, CertificateError, HolderKey, principal_of};
pub use lease::Lease;
pub use receipt::{Certified, Receipt, VOLUME_KEY};
pub use revocation::{Holder, Outcome, ProofError, Revocation, Verified, verify};
pub use statement::{Statement, StatementError};
