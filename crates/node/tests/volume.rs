//! What a sealed volume promises, on real files.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "stage/memory_dir.rs"]
mod memory_dir;
#[path = "stage/protector.rs"]
mod protector;

use custody_envelope::VolumeKey;
use custody_node::{layout::*, *};
use memory_dir::memory_dir;
use proptest::prelude::*;
use protector::protector;
use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

const KEY: [u8; 32] = [9; 32];

fn key() -> VolumeKey {
    VolumeKey::from_bytes(&KEY).unwrap()
}

fn make(dir: &Path, size: u64) -> (PathBuf, Volume) {
    let path = dir.join("v.volume");
    let volume = Volume::create(&path, size, &key(), protector(), VolumeOptions::default()).unwrap();
    (path, volume)
}

fn open(path: &Path) -> Volume {
    Volume::open(path, &key(), VolumeOptions::default()).unwrap()
}

fn read(volume: &Volume, at: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0xEE; len];
    volume.read_at(at, &mut out).unwrap();
    out
}

#[test]
fn what_is_written_is_read_also_after_reopening_without_a_flush() {
    let dir = tempfile::tempdir().unwrap();
    let (path, volume) = make(dir.path(), 40 << 20);
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let at = EXTENT_LEN - 12_345;
    volume.write_at(at, &data).unwrap();
    assert_eq!(read(&volume, at, data.len()), data);
    assert_eq!(read(&volume, 0, 8192), vec![0; 8192]);
    drop(volume);
    let volume = open(&path);
    assert_eq!(read(&volume, at, data.len()), data, "the process ended without a flush");
    volume.flush().unwrap();
    drop(volume);
    assert_eq!(read(&open(&path), at, data.len()), data);
    assert!(matches!(open(&path).read_at((40 << 20) - 1, &mut [0; 2]), Err(VolumeError::OutOfRange { .. })));
    assert!(matches!(open(&path).write_at(u64::MAX, &[0; 2]), Err(VolumeError::OutOfRange { .. })));
}

#[test]
fn nothing_written_stands_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (path, volume) = make(dir.path(), 4 << 20);
    let planted = b"PLANTED-SECRET-0123456789".repeat(400);
    volume.write_at(100, &planted).unwrap();
    volume.flush().unwrap();
    let file = fs::read(&path).unwrap();
    assert!(!file.windows(14).any(|w| w == b"PLANTED-SECRET"));
    assert!(!file.windows(32).any(|w| w == KEY));
}

#[test]
fn overwriting_far_more_than_the_spare_slots_works_without_a_flush() {
    let dir = tempfile::tempdir().unwrap();
    let (path, volume) = make(dir.path(), 2 << 20);
    for round in 0..60u8 {
        volume.write_at(0, &vec![round; 2 << 20]).unwrap();
    }
    drop(volume);
    assert_eq!(read(&open(&path), 0, 2 << 20), vec![59; 2 << 20]);
    assert!(fs::metadata(&path).unwrap().len() < 40 << 20);
}

#[test]
fn discarded_blocks_are_zeros_and_stay_so() {
    let dir = tempfile::tempdir().unwrap();
    let (path, volume) = make(dir.path(), 20 << 20);
    volume.write_at(0, &vec![7; 20 << 20]).unwrap();
    volume.zero_at(1000, 18 << 20).unwrap();
    volume.flush().unwrap();
    drop(volume);
    let volume = open(&path);
    assert_eq!(read(&volume, 0, 1000), vec![7; 1000]);
    assert_eq!(read(&volume, 1000, 18 << 20), vec![0; 18 << 20]);
    assert_eq!(read(&volume, 1000 + (18 << 20), 100), vec![7; 100]);
    volume.write_at(8192, b"again").unwrap();
    assert_eq!(read(&volume, 8192, 6), b"again\0");
}

