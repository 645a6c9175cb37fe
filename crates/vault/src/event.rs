//! Changes, told to whoever watches.

use custody_types::UnixMillis;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventType {
    /// Role assignments changed.
    AccessChanged,
    /// A key was deleted.
    Deleted,
    /// A key or a version was made.
    NewVersionCreated,
    /// A key was purged.
    Purged,
    /// A key was recovered.
    Recovered,
    /// Attributes changed.
    Updated,
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
