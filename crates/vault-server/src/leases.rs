//! The LeaseManager service: parse, call the domain on a worker, convert back.

use crate::{convert::failed, service::run};
use custody_proof::{Certified, Lease, Outcome};
use custody_proto::vault::{
    self as wire,
    lease_manager_server::{LeaseManager, LeaseManagerServer},
    lease_result::Result as Found,
};
use custody_rpc::{
    CallContext,
    page::cut,
    server::{MESSAGE_LEN_MAX, write_whole},
    status::{invalid, reason, status},
    timestamp::to_wire,
    token::TokenVerifier,
    workers::Workers,
};
use custody_types::{Caller, KeyName, KeyVersionName};
use custody_vault::{
    Call, Event, EventType, LeaseAsk, LeasePolicy, RevocationView, SignedLease, Vault, VaultError, gate::op,
};
use futures_util::future::join_all;
use std::{path::PathBuf, pin::Pin, sync::Arc, time::Duration};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Leases, or receipts, of one call.
pub(crate) const ASKED_MAX: usize = 1000;
/// A watch ends after this time, over or not.
const WATCH_TIME_MAX: Duration = Duration::from_secs(4000);
/// Between looks at which leases have run out.
const LAPSE_EVERY: Duration = Duration::from_millis(200);

pub(crate) struct LeaseService {
    vault: Arc<Vault>,
    events: broadcast::Sender<Event>,
    verifier: Arc<TokenVerifier>,
    workers: Workers,
}

/// What is asked for one version as one identity: one operation, with one record.
struct Group {
    call: Call,
    version: KeyVersionName,
    /// Where in the request.
    places: Vec<usize>,
    asks: Vec<LeaseAsk>,
}

/// Closes revocations whose leases have run out. Once the deployment is unsealed, `public` has the public key of proofs.
pub(crate) async fn close_due(vault: Arc<Vault>, public: PathBuf) {
    let mut every = tokio::time::interval(LAPSE_EVERY);
    let mut written = false;
    loop {
        every.tick().await;
        if let (false, Ok(key)) = (written, vault.proof_key()) {
            written = true;
            if let Err(e) = write_whole(&public, &format!("{key}\n")) {
                tracing::warn!(error = %e, "the public key of proofs is not beside the data");
            }
        }
        let vault = vault.clone();
        let look = move || {
            vault.settle_roles();
            vault.close_revocations()
        };
        if let Ok(Err(e)) = tokio::task::spawn_blocking(look).await {
            tracing::error!(error = %e, "a revocation was not closed");
        }
    }
}

impl LeaseService {
    pub(crate) fn server(
        vault: Arc<Vault>,
        events: broadcast::Sender<Event>,
        verifier: Arc<TokenVerifier>,
        workers: Workers,
    ) -> LeaseManagerServer<Self> {
        LeaseManagerServer::new(Self { vault, events, verifier, workers })
            .max_decoding_message_size(MESSAGE_LEN_MAX)
    }

    async fn run<R: Send + 'static, T: Send + 'static>(
        &self,
        request: Request<R>,
        act: impl FnOnce(&Vault, &Call, R) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        run(&self.vault, &self.workers, request, act).await
    }

    /// As whom a holding is held.
    async fn caller(&self, token: &str, address: &str) -> Result<Caller, Status> {
        let claims = self.verifier.verify(token).await?;
        Ok(Caller {
            principal: claims.sub,
            duty: claims.duty,
            token_id: claims.jti,
            address: address.to_owned(),
        })
    }

    /// Authorizes and records a group, then grants on a worker.
    async fn grant(&self, holder: &str, group: &Group) -> Result<Vec<SignedLease>, Status> {
        let admitted = self.vault.admit::<op::RenewLease>(group.call.clone(), group.version.as_str()).await;
        let admitted = admitted.map_err(|e| failed(self.vault.lease_refusal(e)))?;
        let (holder, asks) = (holder.to_owned(), group.asks.clone());
        let granted = self.workers.run(move || Ok(admitted.grant(&holder, &asks))).await?;
        granted.release().await.map_err(failed)
    }
}

