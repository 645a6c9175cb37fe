//! Brings vaults into memory. A start brings in what a moment allows; the others come when they are first asked for, and one
//! after another meanwhile, so that a start takes no longer with a million keys than with a thousand.
//!
//! What is in memory of a vault is all of it: its keys, versions, policies, requests for approval, roles, groups and
//! assignments. Nothing is decided on a vault, and nothing in it is read or changed, before ([`Loader::ensure`]).

use crate::{
    RotationPolicy, VaultError,
    catalog::{APPROVALS, ASSIGNMENTS, Catalog, GROUPS, KEYS, POLICIES, RETIRED, ROLES, VAULTS, VERSIONS},
    leases::{LEASE_POLICIES, LeasePolicy},
    names::vault_of,
    record::{KeyRecord, VaultRecord, VersionRecord},
    uses::{BUDGETS, USES, UseCounts, Uses},
};
use custody_authz::{Assignment, Assignments, Group, Role};
use custody_store::{Store, StoreError};
use custody_types::{Clock, VaultName};
use futures_channel::oneshot;
use parking_lot::{Condvar, Mutex, RwLock};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Threads that bring vaults in after a start.
const WORKERS: usize = 2;
/// Rows that are taken over at once: those who read wait for no more.
const TAKEN_AT_ONCE: usize = 1000;

#[derive(Default)]
struct State {
    /// Not in memory yet.
    waiting: BTreeSet<VaultName>,
    /// Of those, the ones that a thread brings in now.
    taken: BTreeSet<VaultName>,
    /// Those that were asked for.
    wanted: VecDeque<VaultName>,
    /// Who asked, without holding a thread.
    tasks: BTreeMap<VaultName, Vec<oneshot::Sender<()>>>,
    workers: usize,
    threads: Vec<JoinHandle<()>>,
    /// Why a worker gave up.
    failure: Option<VaultError>,
}

impl State {
    /// What a worker brings in next: what was asked for comes first.
    fn next(&mut self) -> Option<VaultName> {
        while let Some(wanted) = self.wanted.pop_front() {
            if self.waiting.contains(&wanted) && !self.taken.contains(&wanted) {
                return Some(wanted);
            }
        }
        let free = self.waiting.iter().find(|vault| !self.taken.contains(*vault));
        free.or_else(|| self.waiting.first()).cloned()
    }
}

/// The vaults that are in memory, and those that are not yet.
pub(crate) struct Loader {
    store: Arc<Store>,
    catalog: Arc<RwLock<Catalog>>,
    assignments: Arc<RwLock<Assignments>>,
    clock: Arc<dyn Clock>,
    /// Never taken while the catalog or the assignments are.
    state: Mutex<State>,
    /// A vault has come, or could not.
    settled: Condvar,
    /// Every vault is in memory, and every row has been checked.
    complete: AtomicBool,
    stop: AtomicBool,
}

