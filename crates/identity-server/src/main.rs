//! gRPC face of the identity service.
fn main() {}
