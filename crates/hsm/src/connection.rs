//! A loaded module, logged in, with a bounded pool of sessions.

use crate::{TokenError, TokenSettings};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    object::ObjectHandle,
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};
use parking_lot::{Condvar, Mutex};
use std::{collections::HashMap, fs, os::unix::fs::PermissionsExt as _, time::Duration, time::Instant};
use zeroize::Zeroizing;

/// Sessions at once. Tokens have a bound, and more than a few do not make one faster.
const SESSIONS_MAX: usize = 16;
/// Longest wait for a session.
const WAIT_TIME: Duration = Duration::from_secs(10);
/// Handles that are remembered.
const HANDLES_MAX: usize = 10_000;

pub(crate) struct Connection {
    module: Option<Pkcs11>,
    slot: Slot,
    pool: Mutex<Pool>,
    free: Condvar,
    handles: Mutex<HashMap<Vec<u8>, ObjectHandle>>,
    since: Instant,
}

struct Pool {
    /// The login lasts as long as one session does: this one.
    keeper: Option<Session>,
    idle: Vec<Session>,
    open: usize,
}

/// The PIN, for as long as it is needed.
fn pin(settings: &TokenSettings) -> Result<AuthPin, TokenError> {
    let path = &settings.pin_file;
    let bad = |why: String| TokenError::PinFile { path: path.clone(), why };
    let mode = fs::metadata(path).map_err(|e| bad(format!("cannot be read: {e}")))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(bad("can be read by others; run `chmod 600` on it".to_owned()));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|e| bad(format!("cannot be read: {e}")))?);
    let pin = text.lines().next().unwrap_or_default();
    if pin.is_empty() {
        return Err(bad("is empty".to_owned()));
    }
    Ok(AuthPin::new(pin.into()))
}

impl Connection {
    pub(crate) fn open(settings: &TokenSettings) -> Result<Self, TokenError> {
        let pin = pin(settings)?;
        let module = Pkcs11::new(&settings.module)
            .map_err(|e| TokenError::Module { path: settings.module.clone(), why: e.to_string() })?;
        module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).map_err(TokenError::of)?;
        // From here on the module is finalized with this.
        let mut connection = Self {
            slot: Slot::try_from(0u64).map_err(|_| TokenError::Lost("no slot".to_owned()))?,
            module: Some(module),
            pool: Mutex::new(Pool { keeper: None, idle: Vec::new(), open: 0 }),
            free: Condvar::new(),
            handles: Mutex::default(),
            since: Instant::now(),
        };
        connection.slot = connection.find(&settings.token)?;
        let session = connection.new_session()?;
        session.login(UserType::User, Some(&pin)).map_err(TokenError::of)?;
        connection.pool.get_mut().keeper = Some(session);
        Ok(connection)
    }

    /// How long it has been open.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    fn module(&self) -> Result<&Pkcs11, TokenError> {
        self.module.as_ref().ok_or_else(|| TokenError::Lost("the module is finalized".to_owned()))
    }

    fn find(&self, label: &str) -> Result<Slot, TokenError> {
        let module = self.module()?;
        let slots = module.get_slots_with_token().map_err(TokenError::of)?;
        let named = |slot: &Slot| module.get_token_info(*slot).is_ok_and(|info| info.label().trim() == label);
        slots.into_iter().find(named).ok_or_else(|| TokenError::Lost(format!("there is no token `{label}`")))
    }

    fn new_session(&self) -> Result<Session, TokenError> {
        self.module()?.open_rw_session(self.slot).map_err(TokenError::of)
    }

    /// A session that nobody else uses.
    pub(crate) fn session(&self) -> Result<Session, TokenError> {
        let until = Instant::now() + WAIT_TIME;
        let mut pool = self.pool.lock();
        loop {
            if let Some(idle) = pool.idle.pop() {
                return Ok(idle);
            }
            if pool.open < SESSIONS_MAX {
                pool.open += 1;
                drop(pool);
                return self.new_session().inspect_err(|_| self.closed());
            }
            if self.free.wait_until(&mut pool, until).timed_out() {
                return Err(TokenError::Refused("all its sessions are busy".to_owned()));
            }
        }
    }

    pub(crate) fn give_back(&self, session: Session) {
        self.pool.lock().idle.push(session);
        self.free.notify_one();
    }

    pub(crate) fn drop_session(&self, session: Session) {
        drop(session);
        self.closed();
    }

    fn closed(&self) {
        self.pool.lock().open -= 1;
        self.free.notify_one();
    }

    /// The handle of a key, looked for once.
    pub(crate) fn handle(
        &self,
        id: &[u8],
        look: impl FnOnce() -> Result<ObjectHandle, TokenError>,
    ) -> Result<ObjectHandle, TokenError> {
        if let Some(known) = self.handles.lock().get(id) {
            return Ok(*known);
        }
        let found = look()?;
        let mut handles = self.handles.lock();
        if handles.len() >= HANDLES_MAX {
            handles.clear();
        }
        handles.insert(id.to_vec(), found);
        Ok(found)
    }

    pub(crate) fn forget(&self, id: &[u8]) {
        self.handles.lock().remove(id);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let pool = self.pool.get_mut();
        pool.idle.clear();
        pool.keeper = None;
        if let Some(Err(e)) = self.module.take().map(Pkcs11::finalize) {
            tracing::warn!(error = %e, "the PKCS#11 module was not finalized");
        }
    }
}
