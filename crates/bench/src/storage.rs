//! A sealed volume over NBD, beside qemu-nbd and nbdkit serving the same bytes plain and under LUKS. The client is
//! fio's.

use crate::{
    load::Process,
    median,
    peer::{Served, run as run_peer},
};
use anyhow::Context as _;
use custody_proto::storage::{CreateVolumeRequest, Volume, storage_node_client::StorageNodeClient};
use custody_testkit::Deployment;
use serde_json::Value;
use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

const SIZE: u64 = 1 << 30;

/// What fio does.
struct Case {
    pattern: &'static str,
    block: &'static str,
    depth: u32,
    /// Writes between two flushes; none if 0.
    flush_every: u32,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} qd{}", self.pattern, self.block, self.depth)?;
        if self.flush_every > 0 { write!(f, " flush/{}", self.flush_every) } else { Ok(()) }
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (read, write, block) in
        [("randread", "randwrite", "4k"), ("randread", "randwrite", "64k"), ("read", "write", "1M")]
    {
        for (pattern, flush_every) in [(read, 0), (write, 0), (write, 32)] {
            for depth in [1, 16] {
                cases.push(Case { pattern, block, depth, flush_every });
            }
        }
    }
    cases
}

struct Peer {
    name: &'static str,
    uri: String,
    process: Process,
    /// Held while it serves, where it is not one of ours.
    _served: Option<Served>,
}

fn peers(dir: &Path, deployment: &Deployment) -> anyhow::Result<Vec<Peer>> {
    let own = format!("nbd+unix:///bench?socket={}", deployment.dir().join("storage/nbd.sock").display());
    let image = |name: &str| dir.join(format!("{name}.img")).display().to_string();
    let (raw, luks, file, file_luks) = (image("raw"), image("luks"), image("file"), image("file-luks"));
    for plain in [&raw, &file] {
        run_peer(Command::new("qemu-img").args(["create", "-q", "-f", "raw", plain, "1G"]))?;
    }
    let secret = "secret,id=s,data=benchmark";
    for sealed in [&luks, &file_luks] {
        let mut make = Command::new("qemu-img");
        make.args(["create", "-q", "-f", "luks", "--object", secret, "-o", "key-secret=s,iter-time=10"]);
        run_peer(make.args([sealed, "1G"]))?;
    }
    let image = format!("driver=luks,key-secret=s,file.filename={luks}");
    let served = [
        ("raw", Served::qemu(dir, "raw", &["-f", "raw", &raw])?),
        ("luks", Served::qemu(dir, "luks", &["--object", secret, "--image-opts", &image])?),
        ("file", Served::nbdkit(dir, "nbdkit", &["file", &file])?),
        (
            "file luks",
            Served::nbdkit(
                dir,
                "nbdkit-luks",
                &["file", &file_luks, "--filter=luks", "passphrase=benchmark"],
            )?,
        ),
    ];
    let mut peers =
        vec![Peer { name: "custody", uri: own, process: Process::of(deployment, "storage"), _served: None }];
    peers.extend(served.into_iter().map(|(name, served)| Peer {
        name,
        uri: served.uri.clone(),
        process: served.process(),
        _served: Some(served),
    }));
    Ok(peers)
}

/// MB/s of one measurement, and the server's CPU seconds a GiB.
fn fio(peer: &Peer, case: &Case, seconds: Option<u32>) -> anyhow::Result<(f64, f64)> {
    let mut command = Command::new("fio");
    command.args([
        "--name=b",
        "--ioengine=nbd",
        "--output-format=json",
        "--norandommap",
        "--randrepeat=0",
        "--size=1G",
    ]);
    command
        .arg(format!("--uri={}", peer.uri))
        .arg(format!("--rw={}", case.pattern))
        .arg(format!("--bs={}", case.block))
        .arg(format!("--iodepth={}", case.depth));
    if case.flush_every > 0 {
        command.arg(format!("--fsync={}", case.flush_every));
    }
    if let Some(seconds) = seconds {
        command.args(["--time_based", &format!("--runtime={seconds}")]);
    }
    let before = peer.process.cpu();
    let said = run_peer(&mut command)?;
    let cpu = peer.process.cpu().saturating_sub(before).as_secs_f64();
    let json: Value = serde_json::from_str(said.get(said.find('{').unwrap_or(0)..).unwrap_or_default())
        .context("fio's answer")?;
    let side = if case.pattern.contains("read") { "read" } else { "write" };
    let told = |field: &str| {
        let value = json.pointer(&format!("/jobs/0/{side}/{field}"));
        value.and_then(Value::as_f64).with_context(|| format!("fio told no {field}"))
    };
    Ok((told("bw_bytes")? / 1e6, cpu / (told("io_bytes")? / (1u64 << 30) as f64)))
}

pub(crate) async fn run(rounds: usize, seconds: u32, only: &str) -> anyhow::Result<()> {
    let deployment = tokio::task::block_in_place(Deployment::start);
    let volume = Volume {
        size_bytes: i64::try_from(SIZE)?,
        key: "vaults/platform/keys/service-managed".into(),
        managed_identity: "managedIdentities/platform".into(),
        ..Volume::default()
    };
    let request =
        CreateVolumeRequest { volume_id: "bench".into(), volume: Some(volume), source_backup: String::new() };
    StorageNodeClient::new(deployment.channel("storage", "workload:control")?).create_volume(request).await?;
    let dir: PathBuf = deployment.dir().join("peers");
    std::fs::create_dir_all(&dir)?;
    tokio::task::block_in_place(|| {
        let peers = peers(&dir, &deployment)?;
        let fill = Case { pattern: "write", block: "1M", depth: 4, flush_every: 1024 };
        for peer in &peers {
            // Reads are of bytes that were written, and every place that will be written to was written before.
            for _ in 0..2 {
                fio(peer, &fill, None).with_context(|| peer.name.to_owned())?;
            }
        }
        println!(
            "storage: MB/s over NBD on a Unix socket, 1 GiB, page cache warm: qemu-nbd serves raw and luks, nbdkit file and file luks; medians of {rounds} rounds of {seconds} s. In brackets the server's CPU seconds a GiB."
        );
        print!("{:26}", "case");
        peers.iter().for_each(|peer| print!(" {:>13}", peer.name));
        println!(" {:>6} {:>6} {:>6} {:>6}", "/raw", "/luks", "/file", "/fluks");
        for case in cases().iter().filter(|case| case.to_string().contains(only)) {
            let mut seen = vec![(Vec::new(), Vec::new()); peers.len()];
            for _ in 0..rounds {
                for (peer, (speeds, costs)) in peers.iter().zip(&mut seen) {
                    let (speed, cost) =
                        fio(peer, case, Some(seconds)).with_context(|| peer.name.to_owned())?;
                    speeds.push(speed);
                    costs.push(cost);
                }
            }
            let medians: Vec<_> =
                seen.into_iter().map(|(speeds, costs)| (median(speeds), median(costs))).collect();
            print!("{:26}", case.to_string());
            medians.iter().for_each(|(speed, cost)| print!(" {speed:>6.0} ({cost:.2})"));
            if let [own, raw, luks, file, file_luks] = medians.as_slice() {
                let of = |peer: &(f64, f64)| own.0 / peer.0;
                println!(" {:>6.2} {:>6.2} {:>6.2} {:>6.2}", of(raw), of(luks), of(file), of(file_luks));
            }
        }
        Ok(())
    })
}
