//! gRPC face of the control plane.
fn main() {}
