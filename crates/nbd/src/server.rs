//! Listening: Unix sockets as they are, TCP only under TLS.

use crate::{
    ConnectionError, Exports,
    connection::Connection,
    negotiation::{Outcome, negotiate},
    secure_socket::SecureSocket,
    stream::{Patient, Stream},
    transmission::transmit,
};
use parking_lot::Mutex;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustls::ServerConfig;
use std::{
    collections::HashMap,
    fmt, io,
    net::{TcpListener, TcpStream},
    num::NonZero,
    os::unix::net::{UnixListener, UnixStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Says whether a client with this certificate (DER) may attach.
pub type Admission = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// How a server is run.
#[derive(Clone)]
pub struct ServerOptions {
    /// Most connections at once; more are closed at once.
    pub connections_max: usize,
    /// Most threads that serve one connection, if its requests are long and come faster than they are done.
    pub threads_max: usize,
    /// How long a client may take to negotiate.
    pub negotiation_timeout: Duration,
    /// TLS for TCP, and for Unix clients that want it. Clients must show a certificate if it says so.
    pub tls: Option<Arc<ServerConfig>>,
    /// Looks at a TLS client's certificate (DER) and says whether it may attach.
    pub admits: Admission,
}

impl fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerOptions")
            .field("connections_max", &self.connections_max)
            .finish_non_exhaustive()
    }
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            connections_max: 256,
            threads_max: std::thread::available_parallelism().map_or(1, NonZero::get).min(4),
            negotiation_timeout: Duration::from_secs(10),
            tls: None,
            admits: Arc::new(|_| false),
        }
    }
}

/// Where a server listens.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port: every client must start TLS before it is told anything.
    Tcp(TcpListener),
    /// A Unix socket, which its file's permissions protect.
    Unix(UnixListener),
}

/// Bytes of replies that a Unix socket holds for its client. With the system's 104 KiB a server waits for its client in the
/// middle of each long reply: long reads are one and a half times as fast with this (`docs/design/0006-figures.md`).
const SEND_BUFFER_LEN: usize = 512 * 1024;

struct Shared {
    exports: Arc<dyn Exports>,
    options: ServerOptions,
    stopping: AtomicBool,
    next: AtomicU64,
    open: Mutex<HashMap<u64, Stream>>,
}

/// A running server. Dropping it closes every connection and waits for its threads.
pub struct Server {
    shared: Arc<Shared>,
    wake: Listener,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Begins to accept connections.
    ///
    /// # Errors
    /// The listener cannot be shared with the thread.
    pub fn start(listener: Listener, exports: Arc<dyn Exports>, options: ServerOptions) -> io::Result<Self> {
        let wake = match &listener {
            Listener::Tcp(l) => Listener::Tcp(l.try_clone()?),
            Listener::Unix(l) => Listener::Unix(l.try_clone()?),
        };
        let shared = Arc::new(Shared {
            exports,
            options,
            stopping: AtomicBool::new(false),
            next: AtomicU64::new(0),
            open: Mutex::new(HashMap::new()),
        });
        let accepting = shared.clone();
        let thread = std::thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn(move || accept(&accepting, &listener))?;
        Ok(Self { shared, wake, thread: Some(thread) })
    }

    /// Connections open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.open.lock().len()
    }

    fn stop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        for stream in self.shared.open.lock().values() {
            stream.close();
        }
        // A connection of our own wakes the accepting thread.
        match &self.wake {
            Listener::Tcp(l) => _ = l.local_addr().map(TcpStream::connect),
            Listener::Unix(l) => _ = l.local_addr().map(|a| a.as_pathname().map(UnixStream::connect)),
        }
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("listener", &self.wake).finish_non_exhaustive()
    }
}

fn accept(shared: &Arc<Shared>, listener: &Listener) {
    loop {
        let stream = match listener {
            Listener::Tcp(l) => l.accept().map(|(s, _)| {
                _ = s.set_nodelay(true);
                Stream::Tcp(s)
            }),
            Listener::Unix(l) => l.accept().map(|(s, _)| {
                // As much as the system allows, where that is less.
                _ = set_socket_send_buffer_size(&s, SEND_BUFFER_LEN);
                Stream::Unix(s)
            }),
        };
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        match stream {
            Ok(stream) => admit(shared, stream),
            Err(e) => {
                tracing::warn!(error = %e, "nbd accept failed");
                // Out of file descriptors, most likely: others must close first.
                std::thread::park_timeout(Duration::from_millis(50));
            }
        }
    }
}

fn admit(shared: &Arc<Shared>, stream: Stream) {
    let id = shared.next.fetch_add(1, Ordering::Relaxed);
    let Ok(twin) = stream.try_clone() else { return };
    {
        let mut open = shared.open.lock();
        if open.len() >= shared.options.connections_max {
            tracing::warn!(
                connections_max = shared.options.connections_max,
                "nbd connection refused: too many"
            );
            return;
        }
        open.insert(id, twin);
    }
    let of_thread = shared.clone();
    let started = std::thread::Builder::new().name("nbd".to_owned()).spawn(move || {
        if let Err(e) = serve(&of_thread, stream)
            && !matches!(&e, ConnectionError::Io(io) if io.kind() == io::ErrorKind::UnexpectedEof)
        {
            tracing::info!(error = %e, "nbd connection ended");
        }
        of_thread.open.lock().remove(&id);
    });
    if started.is_err() {
        shared.open.lock().remove(&id);
    }
}

fn serve(shared: &Shared, stream: Stream) -> Result<(), ConnectionError> {
    stream.set_timeout(Some(shared.options.negotiation_timeout))?;
    let control = stream.try_clone()?;
    let local = matches!(stream, Stream::Unix(_));
    let connection = Connection::new(Box::new(Patient::new(stream.try_clone()?)), Box::new(stream));
    let tls = shared.options.tls.as_ref();
    let mut threads_max = shared.options.threads_max;
    let mut outcome = negotiate(connection, &*shared.exports, local, tls.is_some(), true)?;
    if let Outcome::StartTls(connection) = outcome {
        if connection.input.ready() > 0 {
            return Err(ConnectionError::Protocol("data before the TLS handshake"));
        }
        let config = tls.ok_or(ConnectionError::Protocol("TLS is not offered"))?;
        let secure = SecureSocket::accept(config.clone(), &control)?;
        if !secure.certificate().is_some_and(|c| (shared.options.admits)(&c)) {
            return Err(ConnectionError::Protocol("the client's certificate is not one that may attach"));
        }
        // A TLS session is one state for both directions: whoever waits for a request holds it.
        threads_max = 1;
        let connection = Connection::new(Box::new(secure.clone()), Box::new(secure));
        outcome = negotiate(connection, &*shared.exports, true, false, false)?;
    }
    if let Outcome::Transmit(connection, export, mode) = outcome {
        control.set_timeout(None)?;
        transmit(connection, &*export, mode, threads_max, &|| control.close())?;
    }
    Ok(())
}
