//! Each role boots by UEFI to its report, in maintenance mode: no configuration, no open port, no login. The worker
//! reports large disks however they are connected, and stays the same machine from one start to the next.

use anyhow::{Context, Result, ensure};
use qemu_tests::guest::{expect_silent, free_port, key};
use qemu_tests::machine::Network;
use qemu_tests::storage::DISK_18T;
use qemu_tests::{Bus, Image, Machine, Report, Role, Vm, images, scenario};

/// What a node might listen on one day: SSH, web, the Kubernetes API, the kubelet.
const PORTS: [u16; 5] = [22, 80, 443, 6443, 10250];

fn forwards() -> Result<Vec<(u16, u16)>> {
    PORTS.iter().map(|port| Ok((free_port()?, *port))).collect()
}

/// Waits for the report of a machine without a configuration, at its start of the number given.
fn maintenance(vm: &Vm, role: Role, image: &Image, start: u32, forwards: &[(u16, u16)]) -> Result<Report> {
    vm.wait_ready()?;
    let report = vm.report()?;
    report.expect_value(key::ROLE, role.name())?;
    report.expect_value(key::CONFIG, "none")?;
    report.expect_value(key::ROOT_HASH, &image.root_hash)?;
    report.expect_value(key::BOOT, &start.to_string())?;
    report.expect_value(key::STATE, if start == 1 { "created" } else { "kept" })?;
    expect_silent(forwards).context("a node in maintenance mode")?;
    let login = vm.console().lines().into_iter().find(|line| line.text.trim_end().ends_with("login:"));
    ensure!(login.is_none(), "a login on the console: {login:?}");
    Ok(report)
}

fn boots(role: Role) {
    scenario(&format!("boot-uefi-{}", role.name()), |s| {
        let image = images::built(role, role.usual_platform())?;
        let forwards = forwards()?;
        let machine = Machine::new(role.name())
            .disk(s.boot_disk(&image.path)?)
            .network(Network::User { forwards: forwards.clone() });
        let vm = s.start(&machine)?;
        maintenance(&vm, role, &image, 1, &forwards)?;
        vm.power_off()
    });
}

#[test]
fn control() {
    boots(Role::Control);
}

#[test]
fn edge() {
    boots(Role::Edge);
}

#[test]
fn worker_with_large_disks_three_times() {
    scenario("boot-uefi-worker", |s| {
        let image = images::built(Role::Worker, Role::Worker.usual_platform())?;
        let forwards = forwards()?;
        let machine = Machine::new("worker")
            .disk(s.boot_disk(&image.path)?)
            .disk(s.empty_disk("sata", DISK_18T)?.bus(Bus::Ahci).serial("NZ-SATA-1").rotational())
            .disk(s.empty_disk("nvme", DISK_18T)?.bus(Bus::Nvme).serial("NZ-NVME-2"))
            .network(Network::User { forwards: forwards.clone() });
        let mut identities = Vec::new();
        for start in 1..=3 {
            let vm = s.start(&machine)?;
            let report =
                maintenance(&vm, Role::Worker, &image, start, &forwards).with_context(|| format!("start {start}"))?;
            for serial in ["NZ-SATA-1", "NZ-NVME-2"] {
                let disk = report.line(key::SERIAL, serial)?;
                ensure!(disk.get(key::SIZE) == Some(&DISK_18T.to_string()), "the disk {serial} is {disk:?}");
            }
            identities.push(report.value(key::MACHINE_ID)?.to_owned());
            vm.power_off()?;
        }
        let id = &identities[0];
        ensure!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id} is no machine id");
        ensure!(identities.iter().all(|other| other == id), "machine ids of three boots: {identities:?}");
        Ok(())
    });
}
