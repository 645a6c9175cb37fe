//! Who may call which RPC: one table for all services. An RPC without a row does not compile.

use custody_proto::Method::{self, *};
use custody_types::Duty::{
    self, Auditor, DatabaseAdministrator, FaultInjector, SecurityOfficer, SystemAdministrator, Workload,
};
use std::{collections::HashMap, sync::LazyLock};

/// Who may call an RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// Anyone, without a token: how one gets a token.
    Public,
    /// A workload that shows its client certificate; no token.
    Certificate,
    /// Callers of these duties. In the vault, role assignments decide after that.
    Duties(&'static [Duty]),
    /// These services, by their principal and its certificate: what only another part of the platform may ask for.
    Services(&'static [&'static str]),
}

const EVERYONE: &[Duty] = &[SecurityOfficer, SystemAdministrator, DatabaseAdministrator, Auditor, Workload];
const OFFICER: &[Duty] = &[SecurityOfficer];
const READERS: &[Duty] = &[SecurityOfficer, SystemAdministrator, Auditor];
const KEY_READERS: &[Duty] = &[SecurityOfficer, SystemAdministrator, Auditor, Workload];
const CONTROL: &[&str] = &["principals/control"];

/// The rule of an RPC.
#[must_use]
pub fn rule(method: Method) -> Rule {
    match method {
        IdentityIssueToken | IdentityGetJwks => Rule::Public,
        IdentityIssueWorkloadToken => Rule::Certificate,
        IdentityCreatePrincipal
        | IdentityDeletePrincipal
        | IdentityApproveApproval
        | IdentityRejectApproval => Rule::Duties(OFFICER),
        IdentityListApprovals => Rule::Duties(READERS),
        IdentityGetPrincipal | IdentityListPrincipals => Rule::Duties(READERS),
        IdentityGetManagedIdentity | IdentityListManagedIdentities => Rule::Duties(KEY_READERS),
        IdentityCreateManagedIdentity
        | IdentityDeleteManagedIdentity
        | IdentityBindManagedIdentity
        | IdentityUnbindManagedIdentity => Rule::Services(CONTROL),

        KeyVaultCreateVault
        | KeyVaultCreateKey
        | KeyVaultImportKey
        | KeyVaultUpdateKey
        | KeyVaultDeleteKey
        | KeyVaultUndeleteKey
        | KeyVaultPurgeKey
        | KeyVaultRotateKey
        | KeyVaultBackupKey
        | KeyVaultRestoreKey
        | KeyVaultUpdateKeyVersion
        | KeyVaultUpdateVault
        | KeyVaultGetRandomBytes
        | KeyVaultGetRotationPolicy
        | KeyVaultUpdateRotationPolicy => Rule::Duties(EVERYONE),
        KeyVaultGetVault
        | KeyVaultListVaults
        | KeyVaultGetKey
        | KeyVaultListKeys
        | KeyVaultGetKeyVersion
        | KeyVaultListKeyVersions
        | KeyVaultWrapKey
        | KeyVaultUnwrapKey
        | KeyVaultRewrapKey
        | KeyVaultEncrypt
        | KeyVaultDecrypt
        | KeyVaultSign
        | KeyVaultVerify
        | KeyVaultWatchKeys => Rule::Duties(EVERYONE),
        AccessControlCreateRoleAssignment
        | AccessControlListRoleAssignments
        | AccessControlDeleteRoleAssignment
        | AccessControlListRoleDefinitions
        | AccessControlCreateRoleDefinition
        | AccessControlDeleteRoleDefinition
        | AccessControlCreateGroup
        | AccessControlListGroups
        | AccessControlDeleteGroup
        | AccessControlAddGroupMember
        | AccessControlRemoveGroupMember
        | AccessControlExplainAccess
        | AccessControlReviewAccess
        | AccessControlBreakGlass
        | AccessControlListApprovals
        | AccessControlApproveApproval
        | AccessControlRejectApproval => Rule::Duties(EVERYONE),

        FaultInjectionListFaultProfiles
        | FaultInjectionGetFaultProfile
        | FaultInjectionSetFaultProfile
        | FaultInjectionLoseRegion
        | FaultInjectionRestoreRegion
        | FaultInjectionShiftClock => Rule::Duties(&[FaultInjector]),

        LeaseManagerRenewLeases
        | LeaseManagerReportErasures
        | KeyLineageReportDependents
        | KeyLineageListReportedDependents => Rule::Duties(&[Workload]),
        KeyLineageGetLineage | KeyLineageListDependents | KeyLineageGetShredReport => Rule::Duties(EVERYONE),
        LeaseManagerListLeases
        | LeaseManagerGetLeasePolicy
        | LeaseManagerUpdateLeasePolicy
        | LeaseManagerRevokeKey
        | LeaseManagerReinstateKey
        | LeaseManagerGetRevocation
        | LeaseManagerListRevocations
        | LeaseManagerWatchRevocation
        | LeaseManagerGetProofKey => Rule::Duties(EVERYONE),

        SealManagerGetSeal => Rule::Duties(EVERYONE),
        SealManagerSealVault | SealManagerUnsealVault | SealManagerChangeSeal | SealManagerRotateRootKey => {
            Rule::Duties(OFFICER)
        }

        AuditLogListRecords
        | AuditLogTailRecords
        | AuditLogGetTrail
        | AuditLogGetCheckpoint
        | AuditLogGetInclusionProof
        | AuditLogGetConsistencyProof => Rule::Duties(&[Auditor, SecurityOfficer]),

        ClusterManagerCreateCluster
        | ClusterManagerDeleteCluster
        | ClusterManagerStartCluster
        | ClusterManagerStopCluster
        | ClusterManagerRewrapCluster
        | ClusterManagerCreateBackup
        | ClusterManagerDeleteBackup
        | ClusterManagerPruneBackups
        | ClusterManagerVerifyBackup
        | ClusterManagerCreateIdentity => Rule::Duties(&[SystemAdministrator]),
        // Leaving a customer's key needs the officer, which the service decides.
        ClusterManagerResizeCluster => Rule::Duties(&[SystemAdministrator]),
        ClusterManagerChangeEncryption => Rule::Duties(&[SecurityOfficer, SystemAdministrator]),
        ClusterManagerGetCluster | ClusterManagerListClusters => {
            Rule::Duties(&[SecurityOfficer, SystemAdministrator, DatabaseAdministrator, Auditor])
        }
        ClusterManagerListBackups => Rule::Duties(READERS),
        OperationsListOperations | OperationsGetOperation | OperationsWaitOperation => {
            Rule::Duties(&[SystemAdministrator, Auditor])
        }

        StorageNodeCreateVolume
        | StorageNodeDeleteVolume
        | StorageNodeRevalidateVolume
        | StorageNodeRewrapVolume
        | StorageNodeResizeVolume
        | StorageNodeChangeProtector
        | StorageNodeSettleProtector
        | StorageNodeBackupVolume
        | StorageNodeDeleteBackup
        | StorageNodeVerifyBackup
        | StorageNodeGetWalArchive
        | StorageNodePruneWalArchive
        | StorageNodeDeleteWalArchive => Rule::Services(CONTROL),
        StorageNodeRotateDataKeys | StorageNodeRotateExtentKey => Rule::Duties(&[SystemAdministrator]),
        StorageNodeRewrapDependents => Rule::Duties(&[SecurityOfficer, SystemAdministrator]),
        StorageNodeGetVolume | StorageNodeListVolumes => {
            Rule::Duties(&[SystemAdministrator, Auditor, Workload])
        }
        StorageNodeWatchVolume
        | StorageNodeReadBlocks
        | StorageNodeWriteBlocks
        | StorageNodeFlushVolume
        | StorageNodeWriteSpill
        | StorageNodeReadSpill
        | StorageNodeDeleteSpill
        | StorageNodeArchiveWal
        | StorageNodeRestoreWal => Rule::Services(&["principals/database"]),

        DatabaseNodeCreateInstance
        | DatabaseNodeDeleteInstance
        | DatabaseNodeStartInstance
        | DatabaseNodeStopInstance
        | DatabaseNodeLinkWorkers => Rule::Services(CONTROL),
        DatabaseNodeGetInstance | DatabaseNodeListInstances => {
            Rule::Duties(&[SystemAdministrator, Auditor, Workload])
        }
    }
}

/// The RPC of a gRPC path.
#[must_use]
pub fn method(path: &str) -> Option<Method> {
    static BY_PATH: LazyLock<HashMap<&'static str, Method>> =
        LazyLock::new(|| Method::ALL.iter().map(|m| (m.path(), *m)).collect());
    BY_PATH.get(path).copied()
}
