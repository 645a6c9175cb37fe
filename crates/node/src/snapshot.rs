//! A volume as it was at one moment, while writes go on.

use crate::{
    Volume, VolumeError,
    backup::{BackupError, Marks},
    extent::{Extent, Live, Sealer, of_generation},
    layout::BLOCK_LEN,
};
use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, atomic::Ordering},
};

/// A consistent view: what every block held between two writes. While it lives, no slot that it reads is given
/// away; drop it soon.
pub struct Snapshot {
    extents: Vec<Frozen>,
}

/// One extent of a snapshot. Its slots are given away again when it is dropped.
pub(crate) struct Frozen {
    volume: Arc<Volume>,
    extent: Arc<Extent>,
    /// The last write that it holds.
    pub(crate) sequence: u64,
    /// Blocks with an entry, in order.
    pub(crate) lives: Vec<Live>,
    sealers: Vec<Arc<Sealer>>,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.extent.state.write().slots.unpin();
        self.extent.room.notify_all();
    }
}

impl Frozen {
    pub(crate) fn index(&self) -> u32 {
        self.extent.index
    }

    /// Opens neighbouring blocks, all of data or all holes, into `out`.
    pub(crate) fn open(&self, run: &[Live], sealed: &mut Vec<u8>, out: &mut [u8]) -> Result<(), VolumeError> {
        let index = self.extent.index;
        sealed.resize(out.len(), 0);
        self.volume.fetch(index, run, sealed)?;
        let mut blocks = out.chunks_mut(BLOCK_LEN).zip(sealed.chunks(BLOCK_LEN));
        for Live { entry, .. } in run {
            let sealer = of_generation(&self.sealers, entry.generation);
            let (plain, sealed) =
                if entry.hole { Default::default() } else { blocks.next().unwrap_or_default() };
            self.volume.loader().open(index, entry, sealer, sealed, plain)?;
        }
        Ok(())
    }
}

impl Snapshot {
    /// Takes a snapshot. Loads every extent of the volume first, then holds writes for the copy of the maps, and
    /// makes all that it holds durable: what an increment counts on is never lost and its numbers never used again.
    ///
    /// # Errors
    /// An extent does not authenticate, or the disk failed.
    pub fn take(volume: Arc<Volume>) -> Result<Self, VolumeError> {
        let known: BTreeSet<u32> =
            volume.table.lock().all().into_iter().chain(volume.extents.read().keys().copied()).collect();
        let loaded: Vec<_> =
            known.into_iter().map(|index| volume.existing(index)).collect::<Result<_, _>>()?;
        let alone = volume.gate.write();
        // Extents made since the list was read have been written since, and belong to this moment too.
        let mut all: Vec<Arc<Extent>> = loaded.into_iter().flatten().collect();
        all.extend(volume.extents.read().values().cloned());
        all.sort_by_key(|e| e.index);
        all.dedup_by_key(|e| e.index);
        let extents = all
            .into_iter()
            .map(|extent| {
                let mut state = extent.state.write();
                state.slots.pin();
                let sequence = extent.sequence.load(Ordering::Acquire);
                state.counted_sequence = sequence;
                let lives = state.blocks.iter().flatten().copied().collect();
                let sealers = std::iter::once(state.current.clone()).chain(state.previous.clone()).collect();
                drop(state);
                Frozen { volume: volume.clone(), extent, sequence, lives, sealers }
            })
            .collect();
        drop(alone);
        let snapshot = Self { extents };
        volume.flush()?;
        Ok(snapshot)
    }

    /// The extents, each with what was written after its mark. An extent without one is taken as if new: what was
    /// never written, and holes, are zeros in its absence.
    pub(crate) fn freeze(self, since: &Marks) -> Result<Vec<Arc<Frozen>>, BackupError> {
        let mut extents = Vec::with_capacity(self.extents.len());
        for mut frozen in self.extents {
            match since.get(&frozen.index()) {
                Some(mark) if *mark > frozen.sequence => return Err(BackupError::VolumeOlder),
                Some(mark) => frozen.lives.retain(|l| l.entry.sequence > *mark),
                None => frozen.lives.retain(|l| !l.entry.hole),
            }
            extents.push(Arc::new(frozen));
        }
        if since.keys().any(|index| extents.binary_search_by_key(index, |e| e.index()).is_err()) {
            return Err(BackupError::VolumeOlder);
        }
        Ok(extents)
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("extents", &self.extents.len()).finish_non_exhaustive()
    }
}
