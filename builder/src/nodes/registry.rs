//! The node registry as the control plane keeps it: ConfigMap `node-registry` in `nodezero-system`, one key per node.
//!
//! What stands there came from the nodes, so nothing in it is trusted: an entry that is not of its form is told as such
//! beside the others, and control characters reach no terminal. Fields that this version does not know are ignored, so
//! that an older command reads a newer cluster. Pure.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use nodezero_profile::Role;
use serde::{Deserialize, Serialize};

/// The ConfigMap's name.
pub const NAME: &str = "node-registry";

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    /// It does its work.
    Ready,
    /// The cluster does not hear of it, or it says that it is not well.
    NotReady,
    /// A step of its start does not come to its end.
    Stuck,
    /// Nothing is known of it.
    Unknown,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::NotReady => "not ready",
            Self::Stuck => "stuck",
            Self::Unknown => "unknown",
        })
    }
}

/// A data disk of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its serial number.
    pub serial: Option<String>,
    /// Its size in bytes.
    pub size: u64,
    /// Where it is mounted.
    pub mount: Option<String>,
}

/// What the registry says of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The node's name, which is the entry's key too.
    pub name: String,
    /// Its role; unknown where something joined the cluster that has not registered.
    pub role: Option<Role>,
    /// The version of its image.
    pub version: Option<String>,
    /// Its address in the mesh.
    pub mesh_address: Option<String>,
    /// Its prepared data disks.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Digest of the profile that it was made from.
    pub profile: Option<String>,
    /// How it is.
    pub health: Health,
    /// The step that it told last: what it is stuck at only where [`Self::stuck_at`] gives it.
    pub step: Option<String>,
    /// What there is to say about it.
    pub message: Option<String>,
    /// When it registered first.
    pub registered: Option<Timestamp>,
    /// When the registry heard of it last.
    pub seen: Option<Timestamp>,
}

impl Entry {
    /// The step that the node does not come past. A node whose steps are all done told the last of them, and is not
    /// stuck there, whether its kubelet is well or not.
    #[must_use]
    pub fn stuck_at(&self) -> Option<&str> {
        match self.health {
            Health::Ready | Health::NotReady => None,
            Health::Stuck | Health::Unknown => self.step.as_deref(),
        }
    }
}

/// An entry that is not of its form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Malformed {
    /// Its key.
    pub name: String,
    /// What is wrong.
    pub problem: String,
}

/// The whole registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// Nodes, by name.
    pub nodes: Vec<Entry>,
    /// What is not understood.
    pub malformed: Vec<Malformed>,
}

impl Listing {
    /// Reads the ConfigMap's data.
    #[must_use]
    pub fn parse(data: &BTreeMap<String, String>) -> Self {
        let mut listing = Self::default();
        for (key, json) in data {
            match parse(key, json) {
                Ok(entry) => listing.nodes.push(entry),
                Err(problem) => listing.malformed.push(Malformed { name: plain(key), problem: plain(&problem) }),
            }
        }
        listing
    }

    /// Whether every node that is listed does its work.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.malformed.is_empty() && self.nodes.iter().all(|node| node.health == Health::Ready)
    }
}

fn parse(key: &str, json: &str) -> Result<Entry, String> {
    let mut entry: Entry = serde_json::from_str(json).map_err(|error| error.to_string())?;
    if entry.name != key {
        return Err(format!("the name is {:?}, expected {key:?}", entry.name));
    }
    for text in [&mut entry.version, &mut entry.mesh_address, &mut entry.profile, &mut entry.step, &mut entry.message] {
        *text = text.as_deref().map(plain).filter(|text| !text.is_empty());
    }
    for disk in &mut entry.disks {
        (disk.serial, disk.mount) = (disk.serial.as_deref().map(plain), disk.mount.as_deref().map(plain));
    }
    Ok(entry)
}

/// Text that does nothing to a terminal: line ends stay, other control characters are shown as what they are.
fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(shown).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A registry of these entries.
    pub(crate) fn registry(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(name, json)| ((*name).to_owned(), (*json).to_owned())).collect()
    }

    pub(crate) const WORKER: &str = r#"{"name":"worker-1","role":"worker","version":"0.1.0","meshAddress":"100.64.0.2",
        "disks":[{"serial":"ZL2","size":18000207937536,"mount":"/var/mnt/longhorn/zl2"},
                 {"serial":"ZL3","size":18000207937536,"mount":"/var/mnt/longhorn/zl3"}],
        "profile":"ab","health":"ready","step":null,"message":null,
        "registered":"2026-03-01T10:00:00Z","seen":"2026-03-03T11:59:00Z","news":[1]}"#;

    #[test]
    fn entries_are_read_and_the_rest_is_told() {
        let data = registry(&[
            ("worker-1", WORKER),
            ("least", r#"{"name":"least","role":"edge","health":"unknown"}"#),
            ("foreign", r#"{"name":"foreign","role":null,"health":"ready"}"#),
            ("bad-json", "{"),
            ("bad-role", r#"{"name":"bad-role","role":"boss","health":"ready"}"#),
            ("bad-health", r#"{"name":"bad-health","role":"edge","health":"fine"}"#),
            ("bad-name", r#"{"name":"other","role":"edge","health":"ready"}"#),
            ("bad-time", r#"{"name":"bad-time","role":"edge","health":"ready","registered":"yesterday"}"#),
        ]);
        let listing = Listing::parse(&data);
        let names: Vec<&str> = listing.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["foreign", "least", "worker-1"]);
        assert_eq!(listing.nodes[2].disks.iter().map(|disk| disk.size).sum::<u64>(), 36_000_415_875_072);
        let told: Vec<&str> = listing.malformed.iter().map(|malformed| malformed.name.as_str()).collect();
        assert_eq!(told, ["bad-health", "bad-json", "bad-name", "bad-role", "bad-time"]);
        assert!(listing.malformed[2].problem.contains("\"other\", expected \"bad-name\""), "{listing:?}");
        assert!(!listing.is_well());
    }

    #[test]
    fn no_entry_speaks_to_the_terminal() {
        let json = r#"{"name":"a","role":"edge","health":"stuck","message":"x\u001b[2Jy\nz","step":"\u0007"}"#;
        let listing = Listing::parse(&registry(&[("a", json), ("b\u{1b}", "{}")]));
        assert_eq!(listing.nodes[0].message.as_deref(), Some("x\u{fffd}[2Jy\nz"));
        assert_eq!((listing.nodes[0].step.as_deref(), &*listing.malformed[0].name), (Some("\u{fffd}"), "b\u{fffd}"));
    }
}
