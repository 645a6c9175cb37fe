//! Crash-safe typed tables: the only user of `sled`.
//!
//! One tree holds all tables (`table NUL key`), so that a [`Batch`] over several tables is atomic. A commit is
//! acknowledged when it is on disk; `docs/design/0002-sled.md` tells what that takes with sled 0.34.

use serde::{Serialize, de::DeserializeOwned};
use std::{
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
    /// An earlier flush failed, so what is on disk is not known; only a restart finds out.
    #[error("an earlier write did not reach the disk; the store takes no more until it is restarted")]
    Poisoned,
}

/// Tables in a directory, held by one process.
pub struct Store {
    db: sled::Db,
    file: File,
    poisoned: AtomicBool,
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
        Ok(Self { db, file: File::open(dir.join("db"))?, poisoned: AtomicBool::new(false) })
    }

    /// Applies all of `batch` or nothing, and returns once it is on disk. Blocks for one disk flush.
    ///
    /// # Errors
    /// The disk or the engine failed; after a failed flush the store stays closed to writes.
    pub fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(StoreError::Poisoned);
        }
        let done = self.db.apply_batch(batch.inner).and_then(|()| self.db.flush()).map_err(StoreError::from);
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
    inner: sled::Batch,
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
        self.inner.insert(row(table, key), bytes);
        self
    }

    /// Removes a row.
    pub fn delete(&mut self, table: &'static str, key: &str) -> &mut Self {
        self.inner.remove(row(table, key));
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
}
