//! Fixed newstyle negotiation: which export, under what rules.

use crate::{
    ConnectionError, Export, Exports,
    connection::Connection,
    transmission::{ALLOCATION_ID, Mode},
};
use std::sync::Arc;

const INIT: u64 = 0x4e42_444d_4147_4943;
const OPTION: u64 = 0x4948_4156_454f_5054;
const REPLY: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_STARTTLS: u32 = 5;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_LIST_META_CONTEXT: u32 = 9;
const OPT_SET_META_CONTEXT: u32 = 10;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
const REP_ERR_INVALID: u32 = 1 << 31 | 3;
const REP_ERR_TLS_REQD: u32 = 1 << 31 | 5;
const REP_ERR_UNKNOWN: u32 = 1 << 31 | 6;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// Which ranges hold data: the one context that is offered.
const ALLOCATION: &[u8] = b"base:allocation";

/// Longest option, in bytes: a name is at most 4,096.
const OPTION_LEN_MAX: u32 = 8192;
/// Most options before an export is chosen.
const OPTIONS_MAX: usize = 64;

/// What negotiation led to.
pub(crate) enum Outcome {
    /// Serve this.
    Transmit(Connection, Arc<dyn Export>, Mode),
    /// The client wants TLS now; its request is answered.
    StartTls(Connection),
    /// The client is done.
    Done,
}

/// Greets and negotiates. `secure` says that nothing more is needed for trust: the socket is local or is TLS.
pub(crate) fn negotiate(
    mut connection: Connection,
    exports: &dyn Exports,
    secure: bool,
    tls_offered: bool,
    greet: bool,
) -> Result<Outcome, ConnectionError> {
    let mut no_zeroes = true;
    if greet {
        connection.put(&[
            &INIT.to_be_bytes(),
            &OPTION.to_be_bytes(),
            &(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes(),
        ]);
        let flags = connection.u32()?;
        if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 || flags & u32::from(FIXED_NEWSTYLE) == 0 {
            return Err(ConnectionError::Protocol("unknown client flags"));
        }
        no_zeroes = flags & u32::from(NO_ZEROES) != 0;
    }
    let mut mode = Mode { structured: false, allocation: false };
    // The export whose allocation the client wants to ask for.
    let mut selected: Option<Vec<u8>> = None;
    for _ in 0..OPTIONS_MAX {
        if connection.u64()? != OPTION {
            return Err(ConnectionError::Protocol("an option does not begin as one"));
        }
        let option = connection.u32()?;
        let len = connection.u32()?;
        if len > OPTION_LEN_MAX {
            return Err(ConnectionError::Protocol("an option is too long"));
        }
        let data = connection.take(len as usize)?.to_vec();
        match option {
            OPT_ABORT => {
                reply(&mut connection, option, REP_ACK, &[]);
                connection.output.flush()?;
                return Ok(Outcome::Done);
            }
            OPT_STARTTLS if tls_offered && data.is_empty() => {
                reply(&mut connection, option, REP_ACK, &[]);
                connection.output.flush()?;
                return Ok(Outcome::StartTls(connection));
            }
            OPT_EXPORT_NAME if !secure => {
                return Err(ConnectionError::Protocol("an export was asked for without TLS"));
            }
            _ if !secure => reply(&mut connection, option, REP_ERR_TLS_REQD, b"this server needs TLS"),
            OPT_EXPORT_NAME => {
                let export = find(exports, &data).ok_or(ConnectionError::Protocol("unknown export"))?;
                let (size, flags) = (export.size_bytes().to_be_bytes(), mode.flags().to_be_bytes());
                let padding = [0; 124];
                connection.put(&[&size, &flags, if no_zeroes { &[] } else { &padding }]);
                mode.allocation = selected.is_some_and(|name| name == data);
                return Ok(Outcome::Transmit(connection, export, mode));
            }
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                mode.structured = true;
                reply(&mut connection, option, REP_ACK, &[]);
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
                let set = option == OPT_SET_META_CONTEXT;
                let query = MetaQuery::parse(&data).filter(|_| mode.structured || !set);
                if set {
                    selected = None;
                }
                match query.map(|q| (q.wanted(set), find(exports, q.export), q.export)) {
                    None => reply(&mut connection, option, REP_ERR_INVALID, b"malformed, or too early"),
                    Some((_, None, _)) => {
                        reply(&mut connection, option, REP_ERR_UNKNOWN, b"unknown or inaccessible export")
                    }
                    Some((wanted, Some(_), name)) => {
                        if wanted {
                            let id = ALLOCATION_ID.to_be_bytes();
                            let context = [&id[..], ALLOCATION].concat();
                            reply(&mut connection, option, REP_META_CONTEXT, &context);
                            selected = set.then(|| name.to_vec());
                        }
                        reply(&mut connection, option, REP_ACK, &[]);
                    }
                }
            }
            OPT_LIST if data.is_empty() => {
                for name in exports.names() {
                    let len = u32::try_from(name.len()).unwrap_or(0);
                    reply(
                        &mut connection,
                        option,
                        REP_SERVER,
                        &[&len.to_be_bytes(), name.as_bytes()].concat(),
                    );
                }
                reply(&mut connection, option, REP_ACK, &[]);
            }
            OPT_INFO | OPT_GO => match info_name(&data).map(|name| find(exports, name)) {
                None => reply(&mut connection, option, REP_ERR_INVALID, b"malformed option"),
                Some(None) => {
                    reply(&mut connection, option, REP_ERR_UNKNOWN, b"unknown or inaccessible export")
                }
                Some(Some(export)) => {
                    inform(&mut connection, option, &*export, mode);
                    if option == OPT_GO {
                        mode.allocation = selected.as_deref() == info_name(&data);
                        return Ok(Outcome::Transmit(connection, export, mode));
                    }
                }
            },
            _ => reply(&mut connection, option, REP_ERR_UNSUP, b"not supported"),
        }
    }
    Err(ConnectionError::Protocol("too many options"))
}

