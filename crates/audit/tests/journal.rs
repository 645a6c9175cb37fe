//! What the journal promises.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_audit::*;
use custody_types::{Caller, Duty, SystemClock};
use std::{
    fs,
    future::Future as _,
    path::Path,
    sync::Arc,
    task::{Context, Waker},
};

fn open(dir: &Path) -> Arc<Journal> {
    Arc::new(Journal::open(dir, Arc::new(SystemClock), FileLimits::default()).unwrap())
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

fn head(text: &str) -> Earlier<'_> {
    Earlier { head: Some(text), checkpoint: None }
}

/// What the line of a record begins with. A checkpoint's line is no record: what it signs is in the others.
const RECORD: &[u8] = b"{\"seq\":";

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
    let report = verify(dir.path(), &public(dir.path()), Earlier::default()).unwrap();
    assert_eq!((report.records, report.denied, report.open, report.unsigned), (101, 1, 0, 0));
    verify(dir.path(), &public(dir.path()), head(&report.head)).unwrap();
    assert!(matches!(verify(dir.path(), &public(dir.path()), head("00")), Err(Broken::Truncated)));
    assert!(matches!(verify(dir.path(), &[0; 32], Earlier::default()), Err(Broken::Checkpoint { .. })));
}

#[test]
fn an_operation_of_which_only_an_answer_comes_has_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let done = journal.undertake(record(&journal, "a"));
    assert_eq!((done.sequence(), journal.written()), (None, 0));
    assert_eq!(done.conclude(Outcome::Success, "OK", "").unwrap(), 1);
    assert_eq!(journal.written(), 1);
    drop(journal.undertake(record(&journal, "b")));
    journal.close();
    let entries = journal.read(0, 10).unwrap();
    let seen: Vec<_> = entries
        .iter()
        .map(|e| (e.record.correlation_id.as_str(), e.record.phase, e.record.result_type))
        .collect();
    assert_eq!(seen, [("a", Phase::Finish, Outcome::Success), ("b", Phase::Finish, Outcome::Failed)]);
    let late = journal.undertake(record(&journal, "c"));
    assert!(late.conclude(Outcome::Success, "OK", "").is_err());
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
    let head = verify(dir.path(), &key, Earlier::default()).unwrap().head;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x08;
        fs::write(&path, &bytes).unwrap();
        let found =
            verify(dir.path(), &key, self::head(&head)).map_or(true, |report| report.unfinished_bytes > 0);
        assert!(found, "byte {at} was altered unseen");
    }
    let lines: Vec<&[u8]> = whole.split_inclusive(|b| *b == b'\n').collect();
    for gone in (0..lines.len()).filter(|n| lines[*n].starts_with(RECORD)) {
        let rest: Vec<u8> =
            lines.iter().enumerate().filter(|(i, _)| *i != gone).flat_map(|(_, l)| l.to_vec()).collect();
        fs::write(&path, rest).unwrap();
        assert!(verify(dir.path(), &key, self::head(&head)).is_err(), "line {gone} was removed unseen");
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
fn who_goes_away_before_the_record_is_on_disk_leaves_nothing_open() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    for n in 0..50 {
        let mut begin = Box::pin(journal.begin_in_task(record(&journal, &format!("c{n}"))));
        // The disk has not answered yet, or just has.
        _ = begin.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
    drop(journal);
    let report = verify(dir.path(), &public(dir.path()), Earlier::default()).unwrap();
    assert_eq!((report.records, report.open), (100, 0));
}

#[test]
fn a_broken_or_held_journal_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    assert!(matches!(
        Journal::open(dir.path(), Arc::new(SystemClock), FileLimits::default()),
        Err(OpenJournalError::InUse(_))
    ));
    journal.begin(record(&journal, "a")).unwrap().finish(Outcome::Success, "OK", "");
    drop(journal);
    let path = dir.path().join("journal-000001.jsonl");
    let text = fs::read_to_string(&path).unwrap().replacen("KeyUnwrap", "KeyGet...", 1);
    fs::write(&path, text).unwrap();
    assert!(matches!(
        Journal::open(dir.path(), Arc::new(SystemClock), FileLimits::default()),
        Err(OpenJournalError::Broken { .. })
    ));
}

