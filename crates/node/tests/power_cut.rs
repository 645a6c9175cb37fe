//! Power cuts: of what was written since the last `fdatasync`, any sectors of 512 bytes may be on the disk and any may
//! not. A thousand cases, each of a random workload and a random choice of sectors.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

#[path = "stage/memory_dir.rs"]
mod memory_dir;
#[path = "stage/protector.rs"]
mod protector;
#[path = "stage/random.rs"]
mod random;

use custody_envelope::VolumeKey;
use custody_node::{layout::*, *};
use memory_dir::memory_dir;
use protector::protector;
use random::Random;
use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
};

const SIZE: usize = 1 << 20;
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
    use rustix::fs::{SeekFrom, seek};
    let file = fs::File::open(path).unwrap();
    let (mut disk, mut end) = (Disk::new(), 0);
    // Holes are zeros, and need not be read.
    while let Ok(start) = seek(&file, SeekFrom::Data(end)) {
        end = seek(&file, SeekFrom::Hole(start)).unwrap();
        let mut bytes = vec![0; (end - start) as usize];
        file.read_exact_at(&mut bytes, start).unwrap();
        let first = start / SECTOR_LEN as u64;
        let sectors = (first..).zip(bytes.chunks_exact(SECTOR_LEN).map(|s| *s.first_chunk().unwrap()));
        disk.extend(sectors.filter(|(_, s)| *s != [0; SECTOR_LEN]));
    }
    disk
}

/// Makes the file hold these sectors and nothing else.
fn put(path: &Path, disk: &Disk) {
    let len = fs::metadata(path).unwrap().len();
    _ = fs::remove_file(path);
    let file = OpenOptions::new().create_new(true).write(true).open(path).unwrap();
    file.set_len(len).unwrap();
    for (at, sector) in disk {
        file.write_all_at(sector, at * SECTOR_LEN as u64).unwrap();
    }
}

/// An extent is forgotten to make room for another, and loaded again, before the flush that makes its last header durable.
#[test]
fn a_slot_that_the_last_durable_header_counts_is_not_given_away() {
    let dir = memory_dir();
    let path = dir.path().join("v");
    let options = VolumeOptions { budget: ExtentBudget::new(1), ..options(&path) };
    let volume = Volume::create(&path, 2 * EXTENT_LEN, &key(), protector(), options).unwrap();
    let block = |byte: u8| vec![byte; BLOCK_LEN];
    for extent in [1, 0] {
        volume.write_at(extent * EXTENT_LEN, &block(1)).unwrap();
        volume.flush().unwrap();
        volume.flush().unwrap();
    }
    volume.write_at(0, &block(2)).unwrap();
    let durable = disk(&path);
    let anchor = anchor_path(dir.path(), volume.id());
    volume.flush().unwrap();
    let anchored = fs::read(&anchor).unwrap();
    let with_header = disk(&path);
    volume.read_at(EXTENT_LEN, &mut block(0)).unwrap();
    for byte in 3..9 {
        volume.write_at(u64::from(byte) * BLOCK_LEN as u64, &block(byte)).unwrap();
    }
    drop(volume);
    // All that was written since is on the disk, and the header of that flush is not.
    let mut cut = disk(&path);
    for (at, sector) in &with_header {
        if durable.get(at) != Some(sector) && cut.get(at) == Some(sector) {
            match durable.get(at) {
                Some(before) => cut.insert(*at, *before),
                None => cut.remove(at),
            };
        }
    }
    put(&path, &cut);
    fs::write(&anchor, anchored).unwrap();
    let mut seen = block(0);
    open(&path).read_at(0, &mut seen).unwrap();
    assert!(seen == block(2), "what was flushed was lost");
}

