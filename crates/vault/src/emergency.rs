//! Break-glass: emergency rights for a security officer who has none, for a bounded time, with a second officer.

use crate::{
    Call, EventType, Vault, VaultError,
    catalog::ASSIGNMENTS,
    gate::{Permit, op},
    names::new_id,
};
use custody_authz::{Assignment, Condition, Scope};
use custody_store::Batch;
use custody_types::{Permission, VaultName};
use std::time::Duration;

/// Longest time of emergency rights.
const TIME_MAX: Duration = Duration::from_secs(86_400);
/// Longest reason, in characters.
const REASON_LEN_MAX: usize = 200;

impl Vault {
    /// Gives the caller the role Key Vault Administrator on a vault for a bounded time. A second security officer has to
    /// agree, whatever the vault's policy is.
    ///
    /// # Errors
    /// The caller is no security officer; no reason is given; the time is not 1 minute to 1 day; a second officer has to
    /// agree first.
    pub fn break_glass(
        &self,
        call: &Call,
        vault: &str,
        reason: &str,
        time: Duration,
    ) -> Result<Assignment, VaultError> {
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        if !(1..=REASON_LEN_MAX).contains(&reason.chars().count()) || reason.contains(char::is_control) {
            return Err(VaultError::invalid("reason", "is required: up to 200 characters on one line"));
        }
        if !(Duration::from_secs(60)..=TIME_MAX).contains(&time) {
            return Err(VaultError::invalid("duration", "must be 1 minute to 1 day"));
        }
        self.gate.run(call, vault.as_str(), |permit| self.do_break_glass(&permit, call, &vault, reason, time))
    }

    fn do_break_glass(
        &self,
        _: &Permit<op::BreakGlass>,
        call: &Call,
        vault: &VaultName,
        reason: &str,
        time: Duration,
    ) -> Result<Assignment, VaultError> {
        // Duties conflict across vaults.
        self.loader.ensure_all()?;
        let _one_at_a_time = self.changes.lock();
        self.catalog.read().vault(vault)?;
        let role = self.gate.assignments.read().role("Key Vault Administrator")?.clone();
        self.gate.assignments.read().check(&call.caller.principal, &role)?;
        let action = format!("break glass in {vault} for {} s: {reason}", time.as_secs());
        let agreed = self.approved(call, Permission::BreakGlass, vault, vault.as_str(), action)?;
        let assignment = Assignment {
            name: format!("{vault}/roleAssignments/{}", new_id()?),
            principal: call.caller.principal.clone(),
            role: role.name.clone(),
            scope: Scope::Vault(vault.clone()),
            condition: Condition { expire_time: Some(self.now().plus(time)), ..Condition::default() },
        };
        let mut batch = Batch::new();
        batch.put(ASSIGNMENTS, &assignment.name, &assignment);
        self.commit_approved(batch, agreed, |_| ())?;
        self.gate.change_assignments(vault.as_str(), |all| all.insert(assignment.clone()))?;
        self.tell(EventType::AccessChanged, vault.as_str());
        Ok(assignment)
    }
}
