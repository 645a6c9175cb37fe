//! A sealed volume: reads and writes of a flat range of bytes.

use crate::{
    Protector, ProtectorKind, Superblock, SuperblockError, VolumeError,
    extent::{Entry, Extent, Live, Sealer, ZEROS},
    extent_table::ExtentTable,
    layout::{
        BLOCK_LEN, ENTRY_LEN, EXTENT_LEN, RUN_BLOCKS, entries_start, entry_offset, extent_start, slot_start,
    },
    recovery::Loader,
};
use custody_envelope::{NonceSource, Provider, SEALS_PER_KEY_MAX, VolumeKey, VolumeKeys, random};
use parking_lot::{Mutex, RwLock};
use std::{
    cell::RefCell,
    collections::HashMap,
    fmt,
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// How a volume is run.
#[derive(Clone, Copy, Debug)]
pub struct VolumeOptions {
    /// Which cryptography.
    pub provider: Provider,
    /// Seals under one data key before it rotates by itself. At most [`SEALS_PER_KEY_MAX`].
    pub seals_per_key_max: u64,
    /// Extents kept in memory, at about 240 KiB each; more are loaded as they are used.
    pub extents_loaded_max: usize,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        // Half of what NIST SP 800-38D §8.3 allows, so that re-encryption itself fits below the limit.
        Self {
            provider: Provider::default(),
            seals_per_key_max: SEALS_PER_KEY_MAX / 2,
            extents_loaded_max: 512,
        }
    }
}

/// An open volume. Dropping the last handle erases its keys from memory.
pub struct Volume {
    pub(crate) file: File,
    pub(crate) superblock: Mutex<Superblock>,
    pub(crate) id: [u8; 16],
    pub(crate) keys: VolumeKeys,
    pub(crate) size_bytes: u64,
    pub(crate) options: VolumeOptions,
    pub(crate) extents: RwLock<HashMap<u32, Arc<Extent>>>,
    pub(crate) table: Mutex<ExtentTable>,
    /// Writes hold it shared from sequence number to map; a flush takes it alone for the moment it looks.
    pub(crate) gate: RwLock<()>,
    pub(crate) flush: Mutex<()>,
    pub(crate) flushes_begun: AtomicU64,
    pub(crate) flushes_done: AtomicU64,
    pub(crate) failed: AtomicBool,
    /// Extents whose data key is due, or whose rotation was cut short.
    pub(crate) rotation_due: Mutex<Vec<u32>>,
}

