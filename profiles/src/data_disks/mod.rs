//! What becomes of each disk of a machine. Pure: one function decides, on the node and for the operator who asks
//! beforehand.
//!
//! Rules, in this order:
//!
//! 1. Never chosen, whatever a selector says: the disk that the machine started from, removable media, read-only disks, a
//!    disk in use. Mounting a data disk of one's own is no use in this sense.
//! 2. An entry must match as many disks as it says, and no disk may be matched twice.
//! 3. A disk that tells neither serial number nor WWN, or the same as another, cannot be known again, and is refused.
//! 4. What this node prepared is kept; what it began is continued; a blank disk is prepared.
//! 5. Anything else is refused, unless the profile consents to wipe that very disk, and the consent is not used up. It is
//!    used up as soon as the disk is ready, whether there was something to wipe or not: a consent that lies about would
//!    meet content that nobody thought of.
//! 6. One refusal or wrong count, and nothing is done to any disk.
//! 7. Once all disks were as the profile says, one that is away or cannot be read is neither: the node goes on without it
//!    ([`Missing`]).

mod missing;
mod show;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::missing::{Known, KnownDisk, Missing};
use crate::inventory::{Content, Disk, Foreign, Inventory, Prepared, Stage};
use crate::mark::{Identity, Marks};
use crate::node::{DataDisks, FileSystem, Node};
use crate::size::human_size;

/// The least size of a data disk in bytes: below it XFS is not made, and nothing of Longhorn fits.
pub const LEAST_BYTES: u64 = 1 << 30;

/// What the node noted about consents to wipe, by [`Identity`] as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Records(pub BTreeMap<String, Consent>);

/// What became of a consent to wipe one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Consent {
    /// Its number in the profile.
    pub number: u32,
    /// How far it came.
    pub stage: ConsentStage,
    /// Since when, for people.
    pub since: String,
}

/// How far a consent came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsentStage {
    /// Wiping was begun, and may be continued.
    Begun,
    /// It is used up.
    Used,
}

/// What becomes of each disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Each disk of the inventory, in its order.
    pub disks: Vec<Planned>,
    /// Disks that the node had and goes on without.
    pub missing: Vec<Missing>,
    /// Why nothing may be done; empty for a plan that can be carried out.
    pub errors: Vec<String>,
}

/// What becomes of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The disk as it was found.
    pub disk: Disk,
    /// The verdict.
    pub verdict: Verdict,
}

/// What becomes of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is blank, and gets a partition table, a file system and a mount.
    Prepare(Target),
    /// This node prepared it; it is mounted.
    Keep(Target),
    /// This node began to prepare it, and goes on from here.
    Continue(Target, Stage),
    /// What is on it is lost, then it is prepared.
    Wipe {
        /// What it becomes.
        target: Target,
        /// What is on it.
        found: String,
    },
    /// A selector means it, and it must not be touched.
    Refuse {
        /// The entry.
        entry: String,
        /// Why not.
        why: String,
    },
    /// This node prepared it, and it cannot be read any more.
    Failing(Missing),
    /// No selector means it, or it is never chosen.
    NotSelected {
        /// Why: for each entry, or for the disk as such.
        why: Vec<String>,
    },
}

/// What a disk becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The entry of the profile.
    pub entry: String,
    /// By what the disk is known.
    pub identity: Identity,
    /// What is written on it to know it again.
    pub marks: Marks,
    /// The file system.
    pub filesystem: FileSystem,
    /// The consent that is used up with it.
    pub consent: Option<u32>,
}

impl Plan {
    /// Whether it can be carried out.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.errors.is_empty()
    }

    /// The disks that become data disks, with their targets.
    pub fn targets(&self) -> impl Iterator<Item = (&Planned, &Target)> {
        self.disks.iter().filter_map(|planned| Some((planned, planned.verdict.target()?)))
    }
}

