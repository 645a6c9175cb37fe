//! Crash-safe typed tables: the only user of `sled`.
//!
//! One tree holds all tables (`table NUL key`), so that a [`Batch`] over several tables is atomic. A commit is
//! acknowledged when it is on disk; `docs/design/0002-sled.md` tells what that takes with sled 0.34.
//!
//! A store may be checked against a key ([`Store::check_integrity`]): it finds rows that another has changed, and a store
//! that was put back to an earlier state. The rows of a part of it are checked when one of them is first read.

mod anchor;
mod integrity;
mod sum;

use integrity::{Changes, Integrity, is_own, part_of};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeSet,
    fmt,
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
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

/// How long the end of a store waits for its engine's threads.
const RELEASE_MAX: Duration = Duration::from_secs(5);

/// Tables in a directory, held by one process. When it has been dropped, the directory is free.
pub struct Store {
    dir: PathBuf,
    db: sled::Db,
    /// After `db`, since it waits for what `db` leaves running.
    file: DataFile,
    poisoned: AtomicBool,
    integrity: Mutex<Guard>,
    /// Nothing is left to be checked.
    checked: AtomicBool,
    /// Parts of which something was read before the store was checked: what opens it, above all.
    early: Mutex<BTreeSet<Vec<u8>>>,
    /// Something was found altered: nothing that is read now can be relied on.
    altered: AtomicBool,
}

