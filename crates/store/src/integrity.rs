//! Finding a store that is not as it was left: rows altered, added or removed, or all of it put back to an earlier state.
//!
//! The store is in parts: of each table what has to do with one vault ([`part_of`]). The rows of a part are summed: each is
//! hashed under a key, and the hashes are added modulo 2^256, so that a commit costs its own rows only (MSet-Add-Hash of
//! Clarke, Devadas, van Dijk, Gassend and Suh, "Incremental Multiset Hash Functions and Their Application to Memory
//! Integrity Checking", ASIACRYPT 2003). The sum is never shown: what is stored of a part is a MAC over it, in a row of its
//! own, and those rows are summed in their turn. Over that sum and the number of the commit is the MAC of the whole store. So
//! a start reads a row for each part, and a part is summed when something in it is first read. The number of the commit stands
//! once more in the anchor, a file outside the store, which is written after each commit. A store behind its anchor was put
//! back.

use crate::{StoreError, anchor::Anchor, row, sum::Sum};
use aws_lc_rs::{constant_time, hmac};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

const TABLE: &str = "integrity";
const STATE: &str = "state";
const PARTS: &str = "parts/";
/// The format that knows of parts; before it the MAC was over the sum of all rows.
const FORMAT: u8 = 2;

/// Where the state is stored. It is no part of any sum.
pub(crate) fn state_row() -> Vec<u8> {
    row(TABLE, STATE)
}

/// Whether a row is one of those that keep the integrity of the others.
pub(crate) fn is_own(row: &[u8]) -> bool {
    row.strip_prefix(TABLE.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
}

/// What a row is summed with: of its table, what begins with the same two segments (`vaults/NAME/`); where its key has no
/// more than two, all such rows of the table.
pub(crate) fn part_of(row: &[u8]) -> &[u8] {
    let Some(table) = row.iter().position(|b| *b == 0) else { return row };
    let mut slashes = row.iter().enumerate().skip(table + 1).filter(|(_, b)| **b == b'/');
    let end = slashes.nth(1).map_or(table, |(at, _)| at);
    row.get(..=end).unwrap_or(row)
}

fn part_row(part: &[u8]) -> Vec<u8> {
    [&*row(TABLE, PARTS), part].concat()
}

/// As it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    commit: u64,
    /// The MAC over the commit's number and the sum, in hexadecimal.
    tag: String,
    #[serde(default)]
    format: u8,
}

/// The keys of rows and of tags.
pub(crate) struct Keys {
    rows: hmac::Key,
    tags: hmac::Key,
}

impl Keys {
    /// Two keys of one, for different purposes.
    fn new(key: &[u8; 32]) -> Self {
        let master = hmac::Key::new(hmac::HMAC_SHA256, key);
        let derived = |label: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&master, label).as_ref());
        Self { rows: derived(b"custody store: rows"), tags: derived(b"custody store: state") }
    }

    pub(crate) fn of_row(&self, row: &[u8], value: &[u8]) -> Sum {
        Sum::of_row(&self.rows, row, value)
    }

    /// What is stored of a part; nothing of one without rows.
    fn of_part(&self, part: &[u8], sum: Sum) -> Option<Vec<u8>> {
        let mut context = hmac::Context::with_key(&self.tags);
        context.update(b"part");
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
        context.update(&sum.to_bytes());
        (sum != Sum::ZERO).then(|| context.sign().as_ref().to_vec())
    }

    fn of_store(&self, format: u8, commit: u64, sum: Sum) -> String {
        let mut context = hmac::Context::with_key(&self.tags);
        context.update(if format == FORMAT { b"parts" } else { b"state" });
        context.update(&commit.to_le_bytes());
        context.update(&sum.to_bytes());
        context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn sums(&self, db: &sled::Db) -> Result<HashMap<Vec<u8>, Sum>, StoreError> {
        let mut sums: HashMap<Vec<u8>, Sum> = HashMap::new();
        for entry in db.iter() {
            let (row, value) = entry?;
            if !is_own(&row) {
                let hash = self.of_row(&row, &value);
                let part = part_of(&row);
                match sums.get_mut(part) {
                    Some(sum) => *sum = sum.plus(hash),
                    None => _ = sums.insert(part.to_vec(), hash),
                }
            }
        }
        Ok(sums)
    }
}

/// What is known of a part.
#[derive(Debug, Default)]
struct Part {
    /// As it is stored; none of one without rows.
    tag: Option<Vec<u8>>,
    /// Once its rows have been read.
    sum: Option<Sum>,
}

/// The sums of a store's parts, kept as commits change them.
pub(crate) struct Integrity {
    keys: Arc<Keys>,
    anchor: Anchor,
    commit: u64,
    /// The sum of the parts' rows.
    root: Sum,
    parts: HashMap<Vec<u8>, Part>,
    /// All parts have been read: of one that is not known there are no rows.
    complete: bool,
    /// The store has yet to have the parts' rows.
    unwritten: bool,
}

