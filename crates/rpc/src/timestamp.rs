//! Times on the wire.

use crate::status::invalid;
use custody_types::UnixMillis;
use prost_types::Timestamp;
use tonic::Status;

/// To the wire.
#[must_use]
pub fn to_wire(time: UnixMillis) -> Timestamp {
    let ms = time.as_millis();
    let nanos = i32::try_from(ms % 1000 * 1_000_000).unwrap_or(0);
    Timestamp { seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX), nanos }
}

/// From the wire.
///
/// # Errors
/// Before 1970, or nanoseconds out of range.
pub fn from_wire(time: &Timestamp, field: &str) -> Result<UnixMillis, Status> {
    let bad = || invalid(field, "must be a time from 1970 on");
    let seconds = u64::try_from(time.seconds).map_err(|_| bad())?;
    let nanos = u64::try_from(time.nanos).ok().filter(|n| *n < 1_000_000_000).ok_or_else(bad)?;
    let ms = seconds.checked_mul(1000).and_then(|ms| ms.checked_add(nanos / 1_000_000)).ok_or_else(bad)?;
    Ok(UnixMillis::from_millis(ms))
}
