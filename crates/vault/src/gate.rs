//! The gate: authorize, record durably, act, finish. No operation on a key goes round it.
//!
//! Of most operations two records say that they begin and how they ended. Where an answer is all that comes of one, a record of
//! its end says as much: it is on disk before anybody has the answer.
//!
//! What acts on keys takes a [`Permit`] of its own operation, which has no public constructor: code that forgot
//! authorization or audit does not compile. SAFETY-CLAIM: SECURITY-MODEL.md "no operation without its record".

use crate::{
    Call, Recorded, VaultError,
    lag::Lag,
    limits::{Limiter, RateLimits},
    loader::Loader,
};
use custody_audit::{Journal, Outcome, Pending, Record};
use custody_authz::{Assignments, Decision};
use custody_faults::Faults;
use custody_types::{Caller, Clock, Duty, Permission};
use parking_lot::{Mutex, RwLock};
use std::{
    fmt,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// An operation as the gate sees it.
pub trait Operation {
    /// Azure's operation name.
    const NAME: &'static str;
    /// What the caller must be allowed.
    const PERMISSION: Permission;
    /// Whether an answer is all that comes of it: it changes nothing, and needs no private key.
    const ONLY_ANSWERS: bool;
}

/// Proof that an operation was authorized, and that its record is on disk; or will be before its answer is given, where an
/// answer is all that comes of it.
pub struct Permit<Op>(PhantomData<Op>);

impl<Op: Operation> fmt::Debug for Permit<Op> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit<{}>", Op::NAME)
    }
}

/// What the gate says before anything is recorded.
enum Authorized {
    Yes { record: Record, assignment: String },
    No { refusal: Record, error: VaultError },
}

/// An operation that is authorized, recorded where more than an answer comes of it, and not done yet. Dropped, it ends as failed.
pub(crate) struct Admitted<Op> {
    pending: Pending,
    recorded: Recorded,
    assignment: String,
    op: PhantomData<fn() -> Op>,
}

impl<Op: Operation> Admitted<Op> {
    fn new(pending: Pending, call: &Call, assignment: String) -> Self {
        if let Some(sequence) = pending.sequence() {
            call.recorded.set(sequence);
        }
        Self { pending, recorded: call.recorded.clone(), assignment, op: PhantomData }
    }

    /// Does it.
    pub(crate) fn run<T>(self, act: impl FnOnce(Permit<Op>) -> Result<T, VaultError>) -> Withheld<T> {
        self.run_and_say(|permit| act(permit).map(|done| (done, String::new())))
    }

    /// As [`Admitted::run`], for what the trail shall have more of than that it was allowed, and why.
    pub(crate) fn run_and_say<T>(
        self,
        act: impl FnOnce(Permit<Op>) -> Result<(T, String), VaultError>,
    ) -> Withheld<T> {
        let done = act(Permit(PhantomData));
        self.withhold(done)
    }

    /// As [`Admitted::run`], for what waits until it is done at once with others.
    pub(crate) async fn run_at_once<T>(
        self,
        act: impl AsyncFnOnce(Permit<Op>) -> Result<T, VaultError>,
    ) -> Withheld<T> {
        let done = act(Permit(PhantomData)).await;
        self.withhold(done.map(|done| (done, String::new())))
    }

    fn withhold<T>(self, done: Result<(T, String), VaultError>) -> Withheld<T> {
        let (done, end) = match done {
            Ok((done, said)) => {
                let separator = if said.is_empty() { "" } else { "; " };
                (Ok(done), End(Outcome::Success, "OK", format!("{}{separator}{said}", self.assignment)))
            }
            Err(error) => {
                let end = End(Outcome::Failed, error.status(), error.to_string());
                (Err(error), end)
            }
        };
        let unrecorded = if Op::ONLY_ANSWERS {
            Some((self.pending, end, self.recorded))
        } else {
            let End(outcome, signature, text) = end;
            self.pending.finish(outcome, signature, &text);
            None
        };
        Withheld { done, unrecorded }
    }
}

/// How an operation ended, as the trail has it.
struct End(Outcome, &'static str, String);

/// What came of an operation. Nobody has it before it is on record; dropped, it is on record as failed.
#[must_use]
pub struct Withheld<T> {
    done: Result<T, VaultError>,
    unrecorded: Option<(Pending, End, Recorded)>,
}

impl<T> Withheld<T> {
    /// Records it where that is still to be done, without holding a thread, and gives it.
    ///
    /// # Errors
    /// Those of the operation; or it is not on record.
    pub async fn release(self) -> Result<T, VaultError> {
        if let Some((pending, End(outcome, signature, text), recorded)) = self.unrecorded {
            recorded.set(pending.conclude_in_task(outcome, signature, &text).await?);
        }
        self.done
    }

    /// As [`Withheld::release`], for a thread that may wait.
    pub(crate) fn release_blocking(self) -> Result<T, VaultError> {
        if let Some((pending, End(outcome, signature, text), recorded)) = self.unrecorded {
            recorded.set(pending.conclude(outcome, signature, &text)?);
        }
        self.done
    }
}

impl<T> fmt::Debug for Withheld<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Withheld(..)")
    }
}

