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
use custody_types::{Approval, ApprovalName, ApprovalState, Permission, VaultName};
use serde::{Deserialize, Serialize};

/// A request in a vault.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    #[serde(flatten)]
    pub(crate) request: Approval,
    /// What the second officer must be allowed as well.
    permission: Permission,
}

/// Proof that a second officer agreed, or that the vault asks for none. It has to be given to
/// [`Vault::commit_approved`], which spends it.
#[derive(Debug)]
#[must_use]
pub(crate) struct SecondOfficer(Option<Asked>);

impl SecondOfficer {
    /// For an act that needs none.
    pub(crate) const NOT_NEEDED: Self = Self(None);

    /// The second officer, where one agreed.
    pub(crate) fn principal(&self) -> &str {
        let decision = self.0.as_ref().and_then(|asked| asked.request.decision.as_ref());
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
            let same = |a: &&Asked| a.request.is_for(&call.caller.principal, &action, now);
            let pending = here().filter(|a| a.request.state(now) == ApprovalState::Pending).count();
            (here().find(same).cloned(), pending)
        };
        match found {
            Some(found) if found.request.state(now) == ApprovalState::Approved => {
                Ok(SecondOfficer(Some(found)))
            }
            Some(found) => Err(VaultError::ApprovalRequired { approval: found.request.name, action }),
            None if pending >= Approval::PENDING_MAX => {
                let why = "has 200 requests that wait for approval; have them approved or rejected first";
                Err(VaultError::Precondition { name: vault.to_string(), why })
            }
            None => {
                let name: ApprovalName = format!("{vault}/approvals/{}", new_id()?).parse()?;
                let request = Approval::ask(name.as_str(), &action, resource, &call.caller.principal, now);
                self.put_approval(Asked { request, permission })?;
                self.tell(EventType::ApprovalRequested, name.as_str());
                Err(VaultError::ApprovalRequired { approval: name.to_string(), action })
            }
        }
    }

    fn put_approval(&self, asked: Asked) -> Result<(), VaultError> {
        let mut batch = Batch::new();
        batch.put(APPROVALS, &asked.request.name, &asked);
        self.commit(batch, |catalog| _ = catalog.approvals.insert(asked.request.name.clone(), asked))
    }

    /// Commits an act together with the end of its approval.
    pub(crate) fn commit_approved<T>(
        &self,
        mut batch: Batch,
        approved: SecondOfficer,
        apply: impl FnOnce(&mut Catalog) -> T,
    ) -> Result<T, VaultError> {
        let mut spent = approved.0;
        if let Some(spent) = &mut spent {
            spent.request.use_time = Some(self.now());
            batch.put(APPROVALS, &spent.request.name, spent);
        }
        self.commit(batch, |catalog| {
            if let Some(spent) = spent {
                catalog.approvals.insert(spent.request.name.clone(), spent);
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
            Ok(all.map(|a| (a.request.clone(), a.request.state(now))).collect())
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
        self.loader.ensure(name.as_str())?;
        let asked = self.catalog.read().approvals.get(name.as_str()).cloned();
        // Who asks for one that does not exist learns so only as someone who may list them.
        let vault = name.as_str().split("/approvals/").next().unwrap_or_default().to_owned();
        let (permission, resource) =
            asked.map_or((Permission::AccessRead, vault), |a| (a.permission, a.request.resource));
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
        let mut asked = found.ok_or_else(|| VaultError::NotFound(name.to_string()))?;
        let now = self.now();
        let decided = asked.request.decide(&call.caller.principal, agree, now);
        decided.map_err(|why| VaultError::Precondition { name: name.to_string(), why })?;
        self.put_approval(asked.clone())?;
        let state = asked.request.state(now);
        Ok((asked.request, state))
    }

    /// Forgets requests whose time was over long ago; the trail keeps what was done.
    pub(crate) fn forget_approvals(&self) -> Result<(), VaultError> {
        let now = self.now();
        let old = |(_, asked): &(&String, &Asked)| asked.request.is_forgotten(now);
        let names: Vec<String> =
            self.catalog.read().approvals.iter().filter(old).map(|(name, _)| name.clone()).collect();
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
