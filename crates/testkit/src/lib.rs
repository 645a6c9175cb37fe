//! Real deployments for tests: real processes, port 0, a directory of their own that is kept when a test fails.

mod collector;
mod deployment;
pub mod memory;
mod softhsm;

pub use collector::Collector;
pub use deployment::{Deployment, database_tools, eventually, postgres_programs, target_program};
pub use softhsm::SoftHsm;
