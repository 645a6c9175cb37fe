//! What clients send. Unknown members are let pass, as Azure does; what is known is checked.

use crate::error::RestError;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use custody_types::{
    Curve, KeyAttributes, KeyFamily, KeyName, KeyOperation, KeyType, Protection, RsaSize, UnixMillis,
};
use custody_vault::{
    AttributeChange, CalendarSpan, CalendarSpanError, Declared, Material, Particulars, PrivateJwk,
    RotationPolicy, Tags, Trigger,
};
use serde::{Deserialize, de::DeserializeOwned};
use zeroize::{Zeroize as _, Zeroizing};

/// Reads a body.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, RestError> {
    serde_json::from_slice(body).map_err(|e| {
        // The place is told, never the text: a body may hold a private key.
        let (line, column) = (e.line(), e.column());
        RestError::bad_parameter(format!(
            "the body is not the JSON object expected (line {line}, column {column})"
        ))
    })
}

/// Bytes in base64url, with or without padding. Erased on drop.
pub(crate) fn bytes(text: &str, field: &str) -> Result<Zeroizing<Vec<u8>>, RestError> {
    let decoded = URL_SAFE_NO_PAD.decode(text.trim_end_matches('='));
    decoded.map(Zeroizing::new).map_err(|_| RestError::bad_parameter(format!("`{field}` is not base64url")))
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Attributes {
    enabled: Option<bool>,
    nbf: Option<u64>,
    exp: Option<u64>,
    exportable: Option<bool>,
}

impl Attributes {
    fn check(&self) -> Result<(), RestError> {
        if self.exportable == Some(true) {
            return Err(RestError::bad_parameter(
                "exportable keys are not offered: a private half stays in the vault",
            ));
        }
        Ok(())
    }
}

fn key_ops(given: &[String]) -> Result<Vec<KeyOperation>, RestError> {
    let parse = |o: &String| {
        o.parse().map_err(|e: custody_types::UnknownKeyOperation| RestError::bad_parameter(e.to_string()))
    };
    given.iter().map(parse).collect()
}

fn particulars(
    attributes: Option<Attributes>,
    ops: Option<Vec<String>>,
    tags: Option<Tags>,
) -> Result<Particulars, RestError> {
    let given = attributes.unwrap_or_default();
    given.check()?;
    Ok(Particulars {
        attributes: KeyAttributes {
            enabled: given.enabled.unwrap_or(true),
            not_before: given.nbf.map(UnixMillis::from_secs),
            expire_time: given.exp.map(UnixMillis::from_secs),
            budget: None,
        },
        key_ops: key_ops(&ops.unwrap_or_default())?,
        tags: tags.unwrap_or_default(),
        protection: Protection::Software,
    })
}

#[derive(Debug, Deserialize)]
pub(crate) struct Create {
    kty: String,
    key_size: Option<u32>,
    crv: Option<String>,
    key_ops: Option<Vec<String>>,
    attributes: Option<Attributes>,
    tags: Option<Tags>,
    public_exponent: Option<u64>,
    release_policy: Option<serde::de::IgnoredAny>,
}

fn curve(name: Option<&str>) -> Result<Curve, RestError> {
    let name = name.unwrap_or("P-256");
    name.parse().map_err(|e: custody_types::UnknownCurve| RestError::bad_parameter(e.to_string()))
}

/// What a `kty` says of the kind of key, and of where it is kept.
fn kept(kty: &str) -> Result<(KeyFamily, Protection), RestError> {
    match kty {
        "RSA" => Ok((KeyFamily::Rsa, Protection::Software)),
        "EC" => Ok((KeyFamily::Ec, Protection::Software)),
        "RSA-HSM" => Ok((KeyFamily::Rsa, Protection::Hsm)),
        "EC-HSM" => Ok((KeyFamily::Ec, Protection::Hsm)),
        "oct" | "oct-HSM" => {
            let message = format!("`kty` {kty} is for Azure's Managed HSM; use RSA, RSA-HSM, EC or EC-HSM");
            Err(RestError::bad_parameter(message))
        }
        _ => Err(RestError::bad_parameter("`kty` must be RSA, RSA-HSM, EC or EC-HSM")),
    }
}

impl Create {
    pub(crate) fn check(self) -> Result<(KeyType, Particulars), RestError> {
        let (family, protection) = kept(&self.kty)?;
        let kind = match family {
            KeyFamily::Rsa => RsaSize::try_from(self.key_size.unwrap_or(2048))
                .map(KeyType::Rsa)
                .map_err(|e| RestError::bad_parameter(e.to_string()))?,
            KeyFamily::Ec => KeyType::Ec(curve(self.crv.as_deref())?),
        };
        if self.public_exponent.is_some_and(|e| e != 65_537) {
            return Err(RestError::bad_parameter("`public_exponent` must be 65537 (NIST SP 800-56B §6.2)"));
        }
        if self.release_policy.is_some() {
            return Err(RestError::bad_parameter("Non-exportable keys must not have release policy"));
        }
        let particulars = particulars(self.attributes, self.key_ops, self.tags)?;
        Ok((kind, Particulars { protection, ..particulars }))
    }
}

/// A private key as a JWK. Its texts are erased on drop.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    d: Option<String>,
    p: Option<String>,
    q: Option<String>,
    dp: Option<String>,
    dq: Option<String>,
    qi: Option<String>,
    k: Option<String>,
    x: Option<String>,
    y: Option<String>,
    key_hsm: Option<String>,
}

