//! What can go wrong with a volume.

use custody_envelope::RandomError;
use std::io;

/// A volume operation that was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// Stored bytes do not authenticate. They were altered, moved, cut or replaced by older ones.
    #[error("extent {extent}{} does not authenticate: its stored bytes were altered or lost", Block(*.block))]
    Corrupt {
        /// The extent.
        extent: u32,
        /// The block in it, where it is one block.
        block: Option<u16>,
    },
    /// An extent is older than the volume's anchor knows it to have been.
    #[error("extent {extent} was put back to an earlier state: it is older than the volume's anchor")]
    RolledBack {
        /// The extent.
        extent: u32,
    },
    /// The request reaches beyond the volume.
    #[error("bytes {offset}+{len} lie beyond the volume's {volume_len}")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The volume's length.
        volume_len: u64,
    },
    /// The disk is full. Nothing of the request was applied.
    #[error("the disk that holds the volume is full")]
    NoSpace,
    /// The operating system gave no random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The file system failed.
    #[error("the volume's file failed")]
    Io(#[source] io::Error),
    /// An earlier flush failed: what is on disk is not known until the volume is opened again.
    #[error("an earlier flush failed; the volume is closed until it is opened again")]
    FlushFailed,
}

impl From<io::Error> for VolumeError {
    fn from(e: io::Error) -> Self {
        if e.kind() == io::ErrorKind::StorageFull { Self::NoSpace } else { Self::Io(e) }
    }
}

struct Block(Option<u16>);

impl std::fmt::Display for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |b| write!(f, " block {b}"))
    }
}
