//! What a machine is stays with it: after an orderly end, and after the power was cut.

use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use qemu_tests::guest::{OURS, key};
use qemu_tests::{Machine, Role, images, scenario};

#[test]
fn the_second_boot_keeps_state() {
    scenario("second-boot", |s| {
        let image = images::built(Role::Worker, Role::Worker.usual_platform())?;
        let machine = Machine::new("worker").disk(s.boot_disk(&image.path)?);
        let mut identities = Vec::new();
        for (boot, state) in [("1", "created"), ("2", "kept"), ("3", "kept")] {
            let vm = s.start(&machine)?;
            vm.wait_ready()?;
            let report = vm.report()?;
            report.expect_value(key::BOOT, boot)?;
            report.expect_value(key::STATE, state).with_context(|| format!("boot {boot}"))?;
            identities.push(report.value(key::MACHINE_ID)?.to_owned());
            vm.power_off()?;
        }
        let id = &identities[0];
        ensure!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id} is no machine id");
        ensure!(identities.iter().all(|other| other == id), "machine ids of three boots: {identities:?}");
        Ok(())
    });
}

#[test]
fn two_machines_are_two() {
    scenario("machine-ids", |s| {
        let image = images::built(Role::Edge, Role::Edge.usual_platform())?;
        let mut identities = Vec::new();
        for _ in 0..2 {
            // The disk is made anew, so this is another machine from the same image.
            let vm = s.start(&Machine::new("edge").disk(s.boot_disk(&image.path)?))?;
            vm.wait_ready()?;
            identities.push(vm.report()?.value(key::MACHINE_ID)?.to_owned());
            vm.cut_power()?;
        }
        ensure!(identities[0] != identities[1], "two machines have the id {}", identities[0]);
        Ok(())
    });
}

#[test]
fn a_power_cut_during_the_first_boot_is_survived() {
    scenario("power-cut", |s| {
        let image = images::built(Role::Edge, Role::Edge.usual_platform())?;
        let machine = Machine::new("edge").disk(s.boot_disk(&image.path)?);
        // The first stage says something before it finishes the partition table; later cuts fall into what follows.
        for after in [0, 1, 3] {
            let vm = s.start(&machine)?;
            vm.wait_for(OURS)?;
            thread::sleep(Duration::from_secs(after));
            vm.cut_power()?;
        }
        let vm = s.start(&machine)?;
        vm.wait_ready().context("after three power cuts")?;
        vm.report()?.expect_value(key::ROOT_HASH, &image.root_hash)?;
        vm.power_off()
    });
}
