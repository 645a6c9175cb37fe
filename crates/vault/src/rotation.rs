//! Rotation policies, and what they and the dates of keys make due.

use crate::{
    Call, EventType, Vault, VaultError,
    catalog::{Catalog, POLICIES},
    gate::{Permit, op},
    record::KeyRecord,
};
use custody_audit::{Outcome, Record};
use custody_store::Batch;
use custody_types::{KeyName, UnixMillis};
use jiff::{Span, Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, time::Duration};

/// When a notice comes where nothing else was said: Azure's default.
const NOTIFY_BEFORE: &str = "P30D";
/// How long a rotation that failed waits until it is tried again.
const RETRY_TIME: Duration = Duration::from_secs(60);

/// A span in years, months, weeks and days, as ISO 8601 writes it: `P2Y`, `P18M`, `P30D`. Counted by the calendar, UTC.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CalendarSpan(String);

/// The text is no such span.
#[derive(Clone, Debug, thiserror::Error)]
#[error("must be a duration of ISO 8601 in years, months, weeks and days, as `P90D` or `P2Y`")]
pub struct CalendarSpanError;

impl FromStr for CalendarSpan {
    type Err = CalendarSpanError;
    fn from_str(text: &str) -> Result<Self, CalendarSpanError> {
        let span: Span = text.parse().map_err(|_| CalendarSpanError)?;
        let date_only = text.starts_with('P') && !text.contains('T') && text.len() <= 20;
        if date_only && span.is_positive() { Ok(Self(text.to_owned())) } else { Err(CalendarSpanError) }
    }
}

impl TryFrom<String> for CalendarSpan {
    type Error = CalendarSpanError;
    fn try_from(text: String) -> Result<Self, CalendarSpanError> {
        text.parse()
    }
}

impl From<CalendarSpan> for String {
    fn from(span: CalendarSpan) -> Self {
        span.0
    }
}

impl fmt::Display for CalendarSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CalendarSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl CalendarSpan {
    fn moved(&self, from: UnixMillis, sign: i64) -> UnixMillis {
        // Parsed when it was made; a sum beyond the calendar is as good as never.
        let moved = || {
            let span: Span = self.0.parse().ok()?;
            let start = Timestamp::from_millisecond(i64::try_from(from.as_millis()).ok()?).ok()?;
            let end = start.to_zoned(TimeZone::UTC).checked_add(span.checked_mul(sign).ok()?).ok()?;
            u64::try_from(end.timestamp().as_millisecond()).ok()
        };
        let never = if sign > 0 { u64::MAX } else { 0 };
        UnixMillis::from_millis(moved().unwrap_or(never))
    }

    /// The moment that lies this span after another.
    #[must_use]
    pub fn after(&self, start: UnixMillis) -> UnixMillis {
        self.moved(start, 1)
    }

    /// The moment that lies this span before another.
    #[must_use]
    pub fn before(&self, end: UnixMillis) -> UnixMillis {
        self.moved(end, -1)
    }

    /// Its shortest length in days.
    fn days(&self) -> u64 {
        let start = UnixMillis::from_secs(1_675_209_600); // 2023-02-01: a month of 28 days, a year of 365.
        self.after(start).since(start).as_secs() / 86_400
    }
}

/// When something happens in the life of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// So long after it was made.
    AfterCreation(CalendarSpan),
    /// So long before it expires.
    BeforeExpiry(CalendarSpan),
}

/// What the vault does by itself for a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationPolicy {
    /// The key.
    pub key: KeyName,
    /// When it makes a new version.
    pub rotate: Option<Trigger>,
    /// How long before the expiry it tells of it.
    pub notify_before: CalendarSpan,
    /// What the expiry of new versions is.
    pub expire_after: Option<CalendarSpan>,
    /// When the policy was first set; none where it is the default.
    pub create_time: Option<UnixMillis>,
    /// When it was last set.
    pub update_time: Option<UnixMillis>,
}

impl RotationPolicy {
    /// What holds where nothing was set: a notice 30 days before the expiry.
    #[must_use]
    pub fn default_of(key: KeyName) -> Self {
        let notify_before = CalendarSpan(NOTIFY_BEFORE.to_owned());
        Self { key, rotate: None, notify_before, expire_after: None, create_time: None, update_time: None }
    }

