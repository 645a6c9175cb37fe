//! Changes, told to whoever watches.

use custody_types::UnixMillis;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventType {
    /// Role assignments changed.
    AccessChanged,
    /// An officer asked for what needs a second one.
    ApprovalRequested,
    /// A key was deleted.
    Deleted,
    /// The expiry of a key's current version has come.
    Expired,
    /// The expiry of a key's current version is near.
    NearExpiry,
    /// A key or a version was made.
    NewVersionCreated,
    /// A key was purged.
    Purged,
    /// A key was recovered.
    Recovered,
    /// A revocation's holder has answered, or it was closed.
    RevocationChanged,
    /// A vault was sealed, or the deployment.
    Sealed,
    /// A vault was unsealed, or the deployment.
    Unsealed,
    /// Attributes changed.
    Updated,
}

impl EventType {
    /// As it stands in what is stored and signed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AccessChanged => "ACCESS_CHANGED",
            Self::ApprovalRequested => "APPROVAL_REQUESTED",
            Self::Deleted => "DELETED",
            Self::Expired => "EXPIRED",
            Self::NearExpiry => "NEAR_EXPIRY",
            Self::NewVersionCreated => "NEW_VERSION_CREATED",
            Self::Purged => "PURGED",
            Self::Recovered => "RECOVERED",
            Self::RevocationChanged => "REVOCATION_CHANGED",
            Self::Sealed => "SEALED",
            Self::Unsealed => "UNSEALED",
            Self::Updated => "UPDATED",
        }
    }
}

/// A change that has been committed.
#[derive(Clone, Debug)]
pub struct Event {
    /// What.
    pub kind: EventType,
    /// The vault, key, version or scope.
    pub resource: String,
    /// When.
    pub time: UnixMillis,
}
