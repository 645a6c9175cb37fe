//! A backup and the archive of the log give a database of any moment since: what was committed until then, and nothing
//! later. Without the key, nobody has either.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_testkit::{Deployment, database_tools, eventually};
use serde_json::Value;
use std::{fs, path::PathBuf, time::Duration};

const SIZE: [&str; 2] = ["--size-mib", "512"];

fn endpoint(cluster: &Value) -> String {
    cluster.pointer("/nodes/0/endpoint").unwrap().as_str().unwrap().to_owned()
}

/// The server's own clock, to the millisecond: commits before have times before.
fn now(deployment: &Deployment, endpoint: &str) -> String {
    let query = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')";
    let time = deployment.sql(endpoint, query).unwrap();
    // What comes later has a later millisecond.
    deployment.sql(endpoint, "SELECT pg_sleep(0.01)").unwrap();
    time
}

/// Everything committed so far is archived when this returns.
fn archived(deployment: &Deployment, cluster: &str, time: &str) {
    let found = deployment.run(&["cluster", "get", cluster]);
    for node in found.pointer("/nodes").unwrap().as_array().unwrap() {
        let at = node.pointer("/endpoint").unwrap().as_str().unwrap();
        deployment.sql(at, "CREATE TABLE IF NOT EXISTS tick (); SELECT pg_switch_wal()").unwrap();
    }
    eventually("the log is archived", Duration::from_secs(60), || {
        let found = deployment.run(&["cluster", "get", cluster]);
        let nodes = found.pointer("/nodes").unwrap().as_array().unwrap().clone();
        let reaches = |n: &Value| n.pointer("/archived_to").unwrap().as_str().unwrap().to_owned();
        // To the second, both.
        nodes.iter().all(|n| reaches(n).as_str() > time.split('.').next().unwrap()).then_some(())
    });
}

fn archived_files(deployment: &Deployment) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![deployment.dir().join("backups/_wal")]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().map(Result::unwrap) {
            if entry.path().is_dir() { open.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.sort();
    found
}

fn restore<'a>(id: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["cluster", "create", id, "--workers", "1"], &SIZE[..], more].concat()
}

#[test]
fn a_database_of_any_moment_since_a_backup() {
    database_tools().expect("scripts/test installs what this needs");
    let deployment = Deployment::start();
    let refused = |arguments: &[&str]| deployment.cli(arguments).unwrap_err().to_string();
    let source = endpoint(&deployment.run(&restore("source", &["--archive-wal"])));
    deployment.sql(&source, "CREATE TABLE t AS SELECT 1 AS n, 'PLANTED-IN-THE-LOG' AS x").unwrap();
    let too_early = now(&deployment, &source);
    _ = deployment.run(&["backup", "create", "clusters/source", "base"]);
    deployment.sql(&source, "INSERT INTO t VALUES (2, 'PLANTED-IN-THE-LOG')").unwrap();
    let second = now(&deployment, &source);
    deployment
        .sql(&source, "INSERT INTO t SELECT n, 'PLANTED-IN-THE-LOG' FROM generate_series(3, 90000) n")
        .unwrap();
    let third = now(&deployment, &source);
    deployment.sql(&source, "DROP TABLE t").unwrap();
    let early = refused(&restore("copy", &["--from", "backups/base", "--to-time", "2999-01-01T00:00:00Z"]));
    assert!(early.contains("restore_time") && early.contains("beyond"), "{early}");
    archived(&deployment, "clusters/source", &third);

    // To a moment between commits; to one after the last of what the archive has; on both nodes.
    for (id, time, rows) in [("second", &second, "2|2"), ("third", &third, "90000|90000")] {
        let made =
            deployment.run(&restore(id, &["--from", "backups/base", "--to-time", time, "--archive-wal"]));
        let copy = endpoint(&made);
        assert_eq!(deployment.sql(&copy, "SELECT count(*), max(n) FROM t").unwrap(), rows, "at {time}");
        deployment.sql(&copy, "INSERT INTO t VALUES (0, 'a life of its own')").unwrap();
    }
    let whole = endpoint(&deployment.run(&restore("whole", &["--from", "backups/base"])));
    assert_eq!(deployment.sql(&whole, "SELECT max(n) FROM t").unwrap(), "1", "the backup as it was taken");
    // What was recovered has a log of its own, which goes on from there.
    _ = deployment.run(&["backup", "create", "clusters/third", "of-third"]);
    let copy = endpoint(&deployment.run(&["cluster", "get", "clusters/third"]));
    deployment.sql(&copy, "UPDATE t SET n = -1 WHERE n = 0").unwrap();
    let fourth = now(&deployment, &copy);
    archived(&deployment, "clusters/third", &fourth);
    let again = deployment.run(&restore("fourth", &["--from", "backups/of-third", "--to-time", &fourth]));
    assert_eq!(deployment.sql(&endpoint(&again), "SELECT min(n), max(n) FROM t").unwrap(), "-1|90000");

    // Nothing of the log is in clear, and all that is refused says why.
    let files = archived_files(&deployment);
    assert!(files.len() >= 6, "{files:?}");
    assert!(files.iter().any(|f| f.ends_with("00000002.history")), "{files:?}");
    for file in &files {
        let bytes = fs::read(file).unwrap();
        assert!(!bytes.windows(7).any(|w| w == b"PLANTED"), "{}", file.display());
    }
    let wrong = refused(&restore("copy", &["--from", "backups/base", "--to-time", &too_early]));
    assert!(wrong.contains("restore_time") && wrong.contains("complete"), "{wrong}");

    // A segment that was altered ends the recovery, and one that is missing is not taken for the end of the log.
    let of_source = |f: &&PathBuf| {
        let path = f.display().to_string();
        path.contains("_wal/source-") && path.contains("/coordinator/") && !path.contains("/keys/")
    };
    let segments: Vec<_> = files.iter().filter(of_source).collect();
    let victim = segments.get(segments.len() - 2).unwrap();
    let good = fs::read(victim).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(victim, bad).unwrap();
    let altered = refused(&restore("copy", &["--from", "backups/base", "--to-time", &third]));
    assert!(altered.contains("does not authenticate"), "{altered}");
    fs::remove_file(victim).unwrap();
    let gap = refused(&restore("copy", &["--from", "backups/base", "--to-time", &third]));
    assert!(gap.contains("has a gap"), "{gap}");
    fs::write(victim, good).unwrap();
    let made = deployment.run(&restore("copy", &["--from", "backups/base", "--to-time", &third]));
    assert_eq!(deployment.sql(&endpoint(&made), "SELECT count(*) FROM t").unwrap(), "90000");

    // Without a backup to begin at, a log is of no use: it goes with the last one and its cluster.
    for cluster in ["copy", "fourth", "third", "second", "whole", "source"] {
        _ = deployment.run(&["cluster", "delete", &format!("clusters/{cluster}")]);
    }
    assert!(archived_files(&deployment).iter().any(|f| f.display().to_string().contains("source-")));
    let made = deployment.run(&restore("saved", &["--from", "backups/base", "--to-time", &third]));
    assert_eq!(
        deployment.sql(&endpoint(&made), "SELECT count(*) FROM t").unwrap(),
        "90000",
        "of a cluster that is gone"
    );
    for backup in ["backups/base", "backups/of-third"] {
        _ = deployment.run(&["backup", "delete", backup]);
    }
    assert_eq!(archived_files(&deployment), Vec::<PathBuf>::new());
}
