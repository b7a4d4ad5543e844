//! Disks of 18 TB appear in the report with their serial numbers and sizes, however they are connected.

use anyhow::ensure;
use qemu_tests::guest::key;
use qemu_tests::storage::DISK_18T;
use qemu_tests::{Bus, Machine, Role, images, scenario};

#[test]
fn two_large_disks_are_reported() {
    scenario("disks", |s| {
        let image = images::built(Role::Worker, Role::Worker.usual_platform())?;
        let machine = Machine::new("worker")
            .disk(s.boot_disk(&image.path)?)
            .disk(s.empty_disk("sata", DISK_18T)?.bus(Bus::Ahci).serial("NZ-SATA-1").rotational())
            .disk(s.empty_disk("nvme", DISK_18T)?.bus(Bus::Nvme).serial("NZ-NVME-2"));
        let vm = s.start(&machine)?;
        vm.wait_ready()?;
        let report = vm.report()?;
        for serial in ["NZ-SATA-1", "NZ-NVME-2"] {
            let disk = report.line(key::SERIAL, serial)?;
            ensure!(disk.get(key::SIZE) == Some(&DISK_18T.to_string()), "the disk {serial} is {disk:?}");
        }
        vm.power_off()
    });
}
