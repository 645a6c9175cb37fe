//! Writing a backup: every core reads, seals and writes chunks, each a segment at a time.

use crate::{
    BackupSink, BackupStore, Snapshot,
    backup::{
        BackupError, BackupManifest, CHUNK_BLOCKS, KIND_DATA, KIND_HOLE, KIND_MARK, Marks, RECORD_LEN,
        SEGMENT_CHUNKS,
    },
    every_core::on_every_core,
    extent::Live,
    layout::{BLOCK_LEN, EXTENT_LEN},
    snapshot::Frozen,
};
use custody_envelope::{CHUNK_HEAD_LEN, CHUNK_LEN, CHUNK_OVERHEAD_LEN, Provider, StreamKey, StreamSealer};
use parking_lot::Mutex;
use std::{
    io,
    ops::{ControlFlow, Range},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// One chunk that is still to be made.
enum Chunk {
    /// Records that are at hand: the manifest's binding, marks.
    Plain(Vec<u8>),
    /// Blocks of an extent.
    Blocks(Arc<Frozen>, Range<usize>),
}

impl Chunk {
    fn blocks(&self) -> u64 {
        match self {
            Self::Blocks(_, range) => range.len() as u64,
            Self::Plain(_) => 0,
        }
    }
}

/// Writes a backup: all of the snapshot, or what was written after `since`. Whole or absent: a failure leaves nothing
/// under that name. Calls `progress` with blocks done and blocks in all; it may give the backup up.
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
    let made = write_parts(sink.as_ref(), manifest.clone(), key, snapshot, since, &progress);
    drop(sink);
    if made.is_err() {
        _ = store.remove(name);
    }
    made
}

fn write_parts(
    sink: &dyn BackupSink,
    mut manifest: BackupManifest,
    key: &StreamKey,
    snapshot: Snapshot,
    since: &Marks,
    progress: &(dyn Fn(u64, u64) -> ControlFlow<()> + Sync),
) -> Result<(), BackupError> {
    let mut chunks = plan(snapshot.freeze(since)?);
    (manifest.version, manifest.chunks) = (BackupManifest::VERSION, chunks.len() as u64);
    if let Some(Chunk::Plain(first)) = chunks.first_mut() {
        first.splice(..0, manifest.binding());
    }
    let (total, last) = (chunks.iter().map(Chunk::blocks).sum(), chunks.len() as u64 - 1);
    let sealer = key.sealer(Provider::default(), manifest.backup_id);
    let mut chunks = chunks.into_iter();
    let segments = (0..).zip(std::iter::from_fn(move || {
        let segment: Vec<_> = chunks.by_ref().take(SEGMENT_CHUNKS).collect();
        (!segment.is_empty()).then_some(segment)
    }));
    let (segments, done) = (Mutex::new(segments), AtomicU64::new(0));
    on_every_core(|failed| {
        let (mut chunk, mut sealed) = (Vec::with_capacity(4 + CHUNK_LEN + CHUNK_OVERHEAD_LEN), Vec::new());
        loop {
            // A statement of its own, so that the lock is not held while the segment is made.
            let next = segments.lock().next();
            let Some((index, contents)) = next.filter(|_| !failed()) else { return Ok(()) };
            let mut segment = sink.segment(index)?;
            for (content, index) in contents.into_iter().zip(index * SEGMENT_CHUNKS as u64..) {
                make(&content, index, index == last, &sealer, &mut chunk, &mut sealed)?;
                let len = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
                segment.write(&len.to_le_bytes())?;
                segment.write(&chunk)?;
                let now = done.fetch_add(content.blocks(), Ordering::Relaxed) + content.blocks();
                if failed() {
                    return Ok(());
                }
                if progress(now, total).is_break() {
                    return Err(BackupError::GivenUp);
                }
            }
            segment.finish()?;
        }
    })?;
    Ok(sink.commit(&serde_json::to_vec(&manifest).map_err(io::Error::other)?)?)
}

/// The chunks in order: the marks, which the manifest's binding goes before, then blocks, each chunk's of one extent.
fn plan(extents: Vec<Arc<Frozen>>) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let mut plain = Vec::new();
    for frozen in &extents {
        // The binding is as long as two records.
        if plain.len() + 3 * RECORD_LEN > CHUNK_LEN {
            chunks.push(Chunk::Plain(std::mem::take(&mut plain)));
        }
        plain.extend(record(KIND_MARK, frozen.index(), frozen.sequence));
    }
    chunks.push(Chunk::Plain(plain));
    for frozen in extents {
        for start in (0..frozen.lives.len()).step_by(CHUNK_BLOCKS) {
            let end = frozen.lives.len().min(start + CHUNK_BLOCKS);
            chunks.push(Chunk::Blocks(frozen.clone(), start..end));
        }
    }
    chunks
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
    content: &Chunk,
    index: u64,
    last: bool,
    sealer: &StreamSealer,
    chunk: &mut Vec<u8>,
    sealed: &mut Vec<u8>,
) -> Result<(), BackupError> {
    chunk.clear();
    chunk.resize(CHUNK_HEAD_LEN, 0);
    match content {
        Chunk::Plain(bytes) => chunk.extend_from_slice(bytes),
        Chunk::Blocks(frozen, range) => {
            for run in runs(frozen.lives.get(range.clone()).unwrap_or_default()) {
                let Some(first) = run.first() else { continue };
                let count = u32::try_from(run.len()).unwrap_or(u32::MAX);
                let place =
                    u64::from(frozen.index()) * EXTENT_LEN + u64::from(first.entry.block) * BLOCK_LEN as u64;
                let kind = if first.entry.hole { KIND_HOLE } else { KIND_DATA };
                chunk.extend(record(kind, count, place));
                let start = chunk.len();
                chunk.resize(start + data_len(run), 0);
                frozen.open(run, sealed, chunk.get_mut(start..).unwrap_or_default())?;
            }
        }
    }
    Ok(sealer.seal(index, last, chunk)?)
}
