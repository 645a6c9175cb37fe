//! Putting a file in its place: whole and durable, or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Puts a file with this content at `dir/name`, over one that is there.
pub(crate) fn put(dir: &Path, name: &Path, content: &[u8]) -> io::Result<()> {
    let (path, partial) = (dir.join(name), dir.join(name).with_extension("partial"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    File::open(dir)?.sync_all()
}
