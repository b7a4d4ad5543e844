//! What a machine says about itself and its disks: what `nodezero-firstboot inventory --json` prints, and what
//! `nodezero profile plan --inventory FILE` decides by, as the node itself does.
//!
//! All sizes and offsets are in bytes. Fields may stand in any order; one that is not known is an error, for a verdict
//! that overlooks a fact could cost data.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Role;
use crate::data_disks::{Known, Records};
use crate::problem::{Findings, Problems};
use crate::size::human_size;

/// The format's version.
const VERSION: u32 = 1;

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Inventory {
    version: u32,
    /// The node.
    pub node: NodeFacts,
    /// Its disks, in the kernel's order.
    pub disks: Vec<Disk>,
    /// Consents to wipe that the node has begun to use, or used up.
    #[serde(default)]
    pub consents: Records,
    /// The data disks that the node had when all of them were last as its profile says.
    #[serde(default)]
    pub known: Known,
}

/// What is known about the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeFacts {
    /// Its name, where it has a configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The role of its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The version of its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its machine-id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
}

/// A whole disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Disk {
    /// The kernel's name, such as `sda`. It may be another at the next start.
    pub name: String,
    /// The device file.
    pub path: String,
    /// Its links in `/dev/disk/by-path`, without the directory.
    #[serde(default)]
    pub by_path: Vec<String>,
    /// Size.
    pub size: u64,
    /// Size of a logical sector.
    pub sector_size: u32,
    /// How it is attached.
    pub transport: Transport,
    /// Vendor, where the disk tells one.
    pub vendor: Option<String>,
    /// Model, where the disk tells one.
    pub model: Option<String>,
    /// Serial number, where the disk tells one.
    pub serial: Option<String>,
    /// World wide name, where the disk tells one.
    pub wwn: Option<String>,
    /// Whether it rotates.
    pub rotational: bool,
    /// Whether its medium can be taken out, or itself unplugged.
    pub removable: bool,
    /// Whether it can only be read.
    pub read_only: bool,
    /// Whether the machine started from it.
    pub boot: bool,
    /// Who uses it now.
    #[serde(default)]
    pub in_use: Vec<Use>,
    /// What is on it.
    pub content: Content,
}

impl Disk {
    /// Path, size, model and serial number on one line, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        let fact = |name: &str, value: &Option<String>| match value {
            Some(value) => format!(", {name} {value}"),
            None => format!(", no {name}"),
        };
        let (model, serial) = (fact("model", &self.model), fact("serial", &self.serial));
        format!("{} ({}, {}{model}{serial})", self.path, human_size(self.size), self.transport)
    }
}

/// How a disk is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// A virtual disk of virtio.
    Virtio,
    /// NVMe.
    Nvme,
    /// USB.
    Usb,
    /// ATA and SATA.
    Sata,
    /// Serial attached SCSI.
    Sas,
    /// SCSI over the network.
    Iscsi,
    /// Cards and soldered flash.
    Mmc,
    /// Any other SCSI.
    Scsi,
    /// None of these.
    Other,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 9] =
        [Self::Virtio, Self::Nvme, Self::Usb, Self::Sata, Self::Sas, Self::Iscsi, Self::Mmc, Self::Scsi, Self::Other];

    /// The word for it, as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Nvme => "nvme",
            Self::Usb => "usb",
            Self::Sata => "sata",
            Self::Sas => "sas",
            Self::Iscsi => "iscsi",
            Self::Mmc => "mmc",
            Self::Scsi => "scsi",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no transport.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a transport: use virtio, nvme, usb, sata, sas, iscsi, mmc, scsi or other")]
pub struct UnknownTransport(String);

impl FromStr for Transport {
    type Err = UnknownTransport;

    fn from_str(word: &str) -> Result<Self, UnknownTransport> {
        Self::ALL
            .into_iter()
            .find(|transport| transport.name() == word)
            .ok_or_else(|| UnknownTransport(word.to_owned()))
    }
}

