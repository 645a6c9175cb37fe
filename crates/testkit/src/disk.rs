//! A file system of its own, so that its disk can be made bad without harming another.

use anyhow::ensure;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// An ext4 file system in a file, mounted: root is needed. Unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Makes `image` of so many bytes and mounts it.
    ///
    /// # Errors
    /// Its programs (e2fsprogs, mount) are missing, or refused.
    pub fn mount(image: &Path, at: &Path, size_bytes: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(at)?;
        File::create(image)?.set_len(size_bytes)?;
        let (image, place) = (image.display().to_string(), at.display().to_string());
        run("mkfs.ext4", &["-q", "-m", "0", &image])?;
        run("mount", &["-o", "loop", &image, &place])?;
        Ok(Self { at: at.to_owned() })
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }

    /// Uses all of it up: most of it is taken at once, the rest written to.
    ///
    /// # Errors
    /// `dd` is missing.
    pub fn fill(&self) -> anyhow::Result<()> {
        let file = File::create(self.filler())?;
        let free = rustix::fs::statvfs(&self.at)?;
        let most = (free.f_bavail * free.f_frsize).saturating_sub(1 << 20).max(1);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, most)?;
        let to = format!("of={}", self.filler().display());
        // It ends with the error that is wanted.
        Command::new("dd").args(["if=/dev/zero", &to, "bs=64k", "oflag=append", "conv=notrunc"]).output()?;
        Ok(())
    }

    /// Frees what [`Disk::fill`] used.
    ///
    /// # Errors
    /// It was not filled.
    pub fn free(&self) -> std::io::Result<()> {
        fs::remove_file(self.filler())
    }

    /// Lets writes and flushes hang.
    ///
    /// # Errors
    /// `fsfreeze` is missing, or refused.
    pub fn freeze(&self) -> anyhow::Result<()> {
        run("fsfreeze", &["-f", &self.at.display().to_string()])
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// It was not frozen.
    pub fn thaw(&self) -> anyhow::Result<()> {
        run("fsfreeze", &["-u", &self.at.display().to_string()])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        _ = self.thaw();
        _ = run("umount", &["-l", &self.at.display().to_string()]);
    }
}