/// One random change, to the volume and to what it should hold.
fn change(random: &mut Random, volume: &Volume, model: &mut [u8]) {
    let size = model.len();
    let at = random.next(size as u64 - 1) as usize;
    let longest = if random.next(3) == 0 { 20 * BLOCK_LEN } else { 2 * BLOCK_LEN };
    let len = (random.next(longest as u64) as usize + 1).min(size - at);
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

/// Writes to a volume that has come back from a cut, and cuts the power again before anything is flushed: what was there when it came
/// back is there still, or what was written since.
fn cut_again(path: &Path, random: &mut Random, seen: &[u8]) {
    let volume = open(path);
    let mut model = seen.to_vec();
    // Recovery may have wiped what was torn; a cut may take that back.
    let durable = disk(path);
    let mut allowed = Allowed(vec![BTreeSet::new(); model.len() / BLOCK_LEN]);
    allowed.note(&model);
    for _ in 0..random.next(24) {
        change(random, &volume, &mut model);
        allowed.note(&model);
    }
    drop(volume);
    let written = disk(path);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let empty = [0; SECTOR_LEN];
    let places: BTreeSet<u64> = durable.keys().chain(written.keys()).copied().collect();
    let share = random.next(100);
    for at in places {
        let kept = if random.next(100) < share { &written } else { &durable };
        file.write_all_at(kept.get(&at).unwrap_or(&empty), at * SECTOR_LEN as u64).unwrap();
    }
    let volume = open(path);
    let mut found = vec![0; model.len()];
    volume.read_at(0, &mut found).unwrap();
    for (number, (block, allowed)) in found.chunks(BLOCK_LEN).zip(&allowed.0).enumerate() {
        assert!(allowed.contains(block), "block {number} was lost by the second cut");
    }
}

#[test]
fn a_thousand_power_cuts_lose_nothing_that_was_flushed_and_tear_nothing() {
    let dir = memory_dir();
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
            if random.next(3) == 0 {
                model.resize(model.len() + SIZE / 2, 0);
                volume.grow(model.len() as u64).unwrap();
            }
        }
        let blocks = model.len() / BLOCK_LEN;
        (0..=random.next(12)).for_each(|_| change(&mut random, &volume, &mut model));
        // What is in the file now is what the flush makes durable; the headers that it writes afterwards are not.
        let mut durable = disk(&path);
        volume.flush().unwrap();
        let mut allowed = Allowed(vec![BTreeSet::new(); blocks]);
        allowed.note(&model);
        for _ in 0..random.next(16) {
            change(&mut random, &volume, &mut model);
            allowed.note(&model);
        }
        // A process that is killed and started again in between has lost nothing, and what it goes by is durable from then on.
        let volume = if random.next(2) == 0 {
            drop(volume);
            durable = disk(&path);
            allowed = Allowed(vec![BTreeSet::new(); blocks]);
            allowed.note(&model);
            open(&path)
        } else {
            volume
        };
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
            put(&path, &durable);
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            for at in changed.iter().filter(|_| random.next(100) < share) {
                file.write_all_at(written.get(at).unwrap_or(&empty), at * SECTOR_LEN as u64).unwrap();
            }
            fs::write(&anchor, &anchored).unwrap();
            let volume = open(&path);
            let mut seen = vec![0; model.len()];
            assert_eq!(volume.size_bytes(), model.len() as u64);
            volume.read_at(0, &mut seen).unwrap();
            for (number, (block, allowed)) in seen.chunks(BLOCK_LEN).zip(&allowed.0).enumerate() {
                assert!(
                    allowed.contains(block),
                    "workload {seed}, cut {cut}: block {number} was torn or lost"
                );
            }
            lost += usize::from(seen != model);
            drop(volume);
            cut_again(&path, &mut random, &seen);
            let volume = open(&path);
            volume.read_at(0, &mut seen).unwrap();
            // It goes on as a volume does.
            let again = random.next(blocks as u64) * BLOCK_LEN as u64;
            volume.write_at(again, &[0xAB; BLOCK_LEN]).unwrap();
            volume.flush().unwrap();
            drop(volume);
            seen[again as usize..again as usize + BLOCK_LEN].fill(0xAB);
            let mut found = vec![0; model.len()];
            open(&path).read_at(0, &mut found).unwrap();
            assert!(found == seen, "workload {seed}, cut {cut}: after another flush");
            cuts += 1;
        }
    }
    assert_eq!(cuts, 1000);
    // The cuts do cut: unflushed writes were lost, as they may be.
    assert!(lost > 100, "{lost} of {cuts} lost anything");
}
