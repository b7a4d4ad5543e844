//! The stage `disks`: partitions, RAID arrays, encrypted volumes and file systems, in this order
//! ([specification](https://coreos.github.io/ignition/specs/),
//! [operator notes](https://coreos.github.io/ignition/operator-notes/)).
//!
//! Before anything is written, the whole `storage` section is compared with the machine as far as can be seen: what
//! lies on partitions, arrays and volumes that this run makes is looked at when they are there. A match is kept, a
//! mismatch is an error unless the config permits to wipe. Left out: links of the config's devices in
//! `/run/ignition/dev_aliases`, an implementation detail of the reference; crypto cards of IBM Z.

mod clevis;
pub(crate) mod device;
mod filesystem;
mod luks;
mod partitioning;
mod partitions;
mod probe;
mod raid;
mod sgdisk;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::Stage;
use crate::ignition::config::types::{Config, Filesystem, Luks, Raid, Storage};
use crate::ignition::fetch::Fetcher;
use crate::ignition::log::Log;
use device::Device;
use filesystem::Action;
use luks::Volume;
use partitioning::DiskPlan;

/// Runs the stage.
///
/// # Errors
/// When the machine cannot be made what the config says. Where that could be seen beforehand, nothing was written.
pub(crate) fn run(stage: &mut Stage<'_>, config: &Config) -> anyhow::Result<()> {
    let Some(storage) = config.storage.as_ref().filter(|storage| !is_empty(storage)) else { return Ok(()) };
    let plan = Plan::new(storage, stage.fetcher, stage.log)?;
    plan.apply(stage.fetcher, stage.log)?;
    stage.state.luks_key_files.extend(plan.volumes.iter().filter_map(Volume::key_file));
    Ok(())
}

/// What was found possible.
#[derive(Debug)]
struct Plan<'a> {
    disks: Vec<DiskPlan>,
    raid: &'a [Raid],
    volumes: Vec<Volume<'a>>,
    filesystems: &'a [Filesystem],
}

fn is_empty(storage: &Storage) -> bool {
    let is_none = |len: Option<usize>| len.unwrap_or(0) == 0;
    is_none(storage.disks.as_ref().map(Vec::len))
        && is_none(storage.raid.as_ref().map(Vec::len))
        && is_none(storage.luks.as_ref().map(Vec::len))
        && is_none(storage.filesystems.as_ref().map(Vec::len))
}

impl<'a> Plan<'a> {
    /// Compares the config with the machine. Nothing is written.
    fn new(storage: &'a Storage, fetcher: &Fetcher, log: Log) -> anyhow::Result<Self> {
        require_programs(storage)?;
        let volumes = storage.luks.iter().flatten().enumerate().map(|(index, config)| {
            Volume::new(config, fetcher).with_context(|| format!("reading storage.luks.{index} ({})", config.name))
        });
        let volumes = volumes.collect::<anyhow::Result<Vec<_>>>()?;
        let named = storage.disks.iter().flatten().map(|disk| PathBuf::from(&disk.device)).collect::<Vec<_>>();
        device::wait_for(&named, device::PATIENCE, log).context("waiting for the devices of storage.disks")?;
        let mut disks: Vec<DiskPlan> = Vec::new();
        for (index, config) in storage.disks.iter().flatten().enumerate() {
            let place = || format!("checking storage.disks.{index} ({})", config.device);
            let plan = DiskPlan::new(config, log).with_context(place)?;
            if disks.iter().any(|other| other.path() == plan.path()) {
                bail!("storage.disks.{index} ({}) is a disk that was named before", config.device);
            }
            disks.push(plan);
        }
        let plan = Self {
            disks,
            raid: storage.raid.as_deref().unwrap_or_default(),
            volumes,
            filesystems: storage.filesystems.as_deref().unwrap_or_default(),
        };
        plan.check_later_parts(storage, log)?;
        Ok(plan)
    }

