//! A vault that misbehaves as a cloud's does: what its callers see, by Azure's own client, and that whoever depends on it rides through.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_proto::storage::{GetVolumeRequest, VolumeState, storage_node_client::StorageNodeClient};
use custody_testkit::{
    Deployment, database_tools, eventually,
    volume::{Storage, customer_volume, reader, write_block},
};
use serde_json::Value;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, task::block_in_place};

const LIMIT: Duration = Duration::from_secs(60);

fn text(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap().to_owned()
}

fn misbehaving() -> Deployment {
    Deployment::start_with_environment(&["--faults", "none"], &[]).unwrap()
}

/// The vault `sdk`, in which one officer does everything.
fn with_vault(deployment: &Deployment) {
    let weak = ["--no-purge-protection", "--retention-days", "7", "--one-officer"];
    _ = deployment.run(&[&["vault", "create", "sdk"][..], &weak].concat());
}

/// Azure's SDK checks what a profile does to it.
fn sdk_sees(deployment: &Deployment, profile: &str, environment: &[(&str, &str)]) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = deployment.azure_program(&custody_integration_tests::python(), "sdk").unwrap();
    command.arg(here.join("sdk/python/faults.py")).arg(profile).envs(environment.iter().copied());
    command.env("PYTHONPATH", custody_integration_tests::NAMES);
    let output = command.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("checks passed"), "{said}");
}

#[test]
fn azure_standard_is_seen_by_azures_sdk() {
    let deployment = misbehaving();
    with_vault(&deployment);
    _ = deployment.run(&["key", "create", "vaults/sdk/keys/known"]);
    let app = deployment.principal("app", "workload");
    let newcomer = deployment.principal("newcomer", "workload");
    let role = "Key Vault Crypto User";
    let had = deployment.run(&["access", "grant", "principals/app", role, "vaults/sdk"]);
    _ = deployment.run(&["faults", "set", "azure-standard"]);
    // Neither change counts for a minute at least.
    _ = deployment.run(&["access", "revoke", &text(&had, "name")]);
    _ = deployment.run(&["access", "grant", "principals/newcomer", role, "vaults/sdk"]);
    let (app, newcomer) = (text(&app, "client_secret"), text(&newcomer, "client_secret"));
    sdk_sees(&deployment, "azure-standard", &[("APP_SECRET", &app), ("NEWCOMER_SECRET", &newcomer)]);
    let said = deployment.run(&["audit", "list", "--operation", "FaultProfileSet"]);
    assert!(said.to_string().contains("azure-standard"), "{said}");
}

#[test]
fn azure_premium_is_seen_by_azures_sdk() {
    let (deployment, _hsm) = Deployment::start_with_hsm(&["--faults", "none"]).unwrap();
    with_vault(&deployment);
    _ = deployment.run(&["faults", "set", "azure-premium"]);
    sdk_sees(&deployment, "azure-premium", &[]);
}

#[test]
fn a_bad_day_is_seen_by_azures_sdk() {
    let deployment = misbehaving();
    with_vault(&deployment);
    _ = deployment.run(&["faults", "set", "bad-day"]);
    sdk_sees(&deployment, "bad-day", &[]);
}

/// Only where the vault was started for it, and only for who has that duty.
#[test]
fn nobody_else_has_a_vault_misbehave() {
    let deployment = misbehaving();
    for who in ["officer", "sysadmin", "dba", "auditor"] {
        let refused = deployment.cli(&["--as", who, "faults", "set", "bad-day"]).unwrap_err();
        assert!(refused.to_string().contains("DUTY_NOT_ALLOWED"), "{refused}");
    }
    let refused = deployment.cli(&["faults", "set", "good-day"]).unwrap_err().to_string();
    assert!(refused.contains("named") && refused.contains("bad-day"), "{refused}");
    let refused = deployment.cli(&["--as", "tester", "vault", "list"]).unwrap_err().to_string();
    assert!(refused.contains("DUTY_NOT_ALLOWED"), "who has it misbehave does nothing else: {refused}");
    drop(deployment);
    let deployment = Deployment::start();
    assert!(!deployment.dir().join("credentials/tester.json").exists());
    _ = deployment.principal("tester", "fault_injector");
    let refused = deployment.cli(&["faults", "set", "bad-day"]).unwrap_err().to_string();
    assert!(refused.contains("UNIMPLEMENTED"), "{refused}");
}