impl Drop for Jwk {
    fn drop(&mut self) {
        for text in
            [&mut self.d, &mut self.p, &mut self.q, &mut self.dp, &mut self.dq, &mut self.qi, &mut self.k]
        {
            text.zeroize();
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct Import {
    key: Jwk,
    #[serde(rename = "Hsm")]
    hsm: Option<bool>,
    attributes: Option<Attributes>,
    tags: Option<Tags>,
}

/// A number without leading zeros.
fn number(text: Option<&String>, field: &str) -> Result<Zeroizing<Vec<u8>>, RestError> {
    let text = text.ok_or_else(|| RestError::bad_parameter(format!("`key.{field}` is required")))?;
    let bytes = bytes(text, &format!("key.{field}"))?;
    Ok(Zeroizing::new(bytes.iter().copied().skip_while(|b| *b == 0).collect()))
}

/// A number of a curve's length; clients may leave zeros out at its front, or add one.
fn coordinate(text: Option<&String>, field: &str, len: usize) -> Result<Zeroizing<Vec<u8>>, RestError> {
    let number = number(text, field)?;
    let mut padded = Zeroizing::new(vec![0; len.saturating_sub(number.len())]);
    padded.extend_from_slice(&number);
    Ok(padded)
}

impl Import {
    pub(crate) fn check(mut self) -> Result<(Material, Particulars), RestError> {
        let given = self.key.kty.clone();
        let (family, protection) = kept(&given)?;
        let protection = if self.hsm == Some(true) { Protection::Hsm } else { protection };
        let ops = self.key.key_ops.take();
        if let Some(file) = self.key.key_hsm.take() {
            let file = bytes(&file, "key.key_hsm")?.to_vec();
            let particulars = particulars(self.attributes.take(), ops, self.tags.take())?;
            let particulars = Particulars { protection, ..particulars };
            let crv = self.key.crv.as_deref().filter(|_| family == KeyFamily::Ec);
            let curve = crv.map(|crv| curve(Some(crv))).transpose()?;
            let declared = Some(Declared { family, curve });
            return Ok((Material::Transfer { file, declared }, particulars));
        }
        let jwk = &self.key;
        let private = match family {
            KeyFamily::Rsa => PrivateJwk::Rsa {
                n: number(jwk.n.as_ref(), "n")?.to_vec(),
                e: number(jwk.e.as_ref(), "e")?.to_vec(),
                d: number(jwk.d.as_ref(), "d")?,
                p: number(jwk.p.as_ref(), "p")?,
                q: number(jwk.q.as_ref(), "q")?,
            },
            KeyFamily::Ec => {
                let crv = curve(jwk.crv.as_deref())?;
                let part =
                    |text: &Option<String>, field| coordinate(text.as_ref(), field, crv.coordinate_len());
                PrivateJwk::Ec {
                    crv,
                    d: part(&jwk.d, "d")?,
                    x: part(&jwk.x, "x")?.to_vec(),
                    y: part(&jwk.y, "y")?.to_vec(),
                }
            }
        };
        let particulars = particulars(self.attributes.take(), ops, self.tags.take())?;
        Ok((Material::ImportJwk(private), Particulars { protection, ..particulars }))
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Update {
    key_ops: Option<Vec<String>>,
    attributes: Option<Attributes>,
    tags: Option<Tags>,
}

impl Update {
    pub(crate) fn check(self) -> Result<AttributeChange, RestError> {
        let given = self.attributes.unwrap_or_default();
        given.check()?;
        Ok(AttributeChange {
            enabled: given.enabled,
            not_before: given.nbf.map(|t| Some(UnixMillis::from_secs(t))),
            expire_time: given.exp.map(|t| Some(UnixMillis::from_secs(t))),
            budget: None,
            key_ops: self.key_ops.as_deref().map(key_ops).transpose()?,
            tags: self.tags,
        })
    }
}

/// The body of encrypt, decrypt, wrapkey, unwrapkey and sign.
#[derive(Deserialize)]
pub(crate) struct Use {
    pub(crate) alg: String,
    /// May be key material in clear.
    value: String,
}

impl Drop for Use {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

impl Use {
    pub(crate) fn value(&self) -> Result<Zeroizing<Vec<u8>>, RestError> {
        bytes(&self.value, "value")
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Verify {
    pub(crate) alg: String,
    pub(crate) digest: String,
    pub(crate) value: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Random {
    pub(crate) count: usize,
}

/// A rotation policy as Azure writes it: at most one action of each kind, each with its trigger.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Policy {
    #[serde(default)]
    lifetime_actions: Vec<LifetimeAction>,
    attributes: Option<PolicyAttributes>,
}

#[derive(Debug, Deserialize)]
struct LifetimeAction {
    trigger: Option<LifetimeTrigger>,
    action: LifetimeActionType,
}

#[derive(Debug, Deserialize)]
struct LifetimeActionType {
    r#type: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LifetimeTrigger {
    time_after_create: Option<String>,
    time_before_expiry: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PolicyAttributes {
    expiry_time: Option<String>,
}

fn span(text: &str, field: &str) -> Result<CalendarSpan, RestError> {
    text.parse().map_err(|e: CalendarSpanError| RestError::bad_parameter(format!("`{field}` {e}")))
}

impl Policy {
    pub(crate) fn check(self, key: KeyName) -> Result<RotationPolicy, RestError> {
        let mut policy = RotationPolicy::default_of(key);
        let expiry = self.attributes.unwrap_or_default().expiry_time.filter(|t| !t.is_empty());
        policy.expire_after = expiry.map(|t| span(&t, "attributes.expiryTime")).transpose()?;
        let (mut rotates, mut notifies) = (0, 0);
        for LifetimeAction { trigger, action } in self.lifetime_actions {
            let trigger = trigger.unwrap_or_default();
            let kind = action.r#type.to_ascii_lowercase();
            match (kind.as_str(), trigger.time_after_create, trigger.time_before_expiry) {
                ("rotate", Some(after), None) => {
                    rotates += 1;
                    policy.rotate = Some(Trigger::AfterCreation(span(&after, "trigger.timeAfterCreate")?));
                }
                ("rotate", None, Some(before)) => {
                    rotates += 1;
                    policy.rotate = Some(Trigger::BeforeExpiry(span(&before, "trigger.timeBeforeExpiry")?));
                }
                ("notify", None, Some(before)) => {
                    notifies += 1;
                    policy.notify_before = span(&before, "trigger.timeBeforeExpiry")?;
                }
                ("notify", _, _) => {
                    return Err(RestError::bad_parameter("a Notify action takes `timeBeforeExpiry` alone"));
                }
                ("rotate", _, _) => {
                    let why = "a Rotate action takes one of `timeAfterCreate` and `timeBeforeExpiry`";
                    return Err(RestError::bad_parameter(why));
                }
                _ => return Err(RestError::bad_parameter("`action.type` must be Rotate or Notify")),
            }
        }
        if rotates > 1 || notifies > 1 {
            return Err(RestError::bad_parameter(
                "`lifetimeActions` takes one Rotate and one Notify at most",
            ));
        }
        Ok(policy)
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Restore {
    pub(crate) value: String,
}