/// A commit's effect, to be taken over once it is on disk.
pub(crate) struct Next {
    commit: u64,
    root: Sum,
    parts: Vec<(Vec<u8>, Part)>,
}

/// Changes of rows: the new value, or none.
pub(crate) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

impl Integrity {
    /// Begins with a store as it is.
    pub(crate) fn begin(db: &sled::Db, key: &[u8; 32], path: &Path) -> Result<Self, StoreError> {
        let keys = Keys::new(key);
        let anchor = Anchor::open(path, &keys.tags)?;
        if !anchor.is_empty()? {
            return Err(StoreError::AnchorTaken(path.to_owned()));
        }
        let sums = keys.sums(db)?;
        Ok(Self::of_sums(keys, anchor, 0, sums))
    }

    /// Of a store all of whose rows have been read, and which has no rows of parts yet.
    fn of_sums(keys: Keys, anchor: Anchor, commit: u64, sums: HashMap<Vec<u8>, Sum>) -> Self {
        let (mut root, mut parts) = (Sum::ZERO, HashMap::new());
        for (part, sum) in sums {
            let tag = keys.of_part(&part, sum);
            if let Some(tag) = &tag {
                root = root.plus(keys.of_row(&part_row(&part), tag));
            }
            parts.insert(part, Part { tag, sum: Some(sum) });
        }
        Self { keys: Arc::new(keys), anchor, commit, root, parts, complete: true, unwritten: true }
    }

    /// Checks a store against its state and its anchor; what is in its parts is checked when they are read. `accepted` is the
    /// number of an earlier commit that is meant.
    pub(crate) fn check(
        db: &sled::Db,
        key: &[u8; 32],
        anchor: &Path,
        accepted: Option<u64>,
    ) -> Result<Self, StoreError> {
        let keys = Keys::new(key);
        let stored = db.get(state_row())?.ok_or(StoreError::Altered)?;
        let stored: Stored = serde_json::from_slice(&stored).map_err(|_| StoreError::Altered)?;
        let commit = stored.commit;
        let holds = |sum| keys.of_store(stored.format, commit, sum) == stored.tag;
        let anchor = Anchor::open(anchor, &keys.tags)?;
        let mut checked = if stored.format == FORMAT {
            let (root, parts) = read_parts(db, &keys)?;
            if !holds(root) {
                return Err(StoreError::Altered);
            }
            let (complete, unwritten) = (false, false);
            Self { keys: Arc::new(keys), anchor, commit, root, parts, complete, unwritten }
        } else {
            let sums = keys.sums(db)?;
            let strange = !read_parts(db, &keys)?.1.is_empty();
            if strange || !holds(sums.values().fold(Sum::ZERO, |all, sum| all.plus(*sum))) {
                return Err(StoreError::Altered);
            }
            Self::of_sums(keys, anchor, commit, sums)
        };
        let known = checked.anchor.commit();
        // The anchor is written after the commit: a process that was killed between leaves it one behind.
        let follows = known.map_or(commit <= 1, |known| known == commit || known + 1 == commit);
        if !follows && accepted != Some(commit) {
            return Err(match known {
                Some(anchor) if commit < anchor => StoreError::RolledBack { store: commit, anchor },
                Some(_) | None => {
                    StoreError::AnchorLost { path: checked.anchor.path().to_owned(), store: commit }
                }
            });
        }
        if known != Some(commit) {
            checked.anchor.write(commit, &checked.keys.tags)?;
        }
        Ok(checked)
    }

    pub(crate) fn keys(&self) -> Arc<Keys> {
        self.keys.clone()
    }

    /// Whether parts' rows have yet to be written: the store is of the format before.
    pub(crate) fn is_unwritten(&self) -> bool {
        self.unwritten
    }

    /// Whether what is in a part has been checked.
    pub(crate) fn is_checked(&self, part: &[u8]) -> bool {
        self.parts.get(part).map_or(self.complete, |part| part.sum.is_some())
    }

    /// Parts that have not been checked, of those that begin so.
    pub(crate) fn unchecked(&self, prefix: &[u8]) -> Vec<Vec<u8>> {
        let unchecked =
            self.parts.iter().filter(|(name, part)| part.sum.is_none() && name.starts_with(prefix));
        unchecked.map(|(name, _)| name.clone()).collect()
    }

    /// All rows of all parts have been looked at.
    pub(crate) fn complete(&mut self) {
        self.complete = true;
    }

