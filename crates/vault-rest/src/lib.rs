//! The vault in Azure Key Vault's keys REST API: parse, call the domain on a worker, convert back.
//!
//! Start at [`Face`]. Nothing is decided here: who may do what, and what a key does, is the vault's, behind the same
//! gate as in gRPC. Facts about Azure's wire are in its reference "Azure Key Vault REST API: Keys".

mod bodies;
mod error;
mod face;
mod judge;
mod operations;
mod route;
mod uses;
mod views;

pub use face::{Face, FaceSettings, router};
pub use judge::{judge, judge_head};
