//! A request judged without a vault: all that this face does before it asks the domain. What fuzzers drive.

use crate::{
    bodies::{self, Create, Import, Policy, Random, Restore, Update, Verify},
    error::RestError,
    face::{Host, bearer},
    route::{self, Route, Use},
};
use http::{HeaderMap, HeaderName, Method, Uri};

/// Whether a request would be taken in, as if its caller might do everything.
///
/// # Errors
/// The HTTP status that it would get.
pub fn judge(method: &str, target: &str, body: &[u8]) -> Result<(), u16> {
    let method: Method = method.parse().map_err(|_| 400u16)?;
    let uri: Uri = target.parse().map_err(|_| 400u16)?;
    check(&method, &uri, body).map_err(|e| e.status.as_u16())
}

/// The head of a request, a header a line: the vault that its host names, and whether it has a token. Nothing for what is no
/// head of HTTP.
#[must_use]
pub fn judge_head(head: &str) -> Option<(Option<String>, bool)> {
    let mut headers = HeaderMap::new();
    for line in head.lines() {
        let (name, value) = line.split_once(':')?;
        headers.append(HeaderName::from_bytes(name.as_bytes()).ok()?, value.trim().parse().ok()?);
    }
    custody_rpc::trace::adopt(&tracing::Span::none(), &headers);
    let host = Host::of(&headers, &Uri::from_static("/keys"), "vault.localhost");
    Some((host.vault, bearer(&headers).is_some()))
}

fn check(method: &Method, uri: &Uri, body: &[u8]) -> Result<(), RestError> {
    let parameters = route::parameters(uri);
    route::check_api_version(&parameters)?;
    match Route::of(method, uri.path())? {
        Route::Create { .. } => bodies::parse::<Create>(body)?.check().map(drop),
        Route::Import { .. } => bodies::parse::<Import>(body)?.check().map(drop),
        Route::Update { .. } => bodies::parse::<Update>(body)?.check().map(drop),
        Route::SetRotationPolicy { key } => {
            let name = format!("vaults/v/keys/{key}").parse().map_err(|_| RestError::key_not_found(&key))?;
            bodies::parse::<Policy>(body)?.check(name).map(drop)
        }
        Route::RandomBytes => bodies::parse::<Random>(body).map(drop),
        Route::Restore => {
            let body: Restore = bodies::parse(body)?;
            bodies::bytes(&body.value, "value").map(drop)
        }
        Route::Use { operation: Use::Verify, .. } => {
            let body: Verify = bodies::parse(body)?;
            bodies::bytes(&body.digest, "digest")?;
            bodies::bytes(&body.value, "value").map(drop)
        }
        Route::Use { .. } => bodies::parse::<bodies::Use>(body)?.value().map(drop),
        _ => Ok(()),
    }
}