struct Stage {
    deployment: Deployment,
    key: String,
    assignment: String,
    database: Storage,
    control: Storage,
    reads: Arc<AtomicU64>,
}

impl Stage {
    /// A volume under a customer's key, filled with sevens.
    async fn new(arguments: &[&str]) -> Self {
        let all = [&["--faults", "none"][..], arguments].concat();
        let deployment = Deployment::start_with_environment(&all, &[]).unwrap();
        let (key, identity, assignment) = block_in_place(|| deployment.key_and_identity("f"));
        deployment.bind(&identity).await.unwrap();
        let client = |who| StorageNodeClient::new(deployment.channel("storage", who).unwrap());
        let control = deployment.channel("storage", "workload:control").unwrap();
        customer_volume(control, "v", 16 << 20, &key, &identity).await.unwrap();
        let (mut database, control) = (client("workload:database"), client("workload:control"));
        write_block(&mut database, "v", 7).await.unwrap();
        Self { key, assignment, database, control, reads: Arc::default(), deployment }
    }

    fn run(&self, arguments: &[&str]) -> Value {
        block_in_place(|| self.deployment.run(arguments))
    }

    fn key_version(&self) -> String {
        let request = GetVolumeRequest { name: "volumes/v".into() };
        let volume = Handle::current().block_on(self.control.clone().get_volume(request));
        volume.unwrap().into_inner().key_version
    }

    fn state(&self) -> (bool, String) {
        let request = GetVolumeRequest { name: "volumes/v".into() };
        let volume =
            Handle::current().block_on(self.control.clone().get_volume(request)).unwrap().into_inner();
        (volume.state == i32::from(VolumeState::Ready), volume.state_reason)
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        block_in_place(|| eventually(what, LIMIT, || holds().then_some(())));
    }

    fn reads_on(&self, n: u64) {
        let from = self.reads.load(Ordering::Relaxed);
        self.until("reads go on", || self.reads.load(Ordering::Relaxed) > from + n);
    }
}

/// Throttled, failing, slow, with tokens that end early and a region that goes away for less than the grace: no read fails, a
/// rotation is followed, and a cluster is made meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_rides_through_a_bad_day() {
    database_tools().expect("scripts/test installs what this needs");
    let stage = Stage::new(&[]).await;
    let reading = reader(stage.database.clone(), "v".into(), stage.reads.clone());
    _ = stage.run(&["faults", "set", "bad-day"]);
    let set = Instant::now();
    let before = block_in_place(|| stage.key_version());
    block_in_place(|| {
        // The officer tries again as people do.
        eventually("the key is rotated", LIMIT, || stage.deployment.cli(&["key", "rotate", &stage.key]).ok());
    });
    stage.until("the volume follows", || stage.key_version() != before);
    let made = stage.run(&["cluster", "create", "day", "--workers", "1", "--size-mib", "512"]);
    let endpoint = made.pointer("/nodes/0/endpoint").and_then(Value::as_str).unwrap().to_owned();
    let answer = block_in_place(|| stage.deployment.sql(&endpoint, "SELECT 6 * 7")).unwrap();
    assert_eq!(answer, "42");
    // Until the region has been away by the profile at least once since the reads began.
    stage.until("a round of the profile's outages is over", || set.elapsed() > Duration::from_secs(32));
    stage.reads_on(100);
    assert!(!reading.is_finished(), "{}", reading.await.unwrap());
    reading.abort();
}

/// By Azure's own figures, nobody who depends on a key notices more than that a rotation is followed some seconds later.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_rides_through_azures_own_figures() {
    let stage = Stage::new(&[]).await;
    let reading = reader(stage.database.clone(), "v".into(), stage.reads.clone());
    let mut assignment = stage.assignment.clone();
    for profile in ["azure-standard", "azure-premium"] {
        _ = stage.run(&["faults", "set", profile]);
        let before = block_in_place(|| stage.key_version());
        _ = stage.run(&["key", "rotate", &stage.key]);
        stage.until("the volume follows", || stage.key_version() != before);
        // Rights that are taken away and given back before the change has come through were never away.
        _ = stage.run(&["access", "revoke", &assignment]);
        stage.reads_on(200);
        let role = "Key Vault Crypto Service Encryption User";
        _ = stage.run(&["faults", "set", "none"]);
        let given = stage.run(&["access", "grant", "managedIdentities/f", role, &stage.key]);
        assignment = text(&given, "name");
        stage.reads_on(10);
        assert!(!reading.is_finished(), "{profile}: {}", reading.await.unwrap());
    }
    reading.abort();
}

