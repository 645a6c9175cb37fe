//! Verbs on keys.

use crate::{
    output::{line, many, one},
    session::{Session, time},
};
use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Subcommand;
use custody_proto::vault as wire;
use prost_types::{FieldMask, Timestamp};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Makes a key: `vaults/V/keys/K`.
    Create {
        name: String,
        /// Bits: 2048, 3072 or 4096.
        #[arg(long, default_value_t = 2048)]
        size: i32,
    },
    /// Takes a key from a file: PKCS#8 or PKCS#1, PEM or DER.
    Import { name: String, file: PathBuf },
    /// Shows a key or a version.
    Get { name: String },
    /// Lists the keys of a vault.
    List {
        vault: String,
        /// Deleted ones instead.
        #[arg(long)]
        deleted: bool,
    },
    /// Lists the versions of a key, newest first.
    Versions { name: String },
    /// Lets a key or a version be used.
    Enable { name: String },
    /// Stops its use.
    Disable { name: String },
    /// Sets its dates, RFC 3339; `none` takes one away.
    Dates {
        name: String,
        /// Not before.
        #[arg(long)]
        from: Option<String>,
        /// Not from then on.
        #[arg(long)]
        until: Option<String>,
    },
    /// Deletes a key; it can be recovered.
    Delete { name: String },
    /// Recovers a deleted key.
    Recover { name: String },
    /// Destroys a deleted key for good.
    Purge { name: String },
    /// Makes a new version.
    Rotate { name: String },
    /// Wraps a file's content; for workloads.
    Wrap { name: String, file: PathBuf },
    /// Unwraps; for workloads.
    Unwrap { version: String, base64: String },
}

fn state(s: i32) -> String {
    wire::KeyState::try_from(s)
        .map(|s| s.as_str_name().trim_start_matches("KEY_STATE_").to_owned())
        .unwrap_or_default()
}

fn version(v: wire::KeyVersion) -> Value {
    let a = v.attributes.unwrap_or_default();
    json!({ "name": v.name, "state": state(v.state), "size": v.key_size_bits, "not_before": time(a.not_before), "expires": time(a.expire_time), "created": time(v.create_time) })
}

fn key(k: wire::Key) -> Value {
    let v = k.current_version.unwrap_or_default();
    json!({
        "name": k.name, "state": state(v.state), "version": v.name.rsplit('/').next().unwrap_or_default(), "size": v.key_size_bits,
        "recovery": format!("{} {} days", k.recovery_level, k.recoverable_days), "created": time(k.create_time), "purge": time(k.purge_time),
    })
}

fn split(name: &str) -> anyhow::Result<(String, String)> {
    let (parent, id) = name.rsplit_once("/keys/").context("a key's name is vaults/V/keys/K")?;
    Ok((parent.to_owned(), id.to_owned()))
}

async fn update(
    session: &Session,
    name: String,
    attributes: wire::KeyAttributes,
    paths: &[&str],
) -> anyhow::Result<()> {
    let mut client = session.vault("officer")?;
    let update_mask = Some(FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() });
    let attributes = Some(attributes);
    let shown = if name.contains("/versions/") {
        version(
            client
                .update_key_version(wire::UpdateKeyVersionRequest { name, attributes, update_mask })
                .await?
                .into_inner(),
        )
    } else {
        key(client.update_key(wire::UpdateKeyRequest { name, attributes, update_mask }).await?.into_inner())
    };
    one(session.format, &shown);
    Ok(())
}

fn date(text: Option<&String>, field: &str) -> anyhow::Result<Option<Timestamp>> {
    match text.map(String::as_str) {
        None | Some("none") => Ok(None),
        Some(text) => text.parse().map(Some).with_context(|| {
            format!("--{field} `{text}` is not an RFC 3339 time, such as 2027-01-31T00:00:00Z")
        }),
    }
}

