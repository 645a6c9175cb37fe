//! Tracing and OTLP start-up. Audit is elsewhere: telemetry may be lost, sampled or off.
//!
//! Names follow OpenTelemetry's semantic conventions; ours stand under `custody.`.

mod fields;

use fields::LoggedFields;
use opentelemetry::{KeyValue, global, trace::TracerProvider as _};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{
    Resource, metrics::SdkMeterProvider, propagation::TraceContextPropagator, trace::SdkTracerProvider,
};
use std::fmt;
use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Attribute names of ours, each used in one spelling only.
pub mod attribute {
    /// The principal that calls.
    pub const USER_ID: &str = "user.id";
    /// A volume's name.
    pub const VOLUME: &str = "custody.volume.name";
    /// A cluster's name.
    pub const CLUSTER: &str = "custody.cluster.name";
    /// A key version's name.
    pub const KEY_VERSION: &str = "custody.key.version";
}

/// Telemetry could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The OTLP endpoint is malformed.
    #[error("`otlp_endpoint` cannot be used: {0}")]
    Endpoint(String),
}

/// Running telemetry; dropping it sends what is left.
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
}

/// Starts logging to standard error, and traces and metrics by OTLP where an endpoint is given. Call it within a
/// tokio runtime, once in a process.
///
/// # Errors
/// The endpoint is malformed.
pub fn start(service: &'static str, otlp_endpoint: Option<&str>) -> Result<Telemetry, TelemetryError> {
    let filter = EnvFilter::try_from_env("CUSTODY_LOG").unwrap_or_else(|_| EnvFilter::new("info,h2=warn,hyper=warn,tonic=warn,sled=warn,object_store=warn,opentelemetry=warn,opentelemetry_sdk=warn,opentelemetry-otlp=warn"));
    let log = tracing_subscriber::fmt::layer()
        .fmt_fields(LoggedFields)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_filter(filter);
    global::set_text_map_propagator(TraceContextPropagator::new());
    let Some(endpoint) = otlp_endpoint else {
        tracing_subscriber::registry().with(log).init();
        return Ok(Telemetry { traces: None, metrics: None });
    };
    let bad = |e: opentelemetry_otlp::ExporterBuildError| TelemetryError::Endpoint(e.to_string());
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(KeyValue::new("service.namespace", "custody"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", i64::from(std::process::id())))
        .build();
    let spans = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(bad)?;
    let traces =
        SdkTracerProvider::builder().with_batch_exporter(spans).with_resource(resource.clone()).build();
    let points = opentelemetry_otlp::MetricExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(bad)?;
    let metrics = SdkMeterProvider::builder().with_periodic_exporter(points).with_resource(resource).build();
    global::set_meter_provider(metrics.clone());
    let otel = tracing_opentelemetry::layer()
        .with_tracer(traces.tracer("custody"))
        .with_filter(EnvFilter::new("info,h2=off,hyper=off,tonic=off,tower=off"));
    tracing_subscriber::registry().with(log).with(otel).init();
    Ok(Telemetry { traces: Some(traces), metrics: Some(metrics) })
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(traces) = self.traces.take() {
            _ = traces.shutdown();
        }
        if let Some(metrics) = self.metrics.take() {
            _ = metrics.shutdown();
        }
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Telemetry(..)")
    }
}
