//! Errors in Azure's form: `{"error": {"code", "message", "innererror"}}`.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use custody_rpc::status::reason;
use custody_types::{Clock as _, SystemClock};
use custody_vault::VaultError;
use http::StatusCode;
use serde_json::{Value, json};
use std::borrow::Cow;
use tonic::{Code, Status};

/// An answer that is not what was asked for.
#[derive(Debug)]
pub(crate) struct RestError {
    pub(crate) status: StatusCode,
    code: &'static str,
    inner: Option<&'static str>,
    message: String,
    /// Whether a challenge goes with it (RFC 6750 §3).
    pub(crate) challenge: Option<Cow<'static, str>>,
    /// Whole seconds after which a throttled client may ask again.
    pub(crate) retry_after_s: u64,
}

impl RestError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, inner: None, message: message.into(), challenge: None, retry_after_s: 1 }
    }

    pub(crate) fn bad_parameter(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadParameter", message)
    }

    /// No token yet: how clients begin, to learn where to get one.
    pub(crate) fn unauthorized() -> Self {
        let message = "AKV10000: Request is missing a Bearer or PoP token.";
        Self { challenge: Some("".into()), ..Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message) }
    }

    /// The token does not verify; or the keys that verify it cannot be had.
    pub(crate) fn token(refused: &Status) -> Self {
        if refused.code() == Code::Unavailable {
            return Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", refused.message());
        }
        let message = format!("AKV10046: {}", refused.message());
        let mut challenge = ", error=\"invalid_token\"".to_owned();
        if reason(refused) == "TOKEN_EXPIRED" {
            // Azure's clients ask for a new token then (continuous access evaluation), and not their cache.
            let now = SystemClock.now().as_secs();
            let claims =
                json!({ "access_token": { "nbf": { "essential": true, "value": now.to_string() } } });
            challenge = format!("{challenge}, claims=\"{}\"", URL_SAFE_NO_PAD.encode(claims.to_string()));
        }
        let challenge = Some(challenge.into());
        Self { challenge, ..Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message) }
    }

    pub(crate) fn no_such_route() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "there is no such operation; see Azure's REST API for keys",
        )
    }

    pub(crate) fn not_allowed() -> Self {
        let message = "the resource does not take this HTTP method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    pub(crate) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "RequestTimeout", "the body did not come within 10 s")
    }

    pub(crate) fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestTooLarge", "the body is longer than 1 MiB")
    }

    pub(crate) fn key_not_found(name: &str) -> Self {
        let message = format!(
            "A key with (name/id) {name} was not found in this key vault. If you recently deleted this key you may be able to recover it using the correct recovery command."
        );
        Self::new(StatusCode::NOT_FOUND, "KeyNotFound", message)
    }

    pub(crate) fn deleted_key_not_found(name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "KeyNotFound", format!("Deleted Key not found: {name}"))
    }

    fn forbidden(inner: &'static str, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::FORBIDDEN, "Forbidden", message);
        Self { inner: Some(inner), ..error }
    }

    fn conflict(inner: &'static str, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::CONFLICT, "Conflict", message);
        Self { inner: Some(inner), ..error }
    }

    pub(crate) fn body(&self) -> Value {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let (Some(inner), Some(fields)) = (self.inner, error.as_object_mut()) {
            fields.insert("innererror".to_owned(), json!({ "code": inner }));
        }
        json!({ "error": error })
    }
}

impl From<VaultError> for RestError {
    fn from(e: VaultError) -> Self {
        let message = e.to_string();
        match e.reason() {
            "PERMISSION_DENIED" => Self::forbidden(
                "ForbiddenByRbac",
                format!(
                    "Caller is not authorized to perform action on resource.\r\n{message}\r\nDecisionReason: null"
                ),
            ),
            "NOT_FOUND" => Self::new(StatusCode::NOT_FOUND, "KeyNotFound", message),
            "ALREADY_EXISTS" => Self::new(StatusCode::CONFLICT, "Conflict", message),
            "KEY_BEING_DELETED" => Self::conflict("ObjectIsBeingDeleted", message),
            "KEY_HAS_DEPENDENTS" => Self::conflict("KeyHasDependents", message),
            "NAME_HELD" => Self::conflict("ObjectIsDeletedButRecoverable", message),
            "KEY_SUSPENDED" => Self::forbidden("KeyDisabled", message),
            "KEY_PRE_ACTIVE" => Self::forbidden("KeyNotYetValid", message),
            "KEY_EXPIRED" => Self::forbidden("KeyExpired", message),
            "KEY_OPERATION_FORBIDDEN" => Self::forbidden("KeyOperationForbidden", message),
            "RATE_LIMITED" => {
                let after = e.retry_after().unwrap_or_default();
                let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "Throttled", message);
                Self { retry_after_s: after.as_millis().div_ceil(1000).try_into().unwrap_or(1), ..error }
            }
            "KEY_BUDGET_SPENT" => Self::forbidden("KeyBudgetSpent", message),
            "VAULT_SEALED" => Self::forbidden("VaultSealed", message),
            "SEALED" => Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message),
            "APPROVAL_REQUIRED" => Self::forbidden("ApprovalRequired", message),
            "KEY_DELETED" | "KEY_DESTROYED" => Self::new(StatusCode::NOT_FOUND, "KeyNotFound", message),
            "INVALID_KEY_TRANSITION" => Self::forbidden("OperationNotAllowed", message),
            "INVALID_FIELD" | "UNWRAP_FAILED" => Self::bad_parameter(message),
            "CONFLICTING_DUTY" => Self::new(StatusCode::CONFLICT, "Conflict", message),
            "AUDIT_UNAVAILABLE" | "STORE_UNAVAILABLE" => {
                tracing::error!(error = %e, "vault operation failed");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
            }
            _ => {
                tracing::error!(error = %e, "vault operation failed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message)
            }
        }
    }
}

/// What the workers answer where a job did not run.
impl From<Status> for RestError {
    fn from(e: Status) -> Self {
        match reason(&e).as_str() {
            "LOAD_SHED" => Self::new(StatusCode::TOO_MANY_REQUESTS, "Throttled", e.message()),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", e.message()),
        }
    }
}
