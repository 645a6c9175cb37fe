//! Backups: what a snapshot holds, or what of it has changed since another backup, sealed under a key of its own that
//! the KEK wraps.
//!
//! A backup is chunks, in segments, and a manifest, which comes last (`docs/formats/backup.md`).

use crate::{BackupStore, VolumeError, layout::BLOCK_LEN};
use custody_envelope::{CHUNK_LEN, OpenError, RandomError, checksum};
use custody_types::{UnixMillis, WrappedKey};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, io};

/// The format's version.
const VERSION: u32 = 4;
/// The version before, which is read: its marks and its binding come first.
const VERSION_3: u32 = 3;
/// Chunks in a segment, at most: few objects, and each small enough to be held in memory.
pub(crate) const SEGMENT_CHUNKS: usize = 16;
/// Bytes of a record's head in a chunk: kind u32, count u32, place u64.
pub(crate) const RECORD_LEN: usize = 16;
/// Blocks in a chunk of data, each with a record of its own at worst.
pub(crate) const CHUNK_BLOCKS: usize = CHUNK_LEN / (RECORD_LEN + BLOCK_LEN);
/// `count` blocks of data, which follow; `place` is their byte offset in the volume.
pub(crate) const KIND_DATA: u32 = 1;
/// `count` blocks of zeros at the byte offset `place`.
pub(crate) const KIND_HOLE: u32 = 2;
/// Extent `count` is backed up to its write `place`.
pub(crate) const KIND_MARK: u32 = 3;
/// The manifest's binding follows. The last record.
pub(crate) const KIND_BINDING: u32 = 4;
/// Bytes of a binding: SHA-256.
pub(crate) const BINDING_LEN: usize = 32;

/// How far each extent is backed up: an increment has the writes after it.
pub type Marks = BTreeMap<u32, u64>;

/// What a backup is, in clear: nothing here tells content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupManifest {
    /// Format version: [`BackupManifest::VERSION`].
    pub version: u32,
    /// The backup's random id; part of the associated data of its chunks.
    pub backup_id: [u8; 16],
    /// The volume it was taken of, by name.
    pub source: String,
    /// The random id of that volume, which a restored copy has not.
    pub volume_id: [u8; 16],
    /// The backup that this one adds to; none if it is full.
    pub base: Option<Base>,
    /// The volume's length.
    pub size_bytes: u64,
    /// When.
    pub create_time: UnixMillis,
    /// The backup's key, wrapped by the KEK version of that time.
    pub wrapped: WrappedKey,
    /// Its chunks; [`write_backup`](crate::write_backup) sets it.
    pub chunks: u64,
    /// The chunk that its marks begin with, after all blocks; set there too. None in version 3, where they come first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marks_from: Option<u64>,
}

/// What an increment adds to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Where it is, under the node's directory of backups.
    pub backup: String,
    /// Its random id.
    pub backup_id: [u8; 16],
}

/// A backup that was not made or not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// There is one of this name.
    #[error("a backup exists at this place already; name another")]
    Exists,
    /// Whoever wanted it has gone.
    #[error("the backup was given up, and nothing of it stays")]
    GivenUp,
    /// It was altered, cut, mixed with another, or is of another key.
    #[error("the backup does not authenticate: it was altered, cut, or belongs to another key")]
    Corrupt,
    /// There is none of this name.
    #[error("the backup does not exist")]
    Missing,
    /// The manifest is not readable.
    #[error("`manifest.json` is not a manifest of version {VERSION} or {VERSION_3}")]
    Manifest,
    /// The base is of another volume.
    #[error("the base is a backup of another volume, or of one since restored; take a full backup")]
    OtherVolume,
    /// The volume has fewer writes than the base.
    #[error("the volume is older than the base: it was put back to an earlier state; take a full backup")]
    VolumeOlder,
    /// Writes waited long enough for the store to take what they were about to replace.
    #[error(
        "the volume was written to faster than the store took the backup; try again when less is written, or with a faster store"
    )]
    Overtaken,
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The operating system gave no random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The store failed.
    #[error("the store of backups failed: {0}")]
    Io(#[from] io::Error),
}

impl From<OpenError> for BackupError {
    fn from(_: OpenError) -> Self {
        Self::Corrupt
    }
}

impl BackupManifest {
    /// The format's version.
    pub const VERSION: u32 = VERSION;

    /// Ties the clear manifest to the sealed stream: the last bytes of it, or the first in version 3.
    pub(crate) fn binding(&self) -> [u8; BINDING_LEN] {
        checksum(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads a backup's manifest.
    ///
    /// # Errors
    /// [`BackupError::Missing`], [`BackupError::Manifest`], or the store failed.
    pub fn read(store: &dyn BackupStore, name: &str) -> Result<Self, BackupError> {
        let bytes = store.manifest(name).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => BackupError::Missing,
            _ => e.into(),
        })?;
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|_| BackupError::Manifest)?;
        let known = match manifest.version {
            VERSION => manifest.marks_from.is_some_and(|from| from < manifest.chunks),
            VERSION_3 => manifest.marks_from.is_none(),
            _ => false,
        };
        if known { Ok(manifest) } else { Err(BackupError::Manifest) }
    }
}
