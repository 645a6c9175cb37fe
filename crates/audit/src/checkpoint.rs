//! Signed checkpoints, <https://c2sp.org/tlog-checkpoint>: a note of how many records the tree has, and of its root.

use crate::{chain::Head, tree::Hash};
use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use custody_note::{NoteError, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// How many records a tree has, and its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeHead {
    /// Records.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
}

/// The name of a trail is that of its key: no two trails have the same.
fn name(public: &[u8; 32]) -> String {
    let hash = hex::encode(digest(&SHA256, public));
    format!("custody-audit-{}", hash.get(..8).unwrap_or_default())
}

/// The public half of a trail's key, of its 32 bytes.
///
/// # Errors
/// They are not 32.
pub fn trail_key(public: &[u8]) -> Result<VerifyingKey, NoteError> {
    let public: [u8; 32] = public.try_into().map_err(|_| NoteError::Key)?;
    VerifyingKey::new(&name(&public), public)
}

impl TreeHead {
    /// What a checkpoint states; whether it is signed is for who believes it to check ([`TreeHead::open`]).
    #[must_use]
    pub fn stated(note: &str) -> Option<Self> {
        let mut lines = note.lines().skip(1);
        let size = lines.next()?.parse().ok()?;
        let root = STANDARD.decode(lines.next()?).ok()?.try_into().ok()?;
        Some(Self { size, root })
    }

    fn text(&self, origin: &str) -> String {
        format!("{origin}\n{}\n{}\n", self.size, STANDARD.encode(self.root))
    }

    /// Of a checkpoint that the trail's key has signed, and witnesses may have cosigned.
    ///
    /// # Errors
    /// It has not, or it is no checkpoint of this trail.
    pub fn open(note: &str, key: &VerifyingKey) -> Result<Self, NoteError> {
        let text = key.open_among(note)?;
        let origin = text.lines().next().ok_or(NoteError::Malformed)?;
        let head = Self::stated(text).ok_or(NoteError::Malformed)?;
        // Written as we write it: nothing is read that is not there.
        if origin == key.name() && text == head.text(origin) { Ok(head) } else { Err(NoteError::Malformed) }
    }
}

/// A checkpoint as a line holds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Checkpoint {
    /// A signed note.
    Note(String),
    /// As format 1 had it: a signature over the head of the chain.
    OfChain(ChainCheckpoint),
}

/// A signed statement: "the record with this number has this hash".
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChainCheckpoint {
    seq: u64,
    hash: String,
    signature: String,
}

impl ChainCheckpoint {
    pub(crate) fn holds(&self, head: Head, public: &[u8]) -> bool {
        let hash = hex::encode(head.hash);
        let statement = format!("custody audit checkpoint v1\n{}\n{hash}\n", head.sequence);
        self.seq == head.sequence
            && self.hash == hash
            && hex::decode(&self.signature).is_ok_and(|s| {
                UnparsedPublicKey::new(&ED25519, public).verify(statement.as_bytes(), &s).is_ok()
            })
    }
}

/// The journal's signing key.
pub(crate) struct Signer(SigningKey);

impl Signer {
    /// Loads the key, or makes it; writes the public half beside it as `checkpoint.pub`, and as other readers of such logs take
    /// it as `checkpoint.vkey`.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join("checkpoint.key");
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "checkpoint.key is not an Ed25519 key");
        let pkcs8 = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let key = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new())
                    .map_err(|_| bad())?;
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
                file.write_all(key.as_ref())?;
                file.sync_all()?;
                key.as_ref().to_vec()
            }
            Err(e) => return Err(e),
        };
        let mut public = [0; 32];
        let key = SigningKey::from_pkcs8(&pkcs8, |half| {
            public = *half;
            name(half)
        });
        let key = key.map_err(|_| bad())?;
        let halves = [("pub", hex::encode(public)), ("vkey", key.verifying_key().to_string())];
        for (kind, text) in halves {
            let (path, text) = (dir.join(format!("checkpoint.{kind}")), text + "\n");
            // Not written again: the disk may be full, which a start gets over.
            if fs::read_to_string(&path).map_or(true, |there| there != text) {
                fs::write(&path, text)?;
            }
        }
        Ok(Self(key))
    }

    pub(crate) fn key(&self) -> &VerifyingKey {
        self.0.verifying_key()
    }

    pub(crate) fn sign(&self, head: TreeHead) -> String {
        self.0.sign(&head.text(self.key().name()))
    }
}
