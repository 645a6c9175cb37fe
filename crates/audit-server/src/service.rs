//! The AuditLog service over any trail.

use crate::{Keeper, keeper::Keeping};
use custody_audit::{Entry, Journal, tree::Hash};
use custody_proto::audit::{
    AuditRecord, AuditSending, AuditTrail, Checkpoint, ConsistencyProof, GetCheckpointRequest,
    GetConsistencyProofRequest, GetInclusionProofRequest, GetTrailRequest, InclusionProof,
    ListRecordsRequest, ListRecordsResponse, TailRecordsRequest,
    audit_log_server::{AuditLog, AuditLogServer},
};
use custody_rpc::{
    CallContext, page,
    status::{invalid, status},
    timestamp,
    workers::Workers,
};
use custody_types::UnixMillis;
use std::{fmt, pin::Pin, sync::Arc, time::Duration};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// A trail that can be read.
pub trait Trail: Send + Sync + 'static {
    /// What it is written to.
    fn journal(&self) -> &Journal;

    /// Up to `max` records after number `after` that the caller may read, with the number of the last one looked
    /// at, which lies further where records were left out.
    ///
    /// # Errors
    /// The caller may not, or the trail cannot be read.
    fn read(&self, context: &CallContext, after: u64, max: usize) -> Result<(Vec<Entry>, u64), Status>;
}

fn wire(e: &Entry) -> AuditRecord {
    AuditRecord { sequence: e.sequence, hash: e.hash.clone(), json: e.text.get().to_owned() }
}

/// Serves a trail.
pub struct AuditLogService<T> {
    trail: Arc<T>,
    workers: Workers,
    keeping: Arc<Keeping>,
}

impl<T: Trail> AuditLogService<T> {
    /// As a gRPC service.
    #[must_use]
    pub fn server(trail: Arc<T>, workers: Workers, keeper: &Keeper) -> AuditLogServer<Self> {
        AuditLogServer::new(Self { trail, workers, keeping: keeper.keeping() })
    }
}

impl<T> fmt::Debug for AuditLogService<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuditLogService(..)")
    }
}

/// How often a tail looks for new records.
const TAIL_PAUSE: Duration = Duration::from_millis(100);
/// Records fetched at once.
const FETCH: usize = 1000;

#[tonic::async_trait]
impl<T: Trail> AuditLog for AuditLogService<T> {
    type TailRecordsStream = Pin<Box<dyn Stream<Item = Result<AuditRecord, Status>> + Send>>;

    async fn list_records(
        &self,
        request: Request<ListRecordsRequest>,
    ) -> Result<Response<ListRecordsResponse>, Status> {
        let context = CallContext::of(&request)?;
        let request = request.into_inner();
        let size = page::size(request.page_size)?;
        let after = match page::after(&request.page_token)?.as_str() {
            "" => 0,
            number => {
                number.parse().map_err(|_| invalid("page_token", "must come from an earlier answer"))?
            }
        };
        let trail = self.trail.clone();
        let wanted = Wanted::new(request)?;
        self.workers
            .run(move || {
                let mut records = Vec::new();
                let mut after: u64 = after;
                loop {
                    let (fetched, last) = trail.read(&context, after, FETCH)?;
                    if last <= after {
                        break;
                    }
                    for entry in &fetched {
                        let wanted = wanted.is(entry);
                        if wanted && records.len() == size {
                            let token = page_token(records.last());
                            return Ok(Response::new(ListRecordsResponse {
                                records,
                                next_page_token: token,
                            }));
                        }
                        if wanted {
                            records.push(wire(entry));
                        }
                    }
                    after = last;
                }
                Ok(Response::new(ListRecordsResponse { records, next_page_token: String::new() }))
            })
            .await
    }

    async fn get_trail(&self, _: Request<GetTrailRequest>) -> Result<Response<AuditTrail>, Status> {
        let (journal, keeping) = (self.trail.journal(), &self.keeping);
        let sending = keeping.sending.as_ref().map(|sending| {
            let sent = sending.sent.lock().clone();
            AuditSending {
                endpoint: sending.endpoint.clone(),
                sent_sequence: sent.seq,
                rejected_records: sent.rejected,
                error: sending.error.lock().clone(),
            }
        });
        Ok(Response::new(AuditTrail {
            name: journal.name().to_owned(),
            first_sequence: journal.first(),
            last_sequence: journal.written(),
            retention: keeping.retention.and_then(|retention| retention.try_into().ok()),
            retention_error: keeping.error.lock().clone(),
            sending,
        }))
    }

