//! A client's socket.

use rustix::{io::Errno, net::RecvFlags};
use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(s) => s.try_clone().map(Self::Tcp),
            Self::Unix(s) => s.try_clone().map(Self::Unix),
        }
    }

    pub(crate) fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.set_read_timeout(timeout),
            Self::Unix(s) => s.set_read_timeout(timeout),
        }
    }

    pub(crate) fn close(&self) {
        _ = match self {
            Self::Tcp(s) => s.shutdown(Shutdown::Both),
            Self::Unix(s) => s.shutdown(Shutdown::Both),
        };
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(s) => s.as_fd(),
            Self::Unix(s) => s.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.read(out),
            Self::Unix(s) => s.read(out),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => s.write(bytes),
            Self::Unix(s) => s.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(s) => s.flush(),
            Self::Unix(s) => s.flush(),
        }
    }
}

/// How long [`Patient`] looks for bytes before it sleeps: as long as waking from sleep takes. QEMU polls as long.
const LOOK_MAX: Duration = Duration::from_micros(32);

/// Reads from a socket; while requests come one soon after another it looks for the next before it sleeps, since to
/// be woken costs more than the request itself. Others that could run on the core are let first.
pub(crate) struct Patient {
    stream: Stream,
    /// The last wait was short enough to look for its end.
    busy: bool,
}

impl Patient {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, busy: false }
    }

    fn look(&self, out: &mut [u8]) -> Option<io::Result<usize>> {
        let until = Instant::now() + LOOK_MAX;
        loop {
            match rustix::net::recv(&self.stream, &mut *out, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) if Instant::now() < until => std::thread::yield_now(),
                Err(Errno::AGAIN) => return None,
                Err(e) => return Some(Err(e.into())),
                Ok((_, len)) => return Some(Ok(len)),
            }
        }
    }
}

impl Read for Patient {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.busy
            && let Some(found) = self.look(out)
        {
            return found;
        }
        let began = Instant::now();
        let read = self.stream.read(out);
        self.busy = began.elapsed() < 4 * LOOK_MAX;
        read
    }
}
