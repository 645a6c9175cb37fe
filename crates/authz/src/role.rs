//! Role definitions: the built-in ones, with Azure's names and what each allows, and those that owners make.

use custody_types::{Duty, Permission, Permission::*};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, LazyLock};

/// A role definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// Azure's built-in role name, ours where Azure has none, or `vaults/{vault}/roleDefinitions/{id}`.
    pub name: String,
    /// The duties it may be given to. A principal of another duty gets nothing from it.
    pub duties: Vec<Duty>,
    /// What it allows on its scope.
    pub permissions: Vec<Permission>,
    /// One sentence for people.
    pub description: String,
}

/// The text names no role.
#[derive(Clone, Debug, thiserror::Error)]
#[error("`{0}` is not a role; `custody access roles` lists them")]
pub struct UnknownRole(String);

impl UnknownRole {
    pub(crate) fn new(name: &str) -> Self {
        Self(name.chars().take(120).collect())
    }
}

/// Permissions that no single role can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForbiddenRole {
    /// A role without permissions.
    #[error("must name at least one permission")]
    Empty,
    /// It would let one duty manage keys and use them.
    #[error(
        "`{manages}` manages keys and `{uses}` uses them: no single role does both (separation of duties)"
    )]
    Mixed {
        /// The one.
        manages: Permission,
        /// The other.
        uses: Permission,
    },
    /// It follows from a duty.
    #[error("`{0}` follows from the duty of security officers and cannot be given")]
    ByDuty(Permission),
}

struct BuiltIn {
    name: &'static str,
    duties: &'static [Duty],
    permissions: &'static [Permission],
    description: &'static str,
}

const READ: &[Permission] = &[Get, List, RotationPolicyRead, VaultGet];

/// Azure: "Azure built-in roles for Security".
const BUILT_IN: &[BuiltIn] = &[
    BuiltIn {
        name: "Key Vault Administrator",
        duties: &[Duty::SecurityOfficer],
        permissions: &[
            AccessRead,
            AccessWrite,
            AuditRead,
            Backup,
            Create,
            Delete,
            Get,
            Import,
            List,
            Purge,
            Recover,
            Restore,
            Rng,
            Rotate,
            RotationPolicyRead,
            RotationPolicyWrite,
            Update,
            VaultGet,
            VaultSeal,
            VaultUpdate,
        ],
        description: "Manages keys and who may use them; cannot use a key itself.",
    },
    BuiltIn {
        name: "Key Vault Crypto Officer",
        duties: &[Duty::SecurityOfficer],
        permissions: &[
            Backup,
            Create,
            Delete,
            Get,
            Import,
            List,
            Recover,
            Restore,
            Rng,
            Rotate,
            RotationPolicyRead,
            RotationPolicyWrite,
            Update,
            VaultGet,
        ],
        description: "Manages keys; grants nothing.",
    },
    BuiltIn {
        name: "Key Vault Crypto User",
        duties: &[Duty::Workload],
        permissions: &[Decrypt, Encrypt, Get, List, Rng, Sign, UnwrapKey, Verify, WrapKey],
        description: "Uses keys.",
    },
    BuiltIn {
        name: "Key Vault Crypto Service Encryption User",
        duties: &[Duty::Workload],
        permissions: &[Get, UnwrapKey, WrapKey],
        description: "The three rights of a service that encrypts at rest: get, wrapKey, unwrapKey.",
    },
    BuiltIn {
        name: "Key Vault Reader",
        duties: &[Duty::SecurityOfficer, Duty::SystemAdministrator, Duty::Auditor],
        permissions: READ,
        description: "Reads public halves and attributes.",
    },
    BuiltIn {
        name: "Key Vault Purge Operator",
        duties: &[Duty::SecurityOfficer],
        permissions: &[Purge, Get, List, VaultGet],
        description: "Destroys deleted keys.",
    },
    BuiltIn {
        name: "Key Vault Data Access Administrator",
        duties: &[Duty::SecurityOfficer],
        permissions: &[AccessRead, AccessWrite, VaultGet],
        description: "Grants and removes access; touches no key.",
    },
    BuiltIn {
        name: "Custody Auditor",
        duties: &[Duty::Auditor],
        permissions: &[AccessRead, AuditRead, Get, List, RotationPolicyRead, VaultGet],
        description: "Reads keys' attributes, assignments and the audit trail; changes nothing.",
    },
];

