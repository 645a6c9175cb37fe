//! Removing the oldest files of a trail, so that what is left can still be verified and all of it be proven.

use crate::{
    AuditUnavailable, Broken, Entry, Journal, Outcome, Record,
    beginning::{Beginning, OPERATION},
    journal::{FILES_WALKED, TREE},
    tree::final_hashes,
    verify::{files, record_at_end, walk},
};
use custody_types::{Caller, UnixMillis};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What may be removed.
#[derive(Clone, Copy, Debug)]
pub struct Retention<'a> {
    /// Only files whose last record is of before this time.
    pub before: UnixMillis,
    /// Only records up to this number: what lies behind it is still wanted elsewhere.
    pub up_to: u64,
    /// Where files are copied to before they are removed.
    pub archive: Option<&'a Path>,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The number of the last record that is gone.
    pub last: u64,
}

/// Why nothing was removed, or not all of it: the next try goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetentionError {
    /// What would be removed is not what was written: it stays, as evidence.
    #[error("records that retention would remove are broken; they stay as evidence")]
    Broken(#[from] Broken),
    /// The tree's hashes, without which nothing about the records could be proven once they are gone, are not on disk.
    #[error(
        "the hashes of the tree are not those of the records; nothing is removed until a restart of the service makes them anew"
    )]
    Tree,
    /// The removal cannot be put on record.
    #[error("the removal cannot be put on record, so nothing is removed")]
    Audit(#[from] AuditUnavailable),
    /// A file cannot be copied or removed.
    #[error("`{path}` cannot be written or removed")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Journal {
    /// Removes the oldest files that a retention no longer wants, and says so in the trail, on record and signed before the
    /// first is gone. The tree's hashes stay: what was removed can be proven by whoever has it. The two newest files stay.
    /// Blocks for as long as it takes to read what is removed.
    ///
    /// # Errors
    /// See [`RetentionError`].
    pub fn retire(
        self: &Arc<Self>,
        caller: &Caller,
        retention: Retention<'_>,
    ) -> Result<Option<Removed>, RetentionError> {
        let _one_at_a_time = self.retiring.lock();
        let mut beginning = self.beginning.read().clone();
        let mut due = self.due(retention)?;
        if due.is_empty() {
            return Ok(None);
        }
        for path in &due {
            beginning = self.after(beginning, path)?;
        }
        let last = beginning.head.sequence;
        let tree = self.dir.join(TREE);
        let flushed = File::open(&tree).and_then(|tree| tree.sync_all());
        flushed.map_err(|source| RetentionError::Io { path: tree, source })?;
        if let Some(archive) = retention.archive {
            for path in &due {
                copy(path, archive)?;
            }
        }
        let id = format!("retention-{last}");
        let mut begin = Record::begin(self.now(), OPERATION, &id, caller, self.name());
        begin.result_description = beginning.statement();
        let pending = self.begin(begin)?;
        self.sign()?;
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| RetentionError::Io { path, source }
        };
        // Whoever reads the trail does so from its old beginning or from its new one.
        let mut place = self.beginning.write();
        beginning.write(&self.dir).map_err(io(&self.dir))?;
        *place = beginning;
        self.places.lock().clear();
        let mut removed = Removed { last, ..Removed::default() };
        for path in due.drain(..) {
            let len = fs::metadata(&path).map_or(0, |meta| meta.len());
            fs::remove_file(&path).map_err(io(&path))?;
            (removed.files, removed.bytes) = (removed.files + 1, removed.bytes + len);
        }
        drop(place);
        _ = File::open(&self.dir).and_then(|dir| dir.sync_all());
        let what = format!("{} files of {} bytes are removed", removed.files, removed.bytes);
        pending.finish(Outcome::Success, "OK", &what);
        Ok(Some(removed))
    }

    /// The files that may go, oldest first.
    fn due(&self, retention: Retention<'_>) -> Result<Vec<PathBuf>, Broken> {
        let mut all = files(&self.dir)?;
        all.truncate(all.len().saturating_sub(FILES_WALKED));
        let mut due = Vec::new();
        for path in all {
            let (head, record) = record_at_end(&path)?;
            if record.time >= retention.before || head.sequence > retention.up_to {
                break;
            }
            due.push(path);
        }
        Ok(due)
    }

    /// Where the trail begins without a file, whose records must go on from `beginning` and be those whose hashes are in the tree.
    fn after(&self, beginning: Beginning, path: &Path) -> Result<Beginning, RetentionError> {
        let Beginning { head, mut edge } = beginning;
        let first = final_hashes(edge.size()) * 32;
        let mut hashes = Vec::new();
        let (head, _) = walk(path, head, None, |entry| {
            if let Some(Entry { leaf, .. }) = entry {
                edge.push(leaf, |hash| hashes.extend_from_slice(hash));
            }
        })?;
        let mut kept = vec![0; hashes.len()];
        let read = File::open(self.dir.join(TREE)).and_then(|tree| tree.read_exact_at(&mut kept, first));
        if read.is_err() || kept != hashes { Err(RetentionError::Tree) } else { Ok(Beginning { head, edge }) }
    }
}

/// Copies a file, whole and durable, to a directory.
fn copy(path: &Path, archive: &Path) -> Result<(), RetentionError> {
    let place = archive.join(path.file_name().unwrap_or_default());
    let done = (|| {
        fs::create_dir_all(archive)?;
        let partial = place.with_extension("partial");
        fs::copy(path, &partial)?;
        File::open(&partial)?.sync_all()?;
        fs::rename(&partial, &place)?;
        File::open(archive)?.sync_all()
    })();
    done.map_err(|source| RetentionError::Io { path: place, source })
}
