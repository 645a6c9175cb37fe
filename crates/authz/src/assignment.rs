//! A role given to a principal or a group on a scope, and the conditions under which it holds.

use crate::Scope;
use custody_types::UnixMillis;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A role given to a principal on a scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// `vaults/{vault}/roleAssignments/{id}`.
    pub name: String,
    /// A principal, a managed identity, or a group of the same vault.
    pub principal: String,
    /// The role's name.
    pub role: String,
    /// What it covers.
    pub scope: Scope,
    /// When and from where it holds.
    #[serde(default, skip_serializing_if = "Condition::is_empty")]
    pub condition: Condition,
}

/// When and from where an assignment holds. An empty one holds always and from everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// Not before this moment.
    pub not_before: Option<UnixMillis>,
    /// Not from this moment on.
    pub expire_time: Option<UnixMillis>,
    /// Only for callers whose address lies in one of these networks.
    pub source_networks: Vec<IpNet>,
}

/// Why an assignment does not hold now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unmet {
    /// Its time has not come.
    NotYet,
    /// Its time is over.
    Over,
    /// The caller's address lies in none of its networks.
    Elsewhere,
}

impl Condition {
    /// Whether it is one at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it holds for a caller at `address` now. An address that is not known lies in no network.
    ///
    /// # Errors
    /// What is not met.
    pub fn check(&self, now: UnixMillis, address: &str) -> Result<(), Unmet> {
        if self.not_before.is_some_and(|t| now < t) {
            return Err(Unmet::NotYet);
        }
        if self.expire_time.is_some_and(|t| now >= t) {
            return Err(Unmet::Over);
        }
        let inside =
            || address.parse::<IpAddr>().is_ok_and(|ip| self.source_networks.iter().any(|n| n.contains(&ip)));
        if self.source_networks.is_empty() || inside() { Ok(()) } else { Err(Unmet::Elsewhere) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_holds_in_its_time_and_from_its_networks() {
        let at = UnixMillis::from_secs;
        let condition = Condition {
            not_before: Some(at(10)),
            expire_time: Some(at(20)),
            source_networks: vec!["10.1.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()],
        };
        assert_eq!(condition.check(at(9), "10.1.2.3"), Err(Unmet::NotYet));
        assert_eq!(condition.check(at(10), "10.1.2.3"), Ok(()));
        assert_eq!(condition.check(at(19), "fd12::1"), Ok(()));
        assert_eq!(condition.check(at(20), "10.1.2.3"), Err(Unmet::Over));
        for elsewhere in ["10.2.0.1", "", "::1", "nonsense"] {
            assert_eq!(condition.check(at(15), elsewhere), Err(Unmet::Elsewhere), "{elsewhere}");
        }
        assert_eq!(Condition::default().check(at(0), ""), Ok(()));
    }
}
