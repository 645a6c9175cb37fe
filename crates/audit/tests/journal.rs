//! What the journal promises.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_audit::*;
use custody_types::{Caller, Duty, SystemClock};
use std::{fs, path::Path, sync::Arc};

fn open(dir: &Path) -> Arc<Journal> {
    Arc::new(Journal::open(dir, Arc::new(SystemClock)).unwrap())
}

fn record(journal: &Journal, id: &str) -> Record {
    let caller = Caller {
        principal: "principals/p".into(),
        duty: Duty::SecurityOfficer,
        token_id: "t".into(),
        address: "::1".into(),
    };
    Record::begin(journal.now(), "KeyUnwrap", id, &caller, "vaults/v/keys/k")
}

fn public(dir: &Path) -> Vec<u8> {
    let text = fs::read_to_string(dir.join("checkpoint.pub")).unwrap();
    (0..32).map(|i| u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).unwrap()).collect()
}

#[test]
fn a_trail_verifies_and_counts() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    for i in 0..50 {
        journal.begin(record(&journal, &format!("c{i}"))).unwrap().finish(Outcome::Success, "OK", "");
    }
    let denied = record(&journal, "d");
    journal.append(&denied.finish(journal.now(), Outcome::Denied, "PERMISSION_DENIED", "")).unwrap();
    assert_eq!(journal.read(3, 2).unwrap().iter().map(|e| e.sequence).collect::<Vec<_>>(), [4, 5]);
    drop(journal);
    let report = verify(dir.path(), &public(dir.path()), None).unwrap();
    assert_eq!((report.records, report.denied, report.open, report.unsigned), (101, 1, 0, 0));
    verify(dir.path(), &public(dir.path()), Some(&report.head)).unwrap();
    assert!(matches!(verify(dir.path(), &public(dir.path()), Some("00")), Err(Broken::Truncated)));
    assert!(matches!(verify(dir.path(), &[0; 32], None), Err(Broken::Checkpoint { .. })));
}

#[test]
fn every_altered_byte_and_every_removed_line_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    for i in 0..4 {
        journal.begin(record(&journal, &format!("c{i}"))).unwrap().finish(Outcome::Success, "OK", "");
    }
    drop(journal);
    let path = dir.path().join("journal-000001.jsonl");
    let whole = fs::read(&path).unwrap();
    let key = public(dir.path());
    let head = verify(dir.path(), &key, None).unwrap().head;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x08;
        fs::write(&path, &bytes).unwrap();
        let found = verify(dir.path(), &key, Some(&head)).map_or(true, |report| report.unfinished_bytes > 0);
        assert!(found, "byte {at} was altered unseen");
    }
    let lines: Vec<&[u8]> = whole.split_inclusive(|b| *b == b'\n').collect();
    for gone in 0..lines.len() - 1 {
        let rest: Vec<u8> =
            lines.iter().enumerate().filter(|(i, _)| *i != gone).flat_map(|(_, l)| l.to_vec()).collect();
        fs::write(&path, rest).unwrap();
        assert!(verify(dir.path(), &key, Some(&head)).is_err(), "line {gone} was removed unseen");
    }
}

#[test]
fn an_unfinished_line_is_cut_and_open_operations_are_ended() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let pending = journal.begin(record(&journal, "left-open")).unwrap();
    let path = dir.path().join("journal-000001.jsonl");
    let mut crashed = fs::read(&path).unwrap();
    crashed.extend_from_slice(b"{\"seq\":2,\"rec");
    pending.finish(Outcome::Success, "OK", "");
    drop(journal);
    fs::write(&path, crashed).unwrap();
    drop(open(dir.path()));
    let entries = open(dir.path()).read(0, 10).unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1].record.result_type, Outcome::Interrupted);
    assert_eq!(entries[1].record.correlation_id, "left-open");
}

#[test]
fn a_broken_or_held_journal_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    assert!(matches!(Journal::open(dir.path(), Arc::new(SystemClock)), Err(OpenJournalError::InUse(_))));
    journal.begin(record(&journal, "a")).unwrap().finish(Outcome::Success, "OK", "");
    drop(journal);
    let path = dir.path().join("journal-000001.jsonl");
    let text = fs::read_to_string(&path).unwrap().replacen("KeyUnwrap", "KeyGet...", 1);
    fs::write(&path, text).unwrap();
    assert!(matches!(Journal::open(dir.path(), Arc::new(SystemClock)), Err(OpenJournalError::Broken { .. })));
}

