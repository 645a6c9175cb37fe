//! Backing volumes up and restoring them.

use crate::{
    inventory::{backup_facts, backup_resource},
    managed::Managed,
    node::{Node, blocking, failed, key_of, refused},
};
use custody_clients::VaultAccess;
use custody_envelope::{OpenError, StreamKey, checksum, random};
use custody_node::{
    BackupError, BackupManifest, BackupStore, Base, Marks, Piece, Restoring, Snapshot, Volume, read_backup,
    read_backup_from, read_marks, write_backup,
};
use custody_proto::storage::BackupProgress;
use custody_rpc::status::{invalid, status};
use custody_types::{Clock as _, ManagedIdentityName, SystemClock, VolumeName};
use parking_lot::Mutex;
use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::mpsc;
use tonic::Status;

/// A backup and all that it adds to, the full one first, with their keys.
pub(crate) struct Chain {
    store: Arc<dyn BackupStore>,
    parts: Vec<Part>,
}

struct Part {
    name: String,
    manifest: BackupManifest,
    key: StreamKey,
}

/// Backups and archived files that are being made, changed or removed.
#[derive(Default)]
pub(crate) struct Writing(Mutex<Vec<UnderWay>>);

struct UnderWay {
    name: String,
    /// What it adds to, for an increment that is being made.
    base: String,
    /// Whether it is being removed, with all below it.
    going: bool,
}

pub(crate) struct BeingWritten(Arc<Writing>, String);

impl Writing {
    pub(crate) fn enter(self: &Arc<Self>, name: &str, base: &str) -> Result<BeingWritten, Status> {
        self.begin(UnderWay { name: name.to_owned(), base: base.to_owned(), going: false })
    }

    /// Keeps others from it, and from all below it, while it is removed.
    pub(crate) fn leave(self: &Arc<Self>, name: &str) -> Result<BeingWritten, Status> {
        self.begin(UnderWay { name: name.to_owned(), base: String::new(), going: true })
    }

    fn begin(self: &Arc<Self>, new: UnderWay) -> Result<BeingWritten, Status> {
        let mut all = self.0.lock();
        let in_the_way = |other: &UnderWay| {
            is_in(&other.name, &new.name)
                || is_in(&new.name, &other.name)
                || (new.going && is_in(&other.base, &new.name))
                || (other.going && is_in(&new.base, &other.name))
        };
        if all.iter().any(in_the_way) {
            return Err(in_progress());
        }
        let name = new.name.clone();
        all.push(new);
        Ok(BeingWritten(self.clone(), name))
    }
}

impl Drop for BeingWritten {
    fn drop(&mut self) {
        let Self(writing, name) = self;
        writing.0.lock().retain(|other| other.name != *name);
    }
}

