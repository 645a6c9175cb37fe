//! Rotating an extent's data key: a new key, then its blocks re-encrypted under it, online.

use crate::{
    SuperblockError, Volume, VolumeError,
    extent::{Extent, Header},
    layout::{BLOCK_LEN, EXTENT_BLOCKS, EXTENT_LEN},
};
use custody_types::UnixMillis;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

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
            self.settle()?;
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
                // Also where the clock was set back: a new key is not retired.
                current_made: self.options.clock.now().max(self.data_keys_retired_before()),
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
        self.settle()?;
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
    fn reencrypt_block(
        &self,
        extent: &Arc<Extent>,
        number: u16,
        buffer: &mut [u8],
    ) -> Result<bool, VolumeError> {
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
        // The headers before this call were written after the last block had moved, so what the header counts is under the
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

    /// Data keys made before this are retired: by order, or by age.
    #[must_use]
    pub fn data_keys_retired_before(&self) -> UnixMillis {
        let too_old = self.options.clock.now().minus(self.options.data_key_age_max);
        self.superblock.lock().data_keys_retired_before.max(too_old)
    }

    /// Retires every data key that there is. Their extents are told by [`Volume::retired_extents`] and re-encrypted by
    /// [`Volume::rotate_due`]; the order is on disk, and outlives a restart.
    ///
    /// # Errors
    /// The file system failed.
    pub fn retire_data_keys(&self) -> Result<(), SuperblockError> {
        // A key made in this very millisecond counts as retired.
        let now = self.options.clock.now().plus(Duration::from_millis(1));
        self.update_superblock(|superblock| {
            superblock.data_keys_retired_before = superblock.data_keys_retired_before.max(now);
        })
    }

    /// Extents whose data key is retired or whose rotation was cut short, and how many extents there are. Reads a header
    /// of each, and stops early where it is told to: whoever looks holds the volume, and so its keys.
    ///
    /// # Errors
    /// The disk failed.
    pub fn retired_extents(&self, give_up: impl Fn() -> bool) -> Result<(Vec<u32>, u32), VolumeError> {
        let before = self.data_keys_retired_before();
        let all = self.known_extents();
        let count = u32::try_from(all.len()).unwrap_or(u32::MAX);
        let mut retired = Vec::new();
        for index in all {
            if give_up() {
                break;
            }
            let open = self.extents.read().get(&index).map(|extent| extent.state.read().header);
            let header = match open {
                Some(header) => Some(header),
                None => self.loader().header(index)?,
            };
            // One without a header is told when it is used.
            if header.is_some_and(|h| h.is_retired(before)) {
                retired.push(index);
            }
        }
        Ok((retired, count))
    }

    /// Extents that were found due as they were used: the key has reached its limit, is retired, or its rotation was cut
    /// short. Empties the list.
    #[must_use]
    pub fn take_rotations_due(&self) -> Vec<u32> {
        let mut due = std::mem::take(&mut *self.rotation_due.lock());
        due.sort_unstable();
        due.dedup();
        due
    }

    /// Rotates an extent's data key if that is due; false if it was not.
    ///
    /// # Errors
    /// As [`Volume::rotate_extent`].
    pub fn rotate_due(&self, index: u32) -> Result<bool, VolumeError> {
        let Some(extent) = self.existing(index)? else { return Ok(false) };
        let header = extent.state.read().header;
        let used = extent.sequence.load(Ordering::Acquire).saturating_sub(header.current_first_sequence);
        let due =
            header.is_retired(self.data_keys_retired_before()) || used >= self.options.seals_per_key_max;
        if due {
            self.rotate_extent(index)?;
        }
        Ok(due)
    }

    /// The generation of an extent's data key; 0 where the extent does not exist.
    ///
    /// # Errors
    /// The extent does not authenticate.
    pub fn dek_generation(&self, index: u32) -> Result<u16, VolumeError> {
        Ok(self.existing(index)?.map_or(0, |e| e.state.read().header.current.generation))
    }
}
