//! `nodezero boot`: an image in QEMU, as a machine would start it, with its console in the terminal.
//!
//! Writes go to an overlay that vanishes with the command; the image itself is opened read-only. KVM is taken only
//! where a 64-bit kernel really starts under it: a device that opens proves nothing.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::inspect;
use crate::progress::Progress;
use crate::tools::Tools;

/// How long a kernel may take under KVM until its first line. It needs well below a second where KVM works.
const KVM_DEADLINE: Duration = Duration::from_secs(10);

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
    if arguments.bios && inspect::bios_bootable(&image) == Some(false) {
        bail!("{} does not boot by BIOS: build it with --platform vps", image.display());
    }
    let scratch = tempfile::tempdir().context("making a temporary directory for the machine's disks")?;
    let overlay = match &arguments.keep {
        Some(path) => std::path::absolute(path).with_context(|| format!("finding {}", path.display()))?,
        None => scratch.path().join("boot.qcow2"),
    };
    if !overlay.exists() {
        make_overlay(tools, &image, arguments.boot_disk, &overlay)?;
    }
    let mut disks = vec![overlay];
    for (index, size) in arguments.disks.iter().enumerate() {
        let path = scratch.path().join(format!("data-{}.qcow2", index + 1));
        make_disk(tools, *size, &path)?;
        disks.push(path);
    }
    let mut command = tools.command("qemu-system-x86_64")?;
    let kvm = kvm_works(tools, &image, scratch.path());
    if !kvm {
        progress.say("KVM does not work here: emulating, which takes about a minute; Ctrl-A X ends the machine");
    }
    command.args(machine_args(arguments, kvm, &disks));
    if !arguments.bios {
        command.args(firmware(tools, scratch.path())?);
    }
    if arguments.dry_run {
        println!("{command:?}");
        return Ok(ExitCode::SUCCESS);
    }
    let status = command.status().with_context(|| format!("running {command:?}"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes a disk that begins as `image`, of `size` bytes or as large as the image is.
pub(crate) fn make_overlay(tools: &Tools, image: &Path, size: u64, overlay: &Path) -> Result<()> {
    let format = if inspect::is_qcow2(image)? { "qcow2" } else { "raw" };
    let image_size = fs_size(image)?;
    let mut create = tools.command("qemu-img")?;
    create.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(image).arg(overlay);
    run_quietly(create.arg(size.max(image_size).to_string()))
}

/// Makes an empty disk of `size` bytes.
pub(crate) fn make_disk(tools: &Tools, size: u64, path: &Path) -> Result<()> {
    let mut create = tools.command("qemu-img")?;
    run_quietly(create.args(["create", "-q", "-f", "qcow2"]).arg(path).arg(size.to_string()))
}

fn machine_args(arguments: &Arguments, kvm: bool, disks: &[PathBuf]) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut add = |list: &[&str]| args.extend(list.iter().map(OsString::from));
    add(&["-nodefaults", "-no-user-config", "-nographic", "-serial", "mon:stdio", "-machine", "q35"]);
    if kvm {
        add(&["-accel", "kvm", "-cpu", "host"]);
    } else {
        add(&["-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max"]);
        // Emulated timers lag on a busy host, and the kernel takes that for broken hardware.
        add(&["-smbios", "type=11,value=io.systemd.stub.kernel-cmdline-extra=no_timer_check"]);
    }
    add(&["-smp", &arguments.cpus.to_string(), "-m", &format!("{}M", arguments.memory >> 20)]);
    add(&["-device", "virtio-rng-pci", "-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile="]);
    for (index, disk) in disks.iter().enumerate() {
        // A comma in a path is doubled in QEMU's options.
        let path = disk.display().to_string().replace(',', ",,");
        let serial = if index == 0 { "boot".to_owned() } else { format!("DATA{index:04}") };
        let boot = if index == 0 { ",bootindex=0" } else { "" };
        add(&["-drive", &format!("if=none,id=disk{index},format=qcow2,discard=unmap,file={path}")]);
        add(&["-device", &format!("virtio-blk-pci,drive=disk{index},serial={serial}{boot}")]);
    }
    if let Some(config) = &arguments.fw_cfg_ignition {
        let path = config.display().to_string().replace(',', ",,");
        add(&["-fw_cfg", &format!("name=opt/com.coreos/config,file={path}")]);
    }
    args
}

/// The UEFI firmware: a copy of its variables lies in `scratch`.
pub(crate) fn firmware(tools: &Tools, scratch: &Path) -> Result<Vec<OsString>> {
    let pair = ["OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"];
    let own = Path::new("/usr/share/OVMF");
    let [code, vars] = if pair.iter().all(|name| own.join(name).is_file()) {
        pair.map(|name| own.join(name))
    } else {
        let [code, vars] = pair.map(|name| tools.data(&format!("usr/share/OVMF/{name}")));
        [code?, vars?]
    };
    let copy = scratch.join("vars.fd");
    std::fs::copy(&vars, &copy).with_context(|| format!("copying {}", vars.display()))?;
    let flash = |file: &Path, read_only: &str| {
        format!("if=pflash,format=raw{read_only},file={}", file.display().to_string().replace(',', ",,"))
    };
    Ok(["-drive", &flash(&code, ",readonly=on"), "-drive", &flash(&copy, "")].map(OsString::from).to_vec())
}

/// Whether the image's own kernel says anything under KVM before a deadline.
pub(crate) fn kvm_works(tools: &Tools, image: &Path, scratch: &Path) -> bool {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    probe_kvm(tools, image, scratch).unwrap_or(false)
}

fn probe_kvm(tools: &Tools, image: &Path, scratch: &Path) -> Result<bool> {
    let Some(kernel) = inspect::kernel_of(image)? else { return Ok(false) };
    let path = scratch.join("kernel");
    let log = scratch.join("kvm.log");
    std::fs::File::create(&path).and_then(|mut file| file.write_all(&kernel)).context("writing the probe's kernel")?;
    let mut command = tools.command("qemu-system-x86_64")?;
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "kvm", "-cpu", "host", "-m", "256M"])
        .args(["-no-reboot", "-append", "console=ttyS0 panic=-1", "-kernel"])
        .arg(&path)
        .arg("-serial")
        .arg(format!("file:{}", log.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("running {command:?}"))?;
    let start = Instant::now();
    let mut works = false;
    while start.elapsed() < KVM_DEADLINE && !works {
        std::thread::sleep(Duration::from_millis(100));
        // Without an initrd the kernel ends in a panic for want of a root: it has run.
        works = std::fs::read_to_string(&log).is_ok_and(|text| text.contains("Kernel panic"));
        if child.try_wait().context("watching the KVM probe")?.is_some() {
            break;
        }
    }
    works |= std::fs::read_to_string(&log).is_ok_and(|text| text.contains("Kernel panic"));
    // It may have ended by itself.
    let _ = child.kill();
    child.wait().context("ending the KVM probe")?;
    Ok(works)
}

fn fs_size(image: &Path) -> Result<u64> {
    Ok(std::fs::metadata(image).with_context(|| format!("reading {}", image.display()))?.len())
}

fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
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
