//! All assignments, indexed by who holds them and on what, and the decision.

use crate::{Assignment, Condition, Group, Role, Scope, UnknownRole, Unmet, scope::scopes_of};
use custody_types::{Caller, Duty, Permission, UnixMillis, VaultName};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

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

/// An assignment as the index holds it, below its holder. There are a million of them.
#[derive(Clone, Debug)]
pub(crate) struct Grant {
    pub(crate) name: Box<str>,
    pub(crate) scope: Scope,
    pub(crate) role: Arc<Role>,
    /// None where it is empty.
    condition: Option<Box<Condition>>,
}

impl Grant {
    /// Whether its condition holds.
    pub(crate) fn check(&self, now: UnixMillis, address: &str) -> Result<(), Unmet> {
        self.condition.as_ref().map_or(Ok(()), |condition| condition.check(now, address))
    }

    /// As it was given.
    pub(crate) fn assignment(&self, holder: &str) -> Assignment {
        Assignment {
            name: self.name.to_string(),
            principal: holder.to_owned(),
            role: self.role.name.clone(),
            scope: self.scope.clone(),
            condition: self.condition.as_deref().cloned().unwrap_or_default(),
        }
    }
}

/// Those of a holder on one scope.
fn on<'a>(grants: &'a [Grant], scope: &str) -> &'a [Grant] {
    let first = grants.partition_point(|g| g.scope.as_str() < scope);
    let rest = grants.get(first..).unwrap_or_default();
    rest.get(..rest.partition_point(|g| g.scope.as_str() == scope)).unwrap_or_default()
}

/// All assignments. A decision looks at those of the caller and of its groups on the resource's own scopes, however
/// many others there are.
#[derive(Clone, Debug)]
pub struct Assignments {
    /// By holder; those of one in the order of their scopes.
    holders: HashMap<String, Vec<Grant>>,
    /// When those that have a time begin to hold and cease to, with their scopes, by name.
    timed: BTreeMap<String, (Scope, [Option<UnixMillis>; 2])>,
    roles: HashMap<String, Arc<Role>>,
    groups: BTreeMap<String, Group>,
    /// By member.
    groups_of: HashMap<String, Vec<String>>,
}

impl Default for Assignments {
    fn default() -> Self {
        let roles = Role::built_in().iter().map(|r| (r.name.clone(), r.clone())).collect();
        Self {
            holders: HashMap::new(),
            timed: BTreeMap::new(),
            roles,
            groups: BTreeMap::new(),
            groups_of: HashMap::new(),
        }
    }
}

