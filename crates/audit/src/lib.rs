//! The audit journal: hash-chained, durable before the answer, signed at checkpoints, verified offline.
//!
//! Audit is not telemetry: another type, another sink, another reader, never sampled, and it stops the operation
//! when it cannot be written. The file format is `docs/formats/audit-journal.md`.

mod chain;
mod checkpoint;
mod journal;
mod record;
pub mod tree;
mod verify;

pub use chain::Entry;
pub use journal::{AuditUnavailable, Journal, OpenJournalError, Pending};
pub use record::{Identity, Outcome, Phase, Record};
pub use verify::{Broken, Report, verify};
