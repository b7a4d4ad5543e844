//! Block devices as the config names them and as the kernel knows them: finding, waiting, and whether they are in use.
//!
//! The kernel's view is read from `/sys`, `/proc/self/mountinfo` and `/proc/swaps`
//! ([proc(5)](https://man7.org/linux/man-pages/man5/proc.5.html)). Where udev does not run, the links that it would make
//! by label and UUID below `/dev/disk` are looked up with `blkid`. Left out: links by id and path without udev, and use
//! by LVM that device mapper does not show as a holder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use disk::SectorSize;

use crate::command;
use crate::ignition::log::Log;

/// How long a device may take to appear: as long as systemd gives a device unit.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(200);

/// A block device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Its own device file, no link.
    pub(crate) path: PathBuf,
    /// Its directory in `/sys`.
    sys: PathBuf,
}

/// Who uses a disk, each user described for a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Those of the whole disk.
    pub(crate) whole: Vec<String>,
    /// Those of its partitions, by number; only partitions that have some.
    pub(crate) partitions: BTreeMap<u32, Vec<String>>,
}

impl Device {
    /// Finds the device behind a path, following links.
    ///
    /// # Errors
    /// When it is not there, is no block device, or several devices have that name.
    pub(crate) fn find(path: &Path) -> anyhow::Result<Self> {
        let found = match fs::canonicalize(path) {
            Ok(found) => found,
            Err(error) => match find_by_content(path)? {
                Some(found) => found,
                None => return Err(error).with_context(|| format!("finding {}", path.display())),
            },
        };
        let metadata = fs::metadata(&found).with_context(|| format!("reading {}", found.display()))?;
        ensure!(metadata.file_type().is_block_device(), "{} is no block device", path.display());
        let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        let link = format!("/sys/dev/block/{major}:{minor}");
        let sys = fs::canonicalize(&link).with_context(|| format!("reading {link} of {}", path.display()))?;
        Ok(Self { path: found, sys })
    }

    /// The kernel's name.
    pub(crate) fn name(&self) -> &str {
        self.sys.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The path, for an argument list.
    pub(crate) fn argument(&self) -> anyhow::Result<&str> {
        self.path.to_str().with_context(|| format!("{} is not UTF-8", self.path.display()))
    }

    /// For a partition: the kernel's name of its disk, and its number.
    pub(crate) fn parent(&self) -> Option<(&str, u32)> {
        let number = attribute(&self.sys, "partition")?.parse().ok()?;
        Some((self.sys.parent()?.file_name()?.to_str()?, number))
    }

    /// Size of its logical sector.
    pub(crate) fn sector_size(&self) -> anyhow::Result<SectorSize> {
        let text = attribute(&self.sys, "queue/logical_block_size")
            .with_context(|| format!("{} is no whole disk", self.path.display()))?;
        let bytes = text.parse().with_context(|| format!("parsing the sector size {text:?}"))?;
        Ok(SectorSize::new(bytes)?)
    }

    /// Opens it for reading. Also gives its size in bytes.
    pub(crate) fn open(&self) -> anyhow::Result<(File, u64)> {
        let read = || {
            let mut file = File::open(&self.path)?;
            let size = file.seek(SeekFrom::End(0))?;
            Ok::<_, std::io::Error>((file, size))
        };
        read().with_context(|| format!("opening {}", self.path.display()))
    }

    /// The partitions that the kernel shows: number to start and size in units of 512 bytes.
    pub(crate) fn shown_partitions(&self) -> BTreeMap<u32, (u64, u64)> {
        let number = |path: &Path, name: &str| attribute(path, name)?.parse::<u64>().ok();
        partition_directories(&self.sys)
            .into_iter()
            .filter_map(|(partition, path)| Some((partition, (number(&path, "start")?, number(&path, "size")?))))
            .collect()
    }

    /// Whether another device, running now, is made of this one.
    pub(crate) fn is_held_by(&self, other: &Self) -> bool {
        self.sys.join("holders").join(other.name()).exists()
    }

    /// Who uses it and its partitions now.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        let users = |sys: &Path| users_of(sys, &mounts, &swaps);
        let partitions = partition_directories(&self.sys)
            .into_iter()
            .map(|(number, path)| (number, users(&path)))
            .filter(|(_, users)| !users.is_empty())
            .collect();
        Ok(Usage { whole: users(&self.sys), partitions })
    }
}

