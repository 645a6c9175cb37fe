//! Officers are made and removed by two of them: else who may make principals could be the second officer of its own act
//! (`docs/design/0008-access.md`).

use crate::{IdentityError, Registry, registry::random_hex};
use custody_store::Batch;
use custody_types::{Approval, ApprovalState, Caller, Duty, IdentityApprovalName};

const APPROVALS: &str = "approvals";

/// Proof that a second officer agreed, or that none is asked for.
#[derive(Debug)]
#[must_use]
pub(crate) struct SecondOfficer(Option<Approval>);

impl SecondOfficer {
    /// For an act that needs none.
    pub(crate) const NOT_NEEDED: Self = Self(None);
}

impl Registry {
    /// Asks whether a second officer has agreed to `action`. Where there is no other officer nobody could: the first one
    /// makes the second alone. The caller holds the lock of changes, so that an approval is found once.
    pub(crate) fn second_officer(
        &self,
        caller: &Caller,
        resource: &str,
        action: String,
    ) -> Result<SecondOfficer, IdentityError> {
        let is_other = |duty, name: &str| duty == Duty::SecurityOfficer && name != caller.principal;
        if !self.list_principals()?.iter().any(|p| is_other(p.duty, p.name.as_str())) {
            return Ok(SecondOfficer::NOT_NEEDED);
        }
        let now = self.clock.now();
        let all = self.approvals()?;
        let asked = all.iter().find(|a| a.is_for(&caller.principal, &action, now));
        if let Some(asked) = asked {
            return match asked.state(now) {
                ApprovalState::Approved => Ok(SecondOfficer(Some(asked.clone()))),
                _ => Err(IdentityError::ApprovalRequired { approval: asked.name.clone(), action }),
            };
        }
        let pending = all.iter().filter(|a| a.state(now) == ApprovalState::Pending).count();
        if pending >= Approval::PENDING_MAX {
            let why = "200 requests wait for approval; have them approved or rejected first";
            return Err(IdentityError::Precondition { name: resource.to_owned(), why });
        }
        let name = format!("approvals/{}", random_hex()?);
        let approval = Approval::ask(&name, &action, resource, &caller.principal, now);
        let mut batch = Batch::new();
        batch.put(APPROVALS, &name, &approval);
        // The trail keeps what was done.
        all.iter().filter(|a| a.is_forgotten(now)).for_each(|a| _ = batch.delete(APPROVALS, &a.name));
        self.store.commit(batch)?;
        Err(IdentityError::ApprovalRequired { approval: name, action })
    }

    /// Commits an act together with the end of its approval.
    pub(crate) fn commit_approved(
        &self,
        mut batch: Batch,
        approved: SecondOfficer,
    ) -> Result<(), IdentityError> {
        if let Some(mut spent) = approved.0 {
            spent.use_time = Some(self.clock.now());
            batch.put(APPROVALS, &spent.name, &spent);
        }
        Ok(self.store.commit(batch)?)
    }

    fn approvals(&self) -> Result<Vec<Approval>, IdentityError> {
        Ok(self.store.scan::<Approval>(APPROVALS, "")?.into_iter().map(|(_, approval)| approval).collect())
    }

    /// The requests for a second officer's approval, by name.
    ///
    /// # Errors
    /// The store failed.
    pub fn list_approvals(&self) -> Result<Vec<(Approval, ApprovalState)>, IdentityError> {
        let now = self.clock.now();
        let with_state = |approval: Approval| {
            let state = approval.state(now);
            (approval, state)
        };
        Ok(self.approvals()?.into_iter().map(with_state).collect())
    }

    /// Agrees to what another officer asked for, or does not; or takes one's own request back.
    ///
    /// # Errors
    /// Malformed, does not exist, is the caller's own, was decided already, or its time is over.
    pub fn decide_approval(
        &self,
        caller: &Caller,
        name: &str,
        agree: bool,
    ) -> Result<(Approval, ApprovalState), IdentityError> {
        let name: IdentityApprovalName = name.parse().map_err(|e| IdentityError::invalid("name", e))?;
        let operation = if agree { "ApprovalApprove" } else { "ApprovalReject" };
        self.audited(caller, operation, name.as_str(), || {
            let _one_at_a_time = self.changes.lock();
            let found = self.store.get::<Approval>(APPROVALS, name.as_str())?;
            let mut approval = found.ok_or_else(|| IdentityError::NotFound(name.to_string()))?;
            let now = self.clock.now();
            let decided = approval.decide(&caller.principal, agree, now);
            decided.map_err(|why| IdentityError::Precondition { name: name.to_string(), why })?;
            self.put(APPROVALS, name.as_str(), &approval)?;
            let state = approval.state(now);
            Ok((approval, state))
        })
    }
}
