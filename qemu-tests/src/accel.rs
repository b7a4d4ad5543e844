//! What runs the guest's instructions: KVM where it truly works, else QEMU's own translator.
//!
//! A `/dev/kvm` that opens proves little: under some hypervisors firmware runs and a 64-bit Linux guest then hangs. So
//! KVM is trusted only after a guest of ours came as far as user space under it, within a deadline. The verdict is kept
//! until the host boots again. `NODEZERO_ACCEL=kvm` or `=tcg` decides without a trial.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nodezero::machine::TRANSLATED;

use crate::guest;
use crate::machine::{Disk, Format, Machine};
use crate::storage;
use crate::vm::{self, Power};

/// How long the trial may take. Where KVM works it takes a few seconds.
const TRIAL: Duration = Duration::from_secs(30);

/// An accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor itself.
    Kvm,
    /// Translation by QEMU, one host thread for each processor of the guest.
    Tcg,
}

impl Accel {
    /// QEMU's options for it, with the best processor that it offers.
    pub fn args(self) -> [&'static str; 4] {
        match self {
            Accel::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accel::Tcg => TRANSLATED,
        }
    }

    fn parse(name: &str) -> Result<Accel> {
        match name {
            "kvm" => Ok(Accel::Kvm),
            "tcg" => Ok(Accel::Tcg),
            _ => bail!("{name:?} is no accelerator, expected kvm or tcg"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }
}

/// The accelerator to use, which a trial with `image`, one of ours that boots by UEFI, finds out if nothing else does.
/// Without an image there is no trial, and the translator is used. `dir` is where the verdict is kept.
pub fn choose(image: Option<&Path>, dir: &Path) -> Result<Accel> {
    if let Some(name) = env::var_os("NODEZERO_ACCEL") {
        return Accel::parse(name.to_str().unwrap_or_default()).context("reading NODEZERO_ACCEL");
    }
    if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accel::Tcg);
    }
    // Tests that run at the same time, in whatever process, need one trial only, and would take its disk from each other.
    let path = dir.join("accel.gate");
    let gate = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    gate.lock().context("waiting for the trial of KVM")?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("reading the host's boot id")?;
    let kept = dir.join("accel");
    if let Ok(text) = fs::read_to_string(&kept)
        && let Some(accel) = verdict(&text, &boot)
    {
        return Ok(accel);
    }
    let Some(image) = image else { return Ok(Accel::Tcg) };
    let accel = if works(image, &dir.join("accel-trial"))? { Accel::Kvm } else { Accel::Tcg };
    eprintln!("virtual machines run by {} (NODEZERO_ACCEL overrides this)", accel.name());
    fs::write(&kept, format!("{} {boot}", accel.name())).with_context(|| format!("writing {}", kept.display()))?;
    Ok(accel)
}

/// The verdict in `text`, if it was reached since the host's boot `boot`.
fn verdict(text: &str, boot: &str) -> Option<Accel> {
    let (name, then) = text.trim().split_once(' ')?;
    if then == boot.trim() { Accel::parse(name).ok() } else { None }
}

/// Whether a guest reaches user space under KVM. That QEMU or the guest ends early says no as well.
fn works(image: &Path, dir: &Path) -> Result<bool> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let overlay = dir.join("disk.qcow2");
    storage::overlay(image, storage::BOOT_DISK, &overlay)?;
    let machine = Machine::new("accel-trial").disk(Disk::new(overlay, Format::Qcow2).boot());
    let reached = match vm::switch_on(&machine, Accel::Kvm, &Power { dir, label: "trial" }) {
        Ok(vm) => vm.console().wait_for(guest::OURS, TRIAL).is_ok(),
        Err(_) => false,
    };
    fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    Ok(reached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_end_with_the_hosts_boot() {
        let cases = [
            ("kvm 1-2-3\n", Some(Accel::Kvm)),
            ("tcg 1-2-3", Some(Accel::Tcg)),
            ("kvm 4-5-6\n", None),
            ("hvf 1-2-3\n", None),
            ("kvm", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(verdict(text, "1-2-3\n"), expected, "{text:?}");
        }
        for accel in [Accel::Kvm, Accel::Tcg] {
            assert_eq!(Accel::parse(accel.name()).unwrap(), accel);
        }
    }
}
