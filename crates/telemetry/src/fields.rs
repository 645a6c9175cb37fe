//! What the log has of a span or an event: what a reader of it looks for, and not what only traces are read for.

use std::{error::Error, fmt};
use tracing::{
    field::{Field, Visit},
    span::Record,
};
use tracing_subscriber::{
    field::{RecordFields, VisitOutput as _},
    fmt::{
        FormatFields, FormattedFields,
        format::{DefaultVisitor, Writer},
    },
};

/// Of each call's span. The log has its method and its caller; what came of it is known after its last line.
const OF_TRACES: [&str; 5] = ["otel.name", "otel.kind", "rpc.system.name", "rpc.status_code", "error.type"];

fn is_logged(field: &Field) -> bool {
    !OF_TRACES.contains(&field.name())
}

/// Formats as `tracing_subscriber` does, all fields but those of traces.
#[derive(Debug)]
pub(crate) struct LoggedFields;

impl<'w> FormatFields<'w> for LoggedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Visitor(DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        visitor.0.finish()
    }

    fn add_fields(&self, current: &'w mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        let is_empty = current.fields.is_empty();
        let mut visitor = Visitor(DefaultVisitor::new(current.as_writer(), is_empty));
        fields.record(&mut visitor);
        visitor.0.finish()
    }
}

struct Visitor<'a>(DefaultVisitor<'a>);

impl Visit for Visitor<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if is_logged(field) {
            self.0.record_str(field, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        if is_logged(field) {
            self.0.record_error(field, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if is_logged(field) {
            self.0.record_debug(field, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io,
        sync::{Arc, Mutex},
    };
    use tracing::field::Empty;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_says_whose_call_it_was_and_nothing_for_traces() {
        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(LoggedFields)
            .with_ansi(false)
            .without_time()
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!(
                "rpc.server",
                otel.name = "a/B",
                rpc.method = "a/B",
                rpc.status_code = Empty,
                user.id = Empty
            );
            span.record("user.id", "principals/p\n");
            span.record("rpc.status_code", "OK");
            span.in_scope(|| tracing::warn!(n = 1, "said"));
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let context = r#"rpc.server{rpc.method="a/B" user.id="principals/p\n"}"#;
        assert_eq!(text, format!(" WARN {context}: custody_telemetry::fields::tests: said n=1\n"));
    }
}
