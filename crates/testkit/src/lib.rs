//! Real deployments for tests: real processes, free ports, a directory of their own that is kept when a test fails.
//!
//! [`Cluster`] is for test suites of whoever depends on a key vault: a whole platform with a PostgreSQL under a customer's key, in a
//! few seconds, whose key can be taken away, whose vault can misbehave, and whose network can be cut (`docs/testing.md`).

mod azure;
mod cluster;
mod collector;
mod deployment;
mod disk;
pub mod memory;
mod proxy;
mod softhsm;
mod storage_node;
pub mod volume;

pub use cluster::{Builder, Caller, Cluster, LostHsm, Partition, Revocation, Service, State};
pub use collector::Collector;
pub use deployment::{Deployment, database_tools, eventually, postgres_programs, target_program};
pub use disk::Disk;
pub use proxy::Proxy;
pub use softhsm::SoftHsm;
pub use storage_node::{CutNode, StorageNode};
