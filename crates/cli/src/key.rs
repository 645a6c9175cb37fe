//! Verbs on keys.

use crate::{
    lease, lineage,
    output::{Format, line, many, one},
    public_key,
    session::{Session, time},
};
use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Subcommand;
use custody_proto::vault::{self as wire, rotation_policy::Rotate};
use custody_types::SignatureAlgorithm;
use prost_types::{FieldMask, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use std::path::PathBuf;

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Makes a key: `vaults/V/keys/K`.
    Create {
        name: String,
        /// Bits of an RSA key: 2048, 3072 or 4096.
        #[arg(long, default_value_t = 2048, conflicts_with = "curve")]
        size: i32,
        /// An EC key on this curve instead: P-256, P-256K, P-384 or P-521.
        #[arg(long)]
        curve: Option<String>,
        /// What it may be asked to do, as in `--ops wrapKey,unwrapKey`; all that its kind can if not given.
        #[arg(long, value_delimiter = ',')]
        ops: Vec<String>,
        /// Keep it in the HSM.
        #[arg(long)]
        hsm: bool,
    },
    /// Takes a key from a file: PKCS#8 or PKCS#1, PEM or DER; or a transfer file.
    Import {
        name: String,
        file: PathBuf,
        /// The file is a transfer file (`.byok`), wrapped for a key exchange key of the vault.
        #[arg(long)]
        byok: bool,
        /// Keep it in the HSM. A transfer file is unwrapped there.
        #[arg(long)]
        hsm: bool,
    },
    /// Shows a key or a version.
    Get { name: String },
    /// Shows the public half of a key's current version, as PEM.
    Public { name: String },
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
    /// Bounds how often a version may be used; 0 for no bound.
    Budget { name: String, uses: i64 },
    /// Shows a key's rotation policy, or sets it where a span is given: `P90D`, `P18M`, `P2Y`.
    RotationPolicy {
        name: String,
        /// Make a new version so long after the current one was made.
        #[arg(long, conflicts_with = "rotate_before")]
        rotate_after: Option<String>,
        /// Make a new version so long before the current one expires.
        #[arg(long)]
        rotate_before: Option<String>,
        /// Let new versions expire after this time.
        #[arg(long)]
        expire_after: Option<String>,
        /// Tell of the expiry so long before it.
        #[arg(long)]
        notify_before: Option<String>,
    },
    /// Gives random bytes of a vault's generator, 1 to 128.
    Random { vault: String, count: i32 },
    /// Deletes a key; it can be recovered.
    Delete { name: String },
    /// Recovers a deleted key.
    Recover { name: String },
    /// Destroys a deleted key for good.
    Purge {
        name: String,
        /// Although volumes, backups or logs depend on it, which become unreadable. Needs a second officer.
        #[arg(long)]
        crypto_shred: bool,
    },
    /// Makes a new version.
    Rotate { name: String },
    /// Wraps a file's content; for workloads.
    Wrap { name: String, file: PathBuf },
    /// Unwraps; for workloads.
    Unwrap { version: String, base64: String },
    /// Signs a file's content; for workloads.
    Sign {
        name: String,
        file: PathBuf,
        /// As JOSE names it: RS256, PS256, ES256, ...
        #[arg(long, default_value = "PS256")]
        algorithm: String,
    },
    /// Checks a signature of a file's content; for workloads.
    Verify {
        version: String,
        file: PathBuf,
        base64: String,
        /// As JOSE names it.
        #[arg(long, default_value = "PS256")]
        algorithm: String,
    },
    /// Takes a sealed copy with all versions. Restoring it undoes a purge: keep it as you keep the key.
    Backup { name: String, file: PathBuf },
    /// Brings a copy back under its name, which must be free.
    Restore { vault: String, file: PathBuf },
    #[command(flatten)]
    Lease(lease::Verb),
    #[command(flatten)]
    Lineage(lineage::Verb),
}

fn state(s: i32) -> String {
    wire::KeyState::try_from(s)
        .map(|s| s.as_str_name().trim_start_matches("KEY_STATE_").to_owned())
        .unwrap_or_default()
}

