//! Preparing one disk: in which order, and what is checked before each write.
//!
//! The order is that of [`crate::disks::recognise`], where each state that a power cut can leave is listed. What is done
//! to the disk, and how the kernel is told, is a [`Bench`]'s.

use std::io::{self, Read, Seek, Write};
use std::ops::Range;

use anyhow::{Context, bail, ensure};
use disk::layout::Layout;
use disk::table::{BootCode, write_table};
use nodezero_profile::data_disks::Target;
use nodezero_profile::inventory::{Content, Disk, Stage};
use nodezero_profile::mark::{DATA_LABEL, DATA_LABEL_NEW};

use crate::disks::recognise::layout;

/// Where a disk is worked on.
pub(super) trait Bench {
    /// The disk, open for writing.
    type Device: Read + Write + Seek;

    /// Opens the disk for writing, for nobody else meanwhile, and makes sure that it is the one that was looked at.
    ///
    /// # Errors
    /// When it is another, or in use.
    fn open(&mut self) -> anyhow::Result<Self::Device>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// What the device answers.
    fn barrier(device: &mut Self::Device) -> io::Result<()>;

    /// Makes the kernel read the partition table again.
    ///
    /// # Errors
    /// What the kernel answers; `EBUSY` while a partition is in use.
    fn reread(&mut self) -> io::Result<()>;

    /// What is on the disk now.
    fn examine(&mut self) -> Content;

    /// Makes the file system in the partition, and makes it durable. `again` when an earlier attempt was cut short.
    ///
    /// # Errors
    /// When the partition does not appear, or mkfs fails.
    fn make_file_system(&mut self, target: &Target, place: &Range<u64>, again: bool) -> anyhow::Result<()>;
}

/// Prepares a disk that is blank (`from` is `None`), or goes on with one whose preparation was cut short.
///
/// # Errors
/// When the disk is not what it was when it was looked at, and what fails on the way. Whatever happens, what is on the
/// disk is recognised the next time.
pub(super) fn prepare<B: Bench>(
    bench: &mut B,
    disk: &Disk,
    target: &Target,
    from: Option<Stage>,
) -> anyhow::Result<()> {
    let table = |label| layout(disk.size, disk.sector_size, target.marks.disk, target.marks.partition, label);
    let (new, done) = (table(DATA_LABEL_NEW)?, table(DATA_LABEL)?);
    let now = bench.examine();
    ensure!(
        now == disk.content,
        "what is on it has changed since it was looked at: {now:?}, before {:?}",
        disk.content
    );
    if from != Some(Stage::Name) {
        if from != Some(Stage::FileSystem) {
            write(bench, &new).context("writing the partition table")?;
        }
        let place = new.byte_range(&new.partitions()[&1]);
        bench.make_file_system(target, &place, from == Some(Stage::FileSystem))?;
        expect(bench, target, Stage::FileSystem).context("verifying the new file system")?;
    }
    write(bench, &done).context("naming the finished partition")?;
    expect(bench, target, Stage::Done).context("verifying the finished disk")
}

fn write<B: Bench>(bench: &mut B, layout: &Layout) -> anyhow::Result<()> {
    let mut device = bench.open()?;
    Ok(write_table(&mut device, layout, BootCode::Clear, B::barrier)?)
}

/// Makes sure that the disk carries the target's marks and file system, and came to this stage.
fn expect<B: Bench>(bench: &mut B, target: &Target, stage: Stage) -> anyhow::Result<()> {
    let Content::Prepared(found) = bench.examine() else { bail!("the disk is not what was written to it") };
    ensure!(found.stage == stage, "it says that {}, expected that {stage}", found.stage);
    let guids = (found.disk_guid, found.partition_guid);
    ensure!(
        guids == (Some(target.marks.disk), target.marks.partition),
        "GUIDs are {guids:?}, expected {:?}",
        target.marks
    );
    let Some(file_system) = found.file_system else { bail!("there is no file system in the partition") };
    let have = (file_system.kind.as_str(), file_system.uuid.as_deref().unwrap_or_default());
    let uuid = target.marks.file_system.to_string();
    ensure!(
        have == (target.filesystem.name(), &uuid),
        "the file system is {have:?}, expected {:?}",
        (target.filesystem, uuid)
    );
    Ok(())
}
