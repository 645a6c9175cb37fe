//! What a key may be asked to do, in JOSE words (RFC 7517 §4.3).

use crate::KeyType;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// An operation of a key: a member of its `key_ops`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeyOperation {
    /// Protect bytes.
    Encrypt,
    /// Open protected bytes.
    Decrypt,
    /// Sign a digest.
    Sign,
    /// Check a signature.
    Verify,
    /// Protect key material.
    WrapKey,
    /// Open wrapped key material.
    UnwrapKey,
    /// Open a key that is brought from outside. A key that may do this does nothing else.
    Import,
}

impl KeyOperation {
    /// Every operation, in the order in which Azure lists them.
    pub const ALL: [Self; 7] = [
        Self::Encrypt,
        Self::Decrypt,
        Self::Sign,
        Self::Verify,
        Self::WrapKey,
        Self::UnwrapKey,
        Self::Import,
    ];

    /// The JOSE word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Sign => "sign",
            Self::Verify => "verify",
            Self::WrapKey => "wrapKey",
            Self::UnwrapKey => "unwrapKey",
            Self::Import => "import",
        }
    }

    /// What a key of this kind can do at all, and does where nothing else was said.
    #[must_use]
    pub fn of(kind: KeyType) -> &'static [Self] {
        match kind {
            KeyType::Ec(_) => &[Self::Sign, Self::Verify],
            KeyType::Rsa(_) => {
                &[Self::Encrypt, Self::Decrypt, Self::Sign, Self::Verify, Self::WrapKey, Self::UnwrapKey]
            }
        }
    }
}

impl fmt::Display for KeyOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no key operation; use encrypt, decrypt, sign, verify, wrapKey, unwrapKey or import")]
pub struct UnknownKeyOperation(String);

impl FromStr for KeyOperation {
    type Err = UnknownKeyOperation;
    fn from_str(text: &str) -> Result<Self, UnknownKeyOperation> {
        let found = Self::ALL.into_iter().find(|o| o.as_str() == text);
        found.ok_or_else(|| UnknownKeyOperation(text.chars().take(40).collect()))
    }
}
