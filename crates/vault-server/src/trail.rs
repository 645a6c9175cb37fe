//! The vault's audit trail on the wire.

use crate::convert::failed;
use custody_audit::{Entry, Journal};
use custody_audit_server::Trail;
use custody_rpc::CallContext;
use custody_vault::{Call, Vault};
use std::sync::Arc;
use tonic::Status;

pub(crate) struct VaultTrail(pub(crate) Arc<Vault>);

impl Trail for VaultTrail {
    fn journal(&self) -> &Journal {
        self.0.journal()
    }

    fn read(&self, context: &CallContext, after: u64, max: usize) -> Result<(Vec<Entry>, u64), Status> {
        if after >= self.journal().written() {
            return Ok((Vec::new(), after));
        }
        let call = Call::new(context.caller.clone(), context.correlation_id.clone());
        self.0.read_audit(&call, after, max).map_err(failed)
    }
}
