//! What is stored elsewhere and opens with a key version only, as its holders report it.
//!
//! A holder reports before it stores, and that something is gone after it is: the vault never knows of less than there is.

use crate::{Call, Vault, VaultError, lineage::Shred};
use custody_audit::{Outcome, Record};
use custody_store::{Batch, Store};
use custody_types::{KeyName, KeyVersionName, UnixMillis};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const DEPENDENTS: &str = "dependents";
pub(crate) const HOLDERS: &str = "dependent-holders";
pub(crate) const SHREDS: &str = "shreds";

/// Longest name of a resource.
const RESOURCE_LEN_MAX: usize = 200;
/// Dependents of one holder.
const REPORTED_MAX: usize = 1_000_000;

/// What a dependent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum DependentKind {
    /// A volume.
    Volume,
    /// A volume, by the key that it had before, until a change of keys is settled.
    FormerProtector,
    /// A backup.
    Backup,
    /// A backup that adds to another.
    Increment,
    /// Files of an archived log.
    WalArchive,
}

impl DependentKind {
    /// Every kind.
    pub const ALL: [Self; 5] =
        [Self::Volume, Self::FormerProtector, Self::Backup, Self::Increment, Self::WalArchive];

    /// As people count them.
    #[must_use]
    pub fn counted(self, n: usize) -> String {
        let (one, many) = match self {
            Self::Volume => ("volume", "volumes"),
            Self::FormerProtector => {
                ("unsettled change of a volume's key", "unsettled changes of volumes' keys")
            }
            Self::Backup => ("backup", "backups"),
            Self::Increment => ("incremental backup", "incremental backups"),
            Self::WalArchive => ("archived log", "archived logs"),
        };
        format!("{n} {}", if n == 1 { one } else { many })
    }
}

/// Something that opens with a key version only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependent {
    /// Whose it is: a storage node.
    pub holder: String,
    /// What.
    pub resource: String,
    /// The version.
    pub key_version: KeyVersionName,
    /// What it is.
    pub kind: DependentKind,
    /// What an increment adds to.
    pub base: String,
    /// Whether it stays with the version, whatever becomes of the key.
    pub pinned: bool,
    /// When it was first reported.
    pub report_time: UnixMillis,
}

impl Dependent {
    /// Of what came over the wire, before its holder and time are known.
    ///
    /// # Errors
    /// Out of bounds.
    pub fn new(
        resource: String,
        key_version: KeyVersionName,
        kind: DependentKind,
        base: String,
        pinned: bool,
    ) -> Result<Self, VaultError> {
        let named = |text: &str| text.len() <= RESOURCE_LEN_MAX && text.chars().all(|c| c.is_ascii_graphic());
        let why = "must be a name of 1 to 200 printable ASCII characters";
        if resource.is_empty() || !named(&resource) {
            return Err(VaultError::invalid("dependents.resource", why));
        }
        if !named(&base) || base.is_empty() == (kind == DependentKind::Increment) {
            return Err(VaultError::invalid(
                "dependents.base",
                "must be named for an increment, and no other",
            ));
        }
        let (holder, report_time) = (String::new(), UnixMillis::default());
        Ok(Self { holder, resource, key_version, kind, base, pinned, report_time })
    }

    fn row(&self) -> String {
        format!("{} {} {}", self.holder, self.resource, self.key_version)
    }
}

/// A resource and a version: there is one dependent of a holder for the two.
type Place = (String, KeyVersionName);

/// What a holder tells at once.
#[derive(Clone, Debug, Default)]
pub struct DependentReport {
    /// What it is about to store, or has.
    pub dependents: Vec<Dependent>,
    /// What it has no more: resource and version.
    pub removed: Vec<(String, KeyVersionName)>,
    /// Whether the vault knows all of what it has, with this.
    pub complete: bool,
    /// Above that of every earlier report of the holder.
    pub sequence: u64,
}

/// What came of a report.
#[derive(Debug)]
pub struct Reported {
    /// Versions that do not exist: nothing may be stored under them.
    pub unknown: BTreeSet<KeyVersionName>,
    /// What must be durable in the trail before the holder is answered.
    pub records: Vec<Record>,
}

