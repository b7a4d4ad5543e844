//! The latest time that this node is known to have seen: its clock reads no less when it starts again without a battery.
//!
//! systemd-timesyncd saves the time as that of a file in `/var`, once a minute, and systemd's first process raises the
//! clock to it (`systemd-timesyncd.service(8)`). It does so whether the clock is synchronised or not: a machine that
//! was once started with a clock of 2040 would stay there without a time server, whatever its firmware says later. So the
//! first stage takes that file away at each start, and keeps it only where the step `time` left word that the clock was
//! synchronised at the start before.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;

use crate::files::write_atomically;

/// timesyncd's file, below `/var`.
const SAVED: &str = "lib/systemd/timesync/clock";
/// The one that was saved by a synchronised clock, below `/var`.
const KEPT: &str = "lib/nodezero/clock";
/// Says that the clock was synchronised at this start, in the directory of the journal.
const SYNCHRONISED: &str = "clock-synchronised";

/// Leaves word that the clock is synchronised: what timesyncd saves from now on is kept.
///
/// # Errors
/// When it cannot be written.
pub(super) fn note(lib: &Path) -> anyhow::Result<()> {
    if is_noted(lib) { Ok(()) } else { write_atomically(&lib.join(SYNCHRONISED), b"", 0o600) }
}

/// Whether that word was left at this start.
pub(super) fn is_noted(lib: &Path) -> bool {
    lib.join(SYNCHRONISED).exists()
}

/// The first stage's part, once in each start, before timesyncd: gives the time that a synchronised clock saved last.
/// Ending anywhere in between, as by a power cut, loses nothing and trusts nothing more.
///
/// # Errors
/// What the file system answers.
pub(crate) fn settle(var: &Path) -> anyhow::Result<Option<SystemTime>> {
    let (saved, kept) = (var.join(SAVED), var.join(KEPT));
    let synchronised = kept.with_file_name(SYNCHRONISED);
    let settled = if synchronised.exists() { fs::rename(&saved, &kept) } else { fs::remove_file(&saved) };
    unless_missing(settled).with_context(|| format!("taking {} away", saved.display()))?;
    unless_missing(fs::remove_file(&synchronised)).with_context(|| format!("removing {}", synchronised.display()))?;
    match fs::symlink_metadata(&kept).and_then(|metadata| metadata.modified()) {
        Ok(time) => Ok(Some(time)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading the time of {}", kept.display())),
    }
}

fn unless_missing(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn only_what_a_synchronised_clock_saved_is_kept() {
        let root = tempfile::tempdir().expect("tempdir");
        let var = root.path();
        let lib = var.join("lib/nodezero");
        assert_eq!(settle(var).expect("an empty /var"), None);
        fs::create_dir_all(var.join(SAVED).parent().expect("a parent")).expect("made");
        fs::create_dir_all(&lib).expect("made");
        // One start each: what its timesyncd saved, whether it was synchronised, and what the next start is given.
        for (saved, synchronised, given) in [
            (None, false, None),
            (Some(2_210_000_000), false, None),
            (Some(1_800_000_000), true, Some(1_800_000_000)),
            (Some(2_210_000_000), false, Some(1_800_000_000)),
            (None, true, Some(1_800_000_000)),
            // A time server that was wrong is forgotten with the next that is right.
            (Some(2_210_000_000), true, Some(2_210_000_000)),
            (Some(1_800_000_100), true, Some(1_800_000_100)),
            (None, false, Some(1_800_000_100)),
        ] {
            if let Some(saved) = saved {
                let made = fs::File::create(var.join(SAVED));
                made.and_then(|file| file.set_modified(at(saved))).expect("made");
            }
            if synchronised {
                note(&lib).expect("noted");
                note(&lib).expect("noted again");
            }
            assert_eq!(settle(var).expect("settled"), given.map(at), "{saved:?}, {synchronised}");
            assert!(!var.join(SAVED).exists(), "nothing is left for systemd");
            assert!(!lib.join(SYNCHRONISED).exists(), "each start says it anew");
        }
    }

    #[test]
    fn what_cannot_be_taken_away_is_told() {
        let root = tempfile::tempdir().expect("tempdir");
        fs::create_dir_all(root.path().join(SAVED)).expect("made");
        let error = format!("{:#}", settle(root.path()).expect_err("a directory"));
        assert!(error.contains("lib/systemd/timesync/clock away"), "{error}");
        assert!(note(Path::new("/nonexistent")).is_err());
    }
}
