//! All vaults, keys and versions in memory, as of the last commit.

use crate::{
    LeasePolicy, RotationPolicy, VaultError,
    agenda::Agenda,
    approval::Asked,
    record::{KeyRecord, KeyView, VaultRecord, Version, VersionRecord, VersionView},
    rotation,
    uses::Uses,
};
use custody_faults::{Faults, Weight};
use custody_types::{KeyName, KeyState, KeyType, KeyVersionName, Protection, UnixMillis, VaultName};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};

pub(crate) const VAULTS: &str = "vaults";
pub(crate) const KEYS: &str = "keys";
pub(crate) const VERSIONS: &str = "versions";
pub(crate) const ASSIGNMENTS: &str = "assignments";
pub(crate) const RETIRED: &str = "retired";
pub(crate) const APPROVALS: &str = "approvals";
pub(crate) const GROUPS: &str = "groups";
pub(crate) const ROLES: &str = "roles";
pub(crate) const POLICIES: &str = "rotation-policies";

/// The vault's state, of the vaults that are in memory (`loader`). Changed only after the store has committed the change.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) vaults: BTreeMap<VaultName, VaultRecord>,
    pub(crate) keys: BTreeMap<KeyName, KeyRecord>,
    pub(crate) versions: BTreeMap<KeyVersionName, Arc<Version>>,
    /// Those of the keys that are deleted: few, and looked through again and again.
    pub(crate) deleted: BTreeSet<KeyName>,
    /// Names of purged keys: never given again.
    pub(crate) retired: BTreeSet<String>,
    pub(crate) approvals: BTreeMap<String, Asked>,
    pub(crate) policies: BTreeMap<KeyName, RotationPolicy>,
    pub(crate) lease_policies: BTreeMap<KeyName, LeasePolicy>,
    pub(crate) agenda: Agenda,
    pub(crate) faults: Option<Arc<Faults>>,
}

impl Catalog {
    /// Takes a key in, also one whose versions or policy have changed.
    pub(crate) fn put_key(&mut self, mut key: KeyRecord, now: UnixMillis) {
        let name = key.name.clone();
        for version in &mut key.versions {
            // The text that the version itself has.
            if let Some((known, _)) = self.versions.get_key_value(version) {
                *version = known.clone();
            }
        }
        key.versions.shrink_to_fit();
        if key.deleted.is_some() {
            self.deleted.insert(name.clone());
        } else {
            self.deleted.remove(&name);
        }
        self.keys.insert(name.clone(), key);
        self.plan(&name, now);
    }

    /// A key is no more, nor what was known of it.
    pub(crate) fn remove_key(&mut self, name: &KeyName) {
        let versions = self.keys.remove(name).map(|key| key.versions).unwrap_or_default();
        versions.iter().for_each(|version| _ = self.versions.remove(version));
        self.deleted.remove(name);
        self.policies.remove(name);
        self.lease_policies.remove(name);
        self.agenda.set(name, None);
    }

    /// Writes down when something is next due for a key.
    pub(crate) fn plan(&mut self, name: &KeyName, after: UnixMillis) {
        let due = self.keys.get(name).and_then(|key| rotation::next_due(self, key, after));
        self.agenda.set(name, due);
    }

    /// Closes the private halves of the versions whose names begin with `prefix`. Uses that are under way end with the
    /// halves they hold.
    pub(crate) fn forget_private(&mut self, prefix: &str) {
        let range = self.versions.range_mut::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        for (_, version) in range.take_while(|(name, _)| name.as_str().starts_with(prefix)) {
            let (record, uses) = (version.record.clone(), version.uses.clone());
            *version = Arc::new(Version { record, private: Arc::default(), uses });
        }
    }

    /// The versions in a vault.
    pub(crate) fn versions_of(&self, vault: &VaultName) -> impl Iterator<Item = &Version> {
        let prefix = format!("{vault}/");
        let range = self.versions.range::<str, _>((Bound::Included(&*prefix), Bound::Unbounded));
        range.map(|(_, v)| &**v).take_while(move |v| v.record.name.as_str().starts_with(&prefix))
    }

    /// Notes what an operation on a key weighs.
    fn weigh(&self, record: &VersionRecord) {
        if let Some(faults) = &self.faults {
            let rsa_bits = match record.public.key_type() {
                Some(KeyType::Rsa(size)) => size.bits(),
                _ => 0,
            };
            let hsm = record.protection == Protection::Hsm;
            faults.weigh(record.name.key().as_str(), Weight::Key { hsm, rsa_bits });
        }
    }

    pub(crate) fn put_version(&mut self, record: VersionRecord) {
        let name = record.name.clone();
        if let (Some(faults), false) = (&self.faults, self.versions.contains_key(&name)) {
            faults.rotated(name.key().as_str());
        }
        self.weigh(&record);
        // A changed record keeps the private half that is open already, and the count of its uses.
        let (private, uses) =
            self.versions.get(&name).map(|v| (v.private.clone(), v.uses.clone())).unwrap_or_default();
        self.versions.insert(name, Arc::new(Version { record, private, uses }));
    }

    /// Takes in a version that comes back, with the uses it had.
    pub(crate) fn put_restored(&mut self, record: VersionRecord, uses: Uses) {
        self.weigh(&record);
        let name = record.name.clone();
        let version = Version { record, private: Arc::default(), uses: Arc::new(uses) };
        self.versions.insert(name, Arc::new(version));
    }

