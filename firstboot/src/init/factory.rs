//! The first content of `/var`: what the image keeps under `/usr/share/factory/var` is copied where nothing stands.
//!
//! Owners, modes and links are copied; nothing that exists is touched, and a directory that exists is only descended
//! into. What is missing is first copied under another name beside its place, whole subtrees at once; then everything is
//! flushed, and renamed. So an entry under its final name is complete, and the copy can be cut at any moment and done
//! again. Left out: extended attributes, hard links, times, devices and sockets, none of which the image's factory tree has.

use std::fs::{self, DirEntry, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Suffix of what is being copied. What a power cut left behind is removed.
const PARTIAL: &str = ".nodezero-partial";

/// Copies what `to` lacks, and flushes its file system. Gives the number of entries that were made.
///
/// # Errors
/// With the path: what the file system answers, or an entry of a kind that is left out.
pub(crate) fn copy_missing(from: &Path, to: &Path) -> anyhow::Result<usize> {
    let mut missing = Vec::new();
    find_missing(from, to, &mut missing)?;
    let mut made = 0;
    for (source, target) in &missing {
        let partial = partial_name(target);
        remove(&partial).with_context(|| format!("removing {}", partial.display()))?;
        made += copy_tree(source, &partial).with_context(|| format!("copying to {}", target.display()))?;
    }
    flush(to)?;
    for (_, target) in &missing {
        fs::rename(partial_name(target), target).with_context(|| format!("completing {}", target.display()))?;
    }
    flush(to)?;
    Ok(made)
}

/// Collects source and target of the topmost entries that `to` lacks.
fn find_missing(from: &Path, to: &Path, missing: &mut Vec<(PathBuf, PathBuf)>) -> anyhow::Result<()> {
    for entry in list(from)? {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        match fs::symlink_metadata(&target) {
            Err(_) => missing.push((source, target)),
            Ok(found) if found.is_dir() && metadata(&entry)?.is_dir() => find_missing(&source, &target, missing)?,
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Copies an entry with all that is below it, to a name that is free. Gives the number of entries.
fn copy_tree(source: &Path, target: &Path) -> anyhow::Result<usize> {
    let metadata = fs::symlink_metadata(source).with_context(|| format!("reading {}", source.display()))?;
    let mut made = 1;
    if metadata.is_dir() {
        fs::create_dir(target)?;
        for entry in list(source)? {
            made += copy_tree(&entry.path(), &target.join(entry.file_name()))?;
        }
    } else if metadata.is_symlink() {
        symlink(fs::read_link(source)?, target)?;
    } else if metadata.is_file() {
        fs::copy(source, target)?;
    } else {
        anyhow::bail!("{} is neither file, directory nor link", source.display());
    }
    std::os::unix::fs::lchown(target, Some(metadata.uid()), Some(metadata.gid()))?;
    if !metadata.is_symlink() {
        // After the owner: a change of owner takes set-user-ID bits away.
        fs::set_permissions(target, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    }
    Ok(made)
}

fn partial_name(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(PARTIAL);
    name.into()
}

/// Removes whatever has this name, if anything has.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(left) if left.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

/// A directory's entries, sorted.
fn list(directory: &Path) -> anyhow::Result<Vec<DirEntry>> {
    let mut entries = fs::read_dir(directory)
        .and_then(|entries| entries.collect::<io::Result<Vec<_>>>())
        .with_context(|| format!("listing {}", directory.display()))?;
    entries.sort_by_key(DirEntry::file_name);
    Ok(entries)
}

fn metadata(entry: &DirEntry) -> anyhow::Result<Metadata> {
    entry.metadata().with_context(|| format!("reading {}", entry.path().display()))
}

fn flush(path: &Path) -> anyhow::Result<()> {
    let open = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    rustix::fs::syncfs(&open).with_context(|| format!("flushing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("tempdir");
        let from = root.path().join("from");
        fs::create_dir_all(from.join("lib/deep")).expect("directory");
        fs::create_dir_all(root.path().join("to")).expect("directory");
        fs::write(from.join("lib/deep/file"), "factory").expect("file");
        fs::set_permissions(from.join("lib/deep/file"), fs::Permissions::from_mode(0o640)).expect("mode");
        fs::set_permissions(from.join("lib/deep"), fs::Permissions::from_mode(0o1777)).expect("mode");
        symlink("../run", from.join("run")).expect("link");
        root
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").mode() & 0o7777
    }

    #[test]
    fn missing_entries_are_copied_once() {
        let root = tree();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        assert_eq!(copy_missing(&from, &to).expect("copied"), 4, "two directories, a file and a link");
        assert_eq!(fs::read_to_string(to.join("lib/deep/file")).expect("there"), "factory");
        assert_eq!((mode(&to.join("lib/deep/file")), mode(&to.join("lib/deep"))), (0o640, 0o1777));
        assert_eq!(fs::read_link(to.join("run")).expect("link"), Path::new("../run"));
        assert_eq!(copy_missing(&from, &to).expect("again"), 0);
    }

    #[test]
    fn what_exists_stays_even_where_its_kind_differs() {
        let root = tree();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        fs::create_dir_all(to.join("lib/deep")).expect("directory");
        fs::write(to.join("lib/deep/file"), "node").expect("file");
        fs::create_dir(to.join("run")).expect("a directory where the factory has a link");
        assert_eq!(copy_missing(&from, &to).expect("copied"), 0);
        assert_eq!(fs::read_to_string(to.join("lib/deep/file")).expect("there"), "node");
        assert!(to.join("run").is_dir());
    }

    #[test]
    fn a_cut_copy_is_finished() {
        let root = tree();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        fs::create_dir_all(to.join("lib/deep")).expect("directory");
        fs::write(to.join("lib/deep/file.nodezero-partial"), "fac").expect("half a file");
        fs::create_dir(to.join("run.nodezero-partial")).expect("half of something");
        assert_eq!(copy_missing(&from, &to).expect("copied"), 2);
        assert_eq!(fs::read_to_string(to.join("lib/deep/file")).expect("there"), "factory");
        let names: Vec<_> = fs::read_dir(to.join("lib/deep")).expect("listed").flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn other_kinds_are_errors_that_name_the_path() {
        let root = tree();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).expect("socket");
        let error = format!("{:#}", copy_missing(&from, &to).expect_err("refused"));
        assert!(error.contains("from/socket is neither file, directory nor link"), "{error}");
    }
}
