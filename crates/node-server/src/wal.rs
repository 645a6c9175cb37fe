//! Archives of PostgreSQL's write-ahead log: their keys, and files on their way in and out.

use crate::{
    backup::{backup_failed, check_name},
    dependents::Facts,
    managed::{Managed, last},
    node::{Node, blocking, failed, key_of, refused},
    upload::next,
    wal_index::resource,
};
use custody_envelope::StreamKey;
use custody_node::{
    BackupError, BackupStore, Protector, WAL_FILE_LEN_MAX, WAL_FOLDER, WalArchive, WalFileName, WalKeyEntry,
    WalKeyId, WalObject,
};
use custody_proto::{
    storage::{ArchiveWalRequest, RestoreWalRequest, RestoreWalResponse, WalArchive as WireArchive},
    vault::DependentKind,
};
use custody_rpc::{
    status::{invalid, status},
    timestamp::{from_wire, to_wire},
    workers::Workers,
};
use custody_types::{UnixMillis, WrappedKey};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use zeroize::Zeroizing;

/// Files under one key.
const FILES_MAX: u32 = 10_000;
/// How long the next part of a file may take.
const PART_TIMEOUT: Duration = Duration::from_secs(30);

/// A key of an archive, while its volume may be used.
pub(crate) struct WalKey {
    key: StreamKey,
    wrapped: WrappedKey,
    /// The archive that it is of, and its id there, for one that seals.
    place: Option<(String, WalKeyId)>,
    files: AtomicU32,
}

/// A file as its first message tells of it.
struct Arriving {
    archive: String,
    file: WalFileName,
    size_bytes: u64,
    content_bytes: u64,
    written_time: UnixMillis,
}

/// The keys of a volume's archive: what is archived now is sealed under one, what was read last was under the other.
/// Both are in memory no longer than the volume is open.
#[derive(Default)]
pub(crate) struct WalKeys {
    sealing: KeyPlace,
    opening: KeyPlace,
}

#[derive(Default)]
struct KeyPlace(Mutex<Option<Arc<WalKey>>>);

impl KeyPlace {
    fn get(&self) -> Option<Arc<WalKey>> {
        self.0.lock().clone()
    }

    /// Keeps a key, unless access has ended.
    fn keep(&self, managed: &Managed, key: &Arc<WalKey>) -> Result<(), Status> {
        *self.0.lock() = Some(key.clone());
        // In this order: either this sees that the volume is closed, or whoever closes it sees the key.
        if managed.volume().is_some() {
            return Ok(());
        }
        *self.0.lock() = None;
        Err(managed.refusal())
    }
}

impl WalKeys {
    /// Erases both. Blocks until the last user has let go of them.
    pub(crate) fn erase(&self) {
        for place in [&self.sealing, &self.opening] {
            let taken = place.0.lock().take();
            drop(taken.map(last));
        }
    }
}

impl WalKey {
    fn new(key: StreamKey, wrapped: WrappedKey, place: Option<(String, WalKeyId)>) -> Arc<Self> {
        Arc::new(Self { key, wrapped, place, files: AtomicU32::new(0) })
    }

    /// Its id in an archive, where it is of that.
    fn id_in(&self, archive: &str) -> Option<WalKeyId> {
        self.place.as_ref().filter(|(name, _)| name == archive).map(|(_, id)| *id)
    }

    /// Whether what is archived now may be sealed under it.
    fn seals_for(&self, protector: &Protector, archive: &str) -> bool {
        self.id_in(archive).is_some()
            && protector.wrapped.as_ref().is_some_and(|w| w.key_version == self.wrapped.key_version)
            && self.files.load(Ordering::Relaxed) < FILES_MAX
    }
}

fn file_name(field: &'static str, name: &str) -> Result<WalFileName, Status> {
    WalFileName::parse(name).map_err(|e| invalid(field, e))
}

/// Why a file was not taken.
enum TakeError {
    Archive(BackupError),
    Refused(Box<Status>),
}

impl From<BackupError> for TakeError {
    fn from(e: BackupError) -> Self {
        Self::Archive(e)
    }
}

impl From<Status> for TakeError {
    fn from(e: Status) -> Self {
        Self::Refused(Box::new(e))
    }
}

fn archive_failed(file: &WalFileName, e: BackupError) -> Status {
    match e {
        BackupError::Exists => {
            let why = format!("`{file}` is archived already, with other content; an archive is one server's");
            status("ALREADY_EXISTS", "ALREADY_EXISTS", &why, Some("file"))
        }
        BackupError::Missing => {
            status("NOT_FOUND", "NOT_FOUND", &format!("`{file}` is not archived"), Some("file"))
        }
        BackupError::Corrupt => {
            tracing::error!(%file, "an archived file does not authenticate");
            let why = format!("`{file}` does not authenticate: it was altered, cut, or is another file");
            status("DATA_LOSS", "BACKUP_CORRUPT", &why, None)
        }
        e => backup_failed(e),
    }
}

