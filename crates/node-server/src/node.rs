//! The node: its volumes, and how they are made, found and removed.

use crate::{
    backup::{Chain, Writing},
    dependents::{Declared, Dependents},
    keeper,
    leases::{Granted, Leases},
    managed::{Managed, VolumeStatus},
    protection::{Protection, wrap},
    wal_index::WalIndex,
    watch::Watches,
};
use custody_clients::{AccessError, Endpoint, TokenSource, VaultAccess};
use custody_envelope::{StreamKey, VolumeKey};
use custody_node::{
    BackupStore, Protector, ProtectorKind, SpillLimits, Spills, Superblock, Volume, VolumeOptions,
    anchor_path,
};
use custody_rpc::status::{invalid, status};
use custody_types::{
    Clock as _, KeyName, KeyVersionName, PassingReason, SystemClock, VaultName, VolumeName, WrappedKey,
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::{Code, Status};

pub(crate) struct NodeConfig {
    pub(crate) data: PathBuf,
    pub(crate) anchors: PathBuf,
    pub(crate) backups: Arc<dyn BackupStore>,
    pub(crate) identity: Endpoint,
    pub(crate) vault: Endpoint,
    pub(crate) renew_every: Duration,
    /// Between two extents that are re-encrypted.
    pub(crate) extent_pace: Duration,
    pub(crate) data_key_age_max: Duration,
    /// Bytes on disk of all spills together.
    pub(crate) spill_bytes_max: u64,
    pub(crate) nbd_socket: PathBuf,
    pub(crate) nbd_address: SocketAddr,
}

pub(crate) struct Node {
    pub(crate) config: NodeConfig,
    /// How every volume is run; they share what bounds their memory.
    pub(crate) options: VolumeOptions,
    volumes: RwLock<BTreeMap<VolumeName, Arc<Managed>>>,
    /// Names that are being made or removed: one at a time for each.
    busy: Mutex<Vec<VolumeName>>,
    access: Mutex<HashMap<String, VaultAccess>>,
    pub(crate) watches: Watches,
    pub(crate) leases: Leases,
    pub(crate) dependents: Dependents,
    pub(crate) wal_index: Arc<WalIndex>,
    pub(crate) noting: Mutex<()>,
    pub(crate) writing: Arc<Writing>,
    pub(crate) spills: Spills,
    /// What moments of spills are counted from.
    pub(crate) started: Instant,
    /// What moments of renewals are counted from: nodes differ in it, so that they do not all ask at once.
    grid: Duration,
}

/// Spills at once, at most.
const SPILLS_MAX: usize = 10_000;
/// How long a spill that nobody reads is kept.
const SPILL_IDLE_MAX: Duration = Duration::from_secs(3600);

/// What a caller wants made.
pub(crate) struct NewVolume {
    pub(crate) name: VolumeName,
    pub(crate) size_bytes: u64,
    pub(crate) protection: Protection,
    pub(crate) ephemeral: bool,
    pub(crate) source_backup: String,
}

/// What a volume that is to be made begins with.
enum Begun {
    /// The file of a restore that was cut short.
    Unfinished(Box<Volume>),
    /// A key, what protects it, and that the vault knows of it.
    Anew(VolumeKey, Protector, Declared),
}

pub(crate) struct Busy<'a>(&'a Node, VolumeName);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.lock().retain(|n| *n != self.1);
    }
}

pub(crate) fn refused(e: AccessError) -> Status {
    match &e {
        AccessError::Refused { reason, status: code, message } => {
            let code = if code == "NOT_FOUND" { "FAILED_PRECONDITION" } else { code };
            status(code, reason, message, None)
        }
        AccessError::HsmUnavailable(why) => status("UNAVAILABLE", "HSM_UNAVAILABLE", why, None),
        _ => status("UNAVAILABLE", "VAULT_UNAVAILABLE", &e.to_string(), None),
    }
}

pub(crate) fn failed(e: impl std::fmt::Display) -> Status {
    tracing::error!(error = %e, "volume operation failed");
    status("INTERNAL", "STORAGE_FAILED", &e.to_string(), None)
}

