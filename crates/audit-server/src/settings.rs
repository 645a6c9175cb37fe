//! How a trail is kept and sent: `[audit]` of a service's settings.

use custody_types::{Clock, UnixMillis};
use serde::Deserialize;
use std::{collections::BTreeMap, fmt, num::NonZeroU32, path::PathBuf, time::Duration};

/// A day.
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// How a trail is kept and sent. By default it is kept for ever, and sent nowhere.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditSettings {
    /// Days after which records may be removed: 1 to 36,500. Kept for ever without it.
    pub(crate) retention_days: Option<NonZeroU32>,
    /// A directory where files are copied to before they are removed: best on another disk.
    pub(crate) archive: Option<PathBuf>,
    /// Where records are sent to as OpenTelemetry logs.
    pub(crate) otlp: Option<OtlpSettings>,
}

/// A collector of OpenTelemetry logs, by OTLP over gRPC.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OtlpSettings {
    /// `https://host:port`, or `http://host:port` for a collector on the same machine.
    pub(crate) endpoint: String,
    /// The certificates of the authority that the collector's certificate is of, PEM. Without it the deployment's own, and
    /// the service shows its certificate.
    pub(crate) ca: Option<PathBuf>,
    /// Headers of every call, as a collector wants them for authentication.
    #[serde(default)]
    pub(crate) headers: Headers,
    /// Seconds from one checkpoint that is sent to the next.
    #[serde(default = "checkpoint_every_s")]
    pub(crate) checkpoint_every_s: u64,
}

fn checkpoint_every_s() -> u64 {
    60
}

/// Headers by name. Their values may be secrets.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub(crate) struct Headers(pub(crate) BTreeMap<String, String>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditSettingsError {
    /// A field is out of range or malformed.
    #[error("`audit.{field}` {why}")]
    Field {
        /// Below `audit`.
        field: &'static str,
        /// What is wrong and what is not.
        why: String,
    },
}

impl AuditSettings {
    /// How long records stay.
    pub(crate) fn retention(&self) -> Option<Duration> {
        self.retention_days.map(|days| DAY * days.get())
    }

    /// The time before which records may be removed.
    pub(crate) fn before(&self, clock: &dyn Clock) -> Option<UnixMillis> {
        let age = u64::try_from(self.retention()?.as_millis()).unwrap_or(u64::MAX);
        Some(UnixMillis::from_millis(clock.now().as_millis().saturating_sub(age)))
    }

    pub(crate) fn check(&self) -> Result<(), AuditSettingsError> {
        let field = |field, why: &str| AuditSettingsError::Field { field, why: why.to_owned() };
        if self.retention_days.is_some_and(|days| days.get() > 36_500) {
            return Err(field("retention_days", "must be 1 to 36500"));
        }
        if self.archive.is_some() && self.retention_days.is_none() {
            return Err(field("archive", "is of no use without `audit.retention_days`"));
        }
        if self.otlp.as_ref().is_some_and(|otlp| !(1..=86_400).contains(&otlp.checkpoint_every_s)) {
            return Err(field("otlp.checkpoint_every_s", "must be 1 to 86400"));
        }
        Ok(())
    }
}
