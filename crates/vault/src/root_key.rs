//! The root key and the vaults' keys below it: replacing them, and moving what they seal.

use crate::{
    Vault, VaultError,
    catalog::VERSIONS,
    seal::{SEALS, SYSTEM, SealError, SealRecord, SystemSeal, VaultKeys, VaultSeal},
};
use custody_envelope::SealingKey;
use custody_proof::SigningKey;
use custody_store::Batch;
use custody_types::{KeyVersionName, VaultName};
use std::{collections::BTreeMap, sync::Arc};

/// Versions whose private halves are sealed anew in one commit.
const RESEAL_LEN: usize = 64;
/// What the root key seals besides vaults' keys.
pub(crate) const INTEGRITY: &[u8] = b"the store's integrity key";
pub(crate) const SIGNING: &[u8] = b"the key that signs leases and revocations";
/// Its name in what it signs.
pub(crate) const SIGNER: &str = "custody-vault";

impl Vault {
    /// Moves every vault's keys, and the store's integrity key, to another root key: one commit.
    pub(crate) fn replace_root(
        &self,
        root: SealingKey,
        seal: SealRecord,
        seal_key: Arc<SealingKey>,
    ) -> Result<(), VaultError> {
        let _one_at_a_time = self.changes.lock();
        let (old, _) = self.keyring.root()?;
        let signer = self.keyring.signer()?;
        let system = self.system()?;
        let moved = |place, sealed: &[u8]| -> Result<Vec<u8>, VaultError> {
            let plain = old.open(place, sealed).map_err(|_| SealError::WrongKey)?;
            Ok(root.seal(place, &plain)?)
        };
        let (integrity, signing) = (moved(INTEGRITY, &system.integrity)?, moved(SIGNING, &system.signing)?);
        let generation = system.generation + 1;
        let mut batch = Batch::new();
        batch.put(SEALS, SYSTEM, &SystemSeal { seal, generation, integrity, signing });
        for (name, mut stored) in self.store.scan::<VaultSeal>(SEALS, "vaults/")? {
            stored.move_to(&name.parse()?, &old, &root)?;
            batch.put(SEALS, &name, &stored);
        }
        self.store.commit(batch)?;
        self.keyring.set_root(root, seal_key, signer);
        Ok(())
    }

    /// A key for a vault that is about to be made.
    pub(crate) fn first_vault_key(&self, vault: &VaultName) -> Result<(VaultSeal, VaultKeys), VaultError> {
        let (root, _) = self.keyring.root()?;
        let key = SealingKey::generate()?;
        let mut stored = VaultSeal::default();
        stored.put(vault, 1, &key, None, &root)?;
        Ok((stored, VaultKeys { generations: BTreeMap::from([(1, Arc::new(key))]), own: None }))
    }

    pub(crate) fn add_vault_key(&self, vault: &VaultName) -> Result<(), VaultError> {
        self.catalog.read().vault(vault)?;
        let _one_at_a_time = self.changes.lock();
        let mut held = self.keyring.vault(vault)?;
        let (root, _) = self.keyring.root()?;
        let key = SealingKey::generate()?;
        let generation = held.generations.keys().next_back().map_or(1, |last| last + 1);
        let mut stored = self.vault_seal(vault)?;
        stored.put(vault, generation, &key, held.own.as_ref().map(|(own, _)| &**own), &root)?;
        let mut batch = Batch::new();
        batch.put(SEALS, vault.as_str(), &stored);
        self.store.commit(batch)?;
        held.generations.insert(generation, Arc::new(key));
        self.keyring.put(vault, held);
        Ok(())
    }

    /// Seals private halves anew that are not under the vault's current key. What is left by a stop is done with the next
    /// rotation; until then the older key opens it.
    pub(crate) fn reseal(&self, vault: &VaultName) -> Result<(), VaultError> {
        loop {
            let _one_at_a_time = self.changes.lock();
            let keys: BTreeMap<u32, Arc<SealingKey>> = self.keyring.vault(vault)?.generations;
            let (generation, current) = self.keyring.current(vault)?;
            let behind: Vec<KeyVersionName> = {
                let catalog = self.catalog.read();
                let behind = catalog.versions_of(vault).filter(|v| v.record.seal_generation != generation);
                behind.take(RESEAL_LEN).map(|v| v.record.name.clone()).collect()
            };
            if behind.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            let mut moved = Vec::new();
            for name in behind {
                let mut record = self.catalog.read().version(&name)?.record.clone();
                let damaged = || VaultError::Damaged(name.to_string());
                let key = keys.get(&record.seal_generation).ok_or_else(damaged)?;
                let context = name.as_str().as_bytes();
                let plain = key.open(context, &record.sealed).map_err(|_| damaged())?;
                record.sealed = current.seal(context, &plain)?;
                record.seal_generation = generation;
                batch.put(VERSIONS, name.as_str(), &record);
                moved.push(record);
            }
            self.commit(batch, |catalog| moved.into_iter().for_each(|record| catalog.put_version(record)))?;
        }
    }
}

/// A new key for leases and revocations, and its seed under the root key.
pub(crate) fn new_signer(root: &SealingKey) -> Result<(Arc<SigningKey>, Vec<u8>), VaultError> {
    let seed = SigningKey::new_seed().map_err(|_| VaultError::Backend)?;
    let signer = SigningKey::from_seed(SIGNER, &*seed).map_err(|_| VaultError::Backend)?;
    Ok((Arc::new(signer), root.seal(SIGNING, &*seed)?))
}