static ROLES: LazyLock<Vec<Arc<Role>>> = LazyLock::new(|| {
    let role = |b: &BuiltIn| Role {
        name: b.name.to_owned(),
        duties: b.duties.to_vec(),
        permissions: b.permissions.to_vec(),
        description: b.description.to_owned(),
    };
    BUILT_IN.iter().map(|b| Arc::new(role(b))).collect()
});

/// Whether a permission changes keys or who may use them.
fn manages(permission: Permission) -> bool {
    matches!(
        permission,
        AccessWrite
            | Backup
            | Create
            | Delete
            | Import
            | Purge
            | Recover
            | Restore
            | Rotate
            | RotationPolicyWrite
            | Update
            | VaultSeal
            | VaultUpdate
    )
}

/// Whether a permission lets a private or public half work.
fn uses(permission: Permission) -> bool {
    matches!(permission, Decrypt | Encrypt | Sign | UnwrapKey | Verify | WrapKey)
}

impl Role {
    /// Every built-in role.
    #[must_use]
    pub fn built_in() -> &'static [Arc<Self>] {
        &ROLES
    }

    /// An owner's own role. Its duties follow from its permissions: what uses keys is for workloads, what manages them
    /// for security officers, what only reads for everyone who may read.
    ///
    /// # Errors
    /// See [`ForbiddenRole`].
    pub fn custom(
        name: String,
        permissions: Vec<Permission>,
        description: String,
    ) -> Result<Self, ForbiddenRole> {
        if let Some(by_duty) =
            permissions.iter().find(|p| matches!(p, BreakGlass | SystemSeal | VaultCreate | VaultList))
        {
            return Err(ForbiddenRole::ByDuty(*by_duty));
        }
        let managing = permissions.iter().find(|p| manages(**p));
        let using = permissions.iter().find(|p| uses(**p));
        let duties = match (managing, using) {
            _ if permissions.is_empty() => return Err(ForbiddenRole::Empty),
            (Some(manages), Some(uses)) => {
                return Err(ForbiddenRole::Mixed { manages: *manages, uses: *uses });
            }
            (Some(_), None) => vec![Duty::SecurityOfficer],
            (None, Some(_)) => vec![Duty::Workload],
            (None, None) => vec![Duty::SecurityOfficer, Duty::SystemAdministrator, Duty::Auditor],
        };
        Ok(Self { name, duties, permissions, description })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_manages_and_uses_a_key() {
        for role in Role::built_in() {
            let people = role.duties.iter().filter(|d| **d != Duty::Workload).count();
            let using = role.permissions.iter().any(|p| uses(*p));
            assert!(!(using && role.permissions.iter().any(|p| manages(*p))), "{}", role.name);
            assert!(!using || people == 0, "{} lets people use keys", role.name);
        }
        for first in Permission::ALL {
            for second in Permission::ALL {
                let made = Role::custom(String::new(), vec![*first, *second], String::new());
                let mixed = (manages(*first) && uses(*second)) || (uses(*first) && manages(*second));
                let by_duty = [first, second]
                    .iter()
                    .any(|p| matches!(p, BreakGlass | SystemSeal | VaultCreate | VaultList));
                assert_eq!(made.is_err(), mixed || by_duty, "{first} {second}");
            }
        }
        assert_eq!(Role::custom(String::new(), vec![], String::new()), Err(ForbiddenRole::Empty));
    }
}
