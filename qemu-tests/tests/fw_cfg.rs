//! A configuration is found in QEMU's firmware configuration device and on the ESP, in this order, and named.

use qemu_tests::guest::key;
use qemu_tests::{Machine, Role, images, scenario};

/// The least that is a valid Ignition config.
const CONFIG: &[u8] = br#"{"ignition":{"version":"3.4.0"}}"#;

fn finds(name: &str, by_fw_cfg: bool, on_esp: bool, expected: &str) {
    scenario(name, |s| {
        let image = images::built(Role::Edge, Role::Edge.usual_platform())?.path;
        let disk = if on_esp {
            s.boot_disk_with_esp_file(&image, "/nodezero", "config.ign", CONFIG)?
        } else {
            s.boot_disk(&image)?
        };
        let mut machine = Machine::new("edge").disk(disk);
        if by_fw_cfg {
            machine = machine.fw_cfg("opt/com.coreos/config", s.file("config.ign", CONFIG)?);
        }
        let vm = s.start(&machine)?;
        vm.wait_ready()?;
        vm.report()?.expect_value(key::CONFIG, expected)?;
        vm.power_off()
    });
}

#[test]
fn in_fw_cfg() {
    finds("config-fw-cfg", true, false, "fw_cfg");
}

#[test]
fn on_the_esp() {
    finds("config-esp", false, true, "esp");
}

#[test]
fn fw_cfg_before_the_esp() {
    finds("config-both", true, true, "fw_cfg");
}
