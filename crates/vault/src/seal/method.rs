//! What a key is sealed by: a file, an HSM, a passphrase, or shares of several officers.

use super::{
    SealError,
    shares::{self, NUMBER_MAX, Share},
};
use argon2::{Algorithm, Argon2, Params, Version};
use custody_envelope::{SealingKey, random};
use custody_kek::{PrivateKey, Token};
use custody_types::{KeyType, PublicKey, RsaSize, UnixMillis, WrapAlgorithm};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
};
use zeroize::Zeroizing;

/// Shortest passphrase, in characters: NIST SP 800-63B §3.1.1.2 asks for 15 where it stands alone.
const PASSPHRASE_LEN_MIN: usize = 15;
/// Longest, in bytes.
const PASSPHRASE_LEN_MAX: usize = 1024;

/// What shall seal a key from now on.
#[derive(Debug)]
pub enum NewSeal {
    /// The key file of the settings, for the deployment; for a vault none of its own.
    Default,
    /// The HSM, at start. Not for a vault of its own.
    Hsm,
    /// A passphrase.
    Passphrase(Passphrase),
    /// Shares for several officers.
    Shares {
        /// How many are made.
        number: u8,
        /// How many are needed.
        threshold: u8,
    },
}

/// A passphrase: erased on drop, never shown.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// Takes one in.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// How a key is sealed, as it is stored and shown. None of it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SealType {
    /// Under the key in a file.
    KeyFile,
    /// Under a key that a key in the HSM wraps.
    Hsm {
        /// Its id there, in hexadecimal.
        key: String,
        /// Its public half.
        #[serde(with = "crate::record::public_key")]
        public: PublicKey,
        /// What it wraps.
        #[serde(with = "crate::record::base64_bytes")]
        wrapped: Vec<u8>,
    },
    /// Under a key derived from a passphrase with Argon2id (RFC 9106).
    Passphrase {
        /// 16 random bytes, in hexadecimal.
        salt: String,
        /// Memory, in KiB.
        memory_kib: u32,
        /// Passes over it.
        passes: u32,
        /// Lanes.
        lanes: u32,
    },
    /// Under a key that was split into shares.
    Shares {
        /// How many were made.
        number: u8,
        /// How many are needed.
        threshold: u8,
    },
}

/// A sealed key as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SealRecord {
    /// 16 random bytes in hexadecimal, new with each change: shares name it.
    pub(crate) id: String,
    pub(crate) seal_type: SealType,
    pub(crate) create_time: UnixMillis,
    /// The key, under that of the seal.
    #[serde(with = "crate::record::base64_bytes")]
    sealed: Vec<u8>,
}

/// A seal that was made: its record, its own key, and what officers are given.
pub(crate) struct Made {
    pub(crate) record: SealRecord,
    pub(crate) seal_key: SealingKey,
    pub(crate) shares: Vec<Zeroizing<String>>,
}

/// What seals are made by beside what their makers give.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means<'a> {
    pub(crate) key_file: &'a Path,
    pub(crate) token: Option<&'a Arc<Token>>,
}

/// What kind of key of the HSM wraps a seal's key.
const HSM_KEY: KeyType = KeyType::Rsa(RsaSize::Bits3072);

fn context(place: &str, id: &str) -> Vec<u8> {
    format!("seal of {place} {id}").into_bytes()
}

/// RFC 9106 §4, second recommended option: 3 passes over 64 MiB in 4 lanes.
fn argon2id(passphrase: &Passphrase, seal_type: &SealType) -> Result<SealingKey, SealError> {
    let SealType::Passphrase { salt, memory_kib, passes, lanes } = seal_type else {
        return Err(SealError::OtherType);
    };
    let salt = hex::decode(salt).map_err(|_| SealError::WrongKey)?;
    let parameters = Params::new(*memory_kib, *passes, *lanes, Some(32)).map_err(|_| SealError::WrongKey)?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters)
        .hash_password_into(passphrase.0.as_bytes(), &salt, &mut *key)
        .map_err(|_| SealError::WrongKey)?;
    SealingKey::from_bytes(&*key).map_err(|_| SealError::WrongKey)
}

/// A new key of the HSM, and a seal's key that it wraps.
fn in_hsm(token: &Arc<Token>) -> Result<(SealType, SealingKey), SealError> {
    let seal_key = SealingKey::generate()?;
    let key = PrivateKey::generate_in(token, HSM_KEY).map_err(SealError::Hsm)?;
    let wrapped = key.wrap_key(WrapAlgorithm::RsaOaep256, seal_key.expose_to_wrap());
    let wrapped = wrapped.map_err(|_| SealError::WrongKey)?;
    let id = hex::encode(key.token_id().unwrap_or_default());
    Ok((SealType::Hsm { key: id, public: key.public().clone(), wrapped }, seal_key))
}

