//! Spills: what a query does not hold in memory, sealed under a key that is nowhere else.
//!
//! A spill's file has no name, and its key is in memory alone: when the process ends, whichever way, nobody reads it
//! any more, and the file system gives its blocks back.

use custody_envelope::{
    CHUNK_HEAD_LEN, CHUNK_LEN, CHUNK_OVERHEAD_LEN, Provider, RandomError, StreamKey, StreamSealer, random,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use zeroize::Zeroizing;

/// Bytes of a sealed chunk: each has its place in the file.
const STRIDE: u64 = (CHUNK_LEN + CHUNK_OVERHEAD_LEN) as u64;

/// How much may be spilled.
#[derive(Clone, Copy, Debug)]
pub struct SpillLimits {
    /// Bytes on disk, of all spills together.
    pub bytes_max: u64,
    /// Spills.
    pub count_max: usize,
    /// How long one that nobody reads is kept: its owner may be gone.
    pub idle_max: Duration,
}

/// A spill that was not written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpillError {
    /// There is none of this id: it was removed, nobody has read it for too long, or the process that had its key has ended.
    #[error("the spill does not exist, or not any more")]
    Missing,
    /// The limits are reached.
    #[error("there is room for {} spills of {} bytes together; remove some", .0.count_max, .0.bytes_max)]
    Full(SpillLimits),
    /// Its file was altered.
    #[error("the spill does not authenticate: its file was altered")]
    Corrupt,
    /// The operating system gave no random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The file system failed.
    #[error("the file of a spill failed: {0}")]
    Io(#[from] io::Error),
}

/// The id of a spill: random, and so known to whoever wrote it.
pub type SpillId = [u8; 16];

/// All spills of a process.
pub struct Spills {
    dir: PathBuf,
    limits: SpillLimits,
    used: Arc<Mutex<Used>>,
    spills: Mutex<HashMap<SpillId, Arc<Spill>>>,
}

/// What spills take, also those that are being written.
#[derive(Default)]
struct Used {
    count: usize,
    bytes: u64,
}

/// What one spill takes. It is given back when dropped.
struct Room {
    used: Arc<Mutex<Used>>,
    limits: SpillLimits,
    bytes: u64,
}

struct Spill {
    file: File,
    sealer: StreamSealer,
    len: u64,
    last_used: Mutex<Duration>,
    _room: Room,
}

/// A spill that is being written. Dropped before it is finished, nothing of it stays.
pub struct SpillWriter<'a> {
    spills: &'a Spills,
    id: SpillId,
    file: File,
    sealer: StreamSealer,
    chunk: Zeroizing<Vec<u8>>,
    chunks: u64,
    len: u64,
    room: Room,
}

impl Room {
    fn new(used: &Arc<Mutex<Used>>, limits: SpillLimits) -> Result<Self, SpillError> {
        let mut now = used.lock();
        if now.count >= limits.count_max {
            return Err(SpillError::Full(limits));
        }
        now.count += 1;
        Ok(Self { used: used.clone(), limits, bytes: 0 })
    }

    fn add(&mut self, bytes: u64) -> Result<(), SpillError> {
        let mut now = self.used.lock();
        if now.bytes + bytes > self.limits.bytes_max {
            return Err(SpillError::Full(self.limits));
        }
        now.bytes += bytes;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut now = self.used.lock();
        now.count -= 1;
        now.bytes -= self.bytes;
    }
}

impl Spills {
    /// In a directory that exists, and holds nothing else. What a process that was killed left there is removed.
    ///
    /// # Errors
    /// The file system failed.
    pub fn open(dir: PathBuf, limits: SpillLimits) -> io::Result<Self> {
        for entry in fs::read_dir(&dir)? {
            fs::remove_file(entry?.path())?;
        }
        Ok(Self { dir, limits, used: Arc::default(), spills: Mutex::default() })
    }

