//! A connection and its calls, in one task.
//!
//! hyper spawns a task for each call of HTTP/2. Calls of one connection then wake it one by one, from other threads, and each of
//! their answers is written alone: a system call, a record of TLS and a wake-up of the client for each. Here the calls are
//! polled before their connection is, so that all answers that are ready go out together.

use crate::gathered::Gathered;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use hyper::rt::Executor;
use parking_lot::Mutex;
use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::io::AsyncWrite;

/// Calls that are begun in a row: then other connections have a turn.
const TURN: usize = 32;

/// Calls that a connection has begun and that nobody polls yet: the executor that hyper is given.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<Vec<BoxFuture<'static, ()>>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Calls {
    fn execute(&self, call: F) {
        // A call that panics is one call that fails, as it would be in a task of its own.
        let call = AssertUnwindSafe(call).catch_unwind().map(drop);
        self.0.lock().push(Box::pin(call));
    }
}

/// A connection with its calls. It ends when the connection does, and its calls with it.
pub(crate) struct Connection<C, S> {
    inner: Pin<Box<C>>,
    stream: Gathered<S>,
    begun: Calls,
    running: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl<C: Future, S: AsyncWrite + Unpin> Connection<C, S> {
    /// Of hyper's connection over `stream`, made with `begun` as its executor.
    pub(crate) fn new(inner: C, stream: Gathered<S>, begun: Calls) -> Self {
        Self { inner: Box::pin(inner), stream, begun, running: FuturesUnordered::new() }
    }

    /// hyper's own, to tell it to end.
    pub(crate) fn inner(&mut self) -> Pin<&mut C> {
        self.inner.as_mut()
    }
}

impl<C: Future, S> Connection<C, S> {
    /// Polls the calls and then their connection, until nothing is to be done or others shall have a turn.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<C::Output> {
        let mut left = TURN;
        loop {
            while let Poll::Ready(Some(())) = self.running.poll_next_unpin(cx) {}
            if let Poll::Ready(ended) = self.inner.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            let mut begun = self.begun.0.lock();
            if begun.is_empty() {
                return Poll::Pending;
            }
            let now = begun.len().min(TURN);
            left = left.saturating_sub(now);
            self.running.extend(begun.drain(..now));
            drop(begun);
            if left == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }
}

impl<C: Future, S: AsyncWrite + Unpin> Future for Connection<C, S> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        loop {
            let turned = self.turn(cx);
            let failed = self.stream.send(cx);
            if turned.is_ready() || !failed {
                return turned;
            }
            // The protocol hears of the failure in another turn.
        }
    }
}

impl<C, S> Drop for Connection<C, S> {
    fn drop(&mut self) {
        // A call holds the executor: what was begun and never polled would keep itself.
        drop(std::mem::take(&mut *self.begun.0.lock()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::poll_fn,
        sync::atomic::{AtomicUsize, Ordering},
        task::Waker,
    };
    use tokio::sync::oneshot;

    fn connection<C: Future>(inner: C, calls: Calls) -> Connection<C, tokio::io::Empty> {
        Connection::new(inner, Gathered::new(tokio::io::empty()), calls)
    }

    /// Notes what it is asked, in order.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<&'static str>>>);

    impl Log {
        fn note(&self, what: &'static str) {
            self.0.lock().push(what);
        }
    }

    #[test]
    fn all_answers_that_are_ready_are_given_before_the_connection_writes() {
        let (log, calls) = (Log::default(), Calls::default());
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..8).map(|_| oneshot::channel::<()>()).unzip();
        for receiver in receivers {
            let log = log.clone();
            calls.execute(async move {
                _ = receiver.await;
                log.note("answer");
            });
        }
        let written = log.clone();
        let inner = poll_fn(move |_| -> Poll<()> {
            written.note("write");
            Poll::Pending
        });
        let mut connection = connection(inner, calls);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(connection.poll_unpin(&mut cx).is_pending());
        log.0.lock().clear();
        for sender in senders {
            sender.send(()).unwrap();
        }
        assert!(connection.poll_unpin(&mut cx).is_pending());
        assert_eq!(*log.0.lock(), [vec!["answer"; 8], vec!["write"]].concat());
    }

    #[test]
    fn a_connection_with_many_calls_lets_others_have_a_turn_and_forgets_none() {
        struct Woken(AtomicUsize);
        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let (log, calls) = (Log::default(), Calls::default());
        for _ in 0..2 * TURN + 1 {
            let log = log.clone();
            calls.execute(async move { log.note("answer") });
        }
        let mut connection = connection(std::future::pending::<()>(), calls);
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(woken.clone());
        let mut polls = 0;
        while woken.0.load(Ordering::Relaxed) == polls {
            assert!(log.0.lock().len() <= polls * TURN);
            assert!(connection.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
            polls += 1;
        }
        assert_eq!((polls, log.0.lock().len()), (3, 2 * TURN + 1));
    }

    #[test]
    fn a_call_that_panics_fails_alone() {
        let (log, calls) = (Log::default(), Calls::default());
        calls.execute(async { panic!("a test") });
        let noted = log.clone();
        calls.execute(async move { noted.note("answer") });
        let mut connection = connection(std::future::pending::<()>(), calls);
        assert!(connection.poll_unpin(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(*log.0.lock(), ["answer"]);
    }

    #[test]
    fn calls_end_with_their_connection_also_those_never_polled() {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let (alive, calls) = (Arc::new(AtomicUsize::new(2)), Calls::default());
        let begin = || {
            let (counted, executor) = (Counted(alive.clone()), calls.clone());
            calls.execute(async move {
                let _held = (counted, executor);
                std::future::pending::<()>().await;
            });
        };
        begin();
        let mut connection = connection(std::future::pending::<()>(), calls.clone());
        assert!(connection.poll_unpin(&mut Context::from_waker(Waker::noop())).is_pending());
        begin();
        drop(connection);
        assert_eq!(alive.load(Ordering::Relaxed), 0);
    }
}
