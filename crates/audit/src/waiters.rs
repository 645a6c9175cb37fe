//! Who waits for a record to be on disk; and a disk that does not answer.

use crate::AuditUnavailable;
use futures_channel::oneshot;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

/// How long a disk may take before nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) type Done = Result<u64, AuditUnavailable>;

/// Gives the answers of a flush.
pub type Answers = Box<dyn FnOnce() + Send>;
type Courier = Box<dyn Fn(Answers) + Send + Sync>;

pub(crate) enum Waiter {
    Task(oneshot::Sender<Done>),
    Thread(mpsc::SyncSender<Done>),
    /// It went away before it could be told, and ends what it began itself.
    Gone,
}

impl Waiter {
    /// Whether it was still there.
    fn tell(self, done: Done) -> bool {
        match self {
            Self::Task(task) => task.send(done).is_ok(),
            Self::Thread(thread) => thread.send(done).is_ok(),
            Self::Gone => false,
        }
    }
}

/// Those who wait, by number.
pub(crate) struct Waiters {
    by_number: Mutex<HashMap<u64, Waiter>>,
    next: AtomicU64,
    started: Instant,
    /// When the disk was given what it has not answered, in milliseconds from `started` and one; 0 for nothing.
    busy_since: AtomicU64,
    /// Gives tasks their answers; without it the journal's thread does.
    courier: OnceLock<Courier>,
}

impl Default for Waiters {
    fn default() -> Self {
        Self {
            by_number: Mutex::default(),
            next: AtomicU64::new(0),
            started: Instant::now(),
            busy_since: AtomicU64::new(0),
            courier: OnceLock::new(),
        }
    }
}

impl Waiters {
    fn put(&self, waiter: Waiter) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.by_number.lock().insert(number, waiter);
        number
    }

    pub(crate) fn task(&self) -> (u64, oneshot::Receiver<Done>) {
        let (sender, receiver) = oneshot::channel();
        (self.put(Waiter::Task(sender)), receiver)
    }

    pub(crate) fn thread(&self) -> (u64, mpsc::Receiver<Done>) {
        let (sender, receiver) = mpsc::sync_channel(1);
        (self.put(Waiter::Thread(sender)), receiver)
    }

    pub(crate) fn set_courier(&self, courier: Courier) {
        _ = self.courier.set(courier);
    }

    /// One who waits, to be told; none where it was told already that the disk does not answer.
    pub(crate) fn take(&self, number: u64) -> Option<Waiter> {
        self.by_number.lock().remove(&number)
    }

    /// Tells those of a flush.
    pub(crate) fn tell(&self, told: Vec<(Waiter, Done)>) {
        let (tasks, threads): (Vec<_>, Vec<_>) =
            told.into_iter().partition(|(waiter, _)| matches!(waiter, Waiter::Task(_)));
        let tell =
            |told: Vec<(Waiter, Done)>| told.into_iter().for_each(|(waiter, done)| _ = waiter.tell(done));
        tell(threads);
        match self.courier.get() {
            Some(courier) if !tasks.is_empty() => courier(Box::new(move || tell(tasks))),
            _ => tell(tasks),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX) + 1
    }

    /// The disk is given something, or has answered.
    pub(crate) fn set_busy(&self, busy: bool) {
        self.busy_since.store(if busy { self.now() } else { 0 }, Ordering::Release);
    }

    /// Whether the disk has not answered for too long.
    pub(crate) fn is_hung(&self) -> bool {
        let since = self.busy_since.load(Ordering::Acquire);
        since != 0 && self.now().saturating_sub(since) > PATIENCE.as_millis() as u64
    }

    /// Tells everybody that the disk does not answer. The writer ends what they began, should it come on disk; but not what
    /// somebody began who has gone away.
    pub(crate) fn give_up(&self) {
        let mut by_number = self.by_number.lock();
        by_number
            .retain(|_, waiter| !std::mem::replace(waiter, Waiter::Gone).tell(Err(AuditUnavailable::Hung)));
    }
}