impl Verdict {
    /// What the disk becomes, where it becomes a data disk.
    #[must_use]
    pub fn target(&self) -> Option<&Target> {
        match self {
            Self::Prepare(target) | Self::Keep(target) | Self::Continue(target, _) | Self::Wipe { target, .. } => {
                Some(target)
            }
            Self::Refuse { .. } | Self::Failing(_) | Self::NotSelected { .. } => None,
        }
    }
}

/// Decides what becomes of each disk.
#[must_use]
pub fn plan(node: &Node, inventory: &Inventory, records: &Records) -> Plan {
    let disks = &inventory.disks;
    // For each entry, what it says to each disk.
    let answers: Vec<Vec<Result<(), String>>> =
        node.data_disks.iter().map(|entry| disks.iter().map(|disk| ask(node, entry, disk)).collect()).collect();
    let entries = || node.data_disks.iter().zip(&answers);
    let verdict = |(index, disk): (usize, &Disk)| {
        let meant: Vec<&DataDisks> =
            entries().filter(|(_, answers)| answers[index].is_ok()).map(|(entry, _)| entry).collect();
        match &meant[..] {
            [] => Verdict::NotSelected { why: reasons_once(entries().map(|(entry, said)| (entry, &said[index]))) },
            [entry] => {
                let mut others = disks.iter().enumerate().filter(|(other, _)| *other != index);
                let twin = others.find(|(_, other)| is_twin(disk, other));
                Judge { node, disk, entry, records, known: &inventory.known }.verdict(twin.map(|(_, twin)| twin))
            }
            several => {
                let names: Vec<&str> = several.iter().map(|entry| entry.name.as_str()).collect();
                let why = format!("it is selected by {} entries: {}", names.len(), names.join(", "));
                Verdict::Refuse { entry: names[0].to_owned(), why }
            }
        }
    };
    let planned: Vec<Planned> =
        disks.iter().enumerate().map(|at| Planned { disk: at.1.clone(), verdict: verdict(at) }).collect();
    let mut missing = Vec::new();
    let mut counts = Vec::new();
    for (entry, answers) in entries() {
        match inventory.known.lost(entry, disks, answers) {
            lost if is_made_up(entry, answers, lost.len()) => missing.extend(lost),
            _ => counts.extend(wrong_count(entry, disks, answers)),
        }
    }
    missing.extend(planned.iter().filter_map(|planned| match &planned.verdict {
        Verdict::Failing(failing) => Some(failing.clone()),
        _ => None,
    }));
    let refusals = planned.iter().filter_map(|Planned { disk, verdict }| {
        let Verdict::Refuse { entry, why } = verdict else { return None };
        Some(format!("{entry:?} selects {}: {why}", disk.describe()))
    });
    let errors = counts.into_iter().chain(refusals).collect();
    Plan { disks: planned, missing, errors }
}

/// Whether an entry means too few disks, and enough with those that it has lost.
fn is_made_up(entry: &DataDisks, answers: &[Result<(), String>], lost: usize) -> bool {
    let number = answers.iter().filter(|answer| answer.is_ok()).count();
    number < entry.count.least() && number + lost >= entry.count.least()
}

/// Whether an entry means a disk, else why not.
fn ask(node: &Node, entry: &DataDisks, disk: &Disk) -> Result<(), String> {
    match never_chosen(node, disk) {
        Some(why) => Err(why),
        None => entry.select.check(disk).map_err(|why| why.join("; ")),
    }
}

/// What to say of an entry that means another number of disks than it asks for: each disk, and why or why not.
fn wrong_count(entry: &DataDisks, disks: &[Disk], answers: &[Result<(), String>]) -> Option<String> {
    let number = answers.iter().filter(|answer| answer.is_ok()).count();
    if entry.count.allows(number) {
        return None;
    }
    let mut text = format!("{:?} asks for {} disks ({}), found {number}:", entry.name, entry.count, entry.select);
    if disks.is_empty() {
        text.push_str("\n  there are no disks");
    }
    for (disk, answer) in disks.iter().zip(answers) {
        let said = answer.as_ref().map_or_else(String::as_str, |()| "matches");
        text.push_str(&format!("\n  {}: {said}", disk.describe()));
    }
    Some(text)
}

