//! How long a node may keep a volume key: a state machine without clock, network or keys.

use custody_types::PassingReason;
use std::{fmt, time::Duration};

/// Why access is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RevokeReason {
    /// The vault refused: the reason of its error, `KEY_SUSPENDED` or `PERMISSION_DENIED` for example.
    Refused(String),
    /// Nobody refused, and keys could not be had or kept.
    Unavailable(PassingReason),
}

impl fmt::Display for RevokeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) => f.write_str(reason),
            Self::Unavailable(reason) => reason.fmt(f),
        }
    }
}

/// What a node learns about its access.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseEvent {
    /// The vault granted a lease, or renewed it, until this moment of the monotonic clock.
    Granted(Duration),
    /// The vault answered and refused.
    Refused(String),
    /// No answer, or one that says nothing of access.
    Unavailable(PassingReason),
    /// Time has passed.
    Tick,
}

/// Where a lease stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseState {
    /// Keys may be held until this moment of the monotonic clock.
    Held {
        /// The end.
        until: Duration,
    },
    /// Keys must not be held.
    Revoked(RevokeReason),
}

/// A lease on the use of one protector.
#[derive(Clone, Debug)]
pub struct Lease {
    state: LeaseState,
}

impl Lease {
    /// A lease that holds until a moment of the monotonic clock.
    #[must_use]
    pub fn granted(until: Duration) -> Self {
        Self { state: LeaseState::Held { until } }
    }

    /// A lease that has yet to be granted.
    #[must_use]
    pub fn waiting(reason: RevokeReason) -> Self {
        Self { state: LeaseState::Revoked(reason) }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> &LeaseState {
        &self.state
    }

    /// Takes an event in. True where keys must now be erased, or may now be held again: where the kind of state
    /// has changed.
    pub fn apply(&mut self, now: Duration, event: LeaseEvent) -> bool {
        let unavailable = |why| LeaseState::Revoked(RevokeReason::Unavailable(why));
        let next = match (&self.state, event) {
            // An answer that took longer than what it grants grants nothing.
            (_, LeaseEvent::Granted(until)) if now >= until => unavailable(PassingReason::VaultUnreachable),
            (_, LeaseEvent::Granted(until)) => LeaseState::Held { until },
            (_, LeaseEvent::Refused(reason)) => LeaseState::Revoked(RevokeReason::Refused(reason)),
            (LeaseState::Held { until }, LeaseEvent::Tick) if now >= *until => {
                unavailable(PassingReason::VaultUnreachable)
            }
            (LeaseState::Held { until }, LeaseEvent::Unavailable(why)) if now >= *until => unavailable(why),
            (LeaseState::Revoked(RevokeReason::Unavailable(_)), LeaseEvent::Unavailable(why)) => {
                unavailable(why)
            }
            (same, LeaseEvent::Unavailable(_) | LeaseEvent::Tick) => same.clone(),
        };
        let held = |s: &LeaseState| matches!(s, LeaseState::Held { .. });
        let changed = held(&self.state) != held(&next);
        self.state = next;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_blip_within_the_lease_changes_nothing() {
        let mut lease = Lease::granted(s(10));
        for now in 1..10 {
            assert!(!lease.apply(s(now), LeaseEvent::Unavailable(PassingReason::VaultUnreachable)));
        }
        assert!(!lease.apply(s(9), LeaseEvent::Granted(s(19))));
        assert!(!lease.apply(s(18), LeaseEvent::Tick));
        assert!(lease.apply(s(19), LeaseEvent::Tick));
        assert_eq!(
            lease.state(),
            &LeaseState::Revoked(RevokeReason::Unavailable(PassingReason::VaultUnreachable))
        );
    }

    #[test]
    fn a_refusal_revokes_at_once_and_a_grant_restores() {
        let mut lease = Lease::granted(s(10));
        assert!(lease.apply(s(1), LeaseEvent::Refused("KEY_SUSPENDED".into())));
        assert!(!lease.apply(s(2), LeaseEvent::Refused("PERMISSION_DENIED".into())));
        assert!(
            !lease.apply(s(3), LeaseEvent::Unavailable(PassingReason::VaultUnreachable)),
            "an unreachable vault gives nothing back"
        );
        assert!(!lease.apply(s(4), LeaseEvent::Granted(s(4))), "what had run out before it came");
        assert!(lease.apply(s(4), LeaseEvent::Granted(s(14))));
        assert_eq!(lease.state(), &LeaseState::Held { until: s(14) });
    }

    #[test]
    fn an_outage_is_told_as_the_last_answer_has_it_and_is_no_refusal() {
        let hsm = || LeaseEvent::Unavailable(PassingReason::HsmUnavailable);
        let vault = || LeaseEvent::Unavailable(PassingReason::VaultUnreachable);
        let revoked = |why| LeaseState::Revoked(RevokeReason::Unavailable(why));
        let mut lease = Lease::waiting(RevokeReason::Unavailable(PassingReason::VaultUnreachable));
        assert!(!lease.apply(s(1), hsm()));
        assert_eq!(lease.state(), &revoked(PassingReason::HsmUnavailable));
        assert!(!lease.apply(s(2), vault()));
        assert_eq!(lease.state(), &revoked(PassingReason::VaultUnreachable));
        assert!(!lease.apply(s(3), LeaseEvent::Refused("KEY_SUSPENDED".into())));
        assert!(!lease.apply(s(4), hsm()));
        assert_eq!(lease.state(), &LeaseState::Revoked(RevokeReason::Refused("KEY_SUSPENDED".into())));
    }
}
