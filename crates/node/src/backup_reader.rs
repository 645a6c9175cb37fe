//! Reading a backup: every core opens chunks, and what is in them is taken or only looked at.

use crate::{
    BackupStore, Segment, Volume, VolumeError,
    backup::{
        BINDING_LEN, BackupError, BackupManifest, KIND_BINDING, KIND_DATA, KIND_HOLE, KIND_MARK, Marks,
        RECORD_LEN, SEGMENT_CHUNKS,
    },
    every_core::on_every_core,
    layout::BLOCK_LEN,
};
use custody_envelope::{CHUNK_LEN, CHUNK_OVERHEAD_LEN, Provider, StreamKey, StreamSealer};
use parking_lot::Mutex;
use std::{collections::BTreeSet, io};
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

/// A chunk of a segment.
struct Place {
    index: u64,
    at: u64,
    len: usize,
}

/// A chunk as it is stored, and opened; used again for each.
#[derive(Default)]
struct Buffers {
    sealed: Vec<u8>,
    plain: Zeroizing<Vec<u8>>,
}

/// A backup whose key is at hand.
struct Reader<'a> {
    store: &'a dyn BackupStore,
    name: &'a str,
    manifest: &'a BackupManifest,
    sealer: StreamSealer,
}

impl<'a> Reader<'a> {
    fn new(
        (store, name): (&'a dyn BackupStore, &'a str),
        manifest: &'a BackupManifest,
        key: &StreamKey,
    ) -> Self {
        Self { store, name, manifest, sealer: key.sealer(Provider::default(), manifest.backup_id) }
    }

    fn segment_count(&self) -> u64 {
        self.manifest.chunks.div_ceil(SEGMENT_CHUNKS as u64)
    }

