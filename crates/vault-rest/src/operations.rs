//! Each route as a call of the domain. Runs on a worker.

use crate::{
    bodies::{self, Create, Import, Policy, Random, Restore, Update},
    error::RestError,
    face::{Answer, Face, Taken},
    route::Route,
    views::b64,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use custody_vault::{IfExists, KeyView, Material, Vault, VaultError, VersionView};
use serde_json::{Value, json};

/// Items on a page of a list: Azure's most, and what is given where nothing is asked for.
const PAGE_LEN: usize = 25;

type Outcome = Result<Answer, RestError>;

pub(crate) fn run(face: &Face, route: Route, taken: &Taken) -> Outcome {
    let (vault, call) = (&*face.vault, &taken.call);
    let named = |key: &str| format!("{}/keys/{key}", taken.vault);
    match route {
        Route::Create { key } => {
            let (kind, particulars) = bodies::parse::<Create>(&taken.body)?.check()?;
            let material = Material::Generate(kind);
            let made =
                vault.create_key(call, &taken.vault, &key, material, particulars, IfExists::AddVersion)?;
            bundle(taken, &made)
        }
        Route::Import { key } => {
            let (material, particulars) = bodies::parse::<Import>(&taken.body)?.check()?;
            let made =
                vault.create_key(call, &taken.vault, &key, material, particulars, IfExists::AddVersion)?;
            bundle(taken, &made)
        }
        Route::Get { key, version } => {
            let (found, version) = find(vault, taken, &key, &version)?;
            Ok(Answer::Json(taken.base.bundle(&found, &version)))
        }
        // Only an exportable key is released, and no token's attestation has Azure's form. Who may read the key learns so.
        Route::Release { key, version } => {
            find(vault, taken, &key, &version)?;
            Err(RestError::bad_parameter("the key is not exportable: a private half stays in the vault"))
        }
        Route::Attestation { key, version } => {
            find(vault, taken, &key, &version)?;
            Err(RestError::bad_parameter(
                "no attestation is offered: the HSM behind this vault gives none that Azure's clients read",
            ))
        }
        Route::Update { key, version } => update(vault, taken, &key, &version),
        Route::Delete { key } => {
            let name = named(&key);
            live(vault, taken, &key)?;
            let deleted = vault.delete_key(call, &name)?;
            Ok(Answer::Json(taken.base.deleted_bundle(&deleted)))
        }
        Route::GetDeleted { key } => {
            Ok(Answer::Json(taken.base.deleted_bundle(&deleted(vault, taken, &key)?)))
        }
        Route::Recover { key } => {
            deleted_by_now(vault, taken, &key)?;
            bundle(taken, &vault.undelete_key(call, &named(&key))?)
        }
        Route::Purge { key } => {
            deleted_by_now(vault, taken, &key)?;
            vault.purge_key(call, &named(&key), false)?;
            Ok(Answer::NoContent)
        }
        Route::Rotate { key } => bundle(taken, &vault.rotate_key(call, &named(&key))?),
        Route::Backup { key } => {
            let copy = vault.backup_key(call, &named(&key))?;
            Ok(Answer::Json(json!({ "value": b64(&copy) })))
        }
        Route::RotationPolicy { key } => {
            Ok(Answer::Json(taken.base.rotation_policy(&vault.get_rotation_policy(call, &named(&key))?)))
        }
        Route::SetRotationPolicy { key } => {
            let name = named(&key).parse().map_err(|_| RestError::key_not_found(&key))?;
            let policy = bodies::parse::<Policy>(&taken.body)?.check(name)?;
            Ok(Answer::Json(taken.base.rotation_policy(&vault.set_rotation_policy(call, policy)?)))
        }
        Route::RandomBytes => {
            let body: Random = bodies::parse(&taken.body)?;
            let bytes = vault.random_bytes(call, &taken.vault, body.count)?;
            Ok(Answer::Json(json!({ "value": b64(&bytes) })))
        }
        Route::Restore => {
            let body: Restore = bodies::parse(&taken.body)?;
            let copy = bodies::bytes(&body.value, "value")?;
            bundle(taken, &vault.restore_key(call, &taken.vault, &copy)?)
        }
        Route::List => {
            let asked = Page::of(taken)?;
            let keys = vault.list_keys(call, &taken.vault, false, &asked.after_key(taken), asked.len + 1)?;
            let view = |k: &KeyView| taken.base.item(k, &k.current, false);
            Ok(asked.answer(taken, "/keys", &keys, |k| k.name.id(), view))
        }
        Route::ListDeleted => {
            let asked = Page::of(taken)?;
            let keys = vault.list_keys(call, &taken.vault, true, &asked.after_key(taken), asked.len + 1)?;
            Ok(asked.answer(taken, "/deletedkeys", &keys, |k| k.name.id(), |k| taken.base.deleted_item(k)))
        }
        Route::ListVersions { key } => {
            let asked = Page::of(taken)?;
            let found = live(vault, taken, &key)?;
            let mut versions = vault.list_key_versions(call, &named(&key))?;
            versions.sort_by(|a, b| a.name.id().cmp(b.name.id()));
            let path = format!("/keys/{key}/versions");
            versions.retain(|v| asked.after.is_empty() || v.name.id() > asked.after.as_str());
            Ok(asked.answer(taken, &path, &versions, |v| v.name.id(), |v| taken.base.item(&found, v, true)))
        }
        // Uses of keys are computed elsewhere: see `uses`.
        Route::Use { .. } => Err(RestError::no_such_route()),
    }
}

fn bundle(taken: &Taken, key: &KeyView) -> Outcome {
    Ok(Answer::Json(taken.base.bundle(key, &key.current)))
}

/// A key that is not deleted.
fn live(vault: &Vault, taken: &Taken, key: &str) -> Result<KeyView, RestError> {
    let found = vault.get_key(&taken.call, &format!("{}/keys/{key}", taken.vault))?;
    if found.deleted.is_some() { Err(RestError::key_not_found(key)) } else { Ok(found) }
}

/// A key that is deleted.
fn deleted(vault: &Vault, taken: &Taken, key: &str) -> Result<KeyView, RestError> {
    let found = vault.get_key(&taken.call, &format!("{}/keys/{key}", taken.vault));
    match found {
        Ok(found) if found.deleted.is_some() => Ok(found),
        Ok(_) => Err(RestError::deleted_key_not_found(key)),
        Err(e) if e.reason() == "NOT_FOUND" => Err(RestError::deleted_key_not_found(key)),
        Err(e) => Err(e.into()),
    }
}

/// As [`deleted`], for what is done to it: a deletion that takes its time is said to.
fn deleted_by_now(vault: &Vault, taken: &Taken, key: &str) -> Result<(), RestError> {
    let name = format!("{}/keys/{key}", taken.vault).parse();
    if name.is_ok_and(|name| vault.is_being_deleted(&name)) {
        return Err(VaultError::BeingDeleted(key.to_owned()).into());
    }
    deleted(vault, taken, key).map(drop)
}

/// A key and one of its versions, the current one if none is named.
fn find(vault: &Vault, taken: &Taken, key: &str, version: &str) -> Result<(KeyView, VersionView), RestError> {
    let found = live(vault, taken, key)?;
    let version = if version.is_empty() {
        found.current.clone()
    } else {
        vault.get_key_version(&taken.call, &format!("{}/versions/{version}", found.name))?
    };
    Ok((found, version))
}

fn update(vault: &Vault, taken: &Taken, key: &str, version: &str) -> Outcome {
    let change = bodies::parse::<Update>(&taken.body)?.check()?;
    let name = format!("{}/keys/{key}", taken.vault);
    if version.is_empty() {
        return bundle(taken, &vault.update_key(&taken.call, &name, change)?);
    }
    let changed = vault.update_key_version(&taken.call, &format!("{name}/versions/{version}"), change)?;
    let found = live(vault, taken, key)?;
    Ok(Answer::Json(taken.base.bundle(&found, &changed)))
}

/// A page of a sorted list that is asked for.
struct Page {
    len: usize,
    /// The id that it begins after; empty for the first.
    after: String,
}

impl Page {
    fn of(taken: &Taken) -> Result<Self, RestError> {
        let asked = taken.parameters.get("maxresults").map(|text| text.parse::<usize>());
        let len = match asked {
            None => PAGE_LEN,
            Some(Ok(len @ 1..=PAGE_LEN)) => len,
            Some(_) => return Err(RestError::bad_parameter("`maxresults` must be 1 to 25")),
        };
        let after = match taken.parameters.get("$skiptoken") {
            None => String::new(),
            Some(token) => URL_SAFE_NO_PAD
                .decode(token)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| RestError::bad_parameter("`$skiptoken` is not one that this vault gave"))?,
        };
        Ok(Self { len, after })
    }

    /// The name of the key that it begins after.
    fn after_key(&self, taken: &Taken) -> String {
        if self.after.is_empty() { String::new() } else { format!("{}/keys/{}", taken.vault, self.after) }
    }

    /// The page out of what follows, one item more than it takes where there is one, with the link to the next.
    fn answer<T>(
        &self,
        taken: &Taken,
        path: &str,
        items: &[T],
        id: impl Fn(&T) -> &str,
        view: impl Fn(&T) -> Value,
    ) -> Answer {
        let shown = items.get(..self.len).unwrap_or(items);
        let next = match shown.last() {
            Some(last) if items.len() > shown.len() => {
                let version = taken.parameters.get("api-version").map(String::as_str).unwrap_or_default();
                let (base, token) = (&taken.base.0, URL_SAFE_NO_PAD.encode(id(last)));
                json!(format!(
                    "{base}{path}?api-version={version}&$skiptoken={token}&maxresults={}",
                    self.len
                ))
            }
            _ => Value::Null,
        };
        let value: Vec<Value> = shown.iter().map(view).collect();
        Answer::Json(json!({ "value": value, "nextLink": next }))
    }
}
