//! The one duty a principal has.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// What a principal is for. A principal has exactly one, which is how separation of duties is held: role
/// definitions and the RPC policy name the duties they may be given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Duty {
    /// Reads audit trails and states, changes nothing.
    Auditor,
    /// Works with data through SQL; touches neither keys nor machines.
    DatabaseAdministrator,
    /// Has the vault misbehave for tests, where it was started for that; nothing else.
    FaultInjector,
    /// Owns keys and says who may use them.
    SecurityOfficer,
    /// Creates and runs clusters; never holds a key or sees a block.
    SystemAdministrator,
    /// A program: a node, a service, a managed identity.
    Workload,
}

impl Duty {
    /// Every duty, in the order of the tables in the documentation.
    pub const ALL: [Self; 6] = [
        Self::SecurityOfficer,
        Self::SystemAdministrator,
        Self::DatabaseAdministrator,
        Self::Auditor,
        Self::Workload,
        Self::FaultInjector,
    ];

    /// The name used in tokens, configuration and audit records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auditor => "auditor",
            Self::DatabaseAdministrator => "database_administrator",
            Self::FaultInjector => "fault_injector",
            Self::SecurityOfficer => "security_officer",
            Self::SystemAdministrator => "system_administrator",
            Self::Workload => "workload",
        }
    }
}

impl fmt::Display for Duty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no duty.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "`{0}` is not a duty; one of security_officer, system_administrator, database_administrator, auditor, workload, fault_injector"
)]
pub struct UnknownDuty(String);

impl FromStr for Duty {
    type Err = UnknownDuty;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|d| d.as_str() == s)
            .ok_or_else(|| UnknownDuty(s.chars().take(40).collect()))
    }
}
