//! File systems: compared with what is on the device, and made by the `mkfs` of their format.
//!
//! The rules are those of Ignition's operator notes, "Filesystem-Reuse Semantics". Beyond them, a device with a
//! partition table or with signatures of several kinds is refused as one with another file system is.

use std::path::Path;

use anyhow::{Context, bail, ensure};

use super::device::{self, Device};
use super::probe::{Content, probe};
use crate::command;
use crate::ignition::config::types::Filesystem;
use crate::ignition::log::Log;

/// What is done about a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The device is as specified.
    Keep,
    /// Signatures are wiped, and no file system is made.
    Wipe,
    /// Signatures are wiped, and the file system is made.
    Make,
}

/// Decides, given what is on the device.
///
/// # Errors
/// When something else is there, and `wipeFilesystem` is not true; and for a format that is not known.
pub(crate) fn decide(config: &Filesystem, content: &Content) -> anyhow::Result<Action> {
    let Some(format) = config.format.as_deref() else { return Ok(Action::Keep) };
    ensure!(format == "none" || mkfs(format).is_some(), "the format {format:?} is not supported");
    if config.wipe_filesystem == Some(true) {
        return Ok(if format == "none" { Action::Wipe } else { Action::Make });
    }
    match content {
        Content::Nothing => Ok(if format == "none" { Action::Keep } else { Action::Make }),
        Content::Found(found)
            if found.kind == format
                && config.label.as_ref().is_none_or(|label| *label == found.label)
                && config.uuid.as_ref().is_none_or(|uuid| same_uuid(format, uuid, &found.uuid)) =>
        {
            Ok(Action::Keep)
        }
        other => {
            bail!("it holds {}, specified is {}, and wipeFilesystem is not true", other.describe(), specified(config))
        }
    }
}

/// Whether the decision can be made from the config alone.
pub(crate) fn ignores_content(config: &Filesystem) -> bool {
    config.format.is_none() || config.wipe_filesystem == Some(true)
}

/// The program that makes a file system.
pub(crate) fn mkfs(format: &str) -> Option<&'static str> {
    Some(match format {
        "btrfs" => "mkfs.btrfs",
        "ext4" => "mkfs.ext4",
        "swap" => "mkswap",
        "vfat" => "mkfs.fat",
        "xfs" => "mkfs.xfs",
        _ => return None,
    })
}

/// Looks at the device and decides.
///
/// # Errors
/// As [`decide`], and when the device would be written to and is in use.
pub(crate) fn check(config: &Filesystem, device: &Device, log: Log) -> anyhow::Result<Action> {
    let content = if ignores_content(config) { Content::Nothing } else { probe(&device.path)? };
    let action = decide(config, &content)?;
    match action {
        Action::Keep => log.info(format_args!("{} is kept: {}", config.device, content.describe())),
        Action::Wipe | Action::Make => {
            if let Some(users) = device.usage()?.describe() {
                bail!("it {users}");
            }
        }
    }
    Ok(action)
}

/// Looks, decides, and does it.
///
/// # Errors
/// As [`check`], and when a program fails, or leaves something else than was asked for.
pub(crate) fn apply(config: &Filesystem, log: Log) -> anyhow::Result<()> {
    let device = Device::find(Path::new(&config.device))?;
    let action = check(config, &device, log)?;
    if action == Action::Keep {
        return Ok(());
    }
    let path = device.argument()?;
    log.info(format_args!("wiping the signatures of {path}"));
    command::run("wipefs", &["--all", path], b"", |code| code == 0)?;
    if let (Action::Make, Some(format)) = (action, config.format.as_deref()) {
        let program = mkfs(format).context("a format that was checked")?;
        let arguments = mkfs_arguments(config, format, path);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        log.info(format_args!("making a file system: {program} {}", arguments.join(" ")));
        command::run(program, &arguments, b"", |code| code == 0)?;
        verify(config, &probe(&device.path)?, log)?;
    }
    device::settle(&device)
}

/// Compares what was made with what was asked for. The `options` may have asked for more than the fields say, so only
/// a device on which nothing can be found is an error.
fn verify(config: &Filesystem, made: &Content, log: Log) -> anyhow::Result<()> {
    ensure!(*made != Content::Nothing, "nothing is found on it after making {}", specified(config));
    let kept = Filesystem { wipe_filesystem: None, ..config.clone() };
    if let Err(error) = decide(&kept, made) {
        log.warning(format_args!("{}, as it was made just now: {error:#}", config.device));
    }
    Ok(())
}

/// The arguments for making a file system: the config's own first, so that the fields win.
fn mkfs_arguments(config: &Filesystem, format: &str, device: &str) -> Vec<String> {
    let mut arguments = config.options.clone().unwrap_or_default();
    let (force, uuid_option, label_option) = match format {
        "btrfs" => (Some("--force"), "-U", "-L"),
        "ext4" => (Some("-F"), "-U", "-L"),
        "xfs" => (Some("-f"), "-m", "-L"),
        "swap" => (Some("-f"), "-U", "-L"),
        // It never asks.
        _ => (None, "-i", "-n"),
    };
    arguments.extend(force.map(str::to_owned));
    if let Some(uuid) = &config.uuid {
        let uuid = plain_uuid(format, uuid);
        arguments.extend([uuid_option.to_owned(), if format == "xfs" { format!("uuid={uuid}") } else { uuid }]);
    }
    if let Some(label) = &config.label {
        arguments.extend([label_option.to_owned(), label.clone()]);
    }
    arguments.push(device.to_owned());
    arguments
}

/// Whether two UUIDs are the same.
fn same_uuid(format: &str, one: &str, other: &str) -> bool {
    plain_uuid(format, one) == plain_uuid(format, other)
}

/// A UUID in the form that `mkfs` takes: lower case, and the four bytes of FAT without their dash.
fn plain_uuid(format: &str, uuid: &str) -> String {
    let uuid = uuid.to_lowercase();
    match (format, uuid.split_once('-')) {
        ("vfat", Some((first, second))) if first.len() == 4 => format!("{first}{second}"),
        _ => uuid,
    }
}

/// What the config asks for, in words.
fn specified(config: &Filesystem) -> String {
    let mut text = match config.format.as_deref() {
        Some("none") | None => "no file system".to_owned(),
        Some(format) => format.to_owned(),
    };
    if let Some(label) = &config.label {
        text += &format!(" with label {label:?}");
    }
    if let Some(uuid) = &config.uuid {
        text += &format!(" with UUID {uuid:?}");
    }
    text
}

#[cfg(test)]
mod tests;
