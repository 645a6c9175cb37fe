//! One trace from a command through control plane and storage node to the vault; metrics; and no secret in either.
use custody_testkit::{Collector, Deployment, database_tools, eventually};
use std::time::Duration;

/// Waits until one trace, begun by a command, has a server span of each of these services and methods.
fn trace_of(collector: &Collector, expected: &[(&str, &str)]) {
    eventually(&format!("one trace with all of {expected:?}"), Duration::from_secs(30), || {
        let spans = collector.spans();
        let begun =
            spans.iter().filter(|(service, s)| service.contains("custody-cli") && s.name == "custody");
        begun.map(|(_, root)| &root.trace_id).find(|trace| {
            expected.iter().all(|(service, method)| {
                spans.iter().any(|(s, span)| {
                    s.contains(service) && span.name == *method && span.kind == 2 && span.trace_id == **trace
                })
            })
        })?;
        Some(())
    });
}

#[test]
fn one_trace_from_the_command_to_the_vault() {
    database_tools().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let collector = Collector::default();
    let serving = runtime.block_on(collector.serve("127.0.0.1:0", None)).unwrap();
    let address = format!("http://{}", serving.address);
    let deployment = Deployment::start_with(&["--otlp", &address]);
    let (key, identity, _) = deployment.key_and_identity("traced");
    let traced = |arguments: &[&str]| deployment.run(&[&["--otlp", address.as_str()], arguments].concat());

    _ = traced(&["key", "get", &key]);
    trace_of(&collector, &[("custody-vault", "custody.vault.v1.KeyVault/GetKey")]);

    // The work of a long-running operation is in the trace of the call that asked for it.
    let create = ["cluster", "create", "traced", "--key", &key, "--identity", &identity, "--workers", "0"];
    _ = traced(&[&create[..], &["--size-mib", "512"]].concat());
    trace_of(
        &collector,
        &[
            ("custody-control", "custody.control.v1.ClusterManager/CreateCluster"),
            ("custody-identity", "custody.identity.v1.Identity/BindManagedIdentity"),
            ("custody-node", "custody.storage.v1.StorageNode/CreateVolume"),
            ("custody-vault", "custody.vault.v1.KeyVault/WrapKey"),
            ("custody-database", "custody.database.v1.DatabaseNode/CreateInstance"),
        ],
    );

    _ = deployment.run(&["key", "rotate", &key]);
    _ = traced(&["cluster", "rewrap", "clusters/traced"]);
    trace_of(
        &collector,
        &[
            ("custody-control", "custody.control.v1.ClusterManager/RewrapCluster"),
            ("custody-node", "custody.storage.v1.StorageNode/RewrapVolume"),
            ("custody-vault", "custody.vault.v1.LeaseManager/RenewLeases"),
        ],
    );

    let everything = format!("{:?}", collector.spans());
    for principal in ["officer", "sysadmin"] {
        let path = deployment.dir().join(format!("credentials/{principal}.json"));
        let credential: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let secret = credential["client_secret"].as_str().unwrap();
        assert!(!everything.contains(secret), "a secret is in a trace");
    }
    let dir = deployment.stop();
    eventually("metrics arrive at the latest when services end", Duration::from_secs(20), || {
        collector.metrics().iter().any(|m| m == "rpc.server.call.duration").then_some(())
    });
    _ = std::fs::remove_dir_all(dir);
}