/// All dependents.
#[derive(Default)]
pub(crate) struct Dependents {
    by_holder: BTreeMap<String, BTreeMap<Place, Dependent>>,
    /// Version, holder and resource of those of a key.
    by_key: BTreeMap<KeyName, BTreeSet<(KeyVersionName, String, String)>>,
    /// When each holder last compared all that it has.
    pub(crate) holders: BTreeMap<String, Option<UnixMillis>>,
    /// The last report of each, of this process: what was under way when another ended, ended with it.
    sequences: BTreeMap<String, u64>,
}

impl Dependents {
    /// As they are stored.
    pub(crate) fn load(store: &Store) -> Result<Self, VaultError> {
        let mut dependents = Self::default();
        for (_, dependent) in store.scan::<Dependent>(DEPENDENTS, "")? {
            dependents.insert(dependent);
        }
        dependents.holders = store.scan(HOLDERS, "")?.into_iter().collect();
        Ok(dependents)
    }

    fn insert(&mut self, d: Dependent) {
        let (holder, resource, version) = (d.holder.clone(), d.resource.clone(), d.key_version.clone());
        let of_key = self.by_key.entry(version.key()).or_default();
        of_key.insert((version.clone(), holder.clone(), resource.clone()));
        self.by_holder.entry(holder).or_default().insert((resource, version), d);
    }

    fn remove(&mut self, d: &Dependent) {
        let key = d.key_version.key();
        if let Some(of_key) = self.by_key.get_mut(&key) {
            of_key.remove(&(d.key_version.clone(), d.holder.clone(), d.resource.clone()));
        }
        if let Some(of_holder) = self.by_holder.get_mut(&d.holder) {
            of_holder.remove(&(d.resource.clone(), d.key_version.clone()));
        }
    }

    /// Those of a key, by version, holder and resource.
    pub(crate) fn of_key(&self, key: &KeyName) -> Vec<&Dependent> {
        let places = self.by_key.get(key).into_iter().flatten();
        let found = places.filter_map(|(version, holder, resource)| {
            self.by_holder.get(holder)?.get(&(resource.clone(), version.clone()))
        });
        found.collect()
    }

    /// Those of a holder, by resource and version.
    fn of_holder(&self, holder: &str) -> impl Iterator<Item = &Dependent> {
        self.by_holder.get(holder).into_iter().flat_map(BTreeMap::values)
    }

    fn get(&self, holder: &str, place: &Place) -> Option<&Dependent> {
        self.by_holder.get(holder)?.get(place)
    }

    /// Increments that are of no use without these, though they open with other keys.
    pub(crate) fn without(&self, lost: &[&Dependent]) -> Vec<&Dependent> {
        let mut gone: BTreeSet<(&str, &str)> =
            lost.iter().map(|d| (d.holder.as_str(), d.resource.as_str())).collect();
        let increments = self.by_holder.values().flat_map(BTreeMap::values);
        let increments: Vec<_> = increments.filter(|d| d.kind == DependentKind::Increment).collect();
        let mut found = Vec::new();
        loop {
            let before = found.len();
            for d in &increments {
                if gone.contains(&(&*d.holder, &*d.base)) && gone.insert((&d.holder, &d.resource)) {
                    found.push(*d);
                }
            }
            if found.len() == before {
                return found;
            }
        }
    }

    /// What would be of no use without a key; nothing where nothing depends on it.
    pub(crate) fn lost_with(&self, key: &KeyName) -> Vec<&Dependent> {
        let mut lost = self.of_key(key);
        lost.extend(self.without(&lost));
        lost
    }

    /// Forgets those of a key that is destroyed.
    pub(crate) fn forget(&mut self, key: &KeyName) {
        let gone: Vec<Dependent> = self.of_key(key).into_iter().cloned().collect();
        gone.iter().for_each(|d| self.remove(d));
        self.by_key.remove(key);
    }

    pub(crate) fn delete_rows(&self, key: &KeyName, batch: &mut Batch) {
        for dependent in self.of_key(key) {
            batch.delete(DEPENDENTS, &dependent.row());
        }
    }
}

