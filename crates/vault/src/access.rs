//! Giving and taking roles.

use crate::{
    Call, EventType, Vault, VaultError,
    approval::SecondOfficer,
    catalog::ASSIGNMENTS,
    directory::check_principal,
    gate::{Permit, op},
    names::new_id,
};
use custody_authz::{Assignment, Condition, Role, Scope};
use custody_store::Batch;
use custody_types::{GroupName, Permission, UnixMillis, VaultName};
use jiff::Timestamp;

/// An assignment to be made.
#[derive(Clone, Debug, Default)]
pub struct NewAssignment {
    /// `principals/{principal}`, `managedIdentities/{identity}`, or a group of the vault.
    pub principal: String,
    /// The role's name.
    pub role: String,
    /// A vault or a key in it.
    pub scope: String,
    /// When and from where it holds.
    pub condition: Condition,
}

/// A condition as a second officer reads it. Two conditions with the same words are the same.
fn in_words(condition: &Condition) -> String {
    let time = |t: UnixMillis| {
        let known = i64::try_from(t.as_millis()).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        known.map_or_else(|| "the end of time".to_owned(), |t| t.to_string())
    };
    let mut words = String::new();
    if let Some(from) = condition.not_before {
        words += &format!(", from {}", time(from));
    }
    if let Some(until) = condition.expire_time {
        words += &format!(", until {}", time(until));
    }
    if !condition.source_networks.is_empty() {
        let networks: Vec<String> = condition.source_networks.iter().map(ToString::to_string).collect();
        words += &format!(", for callers in {}", networks.join(" "));
    }
    words
}

impl Vault {
    /// Gives a role. It holds from the next call on. A role given to oneself needs a second officer.
    ///
    /// # Errors
    /// Not allowed; a field is malformed; the role's duty conflicts with one that the principal has; a second officer
    /// has to agree.
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
        let group = new.principal.parse::<GroupName>().is_ok();
        if !group {
            check_principal("role_assignment.principal", &new.principal)?;
        } else if !new.principal.starts_with(&format!("{vault}/")) {
            let why = "must be a group of the vault that `parent` names";
            return Err(VaultError::invalid("role_assignment.principal", why));
        }
        let condition = new.condition;
        if matches!((condition.not_before, condition.expire_time), (Some(from), Some(to)) if to <= from) {
            let why = "must lie after role_assignment.condition.not_before";
            return Err(VaultError::invalid("role_assignment.condition.expire_time", why));
        }
        self.loader.ensure(vault.as_str())?;
        let role = self.gate.assignments.read().role(&new.role)?.clone();
        if role.name.contains('/') && !role.name.starts_with(&format!("{vault}/")) {
            return Err(VaultError::invalid("role_assignment.role", "is a role of another vault"));
        }
        self.gate.run(call, scope.clone().as_str(), |permit| {
            let name = format!("{vault}/roleAssignments/{}", new_id()?);
            let assignment = Assignment { name, principal: new.principal, role: new.role, scope, condition };
            self.do_assign(&permit, call, assignment, &role)
        })
    }

    fn do_assign(
        &self,
        _: &Permit<op::CreateRoleAssignment>,
        call: &Call,
        assignment: Assignment,
        role: &Role,
    ) -> Result<Assignment, VaultError> {
        // Duties conflict across vaults.
        self.loader.ensure_all()?;
        let _one_at_a_time = self.changes.lock();
        let (vault, principal) = (assignment.scope.vault(), &assignment.principal);
        let to_oneself = {
            let assignments = self.gate.assignments.read();
            let group = assignments.group(principal);
            if principal.starts_with("vaults/") && group.is_none() {
                return Err(VaultError::NotFound(principal.clone()));
            }
            let same = |a: &Assignment| (&a.role, &a.condition) == (&assignment.role, &assignment.condition);
            if let Some(there) = assignments.assignments_on(principal, &assignment.scope).find(same) {
                return Err(VaultError::AlreadyExists(there.name));
            }
            assignments.check(principal, role)?;
            *principal == call.caller.principal
                || group.is_some_and(|g| g.members.contains(&call.caller.principal))
        };
        self.catalog.read().vault(&vault)?;
        if let Scope::Key(key) = &assignment.scope {
            self.catalog.read().key(key)?;
        }
        let agreed = if to_oneself {
            let scope = assignment.scope.as_str();
            let condition = in_words(&assignment.condition);
            let action = format!("give {} on {scope} to {principal}{condition}", role.name);
            self.second_officer(call, Permission::AccessWrite, &vault, scope, action)?
        } else {
            SecondOfficer::NOT_NEEDED
        };
        let mut batch = Batch::new();
        batch.put(ASSIGNMENTS, &assignment.name, &assignment);
        self.commit_approved(batch, agreed, |_| ())?;
        self.gate.change_assignments(assignment.scope.as_str(), |all| all.insert(assignment.clone()))?;
        self.tell(EventType::AccessChanged, assignment.scope.as_str());
        Ok(assignment)
    }

    /// Takes a role away. When it returns, the next call of the principal is refused.
    ///
    /// # Errors
    /// Not allowed, or there is no such assignment.
    pub fn delete_role_assignment(&self, call: &Call, name: &str) -> Result<(), VaultError> {
        let vault: VaultName = name.split("/roleAssignments/").next().unwrap_or_default().parse()?;
        self.gate.run(call, vault.as_str(), |_: Permit<op::DeleteRoleAssignment>| {
            let _one_at_a_time = self.changes.lock();
            let gone = self.store.get::<Assignment>(ASSIGNMENTS, name)?;
            let gone = gone.ok_or_else(|| VaultError::NotFound(name.to_owned()))?;
            let mut batch = Batch::new();
            batch.delete(ASSIGNMENTS, name);
            self.store.commit(batch)?;
            self.gate.change_assignments(gone.scope.as_str(), |all| all.remove(&gone));
            self.tell(EventType::AccessChanged, gone.scope.as_str());
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
