//! gRPC face of the database node.
fn main() {}
