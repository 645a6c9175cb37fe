//! Making, reading, changing and rotating keys.

use crate::{
    Call, EventType, KeyView, Vault, VaultError, VersionView,
    catalog::{KEYS, VERSIONS},
    gate::{Permit, op},
    names::new_id,
    record::{KeyRecord, VersionRecord},
};
use custody_kek::{KekPrivateKey, RsaSize};
use custody_store::Batch;
use custody_types::{KeyAttributes, KeyName, KeyVersionName, UnixMillis, VaultName};
use zeroize::Zeroizing;

/// Where a new key's material comes from.
#[derive(Debug)]
pub enum NewKey {
    /// The vault makes it, of so many bits; 0 for 2048.
    Generate(u32),
    /// It is brought: PKCS#8 or PKCS#1, PEM or DER.
    Import(Zeroizing<Vec<u8>>),
}

/// A change of attributes: `None` leaves a field as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttributeChange {
    /// Whether it may be used.
    pub enabled: Option<bool>,
    /// Not before; the inner `None` takes the date away.
    pub not_before: Option<Option<UnixMillis>>,
    /// Not from then on; the inner `None` takes the date away.
    pub expire_time: Option<Option<UnixMillis>>,
}

impl AttributeChange {
    fn apply(self, mut attributes: KeyAttributes) -> Result<KeyAttributes, VaultError> {
        attributes.enabled = self.enabled.unwrap_or(attributes.enabled);
        attributes.not_before = self.not_before.unwrap_or(attributes.not_before);
        attributes.expire_time = self.expire_time.unwrap_or(attributes.expire_time);
        check_dates(attributes)
    }
}

fn check_dates(attributes: KeyAttributes) -> Result<KeyAttributes, VaultError> {
    if attributes.dates_ordered() {
        Ok(attributes)
    } else {
        Err(VaultError::invalid("attributes.expire_time", "must lie after attributes.not_before"))
    }
}

impl Vault {
    /// Makes or imports a key. Making one takes seconds at 4096 bits: not for a thread that answers requests.
    ///
    /// # Errors
    /// Not allowed; the vault does not exist; the name is taken, deleted or retired; the size, the dates or the
    /// imported key are wrong. Nothing is left behind.
    pub fn create_key(
        &self,
        call: &Call,
        vault: &str,
        id: &str,
        material: NewKey,
        attributes: KeyAttributes,
    ) -> Result<KeyView, VaultError> {
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        let name = vault.key(id).map_err(|e| VaultError::invalid("key_id", e))?;
        let attributes = check_dates(attributes)?;
        match material {
            NewKey::Generate(bits) => {
                let size = RsaSize::try_from(if bits == 0 { 2048 } else { bits })?;
                self.gate.run::<op::CreateKey, _>(call, name.as_str(), |_| {
                    self.check_name_free(&name)?;
                    self.add_key(&name, &KekPrivateKey::generate(size, self.options.backend)?, attributes)
                })
            }
            NewKey::Import(bytes) => self.gate.run::<op::ImportKey, _>(call, name.as_str(), |_| {
                self.check_name_free(&name)?;
                self.add_key(&name, &KekPrivateKey::import(&bytes, self.options.backend)?, attributes)
            }),
        }
    }

    fn check_name_free(&self, name: &KeyName) -> Result<(), VaultError> {
        let catalog = self.catalog.read();
        catalog.vault(&name.vault())?;
        let held = |why| Err(VaultError::NameHeld { name: name.to_string(), why });
        match catalog.keys.get(name) {
            Some(key) if key.deleted.is_some() => {
                held("is deleted but recoverable; recover it (UndeleteKey), or choose another id")
            }
            Some(_) => Err(VaultError::AlreadyExists(name.to_string())),
            None if catalog.retired.contains(name.as_str()) => {
                held("was purged; its name is retired for good, choose another id")
            }
            None => Ok(()),
        }
    }

    fn seal_version(
        &self,
        key: &KeyName,
        private: &KekPrivateKey,
        attributes: KeyAttributes,
    ) -> Result<VersionRecord, VaultError> {
        let name = key.version(&new_id()?)?;
        Ok(VersionRecord {
            sealed: private.seal(&self.root, name.as_str().as_bytes())?,
            name,
            create_time: self.now(),
            attributes,
            size_bits: private.size().bits(),
            n: private.public().n.clone(),
            e: private.public().e.clone(),
        })
    }

    fn add_key(
        &self,
        name: &KeyName,
        private: &KekPrivateKey,
        attributes: KeyAttributes,
    ) -> Result<KeyView, VaultError> {
        let version = self.seal_version(name, private, attributes)?;
        let _one_at_a_time = self.changes.lock();
        self.check_name_free(name)?;
        let key = KeyRecord {
            name: name.clone(),
            create_time: version.create_time,
            versions: vec![version.name.clone()],
            deleted: None,
        };
        self.put(key, Some(version), EventType::NewVersionCreated)
    }

    /// Commits a key, and a version where it changed, and tells of it.
    pub(crate) fn put(
        &self,
        key: KeyRecord,
        version: Option<VersionRecord>,
        kind: EventType,
    ) -> Result<KeyView, VaultError> {
        let mut batch = Batch::new();
        batch.put(KEYS, key.name.as_str(), &key);
        if let Some(version) = &version {
            batch.put(VERSIONS, version.name.as_str(), version);
        }
        let now = self.now();
        let name = key.name.clone();
        let view = self.commit(batch, |catalog| {
            catalog.keys.insert(key.name.clone(), key.clone());
            if let Some(version) = version {
                catalog.put_version(version);
            }
            catalog.view_key(&key, now)
        })?;
        self.tell(kind, name.as_str());
        view
    }

