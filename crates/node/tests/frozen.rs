//! Files that an earlier build wrote, kept in `tests/frozen`: what is on a customer's disk is read by every later build.
//!
//! `CUSTODY_FREEZE=1` writes those of a format that is new; what is there is never written over.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

#[path = "stage/manifest.rs"]
mod manifest;
#[path = "stage/protector.rs"]
mod protector;
#[path = "stage/wrapped.rs"]
mod wrapped;

use custody_envelope::{StreamKey, VolumeKey};
use custody_node::{layout::*, *};
use custody_types::UnixMillis;
use manifest::manifest;
use protector::protector;
use std::{
    fs::{self, OpenOptions},
    ops::ControlFlow,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};
use wrapped::{key_entry, wrapped};

const SIZE: u64 = 2 * EXTENT_LEN;

fn frozen() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/frozen")
}

fn key() -> VolumeKey {
    VolumeKey::from_bytes(&[9; 32]).unwrap()
}

fn stream_key() -> StreamKey {
    StreamKey::from_bytes(&[8; 32]).unwrap()
}

/// What the frozen volume holds: blocks, a hole among them, a block under an older data key, a part of a block, and a write
/// that was never flushed.
fn expected() -> Vec<(u64, Vec<u8>)> {
    let at = |extent: u64, block: u64| extent * EXTENT_LEN + block * 4096;
    vec![
        (at(0, 0), vec![1; 4096]),
        (at(0, 1), vec![0; 4096]),
        (at(0, 2), vec![2; 4096]),
        (at(1, 7) + 100, b"a part of a block".to_vec()),
        (at(1, 4095), vec![3; 4096]),
        (at(1, 9), vec![0; 4096]),
    ]
}

fn make(path: &Path) -> Volume {
    let volume = Volume::create(path, SIZE, &key(), protector(), VolumeOptions::default()).unwrap();
    for block in 0..3 {
        volume.write_at(block * 4096, &[1; 4096]).unwrap();
    }
    volume.flush().unwrap();
    volume.rotate_extent(0).unwrap();
    volume.zero_at(4096, 4096).unwrap();
    volume.write_at(EXTENT_LEN + 7 * 4096 + 100, b"a part of a block").unwrap();
    volume.flush().unwrap();
    volume.write_at(2 * 4096, &[2; 4096]).unwrap();
    volume.write_at(EXTENT_LEN + 4095 * 4096, &[3; 4096]).unwrap();
    volume
}

fn check(volume: &Volume) {
    for (at, bytes) in expected() {
        let mut read = vec![0xEE; bytes.len()];
        volume.read_at(at, &mut read).unwrap();
        assert_eq!(read, bytes, "at {at}");
    }
}

/// The sectors that hold anything, each with its number before it.
fn pack(path: &Path) -> Vec<u8> {
    let mut packed = Vec::new();
    for (number, sector) in (0u64..).zip(fs::read(path).unwrap().chunks(SECTOR_LEN)) {
        if sector.iter().any(|b| *b != 0) {
            packed.extend(number.to_le_bytes());
            packed.extend(sector);
        }
    }
    packed
}

fn unpack(packed: &[u8], path: &Path) {
    let file = OpenOptions::new().create_new(true).write(true).open(path).unwrap();
    file.set_len(extent_start(2)).unwrap();
    for record in packed.chunks_exact(8 + SECTOR_LEN) {
        let number = u64::from_le_bytes(*record.first_chunk().unwrap());
        file.write_all_at(&record[8..], number * SECTOR_LEN as u64).unwrap();
    }
}

fn freeze() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let volume = make(&path);
    let packed = frozen().join("volume-1.sectors");
    if !packed.exists() {
        fs::write(packed, pack(&path)).unwrap();
    }
    let name = format!("backup-{}", BackupManifest::VERSION);
    if frozen().join(&name).exists() {
        return;
    }
    let manifest = manifest(7, &volume);
    let snapshot = Snapshot::take(Arc::new(volume)).unwrap();
    let go_on = |_, _| ControlFlow::Continue(());
    let store = Directory::new(frozen());
    write_backup((&store, &name), &manifest, &stream_key(), snapshot, &Marks::new(), go_on).unwrap();
}

