//! The `custody` command: starts processes, links no domain crate.
fn main() {}
