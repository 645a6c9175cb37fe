//! Running a gRPC server: TLS, limits, health, reflection, graceful end.

use crate::{
    authentication::{AuthenticationLayer, DenialSink},
    channel::Endpoint,
    settings::ServerSettings,
    tls::{Credentials, TlsError},
    token::TokenVerifier,
};
use std::{future::Future, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

/// Longest message taken, in bytes: a write of 1 MiB and what is around it.
pub const MESSAGE_LEN_MAX: usize = 2 << 20;
/// Most calls at once on a connection.
const STREAMS_MAX: u32 = 1024;
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
    /// The transport failed.
    #[error("the gRPC server failed")]
    Transport(#[from] tonic::transport::Error),
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
    routes: Routes,
    verifier: Arc<TokenVerifier>,
    denied: Option<DenialSink>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let listen = |source| ServeError::Listen { address: settings.listen, source };
    let listener = TcpListener::bind(settings.listen).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let mut routes = routes.add_service(health_service);
    if settings.reflection {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(custody_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        routes = routes.add_service(reflection);
    }
    let server = Server::builder()
        .tls_config(credentials(settings)?.server())?
        .max_concurrent_streams(STREAMS_MAX)
        .max_frame_size(1 << 20)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .layer(AuthenticationLayer::new(verifier, denied))
        .add_routes(routes);
    tracing::info!(%address, "serving");
    if let Some(file) = &settings.address_file {
        write_whole(file, &address.to_string()).map_err(listen)?;
    }
    let (drain, draining) = tokio::sync::oneshot::channel::<()>();
    let graceful = async move {
        shutdown.await;
        drop(drain);
    };
    // Without it an answer of two segments waits for the client's delayed acknowledgement, 40 ms.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = server.serve_with_incoming_shutdown(incoming, graceful);
    tokio::select! {
        done = serving => done?,
        // Streams that watch for changes never end by themselves.
        () = async { _ = draining.await; tokio::time::sleep(DRAIN).await } => {}
    }
    Ok(())
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
