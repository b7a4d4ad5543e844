//! All tests that need virtual machines, as one program: cargo runs programs one after the other, and the tests of one
//! program beside each other, so that both turns that [`qemu_tests::scenario`] gives are taken until the end.
//!
//! `cargo test -p qemu-tests --test machines data_disks` runs those of one module.

mod bad_configs;
mod boot_bios;
mod boot_uefi;
mod build;
mod cluster;
mod data_disks;
mod first_boot;
mod fw_cfg;
mod harness;
mod ignition;
mod network;
mod power_cuts;
mod sources;
mod state_faults;
mod tamper;
