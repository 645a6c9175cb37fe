//! What is removed of a trail breaks nothing of what is left, and is not believed without a signed record.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_audit::{
    tree::{is_consistent, leaf_hash, root_by_inclusion},
    *,
};
use custody_types::{Caller, Clock, Duty, UnixMillis};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

const DAY_MS: u64 = 86_400_000;

/// A day that a test moves on.
#[derive(Clone, Default)]
struct Days(Arc<AtomicU64>);

impl Clock for Days {
    fn now(&self) -> UnixMillis {
        UnixMillis::from_millis(self.0.load(Ordering::Relaxed) * DAY_MS)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.now().as_millis())
    }
}

fn caller() -> Caller {
    Caller {
        principal: "principals/p".into(),
        duty: Duty::Workload,
        token_id: String::new(),
        address: String::new(),
    }
}

struct Rig {
    dir: tempfile::TempDir,
    days: Days,
}

impl Rig {
    /// A trail of a file for each of so many days, three records in each.
    fn new(days: u64) -> Self {
        let rig = Self { dir: tempfile::tempdir().unwrap(), days: Days::default() };
        (0..days).for_each(|_| rig.day());
        rig
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("audit")
    }

    fn open(&self) -> Arc<Journal> {
        let limits = FileLimits { len: 1 << 20, age: Some(Duration::from_secs(86_400)) };
        Arc::new(Journal::open(&self.path(), Arc::new(self.days.clone()), limits).unwrap())
    }

    /// A day on which something was done; what is done on the next goes into another file.
    fn day(&self) {
        let day = self.days.0.load(Ordering::Relaxed);
        let journal = self.open();
        let record =
            |id: String| Record::begin(journal.now(), "KeyUnwrap", &id, &caller(), "vaults/v/keys/k");
        journal.begin(record(format!("a{day}"))).unwrap().finish(Outcome::Success, "OK", "");
        self.days.0.store(day + 1, Ordering::Relaxed);
        journal.append(&record(format!("b{day}")).finish(journal.now(), Outcome::Denied, "", "")).unwrap();
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            entries.filter(|path| path.extension().is_some_and(|e| e == "jsonl")).collect();
        files.sort();
        files
    }

    fn public(&self) -> Vec<u8> {
        hex(&fs::read_to_string(self.path().join("checkpoint.pub")).unwrap())
    }

    fn verify(&self, known: Earlier<'_>) -> Result<Report, Broken> {
        verify(&self.path(), &self.public(), known)
    }

    /// Removes what is of before a day.
    fn retire(&self, journal: &Arc<Journal>, day: u64) -> Option<Removed> {
        journal.retire(&caller(), before(day)).unwrap()
    }
}

fn before(day: u64) -> Retention<'static> {
    Retention { before: UnixMillis::from_millis(day * DAY_MS), up_to: u64::MAX, archive: None }
}

fn hex(text: &str) -> Vec<u8> {
    (0..32).map(|i| u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).unwrap()).collect()
}

fn earlier(note: &str) -> Earlier<'_> {
    Earlier { head: None, checkpoint: Some(note) }
}

/// A signed checkpoint of each size that had one, of a trail that nothing was removed of.
fn checkpoints(rig: &Rig) -> Vec<String> {
    let lines = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let notes = text.lines().filter(|line| line.starts_with("{\"checkpoint\""));
        notes.map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()).collect::<Vec<_>>()
    };
    let all = rig.files().iter().flat_map(lines).collect::<Vec<_>>();
    all.iter().map(|line| line["checkpoint"].as_str().unwrap().to_owned()).collect()
}

/// Whether the trail proves of each of these records that it is in the tree that was signed last.
fn proven(journal: &Journal, key: &[u8], records: &[(u64, Vec<u8>)]) -> Vec<bool> {
    let tree = TreeHead::open(&journal.checkpoint().unwrap(), &trail_key(key).unwrap()).unwrap();
    let is = |(sequence, record): &(u64, Vec<u8>)| {
        let proof = journal.inclusion_proof(*sequence, tree.size)?;
        let root = root_by_inclusion(&leaf_hash(record), sequence - 1, tree.size, &proof);
        assert_eq!(root, Some(tree.root), "record {sequence}");
        std::io::Result::Ok(())
    };
    records.iter().map(|record| is(record).is_ok()).collect()
}

fn bytes(entries: &[Entry]) -> Vec<(u64, Vec<u8>)> {
    entries.iter().map(|e| (e.sequence, e.text.get().as_bytes().to_vec())).collect()
}

/// What the trail has when the record that ends a removal, for which nobody waits, is written too.
fn finished(journal: &Journal) -> Vec<Entry> {
    loop {
        let left = journal.read(0, 1000).unwrap();
        if left.last().is_some_and(|last| last.record.phase == Phase::Finish) {
            return left;
        }
        std::thread::yield_now();
    }
}

