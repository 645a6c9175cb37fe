//! The transmission phase: requests and replies.

use crate::{
    ConnectionError, Export, ExportError,
    connection::{Buffer, Connection, Input, Output},
};
use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread::Scope,
};

/// Longest read or write, in bytes; as advertised, and as most servers have it.
pub(crate) const REQUEST_LEN_MAX: u32 = 32 << 20;

const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_CACHE: u16 = 5;
const CMD_WRITE_ZEROES: u16 = 6;
const CMD_BLOCK_STATUS: u16 = 7;
const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 1 << 1;
const FLAG_DF: u16 = 1 << 2;
const FLAG_REQ_ONE: u16 = 1 << 3;
const FLAG_FAST_ZERO: u16 = 1 << 4;

const CHUNK_DONE: u16 = 1;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = 1 << 15 | 1;

/// The number of the context `base:allocation`.
pub(crate) const ALLOCATION_ID: u32 = 1;
/// A range that holds no data, and reads as zeros.
const STATE_HOLE_ZERO: u32 = 1 | 1 << 1;
/// Ranges told in one answer, at most; the client asks again for what follows.
const RANGES_MAX: usize = 2048;

/// What negotiation settled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    pub(crate) structured: bool,
    /// The client may ask which ranges hold data.
    pub(crate) allocation: bool,
}

impl Mode {
    /// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF (reads are never fragmented),
    /// CAN_MULTI_CONN (a flush covers the finished writes of every connection), SEND_CACHE, and SEND_FAST_ZERO: zeros
    /// are always a hole, and cost no data.
    pub(crate) fn flags(self) -> u16 {
        let always = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;
        if self.structured { always | 1 << 7 } else { always }
    }
}

struct Request {
    flags: u16,
    command: u16,
    cookie: [u8; 8],
    offset: u64,
    len: u32,
}

impl Request {
    const LEN: usize = 28;

    /// Whether every flag means something with this command.
    fn flags_known(&self) -> bool {
        let more = match self.command {
            CMD_READ => FLAG_DF,
            CMD_WRITE_ZEROES => FLAG_NO_HOLE | FLAG_FAST_ZERO,
            CMD_BLOCK_STATUS => FLAG_REQ_ONE,
            _ => 0,
        };
        self.flags & !(FLAG_FUA | more) == 0
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        fn split<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
            let (head, rest) = bytes.split_first_chunk::<N>()?;
            *bytes = rest;
            Some(*head)
        }
        let mut rest = bytes;
        let rest = &mut rest;
        (u32::from_be_bytes(split(rest)?) == REQUEST).then_some(())?;
        Some(Self {
            flags: u16::from_be_bytes(split(rest)?),
            command: u16::from_be_bytes(split(rest)?),
            cookie: split(rest)?,
            offset: u64::from_be_bytes(split(rest)?),
            len: u32::from_be_bytes(split(rest)?),
        })
    }
}

/// Reads and writes from this length on are worth a thread of their own while another takes the next request.
const APART_LEN_MIN: u32 = 32 * 1024;

/// A connection in transmission, served by one thread or several. The one that holds the input leads: it does short
/// requests itself, and their replies go out together. With a long one it leaves the lead to another thread.
struct Session<'a> {
    input: Mutex<Input>,
    output: Mutex<Output>,
    export: &'a dyn Export,
    mode: Mode,
    /// Threads that may serve it.
    threads_max: usize,
    threads: AtomicUsize,
    ended: AtomicBool,
    /// Ends the waiting of the other threads when one fails.
    close: &'a (dyn Fn() + Sync),
    failure: Mutex<Option<ConnectionError>>,
}

/// What a thread keeps from one long request to the next.
#[derive(Default)]
struct Own {
    payload: Buffer,
    reply: Buffer,
}

/// Why a thread gave the lead up.
enum Led {
    /// The client is done.
    Done,
    /// This request is to be done apart; a write's bytes are in the payload.
    Apart(Request),
}

/// Serves requests until the client is done. `close` must end every wait for the socket.
pub(crate) fn transmit(
    connection: Connection,
    export: &dyn Export,
    mode: Mode,
    threads_max: usize,
    close: &(dyn Fn() + Sync),
) -> Result<(), ConnectionError> {
    let session = Session {
        input: Mutex::new(connection.input),
        output: Mutex::new(connection.output),
        export,
        mode,
        threads_max,
        threads: AtomicUsize::new(1),
        ended: AtomicBool::new(false),
        close,
        failure: Mutex::new(None),
    };
    std::thread::scope(|scope| session.work(scope));
    session.failure.into_inner().map_or(Ok(()), Err)
}

