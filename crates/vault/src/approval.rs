//! Dual control: what cannot be undone needs a second officer (NIST SP 800-57 part 1 section 6.2.2.3).
//!
//! The first officer asks for the thing itself and is told that it needs approval; that makes the request. A second
//! officer, who may do the same thing, approves it. The first asks again, and the approval is spent in the same commit
//! as the act: it serves once, for that officer and that act.
//!
//! What needs it: a purge, above all one of a key that something depends on, a backup of a key, a role granted to oneself, weakening a vault, and break-glass.

use crate::{
    ApprovalPolicy, Call, EventType, Vault, VaultError,
    catalog::{APPROVALS, Catalog},
    gate::{Permit, op},
    names::new_id,
};
use custody_store::Batch;
use custody_types::{ApprovalName, Permission, UnixMillis, VaultName};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a request waits for its approval, and an approval for its use.
const APPROVAL_TIME: Duration = Duration::from_secs(3600);
/// How long one can be looked at after its time.
const KEPT_TIME: Duration = Duration::from_secs(30 * 86_400);
/// Requests that may wait in a vault.
const PENDING_MAX: usize = 200;

/// A request for a second officer's approval.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Approval {
    /// Its name.
    pub name: ApprovalName,
    /// What is to be done, in words that both officers see. It binds: the act must be this one.
    pub action: String,
    /// On what.
    pub resource: String,
    /// What the second officer must be allowed as well.
    pub permission: Permission,
    /// Who asked.
    pub requester: String,
    /// When.
    pub create_time: UnixMillis,
    /// When it is over, approved or not.
    pub expire_time: UnixMillis,
    /// The second officer, and whether it agreed.
    pub decision: Option<(String, bool)>,
    /// When it was used.
    pub use_time: Option<UnixMillis>,
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ApprovalState {
    /// Waits for a second officer.
    Pending,
    /// May be used once.
    Approved,
    /// A second officer said no.
    Rejected,
    /// It was used.
    Used,
    /// Its time is over.
    Expired,
}

impl Approval {
    /// Where it stands.
    #[must_use]
    pub fn state(&self, now: UnixMillis) -> ApprovalState {
        match &self.decision {
            _ if self.use_time.is_some() => ApprovalState::Used,
            Some((_, false)) => ApprovalState::Rejected,
            _ if now >= self.expire_time => ApprovalState::Expired,
            Some((_, true)) => ApprovalState::Approved,
            None => ApprovalState::Pending,
        }
    }
}

/// Proof that a second officer agreed, or that the vault asks for none. It has to be given to
/// [`Vault::commit_approved`], which spends it.
#[derive(Debug)]
#[must_use]
pub(crate) struct SecondOfficer(Option<Approval>);

impl SecondOfficer {
    /// For an act that needs none.
    pub(crate) const NOT_NEEDED: Self = Self(None);

    /// The second officer, where one agreed.
    pub(crate) fn principal(&self) -> &str {
        let decision = self.0.as_ref().and_then(|approval| approval.decision.as_ref());
        decision.map_or("", |(officer, _)| officer)
    }
}

impl Vault {
    /// Asks whether a second officer has agreed to `action`. The caller holds the lock of changes, so that an approval
    /// is found once.
    pub(crate) fn second_officer(
        &self,
        call: &Call,
        permission: Permission,
        vault: &VaultName,
        resource: &str,
        action: String,
    ) -> Result<SecondOfficer, VaultError> {
        if self.catalog.read().vault(vault)?.approvals == ApprovalPolicy::OneOfficer {
            return Ok(SecondOfficer::NOT_NEEDED);
        }
        self.approved(call, permission, vault, resource, action)
    }

    /// As [`Vault::second_officer`], whatever the vault's policy is.
    pub(crate) fn approved(
        &self,
        call: &Call,
        permission: Permission,
        vault: &VaultName,
        resource: &str,
        action: String,
    ) -> Result<SecondOfficer, VaultError> {
        let now = self.now();
        let (found, pending) = {
            let catalog = self.catalog.read();
            let prefix = format!("{vault}/approvals/");
            let here = || catalog.approvals_below(&prefix);
            let same = |a: &&Approval| {
                a.requester == call.caller.principal
                    && a.action == action
                    && matches!(a.state(now), ApprovalState::Pending | ApprovalState::Approved)
            };
            let pending = here().filter(|a| a.state(now) == ApprovalState::Pending).count();
            (here().find(same).cloned(), pending)
        };
        match found {
            Some(found) if found.state(now) == ApprovalState::Approved => Ok(SecondOfficer(Some(found))),
            Some(found) => Err(VaultError::ApprovalRequired { approval: found.name.to_string(), action }),
            None if pending >= PENDING_MAX => {
                let why = "has 200 requests that wait for approval; have them approved or rejected first";
                Err(VaultError::Precondition { name: vault.to_string(), why })
            }
            None => {
                let name: ApprovalName = format!("{vault}/approvals/{}", new_id()?).parse()?;
                let approval = Approval {
                    name: name.clone(),
                    action: action.clone(),
                    resource: resource.to_owned(),
                    permission,
                    requester: call.caller.principal.clone(),
                    create_time: now,
                    expire_time: now.plus(APPROVAL_TIME),
                    decision: None,
                    use_time: None,
                };
                self.put_approval(approval)?;
                self.tell(EventType::ApprovalRequested, name.as_str());
                Err(VaultError::ApprovalRequired { approval: name.to_string(), action })
            }
        }
    }

