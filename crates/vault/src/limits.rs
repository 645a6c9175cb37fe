//! How often one caller, one key and one vault may be asked. What is over that is refused before it costs a decision, a
//! record or a signature, so that a flood takes nothing from others.

use crate::VaultError;
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::HashMapStateStore,
};
use serde::Deserialize;
use std::{num::NonZeroU32, time::Duration};

/// Calls a second, sustained; a burst may have as many at once. None for no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Of one principal, on everything.
    pub caller_per_second: Option<NonZeroU32>,
    /// On one key and its versions, by everyone.
    pub key_per_second: Option<NonZeroU32>,
    /// On one vault and its keys, by everyone.
    pub vault_per_second: Option<NonZeroU32>,
}

type Buckets = RateLimiter<String, HashMapStateStore<String>, DefaultClock>;

/// The buckets. Those that are full again are forgotten with each tick.
pub(crate) struct Limiter {
    caller: Option<Buckets>,
    key: Option<Buckets>,
    vault: Option<Buckets>,
}

fn buckets(rate: Option<NonZeroU32>) -> Option<Buckets> {
    rate.map(|rate| RateLimiter::hashmap(Quota::per_second(rate)))
}

fn take(buckets: Option<&Buckets>, what: &'static str, name: &str) -> Result<(), VaultError> {
    let Some(buckets) = buckets else { return Ok(()) };
    buckets.check_key(&name.to_owned()).map_err(|not_until| {
        let retry_after = not_until.wait_time_from(DefaultClock::default().now());
        VaultError::Throttled {
            what,
            name: name.to_owned(),
            retry_after: retry_after.max(Duration::from_millis(1)),
        }
    })
}

impl Limiter {
    pub(crate) fn new(limits: &RateLimits) -> Self {
        Self {
            caller: buckets(limits.caller_per_second),
            key: buckets(limits.key_per_second),
            vault: buckets(limits.vault_per_second),
        }
    }

    /// Takes one call from each bucket that it falls into.
    pub(crate) fn check(&self, principal: &str, resource: &str) -> Result<(), VaultError> {
        take(self.caller.as_ref(), "caller", principal)?;
        let mut ends = resource.match_indices('/').map(|(at, _)| at).chain(std::iter::once(resource.len()));
        if let Some(vault) = ends.nth(1).and_then(|end| resource.get(..end)) {
            take(self.vault.as_ref(), "vault", vault)?;
        }
        if let Some(key) = ends.nth(1).and_then(|end| resource.get(..end)) {
            take(self.key.as_ref(), "key", key)?;
        }
        Ok(())
    }

    /// Forgets buckets that are full again.
    pub(crate) fn forget(&self) {
        for buckets in [&self.caller, &self.key, &self.vault].into_iter().flatten() {
            buckets.retain_recent();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_is_its_own_and_says_when_to_come_again() {
        let three = NonZeroU32::new(3);
        let limiter = Limiter::new(&RateLimits {
            caller_per_second: three,
            key_per_second: three,
            ..RateLimits::default()
        });
        let version = "vaults/v/keys/k/versions/0";
        for _ in 0..3 {
            limiter.check("principals/a", version).unwrap();
        }
        let Err(VaultError::Throttled { what, retry_after, .. }) = limiter.check("principals/a", "vaults/v")
        else {
            panic!("the caller has used its calls up")
        };
        assert!(what == "caller" && retry_after <= Duration::from_secs(1));
        let Err(VaultError::Throttled { what, .. }) = limiter.check("principals/b", "vaults/v/keys/k") else {
            panic!("the key has been asked often enough")
        };
        assert_eq!(what, "key");
        limiter.check("principals/b", "vaults/v/keys/other").unwrap();
        limiter.forget();
        assert!(Limiter::new(&RateLimits::default()).check("principals/a", version).is_ok());
    }
}
