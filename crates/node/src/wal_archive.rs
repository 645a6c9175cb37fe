//! Archives of PostgreSQL's write-ahead log: one sealed object for each file of it, beside the backups.
//!
//! The bytes are in `docs/formats/wal-archive.md`.

use crate::{
    BackupError, BackupStore, Segment, SegmentWriter,
    backup_reader::cut,
    wal_key::{WalKeyEntry, WalKeyId, WalKeyObject},
};
use custody_envelope::{
    CHUNK_HEAD_LEN, CHUNK_LEN, CHUNK_OVERHEAD_LEN, Provider, StreamKey, StreamSealer, checksum, random,
};
use custody_types::{UnixMillis, WrappedKey};
use serde::{Deserialize, Serialize};
use std::{fmt, io};
use zeroize::Zeroizing;

/// The folder of all archives. It is no backup's: an id has no underscore.
pub const WAL_FOLDER: &str = "_wal";
/// The format's version.
const VERSION: u32 = 2;
/// The version before, which is read: its header has the wrapped key in it.
const VERSION_1: u32 = 1;
/// What every object begins with.
const MAGIC: [u8; 8] = *b"custwal1";
/// Bytes before the header: those, and its length.
const HEAD_LEN: usize = MAGIC.len() + 4;
/// Bytes of a header, at most.
const HEADER_LEN_MAX: usize = 16 << 10;
/// Bytes of a file, at most: `initdb --wal-segsize` goes to 1 GiB, and the servers here have 16 MiB.
pub const WAL_FILE_LEN_MAX: u64 = 64 << 20;

/// A file that PostgreSQL archives, by its own name: a segment, the end of one that a promotion cut, a history of
/// timelines, or the mark of a base backup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WalFileName(String);

/// A name that PostgreSQL gives to no file of its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a file of the write-ahead log: 24 upper-case hexadecimal digits, the same with `.partial` or `.XXXXXXXX.backup`, or 8 with `.history`"
)]
pub struct NotAWalFile;

