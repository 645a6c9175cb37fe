//! Gives tasks their answers from a task of the runtime.
//!
//! A thread that answers one task after another is interrupted by the first: the runtime's thread which that wakes takes its
//! core, finds a single answer, sends it and sleeps, and so for each. Carried, all of a batch are given before anybody looks.

use std::fmt;
use tokio::sync::mpsc;

/// Gives the answers of a batch.
pub type Answers = Box<dyn FnOnce() + Send>;

/// The task. It ends with its last handle.
#[derive(Clone)]
pub struct Courier(mpsc::UnboundedSender<Answers>);

impl Courier {
    /// Starts it on the runtime that this is called in. What waits for it is bounded by those who wait for an answer.
    #[must_use]
    pub fn start() -> Self {
        let (sender, mut batches) = mpsc::unbounded_channel::<Answers>();
        tokio::spawn(async move {
            while let Some(give) = batches.recv().await {
                give();
            }
        });
        Self(sender)
    }

    /// Has a batch given; at once where the runtime has ended.
    pub fn carry(&self, answers: Answers) {
        if let Err(refused) = self.0.send(answers) {
            (refused.0)();
        }
    }
}

impl fmt::Debug for Courier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Courier(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{runtime::Runtime, sync::oneshot};

    #[test]
    fn answers_are_given_with_the_runtime_and_without() {
        let runtime = Runtime::new().unwrap();
        let courier = {
            let _entered = runtime.enter();
            Courier::start()
        };
        let ask = || {
            let (give, answer) = oneshot::channel();
            courier.carry(Box::new(move || _ = give.send(7)));
            answer
        };
        assert_eq!(runtime.block_on(ask()), Ok(7));
        drop(runtime);
        assert_eq!(ask().blocking_recv(), Ok(7));
    }
}
