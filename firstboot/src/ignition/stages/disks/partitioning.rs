//! Partitioning disks: what `partitions` decides, asked for, written, read back, and shown by the kernel.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use disk::table::{Finding, read_table};
use disk::{Error, SectorSize};

use super::device::{self, Device, Usage};
use super::partitions::{self, Decision, Entry, Expected, Landed, Operation, Table};
use super::probe::{Content, probe};
use super::sgdisk;
use crate::command;
use crate::ignition::config::types;
use crate::ignition::log::Log;

/// How long the kernel may take to show what the table says.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be done to one disk.
#[derive(Debug)]
pub(crate) struct DiskPlan {
    device: Device,
    sector: SectorSize,
    /// `None`: nothing is written.
    change: Option<Change>,
}

/// What is written to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    operation: Operation,
    expected: Expected,
    /// The numbers of the entries that are written.
    touched: BTreeSet<u32>,
}

/// The table of a disk.
#[derive(Debug)]
enum Found {
    /// There is none, and nothing else that is known.
    Blank,
    /// A GPT that is good enough to be changed; what is not as it should be, in words.
    Gpt(Table, Vec<String>),
    /// Something that partitions cannot be made beside.
    Foreign(String),
}

impl DiskPlan {
    /// Compares the config with the disk. Nothing is written.
    ///
    /// # Errors
    /// When the disk is in use, holds what must not be touched, or cannot be made what the config says.
    pub(crate) fn new(config: &types::Disk, log: Log) -> anyhow::Result<Self> {
        let device = Device::find(Path::new(&config.device))?;
        let sector = device.sector_size()?;
        let (file, size) = device.open()?;
        let usage = device.usage()?;
        let change = plan(config, &device.path, sector, (file, size), &usage, log)?;
        Ok(Self { device, sector, change })
    }

    /// Whether a partition's entry is written, or the whole disk's table when no number is given.
    pub(crate) fn touches(&self, disk: &str, number: Option<u32>) -> bool {
        let Some(change) = self.change.as_ref().filter(|_| self.device.name() == disk) else { return false };
        change.operation.clear || number.is_none_or(|number| change.touched.contains(&number))
    }

    /// The disk's device file.
    pub(crate) fn path(&self) -> &Path {
        &self.device.path
    }

    /// Does it, reads the table back, and waits until the kernel shows it.
    ///
    /// # Errors
    /// When `sgdisk` fails, or the disk is not what was planned afterwards.
    pub(crate) fn apply(&self, log: Log) -> anyhow::Result<()> {
        let Some(change) = &self.change else { return Ok(()) };
        write_and_verify(&self.device.path, self.sector, change, log)?;
        self.show(change)?;
        device::settle(&self.device)
    }

