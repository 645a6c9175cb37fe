//! The vault's domain: key lifecycle behind the gate. No network.
//!
//! Start at [`gate`]: every operation is authorized, recorded, done and finished there, and the functions that act
//! on keys demand a [`gate::Permit`] that only the gate makes.

mod access;
mod backup;
mod catalog;
mod error;
mod event;
pub mod gate;
mod keys;
mod lifecycle;
mod names;
mod record;
mod retention;
mod root;
mod usage;
mod vault;
mod vaults;

pub use access::NewAssignment;
pub use custody_kek::{Backend, PrivateJwk};
pub use error::VaultError;
pub use event::{Event, EventType};
pub use keys::{AttributeChange, IfExists, Material, Particulars};
pub use lifecycle::RECOVERY_DAYS;
pub use record::{KeyView, Tags, VaultRecord, VersionView};
pub use root::{RootKeyError, load_root_key};
pub use usage::Opened;
pub use vault::{Call, Vault, VaultOptions};

/// Bytes that are erased on drop: for key material that a transport hands in.
pub type Erased<T> = zeroize::Zeroizing<T>;
