//! `state`: the partition that outlives generations, and what is mounted from it.
//!
//! | in `state` | appears as |
//! |---|---|
//! | `var/` | `/var` |
//! | `etc/upper`, `etc/work` | `/etc`, an overlay over the image's own |
//! | `nodezero/` | the node's identity, for this program alone |
//!
//! The file system is ext4, made and checked by the programs of the verified root. It is only ever made on a
//! partition that the table calls `state-new`; that name goes away once it is made and on disk. A `state` that cannot be
//! repaired without losing something stops the machine: it is the node's identity and data.
//!
//! It is mounted with `noatime` alone. `nosuid` and `nodev` would break container images, which lie below `/var` and
//! may carry both, and K3s runs programs from there.

use std::ffi::CString;
use std::fs;
use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::mount::{MountFlags, mount, mount_bind};

use super::factory;
use crate::boot::RUN_DIRECTORY;
use crate::command::run_in_root;
use crate::files::write_atomically;
use crate::machine_id::MachineId;
use crate::summary::{Failure, OrFail};

const BLOCK: u64 = 4096;
const LABEL: &str = "nodezero-state";
pub(super) const REPAIR: &str = "if it is full, start a rescue system and make room on it; if it is damaged, repair it there \
                      with e2fsck; only if nothing on it is needed, delete the \
                      partition `state`, and the next start makes a new, empty one (and a new node)";

/// Where `state` is mounted, both in the initrd and in the running system.
pub(crate) fn mount_point() -> PathBuf {
    Path::new(RUN_DIRECTORY).join("state")
}

/// Makes an empty file system on a new partition.
///
/// # Errors
/// When mkfs fails.
pub(crate) fn make(root: &Path, device: &Path) -> Result<(), Failure> {
    let device = device.display().to_string();
    // Inode tables are initialised lazily, after the mount, so that this takes seconds on any disk.
    let arguments =
        ["-t", "ext4", "-q", "-F", "-m", "0", "-L", LABEL, "-b", "4096", "-O", "metadata_csum,64bit", &device];
    let made = run_in_root(root, "/usr/sbin/mke2fs", &arguments, |code| code == 0).map_err(anyhow::Error::from);
    let synced = made.and_then(|_| File::open(&device)?.sync_all().with_context(|| format!("flushing {device}")));
    synced.or_fail("the file system for `state` cannot be made", "check the disk; it may be failing")
}

/// Checks and repairs the file system of an earlier boot, without ever asking or losing anything. One that was
/// unmounted cleanly needs no check, as e2fsck would find too, after a good part of the whole start.
///
/// # Errors
/// When it needs more than e2fsck does by itself.
pub(crate) fn check(root: &Path, device: &Path) -> Result<(), Failure> {
    if read_superblock(device, 0).is_ok_and(|superblock| is_clean(&superblock)) {
        return Ok(());
    }
    let device = device.display().to_string();
    crate::console::say(&format!("nodezero: state: checking the file system on {device}; a large one takes a while"));
    // 1: errors were corrected; 2: and a restart is due, were it mounted, which it is not.
    run_in_root(root, "/usr/sbin/e2fsck", &["-p", &device], |code| code & !3 == 0)
        .map(drop)
        .or_fail("the file system of `state` is damaged beyond what is repaired by itself", REPAIR)
}

/// Mounts `state`, and lets the file system fill its partition of `size` bytes, which may have grown.
///
/// # Errors
/// When it cannot be mounted.
pub(crate) fn mount_state(device: &Path, size: u64) -> Result<(), Failure> {
    let at = mount_point();
    let mounted = fs::create_dir_all(&at).map_err(anyhow::Error::from).and_then(|()| {
        mount(device, &at, "ext4", MountFlags::NOATIME, None)
            .with_context(|| format!("mounting {} at {}", device.display(), at.display()))
    });
    mounted.or_fail("the file system of `state` cannot be mounted", REPAIR)?;
    // A state that stays small is better than none.
    if let Err(error) = grow(device, &at, size) {
        crate::console::say(&format!("nodezero: growing the file system of state to its partition: {error:#}"));
    }
    Ok(())
}

/// Lets the mounted file system fill its partition. A power cut may have come between the partition's growth and this,
/// so the sizes are compared on each start.
fn grow(device: &Path, at: &Path, size: u64) -> anyhow::Result<()> {
    if ext4_blocks(&read_superblock(device, 0)?) < size / BLOCK {
        rustix::fs::ext4_ioc_resize_fs(&File::open(at)?, size / BLOCK)?;
    }
    Ok(())
}

/// Whether a file system that [`make`] made begins at byte `at` of a device.
pub(super) fn is_there(device: &Path, at: u64) -> bool {
    read_superblock(device, at).is_ok_and(|superblock| is_ours(&superblock))
}

/// Reads the [superblock](https://docs.kernel.org/filesystems/ext4/globals.html#super-block) of the ext4 file system that
/// begins at byte `at`.
fn read_superblock(device: &Path, at: u64) -> std::io::Result<[u8; 1024]> {
    let mut superblock = [0; 1024];
    File::open(device)?.read_exact_at(&mut superblock, at + 1024)?;
    Ok(superblock)
}

const MAGIC: [u8; 2] = 0xef53_u16.to_le_bytes();

/// Whether a superblock is one of ext4 with our label.
fn is_ours(superblock: &[u8; 1024]) -> bool {
    let label = &superblock[0x78..0x88];
    let label = label.split(|byte| *byte == 0).next().unwrap_or_default();
    superblock[0x38..0x3a] == MAGIC && label == LABEL.as_bytes()
}

