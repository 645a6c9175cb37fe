//! Verbs on audit trails. `verify` works offline: on files, with nothing running.

use crate::{
    inclusion,
    output::{Format, line, many, one},
    session::Session,
    witness,
};
use anyhow::Context as _;
use clap::Subcommand;
use custody_audit::Earlier;
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
        #[command(flatten)]
        filter: Filter,
    },
    /// Tells the story of a key, a vault or a volume, in order.
    Explain {
        /// `vaults/V/keys/K`, `vaults/V` or `volumes/X`.
        resource: String,
    },
    /// Shows what there is of a trail, how long it is kept, and how far it was sent.
    Status {
        /// Whose trail: vault, control or identity.
        #[arg(default_value = "vault")]
        service: String,
    },
    /// Shows the last signed checkpoint: keep it elsewhere, and nothing before it can be altered or cut off unseen.
    Checkpoint {
        /// Whose trail: vault, control or identity.
        #[arg(default_value = "vault")]
        service: String,
    },
    /// Writes a proof that a record is in the trail: `custody-audit-sequence` of an answer says which.
    Prove {
        sequence: u64,
        file: PathBuf,
        /// Whose trail: vault, control or identity.
        #[arg(long, default_value = "vault")]
        service: String,
        /// The record, a file: of one that retention removed, from its archive or from a collector. Without it the trail is asked.
        #[arg(long)]
        record: Option<PathBuf>,
    },
    /// Is a witness: sees that a trail goes on from what it saw before, and cosigns its checkpoint.
    Witness(witness::Options),
    /// Checks such a proof, offline, and shows its record.
    Check {
        file: PathBuf,
        /// The signing key's public half, a file; that of the deployment's vault if not given. Bring your own copy.
        #[arg(long)]
        public_key: Option<PathBuf>,
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
        /// A file with an earlier checkpoint: finds what before it was altered, also by who has the key, or cut off.
        #[arg(long)]
        checkpoint: Option<PathBuf>,
    },
}

/// Which records.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Filter {
    /// Only resources that begin so.
    #[arg(long, default_value = "")]
    resource: String,
    /// Only of this principal or managed identity.
    #[arg(long, default_value = "")]
    caller: String,
    /// Only of this operation, as `KeyUnwrap`.
    #[arg(long, default_value = "")]
    operation: String,
    /// Only with this result: Started, Success, Denied, Failed or Interrupted.
    #[arg(long, default_value = "")]
    result: String,
    /// Only whose description has this in it.
    #[arg(long, default_value = "")]
    text: String,
    /// Only from this time on, RFC 3339.
    #[arg(long)]
    since: Option<String>,
    /// Only before this time, RFC 3339.
    #[arg(long)]
    until: Option<String>,
}

impl Filter {
    /// Those about a resource, and what lies below it.
    pub(crate) fn of(resource: &str) -> Self {
        Self { resource: resource.to_owned(), ..Self::default() }
    }

    fn request(&self, page_token: String) -> anyhow::Result<wire::ListRecordsRequest> {
        let time = |text: Option<&String>, field| -> anyhow::Result<Option<prost_types::Timestamp>> {
            let parse = |text: &String| {
                text.parse().with_context(|| format!("--{field} `{text}` is not an RFC 3339 time"))
            };
            text.map(parse).transpose()
        };
        Ok(wire::ListRecordsRequest {
            page_size: 1000,
            page_token,
            resource_prefix: self.resource.clone(),
            principal: self.caller.clone(),
            operation: self.operation.clone(),
            result: self.result.clone(),
            description_part: self.text.clone(),
            start_time: time(self.since.as_ref(), "since")?,
            end_time: time(self.until.as_ref(), "until")?,
        })
    }
}

