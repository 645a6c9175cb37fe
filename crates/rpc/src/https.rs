//! Plain HTTPS beside gRPC, for clients of other people's APIs: TLS, limits, graceful end.

use crate::{
    server::write_whole,
    tls::{Credentials, TlsError},
};
use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use std::{convert::Infallible, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

/// Connections at once; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 1024;
/// How long a client may take over the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take over a request's headers, and how long a connection may be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// After an error that `accept` may answer again at once (no more file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// An HTTPS server that could not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpsError {
    /// The address cannot be used.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A server that listens and does not yet serve.
pub struct HttpsServer {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl HttpsServer {
    /// Listens with a service's certificate.
    ///
    /// # Errors
    /// See [`HttpsError`].
    pub async fn bind(address: SocketAddr, credentials: &Credentials) -> Result<Self, HttpsError> {
        let mut tls = (*credentials.public_server()?).clone();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener =
            TcpListener::bind(address).await.map_err(|source| HttpsError::Listen { address, source })?;
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(tls)) })
    }

    /// Writes the listening address to a file, whole or not at all.
    ///
    /// # Errors
    /// See [`HttpsError`].
    pub fn announce(&self, file: Option<&Path>) -> Result<(), HttpsError> {
        let Some(file) = file else { return Ok(()) };
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let address =
            self.listener.local_addr().map_err(|source| HttpsError::Listen { address: any, source })?;
        write_whole(file, &address.to_string()).map_err(|source| HttpsError::Listen { address, source })
    }

    /// Serves for as long as the future is polled; dropping it ends every connection.
    pub async fn serve(self, router: Router) -> Infallible {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { std::future::pending().await };
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!(error = %e, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            let (acceptor, router) = (self.acceptor.clone(), router.clone());
            connections.spawn(async move {
                let _place = place;
                converse(acceptor, stream, peer, router).await;
            });
        }
    }
}

/// Serves one connection to its end. What a peer does wrong ends its own connection and nothing else.
async fn converse(acceptor: TlsAcceptor, stream: TcpStream, peer: SocketAddr, router: Router) {
    _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else {
        return;
    };
    let service = router.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(PeerAddress(peer));
        request.map(axum::body::Body::new)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    // Names of headers have no case (RFC 9110 section 5.1); libmongocrypt looks for `Content-Length` all the same.
    builder.http1().title_case_headers(true).timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(HEADER_TIMEOUT));
    let ended = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await;
    if let Err(e) = ended {
        tracing::debug!(error = %e, "a connection ended early");
    }
}

impl std::fmt::Debug for HttpsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpsServer").field("listener", &self.listener).finish_non_exhaustive()
    }
}
