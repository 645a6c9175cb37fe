//! Between wire and domain.

use custody_proto::vault::{self as wire, rotation_policy::Rotate};
use custody_rpc::{
    status::{invalid, retry, status},
    timestamp::{from_wire, to_wire},
};
use custody_types::{
    KeyAttributes, KeyName, KeyOperation, KeyState, KeyType, Protection, PublicKey, RsaSize, UnixMillis,
    WrappedKey,
};
use custody_vault::{
    ApprovalPolicy, AttributeChange, CalendarSpan, Event, EventType, KeyView, RotationPolicy, Trigger,
    UseCounts, VaultChange, VaultError, VaultRecord, VersionView,
};
use prost_types::FieldMask;
use std::collections::HashMap;
use tonic::Status;

pub(crate) fn failed(e: VaultError) -> Status {
    if matches!(e.status(), "INTERNAL" | "UNAVAILABLE" | "DATA_LOSS") {
        tracing::error!(error = %e, source = ?std::error::Error::source(&e), "vault operation failed");
    }
    match e.retry_after() {
        Some(after) => retry(e.status(), e.reason(), &e.to_string(), after),
        None => status(e.status(), e.reason(), &e.to_string(), e.field()),
    }
}

pub(crate) fn vault(v: VaultRecord) -> wire::Vault {
    wire::Vault {
        name: v.name.to_string(),
        soft_delete_retention_days: i32::try_from(v.soft_delete_retention_days).unwrap_or(0),
        purge_protection: v.purge_protection,
        create_time: Some(to_wire(v.create_time)),
        approval_policy: match v.approvals {
            ApprovalPolicy::OneOfficer => wire::ApprovalPolicy::OneOfficer,
            ApprovalPolicy::TwoOfficers => wire::ApprovalPolicy::TwoOfficers,
        }
        .into(),
    }
}

pub(crate) fn approval_policy(given: i32) -> Result<ApprovalPolicy, Status> {
    match wire::ApprovalPolicy::try_from(given) {
        Ok(wire::ApprovalPolicy::OneOfficer) => Ok(ApprovalPolicy::OneOfficer),
        Ok(_) => Ok(ApprovalPolicy::TwoOfficers),
        Err(_) => Err(invalid("vault.approval_policy", "is not known; use TWO_OFFICERS or ONE_OFFICER")),
    }
}

pub(crate) fn vault_change(given: &wire::Vault, mask: Option<&FieldMask>) -> Result<VaultChange, Status> {
    let paths = mask.map(|m| m.paths.as_slice()).unwrap_or_default();
    if paths.is_empty() {
        return Err(invalid("update_mask", "must name at least one of purge_protection, approval_policy"));
    }
    let mut change = VaultChange::default();
    for path in paths {
        match path.as_str() {
            "purge_protection" => change.purge_protection = Some(given.purge_protection),
            "approval_policy" => change.approvals = Some(approval_policy(given.approval_policy)?),
            _ => {
                return Err(invalid("update_mask", "may name purge_protection and approval_policy only"));
            }
        }
    }
    Ok(change)
}

/// The key of `vaults/{vault}/keys/{key}/rotationPolicy`.
pub(crate) fn policy_key(name: &str) -> Result<KeyName, Status> {
    let key = name.strip_suffix("/rotationPolicy").and_then(|key| key.parse().ok());
    key.ok_or_else(|| invalid("name", "must be of the form vaults/{vault}/keys/{key}/rotationPolicy"))
}

pub(crate) fn rotation_policy(p: RotationPolicy) -> wire::RotationPolicy {
    wire::RotationPolicy {
        name: format!("{}/rotationPolicy", p.key),
        notify_before_expiry: p.notify_before.to_string(),
        expire_after: p.expire_after.as_ref().map(ToString::to_string).unwrap_or_default(),
        create_time: p.create_time.map(to_wire),
        update_time: p.update_time.map(to_wire),
        rotate: p.rotate.map(|trigger| match trigger {
            Trigger::AfterCreation(span) => Rotate::RotateAfterCreation(span.to_string()),
            Trigger::BeforeExpiry(span) => Rotate::RotateBeforeExpiry(span.to_string()),
        }),
    }
}

