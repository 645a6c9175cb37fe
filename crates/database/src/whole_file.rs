//! Putting a file in its place: whole and durable, or not at all.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

/// Puts a file with this content at `path`, over one that is there.
pub(crate) fn put(path: &Path, content: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = File::create(&partial)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(partial, path)?;
    sync_dir_of(path)
}

/// Makes durable that a file has come to its directory, or has gone.
pub(crate) fn sync_dir_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()
}
