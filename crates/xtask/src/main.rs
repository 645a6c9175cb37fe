//! Repository checks: tidy, walls, metrics.
fn main() {}
