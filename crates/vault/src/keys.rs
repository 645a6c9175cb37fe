//! Making, reading, changing and rotating keys.

use crate::{
    Call, EventType, KeyView, Vault, VaultError, VersionView,
    catalog::{KEYS, VERSIONS},
    gate::{Permit, op},
    names::new_id,
    record::{KeyRecord, Tags, VersionRecord},
};
use custody_faults::Change;
use custody_kek::{PrivateJwk, PrivateKey, Token};
use custody_store::Batch;
use custody_types::{
    Curve, KeyAttributes, KeyFamily, KeyName, KeyOperation, KeyType, KeyVersionName, Protection, UnixMillis,
    VaultName,
};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Where a new key's material comes from.
#[derive(Debug)]
pub enum Material {
    /// The vault makes it.
    Generate(KeyType),
    /// It is brought: PKCS#8 or PKCS#1, PEM or DER.
    Import(Zeroizing<Vec<u8>>),
    /// It is brought as a JWK.
    ImportJwk(PrivateJwk),
    /// It is brought wrapped for a key exchange key of the vault: a transfer file (`.byok`).
    Transfer {
        /// The file.
        file: Vec<u8>,
        /// What is in it, where that was said.
        declared: Option<Declared>,
    },
}

/// What a wrapped key is said to be, which is looked at when it has been unwrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Its kind.
    pub family: KeyFamily,
    /// Its curve; none where that was not said.
    pub curve: Option<Curve>,
}

impl Declared {
    pub(crate) fn fits(self, kind: KeyType) -> bool {
        self.family == kind.family() && self.curve.is_none_or(|curve| kind == KeyType::Ec(curve))
    }
}

/// What goes with the material of a new version.
#[derive(Clone, Debug, Default)]
pub struct Particulars {
    /// Whether and when it may be used.
    pub attributes: KeyAttributes,
    /// What it may be asked to do; empty for all that its kind can.
    pub key_ops: Vec<KeyOperation>,
    /// Notes.
    pub tags: Tags,
    /// Where its private half is kept.
    pub protection: Protection,
}

/// What to do where a key of the name exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfExists {
    /// Azure's way: the key becomes a new version.
    AddVersion,
    /// Nothing is made.
    Refuse,
}

/// A change of attributes: `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub struct AttributeChange {
    /// Whether it may be used.
    pub enabled: Option<bool>,
    /// Not before; the inner `None` takes the date away.
    pub not_before: Option<Option<UnixMillis>>,
    /// Not from then on; the inner `None` takes the date away.
    pub expire_time: Option<Option<UnixMillis>>,
    /// No more uses than this; the inner `None` takes the budget away.
    pub budget: Option<Option<u64>>,
    /// What it may be asked to do, in place of what it may now.
    pub key_ops: Option<Vec<KeyOperation>>,
    /// Notes, in place of those it has.
    pub tags: Option<Tags>,
}

impl AttributeChange {
    fn apply(self, record: &mut VersionRecord) -> Result<(), VaultError> {
        let old = record.attributes;
        record.attributes = check_dates(KeyAttributes {
            enabled: self.enabled.unwrap_or(old.enabled),
            not_before: self.not_before.unwrap_or(old.not_before),
            expire_time: self.expire_time.unwrap_or(old.expire_time),
            budget: self.budget.unwrap_or(old.budget),
        })?;
        if let Some(key_ops) = self.key_ops {
            let kind = record.public.key_type().ok_or(VaultError::Backend)?;
            record.key_ops = check_key_ops(&key_ops, kind)?;
        }
        if let Some(tags) = self.tags {
            record.tags = check_tags(tags)?;
        }
        Ok(())
    }
}

fn check_dates(attributes: KeyAttributes) -> Result<KeyAttributes, VaultError> {
    if attributes.dates_ordered() {
        Ok(attributes)
    } else {
        Err(VaultError::invalid("attributes.expire_time", "must lie after attributes.not_before"))
    }
}

/// The operations in Azure's order, each once.
fn check_key_ops(given: &[KeyOperation], kind: KeyType) -> Result<Vec<KeyOperation>, VaultError> {
    if given.contains(&KeyOperation::Import) {
        // A key exchange key opens what comes from outside, and nothing else may be opened with it.
        return match (given, kind) {
            ([KeyOperation::Import], KeyType::Rsa(_)) => Ok(given.to_vec()),
            _ => Err(VaultError::invalid("key_ops", "`import` stands alone, and for an RSA key")),
        };
    }
    let possible = KeyOperation::of(kind);
    if let Some(other) = given.iter().find(|o| !possible.contains(o)) {
        return Err(VaultError::invalid("key_ops", format!("an {} key cannot {other}", kind.kty())));
    }
    Ok(possible.iter().filter(|o| given.is_empty() || given.contains(o)).copied().collect())
}

