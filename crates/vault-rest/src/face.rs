//! A request's way: the vault that its host names, its token, its route, a worker, the answer.

use crate::{
    error::RestError,
    operations,
    route::{self, Route},
    uses,
    views::Base,
};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::Response,
};
use custody_rpc::{
    compute::Compute,
    correlation::{AUDIT_SEQUENCE, CorrelationIds},
    https::PeerAddress,
    token::TokenVerifier,
    workers::Workers,
};
use custody_types::Caller;
use custody_vault::{Batch, Call, Recorded, Vault};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::Value;
use std::{collections::HashMap, fmt, sync::Arc, time::Duration};
use tracing::{Instrument as _, field::Empty};

/// Longest body, in bytes.
const BODY_LEN_MAX: usize = 1 << 20;

/// How long a body may take to come. A client that sends it drop by drop holds nothing for longer.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How the face presents itself.
#[derive(Clone, Debug)]
pub struct FaceSettings {
    /// The domain below which each vault has a host: `vault.localhost` for `NAME.vault.localhost`.
    pub domain: String,
    /// Where clients get tokens: `https://host:port/TENANT`, told in challenges.
    pub authority: String,
}

/// The vault, as Azure's clients see it.
pub struct Face {
    pub(crate) vault: Arc<Vault>,
    pub(crate) workers: Workers,
    pub(crate) compute: Compute<Batch>,
    verifier: Arc<TokenVerifier>,
    settings: FaceSettings,
    ids: CorrelationIds,
}

/// A request that has been taken in: whose, for which vault, and what of its query and body matters.
pub(crate) struct Taken {
    pub(crate) call: Call,
    /// `vaults/{vault}`.
    pub(crate) vault: String,
    pub(crate) base: Base,
    pub(crate) parameters: HashMap<String, String>,
    pub(crate) body: axum::body::Bytes,
}

/// What is answered where it is not an error.
pub(crate) enum Answer {
    Json(Value),
    NoContent,
}

impl Face {
    /// Over a vault. `verifier` checks tokens for the vault's audience.
    #[must_use]
    pub fn new(
        vault: Arc<Vault>,
        workers: Workers,
        compute: Compute<Batch>,
        verifier: Arc<TokenVerifier>,
        settings: FaceSettings,
    ) -> Self {
        Self { vault, workers, compute, verifier, settings, ids: CorrelationIds::default() }
    }