/// A region that is away for longer than the lease takes the volume away at its end, and gives it back when it returns.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_is_lost_for_longer_than_the_lease_ends_access_and_its_return_gives_it_back() {
    let stage = Stage::new(&["--lease-ms", "3000", "--renew-every-ms", "1000"]).await;
    let reading = reader(stage.database.clone(), "v".into(), stage.reads.clone());
    _ = stage.run(&["faults", "lose-region", "--for-s", "1"]);
    stage.until("the region is back", || {
        !stage.deployment.run(&["faults", "get"]).get("region_lost").unwrap().as_bool().unwrap()
    });
    stage.reads_on(100);
    assert!(!reading.is_finished(), "an outage within the grace fails nothing");
    _ = stage.run(&["faults", "lose-region"]);
    stage.until("the lease ends", || stage.state() == (false, "VAULT_UNREACHABLE".to_owned()));
    reading.await.unwrap();
    _ = stage.run(&["faults", "restore-region"]);
    stage.until("it is back", || stage.state().0);
    let reading = reader(stage.database.clone(), "v".into(), stage.reads.clone());
    stage.reads_on(10);
    reading.abort();
}

/// A week from now.
fn soon() -> String {
    let at = std::time::SystemTime::now() + Duration::from_secs(7 * 86_400);
    let since = at.duration_since(std::time::UNIX_EPOCH).unwrap();
    let seconds = i64::try_from(since.as_secs()).unwrap();
    prost_types::Timestamp { seconds, nanos: 0 }.to_string()
}

/// Rights that are taken away count until the change has come through; a clock that is ahead finds a key expired.
#[tokio::test(flavor = "multi_thread")]
async fn late_rights_and_wrong_clocks() {
    let stage = Stage::new(&[]).await;
    let reading = reader(stage.database.clone(), "v".into(), stage.reads.clone());
    // A change of roles takes two to five seconds there.
    _ = stage.run(&["faults", "set", "bad-day"]);
    let took = block_in_place(|| {
        eventually("the role is taken away", LIMIT, || {
            stage.deployment.cli(&["access", "revoke", &stage.assignment]).ok()
        });
        Instant::now()
    });
    reading.await.unwrap();
    assert!(took.elapsed() > Duration::from_secs(1), "it counted for a while");
    _ = stage.run(&["faults", "set", "none"]);
    let identity = "managedIdentities/f";
    _ = stage.run(&["access", "grant", identity, "Key Vault Crypto Service Encryption User", &stage.key]);
    stage.until("it is back", || stage.state().0);

    _ = stage.run(&["key", "dates", &stage.key, "--until", "2100-01-01T00:00:00Z"]);
    _ = stage.run(&["faults", "shift-clock", "vaults/f", "3000000"]);
    assert!(block_in_place(|| stage.state()).0, "a month ahead it is good");
    _ = stage.run(&["key", "dates", &stage.key, "--until", &soon()]);
    stage.until("a clock that is ahead finds the key expired", || {
        stage.state() == (false, "KEY_EXPIRED".to_owned())
    });
    _ = stage.run(&["faults", "shift-clock", "vaults/f", "0"]);
    stage.until("the right clock does not", || stage.state().0);
}

/// The page of a runbook that others write in Python (`docs/testing.md`).
#[tokio::test(flavor = "multi_thread")]
async fn a_runbook_in_python_over_grpc() {
    let stage = Stage::new(&[]).await;
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = block_in_place(|| {
        std::process::Command::new(custody_integration_tests::python())
            .arg(here.join("examples/runbook/runbook.py"))
            .args([stage.deployment.dir(), &here.join("proto")])
            .arg(&stage.key)
            .output()
            .unwrap()
    });
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("checks passed"), "{said}");
    stage.until("it was given back", || stage.state().0);
}
