//! An OTLP collector that keeps what it is sent.

use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    trace::v1::Span,
};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// A span with the service it came from.
type Spans = Arc<Mutex<Vec<(String, Span)>>>;

/// A running collector.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    spans: Spans,
    metrics: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    /// Starts one and answers it with its address.
    ///
    /// # Errors
    /// No port.
    pub async fn start() -> anyhow::Result<(Self, String)> {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        let serving = Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .add_service(MetricsServiceServer::new(collector.clone()));
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok((collector, address))
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

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.map(|r| r.attributes).unwrap_or_default();
            let service = attributes
                .iter()
                .find(|a| a.key == "service.name")
                .and_then(|a| a.value.clone())
                .map(|v| format!("{v:?}"))
                .unwrap_or_default();
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
