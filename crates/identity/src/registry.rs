//! Who exists, and what each may prove.

use crate::{AUDIENCES, IssuedToken, Proof, Signer, officers::SecondOfficer, signer::Subject};
use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use custody_audit::{AuditUnavailable, Entry, Journal, Outcome, Record};
use custody_store::{Batch, Store, StoreError};
use custody_types::{Caller, Clock, Duty, ManagedIdentityName, PrincipalName, UnixMillis};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt, sync::Arc};
use subtle::ConstantTimeEq as _;

const PRINCIPALS: &str = "principals";
const MANAGED: &str = "managed";
const RETIRED: &str = "retired";

/// A principal as it is stored: its secret only as a hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrincipalRecord {
    /// Its name.
    pub name: PrincipalName,
    /// Its one duty.
    pub duty: Duty,
    /// SHA-256 of its secret, in hexadecimal; secrets have 256 random bits, so no slow hash is needed.
    secret_hash: String,
    /// When it was made.
    pub create_time: UnixMillis,
}

/// A managed identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedIdentityRecord {
    /// Its name.
    pub name: ManagedIdentityName,
    /// Nodes that may act as it.
    pub nodes: BTreeSet<PrincipalName>,
    /// When it was made.
    pub create_time: UnixMillis,
}

/// A principal that exists from the first start on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bootstrap {
    /// The last part of its name.
    pub id: String,
    /// Its duty.
    pub duty: Duty,
    /// SHA-256 of its secret, in hexadecimal.
    pub secret_sha256: String,
}

/// What the identity service answers when it does not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Unknown principal or wrong secret: one answer.
    #[error("the client credentials are not valid")]
    BadCredentials,
    /// The workload may not act as that identity, or it does not exist.
    #[error(
        "`{workload}` may not act as `{identity}` (or it might not exist); the control plane binds identities to nodes"
    )]
    NotBound {
        /// Who asked.
        workload: String,
        /// As whom.
        identity: String,
    },
    /// Does not exist.
    #[error("`{0}` does not exist")]
    NotFound(String),
    /// The name is taken, or was.
    #[error("`{0}` exists, or existed and is retired for good; choose another id")]
    AlreadyExists(String),
    /// Bound somewhere.
    #[error("`{0}` is bound to nodes; delete the clusters that use it first")]
    InUse(String),
    /// A second officer has to agree first.
    #[error(
        "this needs a second officer's approval ({action}): have `{approval}` approved by another officer, then ask again within the hour"
    )]
    ApprovalRequired {
        /// The request for approval.
        approval: String,
        /// What is to be approved.
        action: String,
    },
    /// It is not in a state for that.
    #[error("`{name}`: {why}")]
    Precondition {
        /// What.
        name: String,
        /// Why not.
        why: &'static str,
    },
    /// A field is wrong.
    #[error("`{field}`: {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The audit journal cannot be written.
    #[error(transparent)]
    AuditUnavailable(#[from] AuditUnavailable),
    /// The store failed.
    #[error("the identity store failed; nothing was changed")]
    Store(#[from] StoreError),
    /// No random bytes, or no signature.
    #[error("the cryptographic backend failed")]
    Backend,
}

impl IdentityError {
    /// The canonical status by name.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::BadCredentials => "UNAUTHENTICATED",
            Self::NotBound { .. } => "PERMISSION_DENIED",
            Self::NotFound(_) => "NOT_FOUND",
            Self::AlreadyExists(_) => "ALREADY_EXISTS",
            Self::InUse(_) | Self::ApprovalRequired { .. } | Self::Precondition { .. } => {
                "FAILED_PRECONDITION"
            }
            Self::Invalid { .. } => "INVALID_ARGUMENT",
            Self::AuditUnavailable(_) | Self::Store(_) => "UNAVAILABLE",
            Self::Backend => "INTERNAL",
        }
    }

    /// The `ErrorInfo.reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadCredentials => "BAD_CREDENTIALS",
            Self::NotBound { .. } => "IDENTITY_NOT_BOUND",
            Self::NotFound(_) => "NOT_FOUND",
            Self::AlreadyExists(_) => "ALREADY_EXISTS",
            Self::InUse(_) => "IDENTITY_IN_USE",
            Self::ApprovalRequired { .. } => "APPROVAL_REQUIRED",
            Self::Precondition { .. } => "APPROVAL_NOT_OPEN",
            Self::Invalid { .. } => "INVALID_FIELD",
            Self::AuditUnavailable(_) => "AUDIT_UNAVAILABLE",
            Self::Store(_) => "STORE_UNAVAILABLE",
            Self::Backend => "BACKEND_FAILED",
        }
    }

    pub(crate) fn invalid(field: &'static str, why: impl ToString) -> Self {
        Self::Invalid { field, why: why.to_string() }
    }
}

