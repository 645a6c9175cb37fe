//! The keys of an archived log: one object for each, which many files are sealed under, so that a key is re-wrapped without them.

use custody_envelope::{RandomError, checksum, random};
use custody_types::WrappedKey;
use serde::{Deserialize, Serialize};
use std::{fmt, io, str::FromStr};

/// The format's version.
const VERSION: u32 = 1;
const ID_LEN: usize = 16;

/// Which key of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WalKeyId([u8; ID_LEN]);

/// A text that is no id.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("must be 32 lower-case hexadecimal digits")]
pub struct NotAWalKeyId;

impl WalKeyId {
    /// A new one.
    ///
    /// # Errors
    /// The operating system gave no random bytes.
    pub fn new() -> Result<Self, RandomError> {
        let mut id = [0; ID_LEN];
        random(&mut id)?;
        Ok(Self(id))
    }

    /// That of a key which files of version 1 have in their headers: by what it was wrapped as.
    #[must_use]
    pub fn of(wrapped: &WrappedKey) -> Self {
        Self(checksum(&wrapped.ciphertext).first_chunk().copied().unwrap_or_default())
    }
}

impl fmt::Display for WalKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for WalKeyId {
    type Err = NotAWalKeyId;

    fn from_str(text: &str) -> Result<Self, NotAWalKeyId> {
        let mut id = [0; ID_LEN];
        hex::decode_to_slice(text, &mut id).map_err(|_| NotAWalKeyId)?;
        // One text for each id.
        if Self(id).to_string() == text { Ok(Self(id)) } else { Err(NotAWalKeyId) }
    }
}

impl TryFrom<String> for WalKeyId {
    type Error = NotAWalKeyId;

    fn try_from(text: String) -> Result<Self, NotAWalKeyId> {
        text.parse()
    }
}

impl From<WalKeyId> for String {
    fn from(id: WalKeyId) -> Self {
        id.to_string()
    }
}

/// As it is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WalKeyObject {
    version: u32,
    archive: String,
    key_id: WalKeyId,
    managed_identity: String,
    wrapped: WrappedKey,
}

/// A key of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalKeyEntry {
    /// The identity that it was wrapped as. Empty for what version 1 has in its headers.
    pub managed_identity: String,
    /// It, wrapped.
    pub wrapped: WrappedKey,
}

impl WalKeyObject {
    pub(crate) fn text(archive: &str, key_id: WalKeyId, key: &WalKeyEntry) -> io::Result<Vec<u8>> {
        let WalKeyEntry { managed_identity, wrapped } = key.clone();
        let object =
            Self { version: VERSION, archive: archive.to_owned(), key_id, managed_identity, wrapped };
        Ok(serde_json::to_vec(&object)?)
    }

    /// The key of an object that is this archive's and has this id.
    pub(crate) fn parse(text: &[u8], archive: &str, key_id: WalKeyId) -> Option<WalKeyEntry> {
        let object: Self = serde_json::from_slice(text).ok()?;
        let own = object.version == VERSION && object.archive == archive && object.key_id == key_id;
        own.then_some(WalKeyEntry { managed_identity: object.managed_identity, wrapped: object.wrapped })
    }
}
