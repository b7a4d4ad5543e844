//! Power is cut early in a first boot, and each machine is one of its own.

use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use qemu_tests::guest::{OURS, key};
use qemu_tests::{Machine, Role, images, scenario};

#[test]
fn a_power_cut_during_the_first_boot_is_survived_and_two_machines_are_two() {
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
        let identity = vm.report()?.value(key::MACHINE_ID)?.to_owned();
        vm.power_off()?;
        // The disk is made anew, so this is another machine from the same image.
        let vm = s.start(&Machine::new("other").disk(s.boot_disk(&image.path)?))?;
        vm.wait_ready()?;
        ensure!(vm.report()?.value(key::MACHINE_ID)? != identity, "two machines have the id {identity}");
        vm.cut_power()
    });
}