#[test]
fn what_is_left_verifies_and_all_of_it_is_proven() {
    let rig = Rig::new(12);
    let journal = rig.open();
    let records = bytes(&journal.read(0, 1000).unwrap());
    let notes = checkpoints(&rig);
    let head = rig.verify(Earlier::default()).unwrap().head;
    assert!(notes.len() > 12);
    for day in [3, 3, 7] {
        let was = rig.files().len();
        let removed = rig.retire(&journal, day);
        let Some(removed) = removed else {
            assert_eq!(day, 3, "only what was removed once is not there to be removed");
            continue;
        };
        assert!(removed.files > 0 && removed.bytes > 0);
        // The record of it may have begun a file.
        assert!(rig.files().len() <= was - removed.files as usize + 1);
        assert_eq!(journal.first(), removed.last + 1);
        let left = finished(&journal);
        assert_eq!(left[0].sequence, removed.last + 1);
        assert!(left.iter().all(|e| e.record.time >= UnixMillis::from_millis((day - 1) * DAY_MS)));
        let report = rig.verify(Earlier::default()).unwrap();
        assert_eq!((report.first, report.records), (removed.last + 1, left.len() as u64));
        // Whoever kept a checkpoint of before still finds that nothing of it was altered.
        notes.iter().for_each(|note| _ = rig.verify(earlier(note)).unwrap());
        rig.verify(Earlier { head: Some(&head), checkpoint: None }).unwrap();
        assert!(proven(&journal, &rig.public(), &records).into_iter().all(|is| is));
    }
    let key = trail_key(&rig.public()).unwrap();
    let first = TreeHead::open(&notes[0], &key).unwrap();
    let last = TreeHead::open(&journal.checkpoint().unwrap(), &key).unwrap();
    let proof = journal.consistency_proof(first.size, last.size).unwrap();
    assert!(is_consistent((first.size, &first.root), (last.size, &last.root), &proof));
    let gone = Earlier { head: Some(&"0".repeat(64)), checkpoint: None };
    assert!(matches!(rig.verify(gone), Err(Broken::Before(_))));
    drop(journal);
    rig.day();
    let journal = rig.open();
    assert_eq!(journal.read(journal.first() + 1, 1).unwrap()[0].sequence, journal.first() + 2);
    rig.verify(Earlier::default()).unwrap();
}

#[test]
fn the_newest_files_stay_and_what_is_wanted_elsewhere() {
    let rig = Rig::new(6);
    let journal = rig.open();
    let second = journal.read(4, 1).unwrap()[0].sequence;
    let wanted = Retention { up_to: second, ..before(100) };
    let removed = journal.retire(&caller(), wanted).unwrap().unwrap();
    assert!(removed.last <= second && removed.files > 0, "{removed:?}");
    assert!(rig.retire(&journal, 100).is_some());
    assert_eq!(rig.retire(&journal, 100), None);
    assert_eq!(rig.files().len(), 2);
}

#[test]
fn an_archive_makes_the_trail_whole_again() {
    let rig = Rig::new(6);
    let archive = rig.dir.path().join("archive");
    let whole: Vec<_> = rig.files().iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    let journal = rig.open();
    let retention = Retention { archive: Some(&archive), ..before(4) };
    let removed = journal.retire(&caller(), retention).unwrap().unwrap();
    let last = finished(&journal).last().unwrap().sequence;
    for (path, text) in whole.iter().take(removed.files as usize) {
        assert!(!path.exists());
        assert_eq!(&fs::read(archive.join(path.file_name().unwrap())).unwrap(), text);
        fs::copy(archive.join(path.file_name().unwrap()), path).unwrap();
    }
    let report = rig.verify(Earlier::default()).unwrap();
    assert_eq!((report.first, report.records), (1, last));
    drop(journal);
    // To a process that starts they are what one that died had not come to remove.
    assert_eq!(rig.open().first(), removed.last + 1);
    assert!(whole.iter().take(removed.files as usize).all(|(path, _)| !path.exists()));
    rig.verify(Earlier::default()).unwrap();
}

#[test]
fn without_a_place_in_the_archive_nothing_is_removed() {
    let rig = Rig::new(6);
    let journal = rig.open();
    let archive = rig.dir.path().join("archive");
    fs::write(&archive, "a file").unwrap();
    let was = rig.files();
    let retention = Retention { archive: Some(&archive), ..before(4) };
    assert!(matches!(journal.retire(&caller(), retention), Err(RetentionError::Io { .. })));
    assert_eq!((rig.files(), journal.first()), (was, 1));
    rig.verify(Earlier::default()).unwrap();
}

