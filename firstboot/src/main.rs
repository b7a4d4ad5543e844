//! The init and first-boot service of every NodeZero image: one static program under several names.
//!
//! - as `init` it is the first stage, in the initrd: [`init`];
//! - as `modprobe` it loads modules that the kernel asks for meanwhile;
//! - `run` is the first-boot service under systemd: [`run`];
//! - `status` and `inventory` print what it knows.
//!
//! It is linked statically with the GNU C library, so that it may not resolve host or user names through that library.

mod boot;
mod cli;
mod cmdline;
mod command;
mod config;
mod console;
mod disks;
mod files;
mod init;
mod machine_id;
mod run;
mod summary;
mod sys;

use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use crate::cli::Invocation;
use crate::disks::Disk;
use crate::init::modules::{Loader, ModuleIndex};

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
        Invocation::Run => run::main()?,
        Invocation::Status { json: true } => print_json(&run::read_status()?)?,
        Invocation::Status { json: false } => {
            let status = run::read_status()?;
            status.report.iter().for_each(|line| println!("{line}"));
            println!("nodezero: {}", if status.ready { "ready" } else { "not ready yet" });
        }
        Invocation::Inventory { json: true } => print_json(&Inventory { disks: disks::survey() })?,
        Invocation::Inventory { json: false } => {
            disks::survey().iter().for_each(|disk| println!("{}", disk.describe()))
        }
        Invocation::Version => println!("nodezero-firstboot {}", env!("CARGO_PKG_VERSION")),
        Invocation::Help => println!("{}", cli::USAGE),
    }
    Ok(ExitCode::SUCCESS)
}

/// What the machine has, for `nodezero profile plan`.
#[derive(Serialize)]
struct Inventory {
    disks: Vec<Disk>,
}

/// Loads modules by name or alias. The kernel takes a failing exit code for "there is no such module".
fn modprobe(modules: &[String]) -> anyhow::Result<ExitCode> {
    let cmdline = init::read_cmdline()?;
    let index = ModuleIndex::read(&init::modules_directory());
    let mut loader = Loader::new(&index, &cmdline);
    let found = modules.iter().all(|module| loader.load(module));
    console::to_kernel_log(&loader.take_log().join("\n"));
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value).context("writing JSON")?);
    Ok(())
}