/// Whether a backup is the one of this name, or in the folder of this name.
pub(crate) fn is_in(backup: &str, name: &str) -> bool {
    backup.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn in_progress() -> Status {
    status("ABORTED", "OPERATION_IN_PROGRESS", "it is being made; try again", None)
}

pub(crate) fn backup_failed(e: BackupError) -> Status {
    match e {
        BackupError::Exists => status("ALREADY_EXISTS", "ALREADY_EXISTS", &e.to_string(), None),
        BackupError::GivenUp => status("CANCELLED", "BACKUP_INTERRUPTED", &e.to_string(), None),
        BackupError::Corrupt | BackupError::Manifest => {
            status("DATA_LOSS", "BACKUP_CORRUPT", &e.to_string(), None)
        }
        BackupError::OtherVolume | BackupError::VolumeOlder => {
            status("FAILED_PRECONDITION", "BACKUP_BASE_UNUSABLE", &e.to_string(), None)
        }
        BackupError::Overtaken => status("RESOURCE_EXHAUSTED", "BACKUP_OVERTAKEN", &e.to_string(), None),
        BackupError::Io(_) => {
            tracing::error!(error = %e, "the store of backups failed");
            status("UNAVAILABLE", "BACKUP_STORE_FAILED", &e.to_string(), None)
        }
        other => failed(other),
    }
}

/// Segments between two notes of how far a restore has come: a quarter of a GiB.
const NOTE_EVERY: u64 = 16;
/// Backups that one needs for a restore, itself among them, at most.
const CHAIN_LEN_MAX: usize = 64;

fn too_long() -> Status {
    let why = format!("{CHAIN_LEN_MAX} backups add to one another already; take a full one");
    status("FAILED_PRECONDITION", "BACKUP_BASE_UNUSABLE", &why, None)
}

impl Chain {
    /// Finds what a backup adds to, and has all the keys unwrapped.
    pub(crate) async fn open(
        node: &Node,
        access: &VaultAccess,
        field: &'static str,
        backup: &str,
    ) -> Result<Self, Status> {
        let store = node.config.backups.clone();
        let (mut next, mut parts) = (Some(backup.to_owned()), Vec::<Part>::new());
        let mut wanted = None;
        while let Some(name) = next {
            check_name(field, &name)?;
            let manifest = read_manifest(&store, &name).await?.map_err(|e| match (e, wanted) {
                (e @ BackupError::Io(_), _) => backup_failed(e),
                (e, None) => invalid(field, e),
                (_, Some(_)) => missing(&name),
            })?;
            if wanted.is_some_and(|id| id != manifest.backup_id) {
                return Err(missing(&name));
            }
            if parts.len() >= CHAIN_LEN_MAX {
                return Err(too_long());
            }
            let plain = access.unwrap_key(&manifest.wrapped).await.map_err(refused)?;
            let key =
                StreamKey::from_bytes(&plain).map_err(|OpenError| invalid(field, "its key is malformed"))?;
            (next, wanted) = manifest.base.clone().map(|b| (b.backup, b.backup_id)).unzip();
            parts.push(Part { name, manifest, key });
        }
        parts.reverse();
        Ok(Self { store, parts })
    }

    /// The length of the volume that it was taken of.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.manifest.size_bytes)
    }

    /// Which backups it is of.
    pub(crate) fn id(&self) -> [u8; 32] {
        let ids: Vec<u8> = self.parts.iter().flat_map(|part| part.manifest.backup_id).collect();
        checksum(&ids)
    }

    /// Writes everything into a new volume, or what is left of it into one whose restore was cut short, and makes it
    /// durable.
    pub(crate) fn fill(&self, volume: &Volume) -> Result<(), Status> {
        let noted = volume.restoring().filter(|noted| noted.chain == self.id());
        let begun = noted.map_or((0, 0), |noted| (noted.part, noted.segment));
        for (number, part) in (0..).zip(&self.parts).skip(begun.0 as usize) {
            let first = if number == begun.0 { begun.1 } else { 0 };
            let noted = Mutex::new(first);
            let note = |segment| {
                // One at a time, and nobody waits for it.
                let Some(mut noted) = noted.try_lock().filter(|noted| segment >= **noted + NOTE_EVERY) else {
                    return Ok(());
                };
                *noted = segment;
                volume.set_restoring(Some(Restoring { chain: self.id(), part: number, segment }))
            };
            let from = (self.store.as_ref(), part.name.as_str());
            let restore = |piece: Piece<'_>| volume.restore(piece);
            read_backup_from(from, &part.manifest, &part.key, first, restore, note)
                .map_err(|e| part.unreadable(e))?;
        }
        volume.set_restoring(None).map_err(failed)
    }

    /// Reads everything, and answers whether it authenticates.
    pub(crate) fn verify(&self) -> Result<(), Status> {
        for part in &self.parts {
            let from = (self.store.as_ref(), part.name.as_str());
            read_backup(from, &part.manifest, &part.key, |_| Ok(())).map_err(|e| part.unreadable(e))?;
        }
        Ok(())
    }
}

impl Part {
    fn unreadable(&self, e: BackupError) -> Status {
        tracing::error!(backup = self.name, error = %e, "a backup cannot be read");
        backup_failed(e)
    }
}

fn missing(base: &str) -> Status {
    let why = format!("the backup `{base}`, which it adds to, is missing or is another one");
    status("DATA_LOSS", "BACKUP_CORRUPT", &why, None)
}

