//! Where a trail begins whose oldest files were removed: what the records that are left rest on.

use crate::{
    Broken, Entry, Phase,
    chain::{Head, RecordLine},
    tree::{Edge, Hash},
    whole_file,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    path::Path,
};

const FILE: &str = "beginning.json";
/// The operation whose record says that records were removed.
pub(crate) const OPERATION: &str = "AuditRetention";

/// The end of what was removed. It is good by a signed record of the trail that states the same ([`Beginning::is_stated_by`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Beginning {
    /// The chain after the last record that was removed.
    pub(crate) head: Head,
    /// The tree of all that was removed.
    pub(crate) edge: Edge,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    seq: u64,
    hash: String,
    roots: Vec<String>,
}

impl Default for Beginning {
    /// Nothing was removed.
    fn default() -> Self {
        Self { head: Head::START, edge: Edge::default() }
    }
}

impl Beginning {
    /// That of the trail in a directory.
    pub(crate) fn read(dir: &Path) -> Result<Self, Broken> {
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(Broken::Io { path, source }),
        };
        let parsed = serde_json::from_slice(&text).ok().and_then(|stored: Stored| {
            let roots = stored.roots.iter().map(|root| STANDARD.decode(root).ok()?.try_into().ok());
            let roots: Option<Vec<Hash>> = roots.collect();
            let hash = hex::decode(stored.hash).ok()?.try_into().ok()?;
            let edge = Edge::of(stored.seq, roots?)?;
            Some(Self { head: Head { sequence: stored.seq, hash }, edge })
        });
        parsed.ok_or(Broken::Line { path, line: 1 })
    }

    /// That of the files that are there: records that were removed may have been put back from an archive.
    pub(crate) fn of_files(dir: &Path, files: &[std::path::PathBuf]) -> Result<Self, Broken> {
        let Some(path) = files.first() else { return Self::read(dir) };
        let io = |source| Broken::Io { path: path.clone(), source };
        let mut line = Vec::new();
        BufReader::new(File::open(path).map_err(io)?).read_until(b'\n', &mut line).map_err(io)?;
        match serde_json::from_slice(&line) {
            Ok(RecordLine { seq: 1, .. }) => Ok(Self::default()),
            _ => Self::read(dir),
        }
    }

    /// Puts it in its place, whole and durable.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        let stored = Stored {
            seq: self.head.sequence,
            hash: hex::encode(self.head.hash),
            roots: self.edge.roots().iter().map(|root| STANDARD.encode(root)).collect(),
        };
        whole_file::put(dir, Path::new(FILE), &serde_json::to_vec(&stored)?)
    }

    /// What the record of the removal says.
    pub(crate) fn statement(&self) -> String {
        let (chain, root) = (hex::encode(self.head.hash), STANDARD.encode(self.edge.root()));
        format!("records 1 to {} are removed: chain {chain}, root {root}", self.head.sequence)
    }

    /// Whether an entry is the record of this removal.
    pub(crate) fn is_stated_by(&self, entry: &Entry) -> bool {
        let record = &entry.record;
        record.operation_name == OPERATION
            && record.phase == Phase::Begin
            && record.result_description == self.statement()
    }
}
