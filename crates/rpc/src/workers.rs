//! A bounded pool for work that blocks: cryptography, disk flushes.

use crate::status::{self, internal};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tonic::Status;
use tracing::Span;

/// Runs blocking work off the async runtime, at most so much at once. What does not fit is refused at once, so
/// that a flood is answered instead of queued.
#[derive(Clone, Debug)]
pub struct Workers {
    room: Arc<Semaphore>,
}

impl Workers {
    /// For at most `queue_len_max` jobs, running and waiting.
    #[must_use]
    pub fn new(queue_len_max: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(queue_len_max)) }
    }

    /// Runs a job.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` where there is no room; else the job's own error.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let full = |_| {
            status::status(
                "RESOURCE_EXHAUSTED",
                "LOAD_SHED",
                "the service is busy; try again with backoff",
                None,
            )
        };
        let place = self.room.clone().try_acquire_owned().map_err(full)?;
        let span = Span::current();
        tokio::task::spawn_blocking(move || {
            let _place = place;
            span.in_scope(job)
        })
        .await
        .map_err(|_| internal())?
    }
}
