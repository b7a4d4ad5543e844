//! A whole raw image: partition table, ESP, root file system and hash tree, each byte written once, holes left holes.
//!
//! Left out: compression and other image formats, which take the raw image as it comes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::error::{Context, Error, Result};
use crate::esp;
use crate::layout::{Layout, Partition, Role};
use crate::syslinux;
use crate::table::{self, BootCode};

/// The ESP's directory that receives a node's profile; in every image, with or without files.
pub const PROFILE_DIRECTORY: &str = "nodezero";

/// What goes into an image.
pub struct Contents<'a> {
    /// The ESP's files.
    pub esp_files: Vec<esp::File<'a>>,
    /// Serial number of the ESP's volume.
    pub esp_volume_id: u32,
    /// Time of the ESP's files, in seconds since 1970.
    pub unix_time: u64,
    /// The root file system's image, read from its start.
    pub root: &'a mut File,
    /// Bytes of it.
    pub root_len: u64,
    /// The hash tree with its superblock, read from its start.
    pub verity: &'a mut File,
    /// Bytes of it.
    pub verity_len: u64,
    /// What makes the image boot on a BIOS.
    pub bios: Option<Bios<'a>>,
}

/// A BIOS loader for an image: code in the MBR, and the loader in the ESP. Its configuration and modules are among the
/// ESP's files.
#[derive(Clone, Copy)]
pub struct Bios<'a> {
    /// `gptmbr.bin`, which boots the partition that has the legacy bootable attribute.
    pub mbr_code: &'a [u8; table::BOOT_CODE_BYTES],
    /// The loader.
    pub loader: &'a syslinux::Loader,
}

/// Writes an image over whatever `out` held. Contents must fit their partitions. Not synced: the caller does, where it
/// matters. Returns the plan of the ESP.
pub fn assemble(out: &mut File, layout: &Layout, contents: Contents<'_>) -> Result<esp::Plan> {
    let part = |role: Role| layout.role(role).ok_or(Error::Missing(role.label()));
    let (esp_part, root_part, verity_part) = (part(Role::Esp)?, part(Role::RootA)?, part(Role::RootAVerity)?);
    out.set_len(0).and_then(|()| out.set_len(layout.disk_bytes())).context(|| "sizing the image".to_owned())?;

    let range = layout.byte_range(esp_part);
    let spec = esp::Spec {
        size: range.end - range.start,
        sector: layout.sector_size(),
        first_lba: esp_part.first_lba,
        volume_id: contents.esp_volume_id,
        label: Role::Esp.label().to_owned(),
        unix_time: contents.unix_time,
        directories: vec![PROFILE_DIRECTORY.to_owned()],
    };
    let loader = contents.bios.map(|bios| bios.loader);
    let plan = esp::write(&mut Region::new(out, range.start, spec.size), &spec, contents.esp_files, loader)?;
    copy(contents.root, contents.root_len, out, layout, root_part)?;
    copy(contents.verity, contents.verity_len, out, layout, verity_part)?;
    let boot_code = contents.bios.map_or(BootCode::Clear, |bios| BootCode::Install(bios.mbr_code));
    table::write_table(out, layout, boot_code, |_| Ok(()))?;
    Ok(plan)
}

/// Copies a file into a partition. Between files the standard library lets the kernel copy.
fn copy(from: &mut File, len: u64, out: &mut File, layout: &Layout, partition: &Partition) -> Result<()> {
    let what = partition.label.as_str();
    let range = layout.byte_range(partition);
    let room = range.end - range.start;
    if len > room {
        return Err(Error::TooLarge { what: what.to_owned(), len, room });
    }
    let copied = from
        .seek(SeekFrom::Start(0))
        .and_then(|_| out.seek(SeekFrom::Start(range.start)))
        .and_then(|_| io::copy(&mut from.take(len), out))
        .context(|| format!("copying {what}"))?;
    let left = from.metadata().map(|metadata| metadata.len()).context(|| format!("copying {what}"))?;
    if copied != len || left != len {
        return Err(Error::Length { what: what.to_owned(), declared: len, read: left });
    }
    Ok(())
}

/// A part of a device as a device of its own: reads end and writes stop at its end.
#[derive(Debug)]
pub struct Region<'a, D> {
    device: &'a mut D,
    start: u64,
    len: u64,
    position: u64,
}

impl<'a, D> Region<'a, D> {
    /// The `len` bytes of `device` from `start`.
    pub fn new(device: &'a mut D, start: u64, len: u64) -> Region<'a, D> {
        Region { device, start, len, position: 0 }
    }

    /// What a partition covers.
    pub fn of_partition(device: &'a mut D, layout: &Layout, partition: &Partition) -> Region<'a, D> {
        let range = layout.byte_range(partition);
        Region::new(device, range.start, range.end - range.start)
    }

    fn left(&self, wanted: usize) -> usize {
        usize::try_from(self.len.saturating_sub(self.position)).unwrap_or(usize::MAX).min(wanted)
    }
}

impl<D: Read + Seek> Read for Region<'_, D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.left(buffer.len());
        self.device.seek(SeekFrom::Start(self.start + self.position))?;
        let read = self.device.read(&mut buffer[..length])?;
        self.position += read as u64;
        Ok(read)
    }
}

impl<D: Write + Seek> Write for Region<'_, D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.left(bytes.len());
        self.device.seek(SeekFrom::Start(self.start + self.position))?;
        let written = self.device.write(&bytes[..length])?;
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.device.flush()
    }
}

impl<D> Seek for Region<'_, D> {
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        let position = match target {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.len.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests;
