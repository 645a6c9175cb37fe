//! Why a volume is inaccessible although nobody refuses it.

use std::fmt;

/// A reason of a volume's state that passes by itself: whoever needs the volume waits, and nobody has to do anything.
/// Every other reason is a refusal or damage, and stands until somebody acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PassingReason {
    /// Its node is ending.
    Shutdown,
    /// Its node has started, and the vault has not answered yet.
    Starting,
    /// The vault could not be asked for longer than the lease.
    VaultUnreachable,
    /// The key is inside an HSM that is away, and is not in memory.
    HsmUnavailable,
}

impl PassingReason {
    const ALL: [Self; 4] = [Self::Shutdown, Self::Starting, Self::VaultUnreachable, Self::HsmUnavailable];

    /// The word for it, as volumes tell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shutdown => "SHUTDOWN",
            Self::Starting => "STARTING",
            Self::VaultUnreachable => "VAULT_UNREACHABLE",
            Self::HsmUnavailable => "HSM_UNAVAILABLE",
        }
    }

    /// The reason with this word; none where it is one that stands.
    #[must_use]
    pub fn find(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == word)
    }
}

impl fmt::Display for PassingReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
