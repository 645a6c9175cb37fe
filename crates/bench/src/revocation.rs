//! How long a revoked key still serves: with many volumes, each of which is read all the time.

use anyhow::Context as _;
use custody_proto::storage::{
    CreateVolumeRequest, ReadBlocksRequest, Volume, storage_node_client::StorageNodeClient,
};
use custody_rpc::AuthenticatedChannel;
use custody_testkit::Deployment;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

type Client = StorageNodeClient<AuthenticatedChannel>;

/// Volumes under the key.
const VOLUMES: usize = 100;
/// Revocations in a round.
const REVOCATIONS: usize = 5;
/// How long one may take, and its recovery.
const LIMIT: Duration = Duration::from_secs(30);

async fn read(client: &mut Client, volume: usize) -> Result<(), tonic::Status> {
    let request = ReadBlocksRequest { name: format!("volumes/v{volume}"), offset: 0, length: 4096 };
    let mut parts = client.read_blocks(request).await?.into_inner();
    // To its end: a call that is left would be a reset, and a server takes only so many.
    while parts.message().await?.is_some() {}
    Ok(())
}

pub(crate) async fn run(rounds: usize) -> anyhow::Result<()> {
    let deployment = tokio::task::block_in_place(Deployment::start);
    let (key, identity, _) = tokio::task::block_in_place(|| deployment.key_and_identity("bench"));
    deployment.bind(&identity).await?;
    let mut control = StorageNodeClient::new(deployment.channel("storage", "workload:control")?);
    for n in 0..VOLUMES {
        let volume = Volume {
            size_bytes: 16 << 20,
            key: key.clone(),
            managed_identity: identity.clone(),
            customer_managed: true,
            ..Volume::default()
        };
        let (volume_id, source_backup) = (format!("v{n}"), String::new());
        control.create_volume(CreateVolumeRequest { volume_id, volume: Some(volume), source_backup }).await?;
    }
    let client = StorageNodeClient::new(deployment.channel("storage", "workload:database")?);
    let (mut gone, mut back) = (Vec::new(), Vec::new());
    for _ in 0..rounds * REVOCATIONS {
        let reads = Arc::new(AtomicUsize::new(0));
        let mut readers = JoinSet::new();
        for volume in 0..VOLUMES {
            let (mut client, reads) = (client.clone(), reads.clone());
            readers.spawn(async move {
                let mut last = Instant::now();
                while read(&mut client, volume).await.is_ok() {
                    last = Instant::now();
                    reads.fetch_add(1, Ordering::Relaxed);
                }
                last
            });
        }
        while reads.load(Ordering::Relaxed) < 20 * VOLUMES {
            anyhow::ensure!(readers.try_join_next().is_none(), "a volume is not read");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let started = Instant::now();
        _ = tokio::task::block_in_place(|| deployment.run(&["key", "disable", &key]));
        let lasts =
            tokio::time::timeout(LIMIT, readers.join_all()).await.context("a volume is still read")?;
        gone.extend(
            lasts.into_iter().map(|last| last.saturating_duration_since(started).as_secs_f64() * 1e3),
        );
        let returned = Instant::now();
        _ = tokio::task::block_in_place(|| deployment.run(&["key", "enable", &key]));
        for volume in 0..VOLUMES {
            while read(&mut client.clone(), volume).await.is_err() {
                anyhow::ensure!(returned.elapsed() < LIMIT, "volumes/v{volume} does not come back");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        back.push(returned.elapsed().as_secs_f64() * 1e3);
    }
    gone.sort_by(f64::total_cmp);
    let at = |share: f64| gone.get(((gone.len() as f64 - 1.0) * share) as usize).copied().unwrap_or(f64::NAN);
    println!(
        "\nrevocation: {VOLUMES} volumes, each read all the time; from the start of the command to a volume's last successful read, {} of them:\nmedian {:.0} ms, 99 in 100 within {:.0} ms, worst {:.0} ms; all {VOLUMES} back after {:.0} ms (median)",
        gone.len(),
        at(0.5),
        at(0.99),
        at(1.0),
        crate::median(back)
    );
    Ok(())
}
