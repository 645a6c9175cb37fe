//! How often a version has been used, by whom it was last opened, and how often it may be used.
//!
//! Counts are kept in memory and stored with every tick: a process that is killed forgets the last seconds of them, and
//! the audit trail has each use. A budget is exact in the other direction: uses are reserved on disk in blocks before
//! they are given out, so that a kill can only spend too much of it.

use crate::{Call, Vault, VaultError, record::Version};
use custody_store::{Batch, Store, StoreError};
use custody_types::{KeyOperation, KeyVersionName, UnixMillis};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(crate) const USES: &str = "uses";
pub(crate) const BUDGETS: &str = "budgets";
/// Uses of a budget that are reserved at once.
const BLOCK: u64 = 64;

/// What is known of the uses of a version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UseCounts {
    /// By operation.
    pub operations: BTreeMap<KeyOperation, u64>,
    /// When each principal last unwrapped or decrypted.
    pub last_opened: BTreeMap<String, UnixMillis>,
    /// When it was last used for anything.
    pub last_used: Option<UnixMillis>,
}

#[derive(Debug, Default)]
struct State {
    counts: UseCounts,
    /// Uses of the budget that are reserved on disk.
    reserved: u64,
    /// Uses of the budget that were given out.
    spent: u64,
    dirty: bool,
}

/// The uses of a version.
#[derive(Debug, Default)]
pub(crate) struct Uses(Mutex<State>);

impl Uses {
    /// As they were stored. What was reserved may all have been given out before the process ended.
    pub(crate) fn stored(counts: UseCounts, reserved: u64) -> Self {
        Self(Mutex::new(State { counts, reserved, spent: reserved, dirty: false }))
    }

    /// As they are stored for one version.
    pub(crate) fn load(store: &Store, version: &KeyVersionName) -> Result<Self, StoreError> {
        let counts = store.get(USES, version.as_str())?.unwrap_or_default();
        Ok(Self::stored(counts, store.get(BUDGETS, version.as_str())?.unwrap_or(0)))
    }

    pub(crate) fn counts(&self) -> UseCounts {
        self.0.lock().counts.clone()
    }

    /// Counts a use that has happened. Answers whether it is the first since the counts were stored.
    fn count(&self, operation: KeyOperation, principal: &str, now: UnixMillis) -> bool {
        let mut state = self.0.lock();
        let counts = &mut state.counts;
        *counts.operations.entry(operation).or_default() += 1;
        counts.last_used = Some(now);
        if matches!(operation, KeyOperation::Decrypt | KeyOperation::UnwrapKey) {
            match counts.last_opened.get_mut(principal) {
                Some(last) => *last = now,
                None => _ = counts.last_opened.insert(principal.to_owned(), now),
            }
        }
        !std::mem::replace(&mut state.dirty, true)
    }

    /// What is to be stored.
    fn take(&self) -> UseCounts {
        let mut state = self.0.lock();
        state.dirty = false;
        state.counts.clone()
    }
}

impl Vault {
    /// Takes one use from a version's budget, where it has one.
    pub(crate) fn spend(&self, version: &Version) -> Result<(), VaultError> {
        let Some(budget) = version.record.attributes.budget else { return Ok(()) };
        let mut state = version.uses.0.lock();
        if state.spent >= budget {
            return Err(VaultError::BudgetSpent(version.record.name.to_string()));
        }
        if state.spent >= state.reserved {
            // One flush for a block of uses, under this version's lock alone. In a table of its own: counts are stored
            // meanwhile, and must not take a reservation back.
            let reserved = (state.spent + BLOCK).min(budget);
            let mut batch = Batch::new();
            batch.put(BUDGETS, version.record.name.as_str(), &reserved);
            self.store.commit(batch)?;
            state.reserved = reserved;
        }
        state.spent += 1;
        Ok(())
    }

    /// Counts a use that has happened.
    pub(crate) fn count(&self, version: &Version, operation: KeyOperation, call: &Call) {
        if version.uses.count(operation, &call.caller.principal, self.now()) {
            self.used.lock().push((version.record.name.clone(), version.uses.clone()));
        }
    }

    /// Stores the counts that changed.
    pub(crate) fn save_uses(&self) -> Result<(), StoreError> {
        let used = std::mem::take(&mut *self.used.lock());
        if used.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for (version, uses) in used {
            batch.put(USES, version.as_str(), &uses.take());
        }
        self.store.commit(batch)
    }
}
