//! A disk of this machine as it is worked on: opened after another look at who it is, partitions as the kernel shows
//! them, mkfs.
//!
//! While a disk is worked on it is locked as
//! [systemd documents](https://systemd.io/BLOCK_DEVICE_LOCKING/), so that udev neither probes half-written content nor
//! makes the kernel read the table while mkfs runs.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nodezero_profile::data_disks::Target;
use nodezero_profile::inventory::{Content, Disk};
use nodezero_profile::mark::Identity;
use nodezero_profile::node::FileSystem;
use rustix::fs::{FlockOperation, flock, fstat, major, minor};

use super::prepare::Bench;
use crate::command::run;
use crate::disks::{self, content};

/// How long udev may hold a disk, and the kernel take to show a partition.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// A disk of this machine, locked.
pub(super) struct Machine<'a> {
    disk: &'a Disk,
    _lock: File,
}

impl<'a> Machine<'a> {
    /// Locks a disk.
    ///
    /// # Errors
    /// When it is gone, or somebody else holds it for longer than a minute.
    pub(super) fn lock(disk: &'a Disk) -> anyhow::Result<Self> {
        let lock = File::open(&disk.path).with_context(|| format!("opening {}", disk.path))?;
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            ensure!(Instant::now() < deadline, "another program holds {} locked: {error}", disk.path);
            std::thread::sleep(PAUSE);
        }
        Ok(Self { disk, _lock: lock })
    }

    /// The device file of partition 1, once the kernel shows it in this place.
    fn partition(&mut self, place: &Range<u64>) -> anyhow::Result<PathBuf> {
        if let Some(device) = self.shown(place) {
            return Ok(device);
        }
        self.reread().context("making the kernel read the partition table again")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(device) = self.shown(place) {
                return Ok(device);
            }
            ensure!(Instant::now() < deadline, "the kernel does not show partition 1 of {}", self.disk.path);
            std::thread::sleep(PAUSE);
        }
    }

    fn shown(&self, place: &Range<u64>) -> Option<PathBuf> {
        let name = shown_in_place(&disks::partitions(&self.disk.name), place)?;
        let device = Path::new("/dev").join(name);
        device.metadata().is_ok_and(|device| device.file_type().is_block_device()).then_some(device)
    }
}

impl Bench for Machine<'_> {
    type Device = File;

    fn open(&mut self) -> anyhow::Result<File> {
        open_same(self.disk)
    }

    fn barrier(device: &mut File) -> io::Result<()> {
        device.sync_all()
    }

    fn reread(&mut self) -> io::Result<()> {
        // For this the kernel wants to be alone with the disk. It is, but for somebody who has a short look.
        retry(|| crate::sys::reread_partition_table(File::open(&self.disk.path)?.as_fd()))
    }

    fn examine(&mut self) -> Content {
        content::examine(Path::new(&self.disk.path), self.disk.size, self.disk.sector_size)
    }

    fn make_file_system(&mut self, target: &Target, place: &Range<u64>, again: bool) -> anyhow::Result<()> {
        let device = self.partition(place)?;
        // Names move; the partition of this name must lie on the disk that was meant, at this very moment.
        drop(open_same(self.disk)?);
        mkfs(&device, target, again)
    }
}

/// Tries again while the device is busy, for a while.
fn retry<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

/// Opens a disk for writing, for this process alone, if it is still the one that was looked at.
///
/// # Errors
/// When it is gone, in use, or another.
fn open_same(disk: &Disk) -> anyhow::Result<File> {
    // On a block device, O_EXCL is refused while it or a partition of it is mounted or part of another device.
    let open = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_EXCL).open(&disk.path);
    let device = retry(open).with_context(|| format!("opening {} for writing", disk.path))?;
    let is_block = device.metadata().is_ok_and(|device| device.file_type().is_block_device());
    ensure!(is_block, "{} is not a block device", disk.path);
    let number = fstat(&device).with_context(|| format!("asking for the number of {}", disk.path))?.st_rdev;
    let now = disks::of_device(major(number), minor(number));
    let now = now.with_context(|| format!("{} is gone, or no whole disk any more", disk.path))?;
    let have =
        (now.name.as_str(), now.size, Identity::of_facts(now.serial.as_deref(), now.wwn.as_deref()), now.read_only);
    let expected = (disk.name.as_str(), disk.size, Identity::of(disk), false);
    ensure!(have == expected && expected.2.is_some(), "{} is another disk: {have:?}, expected {expected:?}", disk.path);
    Ok(device)
}

/// The partition that the kernel shows as number 1 in this place.
fn shown_in_place(shown: &[disks::Partition], place: &Range<u64>) -> Option<String> {
    let same = |part: &&disks::Partition| part.number == 1 && (part.start..part.start + part.size) == *place;
    shown.iter().find(same).map(|part| part.name.clone())
}

/// Makes a file system, and makes it durable. Takes as long as it takes.
///
/// Nothing is discarded: on a hard disk it does nothing, and on others weekly trimming does it, while here an 18 TB
/// thin volume may take an hour. Without `again` the program itself refuses a device with anything on it.
///
/// # Errors
/// When mkfs fails.
pub(super) fn mkfs(device: &Path, target: &Target, again: bool) -> anyhow::Result<()> {
    let (path, uuid) = (device.to_string_lossy(), target.marks.file_system.to_string());
    let xfs_uuid = format!("uuid={uuid}");
    let label = target.marks.label.as_str();
    let (program, mut arguments) = match target.filesystem {
        FileSystem::Xfs => ("mkfs.xfs", vec!["-q", "-K", "-m", &xfs_uuid, "-L", label]),
        FileSystem::Ext4 => {
            // Inode tables are initialised after the mount; no blocks are set apart for root, who alone writes here.
            let lazy = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";
            ("mke2fs", vec!["-t", "ext4", "-q", "-m", "0", "-E", lazy, "-U", &uuid, "-L", label])
        }
    };
    if again {
        arguments.push(match target.filesystem {
            FileSystem::Xfs => "-f",
            FileSystem::Ext4 => "-F",
        });
    }
    arguments.push(&path);
    run(program, &arguments, b"", |code| code == 0)?;
    File::open(device).and_then(|device| device.sync_all()).with_context(|| format!("flushing {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_matched_by_number_and_place() {
        let part = |number, start, size| disks::Partition {
            name: "sda1".into(),
            number,
            start,
            size,
            label: None,
            content: None,
        };
        for (case, shown, expected) in [
            ("same", part(1, 1 << 20, 1 << 30), true),
            ("stale size", part(1, 1 << 20, 1 << 29), false),
            ("stale place", part(1, 1 << 21, 1 << 30), false),
            ("another number", part(2, 1 << 20, 1 << 30), false),
        ] {
            let found = shown_in_place(&[shown], &((1 << 20)..(1 << 20) + (1 << 30)));
            assert_eq!(found.is_some(), expected, "{case}");
        }
    }

    #[test]
    fn what_is_no_disk_is_never_opened() {
        let file = tempfile::NamedTempFile::new().expect("tempfile");
        let path = file.path().to_string_lossy().into_owned();
        for path in [path.as_str(), "/dev/null", "/dev/nonexistent"] {
            let disk = crate::data_disks::tests::disk(path, 1 << 30, 512);
            assert!(open_same(&disk).is_err(), "{path}");
        }
    }
}