    async fn get_checkpoint(&self, _: Request<GetCheckpointRequest>) -> Result<Response<Checkpoint>, Status> {
        let note = self.trail.journal().checkpoint().unwrap_or_default();
        Ok(Response::new(Checkpoint { note }))
    }

    async fn get_inclusion_proof(
        &self,
        request: Request<GetInclusionProofRequest>,
    ) -> Result<Response<InclusionProof>, Status> {
        let (r, trail) = (request.into_inner(), self.trail.clone());
        let prove = move || proof_of(trail.journal().inclusion_proof(r.sequence, r.tree_size), "sequence");
        Ok(Response::new(InclusionProof { hashes: self.workers.run(prove).await? }))
    }

    async fn get_consistency_proof(
        &self,
        request: Request<GetConsistencyProofRequest>,
    ) -> Result<Response<ConsistencyProof>, Status> {
        let (r, trail) = (request.into_inner(), self.trail.clone());
        let prove =
            move || proof_of(trail.journal().consistency_proof(r.first_size, r.second_size), "first_size");
        Ok(Response::new(ConsistencyProof { hashes: self.workers.run(prove).await? }))
    }

    async fn tail_records(
        &self,
        request: Request<TailRecordsRequest>,
    ) -> Result<Response<Self::TailRecordsStream>, Status> {
        let context = CallContext::of(&request)?;
        let mut after = request.into_inner().after_sequence;
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        let (trail, workers) = (self.trail.clone(), self.workers.clone());
        tokio::spawn(async move {
            while !sender.is_closed() {
                let (trail, context) = (trail.clone(), context.clone());
                match workers.run(move || trail.read(&context, after, FETCH)).await {
                    Ok((records, last)) => {
                        after = last.max(after);
                        for record in records {
                            if sender.send(Ok(wire(&record))).await.is_err() {
                                return;
                            }
                        }
                    }
                    Err(e) => {
                        _ = sender.send(Err(e)).await;
                        return;
                    }
                }
                tokio::time::sleep(TAIL_PAUSE).await;
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }
}

/// Which records a caller wants.
struct Wanted {
    request: ListRecordsRequest,
    from: UnixMillis,
    before: UnixMillis,
}

impl Wanted {
    fn new(request: ListRecordsRequest) -> Result<Self, Status> {
        let time = |t: Option<prost_types::Timestamp>, field, default| match t {
            Some(t) => timestamp::from_wire(&t, field),
            None => Ok(UnixMillis::from_millis(default)),
        };
        Ok(Self {
            from: time(request.start_time, "start_time", 0)?,
            before: time(request.end_time, "end_time", u64::MAX)?,
            request,
        })
    }

    fn is(&self, entry: &Entry) -> bool {
        let (wanted, record) = (&self.request, &entry.record);
        let any_or = |wanted: &String, is: &str| wanted.is_empty() || wanted == is;
        record.resource_id.starts_with(&wanted.resource_prefix)
            && any_or(&wanted.principal, &record.identity.principal)
            && any_or(&wanted.operation, &record.operation_name)
            && (wanted.result.is_empty() || format!("{:?}", record.result_type) == wanted.result)
            && record.result_description.contains(&wanted.description_part)
            && (self.from..self.before).contains(&record.time)
    }
}

fn proof_of(hashes: std::io::Result<Vec<Hash>>, field: &'static str) -> Result<Vec<Vec<u8>>, Status> {
    match hashes {
        Ok(hashes) => Ok(hashes.iter().map(|hash| hash.to_vec()).collect()),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => Err(invalid(field, e)),
        Err(_) => {
            let why = "the hashes of the tree cannot be read now; ask again, and where it stays so, a restart of the service makes them anew";
            Err(status("UNAVAILABLE", "AUDIT_UNAVAILABLE", why, None))
        }
    }
}

fn page_token(last: Option<&AuditRecord>) -> String {
    page::token(last.map(|r| r.sequence.to_string()).as_deref())
}