impl Vault {
    /// Takes in what a holder has, and has no more. `call` is the holder's own, by its certificate. What it says is its own:
    /// it can keep a key from being destroyed without a second officer, and gains nothing else by it.
    ///
    /// # Errors
    /// The deployment is sealed, there are too many, or the store failed; then nothing was taken in.
    pub fn report_dependents(&self, call: &Call, report: DependentReport) -> Result<Reported, VaultError> {
        if self.is_sealed() {
            return Err(VaultError::Sealed);
        }
        for given in &report.dependents {
            self.loader.ensure(given.key_version.as_str())?;
        }
        let holder = call.caller.principal.clone();
        let now = self.now();
        // A purge looks under the same lock: no version goes between the look and the commit.
        let _one_at_a_time = self.changes.lock();
        let mut dependents = self.dependents.lock();
        let last = dependents.sequences.get(&holder).copied().unwrap_or_default();
        if report.sequence <= last {
            return Err(VaultError::invalid("sequence", format!("must be above {last}, which came before")));
        }
        let (mut batch, mut unknown) = (Batch::new(), BTreeSet::new());
        let (mut added, mut gone) = (Vec::new(), Vec::new());
        for given in report.dependents {
            if self.catalog.read().version(&given.key_version).is_err() {
                unknown.insert(given.key_version);
                continue;
            }
            let there = dependents.get(&holder, &(given.resource.clone(), given.key_version.clone()));
            let report_time = there.map_or(now, |there| there.report_time);
            let given = Dependent { holder: holder.clone(), report_time, ..given };
            if there != Some(&given) {
                batch.put(DEPENDENTS, &given.row(), &given);
                added.push((given, there.is_none()));
            }
        }
        let new = added.iter().filter(|(_, new)| *new).count();
        if dependents.of_holder(&holder).count() + new > REPORTED_MAX {
            return Err(VaultError::invalid("dependents", "a holder has at most 1,000,000 dependents"));
        }
        for place in &report.removed {
            if let Some(there) = dependents.get(&holder, place) {
                batch.delete(DEPENDENTS, &there.row());
                gone.push(there.clone());
            }
        }
        let complete_time = dependents.holders.get(&holder).copied();
        let told = if report.complete { Some(now) } else { complete_time.flatten() };
        if complete_time.is_none() || report.complete {
            batch.put(HOLDERS, &holder, &told);
        }
        self.store.commit(batch)?;
        dependents.holders.insert(holder.clone(), told);
        dependents.sequences.insert(holder.clone(), report.sequence);
        let record = |operation: &str, d: &Dependent, what: String| {
            let version = d.key_version.as_str();
            let begin = Record::begin(now, operation, &call.correlation_id, &call.caller, version);
            begin.finish(now, Outcome::Success, "OK", &what)
        };
        let mut records = Vec::new();
        for (d, new) in added {
            if new {
                records.push(record(
                    "KeyDependentPut",
                    &d,
                    format!("{} of {holder} depends on it", d.resource),
                ));
            }
            dependents.insert(d);
        }
        for d in gone {
            let what = format!("{} of {holder} depends on it no more", d.resource);
            records.push(record("KeyDependentDelete", &d, what));
            dependents.remove(&d);
        }
        Ok(Reported { unknown, records })
    }

    /// What a holder has reported, by resource, and the number of its last report.
    ///
    /// # Errors
    /// The deployment is sealed.
    pub fn reported_dependents(&self, call: &Call) -> Result<(Vec<Dependent>, u64), VaultError> {
        if self.is_sealed() {
            return Err(VaultError::Sealed);
        }
        let (dependents, holder) = (self.dependents.lock(), &call.caller.principal);
        let last = dependents.sequences.get(holder).copied().unwrap_or_default();
        Ok((dependents.of_holder(holder).cloned().collect(), last))
    }

    /// Notes, once for each process, that a key is not destroyed although its retention has ended.
    pub(crate) fn note_held(&self, name: &KeyName, what: &str) -> Result<(), VaultError> {
        if self.held_purges.lock().insert(name.clone()) {
            let what = format!("its retention has ended; it is not destroyed, since {what}");
            self.journal().append(&self.own_record("KeyPurgeHeld", name.as_str(), &what)?)?;
        }
        Ok(())
    }

    /// The report of a destruction, to be committed with it.
    pub(crate) fn shred(&self, name: &KeyName, requester: &str, approver: &str) -> Option<Shred> {
        let dependents = self.dependents.lock();
        let mut unreadable: Vec<Dependent> = dependents.lost_with(name).into_iter().cloned().collect();
        if unreadable.is_empty() {
            return None;
        }
        unreadable.sort_by(|a, b| (&a.holder, &a.resource).cmp(&(&b.holder, &b.resource)));
        Some(Shred {
            key: name.clone(),
            requester: requester.to_owned(),
            approver: approver.to_owned(),
            shred_time: self.now(),
            unreadable,
        })
    }
}
