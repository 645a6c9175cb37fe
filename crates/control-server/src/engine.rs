//! The engine: one driver for each cluster carries its plan out and follows its state.

use crate::{
    backups,
    steps::{self, StepError},
};
use custody_clients::{Database, Identity, Storage};
use custody_control::{
    ClusterRecord, ClusterState, EncryptionChange, Event, Ledger, LedgerError, OperationRecord,
    OperationResult, Step,
};
use custody_rpc::status::{internal, status};
use custody_types::{Clock as _, SystemClock};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::Notify;
use tonic::Status;
use tracing::{Instrument as _, Span};

/// The other services.
#[derive(Clone)]
pub(crate) struct Platform {
    pub(crate) identity: Identity,
    pub(crate) storage: Storage,
    pub(crate) database: Database,
    pub(crate) storage_principal: String,
    pub(crate) service_key: String,
    pub(crate) service_identity: String,
}

impl Platform {
    /// Key and identity of what is not under a customer's key.
    pub(crate) fn service(&self) -> (&str, &str) {
        (&self.service_key, &self.service_identity)
    }
}

pub(crate) struct Engine {
    pub(crate) ledger: Ledger,
    pub(crate) platform: Platform,
    /// Wakes a cluster's driver.
    drivers: Mutex<HashMap<String, Arc<Notify>>>,
    /// Held while a cluster's record is read, changed and stored.
    pub(crate) changes: Mutex<()>,
    /// Wakes whoever waits for an operation.
    pub(crate) finished: Notify,
}

/// Between looks at a cluster that waits.
const LOOK: Duration = Duration::from_millis(500);
/// Between attempts at a step that could not be done now.
pub(crate) const RETRY: Duration = Duration::from_secs(1);
/// Between looks at what another service has under way.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub(crate) fn ledger_failed(e: LedgerError) -> Status {
    match &e {
        LedgerError::AlreadyExists(_) => status("ALREADY_EXISTS", "ALREADY_EXISTS", &e.to_string(), None),
        LedgerError::NotFound(_) => status("NOT_FOUND", "NOT_FOUND", &e.to_string(), None),
        _ => {
            tracing::error!(error = %e, "ledger failed");
            status("UNAVAILABLE", "STORE_UNAVAILABLE", &e.to_string(), None)
        }
    }
}

/// An error as an operation's result.
pub(crate) fn failure(e: &Status) -> OperationResult {
    OperationResult::Error {
        status: custody_rpc::status::code_name(e.code()).to_owned(),
        reason: custody_rpc::status::reason(e),
        message: e.message().to_owned(),
    }
}

pub(crate) fn new_id() -> Result<String, Status> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|_| internal())?;
    Ok(format!("op-{}", hex::encode(bytes)))
}

impl Engine {
    /// Takes up every cluster where its record says it is: a plan that was cut short runs again.
    pub(crate) fn start(ledger: Ledger, platform: Platform) -> anyhow::Result<Arc<Self>> {
        let engine = Arc::new(Self {
            ledger,
            platform,
            drivers: Mutex::default(),
            changes: Mutex::default(),
            finished: Notify::new(),
        });
        for cluster in engine.ledger.clusters()? {
            engine.drive(cluster.spec.name.as_str());
        }
        for operation in engine.ledger.operations()?.into_iter().filter(|o| o.result.is_none()) {
            if operation.target.starts_with("backups/") {
                tokio::spawn(backups::end_interrupted(engine.clone(), operation));
            }
        }
        Ok(engine)
    }

    fn drive(self: &Arc<Self>, name: &str) {
        let wake = Arc::new(Notify::new());
        self.drivers.lock().insert(name.to_owned(), wake.clone());
        tokio::spawn(drive(self.clone(), name.to_owned(), wake));
    }

    fn wake(&self, name: &str) {
        if let Some(wake) = self.drivers.lock().get(name) {
            wake.notify_one();
        }
    }

    pub(crate) fn new_operation(&self, target: &str) -> Result<OperationRecord, Status> {
        Ok(OperationRecord {
            id: new_id()?,
            target: target.to_owned(),
            step: "waiting".to_owned(),
            result: None,
            create_time: SystemClock.now(),
            trace_parent: custody_rpc::trace::trace_parent(&Span::current()),
            backup: None,
        })
    }

    /// Stores a new cluster and begins to make it.
    pub(crate) fn create(
        self: &Arc<Self>,
        cluster: &ClusterRecord,
        operation: &OperationRecord,
    ) -> Result<(), Status> {
        let _one_at_a_time = self.changes.lock();
        self.ledger.add(cluster, operation).map_err(ledger_failed)?;
        self.drive(cluster.spec.name.as_str());
        Ok(())
    }

