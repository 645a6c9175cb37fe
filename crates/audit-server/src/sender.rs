//! Sends a trail to a collector of OpenTelemetry logs, in order and at least once: the trail itself is the queue, so that nothing
//! is lost while a collector is away, and nothing is held in memory for it.

use crate::{
    log_record::{of_checkpoint, of_entry, of_trail},
    settings::{AuditSettingsError, OtlpSettings},
};
use custody_audit::{Journal, TreeHead};
use custody_rpc::{server, tls::Credentials};
use opentelemetry_proto::tonic::{
    collector::logs::v1::{ExportLogsServiceRequest, logs_service_client::LogsServiceClient},
    logs::v1::LogRecord,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tonic::{
    Code, Request, Status,
    metadata::{MetadataKey, MetadataMap, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_types::StatusExt as _;

/// Most records in a message: some 600 KiB, of the 4 MiB that a collector takes.
const BATCH_LEN_MAX: usize = 512;
/// How often it is looked whether there are new records.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a collector may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between tries, doubled up to the longest.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often it is noted how far the collector has come.
const NOTE_EVERY: Duration = Duration::from_secs(1);

/// How far a collector has come.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sent {
    /// The trail that it is of.
    trail: String,
    /// The number of the last record that the collector has taken.
    pub(crate) seq: u64,
    /// Records that it said it will never take.
    pub(crate) rejected: u64,
}

/// What is known of the sending, for whoever asks.
#[derive(Debug)]
pub(crate) struct Sending {
    pub(crate) endpoint: String,
    pub(crate) sent: Mutex<Sent>,
    /// Why the last try failed; empty after one that did not.
    pub(crate) error: Mutex<String>,
}

pub(crate) struct Sender {
    journal: Arc<Journal>,
    service: &'static str,
    client: LogsServiceClient<Channel>,
    headers: MetadataMap,
    sending: Arc<Sending>,
    place: PathBuf,
    noted: (u64, Instant),
    checkpoint_every: Duration,
    /// The size of the tree of the last checkpoint that was sent, and when.
    checkpoint: Option<(u64, Instant)>,
    batch_len: usize,
}

/// Why a batch was not taken.
enum Failure {
    Trail(String),
    Collector(Status),
}

fn bad(why: impl Into<String>) -> AuditSettingsError {
    AuditSettingsError::Field { field: "otlp.endpoint", why: why.into() }
}

fn endpoint(settings: &OtlpSettings, credentials: &Credentials) -> Result<Endpoint, AuditSettingsError> {
    let url = &settings.endpoint;
    let place = Endpoint::from_shared(url.clone());
    let place = place.map_err(|_| bad(format!("`{url}` is not of the form https://host:port")))?;
    if place.uri().authority().is_none_or(|authority| authority.as_str().contains('@')) {
        return Err(bad(
            "must be of the form https://host:port; what authenticates goes into `audit.otlp.headers`",
        ));
    }
    let place = place.connect_timeout(DEADLINE).timeout(DEADLINE);
    match (place.uri().scheme_str(), &settings.ca) {
        (Some("http"), None) => Ok(place),
        (Some("http"), Some(_)) => Err(bad("has no certificate to check with `audit.otlp.ca`; say https://")),
        (Some("https"), ca) => {
            let tls = match ca {
                Some(ca) => {
                    let read = std::fs::read(ca);
                    let why = |e| format!("`{}` cannot be read: {e}", ca.display());
                    let pem =
                        read.map_err(|e| AuditSettingsError::Field { field: "otlp.ca", why: why(e) })?;
                    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
                }
                None => credentials.client(),
            };
            place.tls_config(tls).map_err(|e| bad(format!("or its certificates cannot be used: {e}")))
        }
        _ => Err(bad("must begin with https:// or http://")),
    }
}

fn headers(settings: &OtlpSettings) -> Result<MetadataMap, AuditSettingsError> {
    let mut map = MetadataMap::new();
    for (name, value) in &settings.headers.0 {
        let bad = |why: String| AuditSettingsError::Field { field: "otlp.headers", why };
        let key = MetadataKey::from_bytes(name.to_lowercase().as_bytes());
        let key = key.map_err(|_| bad(format!("`{name}` is not a header's name")))?;
        let mut value = MetadataValue::try_from(value.as_str())
            .map_err(|_| bad(format!("the value of `{name}` has characters that a header may not have")))?;
        value.set_sensitive(true);
        map.insert(key, value);
    }
    Ok(map)
}

impl Sender {
    /// For the trail whose journal is in `dir`.
    pub(crate) fn new(
        journal: Arc<Journal>,
        dir: &std::path::Path,
        settings: &OtlpSettings,
        credentials: &Credentials,
        service: &'static str,
    ) -> Result<Self, AuditSettingsError> {
        let client = LogsServiceClient::new(endpoint(settings, credentials)?.connect_lazy());
        let place = dir.join("sent.json");
        // Without it, or with another trail's, all is sent again: a collector tells records apart by their numbers.
        let sent = std::fs::read(&place).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let sent = sent.filter(|sent: &Sent| sent.trail == journal.name() && sent.seq <= journal.written());
        let sent = sent.unwrap_or_else(|| Sent { trail: journal.name().to_owned(), ..Sent::default() });
        let noted = (sent.seq, Instant::now());
        let sending =
            Sending { endpoint: settings.endpoint.clone(), sent: Mutex::new(sent), error: Mutex::default() };
        Ok(Self {
            journal,
            service,
            client,
            headers: headers(settings)?,
            sending: Arc::new(sending),
            place,
            noted,
            checkpoint_every: Duration::from_secs(settings.checkpoint_every_s),
            checkpoint: None,
            batch_len: BATCH_LEN_MAX,
        })
    }

    pub(crate) fn sending(&self) -> Arc<Sending> {
        self.sending.clone()
    }

    /// Sends until it is told to stop.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut retry = RETRY_MIN;
        loop {
            let step = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                step = self.step() => step,
            };
            let wait = match step {
                Ok(more) => {
                    self.sending.error.lock().clear();
                    retry = RETRY_MIN;
                    self.batch_len = (self.batch_len * 2).min(BATCH_LEN_MAX);
                    if more { Duration::ZERO } else { LOOK_EVERY }
                }
                Err(failure) => {
                    let wait = self.failed(failure).unwrap_or(retry);
                    retry = (retry * 2).min(RETRY_MAX);
                    wait
                }
            };
            if wait > Duration::ZERO || self.noted.1.elapsed() >= NOTE_EVERY {
                self.note().await;
            }
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.note().await;
    }

    /// Sends what comes next; whether there was anything.
    async fn step(&mut self) -> Result<bool, Failure> {
        let after = self.sending.sent.lock().seq;
        if self.journal.written() > after {
            let (journal, len) = (self.journal.clone(), self.batch_len);
            let read = tokio::task::spawn_blocking(move || journal.read(after, len)).await;
            let entries = match read {
                Ok(read) => read.map_err(|e| Failure::Trail(e.to_string()))?,
                Err(e) => return Err(Failure::Trail(e.to_string())),
            };
            if let Some(last) = entries.last().map(|entry| entry.sequence) {
                let rejected = self.export(entries.iter().map(of_entry).collect()).await?;
                let mut sent = self.sending.sent.lock();
                sent.seq = last;
                sent.rejected += rejected;
                return Ok(true);
            }
        }
        self.send_checkpoint(after).await
    }

    /// Sends a checkpoint of records that the collector has, where it is time for one.
    async fn send_checkpoint(&mut self, sent: u64) -> Result<bool, Failure> {
        let due = self.checkpoint.is_none_or(|(_, at)| at.elapsed() >= self.checkpoint_every);
        let Some(note) = self.journal.checkpoint().filter(|_| due) else { return Ok(false) };
        let Some(TreeHead { size, .. }) = TreeHead::stated(&note) else { return Ok(false) };
        if size > sent || self.checkpoint.is_some_and(|(before, _)| before == size) {
            return Ok(false);
        }
        let rejected = self.export(vec![of_checkpoint(&note, size)]).await?;
        self.sending.sent.lock().rejected += rejected;
        self.checkpoint = Some((size, Instant::now()));
        Ok(true)
    }

    /// Sends; answers how many were refused for good.
    async fn export(&mut self, records: Vec<LogRecord>) -> Result<u64, Failure> {
        let resource_logs = vec![of_trail(self.service, self.journal.name(), records)];
        let mut request = Request::new(ExportLogsServiceRequest { resource_logs });
        *request.metadata_mut() = self.headers.clone();
        request.set_timeout(DEADLINE);
        let answer = self.client.export(request).await.map_err(Failure::Collector)?.into_inner();
        let refused = answer.partial_success.filter(|partial| partial.rejected_log_records > 0);
        Ok(refused.map_or(0, |partial| {
            let (rejected, why) = (partial.rejected_log_records, partial.error_message);
            tracing::error!(
                rejected,
                why,
                "the collector refused audit records for good; the trail has them"
            );
            u64::try_from(rejected).unwrap_or(0)
        }))
    }

    /// Notes why it failed; how long the collector wants to be left alone, if it says so. A collector that refuses is asked
    /// again, whatever the reason: what it wants may be put right, and no record is left out for it.
    fn failed(&mut self, failure: Failure) -> Option<Duration> {
        let (why, wait) = match failure {
            Failure::Trail(why) => (why, Some(RETRY_MAX)),
            Failure::Collector(status) => {
                // It may have been too long for it.
                if matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange | Code::InvalidArgument)
                {
                    self.batch_len = (self.batch_len / 4).max(1);
                }
                let wait = status.get_details_retry_info().and_then(|info| info.retry_delay);
                (format!("{:?}: {}", status.code(), status.message()), wait)
            }
        };
        let mut error = self.sending.error.lock();
        if *error != why {
            tracing::warn!(
                endpoint = self.sending.endpoint,
                why,
                "audit records cannot be sent; they wait in the trail"
            );
            *error = why;
        }
        wait.map(|wait| wait.min(RETRY_MAX))
    }

    /// Notes how far the collector has come, so that a start goes on there.
    async fn note(&mut self) {
        let sent = self.sending.sent.lock().clone();
        if sent.seq == self.noted.0 {
            return;
        }
        self.noted = (sent.seq, Instant::now());
        let place = self.place.clone();
        let write = move || {
            let text = serde_json::to_string(&sent).map_err(std::io::Error::other)?;
            server::write_whole(&place, &text)
        };
        // One that is not there costs no more than sending again.
        if !matches!(tokio::task::spawn_blocking(write).await, Ok(Ok(()))) {
            self.noted.0 = 0;
        }
    }
}
