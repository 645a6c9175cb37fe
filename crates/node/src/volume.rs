//! A sealed volume: making, opening and finding its parts. Its data path is in `read.rs`, `write.rs` and `flush.rs`.

use crate::{
    Protector, ProtectorKind, Restoring, Superblock, SuperblockError, VolumeError,
    anchor::{Anchor, AnchorError, Counter, anchor_path},
    extent::Extent,
    extent_budget::{ExtentBudget, ExtentMap},
    extent_table::ExtentTable,
    flush::Headers,
    layout::{BLOCK_LEN, EXTENT_LEN, extent_start},
    recovery::Loader,
    snapshot::Snapshots,
    write_behind::WriteBehind,
};
use custody_envelope::{Provider, SEALS_PER_KEY_MAX, VolumeKey, VolumeKeys, random};
use custody_types::{Clock, SystemClock, UnixMillis};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// How a volume is run.
#[derive(Clone)]
pub struct VolumeOptions {
    /// Which cryptography.
    pub provider: Provider,
    /// Seals under one data key before it rotates by itself. At most [`SEALS_PER_KEY_MAX`].
    pub seals_per_key_max: u64,
    /// What bounds the extents in memory; others are loaded as they are used.
    pub budget: Arc<ExtentBudget>,
    /// How long a data key seals before it is retired.
    pub data_key_age_max: Duration,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where anchors are kept: best on another disk than the volumes. None: a new volume has none.
    pub anchors: Option<PathBuf>,
}

impl fmt::Debug for VolumeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeOptions").field("provider", &self.provider).finish_non_exhaustive()
    }
}

impl Default for VolumeOptions {
    fn default() -> Self {
        // Half of what NIST SP 800-38D §8.3 allows, so that re-encryption itself fits below the limit.
        Self {
            provider: Provider::default(),
            seals_per_key_max: SEALS_PER_KEY_MAX / 2,
            budget: ExtentBudget::new(320),
            // NIST SP 800-57 part 1, table 1: a symmetric key encrypts for two years at most.
            data_key_age_max: Duration::from_secs(2 * 365 * 86_400),
            clock: Arc::new(SystemClock),
            anchors: None,
        }
    }
}

/// An open volume. Dropping the last handle erases its keys from memory.
pub struct Volume {
    pub(crate) file: File,
    pub(crate) superblock: Mutex<Superblock>,
    pub(crate) id: [u8; 16],
    pub(crate) keys: VolumeKeys,
    /// Bytes that clients see. It only grows.
    pub(crate) size_bytes: AtomicU64,
    pub(crate) options: VolumeOptions,
    pub(crate) extents: Arc<ExtentMap>,
    pub(crate) table: Mutex<ExtentTable>,
    /// Writes hold it shared from sequence number to map; a flush takes it alone for the moment it looks.
    /// None where it has none.
    pub(crate) anchor: Option<Mutex<Anchor>>,
    pub(crate) gate: RwLock<()>,
    /// Held by whoever flushes.
    pub(crate) flush: Mutex<Headers>,
    /// Blocks that were written.
    pub(crate) written: AtomicU64,
    /// Whether a flush has left headers for later.
    pub(crate) unsettled: AtomicBool,
    pub(crate) flushes_begun: AtomicU64,
    pub(crate) flushes_done: AtomicU64,
    pub(crate) failed: AtomicBool,
    /// Extents whose data key is due, or whose rotation was cut short.
    pub(crate) rotation_due: Mutex<Vec<u32>>,
    /// Counts what is restored to it.
    pub(crate) restored: WriteBehind,
    pub(crate) snapshots: Snapshots,
}

impl Volume {
    /// Makes a volume file at `path`, which must not exist. It is durable on return; on failure nothing is left.
    ///
    /// # Errors
    /// A size that is not offered, or the file system failed.
    pub fn create(
        path: &Path,
        size_bytes: u64,
        key: &VolumeKey,
        protector: Protector,
        options: VolumeOptions,
    ) -> Result<Self, SuperblockError> {
        Superblock::check_size(size_bytes)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let keys = key.derive(options.provider);
        let made = Self::format(&file, path, size_bytes, &keys, protector, options.anchors.is_some())
            .and_then(|superblock| {
                let anchor = superblock.anchor_of(&options).map(|path| {
                    Ok::<_, SuperblockError>(Anchor::create(
                        &path,
                        superblock.volume_id,
                        extents_of(size_bytes),
                    )?)
                });
                Ok((superblock, anchor.transpose()?))
            });
        if made.is_err() {
            _ = std::fs::remove_file(path);
        }
        let (superblock, anchor) = made?;
        Self::with(file, superblock, keys, anchor, options)
    }

