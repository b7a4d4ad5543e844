//! The root file system: dm-verity over its slot, and the mount.
//!
//! The root hash comes from the kernel command line alone; salt and size from the superblock beside the hash tree, where a
//! lie shows as blocks that do not match.
//!
//! **What happens on corruption.** While the first stage runs, reading a corrupted block fails, so that the stage
//! can print its summary; the device's own state (`C`) tells corruption from any other failure. Right before systemd
//! takes over, the table is replaced by one that panics: a node must not go on with half a root file system, and with
//! `panic=` on the command line it restarts, so that boot counting falls back to the other slot. The kernel's lines
//! then say `block N is corrupted` and `dm-verity device corrupted`. A block is checked when it is read; what nobody
//! reads while starting is read by the first-boot service before it calls the node ready.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;
use rustix::mount::{MountFlags, mount};
use verity::superblock::SUPERBLOCK_SIZE;
use verity::table::{OnCorruption, TARGET_TYPE, Table};
use verity::{RootHash, Superblock};

use super::device_mapper::{Device, Target};
use super::modules::Loader;
use crate::summary::{Failure, OrFail};

/// The device's name: `/dev/mapper/root`.
pub(crate) const NAME: &str = "root";

const REWRITE: &str = "write the image to this disk again; `state` is kept when only the slot is written";

/// The verified root device.
#[derive(Debug)]
pub(crate) struct Root {
    device: Device,
    superblock: Superblock,
    root_hash: RootHash,
    data: String,
    hash: String,
}

/// A file system that a root may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileSystem {
    Squashfs,
    Erofs,
}

impl FileSystem {
    /// The kernel's name for it.
    fn name(self) -> &'static str {
        match self {
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
        }
    }

    /// Recognised by its magic number: squashfs at the start, EROFS 1024 bytes further on.
    fn detect(start: &[u8]) -> Option<Self> {
        if start.starts_with(b"hsqs") {
            Some(Self::Squashfs)
        } else if start.get(1024..1028) == Some(&0xe0f5_e1e2_u32.to_le_bytes()) {
            Some(Self::Erofs)
        } else {
            None
        }
    }

    /// The length in bytes that a squashfs superblock states (`bytes_used`, offset 40); EROFS is not asked.
    fn length(self, start: &[u8]) -> Option<u64> {
        match self {
            Self::Squashfs => Some(u64::from_le_bytes(start.get(40..48)?.try_into().ok()?)),
            Self::Erofs => None,
        }
    }
}

impl Root {
    /// Opens the device over the two partitions of a slot.
    ///
    /// # Errors
    /// When the superblock is none, or the kernel refuses.
    pub(crate) fn open(root_hash: RootHash, data: &Path, hash: &Path) -> Result<Self, Failure> {
        let what = "the root file system's verification cannot be set up";
        let read = || -> anyhow::Result<Superblock> {
            let mut bytes = [0; SUPERBLOCK_SIZE];
            let file = File::open(hash).with_context(|| format!("opening {}", hash.display()))?;
            file.read_exact_at(&mut bytes, 0).with_context(|| format!("reading {}", hash.display()))?;
            Superblock::parse(&bytes).with_context(|| format!("reading the superblock of {}", hash.display()))
        };
        let superblock =
            read().or_fail("the root file system is corrupted: its hash tree has no valid superblock", REWRITE)?;
        let (data, hash) = (data.display().to_string(), hash.display().to_string());
        let open = || -> anyhow::Result<Device> {
            let table = Table::new(&superblock, &root_hash, &data, &hash, OnCorruption::Fail)?;
            let device = Device::create(NAME, &device_uuid(&superblock), target(&table))?;
            device.link()?;
            Ok(device)
        };
        let device = open()
            .or_fail(what, "check that the initrd has the modules dm_mod and dm_verity, or write the image again")?;
        Ok(Self { device, superblock, root_hash, data, hash })
    }

    /// Mounts the root file system read-only.
    ///
    /// # Errors
    /// When it is of no known kind, or cannot be read.
    pub(crate) fn mount(&self, at: &Path, loader: &mut Loader<'_>) -> Result<(), Failure> {
        let node = self.device.node();
        let mut start = [0; 4096];
        let read = File::open(node).and_then(|file| file.read_exact_at(&mut start, 0));
        let mounted = read.with_context(|| format!("reading {}", node.display())).and_then(|()| {
            let kind = FileSystem::detect(&start).context("neither squashfs nor EROFS begins there")?;
            self.check_length(kind, &start)?;
            loader.load(&format!("fs-{}", kind.name()));
            mount(node, at, kind.name(), MountFlags::RDONLY, None)
                .with_context(|| format!("mounting {} as {}", node.display(), kind.name()))
        });
        mounted.or_fail("the root file system cannot be mounted", REWRITE)
    }

    /// The root hash does not cover the length in the hash tree's superblock, so it must be the file system's own, in
    /// whole blocks, as the builder makes them.
    fn check_length(&self, kind: FileSystem, start: &[u8; 4096]) -> anyhow::Result<()> {
        let covered = self.superblock.data_length();
        match kind.length(start) {
            Some(length) if length.next_multiple_of(verity::BLOCK_SIZE) != covered => anyhow::bail!(
                "the hash tree's superblock does not match the root file system: it covers {covered} bytes of {length}"
            ),
            _ => Ok(()),
        }
    }

    /// A failure for this device, if a corrupted block has been read from it.
    pub(crate) fn corruption(&self) -> Option<Failure> {
        let state = self.device.status().ok()?;
        (state.trim() == "C").then(|| {
            let why = format!(
                "dm-verity read a block of {} (hash tree on {}) that does not match root hash {}",
                self.data, self.hash, self.root_hash
            );
            Failure::new("the root file system is corrupted", why, REWRITE)
        })
    }

    /// From here on a corrupted block stops the kernel. See the module's documentation.
    ///
    /// # Errors
    /// When the kernel refuses the new table.
    pub(crate) fn panic_on_corruption(&self) -> Result<(), Failure> {
        Table::new(&self.superblock, &self.root_hash, &self.data, &self.hash, OnCorruption::Panic)
            .map_err(anyhow::Error::from)
            .and_then(|table| self.device.replace_table(target(&table)))
            .or_fail(
                "the root file system's verification cannot be made strict",
                "restart; if it stays, write the image again",
            )
    }
}

/// As veritysetup names its devices, so that its tools, and systemd's, recognise this one.
fn device_uuid(superblock: &Superblock) -> String {
    let uuid: String = superblock.uuid().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("CRYPT-VERITY-{uuid}-{NAME}")
}

fn target(table: &Table) -> Target<'_> {
    Target { sectors: table.sectors(), kind: TARGET_TYPE, parameters: table.parameters() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_known_by_their_magic() {
        let mut erofs = vec![0; 4096];
        erofs[1024..1028].copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]);
        for (start, expected) in [
            (b"hsqs and more".to_vec(), Some(FileSystem::Squashfs)),
            (erofs, Some(FileSystem::Erofs)),
            (vec![0; 4096], None),
            (vec![], None),
        ] {
            assert_eq!(FileSystem::detect(&start), expected);
        }
    }

    #[test]
    fn the_device_is_named_as_veritysetup_would() {
        let superblock = Superblock::new(*b"0123456789abcdef", 1, b"").expect("valid");
        assert_eq!(device_uuid(&superblock), "CRYPT-VERITY-30313233343536373839616263646566-root");
    }
}
