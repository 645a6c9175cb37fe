//! A volume as it was at one moment, while writes go on.

use crate::{
    Volume, VolumeError,
    extent::{Extent, Live, Sealer},
    layout::{BLOCK_LEN, EXTENT_LEN, slot_start},
};
use std::{
    collections::BTreeSet,
    fmt,
    os::unix::fs::FileExt as _,
    sync::{Arc, atomic::Ordering},
};

/// A consistent view: what every block held between two writes. While it lives, no slot that it reads is given
/// away; drop it soon.
pub struct Snapshot {
    volume: Arc<Volume>,
    extents: Vec<Frozen>,
}

struct Frozen {
    extent: Arc<Extent>,
    lives: Vec<Live>,
    sealers: Vec<Arc<Sealer>>,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.extent.state.write().slots.unpin();
        self.extent.room.notify_all();
    }
}

impl Snapshot {
    /// Takes a snapshot. Loads every extent of the volume first, then holds writes for the copy of the maps.
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
                state.counted_sequence = extent.sequence.load(Ordering::Acquire);
                let lives = state.blocks.iter().flatten().filter(|l| !l.entry.hole).copied().collect();
                let sealers = std::iter::once(state.current.clone()).chain(state.previous.clone()).collect();
                drop(state);
                Frozen { extent, lives, sealers }
            })
            .collect();
        drop(alone);
        Ok(Self { volume, extents })
    }

    /// Blocks that hold data.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.extents.iter().map(|e| e.lives.len() as u64).sum()
    }

    /// The volume's length.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.volume.size_bytes
    }

    /// Gives every block that holds data, in order, to `visit` with its byte offset. Each extent is released as
    /// soon as it has been read.
    ///
    /// # Errors
    /// A block does not authenticate, the disk failed, or `visit` did.
    pub fn read<E: From<VolumeError>>(
        self,
        mut visit: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self { volume, extents } = self;
        let (mut sealed, mut plain) = (vec![0; BLOCK_LEN], vec![0; BLOCK_LEN]);
        for frozen in extents {
            let index = frozen.extent.index;
            for live in &frozen.lives {
                let corrupt = VolumeError::Corrupt { extent: index, block: Some(live.entry.block) };
                let Some(sealer) =
                    frozen.sealers.iter().find(|s| s.record.generation == live.entry.generation)
                else {
                    return Err(corrupt.into());
                };
                volume
                    .file
                    .read_exact_at(&mut sealed, slot_start(index, live.slot))
                    .map_err(VolumeError::from)?;
                let address = volume.loader().address(index, &live.entry);
                let opened =
                    sealer.sealer.open(&address, &live.entry.nonce, &sealed, &live.entry.tag, &mut plain);
                opened.map_err(|_| corrupt)?;
                visit(
                    u64::from(index) * EXTENT_LEN + u64::from(live.entry.block) * BLOCK_LEN as u64,
                    &plain,
                )?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("extents", &self.extents.len()).finish_non_exhaustive()
    }
}
