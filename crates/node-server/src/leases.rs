//! This node's leases: asked for together, one call for all volumes; and the receipts for those that have ended.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use custody_clients::{AccessError, Endpoint, Leases as Client, TokenSource, VaultAccess};
use custody_proof::{Certified, HolderKey, Receipt, VOLUME_KEY};
use custody_proto::vault::{
    ErasureReceipt, Holding, LeaseRequest, LeaseResult, RenewLeasesRequest, ReportErasuresRequest,
    lease_result::Result as Found,
};
use custody_types::{Clock as _, KeyVersionName, SystemClock, UnixMillis, VolumeName};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tonic::{Code, Status};
use tracing::{Instrument as _, Span};

/// Leases of one call, and receipts.
const ASKED_MAX: usize = 1000;
/// Asks that wait.
const QUEUE_LEN_MAX: usize = 4096;
/// How long an ask waits for others to go with it.
const GATHER: Duration = Duration::from_millis(2);
/// Calls under way: one that hangs must not hold up the next.
const CALLS_MAX: usize = 4;
/// Receipts that wait for the vault; the oldest is given up when there are more.
const RECEIPTS_MAX: usize = 10_000;
/// Between tries to hand receipts in.
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(5);
/// How long a node that ends tries to hand in its last receipts.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A lease that was granted.
#[derive(Clone, Debug)]
pub(crate) struct Granted {
    name: String,
    volume: String,
    key_version: KeyVersionName,
    epoch: u64,
    /// When it ends, by this node's monotonic clock: counted from when it was asked for.
    pub(crate) until: Duration,
    /// How long after it was asked for it is to be renewed.
    pub(crate) renew_after: Duration,
}

/// When something began, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    wall: UnixMillis,
    monotonic: Duration,
}

struct Asked {
    token: String,
    request: LeaseRequest,
    /// When, by the monotonic clock.
    at: Duration,
    /// What asks, so that the vault's answer is in its trace.
    span: Span,
    told: oneshot::Sender<Result<Granted, AccessError>>,
}

#[derive(Default)]
struct Receipts {
    waiting: Mutex<VecDeque<Certified>>,
    more: Notify,
    none: Notify,
}

/// A handle on the two tasks.
pub(crate) struct Leases {
    queue: mpsc::Sender<Asked>,
    receipts: Arc<Receipts>,
    key: HolderKey,
    holder: String,
    lease: Duration,
}

impl Leases {
    /// Starts asking a vault, as the principal of the certificate.
    pub(crate) fn start(
        vault: &Endpoint,
        identity: &Endpoint,
        key: HolderKey,
        lease: Duration,
    ) -> anyhow::Result<Self> {
        let tokens = TokenSource::workload(identity.clone(), "", "custody-vault");
        let client = Client::new(vault.authenticated(tokens));
        let (queue, asked) = mpsc::channel(QUEUE_LEN_MAX);
        let receipts = Arc::<Receipts>::default();
        tokio::spawn(gather(client.clone(), asked));
        tokio::spawn(hand_in(client, receipts.clone()));
        Ok(Self { queue, receipts, holder: key.principal()?, key, lease })
    }

    /// This moment.
    pub(crate) fn now(&self) -> Moment {
        Moment { wall: SystemClock.now(), monotonic: SystemClock.monotonic() }
    }

    /// Asks for a lease on what a key version opens, or to renew it.
    pub(crate) async fn ask(
        &self,
        access: &VaultAccess,
        volume: &VolumeName,
        key_version: &KeyVersionName,
    ) -> Result<Granted, AccessError> {
        let token = access.token().await?;
        let (told, answer) = oneshot::channel();
        let request = LeaseRequest {
            volume: volume.to_string(),
            key_version: key_version.to_string(),
            duration: prost_types::Duration::try_from(self.lease).ok(),
        };
        let asked = Asked { token, request, at: SystemClock.monotonic(), span: Span::current(), told };
        let ended = || AccessError::Unreachable("this node ends".to_owned());
        self.queue.send(asked).await.map_err(|_| ended())?;
        let answer = answer.await.map_err(|_| ended())?;
        if matches!(answer, Err(AccessError::TokenRefused(_))) {
            access.forget_token();
        }
        answer
    }

    /// Signs that what was held under a lease is erased, and hands that in. `noticed` is when this node learned that it must.
    pub(crate) fn report(&self, lease: &Granted, reason: &str, noticed: Moment) {
        let now = self.now();
        let took = now.monotonic.saturating_sub(noticed.monotonic);
        let receipt = Receipt {
            lease: lease.name.clone(),
            epoch: lease.epoch,
            key_version: lease.key_version.clone(),
            holder: self.holder.clone(),
            volume: lease.volume.clone(),
            reason: reason.to_owned(),
            erased: [VOLUME_KEY, "data keys", "log keys"].map(str::to_owned).into(),
            notice_time: noticed.wall,
            erase_time: now.wall,
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        };
        match Certified::sign(&receipt, &self.key) {
            Ok(certified) => {
                let mut waiting = self.receipts.waiting.lock();
                if waiting.len() == RECEIPTS_MAX {
                    tracing::error!("a receipt is given up: the vault has taken none for too long");
                    waiting.pop_front();
                }
                waiting.push_back(certified);
                self.receipts.more.notify_one();
            }
            Err(e) => tracing::error!(error = %e, "a receipt could not be signed"),
        }
    }

