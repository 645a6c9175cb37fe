//! A backup is whole or absent, whatever is killed while it is made; and a deleted one is gone.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_proto::storage::{
    BackupVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, Volume,
    storage_node_client::StorageNodeClient,
};
use custody_proto::{
    control::{CreateBackupRequest, cluster_manager_client::ClusterManagerClient},
    longrunning::{
        WaitOperationRequest, operation::Result as OperationResult, operations_client::OperationsClient,
    },
};
use custody_testkit::{Deployment, database_tools, eventually};
use std::{fs, time::Duration};

/// Every file of every backup, also of half-made ones.
fn files(deployment: &Deployment) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![deployment.dir().join("backups")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().map(Result::unwrap) {
            if entry.path().is_dir() {
                dirs.push(entry.path());
            } else {
                found.push(entry.path().display().to_string());
            }
        }
    }
    found
}

/// Begins a backup, kills a service once its first file is there, and answers how it ended.
async fn interrupted(deployment: &Deployment, id: &str, service: &str) -> Option<OperationResult> {
    let mut client = ClusterManagerClient::new(deployment.channel("control", "sysadmin").unwrap());
    let name = tokio::task::block_in_place(|| {
        // After an earlier blow the cluster may have to come back first.
        eventually("a backup can begin", Duration::from_secs(60), || {
            let (parent, base) = ("clusters/source".into(), String::new());
            let request = CreateBackupRequest { parent, backup_id: id.into(), base };
            let begun = tokio::runtime::Handle::current().block_on(client.create_backup(request));
            begun.ok().map(|operation| operation.into_inner().name)
        })
    });
    tokio::task::block_in_place(|| {
        eventually("the backup has begun", Duration::from_secs(10), || {
            (!files(deployment).is_empty()).then_some(())
        });
        deployment.kill(service);
    });
    let mut result = None;
    for _ in 0..100 {
        let wait = WaitOperationRequest {
            name: name.clone(),
            timeout: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        };
        let mut client = OperationsClient::new(deployment.channel("control", "sysadmin").unwrap());
        if let Ok(ended) = client.wait_operation(wait).await
            && ended.get_ref().done
        {
            result = ended.into_inner().result;
            break;
        }
    }
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_or_absent_and_gone_when_deleted() {
    database_tools().expect("scripts/test installs what this needs");
    let deployment = Deployment::start();
    let make = ["cluster", "create", "source", "--workers", "1", "--size-mib", "512"];
    let made = deployment.run(&make);
    let endpoint = made.pointer("/nodes/0/endpoint").unwrap().as_str().unwrap().to_owned();
    let fill = "CREATE TABLE t AS SELECT n, repeat(md5(n::text), 20) AS x FROM generate_series(1, 150000) n";
    deployment.sql(&endpoint, fill).unwrap();

    for service in ["control", "storage"] {
        // A backup may be faster than the blow; one that is not must be tried.
        let cut_short = (0..5).any(|_| {
            let ended = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(interrupted(&deployment, "nightly", service))
            });
            match ended.unwrap_or_else(|| unreachable!("the backup ends after {service} is back")) {
                OperationResult::Error(e) => {
                    assert!(e.message.contains("take another"), "{service}: {}", e.message);
                    true
                }
                OperationResult::Response(_) => {
                    _ = deployment.run(&["backup", "delete", "backups/nightly"]);
                    false
                }
            }
        });
        assert!(cut_short, "{service}: every backup was whole before the blow");
        assert_eq!(files(&deployment), Vec::<String>::new(), "{service}: half a backup is left");
        assert_eq!(deployment.run(&["backup", "list"]).as_array().unwrap().len(), 0);
    }

    // The name is free again.
    tokio::task::block_in_place(|| {
        eventually("the cluster can be backed up", Duration::from_secs(60), || {
            deployment.cli(&["backup", "create", "clusters/source", "nightly"]).ok()
        })
    });
    let manifests = files(&deployment).iter().filter(|f| f.ends_with("/manifest.json")).count();
    assert_eq!(manifests, 2, "one for each of the cluster's volumes");
    let twice = deployment.cli(&["backup", "create", "clusters/source", "nightly"]).unwrap_err();
    assert!(twice.to_string().contains("exists already"), "{twice}");
    _ = deployment.run(&["backup", "delete", "backups/nightly"]);
    assert_eq!(files(&deployment), Vec::<String>::new());
    let again = deployment.cli(&["backup", "delete", "backups/nightly"]).unwrap_err();
    assert!(again.to_string().contains("does not exist"), "{again}");
    let restore =
        ["cluster", "create", "copy", "--workers", "1", "--size-mib", "512", "--from", "backups/nightly"];
    let refused = deployment.cli(&restore).unwrap_err();
    assert!(refused.to_string().contains("does not exist"), "{refused}");
    let wrong = deployment.cli(&["backup", "delete", "nightly"]).unwrap_err();
    assert!(wrong.to_string().contains("`name`"), "{wrong}");

    // A retention keeps, of what it keeps, all that is needed.
    for (id, base) in
        [("full", ""), ("monday", "backups/full"), ("tuesday", "backups/monday"), ("second", "")]
    {
        let base = if base.is_empty() { vec![] } else { vec!["--base", base] };
        _ = deployment.run(&[&["backup", "create", "clusters/source", id], &base[..]].concat());
    }
    let names = |arguments: &[&str]| -> Vec<String> {
        let found = deployment.run(&[&["backup"], arguments].concat());
        let name = |b: &serde_json::Value| b.pointer("/name").unwrap().as_str().unwrap().to_owned();
        found.as_array().unwrap().iter().map(name).collect()
    };
    let prune = ["prune", "clusters/source"];
    assert_eq!(
        names(&[&prune[..], &["--keep-last", "2"]].concat()),
        Vec::<String>::new(),
        "tuesday needs all"
    );
    let gone = ["backups/tuesday", "backups/monday", "backups/full"];
    assert_eq!(names(&[&prune[..], &["--keep-last", "1", "--dry-run"]].concat()), gone);
    assert_eq!(names(&["list"]).len(), 4, "nothing was removed");
    assert_eq!(
        names(&[&prune[..], &["--keep-days", "1"]].concat()),
        Vec::<String>::new(),
        "all are of today"
    );
    assert_eq!(names(&[&prune[..], &["--keep-last", "1"]].concat()), gone);
    assert_eq!(names(&["list"]), ["backups/second"]);
    let wrong = deployment.cli(&["backup", "prune", "clusters/source"]).unwrap_err();
    assert!(wrong.to_string().contains("`keep_last`"), "{wrong}");
}

