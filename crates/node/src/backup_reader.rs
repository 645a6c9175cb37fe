//! Reading a backup: every core opens chunks, and what is in them is taken or only looked at.

use crate::{
    Volume, VolumeError,
    backup::{BackupError, BackupManifest, KIND_DATA, KIND_HOLE, KIND_MARK, Marks, RECORD_LEN},
    every_core::on_every_core,
    layout::BLOCK_LEN,
};
use custody_envelope::{CHUNK_LEN, CHUNK_OVERHEAD_LEN, Provider, StreamKey, StreamSealer};
use parking_lot::Mutex;
use std::{fs::File, os::unix::fs::FileExt as _, path::Path};
use zeroize::Zeroizing;

/// What a backup says of a range of the volume.
#[derive(Debug)]
pub enum Piece<'a> {
    /// These bytes stand at the offset. They may be changed in place.
    Data(u64, &'a mut [u8]),
    /// So many zeros stand at the offset.
    Hole(u64, u64),
}

impl Volume {
    /// Takes a piece of a backup into a new volume. [`Volume::flush`] makes it durable.
    ///
    /// # Errors
    /// As [`Volume::write_at`].
    pub fn restore(&self, piece: Piece<'_>) -> Result<(), VolumeError> {
        match piece {
            Piece::Data(at, bytes) => {
                let len = bytes.len() as u64;
                self.write_in_place(at, bytes)?;
                self.restored.wrote(&self.file, len);
                Ok(())
            }
            Piece::Hole(at, len) => self.zero_at(at, len),
        }
    }
}

/// Where the next chunk is.
struct Scan<'a> {
    file: &'a File,
    index: u64,
    at: u64,
    end: u64,
}

struct Place {
    index: u64,
    at: u64,
    len: usize,
    last: bool,
}

impl Scan<'_> {
    fn next(&mut self) -> Result<Option<Place>, BackupError> {
        if self.at == self.end && self.index > 0 {
            return Ok(None);
        }
        let mut len = [0; 4];
        self.file.read_exact_at(&mut len, self.at).map_err(|_| BackupError::Corrupt)?;
        let len = u32::from_le_bytes(len) as usize;
        let next = self.at + 4 + len as u64;
        if len > CHUNK_LEN + CHUNK_OVERHEAD_LEN || next > self.end {
            return Err(BackupError::Corrupt);
        }
        let place = Place { index: self.index, at: self.at + 4, len, last: next == self.end };
        (self.index, self.at) = (self.index + 1, next);
        Ok(Some(place))
    }
}

/// A backup whose key is at hand.
struct Reader<'a> {
    file: File,
    end: u64,
    manifest: &'a BackupManifest,
    sealer: StreamSealer,
}

impl<'a> Reader<'a> {
    fn open(dir: &Path, manifest: &'a BackupManifest, key: &StreamKey) -> Result<Self, BackupError> {
        let file = File::open(dir.join("data.sealed"))?;
        let end = file.metadata()?.len();
        let sealer = key.sealer(Provider::default(), manifest.backup_id);
        Ok(Self { file, end, manifest, sealer })
    }

    fn scan(&self) -> Scan<'_> {
        Scan { file: &self.file, index: 0, at: 0, end: self.end }
    }

    /// Opens a chunk and gives each of its records to `visit`; false from it ends the chunk.
    fn records(
        &self,
        place: &Place,
        sealed: &mut Vec<u8>,
        plain: &mut Zeroizing<Vec<u8>>,
        mut visit: impl FnMut(u32, u32, u64, &mut [u8]) -> Result<bool, BackupError>,
    ) -> Result<(), BackupError> {
        sealed.resize(place.len, 0);
        self.file.read_exact_at(sealed, place.at)?;
        self.sealer.open(place.index, place.last, sealed, plain)?;
        let mut rest = plain.as_mut_slice();
        if place.index == 0 {
            // Ties the clear manifest to the sealed stream.
            let binding = self.manifest.binding();
            let (head, tail) = rest.split_at_mut_checked(binding.len()).ok_or(BackupError::Corrupt)?;
            if *head != binding {
                return Err(BackupError::Corrupt);
            }
            rest = tail;
        }
        while !rest.is_empty() {
            let (head, tail) = rest.split_first_chunk_mut::<RECORD_LEN>().ok_or(BackupError::Corrupt)?;
            let [a, b, c, d, e, f, g, h, place @ ..] = *head;
            let (kind, count) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
            let len = if kind == KIND_DATA { count as usize * BLOCK_LEN } else { 0 };
            let (data, tail) = tail.split_at_mut_checked(len).ok_or(BackupError::Corrupt)?;
            if !visit(kind, count, u64::from_le_bytes(place), data)? {
                return Ok(());
            }
            rest = tail;
        }
        Ok(())
    }
}

/// How far a backup goes: what an increment begins after.
///
/// # Errors
/// See [`BackupError`].
pub fn read_marks(dir: &Path, manifest: &BackupManifest, key: &StreamKey) -> Result<Marks, BackupError> {
    let reader = Reader::open(dir, manifest, key)?;
    let (mut marks, mut sealed, mut plain) = (Marks::new(), Vec::new(), Zeroizing::default());
    let mut scan = reader.scan();
    let mut more = true;
    while more && let Some(place) = scan.next()? {
        reader.records(&place, &mut sealed, &mut plain, |kind, extent, sequence, _| {
            more = kind == KIND_MARK;
            if more {
                marks.insert(extent, sequence);
            }
            Ok(more)
        })?;
    }
    Ok(marks)
}

/// Reads a backup with every core, and gives each piece to `visit`, in no order. Chunks are authenticated one at a
/// time, so a caller must discard everything if this fails.
///
/// # Errors
/// See [`BackupError`].
pub fn read_backup(
    dir: &Path,
    manifest: &BackupManifest,
    key: &StreamKey,
    visit: impl Fn(Piece<'_>) -> Result<(), VolumeError> + Sync,
) -> Result<(), BackupError> {
    let reader = Reader::open(dir, manifest, key)?;
    let scan = Mutex::new(reader.scan());
    on_every_core(|failed| {
        let (mut sealed, mut plain) = (Vec::new(), Zeroizing::default());
        loop {
            let next = scan.lock().next()?;
            let Some(place) = next.filter(|_| !failed()) else { return Ok(()) };
            reader.records(&place, &mut sealed, &mut plain, |kind, count, at, data| {
                match kind {
                    KIND_DATA => visit(Piece::Data(at, data))?,
                    KIND_HOLE => visit(Piece::Hole(at, u64::from(count) * BLOCK_LEN as u64))?,
                    KIND_MARK => {}
                    _ => return Err(BackupError::Corrupt),
                }
                Ok(true)
            })?;
        }
    })
}
