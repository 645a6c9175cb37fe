//! Groups and roles that a vault's owners make.

use crate::{
    Call, EventType, Vault, VaultError,
    approval::SecondOfficer,
    catalog::{GROUPS, ROLES},
    gate::{Permit, op},
    names::vault_of,
};
use custody_authz::{Group, Role};
use custody_store::Batch;
use custody_types::{
    GroupName, ManagedIdentityName, Permission, PrincipalName, RoleDefinitionName, UnknownPermission,
    VaultName,
};
use std::{collections::BTreeSet, sync::Arc};

/// Members of a group.
const MEMBERS_MAX: usize = 1000;

/// Whether the text names a principal or a managed identity.
pub(crate) fn check_principal(field: &'static str, name: &str) -> Result<(), VaultError> {
    if name.parse::<PrincipalName>().is_ok() || name.parse::<ManagedIdentityName>().is_ok() {
        return Ok(());
    }
    let why = format!("must be of the form {} or {}", PrincipalName::PATTERN, ManagedIdentityName::PATTERN);
    Err(VaultError::invalid(field, why))
}

impl Vault {
    /// Makes a role of a vault. It is never changed: who holds it holds what was given.
    ///
    /// # Errors
    /// Not allowed; the name is taken; a permission is unknown; it would let one duty manage keys and use them.
    pub fn create_role_definition(
        &self,
        call: &Call,
        vault: &str,
        id: &str,
        permissions: &[String],
        description: &str,
    ) -> Result<Role, VaultError> {
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        let name: RoleDefinitionName = format!("{vault}/roleDefinitions/{id}")
            .parse()
            .map_err(|e| VaultError::invalid("role_definition_id", e))?;
        let parse = |p: &String| {
            let unknown = |e: UnknownPermission| {
                VaultError::invalid("role_definition.permissions", format!("{e}: {p}"))
            };
            p.parse().map_err(unknown)
        };
        let permissions: Vec<Permission> = permissions.iter().map(parse).collect::<Result<_, _>>()?;
        if description.chars().count() > 200 {
            return Err(VaultError::invalid("role_definition.description", "may have up to 200 characters"));
        }
        let role = Role::custom(name.to_string(), permissions, description.to_owned())?;
        self.gate.run(call, vault.as_str(), |_: Permit<op::CreateRoleDefinition>| {
            let _one_at_a_time = self.changes.lock();
            self.catalog.read().vault(&vault)?;
            if self.gate.assignments.read().role(name.as_str()).is_ok() {
                return Err(VaultError::AlreadyExists(name.to_string()));
            }
            let mut batch = Batch::new();
            batch.put(ROLES, name.as_str(), &role);
            self.store.commit(batch)?;
            self.gate.change_assignments(name.as_str(), |all| all.put_role(role.clone()));
            Ok(role)
        })
    }

    /// Removes a role of a vault that nobody holds.
    ///
    /// # Errors
    /// Not allowed, does not exist, or is assigned.
    pub fn delete_role_definition(&self, call: &Call, name: &str) -> Result<(), VaultError> {
        let name: RoleDefinitionName = name.parse()?;
        self.gate.run(call, vault_of(name.as_str())?.as_str(), |_: Permit<op::DeleteRoleDefinition>| {
            let _one_at_a_time = self.changes.lock();
            {
                let assignments = self.gate.assignments.read();
                assignments.role(name.as_str()).map_err(|_| VaultError::NotFound(name.to_string()))?;
                if assignments.is_assigned(name.as_str()) {
                    let why = "is assigned; take it away from everyone first";
                    return Err(VaultError::Precondition { name: name.to_string(), why });
                }
            }
            let mut batch = Batch::new();
            batch.delete(ROLES, name.as_str());
            self.store.commit(batch)?;
            self.gate.change_assignments(name.as_str(), |all| all.remove_role(name.as_str()));
            Ok(())
        })
    }

    /// The built-in roles and those of a vault.
    ///
    /// # Errors
    /// Not allowed, or the vault does not exist.
    pub fn list_role_definitions(&self, call: &Call, vault: &str) -> Result<Vec<Arc<Role>>, VaultError> {
        if vault.is_empty() {
            return Ok(Role::built_in().to_vec());
        }
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        self.gate.run::<op::ListRoleDefinitions, _>(call, vault.as_str(), |_| {
            self.catalog.read().vault(&vault)?;
            Ok(self.gate.assignments.read().roles(&format!("{vault}/roleDefinitions/")))
        })
    }