impl Node {
    /// Finds the volumes on disk. Sealed ones wait for the vault; ephemeral ones are made anew, empty, since their
    /// key is gone with the process that had it.
    pub(crate) async fn open(config: NodeConfig, leases: Leases) -> anyhow::Result<Arc<Self>> {
        let found = fs::read_dir(&config.data)?.filter_map(Result::ok).map(|e| e.path()).collect::<Vec<_>>();
        let spills = config.data.join("spills");
        fs::create_dir_all(&spills)?;
        let limits = SpillLimits {
            bytes_max: config.spill_bytes_max,
            count_max: SPILLS_MAX,
            idle_max: SPILL_IDLE_MAX,
        };
        let node = Arc::new(Self {
            spills: Spills::open(spills, limits)?,
            started: Instant::now(),
            grid: SystemClock.monotonic(),
            watches: Watches::default(),
            leases,
            dependents: Dependents::default(),
            wal_index: Arc::default(),
            noting: Mutex::default(),
            writing: Arc::default(),
            options: VolumeOptions {
                data_key_age_max: config.data_key_age_max,
                anchors: Some(config.anchors.clone()),
                ..VolumeOptions::default()
            },
            config,
            volumes: RwLock::default(),
            busy: Mutex::default(),
            access: Mutex::default(),
        });
        for path in found {
            match path.extension().and_then(|e| e.to_str()) {
                // What of a restore was noted is gone on with, when it is asked for again.
                Some("partial") if restoring(&path).is_none() => node.remove_volume(&path)?,
                Some("volume") => node.adopt(&path)?,
                _ => {}
            }
        }
        Ok(node)
    }

    fn adopt(self: &Arc<Self>, path: &Path) -> anyhow::Result<()> {
        let id = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let Ok(name) = format!("volumes/{id}").parse::<VolumeName>() else { return Ok(()) };
        let superblock = match Superblock::read(&File::open(path)?) {
            Ok(superblock) => superblock,
            Err(e) => {
                tracing::error!(volume = %name, error = %e, "a volume cannot be used");
                return Ok(());
            }
        };
        if superblock.protector.kind == ProtectorKind::Ephemeral {
            fs::remove_file(path)?;
            let volume = self.make_ephemeral(path, superblock.size_bytes)?;
            self.install(Managed::open(name, path.to_owned(), volume));
        } else {
            self.install(Managed::sealed(name, path.to_owned(), superblock));
        }
        Ok(())
    }

    fn install(self: &Arc<Self>, managed: Managed) -> Arc<Managed> {
        let managed = Arc::new(managed);
        self.volumes.write().insert(managed.name.clone(), managed.clone());
        if !managed.protector().key.is_empty() {
            managed.set_task(tokio::spawn(keeper::keep(self.clone(), managed.clone())));
        }
        managed
    }

    fn make_ephemeral(&self, path: &Path, size_bytes: u64) -> anyhow::Result<Volume> {
        let protector = Protector {
            kind: ProtectorKind::Ephemeral,
            key: String::new(),
            managed_identity: String::new(),
            wrapped: None,
        };
        // It ends with this process, and is never put back.
        let options = VolumeOptions { anchors: None, ..self.options.clone() };
        Ok(Volume::create(path, size_bytes, &VolumeKey::generate()?, protector, options)?)
    }