pub(crate) fn rotation_policy_from(p: wire::RotationPolicy) -> Result<RotationPolicy, Status> {
    let span = |text: &str, field: &'static str| text.parse::<CalendarSpan>().map_err(|e| invalid(field, e));
    let mut policy = RotationPolicy::default_of(policy_key(&p.name)?);
    if !p.notify_before_expiry.is_empty() {
        policy.notify_before = span(&p.notify_before_expiry, "rotation_policy.notify_before_expiry")?;
    }
    if !p.expire_after.is_empty() {
        policy.expire_after = Some(span(&p.expire_after, "rotation_policy.expire_after")?);
    }
    policy.rotate = match p.rotate {
        None => None,
        Some(Rotate::RotateAfterCreation(text)) => {
            Some(Trigger::AfterCreation(span(&text, "rotation_policy.rotate_after_creation")?))
        }
        Some(Rotate::RotateBeforeExpiry(text)) => {
            Some(Trigger::BeforeExpiry(span(&text, "rotation_policy.rotate_before_expiry")?))
        }
    };
    Ok(policy)
}

fn attributes(a: KeyAttributes) -> wire::KeyAttributes {
    wire::KeyAttributes {
        enabled: a.enabled,
        not_before: a.not_before.map(to_wire),
        expire_time: a.expire_time.map(to_wire),
        use_budget: a.budget.and_then(|b| i64::try_from(b).ok()).unwrap_or(0),
    }
}

pub(crate) fn attributes_from(a: Option<&wire::KeyAttributes>) -> Result<KeyAttributes, Status> {
    let Some(a) = a else { return Ok(KeyAttributes::default()) };
    let time =
        |t: &Option<prost_types::Timestamp>, field| t.as_ref().map(|t| from_wire(t, field)).transpose();
    Ok(KeyAttributes {
        enabled: a.enabled,
        not_before: time(&a.not_before, "attributes.not_before")?,
        expire_time: time(&a.expire_time, "attributes.expire_time")?,
        budget: match u64::try_from(a.use_budget) {
            Ok(0) => None,
            Ok(budget) => Some(budget),
            Err(_) => return Err(invalid("attributes.use_budget", "must be positive, or 0 for no bound")),
        },
    })
}

/// The operations that a request names.
pub(crate) fn key_ops(given: &[String]) -> Result<Vec<KeyOperation>, Status> {
    given.iter().map(|o| o.parse().map_err(|e| invalid("key_ops", e))).collect()
}

/// The kind of key that a request asks for.
pub(crate) fn key_type(kty: &str, size_bits: i32, curve: &str) -> Result<(KeyType, Protection), Status> {
    let (kty, protection) = match kty.strip_suffix("-HSM") {
        Some(kty) => (kty, Protection::Hsm),
        None => (kty, Protection::Software),
    };
    let kind = match kty {
        "" | "RSA" => {
            let bits = if size_bits == 0 { 2048 } else { u32::try_from(size_bits).unwrap_or(0) };
            RsaSize::try_from(bits).map(KeyType::Rsa).map_err(|e| invalid("key_size_bits", e))
        }
        "EC" => {
            let curve = if curve.is_empty() { "P-256" } else { curve };
            curve.parse().map(KeyType::Ec).map_err(|e| invalid("curve", e))
        }
        _ => Err(invalid("key_type", "must be RSA or EC, or RSA-HSM or EC-HSM for a key in the HSM")),
    };
    Ok((kind?, protection))
}

pub(crate) fn change(
    a: Option<&wire::KeyAttributes>,
    mask: Option<&FieldMask>,
    ops: &[String],
    tags: HashMap<String, String>,
) -> Result<AttributeChange, Status> {
    let given = attributes_from(a)?;
    let paths = mask.map(|m| m.paths.as_slice()).unwrap_or_default();
    if paths.is_empty() {
        let why = "must name at least one of enabled, not_before, expire_time, use_budget, key_ops, tags";
        return Err(invalid("update_mask", why));
    }
    let mut change = AttributeChange::default();
    for path in paths {
        match path.trim_start_matches("attributes.") {
            "enabled" => change.enabled = Some(given.enabled),
            "not_before" => change.not_before = Some(given.not_before),
            "expire_time" => change.expire_time = Some(given.expire_time),
            "use_budget" => change.budget = Some(given.budget),
            "key_ops" => change.key_ops = Some(key_ops(ops)?),
            "tags" => change.tags = Some(tags.clone().into_iter().collect()),
            _ => {
                let why = "may name enabled, not_before, expire_time, use_budget, key_ops and tags only";
                return Err(invalid("update_mask", why));
            }
        }
    }
    Ok(change)
}

