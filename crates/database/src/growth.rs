//! The growth of a file system onto a larger device, whatever cuts it short.
//!
//! `resize2fs` writes in place and keeps no journal: a crash leaves what `e2fsck` calls inconsistent, and mends only when told
//! "yes" to everything; and "yes" to everything also writes over blocks that could not be read for a moment. So before a growth
//! the file system is checked strictly, and a mark is made durable. While it is there, the few findings that a growth can
//! leave on a file system without fault count as safe to mend: the test of all cuts knows no others.

use crate::{
    DatabaseError,
    command::{CommandError, run, start},
    mark::Mark,
};
use std::process::{Command, Stdio};

/// What the mark says: for `e2fsck`, which it configures (`e2fsck.conf(5)`). The resize inode is not valid; illegal
/// blocks in an inode, too many of them, and the inode's clearing: blocks beyond the former end in the resize inode.
const FINDINGS: &str = "\
# A growth of this file system was begun: see `growth.rs` of custody-database.
[problems]
0x000030 = {
\tpreen_ok = true
}
0x01000e = {
\tpreen_ok = true
}
0x010010 = {
\tpreen_ok = true
}
0x010011 = {
\tpreen_ok = true
}
";

/// The second superblock of our file systems, where they are large enough for one.
const BACKUP_SUPERBLOCK: [&str; 4] = ["-b", "32768", "-B", "4096"];
/// What `e2fsck` ends with: nothing to mend, or all of it mended.
const CLEAN: [i32; 2] = [0, 1];
/// The superblock does not authenticate, among others.
const OPERATIONAL_ERROR: i32 = 8;

/// Checks a file system that is not mounted, all of it, and puts right what can be without a loss.
pub(crate) fn check(device: &str, mark: &Mark) -> Result<(), DatabaseError> {
    let begun = mark.is_set().then_some(mark);
    match e2fsck(&["-f", "-p", device], begun) {
        Err((Some(OPERATIONAL_ERROR), _)) if begun.is_some() => {
            let arguments = [&["-f", "-p"], &BACKUP_SUPERBLOCK[..], &[device]].concat();
            Ok(e2fsck(&arguments, begun)?)
        }
        done => Ok(done?),
    }
}

/// Makes a file system larger that is not mounted and was checked; whoever asked takes the mark away. Not while it is mounted: that asks for more rights than root
/// has in a container.
pub(crate) fn grow(device: &str, blocks: u64, mark: &Mark) -> Result<(), DatabaseError> {
    mark.set(FINDINGS)?;
    Ok(run("resize2fs", &[device, &blocks.to_string()]).map(drop)?)
}

/// How it ended, where it ended by itself, and what it said.
type Failure = (Option<i32>, CommandError);

impl From<Failure> for DatabaseError {
    fn from((_, e): Failure) -> Self {
        e.into()
    }
}

fn e2fsck(arguments: &[&str], mark: Option<&Mark>) -> Result<(), Failure> {
    let failed = |status: String, said: &str| CommandError::new("e2fsck", status, said);
    let mut command = Command::new("e2fsck");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(mark) = mark {
        command.env("E2FSCK_CONFIG", mark.path());
    }
    let child = start(&mut command).map_err(|e| (None, e))?;
    let output =
        child.wait_with_output().map_err(|e| (None, failed("not awaited".to_owned(), &e.to_string())))?;
    match output.status.code() {
        Some(code) if CLEAN.contains(&code) => Ok(()),
        code => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            Err((code, failed(output.status.to_string(), &said)))
        }
    }
}

#[cfg(test)]
mod tests;