/// All principals and managed identities.
pub struct Registry {
    pub(crate) store: Store,
    signer: Signer,
    journal: Arc<Journal>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Changes are made one after another: what is free when it is looked at is free when it is taken.
    pub(crate) changes: Mutex<()>,
    /// Ids of workloads that prove themselves by certificates.
    services: Vec<String>,
}

fn hash(secret: &str) -> String {
    hex::encode(digest(&SHA256, secret.as_bytes()))
}

pub(crate) fn random_hex() -> Result<String, IdentityError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| IdentityError::Backend)?;
    Ok(hex::encode(bytes))
}

impl Registry {
    /// Opens the registry, and makes the bootstrap principals that do not exist yet.
    ///
    /// # Errors
    /// The store failed, or a bootstrap entry is malformed.
    pub fn open(
        store: Store,
        signer: Signer,
        journal: Arc<Journal>,
        clock: Arc<dyn Clock>,
        bootstrap: &[Bootstrap],
        managed: &[(String, String)],
        services: &[String],
    ) -> Result<Self, IdentityError> {
        let changes = Mutex::new(());
        let registry = Self { store, signer, journal, clock, changes, services: services.to_vec() };
        let mut batch = Batch::new();
        for entry in bootstrap {
            let name: PrincipalName = format!("principals/{}", entry.id)
                .parse()
                .map_err(|e| IdentityError::invalid("bootstrap.id", e))?;
            if registry.store.get::<PrincipalRecord>(PRINCIPALS, name.as_str())?.is_none() {
                let record = PrincipalRecord {
                    name: name.clone(),
                    duty: entry.duty,
                    secret_hash: entry.secret_sha256.clone(),
                    create_time: registry.clock.now(),
                };
                batch.put(PRINCIPALS, name.as_str(), &record);
            }
        }
        for (id, node) in managed {
            let name: ManagedIdentityName = format!("managedIdentities/{id}")
                .parse()
                .map_err(|e| IdentityError::invalid("bootstrap.managed", e))?;
            let node: PrincipalName =
                node.parse().map_err(|e| IdentityError::invalid("bootstrap.managed", e))?;
            let mut record =
                registry.store.get(MANAGED, name.as_str())?.unwrap_or_else(|| ManagedIdentityRecord {
                    name: name.clone(),
                    nodes: BTreeSet::new(),
                    create_time: registry.clock.now(),
                });
            record.nodes.insert(node);
            batch.put(MANAGED, name.as_str(), &record);
        }
        registry.store.commit(batch)?;
        Ok(registry)
    }

    /// Writes a record, acts, and finishes it.
    pub(crate) fn audited<T>(
        &self,
        caller: &Caller,
        operation: &str,
        resource: &str,
        act: impl FnOnce() -> Result<T, IdentityError>,
    ) -> Result<T, IdentityError> {
        let pending = self.journal.begin(Record::begin(
            self.clock.now(),
            operation,
            &random_hex()?,
            caller,
            resource,
        ))?;
        match act() {
            Ok(done) => {
                pending.finish(Outcome::Success, "OK", "");
                Ok(done)
            }
            Err(e) => {
                let denied = matches!(e, IdentityError::BadCredentials | IdentityError::NotBound { .. });
                pending.finish(
                    if denied { Outcome::Denied } else { Outcome::Failed },
                    e.status(),
                    &e.to_string(),
                );
                Err(e)
            }
        }
    }

