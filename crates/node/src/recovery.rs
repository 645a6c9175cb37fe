//! Loading an extent: after a clean end, after a killed process, after a power cut.

use crate::{
    VolumeError,
    allocation::Slots,
    extent::{DekRecord, Entry, Extent, Header, Live, Sealer, State},
    layout::{
        BLOCK_LEN, ENTRIES_LEN, ENTRY_LEN, EXTENT_BLOCKS, EXTENT_SLOTS, SECTOR_LEN, entries_start,
        entry_offset, header_start, slot_start,
    },
};
use custody_envelope::{BlockAddress, Dek, DekAddress, VolumeKeys};
use custody_types::Clock;
use parking_lot::{Condvar, Mutex, RwLock};
use std::{fs::File, os::unix::fs::FileExt as _, sync::Arc, sync::atomic::AtomicU64};

/// What an extent is read with.
pub(crate) struct Loader<'a> {
    pub(crate) file: &'a File,
    pub(crate) volume: [u8; 16],
    pub(crate) keys: &'a VolumeKeys,
    pub(crate) clock: &'a dyn Clock,
}

impl Loader<'_> {
    fn corrupt(extent: u32) -> VolumeError {
        VolumeError::Corrupt { extent, block: None }
    }

    /// Loads an extent. `None`: it was never flushed, so nothing in it was promised and it reads as zeros.
    ///
    /// `known` says that the extent table lists it: then a missing header is damage.
    pub(crate) fn load(&self, extent: u32, known: bool) -> Result<Option<Extent>, VolumeError> {
        let Some(header) = self.header(extent)? else {
            return if known { Err(Self::corrupt(extent)) } else { Ok(None) };
        };
        let current = Arc::new(self.unwrap(extent, header.current)?);
        let previous = header.previous.map(|p| self.unwrap(extent, p)).transpose()?.map(Arc::new);
        let mut state = State {
            header,
            blocks: vec![None; EXTENT_BLOCKS].into(),
            set_mac: 0,
            live: 0,
            slots: Slots::new(),
            dirty: false,
            header_pending: false,
            counted_sequence: header.flushed_sequence,
            current,
            previous,
        };
        let last = self.recover(extent, &mut state)?;
        Ok(Some(Extent {
            index: extent,
            sequence: AtomicU64::new(last),
            state: RwLock::new(state),
            room: Condvar::new(),
            room_lock: Mutex::new(()),
            partial: Mutex::new(()),
        }))
    }

    /// Makes an extent that does not exist: a new data key, and a first header that the next flush makes durable.
    pub(crate) fn create(&self, extent: u32) -> Result<Extent, VolumeError> {
        // A crash may have left entries of an extent whose header was lost; they were never promised.
        let mut found = vec![0; ENTRIES_LEN];
        self.file.read_exact_at(&mut found, entries_start(extent))?;
        if found.iter().any(|b| *b != 0) {
            self.file.write_all_at(&vec![0; ENTRIES_LEN], entries_start(extent))?;
        }
        let record = self.new_dek(extent, 1)?;
        let header = Header {
            header_sequence: 1,
            flushed_sequence: 0,
            live: 0,
            set_mac: 0,
            current: record,
            current_made: self.clock.now(),
            current_first_sequence: 1,
            previous: None,
        };
        self.write_header(extent, &header)?;
        let state = State {
            header,
            blocks: vec![None; EXTENT_BLOCKS].into(),
            set_mac: 0,
            live: 0,
            slots: Slots::new(),
            dirty: true,
            header_pending: false,
            counted_sequence: 0,
            current: Arc::new(self.unwrap(extent, record)?),
            previous: None,
        };
        Ok(Extent {
            index: extent,
            sequence: AtomicU64::new(0),
            state: RwLock::new(state),
            room: Condvar::new(),
            room_lock: Mutex::new(()),
            partial: Mutex::new(()),
        })
    }

    /// A new data key of this generation, wrapped for its place.
    pub(crate) fn new_dek(&self, extent: u32, generation: u16) -> Result<DekRecord, VolumeError> {
        let address = DekAddress { volume: self.volume, extent, generation };
        Ok(DekRecord { generation, wrapped: self.keys.wrap_dek(address, &Dek::generate()?)? })
    }

    /// Opens a data key.
    pub(crate) fn unwrap(&self, extent: u32, record: DekRecord) -> Result<Sealer, VolumeError> {
        let address = DekAddress { volume: self.volume, extent, generation: record.generation };
        let sealer = self.keys.unwrap_dek(address, &record.wrapped).map_err(|_| Self::corrupt(extent))?;
        Ok(Sealer { record, sealer })
    }

    /// Writes a header over the older copy.
    pub(crate) fn write_header(&self, extent: u32, header: &Header) -> Result<(), VolumeError> {
        let bytes = header.encode(&self.volume, extent, self.keys);
        Ok(self.file.write_all_at(&bytes, header_start(extent, header.header_sequence))?)
    }

    /// An extent's newer header; none where it was never made.
    pub(crate) fn header(&self, extent: u32) -> Result<Option<Header>, VolumeError> {
        let mut best: Option<Header> = None;
        for copy in 0..2 {
            let mut bytes = [0; SECTOR_LEN];
            self.file.read_exact_at(&mut bytes, header_start(extent, copy))?;
            if let Some(found) = Header::decode(&bytes, &self.volume, extent, self.keys)
                && best.as_ref().is_none_or(|b| found.header_sequence > b.header_sequence)
            {
                best = Some(found);
            }
        }
        Ok(best)
    }

    /// Rebuilds the map from the entries and returns the last sequence number in use.
    ///
    /// Entries up to the header's flushed sequence are promised: for each block the highest counts, and all of
    /// them together must give the header's set value. Entries above it were written after the last flush: each
    /// counts if its bytes open, newest first; one that does not open was torn, and is wiped.
    fn recover(&self, extent: u32, state: &mut State) -> Result<u64, VolumeError> {
        let flushed = state.header.flushed_sequence;
        let mut table = vec![0; ENTRIES_LEN];
        self.file.read_exact_at(&mut table, entries_start(extent))?;
        let mut base: Vec<Option<(u16, Entry)>> = vec![None; EXTENT_BLOCKS];
        let mut newer: Vec<(u16, Entry)> = Vec::new();
        for slot in 0..u16::try_from(EXTENT_SLOTS).unwrap_or(u16::MAX) {
            let at = entry_offset(slot);
            let Some(bytes) = table.get(at..).and_then(|b| b.first_chunk::<ENTRY_LEN>()) else { continue };
            let Some(entry) = Entry::decode(bytes) else { continue };
            if entry.sequence > flushed {
                newer.push((slot, entry));
            } else if let Some(place) = base.get_mut(usize::from(entry.block))
                && place.as_ref().is_none_or(|(_, e)| e.sequence < entry.sequence)
            {
                *place = Some((slot, entry));
            }
        }
        for (slot, entry) in base.into_iter().flatten() {
            state.slots.claim(slot);
            state.install(self.live(extent, slot, entry));
        }
        if (state.set_mac, state.live) != (state.header.set_mac, state.header.live) {
            return Err(Self::corrupt(extent));
        }
        state.dirty = false;
        newer.sort_by_key(|(_, e)| std::cmp::Reverse(e.sequence));
        let mut last = flushed;
        for (slot, entry) in newer {
            let superseded = state.block(entry.block).is_some_and(|l| l.entry.sequence > entry.sequence);
            if !superseded && self.opens(extent, state, slot, &entry)? {
                last = last.max(entry.sequence);
                state.slots.claim(slot);
                state.install(self.live(extent, slot, entry));
            } else if !superseded {
                self.file.write_all_at(&[0; ENTRY_LEN], entries_start(extent) + entry_offset(slot) as u64)?;
                state.dirty = true;
            } else {
                last = last.max(entry.sequence);
            }
        }
        // Which of these the last flush promised is not known: its header may be what was lost.
        state.counted_sequence = last;
        Ok(last)
    }

    fn opens(&self, extent: u32, state: &State, slot: u16, entry: &Entry) -> Result<bool, VolumeError> {
        let Some(sealer) = state.sealer(entry.generation) else { return Ok(false) };
        let len = if entry.hole { 0 } else { BLOCK_LEN };
        let (mut sealed, mut plain) = (vec![0; len], vec![0; len]);
        self.file.read_exact_at(&mut sealed, slot_start(extent, slot))?;
        Ok(self.open(extent, entry, Some(sealer), &sealed, &mut plain).is_ok())
    }

    /// Opens a block with the key of its generation. A hole has no bytes on either side.
    pub(crate) fn open(
        &self,
        extent: u32,
        entry: &Entry,
        sealer: Option<&Arc<Sealer>>,
        sealed: &[u8],
        plain: &mut [u8],
    ) -> Result<(), VolumeError> {
        let corrupt = VolumeError::Corrupt { extent, block: Some(entry.block) };
        let address = self.address(extent, entry);
        match sealer.map(|s| s.sealer.open(&address, &entry.nonce, sealed, &entry.tag, plain)) {
            Some(Ok(())) => Ok(()),
            _ => Err(corrupt),
        }
    }

    pub(crate) fn live(&self, extent: u32, slot: u16, entry: Entry) -> Live {
        Live { slot, entry, value: self.keys.entry_value(extent, &entry.encode()) }
    }

    pub(crate) fn address(&self, extent: u32, entry: &Entry) -> BlockAddress {
        BlockAddress {
            volume: self.volume,
            extent,
            block: entry.block,
            generation: entry.generation,
            sequence: entry.sequence,
            hole: entry.hole,
        }
    }
}
