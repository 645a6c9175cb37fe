//! A revocation: the leases that it ended, and how each of them did.

use crate::{
    Authority, CertificateError, Certified, Lease, NoteError, Receipt, Statement, StatementError, VOLUME_KEY,
    VerifyingKey,
};
use custody_types::{KeyName, UnixMillis};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, time::Duration};

/// How a lease ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// The holder is yet to answer.
    Waiting,
    /// The holder erased the keys, and said so.
    Erased {
        /// From the revocation until the receipt was in, by the vault's monotonic clock.
        after_ms: u64,
        /// The receipt.
        receipt: Certified,
    },
    /// The holder did not answer, and the lease has run out.
    Lapsed {
        /// From the revocation until the vault was sure that it had, by its monotonic clock.
        after_ms: u64,
    },
    /// Access was given back before the holder answered: its keys were not erased.
    Returned {
        /// From the revocation until then.
        after_ms: u64,
    },
}

impl Outcome {
    /// From the revocation until it was known; none while it is not.
    #[must_use]
    pub fn after(&self) -> Option<Duration> {
        match self {
            Self::Waiting => None,
            Self::Erased { after_ms, .. } | Self::Lapsed { after_ms } | Self::Returned { after_ms } => {
                Some(Duration::from_millis(*after_ms))
            }
        }
    }
}

/// A lease that the revocation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The lease, as the vault signed it last.
    pub lease: String,
    /// Why its holder may no longer have the key: the reason of the vault's refusals.
    pub reason: String,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// A revocation: what the vault states when every lease that it ended has run out or was answered for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// `vaults/{vault}/keys/{key}/revocations/{epoch}`.
    pub revocation: String,
    /// The key.
    pub key: KeyName,
    /// Counts the key's revocations; leases of earlier epochs are those that it ended.
    pub epoch: u64,
    /// What took access away: the type of the vault's event.
    pub cause: String,
    /// Who asked for it by `RevokeKey`; empty where access ended in another way.
    pub requested_by: String,
    /// When access was taken away, by the vault's wall clock.
    pub revoke_time: UnixMillis,
    /// When the last lease was known to have ended.
    pub close_time: Option<UnixMillis>,
    /// The leases.
    pub holders: Vec<Holder>,
}

impl Statement for Revocation {
    const TYPE: &'static str = "custody revocation v1";
}

/// Why a bundle proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProofError {
    /// The vault did not sign this.
    #[error("the bundle is not what the vault signed: {0}")]
    Note(#[from] NoteError),
    /// Not a revocation.
    #[error("the bundle is {0}")]
    Statement(#[from] StatementError),
    /// A lease is not the vault's, not of this key, or twice there.
    #[error("lease {0} of the bundle is not the vault's, not of this key and epoch, or is there twice")]
    Lease(usize),
    /// A receipt is not the holder's.
    #[error("the receipt of `{holder}` for `{volume}` proves nothing: {source}")]
    Receipt {
        /// Whose it should be.
        holder: String,
        /// Of what.
        volume: String,
        /// Why.
        source: CertificateError,
    },
    /// A receipt is of something else.
    #[error(
        "the receipt of `{holder}` is not of its lease on `{volume}`, or does not say that the volume key is gone"
    )]
    OtherReceipt {
        /// Whose.
        holder: String,
        /// Of what.
        volume: String,
    },
    /// A holder has not answered, its lease had not run out, or access came back.
    #[error("nothing proves that `{holder}` erased the keys of `{volume}`: {why}")]
    Missing {
        /// The holder.
        holder: String,
        /// Of what.
        volume: String,
        /// Why.
        why: &'static str,
    },
    /// The vault says that it is not over.
    #[error("the revocation was not closed")]
    Open,
}

/// What a bundle proves.
#[derive(Clone, Debug)]
pub struct Verified {
    /// As the vault stated it.
    pub revocation: Revocation,
    /// Each lease with its receipt; none where it ran out.
    pub leases: Vec<(Lease, Option<Receipt>)>,
}

/// Checks a bundle against the vault's public key and the authority of the holders' certificates; nobody is asked.
///
/// It proves that the vault says which leases there were, and that each holder says that it erased the keys, or the vault
/// that the lease had run out. What neither can prove: that a holder which signs keeps no copy.
///
/// # Errors
/// See [`ProofError`].
pub fn verify(bundle: &str, vault: &VerifyingKey, authority: &Authority) -> Result<Verified, ProofError> {
    let revocation = Revocation::of_text(vault.open(bundle)?)?;
    if revocation.close_time.is_none() {
        return Err(ProofError::Open);
    }
    let mut seen = BTreeSet::new();
    let mut leases = Vec::new();
    for (n, holder) in revocation.holders.iter().enumerate() {
        let bad = || ProofError::Lease(n + 1);
        let text = vault.open(&holder.lease).map_err(|_| bad())?;
        let lease = Lease::of_text(text).map_err(|_| bad())?;
        let fits = lease.key_version.key() == revocation.key && lease.epoch < revocation.epoch;
        if !fits || !seen.insert(lease.lease.clone()) {
            return Err(bad());
        }
        let receipt = proven(&revocation, holder, &lease, authority)?;
        leases.push((lease, receipt));
    }
    Ok(Verified { revocation, leases })
}

fn proven(
    revocation: &Revocation,
    given: &Holder,
    lease: &Lease,
    authority: &Authority,
) -> Result<Option<Receipt>, ProofError> {
    let (holder, volume) = (lease.holder.clone(), lease.volume.clone());
    let missing = |why| Err(ProofError::Missing { holder: holder.clone(), volume: volume.clone(), why });
    match &given.outcome {
        Outcome::Waiting => missing("there is no receipt"),
        Outcome::Returned { .. } => missing("access was given back before it answered"),
        Outcome::Lapsed { after_ms } => {
            let before = revocation.revoke_time.as_millis().saturating_sub(lease.grant_time.as_millis());
            if before.saturating_add(*after_ms) < lease.duration_ms {
                return missing("there is no receipt, and the lease had not run out");
            }
            Ok(None)
        }
        Outcome::Erased { receipt, .. } => {
            let receipt = receipt.open(authority).map_err(|source| ProofError::Receipt {
                holder: holder.clone(),
                volume: volume.clone(),
                source,
            })?;
            let of_lease =
                (&receipt.lease, receipt.epoch, &receipt.key_version, &receipt.holder, &receipt.volume)
                    == (&lease.lease, lease.epoch, &lease.key_version, &lease.holder, &lease.volume);
            if !of_lease || !receipt.erased.iter().any(|e| e == VOLUME_KEY) {
                return Err(ProofError::OtherReceipt { holder, volume });
            }
            Ok(Some(receipt))
        }
    }
}
