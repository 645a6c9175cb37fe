//! What backups promise: of one moment, whole or refused, and increments that add up.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "stage/manifest.rs"]
mod manifest;
#[path = "stage/volume.rs"]
mod volume;

use custody_envelope::{StreamKey, VolumeKey};
use custody_node::{layout::EXTENT_LEN, *};
use manifest::manifest;
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};
use volume::volume;

const SIZE: u64 = 40 << 20;

struct Stage {
    dir: tempfile::TempDir,
    store: Directory,
    volume: Arc<Volume>,
    key: StreamKey,
}

fn make(path: &Path) -> Volume {
    volume(path, SIZE, VolumeOptions::default())
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volume = Arc::new(make(&dir.path().join("source")));
        let store = Directory::new(dir.path().to_owned());
        Self { dir, store, volume, key: StreamKey::generate().unwrap() }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn at<'a>(&'a self, name: &'a str) -> (&'a dyn BackupStore, &'a str) {
        (&self.store, name)
    }

    fn read(&self, name: &str) -> Result<BackupManifest, BackupError> {
        BackupManifest::read(&self.store, name)
    }

    fn manifest(&self, id: u8, base: Option<(&str, u8)>) -> BackupManifest {
        let base = base.map(|(backup, id)| Base { backup: backup.into(), backup_id: [id; 16] });
        BackupManifest { base, ..manifest(id, &self.volume) }
    }

    fn write(
        &self,
        name: &str,
        manifest: &BackupManifest,
        snapshot: Snapshot,
        since: &Marks,
    ) -> Result<(), BackupError> {
        write_backup(self.at(name), manifest, &self.key, snapshot, since, |_, _| ControlFlow::Continue(()))
    }

    /// Backs up as `id`, adding to the one of `base`.
    fn back_up(&self, id: u8, base: Option<u8>) {
        let (name, base) = (format!("b{id}"), base.map(|b| (format!("b{b}"), b)));
        let since = base.as_ref().map_or_else(Marks::new, |(name, _)| self.marks(name).unwrap());
        let manifest = self.manifest(id, base.as_ref().map(|(name, id)| (name.as_str(), *id)));
        self.write(&name, &manifest, Snapshot::take(self.volume.clone()).unwrap(), &since).unwrap();
    }

    fn marks(&self, name: &str) -> Result<Marks, BackupError> {
        read_marks(self.at(name), &self.read(name)?, &self.key)
    }

    fn verify(&self, name: &str) -> Result<(), BackupError> {
        read_backup(self.at(name), &self.read(name)?, &self.key, |_| Ok(()))
    }

    fn restore(&self, chain: &[u8]) -> Volume {
        let path = self.place("restored");
        _ = fs::remove_file(&path);
        let volume = make(&path);
        for id in chain {
            let name = format!("b{id}");
            read_backup(self.at(&name), &self.read(&name).unwrap(), &self.key, |piece| volume.restore(piece))
                .unwrap();
        }
        volume
    }

    fn len(&self, name: &str) -> u64 {
        let segments = fs::read_dir(self.place(name).join("data")).unwrap();
        segments.map(|s| s.unwrap().metadata().unwrap().len()).sum()
    }
}

fn whole(volume: &Volume) -> Vec<u8> {
    let mut out = vec![0xEE; SIZE as usize];
    volume.read_at(0, &mut out).unwrap();
    out
}

#[test]
fn a_backup_is_of_one_moment_and_restores_elsewhere() {
    let stage = Stage::new();
    stage.volume.write_at(0, &vec![1; 3 << 20]).unwrap();
    stage.volume.write_at(EXTENT_LEN + 4096, &[2; 4096]).unwrap();
    let snapshot = Snapshot::take(stage.volume.clone()).unwrap();
    let then = whole(&stage.volume);
    for _ in 0..5 {
        stage.volume.write_at(0, &vec![9; 3 << 20]).unwrap();
    }
    stage.volume.flush().unwrap();
    let manifest = stage.manifest(1, None);
    stage.write("b1", &manifest, snapshot, &Marks::new()).unwrap();
    let again = stage.write("b1", &manifest, Snapshot::take(stage.volume.clone()).unwrap(), &Marks::new());
    assert!(matches!(again, Err(BackupError::Exists)));
    let read = stage.read("b1").unwrap();
    assert!(read.chunks > 0);
    assert_eq!(BackupManifest { chunks: 0, marks_from: None, ..read }, manifest);
    assert!(whole(&stage.restore(&[1])) == then, "what the volume held at the moment of the snapshot");

    let given_up = write_backup(
        stage.at("given-up"),
        &manifest,
        &stage.key,
        Snapshot::take(stage.volume.clone()).unwrap(),
        &Marks::new(),
        |done, _| if done > 100 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) },
    );
    assert!(matches!(given_up, Err(BackupError::GivenUp)));
    let left: Vec<_> = fs::read_dir(stage.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().contains("given-up")), "{left:?}");
    assert_eq!(stage.store.names().unwrap(), ["b1"]);
    assert!(stage.store.remove("b1").unwrap());
    assert!(!stage.store.remove("b1").unwrap(), "it is gone");
}