    /// A segment, with where its chunks are. It has just those that the manifest's number of chunks leaves to it.
    fn segment(&self, index: u64) -> Result<(Box<dyn Segment>, Vec<Place>), BackupError> {
        let segment = self.store.segment(self.name, index).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => BackupError::Corrupt,
            _ => e.into(),
        })?;
        let first = index * SEGMENT_CHUNKS as u64;
        let chunks = first..self.manifest.chunks.min(first + SEGMENT_CHUNKS as u64);
        let (mut at, mut places) = (0, Vec::with_capacity(SEGMENT_CHUNKS));
        for index in chunks {
            let mut len = [0; 4];
            segment.read_exact_at(&mut len, at).map_err(cut)?;
            let len = u32::from_le_bytes(len) as usize;
            if len > CHUNK_LEN + CHUNK_OVERHEAD_LEN {
                return Err(BackupError::Corrupt);
            }
            places.push(Place { index, at: at + 4, len });
            at += 4 + len as u64;
        }
        if at == segment.len() { Ok((segment, places)) } else { Err(BackupError::Corrupt) }
    }

    /// Gives each record of a segment to `visit`, until that answers false; answers whether it never did.
    fn visit(
        &self,
        index: u64,
        buffers: &mut Buffers,
        mut visit: impl FnMut(u32, u32, u64, &mut [u8]) -> Result<bool, BackupError>,
    ) -> Result<bool, BackupError> {
        let (segment, places) = self.segment(index)?;
        for place in places {
            if !self.records(segment.as_ref(), &place, buffers, &mut visit)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Opens a chunk and gives each of its records to `visit`, as above.
    fn records(
        &self,
        segment: &dyn Segment,
        place: &Place,
        Buffers { sealed, plain }: &mut Buffers,
        visit: &mut impl FnMut(u32, u32, u64, &mut [u8]) -> Result<bool, BackupError>,
    ) -> Result<bool, BackupError> {
        sealed.resize(place.len, 0);
        segment.read_exact_at(sealed, place.at).map_err(cut)?;
        self.sealer.open(place.index, place.index + 1 == self.manifest.chunks, sealed, plain)?;
        let mut rest = plain.as_mut_slice();
        let first_binds = self.manifest.marks_from.is_none();
        let bound = first_binds || place.index + 1 < self.manifest.chunks;
        if first_binds && place.index == 0 {
            let (head, tail) = rest.split_at_mut_checked(BINDING_LEN).ok_or(BackupError::Corrupt)?;
            self.check_binding(head)?;
            rest = tail;
        }
        while !rest.is_empty() {
            let (head, tail) = rest.split_first_chunk_mut::<RECORD_LEN>().ok_or(BackupError::Corrupt)?;
            let [a, b, c, d, e, f, g, h, place @ ..] = *head;
            let (kind, count) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
            let len = match kind {
                KIND_DATA => count as usize * BLOCK_LEN,
                KIND_BINDING => BINDING_LEN,
                _ => 0,
            };
            let (data, tail) = tail.split_at_mut_checked(len).ok_or(BackupError::Corrupt)?;
            if kind == KIND_BINDING {
                // Once, and at the end of all.
                if bound || !tail.is_empty() {
                    return Err(BackupError::Corrupt);
                }
                self.check_binding(data)?;
                return Ok(true);
            }
            if !visit(kind, count, u64::from_le_bytes(place), data)? {
                return Ok(false);
            }
            rest = tail;
        }
        if bound { Ok(true) } else { Err(BackupError::Corrupt) }
    }

    /// The clear manifest is the one that the sealed stream was made with.
    fn check_binding(&self, found: &[u8]) -> Result<(), BackupError> {
        if *found == self.manifest.binding() { Ok(()) } else { Err(BackupError::Corrupt) }
    }
}

/// What ends before it should is cut.
pub(crate) fn cut(e: io::Error) -> BackupError {
    if e.kind() == io::ErrorKind::UnexpectedEof { BackupError::Corrupt } else { e.into() }
}

/// How far a backup goes: what an increment begins after.
///
/// # Errors
/// See [`BackupError`].
pub fn read_marks(
    from: (&dyn BackupStore, &str),
    manifest: &BackupManifest,
    key: &StreamKey,
) -> Result<Marks, BackupError> {
    let reader = Reader::new(from, manifest, key);
    let (mut marks, mut buffers) = (Marks::new(), Buffers::default());
    let first = manifest.marks_from.unwrap_or(0) / SEGMENT_CHUNKS as u64;
    for index in first..reader.segment_count() {
        let more = reader.visit(index, &mut buffers, |kind, extent, sequence, _| {
            let is_mark = kind == KIND_MARK;
            if is_mark {
                marks.insert(extent, sequence);
            }
            // Nothing but marks comes first in version 3; later, blocks may share their segment.
            Ok(is_mark || manifest.marks_from.is_some())
        })?;
        if !more {
            break;
        }
    }
    Ok(marks)
}

/// Reads a backup with every core, and gives each piece to `visit`, in no order. Chunks are authenticated one at a
/// time, so a caller must discard everything if this fails.
///
/// # Errors
/// See [`BackupError`].
pub fn read_backup(
    from: (&dyn BackupStore, &str),
    manifest: &BackupManifest,
    key: &StreamKey,
    visit: impl Fn(Piece<'_>) -> Result<(), VolumeError> + Sync,
) -> Result<(), BackupError> {
    read_backup_from(from, manifest, key, 0, visit, |_| Ok(()))
}

/// As [`read_backup`], from a segment on; `read_before` is told, now and then, of a segment before which every one was read:
/// a caller that has noted it may begin there when it reads the same backup again.
///
/// # Errors
/// See [`BackupError`].
pub fn read_backup_from(
    from: (&dyn BackupStore, &str),
    manifest: &BackupManifest,
    key: &StreamKey,
    first: u64,
    visit: impl Fn(Piece<'_>) -> Result<(), VolumeError> + Sync,
    read_before: impl Fn(u64) -> Result<(), VolumeError> + Sync,
) -> Result<(), BackupError> {
    let reader = Reader::new(from, manifest, key);
    if manifest.chunks == 0 {
        return Err(BackupError::Corrupt);
    }
    // The segments to come, and those that are being read.
    let segments = Mutex::new((first..reader.segment_count(), BTreeSet::new()));
    on_every_core(|failed| {
        let mut buffers = Buffers::default();
        loop {
            let next = {
                let mut segments = segments.lock();
                let next = segments.0.next();
                segments.1.extend(next);
                next
            };
            let Some(index) = next.filter(|_| !failed()) else { return Ok(()) };
            let whole = reader.visit(index, &mut buffers, |kind, count, at, data| {
                match kind {
                    KIND_DATA => visit(Piece::Data(at, data))?,
                    KIND_HOLE => visit(Piece::Hole(at, u64::from(count) * BLOCK_LEN as u64))?,
                    KIND_MARK => {}
                    _ => return Err(BackupError::Corrupt),
                }
                Ok(!failed())
            })?;
            if !whole {
                return Ok(());
            }
            let before = {
                let mut segments = segments.lock();
                segments.1.remove(&index);
                segments.1.first().copied().unwrap_or(segments.0.start)
            };
            read_before(before)?;
        }
    })
}
