//! Revocations: access has ended, and each lease that it ended is followed to its end.

use crate::{
    Call, Event, EventType, Vault, VaultError,
    catalog::{KEYS, VERSIONS},
    gate::{Permit, op},
    leases::{EPOCHS, Place, Register, SignedLease, millis},
};
use custody_audit::{Outcome as Recorded, Record};
use custody_proof::{Certified, Holder, Lease, Outcome, Receipt, Revocation, Statement as _};
use custody_store::{Batch, Store};
use custody_types::{KeyName, KeyVersionName, UnixMillis};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

pub(crate) const REVOCATIONS: &str = "revocations";
/// Revocations of a key that are kept.
const KEPT: u64 = 100;

/// A lease that was ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) place: Place,
    /// The lease's name.
    pub(crate) lease: String,
    signed: SignedLease,
    reason: String,
    pub(crate) outcome: Outcome,
    /// From when on it has run out, by the monotonic clock of this process.
    #[serde(skip)]
    end: Duration,
}

/// A revocation as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Open {
    name: String,
    key: KeyName,
    epoch: u64,
    cause: String,
    requested_by: String,
    revoke_time: UnixMillis,
    close_time: Option<UnixMillis>,
    pub(crate) leases: Vec<Ended>,
    /// Versions that were disabled for it.
    #[serde(default)]
    disabled: Vec<KeyVersionName>,
    /// What the vault states of it once it is closed.
    #[serde(default)]
    proof: String,
    /// When, by the monotonic clock of this process.
    #[serde(skip)]
    pub(crate) began: Duration,
    /// Whether the disk has it as it is.
    #[serde(skip)]
    pub(crate) unsaved: bool,
}

impl Open {
    /// Those that wait for answers. What they wait for has not run out before it would have if it had been granted now. How long
    /// ago they were opened, the wall clock alone knows: a process's own clock begins with it.
    pub(crate) fn load(
        store: &Store,
        now: Duration,
        wall: UnixMillis,
    ) -> Result<BTreeMap<String, Self>, VaultError> {
        let all = store.scan::<Self>(REVOCATIONS, "")?.into_iter();
        let open = all.filter(|(_, open)| open.close_time.is_none()).map(|(name, mut open)| {
            open.began = now.saturating_sub(wall.since(open.revoke_time));
            for lease in &mut open.leases {
                lease.end = lease.signed.end(now);
            }
            (name, open)
        });
        Ok(open.collect())
    }

    fn is_over(&self) -> bool {
        !self.leases.iter().any(|l| matches!(l.outcome, Outcome::Waiting))
    }

    /// As it is stated.
    fn statement(&self) -> Revocation {
        let holder = |ended: &Ended| Holder {
            lease: ended.signed.note.clone(),
            reason: ended.reason.clone(),
            outcome: ended.outcome.clone(),
        };
        Revocation {
            revocation: self.name.clone(),
            key: self.key.clone(),
            epoch: self.epoch,
            cause: self.cause.clone(),
            requested_by: self.requested_by.clone(),
            revoke_time: self.revoke_time,
            close_time: self.close_time,
            holders: self.leases.iter().map(holder).collect(),
        }
    }

    fn view(&self) -> RevocationView {
        RevocationView {
            revocation: self.statement(),
            leases: self.leases.iter().map(|ended| ended.signed.lease.clone()).collect(),
            proof: self.proof.clone(),
        }
    }
}

/// A revocation as it is shown.
#[derive(Clone, Debug)]
pub struct RevocationView {
    /// What the vault states, or will state.
    pub revocation: Revocation,
    /// The leases that `revocation.holders` are of.
    pub leases: Vec<Lease>,
    /// The signed note, once it is closed.
    pub proof: String,
}

/// What was just opened: on disk when [`Vault::save_revocations`] returns.
#[derive(Default)]
pub(crate) struct Opened {
    revocations: Vec<(String, KeyName, usize)>,
    over: Vec<Place>,
}

/// Who revoked a key, and what was disabled for it: a revocation of that key is opened although nobody may hold it.
pub(crate) struct Ordered<'a> {
    key: &'a KeyName,
    by: &'a str,
    disabled: Vec<KeyVersionName>,
}

