//! Why a decision is what it is, and who may at all.

use crate::{Assignment, Assignments, Decision, Unmet, decision::Grant, scope::scopes_of};
use custody_types::{Caller, Duty, Permission, UnixMillis, VaultName};

/// What an assignment says on a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It allows it.
    Allows,
    /// It is on something else.
    OutOfScope,
    /// Its role does not have the permission.
    LacksPermission,
    /// Its role is not for the duty of the caller.
    OtherDuty,
    /// Its condition is not met.
    Unmet(Unmet),
}

/// An assignment that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered {
    /// The assignment; its principal is a group where it reaches the caller by one.
    pub assignment: Assignment,
    /// What it says.
    pub verdict: Verdict,
}

/// Someone who may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// A principal or a managed identity.
    pub principal: String,
    /// The assignment that lets it.
    pub assignment: Assignment,
    /// What keeps it from holding now.
    pub unmet: Option<Unmet>,
}

impl Assignments {
    /// The decision, and every assignment of the caller and its groups in the resource's vault with what it says. A
    /// duty that is not given is taken to be one that each role is for.
    #[must_use]
    pub fn explain(
        &self,
        principal: &str,
        duty: Option<Duty>,
        address: &str,
        permission: Permission,
        resource: &str,
        now: UnixMillis,
    ) -> (Decision, Vec<Considered>) {
        let vault = scopes_of(resource).last().unwrap_or_default();
        let verdict = |g: &Grant| {
            if !g.scope.covers(resource) {
                Verdict::OutOfScope
            } else if !g.role.permissions.contains(&permission) {
                Verdict::LacksPermission
            } else if duty.is_some_and(|d| !g.role.duties.contains(&d)) {
                Verdict::OtherDuty
            } else {
                g.check(now, address).map_or_else(Verdict::Unmet, |()| Verdict::Allows)
            }
        };
        let mut considered: Vec<Considered> = self
            .subjects(principal)
            .flat_map(|s| self.of(s).map(move |g| (s, g)))
            .filter(|(_, g)| g.scope.vault().as_str() == vault)
            .map(|(s, g)| Considered { assignment: g.assignment(s), verdict: verdict(g) })
            .collect();
        considered.sort_by(|a, b| a.assignment.name.cmp(&b.assignment.name));
        let decision = match duty {
            Some(duty) => {
                let (principal, address) = (principal.to_owned(), address.to_owned());
                let caller = Caller { principal, duty, token_id: String::new(), address };
                self.decide(&caller, permission, resource, now)
            }
            None => considered
                .iter()
                .find(|c| c.verdict == Verdict::Allows)
                .map_or(Decision::Deny, |c| Decision::Allow { assignment: c.assignment.name.clone() }),
        };
        (decision, considered)
    }

    /// Everyone who may in a vault, as far as roles say; also those whose condition does not hold now. By principal,
    /// each once for every assignment.
    #[must_use]
    pub fn holders(&self, permission: Permission, vault: &VaultName, now: UnixMillis) -> Vec<Holder> {
        let reaches =
            |(_, g): &(&str, &Grant)| g.scope.vault() == *vault && g.role.permissions.contains(&permission);
        let mut all = Vec::new();
        for (given_to, grant) in self.grants().filter(reaches) {
            // From where it comes is not known here: a condition on networks is left to the call itself.
            let unmet = grant.check(now, "").err().filter(|u| *u != Unmet::Elsewhere);
            let holder = |principal: &str| Holder {
                principal: principal.to_owned(),
                assignment: grant.assignment(given_to),
                unmet,
            };
            match self.group(given_to) {
                Some(group) => all.extend(group.members.iter().map(|m| holder(m))),
                None => all.push(holder(given_to)),
            }
        }
        all.sort_by(|a, b| (&a.principal, &a.assignment.name).cmp(&(&b.principal, &b.assignment.name)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Condition, Group};

    #[test]
    fn an_explanation_tells_every_assignment_and_agrees_with_the_decision() {
        let mut all = Assignments::default();
        let assign = |n: u32, principal: &str, role: &str, scope: &str, condition| Assignment {
            name: format!("vaults/v/roleAssignments/{n}"),
            principal: principal.into(),
            role: role.into(),
            scope: scope.parse().unwrap(),
            condition,
        };
        let over = Condition { expire_time: Some(UnixMillis::from_secs(5)), ..Condition::default() };
        let (user, reader) = ("Key Vault Crypto User", "Key Vault Reader");
        let members = std::iter::once("principals/p".to_owned()).collect();
        all.put_group(Group { name: "vaults/v/groups/g".into(), members });
        for a in [
            assign(1, "principals/p", user, "vaults/v/keys/other", Condition::default()),
            assign(2, "principals/p", reader, "vaults/v", Condition::default()),
            assign(3, "principals/p", user, "vaults/v", over),
            assign(4, "vaults/v/groups/g", user, "vaults/v/keys/k", Condition::default()),
        ] {
            all.insert(a).unwrap();
        }
        let now = UnixMillis::from_secs(10);
        let explain = |duty| all.explain("principals/p", duty, "", Permission::Sign, "vaults/v/keys/k", now);
        let (decision, considered) = explain(Some(Duty::Workload));
        assert_eq!(decision, Decision::Allow { assignment: "vaults/v/roleAssignments/4".into() });
        let verdicts: Vec<_> = considered.iter().map(|c| c.verdict).collect();
        use Verdict::*;
        assert_eq!(verdicts, [OutOfScope, LacksPermission, Unmet(crate::Unmet::Over), Allows]);
        let (denied, considered) = explain(Some(Duty::Auditor));
        assert_eq!((denied, considered[3].verdict), (Decision::Deny, OtherDuty));
        assert_eq!(explain(None).0, decision);
        let holders = all.holders(Permission::Sign, &"vaults/v".parse().unwrap(), now);
        assert_eq!(holders.len(), 3, "on another key, the one whose time is over, the member of the group");
        assert!(holders.iter().all(|h| h.principal == "principals/p"));
        assert_eq!(holders.iter().filter(|h| h.unmet.is_none()).count(), 2);
    }
}