    /// Takes an event in from a caller, with the operation that follows it.
    pub(crate) fn request(&self, name: &str, event: Event) -> Result<OperationRecord, Status> {
        self.request_with(name, event, |_| Ok(()))
    }

    /// The same, with a change of the cluster's record, which may be refused.
    pub(crate) fn request_with(
        &self,
        name: &str,
        event: Event,
        change: impl FnOnce(&mut ClusterRecord) -> Result<(), Status>,
    ) -> Result<OperationRecord, Status> {
        let operation = self.new_operation(name)?;
        {
            let _one_at_a_time = self.changes.lock();
            let mut cluster = self.ledger.cluster(name).map_err(ledger_failed)?;
            let next = cluster.state.after(event).map_err(|e| {
                status("FAILED_PRECONDITION", "INVALID_CLUSTER_TRANSITION", &e.to_string(), None)
            })?;
            change(&mut cluster)?;
            if let Some(before) = cluster.operation.take()
                && let Ok(mut superseded) = self.ledger.operation(&before)
            {
                let message = format!("superseded: the cluster shall {event}");
                superseded.result = Some(OperationResult::Error {
                    status: "ABORTED".to_owned(),
                    reason: "SUPERSEDED".to_owned(),
                    message,
                });
                self.ledger.update(None, Some(&superseded)).map_err(ledger_failed)?;
            }
            cluster.state = next.unwrap_or(cluster.state);
            cluster.state_reason = String::new();
            cluster.operation = Some(operation.id.clone());
            self.ledger.update(Some(&cluster), Some(&operation)).map_err(ledger_failed)?;
        }
        self.finished.notify_waiters();
        self.wake(name);
        Ok(operation)
    }

    /// Changes a cluster's record if it is still in `state`. False where it is not.
    fn change(&self, name: &str, state: ClusterState, act: impl FnOnce(&mut ClusterRecord)) -> bool {
        let _one_at_a_time = self.changes.lock();
        match self.ledger.cluster(name) {
            Ok(mut cluster) if cluster.state == state => {
                let before = cluster.clone();
                act(&mut cluster);
                cluster == before || self.ledger.update(Some(&cluster), None).is_ok()
            }
            _ => false,
        }
    }

    /// The span of an operation's work, in the trace of the call that asked for it.
    pub(crate) fn span(&self, operation: Option<&String>) -> Span {
        let Some(operation) = operation.and_then(|id| self.ledger.operation(id).ok()) else {
            return Span::none();
        };
        let span = tracing::info_span!(
            "custody.control.operation",
            custody.operation.name = operation.id,
            custody.operation.target = operation.target
        );
        custody_rpc::trace::adopt_trace_parent(&span, &operation.trace_parent);
        span
    }

    /// Notes what is being done for a cluster, and why it waits, where it does.
    fn note_step(&self, cluster: &ClusterRecord, step: &Step, why: &str) {
        let Some(id) = &cluster.operation else { return };
        if let Ok(mut operation) = self.ledger.operation(id)
            && operation.result.is_none()
        {
            let separator = if why.is_empty() { "" } else { ": " };
            operation.step = format!("{}{separator}{why}", steps::describe(step));
            _ = self.ledger.update(None, Some(&operation));
        }
    }

    fn end_operation(&self, id: Option<&String>, result: OperationResult) {
        if let Some(mut operation) = id.and_then(|id| self.ledger.operation(id).ok()) {
            operation.result = Some(result);
            operation.step = "done".to_owned();
            if let Err(e) = self.ledger.update(None, Some(&operation)) {
                tracing::error!(error = %e, "an operation's end was not stored");
            }
        }
        self.finished.notify_waiters();
    }

    /// The state's steps are done.
    fn plan_done(&self, cluster: &ClusterRecord) -> bool {
        let name = cluster.spec.name.as_str();
        if cluster.state == ClusterState::Deleting {
            let _one_at_a_time = self.changes.lock();
            let result = cluster.failure.clone().unwrap_or(OperationResult::Success);
            let operation = cluster.operation.as_ref().and_then(|id| self.ledger.operation(id).ok());
            let ended =
                operation.map(|o| OperationRecord { result: Some(result), step: "done".to_owned(), ..o });
            if let Err(e) = self.ledger.remove(cluster, ended.as_ref()) {
                tracing::error!(cluster = name, error = %e, "a deleted cluster's record remains");
                return false;
            }
            self.drivers.lock().remove(name);
            self.finished.notify_waiters();
            return true;
        }
        let mut result = OperationResult::Success;
        let done = self.change(name, cluster.state, |c| {
            if let Ok(Some(next)) = c.state.after(Event::Done) {
                c.state = next;
            }
            c.operation = None;
            if let Some(change) = c.encryption_change.take() {
                c.spec.encryption = change.to;
            }
            if let Some(size) = c.growth.take() {
                c.spec.volume_size_bytes = size;
            }
            // A change that was undone has failed, though its plan is done.
            result = c.failure.take().unwrap_or(OperationResult::Success);
        });
        if done {
            tracing::info!(cluster = name, "plan done");
            self.end_operation(cluster.operation.as_ref(), result);
        }
        false
    }