#[test]
fn increments_hold_what_has_changed_and_add_up() {
    let stage = Stage::new();
    stage.volume.write_at(0, &vec![1; 20 << 20]).unwrap();
    stage.back_up(1, None);
    assert!(stage.len("b1") > 20 << 20);
    stage.volume.write_at(5000, &[2; 100]).unwrap();
    stage.volume.zero_at(8 << 20, 1 << 20).unwrap();
    stage.volume.write_at(2 * EXTENT_LEN, &[3; 8192]).unwrap();
    stage.back_up(2, Some(1));
    assert!(stage.len("b2") < 64 << 10, "four blocks and a hole, not {} bytes", stage.len("b2"));
    let second = whole(&stage.volume);
    stage.volume.write_at(8 << 20, &[4; 4096]).unwrap();
    stage.volume.write_at(2 * EXTENT_LEN, &[5; 4096]).unwrap();
    stage.back_up(3, Some(2));
    assert!(whole(&stage.restore(&[1, 2])) == second);
    assert!(whole(&stage.restore(&[1, 2, 3])) == whole(&stage.volume));
    // Another increment on the full one: chains may branch.
    stage.back_up(4, Some(1));
    assert!(whole(&stage.restore(&[1, 4])) == whole(&stage.volume));
    // Nothing has changed; and re-encryption under a new data key is a change to be safe.
    stage.back_up(5, Some(4));
    assert!(stage.len("b5") < 1024);
    stage.volume.rotate_extent(2).unwrap();
    stage.back_up(6, Some(5));
    assert!(whole(&stage.restore(&[1, 4, 5, 6])) == whole(&stage.volume));
}

#[test]
fn a_volume_put_back_to_before_its_base_is_refused() {
    let stage = Stage::new();
    let (path, copy) = (stage.place("source"), stage.place("copy"));
    let key = VolumeKey::from_bytes(&[7; 32]).unwrap();
    _ = fs::remove_file(&path);
    let protector = stage.volume.protector();
    let volume = Volume::create(&path, SIZE, &key, protector, VolumeOptions::default()).unwrap();
    volume.write_at(0, &[1; 4096]).unwrap();
    volume.flush().unwrap();
    drop(volume);
    fs::copy(&path, &copy).unwrap();
    let volume = Arc::new(Volume::open(&path, &key, VolumeOptions::default()).unwrap());
    volume.write_at(EXTENT_LEN, &[2; 4096]).unwrap();
    let stage = Stage { volume, ..stage };
    stage.back_up(1, None);
    let stage =
        Stage { volume: Arc::new(Volume::open(&copy, &key, VolumeOptions::default()).unwrap()), ..stage };
    let marks = stage.marks("b1").unwrap();
    let manifest = stage.manifest(2, Some(("b1", 1)));
    let made = stage.write("b2", &manifest, Snapshot::take(stage.volume.clone()).unwrap(), &marks);
    assert!(matches!(made, Err(BackupError::VolumeOlder)), "{made:?}");
    assert!(!stage.place("b2").exists());
}

