//! A file that says that something was begun, and has not ended.

use crate::{DatabaseError, whole_file};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Beside the place where a file system is mounted, on the node's own disk.
#[derive(Clone, Debug)]
pub(crate) struct Mark(PathBuf);

impl Mark {
    /// A file system is being made.
    pub(crate) fn making(dir: &Path) -> Self {
        Self(dir.with_extension("making"))
    }

    /// A file system is being made larger.
    pub(crate) fn growing(dir: &Path) -> Self {
        Self(dir.with_extension("growing"))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Whether it is there.
    pub(crate) fn is_set(&self) -> bool {
        self.0.exists()
    }

    /// Sets it, durably: before what it speaks of is begun.
    pub(crate) fn set(&self, content: &str) -> Result<(), DatabaseError> {
        Ok(whole_file::put(&self.0, content.as_bytes())?)
    }

    /// Takes it away, durably.
    pub(crate) fn clear(&self) -> Result<(), DatabaseError> {
        if self.is_set() {
            fs::remove_file(&self.0)?;
            whole_file::sync_dir_of(&self.0)?;
        }
        Ok(())
    }
}