pub(crate) async fn run(session: &Session, verb: Verb) -> anyhow::Result<()> {
    let mut client = session.vault("officer")?;
    let format = session.format;
    match verb {
        Verb::Create { name, size } => {
            let (parent, key_id) = split(&name)?;
            one(
                format,
                &key(client
                    .create_key(wire::CreateKeyRequest {
                        parent,
                        key_id,
                        key_size_bits: size,
                        attributes: None,
                    })
                    .await?
                    .into_inner()),
            );
        }
        Verb::Import { name, file } => {
            let (parent, key_id) = split(&name)?;
            let private_key =
                std::fs::read(&file).with_context(|| format!("`{}` cannot be read", file.display()))?;
            one(
                format,
                &key(client
                    .import_key(wire::ImportKeyRequest { parent, key_id, private_key, attributes: None })
                    .await?
                    .into_inner()),
            );
        }
        Verb::Get { name } if name.contains("/versions/") => one(
            format,
            &version(client.get_key_version(wire::GetKeyVersionRequest { name }).await?.into_inner()),
        ),
        Verb::Get { name } => {
            one(format, &key(client.get_key(wire::GetKeyRequest { name }).await?.into_inner()))
        }
        Verb::List { vault, deleted } => {
            let request = wire::ListKeysRequest {
                parent: vault,
                page_size: 1000,
                page_token: String::new(),
                show_deleted: deleted,
            };
            many(format, client.list_keys(request).await?.into_inner().keys.into_iter().map(key).collect());
        }
        Verb::Versions { name } => {
            let request =
                wire::ListKeyVersionsRequest { parent: name, page_size: 1000, page_token: String::new() };
            many(
                format,
                client
                    .list_key_versions(request)
                    .await?
                    .into_inner()
                    .key_versions
                    .into_iter()
                    .map(version)
                    .collect(),
            );
        }
        Verb::Enable { name } => {
            update(
                session,
                name,
                wire::KeyAttributes { enabled: true, ..wire::KeyAttributes::default() },
                &["enabled"],
            )
            .await?
        }
        Verb::Disable { name } => update(session, name, wire::KeyAttributes::default(), &["enabled"]).await?,
        Verb::Dates { name, from, until } => {
            let paths: Vec<&str> =
                [from.as_ref().map(|_| "not_before"), until.as_ref().map(|_| "expire_time")]
                    .into_iter()
                    .flatten()
                    .collect();
            let attributes = wire::KeyAttributes {
                enabled: true,
                not_before: date(from.as_ref(), "from")?,
                expire_time: date(until.as_ref(), "until")?,
            };
            update(session, name, attributes, &paths).await?;
        }
        Verb::Delete { name } => {
            one(format, &key(client.delete_key(wire::DeleteKeyRequest { name }).await?.into_inner()))
        }
        Verb::Recover { name } => {
            one(format, &key(client.undelete_key(wire::UndeleteKeyRequest { name }).await?.into_inner()))
        }
        Verb::Purge { name } => {
            client.purge_key(wire::PurgeKeyRequest { name: name.clone() }).await?;
            line(format!("{name} destroyed"));
        }
        Verb::Rotate { name } => {
            one(format, &key(client.rotate_key(wire::RotateKeyRequest { name }).await?.into_inner()))
        }
        Verb::Wrap { name, file } => {
            let plaintext =
                std::fs::read(&file).with_context(|| format!("`{}` cannot be read", file.display()))?;
            let done = client
                .wrap_key(wire::WrapKeyRequest { name, algorithm: String::new(), plaintext })
                .await?
                .into_inner();
            one(
                format,
                &json!({ "version": done.key_version, "algorithm": done.algorithm, "ciphertext": STANDARD.encode(done.ciphertext) }),
            );
        }
        Verb::Unwrap { version, base64 } => {
            let ciphertext = STANDARD.decode(base64).context("the wrapped key is not base64")?;
            let done = client
                .unwrap_key(wire::UnwrapKeyRequest { name: version, algorithm: String::new(), ciphertext })
                .await?
                .into_inner();
            one(format, &json!({ "plaintext": STANDARD.encode(done.plaintext) }));
        }
    }
    Ok(())
}
