//! Builds immutable NodeZero images from Debian packages: no root, no container engine, no mount, no code of the
//! target executed.
//!
//! ```text
//! recipe + lock ─ plan ─ fetch ─ unpack ─ tree ─ root image ─ verity ─ initrd ─ UKI ─ disk image ─ formats, manifest
//! ```
//!
//! [`recipe`], [`component`] and [`lock`] are what the data under `images/` says; [`plan`] puts them together; [`build`]
//! runs a plan through [`fetch`], [`unpack`], [`compose`], [`initrd`] and the format crates; [`manifest`] records the
//! result.
//! [`inspect`], [`shares`], [`boot`] and [`tools`] serve those who look at what was built.

pub mod authority;
pub mod boot;
pub mod build;
pub mod cache;
pub mod cli;
pub mod cluster;
pub mod component;
pub mod compose;
pub mod demo;
mod disk_image;
pub mod fetch;
pub mod firstboot;
pub mod glob;
pub mod initrd;
pub mod inspect;
pub mod kernel;
pub mod kmod;
pub mod kube;
pub mod lock;
pub mod machine;
pub mod manifest;
pub mod microcode;
pub mod mirror;
pub mod nodes;
pub mod output;
pub mod parallel;
pub mod passwd;
pub mod plan;
pub mod profile;
pub mod progress;
pub mod qcow2;
pub mod recipe;
pub mod render;
pub mod scripts;
pub mod secrets;
pub mod shares;
pub mod tools;
pub mod units;
pub mod unpack;