    fn sign(&self, subject: Subject<'_>, audience: &str) -> Result<IssuedToken, IdentityError> {
        let signed = self.signer.sign(subject, audience, self.clock.now(), random_hex()?);
        signed.ok_or(IdentityError::Backend)
    }

    fn check_audience(audience: &str) -> Result<(), IdentityError> {
        if AUDIENCES.contains(&audience) {
            Ok(())
        } else {
            Err(IdentityError::invalid("audience", format!("must be one of {}", AUDIENCES.join(", "))))
        }
    }

    /// The public keys that verify tokens.
    #[must_use]
    pub fn jwks(&self) -> &str {
        self.signer.jwks()
    }

    /// Exchanges client credentials for a token.
    ///
    /// # Errors
    /// Bad credentials, or an unknown audience.
    pub fn issue_token(
        &self,
        client_id: &str,
        secret: &str,
        audience: &str,
        address: &str,
    ) -> Result<IssuedToken, IdentityError> {
        Self::check_audience(audience)?;
        let shown: String = client_id.chars().take(120).collect();
        let caller = Caller {
            principal: shown.clone(),
            duty: Duty::Workload,
            token_id: String::new(),
            address: address.to_owned(),
        };
        self.audited(&caller, "TokenIssue", &shown, || {
            let record = client_id
                .parse::<PrincipalName>()
                .ok()
                .map(|n| self.store.get::<PrincipalRecord>(PRINCIPALS, n.as_str()))
                .transpose()?
                .flatten();
            // The comparison is made also for unknown principals, so that time does not tell who exists.
            let stored = record.as_ref().map_or_else(|| hash(""), |r| r.secret_hash.clone());
            let good = bool::from(hash(secret).as_bytes().ct_eq(stored.as_bytes()));
            match record {
                Some(r) if good => {
                    let (name, proof) = (r.name.as_str(), Proof::Secret);
                    self.sign(Subject { name, duty: r.duty, proof, actor: None }, audience)
                }
                _ => Err(IdentityError::BadCredentials),
            }
        })
    }

    /// Issues a token to a workload that has shown its certificate: as itself or as a managed identity.
    ///
    /// # Errors
    /// The identity is not bound to it, or an unknown audience.
    pub fn issue_workload_token(
        &self,
        workload: &PrincipalName,
        identity: &str,
        audience: &str,
        address: &str,
    ) -> Result<IssuedToken, IdentityError> {
        Self::check_audience(audience)?;
        let caller = Caller {
            principal: workload.to_string(),
            duty: Duty::Workload,
            token_id: String::new(),
            address: address.to_owned(),
        };
        if identity.is_empty() {
            return self.audited(&caller, "TokenIssue", workload.as_str(), || {
                let (name, proof) = (workload.as_str(), Proof::Certificate);
                self.sign(Subject { name, duty: Duty::Workload, proof, actor: None }, audience)
            });
        }
        let identity: ManagedIdentityName =
            identity.parse().map_err(|e| IdentityError::invalid("managed_identity", e))?;
        self.audited(&caller, "TokenIssue", identity.as_str(), || {
            let record = self.store.get::<ManagedIdentityRecord>(MANAGED, identity.as_str())?;
            if !record.is_some_and(|r| r.nodes.contains(workload)) {
                return Err(IdentityError::NotBound {
                    workload: workload.to_string(),
                    identity: identity.to_string(),
                });
            }
            let (name, proof, actor) = (identity.as_str(), Proof::Certificate, Some(workload.as_str()));
            self.sign(Subject { name, duty: Duty::Workload, proof, actor }, audience)
        })
    }