    /// Makes the kernel show the partitions of the table. `sgdisk` asks it to read all anew, which it refuses for a disk
    /// with a partition in use, so each partition that differs is told alone.
    fn show(&self, change: &Change) -> anyhow::Result<()> {
        let per_sector = self.sector.bytes() / 512;
        let table = read_back(&self.device.path, self.sector)?;
        let wanted = table
            .iter()
            .map(|(number, entry)| (*number, (entry.place.start * per_sector, entry.place.sectors * per_sector)))
            .collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shown = self.device.shown_partitions();
            if shown == wanted {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the kernel shows the partitions {shown:?} of {}, its table has {wanted:?} (start and size in units \
                 of 512 bytes)",
                self.device.path.display()
            );
            // A partition that is in use does not change, so it is never among these.
            let is_shown = |number: &u32| shown.contains_key(number);
            for number in shown.keys().filter(|number| wanted.get(number) != shown.get(number)) {
                self.partx("--delete", *number);
            }
            let missing = wanted.iter().filter(|(number, place)| shown.get(number) != Some(place));
            for number in missing.map(|(number, _)| number).filter(|n| !is_shown(n) || change.touched.contains(n)) {
                self.partx("--add", *number);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Tells the kernel about one partition. Whether it worked is seen by looking again: udev may be doing the same.
    fn partx(&self, action: &str, number: u32) {
        let number = number.to_string();
        if let Ok(path) = self.device.argument() {
            let _ = command::run("partx", &[action, "--nr", &number, path], b"", |_| true);
        }
    }
}

/// The plan for one disk, given as an open file with its size.
fn plan(
    config: &types::Disk,
    path: &Path,
    sector: SectorSize,
    (mut file, size): (File, u64),
    usage: &Usage,
    log: Log,
) -> anyhow::Result<Option<Change>> {
    let partitions = config.partitions.as_deref().unwrap_or_default();
    let clear = config.wipe_table == Some(true);
    if partitions.is_empty() && !clear {
        return Ok(None);
    }
    ensure!(usage.whole.is_empty(), "the disk {}", usage.whole.join(", "));
    if clear && let Some(users) = usage.describe() {
        bail!("wipeTable is true, and {users}");
    }
    let existing = if clear { Table::new() } else { existing_table(&mut file, path, sector, size, log)? };
    let mut wanted = partitions::wanted(partitions, &existing, sector)?;
    let ask = |operation: &Operation, numbers: &[u32]| sgdisk::pretend(path, operation, numbers, log);
    if let Some((operation, numbers)) = partitions::rehearsal(&wanted, &existing, clear) {
        let landed = ask(&operation, &numbers).context("asking where partitions would be")?;
        wanted = partitions::resolve(wanted, &landed);
    }
    let decisions = partitions::decide(&wanted, &existing)?;
    for decision in &decisions {
        log.info(format_args!("{}: {decision}", path.display()));
    }
    refuse_partitions_in_use(&decisions, usage)?;
    let Some(operation) = partitions::operation(&decisions, clear) else { return Ok(None) };
    let made: Vec<u32> = operation.create.iter().map(|wanted| wanted.number).collect();
    let landed =
        if made.is_empty() { Landed::new() } else { ask(&operation, &made).context("rehearsing the change")? };
    let expected = partitions::expected(&operation, &existing, &landed)?;
    let touched = decisions.iter().filter(|decision| decision.changes()).map(Decision::number).collect();
    Ok(Some(Change { operation, expected, touched }))
}

/// Refuses to change the entry of a partition that somebody uses.
fn refuse_partitions_in_use(decisions: &[Decision], usage: &Usage) -> anyhow::Result<()> {
    for decision in decisions.iter().filter(|decision| decision.changes()) {
        if let Some(users) = usage.partitions.get(&decision.number()) {
            bail!("{decision}, but it {}", users.join(", "));
        }
    }
    Ok(())
}

/// The partitions that are there.
fn existing_table(file: &mut File, path: &Path, sector: SectorSize, size: u64, log: Log) -> anyhow::Result<Table> {
    match read(file, path, sector, size)? {
        Found::Blank => Ok(Table::new()),
        Found::Gpt(table, findings) => {
            for finding in findings {
                log.warning(format_args!("{}: {finding}", path.display()));
            }
            Ok(table)
        }
        Found::Foreign(what) => bail!("the disk holds {what}, and wipeTable is not true"),
    }
}

/// Reads a disk's table, and what is there in place of one.
fn read(file: &mut File, path: &Path, sector: SectorSize, size: u64) -> anyhow::Result<Found> {
    let found = match read_table(file, sector, size / sector.bytes()) {
        Ok(found) => found,
        Err(Error::NoTable { primary, backup }) => {
            return Ok(match probe(path)? {
                Content::Nothing => Found::Blank,
                Content::Table(kind) if kind == "gpt" || kind == "PMBR" => {
                    Found::Foreign(format!("a damaged GPT (primary: {primary}; backup: {backup})"))
                }
                content => Found::Foreign(content.describe()),
            });
        }
        Err(error) => return Err(error).context("reading the partition table"),
    };
    let mut harmless = Vec::new();
    for finding in &found.findings {
        match finding {
            // The image was written to a larger disk; sgdisk moves the copy when it writes.
            Finding::BackupMisplaced { .. } => harmless.push(finding.to_string()),
            // Writing would make one of two contradicting tables the only one.
            other => return Ok(Found::Foreign(format!("a GPT in disorder ({other})"))),
        }
    }
    Ok(Found::Gpt(Entry::of_layout(&found.layout), harmless))
}

/// Runs the change and compares what is on the disk then.
fn write_and_verify(path: &Path, sector: SectorSize, change: &Change, log: Log) -> anyhow::Result<()> {
    sgdisk::commit(path, &change.operation, log)?;
    let table = read_back(path, sector)?;
    change.expected.verify(&table).with_context(|| format!("reading the partition table of {} back", path.display()))
}

/// The table that is on the disk now; empty where there is none.
fn read_back(path: &Path, sector: SectorSize) -> anyhow::Result<Table> {
    use std::io::{Seek, SeekFrom};
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    file.sync_all().with_context(|| format!("flushing {}", path.display()))?;
    let size = file.seek(SeekFrom::End(0)).with_context(|| format!("reading {}", path.display()))?;
    match read_table(&mut file, sector, size / sector.bytes()) {
        Ok(found) if found.is_sound() => Ok(Entry::of_layout(&found.layout)),
        Ok(found) => bail!("the table of {} is not sound: {:?}", path.display(), found.findings),
        Err(Error::NoTable { .. }) => Ok(Table::new()),
        Err(error) => Err(error).with_context(|| format!("reading the partition table of {}", path.display())),
    }
}

#[cfg(test)]
mod tests;
