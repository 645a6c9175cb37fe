//! gRPC face of the vault.
fn main() {}
