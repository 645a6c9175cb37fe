//! The superblock: what a volume is, and its key in wrapped form.

use crate::layout::{SUPERBLOCK_LEN, VOLUME_LEN_MAX, VOLUME_LEN_MIN};
use custody_envelope::VolumeKeys;
use custody_types::{UnixMillis, WrappedKey};
use serde::{Deserialize, Serialize};
use std::{fs::File, io, os::unix::fs::FileExt as _, path::PathBuf};

const MAGIC: &[u8; 8] = b"CUSTODYV";
const VERSION: u32 = 1;
/// Magic, version, length, sequence before the text; two 32-byte checks after it.
const HEAD_LEN: usize = 24;
const CHECK_LEN: usize = 32;

/// Who manages the key that protects a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum ProtectorKind {
    /// The customer's key.
    CustomerManaged,
    /// A key that only this process ever had, in memory: for temporary files.
    Ephemeral,
    /// The platform's own vault.
    ServiceManaged,
}

/// What protects a volume's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protector {
    /// Who manages it.
    pub kind: ProtectorKind,
    /// The key as it was named: with a version it stays with that one, without it follows rotation.
    pub key: String,
    /// The identity that the node acts as at the vault.
    pub managed_identity: String,
    /// The volume key, wrapped. None for ephemeral volumes.
    pub wrapped: Option<WrappedKey>,
}

/// A volume's fixed facts and its protector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superblock {
    /// The volume's random id; part of the associated data of everything in it.
    pub volume_id: [u8; 16],
    /// Bytes that clients see.
    pub size_bytes: u64,
    /// What protects the key.
    pub protector: Protector,
    /// The protector before it, until the change to the present one is settled: what a change that fails goes back to.
    #[serde(default)]
    pub former: Option<Protector>,
    /// Whether an anchor outside the file knows how far the volume has come.
    #[serde(default)]
    pub anchored: bool,
    /// Data keys made before this are retired: what they seal is re-encrypted.
    #[serde(default)]
    pub data_keys_retired_before: UnixMillis,
    /// How far its restore has come, while it is not whole.
    #[serde(default)]
    pub restoring: Option<Restoring>,
    /// Counts the superblock's writes.
    #[serde(skip)]
    pub sequence: u64,
}

/// How far the restore of a volume has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restoring {
    /// Which backups are restored: a checksum of their ids, in the order in which they are read.
    pub chain: [u8; 32],
    /// The one of them that is read now.
    pub part: u32,
    /// Its segments before this one are restored, and durable.
    pub segment: u64,
}

/// A volume file whose superblock cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// No copy is whole.
    #[error("not a volume, or its superblock is damaged: neither copy has a good checksum")]
    Damaged,
    /// Made by a newer version.
    #[error("the volume has format version {0}; this version reads {VERSION}")]
    Version(u32),
    /// The copies are whole but were not written under this volume's key.
    #[error("the superblock was altered: it does not authenticate under the volume's key")]
    Forged,
    /// The file is shorter than it was made.
    #[error("the volume's file was cut: it has {len} bytes of {whole}")]
    Cut {
        /// Bytes there are.
        len: u64,
        /// Bytes there should be.
        whole: u64,
    },
    /// The file is older than its anchor knows it to have been.
    #[error(
        "the volume's file was put back to an earlier state: its superblock is older than `{0}` knows; put the newest file back, or empty the anchor to take the volume as it is"
    )]
    RolledBack(PathBuf),
    /// There is no anchor.
    #[error(
        "the volume's anchor `{0}` is missing: put it back, or make an empty file there to take the volume as it is"
    )]
    AnchorMissing(PathBuf),
    /// The anchor does not authenticate.
    #[error("the volume's anchor `{0}` is damaged: put it back, or empty it to take the volume as it is")]
    AnchorDamaged(PathBuf),
    /// A size that is not offered.
    #[error("`size_bytes` is {0}; use a multiple of 4096 from 1 MiB to 4 TiB")]
    Size(u64),
    /// Smaller than it is.
    #[error(
        "`size_bytes` is {asked}, and the volume has {now}: volumes only grow; restore a backup of what is in it into a smaller one"
    )]
    Shrink {
        /// Bytes that it has.
        now: u64,
        /// Bytes that were asked for.
        asked: u64,
    },
    /// The file system failed.
    #[error("the volume's file failed")]
    Io(#[from] io::Error),
}

impl Superblock {
    /// Checks a size before anything is made.
    ///
    /// # Errors
    /// [`SuperblockError::Size`].
    pub fn check_size(size_bytes: u64) -> Result<(), SuperblockError> {
        let ok = size_bytes.is_multiple_of(4096) && (VOLUME_LEN_MIN..=VOLUME_LEN_MAX).contains(&size_bytes);
        if ok { Ok(()) } else { Err(SuperblockError::Size(size_bytes)) }
    }

