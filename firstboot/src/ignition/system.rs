//! The configs that come with the system: `base.d`, then `base.platform.d/PLATFORM`, below the system's directories.
//!
//! Every file there counts, in the order of names, each over the one before, and one in `/run/ignition` hides its
//! namesake in `/etc/ignition`, as that does in `/usr/lib/ignition`. The machine's own config comes over all of them. They are read by every stage and never cached. Where the reference implementation passes over a platform's
//! directory that cannot be read, this is an error: a machine is what it is told to be, or stops.
//!
//! Specification: [distributor notes](https://coreos.github.io/ignition/distributor-notes/).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha512};

use super::config::{self, types::Config};
use super::environment::Environment;
use super::fetch::hex;
use super::log::Log;
use super::platform::read_present;
use super::stages::Fetched;

/// The system's configs merged, and what they were; `None` when there is none.
///
/// # Errors
/// When one cannot be read or is not valid.
pub(crate) fn base(
    environment: &Environment,
    platform: &str,
    log: Log,
) -> anyhow::Result<(Option<Config>, Vec<Fetched>)> {
    let mut merged: Option<Config> = None;
    let mut fetched = Vec::new();
    for directory in [PathBuf::from("base.d"), Path::new("base.platform.d").join(platform)] {
        for path in files(environment.system_config.iter().map(|system| system.join(&directory)))? {
            let Some(text) = read_present(&path)? else { continue };
            log.info(format!("reading system config file {path:?}"));
            let parsed = parse(&text, log).with_context(|| format!("reading system config file {}", path.display()))?;
            merged = Some(match merged {
                None => parsed,
                Some(merged) => config::merge(merged, parsed),
            });
            let sha512 = hex(&Sha512::digest(&text));
            fetched.push(Fetched { kind: "base".into(), source: path.display().to_string(), sha512 });
        }
    }
    Ok((merged, fetched))
}

/// Parses and validates a config, with its report in the log.
///
/// # Errors
/// When it is not valid; the report says why.
pub(crate) fn parse(text: &[u8], log: Log) -> anyhow::Result<Config> {
    anyhow::ensure!(!text.is_empty(), "the config is empty");
    match config::parse(text) {
        Ok((config, report)) => {
            log.report(&report);
            Ok(config)
        }
        Err(report) => {
            log.report(&report);
            let worst = report.entries.iter().filter(|entry| entry.fatal);
            let summary: Vec<String> =
                worst.take(3).map(|entry| format!("{}: {}", entry.path, entry.message)).collect();
            anyhow::bail!("the config is not valid: {}", summary.join("; "))
        }
    }
}

/// The files of directories, sorted by name; of namesakes the one in the earliest directory.
fn files(directories: impl Iterator<Item = PathBuf>) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = BTreeMap::new();
    for directory in directories {
        let context = || format!("reading {}", directory.display());
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(context),
        };
        for entry in entries {
            let entry = entry.with_context(context)?;
            files.entry(entry.file_name()).or_insert_with(|| entry.path());
        }
    }
    Ok(files.into_values().collect())
}
