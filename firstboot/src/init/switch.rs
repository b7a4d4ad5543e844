//! Leaving the initrd: its files are freed, the new root takes the place of `/`, and systemd that of this program.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use rustix::mount::mount_move;

use crate::summary::{Failure, OrFail};

/// What may be the new root's first process, in order of preference.
const SYSTEMD: [&str; 2] = ["/usr/lib/systemd/systemd", "/sbin/init"];

/// File system types of statfs(2) that have their files in memory.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
const RAMFS_MAGIC: rustix::fs::FsWord = 0x8584_58f6;

/// Goes on as systemd in `root`. Comes back only with a failure; the consoles can be reached in every case.
pub(crate) fn switch_root(root: &Path) -> Failure {
    match enter(root) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

fn enter(root: &Path) -> Result<std::convert::Infallible, Failure> {
    let what = "the root file system cannot take over";
    let faulty = "the image is faulty: report this with its version";
    let found = SYSTEMD.iter().find(|path| fs::symlink_metadata(root.join(path.trim_start_matches('/'))).is_ok());
    let program = found.with_context(|| format!("none of {} is there", SYSTEMD.join(", "))).or_fail(what, faulty)?;
    let switch = || -> anyhow::Result<()> {
        let initrd = File::open("/").context("opening the initrd's root")?;
        rustix::process::chdir(root).with_context(|| format!("entering {}", root.display()))?;
        mount_move(".", "/").context("moving the root file system to /")?;
        rustix::process::chroot(".").context("changing the root directory")?;
        rustix::process::chdir("/").context("entering the new root directory")?;
        free(&initrd);
        Ok(())
    };
    switch().or_fail(what, faulty)?;
    // The kernel's words for init go on to systemd.
    let error = Command::new(program).args(std::env::args_os().skip(1)).exec();
    Err(Failure::new(what, format!("starting {program}: {error}"), faulty))
}

/// Deletes the initrd's files, which take up memory, and only if they are in memory. What cannot be deleted wastes some.
fn free(initrd: &File) {
    let in_memory = [TMPFS_MAGIC, RAMFS_MAGIC];
    if rustix::fs::fstatfs(initrd).is_ok_and(|found| in_memory.contains(&found.f_type)) {
        // The directory is no longer below any path, but the descriptor's link still leads there.
        delete_file_system(&PathBuf::from(format!("/proc/self/fd/{}", initrd.as_raw_fd())));
    }
}

/// Deletes what lies on the file system of `top`, without following links or entering other file systems.
fn delete_file_system(top: &Path) {
    let Ok(device) = fs::metadata(top).map(|metadata| metadata.dev()) else { return };
    delete_below(top, device);
}

fn delete_below(directory: &Path, device: u64) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.dev() != device {
            continue;
        }
        // A directory that holds a mount point stays, and so do its parents.
        let _ = if metadata.is_dir() {
            delete_below(&path, device);
            fs::remove_dir(&path)
        } else {
            fs::remove_file(&path)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deleting_does_not_follow_links() {
        let root = tempfile::tempdir().expect("tempdir");
        let (initrd, kept) = (root.path().join("initrd"), root.path().join("kept"));
        fs::create_dir_all(initrd.join("usr/lib")).expect("directory");
        fs::create_dir(&kept).expect("directory");
        fs::write(initrd.join("usr/lib/module"), "").expect("file");
        fs::write(kept.join("file"), "").expect("file");
        std::os::unix::fs::symlink(&kept, initrd.join("usr/link")).expect("link");
        delete_file_system(&initrd);
        assert_eq!(fs::read_dir(&initrd).expect("listed").count(), 0);
        assert!(kept.join("file").exists());
    }
}
