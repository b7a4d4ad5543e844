//! Power is cut during a first boot, at any moment: what comes out in the end is what would have come out without.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qemu_tests::guest::OURS;
use qemu_tests::ignition::Config;
use qemu_tests::storage::ends;
use qemu_tests::{Bus, Disk, Machine, Platform, Role, Scenario, images, scenario};
use serde_json::json;

/// Size of each data disk in bytes.
const DATA: u64 = 4 << 30;
/// A first boot is over after this, counted from the first line of ours.
const FIRST_BOOT: Duration = Duration::from_secs(60);
/// The first stage, which writes most of what a cut could leave by halves, is over after this. Two of three cuts fall
/// into it.
const FIRST_STAGE: Duration = Duration::from_secs(12);
/// How often the power is cut in all, where nothing is said.
const CUTS: u64 = 6;
/// How often the power of one machine is cut before it is let through.
const CUTS_OF_A_MACHINE: u64 = 6;

/// What a machine is in the end.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    said: Vec<String>,
    tables: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Everything that a first boot makes: files in /etc and /var, a user, an enabled unit, and two data disks.
fn config() -> Config {
    let node = json!({ "version": 1, "name": "worker-1", "role": "worker", "time": { "wait": 1 },
        "dataDisks": [{"name": "bulk", "select": {"serial": "CUT-*"}, "count": 2}] });
    let unit = "[Service]\nType=oneshot\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n";
    let large = b"0123456789abcdef".repeat(8192);
    Config::new()
        .node(&node)
        .file("/etc/greeting", 0o640, b"good morning\n")
        .file("/var/lib/app/data", 0o600, &large)
        .add("/passwd/users", json!({"name": "op", "uid": 1500}))
        .add("/systemd/units", json!({"name": "hello.service", "enabled": true, "contents": unit}))
        .probe(
            "stat -c '%n %F %a %s %U' /etc/greeting /var/lib/app/data /home/op; cat /etc/greeting; \
             sha256sum /var/lib/app/data; id op; systemctl is-enabled hello.service; hostname; \
             findmnt -rn -t xfs -o TARGET,FSTYPE,SIZE | sort; blkid -o export -t TYPE=xfs | grep -E '^(UUID|LABEL)=' | sort; \
             ls -A /etc/.ignition* /var/lib/nodezero/*.new /etc/*.new 2>/dev/null; true",
        )
}

fn disks(s: &Scenario) -> Result<Vec<Disk>> {
    let disk = |name: &str| Ok(s.empty_disk(name, DATA)?.bus(Bus::VirtioScsi).serial(name.to_uppercase()));
    ["cut-1", "cut-2"].into_iter().map(disk).collect()
}

/// A new machine, whose power is cut by `cut` before it is let through.
fn outcome(s: &mut Scenario, cut: impl FnOnce(&mut Scenario, &Machine) -> Result<()>) -> Result<Outcome> {
    let image = images::built(Role::Worker, Platform::Vps)?.path;
    let file = s.file("config.ign", &config().to_bytes())?;
    let disks = disks(s)?;
    let machine = Machine::new("worker").disk(s.boot_disk(&image)?).fw_cfg("opt/com.coreos/config", file);
    let machine = disks.iter().cloned().fold(machine, Machine::disk);
    cut(s, &machine)?;
    let vm = s.start(&machine)?;
    vm.wait_ready()?;
    let said = vm.probe()?;
    vm.power_off()?;
    let tables = disks.iter().map(|disk| ends(disk.file(), DATA, 1 << 20)).collect::<Result<_>>()?;
    Ok(Outcome { said, tables })
}

fn expect_same(uncut: &Outcome, cut: &Outcome) -> Result<()> {
    ensure!(uncut.said == cut.said, "without a cut:\n{:#?}\nafter it:\n{:#?}", uncut.said, cut.said);
    ensure!(uncut.tables == cut.tables, "the partition tables differ");
    Ok(())
}

/// Moments follow from a seed alone. `NODEZERO_POWER_CUTS` is another number of them than [`CUTS`].
#[test]
fn at_random_moments() {
    scenario("power-cuts", |s| {
        let cuts = match std::env::var("NODEZERO_POWER_CUTS") {
            Ok(number) => number.parse().context("reading NODEZERO_POWER_CUTS")?,
            Err(_) => CUTS,
        };
        let uncut = outcome(s, |_, _| Ok(()))?;
        let mut state: u64 = 1;
        let mut left = cuts;
        while left > 0 {
            let mut moments = Vec::new();
            let cut = outcome(s, |s, machine| {
                for number in 0..left.min(CUTS_OF_A_MACHINE) {
                    let span = if number % 3 == 2 { FIRST_BOOT } else { FIRST_STAGE };
                    // Knuth's generator; the upper bits are good enough for moments.
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let moment = Duration::from_millis((state >> 33) % u64::try_from(span.as_millis())?);
                    moments.push(moment);
                    left -= 1;
                    let vm = s.start(machine)?;
                    vm.wait_for(OURS)?;
                    thread::sleep(moment);
                    vm.cut_power()?;
                }
                Ok(())
            });
            let cut = cut.and_then(|cut| expect_same(&uncut, &cut));
            cut.with_context(|| format!("power cut {moments:?} after the first line"))?;
        }
        Ok(())
    });
}

/// As soon as each step says that it is done; so the cut falls between it and the next one, or into that one's beginning.
#[test]
#[ignore = "takes ten minutes under translation"]
fn after_each_step() {
    scenario("power-cuts-steps", |s| {
        let uncut = outcome(s, |_, _| Ok(()))?;
        let steps = [
            "own disk:",
            "partitions:",
            "modules:",
            "root:",
            "state:",
            "configuration:",
            "factory:",
            "ignition:",
            "switch root:",
            "report ",
            "step identity:",
            "step time:",
            "step data-disks:",
            "step confirm:",
        ];
        let cut = outcome(s, |s, machine| {
            for step in steps {
                let vm = s.start(machine)?;
                vm.wait_for(&format!("{OURS}{step}"))?;
                vm.cut_power()?;
            }
            Ok(())
        })?;
        expect_same(&uncut, &cut)
    });
}