fn uses(counts: &UseCounts) -> wire::KeyUses {
    let count = |(o, n): (&KeyOperation, &u64)| (o.to_string(), i64::try_from(*n).unwrap_or(i64::MAX));
    wire::KeyUses {
        operations: counts.operations.iter().map(count).collect(),
        last_use_time: counts.last_used.map(to_wire),
    }
}

pub(crate) fn key_state(state: KeyState) -> wire::KeyState {
    match state {
        KeyState::PreActive => wire::KeyState::PreActive,
        KeyState::Active => wire::KeyState::Active,
        KeyState::Suspended => wire::KeyState::Suspended,
        KeyState::Expired => wire::KeyState::Expired,
        _ => wire::KeyState::Deleted,
    }
}

pub(crate) fn version(v: VersionView) -> wire::KeyVersion {
    let state = key_state(v.state);
    let kind = v.public.key_type();
    let shown = wire::KeyVersion {
        name: v.name.to_string(),
        attributes: Some(attributes(v.attributes)),
        state: state.into(),
        key_type: kind.map_or("", |kind| v.protection.kty(kind)).to_owned(),
        key_size_bits: kind.and_then(|k| i32::try_from(k.bits()).ok()).unwrap_or(0),
        create_time: Some(to_wire(v.create_time)),
        update_time: Some(to_wire(v.update_time)),
        key_ops: v.key_ops.iter().map(ToString::to_string).collect(),
        tags: v.tags.into_iter().collect(),
        uses: Some(uses(&v.uses)),
        ..wire::KeyVersion::default()
    };
    match v.public {
        PublicKey::Ec { crv, x, y } => wire::KeyVersion { curve: crv.to_string(), x, y, ..shown },
        PublicKey::Rsa { n, e } => wire::KeyVersion { n, e, ..shown },
    }
}

pub(crate) fn key(k: KeyView) -> wire::Key {
    wire::Key {
        name: k.name.to_string(),
        recovery_level: k.recovery_level(),
        current_version: Some(version(k.current)),
        recoverable_days: i32::try_from(k.recoverable_days).unwrap_or(0),
        delete_time: k.deleted.map(|(t, _)| to_wire(t)),
        purge_time: k.deleted.map(|(_, t)| to_wire(t)),
        create_time: Some(to_wire(k.create_time)),
    }
}

pub(crate) fn wrapped(w: WrappedKey) -> wire::WrapKeyResponse {
    wire::WrapKeyResponse {
        key_version: w.key_version.to_string(),
        algorithm: w.algorithm.to_string(),
        ciphertext: w.ciphertext,
    }
}

pub(crate) fn event(e: Event) -> wire::KeyEvent {
    let kind = match e.kind {
        EventType::NewVersionCreated => wire::KeyEventType::NewVersionCreated,
        EventType::Updated => wire::KeyEventType::Updated,
        EventType::Deleted => wire::KeyEventType::Deleted,
        EventType::Recovered => wire::KeyEventType::Recovered,
        EventType::Purged => wire::KeyEventType::Purged,
        EventType::NearExpiry => wire::KeyEventType::NearExpiry,
        EventType::Expired => wire::KeyEventType::Expired,
        EventType::Sealed => wire::KeyEventType::Sealed,
        EventType::Unsealed => wire::KeyEventType::Unsealed,
        EventType::ApprovalRequested => wire::KeyEventType::ApprovalRequested,
        _ => wire::KeyEventType::AccessChanged,
    };
    notice(kind, &e.resource, e.time)
}

pub(crate) fn notice(kind: wire::KeyEventType, resource: &str, time: UnixMillis) -> wire::KeyEvent {
    wire::KeyEvent { r#type: kind.into(), resource: resource.to_owned(), event_time: Some(to_wire(time)) }
}
