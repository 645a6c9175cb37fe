//! The built-in role definitions, with Azure's names and what each allows.

use custody_types::{Duty, Permission, Permission::*};

/// A role definition.
#[derive(Debug)]
pub struct Role {
    /// Azure's built-in role name, or ours where Azure has none.
    pub name: &'static str,
    /// The duties it may be given to. A principal of another duty gets nothing from it.
    pub duties: &'static [Duty],
    /// What it allows on its scope.
    pub permissions: &'static [Permission],
    /// One sentence for people.
    pub description: &'static str,
}

/// The text names no role.
#[derive(Clone, Debug, thiserror::Error)]
#[error("`{0}` is not a role; `custody access roles` lists them")]
pub struct UnknownRole(String);

const READ: &[Permission] = &[Get, List, RotationPolicyRead, VaultGet];

/// Every built-in role (Azure: "Azure built-in roles for Security").
pub const ROLES: &[Role] = &[
    Role {
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
            Rotate,
            RotationPolicyRead,
            RotationPolicyWrite,
            Update,
            VaultGet,
        ],
        description: "Manages keys and who may use them; cannot use a key itself.",
    },
    Role {
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
            Rotate,
            RotationPolicyRead,
            RotationPolicyWrite,
            Update,
            VaultGet,
        ],
        description: "Manages keys; grants nothing.",
    },
    Role {
        name: "Key Vault Crypto User",
        duties: &[Duty::Workload],
        permissions: &[Decrypt, Encrypt, Get, List, Sign, UnwrapKey, Verify, WrapKey],
        description: "Uses keys.",
    },
    Role {
        name: "Key Vault Crypto Service Encryption User",
        duties: &[Duty::Workload],
        permissions: &[Get, UnwrapKey, WrapKey],
        description: "The three rights of a service that encrypts at rest: get, wrapKey, unwrapKey.",
    },
    Role {
        name: "Key Vault Reader",
        duties: &[Duty::SecurityOfficer, Duty::SystemAdministrator, Duty::Auditor],
        permissions: READ,
        description: "Reads public halves and attributes.",
    },
    Role {
        name: "Key Vault Purge Operator",
        duties: &[Duty::SecurityOfficer],
        permissions: &[Purge, Get, List, VaultGet],
        description: "Destroys deleted keys.",
    },
    Role {
        name: "Key Vault Data Access Administrator",
        duties: &[Duty::SecurityOfficer],
        permissions: &[AccessRead, AccessWrite, VaultGet],
        description: "Grants and removes access; touches no key.",
    },
    Role {
        name: "Custody Auditor",
        duties: &[Duty::Auditor],
        permissions: &[AccessRead, AuditRead, Get, List, RotationPolicyRead, VaultGet],
        description: "Reads keys' attributes, assignments and the audit trail; changes nothing.",
    },
];

impl Role {
    /// The role of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Result<&'static Self, UnknownRole> {
        ROLES.iter().find(|r| r.name == name).ok_or_else(|| UnknownRole(name.chars().take(60).collect()))
    }
}
