//! The init and first-boot service of every NodeZero image: one static program under several names.
//!
//! - as `init` it is the first stage, in the initrd: [`init`];
//! - as `modprobe` it loads modules that the kernel asks for meanwhile;
//! - `run` is the first-boot service under systemd: [`run`]; `registry` is one of control nodes: [`registry`]; `seen` is
//!   what a timer of edge nodes runs: [`registration::seen`];
//! - as `ignition` it runs one of Ignition's stages, as `ignition-validate` it validates configs: [`ignition`];
//! - `status` and `inventory` print what it knows.
//!
//! It is linked statically with the GNU C library, so that it may not resolve host or user names through that library.

mod boot;
mod cli;
mod cmdline;
mod command;
mod console;
mod data_disks;
mod disks;
mod files;
mod firewall;
mod ignition;
mod init;
mod k3s;
mod kubernetes;
mod machine_id;
mod mesh;
mod network;
mod registration;
mod registry;
mod run;
mod sources;
mod summary;
mod sys;

use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use crate::cli::Invocation;
use crate::init::modules::{Loader, ModuleIndex};
use crate::run::status::Status;

fn main() -> ExitCode {
    let outcome = match Invocation::parse(std::env::args_os()) {
        // The kernel starts /init as the first process; anywhere else the name must not mount anything.
        Ok(Invocation::Init) if std::process::id() == 1 => init::main(),
        Ok(invocation) => perform(invocation),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("nodezero-firstboot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does what was asked for.
fn perform(invocation: Invocation) -> anyhow::Result<ExitCode> {
    match invocation {
        Invocation::Init => anyhow::bail!("the first stage runs as the first process alone"),
        Invocation::Modprobe { modules } => return modprobe(&modules),
        Invocation::Ignition { arguments } => return Ok(ignition::main(&arguments)),
        Invocation::IgnitionValidate { arguments } => return Ok(ignition::config::validate_main(&arguments)),
        Invocation::Run => run::main()?,
        Invocation::Registry => registry::main()?,
        Invocation::Seen => registration::seen::main()?,
        Invocation::Status { json: true } => print_json(&Status::read()?)?,
        Invocation::Status { json: false } => println!("{}", Status::read()?),
        Invocation::Inventory { json: true } => print_json(&data_disks::inventory())?,
        Invocation::Inventory { json: false } => {
            data_disks::inventory().disks.iter().for_each(|disk| println!("{}", disk.describe()));
        }
        Invocation::Version => println!("nodezero-firstboot {}", env!("CARGO_PKG_VERSION")),
        Invocation::Help => println!("{}", cli::USAGE),
    }
    Ok(ExitCode::SUCCESS)
}

/// Loads modules by name or alias. The kernel takes a failing exit code for "there is no such module".
fn modprobe(modules: &[String]) -> anyhow::Result<ExitCode> {
    let cmdline = init::read_cmdline()?;
    let index = ModuleIndex::read(&init::largest_modules_directory());
    let mut loader = Loader::new(&index, &cmdline);
    let found = modules.iter().all(|module| loader.load(module));
    console::to_kernel_log(&loader.take_log().join("\n"));
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value).context("writing JSON")?);
    Ok(())
}