/// The holder, by the certificate that it shows.
pub(crate) fn holder_of<T>(request: &Request<T>) -> Result<(CallContext, String), Status> {
    let context = CallContext::of(request)?;
    let why = "this call needs a client certificate that names a principal: the holder's";
    let missing = || status("UNAUTHENTICATED", "CLIENT_CERTIFICATE_REQUIRED", why, None);
    let holder = context.certificate.principal().ok_or_else(missing)?;
    Ok((context, holder))
}

pub(crate) fn too_many(field: &str) -> Status {
    invalid(field, "has more than 1,000 entries; send several calls")
}

fn span(given: Option<prost_types::Duration>, field: &str) -> Result<Option<Duration>, Status> {
    let bad = |_| invalid(field, "must not be negative");
    given.map(|d| Duration::try_from(d).map_err(bad)).transpose()
}

pub(crate) fn span_to_wire(span: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(span).ok()
}

fn lease(lease: &Lease, note: String) -> wire::Lease {
    wire::Lease {
        name: lease.lease.clone(),
        volume: lease.volume.clone(),
        key_version: lease.key_version.to_string(),
        epoch: lease.epoch,
        holder: lease.holder.clone(),
        managed_identity: lease.managed_identity.clone(),
        grant_time: Some(to_wire(lease.grant_time)),
        duration: span_to_wire(Duration::from_millis(lease.duration_ms)),
        grace: span_to_wire(Duration::from_millis(lease.grace_ms)),
        note,
    }
}

fn refusal(refused: &Status) -> wire::LeaseRefusal {
    wire::LeaseRefusal {
        code: refused.code().into(),
        reason: reason(refused),
        message: refused.message().to_owned(),
    }
}

fn revocation(view: RevocationView) -> wire::Revocation {
    let stated = view.revocation;
    let leases = stated.holders.into_iter().zip(&view.leases).map(|(holder, of)| wire::RevokedLease {
        lease: Some(lease(of, holder.lease)),
        reason: holder.reason,
        outcome: match &holder.outcome {
            Outcome::Waiting => wire::LeaseOutcome::Waiting,
            Outcome::Erased { .. } => wire::LeaseOutcome::Erased,
            Outcome::Lapsed { .. } => wire::LeaseOutcome::Lapsed,
            Outcome::Returned { .. } => wire::LeaseOutcome::Returned,
        }
        .into(),
        elapsed: holder.outcome.after().and_then(span_to_wire),
    });
    wire::Revocation {
        name: stated.revocation,
        cause: stated.cause,
        requested_by: stated.requested_by,
        revoke_time: Some(to_wire(stated.revoke_time)),
        close_time: stated.close_time.map(to_wire),
        leases: leases.collect(),
        proof: view.proof,
    }
}

fn policy_key(name: &str, field: &'static str) -> Result<KeyName, Status> {
    let key = name.strip_suffix("/leasePolicy").and_then(|key| key.parse().ok());
    key.ok_or_else(|| invalid(field, "must be vaults/VAULT/keys/KEY/leasePolicy"))
}

fn policy(p: LeasePolicy) -> wire::LeasePolicy {
    wire::LeasePolicy {
        name: format!("{}/leasePolicy", p.key),
        duration: p.duration.and_then(span_to_wire),
        grace: p.grace.and_then(span_to_wire),
        update_time: p.update_time.map(to_wire),
    }
}

#[tonic::async_trait]
impl LeaseManager for LeaseService {
    type WatchRevocationStream = Pin<Box<dyn Stream<Item = Result<wire::Revocation, Status>> + Send>>;

