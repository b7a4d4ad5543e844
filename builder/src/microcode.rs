//! CPU microcode, as the kernel loads it before anything else: an uncompressed cpio archive with one file per vendor
//! (kernel documentation, `arch/x86/microcode.rst`).
//!
//! The files are those of Debian's `intel-microcode` and `amd64-microcode`, concatenated, which is what their own
//! initramfs hooks do when no processor is singled out.

use anyhow::{Context as _, Result};
use rootfs::{FileId, Node, Pack, Tree};

use crate::unpack::{Kind, Unpacked};

/// Where the kernel looks, and which of the packages' files it finds there.
const VENDORS: [(&str, &str, &str); 2] = [
    ("kernel/x86/microcode/AuthenticAMD.bin", "usr/lib/firmware/amd-ucode/microcode_amd", ".bin"),
    ("kernel/x86/microcode/GenuineIntel.bin", "usr/lib/firmware/intel-ucode/", ""),
];

/// The archive of the microcode in `packages`, or nothing where they hold none.
///
/// # Errors
/// When a pack is damaged.
pub fn archive(packages: &[Unpacked], packs: &[Pack], timestamp: u64) -> Result<Option<Vec<u8>>> {
    let mut tree = Tree::new();
    for (place, prefix, suffix) in VENDORS {
        let mut files: Vec<(&str, &Pack, u32)> = Vec::new();
        for (package, pack) in packages.iter().zip(packs) {
            for entry in &package.index.entries {
                if let Kind::File { file } = entry.kind
                    && entry.path.starts_with(prefix)
                    && entry.path.ends_with(suffix)
                {
                    files.push((&entry.path, pack, file));
                }
            }
        }
        files.sort_by_key(|(path, ..)| *path);
        let mut bytes = Vec::new();
        for (path, pack, file) in files {
            bytes.extend(pack.read_file(FileId::new(file)).with_context(|| format!("reading /{path}"))?);
        }
        if !bytes.is_empty() {
            tree.insert_with_parents(place, Node::inline(0o644, bytes))?;
        }
    }
    if tree.root().is_empty() {
        return Ok(None);
    }
    let mtime = u32::try_from(timestamp).context("cpio has no times after 2106")?;
    let mut archive = Vec::new();
    rootfs::cpio::write(&tree, &[], &mut archive, mtime)?;
    Ok(Some(archive))
}
