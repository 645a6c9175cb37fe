//! A volume as a block device: the kernel's NBD client where there is one, else nbdfuse and a loop device.

use crate::{
    DatabaseError,
    command::{run, start},
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// Where a volume is served.
#[derive(Clone, Debug)]
pub struct Source {
    /// The storage node's Unix socket.
    pub socket: PathBuf,
    /// The export.
    pub export: String,
}

/// How long a device may take to appear.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(15);
/// Between looks at whether something has come about.
const LOOK: Duration = Duration::from_millis(5);

/// An attached volume.
#[derive(Debug)]
pub struct Attachment {
    dir: PathBuf,
    /// The block device.
    pub device: String,
    bridge: Option<Child>,
}

impl Attachment {
    /// Attaches a volume; `dir` is used for the bridge and must be the attachment's own.
    ///
    /// # Errors
    /// The volume is not served, or no device could be had.
    pub fn attach(source: &Source, dir: &Path) -> Result<Self, DatabaseError> {
        fs::create_dir_all(dir)?;
        if let Some(device) = free_kernel_device() {
            let socket = source.socket.display().to_string();
            run("nbd-client", &["-unix", &socket, "-name", &source.export, &device, "-block-size", "4096"])?;
            return Ok(Self { dir: dir.to_owned(), device, bridge: None });
        }
        let file = dir.join("volume");
        let uri = format!("nbd+unix:///{}?socket={}", source.export, source.socket.display());
        let log = File::create(dir.with_extension("log"))?;
        let mut command = Command::new("nbdfuse");
        command.arg(&file).arg(&uri).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let bridge = start(&mut command)?;
        let mut attachment = Self { dir: dir.to_owned(), device: String::new(), bridge: Some(bridge) };
        let until = Instant::now() + ATTACH_TIMEOUT;
        while fs::metadata(&file).map_or(0, |m| m.len()) == 0 {
            let ended = attachment.bridge.as_mut().is_some_and(|b| b.try_wait().is_ok_and(|s| s.is_some()));
            if ended || Instant::now() > until {
                return Err(DatabaseError::Attach(source.export.clone()));
            }
            sleep(LOOK);
        }
        let file = file.display().to_string();
        attachment.device =
            run("losetup", &["--find", "--show", "--direct-io=off", &file])?.trim().to_owned();
        Ok(attachment)
    }

    /// Whether the bridge still runs.
    pub fn alive(&mut self) -> bool {
        self.bridge.as_mut().is_none_or(|b| b.try_wait().is_ok_and(|s| s.is_none()))
    }

    fn detach(&mut self) {
        if self.bridge.is_none() && !self.device.is_empty() {
            _ = run("nbd-client", &["-d", &self.device]);
            return;
        }
        release(&self.dir);
        if let Some(mut bridge) = self.bridge.take() {
            _ = bridge.kill();
            _ = bridge.wait();
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Takes down what an attachment in `dir` left, also one of an earlier process.
pub(crate) fn release(dir: &Path) {
    let file = dir.join("volume").display().to_string();
    for device in loop_devices(&file) {
        _ = run("losetup", &["--detach", &device]);
    }
    if is_mount_point(dir) {
        _ = run("umount", &["--lazy", &dir.display().to_string()]);
    }
}

/// Loop devices over this file.
fn loop_devices(file: &str) -> Vec<String> {
    let Ok(blocks) = fs::read_dir("/sys/block") else { return Vec::new() };
    blocks
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let backing = fs::read_to_string(path.join("loop/backing_file")).ok()?;
            let same = backing.trim() == file || backing.trim() == "/volume" && file.is_empty();
            same.then(|| format!("/dev/{}", path.file_name().unwrap_or_default().to_string_lossy()))
        })
        .collect()
}

/// Whether something is mounted exactly here.
pub(crate) fn is_mount_point(dir: &Path) -> bool {
    let dir = dir.display().to_string();
    fs::read_to_string("/proc/self/mounts")
        .is_ok_and(|mounts| mounts.lines().any(|l| l.split(' ').nth(1) == Some(dir.as_str())))
}

/// A kernel NBD device that nothing uses, where the kernel has them and `nbd-client` is installed.
fn free_kernel_device() -> Option<String> {
    let installed = ["/usr/sbin/nbd-client", "/sbin/nbd-client"].iter().any(|p| Path::new(p).exists());
    (0..16).find_map(|n| {
        let size = fs::read_to_string(format!("/sys/block/nbd{n}/size")).ok()?;
        (installed && size.trim() == "0").then(|| format!("/dev/nbd{n}"))
    })
}
