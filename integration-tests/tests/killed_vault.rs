//! kill -9 and a full disk under load: every operation that the vault has answered, done or refused, is in its trail, and
//! the trail verifies.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_clients::Vault;
use custody_proto::vault::{UnwrapKeyRequest, WrapKeyRequest};
use custody_testkit::{Deployment, Disk, database_tools, eventually};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::task::block_in_place;
use tonic::{Code, Status, metadata::MetadataMap};

/// Rounds, each a kill or a full disk. The slow suite has as many as a release needs.
const ROUNDS: usize = if cfg!(feature = "slow") { 1000 } else { 12 };
const LIMIT: Duration = Duration::from_secs(60);

/// Whose call got which answer, by the number that the answer had. Each number is given once.
type Answers = Arc<Mutex<BTreeMap<u64, (&'static str, bool)>>>;

fn note(answers: &Answers, who: &'static str, done: bool, metadata: &MetadataMap) {
    let Some(sequence) = metadata.get("custody-audit-sequence") else { return };
    let sequence = sequence.to_str().unwrap().parse().unwrap();
    let before = answers.lock().unwrap().insert(sequence, (who, done));
    assert_eq!(before, None, "two answers have the number {sequence}");
}

/// Asks without end.
fn ask(
    mut vault: Vault,
    request: UnwrapKeyRequest,
    who: &'static str,
    answers: Answers,
    end: Arc<AtomicBool>,
) {
    tokio::spawn(async move {
        while !end.load(Ordering::Acquire) {
            match vault.unwrap_key(request.clone()).await {
                Ok(answer) => note(&answers, who, true, answer.metadata()),
                Err(e) if e.code() == Code::PermissionDenied => note(&answers, who, false, e.metadata()),
                // Whatever it was, it was no answer.
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    });
}

/// Each record by its number.
fn trail(dir: &Path) -> BTreeMap<u64, Value> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "jsonl"));
    let text: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| Some((line.get("seq")?.as_u64()?, line.get("record")?.clone()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answered_operation_is_in_the_trail() {
    database_tools().expect("scripts/test installs what this needs");
    let dir = tempfile::Builder::new().prefix("custody-test-").tempdir().unwrap().keep();
    let audit = dir.join("vault/data/audit");
    let disk = Disk::mount(&dir.join("audit.ext4"), &audit, (64 + ROUNDS as u64 * 2) << 20).unwrap();
    let deployment = Deployment::start_in(dir.clone(), &[]).unwrap();
    let (key, identity, _) = block_in_place(|| deployment.key_and_identity("k"));
    deployment.bind(&identity).await.unwrap();
    let mut vault = Vault::new(deployment.channel("vault", &identity).unwrap());
    let request = WrapKeyRequest { name: key, plaintext: vec![7; 32], ..WrapKeyRequest::default() };
    let wrapped = vault.wrap_key(request).await.unwrap().into_inner();
    let request = UnwrapKeyRequest {
        name: wrapped.key_version,
        algorithm: wrapped.algorithm,
        ciphertext: wrapped.ciphertext,
    };
    let (answers, end) = (Answers::default(), Arc::new(AtomicBool::new(false)));
    for _ in 0..4 {
        let vault = Vault::new(deployment.channel("vault", &identity).unwrap());
        ask(vault, request.clone(), "managedIdentities/k", answers.clone(), end.clone());
    }
    // One that is refused each time.
    let stranger = Vault::new(deployment.channel("vault", "auditor").unwrap());
    ask(stranger, request.clone(), "principals/auditor", answers.clone(), end.clone());
    let mut probe = Vault::new(deployment.channel("vault", &identity).unwrap());
    for round in 0..ROUNDS {
        let (count, before) = (|| answers.lock().unwrap().len(), answers.lock().unwrap().len());
        block_in_place(|| {
            eventually("it answers", LIMIT, || (count() > before + 20).then_some(()));
            if round % 2 == 0 {
                disk.fill().unwrap();
                eventually("it refuses", LIMIT, || {
                    let asked = tokio::runtime::Handle::current().block_on(probe.unwrap_key(request.clone()));
                    asked.err().filter(|e: &Status| e.message().contains("disk is full"))
                });
                if round % 4 == 0 {
                    deployment.kill("vault");
                }
                disk.free().unwrap();
            } else {
                deployment.kill("vault");
            }
        });
    }
    let (count, before) = (|| answers.lock().unwrap().len(), answers.lock().unwrap().len());
    block_in_place(|| eventually("it answers", LIMIT, || (count() > before + 20).then_some(())));
    end.store(true, Ordering::Release);

    let report = block_in_place(|| deployment.run(&["audit", "verify"]));
    assert!(report.to_string().contains("records"), "{report}");
    let (answers, trail) = (answers.lock().unwrap().clone(), trail(&audit));
    assert!(answers.len() > ROUNDS * 20);
    for (sequence, (who, done)) in &answers {
        let record = trail.get(sequence).unwrap_or_else(|| unreachable!("record {sequence} is missing"));
        let field = |name: &str| record.pointer(name).and_then(Value::as_str).unwrap_or_default();
        let found = (field("/identity/principal"), field("/operationName"), field("/resultType"));
        let result = if *done { "Started" } else { "Denied" };
        assert_eq!(found, (*who, "KeyUnwrap", result), "record {sequence}");
    }
    drop(deployment);
    drop(disk);
    _ = fs::remove_dir_all(dir);
}
