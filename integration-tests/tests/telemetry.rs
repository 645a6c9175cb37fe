//! One trace from a command through control plane and storage node to the vault; metrics; and no secret in either.
use custody_testkit::{Collector, Deployment, eventually};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_from_the_command_to_the_vault() {
    let (collector, address) = Collector::start().await.unwrap();
    let deployment = tokio::task::block_in_place(|| Deployment::start_with(&["--otlp", &address]));
    let (key, identity) = tokio::task::block_in_place(|| {
        let (key, identity, _) = deployment.key_and_identity("traced");
        _ = deployment.run(&["--otlp", &address, "key", "get", &key]);
        (key, identity)
    });
    // Re-wrapping goes from the command to the control plane; the control plane's own spans go to the node.
    _ = (key, identity);
    let trace = tokio::task::block_in_place(|| {
        eventually("the vault's span is in the command's trace", Duration::from_secs(30), || {
            let spans = collector.spans();
            let root = spans
                .iter()
                .find(|(service, span)| service.contains("custody-cli") && span.name == "custody")?
                .1
                .trace_id
                .clone();
            let of_trace: Vec<_> = spans.into_iter().filter(|(_, s)| s.trace_id == root).collect();
            let reached = of_trace.iter().any(|(service, s)| {
                service.contains("custody-vault") && s.name == "custody.vault.v1.KeyVault/GetKey"
            });
            reached.then_some(of_trace)
        })
    });
    assert!(
        trace.iter().any(|(_, s)| s.name == "custody.vault.v1.KeyVault/GetKey" && s.kind == 3),
        "the client's span"
    );
    let secrets: Vec<String> = ["officer", "sysadmin"]
        .iter()
        .map(|p| std::fs::read_to_string(deployment.dir().join(format!("credentials/{p}.json"))).unwrap())
        .map(|t| {
            serde_json::from_str::<serde_json::Value>(&t).unwrap()["client_secret"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let everything = format!("{:?}", collector.spans());
    for secret in secrets {
        assert!(!everything.contains(&secret), "a secret is in a trace");
    }
    let dir = tokio::task::block_in_place(|| deployment.stop());
    tokio::task::block_in_place(|| {
        eventually("metrics arrive at the latest when services end", Duration::from_secs(20), || {
            collector.metrics().iter().any(|m| m == "rpc.server.call.duration").then_some(())
        })
    });
    _ = std::fs::remove_dir_all(dir);
}
