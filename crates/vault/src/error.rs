//! What the vault answers when it does not do something.

use crate::SealError;
use custody_audit::AuditUnavailable;
use custody_authz::{ConflictingDuty, ForbiddenRole, ScopeError, UnknownRole};
use custody_envelope::RandomError;
use custody_kek::{ImportError, SignError, TokenError, TokenKeyError, UnwrapError, UnwrapFailed, WrapError};
use custody_store::StoreError;
use custody_types::{KeyOperation, KeyState, NameError, Permission, UnknownRsaSize};
use std::time::Duration;

/// An operation that was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// The caller may not, or the resource does not exist and the caller may not know.
    #[error(
        "permission `{permission}` denied on `{resource}` (or it might not exist); ask a Key Vault Administrator of the vault for a role that has it"
    )]
    PermissionDenied {
        /// What was missing.
        permission: Permission,
        /// On what.
        resource: String,
    },
    /// The caller may know, and it does not exist.
    #[error("`{0}` does not exist")]
    NotFound(String),
    /// The name is taken.
    #[error("`{0}` exists already; rotate it for a new version, or choose another id")]
    AlreadyExists(String),
    /// The name belongs to a deleted key, or to one that was purged.
    #[error("`{name}` {why}")]
    NameHeld {
        /// The name.
        name: String,
        /// Why it cannot be used.
        why: &'static str,
    },
    /// The key's state does not allow this use.
    #[error("key version `{name}` is {state}: {operation} is not allowed")]
    KeyUnusable {
        /// The version.
        name: String,
        /// Where it is in its life.
        state: KeyState,
        /// What was asked.
        operation: KeyOperation,
    },
    /// The key's owner did not give it this operation.
    #[error("{operation} is not among the `key_ops` of `{name}`; its owner can change them")]
    OperationForbidden {
        /// The version.
        name: String,
        /// What was asked.
        operation: KeyOperation,
    },
    /// The transition is not allowed.
    #[error("`{name}`: {why}")]
    Precondition {
        /// What it is about.
        name: String,
        /// Why not, and what to do.
        why: &'static str,
    },
    /// A deletion takes its time, as a profile of faults has it.
    #[error("`{0}` is still being deleted; try again")]
    BeingDeleted(String),
    /// Something would become unreadable.
    #[error(
        "`{name}` is not destroyed: it is needed by {what}, unreadable for good without it; see `custody key lineage`, then re-wrap or delete them, or have a second officer agree to crypto-shred them"
    )]
    HasDependents {
        /// The key.
        name: String,
        /// What, in words.
        what: String,
    },
    /// A second officer has to agree first.
    #[error(
        "this needs a second officer's approval ({action}): have `{approval}` approved by another officer who may do it, then ask again within the hour"
    )]
    ApprovalRequired {
        /// The request for approval.
        approval: String,
        /// What is to be approved.
        action: String,
    },
    /// The version has been used as often as its owner allows.
    #[error("key version `{0}` has used up its budget; rotate the key, or raise the budget")]
    BudgetSpent(String),
    /// It was asked too often.
    #[error("the {what} `{name}` is asked more often than its limit; try again after {} ms", retry_after.as_millis())]
    Throttled {
        /// Whose limit: `caller`, `key` or `vault`.
        what: &'static str,
        /// Which.
        name: String,
        /// When it may be asked again.
        retry_after: Duration,
    },
    /// A field of the request is wrong.
    #[error("`{field}`: {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong, and what is expected.
        why: String,
    },
    /// The wrapped key does not open. One text for every cause.
    #[error(transparent)]
    UnwrapFailed(#[from] UnwrapFailed),
    /// A second, conflicting duty.
    #[error(transparent)]
    ConflictingDuty(#[from] ConflictingDuty),
    /// The audit journal cannot be written.
    #[error(transparent)]
    AuditUnavailable(#[from] AuditUnavailable),
    /// The store failed.
    #[error("the vault's store failed and nothing was changed: {0}")]
    Store(#[source] StoreError),
    /// The deployment is sealed: nothing is answered.
    #[error("the vault is sealed; its officers unseal it with `custody vault unseal`")]
    Sealed,
    /// The vault's owner sealed it.
    #[error("`{0}` is sealed by its owner, who alone can unseal it")]
    VaultSealed(String),
    /// What was given does not open the seal.
    #[error(
        "the seal does not open with what was given; nothing was unsealed, and shares have to be given again"
    )]
    UnsealFailed,
    /// The store is not as it was left.
    #[error("the vault stays sealed: {0}")]
    StoreRefused(#[source] StoreError),
    /// An assignment gives a role that this version does not know.
    #[error("a stored role assignment cannot be read; use the version that wrote it")]
    StoredRole(#[source] UnknownRole),
    /// A seal's file cannot be used.
    #[error(transparent)]
    Seal(SealError),
    /// The HSM cannot be asked, or did not do it.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Stored key material does not open under its sealing key.
    #[error("the stored private key of `{0}` does not authenticate; restore the vault's store from a backup")]
    Damaged(String),
    /// The cryptographic backend or the random source failed.
    #[error("the cryptographic backend failed; nothing was changed")]
    Backend,
}

impl VaultError {
    /// The canonical status (google.rpc.Code) by name.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::PermissionDenied { .. } => "PERMISSION_DENIED",
            Self::NotFound(_) => "NOT_FOUND",
            Self::AlreadyExists(_) | Self::NameHeld { .. } => "ALREADY_EXISTS",
            Self::KeyUnusable { .. }
            | Self::OperationForbidden { .. }
            | Self::ApprovalRequired { .. }
            | Self::HasDependents { .. }
            | Self::BudgetSpent(_)
            | Self::VaultSealed(_)
            | Self::Precondition { .. }
            | Self::ConflictingDuty(_) => "FAILED_PRECONDITION",
            Self::Invalid { .. } | Self::UnwrapFailed(_) | Self::UnsealFailed => "INVALID_ARGUMENT",
            Self::BeingDeleted(_) => "ABORTED",
            Self::Throttled { .. } => "RESOURCE_EXHAUSTED",
            Self::AuditUnavailable(_) | Self::Sealed | Self::Seal(_) | Self::Store(_) | Self::Token(_) => {
                "UNAVAILABLE"
            }
            Self::Damaged(_) | Self::StoredRole(_) | Self::StoreRefused(_) => "DATA_LOSS",
            Self::Backend => "INTERNAL",
        }
    }

    /// The `ErrorInfo.reason`; each has a page in `docs/errors`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PermissionDenied { .. } => "PERMISSION_DENIED",
            Self::NotFound(_) => "NOT_FOUND",
            Self::AlreadyExists(_) => "ALREADY_EXISTS",
            Self::NameHeld { .. } => "NAME_HELD",
            Self::KeyUnusable { state, .. } => match state {
                KeyState::PreActive => "KEY_PRE_ACTIVE",
                KeyState::Suspended => "KEY_SUSPENDED",
                KeyState::Expired => "KEY_EXPIRED",
                KeyState::Deleted => "KEY_DELETED",
                _ => "KEY_DESTROYED",
            },
            Self::OperationForbidden { .. } => "KEY_OPERATION_FORBIDDEN",
            Self::ApprovalRequired { .. } => "APPROVAL_REQUIRED",
            Self::HasDependents { .. } => "KEY_HAS_DEPENDENTS",
            Self::BudgetSpent(_) => "KEY_BUDGET_SPENT",
            Self::BeingDeleted(_) => "KEY_BEING_DELETED",
            Self::Throttled { .. } => "RATE_LIMITED",
            Self::Precondition { .. } => "INVALID_KEY_TRANSITION",
            Self::Invalid { .. } => "INVALID_FIELD",
            Self::UnwrapFailed(_) => "UNWRAP_FAILED",
            Self::ConflictingDuty(_) => "CONFLICTING_DUTY",
            Self::AuditUnavailable(_) => "AUDIT_UNAVAILABLE",
            Self::Store(_) => "STORE_UNAVAILABLE",
            Self::Sealed => "SEALED",
            Self::VaultSealed(_) => "VAULT_SEALED",
            Self::UnsealFailed => "UNSEAL_FAILED",
            Self::StoredRole(_) | Self::StoreRefused(_) => "STORE_INTEGRITY",
            Self::Seal(_) => "SEAL_UNAVAILABLE",
            Self::Token(_) => "HSM_UNAVAILABLE",
            Self::Damaged(_) => "STORED_KEY_DAMAGED",
            Self::Backend => "BACKEND_FAILED",
        }
    }

    /// The request field at fault, where it is one.
    #[must_use]
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::Invalid { field, .. } => Some(field),
            _ => None,
        }
    }

    /// When the same may be asked again, where that is known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    pub(crate) fn invalid(field: &'static str, why: impl ToString) -> Self {
        Self::Invalid { field, why: why.to_string() }
    }
}