    /// The requests for approval whose names begin with `prefix`, by name.
    pub(crate) fn approvals_below(&self, prefix: &str) -> impl Iterator<Item = &Asked> {
        self.approvals
            .range(prefix.to_owned()..)
            .take_while(move |(n, _)| n.starts_with(prefix))
            .map(|(_, a)| a)
    }

    /// The keys of a vault after the one named `after`, by name: a range of the index, however many others there are.
    pub(crate) fn keys_of(&self, vault: &VaultName, after: &str) -> impl Iterator<Item = &KeyRecord> {
        let prefix = format!("{vault}/keys/");
        let first =
            if after.starts_with(&prefix) { Bound::Excluded(after) } else { Bound::Included(&*prefix) };
        let range = self.keys.range::<str, _>((first, Bound::Unbounded));
        range.map(|(_, k)| k).take_while(move |k| k.name.as_str().starts_with(&prefix))
    }

    pub(crate) fn vault(&self, name: &VaultName) -> Result<&VaultRecord, VaultError> {
        self.vaults.get(name).ok_or_else(|| VaultError::NotFound(name.to_string()))
    }

    pub(crate) fn key(&self, name: &KeyName) -> Result<&KeyRecord, VaultError> {
        self.keys.get(name).ok_or_else(|| VaultError::NotFound(name.to_string()))
    }

    /// A key that is not deleted.
    pub(crate) fn live_key(&self, name: &KeyName) -> Result<&KeyRecord, VaultError> {
        let key = self.key(name)?;
        if key.deleted.is_some() {
            let why = "is deleted; recover it first (UndeleteKey)";
            return Err(VaultError::Precondition { name: name.to_string(), why });
        }
        Ok(key)
    }

    pub(crate) fn version(&self, name: &KeyVersionName) -> Result<&Arc<Version>, VaultError> {
        self.versions.get(name).ok_or_else(|| VaultError::NotFound(name.to_string()))
    }

    /// The version that wraps.
    pub(crate) fn current(&self, key: &KeyRecord) -> Result<&Arc<Version>, VaultError> {
        let name = key.versions.last().ok_or_else(|| VaultError::NotFound(key.name.to_string()))?;
        self.version(name)
    }

    /// The version that wraps, as a caller finds it: for a time after a rotation, where a profile of faults has that, some find the one
    /// before.
    pub(crate) fn found_current(&self, key: &KeyRecord) -> Result<&Arc<Version>, VaultError> {
        if let (Some(faults), [.., before, _]) = (&self.faults, key.versions.as_slice())
            && faults.misses_newest(key.name.as_str())
        {
            return self.version(before);
        }
        self.current(key)
    }

    /// A version, as a caller finds it.
    pub(crate) fn found_version(&self, name: &KeyVersionName) -> Result<&Arc<Version>, VaultError> {
        let newest = || self.keys.get(&name.key()).is_some_and(|key| key.versions.last() == Some(name));
        if let Some(faults) = &self.faults
            && newest()
            && self.keys.get(&name.key()).is_some_and(|key| key.versions.len() > 1)
            && faults.misses_newest(name.key().as_str())
        {
            return Err(VaultError::NotFound(name.to_string()));
        }
        self.version(name)
    }

    pub(crate) fn state(&self, version: &Version, now: UnixMillis) -> KeyState {
        let now = match &self.faults {
            Some(faults) => faults.time_of(version.record.name.key().vault().id(), now),
            None => now,
        };
        match self.keys.get(&version.record.name.key()) {
            Some(key) if key.deleted.is_some() => KeyState::Deleted,
            Some(_) => version.record.attributes.state_at(now),
            None => KeyState::Destroyed,
        }
    }

    pub(crate) fn view_version(&self, version: &Version, now: UnixMillis) -> VersionView {
        let record = &version.record;
        VersionView {
            name: record.name.clone(),
            attributes: record.attributes,
            state: self.state(version, now),
            key_ops: record.key_ops.clone(),
            tags: record.tags.clone(),
            public: record.public.clone(),
            create_time: record.create_time,
            update_time: record.update_time,
            protection: version.record.protection,
            uses: version.uses.counts(),
        }
    }

    pub(crate) fn view_key(&self, key: &KeyRecord, now: UnixMillis) -> Result<KeyView, VaultError> {
        self.view_key_as(key, self.current(key)?, now)
    }

    /// A key as a caller finds it, who reads and has changed nothing.
    pub(crate) fn find_key(&self, key: &KeyRecord, now: UnixMillis) -> Result<KeyView, VaultError> {
        self.view_key_as(key, self.found_current(key)?, now)
    }

    fn view_key_as(
        &self,
        key: &KeyRecord,
        current: &Version,
        now: UnixMillis,
    ) -> Result<KeyView, VaultError> {
        let vault = self.vault(&key.name.vault())?;
        Ok(KeyView {
            name: key.name.clone(),
            current: self.view_version(current, now),
            create_time: key.create_time,
            deleted: key.deleted.map(|d| (d.delete_time, d.purge_time)),
            purge_protection: vault.purge_protection,
            recoverable_days: vault.soft_delete_retention_days,
        })
    }
}
