//! Verbs on audit trails. `verify` works offline: on files, with nothing running.

use crate::{
    output::{line, many, one},
    session::Session,
};
use anyhow::Context as _;
use clap::Subcommand;
use custody_proto::audit as wire;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Lists records.
    List {
        /// Whose trail: vault, control or identity.
        #[arg(default_value = "vault")]
        service: String,
        /// Only resources that begin so.
        #[arg(long, default_value = "")]
        resource: String,
    },
    /// Follows a trail as it is written.
    Tail {
        /// Whose trail: vault, control or identity.
        #[arg(default_value = "vault")]
        service: String,
    },
    /// Verifies a trail's chain and signatures, offline.
    Verify {
        /// The trail's directory; that of the deployment's vault if not given.
        trail: Option<PathBuf>,
        /// The signing key's public half, a file; `checkpoint.pub` beside the trail if not given. Bring your own copy:
        /// one that lies beside the trail proves only that the trail agrees with itself.
        #[arg(long)]
        public_key: Option<PathBuf>,
        /// The head of an earlier report: finds records cut off at the end.
        #[arg(long)]
        head: Option<String>,
    },
}

fn row(record: &wire::AuditRecord) -> Value {
    let parsed: Value = serde_json::from_str(&record.json).unwrap_or_default();
    let field = |name: &str| parsed.get(name).cloned().unwrap_or_default();
    let principal = parsed.pointer("/identity/principal").cloned().unwrap_or_default();
    json!({
        "seq": record.sequence, "operation": field("operationName"), "result": field("resultType"), "principal": principal,
        "resource": field("resourceId"), "why": field("resultDescription"),
    })
}

pub(crate) async fn run(
    dir: &Path,
    session: impl Fn() -> anyhow::Result<Session>,
    verb: Verb,
) -> anyhow::Result<()> {
    match verb {
        Verb::List { service, resource } => {
            let session = session()?;
            let mut client = session.audit(&service, "auditor")?;
            let (mut rows, mut page_token) = (Vec::new(), String::new());
            loop {
                let request = wire::ListRecordsRequest {
                    page_size: 1000,
                    page_token,
                    resource_prefix: resource.clone(),
                };
                let page = client.list_records(request).await?.into_inner();
                rows.extend(page.records.iter().map(row));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            many(session.format, rows);
        }
        Verb::Tail { service } => {
            let mut stream = session()?
                .audit(&service, "auditor")?
                .tail_records(wire::TailRecordsRequest::default())
                .await?
                .into_inner();
            while let Some(record) = stream.message().await? {
                line(record.json);
            }
        }
        Verb::Verify { trail, public_key, head } => {
            let trail = trail.unwrap_or_else(|| dir.join("vault/data/audit"));
            let report = verify(&trail, public_key.as_deref(), head.as_deref())?;
            one(crate::output::Format::Table, &serde_json::to_value(report)?);
        }
    }
    Ok(())
}

pub(crate) fn verify(
    trail: &Path,
    public_key: Option<&Path>,
    head: Option<&str>,
) -> anyhow::Result<custody_audit::Report> {
    let beside = trail.join("checkpoint.pub");
    let path = public_key.unwrap_or(&beside);
    let text =
        std::fs::read_to_string(path).with_context(|| format!("no public key at `{}`", path.display()))?;
    let key = hex::decode(text.trim())
        .with_context(|| format!("`{}` is not a public key in hexadecimal", path.display()))?;
    custody_audit::verify(trail, &key, head).context("the trail does NOT verify")
}
