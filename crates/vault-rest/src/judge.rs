//! A request judged without a vault: all that this face does before it asks the domain. What fuzzers drive.

use crate::{
    bodies::{self, Create, Import, Policy, Random, Restore, Update, Verify},
    error::RestError,
    route::{self, Route, Use},
};
use http::{Method, Uri};

/// Whether a request would be taken in, as if its caller might do everything.
///
/// # Errors
/// The HTTP status that it would get.
pub fn judge(method: &str, target: &str, body: &[u8]) -> Result<(), u16> {
    let method: Method = method.parse().map_err(|_| 400u16)?;
    let uri: Uri = target.parse().map_err(|_| 400u16)?;
    check(&method, &uri, body).map_err(|e| e.status.as_u16())
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