    fn format(
        file: &File,
        path: &Path,
        size_bytes: u64,
        keys: &VolumeKeys,
        protector: Protector,
        anchored: bool,
    ) -> Result<Superblock, SuperblockError> {
        file.set_len(extent_start(extents_of(size_bytes)))?;
        let mut volume_id = [0; 16];
        random(&mut volume_id).map_err(std::io::Error::other)?;
        let mut superblock = Superblock {
            volume_id,
            size_bytes,
            protector,
            former: None,
            anchored,
            data_keys_retired_before: UnixMillis::default(),
            restoring: None,
            sequence: 0,
        };
        // Both copies, so that one damaged copy never loses a volume.
        superblock.write(file, keys)?;
        superblock.write(file, keys)?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(superblock)
    }

    /// Opens a volume file with its key, which a vault unwrapped from [`Superblock::protector`].
    ///
    /// # Errors
    /// The file is no volume, is damaged, or was not written under this key.
    pub fn open(path: &Path, key: &VolumeKey, options: VolumeOptions) -> Result<Self, SuperblockError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        // What a killed process wrote may be in the page cache alone. Recovery goes by what it reads, so that must be there to stay.
        file.sync_data()?;
        let superblock = Superblock::read(&file)?;
        let keys = key.derive(options.provider);
        superblock.authenticate(&file, &keys)?;
        let whole = extent_start(extents_of(superblock.size_bytes));
        let len = file.metadata()?.len();
        if len < whole {
            return Err(SuperblockError::Cut { len, whole });
        }
        let anchor = superblock.anchor_of(&options).map(|path| superblock.check_anchor(path, &keys));
        Self::with(file, superblock, keys, anchor.transpose()?, options)
    }

    fn with(
        file: File,
        superblock: Superblock,
        keys: VolumeKeys,
        mut anchor: Option<Anchor>,
        options: VolumeOptions,
    ) -> Result<Self, SuperblockError> {
        if let Some(anchor) = &mut anchor {
            anchor.wrote(Counter::Superblock, superblock.sequence);
            anchor.durable(&keys)?;
            anchor.sync()?;
        }
        let (id, size_bytes) = (superblock.volume_id, superblock.size_bytes);
        let table = ExtentTable::read(&file, id, size_bytes, &keys).map_err(|e| match e {
            VolumeError::Io(io) => SuperblockError::Io(io),
            _ => SuperblockError::Forged,
        })?;
        Ok(Self {
            file,
            superblock: Mutex::new(superblock),
            id,
            keys,
            size_bytes: AtomicU64::new(size_bytes),
            options,
            extents: Arc::default(),
            table: Mutex::new(table),
            anchor: anchor.map(Mutex::new),
            gate: RwLock::new(()),
            flush: Mutex::default(),
            written: AtomicU64::new(0),
            unsettled: AtomicBool::new(false),
            flushes_begun: AtomicU64::new(0),
            flushes_done: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            rotation_due: Mutex::new(Vec::new()),
            restored: WriteBehind::default(),
            snapshots: Snapshots::default(),
        })
    }

    /// Bytes that clients see.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// The volume's random id: no other has it, not one restored from a backup either.
    #[must_use]
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// What protects the volume now.
    #[must_use]
    pub fn protector(&self) -> Protector {
        self.superblock.lock().protector.clone()
    }

    /// Puts another protector in the superblock: a re-wrap. The volume key and the data stay as they are; a crash
    /// leaves the old protector or the new one. When this returns, neither copy of the superblock needs what wrapped the old one.
    ///
    /// # Errors
    /// The file system failed; the old protector stands.
    pub fn set_protector(&self, protector: Protector) -> Result<(), SuperblockError> {
        // Once for each copy.
        self.update_superblock(|superblock| superblock.protector = protector.clone())?;
        self.update_superblock(|superblock| superblock.protector = protector)
    }

    /// Puts the protector of another key in the superblock, and keeps the one before it until
    /// [`Volume::settle_protector`].
    ///
    /// # Errors
    /// As [`Volume::set_protector`].
    pub fn change_protector(&self, next: Protector) -> Result<(), SuperblockError> {
        self.update_superblock(|superblock| {
            superblock.former = Some(std::mem::replace(&mut superblock.protector, next));
        })
    }

    /// Forgets the protector before the present one: what it wrapped stands in no copy of the superblock any more.
    ///
    /// # Errors
    /// As [`Volume::set_protector`]; calling it again goes on.
    pub fn settle_protector(&self) -> Result<(), SuperblockError> {
        // Once for each copy.
        for _ in 0..2 {
            self.update_superblock(|superblock| superblock.former = None)?;
        }
        Ok(())
    }

    /// Makes the volume larger; what is new of it reads as zeros. A crash leaves the old size or the new one, and all data.
    ///
    /// # Errors
    /// A size that is not offered, or smaller than it is; or the file system failed, and the old size stands.
    pub fn grow(&self, size_bytes: u64) -> Result<(), SuperblockError> {
        Superblock::check_size(size_bytes)?;
        let now = self.size_bytes();
        if size_bytes < now {
            return Err(SuperblockError::Shrink { now, asked: size_bytes });
        }
        if size_bytes == now {
            return Ok(());
        }
        let extents = extents_of(size_bytes);
        // A file that is longer than its volume is none that was cut.
        self.file.set_len(extent_start(extents))?;
        self.table.lock().grow(extents);
        if let Some(anchor) = &self.anchor {
            anchor.lock().grow(extents);
        }
        // Once for each copy: what is written from now on must not be beyond the end that the older one knows.
        for _ in 0..2 {
            self.update_superblock(|superblock| {
                superblock.size_bytes = superblock.size_bytes.max(size_bytes)
            })?;
        }
        self.size_bytes.fetch_max(size_bytes, Ordering::AcqRel);
        Ok(())
    }

    /// How far its restore has come, if it is not whole.
    #[must_use]
    pub fn restoring(&self) -> Option<Restoring> {
        self.superblock.lock().restoring.clone()
    }

    /// Notes how far its restore has come: a crash does not begin before that again. None when it is whole.
    ///
    /// # Errors
    /// As [`Volume::flush`], or the note was not written.
    pub fn set_restoring(&self, to: Option<Restoring>) -> Result<(), VolumeError> {
        // What the note speaks of is durable before it.
        self.settle()?;
        self.update_superblock(|superblock| superblock.restoring = to)
            .map_err(|e| VolumeError::Io(std::io::Error::other(e)))
    }

    /// Writes a changed superblock, and tells the anchor.
    pub(crate) fn update_superblock(
        &self,
        change: impl FnOnce(&mut Superblock),
    ) -> Result<(), SuperblockError> {
        // No header is written between the superblock's way to the disk and the anchor's word of it.
        let _no_flush = self.flush.lock();
        let mut superblock = self.superblock.lock();
        let mut next = superblock.clone();
        change(&mut next);
        next.write(&self.file, &self.keys)?;
        if let Some(anchor) = &self.anchor {
            let mut anchor = anchor.lock();
            anchor.wrote(Counter::Superblock, next.sequence);
            anchor.durable(&self.keys)?;
            anchor.sync()?;
        }
        *superblock = next;
        Ok(())
    }

    /// Makes everything durable, the anchor too: after it the file cannot be put back to any earlier state unseen.
    ///
    /// # Errors
    /// As [`Volume::flush`].
    pub fn settle_down(&self) -> Result<(), VolumeError> {
        // The second makes the headers durable that the first writes.
        self.settle()?;
        self.settle()?;
        Ok(self.anchor.as_ref().map_or(Ok(()), |anchor| anchor.lock().sync())?)
    }

    /// Whether losing the process loses the volume.
    #[must_use]
    pub fn is_ephemeral(&self) -> bool {
        self.superblock.lock().protector.kind == ProtectorKind::Ephemeral
    }

    /// Erases every key from memory and leaves the file, which nobody can read or write blocks of any more.
    #[must_use]
    pub fn erase_keys(self) -> File {
        self.file
    }

    pub(crate) fn loader(&self) -> Loader<'_> {
        Loader { file: &self.file, volume: self.id, keys: &self.keys, clock: self.options.clock.as_ref() }
    }

    pub(crate) fn check_range(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(VolumeError::FlushFailed);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size_bytes() => Ok(()),
            _ => Err(VolumeError::OutOfRange { offset, len, volume_len: self.size_bytes() }),
        }
    }

    /// Every extent that there is: on disk, or so far in memory alone.
    pub(crate) fn known_extents(&self) -> BTreeSet<u32> {
        let mut known: BTreeSet<u32> = self.table.lock().all().into_iter().collect();
        known.extend(self.extents.read().keys());
        known
    }

    /// The extent if it exists, loading it if it must.
    pub(crate) fn existing(&self, index: u32) -> Result<Option<Arc<Extent>>, VolumeError> {
        if let Some(found) = self.extents.read().get(&index) {
            return Ok(Some(found.clone()));
        }
        if self.options.budget.exceeded() {
            // The second makes the headers durable that the first writes: extents can be forgotten then.
            self.settle()?;
            self.settle()?;
        }
        let mut extents = self.extents.write();
        if let Some(found) = extents.get(&index) {
            return Ok(Some(found.clone()));
        }
        let known = self.table.lock().contains(index);
        let loaded = self.loader().load(index, known)?;
        let header = loaded.as_ref().map_or(0, |extent| extent.state.read().header.header_sequence);
        if self.anchor.as_ref().is_some_and(|a| !a.lock().allows(Counter::Extent(index), header)) {
            return Err(VolumeError::RolledBack { extent: index });
        }
        let Some(loaded) = loaded else { return Ok(None) };
        // What is used under a retired key is first to leave it.
        if loaded.state.read().header.is_retired(self.data_keys_retired_before()) {
            self.rotation_due.lock().push(index);
        }
        Ok(Some(self.keep(&mut extents, loaded)))
    }

    pub(crate) fn for_writing(&self, index: u32) -> Result<Arc<Extent>, VolumeError> {
        if let Some(found) = self.existing(index)? {
            return Ok(found);
        }
        let mut extents = self.extents.write();
        if let Some(found) = extents.get(&index) {
            return Ok(found.clone());
        }
        let made = self.loader().create(index)?;
        Ok(self.keep(&mut extents, made))
    }

    fn keep(&self, extents: &mut HashMap<u32, Arc<Extent>>, extent: Extent) -> Arc<Extent> {
        let extent = Arc::new(extent);
        self.options.budget.admit(&self.extents, extents, extent.clone());
        extent
    }
}