impl Loader {
    pub(crate) fn new(
        store: Arc<Store>,
        catalog: Arc<RwLock<Catalog>>,
        assignments: Arc<RwLock<Assignments>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            store,
            catalog,
            assignments,
            clock,
            state: Mutex::default(),
            settled: Condvar::new(),
            complete: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    /// Learns which vaults there are.
    pub(crate) fn begin(&self) -> Result<(), VaultError> {
        let vaults = self.store.scan::<VaultRecord>(VAULTS, "")?;
        let names = vaults.iter().map(|(_, vault)| vault.name.clone()).collect();
        self.catalog.write().vaults = vaults.into_iter().map(|(_, v)| (v.name.clone(), v)).collect();
        self.state.lock().waiting = names;
        Ok(())
    }

    /// Brings vaults in for as long as `time` allows, all of them without it, and leaves the rest to threads.
    pub(crate) fn start(self: &Arc<Self>, time: Option<Duration>) -> Result<(), VaultError> {
        self.stop();
        let begun = Instant::now();
        let all = self.state.lock().waiting.len();
        let proceed = || time.is_none_or(|time| self.is_worth_it(all, begun.elapsed(), time));
        if self.load_all(&proceed)? && self.check_rest(&proceed)? {
            return Ok(());
        }
        let mut state = self.state.lock();
        tracing::info!(
            vaults = state.waiting.len(),
            "the vault begins to serve; the other vaults are brought in"
        );
        for n in 0..WORKERS {
            let loader = self.clone();
            let work = move || loader.work(begun);
            let thread = std::thread::Builder::new().name(format!("custody-load-{n}"));
            let thread = thread.spawn(work).map_err(|e: io::Error| VaultError::from(StoreError::from(e)))?;
            state.threads.push(thread);
            state.workers += 1;
        }
        Ok(())
    }

    /// Whether a start that has taken so long goes on: it may bring all in within its time. That it cannot is plain after
    /// a fifth of it.
    fn is_worth_it(&self, all: usize, taken: Duration, time: Duration) -> bool {
        let done = all.saturating_sub(self.state.lock().waiting.len());
        let share = done as f64 / all.max(1) as f64;
        taken < time && (taken < time / 5 || share >= taken.as_secs_f64() / time.as_secs_f64())
    }

    /// Ends the threads.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        let threads = std::mem::take(&mut self.state.lock().threads);
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread that brings vaults in ended early");
            }
        }
        self.stop.store(false, Ordering::Release);
    }

    /// Why bringing vaults in failed, if it did: the process shall not go on.
    pub(crate) fn failure(&self) -> Option<VaultError> {
        self.state.lock().failure.take()
    }

    /// The vault that a resource lies in, if it is not in memory.
    fn missing(&self, resource: &str) -> Option<VaultName> {
        if self.complete.load(Ordering::Acquire) {
            return None;
        }
        vault_of(resource).ok().filter(|vault| self.state.lock().waiting.contains(vault))
    }

    /// Returns once what a resource lies in is in memory.
    pub(crate) fn ensure(&self, resource: &str) -> Result<(), VaultError> {
        if self.complete.load(Ordering::Acquire) {
            return Ok(());
        }
        if self.store.is_altered() {
            return Err(StoreError::Altered.into());
        }
        self.missing(resource).map_or(Ok(()), |vault| self.load(&vault))
    }

    /// As [`Loader::ensure`], for a task: the wait holds no thread.
    pub(crate) async fn ensure_in_task(&self, resource: &str) -> Result<(), VaultError> {
        if let Some(vault) = self.missing(resource) {
            let comes = {
                let mut state = self.state.lock();
                let (tell, comes) = oneshot::channel();
                let asked = state.workers > 0 && state.waiting.contains(&vault);
                if asked {
                    state.tasks.entry(vault.clone()).or_default().push(tell);
                    state.wanted.push_back(vault);
                }
                asked.then_some(comes)
            };
            if let Some(comes) = comes {
                // Where the worker gave up, the reason is found below.
                _ = comes.await;
            }
        }
        self.ensure(resource)
    }

    /// Returns once every vault is in memory: for what is decided over all of them.
    pub(crate) fn ensure_all(&self) -> Result<(), VaultError> {
        if !self.complete.load(Ordering::Acquire) {
            self.load_all(&|| true)?;
        }
        self.ensure("")
    }

    fn load_all(&self, proceed: &impl Fn() -> bool) -> Result<bool, VaultError> {
        loop {
            let Some(next) = self.state.lock().next() else { return Ok(true) };
            if !proceed() {
                return Ok(false);
            }
            self.load(&next)?;
        }
    }

    /// Checks the rows that belong to no vault's memory.
    fn check_rest(&self, proceed: &impl Fn() -> bool) -> Result<bool, VaultError> {
        let checked = self.store.check_rest(proceed)?;
        if checked {
            self.complete.store(true, Ordering::Release);
        }
        Ok(checked)
    }

    fn work(&self, begun: Instant) {
        let proceed = || !self.stop.load(Ordering::Acquire);
        let mut done = self.load_all(&proceed);
        let mut state = self.state.lock();
        if state.workers == 1 && matches!(done, Ok(true)) {
            drop(state);
            done = self.check_rest(&proceed);
            state = self.state.lock();
            if matches!(done, Ok(true)) {
                let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(ms, "every vault is in memory, and the store is checked");
            }
        }
        state.workers -= 1;
        match done {
            Ok(_) => {}
            // It goes on when the deployment is unsealed.
            Err(VaultError::Sealed) => {}
            Err(e) => {
                tracing::error!(error = %e, "a vault cannot be brought in");
                state.failure.get_or_insert(e);
            }
        }
        if state.workers == 0 {
            state.tasks.clear();
        }
    }

    /// Brings a vault in, or waits for the thread that does.
    fn load(&self, vault: &VaultName) -> Result<(), VaultError> {
        let mut state = self.state.lock();
        while state.taken.contains(vault) {
            self.settled.wait(&mut state);
        }
        if !state.waiting.contains(vault) {
            return Ok(());
        }
        state.taken.insert(vault.clone());
        drop(state);
        let done = self.take_in(vault);
        let mut state = self.state.lock();
        state.taken.remove(vault);
        if done.is_ok() {
            state.waiting.remove(vault);
        }
        // Whoever asked is told also where it failed, and finds why.
        for task in state.tasks.remove(vault).into_iter().flatten() {
            _ = task.send(());
        }
        self.settled.notify_all();
        done
    }

    fn take_in(&self, vault: &VaultName) -> Result<(), VaultError> {
        let (store, below) = (&*self.store, format!("{vault}/"));
        let mut used: BTreeMap<String, UseCounts> = store.scan(USES, &below)?.into_iter().collect();
        let reserved: BTreeMap<String, u64> = store.scan(BUDGETS, &below)?.into_iter().collect();
        let versions = store.scan::<VersionRecord>(VERSIONS, &below)?;
        let policies = store.scan::<RotationPolicy>(POLICIES, &below)?;
        let lease_policies = store.scan::<LeasePolicy>(LEASE_POLICIES, &below)?;
        let keys = store.scan::<KeyRecord>(KEYS, &below)?;
        let retired = store.scan::<bool>(RETIRED, &below)?;
        let approvals = store.scan(APPROVALS, &below)?;
        let roles = store.scan::<Role>(ROLES, &below)?;
        let groups = store.scan::<Group>(GROUPS, &below)?;
        let assignments = store.scan::<Assignment>(ASSIGNMENTS, &below)?;

        // A key comes after its versions and its policy: whoever finds it finds them.
        by_pieces(versions, |some| {
            let mut catalog = self.catalog.write();
            for (_, record) in some {
                let counts = used.remove(record.name.as_str()).unwrap_or_default();
                let reserved = reserved.get(record.name.as_str()).copied().unwrap_or(0);
                catalog.put_restored(record, Uses::stored(counts, reserved));
            }
        });
        {
            let mut catalog = self.catalog.write();
            catalog.policies.extend(policies.into_iter().map(|(_, policy)| (policy.key.clone(), policy)));
            let lease_policies = lease_policies.into_iter().map(|(_, policy)| (policy.key.clone(), policy));
            catalog.lease_policies.extend(lease_policies);
            catalog.retired.extend(retired.into_iter().map(|(name, _)| name));
            catalog.approvals.extend(approvals);
        }
        let now = self.clock.now();
        by_pieces(keys, |some| {
            let mut catalog = self.catalog.write();
            some.for_each(|(_, key)| catalog.put_key(key, now));
        });
        {
            let mut all = self.assignments.write();
            roles.into_iter().for_each(|(_, role)| all.put_role(role));
            groups.into_iter().for_each(|(_, group)| all.put_group(group));
        }
        let mut unknown = None;
        by_pieces(assignments, |some| {
            let mut all = self.assignments.write();
            for (_, assignment) in some {
                if let Err(e) = all.insert(assignment) {
                    unknown.get_or_insert(e);
                }
            }
        });
        unknown.map_or(Ok(()), |role| Err(VaultError::StoredRole(role)))
    }
}

/// Hands rows over, some at a time.
fn by_pieces<T>(rows: Vec<T>, mut take: impl FnMut(&mut dyn Iterator<Item = T>)) {
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        take(&mut rows.by_ref().take(TAKEN_AT_ONCE));
    }
}
