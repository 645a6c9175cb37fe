//! Threads that compute, one for each core, shared fairly: callers take turns, however much each of them asks for.

use crate::{
    courier::Courier,
    status::{self, internal},
};
use parking_lot::{Condvar, Mutex};
use rustix::{process::setpriority_process, thread::gettid};
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::Arc,
};
use tokio::sync::oneshot;
use tonic::Status;
use tracing::Span;

/// Jobs of one caller that may wait; more are refused at once.
const CALLER_LEN_MAX: usize = 256;
/// Jobs of all callers that may wait.
const LEN_MAX: usize = 1024;

/// Most answers of one caller that are held back, to be given together, while it has as many more waiting: a caller that
/// asks for more than there is waits anyway, and an answer by itself costs both ends a wake-up and a record of TLS.
const TOGETHER: usize = 32;

/// Does its work, and answers with what gives the answer.
type Job = Box<dyn FnOnce() -> Answer + Send>;
type Answer = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queues {
    by_caller: HashMap<String, VecDeque<Job>>,
    /// Callers with jobs, each once, in the order of their turns.
    turns: VecDeque<String>,
    len: usize,
    closed: bool,
}

struct Shared {
    queues: Mutex<Queues>,
    work: Condvar,
    courier: Courier,
}

/// The threads. They end when the last handle goes.
#[derive(Clone)]
pub struct Compute {
    shared: Arc<Shared>,
    _end: Arc<End>,
}

/// How far the threads step back behind those that wait for the network and the disk (`setpriority(2)`): a private operation
/// takes a millisecond, and a scheduler that treats all threads alike lets a request wait for several at each of its steps.
const NICE: i32 = 10;

/// Lets other threads run first. On Linux a niceness is of a thread.
fn step_back() {
    if let Err(e) = setpriority_process(Some(gettid()), NICE) {
        tracing::debug!(error = %e, "compute threads run beside the others");
    }
}

/// Tells the threads that nobody is left to ask.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.queues.lock().closed = true;
        self.0.work.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        let mut held: Vec<Answer> = Vec::with_capacity(TOGETHER);
        loop {
            // What is held back waits for this thread's next job, never for nothing: another may have taken the rest.
            let next = self.queues.lock().next();
            let Some((job, behind)) = next else {
                self.give(&mut held);
                let mut queues = self.queues.lock();
                if queues.len == 0 {
                    if queues.closed {
                        return;
                    }
                    self.work.wait(&mut queues);
                }
                continue;
            };
            // A job that panics is one call that fails; the thread goes on.
            held.extend(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)));
            if held.len() > behind || held.len() >= TOGETHER {
                self.give(&mut held);
            }
        }
    }

    fn give(&self, held: &mut Vec<Answer>) {
        if !held.is_empty() {
            let answers = std::mem::replace(held, Vec::with_capacity(TOGETHER));
            self.courier.carry(Box::new(move || answers.into_iter().for_each(|answer| answer())));
        }
    }
}

impl Queues {
    fn push(&mut self, caller: &str, job: Job) -> bool {
        let there = self.by_caller.get_mut(caller);
        if self.len >= LEN_MAX || there.as_ref().is_some_and(|q| q.len() >= CALLER_LEN_MAX) {
            return false;
        }
        match there {
            Some(queue) => queue.push_back(job),
            None => {
                self.by_caller.insert(caller.to_owned(), VecDeque::from([job]));
                self.turns.push_back(caller.to_owned());
            }
        }
        self.len += 1;
        true
    }

    /// The job whose turn it is, and how many its caller has behind it.
    fn next(&mut self) -> Option<(Job, usize)> {
        let caller = self.turns.pop_front()?;
        let queue = self.by_caller.get_mut(&caller)?;
        let job = queue.pop_front()?;
        self.len -= 1;
        let behind = queue.len();
        if queue.is_empty() {
            self.by_caller.remove(&caller);
        } else {
            self.turns.push_back(caller);
        }
        Some((job, behind))
    }
}

impl Compute {
    /// Starts a thread for each core; answers go to tasks of the runtime that this is called in.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start() -> std::io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let shared =
            Arc::new(Shared { queues: Mutex::default(), work: Condvar::new(), courier: Courier::start() });
        for n in 0..threads {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("compute-{n}")).spawn(move || {
                step_back();
                shared.run();
            })?;
        }
        Ok(Self { _end: Arc::new(End(shared.clone())), shared })
    }

    /// Does a job of a caller, in its turn.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` where too many wait already; else the job's own error.
    pub async fn run<T: Send + 'static>(
        &self,
        caller: &str,
        job: impl FnOnce() -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let (done, answer) = oneshot::channel();
        let span = Span::current();
        let job = Box::new(move || -> Answer {
            let result = span.in_scope(job);
            Box::new(move || _ = done.send(result))
        });
        if !self.shared.queues.lock().push(caller, job) {
            let why = "the service is busy; try again with backoff";
            return Err(status::status("RESOURCE_EXHAUSTED", "LOAD_SHED", why, None));
        }
        self.shared.work.notify_one();
        answer.await.map_err(|_| internal())?
    }
}

impl fmt::Debug for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compute(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn callers_take_turns_and_a_flood_is_refused() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let mut queues = Queues::default();
        let job = |who: &'static str| -> Job {
            let said = said.clone();
            Box::new(move || {
                said.lock().push(who);
                Box::new(|| ())
            })
        };
        for _ in 0..CALLER_LEN_MAX {
            assert!(queues.push("flood", job("flood")));
        }
        assert!(!queues.push("flood", job("flood")), "its queue is full");
        assert!(queues.push("other", job("other")), "another's is not");
        for _ in 0..3 {
            let (job, _) = queues.next().unwrap();
            drop(job());
        }
        assert_eq!(*said.lock(), ["flood", "other", "flood"]);
        while let Some((job, _)) = queues.next() {
            drop(job());
        }
        assert_eq!((queues.len, queues.by_caller.len(), queues.turns.len()), (0, 0, 0));
        for n in 0..LEN_MAX {
            assert!(queues.push(&format!("c{n}"), job("c")));
        }
        assert!(!queues.push("one more", job("c")), "all queues together are bounded");
    }

    #[tokio::test]
    async fn what_is_held_back_is_given_when_the_rest_is_done() {
        let compute = Compute::start().unwrap();
        // Odd numbers of jobs, often, so that the threads end with different shares.
        for count in (9..60).cycle().take(2000) {
            let jobs = (0..count).map(|n| compute.run("a", move || Ok(n)));
            let all = futures_util::future::join_all(jobs);
            let all = tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
            assert!(all.into_iter().map(Result::unwrap).eq(0..count));
        }
    }

    #[tokio::test]
    async fn a_job_that_panics_fails_its_own_call_only() {
        let compute = Compute::start().unwrap();
        for _ in 0..8 {
            let failed = compute.run::<()>("a", || panic!("a test")).await.unwrap_err();
            assert_eq!(failed.code(), tonic::Code::Internal);
        }
        assert_eq!(compute.run("a", || Ok(7)).await.unwrap(), 7);
    }
}
