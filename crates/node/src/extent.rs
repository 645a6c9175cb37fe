//! One extent in memory: its header, its live blocks, its slots.

use crate::allocation::Slots;
use crate::layout::{BLOCK_LEN, ENTRY_LEN, EXTENT_BLOCKS, SECTOR_LEN};
use custody_envelope::{BlockSealer, Nonce, TAG_LEN, Tag, VolumeKeys, WrappedDek};
use custody_types::UnixMillis;
use parking_lot::{Condvar, Mutex, RwLock};
use std::{fmt, sync::Arc, sync::atomic::AtomicU64};

const MAGIC: &[u8; 8] = b"CUSTODYX";
const HEADER_MAC_AT: usize = SECTOR_LEN - 32;

/// A data key's generation with its wrapped form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DekRecord {
    pub(crate) generation: u16,
    pub(crate) wrapped: WrappedDek,
}

/// What an extent's header says, as of one flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Counts header writes; the copy is its lowest bit.
    pub(crate) header_sequence: u64,
    /// Every write up to this number is on disk and counted in `set_mac`.
    pub(crate) flushed_sequence: u64,
    /// Blocks that have an entry.
    pub(crate) live: u32,
    /// XOR of the pseudo-random values of the live entries.
    pub(crate) set_mac: u128,
    /// The key that seals.
    pub(crate) current: DekRecord,
    /// When it was made; 0 where an earlier build did.
    pub(crate) current_made: UnixMillis,
    /// The first write under it: its use is counted from there.
    pub(crate) current_first_sequence: u64,
    /// The key before it, while blocks under it remain.
    pub(crate) previous: Option<DekRecord>,
}

impl Header {
    /// Whether its data key is to be replaced: it was made before that moment, or its replacement was cut short.
    pub(crate) fn is_retired(&self, before: UnixMillis) -> bool {
        self.current_made < before || self.previous.is_some()
    }
}

impl Header {
    pub(crate) fn encode(&self, volume: &[u8; 16], extent: u32, keys: &VolumeKeys) -> [u8; SECTOR_LEN] {
        let mut body = Vec::with_capacity(SECTOR_LEN);
        body.extend_from_slice(MAGIC);
        body.extend_from_slice(&1u32.to_le_bytes());
        body.extend_from_slice(&extent.to_le_bytes());
        body.extend_from_slice(volume);
        body.extend_from_slice(&self.header_sequence.to_le_bytes());
        body.extend_from_slice(&self.flushed_sequence.to_le_bytes());
        body.extend_from_slice(&self.set_mac.to_le_bytes());
        body.extend_from_slice(&self.live.to_le_bytes());
        body.extend_from_slice(&self.current_first_sequence.to_le_bytes());
        body.extend_from_slice(&self.current.generation.to_le_bytes());
        body.extend_from_slice(self.current.wrapped.as_bytes());
        body.extend_from_slice(&self.previous.map_or(0, |p| p.generation).to_le_bytes());
        body.extend_from_slice(&self.previous.map_or([0; WrappedDek::LEN], |p| *p.wrapped.as_bytes()));
        body.extend_from_slice(&self.current_made.as_millis().to_le_bytes());
        body.resize(HEADER_MAC_AT, 0);
        let tag = keys.header_tag(&body);
        let mut out = [0; SECTOR_LEN];
        let (head, mac) = out.split_at_mut(HEADER_MAC_AT);
        head.copy_from_slice(&body);
        mac.copy_from_slice(&tag);
        out
    }

    /// The header, if these bytes are one of this extent, written under these keys.
    pub(crate) fn decode(
        bytes: &[u8; SECTOR_LEN],
        volume: &[u8; 16],
        extent: u32,
        keys: &VolumeKeys,
    ) -> Option<Self> {
        let mut reader = Reader(bytes.get(16 + 16..)?);
        let mut header = Self {
            header_sequence: u64::from_le_bytes(reader.take()?),
            flushed_sequence: u64::from_le_bytes(reader.take()?),
            set_mac: u128::from_le_bytes(reader.take()?),
            live: u32::from_le_bytes(reader.take()?),
            current_first_sequence: u64::from_le_bytes(reader.take()?),
            current: reader.dek()?,
            current_made: UnixMillis::default(),
            previous: None,
        };
        header.previous = Some(reader.dek()?).filter(|p| p.generation != 0);
        header.current_made = UnixMillis::from_millis(u64::from_le_bytes(reader.take()?));
        // Everything above is only believed if writing it again gives the very same bytes, tag included.
        (header.encode(volume, extent, keys) == *bytes).then_some(header)
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn dek(&mut self) -> Option<DekRecord> {
        let generation = u16::from_le_bytes(self.take()?);
        Some(DekRecord { generation, wrapped: WrappedDek::from_bytes(self.take()?) })
    }
}

/// One block as it is stored: which write it is and how to open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) sequence: u64,
    pub(crate) block: u16,
    pub(crate) generation: u16,
    pub(crate) hole: bool,
    pub(crate) nonce: Nonce,
    pub(crate) tag: Tag,
}

