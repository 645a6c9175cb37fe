//! What a token does not do, and why.

use cryptoki::error::{Error, RvError};
use std::path::PathBuf;

/// A token that cannot be asked, or that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The shared library cannot be used.
    #[error("the PKCS#11 module `{path}` cannot be loaded: {why}")]
    Module {
        /// Which.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// The PIN's file cannot be used.
    #[error("the PIN file `{path}` {why}")]
    PinFile {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Tokens lock themselves after a few of these, so it is not tried again.
    #[error("the HSM does not take the PIN; check the PIN file before the token locks itself")]
    Pin,
    /// It is not there, or was there and is gone.
    #[error("the HSM cannot be reached: {0}")]
    Lost(String),
    /// It has no such key.
    #[error("the HSM has no key {0}; is it the token that the key was made in?")]
    NoKey(String),
    /// It answered, and did not do it.
    #[error("the HSM refused: {0}")]
    Refused(String),
}

impl TokenError {
    /// What a module's error says of the token.
    pub(crate) fn of(error: Error) -> Self {
        match &error {
            Error::Pkcs11(
                RvError::DeviceError
                | RvError::DeviceRemoved
                | RvError::TokenNotPresent
                | RvError::TokenNotRecognized
                | RvError::SlotIdInvalid
                | RvError::SessionClosed
                | RvError::SessionHandleInvalid
                | RvError::CryptokiNotInitialized
                | RvError::CryptokiAlreadyInitialized
                | RvError::UserNotLoggedIn
                | RvError::ObjectHandleInvalid
                | RvError::KeyHandleInvalid
                | RvError::FunctionFailed
                | RvError::GeneralError
                | RvError::HostMemory,
                _,
            ) => Self::Lost(error.to_string()),
            Error::Pkcs11(
                RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLocked | RvError::PinExpired,
                _,
            ) => Self::Pin,
            _ => Self::Refused(error.to_string()),
        }
    }
}
