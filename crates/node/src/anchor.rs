//! How far a volume had come, kept outside its file: finds a file, or a part of one, that was put back to an earlier
//! state (`docs/formats/volume-anchor.md`).

use crate::layout::SECTOR_LEN;
use custody_envelope::VolumeKeys;
use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Numbers in a sector; an HMAC takes the rest. One sector, so that it is written whole.
const PER_SECTOR: usize = (SECTOR_LEN - 32) / 8;
const LABEL: &[u8] = b"custody volume anchor v1";

/// Where a number that only grows is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counter {
    /// Writes of the superblock.
    Superblock,
    /// Writes of an extent's header.
    Extent(u32),
}

impl Counter {
    fn place(self) -> usize {
        match self {
            Self::Superblock => 0,
            Self::Extent(index) => index as usize + 1,
        }
    }
}

/// The file of a volume's anchor, by the volume's id.
#[must_use]
pub fn anchor_path(dir: &Path, volume_id: [u8; 16]) -> PathBuf {
    let mut name = String::with_capacity(40);
    for byte in volume_id {
        for digit in [byte >> 4, byte & 15] {
            name.extend(char::from_digit(u32::from(digit), 16));
        }
    }
    dir.join(name + ".anchor")
}

/// An anchor that cannot be used.
#[derive(Debug)]
pub(crate) enum AnchorError {
    Missing,
    Damaged,
    Io(io::Error),
}

impl From<io::Error> for AnchorError {
    fn from(e: io::Error) -> Self {
        if e.kind() == io::ErrorKind::NotFound { Self::Missing } else { Self::Io(e) }
    }
}

/// An open anchor.
#[derive(Debug)]
pub(crate) struct Anchor {
    file: File,
    volume: [u8; 16],
    numbers: Vec<u64>,
    /// Written to the volume, and not yet known to be durable there.
    written: Vec<(Counter, u64)>,
    changed: BTreeSet<usize>,
}

impl Anchor {
    /// Makes the anchor of a new volume of so many extents.
    pub(crate) fn create(path: &Path, volume: [u8; 16], extents: u32) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        file.sync_all()?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(Self::over(file, volume, extents))
    }

    /// Reads an anchor. One that is empty knows nothing, and takes the volume as it is.
    pub(crate) fn open(
        path: &Path,
        volume: [u8; 16],
        extents: u32,
        keys: &VolumeKeys,
    ) -> Result<Self, AnchorError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let len = file.metadata()?.len();
        let mut anchor = Self::over(file, volume, extents);
        let sectors = anchor.numbers.len().div_ceil(PER_SECTOR);
        for sector in (0..sectors).take_while(|s| Self::start(*s) < len) {
            let mut bytes = [0; SECTOR_LEN];
            anchor.file.read_exact_at(&mut bytes, Self::start(sector)).map_err(|_| AnchorError::Damaged)?;
            // Never written.
            if bytes == [0; SECTOR_LEN] {
                continue;
            }
            let first = sector * PER_SECTOR;
            for (number, bytes) in
                anchor.numbers.iter_mut().skip(first).take(PER_SECTOR).zip(bytes.as_chunks::<8>().0)
            {
                *number = u64::from_le_bytes(*bytes);
            }
            if anchor.encode(sector, keys) != bytes {
                return Err(AnchorError::Damaged);
            }
        }
        Ok(anchor)
    }

    fn over(file: File, volume: [u8; 16], extents: u32) -> Self {
        let numbers = vec![0; extents as usize + 1];
        Self { file, volume, numbers, written: Vec::new(), changed: BTreeSet::new() }
    }

    /// Makes room for so many extents.
    pub(crate) fn grow(&mut self, extents: u32) {
        self.numbers.resize(self.numbers.len().max(extents as usize + 1), 0);
    }

    fn start(sector: usize) -> u64 {
        (sector * SECTOR_LEN) as u64
    }

    fn encode(&self, sector: usize, keys: &VolumeKeys) -> [u8; SECTOR_LEN] {
        let mut out = [0; SECTOR_LEN];
        let (body, tag) = out.split_at_mut(SECTOR_LEN - 32);
        let numbers = self.numbers.iter().skip(sector * PER_SECTOR);
        for (bytes, number) in body.as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
            *bytes = number.to_le_bytes();
        }
        let mut signed = LABEL.to_vec();
        signed.extend_from_slice(&self.volume);
        signed.extend_from_slice(&(sector as u64).to_le_bytes());
        signed.extend_from_slice(body);
        tag.copy_from_slice(&keys.header_tag(&signed));
        out
    }

    /// Whether what the volume has is what the anchor knows of, or newer.
    pub(crate) fn allows(&self, counter: Counter, found: u64) -> bool {
        self.numbers.get(counter.place()).is_none_or(|known| found >= *known)
    }

    /// This was written to the volume. It counts once it is durable there: a power cut must not look like a rollback.
    pub(crate) fn wrote(&mut self, counter: Counter, number: u64) {
        self.written.push((counter, number));
    }

    /// What was written to the volume before its last `fdatasync` began is durable.
    pub(crate) fn durable(&mut self, keys: &VolumeKeys) -> io::Result<()> {
        for (counter, number) in std::mem::take(&mut self.written) {
            if let Some(known) = self.numbers.get_mut(counter.place())
                && *known < number
            {
                *known = number;
                self.changed.insert(counter.place() / PER_SECTOR);
            }
        }
        // A sector that could not be written is written by the next call.
        while let Some(sector) = self.changed.first().copied() {
            self.file.write_all_at(&self.encode(sector, keys), Self::start(sector))?;
            self.changed.remove(&sector);
        }
        Ok(())
    }

    /// Makes the anchor itself durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
