//! Verbs on who holds a key's data, and on taking it away with proof.

use crate::{
    output::{Format, line, many, note, one},
    proof,
    session::{Session, time},
};
use anyhow::Context as _;
use clap::Subcommand;
use custody_proto::vault as wire;
use serde_json::{Value, json};
use std::{path::PathBuf, time::Duration};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Takes a key away: disables every version, in one step.
    Revoke {
        name: String,
        /// Follow each holder until it has erased what it held or its lease has run out, and keep the proof.
        #[arg(long)]
        prove: bool,
        /// The file for the proof; named for the key and the epoch in the working directory if not given.
        #[arg(long, requires = "prove")]
        bundle: Option<PathBuf>,
    },
    /// Gives a key back that `revoke` took: enables the versions that it disabled.
    Reinstate { name: String },
    /// Lists who holds what under a key, or under the keys of a vault.
    Leases { name: String },
    /// Shows how long a key may be held without the vault's answer, or sets it where a time is given.
    LeasePolicy {
        name: String,
        /// At most so many seconds, 1 to 3600: how long a holder that is cut off keeps the key.
        #[arg(long)]
        duration_s: Option<f64>,
        /// How many seconds an outage of the vault may last without the key's end, whenever it begins. Holders renew
        /// in the rest of the duration.
        #[arg(long)]
        grace_s: Option<f64>,
        /// Back to what the cluster asks for.
        #[arg(long, conflicts_with_all = ["duration_s", "grace_s"])]
        reset: bool,
    },
    /// Lists a key's revocations, newest first, or writes the proof of one.
    Revocations {
        /// A key, or `KEY/revocations/EPOCH`.
        name: String,
        /// The file for the proof of that one.
        #[arg(long)]
        bundle: Option<PathBuf>,
    },
}

fn span(d: Option<&prost_types::Duration>) -> Option<Duration> {
    d.and_then(|d| Duration::try_from(*d).ok())
}

fn seconds(d: Option<&prost_types::Duration>) -> Value {
    span(d).map_or(Value::Null, |d| json!(d.as_secs_f64()))
}

fn wire_span(seconds: Option<f64>, field: &str) -> anyhow::Result<Option<prost_types::Duration>> {
    let convert = |s| {
        let span = Duration::try_from_secs_f64(s).ok().and_then(|d| prost_types::Duration::try_from(d).ok());
        span.with_context(|| format!("--{field} must be a number of seconds, not negative"))
    };
    seconds.map(convert).transpose()
}

fn lease(l: wire::Lease) -> Value {
    json!({
        "volume": l.volume, "holder": l.holder, "identity": l.managed_identity,
        "version": l.key_version.rsplit('/').next().unwrap_or_default(), "epoch": l.epoch,
        "granted": time(l.grant_time), "duration_s": seconds(l.duration.as_ref()), "grace_s": seconds(l.grace.as_ref()),
    })
}

fn policy(p: wire::LeasePolicy) -> Value {
    let of = |d: Option<&prost_types::Duration>, default: &str| match span(d) {
        Some(d) => json!(d.as_secs_f64()),
        None => json!(default),
    };
    json!({
        "name": p.name, "duration_s": of(p.duration.as_ref(), "as the cluster asks"),
        "grace_s": of(p.grace.as_ref(), "two thirds"), "set": time(p.update_time),
    })
}

fn outcome(l: &wire::RevokedLease) -> String {
    l.outcome().as_str_name().trim_start_matches("LEASE_OUTCOME_").to_lowercase()
}

fn count(r: &wire::Revocation, wanted: wire::LeaseOutcome) -> usize {
    r.leases.iter().filter(|l| l.outcome() == wanted).count()
}

/// From the revocation until the last lease was known to have ended, in milliseconds.
fn slowest_ms(r: &wire::Revocation) -> f64 {
    let all = r.leases.iter().filter_map(|l| span(l.elapsed.as_ref()));
    all.max().unwrap_or_default().as_secs_f64() * 1e3
}

fn revocation(r: &wire::Revocation) -> Value {
    json!({
        "name": r.name, "cause": r.cause, "by": r.requested_by, "revoked": time(r.revoke_time),
        "leases": r.leases.len(), "erased": count(r, wire::LeaseOutcome::Erased),
        "lapsed": count(r, wire::LeaseOutcome::Lapsed), "returned": count(r, wire::LeaseOutcome::Returned),
        "waiting": count(r, wire::LeaseOutcome::Waiting), "closed": time(r.close_time), "ms": slowest_ms(r),
    })
}

fn bundle_name(revocation: &str) -> PathBuf {
    let mut parts = revocation.rsplit('/');
    let epoch = parts.next().unwrap_or_default();
    let key = parts.nth(1).unwrap_or_default();
    PathBuf::from(format!("revocation-{key}-{epoch}.proof"))
}

