//! Backups: what a snapshot holds, or what of it has changed since another backup, sealed under a key of its own that
//! the KEK wraps.
//!
//! A backup is chunks, in segments, and a manifest, which comes last (`docs/formats/backup.md`).

use crate::{BackupStore, MANIFEST_NAME, VolumeError, layout::BLOCK_LEN};
use custody_envelope::{CHUNK_LEN, OpenError, RandomError, checksum};
use custody_types::{UnixMillis, WrappedKey};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, io};

/// The format's version.
const VERSION: u32 = 5;
/// The version before, which is read: its binding has the wrapped key in it.
const VERSION_4: u32 = 4;
/// The version before that, which is read: its marks and its binding come first.
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
    /// The backup's key, wrapped by the KEK version of that time, or of when it was re-wrapped.
    pub wrapped: WrappedKey,
    /// As `wrapped` was when the backup was made, where it was re-wrapped and its version's binding has that: 3 and 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<WrappedKey>,
    /// The identity that the key was wrapped as. Empty before version 5.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub managed_identity: String,
    /// Its chunks; [`write_backup`](crate::write_backup) sets it.
    pub chunks: u64,
    /// The chunk that its marks begin with, after all blocks; set there too. None in version 3, where they come first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marks_from: Option<u64>,
}

/// What of a manifest its binding has.
#[derive(Serialize)]
struct Bound<'a> {
    version: u32,
    backup_id: &'a [u8; 16],
    source: &'a str,
    volume_id: &'a [u8; 16],
    base: Option<&'a Base>,
    size_bytes: u64,
    create_time: UnixMillis,
    managed_identity: &'a str,
    chunks: u64,
    marks_from: Option<u64>,
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
    #[error("`manifest.json` is not a manifest of version {VERSION_3} to {VERSION}")]
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

    /// Ties the clear manifest to the sealed stream: the last bytes of it, or the first in version 3. What the stream key is
    /// wrapped with is in no binding since version 5: another key than the right one opens nothing.
    pub(crate) fn binding(&self) -> [u8; BINDING_LEN] {
        let text = if self.version == VERSION {
            serde_json::to_vec(&Bound {
                version: self.version,
                backup_id: &self.backup_id,
                source: &self.source,
                volume_id: &self.volume_id,
                base: self.base.as_ref(),
                size_bytes: self.size_bytes,
                create_time: self.create_time,
                managed_identity: &self.managed_identity,
                chunks: self.chunks,
                marks_from: self.marks_from,
            })
        } else {
            let mut made = self.clone();
            if let Some(bound) = made.bound.take() {
                made.wrapped = bound;
            }
            serde_json::to_vec(&made)
        };
        checksum(&text.unwrap_or_default())
    }

    /// Puts the backup's key, wrapped anew, in place of what its manifest has. A crash leaves the one or the other.
    ///
    /// # Errors
    /// The store failed; the old one stands.
    pub fn rewrap(
        &self,
        store: &dyn BackupStore,
        name: &str,
        wrapped: WrappedKey,
    ) -> Result<(), BackupError> {
        let mut next = Self { wrapped, ..self.clone() };
        if self.version != VERSION && self.bound.is_none() {
            next.bound = Some(self.wrapped.clone());
        }
        let text = serde_json::to_vec(&next).map_err(io::Error::from)?;
        Ok(store.put(&format!("{name}/{MANIFEST_NAME}"), &text)?)
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
            VERSION if manifest.bound.is_some() => false,
            VERSION | VERSION_4 => manifest.marks_from.is_some_and(|from| from < manifest.chunks),
            VERSION_3 => manifest.marks_from.is_none(),
            _ => false,
        };
        if known { Ok(manifest) } else { Err(BackupError::Manifest) }
    }
}
