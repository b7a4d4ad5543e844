//! Finishing the own disk's partition table: what first boot adds, and the name of `state` once it is made.
//!
//! What the table shall become is decided by `disk::complete`; how it is written, so that a power cut leaves one whole
//! copy, by `disk::table`. Here it is done to the device, and the kernel is told.
//!
//! An image that was written over the beginning of a disk of ours leaves the earlier table's backup at the disk's end.
//! The `state` that it names is kept where the new image leaves room for it: the machine stays the node that it was.
//! Who wants another node erases the disk before.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use disk::layout::{Completion, Layout, Partition, Role, StateStep, complete, finish_state, keep_state};
use disk::table::{BootCode, read_earlier, write_table};

use super::own_disk::OwnDisk;
use super::state;
use crate::boot::Slot;
use crate::console;
use crate::disks::{self, Disk};
use crate::summary::{Failure, OrFail};

/// How long the kernel may take to show a partition that the table has.
const PATIENCE: Duration = Duration::from_secs(10);

const WHAT: &str = "the partition table of its own disk cannot be finished";

/// The finished table, and the device files of the partitions that this boot needs.
#[derive(Debug)]
pub(crate) struct Partitions {
    layout: Layout,
    /// What is to be done about `state`.
    pub(crate) state_step: StateStep,
    /// Root file system of the slot.
    pub(crate) root: PathBuf,
    /// Its hash tree.
    pub(crate) verity: PathBuf,
    /// The ESP.
    pub(crate) esp: PathBuf,
    /// `state`.
    pub(crate) state: PathBuf,
    /// Size of `state` in bytes.
    pub(crate) state_size: u64,
}

/// Finishes the table where it is not, and waits until the kernel shows the partitions.
///
/// # Errors
/// When the disk is read-only, too small, holds partitions of others, or fails.
pub(crate) fn finish(own: &OwnDisk) -> Result<Partitions, Failure> {
    let sectors = own.disk.size / own.table.layout.sector_size().bytes();
    let table = with_earlier_state(own, sectors);
    let plan = complete(&table, sectors, &seed(&own.disk)?).map_err(|error| {
        let why = format!("{}: {error}", own.disk.describe());
        Failure::new(
            WHAT,
            why,
            "use a disk that is large enough and that holds nothing but the image, and write the image again",
        )
    })?;
    if !(plan.is_unchanged() && own.table.is_sound()) {
        write(own, &plan)?;
    }
    let (data, hash) = match own.slot {
        Slot::A => (Role::RootA, Role::RootAVerity),
        Slot::B => (Role::RootB, Role::RootBVerity),
    };
    let layout = plan.layout;
    let device = |role: Role| wait_for_device(&own.disk, &layout, role);
    // A new `state` has another label than the role's, so it is looked up by number alone.
    Ok(Partitions {
        root: device(data)?,
        verity: device(hash)?,
        esp: device(Role::Esp)?,
        state: device(Role::State)?,
        state_size: layout.partitions().get(&Role::State.number()).map_or(0, |state| {
            let range = layout.byte_range(state);
            range.end - range.start
        }),
        state_step: plan.state,
        layout,
    })
}

/// The table as it was found, and in it the `state` that was on the disk before the image was written to it.
fn with_earlier_state(own: &OwnDisk, sectors: u64) -> Layout {
    let found = &own.table.layout;
    if found.partitions().contains_key(&Role::State.number()) {
        return found.clone();
    }
    let earlier = File::open(&own.disk.path).ok().and_then(|mut device| read_earlier(&mut device, &own.table, sectors));
    let Some((earlier, state)) = earlier.as_ref().and_then(|earlier| Some((earlier, earlier.role(Role::State)?)))
    else {
        return found.clone();
    };
    let range = earlier.byte_range(state);
    let (at, bytes) = (range.start, range.end - range.start);
    // An erased disk may have kept its last sector, and a larger image covers what was there.
    let kept = match state::is_there(&own.disk.path, at) {
        true => keep_state(found, earlier).map_err(|error| error.to_string()),
        false => Err("its file system is gone".to_owned()),
    };
    let (layout, outcome) = match kept {
        Ok(layout) => (layout, "is kept".to_owned()),
        Err(why) => (found.clone(), format!("cannot be kept: {why}")),
    };
    let note = "from before the image was written";
    console::say(&format!("nodezero: partition table: `state` of {bytes} bytes at {at}, {note}, {outcome}"));
    layout
}

/// Gives `state` its name, once its file system is on disk.
///
/// # Errors
/// When the disk fails.
pub(crate) fn name_state(own: &OwnDisk, partitions: &Partitions) -> Result<(), Failure> {
    let named = finish_state(&partitions.layout).map_err(anyhow::Error::from).and_then(|layout| {
        // The kernel keeps the old label until the next start, which nobody reads: its table cannot be read again
        // while the root device is in use.
        write_layout(&own.disk, &layout)
    });
    named.or_fail(WHAT, "check the disk; it may be failing")
}

