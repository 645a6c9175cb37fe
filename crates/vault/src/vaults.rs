//! Making and reading vaults.

use crate::{
    Call, Vault, VaultError, VaultRecord,
    catalog::{ASSIGNMENTS, VAULTS},
    gate::{Permit, op},
    names::new_id,
};
use custody_authz::{Assignment, Scope};
use custody_store::Batch;
use custody_types::{Permission, VaultName};

/// Azure's bounds of the retention of deleted keys, in days.
const RETENTION_DAYS: std::ops::RangeInclusive<u32> = 7..=90;

impl Vault {
    /// Makes a vault and gives its maker the role Key Vault Administrator on it. `retention_days` 0 means 90.
    ///
    /// # Errors
    /// The caller is no security officer, the name is taken or malformed, the retention is out of 7 to 90.
    pub fn create_vault(
        &self,
        call: &Call,
        id: &str,
        retention_days: u32,
        purge_protection: bool,
    ) -> Result<VaultRecord, VaultError> {
        let name: VaultName =
            format!("vaults/{id}").parse().map_err(|e| VaultError::invalid("vault_id", e))?;
        let days = if retention_days == 0 { 90 } else { retention_days };
        if !RETENTION_DAYS.contains(&days) {
            return Err(VaultError::invalid(
                "vault.soft_delete_retention_days",
                "must be 7 to 90 days, or 0 for 90",
            ));
        }
        let record =
            VaultRecord { name, soft_delete_retention_days: days, purge_protection, create_time: self.now() };
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
        };
        let mut batch = Batch::new();
        batch.put(VAULTS, record.name.as_str(), &record).put(ASSIGNMENTS, &owner.name, &owner);
        self.commit(batch, |catalog| catalog.vaults.insert(record.name.clone(), record.clone()))?;
        self.gate.assignments.write().insert(owner);
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
            let catalog = self.catalog.read();
            let readable = |v: &&VaultRecord| self.gate.may(call, Permission::VaultGet, v.name.as_str());
            Ok(catalog.vaults.values().filter(readable).cloned().collect())
        })
    }
}