    /// Checks what lies on devices that are there already and that partitioning does not change.
    fn check_later_parts(&self, storage: &Storage, log: Log) -> anyhow::Result<()> {
        let raid = self.raid.iter().flat_map(|raid| raid.devices.iter().flatten());
        let luks = self.volumes.iter().map(|volume| volume.device()).collect::<anyhow::Result<Vec<_>>>()?;
        let filesystems = self.filesystems.iter().map(|filesystem| &filesystem.device);
        let named = raid.chain(filesystems).map(String::as_str).chain(luks);
        let independent: Vec<PathBuf> =
            named.map(PathBuf::from).filter(|path| !self.is_made_here(storage, path)).collect();
        device::wait_for(&independent, device::PATIENCE, log).context("waiting for devices of the config")?;
        for (index, config) in self.raid.iter().enumerate() {
            let devices = config.devices.as_deref().unwrap_or_default();
            let settled: Vec<Device> =
                devices.iter().filter_map(|path| self.settled(storage, Path::new(path))).collect();
            let check = || -> anyhow::Result<()> {
                if settled.len() == devices.len() {
                    raid::check(config, |_| false)?;
                    return Ok(());
                }
                // Whether they form the array is seen when all are there.
                settled.iter().try_for_each(raid::refuse_foreign)
            };
            check().with_context(|| in_raid("checking", index, config))?;
        }
        for (index, (volume, config)) in self.volumes.iter().zip(storage.luks.iter().flatten()).enumerate() {
            if let Some(device) = self.settled(storage, Path::new(volume.device()?)) {
                volume.check(&device).with_context(|| in_luks("checking", index, config))?;
            }
        }
        for (index, config) in self.filesystems.iter().enumerate() {
            let check = || -> anyhow::Result<()> {
                let device = self.settled(storage, Path::new(&config.device));
                let action = device.map(|device| filesystem::check(config, &device, log)).transpose()?;
                for program in filesystem_programs(config, action) {
                    ensure!(is_in_path(program), "the program {program} is not found");
                }
                Ok(())
            };
            check().with_context(|| in_filesystem("checking", index, config))?;
        }
        Ok(())
    }

    /// A device whose content can be judged now: it is there, and nothing before changes it.
    fn settled(&self, storage: &Storage, path: &Path) -> Option<Device> {
        let device = Device::find(path).ok()?;
        let below = is_made_of_others(storage, path);
        (!below && !self.touches(&device)).then_some(device)
    }

    /// Whether partitioning changes a device.
    fn touches(&self, device: &Device) -> bool {
        let (disk, number) = device.parent().map_or((device.name(), None), |(disk, number)| (disk, Some(number)));
        self.disks.iter().any(|plan| plan.touches(disk, number))
    }

    /// Whether a device may be missing now because the config makes it.
    fn is_made_here(&self, storage: &Storage, path: &Path) -> bool {
        if is_made_of_others(storage, path) {
            return true;
        }
        let text = path.to_string_lossy();
        let mut partitioned =
            storage.disks.iter().flatten().filter(|disk| disk.partitions.as_ref().is_some_and(|list| !list.is_empty()));
        let is_part = |disk: &str| text.strip_prefix(disk).is_some_and(is_partition_suffix);
        let by_partition = ["by-partlabel/", "by-partuuid/", "by-label/", "by-uuid/"];
        partitioned.any(|disk| {
            is_part(&disk.device)
                || self.disks.iter().any(|plan| is_part(&plan.path().to_string_lossy()))
                || by_partition.iter().any(|by| text.starts_with(&format!("/dev/disk/{by}")))
                || (text.starts_with("/dev/disk/by-") && text.contains("-part"))
        })
    }

    /// Does everything, in the order of the specification.
    fn apply(&self, fetcher: &Fetcher, log: Log) -> anyhow::Result<()> {
        for disk in &self.disks {
            disk.apply(log).with_context(|| format!("partitioning {}", disk.path().display()))?;
        }
        for (index, config) in self.raid.iter().enumerate() {
            let devices: Vec<PathBuf> = config.devices.iter().flatten().map(PathBuf::from).collect();
            let apply = || -> anyhow::Result<()> {
                device::wait_for(&devices, device::PATIENCE, log)?;
                let action = raid::check(config, |device| self.touches(device))?;
                raid::apply(config, action, log)
            };
            apply().with_context(|| in_raid("making", index, config))?;
        }
        for (index, volume) in self.volumes.iter().enumerate() {
            let apply = || -> anyhow::Result<()> {
                device::wait_for(&[PathBuf::from(volume.device()?)], device::PATIENCE, log)?;
                volume.apply(fetcher, log)
            };
            apply().with_context(|| format!("making storage.luks.{index}"))?;
        }
        make_filesystems(self.filesystems, log)
    }
}

