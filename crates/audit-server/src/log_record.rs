//! A record of the trail as an OpenTelemetry log record.
//!
//! The body is the record, byte for byte as it is hashed: whoever has all bodies has the trail, and can check it against a
//! checkpoint. The attributes are the same for queries, Azure's names under `azure.`.

use custody_audit::{Entry, Outcome};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
};
use std::time::{SystemTime, UNIX_EPOCH};

/// The event of a record.
const RECORD: &str = "custody.audit.record";
/// The event of a checkpoint.
const CHECKPOINT: &str = "custody.audit.checkpoint";

fn text(value: impl Into<String>) -> Option<AnyValue> {
    Some(AnyValue { value: Some(Value::StringValue(value.into())) })
}

fn number(value: u64) -> Option<AnyValue> {
    Some(AnyValue { value: Some(Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX))) })
}

fn pair(key: &str, value: Option<AnyValue>) -> KeyValue {
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The trace that a call belonged to: its correlation id begins with it.
fn trace_id(correlation_id: &str) -> Vec<u8> {
    let trace = correlation_id.split('-').next().filter(|id| id.len() == 32);
    trace.and_then(|id| hex::decode(id).ok()).unwrap_or_default()
}

pub(crate) fn of_entry(entry: &Entry) -> LogRecord {
    let record = &entry.record;
    let (severity, severity_text) = match record.result_type {
        Outcome::Started | Outcome::Success => (SeverityNumber::Info, "INFO"),
        Outcome::Denied | Outcome::Failed => (SeverityNumber::Warn, "WARN"),
        _ => (SeverityNumber::Error, "ERROR"),
    };
    let named = [
        ("azure.category", &record.category),
        ("azure.operation.name", &record.operation_name),
        ("azure.correlation.id", &record.correlation_id),
        ("azure.resource.id", &record.resource_id),
        ("azure.result.type", &format!("{:?}", record.result_type)),
        ("azure.result.signature", &record.result_signature),
        ("azure.result.description", &record.result_description),
        ("user.id", &record.identity.principal),
        ("custody.duty", &record.identity.duty),
        ("client.address", &record.caller_ip_address),
        ("custody.audit.phase", &format!("{:?}", record.phase)),
        ("custody.audit.hash", &entry.hash),
    ];
    let named = named.into_iter().filter(|(_, value)| !value.is_empty());
    let numbers = [("azure.duration", record.duration_ms), ("custody.audit.sequence", entry.sequence)];
    LogRecord {
        time_unix_nano: record.time.as_millis().saturating_mul(1_000_000),
        observed_time_unix_nano: now_ns(),
        severity_number: severity.into(),
        severity_text: severity_text.to_owned(),
        body: text(entry.text.get()),
        attributes: named
            .map(|(key, value)| pair(key, text(value)))
            .chain(numbers.map(|(key, value)| pair(key, number(value))))
            .collect(),
        trace_id: trace_id(&record.correlation_id),
        event_name: RECORD.to_owned(),
        ..LogRecord::default()
    }
}

/// A checkpoint, which is signed: whoever has it finds what is altered or cut off later.
pub(crate) fn of_checkpoint(note: &str, tree_size: u64) -> LogRecord {
    LogRecord {
        time_unix_nano: now_ns(),
        observed_time_unix_nano: now_ns(),
        severity_number: SeverityNumber::Info.into(),
        severity_text: "INFO".to_owned(),
        body: text(note),
        attributes: vec![pair("custody.audit.tree_size", number(tree_size))],
        event_name: CHECKPOINT.to_owned(),
        ..LogRecord::default()
    }
}

/// Log records with who they are of.
pub(crate) fn of_trail(service: &str, trail: &str, log_records: Vec<LogRecord>) -> ResourceLogs {
    let attributes = vec![
        pair("service.name", text(service)),
        pair("service.namespace", text("custody")),
        pair("service.version", text(env!("CARGO_PKG_VERSION"))),
        pair("service.instance.id", text(std::process::id().to_string())),
        pair("custody.audit.trail", text(trail)),
    ];
    let scope = InstrumentationScope { name: "custody.audit".to_owned(), ..InstrumentationScope::default() };
    ResourceLogs {
        resource: Some(Resource { attributes, ..Resource::default() }),
        scope_logs: vec![ScopeLogs { scope: Some(scope), log_records, ..ScopeLogs::default() }],
        ..ResourceLogs::default()
    }
}
