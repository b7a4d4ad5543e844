//! What becomes of a disk's partitions: the table of Ignition's operator notes ("Partition Reuse Semantics") as data.
//!
//! Nothing here reads or writes a disk. Where the config leaves a start or a size to the largest free block, `sgdisk`
//! is asked where it would put the partition; its answers come in as [`Landed`]. The order is: [`wanted`] reads the
//! config, [`rehearsal`] says what to ask, [`resolve`] fills in the answers, [`decide`] compares with the table that
//! is there, [`operation`] says what to run, and [`expected`] what the table is afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, bail, ensure};
use disk::layout::Layout;
use disk::{Guid, SectorSize};

use crate::ignition::config::types;

const MIB: u64 = 1 << 20;

/// The most partitions that a table of `sgdisk`'s making has room for.
const ENTRIES: u32 = 128;

/// A table's partitions, by number.
pub(crate) type Table = BTreeMap<u32, Entry>;

/// Where `sgdisk` puts partitions: number to place.
pub(crate) type Landed = BTreeMap<u32, Place>;

/// Place of a partition, in logical sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// First sector.
    pub(crate) start: u64,
    /// Length.
    pub(crate) sectors: u64,
}

/// A partition that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where.
    pub(crate) place: Place,
    /// Its type.
    pub(crate) type_guid: Guid,
    /// Its own GUID.
    pub(crate) guid: Guid,
    /// Its label.
    pub(crate) label: String,
    /// Attribute bits.
    pub(crate) attributes: u64,
}

/// A partition that the config names. In `start` and `sectors`, `None` is "do not care" and zero the largest block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its number, never zero: see [`wanted`].
    pub(crate) number: u32,
    /// First sector.
    pub(crate) start: Option<u64>,
    /// Length in sectors.
    pub(crate) sectors: Option<u64>,
    /// Label.
    pub(crate) label: Option<String>,
    /// Type.
    pub(crate) type_guid: Option<Guid>,
    /// Its own GUID.
    pub(crate) guid: Option<Guid>,
    /// Attribute bits; only a partition that is resized has any.
    pub(crate) attributes: u64,
    /// Whether it shall be there.
    pub(crate) exist: bool,
    /// Whether an entry that does not match may be deleted.
    pub(crate) wipe: bool,
    /// Whether an entry of another size may be resized.
    pub(crate) resize: bool,
}

/// What is done about one partition of the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is not there and shall not be.
    Absent(u32),
    /// It is there as specified.
    Keep(u32),
    /// It is made.
    Create(Wanted),
    /// It is deleted.
    Delete(u32),
    /// It is deleted and made as specified.
    Replace(Wanted),
    /// It gets another size and keeps everything else.
    Resize(Wanted),
}

/// Deletions, then creations in order, as one run of `sgdisk`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Operation {
    /// Begin with an empty table.
    pub(crate) clear: bool,
    /// Numbers of entries to delete.
    pub(crate) delete: Vec<u32>,
    /// Partitions to make.
    pub(crate) create: Vec<Wanted>,
}

impl Entry {
    /// The entries of a table that was read.
    pub(crate) fn of_layout(layout: &Layout) -> Table {
        let entry = |partition: &disk::Partition| Self {
            place: Place { start: partition.first_lba, sectors: partition.sectors },
            type_guid: partition.partition_type.guid(),
            guid: partition.guid,
            label: partition.label.as_str().to_owned(),
            attributes: partition.attributes.bits(),
        };
        layout.partitions().iter().map(|(number, partition)| (*number, entry(partition))).collect()
    }
}

impl Decision {
    /// The partition's number.
    pub(crate) fn number(&self) -> u32 {
        match self {
            Self::Absent(number) | Self::Keep(number) | Self::Delete(number) => *number,
            Self::Create(wanted) | Self::Replace(wanted) | Self::Resize(wanted) => wanted.number,
        }
    }

    /// Whether the partition's entry is written.
    pub(crate) fn changes(&self) -> bool {
        match self {
            Self::Absent(_) | Self::Keep(_) => false,
            Self::Create(_) | Self::Delete(_) | Self::Replace(_) | Self::Resize(_) => true,
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::Absent(_) => "is not there, as specified",
            Self::Keep(_) => "is there as specified and kept",
            Self::Create(_) => "is created",
            Self::Delete(_) => "is deleted",
            Self::Replace(_) => "is there and differs: it is deleted and created",
            Self::Resize(_) => "is resized",
        };
        write!(f, "partition {} {what}", self.number())
    }
}