#[test]
fn what_was_cut_off_without_a_signed_record_is_found() {
    // A removal by the book, of which the attacker takes the beginning.
    let rig = Rig::new(8);
    let honest = rig.dir.path().join("honest");
    copy_all(&rig.path(), &honest);
    let journal = rig.open();
    let removed = rig.retire(&journal, 5).unwrap();
    drop(journal);
    let beginning = fs::read(rig.path().join("beginning.json")).unwrap();
    let statement = fs::read_to_string(rig.files().last().unwrap()).unwrap();
    let statement = statement.lines().find(|line| line.contains("AuditRetention")).unwrap().to_owned();
    // The same files are missing, but nobody said so.
    fs::remove_dir_all(rig.path()).unwrap();
    copy_all(&honest, &rig.path());
    for path in rig.files().iter().take(removed.files as usize) {
        fs::remove_file(path).unwrap();
    }
    assert!(matches!(rig.verify(Earlier::default()), Err(Broken::Chain { .. })));
    fs::write(rig.path().join("beginning.json"), &beginning).unwrap();
    assert!(matches!(rig.verify(Earlier::default()), Err(Broken::Removed(_))));
    // He says so himself: chained, which needs no key, but not signed.
    let last = rig.files().pop().unwrap();
    let mut text = fs::read_to_string(&last).unwrap();
    let before: serde_json::Value =
        serde_json::from_str(text.lines().rfind(|line| line.starts_with("{\"seq\"")).unwrap()).unwrap();
    let record = statement.split_once("\"record\":").unwrap().1.rsplit_once(",\"hash\"").unwrap().0;
    let sequence = before["seq"].as_u64().unwrap() + 1;
    let previous = hex(before["hash"].as_str().unwrap());
    let chained = [&previous[..], &sequence.to_le_bytes(), record.as_bytes()].concat();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &chained);
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    text += &format!("{{\"seq\":{sequence},\"record\":{record},\"hash\":\"{hash}\"}}\n");
    fs::write(&last, text).unwrap();
    assert!(matches!(rig.verify(Earlier::default()), Err(Broken::Removed(_))));
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn every_altered_byte_of_the_beginning_is_found() {
    let rig = Rig::new(6);
    let journal = rig.open();
    rig.retire(&journal, 4).unwrap();
    drop(journal);
    let path = rig.path().join("beginning.json");
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x04;
        fs::write(&path, bytes).unwrap();
        assert!(rig.verify(Earlier::default()).is_err(), "byte {at} was altered unseen");
    }
}

#[test]
fn a_tree_that_was_lost_proves_what_is_left_and_says_nothing_of_the_rest() {
    let rig = Rig::new(9);
    let journal = rig.open();
    let records = bytes(&journal.read(0, 1000).unwrap());
    let notes = checkpoints(&rig);
    let removed = rig.retire(&journal, 6).unwrap();
    drop(journal);
    fs::remove_file(rig.path().join("tree")).unwrap();
    assert!(matches!(rig.verify(earlier(&notes[0])), Err(Broken::Unproven(_))));
    let journal = rig.open();
    let (gone, left) = records.split_at(removed.last as usize);
    assert!(proven(&journal, &rig.public(), left).into_iter().all(|is| is));
    assert!(proven(&journal, &rig.public(), gone).iter().any(|is| !is));
    rig.verify(Earlier::default()).unwrap();
    assert!(matches!(rig.verify(earlier(&notes[0])), Err(Broken::Unproven(_))));
    rig.verify(earlier(notes.last().unwrap())).unwrap();
    // Hashes that are not those of what was removed prove nothing either.
    let path = rig.path().join("tree");
    let mut tree = fs::read(&path).unwrap();
    let zeros = tree.iter().take_while(|byte| **byte == 0).count();
    tree[..zeros].fill(7);
    fs::write(&path, tree).unwrap();
    let found: Vec<_> = notes.iter().filter_map(|note| rig.verify(earlier(note)).err()).collect();
    assert!(found.iter().any(|e| matches!(e, Broken::Rewritten(_))), "{found:?}");
}

#[test]
fn what_is_broken_stays_as_evidence() {
    let rig = Rig::new(6);
    let journal = rig.open();
    let first = rig.files().remove(0);
    let whole = fs::read_to_string(&first).unwrap();
    fs::write(&first, whole.replacen("KeyUnwrap", "KeyGet...", 1)).unwrap();
    assert!(matches!(journal.retire(&caller(), before(4)), Err(RetentionError::Broken(_))));
    fs::write(&first, &whole).unwrap();
    let tree = rig.path().join("tree");
    let mut hashes = fs::read(&tree).unwrap();
    hashes[40] ^= 1;
    fs::write(&tree, &hashes).unwrap();
    assert!(matches!(journal.retire(&caller(), before(4)), Err(RetentionError::Tree)));
    assert!(first.exists() && journal.first() == 1);
    hashes[40] ^= 1;
    fs::write(&tree, &hashes).unwrap();
    assert!(rig.retire(&journal, 4).is_some());
}

#[test]
fn whoever_reads_meanwhile_reads_on() {
    let rig = Rig::new(20);
    let journal = rig.open();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) || rounds < 2 {
                let (mut after, mut last) = (0, None);
                loop {
                    let page = journal.read(after, 3).unwrap();
                    let Some(end) = page.last() else { break };
                    assert!(last.is_none_or(|last| page[0].sequence > last));
                    (after, last) = (end.sequence, Some(end.sequence));
                }
                rounds += 1;
            }
        });
        (2..19).for_each(|day| _ = rig.retire(&journal, day));
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    rig.verify(Earlier::default()).unwrap();
}
