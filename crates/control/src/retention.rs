//! Which backups may go. None that stays, or that another adds to, loses what it needs.

use crate::BackupRecord;
use custody_types::UnixMillis;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What of a cluster's backups is kept: the newest, and those of a span before now. With them stays what they add to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// So many of the newest.
    pub keep_last: usize,
    /// All that are no older.
    pub keep_within: Duration,
}

impl Retention {
    /// The backups of one cluster that it does not keep, in an order in which they can be removed: what adds to another
    /// goes before that.
    #[must_use]
    pub fn prunable<'a>(&self, backups: &'a [BackupRecord], now: UnixMillis) -> Vec<&'a BackupRecord> {
        let by_id: BTreeMap<&str, &BackupRecord> = backups.iter().map(|b| (b.id.as_str(), b)).collect();
        let chain = |backup: &'a BackupRecord| {
            std::iter::successors(Some(backup), |b| by_id.get(b.base.as_deref()?).copied())
                .take(backups.len())
        };
        let mut newest: Vec<_> = backups.iter().collect();
        newest.sort_by_key(|b| std::cmp::Reverse(b.create_time));
        let wanted = newest.iter().enumerate().filter(|(place, backup)| {
            *place < self.keep_last
                || (!self.keep_within.is_zero() && now.since(backup.create_time) <= self.keep_within)
        });
        let kept: BTreeSet<&str> = wanted.flat_map(|(_, b)| chain(b)).map(|b| b.id.as_str()).collect();
        let mut gone: Vec<_> = backups.iter().filter(|b| !kept.contains(b.id.as_str())).collect();
        gone.sort_by_key(|b| std::cmp::Reverse(chain(b).count()));
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClusterRecord, ClusterSpec};
    use proptest::prelude::*;

    /// Backups, each a full one or an increment of an earlier one, at times that may go back.
    fn backups(shape: &[(Option<prop::sample::Index>, u64)]) -> Vec<BackupRecord> {
        let spec = ClusterSpec::check("c", 0, 0, "", "", ("vaults/p/keys/k", "managedIdentities/m")).unwrap();
        let cluster = ClusterRecord::new(spec, "op-1".into(), UnixMillis::default());
        let mut made: Vec<BackupRecord> = Vec::new();
        for (n, (base, at)) in shape.iter().enumerate() {
            let mut backup =
                BackupRecord::new(&format!("b{n}"), "op-2", &cluster, UnixMillis::from_secs(*at));
            backup.base = base.filter(|_| n > 0).map(|i| made[i.index(n)].id.clone());
            made.push(backup);
        }
        made
    }

    proptest! {
        #[test]
        fn no_backup_that_stays_loses_what_it_needs(
            shape in prop::collection::vec((any::<Option<prop::sample::Index>>(), 0_u64..100), 0..20),
            keep_last in 0_usize..6,
            keep_within in 0_u64..100,
        ) {
            let all = backups(&shape);
            let retention = Retention { keep_last, keep_within: Duration::from_secs(keep_within) };
            let now = UnixMillis::from_secs(100);
            let gone = retention.prunable(&all, now);
            // Removed one after another, as DeleteBackup removes them: never one that another adds to.
            let mut left = all.clone();
            for backup in &gone {
                prop_assert!(!left.iter().any(|b| b.base.as_ref() == Some(&backup.id)), "{} is a base", backup.id);
                left.retain(|b| b.id != backup.id);
            }
            // What was asked for is there, and only that and what it adds to.
            prop_assert!(left.len() >= keep_last.min(all.len()));
            let young = |b: &&BackupRecord| keep_within > 0 && b.create_time.as_secs() + keep_within >= 100;
            prop_assert!(all.iter().filter(young).all(|b| left.contains(b)));
            let needed = |b: &BackupRecord| left.iter().any(|o| o.base.as_ref() == Some(&b.id));
            let unneeded = left.iter().filter(|b| !needed(b) && !young(b)).count();
            prop_assert!(unneeded <= keep_last, "{unneeded} are kept for nothing");
        }
    }
}