/// Sequence numbers have 48 bits; the bits above hold the flags.
const SEQUENCE_MASK: u64 = (1 << 48) - 1;
const USED: u64 = 1 << 48;
const HOLE: u64 = 1 << 49;

impl Entry {
    pub(crate) fn encode(&self) -> [u8; ENTRY_LEN] {
        let word = self.sequence | USED | if self.hole { HOLE } else { 0 };
        let mut out = [0; ENTRY_LEN];
        out[..8].copy_from_slice(&word.to_le_bytes());
        out[8..10].copy_from_slice(&self.block.to_le_bytes());
        out[10..12].copy_from_slice(&self.generation.to_le_bytes());
        out[12..24].copy_from_slice(&self.nonce);
        out[24..].copy_from_slice(&self.tag);
        out
    }

    /// `None` where there is no entry, or nothing that this version writes.
    pub(crate) fn decode(bytes: &[u8; ENTRY_LEN]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let word = u64::from_le_bytes(reader.take()?);
        let block = u16::from_le_bytes(reader.take()?);
        let generation = u16::from_le_bytes(reader.take()?);
        let nonce = reader.take::<12>()?;
        let tag = reader.take::<TAG_LEN>()?;
        let known = word & !(SEQUENCE_MASK | USED | HOLE) == 0 && word & USED != 0;
        (known && usize::from(block) < EXTENT_BLOCKS).then_some(Self {
            sequence: word & SEQUENCE_MASK,
            block,
            generation,
            hole: word & HOLE != 0,
            nonce,
            tag,
        })
    }
}

/// A block that has an entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    pub(crate) slot: u16,
    pub(crate) entry: Entry,
    /// The entry's pseudo-random value, kept so that replacing it costs one computation and not two.
    pub(crate) value: u128,
}

/// A data key ready for use.
pub(crate) struct Sealer {
    pub(crate) record: DekRecord,
    pub(crate) sealer: BlockSealer,
}

/// The one among an extent's sealers that is of this generation.
pub(crate) fn of_generation<'a>(
    sealers: impl IntoIterator<Item = &'a Arc<Sealer>>,
    generation: u16,
) -> Option<&'a Arc<Sealer>> {
    sealers.into_iter().find(|s| s.record.generation == generation)
}

/// What changes under the lock.
pub(crate) struct State {
    pub(crate) header: Header,
    pub(crate) blocks: Box<[Option<Live>]>,
    pub(crate) set_mac: u128,
    pub(crate) live: u32,
    pub(crate) slots: Slots,
    pub(crate) dirty: bool,
    /// Whether its last header is written, and not yet known to be durable.
    pub(crate) header_pending: bool,
    /// Writes up to this number may be counted by a header, now or when the flush under way ends, or are read by a
    /// backup: their slots are retired, and those of later ones released.
    pub(crate) counted_sequence: u64,
    pub(crate) current: Arc<Sealer>,
    pub(crate) previous: Option<Arc<Sealer>>,
}

impl State {
    /// The sealer that opens blocks of a generation.
    pub(crate) fn sealer(&self, generation: u16) -> Option<&Arc<Sealer>> {
        of_generation(std::iter::once(&self.current).chain(&self.previous), generation)
    }

    pub(crate) fn block(&self, block: u16) -> Option<&Live> {
        self.blocks.get(usize::from(block))?.as_ref()
    }

    /// Makes `live` the block's entry and retires the slot before it. False where a later write came first.
    pub(crate) fn install(&mut self, live: Live) -> bool {
        let Some(place) = self.blocks.get_mut(usize::from(live.entry.block)) else { return false };
        if let Some(old) = place {
            if old.entry.sequence > live.entry.sequence {
                return false;
            }
            self.set_mac ^= old.value;
            if old.entry.sequence > self.counted_sequence {
                self.slots.release(old.slot);
            } else {
                self.slots.retire(old.slot);
            }
        } else {
            self.live += 1;
        }
        self.set_mac ^= live.value;
        *place = Some(live);
        self.dirty = true;
        true
    }
}

/// An extent that has been loaded.
pub(crate) struct Extent {
    pub(crate) index: u32,
    /// The last sequence number given out.
    pub(crate) sequence: AtomicU64,
    pub(crate) state: RwLock<State>,
    /// Writers without a free slot wait here for a flush or the end of a backup.
    pub(crate) room: Condvar,
    pub(crate) room_lock: Mutex<()>,
    /// Held by writes of part of a block, which read, change and write it.
    pub(crate) partial: Mutex<()>,
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extent").field("index", &self.index).finish_non_exhaustive()
    }
}

/// A block of zeros.
pub(crate) const ZEROS: [u8; BLOCK_LEN] = [0; BLOCK_LEN];
