//! Reading and verifying a trail, offline.

use crate::{
    Entry, Outcome, Phase, Record,
    beginning::Beginning,
    chain::{CheckpointLine, Head, RecordLine},
    checkpoint::{Checkpoint, TreeHead, trail_key},
    journal::TREE,
    tree::{Edge, NodeFile, consistency_proof, is_consistent, leaf_hash},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use custody_note::VerifyingKey;
use serde::Serialize;
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Seek as _},
    ops::ControlFlow,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

/// What a verified trail holds.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The number of the first record: above 1 where a retention that is on record removed earlier ones.
    pub first: u64,
    /// Records, all in one unbroken chain.
    pub records: u64,
    /// Checkpoints, each with a good signature.
    pub checkpoints: u64,
    /// Records after the last checkpoint: chained, but not yet signed.
    pub unsigned: u64,
    /// Refused operations.
    pub denied: u64,
    /// Operations that began and have no finish: the service is running, or ended hard and was not started again.
    pub open: u64,
    /// Bytes after the last whole line: a write that did not end, or damage.
    pub unfinished_bytes: u64,
    /// The last hash, in hexadecimal. Kept elsewhere, it proves later that nothing was cut off.
    pub head: String,
    /// The root of the tree over all records, base64.
    pub root: String,
    /// The last checkpoint: kept elsewhere, it proves later that nothing before it was altered or cut off.
    pub checkpoint: String,
}

/// What is known from before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Earlier<'a> {
    /// The head of an earlier report.
    pub head: Option<&'a str>,
    /// An earlier checkpoint.
    pub checkpoint: Option<&'a str>,
}

/// What a walk is checked against besides the chain.
pub(crate) struct Check<'a> {
    public: &'a [u8],
    key: VerifyingKey,
    edge: Edge,
    /// A tree that the trail must go on from, until it has been.
    earlier: Option<TreeHead>,
    last: String,
}

/// Where and how a trail is broken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// A file cannot be read.
    #[error("`{path}` cannot be read")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A line that is no record and no checkpoint.
    #[error("`{path}` line {line}: not a journal line")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counts from 1.
        line: usize,
    },
    /// The chain does not continue here: a record was altered, removed, added or moved.
    #[error(
        "`{path}` line {line}: the chain breaks at record {sequence}; records were altered, removed or moved"
    )]
    Chain {
        /// The file.
        path: PathBuf,
        /// Counts from 1.
        line: usize,
        /// The record's number.
        sequence: u64,
    },
    /// A checkpoint that this key did not sign, or that speaks of another chain.
    #[error("`{path}` line {line}: the checkpoint is not signed by this key for this chain")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Counts from 1.
        line: usize,
    },
    /// The key is none.
    #[error("the public key is not an Ed25519 key of 32 bytes")]
    Key,
    /// What was given as an earlier checkpoint is not this trail's.
    #[error("the earlier checkpoint is not signed by this trail's key")]
    Foreign,
    /// The records that an earlier checkpoint was signed over are not these.
    #[error("the trail is not what was signed with {0} records: records before that were altered")]
    Rewritten(u64),
    /// An earlier checkpoint is of records that were removed, and the tree's hashes, which prove the rest, are gone.
    #[error(
        "the trail's records up to the earlier checkpoint's {0} were removed, and the hashes in `tree`, which would prove that the rest goes on from there, cannot be read"
    )]
    Unproven(u64),
    /// The first records are gone, and nothing that was signed says so.
    #[error("records 1 to {0} are gone, and no signed record says that they were removed")]
    Removed(u64),
    /// The head that was expected is not among the records that are left.
    #[error(
        "the expected head is not among the records after {0}, where the trail begins: it is of one that was removed, or the end was cut off; an earlier checkpoint tells"
    )]
    Before(u64),
    /// The trail ends before the head that was expected.
    #[error("the trail does not contain the expected head: records were cut off at the end")]
    Truncated,
}

/// The journal's files, oldest first.
pub(crate) fn files(dir: &Path) -> Result<Vec<PathBuf>, Broken> {
    let fail = |source| Broken::Io { path: dir.to_owned(), source };
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .map_err(fail)?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    files.sort();
    Ok(files)
}

/// Bytes at the end of a file in which its last record is looked for: a record and a checkpoint take a few hundred.
const TAIL_LEN: u64 = 64 * 1024;