/// Every bit of all that a small volume has written, flipped one at a time: the volume does not open, or reading
/// fails, or the bit was of a stale copy or of padding and the right data is read. Wrong data is never read, and a
/// block that does not open is named.
#[test]
fn every_flipped_bit_is_found_and_named() {
    let dir = memory_dir();
    let (path, volume) = make(dir.path(), 1 << 20);
    let data: Vec<u8> = (0..5 * 4096u32).map(|i| (i / 7) as u8).collect();
    volume.write_at(0, &data).unwrap();
    volume.zero_at(4096, 4096).unwrap();
    volume.flush().unwrap();
    let mut expected = data;
    expected[4096..8192].fill(0);
    drop(volume);
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let entries = entries_start(0);
    let slots = slot_start(0, 0);
    let ranges = [
        (0, 900),
        (16384, 900),
        (TABLE_START, 512),
        (TABLE_START + 4096, 512),
        (header_start(0, 0), 512),
        (header_start(0, 1), 512),
        (entries, 600),
        (slots, 5 * 4096),
    ];
    let (mut refused, mut named, mut same) = (0, 0, 0);
    for (start, len) in ranges {
        for bit in start * 8..(start + len) * 8 {
            let (at, mask) = (bit / 8, 1 << (bit % 8));
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ mask], at).unwrap();
            let mut out = vec![0; expected.len()];
            let read = Volume::open(&path, &key(), VolumeOptions::default())
                .map(|volume| volume.read_at(0, &mut out));
            match read {
                Ok(Ok(())) => {
                    assert!(out == expected, "bit {bit} flipped: wrong data was read");
                    same += 1;
                }
                // Slot and block have the same number here, since each was written once and in order.
                Ok(Err(VolumeError::Corrupt { extent: 0, block: Some(block) })) => {
                    assert_eq!(u64::from(block), (at - slots) / 4096, "bit {bit}");
                    named += 1;
                }
                _ => refused += 1,
            }
            file.write_all_at(&byte, at).unwrap();
        }
    }
    // The second block was discarded: its old slot is not in use any more.
    assert_eq!(named, 4 * 4096 * 8);
    assert!(refused > 5000, "{refused} refused, {same} unaffected");
    assert_eq!(read(&open(&path), 0, expected.len()), expected, "the test put everything back");
}

#[test]
fn wiped_extents_blocks_and_moved_entries_are_missed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, volume) = make(dir.path(), 40 << 20);
    volume.write_at(0, &vec![1; 64 * 4096]).unwrap();
    volume.write_at(EXTENT_LEN, &vec![2; 4096]).unwrap();
    volume.flush().unwrap();
    volume.flush().unwrap();
    drop(volume);
    let whole = fs::read(&path).unwrap();
    let attempt = |change: &dyn Fn(&mut Vec<u8>), at: u64| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        let copy = path.with_extension("copy");
        fs::write(&copy, bytes).unwrap();
        Volume::open(&copy, &key(), VolumeOptions::default()).is_err()
            || open(&copy).read_at(at, &mut [0; 4096]).is_err()
    };
    let wipe = |from: u64, len: usize| move |b: &mut Vec<u8>| b[from as usize..from as usize + len].fill(0);
    assert!(attempt(&wipe(extent_start(1), ENTRIES_LEN), EXTENT_LEN), "an extent was wiped");
    assert!(attempt(&wipe(entries_start(0), 40), 0), "an entry was wiped");
    assert!(attempt(&wipe(entries_start(0), 40), 4096), "an entry of the same extent was wiped");
    assert!(
        attempt(
            &|b: &mut Vec<u8>| {
                let (a, z) = (slot_start(0, 0) as usize, slot_start(0, 1) as usize);
                for i in 0..4096 {
                    b.swap(a + i, z + i);
                }
            },
            0
        ),
        "two blocks were swapped"
    );
    assert!(
        attempt(
            &|b: &mut Vec<u8>| {
                let (a, z) = (extent_start(0) as usize, extent_start(1) as usize);
                let first = b[a..a + EXTENT_STRIDE as usize].to_vec();
                b[z..z + EXTENT_STRIDE as usize].copy_from_slice(&first);
            },
            EXTENT_LEN
        ),
        "an extent was copied over another"
    );
    assert!(
        Volume::open(&path, &VolumeKey::from_bytes(&[1; 32]).unwrap(), VolumeOptions::default()).is_err()
    );
    let cut = path.with_extension("cut");
    for len in [0, 100, 20_000, 40_000, whole.len() / 2] {
        fs::write(&cut, &whole[..len]).unwrap();
        let outcome = Volume::open(&cut, &key(), VolumeOptions::default());
        let read = outcome.is_ok_and(|v| v.read_at(EXTENT_LEN, &mut [0; 4096]).is_ok());
        assert!(!read, "cut to {len}");
    }
}

