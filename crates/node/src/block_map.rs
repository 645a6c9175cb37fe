//! What a volume holds, without reading it.

use crate::{
    Volume, VolumeError,
    extent::Live,
    layout::{BLOCK_LEN, EXTENT_LEN, slot_start},
    volume::place,
};
use rustix::fs::{Advice, fadvise};
use std::num::NonZero;

impl Volume {
    /// Gives ranges that cover `len` bytes from `offset` to `visit`, in order, each with its length and whether it holds
    /// data; what holds none reads as zeros. Ends early when `visit` answers false. Neighbours may be alike.
    ///
    /// # Errors
    /// Out of range, or an extent does not authenticate.
    pub fn allocation(
        &self,
        offset: u64,
        len: u64,
        visit: &mut dyn FnMut(u64, bool) -> bool,
    ) -> Result<(), VolumeError> {
        self.check_range(offset, len)?;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let in_extent = (EXTENT_LEN - at % EXTENT_LEN).min(end - at);
            let Some(extent) = self.existing(place(at).0)? else {
                if !visit(in_extent, false) {
                    return Ok(());
                }
                at += in_extent;
                continue;
            };
            let extent_end = at + in_extent;
            while at < extent_end {
                let in_block = (BLOCK_LEN as u64 - at % BLOCK_LEN as u64).min(extent_end - at);
                let data = extent.state.read().block(place(at).1).is_some_and(|l| !l.entry.hole);
                if !visit(in_block, data) {
                    return Ok(());
                }
                at += in_block;
            }
        }
        Ok(())
    }

    /// Has a range read into the page cache, still sealed.
    ///
    /// # Errors
    /// As [`Volume::allocation`].
    pub fn prefetch(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        self.check_range(offset, len)?;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let (index, first) = place(at);
            let next = (at / EXTENT_LEN + 1) * EXTENT_LEN;
            if let Some(extent) = self.existing(index)? {
                let last = place(end.min(next) - 1).1;
                let slots: Vec<u16> = {
                    let state = extent.state.read();
                    let slot = |l: &Live| (!l.entry.hole).then_some(l.slot);
                    (first..=last).filter_map(|block| state.block(block).and_then(slot)).collect()
                };
                for run in slots.chunk_by(|a, b| a + 1 == *b) {
                    let start = slot_start(index, run.first().copied().unwrap_or_default());
                    let len = NonZero::new((run.len() * BLOCK_LEN) as u64);
                    // Advice: a failure costs only time.
                    _ = fadvise(&self.file, start, len, Advice::WillNeed);
                }
            }
            at = next;
        }
        Ok(())
    }
}
