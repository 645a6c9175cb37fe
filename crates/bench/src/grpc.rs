//! A client of the gRPC face that costs next to nothing: one connection, requests written once, frames read as they come.
//!
//! A load generator shares the cores with what it loads. What it spends is missing there, and is not the vault's: so
//! `h2load` and `wrk` are written, and so is this. Header fields are indexed as gRPC's C and Go clients index them
//! (RFC 7541, section 6.2.1); every answer is compared, byte for byte where it is the same each time.

use crate::{load::Load, trust::client_config};
use anyhow::{Context as _, bail, ensure};
use custody_testkit::Deployment;
use rustls::{ClientConnection, StreamOwned, pki_types::ServerName};
use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

/// RFC 9113, section 6.
mod frame {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const HEADER_LEN: usize = 9;
    /// Of DATA and HEADERS.
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    /// Of SETTINGS and PING.
    pub(super) const ACK: u8 = 1;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Largest window that there is: answers are small, and nothing shall wait for updates.
const WINDOW: u32 = (1 << 31) - 1;
/// The window that a connection begins with.
const WINDOW_BEFORE: u32 = 65_535;
/// SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW_SIZE: u16 = 4;
/// Bytes of answers after which the connection's window is opened again.
const WINDOW_USED_MAX: u32 = 1 << 30;

/// One method with one request, ready to be sent any number of times.
pub(crate) struct Prepared {
    path: &'static str,
    body: Vec<u8>,
    /// The answer, where it is the same each time.
    answer: Option<Vec<u8>>,
}

impl Prepared {
    /// `answer` is what every call must be answered with; where it differs from call to call, anything that is not empty does.
    pub(crate) fn new<M: prost::Message>(
        path: &'static str,
        request: &M,
        answer: Option<Vec<u8>>,
    ) -> anyhow::Result<Self> {
        let message = request.encode_to_vec();
        let mut body = vec![0];
        body.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
        body.extend_from_slice(&message);
        Ok(Self { path, body, answer })
    }
}

pub(crate) struct GrpcClient {
    stream: StreamOwned<ClientConnection, TcpStream>,
    authority: String,
    token: String,
}

/// A string without Huffman code (RFC 7541, section 5.2).
fn put_text(out: &mut Vec<u8>, text: &str) {
    let len = text.len();
    if len < 127 {
        out.push(len as u8);
    } else {
        out.push(127);
        let mut rest = len - 127;
        while rest >= 128 {
            out.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        out.push(rest as u8);
    }
    out.extend_from_slice(text.as_bytes());
}

fn put_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let len = payload.len() as u32;
    let [_, l2, l1, l0] = len.to_be_bytes();
    out.extend_from_slice(&[l2, l1, l0, kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The header fields of a call: with their text, and after that by their place in the dynamic table.
fn header_blocks(path: &str, authority: &str, token: &str) -> (Vec<u8>, Vec<u8>) {
    // `:method: POST` and `:scheme: https` are in the static table, as are the names of all others but `te`.
    let (mut first, later) = (vec![0x83, 0x87], vec![0x83, 0x87, 0xc2, 0xc1, 0xc0, 0xbf, 0xbe]);
    for (name, value) in [(0x44, path), (0x41, authority)] {
        first.push(name);
        put_text(&mut first, value);
    }
    first.push(0x40);
    put_text(&mut first, "te");
    put_text(&mut first, "trailers");
    for (name, value) in [(0x5f, "application/grpc"), (0x57, &*format!("Bearer {token}"))] {
        first.push(name);
        put_text(&mut first, value);
    }
    (first, later)
}

impl GrpcClient {
    pub(crate) fn connect(deployment: &Deployment, token: &str) -> anyhow::Result<Self> {
        let url = deployment.url("vault")?;
        let authority = url.trim_start_matches("https://").to_owned();
        let host = authority.rsplit_once(':').context("the address has no port")?.0.to_owned();
        let config = client_config(deployment, &[b"h2"])?;
        let socket = TcpStream::connect(&authority)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(Duration::from_secs(30)))?;
        let connection = ClientConnection::new(config, ServerName::try_from(host)?)?;
        Ok(Self { stream: StreamOwned::new(connection, socket), authority, token: token.to_owned() })
    }

    /// Keeps so many calls in flight for a time, over this connection, and waits for those begun. It blocks.
    pub(crate) fn run(mut self, in_flight: usize, time: Duration, call: &Prepared) -> anyhow::Result<Load> {
        let (first, later) = header_blocks(call.path, &self.authority, &self.token);
        let mut out = PREFACE.to_vec();
        let mut settings = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        settings.extend_from_slice(&WINDOW.to_be_bytes());
        put_frame(&mut out, frame::SETTINGS, 0, 0, &settings);
        put_frame(&mut out, frame::WINDOW_UPDATE, 0, 0, &(WINDOW - WINDOW_BEFORE).to_be_bytes());
        let started = Instant::now();
        let until = started + time;
        let mut calls = Calls { next: 1, window: WINDOW_BEFORE, ..Calls::default() };
        calls.begin(&mut out, &first, &call.body)?;
        let mut wanted = in_flight - 1;
        let (mut input, mut len, mut used) = (vec![0; 1 << 18], 0, 0);
        loop {
            while wanted > 0 && calls.begin(&mut out, &later, &call.body)? {
                wanted -= 1;
            }
            self.stream.write_all(&out)?;
            self.stream.flush()?;
            out.clear();
            let more = self.stream.read(input.get_mut(len..).context("a frame is too long")?)?;
            ensure!(more > 0, "the connection ended");
            len += more;
            used += more as u32;
            let mut at = 0;
            let read = input.get(..len).unwrap_or_default();
            while let Some((head, rest)) = read.get(at..).and_then(<[u8]>::split_first_chunk) {
                let [l2, l1, l0, kind, flags, stream @ ..]: &[u8; frame::HEADER_LEN] = head;
                let size = u32::from_be_bytes([0, *l2, *l1, *l0]) as usize;
                let Some(payload) = rest.get(..size) else { break };
                let (kind, flags, stream) = (*kind, *flags, u32::from_be_bytes(*stream));
                at += frame::HEADER_LEN + size;
                match kind {
                    frame::DATA => calls.answered(stream, payload, call.answer.as_deref())?,
                    frame::HEADERS if flags & frame::END_STREAM != 0 => {
                        calls.end(stream)?;
                        wanted += usize::from(Instant::now() < until);
                    }
                    frame::SETTINGS | frame::PING if flags & frame::ACK == 0 => {
                        let same = if kind == frame::PING { payload } else { &[] };
                        put_frame(&mut out, kind, frame::ACK, 0, same);
                    }
                    frame::WINDOW_UPDATE if stream == 0 => calls.widen(payload)?,
                    frame::RST_STREAM | frame::GOAWAY => {
                        bail!("the vault ended stream {stream}: {payload:?}")
                    }
                    _ => {}
                }
            }
            input.copy_within(at..len, 0);
            len -= at;
            if calls.open.is_empty() && wanted == 0 {
                return Ok(Load::of(calls.times, started.elapsed()));
            }
            if used > WINDOW_USED_MAX {
                put_frame(&mut out, frame::WINDOW_UPDATE, 0, 0, &std::mem::take(&mut used).to_be_bytes());
            }
        }
    }
}

/// What is in flight.
#[derive(Default)]
struct Calls {
    /// By stream: when it began, and whether its answer has come.
    open: HashMap<u32, (Instant, bool)>,
    next: u32,
    /// Bytes that the vault takes now, over all calls. Each call's own window is larger than a request.
    window: u32,
    times: Vec<Duration>,
}

impl Calls {
    /// Begins a call, if the vault takes it now.
    fn begin(&mut self, out: &mut Vec<u8>, headers: &[u8], body: &[u8]) -> anyhow::Result<bool> {
        let Some(window) = self.window.checked_sub(u32::try_from(body.len())?) else { return Ok(false) };
        self.window = window;
        let stream = self.next;
        self.next += 2;
        self.open.insert(stream, (Instant::now(), false));
        put_frame(out, frame::HEADERS, frame::END_HEADERS, stream, headers);
        put_frame(out, frame::DATA, frame::END_STREAM, stream, body);
        Ok(true)
    }

    fn widen(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        self.window += u32::from_be_bytes(payload.try_into()?);
        Ok(())
    }

    fn answered(&mut self, stream: u32, message: &[u8], expected: Option<&[u8]>) -> anyhow::Result<()> {
        let message = message.get(5..).context("an answer is in pieces")?;
        match expected {
            Some(expected) => ensure!(message == expected, "another answer than expected"),
            None => ensure!(!message.is_empty(), "an empty answer"),
        }
        self.open.get_mut(&stream).context("an answer to no call")?.1 = true;
        Ok(())
    }

    /// A call that fails has no message (the gRPC protocol's `Trailers-Only`).
    fn end(&mut self, stream: u32) -> anyhow::Result<()> {
        let (began, answered) = self.open.remove(&stream).context("an end of no call")?;
        ensure!(answered, "a call failed");
        self.times.push(began.elapsed());
        Ok(())
    }
}
