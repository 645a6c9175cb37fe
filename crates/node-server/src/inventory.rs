//! What this node stores that opens with a key version only: as the disk and the store of backups have it.

use crate::{
    backup::backup_failed,
    dependents::{Declared, Facts, Inventory},
    node::{Node, blocking, failed},
    wal_index,
};
use custody_node::{BackupError, BackupManifest, Protector, Superblock};
use custody_proto::vault::DependentKind;
use custody_types::{KeyVersionName, VolumeName};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    sync::Arc,
};
use tonic::Status;

/// The resource that a backup is.
pub(crate) fn backup_resource(name: &str) -> String {
    format!("backups/{name}")
}

/// What a backup is.
pub(crate) fn backup_facts(base: Option<&str>) -> Facts {
    match base {
        Some(base) => Facts { base: backup_resource(base), ..Facts::of(DependentKind::Increment) },
        None => Facts::of(DependentKind::Backup),
    }
}

/// What the backup of a manifest is.
pub(crate) fn manifest_facts(manifest: &BackupManifest) -> Facts {
    backup_facts(manifest.base.as_ref().map(|base| base.backup.as_str()))
}

/// What a volume is under its protector.
pub(crate) fn volume_facts(protector: &Protector) -> Facts {
    Facts { pinned: protector.key.contains("/versions/"), ..Facts::of(DependentKind::Volume) }
}

/// What the copies of a superblock need, the newest first: its protector, and whatever else could open it.
fn of_superblock(copies: &[Superblock]) -> BTreeMap<KeyVersionName, Facts> {
    let mut needed = BTreeMap::new();
    for (n, copy) in copies.iter().enumerate() {
        if let Some(wrapped) = &copy.protector.wrapped {
            let facts = if n == 0 {
                volume_facts(&copy.protector)
            } else {
                Facts::of(DependentKind::FormerProtector)
            };
            needed.entry(wrapped.key_version.clone()).or_insert(facts);
        }
        if let Some(wrapped) = copy.former.as_ref().and_then(|former| former.wrapped.as_ref()) {
            let facts = Facts::of(DependentKind::FormerProtector);
            needed.entry(wrapped.key_version.clone()).or_insert(facts);
        }
    }
    needed
}

impl Node {
    /// Takes in what a volume's file needs now, also where there is none any more. Blocks.
    pub(crate) fn note_volume(&self, name: &VolumeName) {
        // Read and noted by one at a time: what was read first is not noted last.
        let _alone = self.noting.lock();
        match self.volume_needs(name.id()) {
            Ok(needs) => self.dependents.set(name.as_str(), needs),
            Err(e) => {
                tracing::error!(volume = %name, error = %e, "what the volume's file needs cannot be read")
            }
        }
    }

    /// As [`Node::note_volume`], for a task; what was declared of the volume is stored by then, or is taken back.
    pub(crate) async fn note_declared(self: &Arc<Self>, name: &VolumeName, declared: Declared) {
        let (node, name) = (self.clone(), name.clone());
        let noted = blocking(move || {
            node.note_volume(&name);
            drop(declared);
            Ok(())
        });
        _ = noted.await;
    }

    fn volume_needs(&self, id: &str) -> io::Result<BTreeMap<KeyVersionName, Facts>> {
        let mut needs = BTreeMap::new();
        for kind in ["partial", "volume"] {
            match File::open(self.config.data.join(format!("{id}.{kind}"))) {
                Ok(file) => needs.extend(of_superblock(&Superblock::copies(&file)?)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(needs)
    }

    /// Finds all of it. Blocks, for as long as there are backups to look at.
    pub(crate) fn look(&self) -> Result<Inventory, Status> {
        let mut found = Inventory::new();
        let mut take = |resource: &str, needs: BTreeMap<KeyVersionName, Facts>| {
            found.extend(needs.into_iter().map(|(version, facts)| ((resource.to_owned(), version), facts)));
        };
        for entry in fs::read_dir(&self.config.data).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let is = path.extension().is_some_and(|e| e == "volume" || e == "partial");
            if let (true, Some(id)) = (is, path.file_stem().and_then(|s| s.to_str())) {
                take(&format!("volumes/{id}"), self.volume_needs(id).map_err(failed)?);
            }
        }
        let store = &self.config.backups;
        for name in store.names().map_err(|e| backup_failed(e.into()))? {
            match BackupManifest::read(store.as_ref(), &name) {
                Ok(manifest) => {
                    let facts = manifest_facts(&manifest);
                    take(&backup_resource(&name), [(manifest.wrapped.key_version, facts)].into());
                }
                // Deleted meanwhile.
                Err(BackupError::Missing) => {}
                Err(BackupError::Manifest) => tracing::error!(backup = name, "a manifest cannot be read"),
                Err(e) => return Err(backup_failed(e)),
            }
        }
        for name in wal_index::archives(store.as_ref()).map_err(backup_failed)? {
            self.wal_index.load(store.as_ref(), &name).map_err(backup_failed)?;
            take(&wal_index::resource(&name), self.wal_index.versions(&name));
        }
        Ok(found)
    }
}
