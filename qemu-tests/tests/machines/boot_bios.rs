//! Images for rented machines boot by BIOS as well, verified all the same.

use qemu_tests::guest::key;
use qemu_tests::{Machine, Platform, Role, images, scenario};

fn boots(role: Role) {
    scenario(&format!("boot-bios-{}", role.name()), |s| {
        let image = images::built(role, Platform::Vps)?;
        let vm = s.start(&Machine::new(role.name()).bios().disk(s.boot_disk(&image.path)?))?;
        vm.wait_ready()?;
        let report = vm.report()?;
        report.expect_value(key::ROLE, role.name())?;
        report.expect_value(key::ROOT_HASH, &image.root_hash)?;
        vm.power_off()
    });
}

#[test]
fn edge() {
    boots(Role::Edge);
}

#[test]
fn worker() {
    boots(Role::Worker);
}