/// Begins a backup; progress comes on the channel, an error ends it.
pub(crate) async fn begin(
    node: &Arc<Node>,
    managed: Arc<Managed>,
    backup: &str,
    base_name: &str,
) -> Result<mpsc::Receiver<Result<BackupProgress, Status>>, Status> {
    check_name("backup", backup)?;
    if !base_name.is_empty() {
        check_name("base", base_name)?;
    }
    let being_written = node.writing.enter(backup, base_name)?;
    let store = node.config.backups.clone();
    match read_manifest(&store, backup).await? {
        Err(BackupError::Missing) => {}
        Err(e @ BackupError::Io(_)) => return Err(backup_failed(e)),
        _ => return Err(backup_failed(BackupError::Exists)),
    }
    let volume = managed.volume().ok_or_else(|| managed.refusal())?;
    let protector = managed.protector();
    if key_of(&protector.key).is_none() {
        return Err(invalid("name", "an ephemeral volume is not backed up"));
    }
    let access = node.access(&protector.managed_identity);
    let base = match base_name {
        "" => None,
        name => Some(Chain::open(node, &access, "base", name).await?),
    };
    if base.as_ref().is_some_and(|chain| chain.parts.len() >= CHAIN_LEN_MAX) {
        return Err(too_long());
    }
    let base = base.and_then(|chain| chain.parts.into_iter().last());
    if base.as_ref().is_some_and(|part| part.manifest.volume_id != volume.id()) {
        return Err(backup_failed(BackupError::OtherVolume));
    }
    // A backup has a key of its own, wrapped by the KEK version of this moment.
    let (key, wrapped) = node.new_stream_key(&protector).await?;
    let facts = backup_facts((!base_name.is_empty()).then_some(base_name));
    let declared = node.dependents.declare(&backup_resource(backup), &wrapped.key_version, facts).await;
    let declared = declared.map_err(refused)?;
    let mut backup_id = [0; 16];
    random(&mut backup_id).map_err(failed)?;
    let manifest = BackupManifest {
        version: BackupManifest::VERSION,
        backup_id,
        source: managed.name.to_string(),
        volume_id: volume.id(),
        base: base
            .as_ref()
            .map(|part| Base { backup: base_name.to_owned(), backup_id: part.manifest.backup_id }),
        size_bytes: managed.size_bytes(),
        create_time: SystemClock.now(),
        wrapped,
        bound: None,
        managed_identity: protector.managed_identity,
        chunks: 0,
        marks_from: None,
    };
    let name = backup.to_owned();
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let _being_written = being_written;
        let progress = sender.clone();
        let done = blocking(move || {
            let since = match &base {
                Some(part) => read_marks((store.as_ref(), &part.name), &part.manifest, &part.key)
                    .map_err(backup_failed)?,
                None => Marks::new(),
            };
            let snapshot = Snapshot::take(volume).map_err(failed)?;
            let total = AtomicU64::new(0);
            let tell = |done_blocks, total_blocks| {
                total.store(total_blocks, Ordering::Relaxed);
                _ = progress.try_send(Ok(BackupProgress { done_blocks, total_blocks, complete: false }));
                // A backup lets the volume go when access ends: its keys wait for nobody.
                let given_up = progress.is_closed() || managed.volume().is_none();
                if given_up { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let to = (store.as_ref(), name.as_str());
            write_backup(to, &manifest, &key, snapshot, &since, tell).map_err(|e| match e {
                BackupError::GivenUp if managed.volume().is_none() => managed.refusal(),
                e => backup_failed(e),
            })?;
            Ok(total.into_inner())
        })
        .await;
        if done.is_ok() {
            declared.stored();
        }
        let last =
            done.map(|total| BackupProgress { done_blocks: total, total_blocks: total, complete: true });
        _ = sender.send(last).await;
    });
    Ok(receiver)
}

/// Removes a backup, or a directory of them, unless another adds to it.
pub(crate) async fn delete(node: &Node, backup: &str) -> Result<(), Status> {
    check_name("backup", backup)?;
    let _alone = node.writing.leave(backup)?;
    let (store, name) = (node.config.backups.clone(), backup.to_owned());
    let removed = blocking(move || {
        if let Some(increment) = increment_of(store.as_ref(), &name).map_err(backup_failed)? {
            let why =
                format!("`{increment}` adds to it and could not be restored any more; delete that first");
            return Err(status("FAILED_PRECONDITION", "BACKUP_IN_USE", &why, None));
        }
        if store.remove(&name).map_err(|e| backup_failed(e.into()))? {
            return Ok(());
        }
        Err(status("NOT_FOUND", "NOT_FOUND", &format!("the backup `{name}` does not exist"), None))
    })
    .await;
    if removed.is_ok() {
        node.dependents.gone(&backup_resource(backup));
    }
    removed
}

/// A backup outside `name` that adds to `name`, or to one in it.
fn increment_of(store: &dyn BackupStore, name: &str) -> Result<Option<String>, BackupError> {
    for other in store.names()?.into_iter().filter(|other| !is_in(other, name)) {
        match BackupManifest::read(store, &other) {
            Ok(BackupManifest { base: Some(base), .. }) if is_in(&base.backup, name) => {
                return Ok(Some(other));
            }
            Err(e @ BackupError::Io(_)) => return Err(e),
            _ => {}
        }
    }
    Ok(None)
}

/// A name is an id, with one folder before it at most.
pub(crate) fn check_name(field: &'static str, backup: &str) -> Result<(), Status> {
    // A backup's segments are in a folder `data`, which is not looked into for backups; an archive's keys are in `keys`.
    let good = |part: &str| {
        format!("volumes/{part}").parse::<VolumeName>().is_ok() && part != "data" && part != "keys"
    };
    if backup.split('/').count() <= 2 && backup.split('/').all(good) {
        return Ok(());
    }
    Err(invalid(
        field,
        "must be an id, or two with a slash between: a-z, 0-9 and -, beginning with a letter; neither `data` nor `keys`",
    ))
}

pub(crate) async fn read_manifest(
    store: &Arc<dyn BackupStore>,
    name: &str,
) -> Result<Result<BackupManifest, BackupError>, Status> {
    let (store, name) = (store.clone(), name.to_owned());
    blocking(move || Ok(BackupManifest::read(store.as_ref(), &name))).await
}

/// Reads a backup and what it adds to, as a managed identity that may unwrap its keys.
pub(crate) async fn verify(node: &Node, backup: &str, managed_identity: &str) -> Result<(), Status> {
    _ = managed_identity.parse::<ManagedIdentityName>().map_err(|e| invalid("managed_identity", e))?;
    let chain = Chain::open(node, &node.access(managed_identity), "backup", backup).await?;
    blocking(move || chain.verify()).await
}
