//! The vault as a storage node uses it: get, wrapKey, unwrapKey, and what a refusal means.

use crate::Vault;
use custody_proto::vault::{GetKeyRequest, KeyState, UnwrapKeyRequest, WrapKeyRequest};
use custody_rpc::{Endpoint, TokenSource, status::reason};
use custody_types::{KeyVersionName, PassingReason, WrappedKey};
use parking_lot::Mutex;
use std::{fmt, sync::Arc};
use tonic::{Code, Status};
use zeroize::Zeroizing;

/// Why a key cannot be used now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The vault, or the identity service, answered and refused.
    #[error("{message}")]
    Refused {
        /// The `ErrorInfo.reason`: `KEY_SUSPENDED`, `PERMISSION_DENIED`, ...
        reason: String,
        /// For people.
        message: String,
        /// The canonical status of the refusal.
        status: String,
    },
    /// The token is not taken; the next call brings another.
    #[error("the vault does not take the token: {0}")]
    TokenRefused(String),
    /// No answer, or one that says nothing of access.
    #[error("the vault cannot be asked: {0}")]
    Unreachable(String),
    /// The vault answered that the key is inside an HSM that is away.
    #[error("{0}")]
    HsmUnavailable(String),
}

impl AccessError {
    fn from_status(status: Status) -> Self {
        Self::new(status.code(), reason(&status), status.message().to_owned())
    }

    /// What an error of the vault says of access.
    #[must_use]
    pub fn new(code: Code, reason: String, message: String) -> Self {
        match code {
            Code::PermissionDenied | Code::FailedPrecondition | Code::NotFound | Code::InvalidArgument => {
                let status = custody_rpc::status::code_name(code).to_owned();
                Self::Refused { reason, message, status }
            }
            Code::Unauthenticated => Self::TokenRefused(message),
            Code::Unavailable if reason == PassingReason::HsmUnavailable.as_str() => {
                Self::HsmUnavailable(message)
            }
            _ => Self::Unreachable(message),
        }
    }
}

/// What a consumer of a key checks before it relies on it.
#[derive(Clone, Debug)]
pub struct KeyFacts {
    /// The version that wraps.
    pub current_version: KeyVersionName,
    /// Whether it may be used now.
    pub active: bool,
    /// Whether a deletion can be cut short.
    pub purge_protected: bool,
    /// Bits of the modulus.
    pub size_bits: i32,
}

/// A vault, as one managed identity.
#[derive(Clone)]
pub struct VaultAccess {
    endpoint: Endpoint,
    tokens: TokenSource,
    client: Vault,
    for_keys: Arc<Mutex<KeyConnection>>,
}

/// Key material goes over a connection of its own, since an HTTP/2 connection keeps what it received last. It ends with the
/// last of the calls that are made over it at about the same time.
#[derive(Default)]
struct KeyConnection {
    client: Option<Vault>,
    calls: usize,
}

/// A call over it.
struct KeyCall {
    client: Vault,
    connection: Arc<Mutex<KeyConnection>>,
}

impl Drop for KeyCall {
    fn drop(&mut self) {
        let mut connection = self.connection.lock();
        connection.calls -= 1;
        if connection.calls == 0 {
            connection.client = None;
        }
    }
}

impl fmt::Debug for VaultAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VaultAccess(..)")
    }
}

impl VaultAccess {
    /// The vault at `endpoint`, with the identity's tokens.
    #[must_use]
    pub fn new(endpoint: &Endpoint, tokens: TokenSource) -> Self {
        let client = Vault::new(endpoint.authenticated(tokens.clone()));
        Self { endpoint: endpoint.clone(), tokens, client, for_keys: Arc::default() }
    }

    /// A client for what brings no key material.
    #[must_use]
    pub fn client(&self) -> Vault {
        self.client.clone()
    }

    /// A token of the identity, for a call that several identities make together.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub async fn token(&self) -> Result<String, AccessError> {
        self.tokens.text().await.map_err(AccessError::from_status)
    }

    /// The vault does not take the token that [`VaultAccess::token`] gave.
    pub fn forget_token(&self) {
        self.tokens.forget();
    }

    fn call_with_keys(&self) -> KeyCall {
        let connect = || Vault::new(self.endpoint.apart().authenticated(self.tokens.clone()));
        let mut connection = self.for_keys.lock();
        connection.calls += 1;
        let client = connection.client.get_or_insert_with(connect).clone();
        KeyCall { client, connection: self.for_keys.clone() }
    }

    /// Reads a key.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub async fn get_key(&self, name: &str) -> Result<KeyFacts, AccessError> {
        let request = GetKeyRequest { name: name.to_owned() };
        let key = self.client.clone().get_key(request).await.map_err(AccessError::from_status)?.into_inner();
        let version = key.current_version.unwrap_or_default();
        let current_version = version.name.parse().map_err(|_| malformed())?;
        Ok(KeyFacts {
            current_version,
            active: version.state == i32::from(KeyState::Active),
            purge_protected: !key.recovery_level.contains("Purgeable"),
            size_bits: version.key_size_bits,
        })
    }

    /// Wraps key material with a key's current version, or with the version named. Always over the wire, so that
    /// the vault records it.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub async fn wrap_key(&self, name: &str, plain: &[u8]) -> Result<WrappedKey, AccessError> {
        let request =
            WrapKeyRequest { name: name.to_owned(), algorithm: String::new(), plaintext: plain.to_vec() };
        let mut call = self.call_with_keys();
        let wrapped = call.client.wrap_key(request).await.map_err(AccessError::from_status)?.into_inner();
        Ok(WrappedKey {
            key_version: wrapped.key_version.parse().map_err(|_| malformed())?,
            algorithm: wrapped.algorithm.parse().map_err(|_| malformed())?,
            ciphertext: wrapped.ciphertext,
        })
    }

    /// Opens wrapped key material.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub async fn unwrap_key(&self, wrapped: &WrappedKey) -> Result<Zeroizing<Vec<u8>>, AccessError> {
        let request = UnwrapKeyRequest {
            name: wrapped.key_version.to_string(),
            algorithm: wrapped.algorithm.to_string(),
            ciphertext: wrapped.ciphertext.clone(),
        };
        let mut call = self.call_with_keys();
        let answer = call.client.unwrap_key(request).await.map_err(AccessError::from_status)?;
        Ok(Zeroizing::new(answer.into_inner().plaintext))
    }
}

fn malformed() -> AccessError {
    AccessError::Unreachable("the vault's answer is malformed".to_owned())
}
