//! The inventory of this machine: facts about each disk, who uses it, and what is on it.

use std::fs;
use std::path::Path;

use nodezero_profile::inventory::{Content, Disk, Inventory, NodeFacts, Use};

use super::{content, survey};
use crate::boot::{Boot, RUN_DIRECTORY};
use crate::disks::mounts::{Mount, read_mounts};

/// Links to disks by the way they are attached.
const BY_PATH: &str = "/dev/disk/by-path";

/// Surveys the machine, and looks at each disk. Nothing is changed.
pub(crate) fn take(name: Option<&str>) -> Inventory {
    take_with(name, |disk| content::examine(&disk.path, disk.size, disk.sector_size))
}

/// Surveys the machine, and reads nothing from its disks.
pub(crate) fn take_facts() -> Inventory {
    take_with(None, |_| Content::NotExamined { why: "not asked for".to_owned() })
}

fn take_with(name: Option<&str>, look: impl Fn(&super::Disk) -> Content) -> Inventory {
    let boot = Boot::read(Path::new(RUN_DIRECTORY)).ok();
    let boot_disk = boot.as_ref().map(|boot| boot.disk.path.clone());
    let facts = NodeFacts {
        name: name.map(str::to_owned),
        role: boot.as_ref().and_then(|boot| boot.role),
        version: boot.as_ref().and_then(|boot| boot.version.clone()),
        machine_id: boot.as_ref().map(|boot| boot.machine_id.to_string()),
    };
    let links = links_in(Path::new(BY_PATH));
    let mounts = read_mounts().unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let disks = survey().into_iter().map(|disk| {
        let is_boot = boot_disk.as_ref() == Some(&disk.path);
        let by_path = links.iter().filter(|(_, name)| *name == disk.name).map(|(link, _)| link.clone()).collect();
        let content =
            if is_boot { Content::NotExamined { why: "the machine started from it".to_owned() } } else { look(&disk) };
        Disk {
            in_use: uses(Path::new("/sys/block"), &disk, &mounts, &swaps),
            path: disk.path.display().to_string(),
            name: disk.name,
            by_path,
            size: disk.size,
            sector_size: disk.sector_size,
            transport: disk.transport,
            vendor: disk.vendor,
            model: disk.model,
            serial: disk.serial,
            wwn: disk.wwn,
            rotational: disk.rotational,
            removable: disk.removable,
            read_only: disk.read_only,
            boot: is_boot,
            content,
        }
    });
    Inventory::new(facts, disks.collect())
}

/// Each link of a directory and the name of the device that it leads to, sorted.
fn links_in(directory: &Path) -> Vec<(String, String)> {
    let mut links: Vec<(String, String)> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let device = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().into_string().ok()?, device.file_name()?.to_str()?.to_owned()))
        })
        .collect();
    links.sort();
    links
}

/// Who uses a disk or one of its partitions.
fn uses(sys_block: &Path, disk: &super::Disk, mounts: &[Mount], swaps: &str) -> Vec<Use> {
    let top = sys_block.join(&disk.name);
    let parts = disk.partitions.iter().map(|part| (part.name.clone(), top.join(&part.name)));
    let mut uses = Vec::new();
    for (device, entry) in std::iter::once((disk.name.clone(), top.clone())).chain(parts) {
        let number = fs::read_to_string(entry.join("dev")).unwrap_or_default().trim().to_owned();
        let file = format!("/dev/{}", device.replace('!', "/"));
        for mount in mounts.iter().filter(|mount| mount.device == number || mount.source == file) {
            uses.push(Use::Mounted { device: device.clone(), at: mount.at.display().to_string() });
        }
        if swaps.lines().any(|line| line.split_whitespace().next() == Some(&file)) {
            uses.push(Use::Swap { device: device.clone() });
        }
        for holder in fs::read_dir(entry.join("holders")).into_iter().flatten().flatten() {
            let holder = holder.file_name().to_string_lossy().into_owned();
            uses.push(Use::Holder { device: device.clone(), holder });
        }
    }
    uses
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::disks::{Partition, Transport};

    #[test]
    fn every_use_of_a_disk_is_seen() {
        let sys = tempfile::tempdir().expect("tempdir");
        for (path, content) in [
            ("sda/dev", "8:0\n"),
            ("sda/sda1/dev", "8:1\n"),
            ("sda/sda2/dev", "8:2\n"),
            ("sda/sda3/dev", "8:3\n"),
            ("sda/sda3/holders/dm-0", ""),
            ("sda/sda4/dev", "8:4\n"),
        ] {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            fs::write(path, content).expect("file");
        }
        let partition = |number: u32| Partition {
            name: format!("sda{number}"),
            number,
            start: 0,
            size: 0,
            label: None,
            content: None,
        };
        let disk = crate::disks::Disk {
            name: "sda".into(),
            path: "/dev/sda".into(),
            size: 1,
            sector_size: 512,
            transport: Transport::Sata,
            vendor: None,
            model: None,
            serial: None,
            wwn: None,
            rotational: true,
            removable: false,
            read_only: false,
            content: None,
            partitions: (1..=4).map(partition).collect(),
        };
        let mount = |device: &str, source: &str, at: &str| Mount {
            device: device.into(),
            source: source.into(),
            at: at.into(),
            kind: "xfs".into(),
            options: Vec::new(),
        };
        // btrfs has a device number of its own, so the source tells.
        let mounts =
            [mount("8:1", "/dev/root", "/a"), mount("0:40", "/dev/sda4", "/b"), mount("8:16", "/dev/sdb", "/c")];
        let swaps = "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n/dev/sda22 partition 1 0 -2\n";
        let text: Vec<String> = uses(sys.path(), &disk, &mounts, swaps).iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            ["sda1 is mounted at /a", "sda2 is swap space", "sda3 is part of dm-0", "sda4 is mounted at /b"]
        );
    }

    #[test]
    fn links_lead_to_names() {
        let directory = tempfile::tempdir().expect("tempdir");
        for (link, device) in [("pci-1-part1", "../../sda1"), ("pci-1", "../../sda")] {
            symlink(device, directory.path().join(link)).expect("link");
        }
        let expected = [("pci-1", "sda"), ("pci-1-part1", "sda1")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(links_in(directory.path()), expected);
        assert_eq!(links_in(Path::new("/nonexistent")), []);
    }
}
