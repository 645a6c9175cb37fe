//! The one thread that owns the journal's file, its chain and its tree.

use crate::{
    AuditUnavailable, Outcome, Phase, Record, TreeHead,
    chain::{CheckpointLine, Head, LINE_FRAME_LEN_MAX},
    checkpoint::{Checkpoint, Signer},
    queue::Queue,
    tree::{Edge, Hash, NodeWriter, leaf_hash},
    waiters::Waiters,
    whole_file,
};
use custody_types::{Clock, UnixMillis};
use parking_lot::Mutex;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

/// Operations under way from which on a flush waits for company: a caller that has so many asked loses nothing by it.
const GATHER_FROM: usize = 16;
/// After so long without a record, what is not signed is signed.
const IDLE: Duration = Duration::from_secs(1);
/// Records between checkpoints, and time: what is not signed after a second is signed then.
const CHECKPOINT_EVERY: u64 = 4096;
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(1);

/// When a file is closed and a new one begun, at the next checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct FileLimits {
    /// Bytes.
    pub len: u64,
    /// From its first record on; without it a file may grow for as long as it is small.
    pub age: Option<Duration>,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self { len: 16 << 20, age: None }
    }
}

/// Who waits for a record to be on disk.
pub(crate) enum Reply {
    Nobody,
    Waiter(u64),
}

pub(crate) enum Command {
    Append {
        record: String,
        caller: u64,
        reply: Reply,
    },
    /// Sign what there is.
    Sign(mpsc::SyncSender<Result<(), AuditUnavailable>>),
    Close,
}

/// Bytes that most records take no more than.
const RECORD_LEN: usize = 768;

/// A record as it is written: made by whoever asks, so that the one thread that owns the chain has less to do.
pub(crate) fn text_of(record: &Record) -> Result<String, AuditUnavailable> {
    let mut text = Vec::with_capacity(RECORD_LEN);
    serde_json::to_writer(&mut text, record).map_err(|_| AuditUnavailable::Failed)?;
    String::from_utf8(text).map_err(|_| AuditUnavailable::Failed)
}

/// What the thread shares with the handles.
#[derive(Default)]
pub(crate) struct Shared {
    /// The number of the last record on disk.
    pub(crate) written: AtomicU64,
    /// Operations under way, those that wait for a record among them.
    pub(crate) under_way: AtomicUsize,
    pub(crate) waiters: Waiters,
    /// The last checkpoint.
    pub(crate) checkpoint: Mutex<Option<String>>,
}

/// Tells those who still ask that nobody is left to write.
struct Ended<'a>(&'a Queue);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The thread's state: the one owner of the file, the chain and the tree.
pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) dir: PathBuf,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) len: u64,
    /// The time of the file's first record.
    pub(crate) since: Option<UnixMillis>,
    pub(crate) limits: FileLimits,
    pub(crate) head: Head,
    pub(crate) edge: Edge,
    /// The tree's hashes, for proofs; none where too many could not be written, until the next start makes them anew.
    pub(crate) nodes: Option<NodeWriter>,
    pub(crate) signer: Signer,
    pub(crate) signed: u64,
    /// When the last checkpoint was signed, by this process.
    pub(crate) signed_at: Option<Instant>,
    /// Kept from one flush to the next: what is written, and the hashes of its records.
    pub(crate) text: Vec<u8>,
    pub(crate) leaves: Vec<Hash>,
    /// Ends of what an earlier process left open, to be written before anything else.
    pub(crate) ends: Vec<String>,
    /// What is after `len` in the file is not known.
    pub(crate) failed: bool,
    /// Held for as long as the thread runs.
    pub(crate) _lock: File,
}

impl Writer {
    pub(crate) fn run(mut self, queue: &Queue) {
        let _ended = Ended(queue);
        let shared = self.shared.clone();
        let gathers = || shared.under_way.load(Ordering::Relaxed) >= GATHER_FROM;
        let mut closing = false;
        while !closing {
            let Some(group) = queue.next(IDLE, gathers) else {
                _ = self.checkpoint();
                _ = self.nodes.as_mut().map(NodeWriter::settle);
                continue;
            };
            closing = group.closing;
            self.write_group(group.records);
            for done in group.to_sign {
                _ = done.send(self.checkpoint());
            }
        }
        _ = self.checkpoint();
    }

    fn write_group(&mut self, group: Vec<(String, Reply)>) {
        let before = self.head.sequence + self.ends.len() as u64;
        let done = self.append(&group.iter().map(|(record, _)| record.as_str()).collect::<Vec<_>>());
        let (mut told, mut abandoned) = (Vec::new(), Vec::new());
        for (sequence, (record, reply)) in (before + 1..).zip(group) {
            let done = done.map(|()| sequence);
            let Reply::Waiter(number) = reply else { continue };
            if let Some(waiter) = self.shared.waiters.take(number) {
                told.push((waiter, done));
            } else if done.is_ok()
                && let Ok(begun) = serde_json::from_str::<Record>(&record)
                && (begun.phase == Phase::Begin || begun.result_type == Outcome::Success)
            {
                // It was refused when the disk did not answer, and did not happen, or nobody had its answer: that is on record too.
                let why = "refused: the record was on disk too late";
                abandoned.extend(
                    text_of(&begun.finish(self.clock.now(), Outcome::Interrupted, "UNAVAILABLE", why)).ok(),
                );
            }
        }
        self.shared.waiters.tell(told);
        if !abandoned.is_empty() {
            _ = self.append(&abandoned.iter().map(String::as_str).collect::<Vec<_>>());
        }
        if self.signed_at.is_none_or(|at| at.elapsed() >= CHECKPOINT_PAUSE) {
            _ = self.checkpoint();
        }
    }

