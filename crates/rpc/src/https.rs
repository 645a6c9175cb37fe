//! Plain HTTPS beside gRPC, for clients of other people's APIs: TLS, limits, graceful end.

pub use crate::acceptor::PeerAddress;
use crate::{
    acceptor::Acceptor,
    connection::{Calls, Connection},
    gathered::Gathered,
    server::write_whole,
    tls::{Credentials, TlsError},
};

use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use std::{convert::Infallible, net::SocketAddr, path::Path, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::server::TlsStream;
use tower::ServiceExt as _;

/// How long it may take over a request's headers, and how long a connection may be idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
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
pub struct HttpsServer(Acceptor);

impl HttpsServer {
    /// Listens with a service's certificate.
    ///
    /// # Errors
    /// See [`HttpsError`].
    pub async fn bind(address: SocketAddr, credentials: &Credentials) -> Result<Self, HttpsError> {
        let config = credentials.public_server()?;
        let listener =
            TcpListener::bind(address).await.map_err(|source| HttpsError::Listen { address, source })?;
        Ok(Self(Acceptor::new(listener, &config, &["h2", "http/1.1"])))
    }

    /// Writes the listening address to a file, whole or not at all.
    ///
    /// # Errors
    /// See [`HttpsError`].
    pub fn announce(&self, file: Option<&Path>) -> Result<(), HttpsError> {
        let Some(file) = file else { return Ok(()) };
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let address = self.0.address().map_err(|source| HttpsError::Listen { address: any, source })?;
        write_whole(file, &address.to_string()).map_err(|source| HttpsError::Listen { address, source })
    }

    /// Serves for as long as the future is polled; dropping it ends every connection.
    pub async fn serve(self, router: Router) -> Infallible {
        let mut connections = JoinSet::new();
        self.0
            .accept_into(&mut connections, move |stream, peer| converse(stream, peer.address, router.clone()))
            .await
    }
}

/// Serves one connection to its end.
async fn converse(stream: TlsStream<TcpStream>, peer: PeerAddress, router: Router) {
    let service = router.map_request(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        request.map(axum::body::Body::new)
    });
    let calls = Calls::default();
    let mut builder = Builder::new(calls.clone());
    // Names of headers have no case (RFC 9110 section 5.1); libmongocrypt looks for `Content-Length` all the same.
    builder.http1().title_case_headers(true).timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(HEADER_TIMEOUT));
    let stream = Gathered::new(stream);
    let inner = builder.serve_connection(TokioIo::new(stream.clone()), TowerToHyperService::new(service));
    if let Err(e) = Connection::new(inner, stream, calls).await {
        tracing::debug!(error = %e, "a connection ended early");
    }
}

impl std::fmt::Debug for HttpsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpsServer").field("address", &self.0.address().ok()).finish_non_exhaustive()
    }
}