/// A use of a disk or of one of its partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Use {
    /// It is mounted.
    Mounted {
        /// The kernel's name of disk or partition.
        device: String,
        /// Where.
        at: String,
    },
    /// It is swap space.
    Swap {
        /// The kernel's name of disk or partition.
        device: String,
    },
    /// Another block device lies on it.
    Holder {
        /// The kernel's name of disk or partition.
        device: String,
        /// The other's name.
        holder: String,
    },
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { device, at } => write!(f, "{device} is mounted at {at}"),
            Self::Swap { device } => write!(f, "{device} is swap space"),
            Self::Holder { device, holder } => write!(f, "{device} is part of {holder}"),
        }
    }
}

/// What is on a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Content {
    /// It was not looked at.
    NotExamined {
        /// Why not.
        why: String,
    },
    /// It cannot be read.
    Unreadable {
        /// The error.
        error: String,
    },
    /// No signature, and both ends are all zero.
    Blank,
    /// Something that no NodeZero node writes.
    Foreign(Foreign),
    /// What a NodeZero node wrote, whole or cut short: nothing else is outside the data partition.
    Prepared(Prepared),
}

/// Content that no NodeZero node writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Foreign {
    /// What was recognised.
    pub signatures: Vec<Signature>,
    /// Partitions of a GPT that could be read.
    #[serde(default)]
    pub partitions: Vec<Partition>,
    /// The first byte that is not zero at the disk's start or end.
    pub unknown_data_at: Option<u64>,
}

/// A signature that libblkid found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Signature {
    /// libblkid's word for it, such as `crypto_LUKS`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it stands, from the start of the disk.
    pub offset: u64,
    /// Number of the partition that it is in; `None` for the disk itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// Its label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its UUID, as it is written there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.kind, self.offset)?;
        if let Some(number) = self.partition {
            write!(f, " in partition {number}")?;
        }
        if let Some(label) = &self.label {
            write!(f, " labelled {label:?}")?;
        }
        Ok(())
    }
}

/// An entry of a partition table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Partition {
    /// Its number.
    pub number: u32,
    /// Its label.
    pub label: String,
    /// Its type: a name where there is one, else the GUID.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its own GUID.
    pub uuid: Uuid,
    /// First byte.
    pub start: u64,
    /// Size.
    pub size: u64,
}

/// What a NodeZero node wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prepared {
    /// How far it came.
    pub stage: Stage,
    /// GUID of the disk; missing while no header is written.
    pub disk_guid: Option<Uuid>,
    /// GUID of the partition.
    pub partition_guid: Uuid,
    /// What is in the partition, where that can mean something.
    pub file_system: Option<Signature>,
}

/// How far the preparation of a disk came. Each is a place where a power cut can have stopped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The first partition table is not whole. The partition was never written to.
    Table,
    /// The table is whole and calls the partition new: making its file system has not come to its end.
    FileSystem,
    /// The file system is made and verified; the table that says so is not whole.
    Name,
    /// All is done.
    Done,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Table => "the partition table was not whole",
            Self::FileSystem => "the file system was not finished",
            Self::Name => "the table did not yet say that the file system is finished",
            Self::Done => "all was done",
        })
    }
}

impl Inventory {
    /// Of these facts.
    #[must_use]
    pub fn new(node: NodeFacts, disks: Vec<Disk>) -> Self {
        Self { version: VERSION, node, disks, consents: Records::default(), known: Known::default() }
    }

    /// Parses what `inventory --json` printed.
    ///
    /// # Errors
    /// When it is not JSON of this form and version, or says what cannot be.
    pub fn parse(json: &[u8]) -> Result<Self, Problems> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let mut findings = Findings::default();
        // The version comes first: a later form has fields that this one does not know.
        let Versioned { version } = serde_json::from_slice(json)?;
        if version != VERSION {
            findings.add("version", format!("version is {version}, expected {VERSION}"));
            return findings.settle(None);
        }
        let inventory: Self = serde_json::from_slice(json)?;
        for (index, disk) in inventory.disks.iter().enumerate() {
            let twin = inventory.disks[..index].iter().any(|other| other.name == disk.name || other.path == disk.path);
            if twin {
                findings.add(format!("disks[{index}].name"), format!("{} is listed twice", disk.path));
            }
            if disk.size == 0 {
                findings.add(format!("disks[{index}].size"), "size is 0");
            }
        }
        findings.settle(Some(inventory))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A disk like those of the project's first user.
    pub(crate) fn disk(name: &str, serial: &str) -> Disk {
        Disk {
            name: name.to_owned(),
            path: format!("/dev/{name}"),
            by_path: vec![format!("pci-0000:00:17.0-{name}")],
            size: 18_000_207_937_536,
            sector_size: 512,
            transport: Transport::Sata,
            vendor: Some("ATA".to_owned()),
            model: Some("WDC WUH721818ALE6L4".to_owned()),
            serial: Some(serial.to_owned()),
            wwn: Some(format!("naa.{serial}")),
            rotational: true,
            removable: false,
            read_only: false,
            boot: false,
            in_use: Vec::new(),
            content: Content::Blank,
        }
    }

