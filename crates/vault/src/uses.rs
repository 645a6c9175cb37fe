//! How often a version has been used, by whom it was last opened, and how often it may be used.
//!
//! Counts are kept in memory and stored with every tick: a process that is killed forgets the last seconds of them, and
//! the audit trail has each use. A budget is exact in the other direction: uses are reserved on disk in blocks before
//! they are given out, so that a kill can only spend too much of it.

use crate::{Call, Vault, VaultError, record::Version};
use custody_store::{Batch, StoreError};
use custody_types::{KeyOperation, UnixMillis};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

pub(crate) const USES: &str = "uses";
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

/// As stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StoredUses {
    counts: UseCounts,
    /// Uses of the budget that may have been given out.
    reserved: u64,
}

#[derive(Debug, Default)]
struct State {
    stored: StoredUses,
    /// Uses of the budget that were given out.
    spent: u64,
    dirty: bool,
}

/// The uses of a version.
#[derive(Debug, Default)]
pub(crate) struct Uses(Mutex<State>);

impl From<StoredUses> for Uses {
    fn from(stored: StoredUses) -> Self {
        // What was reserved may all have been given out before the process ended.
        Self(Mutex::new(State { spent: stored.reserved, stored, dirty: false }))
    }
}

impl Uses {
    pub(crate) fn counts(&self) -> UseCounts {
        self.0.lock().stored.counts.clone()
    }

    /// Counts a use that has happened. Answers whether it is the first since the counts were stored.
    fn count(&self, operation: KeyOperation, principal: &str, now: UnixMillis) -> bool {
        let mut state = self.0.lock();
        let counts = &mut state.stored.counts;
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
    fn take(&self) -> StoredUses {
        let mut state = self.0.lock();
        state.dirty = false;
        state.stored.clone()
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
        if state.spent >= state.stored.reserved {
            // One flush for a block of uses, under this version's lock alone.
            let next = StoredUses { reserved: (state.spent + BLOCK).min(budget), ..state.stored.clone() };
            let mut batch = Batch::new();
            batch.put(USES, version.record.name.as_str(), &next);
            self.store.commit(batch)?;
            state.stored = next;
        }
        state.spent += 1;
        Ok(())
    }

    /// Counts a use that has happened.
    pub(crate) fn count(&self, version: &Arc<Version>, operation: KeyOperation, call: &Call) {
        if version.uses.count(operation, &call.caller.principal, self.now()) {
            self.used.lock().push(version.clone());
        }
    }

    /// Stores the counts that changed.
    pub(crate) fn save_uses(&self) -> Result<(), StoreError> {
        let used = std::mem::take(&mut *self.used.lock());
        if used.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for version in used {
            batch.put(USES, version.record.name.as_str(), &version.uses.take());
        }
        self.store.commit(batch)
    }
}
