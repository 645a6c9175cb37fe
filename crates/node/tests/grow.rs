//! A volume that is made larger.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "stage/protector.rs"]
mod protector;

use custody_envelope::VolumeKey;
use custody_node::{layout::*, *};
use protector::protector;
use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// A size that ends in the middle of an extent.
const SMALL: u64 = EXTENT_LEN + 4 * BLOCK_LEN as u64;
/// More extents than a page of the table, or a sector of the anchor, has room for.
const LARGE: u64 = 4000 * EXTENT_LEN;

fn key() -> VolumeKey {
    VolumeKey::from_bytes(&[9; 32]).unwrap()
}

struct Stage(tempfile::TempDir);

impl Stage {
    fn new() -> (Self, Volume) {
        let stage = Self(tempfile::tempdir().unwrap());
        let volume = Volume::create(&stage.path(), SMALL, &key(), protector(), stage.options()).unwrap();
        volume.write_at(0, &[1; 4096]).unwrap();
        volume.write_at(SMALL - 4096, &[2; 4096]).unwrap();
        (stage, volume)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("v.volume")
    }

    fn options(&self) -> VolumeOptions {
        VolumeOptions { anchors: Some(self.0.path().to_owned()), ..VolumeOptions::default() }
    }

    fn open(&self) -> Result<Volume, SuperblockError> {
        Volume::open(&self.path(), &key(), self.options())
    }
}

fn block(volume: &Volume, at: u64) -> u8 {
    let mut block = [0xFF; 4096];
    volume.read_at(at, &mut block).unwrap();
    assert!(block.iter().all(|byte| *byte == block[0]));
    block[0]
}

fn sparse(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap()) * 512
}

#[test]
fn what_was_there_stays_and_what_is_new_is_zeros() {
    let (stage, volume) = Stage::new();
    assert!(matches!(volume.write_at(SMALL, &[3; 1]), Err(VolumeError::OutOfRange { .. })));
    let before = sparse(&stage.path());
    volume.grow(LARGE).unwrap();
    assert!(sparse(&stage.path()) <= before + (64 << 10), "growing writes nothing");
    assert_eq!(volume.size_bytes(), LARGE);
    for at in [SMALL, 2 * EXTENT_LEN, LARGE - 4096] {
        assert_eq!(block(&volume, at), 0);
    }
    volume.write_at(SMALL, &[3; 4096]).unwrap();
    volume.write_at(LARGE - 4096, &[4; 4096]).unwrap();
    assert!(volume.write_at(LARGE, &[5; 1]).is_err());
    volume.settle_down().unwrap();
    drop(volume);
    let volume = stage.open().unwrap();
    let held = [0, SMALL - 4096, SMALL, LARGE - 4096].map(|at| block(&volume, at));
    assert_eq!((volume.size_bytes(), held), (LARGE, [1, 2, 3, 4]));
}

#[test]
fn only_sizes_that_are_offered_and_larger_ones_are_taken() {
    let (stage, volume) = Stage::new();
    assert!(matches!(volume.grow(SMALL - 4096), Err(SuperblockError::Shrink { now: SMALL, .. })));
    assert!(matches!(volume.grow(SMALL + 1), Err(SuperblockError::Size(_))));
    assert!(matches!(volume.grow(VOLUME_LEN_MAX + 4096), Err(SuperblockError::Size(_))));
    volume.grow(SMALL).unwrap();
    drop(volume);
    assert_eq!(stage.open().unwrap().size_bytes(), SMALL);
}

#[test]
fn a_crash_in_the_middle_leaves_the_old_size_or_the_new_one() {
    let (stage, volume) = Stage::new();
    volume.settle_down().unwrap();
    let superblocks = |len: usize| {
        let mut bytes = vec![0; len];
        fs::File::open(stage.path()).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let old = superblocks(2 * SUPERBLOCK_LEN);
    let anchor = anchor_path(stage.0.path(), volume.id());
    let old_anchor = fs::read(&anchor).unwrap();
    volume.grow(LARGE).unwrap();
    drop(volume);
    let new = superblocks(2 * SUPERBLOCK_LEN);
    let put = |bytes: &[u8], at: usize| {
        let file = OpenOptions::new().write(true).open(stage.path()).unwrap();
        file.write_all_at(bytes, at as u64).unwrap();
    };
    // The file is long, and neither superblock says so.
    put(&old, 0);
    fs::write(&anchor, &old_anchor).unwrap();
    assert_eq!(stage.open().unwrap().size_bytes(), SMALL);
    // One of them does: the one that was the older.
    for copy in 0..2 {
        let at = copy * SUPERBLOCK_LEN;
        put(&old, 0);
        put(&new[at..at + SUPERBLOCK_LEN], at);
        fs::write(&anchor, &old_anchor).unwrap();
        let volume = stage.open().unwrap();
        assert_eq!((volume.size_bytes(), block(&volume, SMALL - 4096)), (LARGE, 2));
    }
    // Both do, and the one that is newer is damaged: nothing of the size is lost.
    put(&new, 0);
    fs::write(&anchor, b"").unwrap();
    let newest = Superblock::read(&fs::File::open(stage.path()).unwrap()).unwrap().sequence;
    put(&[0xFF; 64], (newest & 1) as usize * SUPERBLOCK_LEN);
    assert_eq!(stage.open().unwrap().size_bytes(), LARGE);
}

#[test]
fn an_extent_of_what_is_new_that_is_put_back_is_found() {
    let (stage, volume) = Stage::new();
    volume.grow(LARGE).unwrap();
    volume.write_at(LARGE - 4096, &[1; 4096]).unwrap();
    volume.settle_down().unwrap();
    let last = extent_start((LARGE / EXTENT_LEN) as u32 - 1);
    let mut earlier = vec![0; (extent_start(1) - extent_start(0)) as usize];
    fs::File::open(stage.path()).unwrap().read_exact_at(&mut earlier, last).unwrap();
    volume.write_at(LARGE - 4096, &[2; 4096]).unwrap();
    volume.settle_down().unwrap();
    drop(volume);
    OpenOptions::new().write(true).open(stage.path()).unwrap().write_all_at(&earlier, last).unwrap();
    let volume = stage.open().unwrap();
    let found = volume.read_at(LARGE - 4096, &mut [0; 4096]);
    assert!(matches!(found, Err(VolumeError::RolledBack { .. })), "{found:?}");
    assert_eq!(block(&volume, 0), 1);
}

#[test]
fn it_serves_meanwhile() {
    let (stage, volume) = Stage::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut round = 0u8;
            while !done.load(Ordering::Relaxed) {
                round = round.wrapping_add(1);
                // Always the last block that there is.
                let at = volume.size_bytes() - 4096;
                volume.write_at(at, &[round; 4096]).unwrap();
                assert_eq!(block(&volume, at), round);
                volume.flush().unwrap();
            }
        });
        for step in 1..=40 {
            volume.grow(SMALL + step * EXTENT_LEN).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
    drop(volume);
    let volume = stage.open().unwrap();
    assert_eq!((volume.size_bytes(), block(&volume, 0)), (SMALL + 40 * EXTENT_LEN, 1));
}