    /// Reads a key.
    ///
    /// # Errors
    /// Not allowed, or it does not exist.
    pub fn get_key(&self, call: &Call, name: &str) -> Result<KeyView, VaultError> {
        let name: KeyName = name.parse()?;
        self.gate.run::<op::GetKey, _>(call, name.as_str(), |_| {
            let catalog = self.catalog.read();
            catalog.view_key(catalog.key(&name)?, self.now())
        })
    }

    /// Reads a version.
    ///
    /// # Errors
    /// Not allowed, or it does not exist.
    pub fn get_key_version(&self, call: &Call, name: &str) -> Result<VersionView, VaultError> {
        let name: KeyVersionName = name.parse()?;
        self.gate.run::<op::GetKey, _>(call, name.as_str(), |_| {
            let catalog = self.catalog.read();
            Ok(catalog.view_version(catalog.version(&name)?, self.now()))
        })
    }

    /// The keys of a vault by name, deleted ones or the others.
    ///
    /// # Errors
    /// Not allowed, or the vault does not exist.
    pub fn list_keys(&self, call: &Call, vault: &str, deleted: bool) -> Result<Vec<KeyView>, VaultError> {
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        self.gate.run::<op::ListKeys, _>(call, vault.as_str(), |_| {
            let catalog = self.catalog.read();
            catalog.vault(&vault)?;
            let wanted = |k: &&KeyRecord| k.name.vault() == vault && k.deleted.is_some() == deleted;
            catalog.keys.values().filter(wanted).map(|k| catalog.view_key(k, self.now())).collect()
        })
    }

    /// The versions of a key, newest first.
    ///
    /// # Errors
    /// Not allowed, or the key does not exist.
    pub fn list_key_versions(&self, call: &Call, key: &str) -> Result<Vec<VersionView>, VaultError> {
        let name: KeyName = key.parse().map_err(|e| VaultError::invalid("parent", e))?;
        self.gate.run::<op::ListKeyVersions, _>(call, name.as_str(), |_| {
            let catalog = self.catalog.read();
            let key = catalog.key(&name)?;
            key.versions
                .iter()
                .rev()
                .map(|v| Ok(catalog.view_version(catalog.version(v)?, self.now())))
                .collect()
        })
    }

    /// Changes attributes of a key's current version.
    ///
    /// # Errors
    /// Not allowed, does not exist, is deleted, or the dates are reversed.
    pub fn update_key(
        &self,
        call: &Call,
        name: &str,
        change: AttributeChange,
    ) -> Result<KeyView, VaultError> {
        let name: KeyName = name.parse()?;
        self.gate.run(call, name.as_str(), |permit| self.do_update(&permit, &name, None, change))
    }

    /// Changes attributes of one version.
    ///
    /// # Errors
    /// As [`Vault::update_key`].
    pub fn update_key_version(
        &self,
        call: &Call,
        name: &str,
        change: AttributeChange,
    ) -> Result<VersionView, VaultError> {
        let name: KeyVersionName = name.parse()?;
        self.gate.run(call, name.as_str(), |permit| {
            self.do_update(&permit, &name.key(), Some(&name), change)?;
            let catalog = self.catalog.read();
            Ok(catalog.view_version(catalog.version(&name)?, self.now()))
        })
    }

    fn do_update(
        &self,
        _: &Permit<op::UpdateKey>,
        key: &KeyName,
        version: Option<&KeyVersionName>,
        change: AttributeChange,
    ) -> Result<KeyView, VaultError> {
        let _one_at_a_time = self.changes.lock();
        let (key, mut record) = {
            let catalog = self.catalog.read();
            let key = catalog.live_key(key)?.clone();
            let version = match version {
                Some(name) => catalog.version(name)?,
                None => catalog.current(&key)?,
            };
            (key, version.record.clone())
        };
        record.attributes = change.apply(record.attributes)?;
        self.put(key, Some(record), EventType::Updated)
    }

    /// Makes a new version, of the same size and enabled. Older versions still unwrap.
    ///
    /// # Errors
    /// Not allowed, does not exist, or is deleted.
    pub fn rotate_key(&self, call: &Call, name: &str) -> Result<KeyView, VaultError> {
        let name: KeyName = name.parse()?;
        self.gate.run(call, name.as_str(), |permit| self.do_rotate(&permit, &name))
    }

    fn do_rotate(&self, _: &Permit<op::RotateKey>, name: &KeyName) -> Result<KeyView, VaultError> {
        let bits = {
            let catalog = self.catalog.read();
            catalog.current(catalog.live_key(name)?)?.record.size_bits
        };
        let private = KekPrivateKey::generate(RsaSize::try_from(bits)?, self.options.backend)?;
        let version = self.seal_version(name, &private, KeyAttributes::default())?;
        let _one_at_a_time = self.changes.lock();
        let mut key = self.catalog.read().live_key(name)?.clone();
        key.versions.push(version.name.clone());
        self.put(key, Some(version), EventType::NewVersionCreated)
    }
}
