//! A connection that can be cut without either end being told, as a network that loses every packet.

use parking_lot::Mutex;
use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

#[derive(Debug, Default)]
struct State {
    cut: AtomicBool,
    ended: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

/// Forwards connections to an address, while it is not cut. Ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

/// How often a connection that is cut looks whether it still is.
const LOOK_EVERY: Duration = Duration::from_millis(5);

impl Proxy {
    /// Begins to forward to `host:port`.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(target: &str) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let state = Arc::<State>::default();
        let (target, accepting) = (target.to_owned(), state.clone());
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if accepting.ended.load(Ordering::Acquire) {
                    return;
                }
                let (target, state) = (target.clone(), accepting.clone());
                thread::spawn(move || connect(&near, &target, &state));
            }
        });
        Ok(Self { address, state })
    }

    /// Where it listens, `https://host:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Nothing gets through from now on, and nobody is told. New connections are accepted and hear nothing.
    pub fn cut(&self) {
        self.state.cut.store(true, Ordering::Release);
    }

    /// Lets everything through again. Connections that were cut are reset, as they are when what was sent has been lost.
    pub fn mend(&self) {
        self.state.cut.store(false, Ordering::Release);
        for stream in self.state.open.lock().drain(..) {
            _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Release);
        self.mend();
        _ = TcpStream::connect(self.address);
    }
}

fn connect(near: &TcpStream, target: &str, state: &Arc<State>) {
    state.open.lock().extend(near.try_clone());
    while state.cut.load(Ordering::Acquire) {
        thread::sleep(LOOK_EVERY);
    }
    let Ok(far) = TcpStream::connect(target) else { return };
    _ = (near.set_nodelay(true), far.set_nodelay(true));
    state.open.lock().extend(far.try_clone());
    thread::scope(|scope| {
        scope.spawn(|| forward(near, &far, state));
        forward(&far, near, state);
    });
}

fn forward(mut from: &TcpStream, mut to: &TcpStream, state: &State) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        while state.cut.load(Ordering::Acquire) {
            thread::sleep(LOOK_EVERY);
        }
        let Some(read) = buffer.get(..len) else { break };
        if to.write_all(read).is_err() {
            break;
        }
    }
    _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
