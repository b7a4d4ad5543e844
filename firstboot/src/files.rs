//! Writing small files so that a power cut leaves either the old or the new content.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;

/// Writes `content` beside `path`, flushes it, and renames it into place, with exactly these permission bits.
///
/// # Errors
/// With the path, whatever the file system answers.
pub(crate) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let directory = path.parent().context("a path without a directory")?;
    let mut name = path.file_name().context("a path without a file name")?.to_owned();
    name.push(".new");
    let new = directory.join(name);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// With the path: when it cannot be read, or is larger.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut content));
    read.with_context(|| format!("reading {}", path.display()))?;
    anyhow::ensure!(content.len() as u64 <= limit, "{} is larger than {limit} bytes", path.display());
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_and_mode_are_replaced_and_nothing_else_stays() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("id");
        for (content, mode) in [("one", 0o444), ("two", 0o600)] {
            write_atomically(&path, content.as_bytes(), mode).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("readable"), content);
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o7777, mode);
        }
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_file_over_the_limit_is_refused() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("config");
        fs::write(&path, "12345").expect("written");
        assert_eq!(read_bounded(&path, 5).expect("fits"), b"12345");
        let error = read_bounded(&path, 4).expect_err("too large").to_string();
        assert!(error.ends_with("config is larger than 4 bytes"), "{error}");
    }
}