/// Whether an entry asks for more disks than there are, whatever is on them or uses them: disks may yet appear.
#[must_use]
pub fn is_short_of_disks(node: &Node, inventory: &Inventory) -> bool {
    node.data_disks.iter().any(|entry| {
        let meant = |disk: &&Disk| never_fits(disk).is_none() && entry.select.check(disk).is_ok();
        inventory.disks.iter().filter(meant).count() < entry.count.least()
    })
}

/// Why a disk is no data disk by its kind.
fn never_fits(disk: &Disk) -> Option<String> {
    let why = match disk {
        Disk { boot: true, .. } => "the machine started from it",
        Disk { removable: true, .. } => "it is removable",
        Disk { read_only: true, .. } => "it is read-only",
        _ => return None,
    };
    Some(why.to_owned())
}

/// Why a disk is not chosen whatever a selector says.
fn never_chosen(node: &Node, disk: &Disk) -> Option<String> {
    if let Some(why) = never_fits(disk) {
        return Some(why);
    }
    let own = Identity::of(disk).is_some_and(|identity| is_own(disk, &Marks::new(&node.name, &identity)));
    let uses = || disk.in_use.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    (!disk.in_use.is_empty() && !own).then(|| format!("it is in use: {}", uses()))
}

/// Whether this node prepared the disk to the end.
fn is_own(disk: &Disk, marks: &Marks) -> bool {
    match &disk.content {
        Content::Prepared(prepared) => prepared.stage == Stage::Done && is_marked(prepared, marks),
        Content::NotExamined { .. } | Content::Unreadable { .. } | Content::Blank | Content::Foreign(_) => false,
    }
}

fn is_marked(prepared: &Prepared, marks: &Marks) -> bool {
    prepared.partition_guid == marks.partition && prepared.disk_guid.is_none_or(|guid| guid == marks.disk)
}

/// Whether two disks cannot be told apart. One disk that appears twice, by two paths, is such a pair.
fn is_twin(disk: &Disk, other: &Disk) -> bool {
    let identity = Identity::of(disk);
    identity.is_some() && identity == Identity::of(other)
}

/// Reasons by entry, or one reason alone where all are the same.
fn reasons_once<'a>(answers: impl Iterator<Item = (&'a DataDisks, &'a Result<(), String>)>) -> Vec<String> {
    let reasons: Vec<(&str, &str)> =
        answers.filter_map(|(entry, said)| Some((entry.name.as_str(), said.as_ref().err()?.as_str()))).collect();
    match &reasons[..] {
        [] => vec!["the profile has no data disks".to_owned()],
        [(_, first), rest @ ..] if rest.iter().all(|(_, reason)| reason == first) => vec![(*first).to_owned()],
        several => several.iter().map(|(entry, why)| format!("{entry}: {why}")).collect(),
    }
}

/// One disk that one entry means.
struct Judge<'a> {
    node: &'a Node,
    disk: &'a Disk,
    entry: &'a DataDisks,
    records: &'a Records,
    known: &'a Known,
}

