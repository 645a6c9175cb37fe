//! One supervisor for each instance: it owns the PostgreSQL process and is the only one to start or stop it.

use crate::wal::{Archiving, Carrier};
use custody_clients::Storage;
use custody_database::{DatabaseError, Installation, Instance, InstanceSpec, RecoveryProgress};
use custody_proto::storage::{VolumeState, WatchVolumeRequest};
use custody_rpc::status::{internal, status};
use custody_types::PassingReason;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tonic::Status;

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Starting,
    Running,
    Stopped,
    Inaccessible,
    Failed,
    RecoveryFailed,
}

/// What others see of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) spec: InstanceSpec,
    pub(crate) state: State,
    pub(crate) reason: String,
    /// Bytes of the data volume, as the server has it.
    pub(crate) volume_len: u64,
}

pub(crate) enum Command {
    Start,
    /// Stop; `true` also keeps it stopped over a restart of the node.
    Stop(bool, oneshot::Sender<()>),
    Link(Vec<(String, String)>, oneshot::Sender<Result<(), Status>>),
    Remove(oneshot::Sender<()>),
}

pub(crate) struct Supervised {
    pub(crate) view: watch::Receiver<View>,
    pub(crate) archiving: watch::Receiver<Archiving>,
    pub(crate) commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
}

/// All instances of this node.
pub(crate) struct Fleet {
    data: PathBuf,
    installation: Option<Installation>,
    storage: Storage,
    wal_program: PathBuf,
    instances: Mutex<BTreeMap<String, Arc<Supervised>>>,
}

/// Between attempts to start what could not be started.
const RETRY: Duration = Duration::from_secs(1);
/// Between looks at whether the server still runs.
const LOOK: Duration = Duration::from_millis(250);

impl Fleet {
    /// Takes up the instances found on disk.
    pub(crate) fn open(
        data: PathBuf,
        installation: Option<Installation>,
        storage: Storage,
        wal_program: PathBuf,
    ) -> anyhow::Result<Arc<Self>> {
        let fleet = Arc::new(Self { data, installation, storage, wal_program, instances: Mutex::default() });
        for entry in fs::read_dir(&fleet.data)?.filter_map(Result::ok) {
            if let Ok(spec) = InstanceSpec::read(&entry.path()) {
                fleet.supervise(spec)?;
            }
        }
        Ok(fleet)
    }

    fn dir(&self, id: &str) -> PathBuf {
        self.data.join(id)
    }

    fn supervise(&self, spec: InstanceSpec) -> anyhow::Result<Arc<Supervised>> {
        let installation = self.installation.clone().ok_or(custody_database::NoPostgres)?;
        let (sender, view) = watch::channel(View {
            spec: spec.clone(),
            state: State::Starting,
            reason: String::new(),
            volume_len: 0,
        });
        let (commands, inbox) = mpsc::channel(8);
        let (told, archiving) = watch::channel(Archiving::default());
        let supervisor = Supervisor {
            dir: self.dir(&spec.id),
            id: spec.id.clone(),
            spec,
            view: sender,
            storage: self.storage.clone(),
            wal_program: self.wal_program.clone(),
            archiving: told,
            instance: None,
            volume_len: 0,
            up: false,
            given_up: false,
        };
        let task = tokio::spawn(supervisor.run(installation, inbox));
        let supervised = Arc::new(Supervised { view, archiving, commands, task });
        self.instances.lock().insert(supervised.view.borrow().spec.id.clone(), supervised.clone());
        Ok(supervised)
    }

    pub(crate) fn get(&self, id: &str) -> Result<Arc<Supervised>, Status> {
        let found = self.instances.lock().get(id).cloned();
        found.ok_or_else(|| {
            status("NOT_FOUND", "NOT_FOUND", &format!("`instances/{id}` does not exist on this node"), None)
        })
    }

    pub(crate) fn list(&self) -> Vec<Arc<Supervised>> {
        self.instances.lock().values().cloned().collect()
    }

    /// Makes an instance, or answers the one that is there if it is the same.
    pub(crate) fn create(&self, spec: InstanceSpec) -> Result<Arc<Supervised>, Status> {
        if self.installation.is_none() {
            return Err(status(
                "FAILED_PRECONDITION",
                "POSTGRES_MISSING",
                &custody_database::NoPostgres.to_string(),
                None,
            ));
        }
        if let Ok(there) = self.get(&spec.id) {
            let same = {
                let view = there.view.borrow();
                (&view.spec.volume, &view.spec.archive) == (&spec.volume, &spec.archive)
            };
            let exists = || {
                status(
                    "ALREADY_EXISTS",
                    "ALREADY_EXISTS",
                    &format!("`instances/{}` exists on another volume, or with another archive", spec.id),
                    None,
                )
            };
            return if same { Ok(there) } else { Err(exists()) };
        }
        spec.write(&self.dir(&spec.id))
            .map_err(|e| status("INTERNAL", "STORAGE_FAILED", &e.to_string(), None))?;
        self.supervise(spec).map_err(|_| internal())
    }

