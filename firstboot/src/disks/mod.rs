//! What the machine says about its disks: facts from `/sys`, and from udev where it runs.
//!
//! The attributes are those of the kernel's block, SCSI, NVMe and virtio drivers
//! ([ABI](https://docs.kernel.org/admin-guide/abi-stable.html)); udev's are read from its database under
//! `/run/udev/data`. Nothing is read from the disks themselves. Left out: what lies behind device mapper and md.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use nodezero_profile::inventory::Transport;
pub(crate) use nodezero_profile::size::human_size;
use serde::{Deserialize, Serialize};

pub(crate) mod content;
pub(crate) mod inventory;
pub(crate) mod mounts;
pub(crate) mod recognise;

/// Unit of sizes and offsets in `/sys`, whatever the disk's own sector size.
pub(crate) const SYSFS_SECTOR: u64 = 512;

/// udev's database.
const UDEV: &str = "/run/udev/data";

/// A whole disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Disk {
    /// The kernel's name, such as `sda`.
    pub(crate) name: String,
    /// The device file.
    pub(crate) path: PathBuf,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Size of a logical sector in bytes.
    pub(crate) sector_size: u32,
    /// How it is attached.
    pub(crate) transport: Transport,
    /// Vendor, where the disk tells one.
    pub(crate) vendor: Option<String>,
    /// Model, where the disk tells one.
    pub(crate) model: Option<String>,
    /// Serial number, where the disk tells one.
    pub(crate) serial: Option<String>,
    /// World wide name, where the disk tells one.
    pub(crate) wwn: Option<String>,
    /// Whether it rotates.
    pub(crate) rotational: bool,
    /// Whether its medium can be taken out, or itself unplugged.
    pub(crate) removable: bool,
    /// Whether it can only be read.
    pub(crate) read_only: bool,
    /// What udev found at its start: a file system or partition table.
    pub(crate) content: Option<String>,
    /// Its partitions, by number.
    pub(crate) partitions: Vec<Partition>,
}

/// A partition, as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Partition {
    /// The kernel's name, such as `sda1`.
    pub(crate) name: String,
    /// Its number in the partition table.
    pub(crate) number: u32,
    /// First byte on the disk.
    pub(crate) start: u64,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Its label in the partition table, where known.
    pub(crate) label: Option<String>,
    /// What udev found in it.
    pub(crate) content: Option<String>,
}

impl Disk {
    /// Name, size, model and serial on one line, for messages.
    pub(crate) fn describe(&self) -> String {
        let fact = |name: &str, value: &Option<String>| match value {
            Some(value) => format!(", {name} {value}"),
            None => format!(", no {name}"),
        };
        let (model, serial) = (fact("model", &self.model), fact("serial", &self.serial));
        format!("{} ({}, {}{model}{serial})", self.path.display(), human_size(self.size), self.transport.name())
    }
}

/// The disks of this machine: whole, with a medium, and made of hardware (or virtual hardware), by name.
pub(crate) fn survey() -> Vec<Disk> {
    survey_in(Path::new("/sys"), Path::new(UDEV))
}

/// [`survey`], with the places to look at given.
pub(crate) fn survey_in(sys: &Path, udev: &Path) -> Vec<Disk> {
    let mut disks: Vec<Disk> = fs::read_dir(sys.join("block"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| read_disk(&entry.path(), udev))
        .collect();
    disks.sort_by(|a, b| natural(&a.name).cmp(&natural(&b.name)));
    disks
}

/// The names of all block devices that are no partitions, as the kernel shows them now.
pub(crate) fn shown() -> BTreeSet<OsString> {
    fs::read_dir("/sys/block").into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
}

/// Whether an NVMe controller shows no disk yet. Below the controller lies its disk, or one path to it, such as `nvme0n1`
/// or `nvme0c0n1`.
pub(crate) fn is_nvme_scanning(sys: &Path) -> bool {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    entries(&sys.join("class/nvme")).any(|controller| {
        !entries(&controller.path()).any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"nvme"))
    })
}

/// A disk's partitions as the kernel shows them now, by number.
pub(crate) fn partitions(disk: &str) -> Vec<Partition> {
    read_partitions(&Path::new("/sys/block").join(disk), disk, Path::new(UDEV))
}

