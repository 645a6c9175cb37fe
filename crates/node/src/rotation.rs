//! Rotating an extent's data key: a new key, then its blocks re-encrypted under it, online.

use crate::{
    Volume, VolumeError,
    extent::{Extent, Header},
    layout::{BLOCK_LEN, EXTENT_BLOCKS, EXTENT_LEN},
};
use std::sync::{Arc, atomic::Ordering};

impl Volume {
    /// Re-encrypts one extent under a new data key. Other extents are not touched; reads and writes go on. Cut
    /// short anywhere, both keys stay in the header and the next call goes on.
    ///
    /// # Errors
    /// A block does not authenticate, or the disk failed.
    pub fn rotate_extent(&self, index: u32) -> Result<(), VolumeError> {
        let Some(extent) = self.existing(index)? else { return Ok(()) };
        let fresh = extent.state.read().previous.is_none();
        if fresh {
            // The header to be written must speak of durable writes only.
            self.flush()?;
            let mut state = extent.state.write();
            let generation = state
                .header
                .current
                .generation
                .checked_add(1)
                .ok_or(VolumeError::Corrupt { extent: index, block: None })?;
            let current = self.loader().new_dek(index, generation)?;
            let header = Header {
                header_sequence: state.header.header_sequence + 1,
                current,
                current_first_sequence: extent.sequence.load(Ordering::Acquire),
                previous: Some(state.header.current),
                ..state.header
            };
            self.loader().write_header(index, &header)?;
            self.file.sync_data()?;
            let sealer = Arc::new(self.loader().unwrap(index, current)?);
            state.header = header;
            state.previous = Some(std::mem::replace(&mut state.current, sealer));
        }
        self.reencrypt(index)?;
        self.flush()?;
        self.drop_previous(index)
    }

    fn reencrypt(&self, index: u32) -> Result<(), VolumeError> {
        let Some(extent) = self.existing(index)? else { return Ok(()) };
        let mut buffer = vec![0; BLOCK_LEN];
        let mut number = 0;
        while usize::from(number) < EXTENT_BLOCKS {
            if self.reencrypt_block(&extent, number, &mut buffer)? {
                number += 1;
            } else {
                self.make_room(&extent)?;
            }
        }
        Ok(())
    }

    /// Moves one block to the current key. False where there is no free slot.
    ///
    /// It holds the gate alone, so that no write has a sequence number without being in the map: a client's write
    /// is either before this one and read here, or after it and newer.
    fn reencrypt_block(&self, extent: &Extent, number: u16, buffer: &mut [u8]) -> Result<bool, VolumeError> {
        let _alone = self.gate.write();
        let (live, current) = {
            let state = extent.state.read();
            (state.block(number).copied(), state.header.current.generation)
        };
        let Some(live) = live.filter(|l| l.entry.generation != current) else {
            return Ok(true);
        };
        let data = if live.entry.hole {
            None
        } else {
            self.read_at(
                u64::from(extent.index) * EXTENT_LEN + u64::from(number) * BLOCK_LEN as u64,
                buffer,
            )?;
            Some(&mut *buffer)
        };
        self.store(extent, number, data, 1)
    }

    fn drop_previous(&self, index: u32) -> Result<(), VolumeError> {
        let Some(extent) = self.existing(index)? else { return Ok(()) };
        let _between_writes = self.gate.write();
        let mut state = extent.state.write();
        let current = state.header.current.generation;
        // The flush before this call began after the last block had moved, so what the header counts is under the
        // current key; writes since then, which make the extent dirty again, are too.
        if state.blocks.iter().flatten().any(|l| l.entry.generation != current) {
            self.rotation_due.lock().push(index);
            return Ok(());
        }
        let header =
            Header { header_sequence: state.header.header_sequence + 1, previous: None, ..state.header };
        self.loader().write_header(index, &header)?;
        self.file.sync_data()?;
        state.header = header;
        state.previous = None;
        Ok(())
    }

    /// Extents whose data key has reached its limit, or whose rotation was cut short. Empties the list.
    #[must_use]
    pub fn take_rotations_due(&self) -> Vec<u32> {
        let mut due = std::mem::take(&mut *self.rotation_due.lock());
        due.sort_unstable();
        due.dedup();
        due
    }

    /// The generation of an extent's data key; 0 where the extent does not exist.
    ///
    /// # Errors
    /// The extent does not authenticate.
    pub fn dek_generation(&self, index: u32) -> Result<u16, VolumeError> {
        Ok(self.existing(index)?.map_or(0, |e| e.state.read().header.current.generation))
    }
}
