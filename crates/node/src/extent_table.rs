//! Which extents exist: so that one wiped from the disk is missed and not read as zeros.

use crate::{
    VolumeError,
    layout::{BLOCK_LEN, EXTENT_LEN, EXTENTS_START, SECTOR_LEN, TABLE_START},
};
use custody_envelope::VolumeKeys;
use std::{collections::BTreeSet, fs::File, os::unix::fs::FileExt as _};

/// Bytes of bitmap in a page; its sequence and tag take the rest. One sector, so that it is written whole.
const BITMAP_LEN: usize = SECTOR_LEN - 8 - 32;
/// Extents that a page tells of.
const PER_PAGE: u32 = (BITMAP_LEN * 8) as u32;

/// The table in memory.
#[derive(Debug)]
pub(crate) struct ExtentTable {
    volume: [u8; 16],
    pages: Vec<Page>,
    /// Extents whose header is on disk but that are not yet in a page.
    pending: BTreeSet<u32>,
    /// Pages that have changed and are still to be written.
    changed: BTreeSet<u32>,
}

#[derive(Debug)]
struct Page {
    sequence: u64,
    bitmap: Box<[u8; BITMAP_LEN]>,
}

impl ExtentTable {
    fn start(page: u32, sequence: u64) -> u64 {
        let at = TABLE_START + (u64::from(page) * 2 + (sequence & 1)) * BLOCK_LEN as u64;
        debug_assert!(at + (BLOCK_LEN as u64) <= EXTENTS_START);
        at
    }

    /// Reads the table of a volume of this size.
    pub(crate) fn read(
        file: &File,
        volume: [u8; 16],
        size_bytes: u64,
        keys: &VolumeKeys,
    ) -> Result<Self, VolumeError> {
        let extents = u32::try_from(size_bytes.div_ceil(EXTENT_LEN)).unwrap_or(u32::MAX);
        let mut table =
            Self { volume, pages: Vec::new(), pending: BTreeSet::new(), changed: BTreeSet::new() };
        for page in 0..extents.div_ceil(PER_PAGE) {
            let mut best = Page { sequence: 0, bitmap: Box::new([0; BITMAP_LEN]) };
            let mut damaged = 0;
            for copy in 0..2 {
                let mut bytes = [0; SECTOR_LEN];
                file.read_exact_at(&mut bytes, Self::start(page, copy))?;
                let Some((sequence, rest)) = bytes.split_first_chunk::<8>() else { continue };
                let sequence = u64::from_le_bytes(*sequence);
                let Some(bitmap) = rest.first_chunk::<BITMAP_LEN>() else { continue };
                if bytes == table.encode(page, sequence, bitmap, keys) {
                    if sequence > best.sequence {
                        best = Page { sequence, bitmap: Box::new(*bitmap) };
                    }
                } else if bytes != [0; SECTOR_LEN] {
                    damaged += 1;
                }
            }
            // One torn copy is a crash; two, or one that was never followed by a good one, are damage.
            if damaged == 2 || (damaged == 1 && best.sequence == 0) {
                return Err(VolumeError::Corrupt { extent: page * PER_PAGE, block: None });
            }
            table.pages.push(best);
        }
        Ok(table)
    }

    /// Makes room for so many extents. Pages that were never written are zeros, which is what is read of them.
    pub(crate) fn grow(&mut self, extents: u32) {
        let pages = extents.div_ceil(PER_PAGE) as usize;
        while self.pages.len() < pages {
            self.pages.push(Page { sequence: 0, bitmap: Box::new([0; BITMAP_LEN]) });
        }
    }

    fn encode(
        &self,
        page: u32,
        sequence: u64,
        bitmap: &[u8; BITMAP_LEN],
        keys: &VolumeKeys,
    ) -> [u8; SECTOR_LEN] {
        let mut body = Vec::with_capacity(SECTOR_LEN);
        body.extend_from_slice(&sequence.to_le_bytes());
        body.extend_from_slice(bitmap);
        let mut signed = b"custody extent table v1".to_vec();
        signed.extend_from_slice(&self.volume);
        signed.extend_from_slice(&page.to_le_bytes());
        signed.extend_from_slice(&body);
        body.extend_from_slice(&keys.header_tag(&signed));
        let mut out = [0; SECTOR_LEN];
        out.copy_from_slice(&body);
        out
    }

    /// Whether the extent is known to exist.
    pub(crate) fn contains(&self, extent: u32) -> bool {
        let bit = extent % PER_PAGE;
        self.pages
            .get((extent / PER_PAGE) as usize)
            .and_then(|p| p.bitmap.get((bit / 8) as usize))
            .is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
    }

    /// All extents that are known to exist.
    pub(crate) fn all(&self) -> Vec<u32> {
        let pages = u32::try_from(self.pages.len()).unwrap_or(0);
        (0..pages * PER_PAGE).filter(|e| self.contains(*e)).collect()
    }

    /// An extent's header has just become durable.
    pub(crate) fn add(&mut self, extent: u32) {
        if !self.contains(extent) {
            self.pending.insert(extent);
        }
    }

    /// Writes pages that changed; they become durable with the next flush. A page that could not be written is
    /// written by the next call.
    pub(crate) fn write(&mut self, file: &File, keys: &VolumeKeys) -> Result<(), VolumeError> {
        for extent in std::mem::take(&mut self.pending) {
            let bit = extent % PER_PAGE;
            let page = extent / PER_PAGE;
            if let Some(byte) =
                self.pages.get_mut(page as usize).and_then(|p| p.bitmap.get_mut((bit / 8) as usize))
            {
                *byte |= 1 << (bit % 8);
                self.changed.insert(page);
            }
        }
        while let Some(page) = self.changed.first().copied() {
            let Some(found) = self.pages.get(page as usize) else { break };
            let sequence = found.sequence + 1;
            let bytes = self.encode(page, sequence, &found.bitmap, keys);
            file.write_all_at(&bytes, Self::start(page, sequence))?;
            if let Some(found) = self.pages.get_mut(page as usize) {
                found.sequence = sequence;
            }
            self.changed.remove(&page);
        }
        Ok(())
    }
}
