//! A cluster changes from the service-managed key to a customer's, to another customer's, and back, while it serves.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_proto::control::{ChangeEncryptionRequest, cluster_manager_client::ClusterManagerClient};
use custody_rpc::status::reason;
use custody_testkit::{Deployment, database_tools, eventually};
use serde_json::Value;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

const LONG: Duration = Duration::from_secs(60);

fn cluster(deployment: &Deployment) -> Value {
    deployment.run(&["cluster", "get", "clusters/live"])
}

fn versions(deployment: &Deployment) -> Vec<String> {
    let seen = cluster(deployment);
    let nodes = seen.get("nodes").and_then(Value::as_array).unwrap().clone();
    nodes.iter().map(|n| n.get("key_version").unwrap().as_str().unwrap().to_owned()).collect()
}

fn change(deployment: &Deployment, key: &str, identity: &str) -> anyhow::Result<Value> {
    deployment.cli(&["cluster", "change-key", "clusters/live", "--key", key, "--identity", identity])
}

#[test]
fn from_the_services_key_to_a_customers_and_back_under_load() {
    database_tools().expect("scripts/test installs what this needs");
    let deployment = Arc::new(Deployment::start());
    let made = deployment.run(&["cluster", "create", "live", "--workers", "1", "--size-mib", "512"]);
    let endpoint = made.pointer("/nodes/0/endpoint").unwrap().as_str().unwrap().to_owned();
    deployment.sql(&endpoint, "CREATE TABLE t (id bigint PRIMARY KEY)").unwrap();
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = std::thread::spawn({
        let (deployment, endpoint) = (deployment.clone(), endpoint.clone());
        let (stop, written) = (stop.clone(), written.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                let id = written.load(Ordering::Relaxed) + 1;
                // No write fails: the customer who changes the key notices nothing.
                deployment.sql(&endpoint, &format!("INSERT INTO t VALUES ({id})")).unwrap();
                written.store(id, Ordering::Relaxed);
            }
        }
    });
    let more = |what: &str| {
        let from = written.load(Ordering::Relaxed);
        eventually(what, LONG, || (written.load(Ordering::Relaxed) > from + 5).then_some(()));
    };
    let (first, first_identity, _) = deployment.key_and_identity("first");
    let (second, second_identity, _) = deployment.key_and_identity("second");
    let service = versions(&deployment);

    change(&deployment, &first, &first_identity).unwrap();
    assert_eq!(cluster(&deployment)["key"], first);
    let under_first = versions(&deployment);
    assert!(under_first.iter().all(|v| !service.contains(v)), "{under_first:?}");
    more("writes go on under the customer's key");
    // Again is nothing to do; and the cluster follows the rotation of its new key.
    change(&deployment, &first, &first_identity).unwrap();
    assert_eq!(versions(&deployment), under_first);
    _ = deployment.run(&["key", "rotate", &first]);
    eventually("the cluster follows its new key", LONG, || {
        versions(&deployment).iter().all(|v| !under_first.contains(v)).then_some(())
    });

    // A key that may not be used changes nothing. The second key is known to nobody yet.
    _ = deployment.run(&["vault", "create", "other"]);
    _ = deployment.run(&["key", "create", "vaults/other/keys/other"]);
    let before = versions(&deployment);
    let refused = change(&deployment, "vaults/other/keys/other", &second_identity).unwrap_err().to_string();
    assert!(refused.contains("PERMISSION_DENIED") || refused.contains("not"), "{refused}");
    assert_eq!(
        (cluster(&deployment)["key"].clone(), versions(&deployment)),
        (Value::from(first.clone()), before)
    );
    assert_eq!(deployment.cluster_state("live"), "READY");

    change(&deployment, &second, &second_identity).unwrap();
    more("writes go on under the second key");
    // The first key is nobody's now: taking it away takes nothing away.
    _ = deployment.run(&["key", "disable", &first]);
    more("writes go on without the first key");
    // A stopped node opens the volumes with what is on disk: the second key.
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    deployment.kill("storage");
    let (count, wanted) = ("SELECT count(*) FROM t", written.load(Ordering::Relaxed).to_string());
    let endpoint = eventually("the cluster is back", LONG, || {
        let seen = cluster(&deployment);
        let at = seen.pointer("/nodes/0/endpoint")?.as_str().filter(|e| !e.is_empty())?.to_owned();
        // For a moment it may be the server that ran before, without its volume, which then ends.
        (deployment.sql(&at, count).ok()? == wanted).then_some(at)
    });
    // It is the second key that can be taken away.
    _ = deployment.run(&["key", "disable", &second]);
    eventually("the cluster is inaccessible", LONG, || {
        (deployment.cluster_state("live") == "INACCESSIBLE").then_some(())
    });
    let refused = change(&deployment, &first, &first_identity).unwrap_err().to_string();
    assert!(refused.contains("cannot be changed"), "{refused}");
    _ = deployment.run(&["key", "enable", &second]);
    eventually("the cluster is ready", LONG, || (deployment.cluster_state("live") == "READY").then_some(()));

    // Whoever runs the platform does not take the data from under the customer's key.
    let asked = ChangeEncryptionRequest { name: "clusters/live".into(), encryption: None };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let sysadmin = runtime.block_on(async {
        let channel = deployment.channel("control", "sysadmin").unwrap();
        ClusterManagerClient::new(channel).change_encryption(asked).await
    });
    assert_eq!(reason(&sysadmin.unwrap_err()), "OFFICER_REQUIRED");
    _ = deployment.run(&["cluster", "change-key", "clusters/live"]);
    assert_eq!(cluster(&deployment)["key"], "service-managed");
    _ = deployment.run(&["key", "disable", &second]);
    assert_eq!(deployment.sql(&endpoint, count).unwrap(), wanted);
    let trail = deployment.run(&["audit", "list", "control", "--resource", "clusters/live"]).to_string();
    assert!(trail.contains("ClusterChangeEncryption"), "{trail}");
}

