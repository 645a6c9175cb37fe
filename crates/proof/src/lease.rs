//! A lease: how long a holder may keep a volume's keys in memory.

use crate::Statement;
use custody_types::{KeyVersionName, UnixMillis};
use serde::{Deserialize, Serialize};

/// What the vault states when it grants or renews a lease. The holder counts `duration_ms` from when it asked, on a clock that
/// nobody sets; the vault from when it granted, which is later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// `vaults/{vault}/keys/{key}/leases/{lease}`.
    pub lease: String,
    /// The version that opens the volume's key.
    pub key_version: KeyVersionName,
    /// How many revocations the key had had.
    pub epoch: u64,
    /// The principal of the holder's certificate.
    pub holder: String,
    /// As whom the holder may unwrap.
    pub managed_identity: String,
    /// The volume whose keys are held.
    pub volume: String,
    /// By the vault's wall clock.
    pub grant_time: UnixMillis,
    /// How long it holds.
    pub duration_ms: u64,
    /// How long an outage of the vault may last, whenever it begins, without the lease's end: the holder renews
    /// before the rest of `duration_ms` has passed.
    pub grace_ms: u64,
}

impl Statement for Lease {
    const TYPE: &'static str = "custody lease v1";
}
