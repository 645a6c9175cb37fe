//! A stream whose writes are gathered until whoever owns the connection sends them.
//!
//! HTTP/2 frames of more than 256 bytes are written one by one (h2's `CHAIN_THRESHOLD`), and flushed each: with a hundred answers that are
//! ready at once, a hundred records of TLS and system calls.

use parking_lot::Mutex;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are kept before they are sent unasked.
const KEPT_LEN_MAX: usize = 64 * 1024;
/// Bytes that room is made for first.
const KEPT_LEN: usize = 4 * 1024;

struct State<S> {
    stream: S,
    kept: Vec<u8>,
    /// Bytes of `kept` that are sent.
    sent: usize,
    /// Of a sending that nobody waited for: the protocol hears of it with all that it does next.
    failed: Option<io::ErrorKind>,
}

impl<S> State<S> {
    fn check(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |kind| Err(kind.into()))
    }
}

impl<S: AsyncWrite + Unpin> State<S> {
    /// Sends what is kept, and what the stream itself holds back: of a write that went past us, TLS may have taken more than the
    /// socket did.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.kept.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.forget();
        Poll::Ready(Ok(()))
    }

    /// Answers may hold keys: where there are any, what is freed is erased, and nothing of it stays with a connection that is idle.
    fn forget(&mut self) {
        self.kept = Vec::new();
        self.sent = 0;
    }
}

/// The stream, for the protocol and for the connection that owns both.
pub(crate) struct Gathered<S>(Arc<Mutex<State<S>>>);

impl<S> Clone for Gathered<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self(Arc::new(Mutex::new(State { stream, kept: Vec::new(), sent: 0, failed: None })))
    }

    /// Sends what was written since. Answers whether that failed now: then it is for the protocol to hear of, and to end.
    pub(crate) fn send(&self, cx: &mut Context<'_>) -> bool {
        let mut state = self.0.lock();
        if state.failed.is_some() {
            return false;
        }
        match state.poll_send(cx) {
            Poll::Ready(Err(e)) => {
                state.forget();
                state.failed = Some(e.kind());
                true
            }
            Poll::Ready(Ok(())) | Poll::Pending => false,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        state.check()?;
        Pin::new(&mut state.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        state.check()?;
        if state.kept.len() + bytes.len() > KEPT_LEN_MAX {
            ready!(state.poll_send(cx))?;
        }
        if bytes.len() > KEPT_LEN_MAX {
            return Pin::new(&mut state.stream).poll_write(cx, bytes);
        }
        if state.kept.is_empty() {
            state.kept.reserve(bytes.len().max(KEPT_LEN));
        }
        state.kept.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    /// The connection sends, when all of its calls had their turn.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.lock().check())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        ready!(state.poll_send(cx))?;
        Pin::new(&mut state.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Takes so many bytes at a time, then none; notes what it got.
    #[derive(Default)]
    struct Slow {
        got: Vec<u8>,
        room: usize,
        writes: usize,
        broken: bool,
        flushes: usize,
    }

    impl AsyncRead for Slow {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.broken {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let len = bytes.len().min(self.room);
            if len == 0 {
                return Poll::Pending;
            }
            self.room -= len;
            self.writes += 1;
            self.got.extend_from_slice(&bytes[..len]);
            Poll::Ready(Ok(len))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn write(stream: &mut Gathered<Slow>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut cx = Context::from_waker(Waker::noop());
        let done = Pin::new(&mut *stream).poll_write(&mut cx, bytes);
        assert!(Pin::new(stream).poll_flush(&mut cx).is_ready());
        done
    }

    fn send(stream: &Gathered<Slow>) -> bool {
        stream.send(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn many_writes_are_one_and_none_is_lost_to_a_stream_that_takes_little() {
        let mut stream = Gathered::new(Slow { room: 1 << 20, ..Slow::default() });
        for n in 0..100u8 {
            assert!(matches!(write(&mut stream, &[n; 300]), Poll::Ready(Ok(300))));
        }
        assert_eq!(stream.0.lock().stream.writes, 0);
        assert!(!send(&stream));
        let got = |stream: &Gathered<Slow>| stream.0.lock().stream.got.len();
        assert_eq!(got(&stream), 30_000);
        assert_eq!(stream.0.lock().stream.writes, 1);

        let expected: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        let mut stream = Gathered::new(Slow::default());
        let mut left = &expected[..];
        while got(&stream) < expected.len() {
            let next = &left[..left.len().min(50_000)];
            if let Poll::Ready(done) = write(&mut stream, next) {
                left = &left[done.unwrap()..];
            }
            assert!(stream.0.lock().kept.len() <= KEPT_LEN_MAX);
            stream.0.lock().stream.room = 7_000;
            assert!(!send(&stream));
        }
        assert_eq!(stream.0.lock().stream.got, expected);
    }

    #[test]
    fn what_is_longer_than_what_is_kept_comes_after_it() {
        let mut stream = Gathered::new(Slow { room: 1 << 20, ..Slow::default() });
        _ = write(&mut stream, &[1; 10]);
        let long = vec![2; KEPT_LEN_MAX + 1];
        assert!(matches!(write(&mut stream, &long), Poll::Ready(Ok(n)) if n == long.len()));
        assert_eq!(stream.0.lock().stream.got, [vec![1; 10], long].concat());
        // TLS may hold the end of it back.
        let before = stream.0.lock().stream.flushes;
        assert!(!send(&stream));
        assert_eq!(stream.0.lock().stream.flushes, before + 1);
    }

    #[test]
    fn a_sending_that_fails_is_told_once_and_heard_with_all_that_the_protocol_does() {
        let mut stream = Gathered::new(Slow { broken: true, ..Slow::default() });
        _ = write(&mut stream, &[1; 10]);
        assert!(send(&stream));
        assert!(!send(&stream));
        let (mut cx, mut bytes) = (Context::from_waker(Waker::noop()), [0; 8]);
        let read = Pin::new(&mut stream).poll_read(&mut cx, &mut ReadBuf::new(&mut bytes));
        assert!(matches!(read, Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::BrokenPipe));
        let written = Pin::new(&mut stream).poll_write(&mut cx, &[1]);
        assert!(matches!(written, Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::BrokenPipe));
        assert!(!send(&stream), "a connection that is told again and again never rests");
    }
}