impl WalFileName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NotAWalFile`].
    pub fn parse(name: &str) -> Result<Self, NotAWalFile> {
        let hex = |text: &str, len| {
            text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
        };
        let parts: Vec<_> = name.split('.').collect();
        let good = match *parts.as_slice() {
            [segment] | [segment, "partial"] => hex(segment, 24),
            [timeline, "history"] => hex(timeline, 8),
            [segment, offset, "backup"] => hex(segment, 24) && hex(offset, 8),
            _ => false,
        };
        if good { Ok(Self(name.to_owned())) } else { Err(NotAWalFile) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a whole segment: what can be pruned, and what tells how far an archive reaches.
    #[must_use]
    pub fn is_segment(&self) -> bool {
        self.0.len() == 24
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an archived file is, in clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WalHeader {
    /// Format version.
    version: u32,
    /// The object's random id; part of the associated data of its chunks.
    stream_id: [u8; 16],
    /// The archive, as [`WalArchive::new`] has it.
    pub archive: String,
    /// The file's name.
    pub file: String,
    /// The file's length. What is not stored of it is zeros at its end.
    pub size_bytes: u64,
    /// When PostgreSQL last wrote to the file: what was committed before is in it or in an earlier one.
    pub written_time: UnixMillis,
    /// The key's object. Many files have the same. Version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_id: Option<WalKeyId>,
    /// The key, wrapped by the KEK version of that time. Version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wrapped: Option<WrappedKey>,
}

impl WalHeader {
    fn parse(text: &[u8]) -> Option<Self> {
        let header: Self = serde_json::from_slice(text).ok()?;
        let known = match header.version {
            VERSION => header.key_id.is_some() && header.wrapped.is_none(),
            VERSION_1 => header.key_id.is_none() && header.wrapped.is_some(),
            _ => false,
        };
        known.then_some(header)
    }

    /// Which key the file is sealed under.
    #[must_use]
    pub fn key_id(&self) -> WalKeyId {
        let of_version_1 = || self.wrapped.as_ref().map(WalKeyId::of).unwrap_or_default();
        self.key_id.unwrap_or_else(of_version_1)
    }
}

/// One PostgreSQL's archive.
#[derive(Clone, Copy, Debug)]
pub struct WalArchive<'a> {
    store: &'a dyn BackupStore,
    name: &'a str,
}

/// A file that is being archived.
pub struct WalWriter<'a> {
    object: Box<dyn SegmentWriter + 'a>,
    sealer: StreamSealer,
    index: u64,
    /// The chunk that is being filled, with room for its head.
    chunk: Zeroizing<Vec<u8>>,
}

/// A file that is sealed, and not yet archived.
pub struct SealedWal<'a>(Box<dyn SegmentWriter + 'a>);

/// An archived file whose key is at hand.
pub struct WalReader {
    object: Box<dyn Segment>,
    sealer: StreamSealer,
    binding: [u8; 32],
    index: u64,
    at: u64,
    sealed: Vec<u8>,
}

/// An archived file, before its key is.
pub struct WalObject {
    object: Box<dyn Segment>,
    header: WalHeader,
    wrapped: WrappedKey,
    binding: [u8; 32],
    at: u64,
}

/// A file's key, as far as the first bytes of the file tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalFileKey {
    /// Which.
    pub id: WalKeyId,
    /// How it was wrapped when the file was archived; for version 1 alone, and where it was not re-wrapped since.
    pub wrapped: Option<WrappedKey>,
}

impl<'a> WalArchive<'a> {
    /// The archive of a name: an id, or two with a slash between.
    #[must_use]
    pub fn new(store: &'a dyn BackupStore, name: &'a str) -> Self {
        Self { store, name }
    }

    fn folder(&self) -> String {
        format!("{WAL_FOLDER}/{}", self.name)
    }

    fn path(&self, file: &WalFileName) -> String {
        format!("{}/{file}", self.folder())
    }

    fn keys_folder(&self) -> String {
        format!("{}/keys", self.folder())
    }

    fn key_path(&self, id: WalKeyId) -> String {
        format!("{}/{id}", self.keys_folder())
    }

    /// Stores a key, or one that was wrapped anew: before anything is sealed under it.
    ///
    /// # Errors
    /// The store failed.
    pub fn put_key(&self, id: WalKeyId, key: &WalKeyEntry) -> Result<(), BackupError> {
        let text = WalKeyObject::text(self.name, id, key)?;
        Ok(self.store.put(&self.key_path(id), &text)?)
    }

    /// A stored key; none where there is none of this id.
    ///
    /// # Errors
    /// [`BackupError::Corrupt`], or the store failed.
    pub fn key(&self, id: WalKeyId) -> Result<Option<WalKeyEntry>, BackupError> {
        match self.store.head(&self.key_path(id), HEADER_LEN_MAX) {
            Ok(text) => WalKeyObject::parse(&text, self.name, id).map(Some).ok_or(BackupError::Corrupt),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The ids of all stored keys.
    ///
    /// # Errors
    /// The store failed.
    pub fn keys(&self) -> Result<Vec<WalKeyId>, BackupError> {
        let mut ids: Vec<_> =
            self.store.list(&self.keys_folder())?.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort();
        Ok(ids)
    }

    /// Removes keys that no file is sealed under any more.
    ///
    /// # Errors
    /// The store failed; calling it again goes on.
    pub fn remove_keys(&self, ids: &[WalKeyId]) -> Result<(), BackupError> {
        let paths: Vec<_> = ids.iter().map(|id| self.key_path(*id)).collect();
        Ok(self.store.remove_objects(&paths)?)
    }

    /// Which key a file is sealed under, by its first bytes.
    ///
    /// # Errors
    /// [`BackupError::Missing`], [`BackupError::Corrupt`], or the store failed.
    pub fn file_key(&self, file: &WalFileName) -> Result<WalFileKey, BackupError> {
        let bytes = self.store.head(&self.path(file), HEAD_LEN + HEADER_LEN_MAX).map_err(missing)?;
        let (head, rest) = bytes.split_first_chunk().ok_or(BackupError::Corrupt)?;
        let text = rest.get(..header_len(*head)?).ok_or(BackupError::Corrupt)?;
        let header = self.header(file, text)?;
        Ok(WalFileKey { id: header.key_id(), wrapped: header.wrapped })
    }

    /// Checks that a header is this file's.
    fn header(&self, file: &WalFileName, text: &[u8]) -> Result<WalHeader, BackupError> {
        let own = |header: &WalHeader| {
            header.archive == self.name
                && header.file == file.as_str()
                && header.size_bytes <= WAL_FILE_LEN_MAX
        };
        WalHeader::parse(text).filter(own).ok_or(BackupError::Corrupt)
    }

    /// Begins a file. It is there when [`SealedWal::finish`] returns, and never takes another's place.
    ///
    /// # Errors
    /// [`BackupError::Exists`], or the store failed.
    pub fn create(
        &self,
        file: &WalFileName,
        size_bytes: u64,
        written_time: UnixMillis,
        (key, key_id): (&StreamKey, WalKeyId),
    ) -> Result<WalWriter<'a>, BackupError> {
        let mut stream_id = [0; 16];
        random(&mut stream_id)?;
        let header = WalHeader {
            version: VERSION,
            stream_id,
            archive: self.name.to_owned(),
            file: file.to_string(),
            size_bytes,
            written_time,
            key_id: Some(key_id),
            wrapped: None,
        };
        let header = serde_json::to_vec(&header).map_err(io::Error::from)?;
        let len = u32::try_from(header.len()).map_err(io::Error::other)?;
        let mut object = self.store.create(&self.path(file)).map_err(exists)?;
        for part in [&MAGIC[..], &len.to_le_bytes(), &header] {
            object.write(part)?;
        }
        let sealer = key.sealer(Provider::default(), stream_id);
        let mut writer = WalWriter { object, sealer, index: 0, chunk: Zeroizing::default() };
        writer.begin_chunk();
        writer.chunk.extend_from_slice(&checksum(&header));
        Ok(writer)
    }

    /// Looks at a file.
    ///
    /// # Errors
    /// [`BackupError::Missing`], [`BackupError::Corrupt`], or the store failed.
    pub fn open(&self, file: &WalFileName) -> Result<WalObject, BackupError> {
        let object = self.store.open(&self.path(file)).map_err(missing)?;
        let mut head = [0; HEAD_LEN];
        object.read_exact_at(&mut head, 0).map_err(cut)?;
        let len = header_len(head)?;
        let mut text = vec![0; len];
        object.read_exact_at(&mut text, HEAD_LEN as u64).map_err(cut)?;
        let header = self.header(file, &text)?;
        // A key of version 1 that was re-wrapped has an object as well.
        let stored = self.key(header.key_id())?.map(|key| key.wrapped);
        let wrapped = stored.or_else(|| header.wrapped.clone()).ok_or(BackupError::Corrupt)?;
        Ok(WalObject { object, header, wrapped, binding: checksum(&text), at: (HEAD_LEN + len) as u64 })
    }

    /// Every file, in order of names: the segments of one timeline in the order of the log.
    ///
    /// # Errors
    /// The store failed.
    pub fn files(&self) -> Result<Vec<WalFileName>, BackupError> {
        let mut files: Vec<_> =
            self.store.list(&self.folder())?.iter().filter_map(|n| WalFileName::parse(n).ok()).collect();
        files.sort();
        Ok(files)
    }

    /// Removes what comes before `first`: segments, and the marks and ends that belong to them. Histories of timelines
    /// stay, since later recoveries ask for them. Answers how many went.
    ///
    /// # Errors
    /// The store failed; calling it again goes on.
    pub fn prune(&self, first: &WalFileName) -> Result<usize, BackupError> {
        let before: Vec<_> = self
            .files()?
            .into_iter()
            .filter(|file| !file.0.ends_with(".history") && file.0.get(..24) < first.0.get(..24))
            .map(|file| self.path(&file))
            .collect();
        self.store.remove_objects(&before)?;
        Ok(before.len())
    }

    /// Removes the archive. False where there is none.
    ///
    /// # Errors
    /// The store failed; calling it again goes on.
    pub fn remove(&self) -> Result<bool, BackupError> {
        Ok(self.store.remove(&self.folder())?)
    }
}

/// The length of the header that follows.
fn header_len(head: [u8; HEAD_LEN]) -> Result<usize, BackupError> {
    let [magic @ .., a, b, c, d] = head;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    if magic == MAGIC && len <= HEADER_LEN_MAX { Ok(len) } else { Err(BackupError::Corrupt) }
}

fn missing(e: io::Error) -> BackupError {
    if e.kind() == io::ErrorKind::NotFound { BackupError::Missing } else { e.into() }
}

fn exists(e: io::Error) -> BackupError {
    if e.kind() == io::ErrorKind::AlreadyExists { BackupError::Exists } else { e.into() }
}

macro_rules! opaque_debug {
    ($($name:ident $(<$life:lifetime>)?),*) => {
        $(impl fmt::Debug for $name $(<$life>)? {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        })*
    };
}
opaque_debug!(WalWriter<'_>, SealedWal<'_>, WalReader, WalObject);

impl<'a> WalWriter<'a> {
    fn begin_chunk(&mut self) {
        self.chunk.clear();
        self.chunk.resize(CHUNK_HEAD_LEN, 0);
    }

    fn seal_chunk(&mut self, last: bool) -> Result<(), BackupError> {
        self.sealer.seal(self.index, last, &mut self.chunk)?;
        let len = u32::try_from(self.chunk.len()).map_err(io::Error::other)?;
        self.object.write(&len.to_le_bytes())?;
        self.object.write(&self.chunk)?;
        self.index += 1;
        self.begin_chunk();
        Ok(())
    }

    /// Adds bytes of the file.
    ///
    /// # Errors
    /// The store failed.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), BackupError> {
        while !bytes.is_empty() {
            let room = CHUNK_HEAD_LEN + CHUNK_LEN - self.chunk.len();
            if room == 0 {
                self.seal_chunk(false)?;
                continue;
            }
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.chunk.extend_from_slice(now);
            bytes = rest;
        }
        Ok(())
    }

    /// Seals the last bytes. What is left to do needs no key.
    ///
    /// # Errors
    /// The store failed.
    pub fn seal(mut self) -> Result<SealedWal<'a>, BackupError> {
        self.seal_chunk(true)?;
        Ok(SealedWal(self.object))
    }
}

impl SealedWal<'_> {
    /// When this returns, the file is archived and durable.
    ///
    /// # Errors
    /// [`BackupError::Exists`], or the store failed.
    pub fn finish(self) -> Result<(), BackupError> {
        self.0.finish().map_err(exists)
    }
}

impl WalObject {
    /// What it is.
    #[must_use]
    pub fn header(&self) -> &WalHeader {
        &self.header
    }

    /// Its key, as it is wrapped now.
    #[must_use]
    pub fn wrapped(&self) -> &WrappedKey {
        &self.wrapped
    }

    /// To read what is in it.
    #[must_use]
    pub fn reader(self, key: &StreamKey) -> WalReader {
        WalReader {
            object: self.object,
            sealer: key.sealer(Provider::default(), self.header.stream_id),
            binding: self.binding,
            index: 0,
            at: self.at,
            sealed: Vec::new(),
        }
    }
}

impl WalReader {
    /// The next bytes of the file, into `plain`; false at its end. Parts are authenticated one at a time, so a caller
    /// must discard everything if this fails.
    ///
    /// # Errors
    /// [`BackupError::Corrupt`], or the store failed.
    pub fn next(&mut self, plain: &mut Zeroizing<Vec<u8>>) -> Result<bool, BackupError> {
        if self.index > 0 && self.at == self.object.len() {
            return Ok(false);
        }
        let mut len = [0; 4];
        self.object.read_exact_at(&mut len, self.at).map_err(cut)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > CHUNK_LEN + CHUNK_OVERHEAD_LEN {
            return Err(BackupError::Corrupt);
        }
        self.sealed.resize(len, 0);
        self.object.read_exact_at(&mut self.sealed, self.at + 4).map_err(cut)?;
        self.at += 4 + len as u64;
        let last = self.at == self.object.len();
        self.sealer.open(self.index, last, &self.sealed, plain)?;
        if self.index == 0 {
            // Ties the clear header to the sealed stream.
            if !plain.starts_with(&self.binding) {
                return Err(BackupError::Corrupt);
            }
            plain.drain(..self.binding.len());
        }
        self.index += 1;
        Ok(true)
    }
}
