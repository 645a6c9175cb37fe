//! What spills promise: what was written is read until it is removed, and the disk has neither a name nor a byte of it.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use custody_node::{SpillError, SpillId, SpillLimits, Spills};
use std::{fs, os::unix::fs::FileExt as _, path::Path, time::Duration};
use zeroize::Zeroizing;

const LIMITS: SpillLimits =
    SpillLimits { bytes_max: 6 << 20, count_max: 4, idle_max: Duration::from_secs(60) };

fn open(dir: &Path) -> Spills {
    Spills::open(dir.to_owned(), LIMITS).unwrap()
}

fn content(len: usize) -> Vec<u8> {
    b"PLANTED".iter().copied().cycle().take(len).collect()
}

fn write(spills: &Spills, bytes: &[u8]) -> Result<(SpillId, u64), SpillError> {
    let mut writer = spills.create()?;
    for part in bytes.chunks(300_000) {
        writer.write(part)?;
    }
    writer.finish(Duration::ZERO)
}

fn read(spills: &Spills, id: &SpillId, mut offset: u64) -> Result<Vec<u8>, SpillError> {
    let (mut all, mut part) = (Vec::new(), Zeroizing::default());
    loop {
        spills.read(id, offset, &mut part, Duration::ZERO)?;
        if part.is_empty() {
            return Ok(all);
        }
        offset += part.len() as u64;
        all.extend_from_slice(&part);
    }
}

/// Every file that this process has open below a directory: those of spills have no name.
fn open_files(dir: &Path) -> Vec<fs::File> {
    let below = |entry: &fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|to| to.starts_with(dir));
    let fds = fs::read_dir("/proc/self/fd").unwrap().map(Result::unwrap).filter(below);
    fds.map(|fd| fs::OpenOptions::new().read(true).write(true).open(fd.path()).unwrap()).collect()
}

#[test]
fn what_was_written_is_read_and_nothing_of_it_stands_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let spills = open(dir.path());
    for len in [0, 1, 1 << 20, (1 << 20) + 1, (3 << 20) - 5] {
        let (id, written) = write(&spills, &content(len)).unwrap();
        assert_eq!((written, spills.len(&id).unwrap()), (len as u64, len as u64));
        assert!(read(&spills, &id, 0).unwrap() == content(len), "{len} bytes");
        let middle = len / 2;
        let rest = content(len).split_off(middle);
        assert!(read(&spills, &id, middle as u64).unwrap() == rest, "from the middle of {len} bytes");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no name");
        for file in open_files(dir.path()) {
            let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(!bytes.windows(7).any(|w| w == b"PLANTED"));
        }
        assert_eq!(open_files(dir.path()).len(), 1, "the search sees the spill");
        spills.remove(&id).unwrap();
        assert_eq!(open_files(dir.path()).len(), 0, "and its blocks are given back");
        assert!(matches!(read(&spills, &id, 0), Err(SpillError::Missing)));
        assert!(matches!(spills.remove(&id), Err(SpillError::Missing)));
    }
}

#[test]
fn an_altered_file_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let spills = open(dir.path());
    let (id, _) = write(&spills, &content(100)).unwrap();
    let files = open_files(dir.path());
    let file = files.first().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 50).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 50).unwrap();
    assert!(matches!(read(&spills, &id, 0), Err(SpillError::Corrupt)));
}

#[test]
fn room_is_bounded_and_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let spills = open(dir.path());
    let (first, _) = write(&spills, &content(3 << 20)).unwrap();
    assert!(
        matches!(write(&spills, &content(3 << 20)), Err(SpillError::Full(_))),
        "with what seals it, it is more"
    );
    // What was begun and given up has given its room back.
    drop(spills.create().unwrap());
    let (second, _) = write(&spills, &content(2 << 20)).unwrap();
    let others: Vec<_> = (0..2).map(|_| write(&spills, b"x").unwrap()).collect();
    assert!(matches!(spills.create(), Err(SpillError::Full(_))), "four at most");
    spills.remove(&first).unwrap();
    let (third, _) = write(&spills, &content(3 << 20)).unwrap();
    // One that is read stays, the others are too old.
    let mut part = Zeroizing::default();
    spills.read(&third, 0, &mut part, Duration::from_secs(50)).unwrap();
    spills.expire(Duration::from_secs(61));
    assert!(read(&spills, &third, 0).is_ok());
    for id in others.iter().map(|(id, _)| id).chain([&second]) {
        assert!(matches!(spills.len(id), Err(SpillError::Missing)));
    }
    // A process that was killed between making a file and taking its name away has left an empty one.
    fs::write(dir.path().join("left"), b"").unwrap();
    drop(spills);
    drop(open(dir.path()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
