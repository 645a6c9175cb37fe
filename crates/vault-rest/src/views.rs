//! What clients get. Members that say nothing are left out, never `null`.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use custody_types::{PublicKey, UnixMillis};
use custody_vault::{KeyView, RotationPolicy, Trigger, VersionView};
use serde_json::{Map, Value, json};

pub(crate) fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Where the client sees the vault, `https://name.vault.example:port`: the beginning of every id.
#[derive(Clone, Debug)]
pub(crate) struct Base(pub(crate) String);

fn attributes(key: &KeyView, version: &VersionView) -> Value {
    let a = version.attributes;
    let mut out = json!({ "enabled": a.enabled });
    if let Some(fields) = out.as_object_mut() {
        let mut date = |name: &str, time: Option<UnixMillis>| {
            if let Some(time) = time {
                fields.insert(name.to_owned(), json!(time.as_secs()));
            }
        };
        date("nbf", a.not_before);
        date("exp", a.expire_time);
        date("created", Some(version.create_time));
        date("updated", Some(version.update_time));
        fields.insert("recoveryLevel".to_owned(), json!(key.recovery_level()));
        fields.insert("recoverableDays".to_owned(), json!(key.recoverable_days));
    }
    out
}

impl Base {
    /// `https://host/keys/name/version` of a version's resource name.
    pub(crate) fn kid(&self, version_name: &str) -> String {
        let mut parts = version_name.split('/').skip(3);
        let (key, version) = (parts.next().unwrap_or_default(), parts.nth(1).unwrap_or_default());
        format!("{}/keys/{key}/{version}", self.0)
    }

    fn jwk(&self, version: &VersionView) -> Value {
        let ops: Vec<&str> = version.key_ops.iter().map(|o| o.as_str()).collect();
        let kid = self.kid(version.name.as_str());
        let kty = version.public.key_type().map_or("", |kind| version.protection.kty(kind));
        match &version.public {
            PublicKey::Ec { crv, x, y } => {
                json!({ "kid": kid, "kty": kty, "key_ops": ops, "crv": crv.as_str(), "x": b64(x), "y": b64(y) })
            }
            PublicKey::Rsa { n, e } => {
                json!({ "kid": kid, "kty": kty, "key_ops": ops, "n": b64(n), "e": b64(e) })
            }
        }
    }

    /// A KeyBundle of one version of a key.
    pub(crate) fn bundle(&self, key: &KeyView, version: &VersionView) -> Value {
        let mut out = json!({
            "key": self.jwk(version),
            "attributes": attributes(key, version),
        });
        add_tags(&mut out, version);
        out
    }

    /// A DeletedKeyBundle.
    pub(crate) fn deleted_bundle(&self, key: &KeyView) -> Value {
        let mut out = self.bundle(key, &key.current);
        self.add_deletion(&mut out, key);
        out
    }

    fn add_deletion(&self, out: &mut Value, key: &KeyView) {
        if let (Some(fields), Some((deleted, purge))) = (out.as_object_mut(), key.deleted) {
            let id = format!("{}/deletedkeys/{}", self.0, key.name.id());
            fields.insert("recoveryId".to_owned(), json!(id));
            fields.insert("deletedDate".to_owned(), json!(deleted.as_secs()));
            fields.insert("scheduledPurgeDate".to_owned(), json!(purge.as_secs()));
        }
    }

    /// A KeyItem: an id without a version in lists of keys, with one in lists of versions.
    pub(crate) fn item(&self, key: &KeyView, version: &VersionView, versioned: bool) -> Value {
        let kid = if versioned {
            self.kid(version.name.as_str())
        } else {
            format!("{}/keys/{}", self.0, key.name.id())
        };
        let mut out = json!({
            "kid": kid,
            "attributes": attributes(key, version),
        });
        add_tags(&mut out, version);
        out
    }

    /// A KeyRotationPolicy. The notice is always told, also where it is the default.
    pub(crate) fn rotation_policy(&self, policy: &RotationPolicy) -> Value {
        let mut actions = Vec::new();
        match &policy.rotate {
            Some(Trigger::AfterCreation(span)) => actions.push(json!({
                "trigger": { "timeAfterCreate": span.to_string() }, "action": { "type": "Rotate" }
            })),
            Some(Trigger::BeforeExpiry(span)) => actions.push(json!({
                "trigger": { "timeBeforeExpiry": span.to_string() }, "action": { "type": "Rotate" }
            })),
            None => {}
        }
        actions.push(json!({
            "trigger": { "timeBeforeExpiry": policy.notify_before.to_string() }, "action": { "type": "Notify" }
        }));
        let mut attributes = Map::new();
        if let Some(span) = &policy.expire_after {
            attributes.insert("expiryTime".to_owned(), json!(span.to_string()));
        }
        for (name, time) in [("created", policy.create_time), ("updated", policy.update_time)] {
            if let Some(time) = time {
                attributes.insert(name.to_owned(), json!(time.as_secs()));
            }
        }
        json!({
            "id": format!("{}/keys/{}/rotationpolicy", self.0, policy.key.id()),
            "lifetimeActions": actions,
            "attributes": attributes,
        })
    }

    pub(crate) fn deleted_item(&self, key: &KeyView) -> Value {
        let mut out = self.item(key, &key.current, false);
        self.add_deletion(&mut out, key);
        out
    }
}

fn add_tags(out: &mut Value, version: &VersionView) {
    if let (Some(fields), false) = (out.as_object_mut(), version.tags.is_empty()) {
        let tags: Map<String, Value> =
            version.tags.iter().map(|(name, text)| (name.clone(), json!(text))).collect();
        fields.insert("tags".to_owned(), Value::Object(tags));
    }
}