impl Usage {
    /// All users, in one line; `None` where there are none.
    pub(crate) fn describe(&self) -> Option<String> {
        let partitions =
            self.partitions.iter().map(|(number, users)| format!("partition {number} {}", users.join(", ")));
        let all: Vec<String> = self.whole.iter().cloned().chain(partitions).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// Waits until all devices are there, at most as long as given for all together.
///
/// # Errors
/// When one is not there in time, with the names of all that are not.
pub(crate) fn wait_for(paths: &[PathBuf], patience: Duration, log: Log) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    let mut told = false;
    loop {
        let missing: Vec<String> =
            paths.iter().filter(|path| !is_there(path)).map(|path| path.display().to_string()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("{} did not appear within {} s", missing.join(", "), patience.as_secs());
        }
        if !told {
            log.info(format_args!("waiting for {}", missing.join(", ")));
            told = true;
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Whether something is found at a path now, or several things: that is for [`Device::find`] to refuse.
pub(crate) fn is_there(path: &Path) -> bool {
    path.exists() || !matches!(find_by_content(path), Ok(None))
}

/// Waits until udev has dealt with a change of a device, and made its links anew. Without udev there is nothing to do.
pub(crate) fn settle(device: &Device) -> anyhow::Result<()> {
    if !Path::new("/run/udev/control").exists() {
        return Ok(());
    }
    // An event of our own that is waited for comes after those that the kernel sent before.
    command::run("udevadm", &["trigger", "--settle", device.argument()?], b"", |code| code == 0)
        .with_context(|| format!("waiting for udev after changing {}", device.path.display()))?;
    Ok(())
}

/// Without udev, finds what a link below `/dev/disk/by-{label,uuid,partlabel,partuuid}` would lead to.
fn find_by_content(path: &Path) -> anyhow::Result<Option<PathBuf>> {
    if Path::new("/run/udev/control").exists() {
        return Ok(None);
    }
    let Some(token) = content_token(path) else { return Ok(None) };
    // Status 2: nothing has it.
    let arguments = ["-c", "/dev/null", "-o", "device", "-t", &token];
    let output = command::run("blkid", &arguments, b"", |code| code == 0 || code == 2)
        .with_context(|| format!("looking for {}", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        [] => Ok(None),
        [device] => Ok(Some(device.into())),
        ref several => bail!("{} could be each of {}", path.display(), several.join(", ")),
    }
}

/// What `blkid` calls the property that a link is named by.
fn content_token(path: &Path) -> Option<String> {
    let mut parts = path.strip_prefix("/dev/disk").ok()?.iter().map(|part| part.to_str());
    let key = match parts.next()?? {
        "by-label" => "LABEL",
        "by-uuid" => "UUID",
        "by-partlabel" => "PARTLABEL",
        "by-partuuid" => "PARTUUID",
        _ => return None,
    };
    let value = unescape(parts.next()??);
    parts.next().is_none().then(|| format!("{key}={value}"))
}

/// Undoes udev's escapes: `\x20` for a blank and the like.
pub(crate) fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.strip_prefix(b"x").and_then(|hex| hex.get(..2)).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The directories of a disk's partitions, by number.
fn partition_directories(sys: &Path) -> BTreeMap<u32, PathBuf> {
    let entries = fs::read_dir(sys).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((attribute(&entry.path(), "partition")?.parse().ok()?, entry.path()))).collect()
}

/// Who uses the device of a directory in `/sys`.
fn users_of(sys: &Path, mounts: &str, swaps: &str) -> Vec<String> {
    let mut users = Vec::new();
    // A device-mapper device is itself what holds others, and may be stacked on for good reasons.
    if !sys.join("dm").exists() {
        let holders = fs::read_dir(sys.join("holders")).into_iter().flatten().flatten();
        users.extend(holders.map(|holder| format!("is held by {}", holder.file_name().to_string_lossy())));
    }
    let name = sys.file_name().unwrap_or_default().to_string_lossy().replace('!', "/");
    let node = format!("/dev/{name}");
    let number = attribute(sys, "dev").unwrap_or_default();
    users.extend(mounted_at(mounts, &number, &node).into_iter().map(|at| format!("is mounted at {at}")));
    if swaps.lines().skip(1).any(|line| line.split_whitespace().next().is_some_and(|path| leads_to(path, &node))) {
        users.push("is used as swap space".to_owned());
    }
    users
}

/// Where a device is mounted. Some file systems show a number of their own, so the source is compared too.
fn mounted_at(mounts: &str, number: &str, node: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let fields: Vec<&str> = before.split(' ').collect();
        let (Some(dev), Some(at), Some(source)) = (fields.get(2), fields.get(4), after.split(' ').nth(1)) else {
            continue;
        };
        if *dev == number || (source.starts_with('/') && leads_to(source, node)) {
            found.push((*at).to_owned());
        }
    }
    found
}

/// Whether a path is a device file, or a link to it.
fn leads_to(path: &str, node: &str) -> bool {
    path == node || fs::canonicalize(path).is_ok_and(|found| found == Path::new(node))
}

/// A trimmed attribute of a directory in `/sys`.
fn attribute(sys: &Path, name: &str) -> Option<String> {
    Some(fs::read_to_string(sys.join(name)).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone() {
        for (text, expected) in
            [("plain", "plain"), (r"my\x20vol", "my vol"), (r"a\x2fb\", r"a/b\"), (r"\xzz", r"\xzz"), (r"\x4", r"\x4")]
        {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }

    #[test]
    fn links_by_content_have_a_token() {
        for (path, expected) in [
            (r"/dev/disk/by-partlabel/my\x20data", Some("PARTLABEL=my data")),
            ("/dev/disk/by-label/data", Some("LABEL=data")),
            ("/dev/disk/by-uuid/1-2", Some("UUID=1-2")),
            ("/dev/disk/by-partuuid/ab", Some("PARTUUID=ab")),
            ("/dev/disk/by-id/ata-x", None),
            ("/dev/disk/by-label", None),
            ("/dev/disk/by-label/a/b", None),
            ("/dev/sda", None),
        ] {
            assert_eq!(content_token(Path::new(path)).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn mounts_are_found_by_number_and_by_source() {
        let mounts = "36 35 98:0 / /mnt1 rw shared:1 - ext3 /dev/root rw\n\
                      37 35 0:40 /@ /mnt2 rw - btrfs /dev/none1 rw\n\
                      38 35 0:41 / /proc rw - proc proc rw\n";
        for (number, node, expected) in [
            ("98:0", "/dev/none0", &["/mnt1"][..]),
            ("98:1", "/dev/none1", &["/mnt2"]),
            ("98:2", "/dev/none2", &[]),
            ("0:41", "/dev/none2", &["/proc"]),
        ] {
            assert_eq!(mounted_at(mounts, number, node), expected, "{number} {node}");
        }
    }

    #[test]
    fn holders_swap_and_mounts_are_users() {
        let sys = tempfile::tempdir().expect("tempdir");
        let disk = sys.path().join("sdq");
        fs::create_dir_all(disk.join("holders/md0")).expect("directory");
        fs::create_dir_all(disk.join("sdq2/holders")).expect("directory");
        fs::write(disk.join("dev"), "8:0\n").expect("file");
        fs::write(disk.join("sdq2/dev"), "8:2\n").expect("file");
        fs::write(disk.join("sdq2/partition"), "2\n").expect("file");
        let mounts = "36 35 8:2 / /data rw - xfs /dev/sdq2 rw\n";
        let swaps = "Filename Type\n/dev/sdq partition 1 0 -2\n";
        assert_eq!(users_of(&disk, mounts, swaps), ["is held by md0", "is used as swap space"]);
        assert_eq!(users_of(&disk.join("sdq2"), mounts, swaps), ["is mounted at /data"]);
        assert_eq!(partition_directories(&disk).into_keys().collect::<Vec<_>>(), [2]);
        fs::create_dir(disk.join("dm")).expect("directory");
        assert_eq!(users_of(&disk, "", ""), [""; 0], "the holders of device mapper do not count");
        let usage = Usage { whole: vec!["is held by md0".into()], partitions: [(2, vec!["x".into()])].into() };
        assert_eq!(usage.describe().as_deref(), Some("is held by md0; partition 2 x"));
        assert_eq!(Usage::default().describe(), None);
    }

    #[test]
    fn a_device_that_does_not_come_is_named() {
        let path = PathBuf::from("/dev/there-is-no-such-device");
        let error = wait_for(&[path], Duration::ZERO, Log::Stdout).expect_err("not there").to_string();
        assert_eq!(error, "/dev/there-is-no-such-device did not appear within 0 s");
        let error = Device::find(Path::new("/dev/null")).expect_err("a character device").to_string();
        assert_eq!(error, "/dev/null is no block device");
    }
}
