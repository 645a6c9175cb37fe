//! Transport rules that every service shares: TLS, tokens, the policy table, deadlines, error details.
//!
//! A request passes, in this order: TLS, trace context, [`policy`] (which duties may call), the token. Start at
//! [`authentication`].

mod acceptor;
pub mod authentication;
pub mod channel;
mod client_certificate;
pub mod compute;
mod connection;
pub mod correlation;
pub mod courier;
mod deadline;
mod gathered;
pub mod hardening;
pub mod https;
pub mod page;
pub mod policy;
pub mod server;
pub mod services;
pub mod settings;
pub mod status;
pub mod timestamp;
pub mod tls;
pub mod token;
pub mod trace;
mod verified_tokens;
pub mod workers;

pub use authentication::CallContext;
pub use channel::{AuthenticatedChannel, Endpoint, TokenSource};
pub use client_certificate::ClientCertificate;
pub use settings::ServerSettings;
