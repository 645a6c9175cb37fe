//! One record, in the words of Azure's AuditEvent.

use custody_types::{Caller, UnixMillis};
use serde::{Deserialize, Serialize};

/// Where in an operation the record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Phase {
    /// Before the operation acted: it was authorized and is about to happen.
    Begin,
    /// After it: what came of it. An operation that was refused has only this one, as has one of which only an answer came.
    Finish,
}

/// What came of an operation (`resultType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Outcome {
    /// Not known yet: the record opens an operation.
    Started,
    /// Done.
    Success,
    /// Refused by authorization.
    Denied,
    /// Authorized, but not done; `resultDescription` says why.
    Failed,
    /// The process ended between begin and finish: it may or may not have been done.
    Interrupted,
}

/// Who asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Principal or managed identity.
    pub principal: String,
    /// Its duty.
    pub duty: String,
    /// `jti` of the token.
    pub token_id: String,
}

/// An audit record. Names follow Azure Key Vault's AuditEvent (learn.microsoft.com, "Azure Key Vault logging").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Milliseconds since 1970.
    pub time: UnixMillis,
    /// Always `AuditEvent`.
    pub category: String,
    /// Azure's operation name, `KeyUnwrap` for example.
    pub operation_name: String,
    /// Begin or finish.
    pub phase: Phase,
    /// Ties a finish to its begin, and both to the trace.
    pub correlation_id: String,
    /// Who.
    pub identity: Identity,
    /// From where.
    pub caller_ip_address: String,
    /// On what: a resource name.
    pub resource_id: String,
    /// What came of it.
    pub result_type: Outcome,
    /// The canonical status, `PERMISSION_DENIED` for example; empty on begin.
    pub result_signature: String,
    /// Why, where it failed or was refused; which assignment allowed it, where it was allowed.
    pub result_description: String,
    /// From begin to finish.
    pub duration_ms: u64,
}

impl Record {
    /// A begin record.
    #[must_use]
    pub fn begin(
        time: UnixMillis,
        operation: &str,
        correlation_id: &str,
        caller: &Caller,
        resource: &str,
    ) -> Self {
        Self {
            time,
            category: "AuditEvent".to_owned(),
            operation_name: operation.to_owned(),
            phase: Phase::Begin,
            correlation_id: correlation_id.to_owned(),
            identity: Identity {
                principal: caller.principal.clone(),
                duty: caller.duty.as_str().to_owned(),
                token_id: caller.token_id.clone(),
            },
            caller_ip_address: caller.address.clone(),
            resource_id: resource.to_owned(),
            result_type: Outcome::Started,
            result_signature: String::new(),
            result_description: String::new(),
            duration_ms: 0,
        }
    }

    /// The record that ends what `self` began.
    #[must_use]
    pub fn finish(self, time: UnixMillis, outcome: Outcome, signature: &str, description: &str) -> Self {
        Self {
            time,
            phase: Phase::Finish,
            result_type: outcome,
            result_signature: signature.to_owned(),
            result_description: description.to_owned(),
            duration_ms: time.as_millis().saturating_sub(self.time.as_millis()),
            ..self
        }
    }
}
