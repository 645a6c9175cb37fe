//! Names, ids, states and principals.
//!
//! This crate does no I/O, no cryptography and holds nothing secret. Every other crate may depend on it; a type
//! that only one crate uses lives in that crate instead.

mod duty;
mod key_state;
mod name;
mod permission;
mod principal;
mod time;
mod wrapped;

pub use duty::Duty;
pub use key_state::{KeyAttributes, KeyState, KeyUse};
pub use name::{
    ClusterName, KeyName, KeyVersionName, ManagedIdentityName, NameError, PrincipalName, VaultName,
    VolumeName,
};
pub use permission::Permission;
pub use principal::Caller;
pub use time::{Clock, SystemClock, UnixMillis};
pub use wrapped::{WrapAlgorithm, WrappedKey};