    pub(crate) async fn remove(&self, id: &str) -> Result<(), Status> {
        let supervised = self.get(id)?;
        let (done, removed) = oneshot::channel();
        supervised.commands.send(Command::Remove(done)).await.map_err(|_| internal())?;
        removed.await.map_err(|_| internal())?;
        self.instances.lock().remove(id);
        Ok(())
    }

    /// Stops everything in the ordinary way.
    pub(crate) async fn close(&self) {
        let all: Vec<_> = self.instances.lock().values().cloned().collect();
        for supervised in all {
            let (done, stopped) = oneshot::channel();
            if supervised.commands.send(Command::Stop(false, done)).await.is_ok() {
                _ = stopped.await;
            }
            supervised.task.abort();
        }
    }
}

struct Supervisor {
    dir: PathBuf,
    id: String,
    spec: InstanceSpec,
    view: watch::Sender<View>,
    storage: Storage,
    wal_program: PathBuf,
    archiving: watch::Sender<Archiving>,
    instance: Option<Instance>,
    /// Bytes of the data volume, as the server has it.
    volume_len: u64,
    /// Whether anything of it may be running.
    up: bool,
    /// Whether it cannot be what was asked for, however often it is tried.
    given_up: bool,
}

/// What the storage node last said of the data volume.
#[derive(Clone, Debug, Default)]
struct VolumeNews {
    ready: bool,
    reason: String,
    socket: PathBuf,
    len: u64,
}

