//! An OTLP collector that keeps what it is sent.

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    logs::v1::LogRecord,
    resource::v1::Resource,
    trace::v1::Span,
};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Server, ServerTlsConfig},
};

/// A span with the service it came from.
type Spans = Arc<Mutex<Vec<(String, Span)>>>;

/// What a collector says to the next export of logs.
type Answer = Result<ExportLogsServiceResponse, Status>;

/// A collector; it runs while it is served.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    spans: Spans,
    metrics: Arc<Mutex<Vec<String>>>,
    logs: Arc<Mutex<Vec<(String, LogRecord)>>>,
    answers: Arc<Mutex<Vec<Answer>>>,
    authorization: Arc<Mutex<String>>,
}

/// A collector's server, which ends with it.
#[derive(Debug)]
pub struct Serving {
    /// Where it listens, `host:port`.
    pub address: String,
    _end: oneshot::Sender<()>,
}

impl Collector {
    /// Serves it at an address until what is returned goes.
    ///
    /// # Errors
    /// The address is taken, or the certificates cannot be used.
    pub async fn serve(&self, address: &str, tls: Option<ServerTlsConfig>) -> anyhow::Result<Serving> {
        let listener = tokio::net::TcpListener::bind(address).await?;
        let address = listener.local_addr()?.to_string();
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls)?;
        }
        let serving = server
            .add_service(TraceServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()))
            .add_service(LogsServiceServer::new(self.clone()));
        let (end, ended) = oneshot::channel();
        let ended = async { _ = ended.await };
        tokio::spawn(serving.serve_with_incoming_shutdown(TcpListenerStream::new(listener), ended));
        Ok(Serving { address, _end: end })
    }

    /// What is said to the next exports of logs, last first; what is refused is not kept.
    pub fn answer(&self, answers: impl IntoIterator<Item = Answer>) {
        self.answers.lock().extend(answers);
    }

    /// Answers that are still to be given.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.answers.lock().len()
    }

    /// Every log record so far, in the order of its coming, with its service.
    #[must_use]
    pub fn logs(&self) -> Vec<(String, LogRecord)> {
        self.logs.lock().clone()
    }

    /// The last `authorization` that came with logs.
    #[must_use]
    pub fn authorization(&self) -> String {
        self.authorization.lock().clone()
    }

    /// Every span so far, with its service.
    #[must_use]
    pub fn spans(&self) -> Vec<(String, Span)> {
        self.spans.lock().clone()
    }

    /// The names of the metrics so far.
    #[must_use]
    pub fn metrics(&self) -> Vec<String> {
        self.metrics.lock().clone()
    }
}

fn service_of(resource: Option<Resource>) -> String {
    let attributes = resource.map(|r| r.attributes).unwrap_or_default();
    let name = attributes.into_iter().find(|a| a.key == "service.name").and_then(|a| a.value);
    name.map(|v| format!("{v:?}")).unwrap_or_default()
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        if let Some(authorization) = request.metadata().get("authorization").and_then(|v| v.to_str().ok()) {
            authorization.clone_into(&mut self.authorization.lock());
        }
        let answer = self.answers.lock().pop().unwrap_or_else(|| Ok(ExportLogsServiceResponse::default()))?;
        let mut logs = self.logs.lock();
        for resource in request.into_inner().resource_logs {
            let service = service_of(resource.resource);
            let records = resource.scope_logs.into_iter().flat_map(|s| s.log_records);
            logs.extend(records.map(|record| (service.clone(), record)));
        }
        Ok(Response::new(answer))
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let service = service_of(resource.resource);
            let spans = resource.scope_spans.into_iter().flat_map(|s| s.spans);
            self.spans.lock().extend(spans.map(|s| (service.clone(), s)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let names = request
            .into_inner()
            .resource_metrics
            .into_iter()
            .flat_map(|r| r.scope_metrics)
            .flat_map(|s| s.metrics)
            .map(|m| m.name);
        self.metrics.lock().extend(names);
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}
