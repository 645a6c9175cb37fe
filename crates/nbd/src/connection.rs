//! The two halves of a connection: requests are read ahead, replies go out together.

use crate::ConnectionError;
use std::io::{self, IoSlice, Read, Write};

/// Bytes read ahead: some requests at once.
const INPUT_LEN: usize = 256 * 1024;
/// Replies are sent at this size even while requests are waiting.
const OUTPUT_LEN_MAX: usize = 256 * 1024;
/// What a long request or reply made of a buffer is kept up to this size.
const BUFFER_LEN_KEPT: usize = 2 << 20;

/// A connection before its halves are used by several threads.
pub(crate) struct Connection {
    pub(crate) input: Input,
    pub(crate) output: Output,
}

impl Connection {
    pub(crate) fn new(reader: Box<dyn Read + Send>, writer: Box<dyn Write + Send>) -> Self {
        Self { input: Input::new(reader), output: Output { writer, queued: Buffer::default() } }
    }

    /// The next `len` bytes of a negotiation, in which each side waits for the other.
    pub(crate) fn take(&mut self, len: usize) -> Result<&[u8], ConnectionError> {
        self.output.flush()?;
        Ok(self.input.take(len)?)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ConnectionError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ConnectionError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ConnectionError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Queues bytes to be sent.
    pub(crate) fn put(&mut self, parts: &[&[u8]]) {
        self.output.queued().put(parts);
    }
}

/// What comes.
pub(crate) struct Input {
    reader: Box<dyn Read + Send>,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    fn new(reader: Box<dyn Read + Send>) -> Self {
        Self { reader, bytes: vec![0; INPUT_LEN], start: 0, end: 0 }
    }

    /// Bytes that have been received and not taken.
    pub(crate) fn ready(&self) -> usize {
        self.end - self.start
    }

    /// The next `len` bytes, at most [`INPUT_LEN`], where they were received. Waits for them if it must.
    pub(crate) fn take(&mut self, len: usize) -> Result<&mut [u8], ConnectionError> {
        if self.start + len > self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.ready() < len {
            self.end += receive(&mut *self.reader, self.bytes.get_mut(self.end..).unwrap_or_default())?;
        }
        let start = self.start;
        self.start += len;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        Ok(self.bytes.get_mut(start..start + len).unwrap_or_default())
    }

    /// Moves the next bytes to `out`: those received, then those still to come, without reading beyond.
    pub(crate) fn fill(&mut self, out: &mut [u8]) -> Result<(), ConnectionError> {
        let (head, mut rest) = out.split_at_mut(out.len().min(self.ready()));
        let len = head.len();
        head.copy_from_slice(self.take(len)?);
        while !rest.is_empty() {
            let len = receive(&mut *self.reader, rest)?;
            rest = rest.get_mut(len..).unwrap_or_default();
        }
        Ok(())
    }

    /// Whether so many bytes fit into what is read ahead.
    pub(crate) fn holds(len: usize) -> bool {
        len <= INPUT_LEN
    }
}

fn receive(reader: &mut dyn Read, out: &mut [u8]) -> Result<usize, ConnectionError> {
    loop {
        match reader.read(out) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(len) => return Ok(len),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Bytes that are used again and again without being zeroed.
#[derive(Default)]
pub(crate) struct Buffer {
    /// As long as what it ever held; the first `len` bytes count.
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// Room for `len` more bytes. What it holds is left from earlier.
    pub(crate) fn room(&mut self, len: usize) -> &mut [u8] {
        let end = self.len + len;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes.get_mut(self.len..end).unwrap_or_default()
    }

    /// Says that so many bytes of [`Buffer::room`] count.
    pub(crate) fn commit(&mut self, len: usize) {
        self.len += len;
    }

    /// Adds bytes.
    pub(crate) fn put(&mut self, parts: &[&[u8]]) {
        for part in parts {
            self.room(part.len()).copy_from_slice(part);
            self.commit(part.len());
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
        if self.bytes.len() > BUFFER_LEN_KEPT {
            self.bytes = Vec::new();
        }
    }
}

/// What goes.
pub(crate) struct Output {
    writer: Box<dyn Write + Send>,
    queued: Buffer,
}

impl Output {
    /// Where replies are queued.
    pub(crate) fn queued(&mut self) -> &mut Buffer {
        &mut self.queued
    }

    /// Sends what is queued if it is much.
    pub(crate) fn relieve(&mut self) -> Result<(), ConnectionError> {
        if self.queued.len >= OUTPUT_LEN_MAX { self.flush() } else { Ok(()) }
    }

    /// Sends what is queued.
    pub(crate) fn flush(&mut self) -> Result<(), ConnectionError> {
        self.send(&[])
    }

    /// Sends what is queued, and `more` after it.
    pub(crate) fn send(&mut self, more: &[u8]) -> Result<(), ConnectionError> {
        let mut parts = [IoSlice::new(self.queued.as_slice()), IoSlice::new(more)];
        let mut rest = &mut parts[..];
        IoSlice::advance_slices(&mut rest, 0);
        if rest.is_empty() {
            return Ok(());
        }
        while !rest.is_empty() {
            match self.writer.write_vectored(rest) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(len) => IoSlice::advance_slices(&mut rest, len),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.writer.flush()?;
        self.queued.clear();
        Ok(())
    }
}