    /// Makes a principal and answers its secret, which is stored nowhere. An officer is made by two of them.
    ///
    /// # Errors
    /// A second officer has to agree; the id is malformed or taken, or is the name of a service, which proves itself by a certificate: role
    /// assignments to the one would hold for the other.
    pub fn create_principal(
        &self,
        caller: &Caller,
        id: &str,
        duty: &str,
    ) -> Result<(PrincipalRecord, String), IdentityError> {
        let name: PrincipalName =
            format!("principals/{id}").parse().map_err(|e| IdentityError::invalid("principal_id", e))?;
        let duty: Duty = duty.parse().map_err(|e| IdentityError::invalid("duty", e))?;
        if self.services.iter().any(|s| s == id) {
            return Err(IdentityError::invalid("principal_id", "is the name of a service; choose another"));
        }
        self.audited(caller, "PrincipalCreate", name.as_str(), || {
            let _one_at_a_time = self.changes.lock();
            self.check_free(PRINCIPALS, name.as_str())?;
            let agreed = if duty == Duty::SecurityOfficer {
                self.second_officer(caller, name.as_str(), format!("make {name} an officer"))?
            } else {
                SecondOfficer::NOT_NEEDED
            };
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes).map_err(|_| IdentityError::Backend)?;
            let secret = URL_SAFE_NO_PAD.encode(bytes);
            let record = PrincipalRecord {
                name: name.clone(),
                duty,
                secret_hash: hash(&secret),
                create_time: self.clock.now(),
            };
            let mut batch = Batch::new();
            batch.put(PRINCIPALS, name.as_str(), &record);
            self.commit_approved(batch, agreed)?;
            Ok((record, secret))
        })
    }

    fn check_free(&self, table: &'static str, name: &str) -> Result<(), IdentityError> {
        let there = self.store.get::<serde_json::Value>(table, name)?.is_some()
            || self.store.get::<bool>(RETIRED, name)?.is_some();
        if there { Err(IdentityError::AlreadyExists(name.to_owned())) } else { Ok(()) }
    }

    pub(crate) fn put<V: Serialize>(
        &self,
        table: &'static str,
        name: &str,
        value: &V,
    ) -> Result<(), IdentityError> {
        let mut batch = Batch::new();
        batch.put(table, name, value);
        Ok(self.store.commit(batch)?)
    }

    fn retire(&self, table: &'static str, name: &str, agreed: SecondOfficer) -> Result<(), IdentityError> {
        let mut batch = Batch::new();
        batch.delete(table, name).put(RETIRED, name, &true);
        self.commit_approved(batch, agreed)
    }

    /// Reads a principal.
    ///
    /// # Errors
    /// Malformed, or does not exist.
    pub fn get_principal(&self, name: &str) -> Result<PrincipalRecord, IdentityError> {
        let name: PrincipalName = name.parse().map_err(|e| IdentityError::invalid("name", e))?;
        self.store.get(PRINCIPALS, name.as_str())?.ok_or_else(|| IdentityError::NotFound(name.to_string()))
    }

    /// Every principal, by name.
    ///
    /// # Errors
    /// The store failed.
    pub fn list_principals(&self) -> Result<Vec<PrincipalRecord>, IdentityError> {
        Ok(self.store.scan(PRINCIPALS, "")?.into_iter().map(|(_, p)| p).collect())
    }

    /// Removes a principal. Its tokens end within their lifetime. An officer is removed by two of them, or by itself.
    ///
    /// # Errors
    /// Malformed, does not exist, or a second officer has to agree.
    pub fn delete_principal(&self, caller: &Caller, name: &str) -> Result<(), IdentityError> {
        let record = self.get_principal(name)?;
        self.audited(caller, "PrincipalDelete", record.name.as_str(), || {
            let _one_at_a_time = self.changes.lock();
            let name = record.name.as_str();
            // Who has removed it meanwhile has spent the approval.
            self.get_principal(name)?;
            let agreed = if record.duty == Duty::SecurityOfficer && name != caller.principal {
                self.second_officer(caller, name, format!("remove {name}, an officer"))?
            } else {
                SecondOfficer::NOT_NEEDED
            };
            self.retire(PRINCIPALS, name, agreed)
        })
    }

    /// Makes a managed identity.
    ///
    /// # Errors
    /// The id is malformed or taken.
    pub fn create_managed_identity(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<ManagedIdentityRecord, IdentityError> {
        let name: ManagedIdentityName = format!("managedIdentities/{id}")
            .parse()
            .map_err(|e| IdentityError::invalid("managed_identity_id", e))?;
        self.audited(caller, "ManagedIdentityCreate", name.as_str(), || {
            let _one_at_a_time = self.changes.lock();
            self.check_free(MANAGED, name.as_str())?;
            let record = ManagedIdentityRecord {
                name: name.clone(),
                nodes: BTreeSet::new(),
                create_time: self.clock.now(),
            };
            self.put(MANAGED, name.as_str(), &record)?;
            Ok(record)
        })
    }

    /// Reads a managed identity.
    ///
    /// # Errors
    /// Malformed, or does not exist.
    pub fn get_managed_identity(&self, name: &str) -> Result<ManagedIdentityRecord, IdentityError> {
        let name: ManagedIdentityName = name.parse().map_err(|e| IdentityError::invalid("name", e))?;
        self.store.get(MANAGED, name.as_str())?.ok_or_else(|| IdentityError::NotFound(name.to_string()))
    }

    /// Every managed identity, by name.
    ///
    /// # Errors
    /// The store failed.
    pub fn list_managed_identities(&self) -> Result<Vec<ManagedIdentityRecord>, IdentityError> {
        Ok(self.store.scan(MANAGED, "")?.into_iter().map(|(_, m)| m).collect())
    }

    /// Removes a managed identity that is bound nowhere.
    ///
    /// # Errors
    /// Malformed, does not exist, or is bound.
    pub fn delete_managed_identity(&self, caller: &Caller, name: &str) -> Result<(), IdentityError> {
        let name = self.get_managed_identity(name)?.name;
        self.audited(caller, "ManagedIdentityDelete", name.as_str(), || {
            let _one_at_a_time = self.changes.lock();
            let record = self.get_managed_identity(name.as_str())?;
            if !record.nodes.is_empty() {
                return Err(IdentityError::InUse(record.name.to_string()));
            }
            self.retire(MANAGED, record.name.as_str(), SecondOfficer::NOT_NEEDED)
        })
    }

    /// Lets a node act as an identity, or takes that back. Repeating it changes nothing.
    ///
    /// # Errors
    /// Malformed, or the identity does not exist.
    pub fn bind(
        &self,
        caller: &Caller,
        name: &str,
        node: &str,
        bound: bool,
    ) -> Result<ManagedIdentityRecord, IdentityError> {
        let node: PrincipalName = node.parse().map_err(|e| IdentityError::invalid("node", e))?;
        let name = self.get_managed_identity(name)?.name;
        let operation = if bound { "ManagedIdentityBind" } else { "ManagedIdentityUnbind" };
        self.audited(caller, operation, name.as_str(), || {
            let _one_at_a_time = self.changes.lock();
            let mut record = self.get_managed_identity(name.as_str())?;
            let changed = if bound { record.nodes.insert(node) } else { record.nodes.remove(&node) };
            if changed {
                self.put(MANAGED, record.name.as_str(), &record)?;
            }
            Ok(record)
        })
    }

    /// The trail's journal: for what proves that a record is in it.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Audit entries after number `after`.
    ///
    /// # Errors
    /// The trail cannot be read.
    pub fn read_audit(&self, after: u64, max: usize) -> Result<Vec<Entry>, IdentityError> {
        self.journal
            .read(after, max)
            .map_err(|_| IdentityError::AuditUnavailable(AuditUnavailable::Unreadable))
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registry(..)")
    }
}
