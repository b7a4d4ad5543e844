//! The names that the running system may give a link.
//!
//! The first stage has no udev, so that a link is still called `eth0` there. An operator knows it by what systemd
//! calls it
//! ([systemd.net-naming-scheme(7)](https://www.freedesktop.org/software/systemd/man/latest/systemd.net-naming-scheme.html)),
//! and may write that: the names by hardware address, by the firmware's index, by the slot and by the place on the PCI
//! bus are told from what sysfs shows. Left out: names by USB ports, of virtual functions, and of other buses; such a
//! link is named by its MAC address (`enx…`, or `ifname=`).

use std::fs;
use std::path::{Path, PathBuf};

use super::types::MacAddress;

/// Where sysfs shows links and slots.
const SYS: &str = "/sys";

/// The other names of the link of a name.
pub(super) fn of_link(name: &str, mac: Option<MacAddress>) -> Vec<String> {
    let by_mac = mac.map(|mac| mac.bytes().iter().fold("enx".to_owned(), |name, byte| format!("{name}{byte:02x}")));
    let mut names: Vec<String> = by_mac.into_iter().collect();
    names.extend(by_bus(Path::new(SYS), name).unwrap_or_default());
    names
}

/// The names by index, slot and place of the PCI device that a link belongs to.
fn by_bus(sys: &Path, name: &str) -> Option<Vec<String>> {
    let link = sys.join("class/net").join(name);
    let device = pci_device(&fs::canonicalize(link.join("device")).ok()?)?;
    let address = PciAddress::parse(device.file_name()?.to_str()?)?;
    let text = |file: &Path| fs::read_to_string(file).ok().map(|text| text.trim().to_owned());
    let number = |file: &Path| text(file)?.parse::<u32>().ok();
    let port = number(&link.join("dev_port")).filter(|port| *port > 0).map_or(String::new(), |port| format!("d{port}"));
    // The highest bit of a header's type says that the device has several functions.
    let config = fs::read(device.join("config")).unwrap_or_default();
    let several = address.function > 0 || config.get(0x0e).is_some_and(|kind| kind & 0x80 != 0);
    let function = if several { format!("f{}", address.function) } else { String::new() };
    let domain = if address.domain > 0 { format!("P{}", address.domain) } else { String::new() };

    let mut names = Vec::new();
    if let Some(index) = number(&device.join("acpi_index")).or_else(|| number(&device.join("index"))) {
        names.push(format!("eno{index}{port}"));
    }
    if let Some(slot) = hotplug_slot(sys, &address) {
        names.push(format!("en{domain}s{slot}{function}{port}"));
    }
    names.push(format!("en{domain}p{}s{}{function}{port}", address.bus, address.slot));
    Some(names)
}

/// The PCI device itself, or the one that a virtio device is on.
fn pci_device(device: &Path) -> Option<PathBuf> {
    let is_pci = |path: &&Path| path.file_name().and_then(|name| PciAddress::parse(name.to_str()?)).is_some();
    device.ancestors().take(2).find(is_pci).map(Path::to_owned)
}

/// The number of the slot that the firmware says a device is in.
fn hotplug_slot(sys: &Path, address: &PciAddress) -> Option<u32> {
    let own = format!("{:04x}:{:02x}:{:02x}", address.domain, address.bus, address.slot);
    let slots = fs::read_dir(sys.join("bus/pci/slots")).ok()?.flatten();
    let found = slots
        .filter(|slot| fs::read_to_string(slot.path().join("address")).is_ok_and(|address| address.trim() == own))
        .filter_map(|slot| slot.file_name().to_str()?.parse().ok());
    found.min()
}

/// `0000:00:03.0`.
struct PciAddress {
    domain: u32,
    bus: u32,
    slot: u32,
    function: u32,
}

impl PciAddress {
    fn parse(text: &str) -> Option<Self> {
        let (front, function) = text.split_once('.')?;
        let mut parts = front.split(':').map(|part| u32::from_str_radix(part, 16));
        let mut next = || parts.next()?.ok();
        let (domain, bus, slot) = (next()?, next()?, next()?);
        let function = u32::from_str_radix(function, 16).ok()?;
        next().is_none().then_some(Self { domain, bus, slot, function })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A link on a PCI device, directly or through virtio, as sysfs shows it.
    fn sysfs(pci: &str, virtio: bool, files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let sys = tempfile::tempdir().expect("tempdir");
        let device = sys.path().join("devices").join(pci);
        let owner = if virtio { device.join("virtio0") } else { device.clone() };
        let link = sys.path().join("class/net/eth0");
        for directory in [&owner, &link] {
            fs::create_dir_all(directory).expect("directory");
        }
        symlink(&owner, link.join("device")).expect("link");
        for (name, content) in files {
            let path = match name.strip_prefix("link/") {
                Some(name) => link.join(name),
                None if name.starts_with("bus/") => sys.path().join(name),
                None => device.join(name),
            };
            fs::create_dir_all(path.parent().expect("has one")).expect("directory");
            fs::write(path, content).expect("file");
        }
        sys
    }

    #[test]
    fn names_follow_from_the_place() {
        let header = |kind: u8| [[0; 14].as_slice(), &[kind, 0]].concat();
        for (what, pci, virtio, files, expected) in [
            ("plain", "0000:02:00.0", false, vec![], vec!["enp2s0"]),
            ("virtio", "0000:00:03.0", true, vec![], vec!["enp0s3"]),
            ("hexadecimal", "0000:0a:1f.6", false, vec![], vec!["enp10s31f6"]),
            ("first of several", "0000:02:00.0", false, vec![("config", header(0x80))], vec!["enp2s0f0"]),
            ("only function", "0000:02:00.0", false, vec![("config", header(0))], vec!["enp2s0"]),
            ("domain", "0001:02:00.0", false, vec![], vec!["enP1p2s0"]),
            ("port", "0000:02:00.0", false, vec![("link/dev_port", b"1\n".to_vec())], vec!["enp2s0d1"]),
            (
                "firmware",
                "0000:02:00.0",
                false,
                vec![("acpi_index", b"2".to_vec()), ("bus/pci/slots/7/address", b"0000:02:00\n".to_vec())],
                vec!["eno2", "ens7", "enp2s0"],
            ),
            ("index of SMBIOS", "0000:02:00.0", false, vec![("index", b"3".to_vec())], vec!["eno3", "enp2s0"]),
            (
                "another's slot",
                "0000:02:00.0",
                false,
                vec![("bus/pci/slots/7/address", b"0000:03:00".to_vec())],
                vec!["enp2s0"],
            ),
        ] {
            let files: Vec<_> = files.iter().map(|(name, content)| (*name, content.as_slice())).collect();
            let sys = sysfs(pci, virtio, &files);
            assert_eq!(by_bus(sys.path(), "eth0").expect(what), expected, "{what}");
        }
    }

    #[test]
    fn a_link_without_a_pci_device_has_its_address_alone() {
        let mac = "52:54:00:ab:cd:ef".parse().ok();
        assert_eq!(of_link("no-such-link", mac), ["enx525400abcdef"]);
        assert!(by_bus(Path::new("/nowhere"), "eth0").is_none());
    }
}