/// A file's last record and the head after it, as the file itself says: what it rests on is not looked at.
pub(crate) fn record_at_end(path: &Path) -> Result<(Head, Record), Broken> {
    let io = |source| Broken::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    let mut tail = vec![0; usize::try_from(len.min(TAIL_LEN)).unwrap_or(0)];
    file.read_exact_at(&mut tail, len.saturating_sub(TAIL_LEN)).map_err(io)?;
    let last = tail.rsplit(|b| *b == b'\n').find_map(|line| serde_json::from_slice::<RecordLine>(line).ok());
    let found = last.and_then(|RecordLine { seq, hash, record }| {
        let bytes = hex::decode(hash).ok()?;
        let head = Head { sequence: seq, hash: bytes.try_into().ok()? };
        Some((head, serde_json::from_str(record.get()).ok()?))
    });
    found.ok_or_else(|| Broken::Line { path: path.to_owned(), line: 0 })
}

/// The last checkpoint of some files that is a note.
pub(crate) fn last_checkpoint(files: &[PathBuf]) -> Result<Option<String>, Broken> {
    for path in files.iter().rev() {
        let text = fs::read(path).map_err(|source| Broken::Io { path: path.clone(), source })?;
        let note = text.rsplit(|b| *b == b'\n').find_map(|line| {
            let CheckpointLine { checkpoint } = serde_json::from_slice(line).ok()?;
            Some(checkpoint)
        });
        match note {
            Some(Checkpoint::Note(note)) => return Ok(Some(note)),
            Some(Checkpoint::OfChain(_)) => return Ok(None),
            None => {}
        }
    }
    Ok(None)
}

/// Walks one file from `head`, giving each entry to `visit`. Returns the new head and how many bytes of whole
/// lines it has; an unfinished last line is left out.
pub(crate) fn walk(
    path: &Path,
    head: Head,
    check: Option<&mut Check<'_>>,
    mut visit: impl FnMut(Option<Entry>),
) -> Result<(Head, u64), Broken> {
    walk_on(path, 0, head, check, |entry| {
        visit(entry);
        ControlFlow::Continue(())
    })
}

/// As [`walk`], from the beginning of the line at byte `from`, where the chain is at `head`, until `visit` has enough.
/// Returns where it stopped.
pub(crate) fn walk_on(
    path: &Path,
    from: u64,
    mut head: Head,
    mut check: Option<&mut Check<'_>>,
    mut visit: impl FnMut(Option<Entry>) -> ControlFlow<()>,
) -> Result<(Head, u64), Broken> {
    let io = |source| Broken::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    file.seek(io::SeekFrom::Start(from)).map_err(io)?;
    let mut reader = BufReader::new(file);
    let (mut text, mut good, mut line) = (Vec::new(), from, 0);
    loop {
        text.clear();
        let len = reader.read_until(b'\n', &mut text).map_err(io)?;
        if len == 0 || text.last() != Some(&b'\n') {
            return Ok((head, good));
        }
        line += 1;
        good += len as u64;
        let bad = || Broken::Line { path: path.to_owned(), line };
        if let Ok(CheckpointLine { checkpoint }) = serde_json::from_slice(&text) {
            let holds = check.as_mut().is_none_or(|check| check.holds(&checkpoint, head));
            holds.then_some(()).ok_or_else(|| Broken::Checkpoint { path: path.to_owned(), line })?;
            if visit(None).is_break() {
                return Ok((head, good));
            }
            continue;
        }
        let RecordLine { seq, record, hash } = serde_json::from_slice(&text).map_err(|_| bad())?;
        head = head.next(record.get());
        if seq != head.sequence || hash != hex::encode(head.hash) {
            return Err(Broken::Chain { path: path.to_owned(), line, sequence: seq });
        }
        let text = record;
        let leaf = leaf_hash(text.get().as_bytes());
        if let Some(check) = check.as_mut() {
            check.push(leaf)?;
        }
        let record: Record = serde_json::from_str(text.get()).map_err(|_| bad())?;
        if visit(Some(Entry { sequence: seq, record, text, hash, leaf })).is_break() {
            return Ok((head, good));
        }
    }
}

