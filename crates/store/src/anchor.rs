//! The anchor: the number of a store's last commit, in a file outside the store (`docs/formats/anchor.md`).
//!
//! Two slots take turns, so that a write that is cut short leaves the one before.

use aws_lc_rs::hmac;
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

const MAGIC: &[u8; 8] = b"CUSTANC1";
/// Bytes of a slot: magic, commit (little-endian u64), zeroes, tag. Each has a sector for itself.
const SLOT_LEN: u64 = 4096;
const USED: usize = 64;

#[derive(Debug)]
pub(crate) struct Anchor {
    path: PathBuf,
    file: File,
    commit: Option<u64>,
}

/// What the tag is over.
fn message(commit: u64) -> Vec<u8> {
    [b"anchor".as_slice(), &commit.to_le_bytes()].concat()
}

impl Anchor {
    /// Opens the anchor, or makes an empty one.
    pub(crate) fn open(path: &Path, key: &hmac::Key) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        let commit = [0, 1].iter().filter_map(|slot| read(&file, *slot, key)).max();
        Ok(Self { path: path.to_owned(), file, commit })
    }

    /// The number it holds, if it holds one.
    pub(crate) fn commit(&self) -> Option<u64> {
        self.commit
    }

    /// Whether nothing was ever written to it, under any key.
    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.len() == 0)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Holds `commit` from now on; on disk when it returns. A smaller number than before replaces both slots.
    pub(crate) fn write(&mut self, commit: u64, key: &hmac::Key) -> io::Result<()> {
        let mut slot = [0; USED];
        let (head, rest) = slot.split_at_mut(16);
        head.copy_from_slice(&[*MAGIC, commit.to_le_bytes()].concat());
        rest.split_at_mut(16).1.copy_from_slice(hmac::sign(key, &message(commit)).as_ref());
        self.file.write_all_at(&slot, (commit % 2) * SLOT_LEN)?;
        if self.commit.is_some_and(|before| before > commit) {
            self.file.write_all_at(&[0; USED], ((commit + 1) % 2) * SLOT_LEN)?;
        }
        self.file.sync_data()?;
        self.commit = Some(commit);
        Ok(())
    }
}

fn read(file: &File, slot: u64, key: &hmac::Key) -> Option<u64> {
    let mut bytes = [0; USED];
    file.read_exact_at(&mut bytes, slot * SLOT_LEN).ok()?;
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (commit, rest) = rest.split_first_chunk::<8>()?;
    let commit = u64::from_le_bytes(*commit);
    (magic == MAGIC && hmac::verify(key, &message(commit), rest.get(16..)?).is_ok()).then_some(commit)
}
