//! What the leases of many clusters cost the vault: while nothing happens, and when the node comes back.

use crate::load::Process;
use anyhow::Context as _;
use custody_testkit::{Deployment, volume::customer_volume};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::task::block_in_place;

/// Clusters, each with a key, an identity and a volume of its own.
const CLUSTERS: usize = 100;
/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(60);
/// Outages of the vault that are longer than the lease.
const OUTAGES: usize = 5;

/// Records of an operation's ends in the vault's trail, by second.
fn by_second(deployment: &Deployment, operation: &str, after: u64) -> anyhow::Result<Vec<usize>> {
    let mut seconds = std::collections::BTreeMap::new();
    for file in std::fs::read_dir(deployment.dir().join("vault/data/audit"))? {
        let path = file?.path();
        if path.extension().is_none_or(|e| e != "jsonl") {
            continue;
        }
        for line in std::fs::read_to_string(path)?.lines() {
            let line: Value = serde_json::from_str(line)?;
            let field = |name: &str| line.pointer(&format!("/record/{name}"));
            let is = |name: &str, value: &str| field(name).and_then(Value::as_str) == Some(value);
            let time = field("time").and_then(Value::as_u64).unwrap_or_default();
            if time >= after && is("operationName", operation) && is("phase", "Finish") {
                *seconds.entry((time - after) / 1000).or_default() += 1;
            }
        }
    }
    Ok(seconds.into_values().collect())
}

fn now_ms() -> u64 {
    use custody_types::Clock as _;
    custody_types::SystemClock.now().as_millis()
}

async fn serving(deployment: &Deployment) -> anyhow::Result<()> {
    ready(deployment, CLUSTERS).await
}

/// Waits until so many volumes can be used.
async fn ready(deployment: &Deployment, wanted: usize) -> anyhow::Result<()> {
    let until = Instant::now() + LIMIT;
    loop {
        let volumes = block_in_place(|| deployment.cli(&["volume", "list"]))?;
        let ready = volumes
            .as_array()
            .into_iter()
            .flatten()
            .filter(|v| v.get("state").and_then(Value::as_str) == Some("READY"));
        if ready.count() == wanted {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < until, "not {wanted} volumes can be used: {volumes}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn run() -> anyhow::Result<()> {
    let deployment = block_in_place(|| Deployment::start_with_environment(&["--faults", "none"], &[]))?;
    for n in 0..CLUSTERS {
        let (key, identity, _) = block_in_place(|| deployment.key_and_identity(&format!("c{n}")));
        deployment.bind(&identity).await?;
        let control = deployment.channel("storage", "workload:control")?;
        customer_volume(control, &format!("v{n}"), 16 << 20, &key, &identity).await?;
    }
    let vault = Process::of(&deployment, "vault");
    // What came of making them is over when each has been renewed.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let (began, cpu) = (now_ms(), vault.cpu());
    tokio::time::sleep(WATCHED).await;
    let used = (vault.cpu() - cpu).as_secs_f64() / WATCHED.as_secs_f64();
    let renewals: usize = by_second(&deployment, "KeyLeaseRenew", began)?.iter().sum();
    let opened: usize = by_second(&deployment, "KeyUnwrap", began)?.iter().sum();
    println!(
        "\nleases: {CLUSTERS} clusters with a key and an identity each, on one node; 15 s, renewed every 5 s\nin {} s: {:.1} renewals a second on record, {opened} unwrapped keys, {:.2} % of a core of the vault",
        WATCHED.as_secs(),
        renewals as f64 / WATCHED.as_secs_f64(),
        used * 100.0
    );
    let (began, cpu, started) = (now_ms(), vault.cpu(), Instant::now());
    block_in_place(|| deployment.kill("storage"));
    serving(&deployment).await?;
    let back = started.elapsed();
    let used = vault.cpu() - cpu;
    let most = |operation: &str| -> anyhow::Result<usize> {
        by_second(&deployment, operation, began)?.into_iter().max().context("nothing on record")
    };
    println!(
        "the node killed: all volumes serve after {:.1} s; at most {} leases and {} unwrapped keys on record in a second; {:.0} ms of the vault's processor",
        back.as_secs_f64(),
        most("KeyLeaseRenew")?,
        most("KeyUnwrap")?,
        used.as_secs_f64() * 1e3
    );
    let (began, started) = (now_ms(), Instant::now());
    block_in_place(|| deployment.kill("vault"));
    let until = Instant::now() + LIMIT;
    let mut renewed = 0;
    while renewed < CLUSTERS {
        anyhow::ensure!(Instant::now() < until, "a lease is not renewed");
        tokio::time::sleep(Duration::from_millis(20)).await;
        renewed = by_second(&deployment, "KeyLeaseRenew", began)?.iter().sum();
    }
    println!(
        "the vault killed: each lease renewed once after {:.1} s; at most {} leases on record in a second, no volume away",
        started.elapsed().as_secs_f64(),
        most_of(&by_second(&deployment, "KeyLeaseRenew", began)?)
    );
    serving(&deployment).await?;
    let mut back = Vec::new();
    for _ in 0..OUTAGES {
        _ = block_in_place(|| deployment.cli(&["faults", "lose-region"]))?;
        ready(&deployment, 0).await?;
        let returned = Instant::now();
        _ = block_in_place(|| deployment.cli(&["faults", "restore-region"]))?;
        serving(&deployment).await?;
        back.push(returned.elapsed().as_secs_f64());
    }
    back.sort_by(f64::total_cmp);
    println!(
        "the vault away for longer than the lease, {OUTAGES} times: all {CLUSTERS} volumes back {:.1} s after its return in the median, {:.1} s at worst",
        back.get(OUTAGES / 2).copied().unwrap_or_default(),
        back.last().copied().unwrap_or_default()
    );
    Ok(())
}

fn most_of(seconds: &[usize]) -> usize {
    seconds.iter().copied().max().unwrap_or_default()
}