/// Azure's bounds: 15 tags, names and texts of 256 characters.
fn check_tags(tags: Tags) -> Result<Tags, VaultError> {
    let fits = |(name, text): (&String, &String)| {
        (1..=256).contains(&name.chars().count()) && text.chars().count() <= 256
    };
    if tags.len() <= 15 && tags.iter().all(fits) {
        Ok(tags)
    } else {
        Err(VaultError::invalid(
            "tags",
            "may be 15, with names of 1 to 256 characters and texts of up to 256",
        ))
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
        material: Material,
        particulars: Particulars,
        if_exists: IfExists,
    ) -> Result<KeyView, VaultError> {
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        let name = vault.key(id).map_err(|e| VaultError::invalid("key_id", e))?;
        check_dates(particulars.attributes)?;
        let particulars = Particulars { tags: check_tags(particulars.tags)?, ..particulars };
        let (backend, protection) = (self.options.backend, particulars.protection);
        if protection == Protection::Hsm {
            self.token()?;
        }
        if let Some(faults) = &self.options.faults {
            faults.weigh_new(name.as_str(), protection == Protection::Hsm);
        }
        let make: Box<dyn FnOnce() -> Result<PrivateKey, VaultError> + '_> = match material {
            Material::Generate(kind) => {
                check_key_ops(&particulars.key_ops, kind)?;
                let make = move || self.generate(kind, protection);
                return self.gate.run::<op::CreateKey, _>(call, name.as_str(), |_| {
                    self.add_version(&name, make, &particulars, if_exists)
                });
            }
            Material::Import(bytes) => {
                Box::new(move || self.kept(PrivateKey::import(&bytes, backend)?, protection))
            }
            Material::Transfer { file, declared } => {
                let vault = vault.clone();
                Box::new(move || self.open_transfer(call, &vault, &file, declared, protection))
            }
            Material::ImportJwk(jwk) => {
                Box::new(move || self.kept(PrivateKey::import_jwk(jwk, backend)?, protection))
            }
        };
        self.gate.run::<op::ImportKey, _>(call, name.as_str(), |_| {
            self.add_version(&name, make, &particulars, if_exists)
        })
    }

    /// Makes a version under a name that is free, or of a key that is there.
    fn add_version(
        &self,
        name: &KeyName,
        make: impl FnOnce() -> Result<PrivateKey, VaultError>,
        particulars: &Particulars,
        if_exists: IfExists,
    ) -> Result<KeyView, VaultError> {
        self.key_to_extend(name, if_exists)?;
        // A vault that is sealed makes nothing, least of all in an HSM.
        self.keyring.current(&name.vault())?;
        let private = make()?;
        let done = self.take_in(name, &private, particulars, if_exists);
        if done.is_err()
            && let Err(e) = private.destroy()
        {
            tracing::error!(error = %e, key = %name, "a key that was not taken in is left in the HSM");
        }
        done
    }

    fn take_in(
        &self,
        name: &KeyName,
        private: &PrivateKey,
        particulars: &Particulars,
        if_exists: IfExists,
    ) -> Result<KeyView, VaultError> {
        let version = self.seal_version(name, private, particulars)?;
        let _one_at_a_time = self.changes.lock();
        let mut key = self.key_to_extend(name, if_exists)?.unwrap_or_else(|| KeyRecord {
            name: name.clone(),
            create_time: version.create_time,
            versions: Vec::new(),
            deleted: None,
        });
        if !key.versions.is_empty() {
            // Whoever follows the key wraps with the next version what this one wrapped.
            let kty = {
                let catalog = self.catalog.read();
                let current = &catalog.current(&key)?.record;
                current.public.key_type().map(|kind| current.protection.kty(kind))
            };
            if kty.is_some_and(|kty| kty != version.protection.kty(private.kind())) {
                let why = "a new version is of the same type as the key; make another key";
                return Err(VaultError::invalid("key_type", why));
            }
        }
        key.versions.push(version.name.clone());
        self.put(key, Some(version), EventType::NewVersionCreated)
    }

    /// The HSM, for who asks for a key in it.
    pub(crate) fn token(&self) -> Result<&Arc<Token>, VaultError> {
        let why = "an HSM is asked for, and this vault has none; use RSA or EC";
        self.options.token.as_ref().ok_or_else(|| VaultError::invalid("key_type", why))
    }

    fn generate(&self, kind: KeyType, protection: Protection) -> Result<PrivateKey, VaultError> {
        Ok(match protection {
            Protection::Hsm => PrivateKey::generate_in(self.token()?, kind)?,
            Protection::Software => PrivateKey::generate(kind, self.options.backend)?,
        })
    }

    /// A key that was brought, where it is to be kept.
    pub(crate) fn kept(&self, key: PrivateKey, protection: Protection) -> Result<PrivateKey, VaultError> {
        Ok(match protection {
            Protection::Hsm => key.move_into(self.token()?)?,
            Protection::Software => key,
        })
    }

    /// The key of this name that shall have a new version; none where the name is free.
    fn key_to_extend(&self, name: &KeyName, if_exists: IfExists) -> Result<Option<KeyRecord>, VaultError> {
        let there = self.catalog.read().keys.get(name).filter(|k| k.deleted.is_none()).cloned();
        match (there, if_exists) {
            (Some(key), IfExists::AddVersion) => Ok(Some(key)),
            _ => self.check_name_free(name).map(|()| None),
        }
    }

    pub(crate) fn check_name_free(&self, name: &KeyName) -> Result<(), VaultError> {
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
        private: &PrivateKey,
        particulars: &Particulars,
    ) -> Result<VersionRecord, VaultError> {
        let name = key.version(&new_id()?)?;
        let now = self.now();
        let protection = if private.is_in_token() { Protection::Hsm } else { Protection::Software };
        let (seal_generation, sealing) = self.keyring.current(&key.vault())?;
        Ok(VersionRecord {
            protection,
            seal_generation,
            sealed: private.seal(&sealing, name.as_str().as_bytes())?,
            name,
            create_time: now,
            update_time: now,
            attributes: particulars.attributes,
            key_ops: check_key_ops(&particulars.key_ops, private.kind())?,
            tags: particulars.tags.clone(),
            public: private.public().clone(),
        })
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
            if let Some(version) = version {
                catalog.put_version(version);
            }
            catalog.put_key(key.clone(), now);
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
        self.gate.run::<op::GetKey, _>(call, name.as_str(), |_| self.view(&name))
    }

    /// As [`Vault::get_key`], for a task: the wait for its record holds no thread.
    ///
    /// # Errors
    /// As [`Vault::get_key`].
    pub async fn get_key_in_task(&self, call: &Call, name: &str) -> Result<KeyView, VaultError> {
        let name: KeyName = name.parse()?;
        let admitted = self.gate.admit::<op::GetKey>(call, name.as_str()).await?;
        admitted.run(|_| self.view(&name)).release().await
    }

    fn view(&self, name: &KeyName) -> Result<KeyView, VaultError> {
        let catalog = self.catalog.read();
        let key = catalog.key(name)?;
        let change = if key.deleted.is_some() { Change::Delete } else { Change::Recover };
        if self.is_changing(name, change) {
            return Err(VaultError::NotFound(name.to_string()));
        }
        catalog.find_key(key, self.now())
    }

    /// Reads a version.
    ///
    /// # Errors
    /// Not allowed, or it does not exist.
    pub fn get_key_version(&self, call: &Call, name: &str) -> Result<VersionView, VaultError> {
        let name: KeyVersionName = name.parse()?;
        self.gate.run::<op::GetKey, _>(call, name.as_str(), |_| {
            let catalog = self.catalog.read();
            Ok(catalog.view_version(catalog.found_version(&name)?, self.now()))
        })
    }

    /// The keys of a vault by name, deleted ones or the others: at most `max`, those after the key named `after`.
    ///
    /// # Errors
    /// Not allowed, or the vault does not exist.
    pub fn list_keys(
        &self,
        call: &Call,
        vault: &str,
        deleted: bool,
        after: &str,
        max: usize,
    ) -> Result<Vec<KeyView>, VaultError> {
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        self.gate.run::<op::ListKeys, _>(call, vault.as_str(), |_| {
            let catalog = self.catalog.read();
            catalog.vault(&vault)?;
            let now = self.now();
            let wanted = |k: &&KeyRecord| k.deleted.is_some() == deleted;
            let page = catalog.keys_of(&vault, after).filter(wanted).take(max);
            page.map(|k| catalog.view_key(k, now)).collect()
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
        change.apply(&mut record)?;
        record.update_time = self.now();
        self.put(key, Some(record), EventType::Updated)
    }

    /// Makes a new version, of the same kind and enabled, for the same operations and with the same budget; it expires
    /// as the key's rotation policy says. Older versions still unwrap.
    ///
    /// # Errors
    /// Not allowed, does not exist, or is deleted.
    pub fn rotate_key(&self, call: &Call, name: &str) -> Result<KeyView, VaultError> {
        let name: KeyName = name.parse()?;
        self.gate.run(call, name.as_str(), |_: Permit<op::RotateKey>| self.rotate(&name))
    }

    pub(crate) fn rotate(&self, name: &KeyName) -> Result<KeyView, VaultError> {
        let expire_time = self.expiry_by_policy(name, self.now());
        let (kind, particulars) = {
            let catalog = self.catalog.read();
            let record = &catalog.current(catalog.live_key(name)?)?.record;
            let particulars = Particulars {
                attributes: KeyAttributes {
                    expire_time,
                    budget: record.attributes.budget,
                    ..KeyAttributes::default()
                },
                key_ops: record.key_ops.clone(),
                tags: record.tags.clone(),
                protection: record.protection,
            };
            (record.public.key_type().ok_or(VaultError::Backend)?, particulars)
        };
        let make = || self.generate(kind, particulars.protection);
        self.add_version(name, make, &particulars, IfExists::AddVersion)
    }
}
