//! A machine in QEMU: its disks, its firmware, and the command that runs it.
//!
//! Its boot disk is an overlay over an image, which itself is opened read-only. KVM is taken only where a 64-bit kernel
//! really starts under it: a device that opens proves nothing.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::inspect;
use crate::tools::Tools;

/// QEMU's options where it translates the guest's instructions, with the best processor that it can be: a host thread
/// for each processor of the guest, and a cache of translations that a boot does not fill.
///
/// What a processor says of fast string instructions (`ERMS`, `FSRM`, and leaf 7's second part) is withheld, as kernels
/// and libraries then copy and clear memory by them, and they are translated to a loop of single bytes. Page tables have
/// four levels, as each walk is translated as well. Together a sixth of a boot's processor time.
pub const TRANSLATED: [&str; 4] =
    ["-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,erms=off,fsrm=off,level-func7=0,la57=off"];

/// How long a kernel may take under KVM until its first line. It needs well below a second where KVM works.
const KVM_DEADLINE: Duration = Duration::from_secs(10);

/// Where a machine's serial console is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Console {
    /// In the terminal, both ways, with QEMU's monitor behind Ctrl-A C.
    Terminal,
    /// On standard output, for a program that reads it.
    Output,
}

/// What a machine starts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Firmware {
    /// UEFI.
    Uefi,
    /// QEMU's own BIOS.
    Bios,
}

/// A machine that is to be switched on.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    /// The image that its boot disk begins as: raw or qcow2.
    pub(crate) image: &'a Path,
    /// Its boot disk, which is made where it is not there.
    pub(crate) boot_disk: PathBuf,
    /// The size that the boot disk is grown to, in bytes.
    pub(crate) boot_size: u64,
    /// Sizes of its data disks in bytes. They are made, empty and sparse.
    pub(crate) disks: &'a [u64],
    /// What it starts by.
    pub(crate) firmware: Firmware,
    /// Whether it runs under KVM; see [`kvm_works`].
    pub(crate) kvm: bool,
    /// Processors.
    pub(crate) cpus: u8,
    /// Memory in MiB.
    pub(crate) memory_mib: u64,
    /// Its console.
    pub(crate) console: Console,
    /// A TCP port of the host's loopback, and the machine's that it leads to.
    pub(crate) forward: Option<(u16, u16)>,
    /// An Ignition config that it finds through QEMU's firmware configuration device.
    pub(crate) config: Option<&'a Path>,
}

impl Machine<'_> {
    /// Makes its disks, those for data in `dir`, and gives the command that runs it.
    ///
    /// # Errors
    /// When QEMU or firmware cannot be had, or a disk cannot be made.
    pub(crate) fn command(&self, tools: &Tools, dir: &Path) -> Result<Command> {
        if !self.boot_disk.exists() {
            make_overlay(tools, self.image, self.boot_size, &self.boot_disk)?;
        }
        let mut disks = vec![self.boot_disk.clone()];
        for (index, size) in self.disks.iter().enumerate() {
            let path = dir.join(format!("data-{}.qcow2", index + 1));
            make_disk(tools, *size, &path)?;
            disks.push(path);
        }
        let mut command = tools.command("qemu-system-x86_64")?;
        command.args(self.args(&disks));
        match self.firmware {
            Firmware::Uefi => drop(command.args(firmware(tools, dir)?)),
            Firmware::Bios => {}
        }
        Ok(command)
    }

    fn args(&self, disks: &[PathBuf]) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        let mut add = |list: &[&str]| args.extend(list.iter().map(|arg| (*arg).to_owned()));
        add(&["-nodefaults", "-no-user-config", "-machine", "q35"]);
        match self.console {
            Console::Terminal => add(&["-nographic", "-serial", "mon:stdio"]),
            Console::Output => add(&["-display", "none", "-serial", "stdio"]),
        }
        if self.kvm {
            add(&["-accel", "kvm", "-cpu", "host"]);
        } else {
            add(&TRANSLATED);
            // Emulated timers lag on a busy host, and the kernel takes that for broken hardware.
            add(&["-smbios", "type=11,value=io.systemd.stub.kernel-cmdline-extra=no_timer_check"]);
        }
        add(&["-smp", &self.cpus.to_string(), "-m", &format!("{}M", self.memory_mib), "-device", "virtio-rng-pci"]);
        let forward = self.forward.map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
        add(&["-netdev", &format!("user,id=net0{}", forward.unwrap_or_default())]);
        add(&["-device", "virtio-net-pci,netdev=net0,romfile="]);
        for (index, disk) in disks.iter().enumerate() {
            let serial = if index == 0 { "boot".to_owned() } else { format!("DATA{index:04}") };
            let boot = if index == 0 { ",bootindex=0" } else { "" };
            let file = value(disk);
            add(&["-drive", &format!("if=none,id=disk{index},format=qcow2,discard=unmap,file={file}")]);
            add(&["-device", &format!("virtio-blk-pci,drive=disk{index},serial={serial}{boot}")]);
        }
        if let Some(config) = self.config {
            add(&["-fw_cfg", &format!("name=opt/com.coreos/config,file={}", value(config))]);
        }
        args
    }
}

