//! What the system needs to open its LUKS volumes again: crypttab(5) and the volumes' key files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Site;
use super::tree::Attributes;
use crate::ignition::config::types::{Clevis, Luks};

/// The table of encrypted volumes.
const CRYPTTAB: &str = "/etc/crypttab";

/// Where key files are kept.
const KEYS: &str = "/etc/luks";

/// Mode of the table and of key files.
const MODE: u32 = 0o600;

/// Mode of the keys' directory where it is made.
const DIRECTORY_MODE: u32 = 0o700;

/// How large the table may be, in bytes.
const LIMIT: u64 = 16 << 20;

/// Writes the key files that earlier stages made, by path and in base64, and the table.
///
/// # Errors
/// When a volume has no key file, `cryptsetup` cannot say its UUID, or something cannot be written.
pub(super) fn apply(site: &Site<'_>, volumes: &[Luks], key_files: &BTreeMap<PathBuf, String>) -> anyhow::Result<()> {
    if volumes.is_empty() {
        return Ok(());
    }
    let mut table = site.tree.read(CRYPTTAB, LIMIT)?.unwrap_or_default();
    for volume in volumes {
        let context = || format!("LUKS volume {:?}", volume.name);
        let key_file = write_key_file(site, volume, key_files).with_context(context)?;
        let device = volume.device.as_deref().unwrap_or_default();
        let uuid = uuid(site, device).with_context(context)?;
        let network = if volume.clevis.as_ref().is_some_and(needs_network) { "_netdev," } else { "" };
        // What the initrd has opened stays open until the system is down.
        let options = format!("luks,{network}x-initrd.attach");
        set_line(&mut table, &volume.name, &format!("{} UUID={uuid} {key_file} {options}", volume.name));
    }
    site.log.info(format_args!("writing {CRYPTTAB}"));
    site.tree.write(&site.tree.follow(CRYPTTAB)?, &table, Attributes::mode(MODE))
}

/// Writes a volume's key file, and says what the table calls it. A volume that clevis opens has none.
fn write_key_file(site: &Site<'_>, volume: &Luks, key_files: &BTreeMap<PathBuf, String>) -> anyhow::Result<String> {
    if volume.clevis.as_ref().is_some_and(is_present) {
        return Ok("none".into());
    }
    let path = format!("{KEYS}/{}", volume.name);
    let place = site.tree.resolve(&path)?;
    match key_files.get(Path::new(&path)) {
        Some(key) => {
            let key = STANDARD.decode(key).ok().context("its key in the state file is no base64")?;
            site.log.info(format_args!("writing {path}"));
            let file = Attributes { parent_mode: DIRECTORY_MODE, ..Attributes::mode(MODE) };
            site.tree.write(&place, &key, file)?;
        }
        // A run that was cut off may have put it there and told the state file.
        None if site.tree.stat(&place)?.is_some() => {}
        None => bail!("its key file is not in the state file, where the stage disks leaves it"),
    }
    Ok(path)
}

fn uuid(site: &Site<'_>, device: &str) -> anyhow::Result<String> {
    let output = (site.run)("cryptsetup", &["luksUUID", device])?;
    let uuid = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    anyhow::ensure!(!uuid.is_empty() && !uuid.contains(char::is_whitespace), "{device} has no UUID");
    Ok(uuid)
}

/// Whether clevis opens the volume.
fn is_present(clevis: &Clevis) -> bool {
    pin(clevis).is_some()
        || clevis.tang.as_ref().is_some_and(|servers| !servers.is_empty())
        || clevis.tpm2 == Some(true)
        || clevis.threshold.is_some_and(|threshold| threshold != 0)
}

/// Whether that takes the network.
fn needs_network(clevis: &Clevis) -> bool {
    let custom = clevis.custom.as_ref().is_some_and(|custom| custom.needs_network == Some(true));
    clevis.tang.as_ref().is_some_and(|servers| !servers.is_empty()) || (pin(clevis).is_some() && custom)
}

fn pin(clevis: &Clevis) -> Option<&str> {
    clevis.custom.as_ref()?.pin.as_deref().filter(|pin| !pin.is_empty())
}

/// Puts a volume's line into the table, in the place of one that it has there already.
fn set_line(table: &mut Vec<u8>, name: &str, line: &str) {
    let of_volume = |line: &[u8]| line.split(u8::is_ascii_whitespace).next() == Some(name.as_bytes());
    let mut lines: Vec<&[u8]> = table.split(|&byte| byte == b'\n').collect();
    if lines.last().is_some_and(|last| last.is_empty()) {
        lines.pop();
    }
    match lines.iter_mut().find(|line| of_volume(line)) {
        Some(old) => *old = line.as_bytes(),
        None => lines.push(line.as_bytes()),
    }
    *table = [lines.join(&b'\n'), b"\n".to_vec()].concat();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_one_line_in_the_table() {
        let cases = [
            ("", "data UUID=1 none luks\n"),
            ("# comment\n", "# comment\ndata UUID=1 none luks\n"),
            ("root UUID=0 none", "root UUID=0 none\ndata UUID=1 none luks\n"),
            ("data2 x\ndata UUID=9 none luks\nz y\n", "data2 x\ndata UUID=1 none luks\nz y\n"),
            ("data UUID=1 none luks\n", "data UUID=1 none luks\n"),
        ];
        for (before, after) in cases {
            let mut table = before.as_bytes().to_vec();
            set_line(&mut table, "data", "data UUID=1 none luks");
            assert_eq!(String::from_utf8_lossy(&table), after, "{before:?}");
        }
    }
}
