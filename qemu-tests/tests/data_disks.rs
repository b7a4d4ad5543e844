//! Data disks: prepared once, kept for ever, and never taken from anybody.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qemu_tests::foreign::{self, Foreign};
use qemu_tests::guest::READY;
use qemu_tests::ignition::Config;
use qemu_tests::machine::Format;
use qemu_tests::storage::{DISK_18T, digest, ends};
use qemu_tests::{Bus, Disk, Machine, Platform, Role, Scenario, Vm, images, scenario};
use serde_json::{Value, json};

/// A disk that is quickly prepared, in bytes.
const SMALL: u64 = 8 << 30;

/// How long preparing many disks may take.
const MANY: Duration = Duration::from_secs(1200);

/// What a probe shows of data disks: mounts, owners, partition tables, file systems.
const PROBE: &str = "findmnt -rn -t xfs -o TARGET,FSTYPE,SIZE,OPTIONS; stat -c '%n %F %a %U:%G' /var/mnt/longhorn/*; \
    for disk in $(lsblk -dnpo NAME -I 8,252,253,254,259); do sfdisk -d $disk 2>/dev/null | grep -h nodezero-data; done | sed 's/^[^:]*: *//' | sort; \
    blkid -o export -t TYPE=xfs | grep -E '^(UUID|LABEL)=' | sort; \
    cat /var/mnt/longhorn/*/kept 2>/dev/null; \
    systemctl list-units --plain --no-legend 'var-mnt-longhorn-*'";

fn node(disks: Value) -> Value {
    // No time server can be reached.
    json!({ "version": 1, "name": "worker-1", "role": "worker", "dataDisks": disks, "time": { "wait": 1 } })
}

/// A worker with a boot disk and a configuration.
fn worker(s: &Scenario, config: &Config) -> Result<Machine> {
    worker_for(Platform::Vps, s, config)
}

fn worker_for(platform: Platform, s: &Scenario, config: &Config) -> Result<Machine> {
    let image = images::built(Role::Worker, platform)?.path;
    let config = s.file("config.ign", &config.to_bytes())?;
    Ok(Machine::new("worker").disk(s.boot_disk(&image)?).fw_cfg("opt/com.coreos/config", config))
}

fn scsi(s: &Scenario, name: &str, size: u64) -> Result<Disk> {
    Ok(s.empty_disk(name, size)?.bus(Bus::VirtioScsi).serial(name.to_uppercase()))
}

/// Waits until the machine says that it cannot prepare its disks, for the reasons given.
fn expect_refused(vm: &Vm, reasons: &[&str]) -> Result<String> {
    let summary = vm.expect_stopped("data-disks")?;
    for reason in reasons {
        ensure!(summary.contains(reason), "no {reason:?} in\n{summary}");
    }
    Ok(summary)
}

#[test]
fn two_large_disks_are_prepared_and_kept() {
    scenario("data-disks", |s| {
        let bulk = json!([{"name": "bulk", "select": {"size": "18TB", "rotational": true}, "count": 2}]);
        let probe = format!("{PROBE}; for disk in /var/mnt/longhorn/*; do echo kept > $disk/kept; done; sync");
        let disks = [
            s.empty_disk("one", DISK_18T)?.bus(Bus::Ahci).serial("ONE").rotational(),
            s.empty_disk("two", DISK_18T)?.bus(Bus::Ahci).serial("TWO").rotational(),
        ];
        let machine =
            disks.iter().cloned().fold(worker(s, &Config::new().node(&node(bulk)).probe(&probe))?, Machine::disk);
        let mut told = Vec::new();
        let mut tables = Vec::new();
        for boot in ["first", "second"] {
            let vm = s.start(&machine)?;
            vm.wait_ready().with_context(|| format!("{boot} boot"))?;
            let said = vm.probe()?;
            for name in ["one", "two"] {
                let mount = format!("/var/mnt/longhorn/{name} xfs 16.4T ");
                ensure!(said.iter().any(|line| line.starts_with(&mount)), "no {mount:?} in {said:#?}");
                ensure!(
                    said.iter().any(|line| line.starts_with(&format!("/var/mnt/longhorn/{name} directory 7"))),
                    "{said:#?}"
                );
            }
            vm.power_off()?;
            tables.push(disks.iter().map(|disk| ends(disk.file(), DISK_18T, 1 << 20)).collect::<Result<Vec<_>>>()?);
            told.push(said);
        }
        ensure!(tables[0] == tables[1], "the second boot changed a partition table");
        ensure!(told[1].iter().filter(|line| *line == "kept").count() == 2, "data is lost: {:#?}", told[1]);
        let lasting = |said: &[String]| -> Vec<String> {
            let marks = ["UUID=", "LABEL=", "start="];
            said.iter().filter(|line| marks.iter().any(|mark| line.starts_with(mark))).cloned().collect()
        };
        ensure!(lasting(&told[0]) == lasting(&told[1]), "{:#?}\nthen\n{:#?}", told[0], told[1]);
        Ok(())
    });
}