    /// Takes a request in. The order is Azure's: who calls comes before what is asked.
    async fn take(&self, request: Request, host: &Host, id: &str) -> Result<(Route, Taken), RestError> {
        let (parts, body) = request.into_parts();
        let token = bearer(&parts.headers).ok_or_else(RestError::unauthorized)?;
        let claims = self.verifier.verify(token).await.map_err(|e| RestError::token(&e))?;
        let peer = parts.extensions.get::<PeerAddress>();
        let caller = Caller {
            principal: claims.sub,
            duty: claims.duty,
            token_id: claims.jti,
            address: peer.map_or_else(String::new, |p| p.0.ip().to_string()),
        };
        let parameters = route::parameters(&parts.uri);
        route::check_api_version(&parameters)?;
        let route = Route::of(&parts.method, parts.uri.path())?;
        let body = tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, BODY_LEN_MAX)).await;
        let body = body.map_err(|_| RestError::too_slow())?.map_err(|_| RestError::too_large())?;
        let vault = host.vault.clone().ok_or_else(|| {
            RestError::bad_parameter(format!(
                "the host names no vault; use https://NAME.{}:PORT",
                self.settings.domain
            ))
        })?;
        let call = Call::new(caller, id.to_owned());
        Ok((route, Taken { call, vault, base: Base(host.base.clone()), parameters, body }))
    }

    async fn answer(self: Arc<Self>, request: Request) -> Response {
        let host = Host::of(request.headers(), request.uri(), &self.settings.domain);
        let asked = request.headers().get("x-ms-client-request-id").cloned();
        let span = tracing::info_span!(
            "http.server",
            otel.kind = "server",
            http.request.method = %request.method(),
            http.response.status_code = Empty,
            user.id = Empty
        );
        custody_rpc::trace::adopt(&span, request.headers());
        let id = self.ids.next(&span);
        let mut recorded = Recorded::default();
        let outcome = async {
            let (route, taken) = self.take(request, &host, &id).await?;
            recorded = taken.call.recorded.clone();
            span.record("user.id", taken.call.caller.principal.as_str());
            if let Route::Use { key, version, operation } = route {
                return uses::run(&self, taken, &key, &version, operation).await;
            }
            let face = self.clone();
            // A worker's own refusals come as a status, the vault's as an error of this face.
            self.workers.run(move || Ok(operations::run(&face, route, &taken))).await?
        }
        .instrument(span.clone())
        .await;
        let mut response = self.response(outcome, &host);
        span.record("http.response.status_code", response.status().as_u16());
        let headers = response.headers_mut();
        let mut set = |name: &'static str, value: Option<HeaderValue>| {
            if let Some(value) = value {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        set("x-ms-client-request-id", asked);
        set("x-ms-request-id", HeaderValue::from_str(&id).ok());
        set(AUDIT_SEQUENCE, recorded.sequence().map(HeaderValue::from));
        response
    }

    fn response(&self, outcome: Result<Answer, RestError>, host: &Host) -> Response {
        let (status, body, challenge, retry_after) = match outcome {
            Ok(Answer::Json(body)) => (StatusCode::OK, Some(body), None, 0),
            Ok(Answer::NoContent) => (StatusCode::NO_CONTENT, None, None, 0),
            Err(e) => (e.status, Some(e.body()), e.challenge, e.retry_after_s),
        };
        let json = body.is_some();
        let mut response = Response::new(body.map_or_else(Body::empty, |b| Body::from(b.to_string())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if json {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        }
        for (name, value) in [
            ("cache-control", "no-cache"),
            ("pragma", "no-cache"),
            ("expires", "-1"),
            ("strict-transport-security", "max-age=31536000;includeSubDomains"),
            ("x-content-type-options", "nosniff"),
            ("x-ms-keyvault-region", "custody"),
            ("x-ms-keyvault-service-version", concat!("custody-", env!("CARGO_PKG_VERSION"))),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after));
        }
        if let Some(extra) = challenge {
            // The resource is a parent of every vault's host, which is what clients check.
            let authority = &self.settings.authority;
            let text = format!("Bearer authorization=\"{authority}\", resource=\"{}\"{extra}", host.resource);
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(header::WWW_AUTHENTICATE, value);
            }
        }
        response
    }
}

impl fmt::Debug for Face {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Face").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The bearer token of a request (RFC 6750 §2.1).
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// What a request's host says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// `vaults/{vault}`, where it names one.
    pub(crate) vault: Option<String>,
    /// `https://host:port`, as the client wrote it.
    base: String,
    /// `https://domain:port`: what tokens are asked for.
    resource: String,
}

impl Host {
    pub(crate) fn of(headers: &HeaderMap, uri: &http::Uri, domain: &str) -> Self {
        let written = headers.get(header::HOST).and_then(|v| v.to_str().ok());
        let written = written.or_else(|| uri.authority().map(http::uri::Authority::as_str)).unwrap_or(domain);
        let written = written.to_ascii_lowercase();
        let (name, port) = written.split_once(':').unwrap_or((&written, ""));
        let port = if port.is_empty() { String::new() } else { format!(":{port}") };
        let vault = name.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'));
        Self {
            vault: vault.filter(|v| !v.is_empty() && !v.contains('.')).map(|v| format!("vaults/{v}")),
            base: format!("https://{name}{port}"),
            resource: format!("https://{domain}{port}"),
        }
    }
}

/// The face as a router: every path comes to it.
pub fn router(face: Arc<Face>) -> Router {
    Router::new()
        .fallback(async |State(face): State<Arc<Face>>, request: Request| face.answer(request).await)
        .with_state(face)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_names_a_vault_and_its_resource() {
        let of = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            Host::of(&headers, &"/keys".parse().unwrap(), "vault.localhost")
        };
        let contoso = of("Contoso.Vault.localhost:8443");
        assert_eq!(contoso.vault.as_deref(), Some("vaults/contoso"));
        assert_eq!(contoso.base, "https://contoso.vault.localhost:8443");
        assert_eq!(contoso.resource, "https://vault.localhost:8443");
        for none in
            ["vault.localhost", "xvault.localhost", "a.b.vault.localhost", "127.0.0.1:1", ".vault.localhost"]
        {
            assert_eq!(of(none).vault, None, "{none}");
        }
    }
}
