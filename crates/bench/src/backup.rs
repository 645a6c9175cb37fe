//! Backups of a volume: full, incremental, verified, restored; beside restic on the same bytes in a file. Both sealed,
//! both on the same disk.

use crate::{median, peer};
use anyhow::{Context as _, ensure};
use custody_proto::storage::{
    BackupVolumeRequest, CreateVolumeRequest, DeleteBackupRequest, DeleteVolumeRequest, VerifyBackupRequest,
    Volume, WriteBlocksRequest, storage_node_client::StorageNodeClient,
};
use custody_rpc::AuthenticatedChannel;
use custody_testkit::Deployment;
use std::{
    fs::File, io::Read as _, os::unix::fs::FileExt as _, path::PathBuf, process::Command, time::Instant,
};
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
    dir: PathBuf,
    file: File,
}

impl Bench {
    /// Writes a MiB of random bytes to the volume and to restic's file.
    async fn write(&mut self, mib: u64, flush: bool) -> anyhow::Result<()> {
        let mut data = vec![0; 1 << 20];
        File::open("/dev/urandom")?.read_exact(&mut data)?;
        self.file.write_all_at(&data, mib << 20)?;
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

    fn restic(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new("restic");
        command.args(["--quiet", "--no-cache", "--repo"]).arg(self.repository()).args(arguments);
        peer::run(command.env("RESTIC_PASSWORD", "benchmark")).map(drop)
    }

    fn repository(&self) -> PathBuf {
        self.dir.join("repository")
    }
}

/// Seconds that a step takes.
async fn timed(step: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<f64> {
    let started = Instant::now();
    step.await?;
    Ok(started.elapsed().as_secs_f64())
}

async fn change(bench: &mut Bench, round: u64) -> anyhow::Result<()> {
    for mib in (round % CHANGED_OF..SIZE_MIB).step_by(CHANGED_OF as usize) {
        bench.write(mib, mib + CHANGED_OF >= SIZE_MIB).await?;
    }
    Ok(bench.file.sync_all()?)
}

pub(crate) async fn run(rounds: usize) -> anyhow::Result<()> {
    let deployment = block_in_place(Deployment::start);
    let dir = deployment.dir().join("peers");
    std::fs::create_dir_all(&dir)?;
    let source = dir.join("source.img");
    let mut bench = Bench {
        control: Client::new(deployment.channel("storage", "workload:control")?),
        writer: Client::new(deployment.channel("storage", "workload:database")?),
        file: File::create_new(&source)?,
        dir,
    };
    let made =
        CreateVolumeRequest { volume_id: "source".into(), volume: Some(volume()), ..Default::default() };
    bench.control.create_volume(made).await?;
    for mib in 0..SIZE_MIB {
        bench.write(mib, mib + 1 == SIZE_MIB).await?;
    }
    bench.file.sync_all()?;
    let from = source.display().to_string();
    let target = bench.dir.join("restored");
    let mut seen = [const { (Vec::new(), Vec::new()) }; STEPS.len()];
    for round in 0..rounds as u64 {
        block_in_place(|| bench.restic(&["init"]))?;
        let restic = |bench: &Bench, arguments: &[&str]| {
            let started = Instant::now();
            block_in_place(|| bench.restic(arguments))?;
            anyhow::Ok(started.elapsed().as_secs_f64())
        };
        let backup = ["backup", "--compression", "off", &from];
        let full = (timed(bench.back_up("full", "")).await?, restic(&bench, &backup)?);
        change(&mut bench, round).await?;
        let increment = (timed(bench.back_up("increment", "full")).await?, restic(&bench, &backup)?);
        let verify = (timed(bench.verify()).await?, restic(&bench, &["check", "--read-data"])?);
        let to = target.display().to_string();
        let restore =
            (timed(bench.restore()).await?, restic(&bench, &["restore", "latest", "--target", &to])?);
        bench.clean().await?;
        std::fs::remove_dir_all(bench.repository()).context("restic's repository")?;
        std::fs::remove_dir_all(&target).context("what restic restored")?;
        for ((own, others), (mine, other)) in seen.iter_mut().zip([full, increment, verify, restore]) {
            own.push(mine);
            others.push(other);
        }
    }
    println!(
        "\nbackup: seconds, {SIZE_MIB} MiB of random bytes, sealed, one MiB of {CHANGED_OF} changed before the increment; medians of {rounds} rounds"
    );
    println!("{:12} {:>9} {:>9} {:>7} {:>14}", "", "custody", "restic", "ratio", "custody, MB/s");
    for (step, (own, others)) in STEPS.iter().zip(seen) {
        let (own, other) = (median(own), median(others));
        let mb = SIZE_MIB as f64 * 1.048_576 / own;
        println!("{step:12} {own:>9.2} {other:>9.2} {:>7.2} {mb:>14.0}", other / own);
    }
    Ok(())
}