/// Thirty disks with somebody else's content in one machine: each is named with what is on it, none is written to.
#[test]
fn foreign_content_is_refused_and_stays() {
    scenario("data-disks-foreign", |s| {
        let all = json!([{"name": "all", "select": {"size": "2GiB"}, "count": foreign::ALL.len()}]);
        let mut machine = worker(s, &Config::new().node(&node(all)))?;
        let mut before = Vec::new();
        for kind in foreign::ALL {
            let path = s.dir().join(format!("{}.img", kind.name));
            kind.make(&path)?;
            before.push(digest(&path)?);
            let serial = kind.name.to_uppercase();
            machine = machine.disk(Disk::new(&path, Format::Raw).bus(Bus::VirtioScsi).serial(serial));
        }
        let vm = s.start(&machine)?;
        let summary = expect_refused(&vm, &[])?;
        let refused = |kind: &Foreign| {
            let serial = format!("serial {}", kind.name.to_uppercase());
            summary.lines().any(|line| line.contains(&serial) && line.contains(kind.found))
        };
        let missing: Vec<&str> = foreign::ALL.iter().filter(|kind| !refused(kind)).map(|kind| kind.name).collect();
        ensure!(missing.is_empty(), "not refused, or without saying what was found: {missing:?}\n{summary}");
        vm.power_off()?;
        for (kind, before) in foreign::ALL.iter().zip(before) {
            let path = s.dir().join(format!("{}.img", kind.name));
            ensure!(digest(&path)? == before, "the disk with {} was changed", kind.name);
            std::fs::remove_file(path)?;
        }
        Ok(())
    });
}

#[test]
fn wiping_is_for_one_disk_and_one_time() {
    scenario("data-disks-wipe", |s| {
        let entries = json!([{"name": "old", "select": {"serial": "MINE"}, "count": 1, "wipe": true}]);
        let machine = worker(s, &Config::new().node(&node(entries)).probe(PROBE))?;
        let (mine, other) = (s.dir().join("mine.img"), s.dir().join("other.img"));
        let ext4 = foreign::ALL.iter().find(|kind| kind.name == "ext4").context("ext4 is one of them")?;
        ext4.make(&mine)?;
        ext4.make(&other)?;
        let before = digest(&other)?;
        let disk =
            |path: &std::path::Path, serial: &str| Disk::new(path, Format::Raw).bus(Bus::VirtioScsi).serial(serial);
        let machine = machine.disk(disk(&mine, "MINE")).disk(disk(&other, "OTHER"));
        let vm = s.start(&machine)?;
        let said = vm.probe()?;
        ensure!(said.iter().any(|line| line.starts_with("/var/mnt/longhorn/mine xfs")), "{said:#?}");
        vm.power_off()?;
        ensure!(digest(&other)? == before, "the other disk was changed");
        // Somebody puts new content there: the consent is used up.
        ext4.make(&mine)?;
        let new = digest(&mine)?;
        let vm = s.start(&machine)?;
        expect_refused(&vm, &["MINE", "ext4", "consent", "was used"])?;
        vm.cut_power()?;
        ensure!(digest(&mine)? == new && digest(&other)? == before, "a disk was changed");
        for path in [mine, other] {
            std::fs::remove_file(path)?;
        }
        Ok(())
    });
}

