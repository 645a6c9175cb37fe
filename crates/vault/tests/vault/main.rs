//! What the vault promises, without a network.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod access;
mod corpus;
mod dual_control;
mod holders;
mod keys;
mod leases;
mod lifecycle;
mod lineage;
mod loading;
mod rig;
mod sealing;
mod uses;
