//! Programs of others that we are measured beside.

use crate::load::Process;
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
        let mut command = Command::new("qemu-nbd");
        command.args(["-t", "-e", "16", "--cache=writeback", "-k"]).arg(&socket).args(arguments);
        Self::start(command, &socket)
    }

    /// nbdkit with these arguments, on a Unix socket in `dir`.
    pub(crate) fn nbdkit(dir: &Path, name: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let socket = dir.join(format!("{name}.sock"));
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--unix"]).arg(&socket).args(arguments);
        Self::start(command, &socket)
    }

    fn start(mut command: Command, socket: &Path) -> anyhow::Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let server = command.spawn().with_context(|| format!("{program} is not installed"))?;
        let served = Self { uri: format!("nbd+unix:///?socket={}", socket.display()), server };
        let until = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            ensure!(Instant::now() < until, "{program} does not serve {}", socket.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(served)
    }

    /// The server's process.
    pub(crate) fn process(&self) -> Process {
        Process::of_pid(self.server.id())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        _ = self.server.kill();
        _ = self.server.wait();
    }
}