    /// Waits until the last receipts are handed in, for a bounded time.
    pub(crate) async fn last_words(&self) {
        let all = async {
            loop {
                let none = self.receipts.none.notified();
                tokio::pin!(none);
                // Before the look, so that what happens between the two is not missed.
                none.as_mut().enable();
                if self.receipts.waiting.lock().is_empty() {
                    return;
                }
                none.await;
            }
        };
        if tokio::time::timeout(LAST_WORDS, all).await.is_err() {
            tracing::warn!(
                "the vault did not take the last receipts; it waits until their leases have run out"
            );
        }
    }
}

/// Sends what is asked at about the same time as one call.
async fn gather(client: Client, mut queue: mpsc::Receiver<Asked>) {
    let calls = Arc::new(Semaphore::new(CALLS_MAX));
    while let Some(first) = queue.recv().await {
        let mut asked = vec![first];
        tokio::time::sleep(GATHER).await;
        while asked.len() < ASKED_MAX {
            match queue.try_recv() {
                Ok(next) => asked.push(next),
                Err(_) => break,
            }
        }
        let Ok(call) = calls.clone().acquire_owned().await else { return };
        let client = client.clone();
        // One call can be in one trace alone: in that of the first who has one.
        let traced = asked.iter().map(|one| &one.span).find(|span| !span.is_none());
        let span = traced.cloned().unwrap_or_else(Span::none);
        let renewing = async move {
            renew(client, asked).await;
            drop(call);
        };
        tokio::spawn(renewing.instrument(span));
    }
}

async fn renew(mut client: Client, asked: Vec<Asked>) {
    // One holding for each identity, in which the asks keep their order.
    let mut by_token: BTreeMap<String, Vec<Asked>> = BTreeMap::new();
    for one in asked {
        by_token.entry(one.token.clone()).or_default().push(one);
    }
    let holdings = by_token.iter().map(|(token, asked)| Holding {
        token: token.clone(),
        leases: asked.iter().map(|one| one.request.clone()).collect(),
    });
    let answer = client.renew_leases(RenewLeasesRequest { holdings: holdings.collect() }).await;
    let asked: Vec<Asked> = by_token.into_values().flatten().collect();
    match answer.map(tonic::Response::into_inner) {
        Ok(answer) if answer.results.len() == asked.len() => {
            for (one, result) in asked.into_iter().zip(answer.results) {
                let granted = granted(&one, result);
                _ = one.told.send(granted);
            }
        }
        Ok(_) => tell_all(asked, &malformed()),
        Err(e) => tell_all(asked, &of_call(&e)),
    }
}

/// What the failure of the call itself says: nothing of access, for the node asks as itself there.
fn of_call(e: &Status) -> AccessError {
    AccessError::Unreachable(e.message().to_owned())
}

fn tell_all(asked: Vec<Asked>, e: &AccessError) {
    for one in asked {
        _ = one.told.send(Err(e.clone()));
    }
}

fn malformed() -> AccessError {
    AccessError::Unreachable("the vault's answer is malformed".to_owned())
}

fn granted(asked: &Asked, result: LeaseResult) -> Result<Granted, AccessError> {
    let lease = match result.result {
        Some(Found::Lease(lease)) => lease,
        Some(Found::Refusal(r)) => {
            return Err(AccessError::new(Code::from_i32(r.code), r.reason, r.message));
        }
        None => return Err(malformed()),
    };
    let span =
        |d: Option<prost_types::Duration>| d.and_then(|d| Duration::try_from(d).ok()).ok_or_else(malformed);
    let (duration, grace) = (span(lease.duration)?, span(lease.grace)?);
    let key_version = lease.key_version.parse().map_err(|_| malformed())?;
    if lease.volume != asked.request.volume || lease.key_version != asked.request.key_version {
        return Err(malformed());
    }
    Ok(Granted {
        name: lease.name,
        volume: lease.volume,
        key_version,
        epoch: lease.epoch,
        until: asked.at + duration,
        renew_after: duration.saturating_sub(grace),
    })
}

/// Hands receipts in until the vault has taken them.
async fn hand_in(mut client: Client, receipts: Arc<Receipts>) {
    let (mut pause, mut at_once) = (*PAUSE.start(), ASKED_MAX);
    loop {
        let batch: Vec<Certified> = receipts.waiting.lock().iter().take(at_once).cloned().collect();
        if batch.is_empty() {
            at_once = ASKED_MAX;
            receipts.none.notify_waiters();
            receipts.more.notified().await;
            continue;
        }
        let wire = |c: &Certified| ErasureReceipt {
            note: c.note.clone(),
            certificates: c.certificates.iter().filter_map(|c| STANDARD.decode(c).ok()).collect(),
        };
        let request = ReportErasuresRequest { receipts: batch.iter().map(wire).collect() };
        match client.report_erasures(request).await {
            Ok(_) => {}
            // One of them: the others are not lost with it.
            Err(e) if e.code() == Code::InvalidArgument && batch.len() > 1 => {
                at_once = 1;
                continue;
            }
            Err(e) if e.code() == Code::InvalidArgument => {
                tracing::error!(error = e.message(), "the vault does not take a receipt");
            }
            Err(_) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(*PAUSE.end());
                continue;
            }
        }
        pause = *PAUSE.start();
        let mut waiting = receipts.waiting.lock();
        for taken in &batch {
            waiting.pop_front_if(|first| first == taken);
        }
    }
}
