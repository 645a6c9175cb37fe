//! Crash-safe typed tables: the only user of `sled`.
//!
//! One tree holds all tables (`table NUL key`), so that a [`Batch`] over several tables is atomic. A commit is
//! acknowledged when it is on disk; `docs/design/0002-sled.md` tells what that takes with sled 0.34.
//!
//! A store may be checked against a key ([`Store::check_integrity`]): it finds rows that another has changed, and a store
//! that was put back to an earlier state.

mod anchor;
mod integrity;

use integrity::Integrity;
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// A store that cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process holds the directory.
    #[error("the data directory `{0}` is in use by another process; stop it, or name another directory")]
    InUse(PathBuf),
    /// A stored value does not have the shape this version writes.
    #[error("table `{table}`, key `{key}`: the stored value is not readable by this version")]
    Unreadable {
        /// The table.
        table: &'static str,
        /// The key.
        key: String,
        /// What the decoder said.
        #[source]
        source: serde_json::Error,
    },
    /// The file system failed.
    #[error("the store's file system failed")]
    Io(#[from] io::Error),
    /// sled failed.
    #[error("the store's engine failed")]
    Engine(#[from] sled::Error),
    /// The disk has too little room for a commit to be certain. Nothing was written; it goes on when there is room.
    #[error("the disk that holds `{0}` is full; make room, nothing was lost")]
    Full(PathBuf),
    /// An earlier flush failed, so what is on disk is not known; only a restart finds out.
    #[error("an earlier write did not reach the disk; the store takes no more until it is restarted")]
    Poisoned,
    /// It takes no changes before it has been checked.
    #[error("the store has not been checked yet; unseal the vault first")]
    Locked,
    /// Rows are not those that were committed.
    #[error("the store was altered by something else than its vault; put a copy back that the vault wrote")]
    Altered,
    /// It is an earlier state of itself.
    #[error(
        "the store was put back to commit {store}, and its anchor knows of commit {anchor}: put the newer store back; \
         or, where the older state is meant and its losses are understood, set `accept_commit = {store}`"
    )]
    RolledBack {
        /// The store's last commit.
        store: u64,
        /// The anchor's.
        anchor: u64,
    },
    /// A new store would take the anchor of another.
    #[error(
        "the store is empty and its anchor `{0}` is of another store: put that store back; or remove the anchor, where a \
         new vault is meant"
    )]
    AnchorTaken(PathBuf),
    /// The anchor is gone, or is of an earlier state.
    #[error(
        "the anchor `{path}` does not know of the store's commit {store}: put the right one back; or, where it is lost \
         and the store is known to be the newest, set `accept_commit = {store}`"
    )]
    AnchorLost {
        /// Where it should be.
        path: PathBuf,
        /// The store's last commit.
        store: u64,
    },
}

/// Free bytes that a commit asks for: several of sled's segments, which it takes by 512 KiB.
const ROOM_MIN: u64 = 2 << 20;

/// Tables in a directory, held by one process.
pub struct Store {
    dir: PathBuf,
    db: sled::Db,
    file: File,
    poisoned: AtomicBool,
    integrity: Mutex<Guard>,
}

/// Whether the store's integrity is kept.
enum Guard {
    /// Nobody asked for it.
    Off,
    /// It is, and nothing may be changed before the key is known.
    Locked,
    On(Box<Integrity>),
}