/// The key for what is archived now: one for many files.
async fn key_to_seal(node: &Node, managed: &Managed, archive: &str) -> Result<Arc<WalKey>, Status> {
    let protector = managed.protector();
    let there = |key: &Arc<WalKey>| key.id_in(archive).is_some_and(|id| node.wal_index.has_key(archive, id));
    if let Some(key) =
        managed.wal_keys.sealing.get().filter(|key| key.seals_for(&protector, archive) && there(key))
    {
        return Ok(key);
    }
    if key_of(&protector.key).is_none() {
        return Err(invalid("name", "the log of an ephemeral volume is not archived"));
    }
    let (key, wrapped) = node.new_stream_key(&protector).await?;
    let id = WalKeyId::new().map_err(failed)?;
    let entry = WalKeyEntry { managed_identity: protector.managed_identity, wrapped: wrapped.clone() };
    store_key(node, archive, id, entry).await?;
    let key = WalKey::new(key, wrapped, Some((archive.to_owned(), id)));
    managed.wal_keys.sealing.keep(managed, &key)?;
    Ok(key)
}

/// Stores a key of an archive, new or wrapped anew, once the vault knows of it.
pub(crate) async fn store_key(
    node: &Node,
    archive: &str,
    id: WalKeyId,
    entry: WalKeyEntry,
) -> Result<(), Status> {
    let facts = Facts::of(DependentKind::WalArchive);
    let declared = node.dependents.declare(&resource(archive), &entry.wrapped.key_version, facts).await;
    let declared = declared.map_err(refused)?;
    let (store, name, stored) = (node.config.backups.clone(), archive.to_owned(), entry.clone());
    let put = move || WalArchive::new(store.as_ref(), &name).put_key(id, &stored);
    blocking(move || put().map_err(backup_failed)).await?;
    // In this order: whoever sets what the archive needs finds it in the index.
    node.wal_index.stored_key(archive, id, entry);
    declared.stored();
    Ok(())
}

/// The key of an archived file, unwrapped as the volume's identity. Files beside one another have the same.
async fn key_to_open(node: &Node, managed: &Managed, wrapped: &WrappedKey) -> Result<Arc<WalKey>, Status> {
    if let Some(key) = managed.wal_keys.opening.get().filter(|key| key.wrapped == *wrapped) {
        return Ok(key);
    }
    let access = node.access(&managed.protector().managed_identity);
    let plain = access.unwrap_key(wrapped).await.map_err(refused)?;
    let key = WalKey::new(StreamKey::from_bytes(&plain).map_err(failed)?, wrapped.clone(), None);
    managed.wal_keys.opening.keep(managed, &key)?;
    Ok(key)
}

/// Takes a file.
pub(crate) async fn archive(
    node: &Node,
    workers: &Workers,
    mut parts: Streaming<ArchiveWalRequest>,
) -> Result<(), Status> {
    let first = next(&mut parts, PART_TIMEOUT)
        .await?
        .ok_or_else(|| invalid("name", "is required in the first message"))?;
    let managed = node.volume(&first.name)?;
    let arriving = Arriving::check(&first)?;
    let turn = node.writing.enter(&format!("{WAL_FOLDER}/{}/{}", arriving.archive, arriving.file), "")?;
    let there = arriving.there(node, workers).await?;
    // A server that ended before it noted that a file is archived archives it again.
    let key = match &there {
        Some(object) => key_to_open(node, &managed, object.wrapped()).await?,
        None => key_to_seal(node, &managed, &arriving.archive).await?,
    };
    let (sender, parts_in) = mpsc::channel(2);
    let (store, target, index) = (node.config.backups.clone(), managed.clone(), node.wal_index.clone());
    let taking = workers.run(move || {
        // Also when the caller has gone, and asks again while this one ends.
        let _turn = turn;
        let done = match there {
            Some(object) => arriving.compare(&target, object, &key, parts_in),
            None => arriving.seal(&target, store.as_ref(), key, parts_in).map(|id| {
                index.archived(&arriving.archive, &arriving.file, id);
            }),
        };
        done.map_err(|e| match e {
            TakeError::Archive(e) => archive_failed(&arriving.file, e),
            TakeError::Refused(status) => *status,
        })
    });
    let (taken, ()) = tokio::join!(taking, feed(&managed, first.data, &mut parts, sender));
    taken
}

