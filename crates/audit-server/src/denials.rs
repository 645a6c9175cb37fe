//! What policy refuses before it reaches the domain is on record too.

use custody_audit::{Journal, Outcome, Record};
use custody_rpc::{CallContext, authentication::DenialSink};
use std::sync::Arc;

/// Puts refusals of the policy table on record.
#[must_use]
pub fn denial_sink(journal: Arc<Journal>) -> DenialSink {
    Arc::new(move |context: &CallContext, path: &str| {
        let begin = Record::begin(
            journal.now(),
            path.rsplit('/').next().unwrap_or(path),
            &context.correlation_id,
            &context.caller,
            path,
        );
        journal
            .append(&begin.finish(
                journal.now(),
                Outcome::Denied,
                "PERMISSION_DENIED",
                "the duty may not call this",
            ))
            .is_ok()
    })
}
