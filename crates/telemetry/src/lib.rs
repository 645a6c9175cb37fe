//! Tracing and OTLP start-up, attribute names.
