//! The vault: its store, its catalog, its gate.

use crate::{
    Event, EventType, VaultError,
    catalog::Catalog,
    dependents::Dependents,
    gate::{Gate, op},
    leases::Register,
    lifecycle,
    limits::RateLimits,
    loader::Loader,
    retention::RetentionClock,
    rotation,
    seal::Keyring,
    sealing::{Attempts, SealSettings},
    uses::Uses,
};
use custody_audit::{Entry, Journal};
use custody_faults::{Change, Faults};
use custody_kek::{Backend, Token};
use custody_proof::Authority;
use custody_store::{Batch, Store, StoreError};
use custody_types::{Caller, Clock, Duty, KeyName, KeyVersionName, Permission, UnixMillis};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// A call: who, and what ties it to a trace.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who.
    pub caller: Caller,
    /// The trace id, or another unique id.
    pub correlation_id: String,
    /// Where the gate notes under which number it has recorded the call.
    pub recorded: Recorded,
}

impl Call {
    /// A call that is not recorded yet.
    #[must_use]
    pub fn new(caller: Caller, correlation_id: String) -> Self {
        Self { caller, correlation_id, recorded: Recorded::default() }
    }
}

/// The number of a call's record in the trail, once it has one.
#[derive(Clone, Debug, Default)]
pub struct Recorded(Arc<AtomicU64>);

impl Recorded {
    pub(crate) fn set(&self, sequence: u64) {
        self.0.store(sequence, Ordering::Release);
    }

    /// The number of the record that the call began with, or of its only one; none before.
    #[must_use]
    pub fn sequence(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Acquire)).filter(|n| *n > 0)
    }
}

/// How a vault is run.
#[derive(Clone, Debug, Default)]
pub struct VaultOptions {
    /// Which RSA implementation.
    pub backend: Backend,
    /// How often it may be asked.
    pub limits: RateLimits,
    /// The HSM, for keys that are kept in one.
    pub token: Option<Arc<Token>>,
    /// Whose certificates holders of leases sign their receipts with.
    pub authority: Option<Authority>,
    /// How it shall misbehave, where it stands for a cloud's in tests.
    pub faults: Option<Arc<Faults>>,
    /// How long a start may bring vaults into memory before it serves; the others follow while it does.
    pub start_time: Option<Duration>,
}

/// A vault that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store was written before vaults had seals.
    #[error(
        "the store is of an earlier version of this program, which this one does not read; start with a new directory"
    )]
    Older,
    /// The default seal does not open.
    #[error("the vault stays sealed: {0}")]
    Sealed(Box<VaultError>),
}

impl From<VaultError> for LoadError {
    fn from(e: VaultError) -> Self {
        Self::Sealed(Box::new(e))
    }
}

type Listener = Box<dyn Fn(Event) + Send + Sync>;

/// All vaults of this process.
pub struct Vault {
    pub(crate) store: Arc<Store>,
    pub(crate) seal_settings: SealSettings,
    pub(crate) keyring: Keyring,
    /// Shares that wait for others.
    pub(crate) attempts: Mutex<Attempts>,
    pub(crate) options: VaultOptions,
    pub(crate) gate: Gate,
    pub(crate) loader: Arc<Loader>,
    pub(crate) catalog: Arc<RwLock<Catalog>>,
    /// Changes are made one after another, each from a state that is on disk.
    pub(crate) changes: Mutex<()>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Counts of uses that are not stored yet, by version. The version itself has a private half, which nothing may keep
    /// alive beside the catalog.
    pub(crate) used: Mutex<Vec<(KeyVersionName, Arc<Uses>)>>,
    /// Until when conditions of assignments have been looked at.
    looked: Mutex<UnixMillis>,
    pub(crate) retention: RetentionClock,
    /// Leases, and revocations that wait for answers. Taken before the catalog and the assignments, never after.
    pub(crate) leases: Mutex<Register>,
    /// What depends on which version. Taken before the catalog, never after.
    pub(crate) dependents: Mutex<Dependents>,
    /// Keys of which the trail has that they are not destroyed in time.
    pub(crate) held_purges: Mutex<BTreeSet<KeyName>>,
    /// An officer has sealed the deployment since this process began.
    pub(crate) sealed_by_officer: AtomicBool,
    /// Revocations are closed by one at a time.
    pub(crate) closing: Mutex<()>,
    journal: Arc<Journal>,
    listener: Listener,
}