fn find(exports: &dyn Exports, name: &[u8]) -> Option<Arc<dyn Export>> {
    std::str::from_utf8(name).ok().and_then(|name| exports.open(name))
}

/// The name in an INFO or GO option, if the option is well formed.
fn info_name(data: &[u8]) -> Option<&[u8]> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    let (count, rest) = rest.split_first_chunk::<2>()?;
    (rest.len() == usize::from(u16::from_be_bytes(*count)) * 2).then_some(name)
}

/// What LIST_META_CONTEXT and SET_META_CONTEXT ask.
struct MetaQuery<'a> {
    export: &'a [u8],
    contexts: Vec<&'a [u8]>,
}

impl<'a> MetaQuery<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let text = |data: &mut &'a [u8]| {
            let (len, rest) = data.split_first_chunk::<4>()?;
            let (text, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
            *data = rest;
            Some(text)
        };
        let mut rest = data;
        let export = text(&mut rest)?;
        let (count, mut rest) = rest.split_first_chunk::<4>()?;
        // Each takes four bytes at least, so a count that is too high ends soon.
        let contexts =
            (0..u32::from_be_bytes(*count)).map(|_| text(&mut rest)).collect::<Option<Vec<_>>>()?;
        rest.is_empty().then_some(Self { export, contexts })
    }

    /// Whether it asks for the allocation. A list may name all contexts, or those of a namespace.
    fn wanted(&self, set: bool) -> bool {
        let all = !set && (self.contexts.is_empty() || self.contexts.contains(&b"base:".as_slice()));
        all || self.contexts.contains(&ALLOCATION)
    }
}

fn inform(connection: &mut Connection, option: u32, export: &dyn Export, mode: Mode) {
    let mut info = INFO_EXPORT.to_be_bytes().to_vec();
    info.extend_from_slice(&export.size_bytes().to_be_bytes());
    info.extend_from_slice(&mode.flags().to_be_bytes());
    reply(connection, option, REP_INFO, &info);
    let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [1u32, 4096, crate::transmission::REQUEST_LEN_MAX] {
        sizes.extend_from_slice(&size.to_be_bytes());
    }
    reply(connection, option, REP_INFO, &sizes);
    reply(connection, option, REP_ACK, &[])
}

fn reply(connection: &mut Connection, option: u32, kind: u32, data: &[u8]) {
    let len = u32::try_from(data.len()).unwrap_or(0);
    connection.put(&[
        &REPLY.to_be_bytes(),
        &option.to_be_bytes(),
        &kind.to_be_bytes(),
        &len.to_be_bytes(),
        data,
    ]);
}
