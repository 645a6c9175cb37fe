//! What a snapshot promises: one moment, whatever is written, flushed, rotated or evicted while it is read; memory that
//! does not grow with the volume; and writes that wait for no store.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

#[path = "stage/manifest.rs"]
mod manifest;
#[path = "stage/random.rs"]
mod random;
#[path = "stage/volume.rs"]
mod volume;

use custody_envelope::StreamKey;
use custody_node::{layout::EXTENT_LEN, *};
use manifest::manifest;
use random::Random;
use std::{
    ops::ControlFlow,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};
use volume::volume;

const EXTENTS: u64 = 6;
/// Blocks of an extent that the tests use: some at its start.
const USED: u64 = 40;

/// The first byte of each block in use.
type Model = Vec<u8>;

fn offset(block: usize) -> u64 {
    block as u64 / USED * EXTENT_LEN + block as u64 % USED * 4096
}

/// One random change; the model changes with it.
fn change(volume: &Volume, model: &mut Model, random: &mut Random) {
    let block = random.next(model.len() as u64) as usize;
    match random.next(20) {
        0 => volume.flush().unwrap(),
        1 => volume.rotate_extent(u32::try_from(block as u64 / USED).unwrap()).unwrap(),
        2..5 => {
            volume.zero_at(offset(block), 4096).unwrap();
            model[block] = 0;
        }
        n => {
            let byte = 1 + u8::try_from(random.next(255)).unwrap();
            // Whole blocks, and parts of one.
            let len = if n < 8 { 100 } else { 4096 };
            volume.write_at(offset(block), &vec![byte; len]).unwrap();
            model[block] = byte;
        }
    }
}

fn read(volume: &Volume) -> Model {
    let block = |n| {
        let mut byte = [0];
        volume.read_at(offset(n), &mut byte).unwrap();
        byte[0]
    };
    (0..(EXTENTS * USED) as usize).map(block).collect()
}

/// Ends a writer, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn a_snapshot_is_of_its_moment_whatever_happens_meanwhile() {
    for seed in 1..=30u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let dir = tempfile::tempdir().unwrap();
        let store = Directory::new(dir.path().to_owned());
        // Fewer than the volume has, so that extents go from memory and come back between all of this.
        let options = VolumeOptions { budget: ExtentBudget::new(3), ..VolumeOptions::default() };
        let source = Arc::new(volume(&dir.path().join("v"), EXTENTS * EXTENT_LEN, options));
        let key = StreamKey::generate().unwrap();
        let mut model = vec![0; (EXTENTS * USED) as usize];
        let (mut moments, mut marks) = (Vec::new(), Marks::new());
        for id in 1..4u8 {
            (0..random.next(200)).for_each(|_| change(&source, &mut model, &mut random));
            let snapshot = Snapshot::take(source.clone()).unwrap();
            moments.push(model.clone());
            (0..random.next(100)).for_each(|_| change(&source, &mut model, &mut random));
            let (name, ended) = (format!("b{id}"), AtomicBool::new(false));
            let manifest = manifest(id, &source);
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    while !ended.load(Ordering::Acquire) {
                        change(&source, &mut model, &mut random);
                    }
                });
                let end = End(&ended);
                let go_on = |_, _| ControlFlow::Continue(());
                write_backup((&store, &name), &manifest, &key, snapshot, &marks, go_on).unwrap();
                drop(end);
                writer.join().unwrap();
            });
            let written = BackupManifest::read(&store, &name).unwrap();
            marks = read_marks((&store, &name), &written, &key).unwrap();
        }
        // Each of them, with what it adds to, is the volume of its moment.
        let copy = volume(&dir.path().join("copy"), EXTENTS * EXTENT_LEN, VolumeOptions::default());
        for (id, moment) in (1..).zip(&moments) {
            let name = format!("b{id}");
            let written = BackupManifest::read(&store, &name).unwrap();
            read_backup((&store, &name), &written, &key, |piece| copy.restore(piece)).unwrap();
            assert!(read(&copy) == *moment, "seed {seed}, backup {id}");
        }
        assert!(read(&source) == model, "seed {seed}");
    }
}