#[test]
fn a_data_key_rotates_alone_online_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let (path, volume) = make(dir.path(), 40 << 20);
    volume.write_at(0, &vec![3; 1 << 20]).unwrap();
    volume.write_at(EXTENT_LEN, &vec![4; 4096]).unwrap();
    volume.zero_at(4096, 4096).unwrap();
    volume.flush().unwrap();
    let other = fs::read(&path).unwrap()[slot_start(1, 0) as usize..][..4096].to_vec();
    std::thread::scope(|scope| {
        let rotating = scope.spawn(|| volume.rotate_extent(0).unwrap());
        for i in 0..200u64 {
            volume.write_at((i % 100) * 4096 + (1 << 20), &i.to_le_bytes().repeat(512)).unwrap();
        }
        rotating.join().unwrap();
    });
    volume.rotate_extent(0).unwrap();
    assert_eq!(
        (
            volume.dek_generation(0).unwrap(),
            volume.dek_generation(1).unwrap(),
            volume.dek_generation(2).unwrap()
        ),
        (3, 1, 0)
    );
    assert_eq!(
        fs::read(&path).unwrap()[slot_start(1, 0) as usize..][..4096],
        other[..],
        "another extent was touched"
    );
    drop(volume);
    let volume = open(&path);
    assert_eq!(read(&volume, 8192, 4096), vec![3; 4096]);
    assert_eq!(read(&volume, 4096, 4096), vec![0; 4096]);
    assert_eq!(read(&volume, (1 << 20) + 99 * 4096, 8), 199u64.to_le_bytes());
    assert!(volume.take_rotations_due().is_empty());
}

#[test]
fn a_data_key_at_its_limit_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let options = VolumeOptions { seals_per_key_max: 100, ..VolumeOptions::default() };
    let volume = Volume::create(&dir.path().join("v"), 1 << 20, &key(), protector(), options).unwrap();
    for i in 0..150u8 {
        volume.write_at(0, &[i; 4096]).unwrap();
    }
    assert_eq!(volume.take_rotations_due(), [0]);
    volume.rotate_extent(0).unwrap();
    assert_eq!(volume.dek_generation(0).unwrap(), 2);
    assert_eq!(read(&volume, 0, 4096), vec![149; 4096]);
}

#[test]
fn a_protector_is_replaced_without_touching_data() {
    let dir = tempfile::tempdir().unwrap();
    let (path, volume) = make(dir.path(), 1 << 20);
    volume.write_at(0, &[5; 4096]).unwrap();
    volume.flush().unwrap();
    let next = Protector { key: "vaults/v/keys/other".into(), ..protector() };
    volume.set_protector(next.clone()).unwrap();
    drop(volume);
    let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
    assert!(!text.contains(&format!("{:?}", protector().key)), "no copy needs the one before");
    assert_eq!(open(&path).protector(), next);
    assert_eq!(read(&open(&path), 0, 4096), vec![5; 4096]);
}

/// After a change is settled, no copy of the superblock has what the former key wrapped.
#[test]
fn a_former_protector_is_kept_until_the_change_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    let (path, volume) = make(dir.path(), 1 << 20);
    let former = |volume: Volume| {
        drop(volume);
        let found = Superblock::read(&fs::File::open(&path).unwrap()).unwrap().former;
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        (found, text.contains("managedIdentities/m\""))
    };
    let next = Protector { managed_identity: "managedIdentities/next".into(), ..protector() };
    volume.change_protector(next.clone()).unwrap();
    assert_eq!(former(volume), (Some(protector()), true));
    let volume = open(&path);
    assert_eq!(volume.protector(), next);
    volume.settle_protector().unwrap();
    assert_eq!(former(volume), (None, false));
    assert_eq!(open(&path).protector(), next);
}

/// As a node does with a volume that nobody uses for a moment.
fn settle(volume: &Volume) {
    while volume.is_unsettled() {
        volume.settle().unwrap();
    }
}

#[test]
fn what_a_flush_left_without_a_header_is_kept_and_missed_once_it_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    let (path, volume) = make(dir.path(), 1 << 20);
    volume.write_at(0, &[1; 4096]).unwrap();
    volume.flush().unwrap();
    volume.write_at(0, &[2; 4096]).unwrap();
    volume.flush().unwrap();
    assert!(volume.is_unsettled(), "flushes that come this fast leave headers");
    drop(volume);
    let block = |volume: &Volume| {
        let mut block = [0; 4096];
        volume.read_at(0, &mut block).map(|()| block[0])
    };
    let volume = open(&path);
    assert_eq!(block(&volume).unwrap(), 2);
    volume.settle().unwrap();
    settle(&volume);
    drop(volume);
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let slot = slot_start(0, 1) + 100;
    let mut byte = [0];
    file.read_exact_at(&mut byte, slot).unwrap();
    file.write_all_at(&[byte[0] ^ 1], slot).unwrap();
    assert!(matches!(block(&open(&path)), Err(VolumeError::Corrupt { extent: 0, block: Some(0) })));
}

