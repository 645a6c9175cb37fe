//! Running a gRPC server: TLS, limits, health, reflection, graceful end.

use crate::{
    acceptor::{Acceptor, Peer},
    authentication::{AuthenticationLayer, DenialSink},
    channel::Endpoint,
    connection::{Calls, Connection},
    gathered::Gathered,
    services::Services,
    settings::ServerSettings,
    tls::{Credentials, TlsError},
    token::TokenVerifier,
};
use http::Request;
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{convert::Infallible, future::Future, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_rustls::server::TlsStream;
use tonic::body::Body;
use tower::{Layer as _, Service, ServiceExt as _};

/// Longest message taken, in bytes: a write of 1 MiB and what is around it.
pub const MESSAGE_LEN_MAX: usize = 2 << 20;
/// Most calls at once on a connection.
const STREAMS_MAX: u32 = 1024;
/// Bytes of a frame, and of what a call and a connection may have sent before the server takes it.
const FRAME_LEN_MAX: u32 = 1 << 20;
const CALL_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// How often a client that says nothing is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long running calls may take to end at shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// A server that could not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
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
    /// The address of the identity service is malformed.
    #[error("`identity` cannot be used")]
    Identity(#[from] tonic::transport::Error),
    /// The reflection service cannot be built.
    #[error("the descriptors cannot be served")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The identity service is not named.
    #[error("`identity` is missing from the settings: where is the identity service?")]
    NoIdentity,
}

/// The credentials that the settings name.
///
/// # Errors
/// A file is not readable.
pub fn credentials(settings: &ServerSettings) -> Result<Credentials, TlsError> {
    Credentials::load(&settings.ca, &settings.certificate, &settings.private_key)
}

/// The identity service, as the settings name it.
///
/// # Errors
/// Not named, or malformed.
pub fn identity_endpoint(settings: &ServerSettings) -> Result<Endpoint, ServeError> {
    let url = settings.identity.as_ref().ok_or(ServeError::NoIdentity)?;
    Ok(Endpoint::new(url, &credentials(settings)?, Duration::from_secs(5))?)
}

/// A verifier for this service's audience.
///
/// # Errors
/// As [`identity_endpoint`].
pub fn verifier(settings: &ServerSettings, audience: &'static str) -> Result<Arc<TokenVerifier>, ServeError> {
    Ok(Arc::new(TokenVerifier::remote(&settings.issuer, audience, identity_endpoint(settings)?)))
}

/// Serves until `shutdown`, then lets running calls end.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(
    settings: &ServerSettings,
    services: Services,
    verifier: Arc<TokenVerifier>,
    denied: Option<DenialSink>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let listen = |source| ServeError::Listen { address: settings.listen, source };
    let listener = TcpListener::bind(settings.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let mut services = services.with(health_service);
    if settings.reflection {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(custody_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        services = services.with(reflection);
    }
    let acceptor = Acceptor::new(listener, &*credentials(settings)?.server()?, &["h2"]);
    let service = AuthenticationLayer::new(verifier, denied).layer(services);
    tracing::info!(%address, "serving");
    if let Some(file) = &settings.address_file {
        write_whole(file, &address.to_string()).map_err(listen)?;
    }
    let (stop, stopping) = watch::channel(());
    let mut connections = JoinSet::new();
    let accepting = acceptor.accept_into(&mut connections, move |stream, peer| {
        converse(stream, peer, service.clone(), stopping.clone())
    });
    tokio::select! {
        never = accepting => match never {},
        () = shutdown => {}
    }
    // Whoever connects from here on hears at once that nobody is there.
    drop(acceptor);
    drop(stop);
    // Streams that watch for changes never end by themselves.
    _ = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    Ok(())
}

/// Serves one connection to its end; when it is told to stop, to the end of the calls that it has.
async fn converse<S>(stream: TlsStream<TcpStream>, peer: Peer, service: S, mut stopping: watch::Receiver<()>)
where
    S: Service<Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let service = service.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        request.map(Body::new)
    });
    let calls = Calls::default();
    let mut builder = http2::Builder::new(calls.clone());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_frame_size(FRAME_LEN_MAX)
        .initial_stream_window_size(CALL_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(Some(KEEP_ALIVE));
    let stream = Gathered::new(stream);
    let inner = builder.serve_connection(TokioIo::new(stream.clone()), TowerToHyperService::new(service));
    let mut connection = Connection::new(inner, stream, calls);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        // The other end was dropped: there is nothing else to hear.
        _ = stopping.changed() => {
            connection.inner().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error = %e, "a connection ended early");
    }
}

/// Writes a small file that others wait for or read at any time, an address or a process number: they find it whole,
/// as it was, or absent.
///
/// # Errors
/// The file system failed.
pub fn write_whole(file: &Path, text: &str) -> std::io::Result<()> {
    let partial = file.with_extension("partial");
    std::fs::write(&partial, text)?;
    std::fs::rename(partial, file)
}

/// Ends when the process is asked to: SIGTERM or SIGINT.
pub async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut term) => {
            tokio::select! {
                _ = term.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(_) => _ = tokio::signal::ctrl_c().await,
    }
}
