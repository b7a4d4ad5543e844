//! One flipped bit in what is verified stops the boot, with a message that says so.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use qemu_tests::console::Error;
use qemu_tests::guest::{READY, SUMMARY};
use qemu_tests::storage::{partition, read_at, squashfs_root_inode};
use qemu_tests::vm::BOOT;
use qemu_tests::{Machine, Role, images, scenario};

/// What a message about damage contains, one of them.
const DAMAGE: [&str; 3] = ["corrupt", "verification", "does not match"];

/// What the first stage says when it goes on, a few seconds after the place where damage is found. No machine gets
/// ready without.
const GOES_ON: &str = "nodezero: switch root:";

/// Several times as long as it takes from where damage is found to [`GOES_ON`].
const REST: Duration = Duration::from_secs(15);

fn is_refused(name: &str, offset_of: impl FnOnce(&Path) -> Result<u64>) {
    scenario(name, |s| {
        let image = images::built(Role::Edge, Role::Edge.usual_platform())?.path;
        let machine = Machine::new("edge").disk(s.damaged_boot_disk(&image, offset_of(&image)?)?);
        let vm = s.start(&machine)?;
        let console = vm.console();
        console.expect(SUMMARY);
        console.wait_for_any(&[SUMMARY, READY], BOOT)?;
        // The machine may stay, for someone to read it, or switch itself off, but never go on.
        match console.wait_for_any(&[READY, GOES_ON], REST) {
            Err(Error::Deadline { .. } | Error::Closed { .. }) => {}
            outcome => anyhow::bail!("after the summary: {outcome:?}"),
        }
        for progress in [READY, GOES_ON] {
            ensure!(console.find(progress).is_none(), "{progress:?} with a damaged root");
        }
        ensure!(console.find(SUMMARY).is_some(), "no summary on the console");
        let named = DAMAGE.iter().find_map(|damage| console.find(damage));
        ensure!(named.is_some(), "nothing on the console names the damage");
        Ok(())
    });
}

/// The block of metadata without which no root can be mounted.
#[test]
fn root_metadata() {
    is_refused("tamper-root-metadata", |image| {
        let root = partition(image, "root-a")?;
        let mut superblock = [0; 96];
        read_at(image, root.offset, &mut superblock)?;
        // Within the compressed block, behind its header of two bytes.
        Ok(root.offset + squashfs_root_inode(&superblock)? + 10)
    });
}

/// The time of making in the superblock: a file system that nobody verifies would mount with any.
#[test]
fn root_superblock() {
    is_refused("tamper-root-superblock", |image| Ok(partition(image, "root-a")?.offset + 8));
}

/// The topmost block of the hash tree, which follows dm-verity's superblock.
#[test]
fn hash_tree() {
    is_refused("tamper-hash-tree", |image| Ok(partition(image, "root-a-verity")?.offset + 4096 + 5));
}

/// The number of data blocks in dm-verity's superblock.
/// <https://gitlab.com/cryptsetup/cryptsetup/-/wikis/DMVerity>
#[test]
fn verity_superblock() {
    is_refused("tamper-verity-superblock", |image| Ok(partition(image, "root-a-verity")?.offset + 72));
}