impl Vault {
    /// Ends every lease that may not be held any more, and opens a revocation for each key of one. In memory; whoever
    /// watches is told before it is on disk, since every millisecond counts, and after a crash the leases are looked through again.
    pub(crate) fn end_leases(&self, cause: &str, ordered: Option<Ordered<'_>>) -> Opened {
        let mut register = self.leases.lock();
        let mut ended = self.no_longer_held(&register);
        if let Some(ordered) = &ordered {
            ended.entry(ordered.key.clone()).or_default();
        }
        let (now, began) = (self.now(), self.clock.monotonic());
        let mut opened = Opened::default();
        for (key, places) in ended {
            let epoch = register.epoch(&key) + 1;
            register.epochs.insert(key.clone(), epoch);
            let mut leases = Vec::new();
            for (place, reason) in places {
                let Some(held) = register.held.remove(&place) else { continue };
                leases.push(Ended {
                    lease: held.signed.lease.lease.clone(),
                    reason: reason.to_owned(),
                    outcome: Outcome::Waiting,
                    end: held.end(),
                    signed: held.signed,
                    place: place.clone(),
                });
                opened.over.push(place);
            }
            let name = format!("{key}/revocations/{epoch}");
            opened.revocations.push((name.clone(), key.clone(), leases.len()));
            let of_this = ordered.as_ref().filter(|o| *o.key == key);
            let open = Open {
                name: name.clone(),
                key,
                epoch,
                cause: cause.to_owned(),
                requested_by: of_this.map(|o| o.by.to_owned()).unwrap_or_default(),
                revoke_time: now,
                close_time: None,
                leases,
                disabled: of_this.map(|o| o.disabled.clone()).unwrap_or_default(),
                proof: String::new(),
                began,
                unsaved: true,
            };
            register.open.insert(name, open);
        }
        opened
    }

    /// Puts what [`Vault::end_leases`] opened on disk and in the trail. A failure is logged: the leases have ended all the same.
    pub(crate) fn save_revocations(&self, opened: Opened) {
        if opened.revocations.is_empty() {
            return;
        }
        let saved = self.save_changed(&opened.over).and_then(|()| {
            for (name, key, leases) in &opened.revocations {
                let what = format!("{name} opened; it ends {leases} leases");
                let record = self.own_record("KeyRevocationOpen", key.as_str(), &what)?;
                self.journal().append(&record)?;
            }
            self.close_revocations()
        });
        if let Err(e) = saved {
            tracing::error!(error = %e, "a revocation is in memory alone");
        }
    }

    /// Puts revocations that changed on disk, and removes the rows of leases that are over.
    fn save_changed(&self, over: &[Place]) -> Result<(), VaultError> {
        let mut register = self.leases.lock();
        let mut batch = Batch::new();
        for open in register.open.values().filter(|open| open.unsaved) {
            batch.put(REVOCATIONS, &open.name, open);
            batch.put(EPOCHS, open.key.as_str(), &register.epoch(&open.key));
            let old = open.epoch.saturating_sub(KEPT);
            batch.delete(REVOCATIONS, &format!("{}/revocations/{old}", open.key));
        }
        register.delete_rows(over, &mut batch);
        self.store.commit(batch)?;
        register.open.values_mut().for_each(|open| open.unsaved = false);
        Ok(())
    }

    /// Closes what waits for nobody any more: leases run out, holders have answered. Repeating it changes nothing.
    ///
    /// # Errors
    /// The store or the journal failed; it is tried again with the next call.
    pub fn close_revocations(&self) -> Result<(), VaultError> {
        let _one_at_a_time = self.closing.lock();
        let now = self.clock.monotonic();
        let mut closed = Vec::new();
        {
            let mut register = self.leases.lock();
            if register.open.is_empty() {
                return Ok(());
            }
            // While the deployment is sealed nothing can be signed or stored: it is closed after.
            let Ok(signer) = self.keyring.signer() else { return Ok(()) };
            for open in register.open.values_mut() {
                let began = open.began;
                let waiting = |l: &&mut Ended| matches!(l.outcome, Outcome::Waiting) && l.end <= now;
                for lease in open.leases.iter_mut().filter(waiting) {
                    lease.outcome = Outcome::Lapsed { after_ms: millis(now.saturating_sub(began)) };
                    open.unsaved = true;
                }
                if open.is_over() && open.close_time.is_none() {
                    open.close_time = Some(self.now());
                    let text = open.statement().text().map_err(|_| VaultError::Backend)?;
                    open.proof = signer.sign(&text);
                    open.unsaved = true;
                }
                if open.close_time.is_some() {
                    closed.push((open.name.clone(), open.key.clone(), open.leases.len()));
                }
            }
        }
        self.save_changed(&[])?;
        for (name, key, leases) in closed {
            let what = format!("{name} closed; each of {leases} leases has ended");
            self.journal().append(&self.own_record("KeyRevocationClose", key.as_str(), &what)?)?;
            self.leases.lock().open.remove(&name);
            self.announce(EventType::RevocationChanged, &name);
        }
        Ok(())
    }

