//! A disk in memory that holds only what was written to it, for rehearsing writes.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use super::Step;
use crate::error::{Error, Result};
use crate::layout::{Layout, SectorSize};

const BLOCK: u64 = 512;

/// Of any length, zero where nothing was written.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch {
    pub(super) length: u64,
    position: u64,
    blocks: BTreeMap<u64, [u8; BLOCK as usize]>,
}

impl Scratch {
    pub(super) fn new(length: u64) -> Scratch {
        Scratch { length, ..Scratch::default() }
    }

    /// The bytes of one block that an access at the current position may touch: block, offset in it, length.
    fn span(&self, wanted: usize) -> (u64, usize, usize) {
        let offset = self.position % BLOCK;
        let left = self.length.saturating_sub(self.position).min(BLOCK - offset);
        (self.position / BLOCK, offset as usize, wanted.min(left as usize))
    }
}

impl Read for Scratch {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (block, offset, length) = self.span(buffer.len());
        match self.blocks.get(&block) {
            Some(bytes) => buffer[..length].copy_from_slice(&bytes[offset..offset + length]),
            None => buffer[..length].fill(0),
        }
        self.position += length as u64;
        Ok(length)
    }
}

impl Write for Scratch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (block, offset, length) = self.span(bytes.len());
        if length > 0 {
            let held = self.blocks.entry(block).or_insert([0; BLOCK as usize]);
            held[offset..offset + length].copy_from_slice(&bytes[..length]);
        }
        self.position += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Scratch {
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        let position = match target {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// Applies the writes to an empty disk in memory and has the `gpt` crate read both copies: it must find what `layout`
/// says.
pub(super) fn rehearse(steps: &[Step], layout: &Layout) -> Result<()> {
    let mut disk = Scratch::new(layout.disk_bytes());
    for step in steps {
        super::apply(&mut disk, step, &mut |_| Ok(()))?;
    }
    compare(disk, layout).map_err(Error::Rehearsal)
}

/// Says what the `gpt` crate reads other than `layout`.
pub(super) fn compare(disk: Scratch, layout: &Layout) -> Result<(), String> {
    let size = match layout.sector_size() {
        SectorSize::B512 => gpt::disk::LogicalBlockSize::Lb512,
        SectorSize::B4096 => gpt::disk::LogicalBlockSize::Lb4096,
    };
    let read = gpt::GptConfig::new()
        .logical_block_size(size)
        .only_valid_headers(true)
        .open_from_device(disk)
        .map_err(|error| error.to_string())?;
    let primary = read.primary_header().map_err(|error| error.to_string())?;
    let backup = read.backup_header().map_err(|error| error.to_string())?;
    let header = (read.guid(), primary.current_lba, primary.backup_lba, backup.current_lba, backup.backup_lba);
    let last = layout.disk_sectors() - 1;
    if header != (&layout.disk_guid().into(), 1, last, last, 1) {
        return Err(format!("headers {header:?}"));
    }
    if (primary.first_usable, primary.last_usable) != (layout.first_usable(), layout.last_usable()) {
        return Err(format!("usable sectors {} to {}", primary.first_usable, primary.last_usable));
    }
    let entries = |parts: &BTreeMap<u32, gpt::partition::Partition>| -> Vec<_> {
        let fields = |(number, part): (&u32, &gpt::partition::Partition)| {
            let guids = (part.part_type_guid.guid, part.part_guid);
            (*number, part.name.clone(), guids, part.first_lba, part.last_lba, part.flags)
        };
        parts.iter().map(fields).collect()
    };
    let expected: Vec<_> = layout
        .partitions()
        .iter()
        .map(|(&number, part)| {
            let guids = (part.partition_type.guid().into(), part.guid.into());
            let label = part.label.as_str().to_owned();
            (number, label, guids, part.first_lba, part.end_lba() - 1, part.attributes.bits())
        })
        .collect();
    let primary_entries = entries(read.partitions());
    if primary_entries != expected {
        return Err(format!("primary entries {primary_entries:?}"));
    }
    let backup_entries = entries(
        &gpt::partition::file_read_partitions(&mut read.device_ref().clone(), backup, size)
            .map_err(|error| error.to_string())?,
    );
    if backup_entries != expected {
        return Err(format!("backup entries {backup_entries:?}"));
    }
    Ok(())
}
