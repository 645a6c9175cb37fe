//! Why no record can be written.

use std::io;

/// The journal cannot take records. Whatever needed one must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuditUnavailable {
    /// Its disk is full. It goes on when there is room.
    #[error("the audit journal's disk is full; nothing is done without its record")]
    Full,
    /// It may not be written to. It goes on when it may.
    #[error("the audit journal's file or file system is read-only; nothing is done without its record")]
    ReadOnly,
    /// Its file is another one than it was. It goes on when that is taken away.
    #[error("the audit journal's file was removed or replaced; nothing is done without its record")]
    Replaced,
    /// Its disk has not answered for two seconds. It goes on when it does.
    #[error("the audit journal's disk does not answer; nothing is done without its record")]
    Hung,
    /// Its disk failed.
    #[error("the audit journal's disk fails; nothing is done without its record")]
    Failed,
    /// Too many wait for it.
    #[error("too many operations wait for the audit journal; nothing is done without its record")]
    Busy,
    /// It cannot be read.
    #[error("the audit journal cannot be read")]
    Unreadable,
    /// The process ends.
    #[error("the audit journal is closed; nothing is done without its record")]
    Closed,
}

impl From<io::Error> for AuditUnavailable {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Self::ReadOnly,
            _ => Self::Failed,
        }
    }
}
