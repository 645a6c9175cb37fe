//! A sealed volume over NBD, beside qemu-nbd serving the same bytes plain and under LUKS. The client is fio's.

use crate::{
    median,
    peer::{Served, run as run_peer},
};
use anyhow::Context as _;
use custody_proto::storage::{CreateVolumeRequest, Volume, storage_node_client::StorageNodeClient};
use custody_testkit::Deployment;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

const SIZE: u64 = 1 << 30;

/// fio's pattern, block size, queue depth.
const CASES: [(&str, &str, u32); 12] = [
    ("randread", "4k", 1),
    ("randread", "4k", 16),
    ("randwrite", "4k", 1),
    ("randwrite", "4k", 16),
    ("randread", "64k", 1),
    ("randread", "64k", 16),
    ("randwrite", "64k", 1),
    ("randwrite", "64k", 16),
    ("read", "1M", 1),
    ("read", "1M", 16),
    ("write", "1M", 1),
    ("write", "1M", 16),
];

struct Peer {
    name: &'static str,
    uri: String,
    /// Its process, where it is not one of ours.
    _served: Option<Served>,
}

fn peers(dir: &Path, deployment: &Deployment) -> anyhow::Result<Vec<Peer>> {
    let own = format!("nbd+unix:///bench?socket={}", deployment.dir().join("storage/nbd.sock").display());
    let raw = dir.join("raw.img").display().to_string();
    let luks = dir.join("luks.img").display().to_string();
    run_peer(Command::new("qemu-img").args(["create", "-q", "-f", "raw", &raw, "1G"]))?;
    let secret = "secret,id=s,data=benchmark";
    run_peer(Command::new("qemu-img").args([
        "create",
        "-q",
        "-f",
        "luks",
        "--object",
        secret,
        "-o",
        "key-secret=s,iter-time=10",
        &luks,
        "1G",
    ]))?;
    let qemu = |name, arguments: &[&str]| {
        Served::qemu(dir, name, arguments).map(|s| Peer { name, uri: s.uri.clone(), _served: Some(s) })
    };
    Ok(vec![
        Peer { name: "custody", uri: own, _served: None },
        qemu("raw", &["-f", "raw", &raw])?,
        qemu(
            "luks",
            &["--object", secret, "--image-opts", &format!("driver=luks,key-secret=s,file.filename={luks}")],
        )?,
    ])
}

/// MB/s of one measurement.
fn fio(uri: &str, pattern: &str, block: &str, depth: u32, seconds: Option<u32>) -> anyhow::Result<f64> {
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
        .arg(format!("--uri={uri}"))
        .arg(format!("--rw={pattern}"))
        .arg(format!("--bs={block}"))
        .arg(format!("--iodepth={depth}"));
    if let Some(seconds) = seconds {
        command.args(["--time_based", &format!("--runtime={seconds}")]);
    }
    let said = run_peer(&mut command)?;
    let json: Value = serde_json::from_str(said.get(said.find('{').unwrap_or(0)..).unwrap_or_default())
        .context("fio's answer")?;
    let side = if pattern.contains("read") { "read" } else { "write" };
    let bytes = json
        .pointer(&format!("/jobs/0/{side}/bw_bytes"))
        .and_then(Value::as_f64)
        .context("fio told no bandwidth")?;
    Ok(bytes / 1e6)
}

pub(crate) async fn run(rounds: usize, seconds: u32) -> anyhow::Result<()> {
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
        for peer in &peers {
            // Reads are of bytes that were written.
            fio(&peer.uri, "write", "1M", 4, None)?;
        }
        println!(
            "storage: MB/s over NBD on a Unix socket, 1 GiB, page cache warm; medians of {rounds} rounds of {seconds} s"
        );
        println!("{:20} {:>9} {:>9} {:>9} {:>8} {:>8}", "case", "custody", "raw", "luks", "/raw", "/luks");
        for (pattern, block, depth) in CASES {
            let mut seen = vec![Vec::new(); peers.len()];
            for _ in 0..rounds {
                for (peer, values) in peers.iter().zip(&mut seen) {
                    values.push(
                        fio(&peer.uri, pattern, block, depth, Some(seconds))
                            .with_context(|| peer.name.to_owned())?,
                    );
                }
            }
            let medians: Vec<f64> = seen.into_iter().map(median).collect();
            if let [own, raw, luks] = medians.as_slice() {
                println!(
                    "{:20} {own:>9.0} {raw:>9.0} {luks:>9.0} {:>8.2} {:>8.2}",
                    format!("{pattern} {block} qd{depth}"),
                    own / raw,
                    own / luks
                );
            }
        }
        Ok(())
    })
}
