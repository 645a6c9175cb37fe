//! Full backup and restore of a volume, beside restic on the same bytes in a file: both sealed, both on the same disk.

use crate::{median, peer};
use anyhow::{Context as _, ensure};
use custody_proto::storage::{
    BackupVolumeRequest, CreateVolumeRequest, DeleteBackupRequest, DeleteVolumeRequest, Volume,
    WriteBlocksRequest, storage_node_client::StorageNodeClient,
};
use custody_testkit::Deployment;
use std::{fs::File, io::Write as _, path::Path, process::Command, time::Instant};

/// MiB of data, random, so that nothing is gained by compressing or by finding the same again.
const SIZE_MIB: u64 = 1024;

fn volume() -> Volume {
    Volume {
        size_bytes: (SIZE_MIB << 20) as i64,
        key: "vaults/platform/keys/service-managed".into(),
        managed_identity: "managedIdentities/platform".into(),
        ..Volume::default()
    }
}

fn restic(repository: &Path, arguments: &[&str]) -> anyhow::Result<f64> {
    let started = Instant::now();
    let mut command = Command::new("restic");
    command.args(["--quiet", "--no-cache", "--repo"]).arg(repository).args(arguments);
    peer::run(command.env("RESTIC_PASSWORD", "benchmark"))?;
    Ok(started.elapsed().as_secs_f64())
}

pub(crate) async fn run(rounds: usize) -> anyhow::Result<()> {
    let deployment = tokio::task::block_in_place(Deployment::start);
    let mut control = StorageNodeClient::new(deployment.channel("storage", "workload:control")?);
    let mut writer = StorageNodeClient::new(deployment.channel("storage", "workload:database")?);
    let source =
        CreateVolumeRequest { volume_id: "source".into(), volume: Some(volume()), ..Default::default() };
    control.create_volume(source).await?;
    let dir = deployment.dir().join("peers");
    std::fs::create_dir_all(&dir)?;
    let file = dir.join("source.img");
    let mut plain = File::create(&file)?;
    let mut random = File::open("/dev/urandom")?;
    for n in 0..SIZE_MIB {
        let mut data = vec![0; 1 << 20];
        std::io::Read::read_exact(&mut random, &mut data)?;
        plain.write_all(&data)?;
        let flush = n + 1 == SIZE_MIB;
        let part = WriteBlocksRequest { name: "volumes/source".into(), offset: n << 20, data, flush };
        writer.write_blocks(tokio_stream::iter([part])).await?;
    }
    plain.sync_all()?;
    let mut seen = [const { Vec::new() }; 4];
    for n in 0..rounds {
        let started = Instant::now();
        let request = BackupVolumeRequest { name: "volumes/source".into(), backup: format!("round-{n}") };
        let mut progress = control.backup_volume(request).await?.into_inner();
        let mut whole = false;
        while let Some(part) = progress.message().await? {
            whole = part.complete;
        }
        ensure!(whole, "the backup is not whole");
        let own_backup = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let request = CreateVolumeRequest {
            volume_id: "restored".into(),
            volume: Some(volume()),
            source_backup: format!("round-{n}"),
        };
        control.create_volume(request).await?;
        let own_restore = started.elapsed().as_secs_f64();
        control.delete_volume(DeleteVolumeRequest { name: "volumes/restored".into() }).await?;
        control.delete_backup(DeleteBackupRequest { backup: format!("round-{n}") }).await?;
        let (repository, target) = (dir.join("repository"), dir.join("restored"));
        let (backup, restore) = tokio::task::block_in_place(|| {
            restic(&repository, &["init"])?;
            let from = file.display().to_string();
            let backup = restic(&repository, &["backup", "--compression", "off", &from])?;
            let to = target.display().to_string();
            let restore = restic(&repository, &["restore", "latest", "--target", &to])?;
            std::fs::remove_dir_all(&repository).context("restic's repository")?;
            std::fs::remove_dir_all(&target).context("what restic restored")?;
            anyhow::Ok((backup, restore))
        })?;
        for (values, value) in seen.iter_mut().zip([own_backup, backup, own_restore, restore]) {
            values.push(SIZE_MIB as f64 * 1.048_576 / value);
        }
    }
    let [own_backup, backup, own_restore, restore] = seen.map(median);
    println!("\nbackup: MB/s, {SIZE_MIB} MiB of random bytes, sealed; medians of {rounds} rounds");
    println!("{:10} {:>9} {:>9} {:>7}", "", "custody", "restic", "ratio");
    println!("{:10} {own_backup:>9.0} {backup:>9.0} {:>7.2}", "backup", own_backup / backup);
    println!("{:10} {own_restore:>9.0} {restore:>9.0} {:>7.2}", "restore", own_restore / restore);
    Ok(())
}
