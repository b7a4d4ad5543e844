//! The first-boot binary.
fn main() {}
