//! Accepting connections: TLS, bounded in number, each in a task of its own.

use crate::client_certificate::ClientCertificate;
use rustls::ServerConfig;
use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Connections at once; more wait in the listener's queue.
const CONNECTIONS_MAX: usize = 1024;
/// How long a client may take over the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// After an error that `accept` may answer again at once (no more file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// Who is at the other end of a connection; an extension of each of its requests.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: PeerAddress,
    pub(crate) certificate: ClientCertificate,
}

/// A listener that speaks TLS.
pub(crate) struct Acceptor {
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl Acceptor {
    /// Of a listener; `protocols` are ALPN's, best first.
    pub(crate) fn new(listener: TcpListener, config: &ServerConfig, protocols: &[&str]) -> Self {
        let mut config = config.clone();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self { listener, tls: TlsAcceptor::from(Arc::new(config)) }
    }

    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts for as long as it is polled. What a peer does wrong ends its own connection and nothing else.
    pub(crate) async fn accept_into<F>(
        &self,
        connections: &mut JoinSet<()>,
        converse: impl Fn(TlsStream<TcpStream>, Peer) -> F + Clone + Send + 'static,
    ) -> Infallible
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
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
            let (tls, converse) = (self.tls.clone(), converse.clone());
            connections.spawn(async move {
                let _place = place;
                // Without it an answer of two segments waits for the client's delayed acknowledgement, 40 ms.
                _ = stream.set_nodelay(true);
                let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await;
                let Ok(Ok(stream)) = shaken else { return };
                let certificate = ClientCertificate::of(stream.get_ref().1);
                converse(stream, Peer { address: PeerAddress(peer), certificate }).await;
            });
        }
    }
}