/// Rows as they lie in the store.
type Rows = Vec<(sled::IVec, sled::IVec)>;

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
        let mut store = Self {
            dir: dir.to_owned(),
            db,
            file: DataFile(File::open(dir.join("db"))?),
            poisoned: AtomicBool::new(false),
            integrity: Mutex::new(Guard::Off),
            checked: AtomicBool::new(true),
            early: Mutex::default(),
            altered: AtomicBool::new(false),
        };
        // The directory's own entries: a fresh `db` file must survive a power cut too.
        File::open(dir)?.sync_all()?;
        if let Some(parent) = dir.parent() {
            File::open(parent)?.sync_all()?;
        }
        if store.db.contains_key(integrity::state_row())? {
            store.integrity = Mutex::new(Guard::Locked);
            store.checked = AtomicBool::new(false);
        }
        Ok(store)
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

    /// Checks that the store is as its last commit left it, and lets it be changed. It reads a row for each part; what is in
    /// the parts is checked when it is read, or by [`Store::check_rest`], and now where it was read before. `accepted` is the number of a commit to go on from
    /// although the anchor knows of another.
    ///
    /// # Errors
    /// [`StoreError::Altered`], [`StoreError::RolledBack`], [`StoreError::AnchorLost`].
    pub fn check_integrity(
        &self,
        key: &[u8; 32],
        path: &Path,
        accepted: Option<u64>,
    ) -> Result<(), StoreError> {
        let integrity = Integrity::check(&self.db, key, path, accepted)?;
        let older = integrity.is_unwritten();
        *self.integrity.lock() = Guard::On(Box::new(integrity));
        if older {
            self.commit(Batch::new())?;
        }
        let early = std::mem::take(&mut *self.early.lock());
        early.iter().try_for_each(|part| self.check_part(part).map(drop))
    }

    /// Checks what nobody has read yet, while `proceed` says so; false if it was told to stop.
    ///
    /// # Errors
    /// [`StoreError::Altered`]; it has not been checked against its key; the engine failed.
    pub fn check_rest(&self, proceed: impl Fn() -> bool) -> Result<bool, StoreError> {
        if self.checked.load(Ordering::Acquire) {
            return Ok(true);
        }
        if !self.check_parts(&[], &proceed)? {
            return Ok(false);
        }
        match &mut *self.integrity.lock() {
            Guard::Off => {}
            Guard::Locked => return Err(StoreError::Locked),
            Guard::On(integrity) => {
                integrity.complete();
                self.checked.store(true, Ordering::Release);
            }
        }
        Ok(true)
    }

    /// Checks the parts of which a row begins so: also those that should have rows and have none, and the other way round.
    fn check_parts(&self, prefix: &[u8], proceed: &impl Fn() -> bool) -> Result<bool, StoreError> {
        let unchecked = match &*self.integrity.lock() {
            Guard::Off => return Ok(true),
            Guard::Locked => return Err(StoreError::Locked),
            Guard::On(integrity) => integrity.unchecked(prefix),
        };
        for part in unchecked {
            if !proceed() {
                return Ok(false);
            }
            self.check_part(&part)?;
        }
        let mut last = sled::IVec::default();
        for row in self.db.scan_prefix(prefix).keys() {
            let row = row?;
            if part_of(&row) != part_of(&last) && !is_own(&row) {
                if !proceed() {
                    return Ok(false);
                }
                self.check_part(part_of(&row))?;
                last = row;
            }
        }
        Ok(true)
    }

    /// Checks a part that has not been checked yet, and hands over the rows that it has read for that.
    fn check_part(&self, part: &[u8]) -> Result<Option<Rows>, StoreError> {
        if self.altered.load(Ordering::Acquire) {
            return Err(StoreError::Altered);
        }
        let keys = match &*self.integrity.lock() {
            Guard::Off => return Ok(None),
            Guard::Locked => return Err(StoreError::Locked),
            Guard::On(integrity) if integrity.is_checked(part) => return Ok(None),
            Guard::On(integrity) => integrity.keys(),
        };
        // Others commit meanwhile: to this part they cannot before they have checked it themselves.
        let mut rows = Rows::new();
        let mut sum = sum::Sum::ZERO;
        for entry in self.db.scan_prefix(part) {
            let (row, value) = entry?;
            if part_of(&row) == part {
                sum = sum.plus(keys.of_row(&row, &value));
                rows.push((row, value));
            }
        }
        match &mut *self.integrity.lock() {
            Guard::Off => Ok(None),
            Guard::Locked => Err(StoreError::Locked),
            Guard::On(integrity) if integrity.is_checked(part) => Ok(None),
            Guard::On(integrity) => {
                let settled = integrity.settle(part, sum);
                settled.inspect_err(|_| self.altered.store(true, Ordering::Release)).map(|()| Some(rows))
            }
        }
    }

    /// Changes a row as another program would, past what keeps the store's integrity: for tests.
    ///
    /// # Errors
    /// The engine failed.
    #[cfg(any(test, feature = "tamper"))]
    pub fn tamper(&self, table: &'static str, key: &str, value: &str) -> Result<(), StoreError> {
        self.db.insert(row(table, key), value)?;
        self.db.flush()?;
        Ok(())
    }

    /// Whether something was found altered. Nothing of it is read or written any more.
    #[must_use]
    pub fn is_altered(&self) -> bool {
        self.altered.load(Ordering::Acquire)
    }

    /// Forgets the key of its integrity: it takes no changes until it has been checked again.
    pub fn lock(&self) {
        let mut guard = self.integrity.lock();
        if !matches!(*guard, Guard::Off) {
            *guard = Guard::Locked;
            self.checked.store(false, Ordering::Release);
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
        if self.altered.load(Ordering::Acquire) {
            return Err(StoreError::Altered);
        }
        self.check_room()?;
        loop {
            let mut guard = self.integrity.lock();
            match &mut *guard {
                Guard::Off => {
                    drop(guard);
                    return self.flush(batch);
                }
                Guard::Locked => return Err(StoreError::Locked),
                Guard::On(integrity) => {
                    let parts = batch.changes.keys().map(|row| part_of(row));
                    if let Some(part) = parts.into_iter().find(|part| !integrity.is_checked(part)) {
                        drop(guard);
                        self.check_part(part)?;
                        continue;
                    }
                    // One commit after another: the sums are of all that came before.
                    let (next, rows) = integrity.next(&self.db, &batch.changes)?;
                    let mut batch = batch;
                    batch.changes.extend(rows);
                    self.flush(batch)?;
                    let done = integrity.done(next);
                    return done.inspect_err(|_| self.poisoned.store(true, Ordering::Release));
                }
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
        let done = done.and_then(|_| self.file.0.sync_all().map_err(StoreError::from));
        done.inspect_err(|_| self.poisoned.store(true, Ordering::Release))
    }

    /// The value under `key`, if there is one. Before the store is checked that is what lies there, and the check finds it if it
    /// was altered.
    ///
    /// # Errors
    /// The engine failed, the value is not readable, or the store was altered.
    pub fn get<V: DeserializeOwned>(&self, table: &'static str, key: &str) -> Result<Option<V>, StoreError> {
        let row = row(table, key);
        if !self.checked.load(Ordering::Acquire) {
            match self.check_part(part_of(&row)) {
                Ok(_) => {}
                Err(StoreError::Locked) => _ = self.early.lock().insert(part_of(&row).to_vec()),
                Err(e) => return Err(e),
            }
        }
        self.db.get(row)?.map(|bytes| decode(table, key, &bytes)).transpose()
    }

    /// All rows whose key begins with `prefix`, in key order.
    ///
    /// # Errors
    /// The engine failed, a value is not readable, or the store was altered or has not been checked.
    pub fn scan<V: DeserializeOwned>(
        &self,
        table: &'static str,
        prefix: &str,
    ) -> Result<Vec<(String, V)>, StoreError> {
        let skip = table.len() + 1;
        let decoded = |(row, bytes): (sled::IVec, sled::IVec)| {
            let key = String::from_utf8_lossy(row.get(skip..).unwrap_or_default()).into_owned();
            let value = decode(table, &key, &bytes)?;
            Ok((key, value))
        };
        let prefix = row(table, prefix);
        match self.check_prefix(&prefix)? {
            Some(rows) => rows.into_iter().map(decoded).collect(),
            None => self.db.scan_prefix(prefix).map(|entry| decoded(entry?)).collect(),
        }
    }

    /// Checks the parts of which a row begins so, and hands over those rows if it has read them for that.
    fn check_prefix(&self, prefix: &[u8]) -> Result<Option<Rows>, StoreError> {
        if self.checked.load(Ordering::Acquire) {
            return Ok(None);
        }
        let part = part_of(prefix);
        if part.last() == Some(&0) {
            // All of the table, or much of it.
            self.check_parts(part, &|| true)?;
            return Ok(None);
        }
        Ok(self.check_part(part)?.filter(|_| part == prefix))
    }
}

/// The file that the engine writes, through a handle of our own: for what the engine does not sync, and to await its end.
struct DataFile(File);

impl Drop for DataFile {
    /// The engine's threads hold its lock for a moment longer than the engine lives. Whoever then opens the store in this
    /// process would hear that another has it.
    fn drop(&mut self) {
        let end = Instant::now() + RELEASE_MAX;
        while matches!(self.0.try_lock(), Err(TryLockError::WouldBlock)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
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
    changes: Changes,
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
mod tests;
