//! How long a revoked key still serves: on three nodes with many volumes, each of which is read all the time; one node hears nothing.

use anyhow::Context as _;
use custody_proto::storage::{ReadBlocksRequest, storage_node_client::StorageNodeClient};
use custody_rpc::AuthenticatedChannel;
use custody_testkit::{Deployment, volume::customer_volume};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::{JoinSet, block_in_place};

type Client = StorageNodeClient<AuthenticatedChannel>;

/// Volumes under the key, on all nodes together.
const VOLUMES: usize = 100;
/// Nodes; the last one is cut off.
const NODES: usize = 3;
/// Revocations in a round.
const REVOCATIONS: usize = 5;
/// How long one may take, and its recovery.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a node keeps a key that hears nothing.
const LEASE: Duration = Duration::from_secs(3);

async fn read(client: &mut Client, volume: usize) -> Result<(), tonic::Status> {
    let request = ReadBlocksRequest { name: format!("volumes/v{volume}"), offset: 0, length: 4096 };
    let mut parts = client.read_blocks(request).await?.into_inner();
    // To its end: a call that is left would be a reset, and a server takes only so many.
    while parts.message().await?.is_some() {}
    Ok(())
}

fn at(sorted: &[f64], share: f64) -> f64 {
    sorted.get(((sorted.len() as f64 - 1.0) * share) as usize).copied().unwrap_or(f64::NAN)
}

pub(crate) async fn run(rounds: usize) -> anyhow::Result<()> {
    let lease_ms = LEASE.as_millis().to_string();
    let options = ["--lease-ms", &lease_ms, "--renew-every-ms", "1000"];
    let deployment = block_in_place(|| Deployment::start_with_environment(&options, &[]))?;
    let (key, identity, _) = block_in_place(|| deployment.key_and_identity("bench"));
    let second = block_in_place(|| deployment.storage_node("storage-2", None, None))?;
    let third = block_in_place(|| deployment.node_behind_proxies("storage-3"))?;
    deployment.bind(&identity).await?;
    let mut clients = vec![Client::new(deployment.channel("storage", "workload:database")?)];
    let mut controls = vec![deployment.channel("storage", "workload:control")?];
    for node in [&second, &third.node] {
        deployment.bind_to(&identity, &node.principal()).await?;
        clients.push(Client::new(deployment.channel_to(node, "workload:database")?));
        controls.push(deployment.channel_to(node, "workload:control")?);
    }
    let client_of = |volume: usize| clients.get(volume % NODES).cloned().context("a node");
    for n in 0..VOLUMES {
        let control = controls.get(n % NODES).cloned().context("a node")?;
        customer_volume(control, &format!("v{n}"), 16 << 20, &key, &identity).await?;
    }
    let bundle = deployment.dir().join("bundle").display().to_string();
    let (mut told, mut cut, mut closed, mut back) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds * REVOCATIONS {
        let reads = Arc::new(AtomicUsize::new(0));
        let mut readers = JoinSet::new();
        for volume in 0..VOLUMES {
            let (mut client, reads) = (client_of(volume)?, reads.clone());
            readers.spawn(async move {
                let mut last = Instant::now();
                while read(&mut client, volume).await.is_ok() {
                    last = Instant::now();
                    reads.fetch_add(1, Ordering::Relaxed);
                }
                (volume % NODES == NODES - 1, last)
            });
        }
        while reads.load(Ordering::Relaxed) < 20 * VOLUMES {
            anyhow::ensure!(readers.try_join_next().is_none(), "a volume is not read");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        third.cut();
        let started = Instant::now();
        let seen = block_in_place(|| {
            let seen = deployment.cli(&["key", "revoke", &key, "--prove", "--bundle", &bundle])?;
            deployment.cli(&["proof", "verify", &bundle]).map(|_| seen)
        })?;
        closed.push(started.elapsed().as_secs_f64() * 1e3);
        let number = |name: &str| seen.get(name).and_then(serde_json::Value::as_u64).unwrap_or_default();
        anyhow::ensure!(number("erased") + number("lapsed") == VOLUMES as u64, "not proven: {seen}");
        let lasts =
            tokio::time::timeout(LIMIT, readers.join_all()).await.context("a volume is still read")?;
        for (is_cut, last) in lasts {
            let ms = last.saturating_duration_since(started).as_secs_f64() * 1e3;
            if is_cut { cut.push(ms) } else { told.push(ms) }
        }
        third.mend();
        let returned = Instant::now();
        block_in_place(|| deployment.cli(&["key", "reinstate", &key]))?;
        for volume in 0..VOLUMES {
            let mut client = client_of(volume)?;
            while read(&mut client, volume).await.is_err() {
                anyhow::ensure!(returned.elapsed() < LIMIT, "volumes/v{volume} does not come back");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        back.push(returned.elapsed().as_secs_f64() * 1e3);
    }
    told.sort_by(f64::total_cmp);
    cut.sort_by(f64::total_cmp);
    println!(
        "\nrevocation: {VOLUMES} volumes on {NODES} nodes, each read all the time; from the start of `custody key revoke --prove` to a volume's last successful read; {} revocations, each proof verified",
        closed.len()
    );
    for (which, all) in [("nodes that are told", &told), ("the node that is cut off", &cut)] {
        println!(
            "{which}: {} reads ended; median {:.0} ms, 99 in 100 within {:.0} ms, worst {:.0} ms",
            all.len(),
            at(all, 0.5),
            at(all, 0.99),
            at(all, 1.0)
        );
    }
    println!(
        "lease {} ms; proven and verified after {:.0} ms (median); all {VOLUMES} back after {:.0} ms (median)",
        LEASE.as_millis(),
        crate::median(closed),
        crate::median(back)
    );
    Ok(())
}
