//! What an archive of a write-ahead log promises: a file comes back as it was, or not at all.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "stage/wrapped.rs"]
mod wrapped;

use custody_envelope::StreamKey;
use custody_node::*;
use custody_types::UnixMillis;
use std::{fs, path::PathBuf};
use wrapped::{key_entry, wrapped};
use zeroize::Zeroizing;

const ARCHIVE: &str = "sales-1/coordinator";
const FIRST: &str = "000000010000000000000001";

struct Stage {
    dir: tempfile::TempDir,
    store: Directory,
    key: StreamKey,
    id: WalKeyId,
}

fn name(file: &str) -> WalFileName {
    WalFileName::parse(file).unwrap()
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Directory::new(dir.path().to_owned());
        Self { dir, store, key: StreamKey::generate().unwrap(), id: WalKeyId::new().unwrap() }
    }

    fn archive(&self) -> WalArchive<'_> {
        WalArchive::new(&self.store, ARCHIVE)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(WAL_FOLDER).join(ARCHIVE).join(file)
    }

    fn put(&self, file: &str, content: &[u8], size: u64) -> Result<(), BackupError> {
        self.archive().put_key(self.id, &key_entry(1))?;
        let written = UnixMillis::from_secs(7);
        let mut writer = self.archive().create(&name(file), size, written, (&self.key, self.id))?;
        // In parts that are no chunks.
        for part in content.chunks(700_001) {
            writer.write(part)?;
        }
        writer.seal()?.finish()
    }

    fn get(&self, file: &str) -> Result<Vec<u8>, BackupError> {
        let object = self.archive().open(&name(file))?;
        let size = usize::try_from(object.header().size_bytes).unwrap();
        let (mut all, mut part) = (Vec::new(), Zeroizing::default());
        let mut reader = object.reader(&self.key);
        while reader.next(&mut part)? {
            all.extend_from_slice(&part);
        }
        all.resize(size, 0);
        Ok(all)
    }

    fn files(&self) -> Vec<String> {
        self.archive().files().unwrap().iter().map(ToString::to_string).collect()
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n * 31 % 251).unwrap() | 1).collect()
}

#[test]
fn a_file_comes_back_as_it_was() {
    let stage = Stage::new();
    // Empty, short, exactly a chunk with its binding, more, and a whole segment.
    for (n, len) in [0, 1, (1 << 20) - 32, 1 << 20, (2 << 20) + 7, 16 << 20].into_iter().enumerate() {
        let file = format!("0000000100000000000000{n:02X}");
        stage.put(&file, &content(len), 16 << 20).unwrap();
        let mut whole = content(len);
        whole.resize(16 << 20, 0);
        assert!(stage.get(&file).unwrap() == whole, "{len} bytes");
    }
    let object = stage.archive().open(&name("000000010000000000000003")).unwrap();
    assert_eq!(object.header().written_time, UnixMillis::from_secs(7));
    let stored = fs::metadata(stage.path("000000010000000000000001")).unwrap().len();
    assert!(stored < 1024, "zeros are not stored: {stored} bytes");
    assert!(matches!(stage.get("000000010000000000000009"), Err(BackupError::Missing)));
    assert!(BackupStore::names(&stage.store).unwrap().is_empty(), "an archive is no backup");
}

#[test]
fn a_file_takes_no_other_files_place() {
    let stage = Stage::new();
    stage.put(FIRST, b"first", 5).unwrap();
    assert!(matches!(stage.put(FIRST, b"other", 5), Err(BackupError::Exists)));
    assert_eq!(stage.get(FIRST).unwrap(), b"first");
    // Two at once, of which neither saw the other begin.
    let second = "000000010000000000000002";
    stage.put(second, b"one", 3).unwrap();
    let link = stage.path(second);
    let aside = link.with_file_name("aside");
    fs::rename(&link, &aside).unwrap();
    let sealed = (&stage.key, stage.id);
    let late = stage.archive().create(&name(second), 3, UnixMillis::default(), sealed).unwrap();
    fs::rename(&aside, &link).unwrap();
    assert!(matches!(late.seal().unwrap().finish(), Err(BackupError::Exists)));
    assert_eq!(stage.get(second).unwrap(), b"one");
    // What is given up leaves nothing.
    let third = name("000000010000000000000003");
    drop(stage.archive().create(&third, 3, UnixMillis::default(), sealed).unwrap());
    let folder = stage.path("");
    // The two, and the folder of keys.
    assert_eq!(fs::read_dir(folder).unwrap().count(), 3);
}

