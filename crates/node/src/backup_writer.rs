//! Writing a backup: every core reads, seals and writes chunks, each a segment at a time.

use crate::{
    BackupSink, BackupStore, Snapshot, Volume,
    backup::{
        BackupError, BackupManifest, CHUNK_BLOCKS, KIND_BINDING, KIND_DATA, KIND_HOLE, KIND_MARK, Marks,
        RECORD_LEN, SEGMENT_CHUNKS,
    },
    every_core::on_every_core,
    extent::Live,
    layout::{BLOCK_LEN, EXTENT_LEN},
    snapshot::{Frozen, Next},
};
use custody_envelope::{CHUNK_HEAD_LEN, CHUNK_LEN, CHUNK_OVERHEAD_LEN, Provider, StreamKey, StreamSealer};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    io,
    ops::{ControlFlow, Range},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// One chunk that is still to be made.
enum Content {
    /// Records that are at hand: marks, the manifest's binding.
    Plain(Vec<u8>),
    /// Blocks of an extent.
    Blocks(Arc<Frozen>, Range<usize>),
}

struct Chunk {
    index: u64,
    last: bool,
    content: Content,
}

impl Content {
    fn blocks(&self) -> u64 {
        match self {
            Self::Blocks(_, range) => range.len() as u64,
            Self::Plain(_) => 0,
        }
    }
}

/// Writes a backup: all of the snapshot, or what was written after `since`. Whole or absent: a failure leaves nothing
/// under that name. Calls `progress` with blocks done and, until the last, an estimate of blocks in all; it may give the
/// backup up.
///
/// # Errors
/// See [`BackupError`].
pub fn write_backup(
    (store, name): (&dyn BackupStore, &str),
    manifest: &BackupManifest,
    key: &StreamKey,
    snapshot: Snapshot,
    since: &Marks,
    progress: impl Fn(u64, u64) -> ControlFlow<()> + Sync,
) -> Result<(), BackupError> {
    let sink = store.begin(name).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists,
        _ => e.into(),
    })?;
    let made = write_parts(sink.as_ref(), manifest, key, &snapshot, since, &progress);
    drop((sink, snapshot));
    if made.is_err() {
        _ = store.remove(name);
    }
    made
}

fn write_parts(
    sink: &dyn BackupSink,
    manifest: &BackupManifest,
    key: &StreamKey,
    snapshot: &Snapshot,
    since: &Marks,
    progress: &(dyn Fn(u64, u64) -> ControlFlow<()> + Sync),
) -> Result<(), BackupError> {
    if !snapshot.has_all(since.keys()) {
        return Err(BackupError::VolumeOlder);
    }
    let sealer = key.sealer(Provider::default(), manifest.backup_id);
    let manifest = BackupManifest { version: BackupManifest::VERSION, ..manifest.clone() };
    let plan = Mutex::new(Plan::new(snapshot, since, manifest));
    let (done, total) = (AtomicU64::new(0), AtomicU64::new(0));
    on_every_core(|failed| {
        let (mut chunk, mut sealed) = (Vec::with_capacity(4 + CHUNK_LEN + CHUNK_OVERHEAD_LEN), Vec::new());
        loop {
            if failed() {
                return Ok(());
            }
            // A block of its own, so that the lock is not held while the segment is made.
            let next = {
                let mut plan = plan.lock();
                let next = plan.segment()?;
                total.store(plan.total(), Ordering::Relaxed);
                next
            };
            let Some((index, chunks)) = next else { return Ok(()) };
            let mut segment = sink.segment(index)?;
            for planned in chunks {
                let blocks = planned.content.blocks();
                make(snapshot.volume(), &planned, &sealer, &mut chunk, &mut sealed)?;
                // Slots of an extent are given away as soon as it was read.
                drop(planned);
                let len = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
                segment.write(&len.to_le_bytes())?;
                segment.write(&chunk)?;
                let now = done.fetch_add(blocks, Ordering::Relaxed) + blocks;
                if failed() {
                    return Ok(());
                }
                if progress(now, total.load(Ordering::Relaxed)).is_break() {
                    return Err(BackupError::GivenUp);
                }
            }
            segment.finish()?;
        }
    })?;
    let manifest = plan.into_inner().manifest;
    Ok(sink.commit(&serde_json::to_vec(&manifest).map_err(io::Error::other)?)?)
}

/// What is to be made, as far as it is known: extents are taken from the snapshot as there is need for them.
struct Plan<'a> {
    snapshot: &'a Snapshot,
    since: &'a Marks,
    /// Knows at the end how many chunks there are.
    manifest: BackupManifest,
    marks: Marks,
    planned: VecDeque<Content>,
    blocks: u64,
    /// Chunks given out.
    given: u64,
    ended: bool,
}

impl<'a> Plan<'a> {
    fn new(snapshot: &'a Snapshot, since: &'a Marks, manifest: BackupManifest) -> Self {
        Self {
            snapshot,
            since,
            manifest,
            marks: Marks::new(),
            planned: VecDeque::new(),
            blocks: 0,
            given: 0,
            ended: false,
        }
    }

