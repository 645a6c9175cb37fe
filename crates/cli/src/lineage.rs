//! Verbs on what needs which version of a key.

use crate::{
    output::{many, note, one},
    session::{Session, time},
};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use custody_proto::{storage, vault as wire};
use custody_types::KeyVersionName;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tonic::{Code, Status};

/// Between words of how far a re-wrap is.
const TELL_EVERY: Duration = Duration::from_secs(1);

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Says which versions of a key can be retired, and what stands against the others; of a version, what needs it.
    Lineage {
        name: String,
        #[command(flatten)]
        rewrap: Rewrap,
        /// List each volume, backup and log that needs the key.
        #[arg(long)]
        dependents: bool,
    },
    /// Shows what became unreadable with a key that was crypto-shredded.
    ShredReport { name: String },
}

#[derive(Args, Default)]
pub(crate) struct Rewrap {
    /// First wrap anew, with the key's current version, what needs an older one. What was cut short goes on when this is run again.
    #[arg(long)]
    rewrap: bool,
    /// At most so many a second, 1 to 1000.
    #[arg(long, requires = "rewrap", default_value_t = 50)]
    per_second: u32,
    /// As which managed identity, for backups of earlier versions, which do not say as whom they were wrapped.
    #[arg(long, requires = "rewrap", default_value = "")]
    managed_identity: String,
}

fn kind(kind: wire::DependentKind) -> String {
    kind.as_str_name().trim_start_matches("DEPENDENT_KIND_").to_lowercase().replace('_', " ")
}

fn short(version: &str) -> &str {
    version.rsplit('/').next().unwrap_or(version)
}

fn version(v: wire::VersionLineage) -> Value {
    let counts = v.dependents.iter().map(|d| (kind(d.kind()), json!(d.count)));
    let state = v.state().as_str_name().trim_start_matches("KEY_STATE_").to_owned();
    json!({
        "version": short(&v.key_version), "state": state, "created": time(v.create_time), "current": v.current,
        "needed_by": counts.collect::<serde_json::Map<_, _>>(), "leases": v.leases,
        "can_be_retired": if v.retirable { "yes" } else { "no" }, "obstacle": v.obstacle,
    })
}

fn dependent(d: wire::Dependent) -> Value {
    let kind = kind(d.kind());
    json!({
        "resource": d.resource, "kind": kind, "version": short(&d.key_version), "adds_to": d.base,
        "stays": d.pinned, "holder": d.holder, "since": time(d.report_time),
    })
}

pub(crate) async fn run(session: &Session, verb: Verb) -> anyhow::Result<()> {
    let mut client = session.lineage("officer")?;
    match verb {
        Verb::Lineage { name, rewrap: with, dependents } => {
            let of_version = name.parse::<KeyVersionName>().ok();
            let key = of_version.as_ref().map_or_else(|| name.clone(), |version| version.key().to_string());
            if with.rewrap {
                tell_wrapped(&wrap_anew(session, &key, with).await?);
            }
            let lineage = client
                .get_lineage(wire::GetLineageRequest { name: format!("{key}/lineage") })
                .await?
                .into_inner();
            if lineage.holders.is_empty() {
                note("no storage node has reported yet: what it stores is not known");
            }
            for holder in lineage.holders.iter().filter(|h| h.complete_time.is_none()) {
                note(format!("{} has not compared all that it stores yet: there may be more", holder.holder));
            }
            if dependents {
                return list(session, &mut client, &name).await;
            }
            match of_version {
                Some(wanted) => {
                    let found = lineage.versions.into_iter().find(|v| v.key_version == wanted.as_str());
                    one(session.format, &version(found.with_context(|| format!("`{name}` does not exist"))?));
                }
                None => many(session.format, lineage.versions.into_iter().map(version).collect()),
            }
        }
        Verb::ShredReport { name } => shred_report(session, &name).await?,
    }
    Ok(())
}

async fn list(session: &Session, client: &mut custody_clients::Lineage, parent: &str) -> anyhow::Result<()> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = wire::ListDependentsRequest { parent: parent.to_owned(), page_size: 1000, page_token };
        let page = client.list_dependents(request).await?.into_inner();
        all.extend(page.dependents.into_iter().map(dependent));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            many(session.format, all);
            return Ok(());
        }
    }
}

/// Has the storage node wrap anew, and tells how far it is.
pub(crate) async fn wrap_anew(
    session: &Session,
    key: &str,
    with: Rewrap,
) -> anyhow::Result<storage::RewrapProgress> {
    let request = storage::RewrapDependentsRequest {
        key: key.to_owned(),
        per_second: with.per_second,
        managed_identity: with.managed_identity,
    };
    let mut progress = session.storage("sysadmin")?.rewrap_dependents(request).await?.into_inner();
    let (mut last, mut told) = (storage::RewrapProgress::default(), Instant::now());
    while let Some(next) = progress.message().await? {
        last = next;
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            note(format!("{} of {} wrapped anew", last.done, last.total));
        }
    }
    anyhow::ensure!(
        last.complete,
        "it was cut short after {} of {}; run it again to go on",
        last.done,
        last.total
    );
    Ok(last)
}

fn tell_wrapped(last: &storage::RewrapProgress) {
    note(format!("{} of {} wrapped anew", last.done.saturating_sub(last.failures.len() as u64), last.total));
    for failure in &last.failures {
        let (what, version) = (&failure.resource, short(&failure.key_version));
        note(format!("{what} stays with {version}: {} ({})", failure.message, failure.reason));
    }
    if !last.complete {
        note("the vault has not heard of all of it yet: the lineage may show what was");
    }
}

/// Shows what a destruction has cost, if anything.
pub(crate) async fn tell_shredded(session: &Session, key: &str) -> anyhow::Result<()> {
    match shred_report(session, key).await {
        Err(e) if e.downcast_ref::<Status>().is_some_and(|e| e.code() == Code::NotFound) => {
            note(format!("{key} destroyed; nothing depended on it"));
            Ok(())
        }
        shown => shown,
    }
}

/// Shows what became unreadable with a key.
async fn shred_report(session: &Session, key: &str) -> anyhow::Result<()> {
    let name = format!("{key}/shredReport");
    let report = session
        .lineage("officer")?
        .get_shred_report(wire::GetShredReportRequest { name })
        .await?
        .into_inner();
    note(format!(
        "{} destroyed it at {}, and {} agreed; unreadable since then, and for good:",
        report.requester,
        time(report.shred_time),
        report.approver
    ));
    many(session.format, report.unreadable.into_iter().map(dependent).collect());
    Ok(())
}
