//! Writing: reserve slots, seal, write bytes and then entries, take them into the map.

use crate::{
    Volume, VolumeError,
    extent::{Entry, Extent, Live, Sealer, ZEROS},
    layout::{BLOCK_LEN, ENTRY_LEN, EXTENT_LEN, RUN_BLOCKS, entries_start, entry_offset, slot_start},
    volume::place,
};
use custody_envelope::NonceSource;
use std::{
    cell::RefCell,
    os::unix::fs::FileExt as _,
    sync::{Arc, atomic::Ordering},
};

/// Bytes are given to the file system in pieces of this length. ext4 makes page-cache folios as long as a write, up to
/// 2 MiB, and goes through all blocks of a folio when one of them is written again: after long writes, writes of
/// 4 KiB would cost ten times what they need.
const PIECE_LEN: usize = 64 * 1024;

struct Scratch {
    nonces: NonceSource,
    /// Neighbouring slots that the write has reserved: the first, and how many.
    runs: Vec<(u16, usize)>,
    lives: Vec<Live>,
    /// Entries as they are on disk.
    encoded: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        nonces: NonceSource::new(),
        runs: Vec::new(),
        lives: Vec::new(),
        encoded: Vec::new(),
    });
}

impl Volume {
    /// Writes `data` at `offset`. On return it survives the end of the process; after [`Volume::flush`] also the
    /// loss of power.
    ///
    /// # Errors
    /// Out of range, no space, or the file failed; blocks before the failing one may have been written.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.write_in_place(offset, &mut data.to_vec())
    }

    /// As [`Volume::write_at`], sealing within `data`, which holds nothing of use afterwards.
    ///
    /// # Errors
    /// As [`Volume::write_at`].
    pub fn write_in_place(&self, offset: u64, data: &mut [u8]) -> Result<(), VolumeError> {
        self.check_range(offset, data.len() as u64)?;
        let (mut rest, mut at) = (data, offset);
        while !rest.is_empty() {
            let block_at = (at % BLOCK_LEN as u64) as usize;
            let partial = block_at != 0 || rest.len() < BLOCK_LEN;
            let len = if partial {
                (BLOCK_LEN - block_at).min(rest.len())
            } else {
                let in_extent = (EXTENT_LEN - at % EXTENT_LEN) as usize;
                (rest.len() - rest.len() % BLOCK_LEN).min(in_extent).min(RUN_BLOCKS * BLOCK_LEN)
            };
            let (head, tail) = rest.split_at_mut(len);
            if partial {
                self.write_partial(at, head)?;
            } else {
                self.write_blocks(at, Some(head), len / BLOCK_LEN)?;
            }
            (rest, at) = (tail, at + len as u64);
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
        self.write_blocks(start, Some(&mut block), 1)
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
    fn write_blocks(&self, at: u64, mut data: Option<&mut [u8]>, count: usize) -> Result<(), VolumeError> {
        let (index, first) = place(at);
        loop {
            let extent = self.for_writing(index)?;
            self.snapshots.wait_for_room(index);
            {
                let _gate = self.gate.read();
                if self.store(&extent, first, data.as_deref_mut(), count)? {
                    return Ok(());
                }
            }
            self.make_room(&extent)?;
        }
    }

    /// Seals `data` in place and stores it; the caller holds the gate. False where there are too few free slots:
    /// `data` is as it was.
    pub(crate) fn store(
        &self,
        extent: &Arc<Extent>,
        first: u16,
        data: Option<&mut [u8]>,
        count: usize,
    ) -> Result<bool, VolumeError> {
        SCRATCH.with_borrow_mut(|scratch| {
            let Some(sealer) = self.reserve(extent, count, &mut scratch.runs) else { return Ok(false) };
            let data = data.unwrap_or_default();
            let mut written = 0;
            let done = self.seal(extent, &sealer, first, data, scratch).and_then(|()| {
                let mut lives = &scratch.lives[..];
                for (slot, len) in &scratch.runs {
                    let (run, rest) = lives.split_at(*len);
                    let bytes = data.get(written * BLOCK_LEN..(written + len) * BLOCK_LEN);
                    let encoded = &mut scratch.encoded;
                    self.write_run(extent.index, *slot, run, bytes.unwrap_or_default(), encoded)?;
                    written += len;
                    lives = rest;
                }
                Ok(())
            });
            self.install(extent, scratch, written);
            // Not before: a flush that has counted them has made them durable.
            self.written.fetch_add(count as u64, Ordering::AcqRel);
            done.map(|()| true)
        })
    }

    /// Seals blocks, or holes where there is no data, for the slots that are reserved.
    fn seal(
        &self,
        extent: &Extent,
        sealer: &Sealer,
        first: u16,
        data: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), VolumeError> {
        let count: usize = scratch.runs.iter().map(|(_, len)| len).sum();
        let slots = scratch.runs.iter().flat_map(|(slot, len)| *slot..*slot + *len as u16);
        let before = extent.sequence.fetch_add(count as u64, Ordering::Relaxed);
        let hole = data.is_empty();
        let mut blocks = data.chunks_mut(BLOCK_LEN);
        scratch.lives.clear();
        for (i, slot) in slots.enumerate() {
            let mut entry = Entry {
                sequence: before + 1 + i as u64,
                block: first + i as u16,
                generation: sealer.record.generation,
                hole,
                nonce: scratch.nonces.draw()?,
                tag: [0; 16],
            };
            let block = blocks.next().unwrap_or_default();
            entry.tag = sealer.sealer.seal(&self.loader().address(extent.index, &entry), &entry.nonce, block);
            scratch.lives.push(self.loader().live(extent.index, slot, entry));
        }
        Ok(())
    }

    /// Bytes first, entries second: an entry never speaks of bytes that were not written.
    fn write_run(
        &self,
        index: u32,
        slot: u16,
        lives: &[Live],
        bytes: &[u8],
        encoded: &mut Vec<u8>,
    ) -> Result<(), VolumeError> {
        let mut at = slot_start(index, slot);
        for piece in bytes.chunks(PIECE_LEN) {
            self.file.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        // Sector by sector in memory, in one write: the gaps between sectors are padding.
        let start = entry_offset(slot);
        let last = slot + (lives.len() as u16).saturating_sub(1);
        encoded.clear();
        encoded.resize(entry_offset(last) + ENTRY_LEN - start, 0);
        for live in lives {
            let at = entry_offset(live.slot) - start;
            if let Some(place) = encoded.get_mut(at..at + ENTRY_LEN) {
                place.copy_from_slice(&live.entry.encode());
            }
        }
        self.write_entries(entries_start(index) + start as u64, encoded)
    }

    /// Writes entries, all or none: if the file system takes only some (it may be full), those are wiped again,
    /// since a later header would have to count them.
    fn write_entries(&self, start: u64, encoded: &mut [u8]) -> Result<(), VolumeError> {
        let mut done = 0;
        while done < encoded.len() {
            let rest = encoded.get(done..).unwrap_or_default();
            let failure = match self.file.write_at(rest, start + done as u64) {
                Ok(len) if len > 0 => {
                    done += len;
                    continue;
                }
                Ok(_) => std::io::ErrorKind::WriteZero.into(),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => e,
            };
            let wrong = encoded.get_mut(..done).unwrap_or_default();
            wrong.fill(0);
            if self.file.write_all_at(wrong, start).is_err() {
                self.failed.store(true, Ordering::Release);
            }
            return Err(failure.into());
        }
        Ok(())
    }

    /// Takes what was written into the map, and gives the other reserved slots back.
    fn install(&self, extent: &Extent, scratch: &Scratch, written: usize) {
        let mut state = extent.state.write();
        let slots = scratch.runs.iter().flat_map(|(slot, len)| *slot..*slot + *len as u16);
        state.slots.give_back(slots.skip(written));
        for live in scratch.lives.iter().take(written) {
            if !state.install(*live) {
                state.slots.retire(live.slot);
            }
        }
        let used =
            extent.sequence.load(Ordering::Relaxed).saturating_sub(state.header.current_first_sequence);
        if used >= self.options.seals_per_key_max && state.previous.is_none() {
            let mut due = self.rotation_due.lock();
            if !due.contains(&extent.index) {
                due.push(extent.index);
            }
        }
    }

    /// Takes slots for `count` blocks, and the key that seals now. Nothing is taken if there are too few.
    fn reserve(
        &self,
        extent: &Arc<Extent>,
        count: usize,
        runs: &mut Vec<(u16, usize)>,
    ) -> Option<Arc<Sealer>> {
        let mut state = extent.state.write();
        if state.slots.free_len() < count {
            return None;
        }
        self.snapshots.before_write(extent, &mut state);
        runs.clear();
        let mut left = count;
        while left > 0 {
            let (slot, len) = state.slots.take_run(left)?;
            runs.push((slot, len));
            left -= len;
        }
        Some(state.current.clone())
    }
}