#[test]
fn many_writers_and_flushers_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (path, volume) = make(dir.path(), 40 << 20);
    std::thread::scope(|scope| {
        for t in 0..4u64 {
            let volume = &volume;
            scope.spawn(move || {
                for i in 0..300u64 {
                    volume
                        .write_at((t * 300 + i) * 1024 * 8, &(t * 1000 + i).to_le_bytes().repeat(128))
                        .unwrap();
                    if i % 50 == 0 {
                        volume.flush().unwrap();
                    }
                }
            });
        }
    });
    drop(volume);
    let volume = open(&path);
    for t in 0..4u64 {
        for i in 0..300u64 {
            assert_eq!(read(&volume, (t * 300 + i) * 1024 * 8, 8), (t * 1000 + i).to_le_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Any sequence of writes, zeroings, flushes, rotations and reopenings gives what a plain array gives.
    #[test]
    fn a_volume_is_an_array(steps in proptest::collection::vec((0..6u8, 0..1_048_576usize, 1..40_000usize, any::<u8>()), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let size = 1usize << 20;
        let (path, mut volume) = make(dir.path(), size as u64);
        let mut model = vec![0u8; size];
        for (what, at, len, fill) in steps {
            let len = len.min(size - at);
            match what {
                0 | 1 => { volume.write_at(at as u64, &vec![fill; len]).unwrap(); model[at..at + len].fill(fill); }
                2 => { volume.zero_at(at as u64, len as u64).unwrap(); model[at..at + len].fill(0); }
                3 => volume.flush().unwrap(),
                4 => volume.rotate_extent(0).unwrap(),
                _ => { drop(volume); volume = open(&path); }
            }
            let mut out = vec![0; len];
            volume.read_at(at as u64, &mut out).unwrap();
            prop_assert_eq!(&out[..], &model[at..at + len]);
        }
        prop_assert!(read(&volume, 0, size) == model);
    }
}

/// Volumes that may have eight extents in memory together.
fn sharing_a_budget(dir: &Path, count: usize, size_bytes: u64) -> (Arc<ExtentBudget>, Vec<Volume>) {
    let budget = ExtentBudget::new(8);
    let options = VolumeOptions { budget: budget.clone(), ..VolumeOptions::default() };
    let make = |n: usize| {
        Volume::create(&dir.join(n.to_string()), size_bytes, &key(), protector(), options.clone()).unwrap()
    };
    (budget, (0..count).map(make).collect())
}

/// A volume that was written to, and is idle since, keeps nothing in memory that another needs.
#[test]
fn extents_of_idle_volumes_make_room() {
    let dir = tempfile::tempdir().unwrap();
    let (budget, volumes) = sharing_a_budget(dir.path(), 40, EXTENT_LEN);
    for (n, volume) in (0u8..).zip(&volumes) {
        volume.write_at(0, &[n + 1; 4096]).unwrap();
        volume.flush().unwrap();
        settle(volume);
    }
    assert!(budget.loaded() <= 8, "{} extents are in memory", budget.loaded());
    for (n, volume) in (0u8..).zip(&volumes) {
        assert_eq!(read(volume, 0, 4096), [n + 1; 4096]);
    }
}

/// Volumes that share a budget: whatever is written and read, few extents are in memory, and nothing is lost.
#[test]
fn extents_in_memory_are_bounded_over_all_volumes() {
    let dir = tempfile::tempdir().unwrap();
    let (budget, volumes) = sharing_a_budget(dir.path(), 4, 40 * EXTENT_LEN);
    // Each volume's writer, none of which ever flushes, beside the others.
    std::thread::scope(|scope| {
        for (n, volume) in (0u8..).zip(&volumes) {
            let budget = budget.clone();
            scope.spawn(move || {
                for round in 0..3u8 {
                    for extent in 0..40 {
                        volume.write_at(extent * EXTENT_LEN, &[n * 40 + round + 1; 4096]).unwrap();
                        // Of 160: eight, a quarter more, and for each writer what is in use or not flushed just then.
                        assert!(budget.loaded() <= 32, "{} extents are in memory", budget.loaded());
                    }
                }
            });
        }
    });
    for (n, volume) in (0u8..).zip(&volumes) {
        for extent in 0..40 {
            assert_eq!(
                read(volume, extent * EXTENT_LEN, 4096),
                [n * 40 + 3; 4096],
                "volume {n}, extent {extent}"
            );
        }
    }
    assert!(budget.loaded() <= 32);
}