impl SealRecord {
    /// Seals `key`, which lies at `place`.
    pub(crate) fn make(
        place: &str,
        key: &SealingKey,
        method: &NewSeal,
        means: &Means<'_>,
        now: UnixMillis,
    ) -> Result<Made, SealError> {
        let mut id = [0; 16];
        random(&mut id)?;
        let mut texts = Vec::new();
        let (seal_type, seal_key) = match method {
            NewSeal::Default => (SealType::KeyFile, load_key_file(means.key_file, true)?),
            NewSeal::Hsm => in_hsm(means.token.ok_or(SealError::NoHsm)?)?,
            NewSeal::Passphrase(passphrase) => {
                let fits = passphrase.0.chars().count() >= PASSPHRASE_LEN_MIN
                    && passphrase.0.len() <= PASSPHRASE_LEN_MAX;
                if !fits {
                    return Err(SealError::PassphraseLength);
                }
                let mut salt = [0; 16];
                random(&mut salt)?;
                let salt = hex::encode(salt);
                let seal_type = SealType::Passphrase { salt, memory_kib: 65_536, passes: 3, lanes: 4 };
                let seal_key = argon2id(passphrase, &seal_type)?;
                (seal_type, seal_key)
            }
            NewSeal::Shares { number, threshold } => {
                if !(2..=*number).contains(threshold) || *number > NUMBER_MAX {
                    return Err(SealError::ShareNumbers);
                }
                let seal_key = SealingKey::generate()?;
                let made = shares::split(&seal_key, id, *threshold, *number)?;
                texts = made.iter().map(Share::to_text).collect();
                (SealType::Shares { number: *number, threshold: *threshold }, seal_key)
            }
        };
        let id = hex::encode(id);
        let sealed = seal_key.seal(&context(place, &id), key.expose_to_wrap())?;
        let record = Self { id, seal_type, create_time: now, sealed };
        Ok(Made { record, seal_key, shares: texts })
    }

    /// The same seal around another key.
    pub(crate) fn around(
        &self,
        place: &str,
        key: &SealingKey,
        seal_key: &SealingKey,
    ) -> Result<Self, SealError> {
        let sealed = seal_key.seal(&context(place, &self.id), key.expose_to_wrap())?;
        Ok(Self { sealed, ..self.clone() })
    }

    /// Opens it with its own key.
    pub(crate) fn open(&self, place: &str, seal_key: &SealingKey) -> Result<SealingKey, SealError> {
        let key = seal_key.open(&context(place, &self.id), &self.sealed).map_err(|_| SealError::WrongKey)?;
        SealingKey::from_bytes(&key).map_err(|_| SealError::WrongKey)
    }

    /// Destroys what a seal has in the HSM, where it has something there.
    pub(crate) fn forget(&self, token: Option<&Arc<Token>>) -> Result<(), SealError> {
        match (&self.seal_type, token) {
            (SealType::Hsm { key, .. }, Some(token)) => {
                let id = hex::decode(key).map_err(|_| SealError::WrongKey)?;
                token.destroy(&id).map_err(|e| SealError::Hsm(e.into()))
            }
            _ => Ok(()),
        }
    }

    /// The seal's own key, of the HSM.
    pub(crate) fn key_of_hsm(&self, token: Option<&Arc<Token>>) -> Result<SealingKey, SealError> {
        let SealType::Hsm { key, public, wrapped } = &self.seal_type else {
            return Err(SealError::OtherType);
        };
        let token = token.ok_or(SealError::NoHsm)?.clone();
        let id = hex::decode(key).map_err(|_| SealError::WrongKey)?;
        let key = PrivateKey::in_token(token, &id, public.clone(), HSM_KEY).map_err(SealError::Hsm)?;
        let opened =
            key.unwrap_key(WrapAlgorithm::RsaOaep256, wrapped).map_err(|e| SealError::Hsm(e.into()))?;
        SealingKey::from_bytes(&opened).map_err(|_| SealError::WrongKey)
    }

    /// The seal's own key, of a passphrase.
    pub(crate) fn key_of_passphrase(&self, passphrase: &Passphrase) -> Result<SealingKey, SealError> {
        argon2id(passphrase, &self.seal_type)
    }
}

/// Loads the key in a file, or makes it where `may_create`.
///
/// # Errors
/// See [`SealError`].
pub(crate) fn load_key_file(path: &Path, may_create: bool) -> Result<SealingKey, SealError> {
    match OpenOptions::new().read(true).open(path) {
        Ok(file) => {
            if file.metadata()?.permissions().mode() & 0o077 != 0 {
                return Err(SealError::Exposed(path.to_owned()));
            }
            let bytes = Zeroizing::new(fs::read(path)?);
            SealingKey::from_bytes(&bytes).map_err(|_| SealError::Malformed(path.to_owned()))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && may_create => {
            let key = SealingKey::generate()?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(key.expose_to_wrap())?;
            file.sync_all()?;
            if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                fs::File::open(parent)?.sync_all()?;
            }
            Ok(key)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(SealError::Missing(path.to_owned())),
        Err(e) => Err(e.into()),
    }
}