    async fn renew_leases(
        &self,
        request: Request<wire::RenewLeasesRequest>,
    ) -> Result<Response<wire::RenewLeasesResponse>, Status> {
        let (context, holder) = holder_of(&request)?;
        let holdings = request.into_inner().holdings;
        if holdings.iter().map(|h| h.leases.len()).sum::<usize>() > ASKED_MAX {
            return Err(too_many("holdings.leases"));
        }
        let mut results = Vec::new();
        let mut groups: Vec<Group> = Vec::new();
        for holding in holdings {
            let caller = self.caller(&holding.token, &context.caller.address).await;
            let first = groups.len();
            for asked in holding.leases {
                let place = results.len();
                let refused = caller.as_ref().err().map(|e| Found::Refusal(refusal(e)));
                results.push(wire::LeaseResult { volume: asked.volume.clone(), result: refused });
                let Ok(caller) = &caller else { continue };
                let version: KeyVersionName =
                    asked.key_version.parse().map_err(|e| invalid("holdings.leases.key_version", e))?;
                let duration = span(asked.duration, "holdings.leases.duration")?.unwrap_or_default();
                let ask = LeaseAsk::new(asked.volume, duration).map_err(failed)?;
                let of = groups.iter_mut().skip(first).find(|group| group.version == version);
                match of {
                    Some(group) => {
                        group.places.push(place);
                        group.asks.push(ask);
                    }
                    None => groups.push(Group {
                        call: Call::new(
                            caller.clone(),
                            format!("{}-{}", context.correlation_id, groups.len()),
                        ),
                        version,
                        places: vec![place],
                        asks: vec![ask],
                    }),
                }
            }
        }
        // All records wait for one flush together.
        let granted = join_all(groups.iter().map(|group| self.grant(&holder, group))).await;
        for (group, granted) in groups.iter().zip(granted) {
            let found: Vec<Found> = match granted {
                Ok(leases) => leases.into_iter().map(|l| Found::Lease(lease(&l.lease, l.note))).collect(),
                Err(e) => group.asks.iter().map(|_| Found::Refusal(refusal(&e))).collect(),
            };
            for (place, found) in group.places.iter().zip(found) {
                if let Some(result) = results.get_mut(*place) {
                    result.result = Some(found);
                }
            }
        }
        Ok(Response::new(wire::RenewLeasesResponse { results }))
    }

