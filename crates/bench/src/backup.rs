//! Backups of a volume: full, incremental, verified, restored; beside restic and pgBackRest on the same bytes, which for
//! them are a table in a directory of PostgreSQL's. All sealed, all on the same disk, none compressed.

use crate::{
    backup_peer::{Peer, PgBackRest, Restic, SEGMENT_MIB},
    median,
};
use anyhow::{Context as _, ensure};
use custody_proto::storage::{
    BackupVolumeRequest, CreateVolumeRequest, DeleteBackupRequest, DeleteVolumeRequest, VerifyBackupRequest,
    Volume, WriteBlocksRequest, storage_node_client::StorageNodeClient,
};
use custody_rpc::AuthenticatedChannel;
use custody_testkit::Deployment;
use std::{fs::File, io::Read as _, os::unix::fs::FileExt as _, time::Instant};
use tokio::task::block_in_place;

/// MiB of data, random, so that nothing is gained by compressing or by finding the same again.
const SIZE_MIB: u64 = 2048;
/// One MiB in so many is changed before the increment.
const CHANGED_OF: u64 = 16;

const IDENTITY: &str = "managedIdentities/platform";
const STEPS: [&str; 4] = ["full backup", "increment", "verify", "restore"];

fn volume() -> Volume {
    Volume {
        size_bytes: (SIZE_MIB << 20) as i64,
        key: "vaults/platform/keys/service-managed".into(),
        managed_identity: IDENTITY.into(),
        ..Volume::default()
    }
}

type Client = StorageNodeClient<AuthenticatedChannel>;

struct Bench {
    control: Client,
    writer: Client,
    /// The table, as PostgreSQL keeps it: in files of a GiB.
    segments: Vec<File>,
}

impl Bench {
    /// Writes a MiB of random bytes to the volume and to the table.
    async fn write(&mut self, mib: u64, flush: bool) -> anyhow::Result<()> {
        let mut data = vec![0; 1 << 20];
        File::open("/dev/urandom")?.read_exact(&mut data)?;
        let segment = self.segments.get((mib / SEGMENT_MIB) as usize).context("a segment")?;
        segment.write_all_at(&data, (mib % SEGMENT_MIB) << 20)?;
        let part = WriteBlocksRequest { name: "volumes/source".into(), offset: mib << 20, data, flush };
        self.writer.write_blocks(tokio_stream::iter([part])).await?;
        Ok(())
    }

    async fn back_up(&mut self, backup: &str, base: &str) -> anyhow::Result<()> {
        let (backup, base) = (backup.to_owned(), base.to_owned());
        let request = BackupVolumeRequest { name: "volumes/source".into(), backup, base };
        let mut progress = self.control.backup_volume(request).await?.into_inner();
        let mut whole = false;
        while let Some(part) = progress.message().await? {
            whole = part.complete;
        }
        ensure!(whole, "the backup is not whole");
        Ok(())
    }

    async fn verify(&mut self) -> anyhow::Result<()> {
        let (backup, managed_identity) = ("increment".into(), IDENTITY.into());
        self.control.verify_backup(VerifyBackupRequest { backup, managed_identity }).await?;
        Ok(())
    }

    async fn restore(&mut self) -> anyhow::Result<()> {
        let (volume_id, source_backup) = ("restored".into(), "increment".into());
        let request = CreateVolumeRequest { volume_id, volume: Some(volume()), source_backup };
        self.control.create_volume(request).await?;
        Ok(())
    }

    async fn clean(&mut self) -> anyhow::Result<()> {
        self.control.delete_volume(DeleteVolumeRequest { name: "volumes/restored".into() }).await?;
        for backup in ["increment", "full"] {
            self.control.delete_backup(DeleteBackupRequest { backup: backup.into() }).await?;
        }
        Ok(())
    }

    fn sync(&self) -> anyhow::Result<()> {
        self.segments.iter().try_for_each(|segment| Ok(segment.sync_all()?))
    }
}

/// Nobody reads from memory what it, or its peer, has just written: a backup is verified and restored on another day.
pub(crate) fn forget_files() -> anyhow::Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("the page cache is dropped as root")
}