/// The data files of the parts of a backup whose place begins with `id`.
fn data_of(deployment: &Deployment, id: &str) -> Vec<String> {
    let prefix = format!("/backups/{id}-");
    files(deployment).into_iter().filter(|f| f.contains(&prefix) && f.contains("/data/")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn increments_restore_verify_and_hold_their_base() {
    database_tools().expect("scripts/test installs what this needs");
    let deployment = Deployment::start();
    let made = deployment.run(&["cluster", "create", "source", "--workers", "0", "--size-mib", "512"]);
    let endpoint = made.pointer("/nodes/0/endpoint").unwrap().as_str().unwrap().to_owned();
    let sql = |endpoint: &str, text: &str| deployment.sql(endpoint, text).unwrap();
    sql(
        &endpoint,
        "CREATE TABLE t AS SELECT n, repeat(md5(n::text), 20) AS x FROM generate_series(1, 20000) n",
    );
    _ = deployment.run(&["backup", "create", "clusters/source", "full"]);
    sql(&endpoint, "INSERT INTO t VALUES (0, 'one more')");
    _ = deployment.run(&["backup", "create", "clusters/source", "monday", "--base", "backups/full"]);
    sql(&endpoint, "UPDATE t SET x = 'changed' WHERE n = 7");
    _ = deployment.run(&["backup", "create", "clusters/source", "tuesday", "--base", "backups/monday"]);
    let len =
        |id: &str| -> u64 { data_of(&deployment, id).iter().map(|f| fs::metadata(f).unwrap().len()).sum() };
    assert!(len("monday") * 4 < len("full"), "{} of {} bytes have changed", len("monday"), len("full"));
    assert_eq!(deployment.run(&["backup", "list"])[2]["base"], "backups/monday");

    // No backup goes while another adds to it, and no other cluster's is a base.
    let held = deployment.cli(&["backup", "delete", "backups/full"]).unwrap_err().to_string();
    assert!(held.contains("`backups/monday` adds to it") && held.contains("BACKUP_IN_USE"), "{held}");
    _ = deployment.run(&["cluster", "create", "other", "--workers", "0", "--size-mib", "512"]);
    let wrong = deployment.cli(&["backup", "create", "clusters/other", "x", "--base", "backups/full"]);
    assert!(wrong.unwrap_err().to_string().contains("`base`: must be a backup of the same cluster"));
    let none = deployment.cli(&["backup", "create", "clusters/source", "x", "--base", "backups/none"]);
    assert!(none.unwrap_err().to_string().contains("does not exist"));

    // One flipped bit of the full backup: the increment that needs it does not verify, and is not restored.
    _ = deployment.run(&["backup", "verify", "backups/tuesday"]);
    let data = data_of(&deployment, "full").remove(0);
    let good = fs::read(&data).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&data, bad).unwrap();
    let altered = deployment.cli(&["backup", "verify", "backups/tuesday"]).unwrap_err().to_string();
    assert!(altered.contains("does not authenticate"), "{altered}");
    let restore = |id: &str, from: &str| {
        deployment.cli(&["cluster", "create", id, "--workers", "0", "--size-mib", "512", "--from", from])
    };
    let refused = restore("never", "backups/tuesday").unwrap_err().to_string();
    assert!(refused.contains("does not authenticate"), "{refused}");
    fs::write(&data, good).unwrap();
    _ = deployment.run(&["backup", "verify", "backups/tuesday"]);

    for (id, rows) in [("monday", "one more 0"), ("tuesday", "one more 1")] {
        let copy = restore(&format!("copy-{id}"), &format!("backups/{id}")).unwrap();
        let endpoint = copy.pointer("/nodes/0/endpoint").unwrap().as_str().unwrap().to_owned();
        let both = "SELECT (SELECT x FROM t WHERE n = 0) || ' ' || count(*) FROM t WHERE x = 'changed'";
        assert_eq!(sql(&endpoint, both).trim(), rows);
    }
    for id in ["tuesday", "monday", "full"] {
        _ = deployment.run(&["backup", "delete", &format!("backups/{id}")]);
    }
    assert_eq!(files(&deployment), Vec::<String>::new());
}

/// What may be added to can be restored, however long the chain is.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_ends_before_it_cannot_be_restored() {
    let deployment = Deployment::start();
    let mut client = StorageNodeClient::new(deployment.channel("storage", "workload:control").unwrap());
    let create = |id: &str, source_backup: &str| CreateVolumeRequest {
        volume_id: id.into(),
        volume: Some(Volume {
            size_bytes: 1 << 20,
            key: "vaults/platform/keys/service-managed".into(),
            managed_identity: "managedIdentities/platform".into(),
            ..Volume::default()
        }),
        source_backup: source_backup.into(),
    };
    client.create_volume(create("v", "")).await.unwrap();
    let mut taken = 0;
    let refused = loop {
        let base = if taken == 0 { String::new() } else { format!("b{taken}") };
        let request =
            BackupVolumeRequest { name: "volumes/v".into(), backup: format!("b{}", taken + 1), base };
        match client.backup_volume(request).await {
            Ok(progress) => {
                let mut progress = progress.into_inner();
                while let Some(part) = progress.message().await.unwrap() {
                    taken += u32::from(part.complete);
                }
            }
            Err(e) => break e,
        }
    };
    assert_eq!(taken, 64);
    assert!(refused.message().contains("take a full one"), "{refused}");
    client.create_volume(create("restored", "b64")).await.unwrap();
}

