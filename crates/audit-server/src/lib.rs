//! What serves, keeps and sends an audit trail, in each service that has one.

mod denials;
mod keeper;
mod log_record;
mod sender;
mod service;
mod settings;

pub use denials::denial_sink;
pub use keeper::{Keeper, TrailError, open};
pub use service::{AuditLogService, Trail};
pub use settings::{AuditSettings, AuditSettingsError};
