//! The control plane's domain: what a cluster is, and which steps lead from one state to the next.
//!
//! No I/O but the store: `custody-control-server` carries the steps out. It never holds a key or a block; nothing
//! in this crate could.

mod cluster;
mod ledger;
mod plan;
mod retention;
mod state;

pub use cluster::{
    BackupRecord, ClusterRecord, ClusterSpec, EncryptionChange, EncryptionSpec, NodeRecord, OperationRecord,
    OperationResult, RecoverySpec, SpecError, WalArchiveSpec, roles,
};
pub use ledger::{Ledger, LedgerError};
pub use plan::{Step, steps};
pub use retention::Retention;
pub use state::{ClusterState, Event, TransitionError};
