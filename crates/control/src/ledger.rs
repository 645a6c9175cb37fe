//! What the control plane remembers.

use crate::{BackupRecord, ClusterRecord, OperationRecord};
use custody_store::{Batch, Store, StoreError};
use std::fmt;

const CLUSTERS: &str = "clusters";
const OPERATIONS: &str = "operations";
const BACKUPS: &str = "backups";

/// The ledger cannot do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The name is taken.
    #[error("`{0}` exists already; choose another id")]
    AlreadyExists(String),
    /// Does not exist.
    #[error("`{0}` does not exist")]
    NotFound(String),
    /// The store failed.
    #[error("the control plane's store failed; nothing was changed")]
    Store(#[from] StoreError),
}

/// Clusters, operations and backups, on disk when a call returns.
pub struct Ledger {
    store: Store,
}

impl Ledger {
    /// Over an open store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Adds a cluster with the operation that makes it.
    ///
    /// # Errors
    /// The name is taken.
    pub fn add(&self, cluster: &ClusterRecord, operation: &OperationRecord) -> Result<(), LedgerError> {
        let name = cluster.spec.name.as_str();
        if self.store.get::<ClusterRecord>(CLUSTERS, name)?.is_some() {
            return Err(LedgerError::AlreadyExists(name.to_owned()));
        }
        self.update(Some(cluster), Some(operation))
    }

    /// Stores a cluster and an operation together.
    ///
    /// # Errors
    /// The store failed.
    pub fn update(
        &self,
        cluster: Option<&ClusterRecord>,
        operation: Option<&OperationRecord>,
    ) -> Result<(), LedgerError> {
        let mut batch = Batch::new();
        if let Some(cluster) = cluster {
            batch.put(CLUSTERS, cluster.spec.name.as_str(), cluster);
        }
        if let Some(operation) = operation {
            batch.put(OPERATIONS, &operation.id, operation);
        }
        Ok(self.store.commit(batch)?)
    }

    /// Removes a cluster and ends its operation.
    ///
    /// # Errors
    /// The store failed.
    pub fn remove(
        &self,
        cluster: &ClusterRecord,
        operation: Option<&OperationRecord>,
    ) -> Result<(), LedgerError> {
        let mut batch = Batch::new();
        batch.delete(CLUSTERS, cluster.spec.name.as_str());
        if let Some(operation) = operation {
            batch.put(OPERATIONS, &operation.id, operation);
        }
        Ok(self.store.commit(batch)?)
    }

    /// A cluster.
    ///
    /// # Errors
    /// Does not exist.
    pub fn cluster(&self, name: &str) -> Result<ClusterRecord, LedgerError> {
        self.store.get(CLUSTERS, name)?.ok_or_else(|| LedgerError::NotFound(name.to_owned()))
    }

    /// Every cluster, by name.
    ///
    /// # Errors
    /// The store failed.
    pub fn clusters(&self) -> Result<Vec<ClusterRecord>, LedgerError> {
        Ok(self.store.scan(CLUSTERS, "")?.into_iter().map(|(_, c)| c).collect())
    }

    /// An operation by id.
    ///
    /// # Errors
    /// Does not exist.
    pub fn operation(&self, id: &str) -> Result<OperationRecord, LedgerError> {
        self.store.get(OPERATIONS, id)?.ok_or_else(|| LedgerError::NotFound(format!("operations/{id}")))
    }

    /// Every operation, newest first.
    ///
    /// # Errors
    /// The store failed.
    pub fn operations(&self) -> Result<Vec<OperationRecord>, LedgerError> {
        let mut all: Vec<OperationRecord> =
            self.store.scan(OPERATIONS, "")?.into_iter().map(|(_, o)| o).collect();
        all.sort_by_key(|o| std::cmp::Reverse(o.create_time));
        Ok(all)
    }

    /// Adds a backup that is whole, and ends its operation.
    ///
    /// # Errors
    /// The store failed.
    pub fn add_backup(&self, backup: &BackupRecord, operation: &OperationRecord) -> Result<(), LedgerError> {
        let mut batch = Batch::new();
        batch.put(BACKUPS, &backup.id, backup).put(OPERATIONS, &operation.id, operation);
        Ok(self.store.commit(batch)?)
    }

    /// Removes a backup's record.
    ///
    /// # Errors
    /// The store failed.
    pub fn remove_backup(&self, id: &str) -> Result<(), LedgerError> {
        let mut batch = Batch::new();
        batch.delete(BACKUPS, id);
        Ok(self.store.commit(batch)?)
    }

    /// A backup by id.
    ///
    /// # Errors
    /// Does not exist.
    pub fn backup(&self, id: &str) -> Result<BackupRecord, LedgerError> {
        self.store.get(BACKUPS, id)?.ok_or_else(|| LedgerError::NotFound(format!("backups/{id}")))
    }

    /// Every backup, by name.
    ///
    /// # Errors
    /// The store failed.
    pub fn backups(&self) -> Result<Vec<BackupRecord>, LedgerError> {
        Ok(self.store.scan(BACKUPS, "")?.into_iter().map(|(_, b)| b).collect())
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ledger(..)")
    }
}