impl Session<'_> {
    fn work<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let mut own = Own::default();
        loop {
            let led = {
                let mut input = self.input.lock();
                if self.ended.load(Ordering::Acquire) {
                    return;
                }
                let led = self.lead(&mut input, &mut own);
                if !matches!(led, Ok(Led::Apart(_))) {
                    self.ended.store(true, Ordering::Release);
                }
                led
            };
            let done = match led {
                Ok(Led::Done) => return,
                Ok(Led::Apart(request)) => {
                    self.call_another(scope);
                    self.apart(&request, &mut own)
                }
                Err(e) => Err(e),
            };
            if let Err(e) = done {
                self.ended.store(true, Ordering::Release);
                (self.close)();
                self.failure.lock().get_or_insert(e);
                return;
            }
        }
    }

    /// Sees to it that somebody can take the lead.
    fn call_another<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        if self.threads.fetch_add(1, Ordering::Relaxed) < self.threads_max {
            let started =
                std::thread::Builder::new().name("nbd".to_owned()).spawn_scoped(scope, || self.work(scope));
            if started.is_ok() {
                return;
            }
        }
        self.threads.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes requests, and does them, until one is better done apart.
    fn lead(&self, input: &mut Input, own: &mut Own) -> Result<Led, ConnectionError> {
        loop {
            if input.ready() < Request::LEN {
                self.output.lock().flush()?;
            }
            let header = input.take(Request::LEN)?;
            let request =
                Request::parse(header).ok_or(ConnectionError::Protocol("a request does not begin as one"))?;
            let len = request.len as usize;
            match request.command {
                CMD_DISC => return self.output.lock().flush().map(|()| Led::Done),
                CMD_READ if self.worth_apart(input, &request, 0) => return Ok(Led::Apart(request)),
                CMD_READ => {
                    let mut output = self.output.lock();
                    self.read(&request, output.queued());
                    output.relieve()?;
                }
                CMD_WRITE => {
                    if request.len > REQUEST_LEN_MAX {
                        return Err(ConnectionError::Protocol("a write is longer than was advertised"));
                    }
                    if input.ready() < len {
                        self.output.lock().flush()?;
                    }
                    let apart = self.worth_apart(input, &request, len);
                    if apart || !Input::holds(len) {
                        input.fill(own.payload.room(len))?;
                        own.payload.commit(len);
                        if apart {
                            return Ok(Led::Apart(request));
                        }
                        self.write_own(&request, own)?;
                    } else {
                        let done = self.write(&request, input.take(len)?);
                        self.answer(&request, done)?;
                    }
                }
                CMD_FLUSH => {
                    // Replies that are ready do not wait for the disk.
                    self.output.lock().flush()?;
                    self.answer(&request, self.export.flush())?;
                }
                CMD_TRIM | CMD_WRITE_ZEROES => {
                    // NO_HOLE asks for room to be kept; but every write takes new room, whatever stood there before.
                    let done = check(self.export, &request)
                        .and_then(|()| self.export.zero(request.offset, u64::from(request.len)));
                    self.answer(&request, done.and_then(|()| force(self.export, &request)))?;
                }
                CMD_CACHE => {
                    let done = check(self.export, &request)
                        .and_then(|()| self.export.cache(request.offset, u64::from(request.len)));
                    self.answer(&request, done)?;
                }
                CMD_BLOCK_STATUS => {
                    let mut output = self.output.lock();
                    self.allocation(&request, output.queued());
                    output.relieve()?;
                }
                _ => self.answer(&request, Err(ExportError::Invalid))?,
            }
        }
    }

    /// Whether a request is long, and the next one is here already: with nothing else to do, one thread is best. A very
    /// long one takes so long that another thread may as well wait for the next.
    fn worth_apart(&self, input: &Input, request: &Request, payload: usize) -> bool {
        self.threads_max > 1
            && (APART_LEN_MIN..=REQUEST_LEN_MAX).contains(&request.len)
            && (!Input::holds(request.len as usize) || input.ready() >= payload + Request::LEN)
    }

    fn apart(&self, request: &Request, own: &mut Own) -> Result<(), ConnectionError> {
        if request.command == CMD_WRITE {
            return self.write_own(request, own);
        }
        self.read(request, &mut own.reply);
        let sent = self.output.lock().send(own.reply.as_slice());
        own.reply.clear();
        sent
    }

    fn write_own(&self, request: &Request, own: &mut Own) -> Result<(), ConnectionError> {
        let done = self.write(request, own.payload.as_mut_slice());
        own.payload.clear();
        self.answer(request, done)?;
        self.output.lock().flush()
    }

    fn write(&self, request: &Request, data: &mut [u8]) -> Result<(), ExportError> {
        check(self.export, request)?;
        self.export.write(request.offset, data)?;
        force(self.export, request)
    }

    /// Puts the answer to which ranges hold data to `out`.
    fn allocation(&self, request: &Request, out: &mut Buffer) {
        let most = if request.flags & FLAG_REQ_ONE != 0 { 1 } else { RANGES_MAX };
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        let mut visit = |len: u64, data: bool| {
            let (len, state) =
                (u32::try_from(len).unwrap_or(u32::MAX), if data { 0 } else { STATE_HOLE_ZERO });
            if let Some((before, _)) = ranges.last_mut().filter(|(_, same)| *same == state) {
                *before += len;
            } else if ranges.len() < most {
                ranges.push((len, state));
            } else {
                return false;
            }
            true
        };
        let allowed = self.mode.allocation && request.len > 0;
        let done = if allowed { check(self.export, request) } else { Err(ExportError::Invalid) };
        let done =
            done.and_then(|()| self.export.allocation(request.offset, u64::from(request.len), &mut visit));
        if let Err(e) = done {
            return self.refuse(request, e, out);
        }
        let mut reply = Vec::with_capacity(24 + ranges.len() * 8);
        let len = u32::try_from(4 + ranges.len() * 8).unwrap_or(u32::MAX);
        chunk(&mut reply, CHUNK_BLOCK_STATUS, &request.cookie, len);
        reply.extend_from_slice(&ALLOCATION_ID.to_be_bytes());
        for (len, state) in ranges {
            reply.extend_from_slice(&len.to_be_bytes());
            reply.extend_from_slice(&state.to_be_bytes());
        }
        out.put(&[&reply]);
    }

    /// Puts an error to `out`, in the form that reads and questions have.
    fn refuse(&self, request: &Request, why: ExportError, out: &mut Buffer) {
        if !self.mode.structured {
            return answer(out, request, Err(why));
        }
        let mut reply = Vec::with_capacity(26);
        chunk(&mut reply, CHUNK_ERROR, &request.cookie, 6);
        reply.extend_from_slice(&why.code().to_be_bytes());
        reply.extend_from_slice(&0u16.to_be_bytes());
        out.put(&[&reply]);
    }

    fn answer(&self, request: &Request, done: Result<(), ExportError>) -> Result<(), ConnectionError> {
        let mut output = self.output.lock();
        answer(output.queued(), request, done);
        output.relieve()
    }

    /// Puts a read's reply to `out`.
    fn read(&self, request: &Request, out: &mut Buffer) {
        let mut header = Vec::with_capacity(28);
        if self.mode.structured {
            chunk(&mut header, CHUNK_OFFSET_DATA, &request.cookie, request.len.saturating_add(8));
            header.extend_from_slice(&request.offset.to_be_bytes());
        } else {
            header.extend_from_slice(&SIMPLE_REPLY.to_be_bytes());
            header.extend_from_slice(&0u32.to_be_bytes());
            header.extend_from_slice(&request.cookie);
        }
        let allowed = if request.len > REQUEST_LEN_MAX {
            Err(ExportError::Invalid)
        } else {
            check(self.export, request)
        };
        let read = allowed.and_then(|()| {
            let len = header.len() + request.len as usize;
            let (head, body) = out.room(len).split_at_mut(header.len());
            head.copy_from_slice(&header);
            self.export.read(request.offset, body)?;
            out.commit(len);
            Ok(())
        });
        if let Err(e) = read {
            self.refuse(request, e, out);
        }
    }
}

fn check(export: &dyn Export, request: &Request) -> Result<(), ExportError> {
    let end = request.offset.checked_add(u64::from(request.len));
    if request.flags_known() && end.is_some_and(|end| end <= export.size_bytes()) {
        Ok(())
    } else {
        Err(ExportError::Invalid)
    }
}

fn force(export: &dyn Export, request: &Request) -> Result<(), ExportError> {
    if request.flags & FLAG_FUA != 0 { export.flush() } else { Ok(()) }
}

fn answer(out: &mut Buffer, request: &Request, done: Result<(), ExportError>) {
    let code = done.map_or_else(ExportError::code, |()| 0);
    out.put(&[&SIMPLE_REPLY.to_be_bytes(), &code.to_be_bytes(), &request.cookie]);
}

fn chunk(out: &mut Vec<u8>, kind: u16, cookie: &[u8; 8], len: u32) {
    out.extend_from_slice(&STRUCTURED_REPLY.to_be_bytes());
    out.extend_from_slice(&CHUNK_DONE.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(cookie);
    out.extend_from_slice(&len.to_be_bytes());
}
