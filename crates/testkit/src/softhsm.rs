//! The HSM of software of a deployment for tests, whose plug can be pulled.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The token of a deployment that was started with `--soft-hsm`: files in its directory.
#[derive(Debug)]
pub struct SoftHsm {
    dir: PathBuf,
}

impl SoftHsm {
    /// Of a deployment's directory.
    pub(crate) fn of(deployment: &Path) -> Self {
        Self { dir: deployment.join("hsm") }
    }

    /// Pulls the plug: the token is gone.
    ///
    /// # Errors
    /// The file system failed.
    pub fn take_away(&self) -> io::Result<()> {
        fs::rename(self.dir.join("tokens"), self.dir.join("away"))?;
        fs::create_dir(self.dir.join("tokens"))
    }

    /// The token is back.
    ///
    /// # Errors
    /// The file system failed.
    pub fn bring_back(&self) -> io::Result<()> {
        fs::remove_dir(self.dir.join("tokens"))?;
        fs::rename(self.dir.join("away"), self.dir.join("tokens"))
    }
}
