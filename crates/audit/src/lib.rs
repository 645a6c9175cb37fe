//! The audit journal: hash-chained, durable before the answer, a transparency log with signed checkpoints, verified offline.
//!
//! Audit is not telemetry: another type, another sink, another reader, never sampled, and it stops the operation
//! when it cannot be written. The file format is `docs/formats/audit-journal.md`.

mod beginning;
mod chain;
mod checkpoint;
mod journal;
mod pending;
mod queue;
mod record;
mod retention;
pub mod tree;
mod unavailable;
mod verify;
mod waiters;
mod whole_file;
mod writer;

pub use chain::Entry;
pub use checkpoint::{TreeHead, trail_key};
pub use journal::{Journal, OpenJournalError};
pub use pending::Pending;
pub use record::{Identity, Outcome, Phase, Record};
pub use retention::{Removed, Retention, RetentionError};
pub use unavailable::AuditUnavailable;
pub use verify::{Broken, Earlier, Report, verify};
pub use waiters::Answers;
pub use writer::FileLimits;
