//! How long a client waits, as it says: `grpc-timeout` of the gRPC protocol over HTTP/2.

use crate::status::{invalid, status};
use http::HeaderMap;
use std::time::Duration;
use tonic::Status;

const HEADER: &str = "grpc-timeout";
/// Most digits that the protocol allows.
const DIGITS_MAX: usize = 8;

fn parse(text: &str) -> Option<Duration> {
    let (value, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if value.is_empty() || value.len() > DIGITS_MAX || !value.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = value.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// How long the client of a call with these headers waits; none where it does not say.
pub(crate) fn of(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(parse);
    parsed.map(Some).ok_or_else(|| invalid(HEADER, "must be up to 8 digits and one of H, M, S, m, u and n"))
}

/// What a call is answered with when its client waits no longer.
pub(crate) fn exceeded() -> Status {
    let why = "the call was not done within the time that its client gave it";
    status("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", why, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_units_are_the_protocols_and_nothing_else_is_taken() {
        let good =
            [("1H", 3_600_000_000_000), ("2M", 120_000_000_000), ("3S", 3_000_000_000), ("4m", 4_000_000)];
        for (text, nanos) in good.into_iter().chain([("99999999u", 99_999_999_000), ("0n", 0)]) {
            assert_eq!(parse(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "S", "1", "123456789S", "1s", "-1S", "+1S", "1 S", "1SS", "١S", "1é"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