/// How many extents a volume of this size has.
fn extents_of(size_bytes: u64) -> u32 {
    u32::try_from(size_bytes.div_ceil(EXTENT_LEN)).unwrap_or(u32::MAX)
}

impl Superblock {
    /// Where its anchor is, if it has one.
    fn anchor_of(&self, options: &VolumeOptions) -> Option<PathBuf> {
        let dir = options.anchors.as_deref().filter(|_| self.anchored)?;
        Some(anchor_path(dir, self.volume_id))
    }

    fn check_anchor(&self, path: PathBuf, keys: &VolumeKeys) -> Result<Anchor, SuperblockError> {
        match Anchor::open(&path, self.volume_id, extents_of(self.size_bytes), keys) {
            Ok(anchor) if anchor.allows(Counter::Superblock, self.sequence) => Ok(anchor),
            Ok(_) => Err(SuperblockError::RolledBack(path)),
            Err(AnchorError::Missing) => Err(SuperblockError::AnchorMissing(path)),
            Err(AnchorError::Damaged) => Err(SuperblockError::AnchorDamaged(path)),
            Err(AnchorError::Io(e)) => Err(e.into()),
        }
    }
}

/// Extent and block of a byte offset.
pub(crate) fn place(at: u64) -> (u32, u16) {
    let block = at % EXTENT_LEN / BLOCK_LEN as u64;
    (u32::try_from(at / EXTENT_LEN).unwrap_or(u32::MAX), u16::try_from(block).unwrap_or(u16::MAX))
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume").field("size_bytes", &self.size_bytes()).finish_non_exhaustive()
    }
}
