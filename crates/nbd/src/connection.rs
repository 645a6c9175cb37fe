//! A buffered connection: reads ahead, and writes when there is nothing more to read.

use crate::ConnectionError;
use std::io::{self, Read, Write};

/// Anything that can be talked over.
pub(crate) trait Socket: Read + Write + Send {}
impl<T: Read + Write + Send> Socket for T {}

pub(crate) struct Connection {
    socket: Box<dyn Socket>,
    input: Vec<u8>,
    start: usize,
    end: usize,
    output: Vec<u8>,
}

/// Bytes read ahead: some requests of 4 KiB at once.
const INPUT_LEN: usize = 256 * 1024;
/// Replies are sent at this size even while requests are waiting.
const OUTPUT_LEN_MAX: usize = 1 << 20;

impl Connection {
    pub(crate) fn new(socket: Box<dyn Socket>) -> Self {
        Self {
            socket,
            input: vec![0; INPUT_LEN],
            start: 0,
            end: 0,
            output: Vec::with_capacity(OUTPUT_LEN_MAX),
        }
    }

    /// The socket back, to start TLS on it. What was read ahead would be lost, so there must be nothing.
    pub(crate) fn into_socket(self) -> Result<Box<dyn Socket>, ConnectionError> {
        if self.start == self.end {
            Ok(self.socket)
        } else {
            Err(ConnectionError::Protocol("data before the TLS handshake"))
        }
    }

    fn buffered(&self) -> &[u8] {
        self.input.get(self.start..self.end).unwrap_or_default()
    }

    /// Fills `out`. Replies are sent first if that means waiting.
    pub(crate) fn read_exact(&mut self, out: &mut [u8]) -> Result<(), ConnectionError> {
        let mut done = 0;
        while done < out.len() {
            if self.start == self.end {
                self.flush()?;
                let rest = out.get_mut(done..).unwrap_or_default();
                if rest.len() >= INPUT_LEN {
                    let len = self.socket.read(rest)?;
                    done += not_closed(len)?;
                    continue;
                }
                (self.start, self.end) = (0, not_closed(self.socket.read(&mut self.input)?)?);
            }
            let rest = out.get_mut(done..).unwrap_or_default();
            let len = rest.len().min(self.end - self.start);
            if let (Some(to), Some(from)) = (rest.get_mut(..len), self.buffered().get(..len)) {
                to.copy_from_slice(from);
            }
            self.start += len;
            done += len;
        }
        Ok(())
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ConnectionError> {
        let mut out = [0; N];
        self.read_exact(&mut out)?;
        Ok(out)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, ConnectionError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ConnectionError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ConnectionError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Queues bytes to be sent.
    pub(crate) fn put(&mut self, parts: &[&[u8]]) -> Result<(), ConnectionError> {
        for part in parts {
            self.output.extend_from_slice(part);
        }
        if self.output.len() >= OUTPUT_LEN_MAX { self.flush() } else { Ok(()) }
    }

    /// Queues a header and `len` bytes that `fill` writes in place.
    pub(crate) fn put_filled<E>(
        &mut self,
        header: &[u8],
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Result<(), E>, ConnectionError> {
        let start = self.output.len();
        self.output.extend_from_slice(header);
        let body = self.output.len();
        self.output.resize(body + len, 0);
        let filled = fill(self.output.get_mut(body..).unwrap_or_default());
        if filled.is_err() {
            self.output.truncate(start);
        } else if self.output.len() >= OUTPUT_LEN_MAX {
            self.flush()?;
        }
        Ok(filled)
    }

    pub(crate) fn flush(&mut self) -> Result<(), ConnectionError> {
        if !self.output.is_empty() {
            self.socket.write_all(&self.output)?;
            self.socket.flush()?;
            self.output.clear();
        }
        Ok(())
    }
}

fn not_closed(len: usize) -> io::Result<usize> {
    if len == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(len) }
}
