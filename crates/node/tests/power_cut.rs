//! Power cuts: of what was written since the last `fdatasync`, any sectors of 512 bytes may be on the disk and any may
//! not. A thousand cases, each of a random workload and a random choice of sectors.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

#[path = "stage/protector.rs"]
mod protector;
#[path = "stage/random.rs"]
mod random;

use custody_envelope::VolumeKey;
use custody_node::{layout::*, *};
use protector::protector;
use random::Random;
use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
};

const SIZE: usize = 1 << 20;
const BLOCKS: usize = SIZE / BLOCK_LEN;
const WORKLOADS: u64 = 20;
const CUTS: u64 = 50;

fn key() -> VolumeKey {
    VolumeKey::from_bytes(&[9; 32]).unwrap()
}

/// The anchors lie beside the volumes here.
fn options(path: &Path) -> VolumeOptions {
    VolumeOptions { anchors: path.parent().map(Path::to_owned), ..VolumeOptions::default() }
}

fn open(path: &Path) -> Volume {
    Volume::open(path, &key(), options(path)).unwrap()
}

/// The sectors of a file that hold anything.
type Disk = std::collections::BTreeMap<u64, [u8; SECTOR_LEN]>;

fn disk(path: &Path) -> Disk {
    let bytes = fs::read(path).unwrap();
    let sectors = (0..).zip(bytes.chunks_exact(SECTOR_LEN).map(|s| *s.first_chunk().unwrap()));
    sectors.filter(|(_, s)| *s != [0; SECTOR_LEN]).collect()
}

/// One random change, to the volume and to what it should hold.
fn change(random: &mut Random, volume: &Volume, model: &mut [u8]) {
    let at = random.next(SIZE as u64 - 1) as usize;
    let longest = if random.next(3) == 0 { 20 * BLOCK_LEN } else { 2 * BLOCK_LEN };
    let len = (random.next(longest as u64) as usize + 1).min(SIZE - at);
    let (at, len) = if random.next(2) == 0 { (at / BLOCK_LEN * BLOCK_LEN, len) } else { (at, len) };
    let fill = random.next(255) as u8 + 1;
    if random.next(5) == 0 {
        volume.zero_at(at as u64, len as u64).unwrap();
        model[at..at + len].fill(0);
    } else {
        volume.write_at(at as u64, &vec![fill; len]).unwrap();
        model[at..at + len].fill(fill);
    }
}

/// What each block may hold: what it held at the flush, or anything that it held since.
struct Allowed(Vec<BTreeSet<Vec<u8>>>);

impl Allowed {
    fn note(&mut self, model: &[u8]) {
        for (block, bytes) in self.0.iter_mut().zip(model.chunks(BLOCK_LEN)) {
            if !block.contains(bytes) {
                block.insert(bytes.to_vec());
            }
        }
    }
}

#[test]
fn a_thousand_power_cuts_lose_nothing_that_was_flushed_and_tear_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut cuts, mut lost) = (0, 0);
    for seed in 1..=WORKLOADS {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let path = dir.path().join(format!("{seed}"));
        let volume = Volume::create(&path, SIZE as u64, &key(), protector(), options(&path)).unwrap();
        let mut model = vec![0; SIZE];
        for _ in 0..random.next(4) {
            (0..random.next(12)).for_each(|_| change(&mut random, &volume, &mut model));
            volume.flush().unwrap();
            if random.next(3) == 0 {
                volume.rotate_extent(0).unwrap();
            }
        }
        (0..=random.next(12)).for_each(|_| change(&mut random, &volume, &mut model));
        // What is in the file now is what the flush makes durable; the headers that it writes afterwards are not.
        let durable = disk(&path);
        volume.flush().unwrap();
        let mut allowed = Allowed(vec![BTreeSet::new(); BLOCKS]);
        allowed.note(&model);
        for _ in 0..random.next(16) {
            change(&mut random, &volume, &mut model);
            allowed.note(&model);
        }
        let anchor = anchor_path(dir.path(), volume.id());
        drop(volume);
        // The anchor is on the disk as it was last written: nothing that a cut takes may be counted in it.
        let anchored = fs::read(&anchor).unwrap();
        let len = fs::metadata(&path).unwrap().len();
        let written = disk(&path);
        let empty = [0; SECTOR_LEN];
        let changed: Vec<u64> = (0..len / SECTOR_LEN as u64)
            .filter(|at| durable.get(at).unwrap_or(&empty) != written.get(at).unwrap_or(&empty))
            .collect();
        for cut in 0..CUTS {
            // From nearly none of the sectors to nearly all.
            let share = 1 + cut * 100 / CUTS;
            _ = fs::remove_file(&path);
            let file = OpenOptions::new().create_new(true).write(true).open(&path).unwrap();
            file.set_len(len).unwrap();
            for (at, sector) in &durable {
                file.write_all_at(sector, at * SECTOR_LEN as u64).unwrap();
            }
            for at in changed.iter().filter(|_| random.next(100) < share) {
                file.write_all_at(written.get(at).unwrap_or(&empty), at * SECTOR_LEN as u64).unwrap();
            }
            fs::write(&anchor, &anchored).unwrap();
            let volume = open(&path);
            let mut seen = vec![0; SIZE];
            volume.read_at(0, &mut seen).unwrap();
            for (number, (block, allowed)) in seen.chunks(BLOCK_LEN).zip(&allowed.0).enumerate() {
                assert!(
                    allowed.contains(block),
                    "workload {seed}, cut {cut}: block {number} was torn or lost"
                );
            }
            lost += usize::from(seen != model);
            // It goes on as a volume does.
            let again = random.next(BLOCKS as u64) * BLOCK_LEN as u64;
            volume.write_at(again, &[0xAB; BLOCK_LEN]).unwrap();
            volume.flush().unwrap();
            drop(volume);
            seen[again as usize..again as usize + BLOCK_LEN].fill(0xAB);
            let mut found = vec![0; SIZE];
            open(&path).read_at(0, &mut found).unwrap();
            assert!(found == seen, "workload {seed}, cut {cut}: after another flush");
            cuts += 1;
        }
    }
    assert_eq!(cuts, 1000);
    // The cuts do cut: unflushed writes were lost, as they may be.
    assert!(lost > 100, "{lost} of {cuts} lost anything");
}