/// Passes parts on, until the last, or until access ends: what is archived waits for no slow caller then.
async fn feed(
    managed: &Managed,
    first: Vec<u8>,
    parts: &mut Streaming<ArchiveWalRequest>,
    sender: mpsc::Sender<Result<Vec<u8>, Status>>,
) {
    let mut part = Ok(Some(first));
    while let Some(data) = part.transpose() {
        let failed = data.is_err();
        // Where this fails, the other side has, and tells why.
        if sender.send(data).await.is_err() || failed {
            return;
        }
        part = tokio::select! {
            biased;
            () = managed.inaccessible() => Err(managed.refusal()),
            message = next(parts, PART_TIMEOUT) => message.map(|m| m.map(|m| m.data)),
        };
    }
}

impl Arriving {
    fn check(first: &ArchiveWalRequest) -> Result<Self, Status> {
        check_name("archive", &first.archive)?;
        if first.size_bytes > WAL_FILE_LEN_MAX {
            return Err(invalid("size_bytes", "must be 64 MiB or less"));
        }
        if first.content_bytes > first.size_bytes {
            return Err(invalid("content_bytes", "must be no more than `size_bytes`"));
        }
        Ok(Self {
            archive: first.archive.clone(),
            file: file_name("file", &first.file)?,
            size_bytes: first.size_bytes,
            content_bytes: first.content_bytes,
            written_time: from_wire(&first.written_time.unwrap_or_default(), "written_time")?,
        })
    }

    /// What is archived under its name.
    async fn there(&self, node: &Node, workers: &Workers) -> Result<Option<WalObject>, Status> {
        match open(node, workers, &self.archive, &self.file).await? {
            Ok(object) => Ok(Some(object)),
            Err(BackupError::Missing) => Ok(None),
            Err(e) => Err(archive_failed(&self.file, e)),
        }
    }

    /// Seals what comes. On a thread that may block.
    fn seal(
        &self,
        managed: &Managed,
        store: &dyn BackupStore,
        key: Arc<WalKey>,
        parts: mpsc::Receiver<Result<Vec<u8>, Status>>,
    ) -> Result<WalKeyId, TakeError> {
        let archive = WalArchive::new(store, &self.archive);
        let id = key.id_in(&self.archive).ok_or_else(|| failed("the key is another archive's"))?;
        let sealed = (&key.key, id);
        let mut writer = archive.create(&self.file, self.size_bytes, self.written_time, sealed)?;
        self.receive(managed, parts, |bytes| writer.write(bytes))?;
        let sealed = writer.seal()?;
        key.files.fetch_add(1, Ordering::Relaxed);
        // A slow store must not keep the key.
        drop(key);
        sealed.finish()?;
        Ok(id)
    }

    /// Whether what comes is what is archived. On a thread that may block.
    fn compare(
        &self,
        managed: &Managed,
        object: WalObject,
        key: &WalKey,
        parts: mpsc::Receiver<Result<Vec<u8>, Status>>,
    ) -> Result<(), TakeError> {
        let (mut comes, mut part) = (Zeroizing::new(Vec::new()), Zeroizing::new(Vec::new()));
        self.receive(managed, parts, |bytes| {
            comes.extend_from_slice(bytes);
            Ok(())
        })?;
        let same_size = object.header().size_bytes == self.size_bytes;
        let (mut reader, mut rest) = (object.reader(&key.key), comes.as_slice());
        while reader.next(&mut part)? {
            rest = rest.strip_prefix(part.as_slice()).ok_or(BackupError::Exists)?;
        }
        if same_size && rest.is_empty() { Ok(()) } else { Err(BackupError::Exists.into()) }
    }

    fn receive(
        &self,
        managed: &Managed,
        mut parts: mpsc::Receiver<Result<Vec<u8>, Status>>,
        mut sink: impl FnMut(&[u8]) -> Result<(), BackupError>,
    ) -> Result<(), TakeError> {
        let mut left = self.content_bytes;
        let wrong = || invalid("content_bytes", "must be the length of all that comes in `data`");
        while let Some(part) = parts.blocking_recv() {
            let part = Zeroizing::new(part?);
            if managed.volume().is_none() {
                return Err(managed.refusal().into());
            }
            left = left.checked_sub(part.len() as u64).ok_or_else(wrong)?;
            sink(&part)?;
        }
        if left == 0 { Ok(()) } else { Err(wrong().into()) }
    }
}

