//! Disks that a node prepared, and that are away or cannot be read at a later start.
//!
//! A hard disk that dies is no reason to lose the node, and with it what is on its other disks: the node goes on without,
//! and says so. This holds for disks that were once prepared and mounted, all of them; before that, a disk that is not
//! there is an error, as the machine may be another than the profile means.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::inventory::Disk;
use crate::mark::Identity;
use crate::node::DataDisks;

/// The data disks that a node had when all of them were last as its profile says, by [`Identity`] as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Known(pub BTreeMap<String, KnownDisk>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KnownDisk {
    /// The entry of the profile.
    pub entry: String,
    /// The directory where it is mounted, see [`Identity::directory`].
    pub directory: String,
    /// Size in bytes.
    pub size: u64,
    /// What it tells about itself, for people.
    pub model: Option<String>,
}

/// A known disk that the node goes on without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its [`Identity`] as text.
    pub identity: String,
    /// What was known of it.
    pub disk: KnownDisk,
    /// Why it cannot be used.
    pub why: String,
}

impl Known {
    /// Whether a disk is among them.
    #[must_use]
    pub fn has(&self, identity: &Identity) -> bool {
        self.0.contains_key(&identity.to_string())
    }

    /// A disk that cannot be used although it is there.
    #[must_use]
    pub fn failing(&self, identity: &Identity, why: &str) -> Option<Missing> {
        let identity = identity.to_string();
        let disk = self.0.get(&identity)?.clone();
        Some(Missing { identity, disk, why: why.to_owned() })
    }

    /// The disks of an entry that it does not mean any more, in this inventory; `answers` has what it says to each disk of
    /// it.
    pub(super) fn lost(&self, entry: &DataDisks, disks: &[Disk], answers: &[Result<(), String>]) -> Vec<Missing> {
        let there = |identity: &str| {
            let of = |disk: &Disk| Identity::of(disk).is_some_and(|found| found.to_string() == identity);
            disks.iter().zip(answers).find(|(disk, _)| of(disk)).map(|(_, answer)| answer)
        };
        let lost = self.0.iter().filter(|(_, disk)| disk.entry == entry.name).filter_map(|(identity, disk)| {
            let why = match there(identity) {
                Some(Ok(())) => return None,
                Some(Err(why)) => why.clone(),
                None => "it is not there".to_owned(),
            };
            Some(Missing { identity: identity.clone(), disk: disk.clone(), why })
        });
        lost.collect()
    }
}

/// The disk, and why it is not used, on one line.
impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { identity, disk: KnownDisk { entry, directory, size, model }, why } = self;
        let size = crate::size::human_size(*size);
        let model = model.as_ref().map_or(String::new(), |model| format!(", model {model}"));
        write!(f, "{identity} of {entry:?} ({size}{model}, {directory}): {why}")
    }
}