    async fn report_erasures(
        &self,
        request: Request<wire::ReportErasuresRequest>,
    ) -> Result<Response<wire::ReportErasuresResponse>, Status> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let (context, holder) = holder_of(&request)?;
        let receipts = request.into_inner().receipts;
        if receipts.len() > ASKED_MAX {
            return Err(too_many("receipts"));
        }
        let certified = |r: wire::ErasureReceipt| Certified {
            note: r.note,
            certificates: r.certificates.iter().map(|c| STANDARD.encode(c)).collect(),
        };
        let receipts: Vec<Certified> = receipts.into_iter().map(certified).collect();
        let caller = Caller { principal: holder, ..context.caller };
        let call = Call::new(caller, context.correlation_id);
        let vault = self.vault.clone();
        let taken = move || vault.take_receipts(&call, &receipts).map_err(failed);
        let records = self.workers.run(taken).await?;
        // Answered when the trail has them.
        let recorded = join_all(records.iter().map(|record| self.vault.record_in_task(record))).await;
        recorded.into_iter().collect::<Result<Vec<()>, VaultError>>().map_err(failed)?;
        Ok(Response::new(wire::ReportErasuresResponse {}))
    }

    async fn list_leases(
        &self,
        request: Request<wire::ListLeasesRequest>,
    ) -> Result<Response<wire::ListLeasesResponse>, Status> {
        self.run(request, |vault, call, r| {
            let all = vault.list_leases(call, &r.parent).map_err(failed)?;
            let place = |l: &SignedLease| format!("{} {}", l.lease.holder, l.lease.volume);
            let (page, next_page_token) = cut(all, r.page_size, &r.page_token, place)?;
            let leases = page.into_iter().map(|l| lease(&l.lease, l.note)).collect();
            Ok(wire::ListLeasesResponse { leases, next_page_token })
        })
        .await
    }

    async fn get_lease_policy(
        &self,
        request: Request<wire::GetLeasePolicyRequest>,
    ) -> Result<Response<wire::LeasePolicy>, Status> {
        self.run(request, |vault, call, r| {
            let key = policy_key(&r.name, "name")?;
            vault.get_lease_policy(call, &key).map(policy).map_err(failed)
        })
        .await
    }

    async fn update_lease_policy(
        &self,
        request: Request<wire::UpdateLeasePolicyRequest>,
    ) -> Result<Response<wire::LeasePolicy>, Status> {
        self.run(request, |vault, call, r| {
            let given = r.lease_policy.ok_or_else(|| invalid("lease_policy", "is required"))?;
            let given = LeasePolicy {
                key: policy_key(&given.name, "lease_policy.name")?,
                duration: span(given.duration, "lease_policy.duration")?,
                grace: span(given.grace, "lease_policy.grace")?,
                update_time: None,
            };
            vault.set_lease_policy(call, given).map(policy).map_err(failed)
        })
        .await
    }

    async fn revoke_key(
        &self,
        request: Request<wire::RevokeKeyRequest>,
    ) -> Result<Response<wire::Revocation>, Status> {
        self.run(request, |vault, call, r| vault.revoke_key(call, &r.name).map(revocation).map_err(failed))
            .await
    }

    async fn reinstate_key(
        &self,
        request: Request<wire::ReinstateKeyRequest>,
    ) -> Result<Response<wire::ReinstateKeyResponse>, Status> {
        self.run(request, |vault, call, r| {
            let enabled = vault.reinstate_key(call, &r.name).map_err(failed)?;
            let key_versions = enabled.iter().map(ToString::to_string).collect();
            Ok(wire::ReinstateKeyResponse { key_versions })
        })
        .await
    }

    async fn get_revocation(
        &self,
        request: Request<wire::GetRevocationRequest>,
    ) -> Result<Response<wire::Revocation>, Status> {
        self.run(request, |vault, call, r| {
            vault.get_revocation(call, &r.name).map(revocation).map_err(failed)
        })
        .await
    }

    async fn list_revocations(
        &self,
        request: Request<wire::ListRevocationsRequest>,
    ) -> Result<Response<wire::ListRevocationsResponse>, Status> {
        self.run(request, |vault, call, r| {
            let all = vault.list_revocations(call, &r.parent).map_err(failed)?;
            // Newest first.
            let place = |v: &RevocationView| format!("{:020}", u64::MAX - v.revocation.epoch);
            let (page, next_page_token) = cut(all, r.page_size, &r.page_token, place)?;
            let short = |view| wire::Revocation { proof: String::new(), ..revocation(view) };
            Ok(wire::ListRevocationsResponse {
                revocations: page.into_iter().map(short).collect(),
                next_page_token,
            })
        })
        .await
    }

    async fn watch_revocation(
        &self,
        request: Request<wire::WatchRevocationRequest>,
    ) -> Result<Response<Self::WatchRevocationStream>, Status> {
        // Subscribed before the first look, so that nothing between the two is missed.
        let mut events = self.events.subscribe();
        let name = request.get_ref().name.clone();
        let first = self
            .run(request, |vault, call, r| {
                vault.get_revocation(call, &r.name).map(revocation).map_err(failed)
            })
            .await?
            .into_inner();
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        let (vault, workers) = (self.vault.clone(), self.workers.clone());
        tokio::spawn(tokio::time::timeout(WATCH_TIME_MAX, async move {
            let mut next = Ok(first);
            loop {
                let over = next.as_ref().map_or(true, |r| r.close_time.is_some());
                if sender.send(next).await.is_err() || over {
                    return;
                }
                loop {
                    let received = tokio::select! {
                        received = events.recv() => received,
                        () = sender.closed() => return,
                    };
                    match received {
                        Ok(e) if e.kind == EventType::RevocationChanged && e.resource == name => break,
                        Err(RecvError::Lagged(_)) => break,
                        Err(RecvError::Closed) => return,
                        Ok(_) => {}
                    }
                }
                let (vault, name) = (vault.clone(), name.clone());
                let look = move || vault.watched_revocation(&name).map(revocation).map_err(failed);
                next = workers.run(look).await;
            }
        }));
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }

    async fn get_proof_key(
        &self,
        request: Request<wire::GetProofKeyRequest>,
    ) -> Result<Response<wire::ProofKey>, Status> {
        CallContext::of(&request)?;
        let key = self.vault.proof_key().map_err(failed)?;
        Ok(Response::new(wire::ProofKey { key }))
    }
}
