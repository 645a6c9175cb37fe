//! A cluster's volumes grow, with the file systems on them, under load and over kills.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_clients::{Database, Storage};
use custody_proto::{
    database::{GetInstanceRequest, InstanceState},
    storage::ResizeVolumeRequest,
};
use custody_rpc::status::reason;
use custody_testkit::{Cluster, Deployment, Service, database_tools, eventually};
use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tonic::Code;

const LONG: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

fn endpoint(deployment: &Deployment, id: &str, node: usize) -> String {
    let cluster = deployment.run(&["cluster", "get", &format!("clusters/{id}")]);
    cluster.pointer(&format!("/nodes/{node}/endpoint")).unwrap().as_str().unwrap().to_owned()
}

/// MiB of the file system that an instance's data is on.
fn file_system_mib(deployment: &Deployment, instance: &str) -> u64 {
    let dir = deployment.dir().join("database/data").join(instance).join("data");
    let found = rustix::fs::statvfs(&dir).unwrap();
    (found.f_blocks * found.f_frsize) >> 20
}

/// MiB of a volume, as an NBD client sees it that connects now.
fn volume_mib(deployment: &Deployment, volume: &str) -> u64 {
    let socket = deployment.dir().join("storage/nbd.sock");
    let uri = format!("nbd+unix:///{volume}?socket={}", socket.display());
    let said = Command::new("nbdinfo").args(["--size", &uri]).output().unwrap();
    String::from_utf8_lossy(&said.stdout).trim().parse::<u64>().unwrap() >> 20
}

async fn until(there: impl AsyncFn() -> bool) {
    let end = Instant::now() + LONG;
    while !there().await {
        assert!(Instant::now() < end, "not within {LONG:?}");
        tokio::time::sleep(LOOK).await;
    }
}

fn rows(deployment: &Deployment, endpoint: &str) -> u64 {
    deployment.sql(endpoint, "SELECT count(*) FROM t").unwrap().trim().parse().unwrap()
}

