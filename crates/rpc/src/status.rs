//! Errors on the wire: a canonical code and exactly one `google.rpc.ErrorInfo` (AIP-193).

use std::collections::HashMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

/// The `ErrorInfo.domain` of every error of ours.
pub const DOMAIN: &str = "custody";

/// Builds a status from a canonical code by name, a reason and a text for people.
#[must_use]
pub fn status(code: &str, reason: &str, message: &str, field: Option<&str>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    if let Some(field) = field {
        details.set_bad_request(vec![FieldViolation::new(field, message)]);
    }
    let code = code_named(code);
    match code {
        Code::FailedPrecondition => {
            details.add_precondition_failure_violation(reason, "", message);
        }
        Code::Unavailable => {
            details.set_retry_info(Some(std::time::Duration::from_millis(200)));
        }
        _ => {}
    }
    Status::with_error_details(code, message, details)
}

/// As [`status`], with the time after which the same may be asked again (`google.rpc.RetryInfo`).
#[must_use]
pub fn retry(code: &str, reason: &str, message: &str, after: std::time::Duration) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    details.set_retry_info(Some(after));
    Status::with_error_details(code_named(code), message, details)
}

/// A field of the request is wrong.
#[must_use]
pub fn invalid(field: &str, why: impl std::fmt::Display) -> Status {
    status("INVALID_ARGUMENT", "INVALID_FIELD", &format!("`{field}`: {why}"), Some(field))
}

/// The `ErrorInfo.reason` of a status, or the empty text.
#[must_use]
pub fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|i| i.reason).unwrap_or_default()
}

/// The canonical code of this name; `INTERNAL` for a name that is none.
#[must_use]
pub fn code_named(name: &str) -> Code {
    (0..=16).map(Code::from_i32).find(|c| code_name(*c) == name).unwrap_or(Code::Internal)
}

/// The name of a canonical code.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// A worker thread ended without an answer: our own broken invariant, told without its details.
#[must_use]
pub fn internal() -> Status {
    status("INTERNAL", "INTERNAL", "the service failed; its log tells more", None)
}