struct Scratch {
    nonces: NonceSource,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { nonces: NonceSource::new(), bytes: Vec::new(), entries: Vec::new() });
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
        let made = Self::format(&file, path, size_bytes, key, protector, options);
        if made.is_err() {
            _ = std::fs::remove_file(path);
        }
        let superblock = made?;
        Self::with(file, superblock, key, options)
    }

    fn format(
        file: &File,
        path: &Path,
        size_bytes: u64,
        key: &VolumeKey,
        protector: Protector,
        options: VolumeOptions,
    ) -> Result<Superblock, SuperblockError> {
        let extents = u32::try_from(size_bytes.div_ceil(EXTENT_LEN)).unwrap_or(u32::MAX);
        file.set_len(extent_start(extents))?;
        let mut volume_id = [0; 16];
        random(&mut volume_id).map_err(std::io::Error::other)?;
        let mut superblock = Superblock { volume_id, size_bytes, protector, sequence: 0 };
        let keys = key.derive(options.provider);
        // Both copies, so that one damaged copy never loses a volume.
        superblock.write(file, &keys)?;
        superblock.write(file, &keys)?;
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
        let superblock = Superblock::read(&file)?;
        superblock.authenticate(&file, &key.derive(options.provider))?;
        let whole =
            extent_start(u32::try_from(superblock.size_bytes.div_ceil(EXTENT_LEN)).unwrap_or(u32::MAX));
        let len = file.metadata()?.len();
        if len < whole {
            return Err(SuperblockError::Cut { len, whole });
        }
        Self::with(file, superblock, key, options)
    }

    fn with(
        file: File,
        superblock: Superblock,
        key: &VolumeKey,
        options: VolumeOptions,
    ) -> Result<Self, SuperblockError> {
        let keys = key.derive(options.provider);
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
            size_bytes,
            options,
            extents: RwLock::new(HashMap::new()),
            table: Mutex::new(table),
            gate: RwLock::new(()),
            flush: Mutex::new(()),
            flushes_begun: AtomicU64::new(0),
            flushes_done: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            rotation_due: Mutex::new(Vec::new()),
        })
    }

    /// Bytes that clients see.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// What protects the volume now.
    #[must_use]
    pub fn protector(&self) -> Protector {
        self.superblock.lock().protector.clone()
    }

    /// Puts another protector in the superblock: a re-wrap. The volume key and the data stay as they are; a crash
    /// leaves the old protector or the new one.
    ///
    /// # Errors
    /// The file system failed; the old protector stands.
    pub fn set_protector(&self, protector: Protector) -> Result<(), SuperblockError> {
        let mut superblock = self.superblock.lock();
        let mut next = Superblock { protector, ..superblock.clone() };
        next.sequence = superblock.sequence;
        next.write(&self.file, &self.keys)?;
        *superblock = next;
        Ok(())
    }

    /// Whether losing the process loses the volume.
    #[must_use]
    pub fn is_ephemeral(&self) -> bool {
        self.superblock.lock().protector.kind == ProtectorKind::Ephemeral
    }

    pub(crate) fn loader(&self) -> Loader<'_> {
        Loader { file: &self.file, volume: self.id, keys: &self.keys }
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(VolumeError::FlushFailed);
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(VolumeError::OutOfRange { offset, len, volume_len: self.size_bytes }),
        }
    }

    /// The extent if it exists, loading it if it must.
    pub(crate) fn existing(&self, index: u32) -> Result<Option<Arc<Extent>>, VolumeError> {
        if let Some(found) = self.extents.read().get(&index) {
            return Ok(Some(found.clone()));
        }
        let mut extents = self.extents.write();
        if let Some(found) = extents.get(&index) {
            return Ok(Some(found.clone()));
        }
        let known = self.table.lock().contains(index);
        let Some(loaded) = self.loader().load(index, known)? else { return Ok(None) };
        if loaded.state.read().previous.is_some() {
            self.rotation_due.lock().push(index);
        }
        Ok(Some(self.keep(&mut extents, loaded)))
    }

    fn for_writing(&self, index: u32) -> Result<Arc<Extent>, VolumeError> {
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
        if extents.len() >= self.options.extents_loaded_max {
            let idle = |e: &Arc<Extent>| {
                Arc::strong_count(e) == 1 && e.state.try_read().is_some_and(|s| !s.dirty && !s.slots.pinned())
            };
            let victim = extents.iter().find(|(_, e)| idle(e)).map(|(index, _)| *index);
            victim.and_then(|index| extents.remove(&index));
        }
        let extent = Arc::new(extent);
        extents.insert(extent.index, extent.clone());
        extent
    }

    /// Fills `out` from `offset`. Bytes never written, and those discarded, are zeros.
    ///
    /// # Errors
    /// Out of range, [`VolumeError::Corrupt`], or the file failed. `out` then holds nothing of the failed block.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), VolumeError> {
        self.check_range(offset, out.len() as u64)?;
        let mut rest = out;
        let mut at = offset;
        while !rest.is_empty() {
            let block_at = at % BLOCK_LEN as u64;
            if block_at != 0 || rest.len() < BLOCK_LEN {
                let len = (BLOCK_LEN - block_at as usize).min(rest.len());
                let mut block = [0; BLOCK_LEN];
                self.read_blocks(at - block_at, &mut block)?;
                let (head, tail) = rest.split_at_mut(len);
                head.copy_from_slice(
                    block.get(block_at as usize..block_at as usize + len).unwrap_or_default(),
                );
                (rest, at) = (tail, at + len as u64);
            } else {
                let in_extent = (EXTENT_LEN - at % EXTENT_LEN) as usize;
                let len = (rest.len() - rest.len() % BLOCK_LEN).min(in_extent).min(RUN_BLOCKS * BLOCK_LEN);
                let (head, tail) = rest.split_at_mut(len);
                self.read_blocks(at, head)?;
                (rest, at) = (tail, at + len as u64);
            }
        }
        Ok(())
    }

    /// Reads whole blocks within one extent.
    fn read_blocks(&self, at: u64, out: &mut [u8]) -> Result<(), VolumeError> {
        let (index, first) = place(at);
        let Some(extent) = self.existing(index)? else {
            out.fill(0);
            return Ok(());
        };
        SCRATCH.with_borrow_mut(|scratch| {
            let count = out.len() / BLOCK_LEN;
            if scratch.bytes.len() < out.len() {
                scratch.bytes.resize(out.len(), 0);
            }
            let sealed = scratch.bytes.get_mut(..out.len()).unwrap_or_default();
            let lives: Vec<Option<(Live, Arc<Sealer>)>>;
            {
                // The bytes are fetched under the lock, so that no slot is given away meanwhile; opening them is not.
                let state = extent.state.read();
                lives = (0..count)
                    .map(|i| {
                        let live = *state.block(first + i as u16)?;
                        Some((live, state.sealer(live.entry.generation).unwrap_or(&state.current).clone()))
                    })
                    .collect();
                let slot = |i: usize| {
                    lives
                        .get(i)
                        .and_then(Option::as_ref)
                        .map(|(l, _)| l)
                        .filter(|l| !l.entry.hole)
                        .map(|l| l.slot)
                };
                let mut i = 0;
                while i < count {
                    let Some(start) = slot(i) else {
                        i += 1;
                        continue;
                    };
                    let mut run = 1;
                    while i + run < count && slot(i + run) == Some(start + run as u16) {
                        run += 1;
                    }
                    let into = sealed.get_mut(i * BLOCK_LEN..(i + run) * BLOCK_LEN).unwrap_or_default();
                    self.file.read_exact_at(into, slot_start(index, start))?;
                    i += run;
                }
            }
            let blocks = out.chunks_mut(BLOCK_LEN).zip(sealed.chunks(BLOCK_LEN)).zip(lives);
            for ((plain, sealed), live) in blocks {
                let Some((live, sealer)) = live else {
                    plain.fill(0);
                    continue;
                };
                let address = self.loader().address(index, &live.entry);
                let corrupt = |_| VolumeError::Corrupt { extent: index, block: Some(live.entry.block) };
                if live.entry.hole {
                    sealer
                        .sealer
                        .open(&address, &live.entry.nonce, &[], &live.entry.tag, &mut [])
                        .map_err(corrupt)?;
                    plain.fill(0);
                } else {
                    sealer
                        .sealer
                        .open(&address, &live.entry.nonce, sealed, &live.entry.tag, plain)
                        .map_err(corrupt)?;
                }
            }
            Ok(())
        })
    }

    /// Writes `data` at `offset`. On return it survives the end of the process; after [`Volume::flush`] also the
    /// loss of power.
    ///
    /// # Errors
    /// Out of range, no space, or the file failed; blocks before the failing one may have been written.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.check_range(offset, data.len() as u64)?;
        let (mut rest, mut at) = (data, offset);
        while !rest.is_empty() {
            let block_at = (at % BLOCK_LEN as u64) as usize;
            let len = if block_at != 0 || rest.len() < BLOCK_LEN {
                let len = (BLOCK_LEN - block_at).min(rest.len());
                self.write_partial(at, rest.get(..len).unwrap_or_default())?;
                len
            } else {
                let in_extent = (EXTENT_LEN - at % EXTENT_LEN) as usize;
                let len = (rest.len() - rest.len() % BLOCK_LEN).min(in_extent).min(RUN_BLOCKS * BLOCK_LEN);
                self.write_blocks(at, Some(rest.get(..len).unwrap_or_default()), len / BLOCK_LEN)?;
                len
            };
            (rest, at) = (rest.get(len..).unwrap_or_default(), at + len as u64);
        }
        Ok(())
    }

    fn write_partial(&self, at: u64, data: &[u8]) -> Result<(), VolumeError> {
        let block_at = (at % BLOCK_LEN as u64) as usize;
        let start = at - block_at as u64;
        let extent = self.for_writing(place(start).0)?;
        let _one_at_a_time = extent.partial.lock();
        let mut block = [0; BLOCK_LEN];
        self.read_blocks(start, &mut block)?;
        if let Some(part) = block.get_mut(block_at..block_at + data.len()) {
            part.copy_from_slice(data);
        }
        self.write_blocks(start, Some(&block), 1)
    }

    /// Makes a range zeros without storing bytes for it: discard and write-zeroes.
    ///
    /// # Errors
    /// As [`Volume::write_at`].
    pub fn zero_at(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        self.check_range(offset, len)?;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let block_at = at % BLOCK_LEN as u64;
            let step = if block_at != 0 || end - at < BLOCK_LEN as u64 {
                let step = (BLOCK_LEN as u64 - block_at).min(end - at);
                if self.existing(place(at).0)?.is_some() {
                    self.write_partial(at, ZEROS.get(..step as usize).unwrap_or_default())?;
                }
                step
            } else {
                self.zero_blocks(at, end)?
            };
            at += step;
        }
        Ok(())
    }

    /// Zeros whole blocks from `at` within one extent; those that have no entry already read as zeros.
    fn zero_blocks(&self, at: u64, end: u64) -> Result<u64, VolumeError> {
        let (index, first) = place(at);
        let in_extent = EXTENT_LEN - at % EXTENT_LEN;
        let whole = (end - at) / BLOCK_LEN as u64 * BLOCK_LEN as u64;
        let Some(extent) = self.existing(index)? else { return Ok(whole.min(in_extent)) };
        let stored = |block: u16| extent.state.read().block(block).is_some_and(|l| !l.entry.hole);
        let count = (whole.min(in_extent) / BLOCK_LEN as u64) as usize;
        let mut i = 0;
        while i < count {
            let mut run = 0;
            while i + run < count && run < RUN_BLOCKS && stored(first + (i + run) as u16) {
                run += 1;
            }
            if run > 0 {
                self.write_blocks(at + (i * BLOCK_LEN) as u64, None, run)?;
            }
            i += run.max(1);
        }
        Ok((count * BLOCK_LEN) as u64)
    }

    /// Seals and writes `count` whole blocks within one extent; `None` writes holes.
    pub(crate) fn write_blocks(&self, at: u64, data: Option<&[u8]>, count: usize) -> Result<(), VolumeError> {
        let (index, first) = place(at);
        loop {
            let extent = self.for_writing(index)?;
            {
                let _gate = self.gate.read();
                let sealer = extent.state.read().current.clone();
                if self.seal_and_store(&extent, &sealer, first, data, count)? {
                    return Ok(());
                }
            }
            self.make_room(&extent)?;
        }
    }

    /// Seals and stores one run; the caller holds the gate. False where nothing was written: see
    /// [`Volume::store_run`].
    pub(crate) fn seal_and_store(
        &self,
        extent: &Extent,
        sealer: &Sealer,
        first: u16,
        data: Option<&[u8]>,
        count: usize,
    ) -> Result<bool, VolumeError> {
        SCRATCH.with_borrow_mut(|scratch| {
            self.seal_run(extent, sealer, first, data, count, scratch)?;
            self.store_run(extent, sealer, data.is_some(), scratch)
        })
    }

    /// Seals into the scratch buffer.
    fn seal_run(
        &self,
        extent: &Extent,
        sealer: &Sealer,
        first: u16,
        data: Option<&[u8]>,
        count: usize,
        scratch: &mut Scratch,
    ) -> Result<(), VolumeError> {
        let before = extent.sequence.fetch_add(count as u64, Ordering::Relaxed);
        let data = data.unwrap_or_default();
        scratch.bytes.clear();
        scratch.bytes.extend_from_slice(data);
        scratch.entries.clear();
        let mut blocks = scratch.bytes.chunks_mut(BLOCK_LEN);
        for i in 0..count {
            let mut entry = Entry {
                sequence: before + 1 + i as u64,
                block: first + i as u16,
                generation: sealer.record.generation,
                hole: data.is_empty(),
                nonce: scratch.nonces.draw()?,
                tag: [0; 16],
            };
            let block = blocks.next().unwrap_or_default();
            entry.tag = sealer.sealer.seal(&self.loader().address(extent.index, &entry), &entry.nonce, block);
            scratch.entries.push(entry);
        }
        Ok(())
    }

    /// Writes the sealed run to free slots, then its entries, then takes it into the map. False where there are
    /// too few free slots, or the data key has changed twice meanwhile: nothing was written that counts.
    fn store_run(
        &self,
        extent: &Extent,
        sealer: &Sealer,
        with_data: bool,
        scratch: &Scratch,
    ) -> Result<bool, VolumeError> {
        let mut state = extent.state.write();
        if state.slots.free_len() < scratch.entries.len() || state.sealer(sealer.record.generation).is_none()
        {
            return Ok(false);
        }
        let mut done = 0;
        while done < scratch.entries.len() {
            let Some((slot, run)) = state.slots.take_run(scratch.entries.len() - done) else {
                return Ok(false);
            };
            let entries = scratch.entries.get(done..done + run).unwrap_or_default();
            let bytes = scratch.bytes.get(done * BLOCK_LEN..(done + run) * BLOCK_LEN).filter(|_| with_data);
            if let Err(e) = self.write_slots(extent.index, slot, entries, bytes.unwrap_or_default()) {
                state.slots.give_back(slot..slot + run as u16);
                return Err(e.into());
            }
            for (slot, entry) in (slot..).zip(entries) {
                let live = self.loader().live(extent.index, slot, *entry);
                if !state.install(live) {
                    state.slots.retire(slot);
                }
            }
            done += run;
        }
        let used =
            extent.sequence.load(Ordering::Relaxed).saturating_sub(state.header.current_first_sequence);
        if used >= self.options.seals_per_key_max && state.previous.is_none() {
            let mut due = self.rotation_due.lock();
            if !due.contains(&extent.index) {
                due.push(extent.index);
            }
        }
        Ok(true)
    }

    /// Bytes first, entries second: an entry never speaks of bytes that were not written.
    fn write_slots(&self, index: u32, slot: u16, entries: &[Entry], bytes: &[u8]) -> std::io::Result<()> {
        if !bytes.is_empty() {
            self.file.write_all_at(bytes, slot_start(index, slot))?;
        }
        // Sector by sector in memory, in one write: the gaps between sectors are padding.
        let start = entry_offset(slot);
        let last = slot + (entries.len() as u16).saturating_sub(1);
        let mut table = vec![0; entry_offset(last) + ENTRY_LEN - start];
        for (slot, entry) in (slot..).zip(entries) {
            let at = entry_offset(slot) - start;
            if let Some(place) = table.get_mut(at..at + ENTRY_LEN) {
                place.copy_from_slice(&entry.encode());
            }
        }
        self.file.write_all_at(&table, entries_start(index) + start as u64)
    }
}

/// Extent and block of a byte offset.
pub(crate) fn place(at: u64) -> (u32, u16) {
    let block = at % EXTENT_LEN / BLOCK_LEN as u64;
    (u32::try_from(at / EXTENT_LEN).unwrap_or(u32::MAX), u16::try_from(block).unwrap_or(u16::MAX))
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume").field("size_bytes", &self.size_bytes).finish_non_exhaustive()
    }
}
