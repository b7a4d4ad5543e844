//! Mounting a data disk: a systemd mount unit, and whether it did what it says.
//!
//! The unit asks for `noatime`, which spares Longhorn a write for each read, and for `nodev` and `nosuid`: replicas are
//! plain files. `noexec` is left out, as Longhorn documents no such need and a node would fail late if it had one. With
//! `nofail` a disk that is away does not hold up the start; K3s is ordered after the mount, and a mount point
//! without its disk cannot be written to, so that nothing fills `state` in the disk's stead.
//!
//! Longhorn runs as root and wants nothing else of the directory: owner root, mode 0700.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use nodezero_profile::data_disks::Target;
use nodezero_profile::inventory::Disk;
use nodezero_profile::size::human_size;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags, statvfs};

use crate::command::run;
use crate::disks::mounts::read_mounts;
use crate::disks::recognise::layout;
use crate::files::write_atomically;

/// Where data disks are mounted.
pub(super) const DIRECTORY: &str = "/var/mnt/longhorn";
const UNITS: &str = "/etc/systemd/system";
const WANTS: &str = "multi-user.target.wants";
const BY_PARTUUID: &str = "/dev/disk/by-partuuid";
const OPTIONS: [&str; 3] = ["noatime", "nodev", "nosuid"];
const MODE: u32 = 0o700;
/// How long udev may take for its link to a new partition.
const PATIENCE: Duration = Duration::from_secs(60);

/// Of a hundred bytes of a partition, how many a file system offers at least. XFS' log takes up to 64 MiB of the
/// smallest disk, ext4's inodes 1.6 %.
const LEAST_PERCENT: u64 = 85;

/// Where a disk is mounted.
pub(super) fn mount_point(target: &Target) -> PathBuf {
    Path::new(DIRECTORY).join(target.identity.directory())
}

/// The name of the mount unit for a path.
fn unit_name(path: &Path) -> String {
    format!("{}.mount", escape_path(&path.to_string_lossy()))
}

/// A path as it stands in a unit's name
/// ([systemd.unit(5)](https://www.freedesktop.org/software/systemd/man/latest/systemd.unit.html#String%20Escaping%20for%20Inclusion%20in%20Unit%20Names)).
fn escape_path(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return "-".to_owned();
    }
    let mut name = String::new();
    for (index, byte) in parts.join("/").bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if index == 0 => name.push_str("\\x2e"),
            byte if byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'_' | b'.') => name.push(char::from(byte)),
            byte => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    name
}

/// The unit's text.
fn unit_text(target: &Target) -> String {
    format!(
        "\
# Written by nodezero-firstboot.
[Unit]
Description=NodeZero data disk {}
Before=k3s.service k3s-agent.service

[Mount]
What={}
Where={}
Type={}
Options={},nofail

[Install]
WantedBy=multi-user.target
",
        // What a serial number may hold is not what a unit may.
        target.identity.directory(),
        by_partuuid(target).display(),
        mount_point(target).display(),
        target.filesystem,
        OPTIONS.join(",")
    )
}

fn by_partuuid(target: &Target) -> PathBuf {
    Path::new(BY_PARTUUID).join(target.marks.partition.to_string())
}

