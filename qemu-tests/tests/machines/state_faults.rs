//! What may happen to a machine's own partitions ends in repair or in a summary, never in a loop.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use qemu_tests::guest::{READY, STOPPED, SUMMARY, key};
use qemu_tests::ignition::Config;
use qemu_tests::machine::Format;
use qemu_tests::storage::{self, partition};
use qemu_tests::vm::BOOT;
use qemu_tests::{Disk, Machine, Role, Scenario, images, scenario, tools};
use serde_json::json;

/// A machine that has booted once and whose identity is the second value, its disk being `raw`.
fn booted(s: &mut Scenario, config: &Config, raw: &Path) -> Result<(Machine, String)> {
    let image = images::built(Role::Edge, Role::Edge.usual_platform())?.path;
    let file = s.file("config.ign", &config.to_bytes())?;
    let disk = s.boot_disk(&image)?;
    let vm = s.start(&Machine::new("edge").disk(disk.clone()).fw_cfg("opt/com.coreos/config", &file))?;
    vm.wait_ready()?;
    vm.probe()?;
    let identity = identity(&vm)?;
    vm.power_off()?;
    let mut convert = tools::command("qemu-img")?;
    tools::run(convert.args(["convert", "-O", "raw"]).arg(disk.file()).arg(raw))?;
    let machine = Machine::new("edge").disk(Disk::new(raw, Format::Raw).boot());
    Ok((machine.fw_cfg("opt/com.coreos/config", file), identity))
}

fn overwrite(disk: &Path, offset: u64, length: usize) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(disk)?;
    file.write_all_at(&vec![0xa5; length], offset).with_context(|| format!("writing {}", disk.display()))
}

fn identity(vm: &qemu_tests::Vm) -> Result<String> {
    Ok(vm.report()?.value(key::MACHINE_ID)?.to_owned())
}

/// One machine's `state` is first full, then damaged, then destroyed, then gone: the first two are survived or told, the
/// third is told, and of the last a new one is made, with a new identity.
#[test]
fn a_state_is_repaired_made_anew_or_told() {
    scenario("state", |s| {
        let fill = "fallocate -l $(($(stat -f -c '%a * %S' /var) - 65536)) /var/fill; \
                    dd if=/dev/zero of=/var/rest bs=4096 2>/dev/null; sync; stat -f -c 'free %a' /var";
        let raw = s.dir().join("booted.raw");
        let (machine, before) = booted(s, &Config::new().probe(fill), &raw)?;
        is_survived_or_told(s, &machine, Some("No space left")).context("a full state")?;

        let state = partition(&raw, "state")?;
        // Inodes and bitmaps of the first group, behind superblock and descriptors.
        overwrite(&raw, state.offset + (2 << 20), 1 << 20)?;
        // And the mark that it was unmounted cleanly.
        overwrite(&raw, state.offset + 1024 + 0x3a, 2)?;
        is_survived_or_told(s, &machine, None).context("a damaged state")?;

        // Nothing is left of it at all.
        overwrite(&raw, state.offset, 256 << 20)?;
        let vm = s.start(&machine)?;
        let summary = vm.expect_refusal("state")?;
        ensure!(summary.contains("e2fsck"), "{summary}");
        vm.cut_power()?;

        let number = storage::partitions(&raw)?.iter().position(|partition| partition.label == "state");
        ensure!(number.is_some(), "there is a state");
        tools::run(tools::command("sgdisk")?.arg("--delete=7").arg(&raw))?;
        ensure!(partition(&raw, "state").is_err(), "partition 7 is state");
        let vm = s.start(&machine)?;
        vm.wait_ready()?;
        vm.report()?.expect_value(key::STATE, "created")?;
        ensure!(identity(&vm)? != before, "a lost state is a lost identity");
        vm.cut_power()
    });
}

/// Starts a machine, which gets ready or says in a whole summary what is wrong, with the word given where it comes later
/// than in the first stage.
fn is_survived_or_told(s: &mut Scenario, machine: &Machine, word: Option<&str>) -> Result<()> {
    let vm = s.start(machine)?;
    vm.console().expect(STOPPED);
    vm.console().expect(SUMMARY);
    let line = vm.console().wait_for_any(&[STOPPED, SUMMARY, READY], BOOT)?;
    if !line.text.contains(READY) {
        vm.console().wait_for(word.unwrap_or("what to do:"), BOOT)?;
    }
    vm.cut_power()
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