#[test]
fn volumes_of_earlier_builds_are_read_and_written() {
    if std::env::var_os("CUSTODY_FREEZE").is_some() {
        freeze();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    unpack(&fs::read(frozen().join("volume-1.sectors")).unwrap(), &path);
    let volume = Volume::open(&path, &key(), VolumeOptions::default()).unwrap();
    assert_eq!(volume.protector(), protector());
    check(&volume);
    assert_eq!((volume.dek_generation(0).unwrap(), volume.dek_generation(1).unwrap()), (2, 1));
    volume.write_at(5 * 4096, &[5; 4096]).unwrap();
    volume.rotate_extent(1).unwrap();
    drop(volume);
    check(&Volume::open(&path, &key(), VolumeOptions::default()).unwrap());
}

#[test]
fn backups_of_earlier_builds_are_restored() {
    let store = Directory::new(frozen());
    let dir = tempfile::tempdir().unwrap();
    let mut names = store.names().unwrap();
    names.sort();
    assert_eq!(names, ["backup-3", "backup-4", "backup-5"]);
    for name in names {
        let manifest = BackupManifest::read(&store, &name).unwrap();
        let volume = Volume::create(
            &dir.path().join(&name),
            SIZE,
            &VolumeKey::generate().unwrap(),
            protector(),
            VolumeOptions::default(),
        )
        .unwrap();
        read_backup((&store, &name), &manifest, &stream_key(), |piece| volume.restore(piece)).unwrap();
        check(&volume);
    }
}

/// What the frozen file of a log holds.
fn segment() -> Vec<u8> {
    (0..5000u32).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn files_of_logs_of_earlier_builds_are_restored() {
    let store = Directory::new(frozen());
    for version in [1, 2] {
        let name = format!("wal-{version}");
        let archive = WalArchive::new(&store, &name);
        let file = WalFileName::parse("000000010000000000000001").unwrap();
        if std::env::var_os("CUSTODY_FREEZE").is_some() && archive.files().unwrap().is_empty() {
            let id = WalKeyId::of(&wrapped(1));
            archive.put_key(id, &key_entry(1)).unwrap();
            let sealed = (&stream_key(), id);
            let mut writer = archive.create(&file, 16 << 20, UnixMillis::from_secs(7), sealed).unwrap();
            writer.write(&segment()).unwrap();
            writer.seal().unwrap().finish().unwrap();
        }
        let object = archive.open(&file).unwrap();
        assert_eq!(object.header().size_bytes, 16 << 20);
        let (mut all, mut part) = (Vec::new(), zeroize::Zeroizing::default());
        let mut reader = object.reader(&stream_key());
        while reader.next(&mut part).unwrap() {
            all.extend_from_slice(&part);
        }
        assert_eq!(all, segment());
    }
}

/// What earlier builds wrote is re-wrapped by this one, and opens with the same key.
#[test]
fn what_earlier_builds_wrapped_is_wrapped_anew() {
    let dir = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").arg(frozen()).arg(dir.path().join("store")).status();
    assert!(copied.unwrap().success());
    let store = Directory::new(dir.path().join("store"));
    for name in store.names().unwrap() {
        let manifest = BackupManifest::read(&store, &name).unwrap();
        for n in [2, 3] {
            let manifest = BackupManifest::read(&store, &name).unwrap();
            manifest.rewrap(&store, &name, wrapped(n)).unwrap();
        }
        let again = BackupManifest::read(&store, &name).unwrap();
        assert_eq!(again.wrapped, wrapped(3));
        assert_eq!(again.bound, (manifest.version < BackupManifest::VERSION).then_some(manifest.wrapped));
        read_backup((&store, &name), &again, &stream_key(), |_| Ok(())).unwrap();
    }
    let file = WalFileName::parse("000000010000000000000001").unwrap();
    for name in ["wal-1", "wal-2"] {
        let archive = WalArchive::new(&store, name);
        let key = archive.file_key(&file).unwrap();
        assert_eq!(key.wrapped.is_some(), name == "wal-1");
        archive.put_key(key.id, &key_entry(2)).unwrap();
        let object = archive.open(&file).unwrap();
        assert_eq!(object.wrapped(), &wrapped(2));
        let mut part = zeroize::Zeroizing::default();
        assert!(object.reader(&stream_key()).next(&mut part).unwrap());
    }
}
