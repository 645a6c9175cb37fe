//! The AuditLog service over any trail.

use crate::{CallContext, page, status::invalid, workers::Workers};
use custody_proto::audit::{
    AuditRecord, ListRecordsRequest, ListRecordsResponse, TailRecordsRequest,
    audit_log_server::{AuditLog, AuditLogServer},
};
use std::{fmt, pin::Pin, sync::Arc, time::Duration};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// A trail that can be read.
pub trait Trail: Send + Sync + 'static {
    /// Up to `max` records after number `after` that the caller may read, with the number of the last one looked
    /// at, which lies further where records were left out.
    ///
    /// # Errors
    /// The caller may not, or the trail cannot be read.
    fn read(&self, context: &CallContext, after: u64, max: usize) -> Result<(Vec<AuditRecord>, u64), Status>;
}

/// Serves a trail.
pub struct AuditLogService<T> {
    trail: Arc<T>,
    workers: Workers,
}

impl<T: Trail> AuditLogService<T> {
    /// As a gRPC service.
    #[must_use]
    pub fn server(trail: Arc<T>, workers: Workers) -> AuditLogServer<Self> {
        AuditLogServer::new(Self { trail, workers })
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
        self.workers
            .run(move || {
                let mut records = Vec::new();
                let mut after: u64 = after;
                loop {
                    let (fetched, last) = trail.read(&context, after, FETCH)?;
                    if last <= after {
                        break;
                    }
                    for record in fetched {
                        let wanted = request.resource_prefix.is_empty()
                            || record.json.contains(&format!("\"resourceId\":\"{}", request.resource_prefix));
                        if wanted && records.len() == size {
                            let token = page_token(records.last());
                            return Ok(Response::new(ListRecordsResponse {
                                records,
                                next_page_token: token,
                            }));
                        }
                        if wanted {
                            records.push(record);
                        }
                    }
                    after = last;
                }
                Ok(Response::new(ListRecordsResponse { records, next_page_token: String::new() }))
            })
            .await
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
                            if sender.send(Ok(record)).await.is_err() {
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

fn page_token(last: Option<&AuditRecord>) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    last.map(|r| URL_SAFE_NO_PAD.encode(r.sequence.to_string())).unwrap_or_default()
}
