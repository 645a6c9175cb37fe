//! Programs of others that we are measured beside.

use anyhow::{Context as _, ensure};
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Runs a program to its end and answers what it printed.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{:?} is not installed", command.get_program()))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An NBD server, ended when dropped.
pub(crate) struct Served {
    /// Where it serves.
    pub(crate) uri: String,
    server: Child,
}

impl Served {
    /// qemu-nbd with these arguments, on a Unix socket in `dir`.
    pub(crate) fn qemu(dir: &Path, name: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let socket = dir.join(format!("{name}.sock"));
        let server = Command::new("qemu-nbd")
            .args(["-t", "-e", "16", "--cache=writeback", "-k"])
            .arg(&socket)
            .args(arguments)
            .spawn()
            .context("qemu-nbd is not installed")?;
        let served = Self { uri: format!("nbd+unix:///?socket={}", socket.display()), server };
        let until = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            ensure!(Instant::now() < until, "qemu-nbd {name} does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(served)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        _ = self.server.kill();
        _ = self.server.wait();
    }
}
