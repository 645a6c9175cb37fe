//! The journal: one thread owns the file and the chain; callers wait for the disk in groups.

use crate::{
    AuditUnavailable, Broken, Entry, FileLimits, Outcome, Phase, Record, TreeHead,
    beginning::Beginning,
    chain::Head,
    checkpoint::Signer,
    pending::{Pending, Queued, UnderWay},
    queue::Queue,
    tree::{self, Edge, Hash, NodeFile, NodeWriter, consistency_proof, inclusion_proof},
    verify::{files, last_checkpoint, record_at_end, walk, walk_on},
    waiters::{Answers, Done},
    writer::{Command, Reply, Shared, Writer, open_for_append, text_of},
};
use custody_types::{Clock, UnixMillis};
use futures_channel::oneshot;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    ops::ControlFlow,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::Ordering,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::Duration,
};

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

/// Records waiting to be written from which on no task begins an operation: the disk does not keep up, or hangs.
const BEGINS_LEN_MAX: usize = 4096;
/// Files that are walked at a start: operations still open are among the last few thousand records.
pub(crate) const FILES_WALKED: usize = 2;

/// Tells callers apart, and no more: two that are taken for one gather together.
fn caller_of(record: &Record) -> u64 {
    let mut hasher = DefaultHasher::new();
    record.identity.principal.hash(&mut hasher);
    hasher.finish()
}

/// The file of the tree's hashes.
pub(crate) const TREE: &str = "tree";
/// How often it is looked at whether the disk answers.
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// The right edge of the tree of the first `size` records, as its file has it.
fn edge_of_file(dir: &Path, size: u64) -> io::Result<Edge> {
    tree::edge(&NodeFile::read(&dir.join(TREE))?, size)
}

/// The tree of a trail: its file up to an edge, and the leaves after that; no file where that cannot be written. None where the
/// tree is not the one that was signed.
fn grown(
    dir: &Path,
    mut edge: Edge,
    leaves: &[Hash],
    signed: Option<TreeHead>,
) -> Option<(Edge, Option<NodeWriter>)> {
    let path = dir.join(TREE);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).ok();
    let base = edge.clone();
    let wrong = |edge: &Edge| signed.is_some_and(|s| s.size == edge.size() && s.root != edge.root());
    let mut made = Vec::new();
    for leaf in leaves {
        if wrong(&edge) {
            return None;
        }
        edge.push(*leaf, |hash| made.extend_from_slice(hash));
    }
    if wrong(&edge) {
        return None;
    }
    let nodes = file.and_then(|file| {
        let mut nodes = NodeWriter::after(file, tree::final_hashes(base.size())).ok()?;
        nodes.put_edge(&base).ok()?;
        nodes.push(&made).then_some(nodes)
    });
    Some((edge, nodes))
}

/// Tells those who wait when the disk does not answer; ends with what it answers.
fn watch(shared: &Arc<Shared>) -> io::Result<mpsc::Sender<()>> {
    let (alive, ended) = mpsc::channel::<()>();
    let shared: Weak<Shared> = Arc::downgrade(shared);
    std::thread::Builder::new().name("audit-watch".to_owned()).spawn(move || {
        while ended.recv_timeout(WATCH_EVERY) == Err(RecvTimeoutError::Timeout) {
            let Some(shared) = shared.upgrade() else { return };
            if shared.waiters.is_hung() {
                shared.waiters.give_up();
            }
        }
    })?;
    Ok(alive)
}

/// Where readers stopped, of the last few.
const PLACES_MAX: usize = 16;

/// A place in the trail, between two lines.
#[derive(Clone)]
pub(crate) struct Place {
    path: PathBuf,
    offset: u64,
    head: Head,
}

/// Removes files of what was removed, where a process died over it.
fn remove_left_over(files: &mut Vec<PathBuf>, beginning: &Beginning) -> Result<(), Broken> {
    while beginning.head.sequence > 0
        && let Some(path) = files.first()
        && files.len() > 1
        && record_at_end(path)?.0.sequence <= beginning.head.sequence
    {
        fs::remove_file(path).map_err(|source| Broken::Io { path: path.clone(), source })?;
        files.remove(0);
    }
    Ok(())
}

/// A handle on a running journal; the thread ends when [`Journal::close`] is called or the last handle goes.
pub struct Journal {
    pub(crate) dir: PathBuf,
    name: String,
    pub(crate) queue: Arc<Queue>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) beginning: parking_lot::RwLock<Beginning>,
    pub(crate) retiring: parking_lot::Mutex<()>,
    pub(crate) places: parking_lot::Mutex<VecDeque<Place>>,
    clock: Arc<dyn Clock>,
    thread: parking_lot::Mutex<Option<JoinHandle<()>>>,
    /// Ends the thread that looks whether the disk answers, when it goes.
    _watch: mpsc::Sender<()>,
}