/// The partitions that a config names, those without a number last and with the numbers that are free.
///
/// # Errors
/// When a number, size or GUID makes no sense, or no number is free.
pub(crate) fn wanted(
    partitions: &[types::Partition],
    existing: &Table,
    sector: SectorSize,
) -> anyhow::Result<Vec<Wanted>> {
    let mut sorted: Vec<&types::Partition> = partitions.iter().collect();
    sorted.sort_by_key(|partition| partition.number.unwrap_or(0) == 0);
    let mut taken: BTreeSet<u32> = existing.keys().copied().collect();
    let mut result = Vec::with_capacity(sorted.len());
    for partition in sorted {
        let specified = partition.number.unwrap_or(0);
        let number = match u32::try_from(specified).with_context(|| format!("partition number {specified}"))? {
            0 => (1..=ENTRIES).find(|number| !taken.contains(number)).context("no partition number is free")?,
            number => number,
        };
        taken.insert(number);
        let read = || read_wanted(partition, number, sector);
        result.push(read().with_context(|| format!("reading partition {number} of the config"))?);
    }
    Ok(result)
}

/// One partition of the config, in sectors.
fn read_wanted(partition: &types::Partition, number: u32, sector: SectorSize) -> anyhow::Result<Wanted> {
    let sectors = |mib: Option<i64>| -> anyhow::Result<Option<u64>> {
        let Some(mib) = mib else { return Ok(None) };
        let count = u64::try_from(mib).ok().and_then(|mib| mib.checked_mul(MIB / sector.bytes()));
        Ok(Some(count.with_context(|| format!("{mib} MiB is no size"))?))
    };
    let guid = |text: &Option<String>| -> anyhow::Result<Option<Guid>> {
        let text = text.as_deref().filter(|text| !text.is_empty());
        Ok(text.map(str::parse).transpose()?)
    };
    Ok(Wanted {
        number,
        start: sectors(partition.start_mib)?,
        sectors: sectors(partition.size_mib)?,
        label: partition.label.clone(),
        type_guid: guid(&partition.type_guid)?,
        guid: guid(&partition.guid)?,
        attributes: 0,
        exist: partition.should_exist != Some(false),
        wipe: partition.wipe_partition_entry == Some(true),
        resize: partition.resize == Some(true),
    })
}

/// What to ask `sgdisk` so that starts and sizes of zero get their values, which are those that come about if all
/// partitions of the config were deleted and made anew; and the numbers to ask about. `None` where nothing is left open.
pub(crate) fn rehearsal(wanted: &[Wanted], existing: &Table, clear: bool) -> Option<(Operation, Vec<u32>)> {
    let open = |wanted: &&Wanted| wanted.exist && (wanted.start == Some(0) || wanted.sectors == Some(0));
    let ask: Vec<u32> = wanted.iter().filter(open).map(|wanted| wanted.number).collect();
    if ask.is_empty() {
        return None;
    }
    let delete = wanted.iter().map(|wanted| wanted.number).filter(|number| existing.contains_key(number)).collect();
    let create = wanted.iter().filter(|wanted| wanted.exist).map(|wanted| {
        let present = existing.get(&wanted.number).filter(|_| !wanted.wipe).map(|entry| entry.place);
        Wanted {
            number: wanted.number,
            start: wanted.start.or(present.map(|place| place.start)),
            sectors: wanted.sectors.or(present.map(|place| place.sectors)),
            exist: true,
            ..Wanted::default()
        }
    });
    Some((Operation { clear, delete, create: create.collect() }, ask))
}

/// Puts `sgdisk`'s answers in place of starts and sizes that were specified as zero.
pub(crate) fn resolve(wanted: Vec<Wanted>, landed: &Landed) -> Vec<Wanted> {
    let fill = |mut wanted: Wanted| {
        if let Some(place) = landed.get(&wanted.number) {
            wanted.start = wanted.start.map(|start| if start == 0 { place.start } else { start });
            wanted.sectors = wanted.sectors.map(|sectors| if sectors == 0 { place.sectors } else { sectors });
        }
        wanted
    };
    wanted.into_iter().map(fill).collect()
}

/// Decides about each partition.
///
/// # Errors
/// When a partition is there that should not be, or differs, and the config does not permit to delete it.
pub(crate) fn decide(wanted: &[Wanted], existing: &Table) -> anyhow::Result<Vec<Decision>> {
    wanted.iter().map(|wanted| decide_one(wanted, existing.get(&wanted.number))).collect()
}

/// One row of the operator notes' table.
fn decide_one(wanted: &Wanted, existing: Option<&Entry>) -> anyhow::Result<Decision> {
    let number = wanted.number;
    let Some(entry) = existing else {
        return Ok(if wanted.exist { Decision::Create(wanted.clone()) } else { Decision::Absent(number) });
    };
    if !wanted.exist {
        ensure!(
            wanted.wipe,
            "partition {number} (label {:?}) is there, shouldExist is false and wipePartitionEntry is not true",
            entry.label
        );
        return Ok(Decision::Delete(number));
    }
    let mut differences = differences(wanted, entry);
    let size = size_difference(wanted, entry);
    if differences.is_empty() && size.is_none() {
        return Ok(Decision::Keep(number));
    }
    if wanted.wipe {
        return Ok(Decision::Replace(wanted.clone()));
    }
    if wanted.resize && differences.is_empty() {
        return Ok(Decision::Resize(Wanted {
            start: Some(entry.place.start),
            label: Some(entry.label.clone()),
            type_guid: Some(entry.type_guid),
            guid: Some(entry.guid),
            attributes: entry.attributes,
            ..wanted.clone()
        }));
    }
    differences.extend(size);
    bail!("partition {number} is there, wipePartitionEntry is not true, and {}", differences.join(", "))
}

