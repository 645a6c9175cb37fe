//! Audit trails as OpenTelemetry logs: all of each, in order and byte for byte, whatever the collector does; and what is old and
//! sent can be removed.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_audit::{
    FileLimits, Journal, Outcome, Record, TreeHead, trail_key,
    tree::{Edge, leaf_hash},
};
use custody_testkit::{Collector, Deployment, eventually};
use custody_types::{Caller, Clock, Duty, UnixMillis};
use opentelemetry_proto::tonic::{
    collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse},
    common::v1::any_value::Value as Any,
    logs::v1::LogRecord,
};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};
use tonic::{
    Code, Status,
    transport::{Certificate, Identity, ServerTlsConfig},
};
use tonic_types::{ErrorDetails, StatusExt as _};

const LIMIT: Duration = Duration::from_secs(30);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

fn body(record: &LogRecord) -> String {
    match record.body.as_ref().and_then(|body| body.value.clone()) {
        Some(Any::StringValue(text)) => text,
        other => format!("{other:?}"),
    }
}

fn attribute(record: &LogRecord, key: &str) -> String {
    let value = record.attributes.iter().find(|a| a.key == key).and_then(|a| a.value.clone()?.value);
    match value {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// The records of a service's trail that a collector has, by number.
fn records(collector: &Collector, service: &str) -> BTreeMap<u64, String> {
    let logs = collector.logs();
    let own = logs.iter().filter(|(s, r)| s.contains(service) && r.event_name == "custody.audit.record");
    own.map(|(_, r)| (attribute(r, "custody.audit.sequence").parse().unwrap(), body(r))).collect()
}

fn number(status: &Value, field: &str) -> u64 {
    status.get(field).and_then(Value::as_u64).unwrap_or_default()
}

fn status(deployment: &Deployment) -> Value {
    deployment.run(&["audit", "status"])
}

/// Waits until a collector has what the vault's trail has by now.
fn wait_until_sent(deployment: &Deployment) -> Value {
    let now = number(&status(deployment), "last");
    eventually("the collector has the trail", LIMIT, || {
        let status = status(deployment);
        (number(&status, "sent") >= now).then_some(status)
    })
}

/// Whether what a collector has is the trail that was signed: all records without a gap, and the root over them.
fn check(collector: &Collector, service: &str, dir: &Path) {
    let public = fs::read_to_string(dir.join(service).join("data/audit/checkpoint.pub")).unwrap();
    let public: Vec<u8> =
        (0..32).map(|i| u8::from_str_radix(public.get(i * 2..i * 2 + 2).unwrap(), 16).unwrap()).collect();
    let key = trail_key(&public).unwrap();
    let records = records(collector, &format!("custody-{service}"));
    let (mut edge, mut roots) = (Edge::default(), BTreeMap::new());
    for (at, (sequence, record)) in (1..).zip(&records) {
        assert_eq!(at, *sequence, "a record of {service} was left out");
        edge.push(leaf_hash(record.as_bytes()), |_| ());
        roots.insert(at, edge.root());
    }
    let logs = collector.logs();
    let notes =
        logs.iter().filter(|(s, r)| s.contains(service) && r.event_name == "custody.audit.checkpoint");
    let mut signed = 0;
    for (_, note) in notes {
        let tree = TreeHead::open(&body(note), &key).unwrap();
        assert_eq!(roots.get(&tree.size), Some(&tree.root), "{service}: {} records", tree.size);
        assert_eq!(attribute(note, "custody.audit.tree_size"), tree.size.to_string());
        signed += 1;
    }
    assert!(signed > 0, "no checkpoint of {service} came");
}

#[test]
fn a_collector_has_every_trail_whole_and_can_check_it() {
    let runtime = runtime();
    let collector = Collector::default();
    let serving = runtime.block_on(collector.serve("127.0.0.1:0", None)).unwrap();
    let deployment = Deployment::start_with(&["--audit-otlp", &format!("http://{}", serving.address)]);
    let (key, _, _) = deployment.key_and_identity("watched");
    assert!(deployment.cli(&["--as", "dba", "key", "delete", &key]).is_err());
    let sent = wait_until_sent(&deployment);
    assert_eq!(number(&sent, "rejected"), 0);
    assert_eq!(sent.get("sendingError").and_then(Value::as_str), Some(""));
    for service in ["vault", "identity", "control"] {
        eventually(&format!("a checkpoint of {service}"), LIMIT, || {
            let logs = collector.logs();
            let note =
                |(s, r): &&(String, LogRecord)| s.contains(service) && r.event_name.ends_with("checkpoint");
            logs.iter().find(note).map(drop)
        });
        check(&collector, service, deployment.dir());
    }
    // Azure's names, and the trace of the call.
    let logs = collector.logs();
    let is = |r: &LogRecord| {
        attribute(r, "azure.operation.name") == "KeyCreate"
            && attribute(r, "azure.result.type") == "Success"
            && attribute(r, "azure.resource.id") == key
    };
    let created = logs.iter().find(|(_, r)| is(r)).map(|(_, r)| r.clone()).unwrap();
    assert_eq!((created.severity_number, created.severity_text.as_str()), (9, "INFO"));
    assert_eq!(attribute(&created, "user.id"), "principals/officer");
    assert_eq!(attribute(&created, "azure.category"), "AuditEvent");
    let json: Value = serde_json::from_str(&body(&created)).unwrap();
    assert_eq!(created.time_unix_nano / 1_000_000, json.get("time").and_then(Value::as_u64).unwrap());
    let denied = logs.iter().find(|(_, r)| attribute(r, "azure.result.type") == "Denied");
    assert_eq!(denied.map(|(_, r)| r.severity_number), Some(13));
}

#[test]
fn nothing_is_left_out_while_a_collector_is_away_or_refuses() {
    let runtime = runtime();
    let collector = Collector::default();
    let serve = |address: &str| runtime.block_on(collector.serve(address, None)).unwrap();
    let serving = serve("127.0.0.1:0");
    let address = serving.address.clone();
    let deployment = Deployment::start_with(&["--audit-otlp", &format!("http://{address}")]);
    _ = wait_until_sent(&deployment);
    drop(serving);
    _ = deployment.key_and_identity("away");
    let failed =
        |status: &Value| status.get("sendingError").and_then(Value::as_str).is_some_and(|e| !e.is_empty());
    let away = eventually("the failure is seen", LIMIT, || Some(status(&deployment)).filter(failed));
    assert!(number(&away, "sent") < number(&away, "last"));
    // The vault is killed and started again meanwhile: the trail is the queue.
    deployment.kill("vault");
    eventually("the vault is back", LIMIT, || deployment.cli(&["audit", "status"]).ok());
    let busy = Status::with_error_details(
        Code::Unavailable,
        "busy",
        ErrorDetails::with_retry_info(Some(Duration::from_millis(1))),
    );
    collector.answer([Err(Status::new(Code::InvalidArgument, "too long for me")), Err(busy)]);
    let serving = serve(&address);
    _ = wait_until_sent(&deployment);
    assert_eq!(collector.unanswered(), 0);
    eventually("a checkpoint over what was kept back", LIMIT, || {
        let logs = collector.logs();
        let size = |r: &LogRecord| attribute(r, "custody.audit.tree_size").parse().unwrap_or(0u64);
        logs.iter().find(|(s, r)| s.contains("vault") && size(r) > number(&away, "sent")).map(drop)
    });
    check(&collector, "vault", deployment.dir());
    drop(serving);
}

#[test]
fn records_that_a_collector_refuses_for_good_are_counted() {
    let runtime = runtime();
    let collector = Collector::default();
    let partial = ExportLogsPartialSuccess { rejected_log_records: 2, error_message: "no".to_owned() };
    let serving = runtime.block_on(collector.serve("127.0.0.1:0", None)).unwrap();
    collector
        .answer((0..3).map(|_| Ok(ExportLogsServiceResponse { partial_success: Some(partial.clone()) })));
    let deployment = Deployment::start_with(&["--audit-otlp", &format!("http://{}", serving.address)]);
    eventually("all answers", LIMIT, || (collector.unanswered() == 0).then_some(()));
    let all = ["vault", "identity", "control"];
    eventually("all are counted", LIMIT, || {
        let counted: u64 =
            all.iter().map(|s| number(&deployment.run(&["audit", "status", s]), "rejected")).sum();
        (counted == 6).then_some(())
    });
}

#[test]
fn a_collector_is_known_by_its_certificate_and_knows_us() {
    let runtime = runtime();
    let dir = Deployment::start().stop();
    let pki = |name: &str| fs::read(dir.join("pki").join(name)).unwrap();
    let identity = Identity::from_pem(pki("storage.pem"), pki("storage.key"));
    let tls = ServerTlsConfig::new().identity(identity).client_ca_root(Certificate::from_pem(pki("ca.pem")));
    let collector = Collector::default();
    let serving = runtime.block_on(collector.serve("127.0.0.1:0", Some(tls))).unwrap();
    let url = format!("https://{}", serving.address);
    let headers = ["--audit-otlp-headers", "authorization=Bearer of-the-collector"];
    // Of another authority: nothing is sent.
    let other = dir.join("other.pem");
    let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    fs::write(&other, made.pem()).unwrap();
    let with_ca =
        [&["--audit-otlp", &url, "--audit-otlp-ca", other.to_str().unwrap()], &headers[..]].concat();
    let deployment = Deployment::start_in(dir, &with_ca).unwrap();
    let failed =
        |status: &Value| status.get("sendingError").and_then(Value::as_str).is_some_and(|e| !e.is_empty());
    _ = eventually("the failure is seen", LIMIT, || Some(status(&deployment)).filter(failed));
    assert!(collector.logs().is_empty());
    let dir = deployment.stop();
    let deployment = Deployment::start_in(dir, &[&["--audit-otlp", &url], &headers[..]].concat()).unwrap();
    _ = wait_until_sent(&deployment);
    assert_eq!(collector.authorization(), "Bearer of-the-collector");
    let said = fs::read_to_string(deployment.dir().join("logs/vault.log")).unwrap();
    assert!(!said.contains("of-the-collector"));
}

/// A clock of long ago.
struct Then(UnixMillis);

impl Clock for Then {
    fn now(&self) -> UnixMillis {
        self.0
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

const DAY_MS: u64 = 86_400_000;

/// A trail of which every file is a day's, the last of them `days` days ago.
fn old_trail(dir: &Path, files: u64) {
    let now = custody_types::SystemClock.now().as_millis();
    for day in (0..files).rev() {
        let then = UnixMillis::from_millis(now - (day + 2) * DAY_MS);
        let journal = Journal::open(dir, Arc::new(Then(then)), FileLimits { len: 1, age: None }).unwrap();
        let caller = Caller {
            principal: "principals/of-old".to_owned(),
            duty: Duty::SecurityOfficer,
            token_id: String::new(),
            address: String::new(),
        };
        let begin = Record::begin(then, "KeyUnwrap", &format!("old-{day}"), &caller, "vaults/v/keys/k");
        journal.append(&begin.finish(then, Outcome::Success, "OK", "")).unwrap();
    }
}

#[test]
fn what_is_old_and_sent_is_removed_and_still_proven() {
    let runtime = runtime();
    let dir = Deployment::start().stop();
    let trail = dir.join("vault/data/audit");
    fs::remove_dir_all(&trail).unwrap();
    old_trail(&trail, 20);
    let kept = dir.join("kept");
    let first = fs::read_to_string(trail.join("journal-000002.jsonl")).unwrap();
    let note = first.lines().find(|line| line.contains("checkpoint")).unwrap();
    let note: Value = serde_json::from_str(note).unwrap();
    fs::write(&kept, note.get("checkpoint").unwrap().as_str().unwrap()).unwrap();
    // The collector is not there yet, so that nothing may go.
    let place = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = place.local_addr().unwrap().to_string();
    let archive = dir.join("archive");
    let url = format!("http://{address}");
    let options = ["--audit-otlp", &url, "--audit-retention-days", "7", "--audit-archive"];
    let options = [&options[..], &[archive.to_str().unwrap()]].concat();
    let deployment = Deployment::start_in(dir, &options).unwrap();
    let seen = status(&deployment);
    assert_eq!((number(&seen, "first"), number(&seen, "sent")), (1, 0), "{seen}");
    assert_eq!(seen.get("kept").and_then(Value::as_str), Some("7 days"));
    drop(place);
    let collector = Collector::default();
    let serving = runtime.block_on(collector.serve(&address, None)).unwrap();
    _ = wait_until_sent(&deployment);
    drop(deployment.cli(&["audit", "verify"]).unwrap());
    // At its next start it is looked at once; without one, within a minute.
    let dir = deployment.stop();
    let deployment = Deployment::start_in(dir, &options).unwrap();
    let seen = eventually("the old records are removed", LIMIT, || {
        Some(status(&deployment)).filter(|status| number(status, "first") > 1)
    });
    let first = number(&seen, "first");
    assert!((14..=20).contains(&first), "{seen}");
    assert_eq!(fs::read_dir(archive.join("vault")).unwrap().count(), first as usize - 1);
    let report = deployment.run(&["audit", "verify", "--checkpoint", kept_in(&deployment).as_str()]);
    assert_eq!(number(&report, "first"), first);
    // A record that is gone is proven by its bytes, of the archive or of the collector.
    let removed = records(&collector, "custody-vault").remove(&3).unwrap();
    let file = deployment.dir().join("record-3");
    fs::write(&file, &removed).unwrap();
    let (file, proof) = (file.display().to_string(), deployment.dir().join("proof").display().to_string());
    assert!(deployment.cli(&["audit", "prove", "3", &proof]).is_err());
    assert!(deployment.cli(&["audit", "prove", "4", &proof, "--record", &file]).is_err());
    for record in [file, archive.join("vault/journal-000003.jsonl").display().to_string()] {
        let line = fs::read_to_string(&record).unwrap().lines().next().unwrap().to_owned();
        fs::write(&record, line).unwrap();
        deployment.cli(&["audit", "prove", "3", &proof, "--record", &record]).unwrap();
        deployment.cli(&["audit", "check", &proof]).unwrap();
    }
    drop(serving);
}

fn kept_in(deployment: &Deployment) -> String {
    deployment.dir().join("kept").display().to_string()
}
