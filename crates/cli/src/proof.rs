//! Checking proofs of revocations, offline: nothing is asked, and nothing has to run.

use crate::{
    output::{Format, line, many, one},
    session::Session,
};
use anyhow::Context as _;
use clap::Subcommand;
use custody_proof::{Authority, Outcome, VerifyingKey};
use custody_proto::vault::GetProofKeyRequest;
use prost_types::Timestamp;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Verifies the proof of a revocation: each lease was answered with a signed receipt, or ran out.
    Verify {
        bundle: PathBuf,
        /// A file with the vault's public key (`custody proof key`); the deployment's if not given. Bring your own copy: one
        /// that comes with the bundle proves only that the bundle agrees with itself.
        #[arg(long)]
        vault_key: Option<PathBuf>,
        /// A file with the certificate of the holders' authority, PEM; the deployment's if not given.
        #[arg(long)]
        ca: Option<PathBuf>,
    },
    /// Shows the public key that the vault signs proofs with: note it before you need it.
    Key,
}

fn time(t: custody_types::UnixMillis) -> String {
    let (seconds, nanos) = (t.as_secs(), (t.as_millis() % 1000) * 1_000_000);
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: i32::try_from(nanos).unwrap_or(0) }.to_string()
}

/// Verifies, and answers what was proven of each lease.
pub(crate) fn check(bundle: &str, vault: &str, authority: &Authority) -> anyhow::Result<(Value, Vec<Value>)> {
    let vault: VerifyingKey = vault.parse().context("the vault's public key")?;
    let verified = custody_proof::verify(bundle, &vault, authority).context("the proof does NOT verify")?;
    let stated = &verified.revocation;
    let rows: Vec<Value> = stated
        .holders
        .iter()
        .zip(&verified.leases)
        .map(|(holder, (lease, receipt))| {
            json!({
                "volume": lease.volume, "holder": lease.holder,
                "ended": if receipt.is_some() { "erased, signed by the holder" } else { "ran out" },
                "after_ms": holder.outcome.after().map(|d| d.as_millis()),
                "erased_at": receipt.as_ref().map(|r| time(r.erase_time)), "why": holder.reason,
            })
        })
        .collect();
    let erased = stated.holders.iter().filter(|h| matches!(h.outcome, Outcome::Erased { .. })).count();
    let slowest = stated.holders.iter().filter_map(|h| h.outcome.after()).max().unwrap_or_default();
    let summary = json!({
        "revocation": stated.revocation, "cause": stated.cause, "by": stated.requested_by,
        "revoked_at": time(stated.revoke_time), "leases": rows.len(), "erased": erased,
        "ran_out": rows.len() - erased, "slowest_ms": slowest.as_millis(),
    });
    Ok((summary, rows))
}

pub(crate) async fn run(
    dir: &Path,
    format: Format,
    session: impl Fn() -> anyhow::Result<Session>,
    verb: Verb,
) -> anyhow::Result<()> {
    match verb {
        Verb::Verify { bundle, vault_key, ca } => {
            let read = |path: PathBuf| {
                fs::read_to_string(&path).with_context(|| format!("`{}` cannot be read", path.display()))
            };
            let key = read(vault_key.unwrap_or_else(|| dir.join("vault/data/proof.pub")))?;
            let authority = read(ca.unwrap_or_else(|| dir.join("pki/ca.pem")))?;
            let authority =
                Authority::from_pem(authority.as_bytes()).context("the authority's certificate")?;
            let (summary, rows) = check(&read(bundle)?, &key, &authority)?;
            match format {
                Format::Json => one(format, &json!({ "verified": summary, "leases": rows })),
                Format::Table => {
                    one(format, &summary);
                    if !rows.is_empty() {
                        many(format, rows);
                    }
                }
            }
        }
        Verb::Key => {
            let mut client = session()?.leases("auditor")?;
            let key = client.get_proof_key(GetProofKeyRequest {}).await?.into_inner().key;
            match format {
                Format::Json => one(format, &json!({ "key": key })),
                Format::Table => line(key),
            }
        }
    }
    Ok(())
}