fn uses(u: Option<wire::KeyUses>) -> String {
    let mut all: Vec<String> =
        u.unwrap_or_default().operations.into_iter().map(|(o, n)| format!("{o} {n}")).collect();
    all.sort();
    all.join(", ")
}

fn version(v: wire::KeyVersion) -> Value {
    let a = v.attributes.unwrap_or_default();
    json!({ "name": v.name, "state": state(v.state), "type": v.key_type, "size": v.key_size_bits, "curve": v.curve, "operations": v.key_ops.join(","), "not_before": time(a.not_before), "expires": time(a.expire_time), "created": time(v.create_time), "budget": a.use_budget, "uses": uses(v.uses) })
}

fn key(k: wire::Key) -> Value {
    let v = k.current_version.unwrap_or_default();
    json!({
        "name": k.name, "state": state(v.state), "version": v.name.rsplit('/').next().unwrap_or_default(), "type": v.key_type, "size": v.key_size_bits, "curve": v.curve,
        "recovery": format!("{} {} days", k.recovery_level, k.recoverable_days), "created": time(k.create_time), "purge": time(k.purge_time),
    })
}

fn policy(p: wire::RotationPolicy) -> Value {
    let (after, before) = match p.rotate {
        Some(Rotate::RotateAfterCreation(span)) => (span, String::new()),
        Some(Rotate::RotateBeforeExpiry(span)) => (String::new(), span),
        None => (String::new(), String::new()),
    };
    json!({
        "name": p.name, "rotate_after": after, "rotate_before": before, "expire_after": p.expire_after,
        "notify_before": p.notify_before_expiry, "set": time(p.update_time),
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
                .update_key_version(wire::UpdateKeyVersionRequest {
                    name,
                    attributes,
                    update_mask,
                    ..wire::UpdateKeyVersionRequest::default()
                })
                .await?
                .into_inner(),
        )
    } else {
        key(client
            .update_key(wire::UpdateKeyRequest {
                name,
                attributes,
                update_mask,
                ..wire::UpdateKeyRequest::default()
            })
            .await?
            .into_inner())
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

/// The digest of a file's content, with the hash that the algorithm asks for.
fn digest_of(file: &std::path::Path, algorithm: &str) -> anyhow::Result<Vec<u8>> {
    let algorithm: SignatureAlgorithm = algorithm.parse()?;
    let bytes = std::fs::read(file).with_context(|| format!("`{}` cannot be read", file.display()))?;
    Ok(match algorithm.digest_len() {
        32 => Sha256::digest(bytes).to_vec(),
        48 => Sha384::digest(bytes).to_vec(),
        _ => Sha512::digest(bytes).to_vec(),
    })
}

pub(crate) async fn run(session: &Session, verb: Verb) -> anyhow::Result<()> {
    let mut client = session.vault("officer")?;
    let format = session.format;
    match verb {
        Verb::Create { name, size, curve, ops, hsm } => {
            let (parent, key_id) = split(&name)?;
            let kind = if curve.is_some() { "EC" } else { "RSA" };
            let key_type = format!("{kind}{}", if hsm { "-HSM" } else { "" });
            one(
                format,
                &key(client
                    .create_key(wire::CreateKeyRequest {
                        parent,
                        key_id,
                        key_size_bits: size,
                        key_type,
                        curve: curve.unwrap_or_default(),
                        key_ops: ops,
                        ..wire::CreateKeyRequest::default()
                    })
                    .await?
                    .into_inner()),
            );
        }
        Verb::Import { name, file, byok, hsm } => {
            let (parent, key_id) = split(&name)?;
            let content =
                std::fs::read(&file).with_context(|| format!("`{}` cannot be read", file.display()))?;
            let (private_key, byok) = if byok { (Vec::new(), content) } else { (content, Vec::new()) };
            one(
                format,
                &key(client
                    .import_key(wire::ImportKeyRequest {
                        parent,
                        key_id,
                        private_key,
                        byok,
                        hsm,
                        ..wire::ImportKeyRequest::default()
                    })
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
        Verb::Public { name } => {
            let current = if name.contains("/versions/") {
                client.get_key_version(wire::GetKeyVersionRequest { name }).await?.into_inner()
            } else {
                let key = client.get_key(wire::GetKeyRequest { name }).await?.into_inner();
                key.current_version.unwrap_or_default()
            };
            let pem = public_key::pem(&current)?;
            match format {
                Format::Table => line(pem.trim_end()),
                Format::Json => one(format, &json!({ "name": current.name, "public": pem })),
            }
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
                ..wire::KeyAttributes::default()
            };
            update(session, name, attributes, &paths).await?;
        }
        Verb::Budget { name, uses } => {
            let attributes = wire::KeyAttributes { use_budget: uses, ..wire::KeyAttributes::default() };
            update(session, name, attributes, &["use_budget"]).await?;
        }
        Verb::RotationPolicy { name, rotate_after, rotate_before, expire_after, notify_before } => {
            let name = format!("{name}/rotationPolicy");
            let rotate = rotate_after
                .map(Rotate::RotateAfterCreation)
                .or_else(|| rotate_before.map(Rotate::RotateBeforeExpiry));
            let shown = if rotate.is_none() && expire_after.is_none() && notify_before.is_none() {
                client.get_rotation_policy(wire::GetRotationPolicyRequest { name }).await?
            } else {
                let policy = wire::RotationPolicy {
                    name,
                    rotate,
                    notify_before_expiry: notify_before.unwrap_or_default(),
                    expire_after: expire_after.unwrap_or_default(),
                    ..wire::RotationPolicy::default()
                };
                let rotation_policy = Some(policy);
                client.update_rotation_policy(wire::UpdateRotationPolicyRequest { rotation_policy }).await?
            };
            one(format, &policy(shown.into_inner()));
        }
        Verb::Random { vault: parent, count } => {
            let done = client.get_random_bytes(wire::GetRandomBytesRequest { parent, count }).await?;
            one(format, &json!({ "bytes": STANDARD.encode(done.into_inner().value) }));
        }
        Verb::Delete { name } => {
            one(format, &key(client.delete_key(wire::DeleteKeyRequest { name }).await?.into_inner()))
        }
        Verb::Recover { name } => {
            one(format, &key(client.undelete_key(wire::UndeleteKeyRequest { name }).await?.into_inner()))
        }
        Verb::Purge { name, crypto_shred } => {
            client.purge_key(wire::PurgeKeyRequest { name: name.clone(), crypto_shred }).await?;
            if crypto_shred {
                lineage::tell_shredded(session, &name).await?;
            } else {
                line(format!("{name} destroyed"));
            }
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
        Verb::Sign { name, file, algorithm } => {
            let digest = digest_of(&file, &algorithm)?;
            let done = client.sign(wire::SignRequest { name, algorithm, digest }).await?.into_inner();
            one(
                format,
                &json!({ "version": done.key_version, "signature": STANDARD.encode(done.signature) }),
            );
        }
        Verb::Verify { version, file, base64, algorithm } => {
            let signature = STANDARD.decode(base64).context("the signature is not base64")?;
            let digest = digest_of(&file, &algorithm)?;
            let request = wire::VerifyRequest { name: version, algorithm, digest, signature };
            let done = client.verify(request).await?.into_inner();
            one(format, &json!({ "version": done.key_version, "valid": done.valid }));
            anyhow::ensure!(done.valid, "the signature does not hold");
        }
        Verb::Backup { name, file } => {
            let done = client.backup_key(wire::BackupKeyRequest { name: name.clone() }).await?.into_inner();
            crate::pki::write_secret(&file, &STANDARD.encode(done.backup))?;
            line(format!("{name} is in `{}`", file.display()));
        }
        Verb::Restore { vault, file } => {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("`{}` cannot be read", file.display()))?;
            let backup = STANDARD.decode(text.trim()).context("the file is not a backup of a key")?;
            let request = wire::RestoreKeyRequest { parent: vault, backup };
            one(format, &key(client.restore_key(request).await?.into_inner()));
        }
        Verb::Lease(verb) => lease::run(session, verb).await?,
        Verb::Lineage(verb) => lineage::run(session, verb).await?,
    }
    Ok(())
}
