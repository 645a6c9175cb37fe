//! Full backups: a snapshot sealed under a key of its own, wrapped by the KEK.
//!
//! A backup is a directory: `manifest.json`, and `data.sealed` in chunks (`docs/formats/backup.md`). It is made
//! under another name and renamed when whole, so that a backup that exists is complete.

use crate::{Snapshot, VolumeError, layout::BLOCK_LEN};
use custody_envelope::{CHUNK_LEN, OpenError, Provider, RandomError, StreamKey, checksum};
use custody_types::{UnixMillis, WrappedKey};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read as _, Write as _},
    ops::ControlFlow,
    path::Path,
};

/// What a backup is, in clear: nothing here tells content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupManifest {
    /// Format version: 1.
    pub version: u32,
    /// The backup's random id; part of the associated data of its chunks.
    pub backup_id: [u8; 16],
    /// The volume it was taken of, by name.
    pub source: String,
    /// The volume's length.
    pub size_bytes: u64,
    /// When.
    pub create_time: UnixMillis,
    /// The backup's key, wrapped by the KEK version of that time.
    pub wrapped: WrappedKey,
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
    /// The manifest is not readable.
    #[error("`manifest.json` is missing or is not a manifest of version 1")]
    Manifest,
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The operating system gave no random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The backup's file system failed.
    #[error("the backup's file system failed")]
    Io(#[from] io::Error),
}

impl From<OpenError> for BackupError {
    fn from(_: OpenError) -> Self {
        Self::Corrupt
    }
}

impl BackupManifest {
    /// The first bytes of the first chunk: ties the clear manifest to the sealed stream.
    fn binding(&self) -> [u8; 32] {
        checksum(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads a backup's manifest.
    ///
    /// # Errors
    /// [`BackupError::Manifest`].
    pub fn read(dir: &Path) -> Result<Self, BackupError> {
        let bytes = fs::read(dir.join("manifest.json")).map_err(|_| BackupError::Manifest)?;
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|_| BackupError::Manifest)?;
        if manifest.version == 1 { Ok(manifest) } else { Err(BackupError::Manifest) }
    }
}

/// Writes a backup to `dir`, which must not exist. Whole or absent: a failure leaves nothing under that name.
/// Calls `progress` with blocks done and blocks in all; it may give the backup up.
///
/// # Errors
/// See [`BackupError`].
pub fn write_backup(
    dir: &Path,
    manifest: &BackupManifest,
    key: &StreamKey,
    snapshot: Snapshot,
    progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<(), BackupError> {
    if dir.exists() {
        return Err(BackupError::Exists);
    }
    let parent = dir.parent().ok_or(BackupError::Manifest)?;
    let name = dir.file_name().ok_or(BackupError::Manifest)?.to_string_lossy();
    let partial = parent.join(format!(".{name}.partial"));
    _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    let made = write_parts(&partial, manifest, key, snapshot, progress).and_then(|()| {
        fs::rename(&partial, dir)?;
        Ok(File::open(parent)?.sync_all()?)
    });
    if made.is_err() {
        _ = fs::remove_dir_all(&partial);
    }
    made
}

fn write_parts(
    dir: &Path,
    manifest: &BackupManifest,
    key: &StreamKey,
    snapshot: Snapshot,
    mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<(), BackupError> {
    let mut sealer = key.sealer(Provider::default(), manifest.backup_id);
    let mut out = BufWriter::with_capacity(2 * CHUNK_LEN, File::create_new(dir.join("data.sealed"))?);
    let mut plain = manifest.binding().to_vec();
    let mut sealed = Vec::with_capacity(CHUNK_LEN + 64);
    let mut put = |plain: &mut Vec<u8>, last: bool| -> Result<(), BackupError> {
        sealer.seal(plain, last, &mut sealed)?;
        out.write_all(&u32::try_from(sealed.len()).unwrap_or(u32::MAX).to_le_bytes())?;
        out.write_all(&sealed)?;
        plain.clear();
        Ok(())
    };
    let total = snapshot.blocks();
    let mut done = 0;
    snapshot.read::<BackupError>(|offset, block| {
        if plain.len() + 8 + block.len() > CHUNK_LEN {
            put(&mut plain, false)?;
            if progress(done, total).is_break() {
                return Err(BackupError::GivenUp);
            }
        }
        plain.extend_from_slice(&offset.to_le_bytes());
        plain.extend_from_slice(block);
        done += 1;
        Ok(())
    })?;
    put(&mut plain, true)?;
    if progress(done, total).is_break() {
        return Err(BackupError::GivenUp);
    }
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    let mut text = File::create_new(dir.join("manifest.json"))?;
    text.write_all(&serde_json::to_vec(manifest).unwrap_or_default())?;
    text.sync_all()?;
    Ok(File::open(dir)?.sync_all()?)
}

/// Reads a backup and gives each block with its offset to `visit`. Blocks are authenticated one chunk at a time,
/// so a caller must discard everything if this fails.
///
/// # Errors
/// See [`BackupError`].
pub fn read_backup(
    dir: &Path,
    manifest: &BackupManifest,
    key: &StreamKey,
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), VolumeError>,
) -> Result<(), BackupError> {
    let mut sealer = key.sealer(Provider::default(), manifest.backup_id);
    let file = File::open(dir.join("data.sealed"))?;
    let mut left = file.metadata()?.len();
    let mut input = BufReader::with_capacity(2 * CHUNK_LEN, file);
    let mut first = true;
    while left > 0 {
        let mut len = [0; 4];
        input.read_exact(&mut len).map_err(|_| BackupError::Corrupt)?;
        let len = u32::from_le_bytes(len);
        if len as usize > CHUNK_LEN + 64 || u64::from(len) + 4 > left {
            return Err(BackupError::Corrupt);
        }
        left -= u64::from(len) + 4;
        let mut sealed = vec![0; len as usize];
        input.read_exact(&mut sealed)?;
        let plain = sealer.open(&sealed, left == 0)?;
        let mut rest = &plain[..];
        if std::mem::take(&mut first) {
            rest = rest.strip_prefix(&manifest.binding()).ok_or(BackupError::Corrupt)?;
        }
        while let Some((offset, tail)) = rest.split_first_chunk::<8>() {
            let (block, tail) = tail.split_at_checked(BLOCK_LEN).ok_or(BackupError::Corrupt)?;
            visit(u64::from_le_bytes(*offset), block)?;
            rest = tail;
        }
    }
    if first { Err(BackupError::Corrupt) } else { Ok(()) }
}

/// Removes a backup, or a directory of backups. Renamed first, so that what is half removed is not taken for one.
/// False where there is none.
///
/// # Errors
/// The file system failed; calling it again goes on.
pub fn remove_backup(dir: &Path) -> io::Result<bool> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return Ok(false) };
    let going = parent.join(format!(".{}.deleted", name.to_string_lossy()));
    let cut_short = going.exists();
    if cut_short {
        fs::remove_dir_all(&going)?;
    }
    match fs::rename(dir, &going) {
        Ok(()) => fs::remove_dir_all(&going)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(cut_short),
        Err(e) => return Err(e),
    }
    File::open(parent)?.sync_all()?;
    Ok(true)
}
