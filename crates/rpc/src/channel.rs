//! Client channels: TLS, a deadline for every call, a token, the trace context.

use crate::{tls::Credentials, trace};
use custody_proto::identity::{
    IssueTokenRequest, IssueWorkloadTokenRequest, identity_client::IdentityClient,
};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use parking_lot::Mutex;
use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;
use tonic::{Status, body::Body, transport::Channel};
use tower::Service;
use tracing::{Instrument as _, info_span};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Where a service is and how it is trusted. Cheap to clone; connects at first use and again as needed.
#[derive(Clone, Debug)]
pub struct Endpoint {
    place: Arc<tonic::transport::Endpoint>,
    channel: Channel,
}

impl Endpoint {
    /// For `https://host:port`. Every call ends within `deadline`; a stream must begin within it.
    ///
    /// # Errors
    /// The address or the certificates are malformed.
    pub fn new(
        url: &str,
        credentials: &Credentials,
        deadline: Duration,
    ) -> Result<Self, tonic::transport::Error> {
        let place = Channel::from_shared(url.to_owned())
            .map_err(|_| bad_uri())
            .or_else(|e| e)?
            .tls_config(credentials.client())?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(deadline)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true);
        let channel = place.connect_lazy();
        Ok(Self { place: Arc::new(place), channel })
    }

    /// The same service over a connection of its own, which ends with its last handle.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self { place: self.place.clone(), channel: self.place.connect_lazy() }
    }

    /// A channel without a token.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A channel that adds a token to every call.
    #[must_use]
    pub fn authenticated(&self, tokens: TokenSource) -> AuthenticatedChannel {
        AuthenticatedChannel { inner: self.channel.clone(), tokens }
    }
}

/// An error value for an address that is none: the transport's own, made by a parse that cannot succeed.
fn bad_uri() -> Result<tonic::transport::Endpoint, tonic::transport::Error> {
    tonic::transport::Endpoint::new("::not an address::")
}

enum Grant {
    Secret { client_id: String, client_secret: String },
    Workload { managed_identity: String },
}

struct Source {
    identity: Endpoint,
    grant: Grant,
    audience: &'static str,
    held: Mutex<Option<(HeaderValue, Instant)>>,
    /// One caller fetches at a time; the others wait for its token.
    fetching: Semaphore,
}

/// Gets tokens from the identity service and keeps each for most of its life.
#[derive(Clone)]
pub struct TokenSource(Arc<Source>);

impl TokenSource {
    /// With client credentials.
    #[must_use]
    pub fn secret(identity: Endpoint, client_id: &str, client_secret: &str, audience: &'static str) -> Self {
        let grant =
            Grant::Secret { client_id: client_id.to_owned(), client_secret: client_secret.to_owned() };
        Self(Arc::new(Source {
            identity,
            grant,
            audience,
            held: Mutex::new(None),
            fetching: Semaphore::new(1),
        }))
    }

    /// By the endpoint's client certificate: as the workload itself, or as a managed identity.
    #[must_use]
    pub fn workload(identity: Endpoint, managed_identity: &str, audience: &'static str) -> Self {
        let grant = Grant::Workload { managed_identity: managed_identity.to_owned() };
        Self(Arc::new(Source {
            identity,
            grant,
            audience,
            held: Mutex::new(None),
            fetching: Semaphore::new(1),
        }))
    }

    fn held(&self) -> Option<HeaderValue> {
        let held = self.0.held.lock();
        held.as_ref().filter(|(_, until)| Instant::now() < *until).map(|(value, _)| value.clone())
    }

    async fn header(&self) -> Result<HeaderValue, Status> {
        if let Some(value) = self.held() {
            return Ok(value);
        }
        let _turn = self.0.fetching.acquire().await.map_err(|_| crate::status::internal())?;
        if let Some(value) = self.held() {
            return Ok(value);
        }
        let mut client = IdentityClient::new(self.0.identity.channel());
        let audience = self.0.audience.to_owned();
        let answer = match &self.0.grant {
            Grant::Secret { client_id, client_secret } => {
                let request = IssueTokenRequest {
                    client_id: client_id.clone(),
                    client_secret: client_secret.clone(),
                    audience,
                };
                client.issue_token(request).await?
            }
            Grant::Workload { managed_identity } => {
                client
                    .issue_workload_token(IssueWorkloadTokenRequest {
                        audience,
                        managed_identity: managed_identity.clone(),
                    })
                    .await?
            }
        }
        .into_inner();
        let mut value = HeaderValue::try_from(format!("Bearer {}", answer.access_token))
            .map_err(|_| crate::status::internal())?;
        value.set_sensitive(true);
        let lifetime = answer.expire_time.map_or(0, |t| t.seconds.saturating_sub(unix_now()));
        let until = Instant::now() + Duration::from_secs(u64::try_from(lifetime).unwrap_or(0)) * 4 / 5;
        *self.0.held.lock() = Some((value.clone(), until));
        Ok(value)
    }

    /// A service does not take this token: the next call gets another, if it is still the one that is held.
    fn refused(&self, value: &HeaderValue) {
        let mut held = self.0.held.lock();
        if held.as_ref().is_some_and(|(held, _)| held == value) {
            *held = None;
        }
    }

    /// A service does not take the token that [`TokenSource::text`] gave: the next call gets another.
    pub fn forget(&self) {
        *self.0.held.lock() = None;
    }

    /// The token itself, for a client of another kind.
    ///
    /// # Errors
    /// The identity service refused or cannot be asked.
    pub async fn text(&self) -> Result<String, Status> {
        let header = self.header().await?;
        Ok(header.to_str().unwrap_or_default().trim_start_matches("Bearer ").to_owned())
    }
}

fn unix_now() -> i64 {
    use custody_types::Clock as _;
    i64::try_from(custody_types::SystemClock.now().as_secs()).unwrap_or(i64::MAX)
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSource").field("audience", &self.0.audience).finish_non_exhaustive()
    }
}

/// `UNAUTHENTICATED`, as an answer's header has it.
const UNAUTHENTICATED: &str = "16";

/// A channel that adds a token and the trace context to every call.
#[derive(Clone, Debug)]
pub struct AuthenticatedChannel {
    inner: Channel,
    tokens: TokenSource,
}

impl Service<Request<Body>> for AuthenticatedChannel {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx).map_err(unavailable)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let tokens = self.tokens.clone();
        let method = request.uri().path().trim_start_matches('/').to_owned();
        let span = info_span!(
            "rpc.client",
            otel.name = method,
            otel.kind = "client",
            rpc.system.name = "grpc",
            rpc.method = method
        );
        trace::inject(&span, request.headers_mut());
        Box::pin(
            async move {
                let header = tokens.header().await?;
                request.headers_mut().insert("authorization", header.clone());
                let answer = inner.call(request).await.map_err(unavailable)?;
                // A token that a service takes no more, before its time: the caller's next try brings another.
                if answer.headers().get("grpc-status").is_some_and(|status| status == UNAUTHENTICATED) {
                    tokens.refused(&header);
                }
                Ok(answer)
            }
            .instrument(span),
        )
    }
}

fn unavailable(e: tonic::transport::Error) -> Status {
    let why = format!("the service cannot be reached: {}", chain(&e));
    crate::status::status("UNAVAILABLE", "SERVICE_UNREACHABLE", &why, None)
}

fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
