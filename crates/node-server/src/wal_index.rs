//! Which keys the files of archived logs are under: read once from the files' first bytes, and kept in step after that.

use crate::{backup::is_in, dependents::Facts};
use custody_node::{BackupError, BackupStore, WAL_FOLDER, WalArchive, WalFileName, WalKeyEntry, WalKeyId};
use custody_proto::vault::DependentKind;
use custody_types::KeyVersionName;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The index of every archive that was looked at.
#[derive(Default)]
pub(crate) struct WalIndex(Mutex<HashMap<String, Indexed>>);

#[derive(Default)]
struct Indexed {
    files: BTreeMap<WalFileName, WalKeyId>,
    keys: BTreeMap<WalKeyId, Key>,
}

struct Key {
    entry: WalKeyEntry,
    /// Made by this process, and without a file yet.
    fresh: bool,
}

/// The resource that an archive is.
pub(crate) fn resource(archive: &str) -> String {
    format!("archives/{archive}")
}

/// The names of all archives.
pub(crate) fn archives(store: &dyn BackupStore) -> Result<Vec<String>, BackupError> {
    let mut names = Vec::new();
    for first in store.folders(WAL_FOLDER)? {
        names.extend(
            store
                .folders(&format!("{WAL_FOLDER}/{first}"))?
                .iter()
                .filter(|n| *n != "keys")
                .map(|n| format!("{first}/{n}")),
        );
        names.push(first);
    }
    Ok(names)
}

impl WalIndex {
    /// Reads what is not known of an archive yet. Blocks.
    pub(crate) fn load(&self, store: &dyn BackupStore, name: &str) -> Result<(), BackupError> {
        let archive = WalArchive::new(store, name);
        let files = archive.files()?;
        let (new_files, mut known) = {
            let all = self.0.lock();
            let of = all.get(name);
            let is_new = |file: &&WalFileName| of.is_none_or(|of| !of.files.contains_key(*file));
            let new: Vec<_> = files.iter().filter(is_new).cloned().collect();
            (new, of.map(|of| of.keys.keys().copied().collect::<BTreeSet<_>>()).unwrap_or_default())
        };
        let (mut found_files, mut found_keys) = (Vec::new(), Vec::new());
        for id in archive.keys()? {
            if known.insert(id)
                && let Some(entry) = archive.key(id)?
            {
                found_keys.push((id, entry));
            }
        }
        for file in new_files {
            let key = match archive.file_key(&file) {
                Ok(key) => key,
                // Pruned meanwhile.
                Err(BackupError::Missing) => continue,
                Err(BackupError::Corrupt) => {
                    tracing::error!(archive = name, %file, "an archived file cannot be read");
                    continue;
                }
                Err(e) => return Err(e),
            };
            // What an earlier version archived has its key with it.
            if let (true, Some(wrapped)) = (known.insert(key.id), key.wrapped) {
                found_keys.push((key.id, WalKeyEntry { managed_identity: String::new(), wrapped }));
            }
            found_files.push((file, key.id));
        }
        if !found_files.is_empty() || !found_keys.is_empty() {
            let mut all = self.0.lock();
            let of = all.entry(name.to_owned()).or_default();
            for (id, entry) in found_keys {
                of.keys.entry(id).or_insert(Key { entry, fresh: false });
            }
            of.files.extend(found_files);
        }
        Ok(())
    }

    /// A key was stored: made, or wrapped anew.
    pub(crate) fn stored_key(&self, archive: &str, id: WalKeyId, entry: WalKeyEntry) {
        let mut all = self.0.lock();
        let of = all.entry(archive.to_owned()).or_default();
        let fresh = of.keys.get(&id).is_none_or(|key| key.fresh);
        of.keys.insert(id, Key { entry, fresh });
    }

    /// A file was archived.
    pub(crate) fn archived(&self, archive: &str, file: &WalFileName, id: WalKeyId) {
        let mut all = self.0.lock();
        let of = all.entry(archive.to_owned()).or_default();
        of.files.insert(file.clone(), id);
        if let Some(key) = of.keys.get_mut(&id) {
            key.fresh = false;
        }
    }

    /// The keys of an archive.
    pub(crate) fn keys(&self, archive: &str) -> Vec<(WalKeyId, WalKeyEntry)> {
        let all = self.0.lock();
        let keys = all.get(archive).into_iter().flat_map(|of| &of.keys);
        keys.map(|(id, key)| (*id, key.entry.clone())).collect()
    }

    /// Whether a key is stored.
    pub(crate) fn has_key(&self, archive: &str, id: WalKeyId) -> bool {
        self.0.lock().get(archive).is_some_and(|of| of.keys.contains_key(&id))
    }

    /// The versions that an archive needs.
    pub(crate) fn versions(&self, archive: &str) -> BTreeMap<KeyVersionName, Facts> {
        let keys = self.keys(archive).into_iter();
        keys.map(|(_, key)| (key.wrapped.key_version, Facts::of(DependentKind::WalArchive))).collect()
    }

    /// Files were removed, and these stay; answers the keys that none of them is under, and that are not in use.
    pub(crate) fn pruned(
        &self,
        archive: &str,
        stay: &[WalFileName],
        in_use: &BTreeSet<WalKeyId>,
    ) -> Vec<WalKeyId> {
        let stay: BTreeSet<_> = stay.iter().collect();
        let mut all = self.0.lock();
        let Some(of) = all.get_mut(archive) else { return Vec::new() };
        of.files.retain(|file, _| stay.contains(file));
        let needed: BTreeSet<_> = of.files.values().collect();
        let idle = |(id, key): &(&WalKeyId, &Key)| !key.fresh && !needed.contains(id) && !in_use.contains(id);
        of.keys.iter().filter(idle).map(|(id, _)| *id).collect()
    }

    /// Keys were removed.
    pub(crate) fn forget_keys(&self, archive: &str, ids: &[WalKeyId]) {
        if let Some(of) = self.0.lock().get_mut(archive) {
            of.keys.retain(|id, _| !ids.contains(id));
        }
    }

    /// An archive was removed, or all in a folder of them.
    pub(crate) fn forget(&self, archive: &str) {
        self.0.lock().retain(|name, _| !is_in(name, archive));
    }
}
