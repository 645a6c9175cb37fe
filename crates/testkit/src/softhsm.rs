//! An HSM for tests: SoftHSM 2 with one token.

use anyhow::{Context as _, ensure};
use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];
const PIN: &str = "73915";

/// A token in a directory, named `custody`.
#[derive(Debug)]
pub struct SoftHsm {
    dir: PathBuf,
    module: PathBuf,
}

impl SoftHsm {
    /// Makes a token.
    ///
    /// # Errors
    /// SoftHSM is not installed.
    pub fn make(dir: &Path) -> anyhow::Result<Self> {
        let module = MODULES.iter().map(PathBuf::from).find(|m| m.exists());
        let module = module.context("SoftHSM is not installed; `scripts/install tests` does it")?;
        fs::create_dir_all(dir.join("tokens"))?;
        let hsm = Self { dir: dir.to_owned(), module };
        fs::write(hsm.dir.join("pin"), PIN)?;
        fs::set_permissions(hsm.dir.join("pin"), fs::Permissions::from_mode(0o600))?;
        let tokens = hsm.dir.join("tokens");
        fs::write(
            hsm.configuration(),
            format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display()),
        )?;
        let made = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", "custody", "--pin", PIN, "--so-pin", "4711"])
            .env("SOFTHSM2_CONF", hsm.configuration())
            .output()?;
        ensure!(made.status.success(), "softhsm2-util: {}", String::from_utf8_lossy(&made.stderr));
        Ok(hsm)
    }

    fn configuration(&self) -> PathBuf {
        self.dir.join("softhsm2.conf")
    }

    /// Gives `custody up` what it needs to use it.
    pub(crate) fn configure<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .arg("--hsm-module")
            .arg(&self.module)
            .args(["--hsm-token", "custody", "--hsm-pin-file"])
            .arg(self.dir.join("pin"))
            .env("SOFTHSM2_CONF", self.configuration())
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
