//! What keeps the vault's own keys at rest (`docs/design/0010-sealing.md`).
//!
//! ```text
//! seal (file, HSM, passphrase, shares)  →  root key  →  one key a vault  →  private halves, backups
//!                a vault's own seal  →  its owner's key  ↗
//! ```
//!
//! Below the root key nothing is stored in the clear; while the deployment is sealed there is no root key in memory, and the
//! gate lets nothing pass. A vault with a seal of its own opens with the root key and its owner's key, never with one.

mod keyring;
mod method;
mod shares;

use custody_envelope::RandomError;
use custody_kek::TokenKeyError;
pub(crate) use keyring::{Keyring, OWN, SEALS, SYSTEM, SystemSeal, VaultKeys, VaultSeal};
pub(crate) use method::{Made, Means, SealRecord, load_key_file};
pub use method::{NewSeal, Passphrase, SealType};
pub(crate) use shares::{Share, combine};
use std::{io, path::PathBuf};

/// A seal that cannot be made or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// Others can read the file.
    #[error("`{0}` can be read by others; run `chmod 600` on it")]
    Exposed(PathBuf),
    /// The file has not 32 bytes.
    #[error("`{0}` is not a root key of 32 bytes")]
    Malformed(PathBuf),
    /// The file is gone, while the store is sealed under it.
    #[error("`{0}` is missing, and the vault's store is sealed under it; put it back")]
    Missing(PathBuf),
    /// The file system failed.
    #[error("the root key's file failed")]
    Io(#[from] io::Error),
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// Too short or too long.
    #[error("`passphrase` must have 15 characters or more, and at most 1,024 bytes")]
    PassphraseLength,
    /// Numbers that make no sense.
    #[error("`shares` must be 2 to 16, and `threshold` 2 to that")]
    ShareNumbers,
    /// The text is no share: mistyped, or cut.
    #[error("is no share, or was mistyped: give all of the text, from `custody-share-1.` on")]
    NoShare,
    /// A share of an earlier seal, or of another vault's.
    #[error("is a share of another seal, or of this one before it was changed")]
    OtherSeal,
    /// Given already.
    #[error("was given already; another officer has to give another")]
    ShareGiven,
    /// One officer has one share.
    #[error("you have given a share already; another officer has to give the next")]
    OfficerGave,
    /// The settings name none, or a vault asked for the operator's.
    #[error("an HSM is asked for, and there is none here: a vault's own seal is a passphrase or shares")]
    NoHsm,
    /// The HSM did not do it.
    #[error(transparent)]
    Hsm(TokenKeyError),
    /// A passphrase where shares are asked for, or the other way round.
    #[error("this seal is opened by another kind of key; `custody vault seal-status` says which")]
    OtherType,
    /// It does not open.
    #[error("the seal does not open with this")]
    WrongKey,
}
