//! `nodezero boot`: an image in QEMU, as a machine would start it, with its console in the terminal.
//!
//! Writes go to an overlay that vanishes with the command, or is kept where that is asked for; the image itself is
//! opened read-only.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::inspect;
use crate::machine::{Console, Firmware, Machine, kvm_works};
use crate::progress::Progress;
use crate::tools::Tools;

/// What sizes are multiples of, in bytes.
const SECTOR: u64 = 512;

/// Arguments of `nodezero boot`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The image: raw or qcow2
    image: PathBuf,
    /// An Ignition config that the machine finds through QEMU's firmware configuration device
    #[arg(long, value_name = "FILE")]
    fw_cfg_ignition: Option<PathBuf>,
    /// A data disk of this size, empty and sparse: 20G and 18T are GiB and TiB, 18TB is as disks are sold; may be repeated
    #[arg(long = "disk", value_name = "SIZE", value_parser = parse_size)]
    disks: Vec<u64>,
    /// Size that the boot disk is grown to, so that there is room for the machine's state
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "16G")]
    boot_disk: u64,
    /// Boot by BIOS instead of UEFI
    #[arg(long)]
    bios: bool,
    /// Memory, such as 2G
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "2G")]
    memory: u64,
    /// Processors
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    cpus: u8,
    /// Keep what the machine writes in this qcow2 file, and go on from it if it exists
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
    /// Print QEMU's command instead of running it
    #[arg(long)]
    dry_run: bool,
}

/// Parses a size into bytes: `20G` and `20GiB` are binary units, as QEMU's; `18TB` is decimal, as disks are sold.
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size such as 512M, 20G, 18T (18 TiB) or 18TB");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        "T" | "TIB" => 1 << 40,
        "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    let size = count.checked_mul(unit).filter(|size| *size > 0).ok_or_else(wrong)?;
    if size % SECTOR == 0 { Ok(size) } else { Err(format!("{text:?} is no whole number of sectors of {SECTOR} bytes")) }
}

/// Boots an image and waits for the machine to end.
///
/// # Errors
/// When the image, QEMU or firmware cannot be had.
pub fn run(arguments: &Arguments, tools: &Tools, progress: &Progress) -> Result<ExitCode> {
    let image = std::path::absolute(&arguments.image)
        .ok()
        .filter(|path| path.is_file())
        .with_context(|| format!("{} is not an image file", arguments.image.display()))?;
    if let Some(config) = arguments.fw_cfg_ignition.as_deref().filter(|config| !config.exists()) {
        bail!("{} is not there: it was to be the machine's Ignition config", config.display());
    }
    if arguments.bios && inspect::bios_bootable(&image) == Some(false) {
        bail!("{} does not boot by BIOS: build it with --platform vps", image.display());
    }
    let scratch = tempfile::tempdir().context("making a temporary directory for the machine's disks")?;
    let overlay = match &arguments.keep {
        Some(path) => std::path::absolute(path).with_context(|| format!("finding {}", path.display()))?,
        None => scratch.path().join("boot.qcow2"),
    };
    let kvm = kvm_works(tools, &image, scratch.path());
    if !kvm {
        progress.say("KVM does not work here: emulating, which takes about a minute; Ctrl-A X ends the machine");
    }
    let machine = Machine {
        image: &image,
        boot_disk: overlay,
        boot_size: arguments.boot_disk,
        disks: &arguments.disks,
        firmware: if arguments.bios { Firmware::Bios } else { Firmware::Uefi },
        kvm,
        cpus: arguments.cpus,
        memory_mib: arguments.memory >> 20,
        console: Console::Terminal,
        forward: None,
        config: arguments.fw_cfg_ignition.as_deref(),
    };
    let mut command = machine.command(tools, scratch.path())?;
    if arguments.dry_run {
        println!("{command:?}");
        return Ok(ExitCode::SUCCESS);
    }
    let status = command.status().with_context(|| format!("running {command:?}"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_in_binary_and_decimal_units() {
        for (text, expected) in [
            ("18T", Some(18 << 40)),
            ("512M", Some(512 << 20)),
            ("18TiB", Some(18 << 40)),
            ("18TB", Some(18_000_000_000_000)),
            ("500gb", Some(500_000_000_000)),
            ("1024", Some(1024)),
            ("7", None),
            ("1KB", None),
            ("0G", None),
            ("G", None),
            ("4X", None),
            ("99999999999T", None),
        ] {
            assert_eq!(parse_size(text).ok(), expected, "{text}");
        }
    }
}
