//! A disk that does calls in part, interrupts them, and is slow to flush: nothing that was acknowledged is lost, and
//! nothing fails. Judged by fio's verification, by PostgreSQL, and by a backup that is restored.

use custody_proto::storage::{CreateVolumeRequest, Volume, storage_node_client::StorageNodeClient};
use custody_testkit::{Deployment, database_tools, eventually};
use std::{fs, path::Path, process::Command, time::Duration};
use tokio::task::block_in_place;

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| {
        unreachable!("{:?} is missing ({e}); scripts/install tests installs it", command.get_program())
    });
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn fio(deployment: &Deployment, dir: &Path, more: &[&str]) {
    let socket = deployment.dir().join("storage/nbd.sock");
    run(Command::new("fio")
        .args(["--name=raw", "--ioengine=nbd", "--rw=randwrite", "--bsrange=4k-256k", "--size=32M"])
        .args(["--iodepth=8", "--verify=crc32c", "--fsync=64", "--randseed=7"])
        .arg(format!("--uri=nbd+unix:///raw?socket={}", socket.display()))
        .arg(format!("--aux-path={}", dir.display()))
        .args(more)
        .current_dir(dir));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_on_a_disk_that_does_everything_in_part() {
    database_tools().expect("scripts/test installs what this needs");
    let dir = tempfile::tempdir().unwrap();
    let (shim, met) = (dir.path().join("disk.so"), dir.path().join("met"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("faults/disk.c");
    run(Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(&shim)
        .arg(source));
    let environment = [("LD_PRELOAD", &shim), ("CUSTODY_FAULTS", &met)]
        .map(|(name, path)| (name.to_owned(), path.display().to_string()));
    let deployment = block_in_place(|| Deployment::start_with_environment(&[], &environment)).unwrap();

    let mut control = StorageNodeClient::new(deployment.channel("storage", "workload:control").unwrap());
    let volume = Volume {
        size_bytes: 64 << 20,
        key: "vaults/platform/keys/service-managed".into(),
        managed_identity: "managedIdentities/platform".into(),
        ..Volume::default()
    };
    let request =
        CreateVolumeRequest { volume_id: "raw".into(), volume: Some(volume), source_backup: String::new() };
    control.create_volume(request).await.unwrap();
    block_in_place(|| {
        fio(&deployment, dir.path(), &["--do_verify=1"]);
        deployment.kill("storage");
        // The same again, reading only: after a recovery that read and wrote in part as well.
        eventually("the volume is served again", Duration::from_secs(30), || {
            let socket = deployment.dir().join("storage/nbd.sock");
            let uri = format!("nbd+unix:///raw?socket={}", socket.display());
            Command::new("qemu-io")
                .args(["-f", "raw", "-r", "-c", "read 0 4k", &uri])
                .output()
                .ok()?
                .status
                .success()
                .then_some(())
        });
        fio(&deployment, dir.path(), &["--verify_only=1"]);

        let new = ["cluster", "create", "source", "--workers", "0", "--size-mib", "512", "--archive-wal"];
        let made = deployment.run(&new);
        let endpoint = made.pointer("/nodes/0/endpoint").unwrap().as_str().unwrap().to_owned();
        let fill = "CREATE TABLE t AS SELECT n, md5(n::text) AS x FROM generate_series(1, 50000) n";
        deployment.sql(&endpoint, fill).unwrap();
        _ = deployment.run(&["backup", "create", "clusters/source", "full"]);
        deployment.sql(&endpoint, "UPDATE t SET n = -n WHERE n % 100 = 0; SELECT pg_switch_wal()").unwrap();
        _ = deployment.run(&["backup", "create", "clusters/source", "increment", "--base", "backups/full"]);
        _ = deployment.run(&["backup", "verify", "backups/increment"]);
        let copy = ["cluster", "create", "copy", "--workers", "0", "--size-mib", "512", "--from"];
        let made = deployment.run(&[&copy[..], &["backups/increment"]].concat());
        let copy = made.pointer("/nodes/0/endpoint").unwrap().as_str().unwrap().to_owned();
        let sums = "SELECT count(*), sum(n), count(*) FILTER (WHERE x = md5(abs(n)::text)) FROM t";
        let expected = deployment.sql(&endpoint, sums).unwrap();
        assert!(expected.starts_with("50000|") && expected.ends_with("|50000"), "{expected}");
        assert_eq!(deployment.sql(&copy, sums).unwrap(), expected);
        eventually("the log is archived", Duration::from_secs(30), || {
            let found = deployment.run(&["cluster", "get", "clusters/source"]);
            let to = found.pointer("/nodes/0/archived_to").unwrap().as_str().unwrap().to_owned();
            (!to.is_empty()).then_some(())
        });
    });
    let mut kinds = fs::read(&met).unwrap();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, b"abcd", "short reads, short writes, slow flushes, interrupted calls: each was met");
}
