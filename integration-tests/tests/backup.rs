//! A backup is whole or absent, whatever is killed while it is made; and a deleted one is gone.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

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
            let request = CreateBackupRequest { parent: "clusters/source".into(), backup_id: id.into() };
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
    assert!(files(&deployment).len() == 4, "{:?}", files(&deployment));
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
}
