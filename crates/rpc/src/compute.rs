//! Threads that compute, one for each core, shared fairly: callers take turns, however much each of them asks for.
//!
//! A job may wait for a part of it to be done at once with the same part of others. What collects such parts and does them, a
//! thread has for itself and its jobs; this module knows of it only how to make one and that it is to be told when to begin.

use crate::{
    courier::Courier,
    status::{self, internal},
};
use custody_thread::Share;
use parking_lot::{Condvar, Mutex};
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::sync::oneshot;
use tonic::Status;
use tracing::{Instrument as _, Span};

/// Jobs of one caller that may wait; more are refused at once.
const CALLER_LEN_MAX: usize = 256;
/// Jobs of all callers that may wait.
const LEN_MAX: usize = 1024;

/// Most answers of one caller that are held back, to be given together, while it has as many more waiting: a caller that
/// asks for more than there is waits anyway, and an answer by itself costs both ends a wake-up and a record of TLS.
const TOGETHER: usize = 32;

/// Work that has begun, on the thread that has it, and ends with what gives the answer.
type Running<'a> = Pin<Box<dyn Future<Output = Answer> + 'a>>;
/// Begins work beside `B`, which does parts of it at once with those of others.
type Job<B> = Box<dyn for<'a> FnOnce(&'a B) -> Running<'a> + Send>;
type Answer = Box<dyn FnOnce() + Send>;

/// What does parts of jobs at once.
pub struct AtOnce<B> {
    /// Makes one, for a thread.
    pub make: Box<dyn Fn() -> B + Send + Sync>,
    /// Parts that are worth waiting for.
    pub len_max: usize,
    /// Does all parts that wait.
    pub perform: fn(&B),
}

struct Queues<B> {
    by_caller: HashMap<String, VecDeque<Job<B>>>,
    /// Callers with jobs, each once, in the order of their turns.
    turns: VecDeque<String>,
    len: usize,
    closed: bool,
}

struct Shared<B> {
    queues: Mutex<Queues<B>>,
    work: Condvar,
    courier: Courier,
    at_once: AtOnce<B>,
    /// Whether the threads may go behind everybody and come back.
    standing_changes: bool,
}

/// The threads. They end when the last handle goes.
pub struct Compute<B> {
    shared: Arc<Shared<B>>,
    _end: Arc<End<B>>,
}

impl<B> Clone for Compute<B> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), _end: self._end.clone() }
    }
}

/// How far the threads step back behind those that wait for the network and the disk, the kernel's own among them: a scheduler
/// that treats all threads alike lets a request wait for several private operations at each of its steps.
const NICENESS: i32 = 10;
/// How long they may go on where another thread wakes up. Linux keeps what it has chosen for a slice of some milliseconds, and
/// the next look may be a tick of four after that.
const SLICE: Duration = Duration::from_micros(100);

/// Jobs that wait from which on there is a flood: more is asked for than can be done, and who asks for little should not wait for
/// that at each step of a call.
const FLOOD: usize = 16;

/// How the threads stand behind others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// By their niceness: they get on also on a machine that others keep busy.
    Back,
    /// Behind everybody, while there is a flood.
    Last,
}

impl Standing {
    /// Whether the system lets a thread go behind everybody and come back.
    fn changes() -> bool {
        let there_and_back = || Self::Last.take().and_then(|()| Self::Back.take()).is_ok();
        let tried = std::thread::Builder::new().spawn(there_and_back);
        tried.is_ok_and(|thread| thread.join().unwrap_or(false))
    }

    fn take(self) -> std::io::Result<()> {
        let share = match self {
            Self::Back => Share::Niceness(NICENESS),
            Self::Last => Share::Rest,
        };
        custody_thread::give_way(share, SLICE)
    }

    /// Where to stand with so many jobs waiting. A flood is over when none does.
    fn with(self, waiting: usize) -> Self {
        match waiting {
            0 => Self::Back,
            FLOOD.. => Self::Last,
            _ => self,
        }
    }
}

/// Tells the threads that nobody is left to ask.
struct End<B>(Arc<Shared<B>>);

impl<B> Drop for End<B> {
    fn drop(&mut self) {
        self.0.queues.lock().closed = true;
        self.0.work.notify_all();
    }
}

