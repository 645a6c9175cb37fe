//! Typed clients of every service, over [`AuthenticatedChannel`].

mod vault;

pub use custody_rpc::{AuthenticatedChannel, Endpoint, TokenSource};
pub use vault::{AccessError, KeyFacts, VaultAccess};

use custody_proto::{
    audit::audit_log_client::AuditLogClient,
    control::cluster_manager_client::ClusterManagerClient,
    database::database_node_client::DatabaseNodeClient,
    identity::identity_client::IdentityClient,
    longrunning::operations_client::OperationsClient,
    storage::storage_node_client::StorageNodeClient,
    vault::{
        access_control_client::AccessControlClient, fault_injection_client::FaultInjectionClient,
        key_lineage_client::KeyLineageClient, key_vault_client::KeyVaultClient,
        lease_manager_client::LeaseManagerClient, seal_manager_client::SealManagerClient,
    },
};

/// A client of a vault.
pub type Vault = KeyVaultClient<AuthenticatedChannel>;
/// A client of a vault's access control.
pub type Access = AccessControlClient<AuthenticatedChannel>;
/// Leases on what keys of a vault open, and proof of where they have ended.
pub type Leases = LeaseManagerClient<AuthenticatedChannel>;
/// What depends on which version of a key.
pub type Lineage = KeyLineageClient<AuthenticatedChannel>;
/// How the vault misbehaves, for tests.
pub type FaultInjection = FaultInjectionClient<AuthenticatedChannel>;
/// Seals of the vault.
pub type Seals = SealManagerClient<AuthenticatedChannel>;
/// A client of the identity service.
pub type Identity = IdentityClient<AuthenticatedChannel>;
/// A client of the control plane.
pub type Control = ClusterManagerClient<AuthenticatedChannel>;
/// A client of the control plane's operations.
pub type Operations = OperationsClient<AuthenticatedChannel>;
/// A client of a storage node.
pub type Storage = StorageNodeClient<AuthenticatedChannel>;
/// A client of a database node.
pub type Database = DatabaseNodeClient<AuthenticatedChannel>;
/// A client of an audit trail.
pub type Audit = AuditLogClient<AuthenticatedChannel>;
