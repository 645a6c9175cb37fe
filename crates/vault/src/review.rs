//! Why a call is allowed or not, and who may open what each key protects.

use crate::{Call, Vault, VaultError, gate::op, names::vault_of};
use custody_authz::{Considered, Decision, Unmet};
use custody_types::{Duty, KeyName, Permission, UnixMillis, VaultName};
use std::collections::BTreeMap;

/// Why a call would be allowed or not.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The assignment that decides, where it is allowed.
    pub allowed_by: Option<String>,
    /// Every assignment of the principal and its groups in the vault.
    pub considered: Vec<Considered>,
    /// The groups that the principal is in.
    pub groups: Vec<String>,
}

/// One principal and one key.
#[derive(Clone, Debug)]
pub struct AccessReview {
    /// The key.
    pub key: KeyName,
    /// Who.
    pub principal: String,
    /// The assignment that lets it unwrap; none if it no longer may.
    pub assignment: Option<custody_authz::Assignment>,
    /// What keeps the assignment from holding now.
    pub unmet: Option<Unmet>,
    /// When it last opened something with any version of the key.
    pub last_opened: Option<UnixMillis>,
}

impl Vault {
    /// Why a principal may do something on a vault or a key, or may not.
    ///
    /// # Errors
    /// Not allowed, or the resource's name is malformed.
    pub fn explain_access(
        &self,
        call: &Call,
        principal: &str,
        duty: Option<Duty>,
        address: &str,
        permission: Permission,
        resource: &str,
    ) -> Result<Explanation, VaultError> {
        let vault: VaultName = vault_of(resource)?;
        let duty = duty.or_else(|| principal.starts_with("managedIdentities/").then_some(Duty::Workload));
        self.gate.run::<op::ExplainAccess, _>(call, vault.as_str(), |_| {
            let assignments = self.gate.assignments.read();
            let (decision, considered) =
                assignments.explain(principal, duty, address, permission, resource, self.now());
            let allowed_by = match decision {
                Decision::Allow { assignment } => Some(assignment),
                Decision::Deny => None,
            };
            let prefix = format!("{vault}/");
            let groups = assignments.groups_of(principal).iter().filter(|g| g.starts_with(&prefix));
            Ok(Explanation { allowed_by, considered, groups: groups.cloned().collect() })
        })
    }

    /// Who can unwrap each of up to `max` keys of a vault after the key named `after`, and when each last did; also who
    /// did and no longer may. By key, then by principal; with the key that the next page begins after.
    ///
    /// # Errors
    /// Not allowed, or the vault does not exist.
    pub fn review_access(
        &self,
        call: &Call,
        vault: &str,
        after: &str,
        max: usize,
    ) -> Result<(Vec<AccessReview>, Option<String>), VaultError> {
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        self.gate.run::<op::ReviewAccess, _>(call, vault.as_str(), |_| {
            let holders = self.gate.assignments.read().holders(Permission::UnwrapKey, &vault, self.now());
            let catalog = self.catalog.read();
            catalog.vault(&vault)?;
            let mut all = Vec::new();
            let mut keys = catalog.keys_of(&vault, after).peekable();
            let mut last = None;
            for key in keys.by_ref().take(max) {
                last = Some(key.name.to_string());
                let mut opened: BTreeMap<String, UnixMillis> = BTreeMap::new();
                for version in key.versions.iter().filter_map(|v| catalog.versions.get(v)) {
                    for (who, when) in version.uses.counts().last_opened {
                        let last = opened.entry(who).or_insert(when);
                        *last = (*last).max(when);
                    }
                }
                let here = holders.iter().filter(|h| h.assignment.scope.covers(key.name.as_str()));
                let mut rows: Vec<AccessReview> = here
                    .map(|h| AccessReview {
                        key: key.name.clone(),
                        principal: h.principal.clone(),
                        assignment: Some(h.assignment.clone()),
                        unmet: h.unmet,
                        last_opened: opened.get(&h.principal).copied(),
                    })
                    .collect();
                opened.retain(|who, _| !rows.iter().any(|r| r.principal == *who));
                rows.extend(opened.into_iter().map(|(principal, when)| AccessReview {
                    key: key.name.clone(),
                    principal,
                    assignment: None,
                    unmet: None,
                    last_opened: Some(when),
                }));
                rows.sort_by(|a, b| a.principal.cmp(&b.principal));
                all.append(&mut rows);
            }
            Ok((all, last.filter(|_| keys.peek().is_some())))
        })
    }
}
