//! The stage `files`: users and groups, directories, files and links, systemd's units, and what the system needs to
//! open its LUKS volumes.
//!
//! Specification: Ignition's configuration specification 3.0 to 3.6, its migration guide and its operator notes.
//! Applied a second time, also after a power cut in the middle, a config ends in the same tree.
//!
//! Left out: SELinux labels, keys of IBM's crypto cards, and what the reference writes for single cloud providers.

mod accounts;
mod additions;
mod entries;
mod keys;
mod luks;
mod marks;
mod passwd;
mod result;
#[cfg(test)]
mod tests;
mod tree;
mod units;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;

use anyhow::Context;
use rustix::fs::Mode;

use self::tree::Tree;
use super::Stage;
use crate::command::{self, CommandError};
use crate::ignition::config::types::Config;
use crate::ignition::fetch::Fetcher;
use crate::ignition::log::Log;

/// Runs the stage.
///
/// # Errors
/// At the first thing that cannot be done; what was done before it stays.
pub(crate) fn run(stage: &mut Stage<'_>, config: &Config) -> anyhow::Result<()> {
    let variable = std::env::var_os(keys::VARIABLE).map(|value| value.to_string_lossy().into_owned());
    let site = Site {
        tree: Tree::open(stage.root)?,
        fetcher: stage.fetcher,
        log: stage.log,
        keys: keys::Destination::parse(variable.as_deref())?,
        made_directories: &stage.state.made_directories,
        run: &|program, arguments| command::run(program, arguments, &[], |code| code == 0),
    };
    apply(&site, config, &stage.state.luks_key_files)?;
    site.tree.flush();
    result::write(&site, &stage.state.fetched).with_context(|| format!("writing {}", result::RESULT))?;
    site.tree.flush();
    // They are in the system now, which may be encrypted; the state file is not.
    stage.state.luks_key_files.clear();
    Ok(())
}

/// What runs a program: name and arguments.
type Run<'a> = dyn Fn(&str, &[&str]) -> Result<Output, CommandError> + Sync + 'a;

/// What all parts of the stage work with.
struct Site<'a> {
    tree: Tree,
    fetcher: &'a Fetcher,
    log: Log,
    keys: keys::Destination,
    made_directories: &'a [PathBuf],
    run: &'a Run<'a>,
}

/// Everything but the result file.
fn apply(site: &Site<'_>, config: &Config, key_files: &BTreeMap<PathBuf, String>) -> anyhow::Result<()> {
    // New directories have the same modes whatever the caller's mask.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if let Some(passwd) = &config.passwd {
        passwd::apply(site, passwd).context("setting up users and groups")?;
    }
    if let Some(storage) = &config.storage {
        entries::apply(site, storage)?;
    }
    if let Some(systemd) = &config.systemd {
        units::apply(site, systemd).context("setting up systemd's units")?;
    }
    let volumes = config.storage.as_ref().and_then(|storage| storage.luks.as_deref()).unwrap_or_default();
    luks::apply(site, volumes, key_files)
}
