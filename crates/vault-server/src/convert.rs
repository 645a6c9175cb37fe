//! Between wire and domain.

use custody_proto::vault as wire;
use custody_rpc::{
    status::{invalid, status},
    timestamp::{from_wire, to_wire},
};
use custody_types::{
    KeyAttributes, KeyOperation, KeyState, KeyType, PublicKey, RsaSize, UnixMillis, WrappedKey,
};
use custody_vault::{AttributeChange, Event, EventType, KeyView, VaultError, VaultRecord, VersionView};
use prost_types::FieldMask;
use std::collections::HashMap;
use tonic::Status;

pub(crate) fn failed(e: VaultError) -> Status {
    if matches!(e.status(), "INTERNAL" | "UNAVAILABLE" | "DATA_LOSS") {
        tracing::error!(error = %e, source = ?std::error::Error::source(&e), "vault operation failed");
    }
    status(e.status(), e.reason(), &e.to_string(), e.field())
}

pub(crate) fn vault(v: VaultRecord) -> wire::Vault {
    wire::Vault {
        name: v.name.to_string(),
        soft_delete_retention_days: i32::try_from(v.soft_delete_retention_days).unwrap_or(0),
        purge_protection: v.purge_protection,
        create_time: Some(to_wire(v.create_time)),
    }
}

fn attributes(a: KeyAttributes) -> wire::KeyAttributes {
    wire::KeyAttributes {
        enabled: a.enabled,
        not_before: a.not_before.map(to_wire),
        expire_time: a.expire_time.map(to_wire),
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
    })
}

/// The operations that a request names.
pub(crate) fn key_ops(given: &[String]) -> Result<Vec<KeyOperation>, Status> {
    given.iter().map(|o| o.parse().map_err(|e| invalid("key_ops", e))).collect()
}

/// The kind of key that a request asks for.
pub(crate) fn key_type(kty: &str, size_bits: i32, curve: &str) -> Result<KeyType, Status> {
    match kty {
        "" | "RSA" => {
            let bits = if size_bits == 0 { 2048 } else { u32::try_from(size_bits).unwrap_or(0) };
            RsaSize::try_from(bits).map(KeyType::Rsa).map_err(|e| invalid("key_size_bits", e))
        }
        "EC" => {
            let curve = if curve.is_empty() { "P-256" } else { curve };
            curve.parse().map(KeyType::Ec).map_err(|e| invalid("curve", e))
        }
        _ => Err(invalid("key_type", "must be RSA or EC")),
    }
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
        let why = "must name at least one of enabled, not_before, expire_time, key_ops, tags";
        return Err(invalid("update_mask", why));
    }
    let mut change = AttributeChange::default();
    for path in paths {
        match path.trim_start_matches("attributes.") {
            "enabled" => change.enabled = Some(given.enabled),
            "not_before" => change.not_before = Some(given.not_before),
            "expire_time" => change.expire_time = Some(given.expire_time),
            "key_ops" => change.key_ops = Some(key_ops(ops)?),
            "tags" => change.tags = Some(tags.clone().into_iter().collect()),
            _ => {
                let why = "may name enabled, not_before, expire_time, key_ops and tags only";
                return Err(invalid("update_mask", why));
            }
        }
    }
    Ok(change)
}

pub(crate) fn version(v: VersionView) -> wire::KeyVersion {
    let state = match v.state {
        KeyState::PreActive => wire::KeyState::PreActive,
        KeyState::Active => wire::KeyState::Active,
        KeyState::Suspended => wire::KeyState::Suspended,
        KeyState::Expired => wire::KeyState::Expired,
        _ => wire::KeyState::Deleted,
    };
    let kind = v.public.key_type();
    let shown = wire::KeyVersion {
        name: v.name.to_string(),
        attributes: Some(attributes(v.attributes)),
        state: state.into(),
        key_type: kind.map_or("", KeyType::kty).to_owned(),
        key_size_bits: kind.and_then(|k| i32::try_from(k.bits()).ok()).unwrap_or(0),
        create_time: Some(to_wire(v.create_time)),
        update_time: Some(to_wire(v.update_time)),
        key_ops: v.key_ops.iter().map(ToString::to_string).collect(),
        tags: v.tags.into_iter().collect(),
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
        _ => wire::KeyEventType::AccessChanged,
    };
    notice(kind, &e.resource, e.time)
}

pub(crate) fn notice(kind: wire::KeyEventType, resource: &str, time: UnixMillis) -> wire::KeyEvent {
    wire::KeyEvent { r#type: kind.into(), resource: resource.to_owned(), event_time: Some(to_wire(time)) }
}

pub(crate) fn assignment(a: custody_authz::Assignment) -> wire::RoleAssignment {
    wire::RoleAssignment { name: a.name, principal: a.principal, role: a.role, scope: a.scope.to_string() }
}
