//! Using keys: wrap, unwrap, re-wrap.

use crate::{
    Call, Vault, VaultError,
    gate::{Permit, op},
    record::Version,
};
use custody_kek::KekPrivateKey;
use custody_types::{KeyName, KeyUse, KeyVersionName, WrapAlgorithm, WrappedKey};
use std::sync::Arc;
use zeroize::Zeroizing;

/// A key, whose current version is meant, or a version.
enum Target {
    Key(KeyName),
    Version(KeyVersionName),
}

impl Target {
    fn parse(text: &str, field: &'static str) -> Result<Self, VaultError> {
        if text.contains("/versions/") {
            text.parse().map(Self::Version).map_err(|e| VaultError::invalid(field, e))
        } else {
            text.parse().map(Self::Key).map_err(|e| VaultError::invalid(field, e))
        }
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Key(name) => name.as_str(),
            Self::Version(name) => name.as_str(),
        }
    }
}

impl Vault {
    /// Wraps key material with a key's current version, or with the version named.
    ///
    /// # Errors
    /// Not allowed, does not exist, its state does not allow it, or the material is too long.
    pub fn wrap_key(
        &self,
        call: &Call,
        name: &str,
        algorithm: WrapAlgorithm,
        plain: &[u8],
    ) -> Result<WrappedKey, VaultError> {
        let target = Target::parse(name, "name")?;
        self.gate.run(call, target.as_str(), |permit| self.do_wrap(&permit, &target, algorithm, plain))
    }

    fn do_wrap(
        &self,
        _: &Permit<op::WrapKey>,
        target: &Target,
        algorithm: WrapAlgorithm,
        plain: &[u8],
    ) -> Result<WrappedKey, VaultError> {
        let version = self.usable(target, KeyUse::Wrap)?;
        let ciphertext = self.private(&version)?.wrap_key(algorithm, plain)?;
        Ok(WrappedKey { key_version: version.record.name.clone(), algorithm, ciphertext })
    }

    /// Opens wrapped key material.
    ///
    /// # Errors
    /// Not allowed, does not exist, its state does not allow it; or it does not open, and then one answer for
    /// every cause.
    pub fn unwrap_key(
        &self,
        call: &Call,
        name: &str,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let target = Target::parse(name, "name")?;
        self.gate.run(call, target.as_str(), |permit| self.do_unwrap(&permit, &target, algorithm, wrapped))
    }

    fn do_unwrap(
        &self,
        _: &Permit<op::UnwrapKey>,
        target: &Target,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let version = self.usable(target, KeyUse::Unwrap)?;
        Ok(self.private(&version)?.unwrap_key(algorithm, wrapped)?)
    }

    /// Moves wrapped key material to another key or version; what is inside does not leave the vault. Needs
    /// unwrapKey on the one and wrapKey on the other, and is recorded as both.
    ///
    /// # Errors
    /// As [`Vault::unwrap_key`] and [`Vault::wrap_key`].
    pub fn rewrap_key(
        &self,
        call: &Call,
        name: &str,
        algorithm: WrapAlgorithm,
        wrapped: &[u8],
        target: &str,
    ) -> Result<WrappedKey, VaultError> {
        let plain = self.unwrap_key(call, name, algorithm, wrapped)?;
        self.wrap_key(call, target, WrapAlgorithm::RsaOaep256, &plain)
    }

    fn usable(&self, target: &Target, usage: KeyUse) -> Result<Arc<Version>, VaultError> {
        let catalog = self.catalog.read();
        let version = match target {
            Target::Key(name) => catalog.current(catalog.key(name)?)?,
            Target::Version(name) => catalog.version(name)?,
        };
        let state = catalog.state(version, self.now());
        if state.allows(usage) {
            Ok(version.clone())
        } else {
            Err(VaultError::KeyUnusable { name: version.record.name.to_string(), state, usage })
        }
    }

    /// The private half, opened and checked once.
    fn private<'a>(&self, version: &'a Version) -> Result<&'a KekPrivateKey, VaultError> {
        if let Some(open) = version.private.get() {
            return Ok(open);
        }
        let record = &version.record;
        let opened = KekPrivateKey::open(
            &self.root,
            record.name.as_str().as_bytes(),
            &record.sealed,
            self.options.backend,
        )
        .map_err(|_| VaultError::Damaged(record.name.to_string()))?;
        Ok(version.private.get_or_init(|| opened))
    }
}
