//! The vault's domain: key lifecycle behind the gate. No network.
//!
//! Start at [`gate`]: every operation is authorized, recorded, done and finished there, and the functions that act
//! on keys demand a [`gate::Permit`] that only the gate makes.

mod access;
mod agenda;
mod approval;
mod backup;
mod byok;
mod catalog;
mod dependents;
mod directory;
mod emergency;
mod error;
mod event;
pub mod gate;
mod keys;
mod lag;
mod leases;
mod lifecycle;
mod limits;
mod lineage;
mod loader;
mod names;
mod record;
mod retention;
mod review;
mod revocation;
mod root_key;
mod rotation;
mod seal;
mod sealing;
mod twin;
mod usage;
mod uses;
mod vault;
mod vaults;

pub use access::NewAssignment;
pub use custody_faults as faults;
pub use custody_kek::{
    Backend, Batch, MultiBuffer, MultiBufferError, PrivateJwk, Token, TokenError, TokenSettings,
};
pub use custody_types::{Approval, ApprovalState};
pub use dependents::{Dependent, DependentKind, DependentReport, Reported};
pub use error::VaultError;
pub use event::{Event, EventType};
pub use keys::{AttributeChange, Declared, IfExists, Material, Particulars};
pub use leases::{LeaseAsk, LeasePolicy, SignedLease};
pub use lifecycle::RECOVERY_DAYS;
pub use limits::RateLimits;
pub use lineage::{Lineage, Shred, VersionLineage};
pub use record::{ApprovalPolicy, KeyView, Tags, VaultRecord, VersionView};
pub use review::{AccessReview, Explanation};
pub use revocation::RevocationView;
pub use rotation::{CalendarSpan, CalendarSpanError, RotationPolicy, Trigger};
pub use seal::{NewSeal, Passphrase, SealError, SealType};
pub use sealing::{NewShares, SealSettings, SealView, ShareText, UnsealKey};
pub use usage::{Admission, Opened, Place};
pub use uses::UseCounts;
pub use vault::{Call, LoadError, Recorded, Vault, VaultOptions};
pub use vaults::{VaultChange, VaultParameters};

/// Bytes that are erased on drop: for key material that a transport hands in.
pub type Erased<T> = zeroize::Zeroizing<T>;