fn write(own: &OwnDisk, plan: &Completion) -> Result<(), Failure> {
    if own.disk.read_only {
        let why = format!("{} is read-only", own.disk.describe());
        return Err(Failure::new(WHAT, why, "take away the write protection, or use another disk"));
    }
    for finding in &own.table.findings {
        console::say(&format!("nodezero: partition table: {finding}"));
    }
    for change in &plan.changes {
        console::say(&format!("nodezero: partition table: {change}"));
    }
    let written = write_layout(&own.disk, &plan.layout).and_then(|()| reread(&own.disk));
    written.or_fail(WHAT, "check the disk; it may be failing")
}

fn write_layout(disk: &Disk, layout: &Layout) -> anyhow::Result<()> {
    let open = OpenOptions::new().read(true).write(true).open(&disk.path);
    let mut device = open.with_context(|| format!("opening {} for writing", disk.path.display()))?;
    write_table(&mut device, layout, BootCode::Keep, |device| device.sync_all())
        .with_context(|| format!("writing the partition table of {}", disk.path.display()))
}

/// Makes the kernel read the table. It refuses while somebody, for a moment, has a partition open.
fn reread(disk: &Disk) -> anyhow::Result<()> {
    let device = File::open(&disk.path).with_context(|| format!("opening {}", disk.path.display()))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match crate::sys::reread_partition_table(device.as_fd()) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(error).context("making the kernel read the partition table again"),
        }
    }
}

/// What the GUIDs of new partitions follow from: the disk's serial number, or random bytes for one that has none. New
/// partitions appear in one write, so a random seed is used once.
fn seed(disk: &Disk) -> Result<Vec<u8>, Failure> {
    if let Some(identity) = disk.serial.as_ref().or(disk.wwn.as_ref()) {
        return Ok(identity.clone().into_bytes());
    }
    let random = crate::machine_id::MachineId::random().or_fail(WHAT, "restart")?;
    Ok(random.to_string().into_bytes())
}

/// Waits until the kernel shows a partition of the table, and gives its device file.
fn wait_for_device(own: &Disk, layout: &Layout, role: Role) -> Result<PathBuf, Failure> {
    let number = role.number();
    let Some(entry) = layout.partitions().get(&number) else {
        return Err(Failure::new(
            WHAT,
            format!("there is no partition {number} {}", role.label()),
            "write the image again",
        ));
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let device = partition_device(&disks::partitions(&own.name), layout, number, entry);
        match device {
            Some(device) if device.exists() => return Ok(device),
            _ if Instant::now() >= deadline => {
                let why = format!("the kernel does not show partition {number} {} of {}", role.label(), own.describe());
                return Err(Failure::new(WHAT, why, "restart; if it stays, check the disk"));
            }
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// The device file of a table's entry, if the kernel shows it at the same place and with the same size.
fn partition_device(shown: &[disks::Partition], layout: &Layout, number: u32, entry: &Partition) -> Option<PathBuf> {
    let range = layout.byte_range(entry);
    let same = |shown: &&disks::Partition| {
        shown.number == number && shown.start == range.start && shown.size == range.end - range.start
    };
    shown.iter().find(same).map(|shown| Path::new("/dev").join(&shown.name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use disk::{Attributes, Guid, Label, PartitionType, SectorSize};

    use super::*;

    #[test]
    fn partitions_are_matched_by_number_place_and_size() {
        let entry = Partition {
            label: Label::new("state").expect("fits"),
            partition_type: PartitionType::LinuxGeneric,
            guid: Guid::derived("test", b""),
            first_lba: 512,
            sectors: 4,
            attributes: Attributes::NONE,
        };
        let table = BTreeMap::from([(7, entry.clone())]);
        let layout = Layout::new(SectorSize::B4096, Guid::NIL, 10_000, table).expect("valid");
        let shown = |number, start, size| disks::Partition {
            name: "nvme0n1p7".into(),
            number,
            start,
            size,
            label: None,
            content: None,
        };
        for (case, partition, expected) in [
            ("same", shown(7, 2 << 20, 16384), Some(PathBuf::from("/dev/nvme0n1p7"))),
            ("another number", shown(6, 2 << 20, 16384), None),
            ("a stale size", shown(7, 2 << 20, 4096), None),
            ("a stale place", shown(7, 1 << 20, 16384), None),
        ] {
            assert_eq!(partition_device(&[partition], &layout, 7, &entry), expected, "{case}");
        }
    }
}
