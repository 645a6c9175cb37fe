//! Signed checkpoints: Ed25519 over the head of the chain.

use crate::chain::Head;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// A signed statement: "the record with this number has this hash".
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) seq: u64,
    pub(crate) hash: String,
    pub(crate) signature: String,
}

fn statement(head: Head) -> Vec<u8> {
    format!("custody audit checkpoint v1\n{}\n{}\n", head.sequence, hex::encode(head.hash)).into_bytes()
}

impl Checkpoint {
    pub(crate) fn holds(&self, head: Head, public: &[u8]) -> bool {
        self.seq == head.sequence
            && self.hash == hex::encode(head.hash)
            && hex::decode(&self.signature)
                .is_ok_and(|s| UnparsedPublicKey::new(&ED25519, public).verify(&statement(head), &s).is_ok())
    }
}

/// The journal's signing key.
pub(crate) struct Signer(Ed25519KeyPair);

impl Signer {
    /// Loads the key, or makes it; writes the public half beside it as `checkpoint.pub`.
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
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|_| bad())?;
        fs::write(dir.join("checkpoint.pub"), hex::encode(pair.public_key().as_ref()) + "\n")?;
        Ok(Self(pair))
    }

    pub(crate) fn sign(&self, head: Head) -> Checkpoint {
        let signature = hex::encode(self.0.sign(&statement(head)).as_ref());
        Checkpoint { seq: head.sequence, hash: hex::encode(head.hash), signature }
    }
}
