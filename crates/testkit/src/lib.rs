//! Real deployments for tests: real processes, free ports, a directory of their own that is kept when a test fails.
//!

mod azure;
mod collector;
mod deployment;
mod disk;
pub mod memory;
mod proxy;
mod softhsm;
mod storage_node;
pub mod volume;

pub use collector::Collector;
pub use deployment::{Deployment, database_tools, eventually, postgres_programs, target_program};
pub use disk::Disk;
pub use proxy::Proxy;
pub use softhsm::SoftHsm;
pub use storage_node::{CutNode, StorageNode};