/// Seconds that a step takes.
async fn timed(step: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<f64> {
    block_in_place(forget_files)?;
    let started = Instant::now();
    step.await?;
    Ok(started.elapsed().as_secs_f64())
}

async fn change(bench: &mut Bench, round: u64) -> anyhow::Result<()> {
    for mib in (round % CHANGED_OF..SIZE_MIB).step_by(CHANGED_OF as usize) {
        bench.write(mib, mib + CHANGED_OF >= SIZE_MIB).await?;
    }
    bench.sync()
}

/// Seconds that a peer takes.
fn peer_timed(step: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    block_in_place(forget_files)?;
    let started = Instant::now();
    block_in_place(step)?;
    Ok(started.elapsed().as_secs_f64())
}

pub(crate) async fn run(rounds: usize) -> anyhow::Result<()> {
    let deployment = block_in_place(Deployment::start);
    let dir = deployment.dir().join("peers");
    std::fs::create_dir_all(&dir)?;
    let table = block_in_place(|| PgBackRest::make_source(&dir, SIZE_MIB))?;
    let mut peers: [Box<dyn Peer>; 2] =
        [Box::new(Restic::new(&dir, &table)), Box::new(PgBackRest::new(&dir)?)];
    let segments = table.iter().map(|t| Ok(File::options().write(true).open(t)?));
    let mut bench = Bench {
        control: Client::new(deployment.channel("storage", "workload:control")?),
        writer: Client::new(deployment.channel("storage", "workload:database")?),
        segments: segments.collect::<anyhow::Result<_>>()?,
    };
    let made =
        CreateVolumeRequest { volume_id: "source".into(), volume: Some(volume()), ..Default::default() };
    bench.control.create_volume(made).await?;
    for mib in 0..SIZE_MIB {
        bench.write(mib, mib + 1 == SIZE_MIB).await?;
    }
    bench.sync()?;
    // For each step: ours, then each peer's.
    let mut seen = [const { [Vec::new(), Vec::new(), Vec::new()] }; STEPS.len()];
    for round in 0..rounds as u64 {
        for peer in &mut peers {
            block_in_place(|| peer.init())?;
        }
        let mut times = [[0.0; 3]; STEPS.len()];
        for (step, times) in times.iter_mut().enumerate() {
            if step == 1 {
                change(&mut bench, round).await?;
            }
            let own = match step {
                0 => timed(bench.back_up("full", "")).await?,
                1 => timed(bench.back_up("increment", "full")).await?,
                2 => timed(bench.verify()).await?,
                _ => timed(bench.restore()).await?,
            };
            *times = [own, 0.0, 0.0];
            for (peer, time) in peers.iter_mut().zip(times.iter_mut().skip(1)) {
                *time = peer_timed(|| match step {
                    0 => peer.full(),
                    1 => peer.increment(),
                    2 => peer.verify(),
                    _ => peer.restore(),
                })?;
            }
        }
        bench.clean().await?;
        for peer in &mut peers {
            block_in_place(|| peer.clean())?;
        }
        for (seen, times) in seen.iter_mut().zip(times) {
            for (values, time) in seen.iter_mut().zip(times) {
                values.push(time);
            }
        }
    }
    println!(
        "\nbackup: seconds, {SIZE_MIB} MiB of random bytes, sealed, one MiB of {CHANGED_OF} changed before the increment; medians of {rounds} rounds"
    );
    println!(
        "{:12} {:>9} {:>9} {:>7} {:>10} {:>7} {:>14}",
        "", "custody", "restic", "ratio", "pgBackRest", "ratio", "custody, MB/s"
    );
    for (step, seen) in STEPS.iter().zip(seen) {
        let [own, restic, pgbackrest] = seen.map(median);
        let mb = SIZE_MIB as f64 * 1.048_576 / own;
        println!(
            "{step:12} {own:>9.2} {restic:>9.2} {:>7.2} {pgbackrest:>10.2} {:>7.2} {mb:>14.0}",
            restic / own,
            pgbackrest / own
        );
    }
    Ok(())
}