    /// Appends records and makes them durable, all or none.
    pub(crate) fn append(&mut self, records: &[&str]) -> Result<(), AuditUnavailable> {
        let ends = std::mem::take(&mut self.ends);
        let all: Vec<&str> = ends.iter().map(String::as_str).chain(records.iter().copied()).collect();
        let done = self.append_all(&all);
        if done.is_err() {
            self.ends = ends;
        }
        done
    }

    fn append_all(&mut self, records: &[&str]) -> Result<(), AuditUnavailable> {
        if records.is_empty() {
            return Ok(());
        }
        let mut head = self.head;
        let (mut text, mut leaves) = (std::mem::take(&mut self.text), std::mem::take(&mut self.leaves));
        text.clear();
        text.reserve(records.iter().map(|record| record.len() + LINE_FRAME_LEN_MAX).sum());
        leaves.clear();
        for record in records {
            head = head.next(record);
            head.write_line(record, &mut text);
            leaves.push(leaf_hash(record.as_bytes()));
        }
        self.write(&text)?;
        self.since.get_or_insert_with(|| self.clock.now());
        self.head = head;
        self.grow(&leaves);
        (self.text, self.leaves) = (text, leaves);
        self.shared.written.store(head.sequence, Ordering::Release);
        if head.sequence - self.signed >= CHECKPOINT_EVERY {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Adds leaves to the tree. Its file holds nothing that is not in the records, so it is not flushed.
    pub(crate) fn grow(&mut self, leaves: &[Hash]) {
        let mut made = Vec::with_capacity(leaves.len() * 64);
        for leaf in leaves {
            self.edge.push(*leaf, |hash| made.extend_from_slice(hash));
        }
        if self.nodes.as_mut().is_some_and(|nodes| !nodes.push(&made)) {
            self.nodes = None;
        }
    }

    fn checkpoint(&mut self) -> Result<(), AuditUnavailable> {
        if self.signed == self.head.sequence {
            return Ok(());
        }
        let note = self.signer.sign(TreeHead { size: self.edge.size(), root: self.edge.root() });
        let line = CheckpointLine { checkpoint: Checkpoint::Note(note.clone()) };
        let mut text = serde_json::to_vec(&line).map_err(|_| AuditUnavailable::Failed)?;
        text.push(b'\n');
        self.write(&text)?;
        (self.signed, self.signed_at) = (self.head.sequence, Some(Instant::now()));
        *self.shared.checkpoint.lock() = Some(note);
        if self.len >= self.limits.len || self.is_old() {
            self.next_file()?;
        }
        Ok(())
    }

    /// One write and one flush. What did not succeed is taken back, at the latest before the next.
    fn write(&mut self, text: &[u8]) -> Result<(), AuditUnavailable> {
        self.shared.waiters.set_busy(true);
        let done = self.try_write(text);
        self.shared.waiters.set_busy(false);
        done
    }

    fn try_write(&mut self, text: &[u8]) -> Result<(), AuditUnavailable> {
        if self.failed {
            // All up to `len` was flushed once and stays; what came after it was acknowledged to nobody.
            self.file.set_len(self.len)?;
            self.file.sync_all()?;
            self.failed = false;
        }
        self.check_there()?;
        self.failed = true;
        if let Err(e) = self.file.write_all(text) {
            self.failed = self.file.set_len(self.len).is_err();
            return Err(e.into());
        }
        self.file.sync_data()?;
        self.failed = false;
        self.len += text.len() as u64;
        Ok(())
    }

    /// A journal whose file was replaced writes into nothing; that must not go unnoticed. A file that was removed is put back
    /// from what is still open: this call is refused, and the next goes on.
    fn check_there(&mut self) -> Result<(), AuditUnavailable> {
        match (fs::metadata(&self.path), self.file.metadata()) {
            (Ok(path), Ok(file))
                if path.ino() == file.ino() && path.dev() == file.dev() && file.len() == self.len =>
            {
                Ok(())
            }
            (Err(e), Ok(file)) if e.kind() == io::ErrorKind::NotFound && file.len() >= self.len => {
                self.put_back()?;
                Err(AuditUnavailable::Replaced)
            }
            _ => Err(AuditUnavailable::Replaced),
        }
    }

    fn put_back(&mut self) -> io::Result<()> {
        let mut text = Vec::new();
        self.file.rewind()?;
        (&self.file).take(self.len).read_to_end(&mut text)?;
        let name = self.path.file_name().unwrap_or_default();
        whole_file::put(&self.dir, Path::new(name), &text)?;
        self.file = open_for_append(&self.path)?;
        Ok(())
    }

    /// Whether the file's first record is so old that the next ones go into another.
    fn is_old(&self) -> bool {
        let age = self.since.map(|since| self.clock.now().as_millis().saturating_sub(since.as_millis()));
        age.zip(self.limits.age).is_some_and(|(age, max)| u128::from(age) >= max.as_millis())
    }

    fn next_file(&mut self) -> io::Result<()> {
        let number = |path: &Path| path.file_stem()?.to_str()?.strip_prefix("journal-")?.parse().ok();
        let number = number(&self.path).unwrap_or(0u64) + 1;
        let path = self.dir.join(format!("journal-{number:06}.jsonl"));
        self.file = open_for_append(&path)?;
        File::open(&self.dir)?.sync_all()?;
        (self.path, self.len, self.since) = (path, 0, None);
        Ok(())
    }
}

/// A journal's file: read as well, so that one that was removed can be put back.
pub(crate) fn open_for_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}
