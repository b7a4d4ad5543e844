//! Whether a disk is blank, or holds what a NodeZero node writes on a data disk, whole or cut short at any moment.
//!
//! A data disk comes into being by these writes, in batches that a flush separates ([`disk::table`]):
//!
//! | batch | writes | stage when cut within, or right after |
//! |---|---|---|
//! | 1 | backup entries and header, the partition called new | [`Stage::Table`] |
//! | 2 | primary entries and header | [`Stage::Table`] |
//! | 3 | protective MBR | [`Stage::Table`]; [`Stage::FileSystem`] right after |
//! | - | mkfs, within the partition | [`Stage::FileSystem`] |
//! | 4 | backup entries and header, the partition under its final name | [`Stage::Name`] |
//! | 5 | primary entries and header | [`Stage::Name`]; [`Stage::Done`] right after |
//! | 6 | protective MBR, as it is | [`Stage::Done`] |
//!
//! A disk may carry out the writes of one batch in any order and in part, in blocks of 512 bytes. So a state is ours if
//! and only if, for one of the batches, every block outside the partition is as all batches before leave it, or as this
//! one writes it. All of it follows from one GUID, which is read from any header or entry that is there. Nothing
//! else is: one block more or another byte, and the disk is not ours.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use disk::layout::{Layout, data_disk};
use disk::table::{BootCode, Step, plan_write};
use disk::{Guid, Label, SectorSize};
use nodezero_profile::inventory::Stage;
use nodezero_profile::mark::{DATA_LABEL, DATA_LABEL_NEW, Marks};
use uuid::Uuid;

/// How much of a disk's start and end must be zero for it to be called blank, in bytes. 16 MiB hold every structure by
/// which file systems, RAID, volume managers and encryption know their disks, LUKS2 key slots included, and data that
/// nothing recognises begins there too; reading them takes a tenth of a second on the slowest disk.
pub(crate) const EDGE: u64 = 16 << 20;

const CHUNK: usize = 1 << 20;
const BLOCK: usize = 512;
/// More blocks than these outside the partition, and the disk is not ours: a finished one has five.
const MOST_BLOCKS: usize = 16;

type Block = [u8; BLOCK];
/// Blocks that are not zero, by offset.
type Blocks = BTreeMap<u64, Block>;

/// What the ends of a disk say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// All is zero.
    Blank,
    /// What a NodeZero node writes, and nothing else.
    Prepared {
        /// How far it came.
        stage: Stage,
        /// GUID of the disk, where a header is there.
        disk_guid: Option<Uuid>,
        /// GUID of the partition.
        partition_guid: Uuid,
        /// The partition's bytes.
        partition: Range<u64>,
    },
    /// Anything else.
    Other {
        /// Offset of the first byte that is not zero.
        at: u64,
    },
}

/// The table of a data disk.
///
/// # Errors
/// When the disk is too small, or its sectors have another size than 512 or 4096 bytes.
pub(crate) fn layout(size: u64, sector_size: u32, disk: Uuid, partition: Uuid, label: &str) -> disk::Result<Layout> {
    let sector = SectorSize::new(u64::from(sector_size))?;
    data_disk(sector, size / sector.bytes(), Guid::from(disk), Label::new(label)?, Guid::from(partition))
}

/// Reads both ends of a disk.
///
/// # Errors
/// When they cannot be read.
pub(crate) fn recognise<D: Read + Seek>(device: &mut D, size: u64, sector_size: u32) -> io::Result<Seen> {
    let Ok(nil) = layout(size, sector_size, Uuid::nil(), Uuid::nil(), DATA_LABEL) else {
        // Too small for ours.
        let ends = Ends::read(device, size, &(0..0))?;
        return Ok(ends.first.map_or(Seen::Blank, |at| Seen::Other { at }));
    };
    let partition = nil.byte_range(&nil.partitions()[&1]);
    let ends = Ends::read(device, size, &partition)?;
    let Some(at) = ends.first else { return Ok(Seen::Blank) };
    if ends.outside.len() > MOST_BLOCKS {
        return Ok(Seen::Other { at });
    }
    let found = Candidate::all(&ends.outside, &nil).into_iter().find_map(|candidate| {
        let stage = stage_of(&ends.outside, &candidate.batches(size, sector_size).ok()?)?;
        // The partition is written to only once the table is whole.
        let possible = stage != Stage::Table || !ends.inside;
        let Candidate { disk: disk_guid, partition: partition_guid } = candidate;
        possible.then_some(Seen::Prepared { stage, disk_guid, partition_guid, partition: partition.clone() })
    });
    Ok(found.unwrap_or(Seen::Other { at }))
}

/// What is not zero at both ends.
struct Ends {
    /// The first byte of all.
    first: Option<u64>,
    /// Blocks outside the partition; at least as many as it takes to see that there are too many.
    outside: Blocks,
    /// Whether there is something inside the partition.
    inside: bool,
}