    /// Removes a volume's file, and its anchor after it: a file without one could not be opened any more.
    fn remove_volume(&self, path: &Path) -> io::Result<()> {
        let superblock = File::open(path).ok().and_then(|file| Superblock::read(&file).ok());
        fs::remove_file(path)?;
        let Some(superblock) = superblock else { return Ok(()) };
        match fs::remove_file(anchor_path(&self.config.anchors, superblock.volume_id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    pub(crate) fn volume(&self, name: &str) -> Result<Arc<Managed>, Status> {
        let name: VolumeName = name.parse().map_err(|e| invalid("name", e))?;
        let found = self.volumes.read().get(&name).cloned();
        found.ok_or_else(|| {
            status("NOT_FOUND", "NOT_FOUND", &format!("`{name}` does not exist on this node"), None)
        })
    }

    pub(crate) fn volumes(&self) -> Vec<Arc<Managed>> {
        self.volumes.read().values().cloned().collect()
    }

    /// The vault, as a managed identity.
    pub(crate) fn access(&self, managed_identity: &str) -> VaultAccess {
        let mut access = self.access.lock();
        access
            .entry(managed_identity.to_owned())
            .or_insert_with(|| {
                let tokens =
                    TokenSource::workload(self.config.identity.clone(), managed_identity, "custody-vault");
                VaultAccess::new(&self.config.vault, tokens)
            })
            .clone()
    }

    /// A new key for what is stored beside a volume, and that key wrapped by the volume's KEK, in its version of this moment.
    pub(crate) async fn new_stream_key(
        &self,
        protector: &Protector,
    ) -> Result<(StreamKey, WrappedKey), Status> {
        let key = StreamKey::generate().map_err(failed)?;
        let access = self.access(&protector.managed_identity);
        let wrapped = access.wrap_key(&protector.key, key.expose_to_wrap()).await.map_err(refused)?;
        Ok((key, wrapped))
    }

    /// The last moment until `after` from now at which all volumes of the node that renew so often do it together.
    pub(crate) fn together(&self, now: Duration, after: Duration) -> Duration {
        let since = (now + after).saturating_sub(self.grid).as_nanos();
        let past = since % after.as_nanos().max(1);
        (now + after).saturating_sub(Duration::from_nanos(u64::try_from(past).unwrap_or(0)))
    }

    pub(crate) fn reserve(&self, name: &VolumeName) -> Result<Busy<'_>, Status> {
        let mut busy = self.busy.lock();
        if busy.contains(name) {
            return Err(status(
                "ABORTED",
                "OPERATION_IN_PROGRESS",
                &format!("`{name}` is being made or removed; try again"),
                None,
            ));
        }
        busy.push(name.clone());
        Ok(Busy(self, name.clone()))
    }

    /// Makes a volume, or answers the one that is there if it is the same.
    pub(crate) async fn create(self: &Arc<Self>, new: NewVolume) -> Result<Arc<Managed>, Status> {
        let _busy = self.reserve(&new.name)?;
        let there = self.volumes.read().get(&new.name).cloned();
        if let Some(there) = there {
            let p = there.protector();
            let same = there.size_bytes() == new.size_bytes
                && p.key == new.protection.key
                && p.managed_identity == new.protection.managed_identity;
            return if same {
                Ok(there)
            } else {
                Err(status(
                    "ALREADY_EXISTS",
                    "ALREADY_EXISTS",
                    &format!("`{}` exists with another size or key", new.name),
                    None,
                ))
            };
        }
        Superblock::check_size(new.size_bytes).map_err(|e| invalid("volume.size_bytes", e))?;
        let path = self.config.data.join(format!("{}.volume", new.name.id()));
        let (volume, lease) = if new.ephemeral {
            let (node, path, size) = (self.clone(), path.clone(), new.size_bytes);
            (blocking(move || node.make_ephemeral(&path, size).map_err(failed)).await?, None)
        } else {
            let mut lease = None;
            let made = self.make_sealed(&new, &path, &mut lease).await;
            if let (Err(_), Some(lease)) = (&made, &lease) {
                self.leases.report(lease, "RELEASED", self.leases.now());
            }
            (made?, lease)
        };
        tracing::info!(volume = %new.name, "volume made");
        let managed = Managed::open(new.name, path, volume);
        *managed.lease.lock() = lease;
        Ok(self.install(managed))
    }

    /// Checks the key, has a new volume key wrapped, makes the file under another name, fills it from a backup
    /// where one is given, and only then gives it its name.
    async fn make_sealed(
        self: &Arc<Self>,
        new: &NewVolume,
        path: &Path,
        lease: &mut Option<Granted>,
    ) -> Result<Volume, Status> {
        let access = self.check_key(&new.protection).await?;
        let restore = match new.source_backup.as_str() {
            "" => None,
            backup => Some(Chain::open(self, &access, "source_backup", backup).await?),
        };
        if let Some(had) = restore.as_ref().map(Chain::size_bytes).filter(|had| *had > new.size_bytes) {
            return Err(invalid(
                "volume.size_bytes",
                format!("must be at least {had}, as the backup's volume had"),
            ));
        }
        let (partial, path, size) = (path.with_extension("partial"), path.to_owned(), new.size_bytes);
        let unfinished = match &restore {
            Some(chain) => self.unfinished(new, chain, &access, &partial).await?,
            None => None,
        };
        let begun = match unfinished {
            Some(volume) => Begun::Unfinished(Box::new(volume)),
            None => {
                let key = VolumeKey::generate().map_err(failed)?;
                let protector = wrap(&access, &new.protection, &key).await?;
                let declared = self.declare_volume(&new.name, &protector).await?;
                Begun::Anew(key, protector, declared)
            }
        };
        let opens = match &begun {
            Begun::Unfinished(volume) => volume.protector().wrapped,
            Begun::Anew(_, protector, _) => protector.wrapped.clone(),
        };
        if let Some(wrapped) = opens {
            *lease = Some(self.leases.ask(&access, &new.name, &wrapped.key_version).await.map_err(refused)?);
        }
        let (node, name) = (self.clone(), new.name.clone());
        blocking(move || {
            let made = match begun {
                Begun::Unfinished(volume) => *volume,
                Begun::Anew(key, protector, declared) => {
                    _ = node.remove_volume(&partial);
                    let made = Volume::create(&partial, size, &key, protector, node.options.clone());
                    // What is there of it, if only in part, is noted before the declaration goes.
                    node.note_volume(&name);
                    drop(declared);
                    made.map_err(failed)?
                }
            };
            let filled = restore.map_or(Ok(()), |r| r.fill(&made)).and_then(|()| {
                fs::rename(&partial, &path).map_err(failed)?;
                let parent = path.parent().unwrap_or_else(|| Path::new("."));
                File::open(parent).and_then(|d| d.sync_all()).map_err(failed)
            });
            if let Err(e) = filled {
                // A store that is away now may be there later.
                if e.code() != Code::Unavailable {
                    _ = node.remove_volume(&partial);
                    node.note_volume(&name);
                }
                return Err(e);
            }
            Ok(made)
        })
        .await
    }

    /// The volume of a restore of the same that was cut short, if one can be gone on with.
    async fn unfinished(
        &self,
        new: &NewVolume,
        chain: &Chain,
        access: &VaultAccess,
        partial: &Path,
    ) -> Result<Option<Volume>, Status> {
        let (path, options) = (partial.to_owned(), self.options.clone());
        let Some(superblock) = blocking(move || Ok(restoring(&path))).await? else { return Ok(None) };
        let same = superblock.restoring.as_ref().is_some_and(|noted| noted.chain == chain.id())
            && superblock.size_bytes == new.size_bytes
            && new.protection.is(&superblock.protector);
        let Some(wrapped) = superblock.protector.wrapped.filter(|_| same) else { return Ok(None) };
        let plain = access.unwrap_key(&wrapped).await.map_err(refused)?;
        let key = VolumeKey::from_bytes(&plain).map_err(failed)?;
        let (path, name) = (partial.to_owned(), new.name.clone());
        blocking(move || match Volume::open(&path, &key, options) {
            Ok(volume) => {
                let noted = volume.restoring();
                tracing::info!(volume = %name, ?noted, "the restore goes on where it was cut short");
                Ok(Some(volume))
            }
            Err(e) => {
                tracing::warn!(volume = %name, error = %e, "the restore begins again");
                Ok(None)
            }
        })
        .await
    }

    /// Closes and removes a volume. Its wrapped key goes with its file: what was in it cannot be opened any more.
    pub(crate) async fn delete(self: &Arc<Self>, name: &str) -> Result<(), Status> {
        let managed = match self.volume(name) {
            Ok(managed) => managed,
            Err(e) => return self.delete_unfinished(name).await.and_then(|gone| gone.then_some(()).ok_or(e)),
        };
        let _busy = self.reserve(&managed.name)?;
        managed.stop_task();
        self.volumes.write().remove(&managed.name);
        let node = self.clone();
        blocking(move || {
            managed.close(VolumeStatus::inaccessible("DELETED"));
            node.release(&managed);
            let removed = node.remove_volume(&managed.path).map_err(failed);
            node.note_volume(&managed.name);
            removed
        })
        .await
    }

    /// Says that the keys of a volume that was closed are gone.
    fn release(&self, managed: &Managed) {
        let lease = managed.lease.lock().take();
        if let Some(lease) = lease {
            self.leases.report(&lease, "RELEASED", self.leases.now());
        }
    }

    /// Removes what a restore that was cut short has left. False where there is nothing.
    async fn delete_unfinished(self: &Arc<Self>, name: &str) -> Result<bool, Status> {
        let name: VolumeName = name.parse().map_err(|e| invalid("name", e))?;
        let _busy = self.reserve(&name)?;
        let (node, partial) = (self.clone(), self.config.data.join(format!("{}.partial", name.id())));
        let noted = name.clone();
        blocking(move || {
            let removed = node.remove_volume(&partial);
            node.note_volume(&noted);
            match removed {
                Ok(()) => Ok(true),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(e) => Err(failed(e)),
            }
        })
        .await
    }

    /// Flushes and closes everything.
    pub(crate) async fn close(self: &Arc<Self>) {
        for managed in self.volumes() {
            managed.stop_task();
            let node = self.clone();
            _ = blocking(move || {
                managed.close(VolumeStatus::inaccessible(PassingReason::Shutdown.as_str()));
                node.release(&managed);
                Ok(())
            })
            .await;
        }
        self.leases.last_words().await;
    }
}

/// The superblock of a volume file whose restore was cut short after something was noted of it.
fn restoring(path: &Path) -> Option<Superblock> {
    let superblock = Superblock::read(&File::open(path).ok()?).ok()?;
    superblock.restoring.is_some().then_some(superblock)
}

/// The key of a key or of a key version.
pub(crate) fn key_of(name: &str) -> Option<KeyName> {
    name.parse().ok().or_else(|| name.parse::<KeyVersionName>().ok().map(|v| v.key()))
}

/// The vault of a key or of a key version.
pub(crate) fn vault_of(name: &str) -> Option<VaultName> {
    key_of(name).map(|k| k.vault())
}

/// Runs work that blocks.
pub(crate) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(job).await.map_err(|_| custody_rpc::status::internal())?
}
