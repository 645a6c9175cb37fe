//! Writing a backup: chunks are read, sealed and written by every core, each to its place.

use crate::{
    Snapshot,
    backup::{BackupError, BackupManifest, CHUNK_BLOCKS, KIND_DATA, KIND_HOLE, KIND_MARK, Marks, RECORD_LEN},
    every_core::on_every_core,
    extent::Live,
    layout::{BLOCK_LEN, EXTENT_LEN},
    snapshot::Frozen,
    write_behind::WriteBehind,
};
use custody_envelope::{CHUNK_HEAD_LEN, CHUNK_LEN, CHUNK_OVERHEAD_LEN, Provider, StreamKey, StreamSealer};
use parking_lot::Mutex;
use std::{
    fs::{self, File},
    io::{self, Write as _},
    ops::{ControlFlow, Range},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// One chunk that is still to be made.
struct Job {
    index: u64,
    /// Where it begins in the file.
    start: u64,
    content: Content,
}

enum Content {
    /// Records that are at hand: the manifest's binding, marks.
    Plain(Vec<u8>),
    /// Blocks of an extent.
    Blocks(Arc<Frozen>, Range<usize>),
}

/// Writes a backup to `dir`, which must not exist: all of the snapshot, or what was written after `since`. Whole or
/// absent: a failure leaves nothing under that name. Calls `progress` with blocks done and blocks in all; it may give
/// the backup up.
///
/// # Errors
/// See [`BackupError`].
pub fn write_backup(
    dir: &Path,
    manifest: &BackupManifest,
    key: &StreamKey,
    snapshot: Snapshot,
    since: &Marks,
    progress: impl Fn(u64, u64) -> ControlFlow<()> + Sync,
) -> Result<(), BackupError> {
    if dir.exists() {
        return Err(BackupError::Exists);
    }
    let parent = dir.parent().ok_or(BackupError::Manifest)?;
    let name = dir.file_name().ok_or(BackupError::Manifest)?.to_string_lossy();
    let partial = parent.join(format!(".{name}.partial"));
    _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    let made = write_parts(&partial, manifest, key, snapshot, since, &progress).and_then(|()| {
        fs::rename(&partial, dir)?;
        Ok(File::open(parent)?.sync_all()?)
    });
    if made.is_err() {
        _ = fs::remove_dir_all(&partial);
    }
    made
}

fn write_parts(
    dir: &Path,
    manifest: &BackupManifest,
    key: &StreamKey,
    snapshot: Snapshot,
    since: &Marks,
    progress: &(dyn Fn(u64, u64) -> ControlFlow<()> + Sync),
) -> Result<(), BackupError> {
    let file = File::create_new(dir.join("data.sealed"))?;
    let jobs = plan(manifest, snapshot.freeze(since)?);
    let blocks = |job: &Job| match &job.content {
        Content::Blocks(_, range) => range.len() as u64,
        Content::Plain(_) => 0,
    };
    let (total, last) = (jobs.iter().map(blocks).sum(), jobs.len() as u64 - 1);
    let sealer = key.sealer(Provider::default(), manifest.backup_id);
    let behind = WriteBehind::default();
    let (jobs, done) = (Mutex::new(jobs.into_iter()), AtomicU64::new(0));
    on_every_core(|failed| {
        let (mut chunk, mut sealed) = (Vec::with_capacity(CHUNK_LEN + CHUNK_OVERHEAD_LEN), Vec::new());
        loop {
            // A statement of its own, so that the lock is not held while the job is done.
            let next = jobs.lock().next();
            let Some(job) = next.filter(|_| !failed()) else { return Ok(()) };
            make(&job, job.index == last, &sealer, &mut chunk, &mut sealed)?;
            let len = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            file.write_all_at(&len.to_le_bytes(), job.start)?;
            file.write_all_at(&chunk, job.start + 4)?;
            behind.wrote(&file, chunk.len() as u64);
            let now = done.fetch_add(blocks(&job), Ordering::Relaxed) + blocks(&job);
            if progress(now, total).is_break() {
                return Err(BackupError::GivenUp);
            }
        }
    })?;
    file.sync_all()?;
    let mut text = File::create_new(dir.join("manifest.json"))?;
    text.write_all(&serde_json::to_vec(manifest).map_err(io::Error::other)?)?;
    text.sync_all()?;
    Ok(File::open(dir)?.sync_all()?)
}

/// The chunks in order: the binding and the marks, then blocks, each chunk's of one extent.
fn plan(manifest: &BackupManifest, extents: Vec<Arc<Frozen>>) -> Vec<Job> {
    let mut contents = Vec::new();
    let mut plain = manifest.binding().to_vec();
    for frozen in &extents {
        if plain.len() + RECORD_LEN > CHUNK_LEN {
            contents.push(Content::Plain(std::mem::take(&mut plain)));
        }
        plain.extend(record(KIND_MARK, frozen.index(), frozen.sequence));
    }
    contents.push(Content::Plain(plain));
    for frozen in extents {
        for start in (0..frozen.lives.len()).step_by(CHUNK_BLOCKS) {
            let end = frozen.lives.len().min(start + CHUNK_BLOCKS);
            contents.push(Content::Blocks(frozen.clone(), start..end));
        }
    }
    let mut start = 0;
    let mut jobs = Vec::with_capacity(contents.len());
    for (index, content) in (0..).zip(contents) {
        let len = match &content {
            Content::Plain(bytes) => bytes.len(),
            Content::Blocks(frozen, range) => runs(frozen.lives.get(range.clone()).unwrap_or_default())
                .map(|run| RECORD_LEN + data_len(run))
                .sum(),
        };
        jobs.push(Job { index, start, content });
        start += (4 + CHUNK_OVERHEAD_LEN + len) as u64;
    }
    jobs
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
    job: &Job,
    last: bool,
    sealer: &StreamSealer,
    chunk: &mut Vec<u8>,
    sealed: &mut Vec<u8>,
) -> Result<(), BackupError> {
    chunk.clear();
    chunk.resize(CHUNK_HEAD_LEN, 0);
    match &job.content {
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
                frozen.open(run, sealed, chunk.get_mut(start..).unwrap_or_default())?;
            }
        }
    }
    Ok(sealer.seal(job.index, last, chunk)?)
}
