//! The node's machine-id: made once, kept on `state`, so that systemd never takes a boot for the first one.
//!
//! Its form is that of [machine-id(5)](https://www.freedesktop.org/software/systemd/man/machine-id.html): 32 lower-case
//! hexadecimal digits, made as a random UUID of version 4.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::files::write_atomically;

/// A valid machine-id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct MachineId(String);

/// A text that is no machine-id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no machine-id: 32 lower-case hexadecimal digits, not all zero")]
pub(crate) struct InvalidMachineId(String);

impl MachineId {
    /// Parses the file's content, with or without its line end.
    ///
    /// # Errors
    /// When it is not of the form that machine-id(5) states.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidMachineId> {
        let id = text.trim_end_matches('\n');
        let valid = id.len() == 32
            && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            && id.bytes().any(|byte| byte != b'0');
        if valid { Ok(Self(id.to_owned())) } else { Err(InvalidMachineId(id.chars().take(40).collect())) }
    }

    /// A new one, from the kernel's random numbers.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub(crate) fn random() -> anyhow::Result<Self> {
        let path = "/proc/sys/kernel/random/uuid";
        let uuid = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        Ok(Self::parse(&uuid.replace('-', ""))?)
    }

    /// The one kept in `kept`; when there is none it is made and written there. An empty or damaged file, as a power
    /// cut could leave none here, is an error: another id would make another node of this one.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds no machine-id.
    pub(crate) fn keep(kept: &Path) -> anyhow::Result<Self> {
        match fs::read_to_string(kept) {
            Ok(text) => Self::parse(&text).with_context(|| format!("parsing {}", kept.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let id = Self::random()?;
                write_atomically(kept, format!("{id}\n").as_bytes(), 0o444)?;
                Ok(id)
            }
            Err(error) => Err(error).with_context(|| format!("reading {}", kept.display())),
        }
    }

    /// Writes it to `path` unless it stands there already.
    ///
    /// # Errors
    /// What the file system answers.
    pub(crate) fn install(&self, path: &Path) -> anyhow::Result<()> {
        let line = format!("{self}\n");
        if fs::read_to_string(path).is_ok_and(|text| text == line) {
            return Ok(());
        }
        write_atomically(path, line.as_bytes(), 0o444)
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for MachineId {
    type Error = InvalidMachineId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<MachineId> for String {
    fn from(id: MachineId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_form_parses() {
        let good = "0123456789abcdef0123456789abcdef";
        assert_eq!(MachineId::parse(&format!("{good}\n")).expect("valid").to_string(), good);
        for bad in ["", "uninitialized", &good[1..], &good.to_uppercase(), &"0".repeat(32), &format!("{good}0")] {
            assert!(MachineId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_id_is_made_once_and_kept() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("machine-id");
        let first = MachineId::keep(&path).expect("made");
        assert_eq!(MachineId::keep(&path).expect("kept"), first);
        assert_eq!(first.0.as_bytes()[12], b'4', "version 4: {first}");
        assert_ne!(MachineId::random().expect("random"), first);
        first.install(&directory.path().join("etc-machine-id")).expect("installed");
        fs::remove_file(&path).expect("removed");
        fs::write(&path, "").expect("emptied");
        assert!(MachineId::keep(&path).is_err(), "damage is no reason for a new identity");
    }
}
