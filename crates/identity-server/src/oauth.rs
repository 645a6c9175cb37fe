//! What OAuth clients ask for: OpenID discovery and the client-credentials grant (RFC 6749 §4.4), in the paths of
//! Microsoft Entra ID, so that `azure-identity` and MSAL work as they come.

use axum::{
    Json, Router,
    extract::{Form, Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use custody_identity::{IdentityError, Registry};
use custody_rpc::{https::PeerAddress, workers::Workers};
use custody_types::{Clock as _, SystemClock};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc};

/// Settings of the OAuth face.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OauthSettings {
    /// Where to listen; port 0 takes a free one.
    pub(crate) listen: SocketAddr,
    /// A file to write the listening address to, once ready.
    pub(crate) address_file: Option<PathBuf>,
    /// The first part of every path. Clients call it the tenant.
    pub(crate) tenant: String,
    /// Which service a resource is: `https://vault.localhost:8443` to `custody-vault`.
    pub(crate) resources: BTreeMap<String, String>,
}

struct Oauth {
    registry: Arc<Registry>,
    workers: Workers,
    tenant: String,
    resources: BTreeMap<String, String>,
}

/// The fields of a token request that are read; a secret does not print.
#[derive(Deserialize)]
struct TokenRequest {
    #[serde(default)]
    grant_type: String,
    #[serde(default)]
    client_id: String,
    #[serde(default)]
    client_secret: String,
    /// v2: `https://resource/.default`.
    #[serde(default)]
    scope: String,
    /// v1 and AD FS: the resource itself.
    #[serde(default)]
    resource: String,
}

pub(crate) fn router(registry: Arc<Registry>, workers: Workers, settings: &OauthSettings) -> Router {
    let oauth =
        Oauth { registry, workers, tenant: settings.tenant.clone(), resources: settings.resources.clone() };
    Router::new()
        .route("/{tenant}/v2.0/.well-known/openid-configuration", get(discovery))
        .route("/{tenant}/.well-known/openid-configuration", get(discovery))
        .route("/{tenant}/discovery/v2.0/keys", get(keys))
        .route("/{tenant}/oauth2/v2.0/token", post(token))
        .route("/{tenant}/oauth2/token", post(token))
        .route("/subscriptions", get(subscriptions))
        .with_state(Arc::new(oauth))
}

/// An error in OAuth's form (RFC 6749 §5.2).
struct OauthError {
    status: StatusCode,
    error: &'static str,
    why: String,
}

impl OauthError {
    fn bad(error: &'static str, why: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error, why: why.into() }
    }

    fn unavailable(why: impl Into<String>) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self { status, error: "temporarily_unavailable", why: why.into() }
    }
}

impl IntoResponse for OauthError {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.error, "error_description": self.why });
        (self.status, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
    }
}

impl Oauth {
    fn check_tenant(&self, tenant: &str) -> Result<(), OauthError> {
        // `adfs` is what MSAL calls an authority that it asks nobody else about.
        if tenant.eq_ignore_ascii_case(&self.tenant) || tenant.eq_ignore_ascii_case("adfs") {
            return Ok(());
        }
        let why = format!("AADSTS90002: there is no tenant `{tenant:.40}`; this is `{}`", self.tenant);
        Err(OauthError::bad("invalid_tenant", why))
    }

    /// The service that a scope or a resource names.
    fn audience(&self, asked: &str) -> Option<String> {
        let named = asked.split(' ').find(|s| s.contains("://")).unwrap_or(asked);
        let resource = named.trim_end_matches("/.default").trim_end_matches('/');
        self.resources.get(resource).cloned()
    }
}

async fn discovery(
    State(oauth): State<Arc<Oauth>>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, OauthError> {
    oauth.check_tenant(&tenant)?;
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or("localhost");
    let base = format!("https://{host}/{tenant}");
    Ok(Json(json!({
        "issuer": format!("{base}/v2.0"),
        "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
        "token_endpoint": format!("{base}/oauth2/v2.0/token"),
        "jwks_uri": format!("{base}/discovery/v2.0/keys"),
        "token_endpoint_auth_methods_supported": ["client_secret_post"],
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": ["token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })))
}

/// What `az login` asks the resource manager for. There are none: clusters are the control plane's.
async fn subscriptions() -> Json<Value> {
    Json(json!({ "value": [] }))
}

async fn keys(State(oauth): State<Arc<Oauth>>, Path(tenant): Path<String>) -> Result<Response, OauthError> {
    oauth.check_tenant(&tenant)?;
    let jwks = oauth.registry.jwks().to_owned();
    Ok(([(header::CONTENT_TYPE, "application/json")], jwks).into_response())
}

async fn token(
    State(oauth): State<Arc<Oauth>>,
    Path(tenant): Path<String>,
    peer: axum::Extension<PeerAddress>,
    form: Result<Form<TokenRequest>, axum::extract::rejection::FormRejection>,
) -> Result<Response, OauthError> {
    oauth.check_tenant(&tenant)?;
    let Ok(Form(asked)) = form else {
        let why = "the body must be a form with grant_type, client_id, client_secret and scope";
        return Err(OauthError::bad("invalid_request", why));
    };
    if asked.grant_type != "client_credentials" {
        let why = "AADSTS70003: only client_credentials is served";
        return Err(OauthError::bad("unsupported_grant_type", why));
    }
    let wanted = if asked.scope.is_empty() { &asked.resource } else { &asked.scope };
    let audience = oauth.audience(wanted).ok_or_else(|| {
        let known: Vec<String> = oauth.resources.keys().map(|r| format!("{r}/.default")).collect();
        OauthError::bad("invalid_scope", format!("AADSTS70011: use one of the scopes {}", known.join(", ")))
    })?;
    // A principal may be named in short, as people write client ids.
    let short = !asked.client_id.contains('/');
    let client = if short { format!("principals/{}", asked.client_id) } else { asked.client_id };
    let (registry, secret) = (oauth.registry.clone(), asked.client_secret);
    let address = peer.0.0.ip().to_string();
    let issue = move || Ok(registry.issue_token(&client, &secret, &audience, &address));
    match oauth.workers.run(issue).await.map_err(|e| OauthError::unavailable(e.message()))? {
        Ok(token) => {
            let lifetime = token.expire_time.as_secs().saturating_sub(SystemClock.now().as_secs());
            let body = json!({
                "token_type": "Bearer",
                "expires_in": lifetime,
                "ext_expires_in": lifetime,
                "access_token": token.text,
            });
            Ok((StatusCode::OK, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response())
        }
        Err(e @ IdentityError::BadCredentials) => Err(OauthError {
            status: StatusCode::UNAUTHORIZED,
            error: "invalid_client",
            why: format!("AADSTS7000215: {e}"),
        }),
        Err(e) => {
            tracing::error!(error = %e, "a token was not issued");
            Err(OauthError::unavailable(e.to_string()))
        }
    }
}
