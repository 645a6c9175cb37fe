//! kill -9 of each service in turn, under load: every acknowledged write and every audit record is there.
use custody_proto::storage::{
    CreateVolumeRequest, ReadBlocksRequest, Volume, WriteBlocksRequest,
    storage_node_client::StorageNodeClient,
};
use custody_proto::vault::{GetKeyRequest, key_vault_client::KeyVaultClient};
use custody_testkit::{Deployment, database_tools, eventually};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Rounds over all services.
const ROUNDS: usize = if cfg!(feature = "slow") { 20 } else { 10 };
const SERVICES: [&str; 5] = ["vault", "identity", "control", "storage", "database"];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost() {
    database_tools().expect("scripts/test installs what this needs");
    let deployment = Arc::new(Deployment::start());
    let (key, identity, _) = deployment.key_and_identity("crash");
    let endpoint = deployment.cluster("crash", &key, &identity, 0);
    deployment.sql(&endpoint, "CREATE TABLE acknowledged (id bigint PRIMARY KEY)").unwrap();
    let endpoint = Arc::new(Mutex::new(endpoint));
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::<u64>::new())));

    // The DBA's load: every id whose INSERT was acknowledged is noted.
    let load = std::thread::spawn({
        let (deployment, endpoint, stop, written) =
            (deployment.clone(), endpoint.clone(), stop.clone(), written.clone());
        move || {
            let mut id = 0u64;
            while !stop.load(Ordering::Relaxed) {
                id += 1;
                let at = endpoint.lock().unwrap().clone();
                if deployment.sql(&at, &format!("INSERT INTO acknowledged VALUES ({id})")).is_ok() {
                    written.lock().unwrap().push(id);
                }
            }
        }
    });
    // The officer's load: every answered call must have its record.
    let answered = Arc::new(AtomicU64::new(0));
    let calls = tokio::spawn({
        let (deployment, stop, answered, key) =
            (deployment.clone(), stop.clone(), answered.clone(), key.clone());
        async move {
            let mut client = KeyVaultClient::new(deployment.channel("vault", "officer").unwrap());
            let mut pace = tokio::time::interval(Duration::from_millis(5));
            while !stop.load(Ordering::Relaxed) {
                if client.get_key(GetKeyRequest { name: key.clone() }).await.is_ok() {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                pace.tick().await;
            }
        }
    });

    for round in 0..ROUNDS {
        for service in SERVICES {
            let before = written.lock().unwrap().len();
            tokio::task::block_in_place(|| deployment.kill(service));
            // The load must get through again before the next blow, or nothing would be tested.
            tokio::task::block_in_place(|| {
                eventually(
                    &format!("round {round}: writes go on after {service} was killed"),
                    Duration::from_secs(90),
                    || {
                        if let Ok(seen) = deployment.cli(&["cluster", "get", "clusters/crash"])
                            && let Some(now) = seen
                                .pointer("/nodes/0/endpoint")
                                .and_then(|e| e.as_str())
                                .filter(|e| !e.is_empty())
                        {
                            now.clone_into(&mut endpoint.lock().unwrap());
                        }
                        (written.lock().unwrap().len() > before + 2).then_some(())
                    },
                );
            });
        }
    }
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    calls.await.unwrap();

    let at = endpoint.lock().unwrap().clone();
    let there = deployment.sql(&at, "SELECT id FROM acknowledged").unwrap();
    let there: std::collections::HashSet<u64> = there.lines().map(|l| l.parse().unwrap()).collect();
    let written = written.lock().unwrap();
    let lost: Vec<_> = written.iter().filter(|id| !there.contains(id)).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged rows are lost: {lost:?}", lost.len(), written.len());
    assert!(written.len() > ROUNDS * SERVICES.len() * 2);

    let report = deployment.cli(&["audit", "verify"]).unwrap();
    assert!(report.to_string().contains("records"), "{report}");
    let records = deployment.run(&["audit", "list", "vault", "--resource", &key]);
    let recorded = records
        .as_array()
        .unwrap()
        .iter()
        .filter(|r| {
            r["operation"] == "KeyGet" && r["result"] == "Success" && r["principal"] == "principals/officer"
        })
        .count();
    let answered = usize::try_from(answered.load(Ordering::Relaxed)).unwrap();
    assert!(
        recorded >= answered && answered > 100,
        "{answered} calls were answered, {recorded} have a record"
    );
    println!(
        "{} acknowledged rows and {answered} answered calls over {} kills; none lost",
        written.len(),
        ROUNDS * SERVICES.len()
    );
}

/// A write that was acknowledged without a flush survives the end of the process (not of the machine).
#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_block_survives_its_node() {
    let deployment = Deployment::start();
    let make = CreateVolumeRequest {
        volume_id: "raw".into(),
        volume: Some(Volume {
            size_bytes: 64 << 20,
            key: "vaults/platform/keys/service-managed".into(),
            managed_identity: "managedIdentities/platform".into(),
            ..Volume::default()
        }),
        source_backup: String::new(),
    };
    StorageNodeClient::new(deployment.channel("storage", "workload:control").unwrap())
        .create_volume(make)
        .await
        .unwrap();
    for round in 0..5u64 {
        let mut client = StorageNodeClient::new(deployment.channel("storage", "workload:database").unwrap());
        let data: Vec<u8> = (0..1 << 20).map(|i| (i as u64 * 31 + round) as u8).collect();
        let parts: Vec<_> = (0..8)
            .map(|n| WriteBlocksRequest {
                name: "volumes/raw".into(),
                offset: round * (8 << 20) + n * (1 << 20) + 512,
                data: data.clone(),
                flush: false,
            })
            .collect();
        let done = client.write_blocks(tokio_stream::iter(parts)).await.unwrap().into_inner();
        assert_eq!(done.written_bytes, 8 << 20);
        tokio::task::block_in_place(|| deployment.kill("storage"));
        for past in 0..=round {
            let expected: Vec<u8> = (0..1 << 20).map(|i| (i as u64 * 31 + past) as u8).collect();
            let request = ReadBlocksRequest {
                name: "volumes/raw".into(),
                offset: past * (8 << 20) + 512,
                length: 1 << 20,
            };
            let mut read = Vec::new();
            for _ in 0..6000 {
                // The node waits for the vault before it opens the volume.
                if let Ok(stream) = client.read_blocks(request.clone()).await {
                    let mut stream = stream.into_inner();
                    while let Some(part) = stream.message().await.unwrap() {
                        read.extend(part.data);
                    }
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(read == expected, "round {round}: what round {past} wrote is not there");
        }
    }
}
