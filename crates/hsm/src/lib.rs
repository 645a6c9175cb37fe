//! Private keys in a PKCS#11 token: made or unwrapped inside, and never outside.
//!
//! The only user of `cryptoki`, and only `custody-kek` may depend on this crate (`deny.toml`). It gives what tokens have in
//! common: the bare RSA operation, signatures over digests, AES key wrap. What tokens do differently, OAEP above all
//! (SoftHSM 2.6 knows SHA-1 only), is done outside.

mod connection;
mod error;
mod keys;

use connection::Connection;
pub use error::TokenError;
pub use keys::DIGEST_INFO;
use parking_lot::Mutex;
use serde::Deserialize;
use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

/// After a token could not be reached, before it is tried again.
const RETRY_TIME: Duration = Duration::from_secs(1);

/// Where a token is, and what opens it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenSettings {
    /// The vendor's PKCS#11 module, a shared library.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// A file of mode 0600 with the user's PIN on its first line.
    pub pin_file: PathBuf,
}

/// A token. It may go and come back: what is asked of it meanwhile fails with [`TokenError::Lost`].
pub struct Token {
    settings: TokenSettings,
    state: Mutex<State>,
}

struct State {
    now: Option<Arc<Connection>>,
    /// The one before: a module is initialized once in a process, so it must be gone first.
    before: Weak<Connection>,
    failed: Option<(Instant, String)>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("token", &self.settings.token).finish_non_exhaustive()
    }
}

impl Token {
    /// Opens a token: loads its module and logs in. What is wrong with the settings is said now; a token that is away is
    /// tried again when it is asked.
    ///
    /// # Errors
    /// The module cannot be loaded, the PIN file cannot be read or is open to others, or the PIN is wrong.
    pub fn open(settings: TokenSettings) -> Result<Self, TokenError> {
        let state = Mutex::new(State { now: None, before: Weak::new(), failed: None });
        let token = Self { settings, state };
        match token.connection() {
            Ok(_) => Ok(token),
            Err(e @ TokenError::Lost(_)) => {
                tracing::error!(error = %e, "the HSM is away; its keys cannot be used until it is back");
                Ok(token)
            }
            Err(e) => Err(e),
        }
    }

    fn connection(&self) -> Result<Arc<Connection>, TokenError> {
        let mut state = self.state.lock();
        if let Some(now) = &state.now {
            return Ok(now.clone());
        }
        if let Some((when, why)) = &state.failed
            && when.elapsed() < RETRY_TIME
        {
            return Err(TokenError::Lost(why.clone()));
        }
        if state.before.strong_count() > 0 {
            return Err(TokenError::Lost("the connection before is still in use".to_owned()));
        }
        match Connection::open(&self.settings) {
            Ok(connection) => {
                let connection = Arc::new(connection);
                (state.now, state.failed) = (Some(connection.clone()), None);
                Ok(connection)
            }
            Err(e) => {
                state.failed = Some((Instant::now(), e.to_string()));
                Err(e)
            }
        }
    }

    /// Runs something on a session of the token, and gives the connection up where the token is lost.
    fn run<T>(
        &self,
        act: impl FnOnce(&Connection, &cryptoki::session::Session) -> Result<T, TokenError>,
    ) -> Result<T, TokenError> {
        let connection = self.connection()?;
        let done = connection.session().and_then(|session| {
            let done = act(&connection, &session);
            // A session that failed may be in the middle of something: it is not used again.
            if done.is_ok() {
                connection.give_back(session);
            } else {
                connection.drop_session(session);
            }
            done
        });
        // A token that was changed for another looks like one whose keys are gone.
        let given_up = match &done {
            Err(TokenError::Lost(why)) => Some(why.clone()),
            Err(e @ TokenError::NoKey(_)) if connection.age() > RETRY_TIME => Some(e.to_string()),
            _ => None,
        };
        if let Some(why) = given_up {
            let mut state = self.state.lock();
            if state.now.as_ref().is_some_and(|now| Arc::ptr_eq(now, &connection)) {
                tracing::error!(error = %why, "the HSM is lost; it is opened anew when it is asked again");
                state.before = Arc::downgrade(&connection);
                state.now = None;
            }
        }
        done
    }
}
