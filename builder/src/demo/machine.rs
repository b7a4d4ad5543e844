//! A machine of the demo: its disks, and QEMU's command for it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::boot;
use crate::progress::Progress;
use crate::tools::Tools;

/// The size that a boot disk is grown to, in bytes.
const BOOT_DISK: u64 = 16 << 30;

/// A machine that is to be switched on.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    /// The node's name.
    pub(super) name: &'a str,
    /// The image that its boot disk begins as.
    pub(super) image: &'a Path,
    /// Its Ignition config.
    pub(super) config: &'a Path,
    /// Its memory in MiB.
    pub(super) memory_mib: u32,
    /// A TCP port of the host's loopback, and the machine's that it leads to.
    pub(super) forward: Option<(u16, u16)>,
    /// Sizes of its data disks in bytes.
    pub(super) disks: &'a [u64],
}

impl Machine<'_> {
    /// Makes its disks in `dir`, and gives the command that runs it with its console on standard output.
    pub(super) fn command(&self, tools: &Tools, progress: &Progress, dir: &Path) -> Result<Command> {
        let dir = dir.join(self.name);
        std::fs::create_dir(&dir)?;
        let boot_disk = dir.join("boot.qcow2");
        boot::make_overlay(tools, self.image, BOOT_DISK, &boot_disk)?;
        let mut disks = vec![boot_disk];
        for (index, size) in self.disks.iter().enumerate() {
            let path = dir.join(format!("data-{}.qcow2", index + 1));
            boot::make_disk(tools, *size, &path)?;
            disks.push(path);
        }
        let kvm = boot::kvm_works(tools, self.image, &dir);
        if !kvm {
            progress.say(&format!("KVM does not work here: {} is emulated, which takes minutes", self.name));
        }
        let mut command = tools.command("qemu-system-x86_64")?;
        command.args(self.args(kvm, &disks)).args(boot::firmware(tools, &dir)?);
        Ok(command)
    }

    fn args(&self, kvm: bool, disks: &[PathBuf]) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        let mut add = |list: &[&str]| args.extend(list.iter().map(|arg| (*arg).to_owned()));
        add(&["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-machine", "q35"]);
        if kvm {
            add(&["-accel", "kvm", "-cpu", "host"]);
        } else {
            add(&["-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max"]);
            // Emulated timers lag on a busy host, and the kernel takes that for broken hardware.
            add(&["-smbios", "type=11,value=io.systemd.stub.kernel-cmdline-extra=no_timer_check"]);
        }
        let forward = self.forward.map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
        add(&["-smp", "2", "-m", &format!("{}M", self.memory_mib), "-device", "virtio-rng-pci"]);
        add(&["-netdev", &format!("user,id=net0{}", forward.unwrap_or_default())]);
        add(&["-device", "virtio-net-pci,netdev=net0,romfile="]);
        for (index, disk) in disks.iter().enumerate() {
            // A comma in a path is doubled in QEMU's options.
            let path = disk.display().to_string().replace(',', ",,");
            let serial = if index == 0 { "boot".to_owned() } else { format!("DATA{index:04}") };
            let boot = if index == 0 { ",bootindex=0" } else { "" };
            add(&["-drive", &format!("if=none,id=disk{index},format=qcow2,discard=unmap,file={path}")]);
            add(&["-device", &format!("virtio-blk-pci,drive=disk{index},serial={serial}{boot}")]);
        }
        let config = self.config.display().to_string().replace(',', ",,");
        add(&["-fw_cfg", &format!("name=opt/com.coreos/config,file={config}")]);
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_what_it_is_given() {
        let machine = Machine {
            name: "worker-1",
            image: Path::new("/image.raw"),
            config: Path::new("/a,b.ign"),
            memory_mib: 2048,
            forward: Some((4000, 6443)),
            disks: &[1, 2],
        };
        let args = machine.args(false, &["/d/boot".into(), "/d/data-1".into()]).join(" ");
        for expected in [
            "-netdev user,id=net0,hostfwd=tcp:127.0.0.1:4000-:6443 ",
            "-m 2048M ",
            "drive=disk0,serial=boot,bootindex=0 ",
            "drive=disk1,serial=DATA0001 ",
            "-fw_cfg name=opt/com.coreos/config,file=/a,,b.ign",
        ] {
            assert!(args.contains(expected), "{expected}\n{args}");
        }
    }
}
