//! The replica.
fn main() {}