#[test]
fn a_key_is_wrapped_anew_without_its_files() {
    let stage = Stage::new();
    stage.put(FIRST, b"first", 5).unwrap();
    let archive = stage.archive();
    assert_eq!(archive.open(&name(FIRST)).unwrap().wrapped(), &wrapped(1));
    let before = fs::read(stage.path(FIRST)).unwrap();
    archive.put_key(stage.id, &key_entry(2)).unwrap();
    assert_eq!(archive.open(&name(FIRST)).unwrap().wrapped(), &wrapped(2));
    assert_eq!((fs::read(stage.path(FIRST)).unwrap(), stage.get(FIRST).unwrap()), (before, b"first".into()));
    assert_eq!(archive.file_key(&name(FIRST)).unwrap(), WalFileKey { id: stage.id, wrapped: None });
    assert_eq!(archive.keys().unwrap(), [stage.id]);
    assert_eq!(stage.files(), [FIRST], "a key is no file");
    // Without its key, or with that of another archive, nothing is opened.
    let (key, other) = (stage.path("keys").join(stage.id.to_string()), WalKeyId::new().unwrap());
    archive.put_key(other, &key_entry(3)).unwrap();
    fs::copy(stage.path("keys").join(other.to_string()), &key).unwrap();
    assert!(matches!(stage.get(FIRST), Err(BackupError::Corrupt)));
    archive.remove_keys(&[stage.id, other]).unwrap();
    assert!(archive.keys().unwrap().is_empty());
    assert!(matches!(stage.get(FIRST), Err(BackupError::Corrupt)));
}

#[test]
fn what_was_altered_is_found() {
    let stage = Stage::new();
    let plain = content((1 << 20) + 100);
    stage.put(FIRST, &plain, plain.len() as u64).unwrap();
    let good = fs::read(stage.path(FIRST)).unwrap();
    let read = |bytes: &[u8]| {
        fs::write(stage.path(FIRST), bytes).unwrap();
        stage.get(FIRST)
    };
    let header_len = 12 + u32::from_le_bytes(good[8..12].try_into().unwrap()) as usize;
    // Every bit of the clear part and of what frames the chunks, and some of each chunk.
    let tail = good.len() - 200;
    let places = (0..header_len + 60).chain((header_len + 60..tail).step_by(9973)).chain(tail..good.len());
    for place in places {
        let mut bytes = good.clone();
        for bit in 0..8 {
            bytes[place] ^= 1 << bit;
            assert!(read(&bytes).is_err(), "byte {place}, bit {bit}");
            bytes[place] ^= 1 << bit;
        }
    }
    for cut in [0, 11, header_len, header_len + 2, header_len + (1 << 20) + 32, good.len() - 1] {
        assert!(read(&good[..cut]).is_err(), "cut to {cut}");
    }
    assert!(read(&[&good[..], &good[header_len..]].concat()).is_err(), "a chunk more");
    assert!(read(&good).unwrap() == plain);
    // Under another name, and in another archive.
    let second = "000000010000000000000002";
    fs::copy(stage.path(FIRST), stage.path(second)).unwrap();
    assert!(matches!(stage.get(second), Err(BackupError::Corrupt)));
    let other = WalArchive::new(&stage.store, "other-1/coordinator");
    let place = stage.dir.path().join(WAL_FOLDER).join("other-1/coordinator");
    fs::create_dir_all(&place).unwrap();
    fs::copy(stage.path(FIRST), place.join(FIRST)).unwrap();
    assert!(matches!(other.open(&name(FIRST)), Err(BackupError::Corrupt)));
}

#[test]
fn pruning_keeps_what_comes_after_and_every_history() {
    let stage = Stage::new();
    let all = [
        "00000001000000000000000E",
        "00000001000000000000000F",
        "00000001000000000000000F.00000028.backup",
        "000000010000000000000010",
        "000000010000000000000011.partial",
        "00000002.history",
        "000000020000000000000011",
    ];
    for file in all {
        stage.put(file, b"x", 1).unwrap();
    }
    assert_eq!(stage.files(), all, "in the order of the log");
    assert_eq!(stage.archive().prune(&name("000000010000000000000010")).unwrap(), 3);
    assert_eq!(stage.files(), all[3..]);
    assert_eq!(stage.archive().prune(&name("000000020000000000000011")).unwrap(), 2);
    assert_eq!(stage.files(), ["00000002.history", "000000020000000000000011"]);
    assert!(stage.archive().remove().unwrap());
    assert!(!stage.archive().remove().unwrap());
    assert!(stage.files().is_empty());
}

#[test]
fn only_postgresqls_own_names_are_taken() {
    for good in [FIRST, "0000000A.history", "00000001000000000000000F.00000028.backup"] {
        assert!(WalFileName::parse(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "..",
        "../x",
        "00000001000000000000000",
        "00000001000000000000000g",
        "00000001.History",
        "keys",
        "00000001000000000000000a",
        "00000001000000000000000F/..",
        "00000001000000000000000F.backup",
    ] {
        assert!(WalFileName::parse(bad).is_err(), "{bad}");
    }
}
