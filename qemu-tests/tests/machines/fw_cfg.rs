//! A configuration is found on the ESP, and before it in QEMU's firmware configuration device, and named.
//!
//! That one in the device alone is reported is asserted where one is applied, in `ignition.rs`.

use qemu_tests::guest::key;
use qemu_tests::{Machine, Role, images, scenario};

/// The least that is a valid Ignition config.
const CONFIG: &[u8] = br#"{"ignition":{"version":"3.4.0"}}"#;

/// Another one.
const OTHER: &[u8] = br#"{"ignition":{"version":"3.5.0"}}"#;

#[test]
fn fw_cfg_comes_before_the_esp() {
    scenario("config-places", |s| {
        let image = images::built(Role::Edge, Role::Edge.usual_platform())?.path;
        let machine =
            Machine::new("edge").disk(s.boot_disk_with_esp_file(&image, "/nodezero", "config.ign", CONFIG)?);
        let vm = s.start(&machine)?;
        vm.wait_ready()?;
        vm.report()?.expect_value(key::CONFIG, "esp")?;
        vm.power_off()?;
        let vm = s.start(&machine.fw_cfg("opt/com.coreos/config", s.file("config.ign", OTHER)?))?;
        vm.wait_for("nodezero: ignition: applied")?;
        vm.wait_ready()?;
        vm.report()?.expect_value(key::CONFIG, "fw_cfg")?;
        vm.cut_power()
    });
}