    /// The chunks of the next segment; none at the end.
    fn segment(&mut self) -> Result<Option<(u64, Vec<Chunk>)>, BackupError> {
        while !self.ended && self.planned.len() < SEGMENT_CHUNKS {
            match self.snapshot.next()? {
                Next::Extent(frozen) => self.take(frozen)?,
                Next::End => self.end(),
                Next::Overtaken => return Err(BackupError::Overtaken),
            }
        }
        let count = self.planned.len().min(SEGMENT_CHUNKS);
        let contents = self.planned.drain(..count).zip(self.given..);
        let total = self.ended.then_some(self.manifest.chunks);
        let chunks: Vec<_> = contents
            .map(|(content, index)| Chunk { index, last: total == Some(index + 1), content })
            .collect();
        let segment = self.given / SEGMENT_CHUNKS as u64;
        self.given += count as u64;
        Ok((count > 0).then_some((segment, chunks)))
    }

    /// Plans what of an extent was written after its mark. One without a mark is taken as if new: what was never
    /// written, and holes, are zeros in its absence.
    fn take(&mut self, mut frozen: Frozen) -> Result<(), BackupError> {
        let index = frozen.index();
        match self.since.get(&index) {
            Some(mark) if *mark > frozen.sequence => return Err(BackupError::VolumeOlder),
            Some(mark) => frozen.lives.retain(|l| l.entry.sequence > *mark),
            None => frozen.lives.retain(|l| !l.entry.hole),
        }
        self.marks.insert(index, frozen.sequence);
        let frozen = Arc::new(frozen);
        let len = frozen.lives.len();
        self.blocks += len as u64;
        for start in (0..len).step_by(CHUNK_BLOCKS) {
            let range = start..len.min(start + CHUNK_BLOCKS);
            self.planned.push_back(Content::Blocks(frozen.clone(), range));
        }
        Ok(())
    }

    /// Plans the marks, and the binding of the manifest, which says by now where they begin and how many chunks there are.
    fn end(&mut self) {
        let room = CHUNK_LEN / RECORD_LEN;
        let marks: Vec<_> = std::mem::take(&mut self.marks).into_iter().collect();
        self.manifest.marks_from = Some(self.given + self.planned.len() as u64);
        for some in marks.chunks(room) {
            let records = some.iter().flat_map(|(index, to)| record(KIND_MARK, *index, *to));
            self.planned.push_back(Content::Plain(records.collect()));
        }
        // With the one of the binding.
        self.manifest.chunks = self.given + self.planned.len() as u64 + 1;
        let binding = [&record(KIND_BINDING, 0, 0)[..], &self.manifest.binding()].concat();
        self.planned.push_back(Content::Plain(binding));
        self.ended = true;
    }

    /// Blocks in all: what is known, and for the extents to come as many as those before had.
    fn total(&self) -> u64 {
        if self.ended {
            return self.blocks;
        }
        let known = self.marks.len().max(1) as u64;
        self.blocks / known * (self.snapshot.extents() as u64).max(known)
    }
}

fn record(kind: u32, count: u32, place: u64) -> [u8; RECORD_LEN] {
    let mut out = [0; RECORD_LEN];
    out[..4].copy_from_slice(&kind.to_le_bytes());
    out[4..8].copy_from_slice(&count.to_le_bytes());
    out[8..].copy_from_slice(&place.to_le_bytes());
    out
}

/// Neighbouring blocks of one kind.
fn runs(lives: &[Live]) -> impl Iterator<Item = &[Live]> {
    lives.chunk_by(|a, b| b.entry.block == a.entry.block + 1 && a.entry.hole == b.entry.hole)
}

fn data_len(run: &[Live]) -> usize {
    if run.first().is_some_and(|l| l.entry.hole) { 0 } else { run.len() * BLOCK_LEN }
}

/// Reads what belongs into a chunk, and seals it.
fn make(
    volume: &Volume,
    planned: &Chunk,
    sealer: &StreamSealer,
    chunk: &mut Vec<u8>,
    sealed: &mut Vec<u8>,
) -> Result<(), BackupError> {
    chunk.clear();
    chunk.resize(CHUNK_HEAD_LEN, 0);
    match &planned.content {
        Content::Plain(bytes) => chunk.extend_from_slice(bytes),
        Content::Blocks(frozen, range) => {
            for run in runs(frozen.lives.get(range.clone()).unwrap_or_default()) {
                let Some(first) = run.first() else { continue };
                let count = u32::try_from(run.len()).unwrap_or(u32::MAX);
                let place =
                    u64::from(frozen.index()) * EXTENT_LEN + u64::from(first.entry.block) * BLOCK_LEN as u64;
                let kind = if first.entry.hole { KIND_HOLE } else { KIND_DATA };
                chunk.extend(record(kind, count, place));
                let start = chunk.len();
                chunk.resize(start + data_len(run), 0);
                frozen.open(volume, run, sealed, chunk.get_mut(start..).unwrap_or_default())?;
            }
        }
    }
    Ok(sealer.seal(planned.index, planned.last, chunk)?)
}
