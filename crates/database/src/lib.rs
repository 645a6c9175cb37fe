//! Supervises PostgreSQL on attached volumes: attach, format once, initdb once, run, stop at once, detach.
//!
//! Blocking: callers use a thread of their own. Everything is done through programs that Debian packages; nothing
//! here needs `unsafe`.

mod attachment;
mod command;
mod filesystem;
mod geometry;
mod growth;
mod instance;
mod mark;
mod postgres;
mod recovery;
mod whole_file;

pub use attachment::{Attachment, Source};
pub use command::CommandError;
pub use instance::{Instance, InstanceSpec};
pub use postgres::{Installation, NoPostgres};
pub use recovery::{Recovery, RecoveryProgress};

/// An instance that could not be brought to the state wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The volume was not served as a block device in time.
    #[error("volume `{0}` could not be attached in time")]
    Attach(String),
    /// The volume holds something that is not ours.
    #[error("volume `{0}` holds neither zeros nor a file system of ours; it is left as it is")]
    Foreign(String),
    /// PostgreSQL did not begin to serve.
    #[error("PostgreSQL did not begin to serve: {0}")]
    NotServing(String),
    /// The moment that it shall recover to cannot be had.
    #[error("the database cannot be recovered to the time that was asked for: {0}")]
    Recovery(String),
    /// The file system failed.
    #[error("the database node's file system failed: {0}")]
    Io(#[from] std::io::Error),
}
