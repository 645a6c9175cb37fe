//! What waits to be written: a bounded queue with one reader, the journal's thread.
//!
//! It wakes its reader when there is something to do, and not for each record that joins a group which is gathered anyway: a
//! wake-up costs as much as the record, and takes the core from whoever computes.

use crate::{
    AuditUnavailable,
    writer::{Command, Reply},
};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::{
    collections::VecDeque,
    sync::mpsc,
    time::{Duration, Instant},
};

/// Records waiting to be written. The ends of operations always find room: fewer are under way than this leaves.
const LEN_MAX: usize = 8192;
/// Most records in one disk flush.
const GROUP_LEN_MAX: usize = 1024;
/// How long a flush waits for company that somebody waits for.
const GATHER_TIME: Duration = Duration::from_millis(4);
/// How long what nobody waits for waits, the ends of operations: the next that begins takes them with it.
const LINGER_TIME: Duration = Duration::from_millis(20);
/// Between looks whether more has come. If nothing has, and somebody waits for the flush, it waits no longer.
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// What the reader does.
#[derive(Default)]
enum Reader {
    /// It writes, and looks here when it has written.
    #[default]
    Busy,
    /// It sleeps until something comes.
    Idle,
    /// It lets records of one caller gather. Whether somebody waits for them decides how long.
    Gathering { caller: u64, waited_for: bool },
}

/// Whose what waits is.
#[derive(Clone, Copy, Default)]
enum Callers {
    #[default]
    Nobody,
    One(u64),
    /// Of several, or not a record.
    Several,
}

#[derive(Default)]
struct State {
    commands: VecDeque<Command>,
    /// Of those commands, as the next two: kept, since each look asks.
    callers: Callers,
    waited_for: bool,
    reader: Reader,
    closed: bool,
}

/// The queue.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
}

/// What is written with one flush, and done after it.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) records: Vec<(String, Reply)>,
    pub(crate) to_sign: Vec<mpsc::SyncSender<Result<(), AuditUnavailable>>>,
    pub(crate) closing: bool,
}

impl Reader {
    fn wakes_for(&self, command: &Command) -> bool {
        match (self, command) {
            (Self::Busy, _) => false,
            (Self::Gathering { caller: gathered, waited_for }, Command::Append { caller, .. }) => {
                caller != gathered || !waited_for && command.is_waited_for()
            }
            (Self::Idle | Self::Gathering { .. }, _) => true,
        }
    }
}

impl Callers {
    fn with(self, command: &Command) -> Self {
        match (self, command) {
            (Self::Nobody, Command::Append { caller, .. }) => Self::One(*caller),
            (Self::One(one), Command::Append { caller, .. }) if *caller == one => self,
            _ => Self::Several,
        }
    }
}

impl Command {
    fn is_waited_for(&self) -> bool {
        !matches!(self, Self::Append { reply: Reply::Nobody, .. })
    }
}

impl State {
    fn push(&mut self, command: Command) {
        self.callers = self.callers.with(&command);
        self.waited_for |= command.is_waited_for();
        self.commands.push_back(command);
    }

    fn take_group(&mut self) -> Group {
        let mut group = Group { records: Vec::with_capacity(self.commands.len()), ..Group::default() };
        while group.records.len() < GROUP_LEN_MAX && !group.closing {
            match self.commands.pop_front() {
                Some(Command::Append { record, reply, .. }) => group.records.push((record, reply)),
                Some(Command::Sign(done)) => group.to_sign.push(done),
                Some(Command::Close) => group.closing = true,
                None => break,
            }
        }
        self.callers = self.commands.iter().fold(Callers::Nobody, Callers::with);
        self.waited_for = self.commands.iter().any(Command::is_waited_for);
        group
    }
}