/// Wrong numbers, and disks that must not be chosen: all is said at once, and nothing is done to any disk.
#[test]
fn what_does_not_fit_is_refused() {
    scenario("data-disks-misfit", |s| {
        let entry = |name: &str, select: Value, count: u32| json!({"name": name, "select": select, "count": count});
        let entries = json!([
            entry("one", json!({"serial": "TWO-FOR-ONE-*"}), 1),
            entry("two", json!({"size": "18TB"}), 2),
            entry("stick", json!({"serial": "STICK"}), 1),
            entry("locked", json!({"serial": "LOCKED"}), 1),
            entry("failing", json!({"serial": "FAILING"}), 1),
            entry("large", json!({"size": ">= 10GiB"}), 1),
        ]);
        let disks = [
            scsi(s, "two-for-one-a", SMALL)?,
            scsi(s, "two-for-one-b", SMALL)?,
            s.empty_disk("stick", SMALL)?.bus(Bus::Usb).serial("STICK"),
            scsi(s, "locked", SMALL)?.read_only(),
            scsi(s, "failing", SMALL)?.unreadable_at(SMALL - 4096),
        ];
        let profile = node(entries);
        let config = Config::new().node(&profile).probe("nodezero-firstboot inventory --json");
        // The kernel of the other platform knows no USB disks.
        let base = worker_for(Platform::Metal, s, &config)?;
        let machine = disks.iter().cloned().fold(base, Machine::disk);
        let before: Vec<String> = disks.iter().map(|disk| digest(disk.file())).collect::<Result<_>>()?;
        let vm = s.start(&machine)?;
        let summary = expect_refused(&vm, &["TWO-FOR-ONE-A", "TWO-FOR-ONE-B", "nothing is done to any disk"])?;
        // Each of these pairs stands in one line.
        for (disk, reason) in [
            ("\"one\" asks for", "found 2"),
            ("\"two\" asks for", "found 0"),
            ("\"large\" asks for", "found 0"),
            ("serial STICK", "removable"),
            ("serial LOCKED", "read-only"),
            ("serial FAILING", "cannot be read"),
            ("/dev/vda", "the machine started from it"),
        ] {
            let said = summary.lines().any(|line| line.contains(disk) && line.contains(reason));
            ensure!(said, "no line with {disk:?} and {reason:?} in\n{summary}");
        }
        // The operator gets the same verdicts and reasons from the machine's inventory.
        let inventory = s.file("inventory.json", vm.probe()?.join("\n").as_bytes())?;
        let profile = s.file("node.json", profile.to_string().as_bytes())?;
        let mut plan = Command::new(images::nodezero()?);
        let output = plan.args(["profile", "plan", "--inventory"]).arg(inventory).arg(profile).output()?;
        let planned = String::from_utf8(output.stdout)?;
        ensure!(output.status.code() == Some(1), "the plan is not refused:\n{planned}");
        let verdicts = planned.lines().filter(|line| line.starts_with("/dev/"));
        let missing: Vec<&str> = verdicts.clone().filter(|line| !summary.contains(line.trim_end())).collect();
        ensure!(verdicts.count() == 6 && missing.is_empty(), "the node did not say {missing:#?}, but\n{summary}");
        vm.cut_power()?;
        let after: Vec<String> = disks.iter().map(|disk| digest(disk.file())).collect::<Result<_>>()?;
        ensure!(before == after, "a disk was changed");
        Ok(())
    });
}

/// 24 disks, one of them with sectors of 4096 bytes, and at the next boot in another order, behind a USB stick.
#[test]
#[ignore = "takes ten minutes under translation"]
fn many_disks_are_known_in_any_order() {
    scenario("data-disks-many", |s| {
        let entries = json!([{"name": "bulk", "select": {"serial": "MANY-*"}, "count": 24}]);
        let config = Config::new().node(&node(entries)).probe(
            "findmnt -rn -t xfs -o TARGET | sort; cat /var/mnt/longhorn/*/kept 2>/dev/null; \
            for disk in /var/mnt/longhorn/*; do basename $disk > $disk/kept; done; sync",
        );
        let base = worker(s, &config)?;
        let mut disks =
            (0..24).map(|number| scsi(s, &format!("many-{number:02}"), SMALL)).collect::<Result<Vec<_>>>()?;
        disks[7] = disks[7].clone().block_size(4096, 4096);
        let vm = s.start(&disks.iter().cloned().fold(base.clone(), Machine::disk))?;
        vm.console().wait_for(READY, MANY)?;
        let first = vm.probe()?;
        ensure!(first.iter().filter(|line| line.starts_with("/var/mnt/longhorn/many-")).count() == 24, "{first:#?}");
        vm.power_off()?;
        disks.reverse();
        let stick = s.empty_disk("stick", SMALL)?.bus(Bus::Usb).serial("STICK");
        let vm = s.start(&disks.into_iter().fold(base.disk(stick), Machine::disk))?;
        vm.console().wait_for(READY, MANY)?;
        let second = vm.probe()?;
        let names: Vec<String> = (0..24).map(|number| format!("many-{number:02}")).collect();
        ensure!(second.ends_with(&names), "{second:#?}");
        vm.power_off()
    });
}
