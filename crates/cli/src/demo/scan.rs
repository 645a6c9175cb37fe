//! Searching files for bytes that must not be there.

use anyhow::Context as _;
use rustix::fs::{SeekFrom, seek};
use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// What a search covered.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Files with the bytes.
    pub(crate) files: Vec<PathBuf>,
    /// Files read.
    pub(crate) searched: usize,
    /// Bytes read; holes of sparse files hold nothing and are passed over.
    pub(crate) bytes: u64,
}

/// Searches every regular file below `dir` on its own file system. Mounted file systems are what PostgreSQL sees
/// in clear, on purpose, and are no storage.
pub(crate) fn search(dir: &Path, needle: &[u8]) -> anyhow::Result<Found> {
    let mut found = Found::default();
    let device = dir.symlink_metadata()?.dev();
    walk(dir, device, needle, &mut found)?;
    Ok(found)
}

fn walk(dir: &Path, device: u64, needle: &[u8], found: &mut Found) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("`{}`", dir.display()))? {
        let path = entry?.path();
        // Gone meanwhile: PostgreSQL and the services make and remove files while this runs.
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            walk(&path, device, needle, found)?;
        } else if metadata.is_file() {
            found.searched += 1;
            if holds(&path, needle, &mut found.bytes)? {
                found.files.push(path);
            }
        }
    }
    Ok(())
}

fn holds(path: &Path, needle: &[u8], bytes: &mut u64) -> anyhow::Result<bool> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let Ok(start) = seek(&file, SeekFrom::Data(at)) else { break };
        let end = seek(&file, SeekFrom::Hole(start)).unwrap_or(len);
        seek(&file, SeekFrom::Start(start))?;
        let (mut left, mut kept) = (end - start, 0);
        while left > 0 {
            let room = buffer.get_mut(kept..).unwrap_or_default();
            let want = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = file.read(room.get_mut(..want).unwrap_or_default())?;
            if read == 0 {
                break;
            }
            *bytes += read as u64;
            left -= read as u64;
            let filled = kept + read;
            if buffer.get(..filled).unwrap_or_default().windows(needle.len()).any(|w| w == needle) {
                return Ok(true);
            }
            // What may be the beginning of the needle is looked at again with what follows.
            kept = (needle.len() - 1).min(filled);
            buffer.copy_within(filled - kept..filled, 0);
        }
        at = end;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn finds_across_buffers_and_behind_holes() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("f")).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(&vec![b'x'; 3 << 20], 512 << 20).unwrap();
        assert!(search(dir.path(), b"needle").unwrap().files.is_empty());
        file.write_all_at(b"needle", (512 << 20) + (1 << 20) - 3).unwrap();
        let found = search(dir.path(), b"needle").unwrap();
        assert_eq!(found.files.len(), 1);
        assert!(found.bytes < 16 << 20);
    }
}