/// Azure's throttles, where a profile of faults has them.
fn throttle(faults: &Faults, operation: &str, resource: &str) -> Result<(), VaultError> {
    let makes = matches!(operation, "KeyCreate" | "KeyImport" | "KeyRotate" | "KeyRestore");
    let Some((vault, rest)) = resource.strip_prefix("vaults/").map(|r| r.split_once('/').unwrap_or((r, "")))
    else {
        return Ok(());
    };
    let id = rest.strip_prefix("keys/").map(|id| id.split('/').next().unwrap_or(id));
    let key = id.map(|id| format!("vaults/{vault}/keys/{id}"));
    faults.admit(vault, key.as_deref(), makes).map_err(|retry_after| VaultError::Throttled {
        what: "vault",
        name: format!("vaults/{vault}"),
        retry_after,
    })
}

/// Where every operation passes.
pub struct Gate {
    journal: Arc<Journal>,
    pub(crate) assignments: Arc<RwLock<Assignments>>,
    /// Brings in what is decided on.
    loader: Arc<Loader>,
    /// What counts instead while a change of them has not come through. Taken after the assignments.
    lag: Mutex<Lag>,
    faults: Option<Arc<Faults>>,
    /// Conditions of assignments are held against it.
    clock: Arc<dyn Clock>,
    pub(crate) limits: Limiter,
    /// Whether the deployment is sealed: nothing passes but its unsealing.
    sealed: AtomicBool,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate(..)")
    }
}

