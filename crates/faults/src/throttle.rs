//! How often a vault may be asked, as Azure bounds it: in each window a vault has room for so many operations, each weighs as
//! much as its key's type costs, and the weights are added up.

use serde::{Deserialize, Serialize};
use std::{collections::HashMap, time::Duration};

/// Operations of each kind that fill a window alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Keys made, of any type.
    pub create: u32,
    /// Other operations on RSA keys of 2048 bits, and on EC keys.
    pub rsa_2048: u32,
    /// On RSA keys of 3072 bits.
    pub rsa_3072: u32,
    /// On RSA keys of 4096 bits.
    pub rsa_4096: u32,
}

/// The room that a vault has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Throttles {
    /// The length of a window, in milliseconds.
    pub window_ms: u64,
    /// For keys in software.
    pub software: Limits,
    /// For keys in an HSM.
    pub hsm: Limits,
    /// For what is asked of no key: reading and listing.
    pub other: u32,
    /// How many vaults' room all vaults together have.
    pub all_vaults: u32,
}

/// What an operation weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Weight {
    /// It makes a key.
    Create {
        /// In an HSM.
        hsm: bool,
    },
    /// It uses or changes one.
    Key {
        /// In an HSM.
        hsm: bool,
        /// The bits of an RSA key; 0 for another.
        rsa_bits: u32,
    },
    /// Anything else.
    Other,
}

impl Throttles {
    pub(crate) fn is_valid(&self) -> bool {
        let limits = |l: &Limits| [l.create, l.rsa_2048, l.rsa_3072, l.rsa_4096].iter().all(|n| *n > 0);
        (1..=3_600_000).contains(&self.window_ms)
            && limits(&self.software)
            && limits(&self.hsm)
            && self.other > 0
            && self.all_vaults > 0
    }

    /// The share of a window that one operation takes.
    fn share(&self, weight: Weight) -> f64 {
        let limits = |hsm: bool| if hsm { &self.hsm } else { &self.software };
        let fills = match weight {
            Weight::Create { hsm } => limits(hsm).create,
            Weight::Key { hsm, rsa_bits: 4096.. } => limits(hsm).rsa_4096,
            Weight::Key { hsm, rsa_bits: 3072.. } => limits(hsm).rsa_3072,
            Weight::Key { hsm, .. } => limits(hsm).rsa_2048,
            Weight::Other => self.other,
        };
        1.0 / f64::from(fills)
    }
}

/// What was used in the present window.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    /// Which window, counted from the beginning.
    number: u128,
    /// By vault, of its two rooms: for making keys, and for all else.
    used: HashMap<(String, bool), f64>,
}

/// So that a room that was filled exactly is not one operation short by rounding.
const ROUNDING: f64 = 1e-9;

impl Windows {
    /// Takes room; or answers how long it is until there is some.
    pub(crate) fn take(
        &mut self,
        throttles: &Throttles,
        vault: &str,
        weight: Weight,
        now: Duration,
    ) -> Result<(), Duration> {
        let window = Duration::from_millis(throttles.window_ms);
        let number = now.as_nanos() / window.as_nanos().max(1);
        if number != self.number {
            self.number = number;
            self.used.clear();
        }
        let share = throttles.share(weight);
        let making = matches!(weight, Weight::Create { .. });
        let rooms = [(vault, 1.0), ("", f64::from(throttles.all_vaults))];
        let used = |of: &str| self.used.get(&(of.to_owned(), making)).copied().unwrap_or_default();
        if rooms.iter().any(|(of, room)| used(of) + share > room + ROUNDING) {
            // What is refused takes no room, as in Azure.
            let into = now.as_nanos() % window.as_nanos().max(1);
            return Err(window.saturating_sub(Duration::from_nanos(u64::try_from(into).unwrap_or(u64::MAX))));
        }
        for (of, _) in rooms {
            *self.used.entry((of.to_owned(), making)).or_default() += share;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Profile;

    fn filled(weights: &[Weight]) -> usize {
        let throttles = Profile::named("azure-premium").unwrap().throttles.unwrap();
        let mut windows = Windows::default();
        let now = Duration::from_secs(31);
        let mut taken = 0;
        let wait = loop {
            match windows.take(&throttles, "v", weights[taken % weights.len()], now) {
                Ok(()) => taken += 1,
                Err(wait) => break wait,
            }
        };
        assert_eq!(wait, Duration::from_secs(9), "until the window ends");
        assert!(windows.take(&throttles, "other", weights[0], now).is_ok(), "another vault has its own");
        assert!(windows.take(&throttles, "v", weights[0], now + wait).is_ok());
        taken
    }

    /// Azure's table (azure-reference, 3.11).
    #[test]
    fn a_window_holds_what_azure_publishes_and_weights_are_added_up() {
        let key = |hsm, rsa_bits| Weight::Key { hsm, rsa_bits };
        for (weight, n) in [
            (key(false, 2048), 4000),
            (key(false, 0), 4000),
            (key(false, 3072), 1000),
            (key(false, 4096), 500),
            (key(true, 2048), 2000),
            (key(true, 3072), 500),
            (key(true, 4096), 250),
            (Weight::Create { hsm: false }, 20),
            (Weight::Create { hsm: true }, 10),
            (Weight::Other, 4000),
        ] {
            assert_eq!(filled(&[weight]), n, "{weight:?}");
        }
        // One of 4096 bits weighs as much as eight of 2048.
        assert_eq!(filled(&[key(true, 2048), key(true, 4096)]), 445);
    }

    #[test]
    fn all_vaults_together_have_the_room_of_five() {
        let throttles = Profile::named("azure-standard").unwrap().throttles.unwrap();
        let mut windows = Windows::default();
        let weight = Weight::Create { hsm: false };
        let mut taken = 0;
        for vault in 0..10 {
            while windows.take(&throttles, &vault.to_string(), weight, Duration::ZERO).is_ok() {
                taken += 1;
            }
        }
        assert_eq!(taken, 100);
    }
}