impl Check<'_> {
    fn push(&mut self, leaf: crate::tree::Hash) -> Result<(), Broken> {
        self.edge.push(leaf, |_| ());
        match self.earlier.filter(|earlier| earlier.size == self.edge.size()) {
            Some(earlier) if earlier.root != self.edge.root() => Err(Broken::Rewritten(earlier.size)),
            Some(_) => {
                self.earlier = None;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn holds(&mut self, checkpoint: &Checkpoint, head: Head) -> bool {
        match checkpoint {
            Checkpoint::OfChain(old) => old.holds(head, self.public),
            Checkpoint::Note(note) => {
                self.last.clone_from(note);
                let stated = TreeHead { size: self.edge.size(), root: self.edge.root() };
                TreeHead::open(note, &self.key).is_ok_and(|signed| signed == stated)
            }
        }
    }
}

/// Verifies a whole trail against the public half of its signing key (32 bytes). What was noted earlier also finds records cut
/// off at the end, and a trail that was written anew with the same key.
///
/// # Errors
/// The first place where the trail is broken.
pub fn verify(dir: &Path, public: &[u8], known: Earlier<'_>) -> Result<Report, Broken> {
    let key = trail_key(public).map_err(|_| Broken::Key)?;
    let earlier = known.checkpoint.map(|note| TreeHead::open(note, &key).map_err(|_| Broken::Foreign));
    let earlier = earlier.transpose()?.filter(|earlier| earlier.size > 0);
    let files = files(dir)?;
    let beginning = Beginning::of_files(dir, &files)?;
    let removed = beginning.head.sequence;
    let earlier = earlier.map(|earlier| goes_on(dir, &beginning, earlier)).transpose()?.flatten();
    let mut check = Check { public, key, edge: beginning.edge.clone(), earlier, last: String::new() };
    let expected_head = known.head;
    let mut report = Report { first: removed + 1, ..Report::default() };
    let mut open: HashMap<String, ()> = HashMap::new();
    let mut seen_expected = expected_head.is_none_or(|head| head == hex::encode(beginning.head.hash));
    // Whether a record says that the first ones were removed; that it is there, and that it is signed.
    let (mut said, mut said_and_signed) = (false, removed == 0);
    let mut head = beginning.head;
    for path in files {
        let (next, good) = walk(&path, head, Some(&mut check), |entry| match entry {
            None => {
                report.checkpoints += 1;
                report.unsigned = 0;
                said_and_signed |= said;
            }
            Some(entry) => {
                report.records += 1;
                report.unsigned += 1;
                said |= removed > 0 && beginning.is_stated_by(&entry);
                seen_expected |= expected_head == Some(entry.hash.as_str());
                report.denied += u64::from(entry.record.result_type == Outcome::Denied);
                match entry.record.phase {
                    Phase::Begin => _ = open.insert(entry.record.correlation_id, ()),
                    Phase::Finish => _ = open.remove(&entry.record.correlation_id),
                }
            }
        })?;
        head = next;
        let len = fs::metadata(&path).map_err(|source| Broken::Io { path: path.clone(), source })?.len();
        report.unfinished_bytes += len.saturating_sub(good);
    }
    report.open = open.len() as u64;
    report.head = hex::encode(head.hash);
    report.root = STANDARD.encode(check.edge.root());
    report.checkpoint = check.last;
    if !said_and_signed {
        return Err(Broken::Removed(removed));
    }
    match (seen_expected, check.earlier) {
        (true, None) => Ok(report),
        (false, None) if removed > 0 => Err(Broken::Before(removed)),
        _ => Err(Broken::Truncated),
    }
}

/// An earlier tree that the records must still be seen to go on from: none where it is of records that were removed, and the
/// hashes that are left prove that the beginning goes on from it.
fn goes_on(dir: &Path, beginning: &Beginning, earlier: TreeHead) -> Result<Option<TreeHead>, Broken> {
    let size = beginning.head.sequence;
    if earlier.size > size {
        return Ok(Some(earlier));
    }
    let nodes = NodeFile::read(&dir.join(TREE));
    let proof = nodes.and_then(|nodes| consistency_proof(&nodes, earlier.size, size));
    let proof = proof.map_err(|_| Broken::Unproven(earlier.size))?;
    let holds = is_consistent((earlier.size, &earlier.root), (size, &beginning.edge.root()), &proof);
    if holds { Ok(None) } else { Err(Broken::Rewritten(earlier.size)) }
}
