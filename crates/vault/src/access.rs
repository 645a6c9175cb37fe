//! Giving and taking roles.

use crate::{
    Call, EventType, Vault, VaultError,
    catalog::ASSIGNMENTS,
    gate::{Permit, op},
    names::new_id,
};
use custody_authz::{Assignment, Role, Scope};
use custody_store::Batch;
use custody_types::{ManagedIdentityName, PrincipalName, VaultName};

/// An assignment to be made.
#[derive(Clone, Debug)]
pub struct NewAssignment {
    /// `principals/{principal}` or `managedIdentities/{identity}`.
    pub principal: String,
    /// The role's name.
    pub role: String,
    /// A vault or a key in it.
    pub scope: String,
}

impl Vault {
    /// Gives a role. It holds from the next call on.
    ///
    /// # Errors
    /// Not allowed; a field is malformed; the role's duty conflicts with one that the principal has.
    pub fn create_role_assignment(
        &self,
        call: &Call,
        vault: &str,
        new: NewAssignment,
    ) -> Result<Assignment, VaultError> {
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        let scope: Scope = new.scope.parse()?;
        if scope.vault() != vault {
            return Err(VaultError::invalid(
                "role_assignment.scope",
                "must lie in the vault that `parent` names",
            ));
        }
        if new.principal.parse::<PrincipalName>().is_err()
            && new.principal.parse::<ManagedIdentityName>().is_err()
        {
            let why =
                format!("must be of the form {} or {}", PrincipalName::PATTERN, ManagedIdentityName::PATTERN);
            return Err(VaultError::invalid("role_assignment.principal", why));
        }
        let role = Role::named(&new.role)?;
        self.gate.run(call, scope.clone().as_str(), |permit| {
            let name = format!("{vault}/roleAssignments/{}", new_id()?);
            self.do_assign(
                &permit,
                Assignment { name, principal: new.principal, role: new.role, scope },
                role,
            )
        })
    }

    fn do_assign(
        &self,
        _: &Permit<op::CreateRoleAssignment>,
        assignment: Assignment,
        role: &Role,
    ) -> Result<Assignment, VaultError> {
        let _one_at_a_time = self.changes.lock();
        {
            let assignments = self.gate.assignments.read();
            let same = |a: &&Assignment| (&a.role, &a.scope) == (&assignment.role, &assignment.scope);
            if let Some(there) = assignments.of(&assignment.principal).iter().find(same) {
                return Err(VaultError::AlreadyExists(there.name.clone()));
            }
            assignments.check(&assignment, role)?;
        }
        self.catalog.read().vault(&assignment.scope.vault())?;
        if let Scope::Key(key) = &assignment.scope {
            self.catalog.read().key(key)?;
        }
        let mut batch = Batch::new();
        batch.put(ASSIGNMENTS, &assignment.name, &assignment);
        self.store.commit(batch)?;
        self.gate.assignments.write().insert(assignment.clone());
        self.tell(EventType::AccessChanged, assignment.scope.as_str());
        Ok(assignment)
    }

    /// Takes a role away. When it returns, the next call of the principal is refused.
    ///
    /// # Errors
    /// Not allowed, or there is no such assignment.
    pub fn delete_role_assignment(&self, call: &Call, name: &str) -> Result<(), VaultError> {
        let vault = name.split("/roleAssignments/").next().unwrap_or_default();
        let vault: VaultName = vault.parse()?;
        self.gate.run(call, vault.as_str(), |_: Permit<op::DeleteRoleAssignment>| {
            let _one_at_a_time = self.changes.lock();
            if self.store.get::<Assignment>(ASSIGNMENTS, name)?.is_none() {
                return Err(VaultError::NotFound(name.to_owned()));
            }
            let mut batch = Batch::new();
            batch.delete(ASSIGNMENTS, name);
            self.store.commit(batch)?;
            let gone = self.gate.assignments.write().remove(name);
            if let Some(gone) = gone {
                self.tell(EventType::AccessChanged, gone.scope.as_str());
            }
            Ok(())
        })
    }

    /// The assignments of a vault, by name.
    ///
    /// # Errors
    /// Not allowed, or the vault does not exist.
    pub fn list_role_assignments(&self, call: &Call, vault: &str) -> Result<Vec<Assignment>, VaultError> {
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        self.gate.run::<op::ListRoleAssignments, _>(call, vault.as_str(), |_| {
            self.catalog.read().vault(&vault)?;
            let all = self.store.scan::<Assignment>(ASSIGNMENTS, &format!("{vault}/"))?;
            Ok(all.into_iter().map(|(_, a)| a).collect())
        })
    }
}