impl Assignments {
    /// The role of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn role(&self, name: &str) -> Result<&Arc<Role>, UnknownRole> {
        self.roles.get(name).ok_or_else(|| UnknownRole::new(name))
    }

    /// The built-in roles and those whose names begin with `prefix`, by name.
    #[must_use]
    pub fn roles(&self, prefix: &str) -> Vec<Arc<Role>> {
        let own = self.roles.values().filter(|r| !prefix.is_empty() && r.name.starts_with(prefix));
        let mut own: Vec<_> = own.cloned().collect();
        own.sort_by(|a, b| a.name.cmp(&b.name));
        Role::built_in().iter().cloned().chain(own).collect()
    }

    /// Takes in a role of an owner.
    pub fn put_role(&mut self, role: Role) {
        self.roles.insert(role.name.clone(), Arc::new(role));
    }

    /// Removes a role of an owner. It must not be assigned.
    pub fn remove_role(&mut self, name: &str) {
        self.roles.remove(name);
    }

    /// Whether any assignment gives this role.
    #[must_use]
    pub fn is_assigned(&self, role: &str) -> bool {
        self.grants().any(|(_, g)| g.role.name == role)
    }

    /// The group of this name.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.get(name)
    }

    /// The groups whose names begin with `prefix`, by name.
    pub fn groups(&self, prefix: &str) -> impl Iterator<Item = &Group> {
        self.groups.range(prefix.to_owned()..).map(|(_, g)| g).take_while(move |g| g.name.starts_with(prefix))
    }

    /// The groups that a principal is in.
    #[must_use]
    pub fn groups_of(&self, principal: &str) -> &[String] {
        self.groups_of.get(principal).map_or(&[], Vec::as_slice)
    }

    /// Takes in a group, in place of one of its name.
    pub fn put_group(&mut self, group: Group) {
        self.remove_group(&group.name);
        for member in &group.members {
            self.groups_of.entry(member.clone()).or_default().push(group.name.clone());
        }
        self.groups.insert(group.name.clone(), group);
    }

    /// Removes a group.
    pub fn remove_group(&mut self, name: &str) {
        let Some(old) = self.groups.remove(name) else { return };
        for member in &old.members {
            if let Some(of) = self.groups_of.get_mut(member) {
                of.retain(|g| g != name);
                if of.is_empty() {
                    self.groups_of.remove(member);
                }
            }
        }
    }

    /// Whether a principal or a group may be given a role besides those it has: a group, if each member may.
    ///
    /// # Errors
    /// It would give a principal a second, conflicting duty.
    pub fn check(&self, principal: &str, role: &Role) -> Result<(), ConflictingDuty> {
        match self.groups.get(principal) {
            Some(group) => group.members.iter().try_for_each(|m| self.check_one(m, role)),
            None => self.check_one(principal, role),
        }
    }

    /// Whether a principal may join a group: whether it may hold each role that the group has.
    ///
    /// # Errors
    /// As [`Assignments::check`].
    pub fn check_member(&self, group: &str, member: &str) -> Result<(), ConflictingDuty> {
        self.of(group).try_for_each(|g| self.check_one(member, &g.role))
    }

    fn check_one(&self, principal: &str, role: &Role) -> Result<(), ConflictingDuty> {
        let mut held = self.subjects(principal).flat_map(|s| self.of(s)).map(|g| &g.role);
        let conflicting = |held: &&Arc<Role>| !held.duties.iter().any(|d| role.duties.contains(d));
        let workload = principal.starts_with("managedIdentities/") && !role.duties.contains(&Duty::Workload);
        let other = held.find(conflicting).map(|r| r.name.clone());
        match other.or_else(|| workload.then(|| "the workload duty".to_owned())) {
            None => Ok(()),
            Some(held) => {
                Err(ConflictingDuty { principal: principal.to_owned(), held, role: role.name.clone() })
            }
        }
    }

    /// Adds an assignment that has been checked.
    ///
    /// # Errors
    /// Its role is not known.
    pub fn insert(&mut self, assignment: Assignment) -> Result<(), UnknownRole> {
        let role = self.role(&assignment.role)?.clone();
        let Assignment { name, principal, scope, condition, .. } = assignment;
        let held = self.holders.entry(principal).or_default();
        let at = held.partition_point(|g| g.scope.as_str() <= scope.as_str());
        let times = [condition.not_before, condition.expire_time];
        if times.iter().any(Option::is_some) {
            self.timed.insert(name.clone(), (scope.clone(), times));
        }
        let condition = (!condition.is_empty()).then(|| Box::new(condition));
        held.insert(at, Grant { name: name.into(), scope, role, condition });
        Ok(())
    }

    /// Removes an assignment.
    pub fn remove(&mut self, assignment: &Assignment) {
        self.timed.remove(&assignment.name);
        let Some(held) = self.holders.get_mut(&assignment.principal) else { return };
        held.retain(|g| *g.name != *assignment.name);
        if held.is_empty() {
            self.holders.remove(&assignment.principal);
        }
    }

    /// All, each with its holder.
    pub(crate) fn grants(&self) -> impl Iterator<Item = (&str, &Grant)> {
        self.holders.iter().flat_map(|(holder, held)| held.iter().map(|g| (holder.as_str(), g)))
    }

    /// What a principal or a group holds itself.
    pub(crate) fn of(&self, holder: &str) -> impl Iterator<Item = &Grant> {
        self.holders.get(holder).into_iter().flatten()
    }

    /// Whether a principal or a group holds anything itself.
    #[must_use]
    pub fn holds_any(&self, holder: &str) -> bool {
        self.holders.contains_key(holder)
    }

    /// The assignments of a principal or a group itself on one scope, however many it has on others.
    pub fn assignments_on(&self, holder: &str, scope: &Scope) -> impl Iterator<Item = Assignment> {
        let held = self.holders.get(holder).map_or(&[][..], Vec::as_slice);
        on(held, scope.as_str()).iter().map(move |g| g.assignment(holder))
    }

    /// The scope of any assignment of a principal, or of a group it is in, in a vault.
    #[must_use]
    pub fn reach(&self, principal: &str, vault: &VaultName) -> Option<&Scope> {
        let mut held = self.subjects(principal).flat_map(|s| self.of(s)).map(|g| &g.scope);
        held.find(|scope| scope.vault() == *vault)
    }

    /// The caller and its groups.
    pub(crate) fn subjects<'a>(&'a self, principal: &'a str) -> impl Iterator<Item = &'a str> {
        std::iter::once(principal).chain(self.groups_of(principal).iter().map(String::as_str))
    }

    /// Whether the caller may, and by which assignment. An assignment whose role is not for the caller's duty
    /// gives nothing, whoever wrote it.
    #[must_use]
    pub fn decide(
        &self,
        caller: &Caller,
        permission: Permission,
        resource: &str,
        now: UnixMillis,
    ) -> Decision {
        for subject in self.subjects(&caller.principal) {
            let Some(held) = self.holders.get(subject) else { continue };
            for scope in scopes_of(resource) {
                let allows = |g: &&Grant| {
                    g.role.duties.contains(&caller.duty)
                        && g.role.permissions.contains(&permission)
                        && g.check(now, &caller.address).is_ok()
                };
                if let Some(grant) = on(held, scope).iter().find(allows) {
                    return Decision::Allow { assignment: grant.name.to_string() };
                }
            }
        }
        Decision::Deny
    }

    /// Scopes of assignments that began to hold, or ceased to, between two moments.
    #[must_use]
    pub fn turned(&self, after: UnixMillis, until: UnixMillis) -> Vec<String> {
        let within = |t: &Option<UnixMillis>| t.is_some_and(|t| after < t && t <= until);
        let turned = self.timed.values().filter(|(_, times)| times.iter().any(within));
        turned.map(|(scope, _)| scope.to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis::from_secs(1000);

    fn caller(principal: &str, duty: Duty) -> Caller {
        Caller { principal: principal.into(), duty, token_id: String::new(), address: String::new() }
    }

    fn assign(principal: &str, role: &str, scope: &str) -> Assignment {
        Assignment {
            name: format!("vaults/v/roleAssignments/{principal}"),
            principal: principal.into(),
            role: role.into(),
            scope: scope.parse().unwrap(),
            condition: Condition::default(),
        }
    }

    #[test]
    fn only_the_three_rights_come_with_service_encryption() {
        let mut all = Assignments::default();
        let role = "Key Vault Crypto Service Encryption User";
        all.insert(assign("managedIdentities/m", role, "vaults/v/keys/k")).unwrap();
        let who = caller("managedIdentities/m", Duty::Workload);
        for permission in Permission::ALL {
            let allowed = all.decide(&who, *permission, "vaults/v/keys/k", NOW) != Decision::Deny;
            assert_eq!(
                allowed,
                matches!(permission, Permission::Get | Permission::WrapKey | Permission::UnwrapKey)
            );
            assert_eq!(all.decide(&who, *permission, "vaults/v/keys/other", NOW), Decision::Deny);
        }
        let officer = caller("managedIdentities/m", Duty::SecurityOfficer);
        assert_eq!(
            all.decide(&officer, Permission::Get, "vaults/v/keys/k", NOW),
            Decision::Deny,
            "a role of another duty gives nothing"
        );
    }

    #[test]
    fn a_conflicting_duty_is_refused_also_by_way_of_a_group() {
        let mut all = Assignments::default();
        let role = |all: &Assignments, name: &str| all.role(name).unwrap().clone();
        all.insert(assign("principals/p", "Key Vault Crypto Officer", "vaults/v")).unwrap();
        let user = role(&all, "Key Vault Crypto User");
        assert!(all.check("principals/p", &user).is_err());
        assert!(all.check("principals/p", &role(&all, "Key Vault Reader")).is_ok());
        assert!(all.check("managedIdentities/m", &role(&all, "Key Vault Administrator")).is_err());
        let members = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let group = |names: &[&str]| Group { name: "vaults/v/groups/g".into(), members: members(names) };
        all.put_group(group(&["principals/p"]));
        assert!(all.check("vaults/v/groups/g", &user).is_err(), "its member may not");
        all.put_group(group(&[]));
        all.insert(assign("vaults/v/groups/g", &user.name, "vaults/v")).unwrap();
        assert!(all.check_member("vaults/v/groups/g", "principals/p").is_err());
        assert!(all.check_member("vaults/v/groups/g", "managedIdentities/m").is_ok());
    }

    #[test]
    fn who_is_in_a_group_holds_what_the_group_holds_and_no_longer() {
        let mut all = Assignments::default();
        all.insert(assign("vaults/v/groups/g", "Key Vault Crypto User", "vaults/v")).unwrap();
        let who = caller("managedIdentities/m", Duty::Workload);
        let may =
            |all: &Assignments| all.decide(&who, Permission::Sign, "vaults/v/keys/k", NOW) != Decision::Deny;
        assert!(!may(&all));
        let members = std::iter::once("managedIdentities/m".to_owned()).collect();
        all.put_group(Group { name: "vaults/v/groups/g".into(), members });
        assert!(may(&all));
        all.put_group(Group { name: "vaults/v/groups/g".into(), members: std::collections::BTreeSet::new() });
        assert!(!may(&all));
        assert!(all.groups_of("managedIdentities/m").is_empty());
    }

    #[test]
    fn a_condition_ends_a_right_and_the_moment_is_told() {
        let mut all = Assignments::default();
        let mut timed = assign("managedIdentities/m", "Key Vault Crypto User", "vaults/v");
        timed.condition.expire_time = Some(UnixMillis::from_secs(1001));
        all.insert(timed.clone()).unwrap();
        let who = caller("managedIdentities/m", Duty::Workload);
        let at = |s| all.decide(&who, Permission::Sign, "vaults/v/keys/k", UnixMillis::from_secs(s));
        assert_ne!(at(1000), Decision::Deny);
        assert_eq!(at(1001), Decision::Deny);
        assert_eq!(all.turned(NOW, UnixMillis::from_secs(1001)), ["vaults/v"]);
        assert!(all.turned(UnixMillis::from_secs(1001), UnixMillis::from_secs(2000)).is_empty());
        all.remove(&timed);
        assert_eq!(all.grants().count(), 0);
    }
}
