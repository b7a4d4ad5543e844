//! The EFI system partition: a FAT32 file system
//! ([Microsoft's FAT specification, 1.03](https://download.microsoft.com/download/1/6/1/161ba512-40e2-4cc9-843a-923143f3456c/fatgen103.doc),
//! and UEFI 2.10, section 13.3).
//!
//! **Why not written with `fatfs`.** A new file system is computed first ([`Plan`]) and then emitted front to back:
//! every file is one run of clusters, what is zero stays a hole, the times are the build's, and where each file lies is
//! known before a byte is written, which is what the BIOS loader needs. `fatfs` 0.3 allocates one cluster at a time,
//! cannot set attributes, tells no file's place and takes its clock as a `'static`. It serves for what it is good at: it
//! reads file systems, ours and others', and puts a file into one that exists (the profile that `flash` injects).
//!
//! Left out: FAT12 and FAT16, and code pages other than ASCII for short names.

mod existing;
mod name;
mod plan;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

pub use existing::{Found, list, put_file, read_file, remove_file};
pub use plan::{Extent, Plan, PlannedFile};

use crate::error::{Context, Error, Result};
use crate::layout::SectorSize;
use crate::syslinux;

/// A new file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Size of the partition in bytes.
    pub size: u64,
    /// Sector size of the disk.
    pub sector: SectorSize,
    /// First sector of the partition on the disk, which BIOS loaders look up in the file system.
    pub first_lba: u64,
    /// The volume's serial number.
    pub volume_id: u32,
    /// The volume's label: up to 11 characters of those that a short name may have.
    pub label: String,
    /// Time of all files and directories, in seconds since 1970, in UTC. FAT knows 1980 to 2107, even seconds.
    pub unix_time: u64,
    /// Directories to be there though nothing may be in them: [`put_file`] makes none.
    pub directories: Vec<String>,
}

/// One file of a new file system. Directories of its path are made as needed.
pub struct File<'a> {
    /// Path from the root, with `/` between components; a leading one is optional.
    pub path: String,
    /// What is in it.
    pub content: Content<'a>,
}

/// Where a file's bytes come from.
pub enum Content<'a> {
    /// Memory.
    Bytes(Cow<'a, [u8]>),
    /// A reader of exactly so many bytes.
    Stream {
        /// The reader, read once, front to back.
        reader: Box<dyn Read + 'a>,
        /// Bytes it yields.
        len: u64,
    },
}

impl Content<'_> {
    /// The length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Stream { len, .. } => *len,
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Writes a new file system to `out`, whose first byte is the partition's and whose bytes are zero: what is zero is
/// not written. With a BIOS loader, `ldlinux.sys` is one more file, hidden, and the boot sector is the loader's. Returns
/// the plan, which tells where each file lies.
pub fn write<W: Write + Seek>(
    out: &mut W,
    spec: &Spec,
    files: Vec<File<'_>>,
    loader: Option<&syslinux::Loader>,
) -> Result<Plan> {
    let mut planned: Vec<PlannedFile> =
        files.iter().map(|file| PlannedFile::new(&file.path, file.content.len())).collect();
    if let Some(loader) = loader {
        planned.push(PlannedFile { hidden: true, ..PlannedFile::new(syslinux::LDLINUX_PATH, loader.installed_len()) });
    }
    let plan = Plan::new(spec, &planned)?;
    let mut contents: BTreeMap<String, Content<'_>> =
        files.into_iter().map(|file| (plan::normal(&file.path), file.content)).collect();
    let mut boot_sector = plan.boot_sector();
    if let Some(loader) = loader {
        let extent =
            plan.extent(syslinux::LDLINUX_PATH).ok_or_else(|| Error::FatPath(syslinux::LDLINUX_PATH.into()))?;
        let installed = loader.install(&boot_sector, spec.sector, extent)?;
        boot_sector = installed.boot_sector;
        contents.insert(syslinux::LDLINUX_PATH.to_owned(), Content::Bytes(Cow::Owned(installed.ldlinux)));
    }
    for (offset, bytes) in plan.metadata(&boot_sector) {
        out.seek(SeekFrom::Start(offset))
            .and_then(|_| out.write_all(&bytes))
            .context(|| "writing FAT metadata".to_owned())?;
    }
    for (path, extent) in plan.extents() {
        let Some(content) = contents.remove(path) else { continue };
        let seek = out.seek(SeekFrom::Start(extent.first_sector * spec.sector.bytes()));
        seek.context(|| format!("writing {path}"))?;
        copy(out, path, content)?;
    }
    Ok(plan)
}

fn copy<W: Write>(out: &mut W, path: &str, content: Content<'_>) -> Result<()> {
    match content {
        Content::Bytes(bytes) => out.write_all(&bytes).context(|| format!("writing {path}")),
        Content::Stream { reader, len: declared } => {
            let mut reader = reader.take(declared.saturating_add(1));
            let mut buffer = vec![0; 1 << 20];
            let mut read = 0;
            loop {
                let length = match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error).context(|| format!("reading the content of {path}")),
                };
                read += length as u64;
                if read > declared {
                    break;
                }
                out.write_all(&buffer[..length]).context(|| format!("writing {path}"))?;
            }
            if read == declared { Ok(()) } else { Err(Error::Length { what: path.to_owned(), declared, read }) }
        }
    }
}

#[cfg(test)]
mod tests;