/// All records that a filter lets through.
pub(crate) async fn records(
    session: &Session,
    service: &str,
    filter: &Filter,
) -> anyhow::Result<Vec<wire::AuditRecord>> {
    let mut client = session.audit(service, "auditor")?;
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = client.list_records(filter.request(page_token)?).await?.into_inner();
        all.extend(page.records);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

/// What happened to a resource, a line for each end of an operation.
fn story(records: &[wire::AuditRecord]) -> Vec<Value> {
    let parsed = records.iter().filter_map(|r| Some((r.sequence, serde_json::from_str(&r.json).ok()?)));
    let ends = parsed.filter(|(_, r): &(u64, custody_audit::Record)| r.phase == custody_audit::Phase::Finish);
    ends.map(|(sequence, r)| {
        let time = custody_rpc::timestamp::to_wire(r.time).to_string();
        let what = match r.result_type {
            custody_audit::Outcome::Success => r.operation_name.clone(),
            other => format!("{} ({other:?} {})", r.operation_name, r.result_signature),
        };
        json!({ "seq": sequence, "time": time, "who": r.identity.principal, "what": what, "on": r.resource_id, "why": r.result_description })
    })
    .collect()
}

/// How a trail is kept and sent.
fn status(trail: &wire::AuditTrail) -> Value {
    let kept =
        trail.retention.map_or_else(|| "for ever".to_owned(), |r| format!("{} days", r.seconds / 86_400));
    let sending = trail.sending.clone().unwrap_or_default();
    json!({
        "name": trail.name, "first": trail.first_sequence, "last": trail.last_sequence, "kept": kept,
        "retentionError": trail.retention_error, "sentTo": sending.endpoint, "sent": sending.sent_sequence,
        "rejected": sending.rejected_records, "sendingError": sending.error,
    })
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
    format: Format,
    session: impl Fn() -> anyhow::Result<Session>,
    verb: Verb,
) -> anyhow::Result<()> {
    match verb {
        Verb::List { service, filter } => {
            let session = session()?;
            let found = records(&session, &service, &filter).await?;
            many(session.format, found.iter().map(row).collect());
        }
        Verb::Explain { resource } => {
            let session = session()?;
            let filter = if resource.starts_with("volumes/") {
                Filter { text: resource, ..Filter::default() }
            } else {
                Filter::of(&resource)
            };
            many(session.format, story(&records(&session, "vault", &filter).await?));
        }
        Verb::Checkpoint { service } => {
            let mut client = session()?.audit(&service, "auditor")?;
            let checkpoint = client.get_checkpoint(wire::GetCheckpointRequest {}).await?.into_inner();
            line(checkpoint.note.trim_end());
        }
        Verb::Status { service } => {
            let session = session()?;
            let mut client = session.audit(&service, "auditor")?;
            let trail = client.get_trail(wire::GetTrailRequest {}).await?.into_inner();
            one(session.format, &status(&trail));
        }
        Verb::Prove { sequence, file, service, record } => {
            let record = record.map(|path| {
                std::fs::read_to_string(&path).with_context(|| format!("`{}` cannot be read", path.display()))
            });
            let proof = inclusion::fetch(&session()?, &service, sequence, record.transpose()?).await?;
            std::fs::write(&file, proof)
                .with_context(|| format!("`{}` cannot be written", file.display()))?;
            line(format!("record {sequence} is proven in `{}`", file.display()));
        }
        Verb::Witness(options) => witness::run(session, options).await?,
        Verb::Check { file, public_key } => {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("`{}` cannot be read", file.display()))?;
            let key = public_key.unwrap_or_else(|| dir.join("vault/data/audit/checkpoint.pub"));
            line(inclusion::check(&text, &read_key(&key)?).context("the proof does NOT hold")?);
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
        Verb::Verify { trail, public_key, head, checkpoint } => {
            let trail = trail.unwrap_or_else(|| dir.join("vault/data/audit"));
            let read = |path: PathBuf| {
                std::fs::read_to_string(&path).with_context(|| format!("`{}` cannot be read", path.display()))
            };
            let checkpoint = checkpoint.map(read).transpose()?.map(|note| note.trim_end().to_owned() + "\n");
            let known = Earlier { head: head.as_deref(), checkpoint: checkpoint.as_deref() };
            let report = verify(&trail, public_key.as_deref(), known)?;
            let mut shown = serde_json::to_value(report)?;
            // Of several lines; `custody audit checkpoint` has it.
            shown.as_object_mut().map(|fields| fields.remove("checkpoint"));
            one(format, &shown);
        }
    }
    Ok(())
}

pub(crate) fn read_key(path: &Path) -> anyhow::Result<Vec<u8>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("no public key at `{}`", path.display()))?;
    hex::decode(text.trim())
        .with_context(|| format!("`{}` is not a public key in hexadecimal", path.display()))
}

pub(crate) fn verify(
    trail: &Path,
    public_key: Option<&Path>,
    known: Earlier<'_>,
) -> anyhow::Result<custody_audit::Report> {
    let beside = trail.join("checkpoint.pub");
    let key = read_key(public_key.unwrap_or(&beside))?;
    custody_audit::verify(trail, &key, known).context("the trail does NOT verify")
}