/// A path in an option of QEMU's: a comma in it is doubled.
fn value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Makes a disk that begins as `image`, of `size` bytes or as large as the image is.
fn make_overlay(tools: &Tools, image: &Path, size: u64, overlay: &Path) -> Result<()> {
    let format = if inspect::is_qcow2(image)? { "qcow2" } else { "raw" };
    let image_size = fs_size(image)?;
    let mut create = tools.command("qemu-img")?;
    create.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(image).arg(overlay);
    run_quietly(create.arg(size.max(image_size).to_string()))
}

/// Makes an empty disk of `size` bytes.
fn make_disk(tools: &Tools, size: u64, path: &Path) -> Result<()> {
    let mut create = tools.command("qemu-img")?;
    run_quietly(create.args(["create", "-q", "-f", "qcow2"]).arg(path).arg(size.to_string()))
}

/// The UEFI firmware: a copy of its variables lies in `scratch`.
fn firmware(tools: &Tools, scratch: &Path) -> Result<Vec<OsString>> {
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
    let flash = |file: &Path, read_only: &str| format!("if=pflash,format=raw{read_only},file={}", value(file));
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
    fn a_machine_has_what_it_is_given() {
        let machine = Machine {
            image: Path::new("/image.raw"),
            boot_disk: "/d/boot".into(),
            boot_size: 1,
            disks: &[1],
            firmware: Firmware::Uefi,
            kvm: false,
            cpus: 2,
            memory_mib: 2048,
            console: Console::Output,
            forward: Some((4000, 6443)),
            config: Some(Path::new("/a,b.ign")),
        };
        let disks = ["/d/boot".into(), "/d/data-1".into()];
        let args = machine.args(&disks).join(" ");
        for expected in [
            "-display none -serial stdio ",
            "-accel tcg,",
            "no_timer_check",
            "-netdev user,id=net0,hostfwd=tcp:127.0.0.1:4000-:6443 ",
            "-smp 2 -m 2048M ",
            "drive=disk0,serial=boot,bootindex=0 ",
            "drive=disk1,serial=DATA0001 ",
            "-fw_cfg name=opt/com.coreos/config,file=/a,,b.ign",
        ] {
            assert!(args.contains(expected), "{expected}\n{args}");
        }
        let plain = Machine { kvm: true, console: Console::Terminal, forward: None, config: None, ..machine };
        let args = plain.args(&disks).join(" ");
        for expected in ["-serial mon:stdio ", "-accel kvm -cpu host ", "-netdev user,id=net0 -device"] {
            assert!(args.contains(expected), "{expected}\n{args}");
        }
        assert!(!args.contains("no_timer_check") && !args.contains("fw_cfg"), "{args}");
    }
}
