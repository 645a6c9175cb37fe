//! Where everything is in a volume file. All numbers are little-endian.
//!
//! ```text
//! 0        superblock A, 16 KiB      } the newer one with a good checksum counts
//! 16 KiB   superblock B, 16 KiB      }
//! 32 KiB   extent table, pages of 4 KiB in pairs A/B: which extents exist
//! 1 MiB    extent 0, extent 1, ...   each EXTENT_STRIDE bytes, sparse
//!
//! an extent:
//! 0        header A, one 512-byte sector in a 4 KiB page
//! 4 KiB    header B
//! 8 KiB    block entries, 40 bytes each, 12 to a 512-byte sector, one for each slot
//! ...      slots of 4 KiB, twice as many as the extent has blocks, and 256
//! ```
//!
//! A block is never written over in place. A write seals it into a free slot and then writes the slot's entry
//! (which block, which sequence number, nonce, tag); the old slot stays untouched until a header that no longer
//! needs it is on disk. An entry lies within one sector, and a sector is written whole or not at all, so a torn
//! write leaves either the new block or the old one.

/// Bytes in a block.
pub const BLOCK_LEN: usize = 4096;
/// Blocks in an extent: 16 MiB under one data key.
pub const EXTENT_BLOCKS: usize = 4096;
/// Bytes in an extent, as a client sees it.
pub const EXTENT_LEN: u64 = (EXTENT_BLOCKS * BLOCK_LEN) as u64;
/// Slots in an extent: one for what each block held at the last flush, one for what it holds now, and room for the
/// longest run that is written at once, so that overwriting never has to wait for a flush.
pub const EXTENT_SLOTS: usize = 2 * EXTENT_BLOCKS + RUN_BLOCKS;
/// Blocks sealed and written at once: 1 MiB.
pub const RUN_BLOCKS: usize = 256;
/// Bytes in a block entry.
pub const ENTRY_LEN: usize = 40;
/// Entries in a sector.
pub const ENTRIES_PER_SECTOR: usize = 12;
/// Bytes of all entries of an extent, in whole pages.
pub const ENTRIES_LEN: usize =
    (EXTENT_SLOTS.div_ceil(ENTRIES_PER_SECTOR) * SECTOR_LEN).next_multiple_of(BLOCK_LEN);
/// Bytes that a disk writes whole or not at all.
pub const SECTOR_LEN: usize = 512;
/// Bytes of a superblock.
pub const SUPERBLOCK_LEN: usize = 16 * 1024;
/// Where the extent table begins.
pub const TABLE_START: u64 = 2 * SUPERBLOCK_LEN as u64;
/// Where extents begin.
pub const EXTENTS_START: u64 = 1 << 20;
/// From one extent to the next in the file.
pub const EXTENT_STRIDE: u64 = (2 * BLOCK_LEN + ENTRIES_LEN + EXTENT_SLOTS * BLOCK_LEN) as u64;
/// Smallest volume.
pub const VOLUME_LEN_MIN: u64 = 1 << 20;
/// Largest volume: 4 TiB, which takes a sparse file of about twice that length.
pub const VOLUME_LEN_MAX: u64 = 4 << 40;

/// Where an extent begins in the file.
#[must_use]
pub fn extent_start(extent: u32) -> u64 {
    EXTENTS_START + u64::from(extent) * EXTENT_STRIDE
}

/// Where a header copy (0 or 1) begins.
#[must_use]
pub fn header_start(extent: u32, copy: u64) -> u64 {
    extent_start(extent) + (copy & 1) * BLOCK_LEN as u64
}

/// Where a slot's entry begins, within the entries.
#[must_use]
pub fn entry_offset(slot: u16) -> usize {
    let slot = usize::from(slot);
    slot / ENTRIES_PER_SECTOR * SECTOR_LEN + slot % ENTRIES_PER_SECTOR * ENTRY_LEN
}

/// Where the entries begin.
#[must_use]
pub fn entries_start(extent: u32) -> u64 {
    extent_start(extent) + 2 * BLOCK_LEN as u64
}

/// Where a slot's bytes begin.
#[must_use]
pub fn slot_start(extent: u32, slot: u16) -> u64 {
    entries_start(extent) + ENTRIES_LEN as u64 + u64::from(slot) * BLOCK_LEN as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_never_crosses_a_sector_and_nothing_overlaps() {
        for slot in 0..EXTENT_SLOTS as u16 {
            let at = entry_offset(slot);
            assert_eq!(at / SECTOR_LEN, (at + ENTRY_LEN - 1) / SECTOR_LEN);
        }
        assert!(entry_offset(EXTENT_SLOTS as u16 - 1) + ENTRY_LEN <= ENTRIES_LEN);
        assert_eq!(slot_start(0, 0) % BLOCK_LEN as u64, 0);
        assert_eq!(slot_start(3, EXTENT_SLOTS as u16 - 1) + BLOCK_LEN as u64, extent_start(4));
    }

    #[test]
    fn keys_nonces_and_tags_take_under_two_hundredths() {
        // What a full extent adds on disk beside its data: two header pages and the entries of its own slots.
        let entries = EXTENT_BLOCKS.div_ceil(ENTRIES_PER_SECTOR) * SECTOR_LEN;
        assert!((entries + 2 * BLOCK_LEN) as f64 / (EXTENT_LEN as f64) < 0.02);
    }
}