/// Gives a file.
pub(crate) async fn restore(
    node: &Node,
    workers: &Workers,
    request: RestoreWalRequest,
) -> Result<mpsc::Receiver<Result<RestoreWalResponse, Status>>, Status> {
    let managed = node.volume(&request.name)?;
    check_name("archive", &request.archive)?;
    let file = file_name("file", &request.file)?;
    let object = open(node, workers, &request.archive, &file).await?.map_err(|e| archive_failed(&file, e))?;
    let mut size_bytes = object.header().size_bytes;
    let key = key_to_open(node, &managed, object.wrapped()).await?;
    let mut reader = object.reader(&key.key);
    let (sender, receiver) = mpsc::channel(2);
    let workers = workers.clone();
    tokio::spawn(async move {
        // Whoever takes the keys out of memory waits for this reader as well.
        let _key = key;
        loop {
            let (name, access) = (file.clone(), managed.clone());
            let read = workers.run(move || {
                access.volume().ok_or_else(|| access.refusal())?;
                let mut part = Zeroizing::new(Vec::new());
                let more = reader.next(&mut part).map_err(|e| archive_failed(&name, e))?;
                Ok((reader, more.then_some(part)))
            });
            let (next, part) = match read.await {
                Ok((_, None)) => {
                    let complete = true;
                    (None, Ok(RestoreWalResponse { size_bytes, complete, ..RestoreWalResponse::default() }))
                }
                Ok((back, Some(mut part))) => {
                    let data = std::mem::take(&mut *part);
                    let size_bytes = std::mem::take(&mut size_bytes);
                    (Some(back), Ok(RestoreWalResponse { size_bytes, data, complete: false }))
                }
                Err(e) => (None, Err(e)),
            };
            // No slow caller keeps the key when access ends.
            tokio::select! {
                biased;
                () = managed.inaccessible() => return,
                sent = sender.send(part) => if sent.is_err() { return },
            }
            match next {
                Some(next) => reader = next,
                None => return,
            }
        }
    });
    Ok(receiver)
}

async fn open(
    node: &Node,
    workers: &Workers,
    archive: &str,
    file: &WalFileName,
) -> Result<Result<WalObject, BackupError>, Status> {
    let (store, archive, file) = (node.config.backups.clone(), archive.to_owned(), file.clone());
    workers.run(move || Ok(WalArchive::new(store.as_ref(), &archive).open(&file))).await
}

/// Does something with an archive, on a thread that may block.
async fn with_archive<T: Send + 'static>(
    node: &Node,
    workers: &Workers,
    name: &str,
    act: impl FnOnce(WalArchive<'_>) -> Result<T, BackupError> + Send + 'static,
) -> Result<T, Status> {
    check_name("archive", name)?;
    let (store, name) = (node.config.backups.clone(), name.to_owned());
    workers.run(move || act(WalArchive::new(store.as_ref(), &name)).map_err(backup_failed)).await
}

pub(crate) async fn describe(node: &Node, workers: &Workers, name: &str) -> Result<WireArchive, Status> {
    let archive = name.to_owned();
    with_archive(node, workers, name, move |found| {
        let files = found.files()?;
        let mut segments = files.iter().filter(|f| f.is_segment());
        let (first, last) = (segments.next(), segments.next_back());
        let last = last.or(first);
        let reaches = last.map(|file| found.open(file)).transpose()?;
        let text = |file: Option<&WalFileName>| file.map(ToString::to_string).unwrap_or_default();
        Ok(WireArchive {
            archive,
            files: u32::try_from(files.len()).unwrap_or(u32::MAX),
            first_segment: text(first),
            last_segment: text(last),
            reaches: reaches.map(|object| to_wire(object.header().written_time)),
        })
    })
    .await
}

pub(crate) async fn prune(node: &Node, workers: &Workers, name: &str, first: &str) -> Result<u32, Status> {
    let first = file_name("first_segment", first)?;
    if !first.is_segment() {
        return Err(invalid("first_segment", "must be a whole segment"));
    }
    // A key that seals now is kept, though no file may be left under it.
    let sealing =
        node.volumes().into_iter().filter_map(|managed| managed.wal_keys.sealing.get()?.id_in(name));
    let in_use: BTreeSet<WalKeyId> = sealing.collect();
    let (index, archive_name) = (node.wal_index.clone(), name.to_owned());
    let store = node.config.backups.clone();
    let removed = with_archive(node, workers, name, move |archive| {
        let removed = archive.prune(&first)?;
        index.load(store.as_ref(), &archive_name)?;
        let idle = index.pruned(&archive_name, &archive.files()?, &in_use);
        archive.remove_keys(&idle)?;
        index.forget_keys(&archive_name, &idle);
        Ok(removed)
    });
    let removed = removed.await?;
    node.dependents.set(&resource(name), node.wal_index.versions(name));
    Ok(u32::try_from(removed).unwrap_or(u32::MAX))
}

pub(crate) async fn delete(node: &Node, workers: &Workers, name: &str) -> Result<(), Status> {
    check_name("archive", name)?;
    // What is archived meanwhile would lose its key.
    let _alone = node.writing.leave(&format!("{WAL_FOLDER}/{name}"))?;
    if with_archive(node, workers, name, |archive| archive.remove()).await? {
        // A key that sealed for it is not one of its keys any more.
        node.wal_index.forget(name);
        node.dependents.gone(&resource(name));
        return Ok(());
    }
    Err(status("NOT_FOUND", "NOT_FOUND", &format!("the archive `{name}` does not exist"), None))
}
