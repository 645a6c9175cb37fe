//! Finding a store that is not as it was left: rows altered, added or removed, or all of it put back to an earlier state.
//!
//! Rows are summed: each is hashed under a key, and the hashes are added modulo 2^256, so that a commit costs its own
//! rows only (MSet-Add-Hash of Clarke, Devadas, van Dijk, Gassend and Suh, "Incremental Multiset Hash Functions and
//! Their Application to Memory Integrity Checking", ASIACRYPT 2003). The sum is never shown: what is stored is a MAC over
//! it and over the number of the commit. That number stands once more in the anchor, a file outside the store, which is
//! written after each commit. A store behind its anchor was put back.

use crate::{StoreError, anchor::Anchor, row};
use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::Path};

const TABLE: &str = "integrity";
const STATE: &str = "state";

/// Where the state is stored. It is no part of the sum.
pub(crate) fn state_row() -> Vec<u8> {
    row(TABLE, STATE)
}

/// As it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    commit: u64,
    /// The MAC over the commit's number and the sum, in hexadecimal.
    tag: String,
}

/// A sum of hashes of rows, modulo 2^256: least significant part first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum([u64; 4]);

impl Sum {
    fn of_tag(tag: &hmac::Tag) -> Self {
        let mut parts = [0; 4];
        for (part, bytes) in parts.iter_mut().zip(tag.as_ref().chunks_exact(8)) {
            *part = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        }
        Self(parts)
    }

    fn plus(self, other: Self) -> Self {
        let mut carry = false;
        let mut parts = [0; 4];
        for ((part, a), b) in parts.iter_mut().zip(self.0).zip(other.0) {
            let (sum, over) = a.overflowing_add(b);
            let (sum, over_again) = sum.overflowing_add(u64::from(carry));
            (*part, carry) = (sum, over | over_again);
        }
        Self(parts)
    }

    fn minus(self, other: Self) -> Self {
        // -x = !x + 1 in two's complement.
        self.plus(Self(other.0.map(|part| !part))).plus(Self([1, 0, 0, 0]))
    }

    fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, part) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&part.to_le_bytes());
        }
        bytes
    }
}

/// The sum of a store's rows, kept as commits change it.
pub(crate) struct Integrity {
    rows: hmac::Key,
    tags: hmac::Key,
    anchor: Anchor,
    commit: u64,
    sum: Sum,
}

/// A commit's effect on the sum, to be taken over once it is on disk.
pub(crate) struct Next {
    commit: u64,
    sum: Sum,
}

/// Two keys of one, for different purposes.
fn keys(key: &[u8; 32]) -> (hmac::Key, hmac::Key) {
    let master = hmac::Key::new(hmac::HMAC_SHA256, key);
    let derived = |label: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&master, label).as_ref());
    (derived(b"custody store: rows"), derived(b"custody store: state"))
}

fn hash(rows: &hmac::Key, row: &[u8], value: &[u8]) -> Sum {
    let mut context = hmac::Context::with_key(rows);
    context.update(&(row.len() as u64).to_le_bytes());
    context.update(row);
    context.update(value);
    Sum::of_tag(&context.sign())
}

fn tag(tags: &hmac::Key, commit: u64, sum: Sum) -> String {
    let mut context = hmac::Context::with_key(tags);
    context.update(b"state");
    context.update(&commit.to_le_bytes());
    context.update(&sum.to_bytes());
    context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Integrity {
    /// Begins with a store as it is.
    pub(crate) fn begin(db: &sled::Db, key: &[u8; 32], anchor: &Path) -> Result<Self, StoreError> {
        let (rows, tags) = keys(key);
        let sum = sum_of(db, &rows)?;
        let path = anchor;
        let anchor = Anchor::open(path, &tags)?;
        if !anchor.is_empty()? {
            return Err(StoreError::AnchorTaken(path.to_owned()));
        }
        Ok(Self { rows, tags, anchor, commit: 0, sum })
    }

    /// Checks a store against its state and its anchor. `accepted` is the number of an earlier commit that is meant.
    pub(crate) fn check(
        db: &sled::Db,
        key: &[u8; 32],
        anchor: &Path,
        accepted: Option<u64>,
    ) -> Result<Self, StoreError> {
        let (rows, tags) = keys(key);
        let stored = db.get(state_row())?.ok_or(StoreError::Altered)?;
        let stored: Stored = serde_json::from_slice(&stored).map_err(|_| StoreError::Altered)?;
        let sum = sum_of(db, &rows)?;
        if tag(&tags, stored.commit, sum) != stored.tag {
            return Err(StoreError::Altered);
        }
        let mut anchor = Anchor::open(anchor, &tags)?;
        let commit = stored.commit;
        let known = anchor.commit();
        // The anchor is written after the commit: a process that was killed between leaves it one behind.
        let follows = known.map_or(commit <= 1, |known| known == commit || known + 1 == commit);
        if !follows && accepted != Some(commit) {
            return Err(match known {
                Some(anchor) if commit < anchor => StoreError::RolledBack { store: commit, anchor },
                Some(_) | None => StoreError::AnchorLost { path: anchor.path().to_owned(), store: commit },
            });
        }
        if known != Some(commit) {
            anchor.write(commit, &tags)?;
        }
        Ok(Self { rows, tags, anchor, commit, sum })
    }

    /// What a commit makes of the sum, and the row that says so.
    pub(crate) fn next(
        &self,
        db: &sled::Db,
        changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    ) -> Result<(Next, Vec<u8>), StoreError> {
        let mut sum = self.sum;
        for (row, value) in changes {
            if let Some(old) = db.get(row)? {
                sum = sum.minus(hash(&self.rows, row, &old));
            }
            if let Some(value) = value {
                sum = sum.plus(hash(&self.rows, row, value));
            }
        }
        let commit = self.commit + 1;
        let stored = Stored { commit, tag: tag(&self.tags, commit, sum) };
        let stored = serde_json::to_vec(&stored).map_err(|_| StoreError::Altered)?;
        Ok((Next { commit, sum }, stored))
    }

    /// Takes over what is on disk now, and tells the anchor.
    pub(crate) fn done(&mut self, next: &Next) -> Result<(), StoreError> {
        (self.commit, self.sum) = (next.commit, next.sum);
        Ok(self.anchor.write(next.commit, &self.tags)?)
    }
}

/// The sum over all rows.
fn sum_of(db: &sled::Db, rows: &hmac::Key) -> Result<Sum, StoreError> {
    let state = state_row();
    let mut sum = Sum::default();
    for entry in db.iter() {
        let (row, value) = entry?;
        if row != state {
            sum = sum.plus(hash(rows, &row, &value));
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_can_be_taken_away() {
        let (rows, _) = keys(&[7; 32]);
        let some: Vec<Sum> = (0..200u8).map(|n| hash(&rows, &[n], b"value")).collect();
        let all = some.iter().fold(Sum::default(), |sum, h| sum.plus(*h));
        let less = some.iter().skip(1).fold(all, |sum, h| sum.minus(*h));
        assert_eq!(less, some[0]);
        assert_eq!(Sum::default().minus(Sum([1, 0, 0, 0])), Sum([u64::MAX; 4]));
        assert_eq!(Sum([u64::MAX; 4]).plus(Sum([1, 0, 0, 0])), Sum::default());
        // A row's end and its value's beginning are not the same.
        assert_ne!(hash(&rows, b"ab", b"c"), hash(&rows, b"a", b"bc"));
    }
}