/// Makes all file systems at the same time: on large disks it takes long. All errors are told.
fn make_filesystems(filesystems: &[Filesystem], log: Log) -> anyhow::Result<()> {
    let devices: Vec<PathBuf> = filesystems.iter().map(|filesystem| PathBuf::from(&filesystem.device)).collect();
    device::wait_for(&devices, device::PATIENCE, log).context("waiting for the devices of storage.filesystems")?;
    let errors: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = filesystems
            .iter()
            .enumerate()
            .map(|(index, config)| {
                scope.spawn(move || {
                    filesystem::apply(config, log).with_context(|| in_filesystem("making", index, config))
                })
            })
            .collect();
        let results = running.into_iter().map(|thread| thread.join().expect("a thread that does not panic"));
        results.filter_map(|result| Some(format!("{:#}", result.err()?))).collect()
    });
    ensure!(errors.is_empty(), "{}", errors.join("\n"));
    Ok(())
}

/// Whether a device is an array or an encrypted volume of the config.
fn is_made_of_others(storage: &Storage, path: &Path) -> bool {
    let has_raid = storage.raid.as_ref().is_some_and(|raid| !raid.is_empty());
    let has_luks = storage.luks.as_ref().is_some_and(|luks| !luks.is_empty());
    storage.raid.iter().flatten().any(|raid| raid::device_path(raid) == path)
        || storage.luks.iter().flatten().any(|luks| luks::device_path(luks) == path)
        || (has_raid && path.starts_with("/dev/disk") && path.to_string_lossy().contains("md-"))
        || (has_luks && path.starts_with("/dev/disk") && path.to_string_lossy().contains("dm-"))
        || ((has_raid || has_luks)
            && ["by-label", "by-uuid"].iter().any(|by| path.starts_with(Path::new("/dev/disk").join(by))))
}

/// Whether this, after a disk's path, names a partition: `2`, `p2`, `-part2`.
fn is_partition_suffix(suffix: &str) -> bool {
    let digits = suffix.trim_start_matches("-part").trim_start_matches('p');
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Checks that all programs are there that the config may need.
///
/// # Errors
/// With the program and what needs it.
fn require_programs(storage: &Storage) -> anyhow::Result<()> {
    for (program, field) in needed_programs(storage) {
        ensure!(is_in_path(program), "the program {program} is not found, {field} needs it");
    }
    Ok(())
}

/// The programs that a config may need, with the field that does. Those of file systems: see [`filesystem_programs`].
fn needed_programs(storage: &Storage) -> BTreeSet<(&'static str, String)> {
    let mut needed = BTreeSet::from([("blkid", "storage".to_owned())]);
    let disks = storage.disks.iter().flatten();
    let changing = disks.filter(|disk| disk.wipe_table == Some(true) || disk.partitions.iter().flatten().count() > 0);
    if changing.count() > 0 {
        needed.extend(["sgdisk", "partx"].map(|program| (program, "storage.disks".to_owned())));
    }
    if storage.raid.iter().flatten().count() > 0 {
        needed.insert(("mdadm", "storage.raid".to_owned()));
    }
    for (index, config) in storage.luks.iter().flatten().enumerate() {
        let field = format!("storage.luks.{index}");
        needed.insert(("cryptsetup", field.clone()));
        if config.wipe_volume == Some(true) {
            needed.insert(("wipefs", format!("{field}.wipeVolume")));
        }
        if luks::binding(config).is_some() {
            needed.insert(("clevis", format!("{field}.clevis")));
        }
    }
    needed
}

/// The programs that one file system needs: none where it is kept, and `action` is `None` where that is not known yet.
fn filesystem_programs(config: &Filesystem, action: Option<Action>) -> Vec<&'static str> {
    let mkfs = config.format.as_deref().and_then(filesystem::mkfs);
    match action {
        Some(Action::Keep) => Vec::new(),
        Some(Action::Wipe) => vec!["wipefs"],
        Some(Action::Make) | None => mkfs.into_iter().chain(["wipefs"]).collect(),
    }
}

/// Whether a program is in the caller's `PATH`.
fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn in_raid(doing: &str, index: usize, config: &Raid) -> String {
    format!("{doing} storage.raid.{index} ({})", config.name)
}

fn in_luks(doing: &str, index: usize, config: &Luks) -> String {
    format!("{doing} storage.luks.{index} ({})", config.name)
}

fn in_filesystem(doing: &str, index: usize, config: &Filesystem) -> String {
    format!("{doing} storage.filesystems.{index} ({})", config.device)
}

#[cfg(test)]
mod tests;