impl Store {
    /// Opens or makes the store in `dir`.
    ///
    /// # Errors
    /// [`StoreError::InUse`] where another process holds it; else what the file system or the engine said.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir)?;
        // sled flushes by itself every half second; commits here flush at once, so that is only noise.
        let config = sled::Config::new().path(dir).flush_every_ms(None).cache_capacity(64 << 20);
        let db = config.open().map_err(|e| match e {
            sled::Error::Io(io)
                if io.kind() == io::ErrorKind::WouldBlock || io.to_string().contains("lock") =>
            {
                StoreError::InUse(dir.to_owned())
            }
            other => StoreError::Engine(other),
        })?;
        // The directory's own entries: a fresh `db` file must survive a power cut too.
        File::open(dir)?.sync_all()?;
        if let Some(parent) = dir.parent() {
            File::open(parent)?.sync_all()?;
        }
        let guarded = db.contains_key(integrity::state_row())?;
        Ok(Self {
            dir: dir.to_owned(),
            db,
            file: File::open(dir.join("db"))?,
            poisoned: AtomicBool::new(false),
            integrity: Mutex::new(if guarded { Guard::Locked } else { Guard::Off }),
        })
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.db.is_empty()
    }

    /// Keeps the store's integrity from now on, under `key`, with its anchor at `path`; commits `first` with that.
    ///
    /// # Errors
    /// As [`Store::commit`], and [`StoreError::AnchorTaken`].
    pub fn begin_integrity(&self, key: &[u8; 32], path: &Path, first: Batch) -> Result<(), StoreError> {
        let begun = Integrity::begin(&self.db, key, path)?;
        *self.integrity.lock() = Guard::On(Box::new(begun));
        self.commit(first)
    }

    /// Checks that the store is as its last commit left it, and lets it be changed. Reads all of it. `accepted` is the
    /// number of a commit to go on from although the anchor knows of another.
    ///
    /// # Errors
    /// [`StoreError::Altered`], [`StoreError::RolledBack`], [`StoreError::AnchorLost`].
    pub fn check_integrity(
        &self,
        key: &[u8; 32],
        path: &Path,
        accepted: Option<u64>,
    ) -> Result<(), StoreError> {
        let checked = Integrity::check(&self.db, key, path, accepted)?;
        *self.integrity.lock() = Guard::On(Box::new(checked));
        Ok(())
    }

    /// Forgets the key of its integrity: it takes no changes until it has been checked again.
    pub fn lock(&self) {
        let mut guard = self.integrity.lock();
        if !matches!(*guard, Guard::Off) {
            *guard = Guard::Locked;
        }
    }

    /// Applies all of `batch` or nothing, and returns once it is on disk. Blocks for one disk flush.
    ///
    /// # Errors
    /// [`StoreError::Full`], and nothing was written; or the disk or the engine failed; after a failed flush the store stays closed to writes.
    pub fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(StoreError::Poisoned);
        }
        self.check_room()?;
        let mut guard = self.integrity.lock();
        match &mut *guard {
            Guard::Off => {
                drop(guard);
                self.flush(batch)
            }
            Guard::Locked => Err(StoreError::Locked),
            Guard::On(integrity) => {
                // One commit after another: the sum is of all that came before.
                let (next, state) = integrity.next(&self.db, &batch.changes)?;
                let mut batch = batch;
                batch.changes.insert(integrity::state_row(), Some(state));
                self.flush(batch)?;
                integrity.done(&next).inspect_err(|_| self.poisoned.store(true, Ordering::Release))
            }
        }
    }

    /// A commit that the disk cuts short closes the store until a restart, so one that might be is not begun.
    fn check_room(&self) -> Result<(), StoreError> {
        let disk = rustix::fs::statvfs(&self.dir).map_err(io::Error::from)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < ROOM_MIN {
            return Err(StoreError::Full(self.dir.clone()));
        }
        Ok(())
    }

    fn flush(&self, batch: Batch) -> Result<(), StoreError> {
        let mut changes = sled::Batch::default();
        for (row, value) in batch.changes {
            match value {
                Some(value) => changes.insert(row, value),
                None => changes.remove(row),
            }
        }
        let done = self.db.apply_batch(changes).and_then(|()| self.db.flush()).map_err(StoreError::from);
        // sled 0.34 ends a flush with sync_file_range, which leaves the drive's cache and the file's length alone.
        let done = done.and_then(|_| self.file.sync_all().map_err(StoreError::from));
        done.inspect_err(|_| self.poisoned.store(true, Ordering::Release))
    }

    /// The value under `key`, if there is one.
    ///
    /// # Errors
    /// The engine failed or the value is not readable.
    pub fn get<V: DeserializeOwned>(&self, table: &'static str, key: &str) -> Result<Option<V>, StoreError> {
        self.db.get(row(table, key))?.map(|bytes| decode(table, key, &bytes)).transpose()
    }

    /// All rows whose key begins with `prefix`, in key order.
    ///
    /// # Errors
    /// The engine failed or a value is not readable.
    pub fn scan<V: DeserializeOwned>(
        &self,
        table: &'static str,
        prefix: &str,
    ) -> Result<Vec<(String, V)>, StoreError> {
        let skip = table.len() + 1;
        self.db
            .scan_prefix(row(table, prefix))
            .map(|entry| {
                let (full, bytes) = entry?;
                let key = String::from_utf8_lossy(full.get(skip..).unwrap_or_default()).into_owned();
                let value = decode(table, &key, &bytes)?;
                Ok((key, value))
            })
            .collect()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store(..)")
    }
}

