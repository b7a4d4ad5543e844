//! The stages that change the machine, each a process of its own.

pub(crate) mod disks;
pub(crate) mod fetch;
pub(crate) mod files;
pub(crate) mod kargs;
pub(crate) mod mount;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::fetch::Fetcher;
use super::log::Log;
use crate::files::write_atomically;

/// What every stage is given.
pub(crate) struct Stage<'a> {
    /// The root directory of the system that is configured; paths of the config lie below it.
    pub(crate) root: &'a Path,
    /// Fetches contents.
    pub(crate) fetcher: &'a Fetcher,
    /// The log.
    pub(crate) log: Log,
    /// What stages tell later ones; written when the stage ends well.
    pub(crate) state: &'a mut State,
}

/// What stages tell later ones, in the file that `-state-file` names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Key files that were made for LUKS volumes, to be kept in the system: path there and contents in base64.
    #[serde(default)]
    pub(crate) luks_key_files: BTreeMap<PathBuf, String>,
    /// Directories of the system that were made to mount file systems on, by their paths there. The stage `files` gives
    /// those in a home directory to its user.
    #[serde(default)]
    pub(crate) made_directories: Vec<PathBuf>,
    /// Configs that were fetched.
    #[serde(default)]
    pub(crate) fetched: Vec<Fetched>,
}

/// A config that was fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fetched {
    /// What it is: `base`, `user`, `referenced`.
    pub(crate) kind: String,
    /// Its source.
    pub(crate) source: String,
    /// SHA-512 of its text, in hexadecimal.
    pub(crate) sha512: String,
}

impl State {
    /// Reads the state file; none is a state in which nothing has happened yet.
    ///
    /// # Errors
    /// When it is there and cannot be read, or is not what [`Self::save`] wrote.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("reading {}", path.display());
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).with_context(context),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(context),
        }
    }

    /// Writes the state file, with its directory, for root alone.
    ///
    /// # Errors
    /// What the file system answers.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        write_private(path, &serde_json::to_vec(self).context("writing the state")?)
    }
}

/// Writes a file that may hold secrets, with its directory, for root alone.
fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let path = std::path::absolute(path).with_context(|| format!("writing {}", path.display()))?;
    if let Some(parent) = path.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.with_context(|| format!("making {}", parent.display()))?;
    }
    write_atomically(&path, content, 0o600)
}