#[test]
fn volumes_and_file_systems_grow_under_load_and_over_kills() {
    database_tools().expect("scripts/test installs what this needs");
    let deployment = Arc::new(Deployment::start());
    let made = deployment.run(&["cluster", "create", "grow", "--workers", "1", "--size-mib", "512"]);
    let at = made.pointer("/nodes/0/endpoint").unwrap().as_str().unwrap().to_owned();
    deployment.sql(&at, "CREATE TABLE t (id bigint PRIMARY KEY)").unwrap();
    let nodes = ["grow-coordinator", "grow-worker-1"];
    let before = nodes.map(|node| file_system_mib(&deployment, node));
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = std::thread::spawn({
        let (deployment, at) = (deployment.clone(), at.clone());
        let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
        move || {
            let mut id = 0;
            while !stop.load(Ordering::Relaxed) {
                id += 1;
                // While PostgreSQL starts again it refuses; what it acknowledged must be there.
                if deployment.sql(&at, &format!("INSERT INTO t VALUES ({id})")).is_ok() {
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
    eventually("rows are written", LONG, || (acknowledged.load(Ordering::Relaxed) > 5).then_some(()));

    let resize = |mib: &str| deployment.cli(&["cluster", "resize", "clusters/grow", "--size-mib", mib]);
    resize("768").unwrap();
    assert_eq!(nodes.map(|node| volume_mib(&deployment, node)), [768, 768]);
    let grown = nodes.map(|node| file_system_mib(&deployment, node));
    assert!(grown.iter().zip(before).all(|(now, was)| *now > was + 200), "{before:?} {grown:?}");
    let seen = deployment.run(&["cluster", "get", "clusters/grow"]);
    assert_eq!((seen["state"].as_str(), seen["mib"].as_u64()), (Some("READY"), Some(768)));

    // The control plane and the storage node are killed in the middle of the next one: it is finished.
    let asked = std::thread::spawn({
        let deployment = deployment.clone();
        move || deployment.cli(&["cluster", "resize", "clusters/grow", "--size-mib", "1024"])
    });
    eventually("it has begun", LONG, || (deployment.cluster_state("grow") == "UPDATING").then_some(()));
    deployment.kill("control");
    deployment.kill("storage");
    _ = asked.join();
    eventually("the growth is finished", LONG, || {
        let seen = deployment.cli(&["cluster", "get", "clusters/grow"]).ok()?;
        (seen["state"] == "READY" && seen["mib"] == 1024).then_some(())
    });
    assert_eq!(nodes.map(|node| volume_mib(&deployment, node)), [1024, 1024]);
    let again = nodes.map(|node| file_system_mib(&deployment, node));
    assert!(again.iter().zip(grown).all(|(now, was)| *now > was + 200), "{grown:?} {again:?}");
    let from = acknowledged.load(Ordering::Relaxed);
    eventually("it serves", LONG, || (acknowledged.load(Ordering::Relaxed) > from + 5).then_some(()));
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    assert!(rows(&deployment, &endpoint(&deployment, "grow", 0)) >= acknowledged.load(Ordering::Relaxed));
}

/// That the key is not at hand yet, because a node starts or the vault is away, is no refusal: a growth waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_growth_waits_for_a_vault_that_is_away() {
    let cluster = Arc::new(
        Cluster::builder().lease(Duration::from_secs(2), Duration::from_millis(500)).start().await.unwrap(),
    );
    let asked = tokio::spawn({
        let cluster = cluster.clone();
        async move { cluster.command(&["cluster", "resize", "clusters/sut", "--size-mib", "640"]).await }
    });
    until(async || {
        cluster.command(&["cluster", "get", "clusters/sut"]).await.unwrap()["state"] == "UPDATING"
    })
    .await;
    cluster.vault_outage(LONG * 2).await.unwrap();
    cluster.kill(Service::Storage).await.unwrap();
    let workload = |service: &str| cluster.deployment().channel(service, "workload:control").unwrap();
    let request = ResizeVolumeRequest { name: "volumes/sut-coordinator".into(), size_bytes: 640 << 20 };
    let refused = Storage::new(workload("storage")).resize_volume(request).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "VOLUME_INACCESSIBLE"));
    let instance = async || {
        let request = GetInstanceRequest { name: "instances/sut-coordinator".into() };
        let found = Database::new(workload("database")).get_instance(request).await;
        found.unwrap().into_inner()
    };
    until(async || instance().await.state == i32::from(InstanceState::Inaccessible)).await;
    assert!(!asked.is_finished());
    cluster.end_outage().await.unwrap();
    _ = asked.await.unwrap().unwrap();
    let seen = cluster.command(&["cluster", "get", "clusters/sut"]).await.unwrap();
    assert_eq!((seen["state"].as_str(), seen["mib"].as_u64()), (Some("READY"), Some(640)));
    assert_eq!(instance().await.volume_size_bytes, 640 << 20);
}

#[test]
fn what_cannot_be_is_refused_and_says_why() {
    database_tools().expect("scripts/test installs what this needs");
    let deployment = Deployment::start();
    _ = deployment.run(&["cluster", "create", "small", "--workers", "0", "--size-mib", "512"]);
    let refused = |arguments: &[&str]| {
        let all = [&["cluster", "resize", "clusters/small"], arguments].concat();
        deployment.cli(&all).unwrap_err().to_string()
    };
    for size in ["256", "512", "0", "-1", "8388608"] {
        let why = refused(&[&format!("--size-mib={size}")]);
        assert!(why.contains("volume_size_bytes") && why.contains("never shrink"), "{size}: {why}");
    }
    assert!(
        deployment.cli(&["--as", "dba", "cluster", "resize", "clusters/small", "--size-mib", "600"]).is_err()
    );
    _ = deployment.cli(&["cluster", "stop", "clusters/small"]).unwrap();
    let why = refused(&["--size-mib", "600"]);
    assert!(why.contains("STOPPED"), "{why}");
    assert_eq!(volume_mib(&deployment, "small-coordinator"), 512);
}

#[test]
fn backups_from_before_and_after_go_into_volumes_that_are_large_enough() {
    database_tools().expect("scripts/test installs what this needs");
    let deployment = Deployment::start();
    _ = deployment.run(&["cluster", "create", "origin", "--workers", "0", "--size-mib", "512"]);
    let at = endpoint(&deployment, "origin", 0);
    deployment.sql(&at, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id").unwrap();
    let backup = |arguments: &[&str]| {
        deployment.cli(&[&["backup", "create", "clusters/origin"], arguments].concat()).unwrap();
    };
    backup(&["small"]);
    deployment.cli(&["cluster", "resize", "clusters/origin", "--size-mib", "640"]).unwrap();
    let at = endpoint(&deployment, "origin", 0);
    deployment.sql(&at, "INSERT INTO t SELECT generate_series(1001, 1500)").unwrap();
    backup(&["large", "--base", "backups/small"]);
    let restore = |id: &str, from: &str, mib: &str| {
        let arguments = ["cluster", "create", id, "--workers", "0", "--size-mib", mib, "--from", from];
        deployment.cli(&arguments)
    };
    restore("roomy", "backups/small", "576").unwrap();
    assert_eq!(rows(&deployment, &endpoint(&deployment, "roomy", 0)), 1000);
    assert!(
        file_system_mib(&deployment, "roomy-coordinator")
            > file_system_mib(&deployment, "origin-coordinator") - 100
    );
    let why = restore("tight", "backups/large", "512").unwrap_err().to_string();
    assert!(why.contains("source_backup") && why.contains("no smaller"), "{why}");
    restore("equal", "backups/large", "640").unwrap();
    assert_eq!(rows(&deployment, &endpoint(&deployment, "equal", 0)), 1500);
    assert_eq!(volume_mib(&deployment, "equal-coordinator"), 640);
}
