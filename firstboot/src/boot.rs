//! What the first stage found and did, handed to the first-boot service in `/run/nodezero/boot.json`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nodezero_profile::Role;
use serde::{Deserialize, Serialize};

use crate::files::write_atomically;
use crate::machine_id::MachineId;
use crate::sources::Provider;

/// Where the record lies. The directory is for root alone: the configuration, which may hold secrets, lies beside it.
pub(crate) const RUN_DIRECTORY: &str = "/run/nodezero";
/// The record's file name.
pub(crate) const BOOT_FILE: &str = "boot.json";
/// The configuration's file name.
pub(crate) const CONFIG_FILE: &str = "config.ign";

/// The record of one boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Boot {
    /// The image's role.
    pub(crate) role: Option<Role>,
    /// The image's version.
    pub(crate) version: Option<String>,
    /// Whether the image holds a stand-in component.
    pub(crate) standin: bool,
    /// The root hash, in hexadecimal.
    pub(crate) root_hash: String,
    /// The slot that was started.
    pub(crate) slot: Slot,
    /// The machine's own disk.
    pub(crate) disk: BootDisk,
    /// Where `state` is.
    pub(crate) state: StateOrigin,
    /// The node's machine-id.
    pub(crate) machine_id: MachineId,
    /// Where the configuration was found.
    pub(crate) config: ConfigOrigin,
    /// The stages, in order.
    pub(crate) stages: Vec<StageTime>,
}

/// The disk that the machine started from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootDisk {
    /// Its device file on this boot.
    pub(crate) path: PathBuf,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Model, where the disk tells one.
    pub(crate) model: Option<String>,
    /// Serial number, where the disk tells one.
    pub(crate) serial: Option<String>,
}

/// One of the two places for a root file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Slot {
    /// `root-a`.
    A,
    /// `root-b`.
    B,
}

/// Whether the `state` partition was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StateOrigin {
    /// It was made by this boot.
    Created,
    /// An earlier boot made it.
    Kept,
}

/// Where the configuration came from. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum ConfigOrigin {
    /// No source had one: maintenance mode.
    None,
    /// QEMU's firmware configuration device.
    FwCfg {
        /// Size of the configuration.
        size: u64,
    },
    /// The ESP of the own disk.
    Esp {
        /// Size of the configuration.
        size: u64,
    },
    /// Fetched from where the kernel command line says.
    Fetched {
        /// That place, without what may be a secret.
        url: String,
        /// Size of the configuration.
        size: u64,
    },
    /// A file that the kernel command line names.
    File {
        /// The device that it lies on.
        device: PathBuf,
        /// Its path there, without the first slash.
        path: String,
        /// Size of the configuration.
        size: u64,
    },
    /// A config drive.
    Drive {
        /// Its label.
        label: String,
        /// Its device.
        device: PathBuf,
        /// Size of the configuration.
        size: u64,
    },
    /// The metadata service of a provider.
    Provider {
        /// Which.
        provider: Provider,
        /// Size of the configuration.
        size: u64,
    },
}

/// When a stage ended, in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StageTime {
    /// Name of the stage.
    pub(crate) name: String,
    /// How long it took.
    pub(crate) took_ms: u64,
    /// When it ended, since the kernel started.
    pub(crate) at_ms: u64,
}

impl Boot {
    /// Writes the record into a directory.
    ///
    /// # Errors
    /// What the file system answers.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_vec_pretty(self).context("writing the boot record as JSON")?;
        write_atomically(&directory.join(BOOT_FILE), &json, 0o600)
    }

    /// Reads the record from a directory.
    ///
    /// # Errors
    /// When it is not there, or not what [`Self::write`] writes.
    pub(crate) fn read(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(BOOT_FILE);
        let json = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&json).with_context(|| format!("parsing {}", path.display()))
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "a",
            Self::B => "b",
        })
    }
}

impl fmt::Display for StateOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Kept => "kept",
        })
    }
}

impl fmt::Display for ConfigOrigin {
    /// One word: the source.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Fetched { .. } | Self::File { .. } => "cmdline",
            Self::FwCfg { .. } => "fw_cfg",
            Self::Esp { .. } => "esp",
            Self::Drive { .. } => "drive",
            Self::Provider { .. } => "provider",
        })
    }
}

/// The time since the kernel started, in milliseconds. The kernel counts in hundredths of a second here.
pub(crate) fn uptime_ms() -> u64 {
    parse_uptime(&fs::read_to_string("/proc/uptime").unwrap_or_default()).unwrap_or(0)
}

/// The first number of `/proc/uptime`, in milliseconds.
fn parse_uptime(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_whitespace().next()?.split_once('.')?;
    let hundredths: u64 = fraction.get(..2)?.parse().ok()?;
    seconds.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(hundredths * 10)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record as a first boot leaves it.
    pub(crate) fn example() -> Boot {
        Boot {
            role: Some(Role::Worker),
            version: Some("0.1.0".into()),
            standin: false,
            root_hash: "ab".repeat(32),
            slot: Slot::A,
            disk: BootDisk { path: "/dev/vda".into(), size: 4 << 30, model: None, serial: Some("NZ-1".into()) },
            state: StateOrigin::Created,
            machine_id: MachineId::parse("0123456789abcdef0123456789abcdef").expect("valid"),
            config: ConfigOrigin::Esp { size: 12 },
            stages: vec![StageTime { name: "devices".into(), took_ms: 40, at_ms: 840 }],
        }
    }

    #[test]
    fn the_record_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().expect("tempdir");
        example().write(directory.path()).expect("written");
        assert_eq!(Boot::read(directory.path()).expect("read"), example());
        let path = directory.path().join(BOOT_FILE);
        let text = fs::read_to_string(&path).expect("there");
        assert!(text.contains("\"source\": \"esp\"") && text.contains("\"slot\": \"a\""), "{text}");
        fs::write(&path, text.replace("\"slot\"", "\"slod\"")).expect("written");
        assert!(Boot::read(directory.path()).is_err(), "an unknown field is refused");
    }

    #[test]
    fn origins_have_fixed_forms() {
        let (device, size) = (PathBuf::from("/dev/sr0"), 2);
        for (origin, word, json) in [
            (
                ConfigOrigin::Fetched { url: "http://h/c".into(), size },
                "cmdline",
                r#"{"source":"fetched","url":"http://h/c","size":2}"#,
            ),
            (
                ConfigOrigin::File { device: device.clone(), path: "c".into(), size },
                "cmdline",
                r#"{"source":"file","device":"/dev/sr0","path":"c","size":2}"#,
            ),
            (
                ConfigOrigin::Drive { label: "cidata".into(), device, size },
                "drive",
                r#"{"source":"drive","label":"cidata","device":"/dev/sr0","size":2}"#,
            ),
            (
                ConfigOrigin::Provider { provider: Provider::Ec2, size },
                "provider",
                r#"{"source":"provider","provider":"ec2","size":2}"#,
            ),
        ] {
            assert_eq!(origin.to_string(), word);
            assert_eq!(serde_json::to_string(&origin).expect(word), json);
            assert_eq!(serde_json::from_str::<ConfigOrigin>(json).expect(word), origin);
        }
    }

    #[test]
    fn uptimes_parse() {
        for (text, expected) in
            [("12.34 20.00\n", Some(12_340)), ("0.05 0.00", Some(50)), ("", None), ("x.10 1", None), ("1.", None)]
        {
            assert_eq!(parse_uptime(text), expected, "{text:?}");
        }
    }
}
