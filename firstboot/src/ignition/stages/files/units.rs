//! systemd's units, drop-ins, masks and presets.
//!
//! Units are enabled by a preset file, which systemd applies at its first boot, or whoever runs `systemctl preset`.
//! A unit that shall be off gets a line there only when it was on; its links are removed.

use std::collections::BTreeMap;

use anyhow::Context;

use super::Site;
use super::tree::{Attributes, Draft, Owner, PARENT_MODE};
use crate::command::CommandError;
use crate::ignition::config::types::{Systemd, Unit};

/// Where units are written.
const UNITS: &str = "/etc/systemd/system";

/// What says which units are on.
pub(super) const PRESET: &str = "/etc/systemd/system-preset/20-ignition.preset";

/// Where a masked unit's link leads.
const NOWHERE: &str = "/dev/null";

/// Mode of all these files.
const MODE: u32 = 0o644;

/// How large the preset file may be, in bytes.
const LIMIT: u64 = 16 << 20;

/// Writes the units, masks and presets.
///
/// # Errors
/// At the first that fails.
pub(super) fn apply(site: &Site<'_>, systemd: &Systemd) -> anyhow::Result<()> {
    let units = systemd.units.as_deref().unwrap_or_default();
    for unit in units {
        write_unit(site, unit).with_context(|| format!("unit {}", unit.name))?;
    }
    write_presets(site, &presets(units))
}

fn write_unit(site: &Site<'_>, unit: &Unit) -> anyhow::Result<()> {
    for dropin in unit.dropins.iter().flatten() {
        // An empty drop-in is written: it hides one of that name elsewhere.
        if let Some(contents) = &dropin.contents {
            site.log.info(format_args!("writing drop-in {} of unit {}", dropin.name, unit.name));
            write(site, &format!("{UNITS}/{}.d/{}", unit.name, dropin.name), contents)?;
        }
    }
    let path = format!("{UNITS}/{}", unit.name);
    if let Some(contents) = unit.contents.as_ref().filter(|contents| !contents.is_empty()) {
        site.log.info(format_args!("writing unit {}", unit.name));
        write(site, &path, contents)?;
    }
    let place = site.tree.resolve(&path)?;
    let masked = site.tree.read_link(&place)?.is_some_and(|target| target.as_os_str() == NOWHERE);
    match unit.mask {
        Some(true) if !masked => {
            site.log.info(format_args!("masking unit {}", unit.name));
            let (parent, name) = site.tree.parent(&place, PARENT_MODE)?;
            Draft::symbolic_link(&parent, NOWHERE, Owner::default())?.put_over(name)
        }
        Some(false) if masked => {
            site.log.info(format_args!("unmasking unit {}", unit.name));
            site.tree.remove(&place)
        }
        Some(true | false) | None => Ok(()),
    }
}

fn write(site: &Site<'_>, path: &str, contents: &str) -> anyhow::Result<()> {
    site.tree.write(&site.tree.resolve(path)?, contents.as_bytes(), Attributes::mode(MODE))
}

/// What shall be with a unit, or with instances of a template.
#[derive(Debug, PartialEq, Eq)]
struct Preset<'a> {
    /// The unit, or the template's name with nothing between `@` and the suffix.
    unit: String,
    enabled: bool,
    /// Of a template; empty for a unit that is none.
    instances: Vec<&'a str>,
}

impl Preset<'_> {
    /// The line of the preset file.
    fn line(&self) -> String {
        let verb = if self.enabled { "enable" } else { "disable" };
        [&[verb, &self.unit], self.instances.as_slice()].concat().join(" ")
    }

    /// Full names of the units it is about.
    fn units(&self) -> Vec<String> {
        match self.unit.split_once('@') {
            Some((name, suffix)) if !self.instances.is_empty() => {
                self.instances.iter().map(|instance| format!("{name}@{instance}{suffix}")).collect()
            }
            _ => vec![self.unit.clone()],
        }
    }
}

/// The presets of the units that say whether they are enabled, instances of a template together, sorted by name.
fn presets(units: &[Unit]) -> Vec<Preset<'_>> {
    let mut presets = BTreeMap::new();
    for unit in units {
        let Some(enabled) = unit.enabled else { continue };
        let (name, instance) = match (unit.name.split_once('@'), unit.name.rfind('.')) {
            (Some((name, rest)), Some(dot)) if dot > name.len() => {
                (format!("{name}@{}", &unit.name[dot..]), &rest[..dot - name.len() - 1])
            }
            _ => (unit.name.clone(), ""),
        };
        let key = format!("{name}-{}", if enabled { "enabled" } else { "disabled" });
        let preset = presets.entry(key).or_insert_with(|| Preset { unit: name, enabled, instances: Vec::new() });
        if !instance.is_empty() {
            preset.instances.push(instance);
        }
    }
    presets.into_values().collect()
}

/// Adds the lines that the preset file does not have yet.
fn write_presets(site: &Site<'_>, presets: &[Preset<'_>]) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    for preset in presets {
        if let Some(preset) = if preset.enabled { Some(preset.line()) } else { disable(site, preset)? } {
            lines.push(preset);
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    let mut text = site.tree.read(PRESET, LIMIT)?.unwrap_or_default();
    let known: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();
    lines.retain(|line| !known.contains(&line.as_bytes()));
    for line in lines {
        site.log.info(format_args!("preset: {line}"));
        text.extend(line.as_bytes());
        text.push(b'\n');
    }
    let place = site.tree.follow(PRESET)?;
    let mode = site.tree.stat(&place)?.as_ref().map_or(MODE, super::tree::permissions);
    site.tree.write(&place, &text, Attributes::mode(mode))
}

/// Removes the links of units that are on. The preset line is for those that were.
fn disable(site: &Site<'_>, preset: &Preset<'_>) -> anyhow::Result<Option<String>> {
    let root = site.tree.arguments()?;
    let (mut on, mut instances) = (false, Vec::new());
    for (index, unit) in preset.units().iter().enumerate() {
        match (site.run)("systemctl", &[&root[..], &["is-enabled", unit]].concat()) {
            Ok(_) => {}
            Err(CommandError::Status { .. }) => continue,
            Err(error @ CommandError::Start { .. }) => {
                site.log.warning(format_args!("unit {unit} cannot be disabled, should it be enabled: {error}"));
                continue;
            }
        }
        site.log.info(format_args!("disabling unit {unit}"));
        (site.run)("systemctl", &[&root[..], &["disable", unit]].concat())?;
        on = true;
        instances.extend(preset.instances.get(index).copied());
    }
    let preset = Preset { unit: preset.unit.clone(), enabled: false, instances };
    Ok(on.then(|| preset.line()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_share_their_templates_line() {
        let unit = |name: &str, enabled| Unit { enabled, ..Unit::new(name.into()) };
        let units = [
            unit("z.service", Some(true)),
            unit("echo@foo.service", Some(true)),
            unit("echo@.service", Some(true)),
            unit("a.timer", Some(false)),
            unit("echo@b.a.r.service", Some(true)),
            unit("echo@off.service", Some(false)),
            unit("none.service", None),
            unit("x@y.mount", Some(false)),
        ];
        let presets = presets(&units);
        let lines: Vec<String> = presets.iter().map(Preset::line).collect();
        let expected = [
            "disable a.timer",
            "disable echo@.service off",
            "enable echo@.service foo b.a.r",
            "disable x@.mount y",
            "enable z.service",
        ];
        assert_eq!(lines, expected);
        assert_eq!(presets[2].units(), ["echo@foo.service", "echo@b.a.r.service"]);
        assert_eq!(presets[0].units(), ["a.timer"]);
    }
}
