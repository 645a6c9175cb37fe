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
const VERSION: u32 = 3;
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
    #[error("`manifest.json` is not a manifest of version {VERSION}")]
    Manifest,
    /// The base is of another volume.
    #[error("the base is a backup of another volume, or of one since restored; take a full backup")]
    OtherVolume,
    /// The volume has fewer writes than the base.
    #[error("the volume is older than the base: it was put back to an earlier state; take a full backup")]
    VolumeOlder,
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

    /// The first bytes of the first chunk: ties the clear manifest to the sealed stream.
    pub(crate) fn binding(&self) -> [u8; 32] {
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
        if manifest.version == VERSION { Ok(manifest) } else { Err(BackupError::Manifest) }
    }
}