impl Supervisor {
    async fn run(mut self, installation: Installation, mut inbox: mpsc::Receiver<Command>) {
        let (dir, wal_program, progress) =
            (self.dir.clone(), self.wal_program.clone(), RecoveryProgress::default());
        let carrier =
            Carrier::new(self.spec.clone(), self.storage.clone(), progress.clone(), self.archiving.clone());
        self.instance =
            tokio::task::spawn_blocking(move || Instance::new(dir, installation, wal_program, progress))
                .await
                .ok();
        let dir = self.dir.clone();
        let carrying = (self.spec.archive.is_some() || self.spec.recovery.is_some())
            .then(|| tokio::spawn(async move { carrier.run(&dir).await }));
        let (news_sender, mut news) = watch::channel(VolumeNews {
            reason: PassingReason::Starting.to_string(),
            ..VolumeNews::default()
        });
        let watching =
            tokio::spawn(watch_volume(self.storage.clone(), self.spec.volume.clone(), news_sender));
        let mut looks = tokio::time::interval(LOOK);
        let mut retry_at = tokio::time::Instant::now();
        loop {
            tokio::select! {
                // Whether the volume can be used comes before everything else.
                biased;
                changed = news.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    retry_at = tokio::time::Instant::now();
                }
                command = inbox.recv() => match command {
                    None => break,
                    Some(Command::Start) => {
                        self.want(true, true);
                        self.set(State::Starting, "");
                    }
                    Some(Command::Stop(keep, done)) => {
                        self.want(false, keep);
                        self.halt(false).await;
                        self.set(State::Stopped, "");
                        _ = done.send(());
                    }
                    Some(Command::Link(workers, answer)) => {
                        let linked = self.link(workers).await;
                        _ = answer.send(linked);
                    }
                    Some(Command::Remove(done)) => {
                        self.halt(false).await;
                        let dir = self.dir.clone();
                        _ = tokio::task::spawn_blocking(move || fs::remove_dir_all(dir)).await;
                        _ = done.send(());
                        break;
                    }
                },
                _ = looks.tick() => {}
            }
            let now = news.borrow().clone();
            if !now.ready {
                if self.view.borrow().state == State::Running {
                    tracing::warn!(
                        instance = self.id,
                        reason = now.reason,
                        "volume inaccessible; stopping PostgreSQL at once"
                    );
                }
                self.halt(true).await;
                if self.spec.wanted {
                    self.set(State::Inaccessible, &now.reason);
                }
                continue;
            }
            if self.up && now.len > self.volume_len && self.running() {
                tracing::info!(
                    instance = self.id,
                    len = now.len,
                    "the volume has grown; starting PostgreSQL with all of it"
                );
                self.halt(false).await;
                retry_at = tokio::time::Instant::now();
            }
            if self.spec.wanted
                && !self.given_up
                && tokio::time::Instant::now() >= retry_at
                && !self.running()
            {
                self.volume_len = now.len;
                self.bring_up(&now.socket, &mut news).await;
                retry_at = tokio::time::Instant::now() + RETRY;
            }
        }
        watching.abort();
        if let Some(carrying) = carrying {
            carrying.abort();
        }
    }

    fn set(&self, state: State, reason: &str) {
        self.view.send_if_modified(|view| {
            let next = View {
                spec: self.spec.clone(),
                state,
                reason: reason.to_owned(),
                volume_len: self.volume_len,
            };
            let changed = *view != next;
            *view = next;
            changed
        });
    }

    fn want(&mut self, wanted: bool, keep: bool) {
        self.spec.wanted = wanted;
        if !keep {
            return;
        }
        if let Err(e) = self.spec.write(&self.dir) {
            tracing::error!(instance = self.id, error = %e, "the instance's record was not written");
        }
    }

    fn running(&mut self) -> bool {
        self.instance.as_mut().is_some_and(Instance::running)
    }

    /// Starts it on a thread. If the volume goes away meanwhile, the failure of the start tells.
    async fn bring_up(&mut self, socket: &Path, news: &mut watch::Receiver<VolumeNews>) {
        self.set(State::Starting, "");
        self.up = true;
        let Some(mut instance) = self.instance.take() else { return };
        let (mut spec, socket) = (self.spec.clone(), socket.to_owned());
        let started = tokio::task::spawn_blocking(move || {
            let done = instance.up(&mut spec, &socket);
            (instance, spec, done)
        })
        .await;
        let Ok((instance, spec, done)) = started else { return };
        (self.instance, self.spec) = (Some(instance), spec);
        match done {
            Ok(()) => {
                tracing::info!(instance = self.id, port = self.spec.port, "PostgreSQL serving");
                self.set(State::Running, "");
            }
            Err(_) if !news.borrow_and_update().ready => {}
            Err(e @ DatabaseError::Recovery(_)) => {
                tracing::error!(instance = self.id, error = %e, "PostgreSQL not recovered");
                self.given_up = true;
                self.set(State::RecoveryFailed, &e.to_string());
            }
            Err(e) => {
                tracing::warn!(instance = self.id, error = %e, "PostgreSQL not started; trying again");
                self.set(State::Failed, &e.to_string());
            }
        }
    }

    async fn halt(&mut self, at_once: bool) {
        if !std::mem::take(&mut self.up) {
            return;
        }
        let Some(mut instance) = self.instance.take() else { return };
        self.instance = tokio::task::spawn_blocking(move || {
            if at_once {
                instance.stop_now()
            } else {
                instance.stop()
            }
            instance
        })
        .await
        .ok();
    }

    async fn link(&mut self, workers: Vec<(String, String)>) -> Result<(), Status> {
        if !self.running() {
            return Err(status("FAILED_PRECONDITION", "NOT_RUNNING", "the coordinator does not run", None));
        }
        let Some(instance) = self.instance.take() else { return Err(internal()) };
        let spec = self.spec.clone();
        let (instance, linked) = tokio::task::spawn_blocking(move || {
            let linked = instance.link_workers(&spec, &workers);
            (instance, linked)
        })
        .await
        .map_err(|_| internal())?;
        self.instance = Some(instance);
        linked.map_err(|e| status("INTERNAL", "LINK_FAILED", &e.to_string(), None))
    }
}

/// Follows the volume's state. A storage node that cannot be asked says nothing of access: what was known holds,
/// and if its process is gone the bridge has ended, which the next look finds.
async fn watch_volume(storage: Storage, volume: String, news: watch::Sender<VolumeNews>) {
    let name = format!("volumes/{volume}");
    while !news.is_closed() {
        match storage.clone().watch_volume(WatchVolumeRequest { name: name.clone() }).await {
            Ok(stream) => {
                let mut stream = stream.into_inner();
                while let Ok(Some(volume)) = stream.message().await {
                    let ready = volume.state == i32::from(VolumeState::Ready);
                    news.send_replace(VolumeNews {
                        ready,
                        reason: volume.state_reason,
                        socket: volume.nbd_socket.into(),
                        len: u64::try_from(volume.size_bytes).unwrap_or(0),
                    });
                }
            }
            Err(e) => tracing::debug!(volume, error = %e.message(), "the volume cannot be watched"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
