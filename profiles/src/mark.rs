//! By what a node knows a disk, and by what it knows a disk that it prepared itself.
//!
//! Everything follows from the node's name and the disk's identity, by version 5 UUIDs
//! ([RFC 9562, section 5.5](https://www.rfc-editor.org/rfc/rfc9562#section-5.5)). So a node that lost its state, and is
//! installed anew under its name, still knows its disks, and a disk of another node is never taken for one's own.
//!
//! The partition's GUID follows from the disk's alone: whoever reads one of them in a table that a power cut left
//! unfinished can tell what the whole of it would be, without knowing any node's name.

use std::fmt;

use uuid::Uuid;

use crate::inventory::Disk;
use crate::selector::bare_wwn;

/// The namespace of everything below. Never to be changed: disks in the field follow from it.
const NAMESPACE: Uuid = Uuid::from_u128(0x8d1a_6f3e_2c57_4b09_9e84_57c1_d0b3_a6f2);

/// Label of the partition once its file system is finished.
pub const DATA_LABEL: &str = "nodezero-data";
/// Label of the partition until then.
pub const DATA_LABEL_NEW: &str = "nodezero-data-new";

/// The most bytes of a file system's label that both XFS and ext4 can hold.
const LABEL_BYTES: usize = 12;
const LABEL_PREFIX: &str = "nz-";
/// The most characters of a serial number in a directory's name.
const DIRECTORY_SERIAL: usize = 40;

/// What tells a disk from all others, wherever and as whatever device it appears: its serial number, else its WWN.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    kind: &'static str,
    text: String,
}

impl Identity {
    /// The identity of a disk; `None` where it tells neither, or only a placeholder such as zeros.
    #[must_use]
    pub fn of(disk: &Disk) -> Option<Self> {
        Self::of_facts(disk.serial.as_deref(), disk.wwn.as_deref())
    }

    /// [`Self::of`], by the two facts alone.
    #[must_use]
    pub fn of_facts(serial: Option<&str>, wwn: Option<&str>) -> Option<Self> {
        let meaningful = |text: &&str| text.chars().any(|c| c.is_alphanumeric() && c != '0');
        let serial = serial.map(str::trim).filter(meaningful).map(|serial| ("serial", serial.to_ascii_uppercase()));
        let wwn = || wwn.map(bare_wwn).filter(meaningful).map(|wwn| ("wwn", wwn.to_ascii_lowercase()));
        serial.or_else(wwn).map(|(kind, text)| Self { kind, text })
    }

    /// The name of the directory below `/var/mnt/longhorn` where the disk is mounted: what is printed on the disk, in
    /// lower case. It depends on nothing else, so that neither other disks, nor their order, nor another name for the
    /// profile's entry moves the data. Where characters had to be replaced, a digest keeps names apart.
    #[must_use]
    pub fn directory(&self) -> String {
        let lower = self.text.to_ascii_lowercase();
        let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
        let name: String = lower.chars().map(plain).take(DIRECTORY_SERIAL).collect();
        let prefix = if self.kind == "wwn" { "wwn-" } else { "" };
        if name == lower && !(self.kind == "serial" && name.starts_with("wwn-")) {
            return format!("{prefix}{name}");
        }
        let digest = Uuid::new_v5(&NAMESPACE, self.to_string().as_bytes()).simple().to_string();
        format!("{prefix}{}-{}", name.trim_matches('-'), &digest[..8])
    }

    /// The file system's label: the end of the serial number, where disks of one model differ.
    #[must_use]
    pub fn label(&self) -> String {
        let plain: Vec<char> = self.text.chars().filter(char::is_ascii_alphanumeric).collect();
        let start = plain.len().saturating_sub(LABEL_BYTES - LABEL_PREFIX.len());
        LABEL_PREFIX.chars().chain(plain[start..].iter().copied()).collect()
    }
}

/// `serial:…` or `wwn:…`.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.text)
    }
}