/// A thousand strings, none of which stands in the volume's file, nor in a backup of it, in clear.
#[test]
fn a_thousand_planted_strings_are_found_nowhere() {
    let stage = Stage::new();
    let found = |bytes: &[u8]| bytes.windows(8).filter(|w| *w == b"PLANTED-").count();
    let planted: Vec<String> = (0..1000).map(|n| format!("PLANTED-{n:05}-SECRET")).collect();
    for (n, text) in (0..).zip(&planted) {
        stage.volume.write_at(n * 30_011 % (SIZE - 64), text.as_bytes()).unwrap();
    }
    stage.volume.flush().unwrap();
    stage.back_up(1, None);
    stage.volume.write_at(0, &vec![b'x'; 1 << 20]).unwrap();
    stage.back_up(2, Some(1));
    assert_eq!(found(&whole(&stage.restore(&[1]))), 1000, "the search finds what is there");
    _ = fs::remove_file(stage.place("restored"));
    let mut dirs = vec![stage.dir.path().to_owned()];
    let mut files = 0;
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.path().is_dir() {
                dirs.push(entry.path());
            } else {
                assert_eq!(found(&fs::read(entry.path()).unwrap()), 0, "{:?}", entry.path());
                files += 1;
            }
        }
    }
    assert_eq!(files, 5, "the volume, and two backups with their manifests");
}

/// Every bit of a backup: whichever is flipped, the backup does not verify. What its key is wrapped with is the vault's to
/// find: it opens to the same key, or to another, or not at all.
#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    let stage = Stage::new();
    stage.volume.write_at(4096, &[1; 4096]).unwrap();
    stage.volume.zero_at(8192, 4096).unwrap();
    stage.back_up(1, None);
    stage.verify("b1").unwrap();
    let wrapped = stage.read("b1").unwrap().wrapped;
    for name in ["data/00000000", "manifest.json"] {
        let path = stage.place("b1").join(name);
        let good = fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bytes).unwrap();
            let other_key = || stage.read("b1").unwrap().wrapped != wrapped;
            assert!(stage.verify("b1").is_err() || other_key(), "bit {bit} of {name}");
        }
        for len in (0..good.len()).step_by(13) {
            fs::write(&path, &good[..len]).unwrap();
            assert!(stage.verify("b1").is_err(), "{name} cut to {len}");
        }
        fs::write(&path, &good).unwrap();
    }
    stage.verify("b1").unwrap();
    let manifest = stage.read("b1").unwrap();
    let other = BackupManifest { source: "volumes/w".into(), ..manifest.clone() };
    assert!(read_backup(stage.at("b1"), &other, &stage.key, |_| Ok(())).is_err(), "another manifest");
    let key = StreamKey::generate().unwrap();
    assert!(read_backup(stage.at("b1"), &manifest, &key, |_| Ok(())).is_err(), "another key");
    read_backup(stage.at("b1"), &manifest, &stage.key, |_| Ok(())).unwrap();
}

/// A backup of many segments: none may be missing, changed for another, or another backup's.
#[test]
fn segments_belong_where_they_are() {
    let stage = Stage::new();
    let data: Vec<u8> = (0..SIZE).map(|n| (n / 4096 * 7 + n) as u8).collect();
    for (n, part) in (0..).zip(data.chunks(1 << 20)) {
        stage.volume.write_at(n << 20, part).unwrap();
    }
    stage.back_up(1, None);
    stage.back_up(2, None);
    assert!(whole(&stage.restore(&[1])) == data);
    let segment = |name: &str, n: u64| stage.place(name).join(segment_name(n));
    assert!(segment("b1", 2).exists(), "three segments at least");
    let aside = stage.place("aside");
    fs::rename(segment("b1", 1), &aside).unwrap();
    assert!(matches!(stage.verify("b1"), Err(BackupError::Corrupt)), "missing");
    fs::copy(segment("b2", 1), segment("b1", 1)).unwrap();
    assert!(matches!(stage.verify("b1"), Err(BackupError::Corrupt)), "another backup's");
    fs::copy(segment("b1", 0), segment("b1", 1)).unwrap();
    assert!(matches!(stage.verify("b1"), Err(BackupError::Corrupt)), "another one");
    fs::rename(&aside, segment("b1", 1)).unwrap();
    stage.verify("b1").unwrap();

    // Without its manifest it is none: the name is free, and nothing of it is left when it is made anew.
    fs::remove_file(stage.place("b2").join("manifest.json")).unwrap();
    assert!(matches!(stage.verify("b2"), Err(BackupError::Missing)));
    assert_eq!(stage.store.names().unwrap(), ["b1"]);
    fs::write(segment("b2", 77), "left").unwrap();
    stage.back_up(2, None);
    assert!(!segment("b2", 77).exists());
    stage.verify("b2").unwrap();
}