    /// Azure's bounds ("Configure cryptographic key auto-rotation").
    fn check(&self) -> Result<(), VaultError> {
        let invalid = |field, why: &str| Err(VaultError::invalid(field, why));
        if self.expire_after.as_ref().is_some_and(|e| e.days() < 28) {
            return invalid("rotation_policy.expire_after", "must be at least P28D");
        }
        match &self.rotate {
            Some(Trigger::AfterCreation(span)) if span.days() < 7 => {
                invalid("rotation_policy.rotate_after_creation", "must be at least P7D")
            }
            Some(Trigger::BeforeExpiry(span)) if span.days() < 7 => {
                invalid("rotation_policy.rotate_before_expiry", "must be at least P7D")
            }
            Some(Trigger::BeforeExpiry(span)) => match &self.expire_after {
                None => invalid(
                    "rotation_policy.expire_after",
                    "is required where the rotation is set before the expiry: new versions would have none",
                ),
                Some(life) if span.days() + 7 > life.days() => invalid(
                    "rotation_policy.rotate_before_expiry",
                    "must leave at least 7 days after the creation",
                ),
                Some(_) => Ok(()),
            },
            Some(Trigger::AfterCreation(span)) => match &self.expire_after {
                Some(life) if span.days() + 7 > life.days() => invalid(
                    "rotation_policy.rotate_after_creation",
                    "must leave at least 7 days before the expiry",
                ),
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }
}

/// What is due for a key, and when.
fn dues(catalog: &Catalog, key: &KeyRecord) -> Vec<(UnixMillis, EventType)> {
    let Ok(current) = catalog.current(key) else { return Vec::new() };
    let record = &current.record;
    if key.deleted.is_some() {
        return Vec::new();
    }
    let default;
    let policy = match catalog.policies.get(&key.name) {
        Some(policy) => policy,
        None => {
            default = RotationPolicy::default_of(key.name.clone());
            &default
        }
    };
    let expiry = record.attributes.expire_time;
    let mut due = Vec::new();
    if let Some(expiry) = expiry {
        due.push((policy.notify_before.before(expiry), EventType::NearExpiry));
        due.push((expiry, EventType::Expired));
    }
    match (&policy.rotate, expiry) {
        // A key that its owner switched off stays as it is.
        _ if !record.attributes.enabled => {}
        (Some(Trigger::AfterCreation(span)), _) => {
            due.push((span.after(record.create_time), EventType::NewVersionCreated));
        }
        (Some(Trigger::BeforeExpiry(span)), Some(expiry)) => {
            due.push((span.before(expiry), EventType::NewVersionCreated));
        }
        _ => {}
    }
    due
}

/// When something is next due for a key. A notice whose time is over is not made up for; a rotation is.
pub(crate) fn next_due(catalog: &Catalog, key: &KeyRecord, after: UnixMillis) -> Option<UnixMillis> {
    let ahead =
        |(time, what): &(UnixMillis, EventType)| *time > after || *what == EventType::NewVersionCreated;
    dues(catalog, key).into_iter().filter(ahead).map(|(time, _)| time).min()
}

impl Vault {
    /// Reads a key's rotation policy, or the default that holds without one.
    ///
    /// # Errors
    /// Not allowed, or the key does not exist.
    pub fn get_rotation_policy(&self, call: &Call, key: &str) -> Result<RotationPolicy, VaultError> {
        let name: KeyName = key.parse()?;
        self.gate.run::<op::GetRotationPolicy, _>(call, name.as_str(), |_| {
            let catalog = self.catalog.read();
            catalog.live_key(&name)?;
            let set = catalog.policies.get(&name).cloned();
            Ok(set.unwrap_or_else(|| RotationPolicy::default_of(name.clone())))
        })
    }

    /// Sets a key's rotation policy. It holds from now on: what it makes due at once is done within seconds.
    ///
    /// # Errors
    /// Not allowed, the key does not exist, or a span is out of bounds.
    pub fn set_rotation_policy(
        &self,
        call: &Call,
        policy: RotationPolicy,
    ) -> Result<RotationPolicy, VaultError> {
        policy.check()?;
        let name = policy.key.clone();
        self.gate.run(call, name.as_str(), |permit| self.do_set_policy(&permit, policy))
    }

    fn do_set_policy(
        &self,
        _: &Permit<op::SetRotationPolicy>,
        mut policy: RotationPolicy,
    ) -> Result<RotationPolicy, VaultError> {
        let _one_at_a_time = self.changes.lock();
        let now = self.now();
        let name = policy.key.clone();
        {
            let catalog = self.catalog.read();
            catalog.live_key(&name)?;
            policy.create_time = catalog.policies.get(&name).map_or(Some(now), |p| p.create_time);
            policy.update_time = Some(now);
        }
        let mut batch = Batch::new();
        batch.put(POLICIES, name.as_str(), &policy);
        self.commit(batch, |catalog| {
            catalog.policies.insert(name.clone(), policy.clone());
            catalog.plan(&name, now);
        })?;
        self.tell(EventType::Updated, name.as_str());
        Ok(policy)
    }

    /// The expiry that a key's policy gives to a version made now.
    pub(crate) fn expiry_by_policy(&self, key: &KeyName, now: UnixMillis) -> Option<UnixMillis> {
        let catalog = self.catalog.read();
        catalog.policies.get(key).and_then(|p| p.expire_after.as_ref()).map(|span| span.after(now))
    }
}

/// Does what the dates and the policies of keys have made due.
pub(crate) fn run_agenda(vault: &Vault) -> Result<(), VaultError> {
    let now = vault.now();
    let due = vault.catalog.read().agenda.due(now);
    let mut failed = None;
    for name in due {
        let (planned, what) = {
            let catalog = vault.catalog.read();
            let planned = catalog.agenda.of(&name);
            let all = catalog.keys.get(&name).map(|key| dues(&catalog, key)).unwrap_or_default();
            (planned, all.into_iter().filter(|(t, _)| *t <= now).collect::<Vec<_>>())
        };
        let mut next = now;
        for (time, kind) in what {
            if kind == EventType::NewVersionCreated {
                if let Err(e) = rotate_due(vault, &name) {
                    next = now.plus(RETRY_TIME);
                    // Its owner sealed it: that is no failure, and it is made up for.
                    failed = failed.or(Some(e).filter(|e| !matches!(e, VaultError::VaultSealed(_))));
                }
            } else if planned.is_none_or(|planned| time >= planned) {
                vault.tell(kind, name.as_str());
            }
        }
        let mut catalog = vault.catalog.write();
        if next > now {
            catalog.agenda.set(&name, Some(next));
        } else {
            catalog.plan(&name, now);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Rotates a key as its policy says, with its record first (Azure: `KeyRotateIfDue`).
fn rotate_due(vault: &Vault, name: &KeyName) -> Result<(), VaultError> {
    let call = vault.own_call()?;
    let record =
        Record::begin(vault.now(), "KeyRotateIfDue", &call.correlation_id, &call.caller, name.as_str());
    let pending = vault.journal().begin(record)?;
    let done = vault.rotate(name);
    match &done {
        Ok(_) => pending.finish(Outcome::Success, "OK", "the key's rotation policy"),
        Err(e) => pending.finish(Outcome::Failed, e.status(), &e.to_string()),
    }
    done.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_counted_by_the_calendar() {
        let start = UnixMillis::from_secs(1_706_659_200); // 2024-01-31
        let after = |text: &str| text.parse::<CalendarSpan>().unwrap().after(start).as_secs();
        assert_eq!(after("P1M"), 1_709_164_800, "2024-02-29");
        assert_eq!(after("P1Y"), 1_738_281_600, "2025-01-31");
        assert_eq!(after("P90D"), 1_706_659_200 + 90 * 86_400);
        let span: CalendarSpan = "P30D".parse().unwrap();
        assert_eq!(span.before(span.after(start)), start);
        for bad in ["", "P", "90D", "P1H", "PT1H", "P1DT1H", "-P1D", "P0D", "P-1D", "P1.5Y", "P99999999999D"]
        {
            assert!(bad.parse::<CalendarSpan>().is_err(), "{bad}");
        }
    }
}
