//! When something is next due for which key: what the clock must look at, however many keys there are.

use custody_types::{KeyName, UnixMillis};
use std::collections::{BTreeSet, HashMap};

/// At most one moment for each key.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    by_time: BTreeSet<(UnixMillis, KeyName)>,
    by_key: HashMap<KeyName, UnixMillis>,
}

impl Agenda {
    /// Sets a key's moment in place of the one it had.
    pub(crate) fn set(&mut self, key: &KeyName, due: Option<UnixMillis>) {
        if let Some(old) = self.by_key.remove(key) {
            self.by_time.remove(&(old, key.clone()));
        }
        if let Some(due) = due {
            self.by_time.insert((due, key.clone()));
            self.by_key.insert(key.clone(), due);
        }
    }

    /// A key's moment.
    pub(crate) fn of(&self, key: &KeyName) -> Option<UnixMillis> {
        self.by_key.get(key).copied()
    }

    /// The keys whose moment has come.
    pub(crate) fn due(&self, now: UnixMillis) -> Vec<KeyName> {
        self.by_time.iter().take_while(|(t, _)| *t <= now).map(|(_, k)| k.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_one_moment() {
        let mut agenda = Agenda::default();
        let (a, b): (KeyName, KeyName) =
            ("vaults/v/keys/a".parse().unwrap(), "vaults/v/keys/b".parse().unwrap());
        let at = UnixMillis::from_secs;
        agenda.set(&a, Some(at(5)));
        agenda.set(&a, Some(at(7)));
        agenda.set(&b, Some(at(6)));
        assert!(agenda.due(at(5)).is_empty());
        assert_eq!(agenda.due(at(7)), [b.clone(), a.clone()]);
        agenda.set(&b, None);
        assert_eq!(agenda.due(at(7)), [a]);
    }
}
