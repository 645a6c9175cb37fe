//! An NBD server: fixed newstyle negotiation and transmission. Knows nothing of storage: it serves an [`Export`].
//!
//! The protocol is the NetworkBlockDevice project's `doc/proto.md`. A connection is served by a few threads:
//! short requests that have arrived together are answered together, and long ones are done beside each other.

mod connection;
mod export;
mod negotiation;
mod secure_socket;
mod server;
mod stream;
mod transmission;

pub use export::{Export, ExportError, Exports};
pub use server::{Admission, Listener, Server, ServerOptions};

/// A connection that ended other than by its client's wish.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// What came is not NBD, or not what the state of the connection allows.
    #[error("the client broke the protocol: {0}")]
    Protocol(&'static str),
    /// The socket failed or was closed.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
}
