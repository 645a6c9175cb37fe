//! What serves an audit trail, in each service that has one.

mod denials;
mod service;

pub use denials::denial_sink;
pub use service::{AuditLogService, Trail};
