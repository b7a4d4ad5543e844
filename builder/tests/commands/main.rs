//! The `nodezero` command as a user runs it, against a Debian archive of a few packages made here, signed with a key
//! made here, and served on the loopback by a thread. Needs no root, no network and no VM.
//!
//! One binary, so that what several tests start from, a build with a warm cache, is made once.

mod archive;
mod binaries;
mod build;
mod cache;
mod component;
mod download;
mod fetch;
mod lock;
#[path = "../loopback/mod.rs"]
mod loopback;
mod profiles;
mod server;
mod world;
