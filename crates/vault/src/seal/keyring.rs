//! The keys above the private halves, in memory while what they are of is unsealed.

use super::{SealError, SealRecord};
use crate::VaultError;
use custody_envelope::SealingKey;
use custody_proof::SigningKey;
use custody_types::VaultName;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, sync::Arc};

pub(crate) const SEALS: &str = "seals";
/// The row of the deployment's own seal; those of vaults have their names.
pub(crate) const SYSTEM: &str = "system";
/// Where a vault's owner's key lies.
pub(crate) const OWN: &str = "owner of";

/// How the root key is stored, and what it protects besides vaults.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SystemSeal {
    pub(crate) seal: SealRecord,
    /// Counts rotations.
    pub(crate) generation: u32,
    /// The key of the store's integrity, under the root key.
    #[serde(with = "crate::record::base64_bytes")]
    pub(crate) integrity: Vec<u8>,
    /// The seed of the key that leases and revocations are signed with, under the root key; empty in a store that had none.
    #[serde(default, with = "crate::record::base64_bytes")]
    pub(crate) signing: Vec<u8>,
}

/// How a vault's keys are stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct VaultSeal {
    /// By generation, under the owner's key where there is one, and under the root key. The last one seals; the others
    /// open what was sealed before: backups.
    pub(crate) keys: BTreeMap<u32, Sealed>,
    /// The owner's own seal.
    pub(crate) own: Option<SealRecord>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Sealed(#[serde(with = "crate::record::base64_bytes")] Vec<u8>);

fn place(vault: &VaultName, generation: u32) -> Vec<u8> {
    format!("{vault}/sealingKeys/{generation}").into_bytes()
}

impl VaultSeal {
    /// Adds a key.
    pub(crate) fn put(
        &mut self,
        vault: &VaultName,
        generation: u32,
        key: &SealingKey,
        own: Option<&SealingKey>,
        root: &SealingKey,
    ) -> Result<(), SealError> {
        let place = place(vault, generation);
        let inner = match own {
            Some(own) => own.seal(&place, key.expose_to_wrap())?,
            None => key.expose_to_wrap().to_vec(),
        };
        let inner = zeroize::Zeroizing::new(inner);
        self.keys.insert(generation, Sealed(root.seal(&place, &inner)?));
        Ok(())
    }

    /// Moves the keys to another root key; the owner is not asked.
    pub(crate) fn move_to(
        &mut self,
        vault: &VaultName,
        from: &SealingKey,
        to: &SealingKey,
    ) -> Result<(), SealError> {
        for (generation, sealed) in &mut self.keys {
            let place = place(vault, *generation);
            let inner = from.open(&place, &sealed.0).map_err(|_| SealError::WrongKey)?;
            *sealed = Sealed(to.seal(&place, &inner)?);
        }
        Ok(())
    }

    /// Opens all keys.
    pub(crate) fn open(
        &self,
        vault: &VaultName,
        own: Option<&SealingKey>,
        root: &SealingKey,
    ) -> Result<BTreeMap<u32, Arc<SealingKey>>, SealError> {
        let opened = self.keys.iter().map(|(generation, sealed)| {
            let place = place(vault, *generation);
            let mut key = root.open(&place, &sealed.0).map_err(|_| SealError::WrongKey)?;
            if let Some(own) = own {
                key = own.open(&place, &key).map_err(|_| SealError::WrongKey)?;
            }
            let key = SealingKey::from_bytes(&key).map_err(|_| SealError::WrongKey)?;
            Ok((*generation, Arc::new(key)))
        });
        opened.collect()
    }
}

/// The keys of an unsealed vault.
#[derive(Clone, Debug)]
pub(crate) struct VaultKeys {
    pub(crate) generations: BTreeMap<u32, Arc<SealingKey>>,
    /// The owner's key, and the key of its seal.
    pub(crate) own: Option<(Arc<SealingKey>, Arc<SealingKey>)>,
}

/// What is in memory while the deployment is unsealed.
struct Open {
    root: Arc<SealingKey>,
    /// The key of the seal itself: rotating the root key seals the next one under it.
    seal_key: Arc<SealingKey>,
    /// Signs leases and revocations.
    signer: Arc<SigningKey>,
}

#[derive(Default)]
struct Inner {
    open: Option<Open>,
    vaults: BTreeMap<VaultName, VaultKeys>,
}

/// All keys above the private halves that are in memory.
#[derive(Default)]
pub(crate) struct Keyring(RwLock<Inner>);

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyring(..)")
    }
}

impl Keyring {
    /// The root key and the key of its seal.
    pub(crate) fn root(&self) -> Result<(Arc<SealingKey>, Arc<SealingKey>), VaultError> {
        let inner = self.0.read();
        let open = inner.open.as_ref().ok_or(VaultError::Sealed)?;
        Ok((open.root.clone(), open.seal_key.clone()))
    }

    pub(crate) fn set_root(&self, root: SealingKey, seal_key: Arc<SealingKey>, signer: Arc<SigningKey>) {
        self.0.write().open = Some(Open { root: Arc::new(root), seal_key, signer });
    }

    /// The key that signs leases and revocations.
    pub(crate) fn signer(&self) -> Result<Arc<SigningKey>, VaultError> {
        let inner = self.0.read();
        inner.open.as_ref().map(|open| open.signer.clone()).ok_or(VaultError::Sealed)
    }

    pub(crate) fn put(&self, vault: &VaultName, keys: VaultKeys) {
        self.0.write().vaults.insert(vault.clone(), keys);
    }

    /// Forgets a vault's keys.
    pub(crate) fn forget(&self, vault: &VaultName) {
        self.0.write().vaults.remove(vault);
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        *self.0.write() = Inner::default();
    }

    pub(crate) fn is_sealed(&self, vault: &VaultName) -> bool {
        !self.0.read().vaults.contains_key(vault)
    }

    pub(crate) fn vault(&self, vault: &VaultName) -> Result<VaultKeys, VaultError> {
        let inner = self.0.read();
        match inner.vaults.get(vault) {
            Some(keys) => Ok(keys.clone()),
            None if inner.open.is_none() => Err(VaultError::Sealed),
            None => Err(VaultError::VaultSealed(vault.to_string())),
        }
    }

    /// The key that seals in a vault, and its generation.
    pub(crate) fn current(&self, vault: &VaultName) -> Result<(u32, Arc<SealingKey>), VaultError> {
        let keys = self.vault(vault)?.generations;
        keys.into_iter().next_back().ok_or_else(|| VaultError::VaultSealed(vault.to_string()))
    }

    /// A key of a vault by its generation; none that the vault never had.
    pub(crate) fn generation(
        &self,
        vault: &VaultName,
        generation: u32,
    ) -> Result<Option<Arc<SealingKey>>, VaultError> {
        Ok(self.vault(vault)?.generations.remove(&generation))
    }
}
