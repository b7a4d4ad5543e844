//! What became of the configuration on this machine: the record on `state` that makes applying it happen once.
//!
//! The record is begun, durably, before the first change, and completed after the last. A power cut in between leaves
//! one that is begun; the next start then takes back what was made and applies the whole again. So a machine never
//! runs with half a configuration.
//!
//! | record | configuration found | what follows |
//! |---|---|---|
//! | none | none | maintenance mode |
//! | none | one | it is applied |
//! | complete | none, or the same | what was applied stays |
//! | complete | another | it is applied anew: `/etc` starts from the image's, `/var` stays |
//! | begun | none | it cannot be completed: an error |
//! | begun | one | it is applied |

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::boot::ConfigOrigin;
use crate::files::write_atomically;

/// The record's file, in the directory of the node's identity.
const FILE: &str = "ignition.json";

/// The record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// How far it went.
    pub(crate) progress: Progress,
    /// SHA-256 of the configuration, in hexadecimal.
    pub(crate) sha256: String,
    /// Where it came from.
    pub(crate) origin: ConfigOrigin,
    /// Whether nothing was ever applied before: then nothing but the image's own content and what this application
    /// made is in `/var`, since the system has never run.
    pub(crate) first: bool,
    /// Files and links outside `/etc` that the configuration makes and that were not there before, each with a digest
    /// of what was made, once that is done. One that still has this digest may be taken back; one that something else
    /// has changed since is data, and stays.
    pub(crate) made: BTreeMap<PathBuf, Option<String>>,
}

/// How far an application went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Progress {
    /// It may have changed anything.
    Begun,
    /// It is complete.
    Complete,
}

/// What is to be done about the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing was ever found.
    Maintenance,
    /// What was applied stays.
    Keep,
    /// The configuration that was found is applied; `first` as in [`Record`].
    Apply {
        /// See [`Record::first`].
        first: bool,
    },
    /// A begun application has lost its configuration.
    Lost,
}

impl Record {
    /// Reads the record, if there is one.
    ///
    /// # Errors
    /// When it is there and not one of ours.
    pub(crate) fn read(directory: &Path) -> anyhow::Result<Option<Self>> {
        let path = directory.join(FILE);
        match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json).map(Some).with_context(|| format!("parsing {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Writes the record: atomically and durably.
    ///
    /// # Errors
    /// What the file system answers.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_vec_pretty(self).context("writing the record of the configuration as JSON")?;
        write_atomically(&directory.join(FILE), &json, 0o600)
    }
}

/// The table of this module's documentation. `found` is the digest of the configuration that was found.
pub(crate) fn decide(record: Option<&Record>, found: Option<&str>) -> Decision {
    match (record, found) {
        (None, None) => Decision::Maintenance,
        (None, Some(_)) => Decision::Apply { first: true },
        (Some(Record { progress: Progress::Begun, .. }), None) => Decision::Lost,
        (Some(Record { progress: Progress::Begun, first, .. }), Some(_)) => Decision::Apply { first: *first },
        (Some(Record { progress: Progress::Complete, .. }), None) => Decision::Keep,
        (Some(Record { progress: Progress::Complete, sha256, .. }), Some(found)) => {
            if sha256 == found {
                Decision::Keep
            } else {
                Decision::Apply { first: false }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(progress: Progress, first: bool) -> Record {
        Record {
            progress,
            sha256: "aa".into(),
            origin: ConfigOrigin::Esp { size: 2 },
            first,
            made: BTreeMap::from([("/var/lib/x".into(), None)]),
        }
    }

    #[test]
    fn a_configuration_is_applied_once_and_whole() {
        let (begun, again) = (record(Progress::Begun, true), record(Progress::Begun, false));
        let complete = record(Progress::Complete, true);
        for (case, record, found, expected) in [
            ("never any", None, None, Decision::Maintenance),
            ("the first", None, Some("aa"), Decision::Apply { first: true }),
            ("cut off", Some(&begun), Some("aa"), Decision::Apply { first: true }),
            ("cut off, then corrected", Some(&begun), Some("bb"), Decision::Apply { first: true }),
            ("cut off while applied anew", Some(&again), Some("bb"), Decision::Apply { first: false }),
            ("cut off, then taken away", Some(&begun), None, Decision::Lost),
            ("the same again", Some(&complete), Some("aa"), Decision::Keep),
            ("taken away after use", Some(&complete), None, Decision::Keep),
            ("another", Some(&complete), Some("bb"), Decision::Apply { first: false }),
        ] {
            assert_eq!(decide(record, found), expected, "{case}");
        }
    }

    #[test]
    fn the_record_is_read_as_it_was_written_and_a_damaged_one_is_an_error() {
        let directory = tempfile::tempdir().expect("tempdir");
        assert_eq!(Record::read(directory.path()).expect("none"), None);
        let written = record(Progress::Begun, true);
        written.write(directory.path()).expect("written");
        assert_eq!(Record::read(directory.path()).expect("read"), Some(written));
        fs::write(directory.path().join(FILE), "{").expect("written");
        let error = format!("{:#}", Record::read(directory.path()).expect_err("damaged"));
        assert!(error.contains("ignition.json"), "{error}");
    }
}