impl Ends {
    fn read<D: Read + Seek>(device: &mut D, size: u64, partition: &Range<u64>) -> io::Result<Self> {
        let mut ends = Self { first: None, outside: Blocks::new(), inside: false };
        let head = size.min(EDGE);
        for range in [0..head, head.max(size.saturating_sub(EDGE))..size] {
            let mut at = range.start;
            device.seek(SeekFrom::Start(at))?;
            let mut buffer = vec![0; CHUNK];
            while at < range.end {
                let length = usize::try_from(range.end - at).unwrap_or(CHUNK).min(CHUNK);
                device.read_exact(&mut buffer[..length])?;
                ends.note(at, &buffer[..length], partition);
                at += length as u64;
            }
        }
        Ok(ends)
    }

    fn note(&mut self, start: u64, bytes: &[u8], partition: &Range<u64>) {
        static ZEROS: [u8; CHUNK] = [0; CHUNK];
        // Nearly all of a blank disk is passed over here, at the speed of memory.
        if bytes == &ZEROS[..bytes.len()] {
            return;
        }
        for (at, piece) in (start..).step_by(BLOCK).zip(bytes.chunks(BLOCK)) {
            if piece == &ZEROS[..piece.len()] {
                continue;
            }
            let Some(first) = piece.iter().position(|&byte| byte != 0) else { continue };
            self.first = self.first.or(Some(at + first as u64));
            if partition.contains(&at) {
                self.inside = true;
            } else if self.outside.len() <= MOST_BLOCKS {
                let mut block = [0; BLOCK];
                block[..piece.len()].copy_from_slice(piece);
                self.outside.insert(at, block);
            }
        }
    }
}

/// GUIDs from which all that a node writes outside the partition follows.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Candidate {
    /// Missing where only entries are there.
    disk: Option<Uuid>,
    partition: Uuid,
}

impl Candidate {
    /// Those that a header or a first entry names.
    fn all(blocks: &Blocks, nil: &Layout) -> Vec<Self> {
        const DISK_GUID: Range<usize> = 56..72;
        const ENTRY_GUID: Range<usize> = 16..32;
        let sector = nil.sector_size().bytes();
        let last = (nil.disk_sectors() - 1) * sector;
        let guid = |at: u64, field: Range<usize>| {
            let bytes: [u8; 16] = blocks.get(&at)?[field].try_into().expect("sixteen bytes");
            Some(Uuid::from_bytes_le(bytes))
        };
        let disks = [sector, last].into_iter().filter_map(|at| guid(at, DISK_GUID));
        let disks = disks.map(|disk| Self { disk: Some(disk), partition: Marks::partition_of(disk) });
        let entries = [(nil.last_usable() + 1) * sector].into_iter().filter_map(|at| guid(at, ENTRY_GUID));
        disks.chain(entries.map(|partition| Self { disk: None, partition })).collect()
    }

    /// What each batch writes.
    fn batches(self, size: u64, sector_size: u32) -> disk::Result<Vec<Vec<(u64, Block)>>> {
        let table = |label| layout(size, sector_size, self.disk.unwrap_or_default(), self.partition, label);
        let steps = |layout: &Layout| plan_write(layout, &[0; 512], BootCode::Clear);
        let Some(_) = self.disk else {
            // Without a header on the disk, only the first write of all can have come that far.
            let first = steps(&table(DATA_LABEL_NEW)?).into_iter().take(1).collect::<Vec<_>>();
            return Ok(vec![blocks_of(&first)]);
        };
        let both = [steps(&table(DATA_LABEL_NEW)?), steps(&table(DATA_LABEL)?)].concat();
        let batches = both.split(|step| *step == Step::Barrier).filter(|batch| !batch.is_empty());
        Ok(batches.map(blocks_of).collect())
    }
}

fn blocks_of(steps: &[Step]) -> Vec<(u64, Block)> {
    let mut blocks = Vec::new();
    for step in steps {
        let Step::Write { offset, bytes, .. } = step else { continue };
        for (at, piece) in (*offset..).step_by(BLOCK).zip(bytes.chunks(BLOCK)) {
            blocks.push((at, piece.try_into().expect("tables are written in whole blocks")));
        }
    }
    blocks
}

/// How far the writes came that left these blocks; `None` where no such writes leave them.
fn stage_of(seen: &Blocks, batches: &[Vec<(u64, Block)>]) -> Option<Stage> {
    let mut states = vec![Blocks::new()];
    for batch in batches {
        let mut next = states[states.len() - 1].clone();
        for (at, block) in batch {
            // What is zero is not listed.
            if *block == [0; BLOCK] {
                next.remove(at)
            } else {
                next.insert(*at, *block)
            };
        }
        states.push(next);
    }
    // The last state that fits counts: writing the same bytes again changes nothing.
    if let Some(done) = states.iter().rposition(|state| state == seen) {
        return Some(match done {
            0..=2 => Stage::Table,
            3 => Stage::FileSystem,
            4 => Stage::Name,
            _ => Stage::Done,
        });
    }
    let cut = states.windows(2).position(|pair| {
        let mut offsets = seen.keys().chain(pair[0].keys()).chain(pair[1].keys());
        offsets.all(|at| [pair[0].get(at), pair[1].get(at)].contains(&seen.get(at)))
    });
    cut.map(|batch| if batch < 3 { Stage::Table } else { Stage::Name })
}
