//! Assignments and the decision.

use crate::Role;
use custody_types::{Caller, Duty, KeyName, NameError, Permission, VaultName};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, fmt, str::FromStr};

/// What an assignment covers: a vault and all its keys, or one key and its versions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scope {
    /// One key.
    Key(KeyName),
    /// A vault and every key in it.
    Vault(VaultName),
}

/// The text names neither a vault nor a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`scope` must be a vault or a key: {0}")]
pub struct ScopeError(NameError);

impl Scope {
    /// Whether this scope reaches `resource` (a vault, a key or a key version).
    #[must_use]
    pub fn covers(&self, resource: &str) -> bool {
        let own = self.as_str();
        resource.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The vault that the scope lies in.
    #[must_use]
    pub fn vault(&self) -> VaultName {
        match self {
            Self::Key(key) => key.vault(),
            Self::Vault(vault) => vault.clone(),
        }
    }

    /// As a resource name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Key(key) => key.as_str(),
            Self::Vault(vault) => vault.as_str(),
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;
    fn from_str(text: &str) -> Result<Self, ScopeError> {
        if text.contains("/keys/") {
            text.parse().map(Self::Key).map_err(ScopeError)
        } else {
            text.parse().map(Self::Vault).map_err(ScopeError)
        }
    }
}

impl TryFrom<String> for Scope {
    type Error = ScopeError;
    fn try_from(text: String) -> Result<Self, ScopeError> {
        text.parse()
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.as_str().to_owned()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A role given to a principal on a scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// `vaults/{vault}/roleAssignments/{id}`.
    pub name: String,
    /// A principal or a managed identity.
    pub principal: String,
    /// The role's name.
    pub role: String,
    /// What it covers.
    pub scope: Scope,
}

/// An answer, and what decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed by this assignment.
    Allow {
        /// The assignment's name.
        assignment: String,
    },
    /// No assignment allows it.
    Deny,
}

/// A principal would hold roles that no single duty may hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{principal}` holds `{held}`; no single duty may hold `{role}` as well: give it to another principal"
)]
pub struct ConflictingDuty {
    principal: String,
    held: String,
    role: String,
}

/// All assignments, by principal.
#[derive(Clone, Debug, Default)]
pub struct Assignments {
    by_principal: HashMap<String, Vec<Assignment>>,
}