    pub(crate) fn own_record(
        &self,
        operation: &str,
        resource: &str,
        what: &str,
    ) -> Result<Record, VaultError> {
        let call = self.own_call()?;
        let now = self.now();
        let begin = Record::begin(now, operation, &call.correlation_id, &call.caller, resource);
        Ok(begin.finish(now, Recorded::Success, "OK", what))
    }

    /// Takes in what a holder says it erased. `call` is the holder's own, by its certificate. Returns the records that must
    /// be durable before it is answered.
    ///
    /// # Errors
    /// A receipt is malformed or not the holder's, and then none is taken in; the deployment is sealed; the store failed.
    pub fn take_receipts(&self, call: &Call, receipts: &[Certified]) -> Result<Vec<Record>, VaultError> {
        if self.is_sealed() {
            return Err(VaultError::Sealed);
        }
        let holder = &call.caller.principal;
        let why = "this vault knows no authority of holders; name its `ca` in the settings";
        let authority =
            self.options.authority.as_ref().ok_or_else(|| VaultError::invalid("receipts", why))?;
        let mut taken = Vec::new();
        for (n, certified) in receipts.iter().enumerate() {
            let bad = |e: &dyn std::fmt::Display| {
                VaultError::invalid("receipts", format!("receipt {}: {e}", n + 1))
            };
            let receipt = certified.open(authority).map_err(|e| bad(&e))?;
            if receipt.holder != *holder {
                return Err(bad(&format!("is of `{}`, and the caller is `{holder}`", receipt.holder)));
            }
            taken.push((receipt, certified));
        }
        let now = self.clock.monotonic();
        let mut changed = Vec::new();
        {
            let mut register = self.leases.lock();
            let mut batch = Batch::new();
            for (receipt, certified) in &taken {
                let place = (receipt.holder.clone(), receipt.volume.clone());
                if register.held.get(&place).is_some_and(|h| h.signed.lease.lease == receipt.lease) {
                    register.forget(&place, &mut batch);
                }
                changed.extend(register.answered(receipt, certified, now));
            }
            self.store.commit(batch)?;
        }
        self.save_changed(&[])?;
        self.close_revocations()?;
        changed.dedup();
        changed.iter().for_each(|name| self.announce(EventType::RevocationChanged, name));
        let record = |(receipt, _): &(Receipt, _)| {
            let now = self.now();
            let resource = receipt.key_version.as_str();
            let begin = Record::begin(now, "KeyErasureReport", &call.correlation_id, &call.caller, resource);
            let what = format!(
                "{} erased the keys of {} ({}) under {} of epoch {}",
                receipt.holder, receipt.volume, receipt.reason, receipt.lease, receipt.epoch
            );
            begin.finish(now, Recorded::Success, "OK", &what)
        };
        Ok(taken.iter().map(record).collect())
    }

    /// Makes a record durable, for a task.
    ///
    /// # Errors
    /// It is not on disk.
    pub async fn record_in_task(&self, record: &Record) -> Result<(), VaultError> {
        self.journal().append_in_task(record).await?;
        Ok(())
    }

    /// Disables every version of a key in one step, and opens a revocation.
    ///
    /// # Errors
    /// Not allowed, does not exist, or is deleted.
    pub fn revoke_key(&self, call: &Call, name: &str) -> Result<RevocationView, VaultError> {
        let key: KeyName = name.parse()?;
        self.gate.run(call, key.as_str(), |permit| self.do_revoke(&permit, call, &key))
    }

    fn do_revoke(
        &self,
        _: &Permit<op::RevokeKey>,
        call: &Call,
        key: &KeyName,
    ) -> Result<RevocationView, VaultError> {
        let _one_at_a_time = self.changes.lock();
        let disabled = self.set_enabled(key, None, false)?;
        let by = &call.caller.principal;
        let opened = self.end_leases("KEY_REVOKED", Some(Ordered { key, by, disabled }));
        self.announce(EventType::Updated, key.as_str());
        let name = opened.revocations.iter().find(|(_, k, _)| k == key).map(|(name, ..)| name.clone());
        self.save_revocations(opened);
        self.revocation(&name.unwrap_or_default())
    }

    /// Enables or disables versions of a key, all where none are named, in one commit; answers those that it changed.
    fn set_enabled(
        &self,
        key: &KeyName,
        only: Option<&[KeyVersionName]>,
        enabled: bool,
    ) -> Result<Vec<KeyVersionName>, VaultError> {
        let now = self.now();
        let (key, changed) = {
            let catalog = self.catalog.read();
            let key = catalog.live_key(key)?.clone();
            let mut changed = Vec::new();
            for name in key.versions.iter().filter(|name| only.is_none_or(|only| only.contains(name))) {
                let mut record = catalog.version(name)?.record.clone();
                if record.attributes.enabled != enabled {
                    record.attributes.enabled = enabled;
                    record.update_time = now;
                    changed.push(record);
                }
            }
            (key, changed)
        };
        let mut batch = Batch::new();
        batch.put(KEYS, key.name.as_str(), &key);
        for record in &changed {
            batch.put(VERSIONS, record.name.as_str(), record);
        }
        self.commit(batch, |catalog| {
            let names = changed.iter().map(|record| record.name.clone()).collect();
            changed.into_iter().for_each(|record| catalog.put_version(record));
            catalog.put_key(key, now);
            names
        })
    }

