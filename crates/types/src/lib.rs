//! Names, ids, states and principals.
//!
//! This crate does no I/O, no cryptography and holds nothing secret. Every other crate may depend on it; a type
//! that only one crate uses lives in that crate instead.

mod approval;
mod duty;
mod key_operation;
mod key_state;
mod key_type;
mod name;
mod passing;
mod permission;
mod principal;
mod signature;
mod time;
mod wrapped;

pub use approval::{Approval, ApprovalState};
pub use duty::{Duty, UnknownDuty};
pub use key_operation::{KeyOperation, UnknownKeyOperation};
pub use key_state::{KeyAttributes, KeyState};
pub use key_type::{Curve, KeyFamily, KeyType, Protection, PublicKey, RsaSize, UnknownCurve, UnknownRsaSize};
pub use name::{
    ApprovalName, ClusterName, GroupName, IdentityApprovalName, KeyName, KeyVersionName, ManagedIdentityName,
    NameError, PrincipalName, RoleDefinitionName, VaultName, VolumeName,
};
pub use passing::PassingReason;
pub use permission::{Permission, UnknownPermission};
pub use principal::Caller;
pub use signature::{SignatureAlgorithm, UnknownSignatureAlgorithm};
pub use time::{Clock, SystemClock, UnixMillis};
pub use wrapped::{UnknownAlgorithm, WrapAlgorithm, WrappedKey};
