//! The VM harness: boots what `nodezero build` made, through firmware, as a user gets it, and watches from outside.
//!
//! A scenario reads as boot, wait, assert:
//!
//! ```no_run
//! use qemu_tests::{Machine, Platform, Role, images, scenario};
//!
//! # fn test() {
//! scenario("worker", |s| {
//!     let image = images::built(Role::Worker, Platform::Metal)?;
//!     let vm = s.start(&Machine::new("worker").disk(s.boot_disk(&image.path)?))?;
//!     vm.wait_ready()?;
//!     vm.report()?.expect_value("role", "worker")?;
//!     vm.power_off()
//! });
//! # }
//! ```
//!
//! - [`machine`] describes a virtual machine and turns it into QEMU's arguments, purely; [`vm`] runs one.
//! - [`console`], [`qmp`] and [`guest`] are the three ways to watch and steer it. Every wait has a deadline.
//! - [`scenario`](fn@scenario) holds a test's directory and keeps the evidence when it fails.
//! - [`images`] runs the `nodezero` command; [`storage`] makes disks from images, and damages them on purpose;
//!   [`iso`] makes discs.
//! - [`cluster`] has what scenarios of several machines that become a cluster need beside them.
//! - [`tools`], [`firmware`] and [`accel`] find programs, OVMF and an accelerator that work on this machine.
//!
//! - [`server`] answers guests on the host's loopback; [`wire`] is a segment of its own, with VLANs and any addresses,
//!   and [`wire::Link`] makes the user network slow and lossy.
//!
//! What is left out: networks between machines other than through the host's loopback, and guests of other
//! architectures than x86-64.

pub mod accel;
mod cards;
pub mod cluster;
pub mod console;
pub mod firmware;
pub mod foreign;
pub mod guest;
pub mod ignition;
pub mod images;
pub mod iso;
pub mod machine;
pub mod qmp;
pub mod scenario;
pub mod server;
mod spawn;
pub mod storage;
pub mod tools;
pub mod vm;
pub mod wire;

pub use guest::Report;
pub use images::{Image, Platform, Role};
pub use machine::{Bus, Disk, Machine};
pub use scenario::{Scenario, scenario};
pub use vm::Vm;