/// What a node writes on a disk that it prepares, to know it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marks {
    /// GUID of the disk.
    pub disk: Uuid,
    /// GUID of the one partition.
    pub partition: Uuid,
    /// UUID of the file system.
    pub file_system: Uuid,
    /// Label of the file system.
    pub label: String,
}

impl Marks {
    /// The marks of this node on this disk.
    #[must_use]
    pub fn new(node: &str, disk: &Identity) -> Self {
        // A name has no line break, so that no two pairs read the same.
        let guid = Uuid::new_v5(&NAMESPACE, format!("{node}\n{disk}").as_bytes());
        let partition = Self::partition_of(guid);
        Self { disk: guid, partition, file_system: Uuid::new_v5(&partition, b"file system"), label: disk.label() }
    }

    /// The GUID of the partition on a disk of this GUID.
    #[must_use]
    pub fn partition_of(disk: Uuid) -> Uuid {
        Uuid::new_v5(&disk, b"partition")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serial(text: &str) -> Identity {
        Identity::of_facts(Some(text), Some("naa.5000")).expect("an identity")
    }

    #[test]
    fn a_disk_is_known_by_its_serial_number_or_wwn() {
        for (number, wwn, expected) in [
            (Some(" zr50abcd "), Some("naa.5000cca2"), Some("serial:ZR50ABCD")),
            (Some(""), Some("0x5000CCA2"), Some("wwn:5000cca2")),
            (Some("0000000000"), Some("naa.5000CCA2"), Some("wwn:5000cca2")),
            (Some("--"), None, None),
            (None, Some("0x0000000000000000"), None),
            (None, None, None),
        ] {
            let identity = Identity::of_facts(number, wwn).map(|identity| identity.to_string());
            assert_eq!(identity.as_deref(), expected, "{number:?} {wwn:?}");
        }
    }

    #[test]
    fn names_are_short_plain_and_apart() {
        let wwn = |text: &str| Identity::of_facts(None, Some(text)).expect("an identity");
        for (identity, directory, label) in [
            (serial("ZR50ABCD"), "zr50abcd", "nz-ZR50ABCD"),
            (serial("WD-WCC7K0PFXYZ1"), "wd-wcc7k0pfxyz1", "nz-7K0PFXYZ1"),
            (wwn("naa.5000cca2a1b2c3d4"), "wwn-5000cca2a1b2c3d4", "nz-2a1b2c3d4"),
        ] {
            assert_eq!((identity.directory().as_str(), identity.label().as_str()), (directory, label), "{identity}");
            assert!(label.len() <= LABEL_BYTES, "{identity}");
        }
        let names = ["A_1", "A-1", "A 1", "A.1", "A1", "WWN-5", &"x".repeat(41), &"x".repeat(40), "../../etc", "é1"];
        let mut directories: Vec<String> = names.iter().map(|name| serial(name).directory()).collect();
        directories.push(wwn("5").directory());
        for name in &directories {
            let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
            assert!(plain && !name.starts_with('-') && name.len() < 64, "{name}");
        }
        directories.sort();
        directories.dedup();
        assert_eq!(directories.len(), names.len() + 1, "{directories:?}");
    }

    /// These values are on disks in the field.
    #[test]
    fn marks_never_change() {
        let marks = Marks::new("toronto-0002", &serial("ZR50ABCD"));
        assert_eq!(marks.label, "nz-ZR50ABCD");
        assert_eq!(marks.partition, Marks::partition_of(marks.disk));
        assert_eq!(marks.disk.to_string(), "575075ae-2975-5289-ba4b-efaccede26c1");
        assert_eq!(marks.partition.to_string(), "04056e45-9cf3-5774-8cf0-4cfe2c254a95");
        assert_eq!(marks.file_system.to_string(), "1afec0e1-56d9-578d-80ce-e8ae5adf682f");
        for (node, disk) in [("toronto-0003", "ZR50ABCD"), ("toronto-0002", "ZR50ABCE")] {
            let other = Marks::new(node, &serial(disk));
            assert!(other.disk != marks.disk && other.partition != marks.partition, "{node} {disk}");
            assert_ne!(other.file_system, marks.file_system, "{node} {disk}");
        }
    }
}
