//! Backups in Azure Blob Storage and in S3: made, added to, verified, restored, deleted; altered and missing objects
//! are found, and the store has no plaintext.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_testkit::{Deployment, database_tools, eventually};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

/// A server that a script runs, and looks into for us.
struct Store {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    environment: Vec<(String, String)>,
    _dir: tempfile::TempDir,
}

impl Store {
    fn start(kind: &str) -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let dir = tempfile::tempdir().unwrap();
        let mut process = Command::new(custody_integration_tests::python())
            .arg(here.join("sdk/python/object_store.py"))
            .arg(kind)
            .arg(dir.path())
            .env("AZURITE", here.join("sdk/js/node_modules/azurite/dist/src/blob/main.js"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut store =
            Self { process, input, output: BufReader::new(output), environment: Vec::new(), _dir: dir };
        loop {
            let line = store.line();
            let Some((name, value)) = line.trim().split_once('=') else { break };
            store.environment.push((name.to_owned(), value.to_owned()));
        }
        assert!(!store.environment.is_empty(), "{kind} did not start");
        store
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    fn tell(&mut self, order: &str) -> serde_json::Value {
        writeln!(self.input, "{order}").unwrap();
        let answer = self.line();
        serde_json::from_str(&answer).unwrap_or_else(|e| unreachable!("{order}: {answer}: {e}"))
    }

    fn names(&mut self) -> Vec<String> {
        serde_json::from_value(self.tell("list")).unwrap()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        _ = writeln!(self.input, "end");
        _ = self.process.wait();
    }
}

fn backups_in(kind: &str, place: &str) {
    database_tools().expect("scripts/test installs what this needs");
    let mut store = Store::start(kind);
    let deployment = Deployment::start_with_environment(&["--backups", place], &store.environment).unwrap();
    let refused = |arguments: &[&str]| deployment.cli(arguments).unwrap_err().to_string();
    let (key, identity, _) = deployment.key_and_identity("cloud");
    let under = ["--workers", "0", "--size-mib", "512", "--key", &key, "--identity", &identity];
    let made = deployment.run(&[&["cluster", "create", "source", "--archive-wal"][..], &under].concat());
    let endpoint = made.pointer("/nodes/0/endpoint").unwrap().as_str().unwrap().to_owned();
    let fill = "CREATE TABLE t AS SELECT n, 'PLANTED-IN-THE-CLOUD' AS x FROM generate_series(1, 20000) n";
    deployment.sql(&endpoint, fill).unwrap();
    _ = deployment.run(&["backup", "create", "clusters/source", "full"]);
    deployment.sql(&endpoint, "INSERT INTO t VALUES (0, 'one more')").unwrap();
    _ = deployment.run(&["backup", "create", "clusters/source", "hourly", "--base", "backups/full"]);
    assert!(refused(&["backup", "create", "clusters/source", "full"]).contains("ALREADY_EXISTS"));

    let names = store.names();
    let count = |part: &str| names.iter().filter(|n| n.contains(part)).count();
    assert!(names.iter().all(|n| n.starts_with("nightly/")), "below the prefix: {names:?}");
    assert_eq!((count("/manifest.json"), count("nightly/full-")), (2, count("nightly/full-")), "{names:?}");
    assert!(count("nightly/full-") >= 3, "more than one segment: {names:?}");
    assert_eq!(store.tell("search PLANTED"), 0);
    assert_eq!(store.tell("search marks_from"), 2, "the search finds what is there: manifests are in clear");

    _ = deployment.run(&["backup", "verify", "backups/hourly"]);
    let copy = ["cluster", "create", "copy", "--from", "backups/hourly"];
    let made = deployment.run(&[&copy[..], &under].concat());
    let copy = made.pointer("/nodes/0/endpoint").unwrap().as_str().unwrap().to_owned();
    assert_eq!(deployment.sql(&copy, "SELECT count(*), min(n) FROM t").unwrap(), "20001|0");

    // The log goes there as well, and takes a backup on to a later moment.
    let clock = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')";
    deployment.sql(&endpoint, "UPDATE t SET n = -1 WHERE n = 0").unwrap();
    let moment = deployment.sql(&endpoint, clock).unwrap();
    deployment.sql(&endpoint, "SELECT pg_sleep(0.01); DROP TABLE t; SELECT pg_switch_wal()").unwrap();
    let to_moment = ["cluster", "create", "later", "--from", "backups/hourly", "--to-time", &moment];
    let to_moment = [&to_moment[..], &under].concat();
    let made =
        eventually("the log is archived", Duration::from_secs(60), || match deployment.cli(&to_moment) {
            Err(e) if e.to_string().contains("lies beyond the archived log") => None,
            made => Some(made.unwrap()),
        });
    let later = made.pointer("/nodes/0/endpoint").unwrap().as_str().unwrap().to_owned();
    assert_eq!(deployment.sql(&later, "SELECT count(*), min(n) FROM t").unwrap(), "20001|-1");
    assert!(store.names().iter().any(|n| n.starts_with("nightly/_wal/source-")));
    assert_eq!(store.tell("search PLANTED"), 0);

    // The keys of all that are wrapped anew where it is, and it opens still: that is seen below.
    _ = deployment.run(&["key", "rotate", &key]);
    let versions = deployment.run(&["key", "lineage", &key, "--rewrap"]);
    assert_eq!(versions.pointer("/1/can_be_retired").and_then(|v| v.as_str()), Some("yes"), "{versions}");

    // What is altered or missing in the store is found; what a backup needs stays.
    assert!(refused(&["backup", "delete", "backups/full"]).contains("BACKUP_IN_USE"));
    let segment = names.iter().find(|n| n.contains("nightly/hourly-") && n.contains("/data/")).unwrap();
    _ = store.tell(&format!("flip {segment}"));
    let found = refused(&["backup", "verify", "backups/hourly"]);
    assert!(found.contains("does not authenticate"), "{found}");
    _ = store.tell(&format!("flip {segment}"));
    _ = deployment.run(&["backup", "verify", "backups/hourly"]);
    let segment = names.iter().rfind(|n| n.contains("nightly/full-") && n.contains("/data/")).unwrap();
    _ = store.tell(&format!("delete {segment}"));
    let found = refused(&["backup", "verify", "backups/hourly"]);
    assert!(found.contains("does not authenticate"), "{found}");

    _ = deployment.run(&["cluster", "delete", "clusters/source"]);
    for backup in ["backups/hourly", "backups/full"] {
        _ = deployment.run(&["backup", "delete", backup]);
    }
    assert_eq!(store.names(), Vec::<String>::new(), "nothing of a deleted backup stays");
    // Without the store no backup can be read, and volumes do not care.
    _ = deployment.run(&["backup", "create", "clusters/copy", "last"]);
    drop(store);
    let failed = refused(&["backup", "verify", "backups/last"]);
    assert!(failed.contains("the store of backups failed"), "{failed}");
    assert_eq!(deployment.sql(&copy, "SELECT count(*) FROM t").unwrap(), "20001");
}

#[test]
fn azure_blob_storage() {
    backups_in("azure", "az://custody/nightly");
}

#[test]
fn s3() {
    backups_in("s3", "s3://custody/nightly");
}