    /// A step was refused for good.
    fn plan_failed(&self, cluster: &ClusterRecord, e: &Status) {
        let name = cluster.spec.name.as_str();
        let result = failure(e);
        tracing::warn!(cluster = name, error = e.message(), "plan failed");
        match cluster.state {
            // What was made is removed before the failure is told.
            ClusterState::Creating => {
                _ = self.change(name, cluster.state, |c| {
                    c.state = ClusterState::Deleting;
                    c.failure = Some(result);
                })
            }
            // A volume that has grown stays so: asking again goes on from there.
            ClusterState::Updating if cluster.growth.is_some() => {
                _ = self.change(name, cluster.state, |c| {
                    c.growth = None;
                    c.failure = Some(result);
                });
                self.plan_done(cluster);
            }
            // The volumes that have changed change back before the failure is told.
            ClusterState::Updating if cluster.failure.is_none() => {
                _ = self.change(name, cluster.state, |c| {
                    if let Some(EncryptionChange { to, from }) = c.encryption_change.take() {
                        c.encryption_change = Some(EncryptionChange { to: from, from: to });
                    }
                    c.failure = Some(result);
                })
            }
            // What cannot be undone either stays as it is: each volume knows its protector.
            ClusterState::Updating => {
                self.plan_done(cluster);
            }
            _ => {
                self.end_operation(cluster.operation.as_ref(), result);
                self.change(name, cluster.state, |c| c.operation = None);
            }
        }
    }

    /// Looks at the parts of a cluster that waits, and takes in what changed.
    async fn observe(&self, cluster: &ClusterRecord) {
        let Ok(seen) = steps::observe(&self.platform, cluster).await else { return };
        self.change(cluster.spec.name.as_str(), cluster.state, |c| {
            c.nodes.clone_from(&seen.nodes);
            let event = if seen.lost.is_some() { Event::KeyLost } else if seen.serving { Event::KeyBack } else { return };
            if let Some(reason) = &seen.lost {
                c.state_reason.clone_from(reason);
            }
            if let Ok(Some(next)) = c.state.after(event) {
                tracing::info!(cluster = %c.spec.name, state = %next, reason = c.state_reason, "cluster state changed");
                c.state = next;
                if seen.lost.is_none() {
                    c.state_reason = String::new();
                }
            }
        });
    }
}

/// Drives one cluster for as long as it exists.
async fn drive(engine: Arc<Engine>, name: String, wake: Arc<Notify>) {
    loop {
        let Ok(cluster) = engine.ledger.cluster(&name) else { return };
        let plan = custody_control::steps(&cluster);
        if plan.is_empty() {
            engine.observe(&cluster).await;
            _ = tokio::time::timeout(LOOK, wake.notified()).await;
            continue;
        }
        let span = engine.span(cluster.operation.as_ref());
        match run_plan(&engine, &cluster, plan, &wake).instrument(span).await {
            Ok(true) => {
                if engine.plan_done(&cluster) {
                    return;
                }
            }
            Ok(false) => {}
            Err(e) => engine.plan_failed(&cluster, &e),
        }
    }
}

/// Carries a plan out. `Ok(false)`: the cluster's state has changed meanwhile, and another plan holds.
async fn run_plan(
    engine: &Engine,
    cluster: &ClusterRecord,
    plan: Vec<Step>,
    wake: &Notify,
) -> Result<bool, Status> {
    let name = cluster.spec.name.as_str();
    for step in plan {
        engine.note_step(cluster, &step, "");
        let mut told = String::new();
        loop {
            let now = engine.ledger.cluster(name).map_err(ledger_failed)?;
            if now.state != cluster.state {
                return Ok(false);
            }
            let (why, pause) = match steps::carry_out(&engine.platform, engine, &now, &step).await {
                Ok(nodes) => {
                    engine.change(name, cluster.state, |c| c.nodes.clone_from(&nodes));
                    break;
                }
                Err(StepError::Refused(e)) => return Err(*e),
                Err(StepError::NotNow(why)) => (why, RETRY),
                Err(StepError::NotYet(why)) => (why, LOOK_AGAIN),
            };
            // The last reason stays while it is tried again.
            if !why.is_empty() && why != told {
                engine.note_step(cluster, &step, &why);
                told = why;
            }
            _ = tokio::time::timeout(pause, wake.notified()).await;
        }
    }
    Ok(true)
}