/// Changes that are applied together.
#[derive(Debug, Default)]
pub struct Batch {
    /// By row, with its new value or none.
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Batch {
    /// No changes yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a row.
    ///
    /// # Panics
    /// `value` has a map with keys that are not strings, which no table of ours has.
    pub fn put<V: Serialize>(&mut self, table: &'static str, key: &str, value: &V) -> &mut Self {
        let bytes = serde_json::to_vec(value).expect("table values are plain data");
        self.changes.insert(row(table, key), Some(bytes));
        self
    }

    /// Removes a row.
    pub fn delete(&mut self, table: &'static str, key: &str) -> &mut Self {
        self.changes.insert(row(table, key), None);
        self
    }
}

fn row(table: &str, key: &str) -> Vec<u8> {
    [table.as_bytes(), &[0], key.as_bytes()].concat()
}

fn decode<V: DeserializeOwned>(table: &'static str, key: &str, bytes: &[u8]) -> Result<V, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Unreadable {
        table,
        key: key.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_kept_and_a_second_opener_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut batch = Batch::new();
        batch.put("a", "x/1", &1u32).put("a", "x/2", &2u32).put("b", "x/1", &3u32);
        store.commit(batch).unwrap();
        match Store::open(dir.path()) {
            Err(StoreError::InUse(path)) => assert_eq!(path, dir.path()),
            other => panic!("expected InUse, got {other:?}"),
        }
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.scan::<u32>("a", "x/").unwrap(), [("x/1".into(), 1), ("x/2".into(), 2)]);
        assert_eq!(store.get::<u32>("b", "x/1").unwrap(), Some(3));
        assert_eq!(store.get::<u32>("b", "x").unwrap(), None);
        assert!(matches!(store.get::<String>("b", "x/1"), Err(StoreError::Unreadable { .. })));
    }

    const KEY: [u8; 32] = [9; 32];

    fn put(store: &Store, n: u32) {
        let mut batch = Batch::new();
        batch.put("a", &format!("x/{n}"), &n).put("a", "last", &n);
        store.commit(batch).unwrap();
    }

    /// sled's threads let go of the file a moment after the store was dropped.
    fn open(dir: &Path) -> Store {
        for _ in 0..1000 {
            match Store::open(dir) {
                Err(StoreError::InUse(_)) => std::thread::sleep(std::time::Duration::from_millis(5)),
                opened => return opened.unwrap(),
            }
        }
        panic!("`{}` stays in use", dir.display());
    }

    fn copy(from: &Path, to: &Path) {
        _ = std::fs::remove_dir_all(to);
        let done = std::process::Command::new("cp").arg("-r").args([from, to]).status().unwrap();
        assert!(done.success());
    }

    #[test]
    fn a_store_that_was_put_back_or_altered_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (home, anchor) = (dir.path().join("store"), dir.path().join("anchor"));
        let reopen = |accepted| {
            let store = open(&home);
            store.check_integrity(&KEY, &anchor, accepted).map(|()| store)
        };
        let store = open(&home);
        store.begin_integrity(&KEY, &anchor, Batch::new()).unwrap();
        put(&store, 1);
        drop(store);
        copy(&home, &dir.path().join("older"));
        std::fs::copy(&anchor, dir.path().join("older-anchor")).unwrap();

        // Before it is checked it is read only.
        let store = open(&home);
        assert!(matches!(store.commit(Batch::new()), Err(StoreError::Locked)));
        drop(store);
        let store = reopen(None).unwrap();
        (2..10).for_each(|n| put(&store, n));
        store
            .commit({
                let mut batch = Batch::new();
                batch.delete("a", "x/3").delete("a", "x/absent");
                batch
            })
            .unwrap();
        drop(store);
        drop(reopen(None).unwrap());
        copy(&home, &dir.path().join("newest"));

        // Put back.
        copy(&dir.path().join("older"), &home);
        let found = reopen(None).err().unwrap();
        assert!(matches!(found, StoreError::RolledBack { store: 2, anchor: 11 }), "{found}");
        // Its anchor put back, and not the store; or gone.
        copy(&dir.path().join("newest"), &home);
        std::fs::rename(&anchor, dir.path().join("newest-anchor")).unwrap();
        assert!(matches!(reopen(None).err().unwrap(), StoreError::AnchorLost { store: 11, .. }));
        std::fs::copy(dir.path().join("older-anchor"), &anchor).unwrap();
        assert!(matches!(reopen(None).err().unwrap(), StoreError::AnchorLost { store: 11, .. }));
        // One behind is what a kill leaves.
        std::fs::rename(dir.path().join("newest-anchor"), &anchor).unwrap();
        // The older state is accepted by its number alone, and is what counts then.
        copy(&dir.path().join("older"), &home);
        assert!(reopen(Some(3)).is_err());
        let store = reopen(Some(2)).unwrap();
        put(&store, 20);
        drop(store);
        drop(reopen(None).unwrap());

        // Any row changed, added or removed by something else.
        for change in ["altered", "added", "removed", "state"] {
            copy(&home, &dir.path().join("good"));
            let db = sled::open(&home).unwrap();
            match change {
                "altered" => _ = db.insert(row("a", "x/1"), "7").unwrap(),
                "added" => _ = db.insert(row("a", "y"), "7").unwrap(),
                "removed" => _ = db.remove(row("a", "x/1")).unwrap(),
                _ => {
                    let state = db.get(integrity::state_row()).unwrap().unwrap();
                    let text =
                        String::from_utf8(state.to_vec()).unwrap().replace("\"commit\":3", "\"commit\":4");
                    db.insert(integrity::state_row(), text.as_bytes()).unwrap();
                }
            }
            db.flush().unwrap();
            drop(db);
            assert!(matches!(reopen(None).err().unwrap(), StoreError::Altered), "{change}");
            copy(&dir.path().join("good"), &home);
        }
        drop(reopen(None).unwrap());
        // Under another key nothing holds.
        let store = open(&home);
        assert!(matches!(store.check_integrity(&[8; 32], &anchor, None), Err(StoreError::Altered)));
    }

    #[test]
    fn a_kill_between_commit_and_anchor_is_no_rollback() {
        let dir = tempfile::tempdir().unwrap();
        let (home, anchor) = (dir.path().join("store"), dir.path().join("anchor"));
        let store = open(&home);
        store.begin_integrity(&KEY, &anchor, Batch::new()).unwrap();
        for n in 1..6 {
            let before = std::fs::read(&anchor).unwrap();
            put(&store, n);
            if n == 5 {
                std::fs::write(&anchor, before).unwrap();
            }
        }
        drop(store);
        let store = open(&home);
        store.check_integrity(&KEY, &anchor, None).unwrap();
        // The very first one, too: no anchor yet.
        let (home, anchor) = (dir.path().join("first"), dir.path().join("first-anchor"));
        let store = open(&home);
        store.begin_integrity(&KEY, &anchor, Batch::new()).unwrap();
        drop(store);
        std::fs::remove_file(&anchor).unwrap();
        open(&home).check_integrity(&KEY, &anchor, None).unwrap();
        // A store that was taken away is not begun anew under its anchor.
        let store = Store::open(&dir.path().join("other")).unwrap();
        let begun = store.begin_integrity(&[8; 32], &anchor, Batch::new());
        assert!(matches!(begun, Err(StoreError::AnchorTaken(_))));
    }
}