impl Journal {
    /// Opens or makes the journal in `dir`: verifies the chain of the last two files, cuts an unfinished last line, and
    /// ends what an earlier process left open as [`Outcome::Interrupted`]. How long that takes does not grow with the
    /// trail; the whole of it is what [`crate::verify`] is for.
    ///
    /// # Errors
    /// See [`OpenJournalError`].
    pub fn open(dir: &Path, clock: Arc<dyn Clock>, limits: FileLimits) -> Result<Self, OpenJournalError> {
        fs::create_dir_all(dir)?;
        let lock =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(dir.join("lock"))?;
        lock.try_lock().map_err(|_| OpenJournalError::InUse(dir.to_owned()))?;
        let broken = |source| OpenJournalError::Broken { dir: dir.to_owned(), source };
        let mut open: HashMap<String, Record> = HashMap::new();
        let mut last = (dir.join("journal-000001.jsonl"), 0);
        let mut all = files(dir).map_err(broken)?;
        let beginning = Beginning::read(dir).map_err(broken)?;
        remove_left_over(&mut all, &beginning).map_err(broken)?;
        let mut head = beginning.head;
        let (before, walked) = all.split_at(all.len().saturating_sub(FILES_WALKED));
        if let Some(path) = before.last() {
            head = record_at_end(path).map_err(broken)?.0;
        }
        let (base, mut leaves, mut since) = (head.sequence, Vec::new(), None);
        for path in walked {
            since = None;
            let (next, good) = walk(path, head, None, |entry| {
                if let Some(Entry { record, leaf, .. }) = entry {
                    leaves.push(leaf);
                    since.get_or_insert(record.time);
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
        let file = open_for_append(&path)?;
        file.set_len(len)?;
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        let signer = Signer::open(dir)?;
        let note = last_checkpoint(walked).map_err(broken)?;
        let signed = note.as_ref().and_then(|note| TreeHead::open(note, signer.key()).ok());
        let edge = if base > beginning.head.sequence { edge_of_file(dir, base).ok() } else { None };
        let (edge, nodes) = match edge.and_then(|edge| grown(dir, edge, &leaves, signed)) {
            Some(tree) => tree,
            None => {
                // The hashes are lost, or not those of the records: they are made anew from all that are there.
                let mut leaves = Vec::new();
                let mut head = beginning.head;
                for path in &all {
                    let visit = |entry: Option<Entry>| leaves.extend(entry.map(|e| e.leaf));
                    head = walk(path, head, None, visit).map_err(broken)?.0;
                }
                let altered = || Broken::Rewritten(signed.map_or(0, |signed| signed.size));
                grown(dir, beginning.edge.clone(), &leaves, signed).ok_or_else(|| broken(altered()))?
            }
        };
        let shared = Arc::<Shared>::default();
        shared.written.store(head.sequence, Ordering::Release);
        *shared.checkpoint.lock() = note.filter(|_| signed.is_some());
        let mut writer = Writer {
            shared: shared.clone(),
            clock: clock.clone(),
            dir: dir.to_owned(),
            path,
            file,
            len,
            since,
            limits,
            head,
            edge,
            nodes,
            signed_at: None,
            text: Vec::new(),
            leaves: Vec::new(),
            ends: Vec::new(),
            signed: signed.map_or(0, |signed| signed.size),
            signer,
            failed: false,
            _lock: lock,
        };
        let name = writer.signer.key().name().to_owned();
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
        writer.ends = ends.iter().map(text_of).collect::<Result<_, _>>().map_err(io::Error::other)?;
        // A disk that takes nothing now may do later: until then every operation is refused.
        _ = writer.append(&[]);
        let queue = Arc::<Queue>::default();
        let read = queue.clone();
        let thread =
            std::thread::Builder::new().name("audit-journal".to_owned()).spawn(move || writer.run(&read))?;
        let watch = watch(&shared)?;
        Ok(Self {
            dir: dir.to_owned(),
            name,
            queue,
            shared,
            beginning: parking_lot::RwLock::new(beginning),
            retiring: parking_lot::Mutex::default(),
            _watch: watch,
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
        let under_way = UnderWay::new(self);
        let sequence = self.append(&record)?;
        Ok(Pending::new(under_way, record, Some(sequence)))
    }

    /// As [`Journal::begin`], for a task: it waits for the group flush without holding a thread.
    ///
    /// # Errors
    /// The record is not on disk, or too many wait already; the operation must not happen.
    pub async fn begin_in_task(self: &Arc<Self>, record: Record) -> Result<Pending, AuditUnavailable> {
        let under_way = UnderWay::new(self);
        let answer = self.ask(&record)?;
        Queued::new(Pending::new(under_way, record, None), answer).begun().await
    }

    /// An operation of which only an answer comes. It has one record, its end; nobody may have the answer before
    /// [`Pending::conclude`].
    #[must_use]
    pub fn undertake(self: &Arc<Self>, record: Record) -> Pending {
        Pending::new(UnderWay::new(self), record, None)
    }

    /// Writes a single record (a refusal, an event) and returns once it is on disk.
    ///
    /// # Errors
    /// The record is not on disk.
    pub fn append(&self, record: &Record) -> Result<u64, AuditUnavailable> {
        let record_text = text_of(record)?;
        if self.shared.waiters.is_hung() {
            return Err(AuditUnavailable::Hung);
        }
        let (number, answer) = self.shared.waiters.thread();
        let reply = Reply::Waiter(number);
        self.queue.push(Command::Append { record: record_text, caller: caller_of(record), reply })?;
        answer.recv().map_err(|_| AuditUnavailable::Closed)?
    }

    /// As [`Journal::append`], for a task.
    ///
    /// # Errors
    /// The record is not on disk, or too many wait already.
    pub async fn append_in_task(&self, record: &Record) -> Result<u64, AuditUnavailable> {
        self.ask(record)?.await.map_err(|_| AuditUnavailable::Closed)?
    }

    /// Queues a record of a task; the answer comes when it is on disk. Nothing is queued where this fails.
    fn ask(&self, record: &Record) -> Result<oneshot::Receiver<Done>, AuditUnavailable> {
        let record_text = text_of(record)?;
        if self.shared.waiters.is_hung() {
            return Err(AuditUnavailable::Hung);
        }
        if self.queue.len() >= BEGINS_LEN_MAX {
            return Err(AuditUnavailable::Busy);
        }
        let (number, answer) = self.shared.waiters.task();
        let reply = Reply::Waiter(number);
        self.queue.push(Command::Append { record: record_text, caller: caller_of(record), reply })?;
        Ok(answer)
    }

    /// The end of an operation, for which nobody waits.
    pub(crate) fn queue_end(&self, end: &Record) {
        if let Ok(record) = text_of(end) {
            _ = self.queue.push(Command::Append { record, caller: caller_of(end), reply: Reply::Nobody });
        }
    }

    /// Has all that is on disk signed, and waits for it.
    pub(crate) fn sign(&self) -> Result<(), AuditUnavailable> {
        let (done, answer) = mpsc::sync_channel(1);
        self.queue.push(Command::Sign(done))?;
        answer.recv().map_err(|_| AuditUnavailable::Closed)?
    }

    /// The trail's name, as its checkpoints have it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of the first record that retention has left.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.beginning.read().head.sequence + 1
    }

    /// The number of the last record on disk.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Acquire)
    }

    /// The last checkpoint: a signed note of how many records there were and of the root over them. At most a second old, or
    /// 4,096 records. None before the first record.
    #[must_use]
    pub fn checkpoint(&self) -> Option<String> {
        self.shared.checkpoint.lock().clone()
    }

    /// What proves that the record with this number is in the tree of the first `size` records.
    ///
    /// # Errors
    /// There is no such record, or the tree's hashes cannot be read.
    pub fn inclusion_proof(&self, sequence: u64, size: u64) -> io::Result<Vec<Hash>> {
        inclusion_proof(&self.nodes(size)?, sequence.wrapping_sub(1), size)
    }

    /// What proves that the tree of the first `size` records goes on where that of `before` ended.
    ///
    /// # Errors
    /// `before` is not 1 to `size`, or the tree's hashes cannot be read.
    pub fn consistency_proof(&self, before: u64, size: u64) -> io::Result<Vec<Hash>> {
        consistency_proof(&self.nodes(size)?, before, size)
    }

    fn nodes(&self, size: u64) -> io::Result<NodeFile> {
        if size > self.written() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "there are not so many records"));
        }
        NodeFile::read(&self.dir.join(TREE))
    }

    /// Up to `max` entries after number `after`, oldest first. Whoever reads page after page goes on where the last one
    /// ended, so that a trail is walked once. Begins with the first record that is left where earlier ones were removed.
    ///
    /// # Errors
    /// The files cannot be read or are broken.
    pub fn read(&self, after: u64, max: usize) -> Result<Vec<Entry>, Broken> {
        let mut entries = Vec::new();
        if max == 0 {
            return Ok(entries);
        }
        let beginning = self.beginning.read();
        let mut place = self.place_after(after, beginning.head)?;
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
    fn place_after(&self, after: u64, beginning: Head) -> Result<Place, Broken> {
        let known = self.places.lock().iter().find(|p| p.head.sequence == after).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let mut head = beginning;
        let files = files(&self.dir)?;
        let mut path = files.first().cloned().unwrap_or_default();
        for (this, next) in files.iter().zip(files.iter().skip(1)) {
            let end = record_at_end(this)?.0;
            if end.sequence > after {
                break;
            }
            (head, path) = (end, next.clone());
        }
        Ok(Place { path, offset: 0, head })
    }

    /// Writes what is queued, signs the end and stops the thread.
    pub fn close(&self) {
        _ = self.queue.push(Command::Close);
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            _ = thread.join();
        }
    }

    /// Has tasks given their answers by `courier`, those of a flush together, and not by the journal's thread one by one. The
    /// first one counts.
    pub fn answer_through(&self, courier: impl Fn(Answers) + Send + Sync + 'static) {
        self.shared.waiters.set_courier(Box::new(courier));
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