impl From<StoreError> for VaultError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Altered
            | StoreError::AnchorLost { .. }
            | StoreError::AnchorTaken(_)
            | StoreError::RolledBack { .. } => Self::StoreRefused(e),
            StoreError::Locked => Self::Sealed,
            other => Self::Store(other),
        }
    }
}

impl From<SealError> for VaultError {
    fn from(e: SealError) -> Self {
        match e {
            SealError::WrongKey => Self::UnsealFailed,
            SealError::PassphraseLength => Self::invalid("passphrase", e),
            SealError::ShareNumbers => Self::invalid("shares", e),
            SealError::NoShare | SealError::OtherSeal | SealError::ShareGiven | SealError::OfficerGave => {
                Self::invalid("share", e)
            }
            SealError::OtherType => Self::invalid("key", e),
            SealError::NoHsm => Self::invalid("type", e),
            SealError::Hsm(e) => e.into(),
            SealError::Random(_) => Self::Backend,
            other => Self::Seal(other),
        }
    }
}

impl From<NameError> for VaultError {
    fn from(e: NameError) -> Self {
        Self::invalid("name", e)
    }
}

impl From<UnknownRole> for VaultError {
    fn from(e: UnknownRole) -> Self {
        Self::invalid("role_assignment.role", e)
    }
}

