//! Ratios against real peers.
fn main() {}
