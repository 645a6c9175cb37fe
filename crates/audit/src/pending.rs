//! An operation under way, between its records.

use crate::{AuditUnavailable, Journal, Outcome, Record};
use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

/// Counted among what is under way for as long as it lives: a flush waits for company where there is much.
pub(crate) struct UnderWay(Arc<Journal>);

impl UnderWay {
    pub(crate) fn new(journal: &Arc<Journal>) -> Self {
        journal.shared.under_way.fetch_add(1, Ordering::Relaxed);
        Self(journal.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.shared.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An operation under way. Dropped without an end, it ends as [`Outcome::Failed`].
pub struct Pending {
    under_way: UnderWay,
    begin: Option<Record>,
    sequence: Option<u64>,
}

impl Pending {
    pub(crate) fn new(under_way: UnderWay, begin: Record, sequence: Option<u64>) -> Self {
        Self { under_way, begin: Some(begin), sequence }
    }

    /// The record that it began with is on disk, with this number.
    pub(crate) fn begun(mut self, sequence: u64) -> Self {
        self.sequence = Some(sequence);
        self
    }

    /// There is nothing to end: the record that it was to begin with is not on disk.
    pub(crate) fn forget(mut self) {
        self.begin = None;
    }

    /// The number of the record that it began with; none where its end is its only record.
    #[must_use]
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// Ends the operation. The record is queued, not waited for: what happened has happened, and a process that
    /// dies before the write leaves an open begin, which the next start ends as interrupted.
    pub fn finish(mut self, outcome: Outcome, signature: &str, description: &str) {
        self.send(outcome, signature, description);
    }

    /// Ends the operation and returns the number of that record once it is on disk.
    ///
    /// # Errors
    /// The record is not on disk.
    pub fn conclude(
        mut self,
        outcome: Outcome,
        signature: &str,
        description: &str,
    ) -> Result<u64, AuditUnavailable> {
        let end = self.end(outcome, signature, description).ok_or(AuditUnavailable::Failed)?;
        self.under_way.0.append(&end)
    }

    /// As [`Pending::conclude`], for a task: it waits for the group flush without holding a thread.
    ///
    /// # Errors
    /// The record is not on disk, or too many wait already.
    pub async fn conclude_in_task(
        mut self,
        outcome: Outcome,
        signature: &str,
        description: &str,
    ) -> Result<u64, AuditUnavailable> {
        let end = self.end(outcome, signature, description).ok_or(AuditUnavailable::Failed)?;
        self.under_way.0.append_in_task(&end).await
    }

    /// The record that ends it, once.
    fn end(&mut self, outcome: Outcome, signature: &str, description: &str) -> Option<Record> {
        let begin = self.begin.take()?;
        Some(begin.finish(self.under_way.0.now(), outcome, signature, description))
    }

    fn send(&mut self, outcome: Outcome, signature: &str, description: &str) {
        if let Some(end) = self.end(outcome, signature, description) {
            self.under_way.0.queue_end(&end);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.send(Outcome::Failed, "INTERNAL", "the operation ended without an outcome");
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}
