//! The hash chain: each line carries the hash of all before it.

use crate::{Record, checkpoint::Checkpoint, tree::Hash};
use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The hash before the first record.
pub(crate) const GENESIS: [u8; 32] = [0; 32];

/// A record with its place in the chain.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Counts from 1 without gaps.
    pub sequence: u64,
    /// The record.
    pub record: Record,
    /// The same, byte for byte as it is hashed.
    pub text: Box<RawValue>,
    /// SHA-256 over the previous hash, the sequence and the record's bytes, in hexadecimal.
    pub hash: String,
    /// Its leaf in the tree, where it stands at `sequence` less one.
    pub leaf: Hash,
}

/// A line of a journal file that holds a record.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecordLine {
    pub(crate) seq: u64,
    pub(crate) record: Box<RawValue>,
    pub(crate) hash: String,
}

/// A line that holds a checkpoint.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckpointLine {
    pub(crate) checkpoint: Checkpoint,
}

/// The end of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) sequence: u64,
    pub(crate) hash: [u8; 32],
}

/// What a line has besides its record, at most: names, number, hash.
pub(crate) const LINE_FRAME_LEN_MAX: usize = 128;

impl Head {
    pub(crate) const START: Self = Self { sequence: 0, hash: GENESIS };

    /// The head after a record with these bytes.
    pub(crate) fn next(self, record: &str) -> Self {
        let sequence = self.sequence + 1;
        let mut context = Context::new(&SHA256);
        context.update(&self.hash);
        context.update(&sequence.to_le_bytes());
        context.update(record.as_bytes());
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        Self { sequence, hash }
    }

    /// The line of the record that leads to this head, as [`RecordLine`] reads it.
    pub(crate) fn write_line(self, record: &str, text: &mut Vec<u8>) {
        text.extend_from_slice(b"{\"seq\":");
        text.extend_from_slice(self.sequence.to_string().as_bytes());
        text.extend_from_slice(b",\"record\":");
        text.extend_from_slice(record.as_bytes());
        text.extend_from_slice(b",\"hash\":\"");
        let at = text.len();
        text.resize(at + 2 * self.hash.len(), 0);
        // The text is exactly twice as long.
        _ = hex::encode_to_slice(self.hash, text.get_mut(at..).unwrap_or_default());
        text.extend_from_slice(b"\"}\n");
    }
}