#[test]
fn a_file_that_is_removed_is_put_back_and_one_that_is_replaced_stops_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let path = dir.path().join("journal-000001.jsonl");
    journal.append(&record(&journal, "a")).unwrap();
    // Or what signs it would be what finds the file gone.
    _ = checkpoint(&journal);
    fs::remove_file(&path).unwrap();
    assert_eq!(journal.append(&record(&journal, "b")), Err(AuditUnavailable::Replaced));
    assert_eq!(journal.append(&record(&journal, "c")), Ok(2));
    let aside = dir.path().join("aside");
    fs::rename(&path, &aside).unwrap();
    fs::write(&path, "somebody else's").unwrap();
    assert_eq!(journal.append(&record(&journal, "d")), Err(AuditUnavailable::Replaced));
    assert_eq!(journal.append(&record(&journal, "e")), Err(AuditUnavailable::Replaced));
    fs::rename(&aside, &path).unwrap();
    assert_eq!(journal.append(&record(&journal, "f")), Ok(3));
    drop(journal);
    assert_eq!(verify(dir.path(), &public(dir.path()), Earlier::default()).unwrap().records, 3);
}

/// The checkpoint over all that is written.
fn checkpoint(journal: &Journal) -> (String, TreeHead) {
    let key = trail_key(&public(&dir_of(journal))).unwrap();
    loop {
        let signed = journal.checkpoint().map(|note| (TreeHead::open(&note, &key).unwrap(), note));
        match signed {
            Some((head, note)) if head.size == journal.written() => return (note, head),
            _ => std::thread::yield_now(),
        }
    }
}

fn dir_of(journal: &Journal) -> std::path::PathBuf {
    let text = format!("{journal:?}");
    text.split('"').nth(1).unwrap().into()
}

/// Whether every record is proven to be in the tree that was signed last.
fn proven(journal: &Journal) {
    let (_, head) = checkpoint(journal);
    let entries = journal.read(0, 10_000).unwrap();
    assert_eq!(entries.len() as u64, head.size);
    for entry in entries {
        let proof = journal.inclusion_proof(entry.sequence, head.size).unwrap();
        let root = tree::root_by_inclusion(&entry.leaf, entry.sequence - 1, head.size, &proof);
        assert_eq!(root, Some(head.root), "record {}", entry.sequence);
    }
}

#[test]
fn every_record_is_proven_also_when_the_hashes_were_lost() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    for i in 0..9 {
        journal.begin(record(&journal, &format!("c{i}"))).unwrap().finish(Outcome::Success, "OK", "");
    }
    proven(&journal);
    drop(journal);
    let tree = dir.path().join("tree");
    let whole = fs::read(&tree).unwrap();
    for damage in [&[][..], &whole[..32 * 5 + 7], &[0; 32 * 40], &whole] {
        fs::write(&tree, damage).unwrap();
        proven(&open(dir.path()));
        assert_eq!(fs::read(&tree).unwrap(), whole, "made anew as it was");
    }
}

#[test]
fn a_checkpoint_that_was_kept_finds_what_was_cut_off_or_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    journal.append(&record(&journal, "a")).unwrap();
    journal.append(&record(&journal, "b")).unwrap();
    let (kept, before) = checkpoint(&journal);
    journal.append(&record(&journal, "c")).unwrap();
    let (_, after) = checkpoint(&journal);
    let proof = journal.consistency_proof(before.size, after.size).unwrap();
    assert!(tree::is_consistent((before.size, &before.root), (after.size, &after.root), &proof));
    assert!(journal.consistency_proof(1, after.size + 1).is_err());
    drop(journal);
    let key = public(dir.path());
    let earlier = Earlier { head: None, checkpoint: Some(&kept) };
    verify(dir.path(), &key, earlier).unwrap();
    // Whoever has the key writes another trail.
    fs::remove_file(dir.path().join("journal-000001.jsonl")).unwrap();
    fs::remove_file(dir.path().join("tree")).unwrap();
    let journal = open(dir.path());
    journal.append(&record(&journal, "x")).unwrap();
    drop(journal);
    verify(dir.path(), &key, Earlier::default()).unwrap();
    assert!(matches!(verify(dir.path(), &key, earlier), Err(Broken::Truncated)));
    let journal = open(dir.path());
    journal.append(&record(&journal, "y")).unwrap();
    drop(journal);
    assert!(matches!(verify(dir.path(), &key, earlier), Err(Broken::Rewritten(2))));
    let foreign = kept.replace("custody-audit-", "custody-audit_");
    let foreign = Earlier { head: None, checkpoint: Some(&foreign) };
    assert!(matches!(verify(dir.path(), &key, foreign), Err(Broken::Foreign)));
}

