//! The Operations service on the wire.

use crate::{
    convert,
    engine::{Engine, ledger_failed},
};
use custody_control::OperationRecord;
use custody_proto::longrunning::{
    GetOperationRequest, ListOperationsRequest, ListOperationsResponse, Operation, WaitOperationRequest,
    operations_server::{Operations, OperationsServer},
};
use custody_rpc::{page::cut, status::invalid};
use std::{sync::Arc, time::Duration};
use tonic::{Request, Response, Status};

pub(crate) struct OperationsService {
    engine: Arc<Engine>,
}

/// Longest wait in one call.
const WAIT_MAX: Duration = Duration::from_secs(20);

impl OperationsService {
    pub(crate) fn server(engine: Arc<Engine>) -> OperationsServer<Self> {
        OperationsServer::new(Self { engine })
    }

    fn find(&self, name: &str) -> Result<OperationRecord, Status> {
        let id = name
            .strip_prefix("operations/")
            .ok_or_else(|| invalid("name", "must be of the form operations/{operation}"))?;
        self.engine.ledger.operation(id).map_err(ledger_failed)
    }

    fn view(&self, record: &OperationRecord) -> Operation {
        let response = match record.target.split_once('/') {
            Some(("clusters", _)) => {
                self.engine.ledger.cluster(&record.target).ok().map(|c| convert::cluster_any(&c))
            }
            Some(("backups", id)) => self.engine.ledger.backup(id).ok().map(|b| convert::backup_any(&b)),
            _ => None,
        };
        convert::operation(record, response)
    }
}

#[tonic::async_trait]
impl Operations for OperationsService {
    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let r = request.into_inner();
        let all = self.engine.ledger.operations().map_err(ledger_failed)?;
        let numbered: Vec<_> = all.into_iter().enumerate().collect();
        let (page, next_page_token) = cut(numbered, r.page_size, &r.page_token, |(i, _)| format!("{i:08}"))?;
        Ok(Response::new(ListOperationsResponse {
            operations: page.iter().map(|(_, o)| self.view(o)).collect(),
            next_page_token,
        }))
    }

    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        Ok(Response::new(self.view(&self.find(&request.get_ref().name)?)))
    }

    async fn wait_operation(
        &self,
        request: Request<WaitOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let r = request.into_inner();
        let asked = r.timeout.and_then(|t| Duration::try_from(t).ok()).unwrap_or(WAIT_MAX);
        let until = tokio::time::Instant::now() + asked.min(WAIT_MAX);
        loop {
            let finished = self.engine.finished.notified();
            let record = self.find(&r.name)?;
            if record.result.is_some() || tokio::time::timeout_at(until, finished).await.is_err() {
                return Ok(Response::new(self.view(&self.find(&r.name)?)));
            }
        }
    }
}
