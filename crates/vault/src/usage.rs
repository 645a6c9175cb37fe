//! Using keys: wrap, unwrap, re-wrap, encrypt, decrypt, sign, verify.

use crate::{
    Call, LeaseAsk, SignedLease, Vault, VaultError,
    gate::{Admitted, Operation, Permit, Withheld, op},
    record::Version,
};
use custody_envelope::random;
use custody_kek::{Batch, PrivateKey, TokenError};
use custody_types::{
    KeyName, KeyOperation, KeyType, KeyVersionName, Protection, SignatureAlgorithm, VaultName, WrapAlgorithm,
    WrappedKey,
};
use std::{fmt, sync::Arc};
use zeroize::Zeroizing;

/// Most random bytes of one call: Azure Managed HSM's bound.
const RANDOM_LEN_MAX: usize = 128;

/// What a key opened.
pub struct Opened {
    /// The version that opened it.
    pub key_version: KeyVersionName,
    /// What was inside; erased on drop.
    pub plain: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("key_version", &self.key_version).finish_non_exhaustive()
    }
}

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

/// An operation that protects.
pub trait Protects: Operation {
    /// What the key is asked.
    const OPERATION: KeyOperation;
}

/// An operation that opens what is protected.
pub trait Opens: Operation {
    /// What the key is asked.
    const OPERATION: KeyOperation;
}

impl Protects for op::Encrypt {
    const OPERATION: KeyOperation = KeyOperation::Encrypt;
}

impl Protects for op::WrapKey {
    const OPERATION: KeyOperation = KeyOperation::WrapKey;
}

impl Opens for op::Decrypt {
    const OPERATION: KeyOperation = KeyOperation::Decrypt;
}

impl Opens for op::UnwrapKey {
    const OPERATION: KeyOperation = KeyOperation::UnwrapKey;
}

/// A use of a key that is authorized and recorded, to be done on a thread that may compute.
pub struct Admission<Op> {
    vault: Arc<Vault>,
    call: Call,
    target: Target,
    admitted: Admitted<Op>,
}

impl<Op> fmt::Debug for Admission<Op> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("target", &self.target.as_str()).finish_non_exhaustive()
    }
}

/// Where a use of a key holds nobody up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the task that asks: it is over in microseconds.
    Here,
    /// On a thread that computes.
    Compute,
    /// On a thread that may wait: an HSM is asked.
    Wait,
}

impl<Op: Operation> Admission<Op> {
    /// Where it is to be done.
    #[must_use]
    pub fn place(&self) -> Place {
        let catalog = self.vault.catalog.read();
        let version = match &self.target {
            Target::Key(name) => catalog.key(name).and_then(|key| catalog.current(key)),
            Target::Version(name) => catalog.version(name),
        };
        match version {
            Ok(version) if version.record.protection == Protection::Hsm => Place::Wait,
            Ok(version) if Op::ONLY_ANSWERS && is_quick(version) => Place::Here,
            _ => Place::Compute,
        }
    }
}

/// Whether its public half is at hand, of a kind that is used in microseconds, and with no budget that is kept on a disk.
fn is_quick(version: &Version) -> bool {
    let is_rsa = matches!(version.record.public.key_type(), Some(KeyType::Rsa(_)));
    is_rsa && version.private.get().is_some() && version.record.attributes.budget.is_none()
}

impl<Op: Protects> Admission<Op> {
    /// Wraps or encrypts.
    ///
    /// # Errors
    /// As [`Vault::wrap_key`].
    pub fn protect(self, algorithm: WrapAlgorithm, plain: &[u8]) -> Withheld<WrappedKey> {
        let Self { vault, call, target, admitted } = self;
        admitted.run(|permit| vault.do_protect(&permit, &call, &target, algorithm, plain))
    }
}

impl<Op: Opens> Admission<Op> {
    /// Unwraps or decrypts, at once with others.
    ///
    /// # Errors
    /// As [`Vault::unwrap_key`].
    pub async fn unprotect(self, batch: &Batch, algorithm: WrapAlgorithm, sealed: &[u8]) -> Withheld<Opened> {
        let Self { vault, call, target, admitted } = self;
        let act = async |permit| vault.do_unprotect(&permit, &call, &target, batch, algorithm, sealed).await;
        admitted.run_at_once(act).await
    }
}

impl Admission<op::RenewLease> {
    /// Grants or renews leases of `holder`, the principal of its certificate.
    ///
    /// # Errors
    /// The version does not exist, its state does not allow it, access has ended, or the store failed.
    pub fn grant(self, holder: &str, asks: &[LeaseAsk]) -> Withheld<Vec<SignedLease>> {
        let Self { vault, call, target, admitted } = self;
        admitted.run_and_say(|permit| match &target {
            Target::Version(version) => vault.do_grant(&permit, &call, version, holder, asks),
            Target::Key(_) => Err(VaultError::invalid("leases.key_version", "must be a version of a key")),
        })
    }
}

