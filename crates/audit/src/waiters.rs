//! Who waits for a record to be on disk; and a disk that does not answer.

use crate::AuditUnavailable;
use futures_channel::oneshot;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

/// How long a disk may take before nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) type Done = Result<u64, AuditUnavailable>;

enum Waiter {
    Task(oneshot::Sender<Done>),
    Thread(mpsc::SyncSender<Done>),
}

impl Waiter {
    fn tell(self, done: Done) {
        match self {
            Self::Task(task) => _ = task.send(done),
            Self::Thread(thread) => _ = thread.send(done),
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
}

impl Default for Waiters {
    fn default() -> Self {
        Self {
            by_number: Mutex::default(),
            next: AtomicU64::new(0),
            started: Instant::now(),
            busy_since: AtomicU64::new(0),
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

    /// Tells one. False where it was told already that the disk does not answer.
    pub(crate) fn tell(&self, number: u64, done: Done) -> bool {
        let waiter = self.by_number.lock().remove(&number);
        waiter.map(|waiter| waiter.tell(done)).is_some()
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

    /// Tells everybody that the disk does not answer.
    pub(crate) fn give_up(&self) {
        let all = std::mem::take(&mut *self.by_number.lock());
        all.into_values().for_each(|waiter| waiter.tell(Err(AuditUnavailable::Hung)));
    }
}