impl Gate {
    pub(crate) fn new(
        journal: Arc<Journal>,
        clock: Arc<dyn Clock>,
        limits: &RateLimits,
        faults: Option<Arc<Faults>>,
        loader: Arc<Loader>,
        assignments: Arc<RwLock<Assignments>>,
    ) -> Self {
        Self {
            journal,
            assignments,
            loader,
            lag: Mutex::default(),
            faults,
            clock,
            limits: Limiter::new(limits),
            sealed: AtomicBool::new(true),
        }
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub(crate) fn set_sealed(&self, sealed: bool) {
        self.sealed.store(sealed, Ordering::Release);
    }

    /// Runs an operation on `resource`. A refusal is recorded too, before it is answered.
    pub(crate) fn run<Op: Operation, T>(
        &self,
        call: &Call,
        resource: &str,
        act: impl FnOnce(Permit<Op>) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        self.run_with(Op::PERMISSION, call, resource, act)
    }

    /// Runs an operation that asks for the permission of another: approving a purge is for those who may purge.
    pub(crate) fn run_with<Op: Operation, T>(
        &self,
        permission: Permission,
        call: &Call,
        resource: &str,
        act: impl FnOnce(Permit<Op>) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        let (record, assignment) = match self.authorize::<Op>(permission, call, resource)? {
            Authorized::Yes { record, assignment } => (record, assignment),
            Authorized::No { refusal, error } => {
                call.recorded.set(self.journal.append(&refusal)?);
                return Err(error);
            }
        };
        let pending =
            if Op::ONLY_ANSWERS { self.journal.undertake(record) } else { self.journal.begin(record)? };
        Admitted::new(pending, call, assignment).run(act).release_blocking()
    }

    /// The first half of [`Gate::run`], for a task: authorizes, and waits for the record without holding a thread.
    pub(crate) async fn admit<Op: Operation>(
        &self,
        call: &Call,
        resource: &str,
    ) -> Result<Admitted<Op>, VaultError> {
        if !self.is_sealed() {
            self.loader.ensure_in_task(resource).await?;
        }
        let (record, assignment) = match self.authorize::<Op>(Op::PERMISSION, call, resource)? {
            Authorized::Yes { record, assignment } => (record, assignment),
            Authorized::No { refusal, error } => {
                call.recorded.set(self.journal.append_in_task(&refusal).await?);
                return Err(error);
            }
        };
        let pending = if Op::ONLY_ANSWERS {
            self.journal.undertake(record)
        } else {
            self.journal.begin_in_task(record).await?
        };
        Ok(Admitted::new(pending, call, assignment))
    }

    fn authorize<Op: Operation>(
        &self,
        permission: Permission,
        call: &Call,
        resource: &str,
    ) -> Result<Authorized, VaultError> {
        if self.is_sealed() && permission != Permission::SystemSeal {
            return Err(VaultError::Sealed);
        }
        self.limits.check(&call.caller.principal, resource)?;
        if let Some(faults) = &self.faults {
            throttle(faults, Op::NAME, resource)?;
        }
        self.loader.ensure(resource)?;
        let now = self.journal.now();
        let record = Record::begin(now, Op::NAME, &call.correlation_id, &call.caller, resource);
        Ok(match self.decide(call, permission, resource) {
            Decision::Allow { assignment } => Authorized::Yes { record, assignment },
            Decision::Deny => {
                let error = VaultError::PermissionDenied { permission, resource: resource.to_owned() };
                let refusal = record.finish(now, Outcome::Denied, error.status(), &error.to_string());
                Authorized::No { refusal, error }
            }
        })
    }

    /// A vault does not exist before it is made, a seal is above all vaults, a list of vaults is of none in particular, and emergency rights are for
    /// when nobody has any: those follow from the duty. Everything else follows from role assignments.
    fn decide(&self, call: &Call, permission: Permission, resource: &str) -> Decision {
        let by_duty = match permission {
            Permission::BreakGlass | Permission::SystemSeal | Permission::VaultCreate => {
                call.caller.duty == Duty::SecurityOfficer
            }
            Permission::VaultList => call.caller.duty != Duty::DatabaseAdministrator,
            _ => {
                return self.by_role(&call.caller, permission, resource);
            }
        };
        if by_duty {
            Decision::Allow { assignment: format!("duty {}", call.caller.duty) }
        } else {
            Decision::Deny
        }
    }

    /// Whether the caller may, without recording and of a vault that is in memory: to filter lists inside an operation that is recorded.
    pub(crate) fn may(&self, call: &Call, permission: Permission, resource: &str) -> bool {
        self.allows(&call.caller, permission, resource)
    }

    /// Whether role assignments allow it now, without recording. The vault is in memory.
    pub(crate) fn allows(&self, caller: &Caller, permission: Permission, resource: &str) -> bool {
        self.by_role(caller, permission, resource) != Decision::Deny
    }

    fn by_role(&self, caller: &Caller, permission: Permission, resource: &str) -> Decision {
        let now = self.clock.now();
        let assignments = self.assignments.read();
        if self.faults.is_none() {
            return assignments.decide(caller, permission, resource, now);
        }
        let lag = self.lag.lock();
        let counts = lag.counts(self.clock.monotonic()).unwrap_or(&assignments);
        counts.decide(caller, permission, resource, now)
    }

    /// Changes the assignments. Where a profile of faults says that such changes take their time, what there was counts until then.
    pub(crate) fn change_assignments<T>(&self, scope: &str, change: impl FnOnce(&mut Assignments) -> T) -> T {
        let delay = self.faults.as_ref().and_then(|faults| faults.role_delay());
        let mut assignments = self.assignments.write();
        let before = delay.map(|_| assignments.clone());
        let done = change(&mut assignments);
        if let (Some(delay), Some(before)) = (delay, before) {
            self.lag.lock().begin(scope, before, &assignments, self.clock.monotonic() + delay);
        }
        done
    }

    /// Scopes in which changes have come through since this was last asked.
    pub(crate) fn settled(&self) -> Vec<String> {
        self.lag.lock().settled(self.clock.monotonic())
    }
}

macro_rules! operations {
    (@only_answers answers) => { true };
    (@only_answers) => { false };
    ($($(#[$doc:meta])* $name:ident = $azure:literal, $permission:ident $(, $answers:ident)?;)+) => {
        /// The operations; `answers` are those of which only an answer comes.
        pub mod op {
            $($(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name;

            impl super::Operation for $name {
                const NAME: &'static str = $azure;
                const PERMISSION: custody_types::Permission = custody_types::Permission::$permission;
                const ONLY_ANSWERS: bool = operations!(@only_answers $($answers)?);
            })+
        }
    };
}

operations! {
    /// Makes a vault.
    CreateVault = "VaultPut", VaultCreate;
    /// Reads a vault.
    GetVault = "VaultGet", VaultGet, answers;
    /// Lists vaults.
    ListVaults = "VaultList", VaultList, answers;
    /// Changes a vault's settings.
    UpdateVault = "VaultPatch", VaultUpdate;
    /// Makes a key.
    CreateKey = "KeyCreate", Create;
    /// Takes a key from outside.
    ImportKey = "KeyImport", Import;
    /// Reads a key or version.
    GetKey = "KeyGet", Get, answers;
    /// Lists keys.
    ListKeys = "KeyList", List, answers;
    /// Lists versions.
    ListKeyVersions = "KeyListVersions", List, answers;
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
    Encrypt = "KeyEncrypt", Encrypt, answers;
    /// Decrypts.
    Decrypt = "KeyDecrypt", Decrypt;
    /// Signs.
    Sign = "KeySign", Sign;
    /// Checks a signature.
    Verify = "KeyVerify", Verify, answers;
    /// Takes a sealed copy.
    BackupKey = "KeyBackup", Backup;
    /// Brings a copy back.
    RestoreKey = "KeyRestore", Restore;
    /// Wraps.
    WrapKey = "KeyWrap", WrapKey, answers;
    /// Unwraps.
    UnwrapKey = "KeyUnwrap", UnwrapKey;
    /// Grants a lease on what a key opens, or renews it.
    RenewLease = "KeyLeaseRenew", UnwrapKey;
    /// Lists leases.
    ListLeases = "KeyLeaseList", AccessRead, answers;
    /// Reads how long a key may be held.
    GetLeasePolicy = "KeyLeasePolicyGet", Get, answers;
    /// Sets how long a key may be held.
    SetLeasePolicy = "KeyLeasePolicySet", Update;
    /// Disables all versions and ends the leases on them.
    RevokeKey = "KeyRevoke", Update;
    /// Enables again what was revoked.
    ReinstateKey = "KeyReinstate", Update;
    /// Reads a revocation.
    GetRevocation = "KeyRevocationGet", Get, answers;
    /// Lists revocations.
    ListRevocations = "KeyRevocationList", Get, answers;
    /// Says what depends on which version.
    GetLineage = "KeyLineageGet", AccessRead, answers;
    /// Reads what became unreadable with a key.
    GetShredReport = "KeyShredReportGet", AccessRead, answers;
    /// Watches changes.
    WatchKeys = "KeyWatch", Get, answers;
    /// Gives a role.
    CreateRoleAssignment = "RoleAssignmentCreate", AccessWrite;
    /// Takes a role away.
    DeleteRoleAssignment = "RoleAssignmentDelete", AccessWrite;
    /// Lists assignments.
    ListRoleAssignments = "RoleAssignmentList", AccessRead, answers;
    /// Makes a role.
    CreateRoleDefinition = "RoleDefinitionCreate", AccessWrite;
    /// Removes a role.
    DeleteRoleDefinition = "RoleDefinitionDelete", AccessWrite;
    /// Lists roles.
    ListRoleDefinitions = "RoleDefinitionList", AccessRead, answers;
    /// Makes a group.
    CreateGroup = "GroupCreate", AccessWrite;
    /// Removes a group.
    DeleteGroup = "GroupDelete", AccessWrite;
    /// Lists groups.
    ListGroups = "GroupList", AccessRead, answers;
    /// Puts a principal into a group.
    AddGroupMember = "GroupMemberAdd", AccessWrite;
    /// Takes a principal out of a group.
    RemoveGroupMember = "GroupMemberRemove", AccessWrite;
    /// Says why a decision is what it is.
    ExplainAccess = "AccessExplain", AccessRead, answers;
    /// Says who may use which key.
    ReviewAccess = "AccessReview", AccessRead, answers;
    /// Takes emergency rights.
    BreakGlass = "BreakGlass", BreakGlass;
    /// Lists requests for approval.
    ListApprovals = "ApprovalList", AccessRead, answers;
    /// Approves what another officer asked for. Needs the permission of that.
    Approve = "ApprovalApprove", AccessRead;
    /// Rejects what another officer asked for. Needs the permission of that.
    Reject = "ApprovalReject", AccessRead;
    /// Reads a rotation policy.
    GetRotationPolicy = "KeyRotationPolicyGet", RotationPolicyRead, answers;
    /// Sets a rotation policy.
    SetRotationPolicy = "KeyRotationPolicySet", RotationPolicyWrite;
    /// Gives random bytes.
    GetRandomBytes = "RandomBytesGet", Rng, answers;
    /// Reads a vault's seal.
    GetSeal = "VaultSealGet", VaultGet, answers;
    /// Seals the deployment.
    Seal = "Seal", SystemSeal;
    /// Unseals the deployment.
    Unseal = "Unseal", SystemSeal;
    /// Changes what opens the deployment's seal.
    ChangeSeal = "SealChange", SystemSeal;
    /// Makes a new root key.
    RotateRootKey = "RootKeyRotate", SystemSeal;
    /// Seals a vault.
    SealVault = "VaultSeal", VaultSeal;
    /// Unseals a vault.
    UnsealVault = "VaultUnseal", VaultSeal;
    /// Changes what opens a vault's own seal.
    ChangeVaultSeal = "VaultSealChange", VaultSeal;
    /// Makes a new key of a vault.
    RotateVaultKey = "VaultKeyRotate", VaultSeal;
    /// Reads the trail.
    ReadAudit = "AuditRead", AuditRead, answers;
}
