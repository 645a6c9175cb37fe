//! What is served.

use std::sync::Arc;

/// Why a request was not done, as NBD tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExportError {
    /// EPERM: access was taken away.
    Denied,
    /// EIO: the storage failed or does not authenticate.
    Failed,
    /// EINVAL: beyond the end.
    Invalid,
    /// ENOSPC: no room.
    NoSpace,
}

impl ExportError {
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Denied => 1,
            Self::Failed => 5,
            Self::Invalid => 22,
            Self::NoSpace => 28,
        }
    }
}

/// A flat range of bytes. Calls come from several threads at once.
pub trait Export: Send + Sync {
    /// Its length in bytes.
    fn size_bytes(&self) -> u64;
    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// See [`ExportError`].
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), ExportError>;
    /// Writes `data` at `offset`. It may be changed in place: nobody reads it afterwards.
    ///
    /// # Errors
    /// See [`ExportError`].
    fn write(&self, offset: u64, data: &mut [u8]) -> Result<(), ExportError>;
    /// Makes a range zeros.
    ///
    /// # Errors
    /// See [`ExportError`].
    fn zero(&self, offset: u64, len: u64) -> Result<(), ExportError>;
    /// Gives ranges that cover `len` bytes from `offset` to `visit`, in order, each with its length and whether it holds
    /// data; what holds none reads as zeros. Ends early when `visit` answers false.
    ///
    /// # Errors
    /// See [`ExportError`].
    fn allocation(
        &self,
        offset: u64,
        len: u64,
        visit: &mut dyn FnMut(u64, bool) -> bool,
    ) -> Result<(), ExportError>;
    /// Has a range brought nearer, since it will be read soon.
    ///
    /// # Errors
    /// See [`ExportError`].
    fn cache(&self, offset: u64, len: u64) -> Result<(), ExportError>;
    /// Makes all finished writes durable, those of other connections too.
    ///
    /// # Errors
    /// See [`ExportError`].
    fn flush(&self) -> Result<(), ExportError>;
}

/// The exports by name.
pub trait Exports: Send + Sync {
    /// The export of this name, if the client may have it.
    fn open(&self, name: &str) -> Option<Arc<dyn Export>>;
    /// Every name.
    fn names(&self) -> Vec<String>;
}
