//! Making and reading vaults.

use crate::{
    ApprovalPolicy, Call, EventType, Vault, VaultError, VaultRecord,
    approval::SecondOfficer,
    catalog::{ASSIGNMENTS, VAULTS},
    gate::{Permit, op},
    names::new_id,
    seal::SEALS,
};
use custody_authz::{Assignment, Condition, Scope};
use custody_store::Batch;
use custody_types::{Permission, VaultName};

/// Azure's bounds of the retention of deleted keys, in days.
const RETENTION_DAYS: std::ops::RangeInclusive<u32> = 7..=90;

/// What a vault is made with.
#[derive(Clone, Copy, Debug, Default)]
pub struct VaultParameters {
    /// Days that deleted keys can be recovered; 0 means 90.
    pub retention_days: u32,
    /// Whether deleted keys are kept for all of that time.
    pub purge_protection: bool,
    /// Who must agree to what cannot be undone.
    pub approvals: ApprovalPolicy,
}

/// A change of a vault's settings: `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct VaultChange {
    /// Whether deleted keys are kept for all of their time.
    pub purge_protection: Option<bool>,
    /// Who must agree to what cannot be undone.
    pub approvals: Option<ApprovalPolicy>,
}

impl Vault {
    /// Makes a vault and gives its maker the role Key Vault Administrator on it.
    ///
    /// # Errors
    /// The caller is no security officer, the name is taken or malformed, the retention is out of 7 to 90.
    pub fn create_vault(
        &self,
        call: &Call,
        id: &str,
        given: VaultParameters,
    ) -> Result<VaultRecord, VaultError> {
        let name: VaultName =
            format!("vaults/{id}").parse().map_err(|e| VaultError::invalid("vault_id", e))?;
        let days = if given.retention_days == 0 { 90 } else { given.retention_days };
        if !RETENTION_DAYS.contains(&days) {
            return Err(VaultError::invalid(
                "vault.soft_delete_retention_days",
                "must be 7 to 90 days, or 0 for 90",
            ));
        }
        let record = VaultRecord {
            name,
            soft_delete_retention_days: days,
            purge_protection: given.purge_protection,
            create_time: self.now(),
            approvals: given.approvals,
        };
        self.gate
            .run(call, record.name.as_str(), |permit| self.do_create_vault(&permit, call, record.clone()))
    }

    fn do_create_vault(
        &self,
        _: &Permit<op::CreateVault>,
        call: &Call,
        record: VaultRecord,
    ) -> Result<VaultRecord, VaultError> {
        let _one_at_a_time = self.changes.lock();
        if self.catalog.read().vaults.contains_key(&record.name) {
            return Err(VaultError::AlreadyExists(record.name.to_string()));
        }
        let owner = Assignment {
            name: format!("{}/roleAssignments/{}", record.name, new_id()?),
            principal: call.caller.principal.clone(),
            role: "Key Vault Administrator".to_owned(),
            scope: Scope::Vault(record.name.clone()),
            condition: Condition::default(),
        };
        let (seal, keys) = self.first_vault_key(&record.name)?;
        let mut batch = Batch::new();
        batch.put(VAULTS, record.name.as_str(), &record).put(ASSIGNMENTS, &owner.name, &owner);
        batch.put(SEALS, record.name.as_str(), &seal);
        self.commit(batch, |catalog| catalog.vaults.insert(record.name.clone(), record.clone()))?;
        self.keyring.put(&record.name, keys);
        self.gate.change_assignments(record.name.as_str(), |all| all.insert(owner))?;
        Ok(record)
    }

    /// Changes a vault's settings. What weakens it needs a second officer, and purge protection is never taken from a
    /// vault where one officer is enough.
    ///
    /// # Errors
    /// Not allowed, does not exist, or a second officer has to agree first.
    pub fn update_vault(
        &self,
        call: &Call,
        name: &str,
        change: VaultChange,
    ) -> Result<VaultRecord, VaultError> {
        let name: VaultName = name.parse()?;
        self.gate.run(call, name.as_str(), |permit| self.do_update_vault(&permit, call, &name, change))
    }

    fn do_update_vault(
        &self,
        _: &Permit<op::UpdateVault>,
        call: &Call,
        name: &VaultName,
        change: VaultChange,
    ) -> Result<VaultRecord, VaultError> {
        let _one_at_a_time = self.changes.lock();
        let mut record = self.catalog.read().vault(name)?.clone();
        let unprotects = record.purge_protection && change.purge_protection == Some(false);
        let unguards = record.approvals == ApprovalPolicy::TwoOfficers
            && change.approvals == Some(ApprovalPolicy::OneOfficer);
        if unprotects && record.approvals == ApprovalPolicy::OneOfficer {
            let why = "purge protection is not taken away by one officer; set approval_policy to TWO_OFFICERS first";
            return Err(VaultError::Precondition { name: name.to_string(), why });
        }
        let mut batch = Batch::new();
        let approved = if unprotects || unguards {
            let action = match (unprotects, unguards) {
                (true, true) => "remove purge protection and the second officer",
                (true, false) => "remove purge protection",
                _ => "remove the second officer",
            };
            let action = format!("{action} of {name}");
            self.second_officer(call, Permission::VaultUpdate, name, name.as_str(), action)?
        } else {
            SecondOfficer::NOT_NEEDED
        };
        record.purge_protection = change.purge_protection.unwrap_or(record.purge_protection);
        record.approvals = change.approvals.unwrap_or(record.approvals);
        batch.put(VAULTS, name.as_str(), &record);
        self.commit_approved(batch, approved, |catalog| catalog.vaults.insert(name.clone(), record.clone()))?;
        self.tell(EventType::Updated, name.as_str());
        Ok(record)
    }

    /// Reads a vault.
    ///
    /// # Errors
    /// Not allowed, or it does not exist.
    pub fn get_vault(&self, call: &Call, name: &str) -> Result<VaultRecord, VaultError> {
        let name: VaultName = name.parse()?;
        self.gate.run::<op::GetVault, _>(call, name.as_str(), |_| self.catalog.read().vault(&name).cloned())
    }

    /// The vaults that the caller may read, by name.
    ///
    /// # Errors
    /// Not allowed.
    pub fn list_vaults(&self, call: &Call) -> Result<Vec<VaultRecord>, VaultError> {
        self.gate.run::<op::ListVaults, _>(call, "vaults", |_| {
            self.loader.ensure_all()?;
            let catalog = self.catalog.read();
            let readable = |v: &&VaultRecord| self.gate.may(call, Permission::VaultGet, v.name.as_str());
            Ok(catalog.vaults.values().filter(readable).cloned().collect())
        })
    }
}
