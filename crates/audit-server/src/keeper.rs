//! Keeps a trail: has its oldest files removed when their time has come, and sends it.

use crate::{
    sender::{Sender, Sending},
    settings::{AuditSettings, AuditSettingsError, DAY},
};
use custody_audit::{FileLimits, Journal, OpenJournalError, Retention, RetentionError};
use custody_rpc::{
    ServerSettings,
    courier::Courier,
    server,
    tls::{Credentials, TlsError},
};
use custody_types::{Caller, Clock, Duty};
use parking_lot::Mutex;
use std::{fmt, path::Path, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle};

/// How often it is looked whether there is something to remove.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What is known of how a trail is kept, for whoever asks.
#[derive(Debug)]
pub(crate) struct Keeping {
    pub(crate) retention: Option<Duration>,
    /// Why nothing was removed the last time it was due.
    pub(crate) error: Mutex<String>,
    pub(crate) sending: Option<Arc<Sending>>,
}

/// Why a trail cannot be written and kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrailError {
    /// The settings cannot be used.
    #[error(transparent)]
    Settings(#[from] AuditSettingsError),
    /// The service's certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The journal cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenJournalError),
}

/// Opens or makes the trail of a service, in `audit` below its data, and begins to keep it. Call it within a tokio runtime.
///
/// # Errors
/// See [`TrailError`].
pub fn open(
    server: &ServerSettings,
    settings: &AuditSettings,
    service: &'static str,
    clock: Arc<dyn Clock>,
) -> Result<(Arc<Journal>, Keeper), TrailError> {
    settings.check()?;
    let dir = server.data.join("audit");
    // A retention removes files, so that none of them may hold too many days.
    let limits = FileLimits { age: settings.retention().map(|_| DAY), ..FileLimits::default() };
    let journal = Arc::new(Journal::open(&dir, clock.clone(), limits)?);
    let courier = Courier::start();
    journal.answer_through(move |answers| courier.carry(answers));
    let credentials = server::credentials(server)?;
    let keeper = Keeper::start(&journal, &dir, settings, &credentials, service, clock)?;
    Ok((journal, keeper))
}

/// The tasks that keep a trail.
pub struct Keeper {
    keeping: Arc<Keeping>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Keeper {
    fn start(
        journal: &Arc<Journal>,
        dir: &Path,
        settings: &AuditSettings,
        credentials: &Credentials,
        service: &'static str,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuditSettingsError> {
        let sender = settings.otlp.as_ref();
        let sender = sender.map(|otlp| Sender::new(journal.clone(), dir, otlp, credentials, service));
        let sender = sender.transpose()?;
        let keeping = Arc::new(Keeping {
            retention: settings.retention(),
            error: Mutex::default(),
            sending: sender.as_ref().map(Sender::sending),
        });
        let (stop, stopped) = watch::channel(false);
        let mut tasks = Vec::new();
        if let Some(sender) = sender {
            tasks.push(tokio::spawn(sender.run(stopped.clone())));
        }
        if settings.retention_days.is_some() {
            let retirement = Retirement {
                journal: journal.clone(),
                settings: settings.clone(),
                keeping: keeping.clone(),
                clock,
                caller: Caller {
                    principal: format!("principals/{service}"),
                    duty: Duty::Workload,
                    token_id: String::new(),
                    address: String::new(),
                },
            };
            tasks.push(tokio::spawn(retirement.run(stopped)));
        }
        Ok(Self { keeping, stop, tasks })
    }

    pub(crate) fn keeping(&self) -> Arc<Keeping> {
        self.keeping.clone()
    }

    /// Ends what is under way: what was not sent is sent after the next start.
    pub async fn stop(self) {
        _ = self.stop.send(true);
        for task in self.tasks {
            _ = task.await;
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("keeping", &self.keeping).finish_non_exhaustive()
    }
}

/// Removes what is older than a trail's retention.
struct Retirement {
    journal: Arc<Journal>,
    settings: AuditSettings,
    keeping: Arc<Keeping>,
    clock: Arc<dyn Clock>,
    caller: Caller,
}

impl Retirement {
    async fn run(self, mut stop: watch::Receiver<bool>) {
        let this = Arc::new(self);
        loop {
            let now = this.clone();
            if tokio::task::spawn_blocking(move || now.retire()).await.is_err() {
                tracing::error!("removing old audit records failed");
            }
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn retire(&self) {
        let Some(before) = self.settings.before(&*self.clock) else { return };
        // What the collector does not have yet stays until it has.
        let up_to = self.keeping.sending.as_ref().map_or(u64::MAX, |sending| sending.sent.lock().seq);
        let retention = Retention { before, up_to, archive: self.settings.archive.as_deref() };
        let why = match self.journal.retire(&self.caller, retention) {
            Ok(None) => String::new(),
            Ok(Some(removed)) => {
                let (files, last) = (removed.files, removed.last);
                tracing::info!(files, last, "old audit records are removed");
                String::new()
            }
            Err(e) => chain(&e),
        };
        let mut error = self.keeping.error.lock();
        if *error != why && !why.is_empty() {
            tracing::error!(why, "old audit records cannot be removed");
        }
        *error = why;
    }
}

fn chain(e: &RetentionError) -> String {
    let source = std::error::Error::source(e).map(|source| format!(": {source}"));
    format!("{e}{}", source.unwrap_or_default())
}
