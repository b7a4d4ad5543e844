//! How often this node has started: a count in `/var/lib/nodezero/boots.json`.
//!
//! It shows that `state` is kept. Each boot counts once however often the service runs, by the kernel's boot id.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::files::write_atomically;

const FILE: &str = "boots.json";

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Boots {
    count: u64,
    last: String,
}

/// Counts the boot `boot_id` in `directory`, unless it is counted. Gives the number of boots so far.
///
/// # Errors
/// When the file cannot be written, or is damaged.
pub(crate) fn count(directory: &Path, boot_id: &str) -> anyhow::Result<u64> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let path = directory.join(FILE);
    let mut boots = match fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json).with_context(|| format!("parsing {}", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Boots::default(),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let boot_id = boot_id.trim();
    if boots.last != boot_id {
        boots = Boots { count: boots.count + 1, last: boot_id.to_owned() };
        write_atomically(&path, &serde_json::to_vec(&boots)?, 0o644)?;
    }
    Ok(boots.count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_boot_counts_once() {
        let directory = tempfile::tempdir().expect("tempdir");
        for (boot_id, expected) in [("a\n", 1), ("a", 1), ("b", 2), ("c", 3), ("c\n", 3)] {
            assert_eq!(count(directory.path(), boot_id).expect("counted"), expected, "{boot_id:?}");
        }
        fs::write(directory.path().join(FILE), "{").expect("damaged");
        assert!(count(directory.path(), "d").is_err());
    }
}
