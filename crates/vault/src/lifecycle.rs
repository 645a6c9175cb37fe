//! Deleting, recovering and destroying keys.

use crate::{
    Call, EventType, KeyView, Vault, VaultError,
    approval::SecondOfficer,
    catalog::{KEYS, POLICIES, RETIRED, VERSIONS},
    dependents::SHREDS,
    gate::{Permit, op},
    leases::LEASE_POLICIES,
    lineage::counted,
    record::{Deletion, KeyRecord},
};
use custody_audit::{Outcome, Record};
use custody_faults::Change;
use custody_store::Batch;
use custody_types::{KeyName, Permission, Protection};
use std::time::Duration;

/// Days that deleted keys are kept where nothing else was said: Azure's default.
pub const RECOVERY_DAYS: u32 = 90;

impl Vault {
    /// Soft-deletes a key: it can no longer be used, and be recovered until its purge time.
    ///
    /// # Errors
    /// Not allowed, does not exist, or is deleted already.
    pub fn delete_key(&self, call: &Call, name: &str) -> Result<KeyView, VaultError> {
        let name: KeyName = name.parse()?;
        self.gate.run(call, name.as_str(), |permit| self.do_delete(&permit, &name))
    }

    fn do_delete(&self, _: &Permit<op::DeleteKey>, name: &KeyName) -> Result<KeyView, VaultError> {
        let _one_at_a_time = self.changes.lock();
        let (mut key, days) = {
            let catalog = self.catalog.read();
            (catalog.live_key(name)?.clone(), catalog.vault(&name.vault())?.soft_delete_retention_days)
        };
        let now = self.now();
        key.deleted = Some(Deletion {
            delete_time: now,
            purge_time: now.plus(Duration::from_secs(u64::from(days) * 86_400)),
            passed_ms: self.retention.passed_ms(self.clock.monotonic()),
        });
        let deleted = self.put(key, None, EventType::Deleted)?;
        self.begin_change(name, Change::Delete);
        Ok(deleted)
    }

    /// Recovers a soft-deleted key as it was.
    ///
    /// # Errors
    /// Not allowed, does not exist, or is not deleted.
    pub fn undelete_key(&self, call: &Call, name: &str) -> Result<KeyView, VaultError> {
        let name: KeyName = name.parse()?;
        self.gate.run(call, name.as_str(), |permit| self.do_undelete(&permit, &name))
    }

    fn do_undelete(&self, _: &Permit<op::UndeleteKey>, name: &KeyName) -> Result<KeyView, VaultError> {
        let _one_at_a_time = self.changes.lock();
        let mut key = self.catalog.read().key(name)?.clone();
        if key.deleted.take().is_none() {
            return Err(VaultError::Precondition { name: name.to_string(), why: "is not deleted" });
        }
        if self.is_changing(name, Change::Delete) {
            return Err(VaultError::BeingDeleted(name.to_string()));
        }
        let recovered = self.put(key, None, EventType::Recovered)?;
        self.begin_change(name, Change::Recover);
        Ok(recovered)
    }

    /// Destroys a soft-deleted key and retires its name. What it wrapped can never be opened again. A key that something depends on
    /// is destroyed only where that is the intention (`crypto_shred`), and a second officer agrees, whatever the vault's policy is.
    ///
    /// # Errors
    /// Not allowed, does not exist, is not deleted, the vault has purge protection, something depends on it, or a second officer has
    /// to agree.
    pub fn purge_key(&self, call: &Call, name: &str, crypto_shred: bool) -> Result<(), VaultError> {
        let name: KeyName = name.parse()?;
        self.gate.run::<op::PurgeKey, _>(call, name.as_str(), |_| {
            let _one_at_a_time = self.changes.lock();
            let refuse = |why| Err(VaultError::Precondition { name: name.to_string(), why });
            {
                let catalog = self.catalog.read();
                let key = catalog.key(&name)?;
                if key.deleted.is_none() {
                    return refuse("is not deleted; delete it first");
                }
                // Retention that has ended is no bar; what depends on the key may have kept it since.
                if catalog.vault(&name.vault())?.purge_protection && !self.retention_has_ended(key) {
                    return refuse(
                        "is under purge protection; it is destroyed at its purge time and not before",
                    );
                }
            }
            if self.is_changing(&name, Change::Delete) {
                return Err(VaultError::BeingDeleted(name.to_string()));
            }
            let vault = name.vault();
            let agreed = match (self.would_lose(&name), crypto_shred) {
                (Some(what), false) => {
                    return Err(VaultError::HasDependents { name: name.to_string(), what });
                }
                (Some(what), true) => {
                    // What both officers see is what is lost: where that changes, it is asked for again.
                    let action = format!("crypto-shred {name}, which makes unreadable {what}");
                    self.approved(call, Permission::Purge, &vault, name.as_str(), action)?
                }
                (None, _) => {
                    let action = format!("purge {name}");
                    self.second_officer(call, Permission::Purge, &vault, name.as_str(), action)?
                }
            };
            self.destroy(&name, &call.caller.principal, agreed)
        })
    }