/// A restore that is killed goes on where it was, into the same file, and the volume is what was backed up.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_cut_short_goes_on() {
    let deployment = Deployment::start();
    let control = || StorageNodeClient::new(deployment.channel("storage", "workload:control").unwrap());
    let create = |id: &str, source_backup: &str| CreateVolumeRequest {
        volume_id: id.into(),
        volume: Some(Volume {
            size_bytes: 1 << 30,
            key: "vaults/platform/keys/service-managed".into(),
            managed_identity: "managedIdentities/platform".into(),
            ..Volume::default()
        }),
        source_backup: source_backup.into(),
    };
    let qemu_io = |volume: &str, commands: &[&str]| {
        let uri =
            format!("nbd+unix:///{volume}?socket={}", deployment.dir().join("storage/nbd.sock").display());
        let mut command = std::process::Command::new("qemu-io");
        let commands = commands.iter().flat_map(|c| ["-c", c]);
        let output = command.args(["-f", "raw"]).args(commands).arg(uri).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && !said.contains("failed"), "{volume}: {said}");
    };
    control().create_volume(create("v", "")).await.unwrap();
    qemu_io("v", &["write -P 0x5a 0 300M", "write -P 0xa5 300M 300M", "flush"]);
    let request =
        BackupVolumeRequest { name: "volumes/v".into(), backup: "full".into(), base: String::new() };
    let mut progress = control().backup_volume(request).await.unwrap().into_inner();
    while progress.message().await.unwrap().is_some() {}

    let mut client = control();
    let restoring = tokio::spawn(async move { client.create_volume(create("w", "full")).await });
    let partial = deployment.dir().join("storage/data/w.partial");
    tokio::task::block_in_place(|| {
        eventually("something of the restore is noted", Duration::from_secs(60), || {
            let head = fs::File::open(&partial).ok().and_then(|file| {
                let mut head = vec![0; 64 << 10];
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut head, 0).ok()?;
                Some(head)
            });
            let noted = b"\"restoring\":{\"chain\"";
            head?.windows(noted.len()).any(|w| w == noted).then_some(())
        });
        deployment.kill("storage");
    });
    assert!(restoring.await.unwrap().is_err(), "it was cut short");
    assert!(partial.exists());
    let made = control().create_volume(create("w", "full")).await.unwrap().into_inner();
    assert_eq!(made.name, "volumes/w");
    let log = fs::read_to_string(deployment.dir().join("logs/storage.log")).unwrap();
    assert!(log.contains("the restore goes on where it was cut short"), "it began again");
    qemu_io("w", &["read -P 0x5a 0 300M", "read -P 0xa5 300M 300M", "read -P 0 600M 24M"]);
    assert!(!partial.exists());

    // What is not gone on with is removed with the volume that it should have been.
    fs::copy(deployment.dir().join("storage/data/w.volume"), deployment.dir().join("storage/data/x.partial"))
        .unwrap();
    let delete = |name: &str| DeleteVolumeRequest { name: name.into() };
    control().delete_volume(delete("volumes/x")).await.unwrap();
    assert_eq!(control().delete_volume(delete("volumes/x")).await.unwrap_err().code(), tonic::Code::NotFound);
}