impl Assignments {
    /// Takes an assignment in.
    ///
    /// # Errors
    /// It would give the principal a second, conflicting duty.
    pub fn check(&self, new: &Assignment, role: &Role) -> Result<(), ConflictingDuty> {
        let held = self.of(&new.principal);
        let conflict = |held: &&Assignment| {
            Role::named(&held.role).is_ok_and(|h| !h.duties.iter().any(|d| role.duties.contains(d)))
        };
        let workload = new.principal.starts_with("managedIdentities/");
        match held.iter().find(conflict) {
            Some(other) => Err(ConflictingDuty {
                principal: new.principal.clone(),
                held: other.role.clone(),
                role: new.role.clone(),
            }),
            None if workload && !role.duties.contains(&Duty::Workload) => Err(ConflictingDuty {
                principal: new.principal.clone(),
                held: "the workload duty".to_owned(),
                role: new.role.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Adds an assignment that has been checked.
    pub fn insert(&mut self, assignment: Assignment) {
        self.by_principal.entry(assignment.principal.clone()).or_default().push(assignment);
    }

    /// Removes an assignment.
    pub fn remove(&mut self, name: &str) -> Option<Assignment> {
        for list in self.by_principal.values_mut() {
            if let Some(at) = list.iter().position(|a| a.name == name) {
                return Some(list.swap_remove(at));
            }
        }
        None
    }

    /// A principal's assignments.
    #[must_use]
    pub fn of(&self, principal: &str) -> &[Assignment] {
        self.by_principal.get(principal).map_or(&[], Vec::as_slice)
    }

    /// Whether the caller may, and by which assignment. An assignment whose role is not for the caller's duty
    /// gives nothing, whoever wrote it.
    #[must_use]
    pub fn decide(&self, caller: &Caller, permission: Permission, resource: &str) -> Decision {
        let allows = |a: &&Assignment| {
            a.scope.covers(resource)
                && Role::named(&a.role)
                    .is_ok_and(|r| r.duties.contains(&caller.duty) && r.permissions.contains(&permission))
        };
        self.of(&caller.principal)
            .iter()
            .find(allows)
            .map_or(Decision::Deny, |a| Decision::Allow { assignment: a.name.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(principal: &str, duty: Duty) -> Caller {
        Caller { principal: principal.into(), duty, token_id: String::new(), address: String::new() }
    }

    fn assign(principal: &str, role: &str, scope: &str) -> Assignment {
        Assignment {
            name: format!("vaults/v/roleAssignments/{principal}"),
            principal: principal.into(),
            role: role.into(),
            scope: scope.parse().unwrap(),
        }
    }

    #[test]
    fn a_scope_covers_what_lies_below_it_and_nothing_beside() {
        let key: Scope = "vaults/v/keys/k".parse().unwrap();
        assert!(key.covers("vaults/v/keys/k/versions/0"));
        assert!(!key.covers("vaults/v/keys/k2"));
        assert!(!key.covers("vaults/v"));
        let vault: Scope = "vaults/v".parse().unwrap();
        assert!(vault.covers("vaults/v/keys/k"));
        assert!(!vault.covers("vaults/v2/keys/k"));
        assert!("clusters/c".parse::<Scope>().is_err());
    }

    #[test]
    fn only_the_three_rights_come_with_service_encryption() {
        let mut all = Assignments::default();
        all.insert(assign(
            "managedIdentities/m",
            "Key Vault Crypto Service Encryption User",
            "vaults/v/keys/k",
        ));
        let who = caller("managedIdentities/m", Duty::Workload);
        for permission in Permission::ALL {
            let allowed = all.decide(&who, *permission, "vaults/v/keys/k") != Decision::Deny;
            assert_eq!(
                allowed,
                matches!(permission, Permission::Get | Permission::WrapKey | Permission::UnwrapKey)
            );
            assert_eq!(all.decide(&who, *permission, "vaults/v/keys/other"), Decision::Deny);
        }
        assert_eq!(
            all.decide(
                &caller("managedIdentities/m", Duty::SecurityOfficer),
                Permission::Get,
                "vaults/v/keys/k"
            ),
            Decision::Deny,
            "a role of another duty gives nothing"
        );
    }

    #[test]
    fn nobody_manages_and_uses_a_key() {
        for role in crate::ROLES {
            use Permission::*;
            let manages =
                role.permissions.iter().any(|p| matches!(p, AccessWrite | Backup | Delete | Purge | Restore));
            let uses = role
                .permissions
                .iter()
                .any(|p| matches!(p, Decrypt | Encrypt | Sign | UnwrapKey | Verify | WrapKey));
            assert!(!(manages && uses), "{}", role.name);
            let duties_that_use = role.duties.iter().filter(|d| uses && **d != Duty::Workload).count();
            assert_eq!(duties_that_use, 0, "{} lets people use keys", role.name);
        }
    }

    #[test]
    fn a_conflicting_duty_is_refused() {
        let mut all = Assignments::default();
        all.insert(assign("principals/p", "Key Vault Crypto Officer", "vaults/v"));
        let second = assign("principals/p", "Key Vault Crypto User", "vaults/v");
        assert!(all.check(&second, Role::named(&second.role).unwrap()).is_err());
        let fine = assign("principals/p", "Key Vault Reader", "vaults/v");
        assert!(all.check(&fine, Role::named(&fine.role).unwrap()).is_ok());
        let managed = assign("managedIdentities/m", "Key Vault Administrator", "vaults/v");
        assert!(all.check(&managed, Role::named(&managed.role).unwrap()).is_err());
    }
}
