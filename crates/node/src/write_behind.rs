//! Long sequential writes that leave the page cache to others.

use rustix::fs::{Advice, fadvise};
use std::{
    fs::File,
    sync::atomic::{AtomicU64, Ordering},
};

/// Bytes after which the kernel is told. What is on its way to the disk takes its time; so much may wait.
const STEP_LEN: u64 = 64 << 20;

/// Counts what is written to a file in one go, and has it written out and dropped from the page cache on the way: the
/// disk is busy from the start and not only at the end, and nobody else's pages make room for those of a backup.
#[derive(Debug, Default)]
pub(crate) struct WriteBehind(AtomicU64);

impl WriteBehind {
    /// Begins to write out what is dirty, and drops what is not. Advice: a failure costs only time.
    pub(crate) fn leave(file: &File) {
        _ = fadvise(file, 0, None, Advice::DontNeed);
    }

    pub(crate) fn wrote(&self, file: &File, len: u64) {
        let before = self.0.fetch_add(len, Ordering::Relaxed);
        if before / STEP_LEN != (before + len) / STEP_LEN {
            Self::leave(file);
        }
    }
}