    /// Begins a spill.
    ///
    /// # Errors
    /// See [`SpillError`].
    pub fn create(&self) -> Result<SpillWriter<'_>, SpillError> {
        let room = Room::new(&self.used, self.limits)?;
        let mut id = [0; 16];
        random(&mut id)?;
        let path = self.dir.join(hex::encode(id));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(path)?;
        // The schedule in the sealer is all that stays of the key.
        let sealer = StreamKey::generate()?.sealer(Provider::default(), id);
        let chunk = Zeroizing::default();
        Ok(SpillWriter { spills: self, id, file, sealer, chunk, chunks: 0, len: 0, room })
    }

    fn get(&self, id: &SpillId) -> Result<Arc<Spill>, SpillError> {
        self.spills.lock().get(id).cloned().ok_or(SpillError::Missing)
    }

    /// Reads from an offset into `plain`, to the end of a chunk at most; nothing at the end. `now` is a moment of the same
    /// clock as [`Spills::expire`]'s.
    ///
    /// # Errors
    /// See [`SpillError`].
    pub fn read(
        &self,
        id: &SpillId,
        offset: u64,
        plain: &mut Zeroizing<Vec<u8>>,
        now: Duration,
    ) -> Result<(), SpillError> {
        let spill = self.get(id)?;
        *spill.last_used.lock() = now;
        plain.clear();
        if offset >= spill.len {
            return Ok(());
        }
        let index = offset / CHUNK_LEN as u64;
        let len = (spill.len - index * CHUNK_LEN as u64).min(CHUNK_LEN as u64);
        let mut sealed = vec![0; usize::try_from(len).unwrap_or(0) + CHUNK_OVERHEAD_LEN];
        spill.file.read_exact_at(&mut sealed, index * STRIDE)?;
        spill.sealer.open(index, false, &sealed, plain).map_err(|_| SpillError::Corrupt)?;
        plain.drain(..usize::try_from(offset % CHUNK_LEN as u64).unwrap_or(0));
        Ok(())
    }

    /// Bytes of a spill.
    ///
    /// # Errors
    /// [`SpillError::Missing`].
    pub fn len(&self, id: &SpillId) -> Result<u64, SpillError> {
        Ok(self.get(id)?.len)
    }

    /// Removes a spill, and erases its key.
    ///
    /// # Errors
    /// [`SpillError::Missing`].
    pub fn remove(&self, id: &SpillId) -> Result<(), SpillError> {
        let removed = self.spills.lock().remove(id);
        removed.map(drop).ok_or(SpillError::Missing)
    }

    /// Removes those that nobody has read or written for too long.
    pub fn expire(&self, now: Duration) {
        let young = |spill: &Spill| now.saturating_sub(*spill.last_used.lock()) <= self.limits.idle_max;
        self.spills.lock().retain(|_, spill| young(spill));
    }
}

impl SpillWriter<'_> {
    /// Adds bytes.
    ///
    /// # Errors
    /// See [`SpillError`].
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), SpillError> {
        while !bytes.is_empty() {
            if self.chunk.is_empty() {
                self.chunk.resize(CHUNK_HEAD_LEN, 0);
            }
            let (now, rest) =
                bytes.split_at((CHUNK_HEAD_LEN + CHUNK_LEN - self.chunk.len()).min(bytes.len()));
            self.chunk.extend_from_slice(now);
            bytes = rest;
            if self.chunk.len() == CHUNK_HEAD_LEN + CHUNK_LEN {
                self.seal()?;
            }
        }
        Ok(())
    }

    fn seal(&mut self) -> Result<(), SpillError> {
        let len = (self.chunk.len() - CHUNK_HEAD_LEN) as u64;
        self.room.add(len + CHUNK_OVERHEAD_LEN as u64)?;
        self.sealer.seal(self.chunks, false, &mut self.chunk)?;
        self.file.write_all_at(&self.chunk, self.chunks * STRIDE)?;
        self.chunks += 1;
        self.len += len;
        self.chunk.clear();
        Ok(())
    }

    /// Ends it, and answers its id and length.
    ///
    /// # Errors
    /// See [`SpillError`].
    pub fn finish(mut self, now: Duration) -> Result<(SpillId, u64), SpillError> {
        if !self.chunk.is_empty() {
            self.seal()?;
        }
        let Self { spills, id, file, sealer, len, room, .. } = self;
        let spill = Spill { file, sealer, len, last_used: Mutex::new(now), _room: room };
        spills.spills.lock().insert(id, Arc::new(spill));
        Ok((id, len))
    }
}

impl fmt::Debug for Spills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spills").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl fmt::Debug for SpillWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpillWriter").field("len", &self.len).finish_non_exhaustive()
    }
}