impl Admission<op::Sign> {
    /// Signs, at once with others.
    ///
    /// # Errors
    /// As [`Vault::sign`].
    pub async fn sign(
        self,
        batch: &Batch,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
    ) -> Withheld<(KeyVersionName, Vec<u8>)> {
        let Self { vault, call, target, admitted } = self;
        let act = async |permit| vault.do_sign(&permit, &call, &target, batch, algorithm, digest).await;
        admitted.run_at_once(act).await
    }
}

impl Admission<op::Verify> {
    /// Checks a signature.
    ///
    /// # Errors
    /// As [`Vault::verify`].
    pub fn verify(
        self,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
        signature: &[u8],
    ) -> Withheld<(KeyVersionName, bool)> {
        let Self { vault, call, target, admitted } = self;
        admitted.run(|permit| vault.do_verify(&permit, &call, &target, algorithm, digest, signature))
    }
}

impl Vault {
    /// Authorizes and records a use of a key; the one who calls does it where computing holds nobody up. The wait for
    /// the record holds no thread.
    ///
    /// # Errors
    /// Not allowed, asked too often, or the record is not on disk.
    pub async fn admit<Op: Operation>(
        self: &Arc<Self>,
        call: Call,
        name: &str,
    ) -> Result<Admission<Op>, VaultError> {
        let target = Target::parse(name, "name")?;
        let admitted = self.gate.admit(&call, target.as_str()).await?;
        Ok(Admission { vault: self.clone(), call, target, admitted })
    }

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
        self.protect::<op::WrapKey>(call, name, algorithm, plain)
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
    ) -> Result<Opened, VaultError> {
        self.unprotect::<op::UnwrapKey>(call, name, algorithm, wrapped)
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
        let opened = self.unwrap_key(call, name, algorithm, wrapped)?;
        self.wrap_key(call, target, WrapAlgorithm::RsaOaep256, &opened.plain)
    }

    /// Encrypts a few bytes: what wrapping does, under a right of its own.
    ///
    /// # Errors
    /// As [`Vault::wrap_key`].
    pub fn encrypt(
        &self,
        call: &Call,
        name: &str,
        algorithm: WrapAlgorithm,
        plain: &[u8],
    ) -> Result<WrappedKey, VaultError> {
        self.protect::<op::Encrypt>(call, name, algorithm, plain)
    }

    /// Opens encrypted bytes; answers also which version did.
    ///
    /// # Errors
    /// As [`Vault::unwrap_key`].
    pub fn decrypt(
        &self,
        call: &Call,
        name: &str,
        algorithm: WrapAlgorithm,
        encrypted: &[u8],
    ) -> Result<Opened, VaultError> {
        self.unprotect::<op::Decrypt>(call, name, algorithm, encrypted)
    }

    fn protect<Op: Protects>(
        &self,
        call: &Call,
        name: &str,
        algorithm: WrapAlgorithm,
        plain: &[u8],
    ) -> Result<WrappedKey, VaultError> {
        let target = Target::parse(name, "name")?;
        self.gate.run(call, target.as_str(), |permit: Permit<Op>| {
            self.do_protect(&permit, call, &target, algorithm, plain)
        })
    }

    /// Wrapping and encrypting: one thing under two rights.
    fn do_protect<Op: Protects>(
        &self,
        _: &Permit<Op>,
        call: &Call,
        target: &Target,
        algorithm: WrapAlgorithm,
        plain: &[u8],
    ) -> Result<WrappedKey, VaultError> {
        let version = self.usable(target, Op::OPERATION)?;
        let ciphertext = self.private(&version)?.wrap_key(algorithm, plain)?;
        self.count(&version, Op::OPERATION, call);
        Ok(WrappedKey { key_version: version.record.name.clone(), algorithm, ciphertext })
    }

    fn unprotect<Op: Opens>(
        &self,
        call: &Call,
        name: &str,
        algorithm: WrapAlgorithm,
        sealed: &[u8],
    ) -> Result<Opened, VaultError> {
        let target = Target::parse(name, "name")?;
        self.gate.run(call, target.as_str(), |permit: Permit<Op>| {
            Batch::alone(async |batch| {
                self.do_unprotect(&permit, call, &target, batch, algorithm, sealed).await
            })
        })
    }

    /// Unwrapping and decrypting.
    async fn do_unprotect<Op: Opens>(
        &self,
        _: &Permit<Op>,
        call: &Call,
        target: &Target,
        batch: &Batch,
        algorithm: WrapAlgorithm,
        sealed: &[u8],
    ) -> Result<Opened, VaultError> {
        let version = self.usable(target, Op::OPERATION)?;
        let plain = self.private(&version)?.unwrap_key_in(batch, algorithm, sealed).await?;
        self.count(&version, Op::OPERATION, call);
        Ok(Opened { key_version: version.record.name.clone(), plain })
    }

    /// Signs a digest; answers also which version did.
    ///
    /// # Errors
    /// Not allowed, does not exist, its state or its kind does not allow it, or the digest has a wrong length.
    pub fn sign(
        &self,
        call: &Call,
        name: &str,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
    ) -> Result<(KeyVersionName, Vec<u8>), VaultError> {
        let target = Target::parse(name, "name")?;
        self.gate.run(call, target.as_str(), |permit| {
            Batch::alone(async |batch| self.do_sign(&permit, call, &target, batch, algorithm, digest).await)
        })
    }

    async fn do_sign(
        &self,
        _: &Permit<op::Sign>,
        call: &Call,
        target: &Target,
        batch: &Batch,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
    ) -> Result<(KeyVersionName, Vec<u8>), VaultError> {
        let version = self.usable(target, KeyOperation::Sign)?;
        let signature = self.private(&version)?.sign_in(batch, algorithm, digest).await?;
        self.count(&version, KeyOperation::Sign, call);
        Ok((version.record.name.clone(), signature))
    }

    /// Whether a signature over a digest holds; answers also under which version.
    ///
    /// # Errors
    /// As [`Vault::sign`].
    pub fn verify(
        &self,
        call: &Call,
        name: &str,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
        signature: &[u8],
    ) -> Result<(KeyVersionName, bool), VaultError> {
        let target = Target::parse(name, "name")?;
        self.gate.run(call, target.as_str(), |permit| {
            self.do_verify(&permit, call, &target, algorithm, digest, signature)
        })
    }

    fn do_verify(
        &self,
        _: &Permit<op::Verify>,
        call: &Call,
        target: &Target,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
        signature: &[u8],
    ) -> Result<(KeyVersionName, bool), VaultError> {
        let version = self.usable(target, KeyOperation::Verify)?;
        let backend = self.options.backend;
        let holds = custody_kek::verify(&version.record.public, algorithm, digest, signature, backend)?;
        self.count(&version, KeyOperation::Verify, call);
        Ok((version.record.name.clone(), holds))
    }

    /// A version, if it may be asked this now; one use is taken from its budget.
    pub(crate) fn usable_version(
        &self,
        name: &KeyVersionName,
        operation: KeyOperation,
    ) -> Result<Arc<Version>, VaultError> {
        self.usable(&Target::Version(name.clone()), operation)
    }

    /// The version that is meant, if it may be asked this now; one use is taken from its budget.
    fn usable(&self, target: &Target, operation: KeyOperation) -> Result<Arc<Version>, VaultError> {
        let version = {
            let catalog = self.catalog.read();
            let version = match target {
                Target::Key(name) => catalog.found_current(catalog.key(name)?)?,
                Target::Version(name) => catalog.found_version(name)?,
            };
            let name = || version.record.name.to_string();
            let state = catalog.state(version, self.now());
            if !state.allows_use() {
                return Err(VaultError::KeyUnusable { name: name(), state, operation });
            }
            if !version.record.key_ops.contains(&operation) {
                return Err(VaultError::OperationForbidden { name: name(), operation });
            }
            version.clone()
        };
        // Also for what needs the public half alone: a sealed vault's keys do nothing.
        let vault = version.record.name.key().vault();
        if self.keyring.is_sealed(&vault) {
            return Err(self.keyring.vault(&vault).err().unwrap_or(VaultError::Sealed));
        }
        self.spend(&version)?;
        Ok(version)
    }

    /// The private half, opened and checked once.
    pub(crate) fn private<'a>(&self, version: &'a Version) -> Result<&'a PrivateKey, VaultError> {
        if let Some(open) = version.private.get() {
            return Ok(open);
        }
        let record = &version.record;
        let damaged = || VaultError::Damaged(record.name.to_string());
        let kind = record.public.key_type().ok_or_else(damaged)?;
        let context = record.name.as_str().as_bytes();
        let sealing = self.keyring.generation(&record.name.key().vault(), record.seal_generation)?;
        let sealing = sealing.ok_or_else(damaged)?;
        let opened = match record.protection {
            Protection::Hsm => {
                let id = sealing.open(context, &record.sealed).map_err(|_| damaged())?;
                let away = || TokenError::Lost("the settings name none".to_owned());
                let token = self.options.token.clone().ok_or_else(away)?;
                PrivateKey::in_token(token, &id, record.public.clone(), kind)?
            }
            Protection::Software => {
                PrivateKey::open(&sealing, context, &record.sealed, kind, self.options.backend)
                    .map_err(|_| damaged())?
            }
        };
        Ok(version.private.get_or_init(|| Box::new(opened)))
    }

    /// Random bytes from the vault's generator.
    ///
    /// # Errors
    /// Not allowed, the vault does not exist, or the count is out of 1 to 128.
    pub fn random_bytes(
        &self,
        call: &Call,
        vault: &str,
        count: usize,
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let vault: VaultName = vault.parse().map_err(|e| VaultError::invalid("parent", e))?;
        if !(1..=RANDOM_LEN_MAX).contains(&count) {
            return Err(VaultError::invalid("count", "must be 1 to 128 bytes"));
        }
        self.gate.run(call, vault.as_str(), |_: Permit<op::GetRandomBytes>| {
            self.catalog.read().vault(&vault)?;
            let mut bytes = Zeroizing::new(vec![0; count]);
            random(&mut bytes)?;
            Ok(bytes)
        })
    }
}
