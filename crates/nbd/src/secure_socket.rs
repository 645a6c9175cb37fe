//! A TLS session over a connection's socket.

use crate::{ConnectionError, stream::Stream};
use parking_lot::Mutex;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::{
    io::{self, Read, Write},
    sync::Arc,
};

/// Both halves of a connection under TLS. They share the session, so only one thread may use them.
#[derive(Clone)]
pub(crate) struct SecureSocket(Arc<Mutex<StreamOwned<ServerConnection, Stream>>>);

impl SecureSocket {
    /// Shakes hands as the server.
    pub(crate) fn accept(config: Arc<ServerConfig>, socket: &Stream) -> Result<Self, ConnectionError> {
        let mut socket = socket.try_clone()?;
        let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        Ok(Self(Arc::new(Mutex::new(StreamOwned::new(session, socket)))))
    }

    /// The client's certificate (DER).
    pub(crate) fn certificate(&self) -> Option<Vec<u8>> {
        self.0.lock().conn.peer_certificates()?.first().map(|c| c.to_vec())
    }
}

impl Read for SecureSocket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.lock().read(out)
    }
}

impl Write for SecureSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.lock().write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().flush()
    }
}