#[test]
fn a_snapshot_taken_among_writes_has_the_first_of_them_and_no_other() {
    const BLOCKS: u64 = 60;
    let at = |block: u64| block % EXTENTS * EXTENT_LEN + block / EXTENTS * 4096;
    let dir = tempfile::tempdir().unwrap();
    let store = Directory::new(dir.path().to_owned());
    let source = Arc::new(volume(&dir.path().join("v"), EXTENTS * EXTENT_LEN, VolumeOptions::default()));
    let key = StreamKey::generate().unwrap();
    let ended = AtomicBool::new(false);
    let go_on = |_, _| ControlFlow::Continue(());
    std::thread::scope(|scope| {
        // Each write is the next number, nearly always to a block that no flush has seen the last write of.
        let writer = scope.spawn(|| {
            let mut random = Random(11);
            let mut writes = Vec::new();
            while !ended.load(Ordering::Acquire) {
                let block = random.next(BLOCKS);
                writes.push(block);
                let mut bytes = [0; 4096];
                bytes[..8].copy_from_slice(&(writes.len() as u64).to_le_bytes());
                source.write_at(at(block), &bytes).unwrap();
            }
            writes
        });
        let end = End(&ended);
        let found: Vec<Vec<u64>> = (0..40u8)
            .map(|id| {
                let name = format!("b{id}");
                let snapshot = Snapshot::take(source.clone()).unwrap();
                let full = Marks::new();
                let manifest = manifest(id, &source);
                write_backup((&store, &name), &manifest, &key, snapshot, &full, go_on).unwrap();
                let path = dir.path().join(format!("copy{id}"));
                let copy = volume(&path, EXTENTS * EXTENT_LEN, VolumeOptions::default());
                let written = BackupManifest::read(&store, &name).unwrap();
                read_backup((&store, &name), &written, &key, |piece| copy.restore(piece)).unwrap();
                let number = |block| {
                    let mut bytes = [0; 8];
                    copy.read_at(at(block), &mut bytes).unwrap();
                    u64::from_le_bytes(bytes)
                };
                (0..BLOCKS).map(number).collect()
            })
            .collect();
        drop(end);
        let writes = writer.join().unwrap();
        for (id, numbers) in found.iter().enumerate() {
            let last = *numbers.iter().max().unwrap() as usize;
            let mut expected = vec![0; BLOCKS as usize];
            (1..).zip(&writes[..last]).for_each(|(number, block)| expected[*block as usize] = number);
            assert_eq!(*numbers, expected, "snapshot {id}, of the first {last} writes");
        }
    });
}

#[test]
fn memory_does_not_grow_with_the_volume() {
    let dir = tempfile::tempdir().unwrap();
    let store = Directory::new(dir.path().to_owned());
    let budget = ExtentBudget::new(8);
    let options = VolumeOptions { budget: budget.clone(), ..VolumeOptions::default() };
    let source = Arc::new(volume(&dir.path().join("v"), 400 * EXTENT_LEN, options));
    for extent in 0..400 {
        source.write_at(extent * EXTENT_LEN, &[7; 4096]).unwrap();
    }
    let most = AtomicUsize::new(0);
    let snapshot = Snapshot::take(source.clone()).unwrap();
    let look = |_, _| {
        most.fetch_max(budget.loaded(), Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    let key = StreamKey::generate().unwrap();
    write_backup((&store, "b"), &manifest(1, &source), &key, snapshot, &Marks::new(), look).unwrap();
    // What each core has in hand, which is a segment of sixteen, and the budget with its quarter.
    let bound = 10 + 17 * (std::thread::available_parallelism().unwrap().get() + 1);
    assert!(most.into_inner() <= bound.min(390), "of 400 extents");
}

#[test]
fn writes_do_not_wait_for_a_backup_that_has_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let store = Directory::new(dir.path().to_owned());
    // More than a snapshot has copied before a backup comes to it, and more than the backup has in hand.
    let extents = 200 + 34 * std::thread::available_parallelism().unwrap().get() as u64;
    let options = VolumeOptions { budget: ExtentBudget::new(16), ..VolumeOptions::default() };
    let source = Arc::new(volume(&dir.path().join("v"), extents * EXTENT_LEN, options));
    let write = |byte| (0..extents).for_each(|e| source.write_at(e * EXTENT_LEN, &[byte; 4096]).unwrap());
    write(1);
    let snapshot = Snapshot::take(source.clone()).unwrap();
    let key = StreamKey::generate().unwrap();
    let (stopped, go_on) = (Mutex::new(true), Condvar::new());
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| {
            let stop = |_, _| {
                drop(go_on.wait_while(stopped.lock().unwrap(), |stopped| *stopped).unwrap());
                ControlFlow::Continue(())
            };
            write_backup((&store, "b"), &manifest(1, &source), &key, snapshot, &Marks::new(), stop)
        });
        write(2);
        *stopped.lock().unwrap() = false;
        go_on.notify_all();
        assert!(matches!(backup.join().unwrap(), Err(BackupError::Overtaken)));
    });
    assert!(store.names().unwrap().is_empty(), "nothing of it stays");
    // The volume has lost nothing, and is backed up when less is written.
    let snapshot = Snapshot::take(source.clone()).unwrap();
    let go_on = |_, _| ControlFlow::Continue(());
    write_backup((&store, "b"), &manifest(1, &source), &key, snapshot, &Marks::new(), go_on).unwrap();
    let copy = volume(&dir.path().join("copy"), extents * EXTENT_LEN, VolumeOptions::default());
    let written = BackupManifest::read(&store, "b").unwrap();
    read_backup((&store, "b"), &written, &key, |piece| copy.restore(piece)).unwrap();
    let mut block = [0; 4096];
    for extent in 0..extents {
        copy.read_at(extent * EXTENT_LEN, &mut block).unwrap();
        assert_eq!(block, [2; 4096], "extent {extent}");
    }
}
