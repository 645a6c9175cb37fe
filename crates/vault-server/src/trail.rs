//! The vault's audit trail on the wire.

use crate::convert::failed;
use custody_proto::audit::AuditRecord;
use custody_rpc::{CallContext, audit_log::Trail};
use custody_vault::{Call, Vault};
use std::sync::Arc;
use tonic::Status;

pub(crate) struct VaultTrail(pub(crate) Arc<Vault>);

impl Trail for VaultTrail {
    fn read(&self, context: &CallContext, after: u64, max: usize) -> Result<(Vec<AuditRecord>, u64), Status> {
        if after >= self.0.audit_head() {
            return Ok((Vec::new(), after));
        }
        let call = Call { caller: context.caller.clone(), correlation_id: context.correlation_id.clone() };
        let (entries, last) = self.0.read_audit(&call, after, max).map_err(failed)?;
        let wire = |e: custody_audit::Entry| AuditRecord {
            sequence: e.sequence,
            hash: e.hash,
            json: serde_json::to_string(&e.record).unwrap_or_default(),
        };
        Ok((entries.into_iter().map(wire).collect(), last))
    }
}