/// What came of a step of a job. One that panics is one call that fails; the thread goes on.
enum Step<'a> {
    Ended(Option<Answer>),
    Waits(Running<'a>),
}

fn step<'a>(begin: impl FnOnce() -> Running<'a>) -> Step<'a> {
    let done = catch_unwind(AssertUnwindSafe(|| {
        let mut running = begin();
        match running.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => Step::Ended(Some(answer)),
            Poll::Pending => Step::Waits(running),
        }
    }));
    done.unwrap_or(Step::Ended(None))
}

impl<B> Shared<B> {
    fn run(&self) {
        let batch = (self.at_once.make)();
        let mut standing = Standing::Back;
        if let Err(e) = standing.take() {
            tracing::debug!(error = %e, "compute threads run beside the others");
        }
        let mut held: Vec<Answer> = Vec::with_capacity(TOGETHER);
        loop {
            // What is held back waits for this thread's next job, never for nothing: another may have taken the rest.
            let (next, left) = {
                let mut queues = self.queues.lock();
                (queues.next(), queues.len)
            };
            let stands = standing.with(left);
            if self.standing_changes && stands != standing {
                standing = stands;
                _ = standing.take();
            }
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
            let behind = self.round(&batch, job, behind, &mut held);
            if held.len() > behind || held.len() >= TOGETHER {
                self.give(&mut held);
            }
            // A thread that woke up and was not chosen at once, since it had just had its share, is not looked at again before a
            // tick: four milliseconds, in which a flush waits for a kernel thread that needs ten microseconds.
            std::thread::yield_now();
        }
    }

    /// Does a job and, where it waits for what is done at once, those whose turns come next: so another caller's waits for one
    /// round at most. Answers how many the caller of these that has the fewest has behind them.
    fn round(&self, batch: &B, mut job: Job<B>, mut behind: usize, held: &mut Vec<Answer>) -> usize {
        let mut waiting = Vec::new();
        let mut take = |step, waiting: &mut Vec<_>| match step {
            Step::Ended(answer) => held.extend(answer),
            Step::Waits(running) => waiting.push(running),
        };
        for begun in 1.. {
            take(step(|| job(batch)), &mut waiting);
            if waiting.is_empty() || begun >= self.at_once.len_max {
                break;
            }
            let next = self.queues.lock().next();
            let Some((next, more)) = next else { break };
            (job, behind) = (next, behind.min(more));
        }
        while !waiting.is_empty() {
            // Where it panics, those that wait for it fail, and nobody else.
            if catch_unwind(AssertUnwindSafe(|| (self.at_once.perform)(batch))).is_err() {
                break;
            }
            for running in std::mem::take(&mut waiting) {
                take(step(|| running), &mut waiting);
            }
        }
        behind
    }

    fn give(&self, held: &mut Vec<Answer>) {
        if !held.is_empty() {
            let answers = std::mem::replace(held, Vec::with_capacity(TOGETHER));
            self.courier.carry(Box::new(move || answers.into_iter().for_each(|answer| answer())));
        }
    }
}

impl<B> Queues<B> {
    fn new() -> Self {
        Self { by_caller: HashMap::new(), turns: VecDeque::new(), len: 0, closed: false }
    }

    fn push(&mut self, caller: &str, job: Job<B>) -> bool {
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
    fn next(&mut self) -> Option<(Job<B>, usize)> {
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

impl<B: 'static> Compute<B> {
    /// Starts a thread for each core; answers go to tasks of the runtime that this is called in.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(at_once: AtOnce<B>) -> std::io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let queues = Mutex::new(Queues::new());
        let shared = Shared {
            queues,
            work: Condvar::new(),
            courier: Courier::start(),
            at_once,
            standing_changes: Standing::changes(),
        };
        let shared = Arc::new(shared);
        for n in 0..threads {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("compute-{n}")).spawn(move || shared.run())?;
        }
        Ok(Self { _end: Arc::new(End(shared.clone())), shared })
    }

