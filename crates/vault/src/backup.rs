//! Sealed copies of keys: taken, kept elsewhere, and brought back to the vault that they are of.
//!
//! A copy has every version with its private half and outlives the key: restoring it after a purge brings the very
//! same key back, as Azure does. Whoever may take a copy can undo a purge; the trail has each one.

use crate::{
    Call, EventType, KeyView, Vault, VaultError,
    catalog::{KEYS, RETIRED, VERSIONS},
    gate::{Permit, op},
    record::{KeyRecord, VersionRecord},
    uses::Uses,
};
use custody_store::Batch;
use custody_types::{KeyName, Permission, Protection, VaultName};
use serde::{Deserialize, Serialize};

/// What a copy begins with. The vault's name follows, a colon, which of its keys seals the rest, and a colon.
const MAGIC: &str = "CUSTODY-KEY-BACKUP-2:";
/// Longest copy that is read, in bytes: some 500 versions.
const LEN_MAX: usize = 4 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Copy {
    key: KeyRecord,
    /// Their private halves are sealed for their own names besides.
    versions: Vec<VersionRecord>,
}

/// How long the head of a copy is, of which vault it says to be, and which key seals it.
fn split_head(copy: &[u8]) -> Option<(usize, &str, u32)> {
    let start = copy.get(..copy.len().min(256))?;
    let start = std::str::from_utf8(start).unwrap_or_else(|e| {
        start.get(..e.valid_up_to()).and_then(|valid| std::str::from_utf8(valid).ok()).unwrap_or_default()
    });
    let mut parts = start.strip_prefix(MAGIC)?.splitn(3, ':');
    let (vault, generation, _) = (parts.next()?, parts.next()?, parts.next()?);
    Some((MAGIC.len() + vault.len() + generation.len() + 2, vault, generation.parse().ok()?))
}

impl Vault {
    /// Takes a sealed copy of a key with all its versions.
    ///
    /// # Errors
    /// Not allowed, does not exist, is deleted, or a second officer has to agree.
    pub fn backup_key(&self, call: &Call, name: &str) -> Result<Vec<u8>, VaultError> {
        let name: KeyName = name.parse()?;
        self.gate.run(call, name.as_str(), |permit| self.do_backup(&permit, call, &name))
    }

    fn do_backup(
        &self,
        _: &Permit<op::BackupKey>,
        call: &Call,
        name: &KeyName,
    ) -> Result<Vec<u8>, VaultError> {
        let (generation, sealing) = self.keyring.current(&name.vault())?;
        let _one_at_a_time = self.changes.lock();
        let copy = {
            let catalog = self.catalog.read();
            let key = catalog.live_key(name)?.clone();
            let in_hsm = |v| catalog.version(v).is_ok_and(|v| v.record.protection == Protection::Hsm);
            if key.versions.iter().any(in_hsm) {
                let why = "is in the HSM, which it never leaves; back the HSM itself up";
                return Err(VaultError::Precondition { name: name.to_string(), why });
            }
            let versions = key.versions.iter().map(|v| Ok(catalog.version(v)?.record.clone()));
            let versions = versions.collect::<Result<_, VaultError>>()?;
            Copy { key, versions }
        };
        let action = format!("back up {name}");
        let agreed = self.second_officer(call, Permission::Backup, &name.vault(), name.as_str(), action)?;
        self.commit_approved(Batch::new(), agreed, |_| ())?;
        let plain = serde_json::to_vec(&copy).map_err(|_| VaultError::Backend)?;
        let head = format!("{MAGIC}{}:{generation}:", name.vault());
        Ok([head.as_bytes(), &sealing.seal(head.as_bytes(), &plain)?].concat())
    }

    /// Brings a copy back under its own name, which must be free: not of a key, nor of a deleted one.
    ///
    /// # Errors
    /// Not allowed; the copy was altered, or is of another vault or deployment; the name is taken.
    pub fn restore_key(&self, call: &Call, vault: &str, copy: &[u8]) -> Result<KeyView, VaultError> {
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        self.gate.run(call, vault.as_str(), |permit| self.do_restore(&permit, &vault, copy))
    }

    fn do_restore(
        &self,
        _: &Permit<op::RestoreKey>,
        vault: &VaultName,
        copy: &[u8],
    ) -> Result<KeyView, VaultError> {
        let bad = |why: &str| VaultError::invalid("backup", why);
        let head = split_head(copy).filter(|_| copy.len() <= LEN_MAX);
        let (head, of, generation) = head.ok_or_else(|| bad("is not a backup of a key"))?;
        if of != vault.as_str() {
            return Err(bad("is of a key of another vault; restore it there"));
        }
        let altered = || bad("was altered, or is of another deployment");
        let sealing = self.keyring.generation(vault, generation)?.ok_or_else(altered)?;
        let (context, sealed) = copy.split_at(head);
        let plain = sealing.open(context, sealed).map_err(|_| altered())?;
        let Copy { key, versions } =
            serde_json::from_slice(&plain).map_err(|_| bad("is of another version of this program"))?;
        let _one_at_a_time = self.changes.lock();
        let held = self.check_name_free(&key.name);
        // The purged key itself may come back: its name means the same key as before.
        let purged = matches!(held, Err(VaultError::NameHeld { .. }))
            && !self.catalog.read().keys.contains_key(&key.name);
        if !purged {
            held?;
        }
        // A purge does not give a budget back.
        let versions = versions
            .into_iter()
            .map(|v| Uses::load(&self.store, &v.name).map(|uses| (v, uses)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut batch = Batch::new();
        batch.put(KEYS, key.name.as_str(), &key).delete(RETIRED, key.name.as_str());
        for (version, _) in &versions {
            batch.put(VERSIONS, version.name.as_str(), version);
        }
        let (now, name) = (self.now(), key.name.clone());
        let view = self.commit(batch, |catalog| {
            catalog.retired.remove(name.as_str());
            versions.into_iter().for_each(|(version, uses)| catalog.put_restored(version, uses));
            catalog.put_key(key.clone(), now);
            catalog.view_key(&key, now)
        })?;
        self.tell(EventType::Recovered, name.as_str());
        view
    }
}