#[test]
fn a_trail_of_format_1_goes_on() {
    use aws_lc_rs::{
        digest::{SHA256, digest},
        rand::SystemRandom,
        signature::{Ed25519KeyPair, KeyPair as _},
    };
    let dir = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let scratch = open(scratch.path());
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    fs::write(dir.path().join("checkpoint.key"), pkcs8.as_ref()).unwrap();
    let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    let (mut text, mut head) = (String::new(), vec![0; 32]);
    for n in 1..=3u64 {
        let record = serde_json::to_string(&record(&scratch, &format!("c{n}"))).unwrap();
        head = digest(&SHA256, &[&head[..], &n.to_le_bytes(), record.as_bytes()].concat()).as_ref().to_vec();
        text += &format!("{{\"seq\":{n},\"record\":{record},\"hash\":\"{}\"}}\n", hex::encode(&head));
    }
    let hash = hex::encode(&head);
    let signature = hex::encode(key.sign(format!("custody audit checkpoint v1\n3\n{hash}\n").as_bytes()));
    text += &format!("{{\"checkpoint\":{{\"seq\":3,\"hash\":\"{hash}\",\"signature\":\"{signature}\"}}}}\n");
    fs::write(dir.path().join("journal-000001.jsonl"), text).unwrap();
    let journal = open(dir.path());
    journal.append(&record(&journal, "new")).unwrap();
    proven(&journal);
    drop(journal);
    let report = verify(dir.path(), key.public_key().as_ref(), Earlier::default()).unwrap();
    // Each of the old begins was ended as interrupted.
    assert_eq!((report.records, report.unsigned), (7, 0));
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
    assert_eq!(verify(dir.path(), &public(dir.path()), Earlier::default()).unwrap().records, 1600);
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
    let report = verify(dir.path(), &public(dir.path()), Earlier::default()).unwrap();
    assert_eq!((report.records, report.unsigned), (records + 1, 0));
    // What a start does not look at, the verifier does.
    let first = dir.path().join("journal-000001.jsonl");
    let altered = fs::read_to_string(&first).unwrap().replacen("KeyUnwrap", "KeyGet...", 1);
    fs::write(&first, altered).unwrap();
    drop(open(dir.path()));
    assert!(matches!(
        verify(dir.path(), &public(dir.path()), Earlier::default()),
        Err(Broken::Chain { sequence: 1, .. })
    ));
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

/// A generator of its own, so that a failure can be had again.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }
}

#[test]
fn a_thousand_random_tamperings_are_all_named() {
    let dir = tempfile::tempdir().unwrap();
    for start in 0..3 {
        let journal = open(dir.path());
        for i in 0..40 {
            let record = record(&journal, &format!("{start}-{i}"));
            journal.begin(record).unwrap().finish(Outcome::Success, "OK", "");
        }
    }
    let key = public(dir.path());
    let path = dir.path().join("journal-000001.jsonl");
    let whole = fs::read(&path).unwrap();
    let kept = verify(dir.path(), &key, Earlier::default()).unwrap().checkpoint;
    let known = Earlier { head: None, checkpoint: Some(&kept) };
    verify(dir.path(), &key, known).unwrap();
    let lines: Vec<Vec<u8>> = whole.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    let (mut draw, mut named, mut n) = (Draw(42), 0, 0);
    while named < 1000 {
        n += 1;
        let mut altered = lines.clone();
        let (one, other) = (draw.below(lines.len()), draw.below(lines.len()));
        let what = draw.below(6);
        match what {
            // A byte is another.
            0 => {
                let line = &mut altered[one];
                let at = draw.below(line.len());
                line[at] = line[at].wrapping_add(1 + draw.below(255) as u8);
            }
            // A line is gone, is there twice, or stands elsewhere.
            1 => _ = altered.remove(one),
            2 => altered.insert(other, lines[one].clone()),
            3 => altered.swap(one, other),
            // The end is gone: whole lines, or not.
            4 => altered.truncate(one),
            _ => {
                let bytes = altered.concat();
                altered = vec![bytes[..draw.below(bytes.len())].to_vec()];
            }
        }
        let bytes = altered.concat();
        let records = |text: &[u8]| -> Vec<Vec<u8>> {
            let lines = text.split_inclusive(|b| *b == b'\n');
            lines.filter(|line| line.starts_with(RECORD)).map(<[u8]>::to_vec).collect()
        };
        if records(&bytes) == records(&whole) {
            continue;
        }
        named += 1;
        fs::write(&path, &bytes).unwrap();
        let found = verify(dir.path(), &key, known);
        assert!(found.is_err(), "tampering {n} of kind {what} at {one}, {other} was not named");
    }
}