    fn put_approval(&self, approval: Approval) -> Result<(), VaultError> {
        let mut batch = Batch::new();
        batch.put(APPROVALS, approval.name.as_str(), &approval);
        self.commit(batch, |catalog| _ = catalog.approvals.insert(approval.name.to_string(), approval))
    }

    /// Commits an act together with the end of its approval.
    pub(crate) fn commit_approved<T>(
        &self,
        mut batch: Batch,
        approved: SecondOfficer,
        apply: impl FnOnce(&mut Catalog) -> T,
    ) -> Result<T, VaultError> {
        let spent = approved.0.map(|a| Approval { use_time: Some(self.now()), ..a });
        if let Some(spent) = &spent {
            batch.put(APPROVALS, spent.name.as_str(), spent);
        }
        self.commit(batch, |catalog| {
            if let Some(spent) = spent {
                catalog.approvals.insert(spent.name.to_string(), spent);
            }
            apply(catalog)
        })
    }

    /// The requests of a vault, by name.
    ///
    /// # Errors
    /// Not allowed, or the vault does not exist.
    pub fn list_approvals(
        &self,
        call: &Call,
        vault: &str,
    ) -> Result<Vec<(Approval, ApprovalState)>, VaultError> {
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        self.gate.run::<op::ListApprovals, _>(call, vault.as_str(), |_| {
            let catalog = self.catalog.read();
            catalog.vault(&vault)?;
            let now = self.now();
            let prefix = format!("{vault}/approvals/");
            let all = catalog.approvals_below(&prefix);
            Ok(all.map(|a| (a.clone(), a.state(now))).collect())
        })
    }

    /// Agrees to what another officer asked for, or does not. The caller must be allowed the same thing.
    ///
    /// # Errors
    /// Not allowed; does not exist; is the caller's own; was decided already, or its time is over.
    pub fn decide_approval(
        &self,
        call: &Call,
        name: &str,
        agree: bool,
    ) -> Result<(Approval, ApprovalState), VaultError> {
        let name: ApprovalName = name.parse()?;
        let asked = self.catalog.read().approvals.get(name.as_str()).cloned();
        // Who asks for one that does not exist learns so only as someone who may list them.
        let vault = name.as_str().split("/approvals/").next().unwrap_or_default().to_owned();
        let (permission, resource) =
            asked.map_or((Permission::AccessRead, vault), |a| (a.permission, a.resource));
        if agree {
            self.gate.run_with(permission, call, &resource, |_: Permit<op::Approve>| {
                self.do_decide(call, &name, true)
            })
        } else {
            self.gate.run_with(permission, call, &resource, |_: Permit<op::Reject>| {
                self.do_decide(call, &name, false)
            })
        }
    }

    fn do_decide(
        &self,
        call: &Call,
        name: &ApprovalName,
        agree: bool,
    ) -> Result<(Approval, ApprovalState), VaultError> {
        let _one_at_a_time = self.changes.lock();
        let found = self.catalog.read().approvals.get(name.as_str()).cloned();
        let mut approval = found.ok_or_else(|| VaultError::NotFound(name.to_string()))?;
        let refuse = |why| Err(VaultError::Precondition { name: name.to_string(), why });
        let now = self.now();
        // An officer may take its own request back.
        if approval.requester == call.caller.principal && agree {
            return refuse("was asked for by you; another officer has to approve it");
        }
        match approval.state(now) {
            ApprovalState::Pending => {}
            ApprovalState::Approved if !agree => {}
            ApprovalState::Expired => return refuse("is over; ask again"),
            _ => return refuse("was decided already"),
        }
        approval.decision = Some((call.caller.principal.clone(), agree));
        if agree {
            approval.expire_time = now.plus(APPROVAL_TIME);
        }
        self.put_approval(approval.clone())?;
        Ok((approval.clone(), approval.state(now)))
    }

    /// Forgets requests whose time was over long ago; the trail keeps what was done.
    pub(crate) fn forget_approvals(&self) -> Result<(), VaultError> {
        let now = self.now();
        let old = |a: &&Approval| now >= a.expire_time.plus(KEPT_TIME);
        let names: Vec<String> =
            self.catalog.read().approvals.values().filter(old).map(|a| a.name.to_string()).collect();
        if names.is_empty() {
            return Ok(());
        }
        let _one_at_a_time = self.changes.lock();
        let mut batch = Batch::new();
        for name in &names {
            batch.delete(APPROVALS, name);
        }
        self.commit(batch, |catalog| catalog.approvals.retain(|name, _| !names.contains(name)))
    }
}
