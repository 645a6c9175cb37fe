//! All vaults, keys and versions in memory, as of the last commit.

use crate::{
    VaultError,
    record::{KeyRecord, KeyView, VaultRecord, Version, VersionRecord, VersionView},
};
use custody_authz::Assignments;
use custody_store::{Store, StoreError};
use custody_types::{KeyName, KeyState, KeyVersionName, UnixMillis, VaultName};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub(crate) const VAULTS: &str = "vaults";
pub(crate) const KEYS: &str = "keys";
pub(crate) const VERSIONS: &str = "versions";
pub(crate) const ASSIGNMENTS: &str = "assignments";
pub(crate) const RETIRED: &str = "retired";

/// The vault's state. Changed only after the store has committed the change.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    pub(crate) vaults: BTreeMap<VaultName, VaultRecord>,
    pub(crate) keys: BTreeMap<KeyName, KeyRecord>,
    pub(crate) versions: BTreeMap<KeyVersionName, Arc<Version>>,
    /// Names of purged keys: never given again.
    pub(crate) retired: BTreeSet<String>,
}

impl Catalog {
    pub(crate) fn load(store: &Store) -> Result<(Self, Assignments), StoreError> {
        let mut catalog = Self::default();
        for (_, vault) in store.scan::<VaultRecord>(VAULTS, "")? {
            catalog.vaults.insert(vault.name.clone(), vault);
        }
        for (_, key) in store.scan::<KeyRecord>(KEYS, "")? {
            catalog.keys.insert(key.name.clone(), key);
        }
        for (_, record) in store.scan::<VersionRecord>(VERSIONS, "")? {
            catalog.put_version(record);
        }
        catalog.retired = store.scan::<bool>(RETIRED, "")?.into_iter().map(|(name, _)| name).collect();
        let mut assignments = Assignments::default();
        store.scan(ASSIGNMENTS, "")?.into_iter().for_each(|(_, a)| assignments.insert(a));
        Ok((catalog, assignments))
    }

    pub(crate) fn put_version(&mut self, record: VersionRecord) {
        let name = record.name.clone();
        // A changed record keeps the private half that is open already.
        let private = self.versions.get(&name).map(|v| v.private.clone()).unwrap_or_default();
        self.versions.insert(name, Arc::new(Version { record, private }));
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

    pub(crate) fn state(&self, version: &Version, now: UnixMillis) -> KeyState {
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
        }
    }

    pub(crate) fn view_key(&self, key: &KeyRecord, now: UnixMillis) -> Result<KeyView, VaultError> {
        let vault = self.vault(&key.name.vault())?;
        Ok(KeyView {
            name: key.name.clone(),
            current: self.view_version(self.current(key)?, now),
            create_time: key.create_time,
            deleted: key.deleted.map(|d| (d.delete_time, d.purge_time)),
            purge_protection: vault.purge_protection,
            recoverable_days: vault.soft_delete_retention_days,
        })
    }
}