    /// Does a job of a caller, in its turn. It waits for nothing but what is done at once.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` where too many wait already; else the job's own error.
    pub async fn run<T: Send + 'static>(
        &self,
        caller: &str,
        job: impl AsyncFnOnce(&B) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let (done, answer) = oneshot::channel();
        let span = Span::current();
        let job: Job<B> = Box::new(move |batch| {
            let run = async move {
                let result = job(batch).await;
                let answer: Answer = Box::new(move || _ = done.send(result));
                answer
            };
            Box::pin(run.instrument(span))
        });
        if !self.shared.queues.lock().push(caller, job) {
            let why = "the service is busy; try again with backoff";
            return Err(status::status("RESOURCE_EXHAUSTED", "LOAD_SHED", why, None));
        }
        self.shared.work.notify_one();
        answer.await.map_err(|_| internal())?
    }
}

impl<B> fmt::Debug for AtOnce<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtOnce(..)")
    }
}

impl<B> fmt::Debug for Compute<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compute(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        cell::{Cell, RefCell},
        future::poll_fn,
        rc::Rc,
    };

    /// Nothing is done at once.
    fn alone() -> Compute<()> {
        Compute::start(AtOnce { make: Box::new(|| ()), len_max: 1, perform: |_| () }).unwrap()
    }

    /// Parts that wait: each is told how many were done with it.
    #[derive(Default)]
    struct Parts(RefCell<Vec<Rc<Cell<usize>>>>);

    impl Parts {
        async fn part(&self) -> usize {
            let part = Rc::new(Cell::new(0));
            self.0.borrow_mut().push(part.clone());
            poll_fn(|_| if part.get() == 0 { Poll::Pending } else { Poll::Ready(part.get()) }).await
        }

        fn compute() -> Compute<Self> {
            Compute::start(Self::at_once(Self::perform)).unwrap()
        }

        fn at_once(perform: fn(&Self)) -> AtOnce<Self> {
            AtOnce { make: Box::new(Self::default), len_max: 4, perform }
        }

        fn perform(&self) {
            let all = self.0.take();
            all.iter().for_each(|part| part.set(all.len()));
        }
    }

    #[test]
    fn callers_take_turns_and_a_flood_is_refused() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let mut queues = Queues::new();
        let job = |who: &'static str| -> Job<()> {
            let said = said.clone();
            Box::new(move |_| {
                said.lock().push(who);
                Box::pin(async { Box::new(|| ()) as Answer })
            })
        };
        for _ in 0..CALLER_LEN_MAX {
            assert!(queues.push("flood", job("flood")));
        }
        assert!(!queues.push("flood", job("flood")), "its queue is full");
        assert!(queues.push("other", job("other")), "another's is not");
        for _ in 0..3 {
            let (job, _) = queues.next().unwrap();
            drop(job(&()));
        }
        assert_eq!(*said.lock(), ["flood", "other", "flood"]);
        while let Some((job, _)) = queues.next() {
            drop(job(&()));
        }
        assert_eq!((queues.len, queues.by_caller.len(), queues.turns.len()), (0, 0, 0));
        for n in 0..LEN_MAX {
            assert!(queues.push(&format!("c{n}"), job("c")));
        }
        assert!(!queues.push("one more", job("c")), "all queues together are bounded");
    }

    #[test]
    fn threads_stand_behind_everybody_while_there_is_a_flood() {
        use Standing::{Back, Last};
        let waiting = [0, FLOOD - 1, FLOOD, 200, FLOOD - 1, 1, 0, 1];
        let stood: Vec<_> = waiting
            .into_iter()
            .scan(Back, |standing, waiting| {
                *standing = standing.with(waiting);
                Some(*standing)
            })
            .collect();
        assert_eq!(stood, [Back, Back, Last, Last, Last, Last, Back, Back]);
    }

    #[tokio::test]
    async fn what_is_held_back_is_given_when_the_rest_is_done() {
        let compute = alone();
        // Odd numbers of jobs, often, so that the threads end with different shares.
        for count in (9..60).cycle().take(2000) {
            let jobs = (0..count).map(|n| compute.run("a", async move |_: &()| Ok(n)));
            let all = futures_util::future::join_all(jobs);
            let all = tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
            assert!(all.into_iter().map(Result::unwrap).eq(0..count));
        }
    }

    #[tokio::test]
    async fn a_job_that_panics_fails_its_own_call_only() {
        let compute = alone();
        for _ in 0..8 {
            let failed = compute.run::<()>("a", async |_: &()| panic!("a test")).await.unwrap_err();
            assert_eq!(failed.code(), tonic::Code::Internal);
        }
        assert_eq!(compute.run("a", async |_: &()| Ok(7)).await.unwrap(), 7);
    }

    /// A job with one part.
    fn of_one_part() -> Job<Parts> {
        Box::new(|parts| {
            Box::pin(async move {
                parts.part().await;
                Box::new(|| ()) as Answer
            })
        })
    }

    fn shared(perform: fn(&Parts)) -> Shared<Parts> {
        let (queues, work) = (Mutex::new(Queues::new()), Condvar::new());
        let at_once = Parts::at_once(perform);
        Shared { queues, work, courier: Courier::start(), at_once, standing_changes: false }
    }

    #[tokio::test]
    async fn answers_of_a_round_wait_for_no_more_than_the_caller_with_the_fewest_has() {
        let shared = shared(Parts::perform);
        let first = {
            let mut queues = shared.queues.lock();
            for _ in 0..20 {
                assert!(queues.push("flood", of_one_part()));
            }
            assert!(queues.push("lone", of_one_part()));
            queues.next()
        };
        let ((job, behind), mut held) = (first.unwrap(), Vec::new());
        assert_eq!(behind, 19);
        assert_eq!(shared.round(&Parts::default(), job, behind, &mut held), 0, "the lone caller's is in it");
        assert_eq!(held.len(), 4);
    }

    #[tokio::test]
    async fn what_is_done_at_once_and_panics_fails_those_that_wait_for_it_alone() {
        let shared = shared(|_| panic!("a test"));
        let mut held = Vec::new();
        assert_eq!(shared.round(&Parts::default(), of_one_part(), 0, &mut held), 0);
        assert!(held.is_empty());
        let other: Job<Parts> = Box::new(|_| Box::pin(async { Box::new(|| ()) as Answer }));
        _ = shared.round(&Parts::default(), other, 0, &mut held);
        assert_eq!(held.len(), 1);
    }

    #[tokio::test]
    async fn parts_of_jobs_are_done_at_once_and_others_are_not_held_up() {
        let compute = Parts::compute();
        for round in 0..500 {
            // Every third has no part, every seventh two, and one panics after its part.
            let jobs = (0..25usize).map(|n| {
                compute.run(if n % 2 == 0 { "a" } else { "b" }, async move |parts: &Parts| {
                    let mut with = 1;
                    if n % 3 != 0 {
                        with = parts.part().await;
                    }
                    if n % 7 == 0 {
                        with = with.max(parts.part().await);
                    }
                    assert!(n != 13, "a test");
                    Ok((n, with))
                })
            });
            let all = futures_util::future::join_all(jobs);
            let all = tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
            for (n, done) in all.into_iter().enumerate() {
                if n == 13 {
                    assert_eq!(done.unwrap_err().code(), tonic::Code::Internal);
                    continue;
                }
                let (told, with) = done.unwrap();
                assert_eq!(told, n, "round {round}");
                assert!((1..=4).contains(&with), "{with} at once");
            }
        }
    }

    #[tokio::test]
    async fn as_many_parts_as_there_may_be_are_done_at_once() {
        let compute = Parts::compute();
        let threads = std::thread::available_parallelism().unwrap().get();
        // The threads are kept until all jobs wait, so that a round is short only where it is its thread's last.
        let (began, mut begun) = tokio::sync::mpsc::channel(threads);
        let (ends, kept): (Vec<_>, Vec<_>) = (0..threads).map(|_| std::sync::mpsc::channel::<()>()).unzip();
        let kept = kept.into_iter().map(|end| {
            let began = began.clone();
            compute.run("kept", async move |_: &Parts| {
                began.try_send(()).unwrap();
                Ok(end.recv().unwrap_err())
            })
        });
        let jobs = async {
            for _ in 0..threads {
                begun.recv().await.unwrap();
            }
            let jobs =
                (0..8 * threads).map(|_| compute.run("a", async |parts: &Parts| Ok(parts.part().await)));
            let ending = futures_util::future::lazy(|_| drop(ends));
            // Polled in this order: all wait before any thread goes on.
            futures_util::future::join(futures_util::future::join_all(jobs), ending).await.0
        };
        let all = futures_util::future::join(futures_util::future::join_all(kept), jobs);
        let (_, done) = tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
        let full = done.into_iter().filter(|with| matches!(with, Ok(4))).count();
        assert!(full >= 5 * threads, "{full} parts of {} were done four at once", 8 * threads);
    }
}
