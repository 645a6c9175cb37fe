//! A volume's file, or a part of it, put back to an earlier state.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

#[path = "stage/manifest.rs"]
mod manifest;

use custody_envelope::{StreamKey, VolumeKey};
use custody_node::{layout::*, *};
use manifest::manifest;
use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

const EXTENTS: u32 = 3;

struct Stage {
    dir: tempfile::TempDir,
    anchor: PathBuf,
}

fn key() -> VolumeKey {
    VolumeKey::from_bytes(&[9; 32]).unwrap()
}

fn protector(identity: &str) -> Protector {
    Protector {
        kind: ProtectorKind::CustomerManaged,
        key: "vaults/v/keys/k".into(),
        managed_identity: identity.into(),
        wrapped: None,
    }
}

impl Stage {
    /// A volume whose extents hold 1, then 2. Answers the file as it was with 1.
    fn new() -> (Self, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("anchors")).unwrap();
        let mut stage = Self { dir, anchor: PathBuf::new() };
        let size = u64::from(EXTENTS) * EXTENT_LEN;
        let volume = Volume::create(&stage.path(), size, &key(), protector("a"), stage.options()).unwrap();
        stage.anchor = anchor_path(&stage.dir.path().join("anchors"), volume.id());
        stage.fill(&volume, 1);
        volume.settle_down().unwrap();
        drop(volume);
        let earlier = fs::read(stage.path()).unwrap();
        let volume = stage.open().unwrap();
        stage.fill(&volume, 2);
        volume.settle_down().unwrap();
        (stage, earlier)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("v.volume")
    }

    fn options(&self) -> VolumeOptions {
        VolumeOptions { anchors: Some(self.dir.path().join("anchors")), ..VolumeOptions::default() }
    }

    fn open(&self) -> Result<Volume, SuperblockError> {
        Volume::open(&self.path(), &key(), self.options())
    }

    fn fill(&self, volume: &Volume, byte: u8) {
        for extent in 0..EXTENTS {
            volume.write_at(u64::from(extent) * EXTENT_LEN + 4096, &[byte; 8192]).unwrap();
        }
    }

    /// Puts bytes of an earlier file back.
    fn put_back(&self, earlier: &[u8], from: u64, to: u64) {
        let file = OpenOptions::new().write(true).open(self.path()).unwrap();
        file.write_all_at(&earlier[from as usize..to as usize], from).unwrap();
    }
}

fn read(volume: &Volume, extent: u32) -> Result<u8, VolumeError> {
    let mut out = [0; 8192];
    volume.read_at(u64::from(extent) * EXTENT_LEN + 4096, &mut out).map(|()| out[0])
}

#[test]
fn a_file_put_back_is_found_extent_by_extent() {
    let (stage, earlier) = Stage::new();
    fs::write(stage.path(), &earlier).unwrap();
    let volume = stage.open().unwrap();
    for extent in 0..EXTENTS {
        assert!(matches!(read(&volume, extent), Err(VolumeError::RolledBack { extent: e }) if e == extent));
        assert!(volume.write_at(u64::from(extent) * EXTENT_LEN, &[3; 4096]).is_err());
    }
    let volume = std::sync::Arc::new(volume);
    let (manifest, store) = (manifest(1, &volume), Directory::new(stage.dir.path().to_owned()));
    let snapshot = Snapshot::take(volume).unwrap();
    let stream_key = StreamKey::generate().unwrap();
    let go_on = |_, _| std::ops::ControlFlow::Continue(());
    let made = write_backup((&store, "b"), &manifest, &stream_key, snapshot, &Marks::new(), go_on);
    assert!(
        matches!(made, Err(BackupError::Volume(VolumeError::RolledBack { .. }))),
        "nor is it backed up: {made:?}"
    );
}

#[test]
fn an_extent_put_back_is_found_and_others_are_read() {
    let (stage, earlier) = Stage::new();
    stage.put_back(&earlier, extent_start(1), extent_start(2));
    let volume = stage.open().unwrap();
    assert_eq!([read(&volume, 0).unwrap(), read(&volume, 2).unwrap()], [2, 2]);
    assert!(matches!(read(&volume, 1), Err(VolumeError::RolledBack { extent: 1 })));
}

#[test]
fn an_extent_put_back_to_before_it_was_made_is_found() {
    let (stage, _) = Stage::new();
    let len = fs::metadata(stage.path()).unwrap().len() as usize;
    // The table of extents as it was when there was none, and nothing where the extents were.
    stage.put_back(&vec![0; len], 32 << 10, len as u64);
    let volume = stage.open().unwrap();
    assert!(matches!(read(&volume, 0), Err(VolumeError::RolledBack { extent: 0 })), "not zeros");
}

/// An older superblock names an older protector: a key that was taken away since, for example.
#[test]
fn a_superblock_put_back_is_found() {
    let (stage, earlier) = Stage::new();
    let volume = stage.open().unwrap();
    volume.set_protector(protector("b")).unwrap();
    drop(volume);
    let newest = fs::read(stage.path()).unwrap();
    stage.put_back(&earlier, 0, 32 << 10);
    assert!(matches!(stage.open(), Err(SuperblockError::RolledBack(_))));
    stage.put_back(&newest, 0, 32 << 10);
    assert_eq!(read(&stage.open().unwrap(), 0).unwrap(), 2);
}

#[test]
fn an_anchor_lost_or_damaged_is_told_and_an_empty_one_takes_the_volume_as_it_is() {
    let (stage, earlier) = Stage::new();
    let good = fs::read(&stage.anchor).unwrap();
    fs::remove_file(&stage.anchor).unwrap();
    assert!(matches!(stage.open(), Err(SuperblockError::AnchorMissing(_))));
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        fs::write(&stage.anchor, bad).unwrap();
        assert!(matches!(stage.open(), Err(SuperblockError::AnchorDamaged(_))), "bit {bit}");
    }
    fs::write(&stage.anchor, &good[..100]).unwrap();
    assert!(matches!(stage.open(), Err(SuperblockError::AnchorDamaged(_))));

    // An operator who means it.
    fs::write(stage.path(), &earlier).unwrap();
    fs::write(&stage.anchor, []).unwrap();
    let volume = stage.open().unwrap();
    assert_eq!(read(&volume, 0).unwrap(), 1);
    stage.fill(&volume, 4);
    volume.settle_down().unwrap();
    drop(volume);
    fs::write(stage.path(), &earlier).unwrap();
    assert!(
        matches!(read(&stage.open().unwrap(), 0), Err(VolumeError::RolledBack { extent: 0 })),
        "from there on"
    );
}

/// What a killed process leaves is newer than the anchor, and is no rollback.
#[test]
fn a_killed_process_is_no_rollback() {
    let (stage, _) = Stage::new();
    for round in 10..30 {
        let volume = stage.open().unwrap();
        stage.fill(&volume, round);
        for _ in 0..round % 3 {
            volume.flush().unwrap();
        }
        // Without a word: as a kill does.
        drop(volume);
        assert_eq!(read(&stage.open().unwrap(), 2).unwrap(), round);
    }
}
