//! A receipt: what a holder erased, when, and under which lease.

use crate::{Authority, CertificateError, HolderKey, Statement};
use custody_types::{KeyVersionName, UnixMillis};
use serde::{Deserialize, Serialize};

/// The entry of [`Receipt::erased`] without which a receipt proves nothing.
pub const VOLUME_KEY: &str = "volume key";

/// What a holder states when it has erased a volume's keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The lease that it held them under.
    pub lease: String,
    /// That lease's epoch.
    pub epoch: u64,
    /// The version that opened the volume's key.
    pub key_version: KeyVersionName,
    /// The holder.
    pub holder: String,
    /// The volume.
    pub volume: String,
    /// Why: the vault's reason, `VAULT_UNREACHABLE` at the lease's end, `HSM_UNAVAILABLE`, or `RELEASED`.
    pub reason: String,
    /// What is gone from the holder's memory.
    pub erased: Vec<String>,
    /// When the holder heard that it must, by its wall clock.
    pub notice_time: UnixMillis,
    /// When they were gone, by its wall clock.
    pub erase_time: UnixMillis,
    /// From the one to the other by a clock that nobody sets, in microseconds.
    pub took_us: u64,
}

impl Statement for Receipt {
    const TYPE: &'static str = "custody erasure receipt v1";
}

/// A receipt as it is sent and kept: a note, and the certificate whose key signed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certified {
    /// The signed note.
    pub note: String,
    /// The holder's certificate and those between it and the authority, DER in base64.
    pub certificates: Vec<String>,
}

impl Certified {
    /// Signs a receipt.
    ///
    /// # Errors
    /// The holder's key cannot sign.
    pub fn sign(receipt: &Receipt, key: &HolderKey) -> Result<Self, CertificateError> {
        let text = receipt.text().map_err(|_| CertificateError::Signature)?;
        Ok(Self { note: key.sign(&receipt.holder, &text)?, certificates: key.certificates() })
    }

    /// The receipt, if the holder that it names has signed it with the key of a certificate that was good then.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn open(&self, authority: &Authority) -> Result<Receipt, CertificateError> {
        let (text, holder) = authority.open(&self.note, &self.certificates)?;
        let receipt = Receipt::of_text(text).map_err(|_| CertificateError::Note)?;
        authority.check_time(&self.certificates, receipt.erase_time)?;
        if receipt.holder == holder { Ok(receipt) } else { Err(CertificateError::Holder(receipt.holder)) }
    }
}
