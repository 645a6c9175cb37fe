//! An operation under way, between its records.

use crate::{AuditUnavailable, Journal, Outcome, Record, waiters::Done};
use futures_channel::oneshot;
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

/// An operation whose begin is queued: it is not known whether that is on disk. Exactly one ends it, whoever goes away when:
/// this does, or the writer where it was refused and the record came on disk nevertheless.
pub(crate) struct Queued {
    pending: Option<Pending>,
    answer: oneshot::Receiver<Done>,
}

impl Queued {
    pub(crate) fn new(pending: Pending, answer: oneshot::Receiver<Done>) -> Self {
        Self { pending: Some(pending), answer }
    }

    /// Waits until it is on disk.
    pub(crate) async fn begun(mut self) -> Result<Pending, AuditUnavailable> {
        let answer = (&mut self.answer).await.map_err(|_| AuditUnavailable::Closed).flatten();
        let pending = self.pending.take().ok_or(AuditUnavailable::Failed)?;
        match answer {
            Ok(sequence) => Ok(pending.begun(sequence)),
            Err(e) => {
                pending.forget();
                Err(e)
            }
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        // Whoever comes with an answer from now on finds nobody, and leaves the end to this.
        self.answer.close();
        if let Ok(Some(Err(_))) = self.answer.try_recv() {
            pending.forget();
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FileLimits, Phase, writer::Command};
    use custody_types::{Caller, Duty, SystemClock};
    use std::{
        future::Future,
        pin::Pin,
        sync::mpsc,
        task::{Context, Poll, Waker},
    };

    type Beginning = Pin<Box<dyn Future<Output = Result<Pending, AuditUnavailable>>>>;

    fn begin(journal: &Arc<Journal>, id: &'static str) -> Beginning {
        let caller = Caller {
            principal: "principals/p".into(),
            duty: Duty::SecurityOfficer,
            token_id: "t".into(),
            address: "::1".into(),
        };
        let record = Record::begin(journal.now(), "KeyUnwrap", id, &caller, "vaults/v/keys/k");
        let journal = journal.clone();
        let mut begun: Beginning = Box::pin(async move { journal.begin_in_task(record).await });
        assert!(poll(&mut begun).is_pending());
        begun
    }

    fn poll(begun: &mut Beginning) -> Poll<Result<Pending, AuditUnavailable>> {
        begun.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_a_hung_disk_has_in_the_end_ends_once_whoever_went_away() {
        let dir = tempfile::tempdir().unwrap();
        let open =
            || Arc::new(Journal::open(dir.path(), Arc::new(SystemClock), FileLimits::default()).unwrap());
        let journal = open();
        // The writer hangs in giving this answer, as in a disk.
        let (hangs, disk) = mpsc::sync_channel(0);
        journal.queue.push(Command::Sign(hangs)).unwrap();
        let before = begin(&journal, "went away before it was refused");
        let after = begin(&journal, "went away with its refusal unread");
        let mut refused = begin(&journal, "was refused");
        drop(before);
        journal.shared.waiters.give_up();
        drop(after);
        assert!(matches!(poll(&mut refused), Poll::Ready(Err(AuditUnavailable::Hung))));
        let late = begin(&journal, "went away when the disk was about to answer");
        let mut stays = begin(&journal, "stayed");
        drop(late);
        disk.recv().unwrap().unwrap();
        let stayed = loop {
            match poll(&mut stays) {
                Poll::Ready(stayed) => break stayed.unwrap(),
                Poll::Pending => std::thread::yield_now(),
            }
        };
        stayed.finish(Outcome::Success, "OK", "");
        drop((refused, stays, journal));
        let all = open().read(0, 100).unwrap();
        let ends = |id: &str| -> Vec<Outcome> {
            let of_id = all.iter().filter(|e| e.record.correlation_id == id);
            let (begun, ended): (Vec<_>, Vec<_>) = of_id.partition(|e| e.record.phase == Phase::Begin);
            assert_eq!(begun.len(), 1, "{id}");
            ended.iter().map(|e| e.record.result_type).collect()
        };
        assert_eq!(ends("went away before it was refused"), [Outcome::Failed]);
        assert_eq!(ends("went away with its refusal unread"), [Outcome::Interrupted]);
        assert_eq!(ends("was refused"), [Outcome::Interrupted]);
        assert_eq!(ends("went away when the disk was about to answer"), [Outcome::Failed]);
        assert_eq!(ends("stayed"), [Outcome::Success]);
    }
}
