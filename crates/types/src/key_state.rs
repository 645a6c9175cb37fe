//! Key lifecycle states (NIST SP 800-57 part 1 §7) and what each allows.

use crate::UnixMillis;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a key version is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum KeyState {
    /// `not_before` lies ahead.
    PreActive,
    /// Enabled and inside its dates.
    Active,
    /// Switched off by its owner (`enabled = false`).
    Suspended,
    /// Past `expire_time`.
    Expired,
    /// Soft-deleted; can be recovered until purged.
    Deleted,
    /// Purged: the private half is gone for good.
    Destroyed,
}

impl KeyState {
    /// Whether a key in this state may be used at all.
    ///
    /// Stricter than NIST §7 and than Azure on purpose: a suspended or expired key does not even unwrap or verify,
    /// because "remove access and the data is inaccessible" is what the customer is promised.
    #[must_use]
    pub fn allows_use(self) -> bool {
        match self {
            Self::Active => true,
            Self::PreActive | Self::Suspended | Self::Expired | Self::Deleted | Self::Destroyed => false,
        }
    }

    /// The name used on the wire and in reasons.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PreActive => "PRE_ACTIVE",
            Self::Active => "ACTIVE",
            Self::Suspended => "SUSPENDED",
            Self::Expired => "EXPIRED",
            Self::Deleted => "DELETED",
            Self::Destroyed => "DESTROYED",
        }
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an owner sets on a key version; its state follows from these and the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyAttributes {
    /// Whether the owner allows use at all.
    pub enabled: bool,
    /// No use before this moment.
    pub not_before: Option<UnixMillis>,
    /// No use from this moment on.
    pub expire_time: Option<UnixMillis>,
    /// No more uses than this, of any kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
}

impl Default for KeyAttributes {
    fn default() -> Self {
        Self { enabled: true, not_before: None, expire_time: None, budget: None }
    }
}

impl KeyAttributes {
    /// The state at `now` of a version that is neither deleted nor destroyed.
    #[must_use]
    pub fn state_at(&self, now: UnixMillis) -> KeyState {
        if !self.enabled {
            KeyState::Suspended
        } else if self.not_before.is_some_and(|t| now < t) {
            KeyState::PreActive
        } else if self.expire_time.is_some_and(|t| now >= t) {
            KeyState::Expired
        } else {
            KeyState::Active
        }
    }

    /// Whether the dates can ever hold: expiry lies after activation.
    #[must_use]
    pub fn dates_ordered(&self) -> bool {
        !matches!((self.not_before, self.expire_time), (Some(from), Some(to)) if to <= from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_active_key_is_used() {
        use KeyState::*;
        for state in [PreActive, Active, Suspended, Expired, Deleted, Destroyed] {
            assert_eq!(state.allows_use(), state == Active, "{state}");
        }
    }

    #[test]
    fn dates_decide_the_state() {
        let at = |ms| UnixMillis::from_millis(ms);
        let a =
            KeyAttributes { not_before: Some(at(10)), expire_time: Some(at(20)), ..KeyAttributes::default() };
        assert_eq!(a.state_at(at(9)), KeyState::PreActive);
        assert_eq!(a.state_at(at(10)), KeyState::Active);
        assert_eq!(a.state_at(at(19)), KeyState::Active);
        assert_eq!(a.state_at(at(20)), KeyState::Expired);
        assert_eq!(KeyAttributes { enabled: false, ..a }.state_at(at(15)), KeyState::Suspended);
        assert!(a.dates_ordered());
        assert!(!KeyAttributes { not_before: Some(at(20)), expire_time: Some(at(20)), ..a }.dates_ordered());
    }
}
