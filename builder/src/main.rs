//! The `nodezero` command.
fn main() {}
