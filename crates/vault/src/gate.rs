//! The gate: authorize, record durably, act, finish. No operation on a key goes round it.
//!
//! What acts on keys takes a [`Permit`] of its own operation, which has no public constructor: code that forgot
//! authorization or audit does not compile. SAFETY-CLAIM: SECURITY-MODEL.md "no operation without its record".

use crate::{Call, VaultError};
use custody_audit::{Journal, Outcome, Record};
use custody_authz::{Assignments, Decision};
use custody_types::{Duty, Permission};
use parking_lot::RwLock;
use std::{fmt, marker::PhantomData, sync::Arc};

/// An operation as the gate sees it.
pub trait Operation {
    /// Azure's operation name.
    const NAME: &'static str;
    /// What the caller must be allowed.
    const PERMISSION: Permission;
}

/// Proof that an operation was authorized and that its record is on disk.
pub struct Permit<Op>(PhantomData<Op>);

impl<Op: Operation> fmt::Debug for Permit<Op> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit<{}>", Op::NAME)
    }
}

/// Where every operation passes.
#[derive(Debug)]
pub struct Gate {
    journal: Arc<Journal>,
    pub(crate) assignments: RwLock<Assignments>,
}

impl Gate {
    pub(crate) fn new(journal: Arc<Journal>, assignments: Assignments) -> Self {
        Self { journal, assignments: RwLock::new(assignments) }
    }

    /// Runs an operation on `resource`. A refusal is recorded too, before it is answered.
    pub(crate) fn run<Op: Operation, T>(
        &self,
        call: &Call,
        resource: &str,
        act: impl FnOnce(Permit<Op>) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        let record =
            Record::begin(self.journal.now(), Op::NAME, &call.correlation_id, &call.caller, resource);
        let Decision::Allow { assignment } = self.decide(call, Op::PERMISSION, resource) else {
            let error =
                VaultError::PermissionDenied { permission: Op::PERMISSION, resource: resource.to_owned() };
            let now = self.journal.now();
            self.journal.append(record.finish(now, Outcome::Denied, error.status(), &error.to_string()))?;
            return Err(error);
        };
        let pending = self.journal.begin(record)?;
        match act(Permit(PhantomData)) {
            Ok(done) => {
                pending.finish(Outcome::Success, "OK", &assignment);
                Ok(done)
            }
            Err(error) => {
                pending.finish(Outcome::Failed, error.status(), &error.to_string());
                Err(error)
            }
        }
    }

    /// A vault does not exist before it is made, and a list of vaults is of none in particular: those two follow
    /// from the duty. Everything else follows from role assignments.
    fn decide(&self, call: &Call, permission: Permission, resource: &str) -> Decision {
        let by_duty = match permission {
            Permission::VaultCreate => call.caller.duty == Duty::SecurityOfficer,
            Permission::VaultList => call.caller.duty != Duty::DatabaseAdministrator,
            _ => return self.assignments.read().decide(&call.caller, permission, resource),
        };
        if by_duty {
            Decision::Allow { assignment: format!("duty {}", call.caller.duty) }
        } else {
            Decision::Deny
        }
    }

    /// Whether the caller may, without recording: to filter lists inside an operation that is recorded.
    pub(crate) fn may(&self, call: &Call, permission: Permission, resource: &str) -> bool {
        self.assignments.read().decide(&call.caller, permission, resource) != Decision::Deny
    }
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $azure:literal, $permission:ident;)+) => {
        /// The operations.
        pub mod op {
            $($(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name;

            impl super::Operation for $name {
                const NAME: &'static str = $azure;
                const PERMISSION: custody_types::Permission = custody_types::Permission::$permission;
            })+
        }
    };
}

operations! {
    /// Makes a vault.
    CreateVault = "VaultPut", VaultCreate;
    /// Reads a vault.
    GetVault = "VaultGet", VaultGet;
    /// Lists vaults.
    ListVaults = "VaultList", VaultList;
    /// Makes a key.
    CreateKey = "KeyCreate", Create;
    /// Takes a key from outside.
    ImportKey = "KeyImport", Import;
    /// Reads a key or version.
    GetKey = "KeyGet", Get;
    /// Lists keys.
    ListKeys = "KeyList", List;
    /// Lists versions.
    ListKeyVersions = "KeyListVersions", List;
    /// Changes attributes.
    UpdateKey = "KeyUpdate", Update;
    /// Soft-deletes.
    DeleteKey = "KeyDelete", Delete;
    /// Recovers.
    UndeleteKey = "KeyRecover", Recover;
    /// Destroys.
    PurgeKey = "KeyPurge", Purge;
    /// Makes a new version.
    RotateKey = "KeyRotate", Rotate;
    /// Encrypts.
    Encrypt = "KeyEncrypt", Encrypt;
    /// Decrypts.
    Decrypt = "KeyDecrypt", Decrypt;
    /// Signs.
    Sign = "KeySign", Sign;
    /// Checks a signature.
    Verify = "KeyVerify", Verify;
    /// Takes a sealed copy.
    BackupKey = "KeyBackup", Backup;
    /// Brings a copy back.
    RestoreKey = "KeyRestore", Restore;
    /// Wraps.
    WrapKey = "KeyWrap", WrapKey;
    /// Unwraps.
    UnwrapKey = "KeyUnwrap", UnwrapKey;
    /// Watches changes.
    WatchKeys = "KeyWatch", Get;
    /// Gives a role.
    CreateRoleAssignment = "RoleAssignmentCreate", AccessWrite;
    /// Takes a role away.
    DeleteRoleAssignment = "RoleAssignmentDelete", AccessWrite;
    /// Lists assignments.
    ListRoleAssignments = "RoleAssignmentList", AccessRead;
    /// Reads the trail.
    ReadAudit = "AuditRead", AuditRead;
}