impl Queue {
    /// Puts a command in; waits where there is no room.
    ///
    /// # Errors
    /// The reader has ended.
    pub(crate) fn push(&self, command: Command) -> Result<(), AuditUnavailable> {
        let mut state = self.state.lock();
        while state.commands.len() >= LEN_MAX && !state.closed {
            self.room.wait(&mut state);
        }
        if state.closed {
            return Err(AuditUnavailable::Closed);
        }
        let wakes = state.reader.wakes_for(&command);
        state.push(command);
        drop(state);
        if wakes {
            self.work.notify_one();
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.state.lock().commands.len()
    }

    /// The next group; none where nothing has come for `idle`. Where `gathers` says that much is under way, it waits a little
    /// for company: one caller's many gather with each other, and another's few wait for none of them.
    pub(crate) fn next(&self, idle: Duration, gathers: impl FnOnce() -> bool) -> Option<Group> {
        let mut state = self.state.lock();
        if state.commands.is_empty() {
            self.sleep(&mut state, Reader::Idle, idle);
        }
        if state.commands.is_empty() {
            return None;
        }
        if gathers() {
            self.gather(&mut state);
        }
        let group = state.take_group();
        drop(state);
        self.room.notify_all();
        Some(group)
    }

    fn gather(&self, state: &mut MutexGuard<'_, State>) {
        let mut until = Instant::now() + LINGER_TIME;
        while let Callers::One(caller) = state.callers
            && state.commands.len() < GROUP_LEN_MAX
            && let now = Instant::now()
            && now < until
        {
            let (seen, waited_for) = (state.commands.len(), state.waited_for);
            if waited_for {
                until = until.min(now + GATHER_TIME);
            }
            let time = if waited_for { LOOK_EVERY } else { until - now };
            self.sleep(state, Reader::Gathering { caller, waited_for }, time);
            if waited_for && state.commands.len() == seen {
                break;
            }
        }
    }

    fn sleep(&self, state: &mut MutexGuard<'_, State>, reader: Reader, time: Duration) {
        state.reader = reader;
        self.work.wait_for(state, time);
        state.reader = Reader::Busy;
    }

    /// Takes no more: the reader ends.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.commands.clear();
        drop(state);
        self.room.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn record(caller: u64, reply: Reply) -> Command {
        Command::Append { record: "{}".to_owned(), caller, reply }
    }

    fn next(queue: &Queue, gathers: bool) -> usize {
        queue.next(Duration::ZERO, || gathers).map_or(0, |group| group.records.len())
    }

    /// Waits until the reader gathers.
    fn until_gathering(queue: &Queue) {
        while !matches!(queue.state.lock().reader, Reader::Gathering { .. }) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_group_is_what_waits_and_never_more_than_its_bound() {
        let queue = Queue::default();
        assert!(queue.next(Duration::ZERO, || true).is_none());
        for _ in 0..=GROUP_LEN_MAX {
            queue.push(record(1, Reply::Nobody)).unwrap();
        }
        assert_eq!((next(&queue, true), next(&queue, false), queue.len()), (GROUP_LEN_MAX, 1, 0));
    }

    #[test]
    fn what_comes_while_a_group_gathers_is_in_it() {
        let queue = Arc::new(Queue::default());
        queue.push(record(1, Reply::Waiter(0))).unwrap();
        let (reader, there) = (queue.clone(), queue.clone());
        let group = std::thread::spawn(move || next(&reader, true));
        // Until the group ends; each look of the reader finds more.
        let mut pushed = 1;
        while !group.is_finished() {
            // A group that was taken leaves room for what came too late, and nobody makes more.
            if (1..GROUP_LEN_MAX).contains(&there.len()) {
                there.push(record(1, Reply::Waiter(0))).unwrap();
                pushed += 1;
            }
        }
        let taken = group.join().unwrap();
        assert_eq!(taken + queue.len(), pushed);
        assert!(taken > 1, "nothing was gathered");
    }

    #[test]
    fn another_caller_and_a_signature_end_the_gathering() {
        let (done, _signed) = mpsc::sync_channel(1);
        for end in [record(2, Reply::Nobody), Command::Sign(done), Command::Close] {
            let queue = Arc::new(Queue::default());
            // Nobody waits for it, so it would gather for the whole time.
            queue.push(record(1, Reply::Nobody)).unwrap();
            let reader = queue.clone();
            let group = std::thread::spawn(move || reader.next(Duration::ZERO, || true));
            until_gathering(&queue);
            queue.push(end).unwrap();
            let group = group.join().unwrap().unwrap();
            assert_eq!(group.records.len() + group.to_sign.len() + usize::from(group.closing), 2);
            assert!(!group.records.is_empty());
        }
    }

    #[test]
    fn whoever_waits_for_room_gets_it_or_hears_of_the_end() {
        let queue = Arc::new(Queue::default());
        for _ in 0..LEN_MAX {
            queue.push(record(1, Reply::Nobody)).unwrap();
        }
        let waiting = queue.clone();
        let pushed = std::thread::spawn(move || waiting.push(record(1, Reply::Nobody)).is_ok());
        assert_eq!(next(&queue, false), GROUP_LEN_MAX);
        assert!(pushed.join().unwrap());
        queue.close();
        assert!(queue.push(record(1, Reply::Nobody)).is_err());
    }
}
