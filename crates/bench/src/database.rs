//! pgbench on a volume under the customer's key, on one under the service's, and on the same path in plaintext:
//! qemu-nbd serving a file, attached, formatted and mounted in the same way.

use crate::{median, peer};
use anyhow::{Context as _, ensure};
use custody_testkit::{Deployment, postgres_programs};
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PASSWORD: &str = "test-Password-1";
/// Clients, on two threads.
const CLIENTS: &str = "4";
/// pgbench's scale: a million accounts.
const SCALE: &str = "10";

/// A PostgreSQL on a plain file behind qemu-nbd.
struct Plain {
    dir: PathBuf,
    device: String,
    endpoint: String,
    server: Option<Child>,
    bridge: Child,
    /// Dropped last.
    _nbd: peer::Served,
}

pub(crate) fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups", "--"]).arg(program);
    command.current_dir("/").stdin(Stdio::null());
    command
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(20);
    while !there() {
        ensure!(Instant::now() < until, "{what} within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

impl Plain {
    fn start(dir: &Path) -> anyhow::Result<Self> {
        let bin = postgres_programs()?;
        std::fs::create_dir_all(dir)?;
        let image = dir.join("plain.img").display().to_string();
        peer::run(Command::new("qemu-img").args(["create", "-q", "-f", "raw", &image, "512M"]))?;
        let nbd = peer::Served::qemu(dir, "plain", &["-f", "raw", &image])?;
        let (bridge_dir, mount) = (dir.join("bridge"), dir.join("data"));
        std::fs::create_dir_all(&bridge_dir)?;
        std::fs::create_dir_all(&mount)?;
        let file = bridge_dir.join("volume");
        let bridge = Command::new("nbdfuse").arg(&file).arg(&nbd.uri).stdin(Stdio::null()).spawn()?;
        let mut plain = Self {
            dir: dir.to_owned(),
            device: String::new(),
            endpoint: String::new(),
            server: None,
            bridge,
            _nbd: nbd,
        };
        wait_for("nbdfuse serves", || std::fs::metadata(&file).is_ok_and(|m| m.len() > 0))?;
        let found =
            peer::run(Command::new("losetup").args(["--find", "--show", "--direct-io=off"]).arg(&file))?;
        found.trim().clone_into(&mut plain.device);
        let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
        peer::run(
            Command::new("mkfs.ext4").args(["-q", "-b", "4096", "-m", "0", "-E", options]).arg(&plain.device),
        )?;
        peer::run(
            Command::new("mount")
                .args(["-t", "ext4", "-o", "noatime,nosuid,nodev,noexec"])
                .arg(&plain.device)
                .arg(&mount),
        )?;
        for owned in [&mount, &dir.join("run")] {
            let owner = ["-d", "-o", "postgres", "-g", "postgres", "-m", "0700"];
            peer::run(Command::new("install").args(owner).arg(owned))?;
        }
        plain.serve(&bin, &mount.join("pgdata"))?;
        Ok(plain)
    }

    fn serve(&mut self, bin: &Path, data: &Path) -> anyhow::Result<()> {
        let layout = ["--auth=trust", "-E", "UTF8", "--no-locale", "--data-checksums", "--no-instructions"];
        peer::run(as_postgres(&bin.join("initdb")).arg("-D").arg(data).args(layout))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
        let run_dir = self.dir.join("run").display().to_string();
        // What the database node sets, but for its temp volume.
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            format!("unix_socket_directories={run_dir}"),
            "logging_collector=on".to_owned(),
            "log_directory=log".to_owned(),
            "shared_buffers=64MB".to_owned(),
            "dynamic_shared_memory_type=mmap".to_owned(),
        ];
        let mut server = as_postgres(&bin.join("postgres"));
        server.arg("-D").arg(data).stdout(Stdio::null()).stderr(Stdio::null());
        for setting in settings {
            server.arg("-c").arg(setting);
        }
        self.server = Some(server.spawn()?);
        let at = ["-h", run_dir.as_str(), "-p", port.as_str()];
        wait_for("PostgreSQL serves", || {
            Command::new(bin.join("pg_isready")).arg("-q").args(at).status().is_ok_and(|s| s.success())
        })?;
        for text in [
            format!("CREATE ROLE dba LOGIN PASSWORD '{PASSWORD}'"),
            "CREATE DATABASE app OWNER dba".to_owned(),
        ] {
            peer::run(as_postgres(&bin.join("psql")).args(["-X", "-q"]).args(at).args(["-c", &text]))?;
        }
        self.endpoint = format!("127.0.0.1:{port}");
        Ok(())
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let pid = rustix::process::Pid::from_child(server);
            _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
            _ = server.wait();
        }
        _ = Command::new("umount").arg(self.dir.join("data")).status();
        _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
        _ = Command::new("umount").arg(self.dir.join("bridge")).status();
        _ = self.bridge.kill();
        _ = self.bridge.wait();
    }
}

fn pgbench(bin: &Path, endpoint: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let (host, port) = endpoint.rsplit_once(':').context("no endpoint")?;
    let mut command = Command::new(bin.join("pgbench"));
    command
        .args(["-h", host, "-p", port, "-U", "dba"])
        .args(arguments)
        .arg("app")
        .env("PGPASSWORD", PASSWORD);
    peer::run(&mut command)
}

pub(crate) fn run(rounds: usize, seconds: u32) -> anyhow::Result<()> {
    let bin = postgres_programs()?;
    let deployment = Deployment::start();
    let (key, identity, _) = deployment.key_and_identity("bench");
    let customer = deployment.cluster("cmk", &key, &identity, 0);
    let made = deployment.run(&["cluster", "create", "smk", "--workers", "0", "--size-mib", "512"]);
    let service = made.pointer("/nodes/0/endpoint").and_then(|e| e.as_str()).context("no endpoint")?;
    let plain = Plain::start(&deployment.dir().join("plain"))?;
    let endpoints = [customer.as_str(), service, plain.endpoint.as_str()];
    for endpoint in endpoints {
        pgbench(&bin, endpoint, &["-i", "-q", "-s", SCALE])?;
    }
    let mut seen = [const { Vec::new() }; 3];
    for round in 0..rounds {
        // Each goes first in turn: what one leaves for the disk to do, the next one pays for.
        for place in 0..endpoints.len() {
            let at = (round + place) % endpoints.len();
            let (Some(endpoint), Some(values)) = (endpoints.get(at), seen.get_mut(at)) else { continue };
            let load = ["-n", "-c", CLIENTS, "-j", "2", "-T", &seconds.to_string()];
            let said = pgbench(&bin, endpoint, &load)?;
            let tps = said.lines().find_map(|l| l.strip_prefix("tps = ")).context("pgbench told no tps")?;
            values.push(tps.split(' ').next().unwrap_or_default().parse()?);
        }
    }
    let [customer, service, plain] = seen.map(median);
    println!(
        "\ndatabase: pgbench, scale {SCALE}, {CLIENTS} clients, transactions a second; medians of {rounds} rounds of {seconds} s"
    );
    println!("customer-managed key {customer:.0}, service-managed key {service:.0}, plaintext {plain:.0}");
    println!(
        "customer-managed / plaintext {:.2}, customer-managed / service-managed {:.2}",
        customer / plain,
        customer / service
    );
    Ok(())
}