/// How a disk is attached, read from the path of the device within `/sys/devices`, which names each bus on the way.
fn transport_of(device: &Path, name: &str) -> Transport {
    let on_way = |prefix: &str| {
        device.components().any(|part| {
            let part = part.as_os_str().to_string_lossy();
            part.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
    };
    if name.starts_with("nvme") {
        Transport::Nvme
    } else if name.starts_with("mmcblk") {
        Transport::Mmc
    } else if on_way("usb") {
        Transport::Usb
    } else if on_way("ata") {
        Transport::Sata
    } else if on_way("session") {
        Transport::Iscsi
    } else if on_way("end_device-") {
        Transport::Sas
    } else if on_way("virtio") {
        Transport::Virtio
    } else if on_way("host") {
        Transport::Scsi
    } else {
        Transport::Other
    }
}

/// The disk whose block device has this number, as `/sys` tells it now: it may not be the one that a name meant before.
pub(crate) fn of_device(major: u32, minor: u32) -> Option<Disk> {
    read_disk(&fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?, Path::new(UDEV))
}

/// Reads one entry of `/sys/block`, unless it is no disk in this module's sense.
fn read_disk(entry: &Path, udev: &Path) -> Option<Disk> {
    let name = entry.file_name()?.to_str()?.to_owned();
    let virtual_kinds = ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"];
    if virtual_kinds.iter().any(|kind| name.starts_with(kind)) {
        return None;
    }
    let size = number(entry, "size")?.checked_mul(SYSFS_SECTOR).filter(|&size| size > 0)?;
    let facts = udev_facts(entry, udev);
    let udev_fact = |key: &str| facts.get(key).cloned();
    // The links of /sys/block lead to the device's place among the buses.
    let device = fs::canonicalize(entry).unwrap_or_else(|_| entry.to_owned());
    let transport = transport_of(&device, &name);
    Some(Disk {
        path: PathBuf::from("/dev").join(name.replace('!', "/")),
        size,
        sector_size: number(entry, "queue/logical_block_size").and_then(|size| size.try_into().ok()).unwrap_or(512),
        transport,
        vendor: text(entry, "device/vendor").filter(|vendor| !vendor.starts_with("0x")),
        model: text(entry, "device/model").or_else(|| udev_fact("ID_MODEL")),
        serial: text(entry, "serial")
            .or_else(|| text(entry, "device/serial"))
            .or_else(|| vital_product_serial(entry))
            .or_else(|| udev_fact("ID_SERIAL_SHORT")),
        wwn: text(entry, "wwid").or_else(|| text(entry, "device/wwid")).or_else(|| udev_fact("ID_WWN")),
        rotational: number(entry, "queue/rotational") == Some(1),
        removable: number(entry, "removable") == Some(1) || transport == Transport::Usb,
        read_only: number(entry, "ro") == Some(1),
        content: facts
            .get("ID_FS_TYPE")
            .cloned()
            .or_else(|| facts.get("ID_PART_TABLE_TYPE").map(|kind| format!("{kind} partition table"))),
        partitions: read_partitions(entry, &name, udev),
        name,
    })
}

/// The partitions below a disk's directory, by number.
fn read_partitions(disk: &Path, name: &str, udev: &Path) -> Vec<Partition> {
    let mut partitions: Vec<Partition> = fs::read_dir(disk)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(name))
        .filter_map(|entry| {
            let path = entry.path();
            let facts = udev_facts(&path, udev);
            Some(Partition {
                name: entry.file_name().into_string().ok()?,
                number: number(&path, "partition")?.try_into().ok()?,
                start: number(&path, "start")?.checked_mul(SYSFS_SECTOR)?,
                size: number(&path, "size")?.checked_mul(SYSFS_SECTOR)?,
                label: facts.get("ID_PART_ENTRY_NAME").cloned().or_else(|| uevent(&path, "PARTNAME")),
                // udev repeats the disk's partition table with each partition.
                content: facts.get("ID_FS_TYPE").cloned(),
            })
        })
        .collect();
    partitions.sort_by_key(|partition| partition.number);
    partitions
}

/// udev's record of a device: its `E:` lines.
fn udev_facts(entry: &Path, udev: &Path) -> BTreeMap<String, String> {
    let Some(number) = text(entry, "dev") else { return BTreeMap::new() };
    let record = fs::read_to_string(udev.join(format!("b{number}"))).unwrap_or_default();
    record
        .lines()
        .filter_map(|line| line.strip_prefix("E:")?.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// One key of a device's `uevent` file.
fn uevent(entry: &Path, key: &str) -> Option<String> {
    let record = fs::read_to_string(entry.join("uevent")).ok()?;
    record.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
}

/// The serial number in a SCSI disk's page 0x80 of vital product data: four bytes of header, then text.
fn vital_product_serial(entry: &Path) -> Option<String> {
    let page = fs::read(entry.join("device/vpd_pg80")).ok()?;
    clean(&String::from_utf8_lossy(page.get(4..)?))
}

/// A trimmed attribute; `None` when it is absent or blank.
fn text(entry: &Path, attribute: &str) -> Option<String> {
    clean(&fs::read_to_string(entry.join(attribute)).ok()?)
}

/// Trims, and drops what no console should be given.
fn clean(raw: &str) -> Option<String> {
    let text: String = raw.chars().filter(|c| !c.is_control()).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// A numeric attribute.
fn number(entry: &Path, attribute: &str) -> Option<u64> {
    text(entry, attribute)?.parse().ok()
}

/// Orders `sdb` before `sdaa`, as the kernel counts.
fn natural(name: &str) -> (usize, &str) {
    (name.len(), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory like `/sys/block`, with a virtual disk, a USB disk, and things that are no disks.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("tempdir");
        let usb = "devices/pci0000:00/usb2/2-1/host6/target6:0:0/6:0:0:0/block/sda";
        let virtio = "devices/pci0000:00/virtio1/block/vda";
        for (path, content) in [
            (format!("{virtio}/size"), "4096\n"),
            (format!("{virtio}/dev"), "254:0\n"),
            (format!("{virtio}/ro"), "1\n"),
            (format!("{virtio}/serial"), "NZ-0001\n"),
            (format!("{virtio}/device/vendor"), "0x1af4\n"),
            (format!("{virtio}/queue/logical_block_size"), "4096\n"),
            (format!("{virtio}/vda2/partition"), "2\n"),
            (format!("{virtio}/vda2/start"), "2048\n"),
            (format!("{virtio}/vda2/size"), "8\n"),
            (format!("{virtio}/vda2/uevent"), "DEVTYPE=partition\nPARTNAME=state\n"),
            (format!("{usb}/size"), "31457280\n"),
            (format!("{usb}/dev"), "8:0\n"),
            (format!("{usb}/device/model"), "Flash Disk      \n"),
            (format!("{usb}/device/vpd_pg80"), "\0\x7f\0\x04AB12"),
            ("devices/virtual/block/loop0/size".to_owned(), "800\n"),
            ("devices/empty/block/sdb/size".to_owned(), "0\n"),
            ("udev/b8:0".to_owned(), "S:disk/x\nE:ID_FS_TYPE=vfat\nE:ID_WWN=0x5000\n"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("directory");
            fs::write(path, content).expect("file");
        }
        fs::create_dir(root.path().join("block")).expect("directory");
        for target in [usb, virtio, "devices/virtual/block/loop0", "devices/empty/block/sdb"] {
            let name = target.rsplit('/').next().expect("name");
            std::os::unix::fs::symlink(root.path().join(target), root.path().join("block").join(name)).expect("link");
        }
        root
    }

    #[test]
    fn facts_are_read_and_other_devices_left_out() {
        let root = machine();
        let disks = survey_in(root.path(), &root.path().join("udev"));
        let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["sda", "vda"]);
        let (usb, virtio) = (&disks[0], &disks[1]);
        assert_eq!((usb.transport, virtio.transport), (Transport::Usb, Transport::Virtio));
        assert_eq!((usb.removable, virtio.removable, virtio.read_only), (true, false, true));
        assert_eq!((usb.serial.as_deref(), virtio.serial.as_deref()), (Some("AB12"), Some("NZ-0001")));
        assert_eq!((usb.model.as_deref(), virtio.vendor.as_deref()), (Some("Flash Disk"), None));
        assert_eq!((usb.content.as_deref(), usb.wwn.as_deref()), (Some("vfat"), Some("0x5000")));
        assert_eq!((virtio.size, virtio.sector_size), (4096 * 512, 4096));
        let partition = &virtio.partitions[0];
        assert_eq!((partition.number, partition.start, partition.size), (2, 2048 * 512, 4096));
        assert_eq!(partition.label.as_deref(), Some("state"));
        assert_eq!(usb.describe(), "/dev/sda (16.1 GB, usb, model Flash Disk, serial AB12)");
    }

    #[test]
    fn controllers_without_a_disk_are_noticed() {
        let sys = tempfile::tempdir().expect("tempdir");
        assert!(!is_nvme_scanning(sys.path()), "no NVMe at all");
        for (path, expected) in
            [("nvme0/device", true), ("nvme0/nvme0c0n1", false), ("nvme1/power", true), ("nvme1/nvme1n1", false)]
        {
            fs::create_dir_all(sys.path().join("class/nvme").join(path)).expect("directory");
            assert_eq!(is_nvme_scanning(sys.path()), expected, "{path}");
        }
    }

    #[test]
    fn names_are_in_the_kernels_order() {
        let mut names = ["sdaa", "sdb", "sda", "vda"];
        names.sort_by(|a, b| natural(a).cmp(&natural(b)));
        assert_eq!(names, ["sda", "sdb", "vda", "sdaa"]);
    }
}