    /// What would become unreadable without a key, in words; none where nothing depends on it.
    fn would_lose(&self, name: &KeyName) -> Option<String> {
        let dependents = self.dependents.lock();
        let lost = dependents.lost_with(name);
        (!lost.is_empty()).then(|| counted(lost))
    }

    fn destroy(&self, name: &KeyName, by: &str, agreed: SecondOfficer) -> Result<(), VaultError> {
        let key = self.catalog.read().key(name)?.clone();
        // What is in the HSM goes first: a key that could still be used there is not destroyed. Done again, it is done.
        for version in &key.versions {
            let version = self.catalog.read().version(version)?.clone();
            if version.record.protection == Protection::Hsm {
                self.private(&version)?.destroy()?;
            }
        }
        let mut batch = Batch::new();
        batch.delete(KEYS, name.as_str()).put(RETIRED, name.as_str(), &true);
        batch.delete(POLICIES, name.as_str()).delete(LEASE_POLICIES, name.as_str());
        for version in &key.versions {
            batch.delete(VERSIONS, version.as_str());
        }
        if let Some(shred) = self.shred(name, by, agreed.principal()) {
            batch.put(SHREDS, name.as_str(), &shred);
        }
        let mut dependents = self.dependents.lock();
        dependents.delete_rows(name, &mut batch);
        self.commit_approved(batch, agreed, |catalog| {
            catalog.remove_key(name);
            catalog.retired.insert(name.to_string());
        })?;
        dependents.forget(name);
        drop(dependents);
        self.tell(EventType::Purged, name.as_str());
        Ok(())
    }

    /// It has ended when the wall clock says so and as much time has really passed: setting a clock forward ends nothing.
    fn retention_has_ended(&self, key: &KeyRecord) -> bool {
        let (now, passed_ms) = (self.now(), self.retention.passed_ms(self.clock.monotonic()));
        key.deleted.is_some_and(|d| {
            let span = u64::try_from(d.purge_time.since(d.delete_time).as_millis()).unwrap_or(u64::MAX);
            d.purge_time <= now && passed_ms.saturating_sub(d.passed_ms) >= span
        })
    }
}

/// Destroys deleted keys whose retention has ended and on which nothing depends, each with its record first.
pub(crate) fn purge_due(vault: &Vault) -> Result<(), VaultError> {
    let now = vault.now();
    let passed_ms = vault.retention.passed_ms(vault.clock.monotonic());
    let has_ended = |key: &KeyRecord| vault.retention_has_ended(key);
    let (waiting, due): (bool, Vec<KeyName>) = {
        let catalog = vault.catalog.read();
        let deleted = || catalog.deleted.iter().filter_map(|name| catalog.keys.get(name));
        (deleted().next().is_some(), deleted().filter(|k| has_ended(k)).map(|k| k.name.clone()).collect())
    };
    if waiting {
        vault.retention.save(&vault.store, passed_ms, now)?;
    }
    for name in due {
        if let Some(what) = vault.would_lose(&name) {
            vault.note_held(&name, &format!("it is needed by {what}"))?;
            continue;
        }
        let call = vault.own_call()?;
        let record = Record::begin(now, "KeyPurge", &call.correlation_id, &call.caller, name.as_str());
        let pending = vault.journal().begin(record)?;
        let _one_at_a_time = vault.changes.lock();
        // It may have been recovered, or come to be needed, since the list was made.
        let still =
            vault.catalog.read().keys.get(&name).is_some_and(has_ended) && vault.would_lose(&name).is_none();
        if !still {
            pending.finish(
                Outcome::Failed,
                "FAILED_PRECONDITION",
                "the key was recovered, or came to be needed, meanwhile",
            );
            continue;
        }
        let done = vault.destroy(&name, &call.caller.principal, SecondOfficer::NOT_NEEDED);
        match &done {
            Ok(()) => pending.finish(Outcome::Success, "OK", "the retention of the deleted key has ended"),
            Err(e) => pending.finish(Outcome::Failed, e.status(), &e.to_string()),
        }
        done?;
    }
    Ok(())
}