impl Judge<'_> {
    fn verdict(&self, twin: Option<&Disk>) -> Verdict {
        let disk = self.disk;
        let Some(identity) = Identity::of(disk) else {
            return self.refuse("it tells neither serial number nor WWN, by which it could be known again");
        };
        if let Some(twin) = twin {
            return self.refuse(format!("{} tells the same {identity}, and they cannot be told apart", twin.path));
        }
        if !matches!(disk.sector_size, 512 | 4096) {
            return self.refuse(format!("its sectors have {} bytes, expected 512 or 4096", disk.sector_size));
        }
        if disk.size < LEAST_BYTES {
            let least = human_size(LEAST_BYTES);
            return self.refuse(format!("its size is {}, a data disk has {least} at least", human_size(disk.size)));
        }
        let target = Target {
            entry: self.entry.name.clone(),
            marks: Marks::new(&self.node.name, &identity),
            identity,
            filesystem: self.entry.filesystem,
            consent: self.entry.wipe,
        };
        match &disk.content {
            Content::NotExamined { why } => self.refuse(format!("its content is not known: {why}")),
            Content::Unreadable { error } => {
                let why = format!("it cannot be read: {error}");
                self.known.failing(&target.identity, &why).map_or_else(|| self.refuse(why), Verdict::Failing)
            }
            Content::Blank => Verdict::Prepare(target),
            Content::Foreign(foreign) => self.unless_consent(target, describe(foreign)),
            Content::Prepared(prepared) if is_marked(prepared, &target.marks) => self.own(target, prepared),
            Content::Prepared(prepared) => {
                let found = format!(
                    "data of another NodeZero node, or of this one under another name (partition {})",
                    prepared.partition_guid
                );
                self.unless_consent(target, found)
            }
        }
    }

    /// A disk with this node's own marks.
    fn own(&self, target: Target, prepared: &Prepared) -> Verdict {
        let Some(found) = &prepared.file_system else {
            return match prepared.stage {
                stage @ (Stage::Table | Stage::FileSystem) => Verdict::Continue(target, stage),
                Stage::Name | Stage::Done => {
                    let found = "this node's data partition without a file system in it".to_owned();
                    self.unless_consent(target, found)
                }
            };
        };
        if found.uuid.as_deref() != Some(&*target.marks.file_system.to_string()) {
            return self.unless_consent(target, format!("this node's data partition with foreign content: {found}"));
        }
        match prepared.stage {
            // Nobody has mounted it yet, so whichever file system it is, it is empty.
            stage @ (Stage::Table | Stage::FileSystem) => Verdict::Continue(target, stage),
            Stage::Name | Stage::Done if found.kind != target.filesystem.name() => {
                let found = format!("this node's data on {}, the profile says {}", found.kind, target.filesystem);
                self.unless_consent(target, found)
            }
            Stage::Name => Verdict::Continue(target, Stage::Name),
            Stage::Done => Verdict::Keep(target),
        }
    }

    /// Wipes with an unused consent, else refuses.
    fn unless_consent(&self, target: Target, found: String) -> Verdict {
        let Some(number) = self.entry.wipe else {
            return self.refuse(format!("it holds {found}"));
        };
        match self.records.0.get(&target.identity.to_string()) {
            Some(known) if known.number > number || (known.number == number && known.stage == ConsentStage::Used) => {
                let Consent { number: used, since, .. } = known;
                self.refuse(format!(
                    "it holds {found}; consent {used} to wipe it was used on {since}; to give it once more, set \
                     wipeConsent to {}",
                    used.saturating_add(1)
                ))
            }
            Some(_) | None => Verdict::Wipe { target, found },
        }
    }

    fn refuse(&self, why: impl Into<String>) -> Verdict {
        Verdict::Refuse { entry: self.entry.name.clone(), why: why.into() }
    }
}

/// What is on a disk, and where.
fn describe(foreign: &Foreign) -> String {
    let mut found: Vec<String> = foreign.signatures.iter().map(ToString::to_string).collect();
    let labels: Vec<String> = foreign
        .partitions
        .iter()
        .map(|part| format!("{} {:?} of {}", part.number, part.label, human_size(part.size)))
        .collect();
    if !labels.is_empty() {
        found.push(format!("partitions {}", labels.join(", ")));
    }
    if let Some(at) = foreign.unknown_data_at.filter(|_| found.is_empty()) {
        found.push(format!("unknown data at byte {at}"));
    }
    if found.is_empty() { "something unknown".to_owned() } else { found.join(", ") }
}