    pub(crate) fn signature(kind: &str) -> Signature {
        Signature { kind: kind.to_owned(), offset: 0, partition: None, label: None, uuid: None }
    }

    #[test]
    fn what_is_printed_parses_to_the_same() {
        let id = Uuid::from_u128(7);
        let partition =
            Partition { number: 1, label: "x".into(), kind: "esp".into(), uuid: id, start: 1 << 20, size: 1 << 30 };
        let file_system =
            Signature { partition: Some(1), label: Some("nz".into()), uuid: Some("u".into()), ..signature("xfs") };
        let contents = [
            Content::Blank,
            Content::NotExamined { why: "boot disk".into() },
            Content::Unreadable { error: "input/output error".into() },
            Content::Foreign(Foreign {
                signatures: vec![signature("LVM2_member")],
                partitions: vec![partition],
                unknown_data_at: Some(4096),
            }),
            Content::Prepared(Prepared {
                stage: Stage::FileSystem,
                disk_guid: None,
                partition_guid: id,
                file_system: Some(file_system),
            }),
        ];
        let disks = contents.into_iter().enumerate().map(|(index, content)| Disk {
            content,
            in_use: vec![
                Use::Mounted { device: "sda1".into(), at: "/mnt".into() },
                Use::Swap { device: "sda2".into() },
                Use::Holder { device: "sda".into(), holder: "md0".into() },
            ],
            ..disk(&format!("sd{index}"), "S")
        });
        let facts = NodeFacts { name: Some("n".into()), role: Some(Role::Worker), ..NodeFacts::default() };
        let inventory = Inventory::new(facts, disks.collect());
        let json = serde_json::to_string_pretty(&inventory).expect("JSON");
        assert_eq!(Inventory::parse(json.as_bytes()), Ok(inventory.clone()));
        // A document cut or changed anywhere is an error or another inventory, and never a panic.
        arbtest::arbtest(|u| {
            let mut bytes = json.clone().into_bytes();
            let at = u.choose_index(bytes.len())?;
            if u.arbitrary()? {
                bytes.truncate(at)
            } else {
                bytes[at] = u.arbitrary()?
            }
            if let Ok(parsed) = Inventory::parse(&bytes) {
                let again = serde_json::to_vec(&parsed).expect("JSON");
                assert_eq!(Inventory::parse(&again), Ok(parsed));
            }
            let _ = Inventory::parse(u.arbitrary()?);
            Ok(())
        });
    }

    #[test]
    fn inventories_are_parsed_strictly() {
        let json =
            serde_json::to_string(&Inventory::new(NodeFacts::default(), vec![disk("sda", "A"), disk("sdb", "B")]))
                .expect("JSON");
        for (case, from, to, expected) in [
            ("version", "\"version\":1", "\"version\":2", "version: version is 2, expected 1"),
            ("unknown field", "\"boot\":", "\"boots\":", "unknown field `boots`"),
            ("unknown content", "\"state\":\"blank\"", "\"state\":\"empty\"", "unknown variant `empty`"),
            ("extra in content", "{\"state\":\"blank\"}", "{\"state\":\"unreadable\"}", "missing field `error`"),
            ("missing", "\"size\":18000207937536,", "", "missing field `size`"),
            ("no size", "18000207937536", "0", "disks[0].size: size is 0\ndisks[1].size: size is 0"),
            ("twice", "sdb", "sda", "disks[1].name: /dev/sda is listed twice"),
        ] {
            let changed = json.replace(from, to);
            assert_ne!(changed, json, "{case}");
            let problems = Inventory::parse(changed.as_bytes()).expect_err(case).to_string();
            assert!(problems.starts_with(expected), "{case}: {problems}");
        }
    }
}
