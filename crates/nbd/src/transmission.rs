//! The transmission phase: requests and replies.

use crate::{ConnectionError, Export, ExportError, connection::Connection};

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
const CMD_WRITE_ZEROES: u16 = 6;
const FLAG_FUA: u16 = 1;

const CHUNK_DONE: u16 = 1;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_ERROR: u16 = 1 << 15 | 1;

/// What negotiation settled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    pub(crate) structured: bool,
}

impl Mode {
    /// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF (reads are never fragmented), and
    /// CAN_MULTI_CONN: a flush covers the finished writes of every connection.
    pub(crate) fn flags(self) -> u16 {
        let always = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8;
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

/// Serves requests until the client is done.
pub(crate) fn transmit(
    mut connection: Connection,
    export: &dyn Export,
    mode: Mode,
) -> Result<(), ConnectionError> {
    let mut data = Vec::new();
    loop {
        if connection.u32()? != REQUEST {
            return Err(ConnectionError::Protocol("a request does not begin as one"));
        }
        let request = Request {
            flags: connection.u16()?,
            command: connection.u16()?,
            cookie: connection.array()?,
            offset: connection.u64()?,
            len: connection.u32()?,
        };
        match request.command {
            CMD_DISC => return connection.flush(),
            CMD_READ => read(&mut connection, export, mode, &request)?,
            CMD_WRITE => {
                if request.len > REQUEST_LEN_MAX {
                    return Err(ConnectionError::Protocol("a write is longer than was advertised"));
                }
                data.resize(request.len as usize, 0);
                connection.read_exact(&mut data)?;
                let done = check(export, &request).and_then(|()| export.write(request.offset, &data));
                answer(&mut connection, &request, done.and_then(|()| force(export, &request)))?;
            }
            CMD_FLUSH => {
                // Replies that are ready do not wait for the disk.
                connection.flush()?;
                answer(&mut connection, &request, export.flush())?;
            }
            CMD_TRIM | CMD_WRITE_ZEROES => {
                let done = check(export, &request)
                    .and_then(|()| export.zero(request.offset, u64::from(request.len)));
                answer(&mut connection, &request, done.and_then(|()| force(export, &request)))?;
            }
            _ => answer(&mut connection, &request, Err(ExportError::Invalid))?,
        }
    }
}

fn check(export: &dyn Export, request: &Request) -> Result<(), ExportError> {
    let end = request.offset.checked_add(u64::from(request.len));
    if end.is_some_and(|end| end <= export.size_bytes()) { Ok(()) } else { Err(ExportError::Invalid) }
}

fn force(export: &dyn Export, request: &Request) -> Result<(), ExportError> {
    if request.flags & FLAG_FUA != 0 { export.flush() } else { Ok(()) }
}

fn answer(
    connection: &mut Connection,
    request: &Request,
    done: Result<(), ExportError>,
) -> Result<(), ConnectionError> {
    let code = done.map_or_else(ExportError::code, |()| 0);
    connection.put(&[&SIMPLE_REPLY.to_be_bytes(), &code.to_be_bytes(), &request.cookie])
}

fn read(
    connection: &mut Connection,
    export: &dyn Export,
    mode: Mode,
    request: &Request,
) -> Result<(), ConnectionError> {
    let mut header = Vec::with_capacity(28);
    if mode.structured {
        chunk(&mut header, CHUNK_OFFSET_DATA, &request.cookie, request.len.saturating_add(8));
        header.extend_from_slice(&request.offset.to_be_bytes());
    } else {
        header.extend_from_slice(&SIMPLE_REPLY.to_be_bytes());
        header.extend_from_slice(&0u32.to_be_bytes());
        header.extend_from_slice(&request.cookie);
    }
    let allowed =
        if request.len > REQUEST_LEN_MAX { Err(ExportError::Invalid) } else { check(export, request) };
    let read = match allowed {
        Ok(()) => {
            connection.put_filled(&header, request.len as usize, |out| export.read(request.offset, out))?
        }
        Err(e) => Err(e),
    };
    match read {
        Ok(()) => Ok(()),
        Err(e) if mode.structured => {
            let mut reply = Vec::with_capacity(26);
            chunk(&mut reply, CHUNK_ERROR, &request.cookie, 6);
            reply.extend_from_slice(&e.code().to_be_bytes());
            reply.extend_from_slice(&0u16.to_be_bytes());
            connection.put(&[&reply])
        }
        Err(e) => answer(connection, request, Err(e)),
    }
}

fn chunk(out: &mut Vec<u8>, kind: u16, cookie: &[u8; 8], len: u32) {
    out.extend_from_slice(&STRUCTURED_REPLY.to_be_bytes());
    out.extend_from_slice(&CHUNK_DONE.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(cookie);
    out.extend_from_slice(&len.to_be_bytes());
}
