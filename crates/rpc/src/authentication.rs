//! The layer that every request passes: who calls, and whether its duty may.

use crate::{
    acceptor::Peer,
    client_certificate::ClientCertificate,
    correlation::CorrelationIds,
    deadline,
    policy::{self, Rule},
    status::{self, code_name},
    token::TokenVerifier,
    trace,
};
use custody_types::{Caller, Duty};
use futures_util::future::BoxFuture;
use http::{Request, Response};
use opentelemetry::{KeyValue, global, metrics::Histogram};
use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument as _, field::Empty, info_span};

/// A refusal by policy, told to whoever keeps a trail.
pub type DenialSink = Arc<dyn Fn(&CallContext, &str) -> bool + Send + Sync>;

/// Who calls, as handlers see it.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// Who.
    pub caller: Caller,
    /// The client certificate, where one was shown.
    pub certificate: ClientCertificate,
    /// Ties records to the trace; unique for each call.
    pub correlation_id: String,
}

impl CallContext {
    /// Of a request that has passed the layer.
    ///
    /// # Errors
    /// The layer is missing: our own mistake.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        request.extensions().get::<Self>().cloned().ok_or_else(status::internal)
    }
}

/// Adds authentication and policy to a server.
#[derive(Clone)]
pub struct AuthenticationLayer {
    verifier: Arc<TokenVerifier>,
    duration: Histogram<f64>,
    denied: Option<DenialSink>,
    ids: Arc<CorrelationIds>,
}

impl AuthenticationLayer {
    /// With the verifier of the service's audience. `denied` writes a refusal to the service's trail and says
    /// whether that was done.
    #[must_use]
    pub fn new(verifier: Arc<TokenVerifier>, denied: Option<DenialSink>) -> Self {
        let meter = global::meter("custody");
        let duration = meter.f64_histogram("rpc.server.call.duration").with_unit("s").build();
        Self { verifier, duration, denied, ids: Arc::default() }
    }

    /// Authenticates and decides.
    async fn admit(
        &self,
        path: &str,
        mut context: CallContext,
        bearer: Option<String>,
    ) -> Result<CallContext, Status> {
        let Some(method) = policy::method(path) else { return Ok(context) };
        let rule = policy::rule(method);
        if rule == Rule::Public {
            return Ok(context);
        }
        if rule == Rule::Certificate {
            if context.certificate.principal().is_none() {
                let why = "this call needs a client certificate that names a principal";
                return Err(status::status("UNAUTHENTICATED", "CLIENT_CERTIFICATE_REQUIRED", why, None));
            }
            return Ok(context);
        }
        let Some(token) = bearer else {
            let why = "give a token: metadata `authorization: Bearer ...` from Identity.IssueToken";
            return Err(status::status("UNAUTHENTICATED", "TOKEN_REQUIRED", why, None));
        };
        let claims = self.verifier.verify(&token).await?;
        let by_certificate = claims.by_certificate();
        context.caller.principal = claims.sub;
        context.caller.duty = claims.duty;
        context.caller.token_id = claims.jti;
        let allowed = match rule {
            Rule::Duties(duties) => duties.contains(&claims.duty),
            // A name alone is not enough: whoever makes principals chooses names.
            Rule::Services(principals) => {
                by_certificate
                    && claims.duty == Duty::Workload
                    && principals.contains(&context.caller.principal.as_str())
            }
            Rule::Public | Rule::Certificate => true,
        };
        if allowed {
            return Ok(context);
        }
        if let Some(sink) = self.denied.clone() {
            let (told, path) = (context.clone(), path.to_owned());
            let written = tokio::task::spawn_blocking(move || sink(&told, &path)).await;
            if !written.unwrap_or(false) {
                return Err(status::status(
                    "UNAVAILABLE",
                    "AUDIT_UNAVAILABLE",
                    "the audit journal cannot be written",
                    None,
                ));
            }
        }
        let duty = context.caller.duty;
        let why =
            format!("the duty {duty} may not call {}; it is for another duty", path.trim_start_matches('/'));
        Err(status::status("PERMISSION_DENIED", "DUTY_NOT_ALLOWED", &why, None))
    }
}

impl fmt::Debug for AuthenticationLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthenticationLayer(..)")
    }
}

impl<S> Layer<S> for AuthenticationLayer {
    type Service = Authentication<S>;
    fn layer(&self, inner: S) -> Self::Service {
        Authentication { inner, layer: self.clone() }
    }
}

/// A service behind [`AuthenticationLayer`].
#[derive(Clone, Debug)]
pub struct Authentication<S> {
    inner: S,
    layer: AuthenticationLayer,
}

impl<S> Service<Request<Body>> for Authentication<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let layer = self.layer.clone();
        let path = request.uri().path().to_owned();
        let span = info_span!(
            "rpc.server",
            otel.name = path.trim_start_matches('/'),
            otel.kind = "server",
            rpc.system.name = "grpc",
            rpc.method = path.trim_start_matches('/'),
            rpc.status_code = Empty,
            error.type = Empty,
            user.id = Empty
        );
        trace::adopt(&span, request.headers());
        let started = Instant::now();
        let peer = request.extensions().get::<Peer>();
        let context = CallContext {
            caller: Caller {
                principal: String::new(),
                duty: Duty::Workload,
                token_id: String::new(),
                address: peer.map_or_else(String::new, |peer| peer.address.0.ip().to_string()),
            },
            certificate: peer.map(|peer| peer.certificate.clone()).unwrap_or_default(),
            correlation_id: layer.ids.next(&span),
        };
        let waits = deadline::of(request.headers());
        let bearer = request
            .headers()
            .get("authorization")
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix("Bearer "))
            .map(str::to_owned);
        let recorded = span.clone();
        Box::pin(
            async move {
                let answered = async {
                    match layer.admit(&path, context, bearer).await {
                        Ok(context) => {
                            recorded.record("user.id", context.caller.principal.as_str());
                            request.extensions_mut().insert(context);
                            inner.call(request).await
                        }
                        Err(refused) => Ok(refused.into_http()),
                    }
                };
                let answer = match waits {
                    Ok(None) => answered.await?,
                    Ok(Some(time)) => match tokio::time::timeout(time, answered).await {
                        Ok(answer) => answer?,
                        Err(_) => deadline::exceeded().into_http(),
                    },
                    Err(malformed) => malformed.into_http(),
                };
                let code = Status::from_header_map(answer.headers()).map_or(Code::Ok, |s| s.code());
                recorded.record("rpc.status_code", code_name(code));
                let failed = matches!(
                    code,
                    Code::Unknown
                        | Code::DeadlineExceeded
                        | Code::Unimplemented
                        | Code::Internal
                        | Code::Unavailable
                        | Code::DataLoss
                );
                if failed {
                    recorded.record("error.type", code_name(code));
                }
                let known = policy::method(&path).map_or("other", custody_proto::Method::path);
                layer.duration.record(
                    started.elapsed().as_secs_f64(),
                    &[
                        KeyValue::new("rpc.method", known.trim_start_matches('/')),
                        KeyValue::new("rpc.status_code", code_name(code)),
                    ],
                );
                Ok(answer)
            }
            .instrument(span),
        )
    }
}