/// How an entry differs from what is specified, its size left out.
fn differences(wanted: &Wanted, entry: &Entry) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(start) = wanted.start.filter(|start| *start != entry.place.start) {
        found.push(format!("its first sector is {}, specified is {start}", entry.place.start));
    }
    if let Some(label) = wanted.label.as_ref().filter(|label| **label != entry.label) {
        found.push(format!("its label is {:?}, specified is {label:?}", entry.label));
    }
    if let Some(guid) = wanted.guid.filter(|guid| *guid != entry.guid) {
        found.push(format!("its GUID is {}, specified is {guid}", entry.guid));
    }
    if let Some(guid) = wanted.type_guid.filter(|guid| *guid != entry.type_guid) {
        found.push(format!("its type GUID is {}, specified is {guid}", entry.type_guid));
    }
    found
}

/// How an entry's size differs from what is specified.
fn size_difference(wanted: &Wanted, entry: &Entry) -> Option<String> {
    let sectors = wanted.sectors.filter(|sectors| *sectors != entry.place.sectors)?;
    Some(format!("its size is {} sectors, specified are {sectors}", entry.place.sectors))
}

/// What to run so that the decisions come true. `None` where no entry changes.
pub(crate) fn operation(decisions: &[Decision], clear: bool) -> Option<Operation> {
    let mut operation = Operation { clear, ..Operation::default() };
    for decision in decisions {
        match decision {
            Decision::Absent(_) | Decision::Keep(_) => {}
            Decision::Create(wanted) => operation.create.push(wanted.clone()),
            Decision::Delete(number) => operation.delete.push(*number),
            Decision::Replace(wanted) | Decision::Resize(wanted) => {
                operation.delete.push(wanted.number);
                operation.create.push(wanted.clone());
            }
        }
    }
    (clear || !operation.delete.is_empty() || !operation.create.is_empty()).then_some(operation)
}

/// The partitions of the table after an operation, as far as they are known: `None` for an entry's fields that
/// `sgdisk` chooses.
///
/// # Errors
/// When `sgdisk` would put a partition elsewhere than is specified.
pub(crate) fn expected(operation: &Operation, existing: &Table, landed: &Landed) -> anyhow::Result<Expected> {
    let mut table: BTreeMap<u32, ExpectedEntry> = BTreeMap::new();
    if !operation.clear {
        table.extend(existing.iter().map(|(number, entry)| (*number, ExpectedEntry::Kept(entry.clone()))));
    }
    for number in &operation.delete {
        table.remove(number);
    }
    for wanted in &operation.create {
        let number = wanted.number;
        let place = *landed.get(&number).with_context(|| format!("sgdisk does not say where partition {number} is"))?;
        for (what, specified, got) in
            [("first sector", wanted.start, place.start), ("number of sectors", wanted.sectors, place.sectors)]
        {
            let specified = specified.filter(|&value| value != 0).unwrap_or(got);
            ensure!(specified == got, "the {what} of partition {number} would be {got}, specified is {specified}");
        }
        table.insert(number, ExpectedEntry::Made { place, wanted: wanted.clone() });
    }
    Ok(Expected(table))
}

/// What a table shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected(BTreeMap<u32, ExpectedEntry>);

/// What an entry shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ExpectedEntry {
    /// As it was.
    Kept(Entry),
    /// As specified, at this place.
    Made { place: Place, wanted: Wanted },
}

impl Expected {
    /// Compares with a table that was read.
    ///
    /// # Errors
    /// With the first entry that differs.
    pub(crate) fn verify(&self, found: &Table) -> anyhow::Result<()> {
        if let Some(number) = found.keys().find(|number| !self.0.contains_key(number)) {
            bail!("partition {number} is there and should not be");
        }
        for (number, expected) in &self.0 {
            let entry = found.get(number).with_context(|| format!("partition {number} is not there"))?;
            match expected {
                ExpectedEntry::Kept(kept) => {
                    ensure!(entry == kept, "partition {number} was to be kept and is {entry:?}, it was {kept:?}");
                }
                ExpectedEntry::Made { place, wanted } => {
                    let placed = Wanted { start: Some(place.start), sectors: Some(place.sectors), ..wanted.clone() };
                    let mut differences = differences(&placed, entry);
                    differences.extend(size_difference(&placed, entry));
                    ensure!(differences.is_empty(), "partition {number} was made, but {}", differences.join(", "));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
