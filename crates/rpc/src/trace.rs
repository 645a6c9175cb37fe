//! W3C trace context over gRPC metadata.

use http::HeaderMap;
use opentelemetry::{
    global,
    propagation::{Extractor, Injector},
    trace::TraceContextExt as _,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|v| v.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (http::HeaderName::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(name, value);
        }
    }
}

/// Makes the caller's span the parent of `span`.
pub fn adopt(span: &Span, headers: &HeaderMap) {
    let parent = global::get_text_map_propagator(|p| p.extract(&Headers(headers)));
    _ = span.set_parent(parent);
}

/// Tells the callee of the current span.
pub fn inject(span: &Span, headers: &mut HeaderMap) {
    global::get_text_map_propagator(|p| p.inject_context(&span.context(), &mut HeadersMut(headers)));
}

/// The name of the W3C header that carries a span across a process.
const TRACE_PARENT: &str = "traceparent";

/// The span as a W3C `traceparent`, to be kept with work that outlives the call; empty where nothing is traced.
#[must_use]
pub fn trace_parent(span: &Span) -> String {
    let mut headers = HeaderMap::new();
    inject(span, &mut headers);
    headers.get(TRACE_PARENT).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
}

/// Makes a span that was kept as a `traceparent` the parent of `span`.
pub fn adopt_trace_parent(span: &Span, trace_parent: &str) {
    if let Ok(value) = trace_parent.parse()
        && !trace_parent.is_empty()
    {
        adopt(span, &HeaderMap::from_iter([(http::HeaderName::from_static(TRACE_PARENT), value)]));
    }
}

/// The trace id of a span, where it has one.
#[must_use]
pub fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let id = context.span().span_context().trace_id();
    (id != opentelemetry::TraceId::INVALID).then(|| id.to_string())
}
