//! What goes wrong, how often, and for how long.

use crate::{Latency, Throttles};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// Between two times, in milliseconds: each occasion has one of its own between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// At least.
    pub from_ms: u64,
    /// At most.
    pub to_ms: u64,
}

/// Errors of the service itself come in bursts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bursts {
    /// On average so long from one to the next, in milliseconds.
    pub every_ms: u64,
    /// So long each.
    pub for_ms: u64,
    /// The share of calls in a burst that fail, 0 to 1.
    pub share: f64,
}

/// The region goes away and comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outages {
    /// From the beginning of one to that of the next, in milliseconds.
    pub every_ms: u64,
    /// So long each.
    pub for_ms: u64,
}

/// What a vault does to its callers. What is not named does not happen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Profile {
    /// Its name, for the trail and for people.
    pub name: String,
    /// How often it may be asked.
    pub throttles: Option<Throttles>,
    /// How long each call takes, beside its work.
    pub latency: Option<Latency>,
    /// Errors of its own.
    pub bursts: Option<Bursts>,
    /// Losses of its region.
    pub outages: Option<Outages>,
    /// How long a change of role assignments takes to count.
    pub role_delay: Option<Span>,
    /// How long a deletion is under way before the deleted key can be seen, recovered or purged.
    pub delete_delay: Option<Span>,
    /// How long a recovery is under way before the key can be seen.
    pub recover_delay: Option<Span>,
    /// How long after a rotation some calls still find the version before, and not the new one.
    pub version_lag: Option<Span>,
    /// How old a token may be, whatever it says itself, in milliseconds.
    pub token_age_ms: Option<u64>,
    /// How far the clock of a vault is ahead of the true time, in milliseconds, or behind, by the vault's id.
    pub clock_shift_ms: BTreeMap<String, i64>,
    /// What its chances are drawn from: the same seed draws the same.
    pub seed: u64,
}

/// A profile that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// There is none of this name.
    #[error("`{0}` is no profile; one of none, azure-standard, azure-premium, bad-day")]
    Unknown(String),
    /// The text is not a profile.
    #[error("not a profile: {0}")]
    Malformed(#[from] toml::de::Error),
    /// A value is out of bounds.
    #[error("`{field}`: {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is expected.
        why: &'static str,
    },
}

/// No delay, lag or outage is longer: a day.
const TIME_MAX_MS: u64 = 86_400_000;

impl Profile {
    /// The names of those that come with it.
    pub const NAMES: [&'static str; 4] = ["none", "azure-standard", "azure-premium", "bad-day"];

    /// One that comes with it.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn named(name: &str) -> Result<Self, ProfileError> {
        let text = match name {
            "none" => "name = \"none\"",
            "azure-standard" => include_str!("../profiles/azure-standard.toml"),
            "azure-premium" => include_str!("../profiles/azure-premium.toml"),
            "bad-day" => include_str!("../profiles/bad-day.toml"),
            other => return Err(ProfileError::Unknown(other.chars().take(40).collect())),
        };
        Self::parse(text)
    }

    /// Of a file: TOML, with the fields above.
    ///
    /// # Errors
    /// It is malformed, or a value is out of bounds.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let profile: Self = toml::from_str(text)?;
        profile.check()?;
        Ok(profile)
    }

    /// As a file has it.
    #[must_use]
    pub fn text(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// Checks what came from elsewhere.
    ///
    /// # Errors
    /// A value is out of bounds.
    pub fn check(&self) -> Result<(), ProfileError> {
        let bad = |field, why| Err(ProfileError::Invalid { field, why });
        let spans = [
            ("role_delay", self.role_delay),
            ("delete_delay", self.delete_delay),
            ("recover_delay", self.recover_delay),
            ("version_lag", self.version_lag),
        ];
        for (field, span) in spans {
            if span.is_some_and(|s| s.from_ms > s.to_ms || s.to_ms > TIME_MAX_MS) {
                return bad(field, "`from_ms` must be no more than `to_ms`, and that no more than a day");
            }
        }
        if self
            .bursts
            .is_some_and(|b| !(0.0..=1.0).contains(&b.share) || b.every_ms == 0 || b.for_ms > TIME_MAX_MS)
        {
            return bad(
                "bursts",
                "`share` must be 0 to 1, `every_ms` more than 0, and `for_ms` no more than a day",
            );
        }
        if self.outages.is_some_and(|o| o.every_ms <= o.for_ms || o.every_ms > TIME_MAX_MS) {
            return bad("outages", "`for_ms` must be less than `every_ms`, and that no more than a day");
        }
        if self.latency.is_some_and(|l| !l.is_valid()) {
            return bad(
                "latency",
                "`median_ms` must be 0 or more, `p99_ms` no less, and `max_ms` no less than that",
            );
        }
        if self.throttles.as_ref().is_some_and(|t| !t.is_valid()) {
            return bad("throttles", "every limit must be 1 or more, and `window_ms` 1 to 3,600,000");
        }
        if self.token_age_ms.is_some_and(|ms| ms < 1000) {
            return bad("token_age_ms", "must be 1,000 or more");
        }
        let day = i64::try_from(TIME_MAX_MS).unwrap_or(i64::MAX);
        if self.clock_shift_ms.values().any(|ms| !(-365 * day..=365 * day).contains(ms)) {
            return bad("clock_shift_ms", "must be a year at most, ahead or behind");
        }
        Ok(())
    }
}

impl Span {
    /// The time of one occasion; `draw` is 0 to 1.
    pub(crate) fn drawn(self, draw: f64) -> Duration {
        let width = Duration::from_millis(self.to_ms.saturating_sub(self.from_ms));
        Duration::from_millis(self.from_ms) + width.mul_f64(draw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_ones_are_profiles_and_say_the_same_again() {
        for name in Profile::NAMES {
            let profile = Profile::named(name).unwrap();
            assert_eq!(profile.name, name);
            assert_eq!(Profile::parse(&profile.text()).unwrap(), profile);
        }
        assert!(Profile::named("good-day").unwrap_err().to_string().contains("bad-day"));
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        for (text, field) in [
            ("role_delay = { from_ms = 2, to_ms = 1 }", "role_delay"),
            ("bursts = { every_ms = 10, for_ms = 1, share = 1.5 }", "bursts"),
            ("outages = { every_ms = 10, for_ms = 10 }", "outages"),
            ("latency = { median_ms = 5.0, p99_ms = 4.0, max_ms = 9.0 }", "latency"),
            ("token_age_ms = 1", "token_age_ms"),
            ("nonsense = 1", "nonsense"),
        ] {
            let refused = Profile::parse(text).unwrap_err().to_string();
            assert!(refused.contains(field), "{text}: {refused}");
        }
    }
}