/// Shows each holder as it answers; ends when the vault has closed the revocation.
pub(crate) async fn follow(session: &Session, name: &str) -> anyhow::Result<wire::Revocation> {
    let mut client = session.leases("officer")?;
    let mut seen = std::collections::BTreeSet::new();
    loop {
        let request = wire::WatchRevocationRequest { name: name.to_owned() };
        let mut stream = client.watch_revocation(request).await?.into_inner();
        while let Ok(Some(now)) = stream.message().await {
            for l in now.leases.iter().filter(|l| l.outcome() != wire::LeaseOutcome::Waiting) {
                let of = l.lease.clone().unwrap_or_default();
                if session.format == Format::Table && seen.insert(of.name.clone()) {
                    let after = span(l.elapsed.as_ref()).unwrap_or_default().as_millis();
                    line(format!("  {after:>6} ms  {:<8}  {:<24}  {}", outcome(l), of.volume, of.holder));
                }
            }
            if now.close_time.is_some() {
                return Ok(now);
            }
        }
        // The stream may end before the last lease does.
    }
}

async fn revoke(session: &Session, name: String, prove: bool, bundle: Option<PathBuf>) -> anyhow::Result<()> {
    let mut client = session.leases("officer")?;
    let begun = client.revoke_key(wire::RevokeKeyRequest { name }).await?.into_inner();
    if !prove {
        one(session.format, &revocation(&begun));
        return Ok(());
    }
    if session.format == Format::Table {
        line(format!("{}: {} leases end", begun.name, begun.leases.len()));
    }
    let ended = follow(session, &begun.name).await?;
    let path = bundle.unwrap_or_else(|| bundle_name(&ended.name));
    std::fs::write(&path, &ended.proof).with_context(|| format!("`{}` cannot be written", path.display()))?;
    let mut shown = revocation(&ended);
    if let Some(fields) = shown.as_object_mut() {
        fields.insert("proof".to_owned(), json!(path));
    }
    one(session.format, &shown);
    // What is handed on as a proof has been checked as whoever gets it will.
    let key = client.get_proof_key(wire::GetProofKeyRequest {}).await?.into_inner().key;
    proof::check(&ended.proof, &key, &session.authority()?)?;
    if session.format == Format::Table {
        note(format!("the proof verifies; check it anywhere with `custody proof verify {}`", path.display()));
    }
    Ok(())
}

pub(crate) async fn run(session: &Session, verb: Verb) -> anyhow::Result<()> {
    let mut client = session.leases("officer")?;
    let format = session.format;
    match verb {
        Verb::Revoke { name, prove, bundle } => revoke(session, name, prove, bundle).await?,
        Verb::Reinstate { name } => {
            let done = client.reinstate_key(wire::ReinstateKeyRequest { name: name.clone() }).await?;
            one(format, &json!({ "key": name, "enabled": done.into_inner().key_versions }));
        }
        Verb::Leases { name: parent } => {
            let (mut rows, mut page_token) = (Vec::new(), String::new());
            loop {
                let request = wire::ListLeasesRequest { parent: parent.clone(), page_size: 1000, page_token };
                let page = client.list_leases(request).await?.into_inner();
                rows.extend(page.leases.into_iter().map(lease));
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
            many(format, rows);
        }
        Verb::LeasePolicy { name, duration_s, grace_s, reset } => {
            let name = format!("{name}/leasePolicy");
            let shown = if reset || duration_s.is_some() || grace_s.is_some() {
                let lease_policy = Some(wire::LeasePolicy {
                    name,
                    duration: wire_span(duration_s, "duration-s")?,
                    grace: wire_span(grace_s, "grace-s")?,
                    update_time: None,
                });
                client.update_lease_policy(wire::UpdateLeasePolicyRequest { lease_policy }).await?
            } else {
                client.get_lease_policy(wire::GetLeasePolicyRequest { name }).await?
            };
            one(format, &policy(shown.into_inner()));
        }
        Verb::Revocations { name, bundle } if name.contains("/revocations/") => {
            let found = client.get_revocation(wire::GetRevocationRequest { name }).await?.into_inner();
            if let Some(path) = bundle {
                anyhow::ensure!(
                    found.close_time.is_some(),
                    "the revocation is not closed: a holder has not answered, and its lease has not run out"
                );
                std::fs::write(&path, &found.proof)
                    .with_context(|| format!("`{}` cannot be written", path.display()))?;
            }
            one(format, &revocation(&found));
        }
        Verb::Revocations { name, bundle } => {
            anyhow::ensure!(bundle.is_none(), "--bundle is for one revocation: KEY/revocations/EPOCH");
            let request =
                wire::ListRevocationsRequest { parent: name, page_size: 1000, page_token: String::new() };
            let found = client.list_revocations(request).await?.into_inner().revocations;
            many(format, found.iter().map(revocation).collect());
        }
    }
    Ok(())
}
