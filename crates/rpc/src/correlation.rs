//! Ids that tie audit records to a trace, unique for each call.

use crate::trace;
use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher as _, Hasher as _},
    sync::atomic::{AtomicU64, Ordering},
};
use tracing::Span;

/// The header, or metadata, of an answer that says under which number the trail has the call.
pub const AUDIT_SEQUENCE: &str = "custody-audit-sequence";

/// Gives ids; one for each face of a process.
#[derive(Debug)]
pub struct CorrelationIds {
    face: u64,
    next: AtomicU64,
}

impl Default for CorrelationIds {
    fn default() -> Self {
        Self { face: RandomState::new().build_hasher().finish(), next: AtomicU64::new(0) }
    }
}

impl CorrelationIds {
    /// The id of a call with this span: its trace, the face, and a number.
    #[must_use]
    pub fn next(&self, span: &Span) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let trace = trace::trace_id(span).unwrap_or_else(|| format!("{:016x}", self.face));
        format!("{trace}-{:08x}-{number:x}", self.face as u32)
    }
}
