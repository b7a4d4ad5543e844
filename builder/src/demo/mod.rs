//! `nodezero demo`: a cluster on this machine, in QEMU, to try.

pub mod rig;
