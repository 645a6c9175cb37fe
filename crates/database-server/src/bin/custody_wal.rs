//! `custody-wal`: what PostgreSQL runs as its `archive_command` and `restore_command`.
//!
//! It carries one file between the server, whose user it runs as, and the database node's socket, which has the
//! storage node at its other end. Nothing is stored on the way. The words on the socket are in `../wal.rs`.

use std::{
    env,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    process::ExitCode,
    time::{Duration, UNIX_EPOCH},
};

/// How long the other side may be silent.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Tells PostgreSQL that there is no such file: the end of the log.
const MISSING: u8 = 1;
/// Tells PostgreSQL that a file is not archived; it tries again, and counts it in `pg_stat_archiver`.
const NOT_ARCHIVED: u8 = 1;
/// Tells PostgreSQL that a file could not be read, which is not the end of the log: above 125, a recovery ends.
const NOT_READ: u8 = 200;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (done, failed) = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["put", socket, file, path] => (put(socket, file, path), NOT_ARCHIVED),
        ["get", socket, file, path] => (get(socket, file, path), NOT_READ),
        _ => (Err(io::Error::other("usage: custody-wal put|get SOCKET FILE PATH")), NOT_ARCHIVED),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(MISSING),
        Err(e) => {
            _ = writeln!(io::stderr(), "custody-wal: {e}");
            ExitCode::from(failed)
        }
    }
}

fn connect(socket: &str) -> io::Result<BufReader<UnixStream>> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(BufReader::new(stream))
}

/// The words of an answer.
fn answer(stream: &mut BufReader<UnixStream>) -> io::Result<Vec<String>> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    match line.trim_end().split_once(' ').unwrap_or_else(|| (line.trim_end(), "")) {
        ("", _) => Err(io::Error::other("the database node ended")),
        ("error", why) => Err(io::Error::other(why.to_owned())),
        (first, rest) => Ok([first].into_iter().chain(rest.split_whitespace()).map(str::to_owned).collect()),
    }
}

fn put(socket: &str, file: &str, path: &str) -> io::Result<bool> {
    let mut source = File::open(path)?;
    let metadata = source.metadata()?;
    let written = metadata.modified()?.duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_millis();
    let mut content = Vec::with_capacity(usize::try_from(metadata.len()).map_err(io::Error::other)?);
    source.read_to_end(&mut content)?;
    let size = content.len();
    // A segment that was switched early is mostly zeros.
    let used = content.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    content.truncate(used);
    let mut stream = connect(socket)?;
    stream.get_mut().write_all(format!("put {file} {size} {used} {written}\n").as_bytes())?;
    // The other side may have refused it by now; its answer tells more than a broken pipe.
    let sent = stream.get_mut().write_all(&content);
    _ = answer(&mut stream)?;
    sent.map(|()| true)
}

fn get(socket: &str, file: &str, path: &str) -> io::Result<bool> {
    let mut stream = connect(socket)?;
    stream.get_mut().write_all(format!("get {file}\n").as_bytes())?;
    let words = answer(&mut stream)?;
    if words.first().is_some_and(|w| w == "missing") {
        return Ok(false);
    }
    let size: u64 = words.get(1).and_then(|w| w.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let mut target = File::create(path)?;
    // Parts, each with its length before it; the last has none.
    loop {
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let len = u64::from(u32::from_le_bytes(len));
        if len == 0 {
            break;
        }
        if io::copy(&mut (&mut stream).take(len), &mut target)? != len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    target.set_len(size)?;
    Ok(true)
}