/// A key whose budget of uses ends in the middle: the volume that has changed changes back.
#[test]
fn a_change_that_cannot_be_carried_out_is_undone() {
    database_tools().expect("scripts/test installs what this needs");
    let deployment = Deployment::start();
    _ = deployment.run(&["cluster", "create", "live", "--workers", "1", "--size-mib", "512"]);
    let before = versions(&deployment);
    let (key, identity, _) = deployment.key_and_identity("short");
    // The first volume takes a wrap, an unwrap that tries it, and the keeper's unwrap; the second begins with a wrap.
    let version = deployment.run(&["key", "get", &key])["version"].as_str().unwrap().to_owned();
    _ = deployment.run(&["key", "budget", &format!("{key}/versions/{version}"), "3"]);
    let refused = change(&deployment, &key, &identity).unwrap_err().to_string();
    assert!(refused.contains("budget"), "{refused}");
    let used = deployment.run(&["key", "get", &key]);
    assert_eq!(versions(&deployment), before, "both volumes are under the service's key: {used}");
    assert_eq!(
        (cluster(&deployment)["key"].as_str(), deployment.cluster_state("live").as_str()),
        (Some("service-managed"), "READY")
    );
}

/// Killed in the middle, over and over: the change is carried to its end.
#[test]
fn a_change_survives_kills() {
    database_tools().expect("scripts/test installs what this needs");
    let deployment = Deployment::start();
    _ = deployment.run(&["cluster", "create", "live", "--workers", "2", "--size-mib", "512"]);
    let (key, identity, _) = deployment.key_and_identity("first");
    for (round, service) in ["control", "storage", "vault", "control"].into_iter().enumerate() {
        let customer = round % 2 == 0;
        std::thread::scope(|scope| {
            // The command may be cut off with the control plane; the operation is not.
            scope.spawn(|| {
                if customer {
                    _ = change(&deployment, &key, &identity);
                } else {
                    _ = deployment.cli(&["cluster", "change-key", "clusters/live"]);
                }
            });
            deployment.kill(service);
        });
        let wanted = if customer { key.as_str() } else { "service-managed" };
        eventually(&format!("round {round}: changed over a kill of {service}"), LONG, || {
            let seen = deployment.cli(&["cluster", "get", "clusters/live"]).ok()?;
            let settled =
                seen["state"] == "READY" && seen["nodes"].as_array()?.iter().all(|n| n["endpoint"] != "");
            if settled && seen["key"] != wanted {
                // The kill came before the request was taken in.
                if customer {
                    _ = change(&deployment, &key, &identity);
                } else {
                    _ = deployment.cli(&["cluster", "change-key", "clusters/live"]);
                }
            }
            (settled && seen["key"] == wanted).then_some(())
        });
        let keys = deployment.run(&["volume", "list"]);
        let volumes = keys.as_array().unwrap().iter().filter(|v| v["key"] != "in memory only");
        let under: Vec<_> = volumes.map(|v| v["key"].as_str().unwrap().to_owned()).collect();
        assert_eq!(under.len(), 3);
        assert!(
            under.iter().all(|k| (k == &key) == customer),
            "round {round}: all volumes as one: {under:?}"
        );
    }
}
