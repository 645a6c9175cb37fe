//! The platform as a whole: start, memory, revocation, rotation.

use crate::median;
use anyhow::Context as _;
use custody_proto::storage::{
    CreateVolumeRequest, GetVolumeRequest, ReadBlocksRequest, Volume, WriteBlocksRequest,
    storage_node_client::StorageNodeClient,
};
use custody_testkit::Deployment;
use serde_json::Value;
use std::time::{Duration, Instant};

const ALL: [&str; 5] = ["identity", "vault", "control", "storage", "database"];

pub(crate) fn resident_mib(deployment: &Deployment, services: &[&str]) -> f64 {
    let of = |service: &str| {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", deployment.pid(service).as_raw_nonzero()))
                .unwrap_or_default();
        status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    services.iter().copied().map(of).sum::<f64>() / 1024.0
}

fn start_ms(deployment: &Deployment) -> Option<f64> {
    let said = std::fs::read_to_string(deployment.dir().join("up.log")).ok()?;
    said.split("healthy after ").nth(1)?.split(' ').next()?.parse().ok()
}

pub(crate) async fn run(rounds: usize) -> anyhow::Result<()> {
    let mut starts = Vec::new();
    for _ in 0..rounds {
        let deployment = tokio::task::block_in_place(Deployment::start);
        starts.extend(start_ms(&deployment));
    }
    let deployment = tokio::task::block_in_place(Deployment::start);
    println!("\nplatform: medians of {rounds} rounds");
    println!(
        "custody up to all services healthy: {:.0} ms; resident in all: {:.0} MiB",
        median(starts),
        resident_mib(&deployment, &ALL)
    );
    let (key, identity, _) = tokio::task::block_in_place(|| deployment.key_and_identity("bench"));
    // The control plane binds an identity when it makes a cluster; here there are volumes only.
    deployment.bind(&identity).await?;
    let mut control = StorageNodeClient::new(deployment.channel("storage", "workload:control")?);
    for (id, size) in [("small", 1i64 << 30), ("large", 1 << 40)] {
        let volume = Volume {
            size_bytes: size,
            key: key.clone(),
            managed_identity: identity.clone(),
            customer_managed: true,
            ..Volume::default()
        };
        control
            .create_volume(CreateVolumeRequest {
                volume_id: id.into(),
                volume: Some(volume),
                source_backup: String::new(),
            })
            .await?;
    }
    let mut client = StorageNodeClient::new(deployment.channel("storage", "workload:database")?);
    for n in 0..1024u64 {
        let part = WriteBlocksRequest {
            name: "volumes/small".into(),
            offset: n << 20,
            data: vec![n as u8; 1 << 20],
            flush: n == 1023,
        };
        client.write_blocks(tokio_stream::iter([part])).await?;
    }
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let started = Instant::now();
        let rotated = tokio::task::block_in_place(|| deployment.run(&["key", "rotate", &key]));
        let version = rotated.get("version").and_then(Value::as_str).unwrap_or_default().to_owned();
        let (mut small_done, mut large_done) = (None, None);
        while small_done.is_none() || large_done.is_none() {
            for (id, done) in [("small", &mut small_done), ("large", &mut large_done)] {
                let seen =
                    client.get_volume(GetVolumeRequest { name: format!("volumes/{id}") }).await?.into_inner();
                if seen.key_version.ends_with(&version) {
                    done.get_or_insert(started.elapsed());
                }
            }
        }
        small.extend(small_done.map(|t| t.as_secs_f64() * 1e3));
        large.extend(large_done.map(|t| t.as_secs_f64() * 1e3));
    }
    println!(
        "KEK rotation until re-wrapped, the key's making included: 1 GiB full {:.0} ms, 1 TiB sparse {:.0} ms",
        median(small),
        median(large)
    );
    let mut gone = Vec::new();
    for _ in 0..rounds * 5 {
        let read = || ReadBlocksRequest { name: "volumes/small".into(), offset: 0, length: 4096 };
        let name = key.clone();
        let started = Instant::now();
        let revoking = tokio::task::spawn_blocking({
            let dir = deployment.dir().to_owned();
            move || {
                std::process::Command::new(custody_testkit::target_program("custody"))
                    .arg("--dir")
                    .arg(dir)
                    .args(["key", "disable", &name])
                    .output()
            }
        });
        let mut last = started;
        loop {
            let answer = async { client.read_blocks(read()).await?.into_inner().message().await };
            match answer.await {
                Ok(_) => last = Instant::now(),
                Err(_) => break,
            }
            anyhow::ensure!(started.elapsed() < Duration::from_secs(30), "the volume is still read");
        }
        revoking.await?.context("key disable")?;
        gone.push((last - started).as_secs_f64() * 1e3);
        _ = tokio::task::block_in_place(|| deployment.run(&["key", "enable", &key]));
        while client.read_blocks(read()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let worst = gone.iter().copied().fold(0.0, f64::max);
    println!(
        "revoke (from the start of the command) to the last successful read: median {:.0} ms, worst of {} {worst:.0} ms",
        median(gone.clone()),
        gone.len()
    );
    memory().await
}

/// Volumes for the figure of a node's memory.
const VOLUMES: u64 = 1000;
/// Extents of the sparse volume that are written.
const EXTENTS: u64 = 4096;

/// What a node needs with one sparse volume of 1 TiB that is written all over, and with many volumes.
async fn memory() -> anyhow::Result<()> {
    let deployment = tokio::task::block_in_place(Deployment::start);
    let mut control = StorageNodeClient::new(deployment.channel("storage", "workload:control")?);
    let mut client = StorageNodeClient::new(deployment.channel("storage", "workload:database")?);
    let create = |id: &str, size_bytes: i64| CreateVolumeRequest {
        volume_id: id.into(),
        volume: Some(Volume {
            size_bytes,
            key: "vaults/platform/keys/service-managed".into(),
            managed_identity: "managedIdentities/platform".into(),
            ..Volume::default()
        }),
        source_backup: String::new(),
    };
    let write = |id: &str, offset: u64| WriteBlocksRequest {
        name: format!("volumes/{id}"),
        offset,
        data: vec![7; 4096],
        flush: offset.is_multiple_of(64 << 24),
    };
    let of_node = || resident_mib(&deployment, &["storage"]);
    let none = of_node();
    control.create_volume(create("sparse", 1 << 40)).await?;
    for extent in 0..EXTENTS {
        // Far apart, so that each write is of another extent.
        let offset = extent * ((1 << 40) / EXTENTS);
        client.write_blocks(tokio_stream::iter([write("sparse", offset)])).await?;
    }
    let sparse = of_node();
    for n in 0..VOLUMES {
        let id = format!("v{n}");
        control.create_volume(create(&id, 1 << 30)).await?;
        client.write_blocks(tokio_stream::iter([write(&id, 0)])).await?;
    }
    println!(
        "resident in a storage node: {none:.0} MiB with no volume, {sparse:.0} MiB after writes to {EXTENTS} extents of 1 TiB, {:.0} MiB with {VOLUMES} volumes of 1 GiB besides, each written to",
        of_node()
    );
    Ok(())
}
