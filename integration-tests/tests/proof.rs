//! A key that is taken away is proven to be gone everywhere, also where nobody could be told; and an outage takes nothing away.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_clients::{AuthenticatedChannel, Leases};
use custody_proto::{
    storage::{GetVolumeRequest, VolumeState},
    vault::{Lease, LeaseRequest, ListLeasesRequest, RenewLeasesRequest, ReportErasuresRequest},
};
use custody_testkit::{
    Deployment, eventually,
    memory::occurrences,
    volume::{Storage, customer_volume, read_block, reader, unwrapped, wrapped_key, write_block},
};
use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::task::block_in_place;

const LIMIT: Duration = Duration::from_secs(30);
const KEY: &str = "vaults/proof/keys/proof";

async fn leases(deployment: &Deployment) -> Vec<Lease> {
    let mut client = Leases::new(deployment.channel("vault", "officer").unwrap());
    let request = ListLeasesRequest { parent: KEY.into(), page_size: 1000, page_token: String::new() };
    client.list_leases(request).await.unwrap().into_inner().leases
}

/// A short lease, so that its end is worth waiting for.
fn deployment() -> Deployment {
    Deployment::start_with_environment(&["--lease-ms", "3000", "--renew-every-ms", "1000"], &[]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_proven_also_of_a_node_that_is_cut_off() {
    let deployment = deployment();
    let (key, identity, _) = deployment.key_and_identity("proof");
    assert_eq!(key, KEY);
    let second = deployment.storage_node("storage-2", None, None).unwrap();
    let third = deployment.node_behind_proxies("storage-3").unwrap();
    deployment.bind(&identity).await.unwrap();
    // The node's own clients, and where its volumes lie.
    let mut places: Vec<(AuthenticatedChannel, AuthenticatedChannel, PathBuf)> = vec![(
        deployment.channel("storage", "workload:control").unwrap(),
        deployment.channel("storage", "workload:database").unwrap(),
        deployment.dir().join("storage/data"),
    )];
    for node in [&second, &third.node] {
        deployment.bind_to(&identity, &node.principal()).await.unwrap();
        places.push((
            deployment.channel_to(node, "workload:control").unwrap(),
            deployment.channel_to(node, "workload:database").unwrap(),
            deployment.dir().join(node.principal().replace("principals/", "")).join("data"),
        ));
    }
    let reads: Vec<Arc<AtomicU64>> = (0..3).map(|_| Arc::default()).collect();
    let (mut readers, mut keys) = (Vec::new(), Vec::new());
    for (n, (control, database, data)) in places.iter().enumerate() {
        for volume in 0..4 {
            let volume = format!("n{n}-v{volume}");
            customer_volume(control.clone(), &volume, 16 << 20, &key, &identity).await.unwrap();
            let mut client = Storage::new(database.clone());
            write_block(&mut client, &volume, 7).await.unwrap();
            readers.push((n, reader(client, volume.clone(), reads.get(n).unwrap().clone())));
            let wrapped = wrapped_key(&data.join(format!("{volume}.volume"))).unwrap();
            keys.push(unwrapped(deployment.channel("vault", &identity).unwrap(), &wrapped).await.unwrap());
        }
    }
    let read_on = |n: usize, what: &str| {
        let before = reads.get(n).unwrap().load(Ordering::Relaxed);
        block_in_place(|| {
            eventually(what, LIMIT, || {
                (reads.get(n).unwrap().load(Ordering::Relaxed) > before + 8).then_some(())
            })
        });
    };
    assert_eq!(leases(&deployment).await.len(), 12);
    third.cut();
    read_on(2, "a node that is cut off serves while its lease lasts");

    let bundle = deployment.dir().join("bundle");
    let bundle_path = bundle.display().to_string();
    let closed =
        block_in_place(|| deployment.run(&["key", "revoke", KEY, "--prove", "--bundle", &bundle_path]));
    let number = |name: &str| closed.get(name).and_then(serde_json::Value::as_u64);
    assert_eq!(
        (number("leases"), number("erased"), number("lapsed")),
        (Some(12), Some(8), Some(4)),
        "{closed}"
    );
    // The vault has closed it: nobody holds anything any more, and nobody has been told on the third node.
    for (n, reader) in readers {
        let error = tokio::time::timeout(LIMIT, reader).await.unwrap().unwrap();
        assert!(error.message().contains("inaccessible"), "node {n}: {error}");
    }
    let pids = ["storage", "vault", "control", "database", "identity"].map(|s| deployment.pid(s));
    for (n, pid) in pids.into_iter().chain([second.pid(), third.node.pid()]).enumerate() {
        for key in &keys {
            block_in_place(|| {
                eventually(&format!("process {n} has no volume key in its memory"), LIMIT, || {
                    (occurrences(pid, key).unwrap() == 0).then_some(())
                });
            });
        }
    }

    // Offline: with the deployment's public keys, and nothing of it asked.
    let verify = |path: &str| deployment.cli(&["proof", "verify", path]);
    let verified = verify(&bundle_path).unwrap();
    assert_eq!(verified.pointer("/verified/ran_out"), Some(&4.into()), "{verified}");
    let text = fs::read_to_string(&bundle).unwrap();
    let altered = deployment.dir().join("altered");
    for at in [0, text.len() / 3, text.len() / 2, text.len() - 30] {
        let mut bytes = text.clone().into_bytes();
        let byte = bytes.get_mut(at).unwrap();
        *byte = if *byte == b'x' { b'y' } else { b'x' };
        fs::write(&altered, bytes).unwrap();
        let refused = verify(&altered.display().to_string()).unwrap_err().to_string();
        assert!(refused.contains("does NOT verify") || refused.contains("cannot be read"), "{refused}");
    }

    // Once it can be heard again, the third node says that it has erased, too: in the trail.
    third.mend();
    block_in_place(|| {
        eventually("each node has answered", LIMIT, || {
            let records = deployment.run(&["audit", "list", "--resource", KEY]);
            let of = |record: &&serde_json::Value| {
                record.get("operation").and_then(serde_json::Value::as_str) == Some("KeyErasureReport")
            };
            (records.as_array()?.iter().filter(of).count() == 12).then_some(())
        });
        _ = deployment.run(&["key", "reinstate", KEY]);
    });
    for (n, (_, database, _)) in places.iter().enumerate() {
        let mut client = Storage::new(database.clone());
        let volume = format!("n{n}-v0");
        let deadline = tokio::time::Instant::now() + LIMIT;
        let back = loop {
            match read_block(&mut client, &volume).await {
                Ok(bytes) => break bytes,
                Err(e) => assert!(tokio::time::Instant::now() < deadline, "{volume}: {e}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert!(back.iter().all(|b| *b == 7));
    }
    assert!(leases(&deployment).await.iter().all(|lease| lease.epoch == 1));
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn seconds(lease: &Lease) -> (f64, f64, f64) {
    let span = |d: &Option<prost_types::Duration>| Duration::try_from(d.unwrap()).unwrap().as_secs_f64();
    let granted = lease.grant_time.unwrap();
    (granted.seconds as f64 + f64::from(granted.nanos) / 1e9, span(&lease.duration), span(&lease.grace))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_within_the_grace_is_ridden_through_and_a_longer_one_is_not() {
    let deployment = deployment();
    let (key, identity, _) = deployment.key_and_identity("proof");
    let cut = deployment.node_behind_proxies("storage-2").unwrap();
    deployment.bind_to(&identity, &cut.node.principal()).await.unwrap();
    let control = deployment.channel_to(&cut.node, "workload:control").unwrap();
    let mut database = Storage::new(deployment.channel_to(&cut.node, "workload:database").unwrap());
    customer_volume(control.clone(), "v", 16 << 20, &key, &identity).await.unwrap();
    write_block(&mut database, "v", 7).await.unwrap();
    // The owner allows less than the node would take, and the node is told.
    _ = block_in_place(|| {
        deployment.run(&["key", "lease-policy", &key, "--duration-s", "2.5", "--grace-s", "2"])
    });
    let only = async || leases(&deployment).await.pop().unwrap();
    let renewed = async |after: f64| {
        let deadline = now() + LIMIT.as_secs_f64();
        loop {
            let lease = only().await;
            if seconds(&lease).0 > after && seconds(&lease).1 == 2.5 {
                return lease;
            }
            assert!(now() < deadline, "the lease is not renewed: {lease:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(seconds(&renewed(0.0).await), (seconds(&only().await).0, 2.5, 2.0));
    for _ in 0..2 {
        let reads = Arc::<AtomicU64>::default();
        let reading = reader(database.clone(), "v".into(), reads.clone());
        cut.vault.cut();
        let last = seconds(&only().await).0;
        // Its renewal is overdue by half of the grace.
        while now() < last + 1.5 {
            write_block(&mut database.clone(), "v", 7).await.unwrap();
        }
        assert!(!reading.is_finished(), "an outage within the grace fails nothing");
        cut.vault.mend();
        // An answer may have been lost with the connection: the third one follows one that was heard.
        let mut after = last + 1.5;
        for _ in 0..3 {
            after = seconds(&renewed(after).await).0;
        }
        assert!(!reading.is_finished());
        reading.abort();
    }

    cut.vault.cut();
    let mut control = Storage::new(control);
    let mut state = async |wanted: VolumeState| {
        let deadline = now() + LIMIT.as_secs_f64();
        loop {
            let seen = control.get_volume(GetVolumeRequest { name: "volumes/v".into() }).await.unwrap();
            let seen = seen.into_inner();
            if seen.state == i32::from(wanted) {
                return seen.state_reason;
            }
            assert!(now() < deadline, "{seen:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(state(VolumeState::Inaccessible).await, "VAULT_UNREACHABLE");
    assert!(read_block(&mut database, "v").await.is_err());
    cut.vault.mend();
    state(VolumeState::Ready).await;
    assert!(read_block(&mut database, "v").await.unwrap().iter().all(|b| *b == 7), "nothing is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_asked_for_by_holders_with_certificates_alone() {
    let deployment = Deployment::start();
    let (_, identity, _) = deployment.key_and_identity("proof");
    deployment.bind(&identity).await.unwrap();
    let version = block_in_place(|| deployment.run(&["key", "versions", KEY]));
    let version = version.pointer("/0/name").unwrap().as_str().unwrap().to_owned();
    let ask = |token: String, volume: &str| RenewLeasesRequest {
        holdings: vec![custody_proto::vault::Holding {
            token,
            leases: vec![LeaseRequest {
                volume: volume.to_owned(),
                key_version: version.clone(),
                duration: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
            }],
        }],
    };
    let token = deployment.tokens(&identity, "custody-vault").unwrap().text().await.unwrap();
    // As the node, but without its certificate.
    let mut bare = Leases::new(deployment.channel("vault", "workload:storage").unwrap());
    let refused = bare.renew_leases(ask(token.clone(), "volumes/v")).await.unwrap_err();
    assert_eq!(custody_rpc::status::reason(&refused), "CLIENT_CERTIFICATE_REQUIRED");
    let refused = bare.report_erasures(ReportErasuresRequest::default()).await.unwrap_err();
    assert_eq!(custody_rpc::status::reason(&refused), "CLIENT_CERTIFICATE_REQUIRED");
    // With it, and a token that is none, or of one without rights.
    let tokens = deployment.tokens("workload:storage", "custody-vault").unwrap();
    let mut own =
        Leases::new(deployment.endpoint_as("vault", "storage").unwrap().authenticated(tokens.clone()));
    for (token, reason) in
        [("nonsense".to_owned(), "INVALID_TOKEN"), (tokens.text().await.unwrap(), "PERMISSION_DENIED")]
    {
        let answer = own.renew_leases(ask(token, "volumes/v")).await.unwrap().into_inner();
        let Some(custody_proto::vault::lease_result::Result::Refusal(refusal)) =
            answer.results.into_iter().next().unwrap().result
        else {
            unreachable!("a lease was granted")
        };
        assert_eq!(refusal.reason, reason);
    }
    let bad = own.renew_leases(ask(token.clone(), "no name")).await.unwrap_err();
    assert!(bad.message().contains("leases.volume"), "{bad}");
    let granted = own.renew_leases(ask(token, "volumes/v")).await.unwrap().into_inner();
    assert!(matches!(
        granted.results.first().unwrap().result,
        Some(custody_proto::vault::lease_result::Result::Lease(_))
    ));
}
