//! Data actions of the vault, in JOSE and Azure words.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

macro_rules! permissions {
    ($($(#[$doc:meta])* $variant:ident = $text:literal),+ $(,)?) => {
        /// One thing that a role may allow on a vault or a key.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        #[non_exhaustive]
        pub enum Permission { $($(#[$doc])* $variant),+ }

        impl Permission {
            /// Every permission.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word of RFC 7517 `key_ops` or of Azure's data actions.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

permissions! {
    /// Read role assignments and definitions.
    AccessRead = "access/read",
    /// Add or remove role assignments.
    AccessWrite = "access/write",
    /// Read the audit trail.
    AuditRead = "audit/read",
    /// Take a sealed copy of a key with its private half.
    Backup = "backup",
    /// Make a key.
    Create = "create",
    /// Open protected bytes.
    Decrypt = "decrypt",
    /// Soft-delete a key.
    Delete = "delete",
    /// Protect bytes.
    Encrypt = "encrypt",
    /// Read the public half and the attributes.
    Get = "get",
    /// Take emergency rights in a vault.
    BreakGlass = "access/breakGlass",
    /// Bring a key from outside.
    Import = "import",
    /// List keys and versions.
    List = "list",
    /// Destroy a deleted key for good.
    Purge = "purge",
    /// Bring a deleted key back.
    Recover = "recover",
    /// Bring a backup back.
    Restore = "restore",
    /// Make a new version.
    Rotate = "rotate",
    /// Get random bytes.
    Rng = "rng",
    /// Read a key's rotation policy.
    RotationPolicyRead = "getrotationpolicy",
    /// Set a key's rotation policy.
    RotationPolicyWrite = "setrotationpolicy",
    /// Sign a digest.
    Sign = "sign",
    /// Open wrapped key material.
    UnwrapKey = "unwrapKey",
    /// Change attributes.
    Update = "update",
    /// Seal and unseal the deployment.
    SystemSeal = "system/seal",
    /// Create a vault.
    VaultCreate = "vault/create",
    /// Read a vault.
    VaultGet = "vault/get",
    /// List vaults.
    VaultList = "vault/list",
    /// Seal and unseal a vault, and change its seal.
    VaultSeal = "vault/seal",
    /// Change a vault's own settings.
    VaultUpdate = "vault/update",
    /// Check a signature.
    Verify = "verify",
    /// Protect key material.
    WrapKey = "wrapKey",
}

/// The text names no permission.
#[derive(Clone, Debug, thiserror::Error)]
#[error("`{0}` is not a permission; see `custody access roles` for those there are")]
pub struct UnknownPermission(String);

impl FromStr for Permission {
    type Err = UnknownPermission;
    fn from_str(text: &str) -> Result<Self, UnknownPermission> {
        let found = Self::ALL.iter().copied().find(|p| p.as_str().eq_ignore_ascii_case(text));
        found.ok_or_else(|| UnknownPermission(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