    /// Enables again the versions that the last [`Vault::revoke_key`] disabled.
    ///
    /// # Errors
    /// Not allowed, does not exist, is deleted, or was not revoked.
    pub fn reinstate_key(&self, call: &Call, name: &str) -> Result<Vec<KeyVersionName>, VaultError> {
        let key: KeyName = name.parse()?;
        self.gate.run::<op::ReinstateKey, _>(call, key.as_str(), |_| {
            let _one_at_a_time = self.changes.lock();
            let revoked = self.revocations_of(&key)?.into_iter().find(|r| !r.disabled.is_empty());
            let why = "was not revoked with RevokeKey; enable its versions instead (`custody key enable`)";
            let revoked = revoked.ok_or_else(|| VaultError::Precondition { name: key.to_string(), why })?;
            let enabled = self.set_enabled(&key, Some(&revoked.disabled), true)?;
            self.tell(EventType::Updated, key.as_str());
            Ok(enabled)
        })
    }

    /// The revocations of a key as they are stored or in memory, newest first.
    fn revocations_of(&self, key: &KeyName) -> Result<Vec<Open>, VaultError> {
        let stored = self.store.scan::<Open>(REVOCATIONS, &format!("{key}/revocations/"))?;
        let mut all: BTreeMap<u64, Open> = stored.into_iter().map(|(_, open)| (open.epoch, open)).collect();
        let register = self.leases.lock();
        for open in register.open.values().filter(|open| open.key == *key) {
            all.insert(open.epoch, open.clone());
        }
        Ok(all.into_values().rev().collect())
    }

    fn revocation(&self, name: &str) -> Result<RevocationView, VaultError> {
        if let Some(open) = self.leases.lock().open.get(name) {
            return Ok(open.view());
        }
        let stored = self.store.get::<Open>(REVOCATIONS, name)?;
        stored.map(|open| open.view()).ok_or_else(|| VaultError::NotFound(name.to_owned()))
    }

    /// Reads a revocation.
    ///
    /// # Errors
    /// Not allowed, or it does not exist.
    pub fn get_revocation(&self, call: &Call, name: &str) -> Result<RevocationView, VaultError> {
        let key: Option<KeyName> = name.split_once("/revocations/").and_then(|(key, _)| key.parse().ok());
        let why = "must be vaults/VAULT/keys/KEY/revocations/EPOCH";
        let key = key.ok_or_else(|| VaultError::invalid("name", why))?;
        self.gate.run::<op::GetRevocation, _>(call, key.as_str(), |_| self.revocation(name))
    }

    /// As [`Vault::get_revocation`], for one who was allowed that, at each change.
    ///
    /// # Errors
    /// It does not exist.
    pub fn watched_revocation(&self, name: &str) -> Result<RevocationView, VaultError> {
        self.revocation(name)
    }

    /// The revocations of a key, newest first.
    ///
    /// # Errors
    /// Not allowed.
    pub fn list_revocations(&self, call: &Call, key: &str) -> Result<Vec<RevocationView>, VaultError> {
        let key: KeyName = key.parse().map_err(|e| VaultError::invalid("parent", e))?;
        self.gate.run::<op::ListRevocations, _>(call, key.as_str(), |_| {
            Ok(self.revocations_of(&key)?.iter().map(Open::view).collect())
        })
    }

    /// Tells whoever watches; for what takes no access away.
    pub(crate) fn announce(&self, kind: EventType, resource: &str) {
        self.notify(Event { kind, resource: resource.to_owned(), time: self.now() });
    }
}

impl Register {
    /// Takes an answer in; says whose revocation it changed.
    fn answered(&mut self, receipt: &Receipt, certified: &Certified, now: Duration) -> Option<String> {
        for open in self.open.values_mut() {
            let after_ms = millis(now.saturating_sub(open.began));
            let waits = |l: &&mut Ended| l.lease == receipt.lease && matches!(l.outcome, Outcome::Waiting);
            if let Some(lease) = open.leases.iter_mut().find(waits) {
                lease.outcome = Outcome::Erased { after_ms, receipt: certified.clone() };
                open.unsaved = true;
                return Some(open.name.clone());
            }
        }
        None
    }
}
