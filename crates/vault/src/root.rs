//! The root key: seals private keys at rest.

use custody_envelope::SealingKey;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// A root key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootKeyError {
    /// Others can read it.
    #[error("`{0}` can be read by others; run `chmod 600` on it")]
    Exposed(PathBuf),
    /// Not 32 bytes.
    #[error("`{0}` is not a root key of 32 bytes")]
    Malformed(PathBuf),
    /// It is gone, while the store has keys sealed under it.
    #[error("`{0}` is missing, and the vault's store is sealed under it; put it back")]
    Missing(PathBuf),
    /// The file system failed.
    #[error("the root key's file failed")]
    Io(#[from] io::Error),
}

/// Loads the root key, or makes it where `may_create`.
///
/// # Errors
/// See [`RootKeyError`].
pub fn load_root_key(path: &Path, may_create: bool) -> Result<SealingKey, RootKeyError> {
    match OpenOptions::new().read(true).open(path) {
        Ok(file) => {
            if file.metadata()?.permissions().mode() & 0o077 != 0 {
                return Err(RootKeyError::Exposed(path.to_owned()));
            }
            let bytes = Zeroizing::new(fs::read(path)?);
            SealingKey::from_bytes(&bytes).map_err(|_| RootKeyError::Malformed(path.to_owned()))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && may_create => {
            let key = SealingKey::generate().map_err(io::Error::other)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(key.expose_to_wrap())?;
            file.sync_all()?;
            Ok(key)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(RootKeyError::Missing(path.to_owned())),
        Err(e) => Err(e.into()),
    }
}
