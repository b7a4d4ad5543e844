//! Each role boots by UEFI to its report, in maintenance mode: no configuration, no open port, no login.

use anyhow::{Context, Result, ensure};
use qemu_tests::guest::{expect_silent, free_port, key};
use qemu_tests::machine::Network;
use qemu_tests::{Machine, Role, images, scenario};

/// What a node might listen on one day: SSH, web, the Kubernetes API, the kubelet.
const PORTS: [u16; 5] = [22, 80, 443, 6443, 10250];

fn boots(role: Role) {
    scenario(&format!("boot-uefi-{}", role.name()), |s| {
        let image = images::built(role, role.usual_platform())?;
        let forwards = PORTS.iter().map(|port| Ok((free_port()?, *port))).collect::<Result<Vec<_>>>()?;
        let machine = Machine::new(role.name())
            .disk(s.boot_disk(&image.path)?)
            .network(Network::User { forwards: forwards.clone() });
        let vm = s.start(&machine)?;
        vm.wait_ready()?;
        let report = vm.report()?;
        report.expect_value(key::ROLE, role.name())?;
        report.expect_value(key::CONFIG, "none")?;
        report.expect_value(key::ROOT_HASH, &image.root_hash)?;
        report.expect_value(key::BOOT, "1")?;
        report.expect_value(key::STATE, "created")?;
        expect_silent(&forwards).context("a node in maintenance mode")?;
        let login = vm.console().lines().into_iter().find(|line| line.text.trim_end().ends_with("login:"));
        ensure!(login.is_none(), "a login on the console: {login:?}");
        vm.power_off()
    });
}

#[test]
fn control() {
    boots(Role::Control);
}

#[test]
fn worker() {
    boots(Role::Worker);
}

#[test]
fn edge() {
    boots(Role::Edge);
}