/// Whether a superblock is one of ext4, says that all was unmounted without errors, and has no journal to replay.
fn is_clean(superblock: &[u8; 1024]) -> bool {
    const CLEAN: [u8; 2] = 1_u16.to_le_bytes();
    const NEEDS_RECOVERY: u8 = 0x4;
    superblock[0x38..0x3a] == MAGIC && superblock[0x3a..0x3c] == CLEAN && superblock[0x60] & NEEDS_RECOVERY == 0
}

/// The number of blocks in a superblock: low and high half.
fn ext4_blocks(superblock: &[u8; 1024]) -> u64 {
    let half = |at: usize| u64::from(u32::from_le_bytes(superblock[at..at + 4].try_into().expect("four bytes")));
    half(0x4) | half(0x150) << 32
}

/// Makes the directories of `state`.
///
/// # Errors
/// What the file system answers; a full disk, for example.
pub(crate) fn make_directories() -> Result<(), Failure> {
    let directories = [("var", 0o755), ("etc", 0o755), ("etc/upper", 0o755), ("etc/work", 0o755), ("nodezero", 0o700)];
    let made = directories.iter().try_for_each(|(name, mode)| make_directory(&mount_point().join(name), *mode));
    made.or_fail("`state` cannot be used", REPAIR)
}

/// Mounts `/var` and `/etc` in the new root.
///
/// # Errors
/// What the file system answers; a full disk, for example.
pub(crate) fn mount_parts(root: &Path) -> Result<(), Failure> {
    let state = mount_point();
    let parts = || -> anyhow::Result<()> {
        mount_bind(state.join("var"), root.join("var")).context("binding var of state to /var")?;
        // Features that tie an upper layer to one lower layer are off: the next generation brings another one.
        let options = format!(
            "lowerdir={0},upperdir={1}/upper,workdir={1}/work,index=off,metacopy=off,redirect_dir=off",
            root.join("etc").display(),
            state.join("etc").display()
        );
        let flags = MountFlags::NOATIME;
        mount("overlay", root.join("etc"), "overlay", flags, CString::new(options)?.as_c_str())
            .context("mounting the overlay of /etc")
    };
    parts().or_fail("`state` cannot be used", REPAIR)
}

/// Fills `/var` from the image's factory, once for each image.
///
/// # Errors
/// What the file system answers.
pub(crate) fn fill_var(root: &Path, image: &str) -> Result<Option<usize>, Failure> {
    let factory = root.join("usr/share/factory/var");
    let marker = mount_point().join("nodezero/factory-var");
    if fs::read_to_string(&marker).is_ok_and(|done| done.trim() == image) || !factory.is_dir() {
        return Ok(None);
    }
    let fill = || -> anyhow::Result<usize> {
        let made = factory::copy_missing(&factory, &root.join("var"))?;
        write_atomically(&marker, format!("{image}\n").as_bytes(), 0o600)?;
        Ok(made)
    };
    fill().map(Some).or_fail("the first content of /var cannot be written", REPAIR)
}

/// The node's machine-id: kept on `state`, and put where systemd looks for it.
///
/// # Errors
/// When it is damaged or cannot be written.
pub(crate) fn machine_id(root: &Path) -> Result<MachineId, Failure> {
    let keep = || -> anyhow::Result<MachineId> {
        let id = MachineId::keep(&mount_point().join("nodezero/machine-id"))?;
        id.install(&root.join("etc/machine-id"))?;
        Ok(id)
    };
    keep().or_fail("the node's machine-id cannot be kept", REPAIR)
}

/// Makes a directory unless it is there; its mode is what is given even if a power cut came in between.
fn make_directory(path: &Path, mode: u32) -> anyhow::Result<()> {
    let make = || {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    make().with_context(|| format!("making {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clean_file_system_goes_unchecked() {
        let mut clean = [0; 1024];
        clean[0x38..0x3c].copy_from_slice(&[0x53, 0xef, 1, 0]);
        clean[0x60] = 0xc2;
        assert!(is_clean(&clean));
        for (case, at, value) in
            [("magic", 0x38, 0), ("errors", 0x3a, 3), ("not unmounted", 0x3a, 0), ("journal", 0x60, 0xc6)]
        {
            let mut superblock = clean;
            superblock[at] = value;
            assert!(!is_clean(&superblock), "{case}");
        }
    }

    #[test]
    fn a_state_is_known_by_its_label() {
        let disk = tempfile::NamedTempFile::new().expect("a file");
        let mut superblock = [0; 1024];
        superblock[0x38..0x3a].copy_from_slice(&MAGIC);
        superblock[0x78..0x78 + LABEL.len()].copy_from_slice(LABEL.as_bytes());
        disk.as_file().write_all_at(&superblock, 8192 + 1024).expect("written");
        assert!(is_there(disk.path(), 8192));
        assert!(!is_there(disk.path(), 0) && !is_there(disk.path(), 1 << 20), "elsewhere");
        for at in [0x38, 0x78, 0x78 + LABEL.len()] {
            let mut other = superblock;
            other[at] ^= 1;
            assert!(!is_ours(&other), "{at:#x}");
        }
    }

    #[test]
    fn the_size_of_a_file_system_is_read() {
        let mut superblock = [0; 1024];
        superblock[0x4..0x8].copy_from_slice(&7_u32.to_le_bytes());
        superblock[0x150..0x154].copy_from_slice(&1_u32.to_le_bytes());
        assert_eq!(ext4_blocks(&superblock), (1 << 32) + 7);
    }

    #[test]
    fn directories_get_their_mode_however_they_were_left() {
        let root = tempfile::tempdir().expect("tempdir");
        let path = root.path().join("nodezero");
        fs::create_dir(&path).expect("directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        for _ in 0..2 {
            make_directory(&path, 0o700).expect("made");
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o700);
        }
    }
}
