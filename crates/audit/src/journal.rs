//! The journal: one thread owns the file and the chain; callers wait for the disk in groups.

use crate::{
    Broken, Entry, Outcome, Phase, Record,
    chain::{CheckpointLine, Head},
    checkpoint::Signer,
    verify::{files, head_at_end, walk, walk_on},
};
use custody_types::{Clock, UnixMillis};
use futures_channel::oneshot;
use serde_json::value::RawValue;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Write as _},
    ops::ControlFlow,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// The journal cannot take records. Whatever needed one must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit journal cannot be written; nothing is done without its record")]
pub struct AuditUnavailable;

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenJournalError {
    /// Another process writes it.
    #[error("the audit journal in `{0}` is in use by another process")]
    InUse(PathBuf),
    /// It is broken; it stays as it is, for evidence.
    #[error("the audit journal is broken; keep `{dir}` as evidence and start with an empty one")]
    Broken {
        /// Its directory.
        dir: PathBuf,
        /// Where.
        #[source]
        source: Broken,
    },
    /// The file system failed.
    #[error("the audit journal's file system failed")]
    Io(#[from] io::Error),
}

/// Records waiting to be written. The ends of operations always find room: fewer are under way than this leaves.
const QUEUE_LEN_MAX: usize = 8192;
/// Records waiting to be written from which on no task begins an operation: the disk does not keep up, or hangs.
const BEGINS_LEN_MAX: usize = 4096;
/// Most records in one disk flush.
const GROUP_LEN_MAX: usize = 1024;
/// Operations under way from which on a flush waits for company: a caller that has so many asked loses nothing by it.
const GATHER_FROM: usize = 16;
/// How long it waits.
const GATHER_TIME: Duration = Duration::from_millis(4);
/// A file is closed and a new one begun at this size.
const FILE_LEN_MAX: u64 = 16 << 20;
/// Files that are walked at a start: operations still open are among the last few thousand records.
const FILES_WALKED: usize = 2;
/// Records between checkpoints; also one after a second without records, and one at the end.
const CHECKPOINT_EVERY: u64 = 4096;

/// Who waits for a record to be on disk.
enum Reply {
    Nobody,
    Task(oneshot::Sender<Result<u64, AuditUnavailable>>),
    Thread(mpsc::SyncSender<Result<u64, AuditUnavailable>>),
}

enum Command {
    Append { record: Box<RawValue>, caller: u64, reply: Reply },
    Close,
}

/// Tells callers apart, and no more: two that are taken for one gather together.
fn caller_of(record: &Record) -> u64 {
    let mut hasher = DefaultHasher::new();
    record.identity.principal.hash(&mut hasher);
    hasher.finish()
}

/// A record as it is written: made by whoever asks, so that the one thread that owns the chain has less to do.
fn raw(record: &Record) -> Result<Box<RawValue>, AuditUnavailable> {
    serde_json::value::to_raw_value(record).map_err(|_| AuditUnavailable)
}

/// Where readers stopped, of the last few.
const PLACES_MAX: usize = 16;

/// A place in the trail, between two lines.
#[derive(Clone)]
struct Place {
    path: PathBuf,
    offset: u64,
    head: Head,
}

/// A handle on a running journal; the thread ends when [`Journal::close`] is called or the last handle goes.
pub struct Journal {
    dir: PathBuf,
    queue: mpsc::SyncSender<Command>,
    written: Arc<AtomicU64>,
    /// Records in the queue.
    waiting: Arc<AtomicUsize>,
    /// Operations that have begun and not ended.
    open: Arc<AtomicUsize>,
    places: parking_lot::Mutex<VecDeque<Place>>,
    clock: Arc<dyn Clock>,
    thread: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

/// An operation that has begun. Dropped without an end, it ends as [`Outcome::Failed`].
#[derive(Debug)]
pub struct Pending {
    journal: Arc<Journal>,
    begin: Option<Record>,
}

impl Journal {
    /// Opens or makes the journal in `dir`: verifies the chain of the last two files, cuts an unfinished last line, and
    /// ends what an earlier process left open as [`Outcome::Interrupted`]. How long that takes does not grow with the
    /// trail; the whole of it is what [`crate::verify`] is for.
    ///
    /// # Errors
    /// See [`OpenJournalError`].
    pub fn open(dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, OpenJournalError> {
        fs::create_dir_all(dir)?;
        let lock =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(dir.join("lock"))?;
        lock.try_lock().map_err(|_| OpenJournalError::InUse(dir.to_owned()))?;
        let broken = |source| OpenJournalError::Broken { dir: dir.to_owned(), source };
        let mut open: HashMap<String, Record> = HashMap::new();
        let mut head = Head::START;
        let mut last = (dir.join("journal-000001.jsonl"), 0);
        let all = files(dir).map_err(broken)?;
        let (before, walked) = all.split_at(all.len().saturating_sub(FILES_WALKED));
        if let Some(path) = before.last() {
            head = head_at_end(path).map_err(broken)?;
        }
        for path in walked {
            let (next, good) = walk(path, head, None, |entry| {
                if let Some(Entry { record, .. }) = entry {
                    match record.phase {
                        Phase::Begin => _ = open.insert(record.correlation_id.clone(), record),
                        Phase::Finish => _ = open.remove(&record.correlation_id),
                    }
                }
            })
            .map_err(broken)?;
            head = next;
            last = (path.clone(), good);
        }
        let (path, len) = last;
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        file.set_len(len)?;
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        let written = Arc::new(AtomicU64::new(head.sequence));
        let waiting: Arc<AtomicUsize> = Arc::default();
        let under_way: Arc<AtomicUsize> = Arc::default();
        let mut writer = Writer {
            waiting: waiting.clone(),
            open: under_way.clone(),
            dir: dir.to_owned(),
            path,
            file,
            len,
            head,
            signer: Signer::open(dir)?,
            signed: 0,
            failed: false,
            written: written.clone(),
            _lock: lock,
        };
        let now = clock.now();
        let open: BTreeMap<_, _> = open.into_iter().collect();
        let ends: Vec<_> = open
            .into_values()
            .map(|begin| {
                begin.finish(
                    now,
                    Outcome::Interrupted,
                    "UNKNOWN",
                    "the process ended before the operation did",
                )
            })
            .collect();
        if !ends.is_empty() {
            let ends = ends.iter().map(raw).collect::<Result<Vec<_>, _>>();
            ends.and_then(|ends| writer.append(ends.iter().map(|e| &**e)))
                .map_err(|_| io::Error::other("the journal's disk does not take records"))?;
        }
        let (queue, inbox) = mpsc::sync_channel(QUEUE_LEN_MAX);
        let thread =
            std::thread::Builder::new().name("audit-journal".to_owned()).spawn(move || writer.run(&inbox))?;
        Ok(Self {
            dir: dir.to_owned(),
            queue,
            written,
            waiting,
            open: under_way,
            places: parking_lot::Mutex::default(),
            clock,
            thread: parking_lot::Mutex::new(Some(thread)),
        })
    }

    /// Writes a begin record and returns once it is on disk. Blocks for one group flush.
    ///
    /// # Errors
    /// The record is not on disk, so the operation must not happen.
    pub fn begin(self: &Arc<Self>, record: Record) -> Result<Pending, AuditUnavailable> {
        self.append(&record)?;
        Ok(self.pending(record))
    }

    /// As [`Journal::begin`], for a task: it waits for the group flush without holding a thread.
    ///
    /// # Errors
    /// The record is not on disk, or too many wait already; the operation must not happen.
    pub async fn begin_in_task(self: &Arc<Self>, record: Record) -> Result<Pending, AuditUnavailable> {
        self.append_in_task(&record).await?;
        Ok(self.pending(record))
    }

    fn pending(self: &Arc<Self>, begin: Record) -> Pending {
        self.open.fetch_add(1, Ordering::Relaxed);
        Pending { journal: self.clone(), begin: Some(begin) }
    }

    /// Writes a single record (a refusal, an event) and returns once it is on disk.
    ///
    /// # Errors
    /// The record is not on disk.
    pub fn append(&self, record: &Record) -> Result<u64, AuditUnavailable> {
        let (reply, answer) = mpsc::sync_channel(1);
        let command =
            Command::Append { record: raw(record)?, caller: caller_of(record), reply: Reply::Thread(reply) };
        self.send(command)?;
        answer.recv().map_err(|_| AuditUnavailable)?
    }

    /// As [`Journal::append`], for a task.
    ///
    /// # Errors
    /// The record is not on disk, or too many wait already.
    pub async fn append_in_task(&self, record: &Record) -> Result<u64, AuditUnavailable> {
        let (reply, answer) = oneshot::channel();
        let command =
            Command::Append { record: raw(record)?, caller: caller_of(record), reply: Reply::Task(reply) };
        if self.waiting.load(Ordering::Relaxed) >= BEGINS_LEN_MAX {
            return Err(AuditUnavailable);
        }
        self.send(command)?;
        answer.await.map_err(|_| AuditUnavailable)?
    }

    fn send(&self, command: Command) -> Result<(), AuditUnavailable> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.queue.send(command).map_err(|_| AuditUnavailable)
    }

    /// The number of the last record on disk.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Up to `max` entries after number `after`, oldest first. Whoever reads page after page goes on where the last one
    /// ended, so that a trail is walked once.
    ///
    /// # Errors
    /// The files cannot be read or are broken.
    pub fn read(&self, after: u64, max: usize) -> Result<Vec<Entry>, Broken> {
        let mut entries = Vec::new();
        if max == 0 {
            return Ok(entries);
        }
        let mut place = self.place_after(after)?;
        let first = place.path.clone();
        for path in files(&self.dir)?.into_iter().filter(|path| *path >= first) {
            let from = if path == place.path { place.offset } else { 0 };
            let (head, offset) = walk_on(&path, from, place.head, None, |entry| {
                entries.extend(entry.filter(|e| e.sequence > after));
                if entries.len() >= max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            place = Place { path, offset, head };
            if entries.len() >= max {
                break;
            }
        }
        let mut places = self.places.lock();
        places.push_front(place);
        places.truncate(PLACES_MAX);
        Ok(entries)
    }

    /// A place in the trail at or before the record after number `after`, as near as is known.
    fn place_after(&self, after: u64) -> Result<Place, Broken> {
        let known = self.places.lock().iter().find(|p| p.head.sequence == after).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let mut head = Head::START;
        let files = files(&self.dir)?;
        let mut path = files.first().cloned().unwrap_or_default();
        for (this, next) in files.iter().zip(files.iter().skip(1)) {
            let end = head_at_end(this)?;
            if end.sequence > after {
                break;
            }
            (head, path) = (end, next.clone());
        }
        Ok(Place { path, offset: 0, head })
    }

    /// Writes what is queued, signs the end and stops the thread.
    pub fn close(&self) {
        _ = self.queue.send(Command::Close);
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            _ = thread.join();
        }
    }

    /// The journal's time.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        self.clock.now()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Pending {
    /// Ends the operation. The record is queued, not waited for: what happened has happened, and a process that
    /// dies before the write leaves an open begin, which the next start ends as interrupted.
    pub fn finish(mut self, outcome: Outcome, signature: &str, description: &str) {
        self.send(outcome, signature, description);
    }

    fn send(&mut self, outcome: Outcome, signature: &str, description: &str) {
        if let Some(begin) = self.begin.take() {
            self.journal.open.fetch_sub(1, Ordering::Relaxed);
            let end = begin.finish(self.journal.clock.now(), outcome, signature, description);
            if let Ok(record) = raw(&end) {
                let caller = caller_of(&end);
                _ = self.journal.send(Command::Append { record, caller, reply: Reply::Nobody });
            }
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.send(Outcome::Failed, "INTERNAL", "the operation ended without an outcome");
    }
}

/// The thread's state: the one owner of the file and the chain.
struct Writer {
    dir: PathBuf,
    path: PathBuf,
    file: File,
    len: u64,
    head: Head,
    signer: Signer,
    signed: u64,
    failed: bool,
    written: Arc<AtomicU64>,
    waiting: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    _lock: File,
}

impl Writer {
    fn run(mut self, inbox: &mpsc::Receiver<Command>) {
        loop {
            let first = match inbox.recv_timeout(Duration::from_secs(1)) {
                Ok(command) => command,
                Err(RecvTimeoutError::Timeout) => {
                    _ = self.checkpoint();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut closing = false;
            let mut group = Vec::new();
            let mut gathering = self.open.load(Ordering::Relaxed) >= GATHER_FROM;
            let until = Instant::now() + GATHER_TIME;
            let mut first_caller = None;
            let mut next = Some(first);
            while let Some(command) = next {
                match command {
                    Command::Append { record, caller, reply } => {
                        // One caller's many gather with each other; another's few wait for none of them.
                        gathering &= *first_caller.get_or_insert(caller) == caller;
                        group.push((record, reply));
                    }
                    Command::Close => closing = true,
                }
                if group.len() >= GROUP_LEN_MAX || closing {
                    break;
                }
                next = match inbox.try_recv() {
                    Ok(command) => Some(command),
                    Err(_) if gathering => {
                        inbox.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
                    }
                    Err(_) => None,
                };
            }
            self.waiting.fetch_sub(group.len(), Ordering::Relaxed);
            let done = self.append(group.iter().map(|(record, _)| &**record));
            for (_, reply) in group {
                let done = done.map(|()| self.head.sequence);
                match reply {
                    Reply::Nobody => {}
                    Reply::Task(task) => _ = task.send(done),
                    Reply::Thread(thread) => _ = thread.send(done),
                }
            }
            if closing {
                break;
            }
        }
        _ = self.checkpoint();
    }

    /// Appends records and makes them durable, all or none.
    fn append<'a>(&mut self, records: impl Iterator<Item = &'a RawValue>) -> Result<(), AuditUnavailable> {
        if self.failed {
            return Err(AuditUnavailable);
        }
        let mut head = self.head;
        let mut text = Vec::new();
        for raw in records {
            head = head.next(raw.get());
            head.write_line(raw.get(), &mut text);
        }
        if text.is_empty() {
            return Ok(());
        }
        self.write(&text)?;
        self.head = head;
        self.written.store(head.sequence, Ordering::Release);
        if head.sequence - self.signed >= CHECKPOINT_EVERY {
            self.checkpoint()?;
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), AuditUnavailable> {
        if self.signed == self.head.sequence || self.failed {
            return Ok(());
        }
        let line = CheckpointLine { checkpoint: self.signer.sign(self.head) };
        let mut text = serde_json::to_vec(&line).map_err(|_| AuditUnavailable)?;
        text.push(b'\n');
        self.write(&text)?;
        self.signed = self.head.sequence;
        if self.len >= FILE_LEN_MAX {
            self.next_file().map_err(|_| AuditUnavailable)?;
        }
        Ok(())
    }

    /// One write and one flush. A write that does not fit is taken back, so that the next may succeed when there
    /// is room again; after a failed flush nothing is known, and the journal stays closed.
    fn write(&mut self, text: &[u8]) -> Result<(), AuditUnavailable> {
        if !self.still_there() {
            return Err(AuditUnavailable);
        }
        if self.file.write_all(text).is_err() {
            self.failed = self.file.set_len(self.len).is_err();
            return Err(AuditUnavailable);
        }
        if self.file.sync_data().is_err() {
            self.failed = true;
            return Err(AuditUnavailable);
        }
        self.len += text.len() as u64;
        Ok(())
    }

    /// A journal whose file was deleted or replaced writes into nothing; that must not go unnoticed.
    fn still_there(&self) -> bool {
        match (fs::metadata(&self.path), self.file.metadata()) {
            (Ok(path), Ok(file)) => {
                path.ino() == file.ino() && path.dev() == file.dev() && file.len() == self.len
            }
            _ => false,
        }
    }

    fn next_file(&mut self) -> io::Result<()> {
        let number = files(&self.dir).map_or(1, |f| f.len()) + 1;
        let path = self.dir.join(format!("journal-{number:06}.jsonl"));
        self.file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
        File::open(&self.dir)?.sync_all()?;
        (self.path, self.len) = (path, 0);
        Ok(())
    }
}