impl Vault {
    /// Opens the vault over its store and journal: sealed, where its seal is not opened by the key file. `listener` is
    /// told of every committed change; it must not block.
    ///
    /// # Errors
    /// The store cannot be read, is not as it was left, or the key file does not open it.
    pub fn open(
        store: Store,
        seal_settings: SealSettings,
        journal: Arc<Journal>,
        clock: Arc<dyn Clock>,
        options: VaultOptions,
        listener: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Self, LoadError> {
        let faults = options.faults.clone();
        let retention = RetentionClock::load(&store, clock.now(), clock.monotonic())?;
        let store = Arc::new(store);
        let catalog = Arc::new(RwLock::new(Catalog { faults: faults.clone(), ..Catalog::default() }));
        let assignments = Arc::default();
        let loader = Loader::new(store.clone(), catalog.clone(), Arc::clone(&assignments), clock.clone());
        let loader = Arc::new(loader);
        let gate =
            Gate::new(journal.clone(), clock.clone(), &options.limits, faults, loader.clone(), assignments);
        let vault = Self {
            store,
            retention,
            seal_settings,
            keyring: Keyring::default(),
            attempts: Mutex::default(),
            gate,
            options,
            loader,
            catalog,
            changes: Mutex::new(()),
            used: Mutex::default(),
            looked: Mutex::new(clock.now()),
            leases: Mutex::default(),
            dependents: Mutex::default(),
            held_purges: Mutex::default(),
            sealed_by_officer: AtomicBool::new(false),
            closing: Mutex::new(()),
            clock,
            journal,
            listener: Box::new(listener),
        };
        if vault.store.is_empty() {
            vault.initialise()?;
        } else if vault.has_seal()? {
            vault.open_by_itself()?;
        } else {
            return Err(LoadError::Older);
        }
        Ok(vault)
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// Tells of a committed change, after the leases that it ends have ended.
    pub(crate) fn tell(&self, kind: EventType, resource: &str) {
        let opened = self.end_leases(kind.name(), None);
        self.announce(kind, resource);
        self.save_revocations(opened);
    }

    pub(crate) fn notify(&self, event: Event) {
        (self.listener)(event);
    }

    /// Commits to the store, then to memory.
    pub(crate) fn commit<T>(
        &self,
        batch: Batch,
        apply: impl FnOnce(&mut Catalog) -> T,
    ) -> Result<T, VaultError> {
        self.store.commit(batch)?;
        Ok(apply(&mut self.catalog.write()))
    }

    /// Records that the caller begins to watch a vault's changes.
    ///
    /// # Errors
    /// The caller has no rights in the vault.
    pub fn authorize_watch(&self, call: &Call, vault: &str) -> Result<(), VaultError> {
        let vault: custody_types::VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        self.loader.ensure(vault.as_str())?;
        // Whoever holds any assignment in a vault may learn that something in it changed; a node with rights on
        // one key needs that. The scope of one of its own assignments stands for the vault.
        let resource = self
            .gate
            .assignments
            .read()
            .reach(&call.caller.principal, &vault)
            .map_or_else(|| vault.to_string(), ToString::to_string);
        self.gate.run::<op::WatchKeys, _>(call, &resource, |_| Ok(()))
    }

    /// Audit entries after number `after`: all of them for an auditor, those of the vaults where it has the right
    /// for a security officer; with the number of the last one looked at.
    ///
    /// # Errors
    /// The caller is no auditor, or the trail is broken.
    pub fn read_audit(&self, call: &Call, after: u64, max: usize) -> Result<(Vec<Entry>, u64), VaultError> {
        let all = call.caller.duty == Duty::Auditor;
        if !all && call.caller.duty != Duty::SecurityOfficer {
            return self.gate.run::<op::ReadAudit, _>(call, "audit", |_| Ok((Vec::new(), after)));
        }
        let broken = |_| VaultError::AuditUnavailable(custody_audit::AuditUnavailable::Unreadable);
        let mut entries = self.journal.read(after, max).map_err(broken)?;
        let last = entries.last().map_or(after, |e| e.sequence);
        if !all {
            entries.iter().try_for_each(|e| self.loader.ensure(&e.record.resource_id))?;
        }
        entries.retain(|e| all || self.gate.may(call, Permission::AuditRead, &e.record.resource_id));
        Ok((entries, last))
    }

    /// Why not all vaults could be brought into memory after a start, once: above all that the store is not as the vault left it.
    /// As at a start, the process shall end with it.
    #[must_use]
    pub fn failure(&self) -> Option<VaultError> {
        self.loader.failure()
    }

    /// Does what time has made due: purges deleted keys whose retention has ended, rotates keys whose policies say so,
    /// tells of expiries and of rights that ended, and stores what was counted.
    ///
    /// # Errors
    /// The store or the journal failed; it is tried again with the next call.
    pub fn tick(&self) -> Result<(), VaultError> {
        if self.is_sealed() {
            // An HSM that opens the seal may have come back.
            return self.open_by_itself();
        }
        let now = self.now();
        let after = std::mem::replace(&mut *self.looked.lock(), now);
        let turned = self.gate.assignments.read().turned(after, now);
        for scope in turned {
            self.tell(EventType::AccessChanged, &scope);
        }
        self.gate.limits.forget();
        self.save_uses()?;
        self.forget_approvals()?;
        self.forget_leases()?;
        rotation::run_agenda(self)?;
        lifecycle::purge_due(self)
    }

    /// Tells of changes of role assignments that have come through late, as a profile of faults has it.
    pub fn settle_roles(&self) {
        for scope in self.gate.settled() {
            self.tell(EventType::AccessChanged, &scope);
        }
    }

    /// Whether a key's deletion takes its time still, as a profile of faults has it.
    #[must_use]
    pub fn is_being_deleted(&self, name: &KeyName) -> bool {
        self.is_changing(name, Change::Delete)
    }

    /// Whether a change of a key takes its time still.
    pub(crate) fn is_changing(&self, name: &KeyName, change: Change) -> bool {
        self.options.faults.as_ref().is_some_and(|faults| faults.is_changing(name.as_str(), change))
    }

    /// A change of a key begins to take its time.
    pub(crate) fn begin_change(&self, name: &KeyName, change: Change) {
        if let Some(faults) = &self.options.faults {
            faults.begin(name.as_str(), change);
        }
    }

    /// Stores what is counted in memory. For the end of the process.
    ///
    /// # Errors
    /// The store failed.
    pub fn close(&self) -> Result<(), VaultError> {
        self.loader.stop();
        if self.is_sealed() {
            return Ok(());
        }
        Ok(self.save_uses()?)
    }

    /// The caller that stands for the vault itself in the trail.
    pub(crate) fn own_call(&self) -> Result<Call, VaultError> {
        let caller = Caller {
            principal: "principals/custody-vault".to_owned(),
            duty: Duty::Workload,
            token_id: String::new(),
            address: String::new(),
        };
        Ok(Call::new(caller, crate::names::new_id()?))
    }

    /// The trail's journal: for what proves that a record is in it.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        self.loader.stop();
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault(..)")
    }
}
