//! Reading: fetch sealed bytes, open them into the caller's buffer.

use crate::{
    Volume, VolumeError,
    extent::{Live, of_generation},
    layout::{BLOCK_LEN, EXTENT_LEN, slot_start},
    volume::place,
};
use std::{cell::RefCell, os::unix::fs::FileExt as _};

/// Blocks fetched and opened at a time: 128 KiB, which are still in the processor's cache when they are opened.
const STEP_BLOCKS: usize = 32;

struct Scratch {
    sealed: Vec<u8>,
    lives: Vec<Option<Live>>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { sealed: Vec::new(), lives: Vec::new() }) };
}

impl Volume {
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
                let len = (rest.len() - rest.len() % BLOCK_LEN).min(in_extent).min(STEP_BLOCKS * BLOCK_LEN);
                let (head, tail) = rest.split_at_mut(len);
                self.read_blocks(at, head)?;
                (rest, at) = (tail, at + len as u64);
            }
        }
        Ok(())
    }

    /// Reads up to [`STEP_BLOCKS`] whole blocks within one extent.
    pub(crate) fn read_blocks(&self, at: u64, out: &mut [u8]) -> Result<(), VolumeError> {
        let (index, first) = place(at);
        let Some(extent) = self.existing(index)? else {
            out.fill(0);
            return Ok(());
        };
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.sealed.len() < out.len() {
                scratch.sealed.resize(out.len(), 0);
            }
            let sealed = scratch.sealed.get_mut(..out.len()).unwrap_or_default();
            let lives = &mut scratch.lives;
            let (current, previous) = {
                // The bytes are fetched under the lock, so that no slot is given away meanwhile; opening them is not.
                let state = extent.state.read();
                lives.clear();
                lives.extend((0..out.len() / BLOCK_LEN).map(|i| state.block(first + i as u16).copied()));
                self.fetch(index, lives, sealed)?;
                (state.current.clone(), state.previous.clone())
            };
            let blocks = out.chunks_mut(BLOCK_LEN).zip(sealed.chunks(BLOCK_LEN)).zip(lives);
            for ((plain, sealed), live) in blocks {
                let Some(Live { entry, .. }) = live else {
                    plain.fill(0);
                    continue;
                };
                let sealer = of_generation(std::iter::once(&current).chain(&previous), entry.generation);
                let (sealed, plain) = if entry.hole {
                    plain.fill(0);
                    Default::default()
                } else {
                    (sealed, plain)
                };
                self.loader().open(index, entry, sealer, sealed, plain)?;
            }
            Ok(())
        })
    }

    /// Reads the slots of blocks that hold data, neighbours at once.
    pub(crate) fn fetch<L: Copy + Into<Option<Live>>>(
        &self,
        index: u32,
        lives: &[L],
        sealed: &mut [u8],
    ) -> Result<(), VolumeError> {
        let slot = |i: usize| (*lives.get(i)?).into().filter(|l| !l.entry.hole).map(|l| l.slot);
        let mut i = 0;
        while i < lives.len() {
            let Some(start) = slot(i) else {
                i += 1;
                continue;
            };
            let mut run = 1;
            while slot(i + run) == Some(start + run as u16) {
                run += 1;
            }
            let into = sealed.get_mut(i * BLOCK_LEN..(i + run) * BLOCK_LEN).unwrap_or_default();
            self.file.read_exact_at(into, slot_start(index, start))?;
            i += run;
        }
        Ok(())
    }
}
