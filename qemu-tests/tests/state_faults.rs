//! What may happen to a machine's own partitions ends in repair or in a summary, never in a loop.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use qemu_tests::guest::{READY, STOPPED, SUMMARY, key};
use qemu_tests::ignition::Config;
use qemu_tests::machine::Format;
use qemu_tests::storage::{self, partition};
use qemu_tests::vm::BOOT;
use qemu_tests::{Disk, Machine, Role, Scenario, images, scenario, tools};
use serde_json::json;

/// A machine that has booted once, as a raw disk.
fn booted(s: &mut Scenario, config: &Config) -> Result<(PathBuf, Machine)> {
    let image = images::built(Role::Edge, Role::Edge.usual_platform())?.path;
    let file = s.file("config.ign", &config.to_bytes())?;
    let disk = s.boot_disk(&image)?;
    let vm = s.start(&Machine::new("edge").disk(disk.clone()).fw_cfg("opt/com.coreos/config", &file))?;
    vm.wait_ready()?;
    vm.probe()?;
    vm.power_off()?;
    let raw = s.dir().join("booted.raw");
    let mut convert = tools::command("qemu-img")?;
    tools::run(convert.args(["convert", "-O", "raw"]).arg(disk.file()).arg(&raw))?;
    let machine = Machine::new("edge").disk(Disk::new(&raw, Format::Raw).boot());
    Ok((raw, machine.fw_cfg("opt/com.coreos/config", file)))
}

fn overwrite(disk: &Path, offset: u64, length: usize) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(disk)?;
    file.write_all_at(&vec![0xa5; length], offset).with_context(|| format!("writing {}", disk.display()))
}

fn identity(vm: &qemu_tests::Vm) -> Result<String> {
    Ok(vm.report()?.value(key::MACHINE_ID)?.to_owned())
}

#[test]
fn a_full_state_is_survived() {
    scenario("state-full", |s| {
        let fill = "fallocate -l $(($(stat -f -c '%a * %S' /var) - 65536)) /var/fill; \
                    dd if=/dev/zero of=/var/rest bs=4096 2>/dev/null; sync; stat -f -c 'free %a' /var";
        let (_, machine) = booted(s, &Config::new().probe(fill))?;
        let vm = s.start(&machine)?;
        vm.console().expect(STOPPED);
        vm.console().expect(SUMMARY);
        let line = vm.console().wait_for_any(&[STOPPED, SUMMARY, READY], BOOT)?;
        if !line.text.contains(READY) {
            let told = vm.console().wait_for("No space left", BOOT)?;
            ensure!(!told.text.is_empty());
        }
        vm.cut_power()
    });
}

#[test]
fn a_damaged_state_is_repaired_or_told() {
    scenario("state-damaged", |s| {
        let (raw, machine) = booted(s, &Config::new().probe("true"))?;
        let state = partition(&raw, "state")?;
        // Inodes and bitmaps of the first group, behind superblock and descriptors.
        overwrite(&raw, state.offset + (2 << 20), 1 << 20)?;
        // And the mark that it was unmounted cleanly.
        overwrite(&raw, state.offset + 1024 + 0x3a, 2)?;
        let vm = s.start(&machine)?;
        vm.console().expect(SUMMARY);
        vm.console().expect(STOPPED);
        let line = vm.console().wait_for_any(&[SUMMARY, STOPPED, READY], BOOT)?;
        if line.text.contains(SUMMARY) {
            vm.console().wait_for("what to do:", BOOT)?;
        }
        vm.cut_power()?;
        // Nothing is left of it at all.
        overwrite(&raw, state.offset, 256 << 20)?;
        let vm = s.start(&machine)?;
        let summary = vm.expect_refusal("state")?;
        ensure!(summary.contains("e2fsck"), "{summary}");
        vm.cut_power()
    });
}

#[test]
fn a_missing_state_is_made_anew() {
    scenario("state-missing", |s| {
        let (raw, machine) = booted(s, &Config::new().probe("true"))?;
        let vm = s.start(&machine)?;
        vm.wait_ready()?;
        let before = identity(&vm)?;
        vm.power_off()?;
        let number = storage::partitions(&raw)?.iter().position(|partition| partition.label == "state");
        ensure!(number.is_some(), "there is a state");
        tools::run(tools::command("sgdisk")?.arg("--delete=7").arg(&raw))?;
        ensure!(partition(&raw, "state").is_err(), "partition 7 is state");
        let vm = s.start(&machine)?;
        vm.wait_ready()?;
        vm.report()?.expect_value(key::STATE, "created")?;
        ensure!(identity(&vm)? != before, "a lost state is a lost identity");
        vm.power_off()
    });
}

#[test]
fn an_esp_that_cannot_be_written_is_told() {
    scenario("esp-read-only", |s| {
        // A file system that is mounted read-only cannot be mounted for writing as well.
        let unit = "[Unit]\nDefaultDependencies=no\nBefore=nodezero-firstboot.service\nAfter=local-fs.target\n\
             [Service]\nType=oneshot\nExecStart=/bin/mount -o ro /dev/disk/by-partlabel/ESP /mnt\n\
             [Install]\nWantedBy=multi-user.target\n";
        let config = Config::new()
            .add("/systemd/units", json!({"name": "hold-esp.service", "enabled": true, "contents": unit}))
            .probe("nodezero-firstboot status --json");
        let image = images::built(Role::Worker, Role::Worker.usual_platform())?.path;
        let file = s.file("config.ign", &config.to_bytes())?;
        let machine = Machine::new("worker").disk(s.boot_disk(&image)?).fw_cfg("opt/com.coreos/config", file);
        let vm = s.start(&machine)?;
        vm.console().expect(STOPPED);
        let said = vm.probe()?.join("\n");
        ensure!(said.contains("ESP"), "{said}");
        vm.cut_power()
    });
}