/// Writes the units, enables and starts them, all at once: each reload of systemd takes its time. Changes nothing that
/// is as it shall be. Gives those that cannot be mounted.
///
/// # Errors
/// When units cannot be written, or systemd does not take them.
pub(super) fn mount<'a>(targets: &[&'a Target]) -> anyhow::Result<Vec<(&'a Target, anyhow::Error)>> {
    let units: Vec<(PathBuf, String)> = targets.iter().map(|target| mount_point(target)).map(named).collect();
    let mut changed = false;
    for (target, (at, unit)) in targets.iter().zip(&units) {
        changed |= write_unit(unit, &unit_text(target))?;
        if !is_mounted(at)? {
            make_mount_point(at)?;
        }
    }
    if changed {
        systemctl(&["daemon-reload"])?;
    }
    // udev looks at a disk that was just written to, and may have the kernel read its table once more. What it does not
    // finish in time is waited for below.
    let _ = run("udevadm", &["settle", "--timeout=60"], b"", |code| code == 0);
    let start: Vec<&str> = std::iter::once("start").chain(units.iter().map(|(_, unit)| unit.as_str())).collect();
    // One that fails fails the call; each is looked at below.
    let started = match targets.iter().try_for_each(|target| wait_for(&by_partuuid(target))) {
        Ok(()) => systemctl(&start),
        Err(error) => systemctl(&start).and(Err(error)),
    };
    let mut failed = Vec::new();
    for (target, (at, unit)) in targets.iter().zip(&units) {
        if !is_mounted(at)? {
            let why = started.as_ref().err().map_or(String::new(), |error| format!(": {error:#}"));
            failed.push((*target, anyhow!("{unit} was started and {} is not mounted{why}", at.display())));
            continue;
        }
        let root = File::open(at).with_context(|| format!("opening {}", at.display()))?;
        root.set_permissions(fs::Permissions::from_mode(MODE))
            .with_context(|| format!("setting the mode of {}", at.display()))?;
    }
    if failed.is_empty() { started.map(|()| failed) } else { Ok(failed) }
}

/// Has systemd wait no longer for a disk that is not there. The unit stays enabled, for a start at which it is back.
pub(super) fn give_up(directory: &str) {
    let at = Path::new(DIRECTORY).join(directory);
    if !is_mounted(&at).unwrap_or(true) {
        // Where there is no such unit, nothing waits.
        let _ = systemctl(&["stop", &unit_name(&at)]);
    }
}

fn named(at: PathBuf) -> (PathBuf, String) {
    let unit = unit_name(&at);
    (at, unit)
}

/// Writes a unit and the link that enables it. Whether anything changed.
fn write_unit(unit: &str, text: &str) -> anyhow::Result<bool> {
    let path = Path::new(UNITS).join(unit);
    let (wants, target) = (Path::new(UNITS).join(WANTS), Path::new("..").join(unit));
    let link = wants.join(unit);
    let written = fs::read(&path).is_ok_and(|found| found == text.as_bytes());
    if !written {
        write_atomically(&path, text.as_bytes(), 0o644)?;
    }
    let linked = fs::metadata(&link).is_ok();
    if !linked {
        fs::create_dir_all(&wants).with_context(|| format!("making {}", wants.display()))?;
        // One that leads nowhere is in the way.
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&target, &link).with_context(|| format!("making {}", link.display()))?;
    }
    Ok(!written || !linked)
}

fn systemctl(arguments: &[&str]) -> anyhow::Result<()> {
    // A disk that has to be checked first takes as long as it takes, so there is no bound but systemd's own.
    run("systemctl", arguments, b"", |code| code == 0)?;
    Ok(())
}

fn is_mounted(at: &Path) -> io::Result<bool> {
    Ok(read_mounts()?.iter().any(|mount| mount.at == at))
}