    /// Takes in what a part's rows come to, or finds that they are not those that were committed.
    pub(crate) fn settle(&mut self, name: &[u8], sum: Sum) -> Result<(), StoreError> {
        let stored = self.parts.get(name).and_then(|part| part.tag.as_ref());
        let same = match (stored, self.keys.of_part(name, sum)) {
            (Some(stored), Some(tag)) => constant_time::verify_slices_are_equal(stored, &tag).is_ok(),
            (None, None) => true,
            _ => false,
        };
        if !same {
            return Err(StoreError::Altered);
        }
        self.parts.entry(name.to_vec()).or_default().sum = Some(sum);
        Ok(())
    }

    /// What a commit makes of the sums, and the rows that say so. Its parts have been checked.
    pub(crate) fn next(&self, db: &sled::Db, changes: &Changes) -> Result<(Next, Changes), StoreError> {
        let mut sums: BTreeMap<&[u8], Sum> = BTreeMap::new();
        for (row, value) in changes {
            let part = part_of(row);
            let known = self.parts.get(part).and_then(|part| part.sum).unwrap_or_default();
            let sum = sums.entry(part).or_insert(known);
            if let Some(old) = db.get(row)? {
                *sum = sum.minus(self.keys.of_row(row, &old));
            }
            if let Some(value) = value {
                *sum = sum.plus(self.keys.of_row(row, value));
            }
        }
        let mut root = self.root;
        let unwritten = self.parts.iter().filter(|_| self.unwritten);
        let mut rows: Changes = unwritten.map(|(name, part)| (part_row(name), part.tag.clone())).collect();
        let mut parts = Vec::with_capacity(sums.len());
        for (name, sum) in sums {
            let row = part_row(name);
            if let Some(tag) = self.parts.get(name).and_then(|part| part.tag.as_ref()) {
                root = root.minus(self.keys.of_row(&row, tag));
            }
            let tag = self.keys.of_part(name, sum);
            if let Some(tag) = &tag {
                root = root.plus(self.keys.of_row(&row, tag));
            }
            rows.insert(row, tag.clone());
            parts.push((name.to_vec(), Part { tag, sum: Some(sum) }));
        }
        let commit = self.commit + 1;
        let stored = Stored { commit, tag: self.keys.of_store(FORMAT, commit, root), format: FORMAT };
        let stored = serde_json::to_vec(&stored).map_err(|_| StoreError::Altered)?;
        rows.insert(state_row(), Some(stored));
        Ok((Next { commit, root, parts }, rows))
    }

    /// Takes over what is on disk now, and tells the anchor.
    pub(crate) fn done(&mut self, next: Next) -> Result<(), StoreError> {
        (self.commit, self.root) = (next.commit, next.root);
        self.parts.extend(next.parts);
        self.unwritten = false;
        Ok(self.anchor.write(next.commit, &self.keys.tags)?)
    }
}

/// The parts' rows, and their sum.
fn read_parts(db: &sled::Db, keys: &Keys) -> Result<(Sum, HashMap<Vec<u8>, Part>), StoreError> {
    let prefix = part_row(&[]);
    let (mut root, mut parts) = (Sum::ZERO, HashMap::new());
    for entry in db.scan_prefix(&prefix) {
        let (row, tag) = entry?;
        root = root.plus(keys.of_row(&row, &tag));
        let name = row.get(prefix.len()..).unwrap_or_default();
        parts.insert(name.to_vec(), Part { tag: Some(tag.to_vec()), sum: None });
    }
    Ok((root, parts))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The state of a store as the format before had it: one sum over all rows.
    pub(crate) fn write_first_format(db: &sled::Db, key: &[u8; 32], anchor: &Path, commit: u64) {
        let keys = Keys::new(key);
        let sum = keys.sums(db).unwrap().values().fold(Sum::ZERO, |all, sum| all.plus(*sum));
        let tag = keys.of_store(0, commit, sum);
        db.insert(state_row(), format!(r#"{{"commit":{commit},"tag":"{tag}"}}"#).as_bytes()).unwrap();
        db.flush().unwrap();
        Anchor::open(anchor, &keys.tags).unwrap().write(commit, &keys.tags).unwrap();
    }

    #[test]
    fn a_vaults_rows_of_a_table_are_a_part() {
        for (key, part) in [
            ("vaults/v/keys/k", "t\0vaults/v/"),
            ("vaults/v/", "t\0vaults/v/"),
            ("vaults/v", "t\0"),
            ("system", "t\0"),
            ("", "t\0"),
            ("storageNodes/n volumes/v/x", "t\0storageNodes/n volumes/"),
        ] {
            assert_eq!(part_of(&row("t", key)), part.as_bytes(), "{key}");
        }
        assert!(is_own(&state_row()) && is_own(&part_row(b"t\0")) && !is_own(&row("integrities", "x")));
    }
}
