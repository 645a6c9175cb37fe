//! The identity service's domain: principals with one duty each, managed identities, signed tokens. No network.

mod officers;
mod registry;
mod signer;

pub use registry::{Bootstrap, IdentityError, ManagedIdentityRecord, PrincipalRecord, Registry};
pub use signer::{AUDIENCES, Claims, IssuedToken, Proof, Signer, SignerError};
