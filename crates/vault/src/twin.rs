//! A vault that stands for a cloud's, misbehaviour and all: what it does to its callers is changed here, and in the trail.

use crate::{Call, Vault, VaultError};
use custody_audit::{Outcome, Record};
use custody_faults::{Faults, Profile};
use custody_types::{UnixMillis, VaultName};
use std::{sync::Arc, time::Duration};

impl Vault {
    fn faults(&self) -> Result<&Arc<Faults>, VaultError> {
        let none = || VaultError::NotFound("a profile of faults".to_owned());
        self.options.faults.as_ref().ok_or_else(none)
    }

    fn misbehave(&self, call: &Call, operation: &str, what: &str) -> Result<&Arc<Faults>, VaultError> {
        let (faults, now) = (self.faults()?, self.now());
        let begin = Record::begin(now, operation, &call.correlation_id, &call.caller, "faults");
        call.recorded.set(self.journal().append(&begin.finish(now, Outcome::Success, "OK", what))?);
        Ok(faults)
    }

    /// The profile at work, and whether the region is away.
    ///
    /// # Errors
    /// The vault was started without one.
    pub fn fault_profile(&self) -> Result<(Profile, UnixMillis, bool), VaultError> {
        let faults = self.faults()?;
        Ok((faults.profile(), faults.set_time(), faults.is_away()))
    }

    /// Puts another profile to work.
    ///
    /// # Errors
    /// The vault was started without one, or the journal failed.
    pub fn set_fault_profile(&self, call: &Call, profile: Profile) -> Result<(), VaultError> {
        profile.check().map_err(|e| VaultError::invalid("profile", e))?;
        self.misbehave(call, "FaultProfileSet", &format!("profile `{}`", profile.name))?.set(profile);
        Ok(())
    }

    /// Takes the region away, for a time or until it is brought back.
    ///
    /// # Errors
    /// As [`Vault::set_fault_profile`].
    pub fn lose_region(&self, call: &Call, length: Option<Duration>) -> Result<(), VaultError> {
        let what = length.map_or_else(|| "until it is brought back".to_owned(), |l| format!("for {l:?}"));
        self.misbehave(call, "FaultRegionLose", &what)?.lose_region(length);
        Ok(())
    }

    /// Brings the region back.
    ///
    /// # Errors
    /// As [`Vault::set_fault_profile`].
    pub fn restore_region(&self, call: &Call) -> Result<(), VaultError> {
        self.misbehave(call, "FaultRegionRestore", "the region is back")?.restore_region();
        Ok(())
    }

    /// Sets how far the clock of a vault is ahead of the true time, and tells whoever watches that states may have changed.
    ///
    /// # Errors
    /// As [`Vault::set_fault_profile`].
    pub fn shift_clock(&self, call: &Call, vault: &VaultName, shift_ms: i64) -> Result<(), VaultError> {
        let what = format!("the clock of {vault} is {shift_ms} ms ahead");
        let faults = self.misbehave(call, "FaultClockShift", &what)?;
        let mut profile = faults.profile();
        profile.clock_shift_ms.insert(vault.id().to_owned(), shift_ms);
        profile.check().map_err(|e| VaultError::invalid("shift", e))?;
        faults.shift_clock(vault.id(), shift_ms);
        self.tell(crate::EventType::Updated, vault.as_str());
        Ok(())
    }
}