impl From<ForbiddenRole> for VaultError {
    fn from(e: ForbiddenRole) -> Self {
        Self::invalid("role_definition.permissions", e)
    }
}

impl From<ScopeError> for VaultError {
    fn from(e: ScopeError) -> Self {
        Self::invalid("role_assignment.scope", e)
    }
}

impl From<UnknownRsaSize> for VaultError {
    fn from(e: UnknownRsaSize) -> Self {
        Self::invalid("key_size_bits", e)
    }
}

impl From<ImportError> for VaultError {
    fn from(e: ImportError) -> Self {
        Self::invalid("private_key", e)
    }
}

impl From<WrapError> for VaultError {
    fn from(e: WrapError) -> Self {
        match e {
            WrapError::Backend => Self::Backend,
            WrapError::NotForThisKey => Self::invalid("algorithm", e),
            other => Self::invalid("plaintext", other),
        }
    }
}

impl From<UnwrapError> for VaultError {
    fn from(e: UnwrapError) -> Self {
        match e {
            UnwrapError::Failed(e) => e.into(),
            UnwrapError::Token(e) => e.into(),
            _ => Self::Backend,
        }
    }
}

impl From<TokenKeyError> for VaultError {
    fn from(e: TokenKeyError) -> Self {
        match e {
            TokenKeyError::Token(e) => e.into(),
            TokenKeyError::Import(e) => e.into(),
            TokenKeyError::Unwrap(e) => e.into(),
            TokenKeyError::Signatures | TokenKeyError::ExchangeOutside => Self::invalid("byok", e),
            _ => Self::Backend,
        }
    }
}

impl From<SignError> for VaultError {
    fn from(e: SignError) -> Self {
        match e {
            SignError::DigestLength { .. } => Self::invalid("digest", e),
            SignError::NotForThisKey(_) => Self::invalid("algorithm", e),
            SignError::Token(e) => e.into(),
            _ => Self::Backend,
        }
    }
}

impl From<RandomError> for VaultError {
    fn from(_: RandomError) -> Self {
        Self::Backend
    }
}