    /// Makes a group without members.
    ///
    /// # Errors
    /// Not allowed, or the name is taken or malformed.
    pub fn create_group(&self, call: &Call, vault: &str, id: &str) -> Result<Group, VaultError> {
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        let name: GroupName =
            format!("{vault}/groups/{id}").parse().map_err(|e| VaultError::invalid("group_id", e))?;
        self.gate.run(call, vault.as_str(), |_: Permit<op::CreateGroup>| {
            let _one_at_a_time = self.changes.lock();
            self.catalog.read().vault(&vault)?;
            if self.gate.assignments.read().group(name.as_str()).is_some() {
                return Err(VaultError::AlreadyExists(name.to_string()));
            }
            let group = Group { name: name.to_string(), members: BTreeSet::new() };
            self.put_group(group.clone(), SecondOfficer::NOT_NEEDED)?;
            Ok(group)
        })
    }

    fn put_group(&self, group: Group, agreed: SecondOfficer) -> Result<(), VaultError> {
        let mut batch = Batch::new();
        batch.put(GROUPS, &group.name, &group);
        self.commit_approved(batch, agreed, |_| ())?;
        self.gate.change_assignments(&group.name.clone(), |all| all.put_group(group));
        Ok(())
    }

    fn group(&self, name: &GroupName) -> Result<Group, VaultError> {
        let found = self.gate.assignments.read().group(name.as_str()).cloned();
        found.ok_or_else(|| VaultError::NotFound(name.to_string()))
    }

    /// Removes a group that holds no role.
    ///
    /// # Errors
    /// Not allowed, does not exist, or holds a role.
    pub fn delete_group(&self, call: &Call, name: &str) -> Result<(), VaultError> {
        let name: GroupName = name.parse()?;
        self.gate.run(call, vault_of(name.as_str())?.as_str(), |_: Permit<op::DeleteGroup>| {
            let _one_at_a_time = self.changes.lock();
            self.group(&name)?;
            if self.gate.assignments.read().holds_any(name.as_str()) {
                let why = "holds roles; take them away first";
                return Err(VaultError::Precondition { name: name.to_string(), why });
            }
            let mut batch = Batch::new();
            batch.delete(GROUPS, name.as_str());
            self.store.commit(batch)?;
            self.gate.change_assignments(name.as_str(), |all| all.remove_group(name.as_str()));
            Ok(())
        })
    }

    /// The groups of a vault, by name.
    ///
    /// # Errors
    /// Not allowed, or the vault does not exist.
    pub fn list_groups(&self, call: &Call, vault: &str) -> Result<Vec<Group>, VaultError> {
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        self.gate.run::<op::ListGroups, _>(call, vault.as_str(), |_| {
            self.catalog.read().vault(&vault)?;
            Ok(self.gate.assignments.read().groups(&format!("{vault}/groups/")).cloned().collect())
        })
    }

    /// Puts a principal into a group. Oneself only with a second officer: that is granting roles to oneself.
    ///
    /// # Errors
    /// Not allowed, does not exist, is full; a role of the group conflicts with what the principal holds; a second
    /// officer has to agree.
    pub fn add_group_member(&self, call: &Call, name: &str, member: &str) -> Result<Group, VaultError> {
        let name: GroupName = name.parse()?;
        check_principal("member", member)?;
        let vault = vault_of(name.as_str())?;
        self.gate.run(call, vault.as_str(), |_: Permit<op::AddGroupMember>| {
            // Duties conflict across vaults.
            self.loader.ensure_all()?;
            let _one_at_a_time = self.changes.lock();
            let mut group = self.group(&name)?;
            if group.members.len() >= MEMBERS_MAX {
                return Err(VaultError::invalid(
                    "member",
                    "the group has 1,000 members, the most it may have",
                ));
            }
            self.gate.assignments.read().check_member(name.as_str(), member)?;
            let agreed = if call.caller.principal == member {
                let action = format!("put {member} into {name}");
                self.second_officer(call, Permission::AccessWrite, &vault, vault.as_str(), action)?
            } else {
                SecondOfficer::NOT_NEEDED
            };
            group.members.insert(member.to_owned());
            self.put_group(group.clone(), agreed)?;
            self.tell(EventType::AccessChanged, vault.as_str());
            Ok(group)
        })
    }

    /// Takes a principal out of a group. When it returns, the next call of the principal is decided without it.
    ///
    /// # Errors
    /// Not allowed, does not exist, or is no member.
    pub fn remove_group_member(&self, call: &Call, name: &str, member: &str) -> Result<Group, VaultError> {
        let name: GroupName = name.parse()?;
        let vault = vault_of(name.as_str())?;
        self.gate.run(call, vault.as_str(), |_: Permit<op::RemoveGroupMember>| {
            let _one_at_a_time = self.changes.lock();
            let mut group = self.group(&name)?;
            if !group.members.remove(member) {
                return Err(VaultError::NotFound(format!("{name}: {member}")));
            }
            self.put_group(group.clone(), SecondOfficer::NOT_NEEDED)?;
            self.tell(EventType::AccessChanged, vault.as_str());
            Ok(group)
        })
    }
}
