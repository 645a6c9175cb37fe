//! Dual control (NIST SP 800-57 part 1 section 6.2.2.3): a request for a second officer's approval, and where it stands.

use crate::UnixMillis;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a request waits for its approval, and an approval for its use.
const APPROVAL_TIME: Duration = Duration::from_secs(3600);
/// How long one can be looked at after its time.
const KEPT_TIME: Duration = Duration::from_secs(30 * 86_400);

/// A request for a second officer's approval. It serves once, for who asked and for what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Its name.
    pub name: String,
    /// What is to be done, in words that both officers see. It binds: the act must be this one.
    pub action: String,
    /// On what.
    pub resource: String,
    /// Who asked.
    pub requester: String,
    /// When.
    pub create_time: UnixMillis,
    /// When it is over, approved or not.
    pub expire_time: UnixMillis,
    /// The second officer, and whether it agreed.
    pub decision: Option<(String, bool)>,
    /// When it was used.
    pub use_time: Option<UnixMillis>,
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ApprovalState {
    /// Waits for a second officer.
    Pending,
    /// May be used once.
    Approved,
    /// A second officer said no.
    Rejected,
    /// It was used.
    Used,
    /// Its time is over.
    Expired,
}

impl Approval {
    /// Requests that may wait in one place.
    pub const PENDING_MAX: usize = 200;

    /// Asks for it now.
    #[must_use]
    pub fn ask(name: &str, action: &str, resource: &str, requester: &str, now: UnixMillis) -> Self {
        Self {
            name: name.to_owned(),
            action: action.to_owned(),
            resource: resource.to_owned(),
            requester: requester.to_owned(),
            create_time: now,
            expire_time: now.plus(APPROVAL_TIME),
            decision: None,
            use_time: None,
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self, now: UnixMillis) -> ApprovalState {
        match &self.decision {
            _ if self.use_time.is_some() => ApprovalState::Used,
            Some((_, false)) => ApprovalState::Rejected,
            _ if now >= self.expire_time => ApprovalState::Expired,
            Some((_, true)) => ApprovalState::Approved,
            None => ApprovalState::Pending,
        }
    }

    /// Whether it is this request of this officer, and not over.
    #[must_use]
    pub fn is_for(&self, requester: &str, action: &str, now: UnixMillis) -> bool {
        let open = matches!(self.state(now), ApprovalState::Pending | ApprovalState::Approved);
        open && self.requester == requester && self.action == action
    }

    /// Another officer agrees, or does not. An officer may take its own request back.
    ///
    /// # Errors
    /// What is against it: it is the officer's own, was decided already, or its time is over.
    pub fn decide(&mut self, officer: &str, agree: bool, now: UnixMillis) -> Result<(), &'static str> {
        if self.requester == officer && agree {
            return Err("was asked for by you; another officer has to approve it");
        }
        match self.state(now) {
            ApprovalState::Pending => {}
            ApprovalState::Approved if !agree => {}
            ApprovalState::Expired => return Err("is over; ask again"),
            _ => return Err("was decided already"),
        }
        self.decision = Some((officer.to_owned(), agree));
        if agree {
            self.expire_time = now.plus(APPROVAL_TIME);
        }
        Ok(())
    }

    /// Whether its time was over long ago.
    #[must_use]
    pub fn is_forgotten(&self, now: UnixMillis) -> bool {
        now >= self.expire_time.plus(KEPT_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_another_officer_and_its_time() {
        let at = UnixMillis::from_secs;
        let asked = Approval::ask("approvals/1", "purge k", "k", "principals/a", at(0));
        let mut one = asked.clone();
        assert!(one.decide("principals/a", true, at(1)).is_err());
        assert!(one.is_for("principals/a", "purge k", at(3599)));
        assert!(
            !one.is_for("principals/b", "purge k", at(1)) && !one.is_for("principals/a", "purge l", at(1))
        );
        assert!(one.decide("principals/b", true, at(3600)).is_err(), "its time is over");
        one.decide("principals/b", true, at(3599)).unwrap();
        assert_eq!(one.state(at(7198)), ApprovalState::Approved, "an hour more for its use");
        assert_eq!(one.state(at(7199)), ApprovalState::Expired);
        assert!(one.decide("principals/c", true, at(3600)).is_err(), "it was decided");
        one.decide("principals/a", false, at(3600)).unwrap();
        assert_eq!(one.state(at(3600)), ApprovalState::Rejected, "taken back");
        assert!(!one.is_for("principals/a", "purge k", at(3600)));
        let used = Approval { use_time: Some(at(5)), decision: Some(("principals/b".into(), true)), ..asked };
        assert_eq!(used.state(at(6)), ApprovalState::Used);
        assert!(!used.is_forgotten(at(3600)) && used.is_forgotten(at(3600 + 30 * 86_400)));
    }
}