/// Makes the directory, which can be mounted on but not written to. Not every file system knows that attribute.
fn make_mount_point(at: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(at).with_context(|| format!("making {}", at.display()))?;
    let directory = File::open(at).with_context(|| format!("opening {}", at.display()))?;
    match ioctl_getflags(&directory) {
        Ok(flags) if !flags.contains(IFlags::IMMUTABLE) => {
            directory.set_permissions(fs::Permissions::from_mode(MODE))?;
            let set = ioctl_setflags(&directory, flags | IFlags::IMMUTABLE);
            set.or_else(|error| if error == rustix::io::Errno::OPNOTSUPP { Ok(()) } else { Err(error) })
                .with_context(|| format!("protecting {} from being written to without its disk", at.display()))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

fn wait_for(path: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !path.exists() {
        ensure!(Instant::now() < deadline, "udev shows no {}", path.display());
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Makes sure that the disk is mounted: the right partition, at the right place, in the right way, with the right size.
/// Gives one line about it.
///
/// # Errors
/// What is not as it shall be.
pub(super) fn verify(disk: &Disk, target: &Target) -> anyhow::Result<String> {
    let at = mount_point(target);
    let unit = Path::new(UNITS).join(unit_name(&at));
    let text = fs::read_to_string(&unit).with_context(|| format!("reading {}", unit.display()))?;
    ensure!(text == unit_text(target), "{} is not what it shall be", unit.display());
    let wants = Path::new(UNITS).join(WANTS).join(unit_name(&at));
    ensure!(wants.exists(), "{} is not enabled", unit.display());
    let mounts = read_mounts().context("reading what is mounted")?;
    let mount = mounts.iter().rev().find(|mount| mount.at == at);
    let mount = mount.with_context(|| format!("{} is not mounted", at.display()))?;
    let number =
        fs::metadata(by_partuuid(target)).with_context(|| format!("looking for {}", by_partuuid(target).display()))?;
    let number = format!("{}:{}", rustix::fs::major(number.rdev()), rustix::fs::minor(number.rdev()));
    let have = (mount.device.as_str(), mount.kind.as_str());
    ensure!(
        have == (&number, target.filesystem.name()),
        "{} is {have:?}, expected {number} {}",
        at.display(),
        target.filesystem
    );
    for option in OPTIONS.into_iter().chain(["rw"]) {
        ensure!(mount.options.iter().any(|set| set == option), "{} is mounted without {option}", at.display());
    }
    let root = fs::metadata(&at).with_context(|| format!("looking at {}", at.display()))?;
    let owner = format!("({}, {}, {:o})", root.uid(), root.gid(), root.mode() & 0o7777);
    ensure!(
        owner == format!("(0, 0, {MODE:o})"),
        "{} has owner, group and mode {owner}, expected (0, 0, {MODE:o})",
        at.display()
    );
    let space = statvfs(&at).with_context(|| format!("asking for the size of {}", at.display()))?;
    let (size, room) = (space.f_blocks.saturating_mul(space.f_frsize), partition_bytes(disk, target)?);
    ensure!(
        size <= room && u128::from(size) * 100 >= u128::from(room) * u128::from(LEAST_PERCENT),
        "{} has {size} bytes, its partition {room}",
        at.display()
    );
    Ok(format!("{} ({}, {})", at.display(), human_size(size), target.filesystem))
}

fn partition_bytes(disk: &Disk, target: &Target) -> anyhow::Result<u64> {
    let table = layout(disk.size, disk.sector_size, target.marks.disk, target.marks.partition, "")?;
    let place = table.byte_range(&table.partitions()[&1]);
    Ok(place.end - place.start)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::data_disks::tests::target;

    #[test]
    fn paths_become_unit_names() {
        let cases = [
            ("/", "-"),
            ("/var/mnt/longhorn/zr50abcd", "var-mnt-longhorn-zr50abcd"),
            ("/var//mnt/longhorn/wd-1a/", "var-mnt-longhorn-wd\\x2d1a"),
            ("/.hidden/a.b", "\\x2ehidden-a.b"),
            ("/a b/é:_", "a\\x20b-\\xc3\\xa9:_"),
        ];
        for (path, expected) in cases {
            assert_eq!(escape_path(path), expected, "{path}");
        }
        for (path, expected) in cases {
            let Ok(output) = Command::new("systemd-escape").args(["--path", path]).output() else {
                eprintln!("skipped: systemd-escape is missing");
                return;
            };
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), expected, "systemd-escape {path}");
        }
    }

    #[test]
    fn the_unit_is_what_systemd_understands() {
        let text = unit_text(&target("Z%h 1"));
        for line in ["Before=k3s.service k3s-agent.service", "Type=xfs", "Options=noatime,nodev,nosuid,nofail"] {
            assert!(text.lines().any(|have| have == line), "{line} in {text}");
        }
        let at = mount_point(&target("Z%h 1"));
        assert!(text.contains(&format!("Where={}\n", at.display())), "{text}");
        assert!(!text.contains('%') && at.starts_with(DIRECTORY), "{text}");
    }

    #[test]
    fn a_disk_that_is_not_mounted_is_told() {
        let disk = crate::data_disks::tests::disk("/dev/null", 1 << 40, 512);
        let error = format!("{:#}", verify(&disk, &target("ZNEVER")).expect_err("nothing there"));
        assert!(error.contains("var-mnt-longhorn-znever.mount"), "{error}");
        assert!(!is_mounted(Path::new("/nonexistent")).expect("readable"));
        assert!(is_mounted(Path::new("/")).expect("readable"));
    }
}