#[test]
fn a_deleted_file_stops_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    journal.append(&record(&journal, "a")).unwrap();
    fs::remove_file(dir.path().join("journal-000001.jsonl")).unwrap();
    assert_eq!(journal.append(&record(&journal, "b")), Err(AuditUnavailable));
}

#[test]
fn many_callers_share_a_flush_and_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    std::thread::scope(|scope| {
        for t in 0..8 {
            let journal = &journal;
            scope.spawn(move || {
                for i in 0..100 {
                    journal.begin(record(journal, &format!("{t}-{i}"))).unwrap().finish(
                        Outcome::Success,
                        "OK",
                        "",
                    );
                }
            });
        }
    });
    drop(journal);
    assert_eq!(verify(dir.path(), &public(dir.path()), None).unwrap().records, 1600);
}

/// A trail of several files: a start does not walk the first ones, and goes on where the last one ended.
#[test]
fn a_long_trail_goes_on_over_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let text = "x".repeat(4000);
    let mut records = 0;
    let mut journal = open(dir.path());
    while !dir.path().join("journal-000004.jsonl").exists() {
        std::thread::scope(|scope| {
            for t in 0..64 {
                let (journal, text) = (&journal, &text);
                scope.spawn(move || {
                    for i in 0..8 {
                        let denied = record(journal, &format!("{t}-{i}"));
                        journal.append(&denied.finish(journal.now(), Outcome::Denied, "D", text)).unwrap();
                    }
                });
            }
        });
        records += 512;
        assert!(records < 100_000, "files never end");
    }
    drop(journal);
    journal = open(dir.path());
    journal.append(&record(&journal, "last").finish(journal.now(), Outcome::Denied, "D", "")).unwrap();
    drop(journal);
    let report = verify(dir.path(), &public(dir.path()), None).unwrap();
    assert_eq!((report.records, report.unsigned), (records + 1, 0));
    // What a start does not look at, the verifier does.
    let first = dir.path().join("journal-000001.jsonl");
    let altered = fs::read_to_string(&first).unwrap().replacen("KeyUnwrap", "KeyGet...", 1);
    fs::write(&first, altered).unwrap();
    drop(open(dir.path()));
    assert!(matches!(verify(dir.path(), &public(dir.path()), None), Err(Broken::Chain { sequence: 1, .. })));
}

#[test]
fn pages_of_a_trail_are_the_trail_also_while_it_grows_and_over_files() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    // Records long enough that the trail takes more than one file.
    let text = "x".repeat(20_000);
    let add = |n: usize| {
        let denied = record(&journal, &format!("c{n}"));
        journal.append(&denied.finish(journal.now(), Outcome::Denied, "D", &text)).unwrap();
    };
    (0..1000).for_each(add);
    journal.close();
    drop(journal);
    let journal = open(dir.path());
    let add = |n: usize| {
        let denied = record(&journal, &format!("c{n}"));
        journal.append(&denied.finish(journal.now(), Outcome::Denied, "D", &text)).unwrap();
    };
    (1000..1100).for_each(add);
    let all = journal.read(0, usize::MAX).unwrap();
    assert!(
        fs::read_dir(dir.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|x| x == "jsonl"))
            .count()
            > 1
    );
    let (mut after, mut paged) = (0, Vec::new());
    while let Some(last) = journal.read(after, 37).unwrap().last().map(|e| e.sequence) {
        // Asked twice, a page is the same; and what is written meanwhile comes in its turn.
        paged.extend(journal.read(after, 37).unwrap().into_iter().map(|e| (e.sequence, e.hash)));
        if paged.len() < 100 {
            add(2000 + paged.len());
        }
        after = last;
    }
    assert!(paged.len() > all.len());
    assert!(paged.iter().zip(1..).all(|((sequence, _), n)| *sequence == n), "each once, in order");
    assert!(all.iter().zip(&paged).all(|(a, p)| a.hash == p.1));
    let middle = journal.read(555, 1).unwrap();
    assert_eq!(middle[0].sequence, 556, "from anywhere");
    assert!(journal.read(1 << 40, 10).unwrap().is_empty());
}