    /// Reads the newer whole copy. Its checksum finds damage; only [`Superblock::authenticate`], with the key,
    /// finds forgery.
    ///
    /// # Errors
    /// See [`SuperblockError`].
    pub fn read(file: &File) -> Result<Self, SuperblockError> {
        let decoded = Self::decoded(file)?;
        let other = decoded.iter().find_map(|copy| copy.as_ref().err().copied());
        let newest = decoded.into_iter().flatten().max_by_key(|found| found.sequence);
        newest.ok_or_else(|| other.map_or(SuperblockError::Damaged, SuperblockError::Version))
    }

    /// Reads every whole copy, the newest first: what one of them needs, the file may need.
    ///
    /// # Errors
    /// The file system failed.
    pub fn copies(file: &File) -> io::Result<Vec<Self>> {
        let mut copies: Vec<Self> = Self::decoded(file)?.into_iter().flatten().collect();
        copies.sort_by_key(|copy| std::cmp::Reverse(copy.sequence));
        Ok(copies)
    }

    /// The whole copies, or of which other version one is.
    fn decoded(file: &File) -> io::Result<Vec<Result<Self, u32>>> {
        let mut decoded = Vec::new();
        for copy in 0..2u64 {
            let mut bytes = vec![0; SUPERBLOCK_LEN];
            match file.read_exact_at(&mut bytes, copy * SUPERBLOCK_LEN as u64) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(e) => return Err(e),
                Ok(()) => decoded.extend(Self::decode(&bytes)),
            }
        }
        Ok(decoded)
    }

    /// Checks that the superblock was written under this volume's key.
    ///
    /// # Errors
    /// [`SuperblockError::Forged`].
    pub fn authenticate(&self, file: &File, keys: &VolumeKeys) -> Result<(), SuperblockError> {
        let mut stored = vec![0; SUPERBLOCK_LEN];
        file.read_exact_at(&mut stored, (self.sequence & 1) * SUPERBLOCK_LEN as u64)?;
        // Over the stored bytes, and not over what this build would write: another build's text has other fields.
        let authentic = Self::decode(&stored).and_then(Result::ok).is_some_and(|found| found == *self)
            && Self::signed_len(&stored).is_some_and(|len| {
                let (signed, rest) = stored.split_at(len);
                rest.starts_with(&keys.header_tag(signed))
            });
        if authentic { Ok(()) } else { Err(SuperblockError::Forged) }
    }

    /// Bytes before the tag.
    fn signed_len(bytes: &[u8]) -> Option<usize> {
        let len = u32::from_le_bytes(*bytes.get(12..)?.first_chunk()?) as usize;
        (HEAD_LEN + len <= bytes.len()).then_some(HEAD_LEN + len)
    }

    /// Writes the next copy over the older one and makes it durable.
    ///
    /// # Errors
    /// The file system failed; the copy before is untouched.
    pub fn write(&mut self, file: &File, keys: &VolumeKeys) -> Result<(), SuperblockError> {
        let next = Self { sequence: self.sequence + 1, ..self.clone() };
        let bytes = next.encode(keys);
        if bytes.len() > SUPERBLOCK_LEN {
            return Err(io::Error::other("the protector does not fit the superblock").into());
        }
        file.write_all_at(&bytes, (next.sequence & 1) * SUPERBLOCK_LEN as u64)?;
        file.sync_all()?;
        self.sequence = next.sequence;
        Ok(())
    }

    fn encode(&self, keys: &VolumeKeys) -> Vec<u8> {
        let text = serde_json::to_vec(self).unwrap_or_default();
        let mut out = Vec::with_capacity(HEAD_LEN + text.len() + 2 * CHECK_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&text);
        let tag = keys.header_tag(&out);
        out.extend_from_slice(&tag);
        let sum = custody_envelope::checksum(&out);
        out.extend_from_slice(&sum);
        out
    }

    /// `None`: not a superblock or damaged. `Some(Err)`: of another version.
    fn decode(bytes: &[u8]) -> Option<Result<Self, u32>> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        if u32::from_le_bytes(*version) != VERSION {
            return Some(Err(u32::from_le_bytes(*version)));
        }
        let len = u32::from_le_bytes(*len) as usize;
        let text = rest.get(..len)?;
        let summed = bytes.get(..HEAD_LEN + len + CHECK_LEN)?;
        let sum = bytes.get(summed.len()..summed.len() + CHECK_LEN)?;
        if custody_envelope::checksum(summed) != sum {
            return None;
        }
        let mut found: Self = serde_json::from_slice(text).ok()?;
        found.sequence = u64::from_le_bytes(*sequence);
        Self::check_size(found.size_bytes).ok()?;
        Some(Ok(found))
    }
}
