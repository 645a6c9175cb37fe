//! gRPC and NBD faces of the storage node.
fn main() {}
