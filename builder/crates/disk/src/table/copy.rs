//! One copy of a table: a header of 92 bytes in a sector of its own, and an array of entries.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};

use crate::error::Error;
use crate::guid::Guid;
use crate::layout::{Attributes, ENTRIES_BYTES, Label, Layout, MAX_PARTITIONS, Partition, SectorSize};
use crate::type_guid::PartitionType;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const REVISION: u32 = 0x0001_0000;
const HEADER_BYTES: u32 = 92;
const ENTRY_BYTES: u32 = 128;

/// The most entries that are read. Tables in the wild have 128, a few 256.
const MAX_ENTRIES: u32 = 1024;

/// Offsets of the header's fields.
mod header {
    pub(super) const REVISION: usize = 8;
    pub(super) const SIZE: usize = 12;
    pub(super) const CRC: usize = 16;
    pub(super) const MY_LBA: usize = 24;
    pub(super) const ALTERNATE_LBA: usize = 32;
    pub(super) const FIRST_USABLE: usize = 40;
    pub(super) const LAST_USABLE: usize = 48;
    pub(super) const DISK_GUID: usize = 56;
    pub(super) const ENTRIES_LBA: usize = 72;
    pub(super) const ENTRIES: usize = 80;
    pub(super) const ENTRY_BYTES: usize = 84;
    pub(super) const ENTRIES_CRC: usize = 88;
}

/// Offsets of an entry's fields.
mod entry {
    pub(super) const TYPE: usize = 0;
    pub(super) const GUID: usize = 16;
    pub(super) const FIRST: usize = 32;
    pub(super) const LAST: usize = 40;
    pub(super) const ATTRIBUTES: usize = 48;
    pub(super) const NAME: usize = 56;
    pub(super) const END: usize = 128;
}

/// Why a copy of a table is not valid.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Defect {
    /// It could not be read.
    Unreadable(String),
    /// There is no header.
    NoSignature,
    /// The header is of another revision.
    Revision(u32),
    /// The header's size is out of range.
    HeaderSize(u32),
    /// The header's checksum is wrong.
    HeaderChecksum {
        /// As computed.
        computed: u32,
        /// As stored.
        stored: u32,
    },
    /// The header belongs into another sector.
    WrongPlace {
        /// Where it is.
        at: u64,
        /// Where it says it is.
        says: u64,
    },
    /// Number or size of the entries are out of range.
    Entries {
        /// Their number.
        number: u32,
        /// Bytes of one.
        bytes: u32,
    },
    /// The checksum of the entries is wrong.
    EntriesChecksum {
        /// As computed.
        computed: u32,
        /// As stored.
        stored: u32,
    },
    /// The checksums are right and the partitions cannot be.
    Layout(String),
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Defect::Unreadable(why) => write!(f, "unreadable: {why}"),
            Defect::NoSignature => f.write_str("no signature"),
            Defect::Revision(revision) => write!(f, "header revision is {revision:#x}, expected {REVISION:#x}"),
            Defect::HeaderSize(bytes) => write!(f, "header size is {bytes} bytes, expected {HEADER_BYTES} or more"),
            Defect::HeaderChecksum { computed, stored } => {
                write!(f, "header checksum is {computed:08x}, expected {stored:08x}")
            }
            Defect::WrongPlace { at, says } => write!(f, "header in sector {at} says it is in {says}"),
            Defect::Entries { number, bytes } => write!(f, "{number} entries of {bytes} bytes"),
            Defect::EntriesChecksum { computed, stored } => {
                write!(f, "checksum of the entries is {computed:08x}, expected {stored:08x}")
            }
            Defect::Layout(why) => f.write_str(why),
        }
    }
}

impl From<io::Error> for Defect {
    fn from(error: io::Error) -> Defect {
        Defect::Unreadable(error.to_string())
    }
}

/// A valid copy.
pub(super) struct Copy {
    pub(super) layout: Layout,
    pub(super) alternate_lba: u64,
}

/// Reads and checks the copy whose header is in sector `lba`.
pub(super) fn read<D: Read + Seek>(
    device: &mut D,
    sector: SectorSize,
    disk_sectors: u64,
    lba: u64,
) -> Result<Copy, Defect> {
    if lba == 0 || lba >= disk_sectors {
        return Err(Defect::Unreadable(format!("sector {lba} is outside the disk")));
    }
    let mut head = vec![0; sector.bytes() as usize];
    read_at(device, lba * sector.bytes(), &mut head)?;
    check_header(&head, lba)?;
    let (number, bytes) = (u32_at(&head, header::ENTRIES), u32_at(&head, header::ENTRY_BYTES));
    if number > MAX_ENTRIES || !bytes.is_power_of_two() || !(ENTRY_BYTES..=4096).contains(&bytes) {
        return Err(Defect::Entries { number, bytes });
    }
    let entries_lba = u64_at(&head, header::ENTRIES_LBA);
    let length = u64::from(number) * u64::from(bytes);
    if entries_lba >= disk_sectors || (disk_sectors - entries_lba) * sector.bytes() < length {
        return Err(Defect::Unreadable(format!("entries in sector {entries_lba} are outside the disk")));
    }
    let mut entries = vec![0; length as usize];
    read_at(device, entries_lba * sector.bytes(), &mut entries)?;
    let (computed, stored) = (crc32fast::hash(&entries), u32_at(&head, header::ENTRIES_CRC));
    if computed != stored {
        return Err(Defect::EntriesChecksum { computed, stored });
    }
    let alternate_lba = u64_at(&head, header::ALTERNATE_LBA);
    let layout = decode(&head, sector, &entries, bytes as usize, lba.max(alternate_lba))
        .map_err(|error| Defect::Layout(error.to_string()))?;
    Ok(Copy { layout, alternate_lba })
}

fn check_header(head: &[u8], lba: u64) -> Result<(), Defect> {
    if !head.starts_with(SIGNATURE) {
        return Err(Defect::NoSignature);
    }
    let size = u32_at(head, header::SIZE);
    if size < HEADER_BYTES || size as usize > head.len() {
        return Err(Defect::HeaderSize(size));
    }
    let mut checked = head[..size as usize].to_vec();
    checked[header::CRC..header::CRC + 4].fill(0);
    let (computed, stored) = (crc32fast::hash(&checked), u32_at(head, header::CRC));
    if computed != stored {
        return Err(Defect::HeaderChecksum { computed, stored });
    }
    match (u32_at(head, header::REVISION), u64_at(head, header::MY_LBA)) {
        (REVISION, says) if says == lba => Ok(()),
        (REVISION, says) => Err(Defect::WrongPlace { at: lba, says }),
        (revision, _) => Err(Defect::Revision(revision)),
    }
}

fn decode(head: &[u8], sector: SectorSize, entries: &[u8], entry_bytes: usize, last_lba: u64) -> Result<Layout, Error> {
    let (first_usable, last_usable) = (u64_at(head, header::FIRST_USABLE), u64_at(head, header::LAST_USABLE));
    let mut partitions = BTreeMap::new();
    for (number, bytes) in (1..).zip(entries.chunks_exact(entry_bytes)) {
        let type_guid = guid_at(bytes, entry::TYPE);
        if type_guid == Guid::NIL {
            continue;
        }
        let units: Vec<u16> =
            bytes[entry::NAME..entry::END].chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
        let (first_lba, last_lba) = (u64_at(bytes, entry::FIRST), u64_at(bytes, entry::LAST));
        let label = Label::from_units(&units);
        let sectors = last_lba.checked_sub(first_lba).and_then(|less| less.checked_add(1)).unwrap_or(0);
        if first_lba < first_usable || last_lba > last_usable {
            let label = label.as_str().to_owned();
            return Err(Error::OutOfRange { label, first_lba, sectors, first_usable, last_usable });
        }
        let partition = Partition {
            label,
            partition_type: PartitionType::from(type_guid),
            guid: guid_at(bytes, entry::GUID),
            first_lba,
            sectors,
            attributes: Attributes::from_bits(u64_at(bytes, entry::ATTRIBUTES)),
        };
        partitions.insert(number, partition);
    }
    Layout::new(sector, guid_at(head, header::DISK_GUID), last_lba.saturating_add(1), partitions)
}

/// The array of entries, 128 of 128 bytes.
pub(super) fn encode_entries(layout: &Layout) -> Vec<u8> {
    let mut entries = vec![0; ENTRIES_BYTES as usize];
    for (&number, part) in layout.partitions() {
        let start = (number - 1) as usize * ENTRY_BYTES as usize;
        let bytes = &mut entries[start..start + ENTRY_BYTES as usize];
        put(bytes, entry::TYPE, &part.partition_type.guid().to_disk());
        put(bytes, entry::GUID, &part.guid.to_disk());
        put(bytes, entry::FIRST, &part.first_lba.to_le_bytes());
        put(bytes, entry::LAST, &(part.end_lba() - 1).to_le_bytes());
        put(bytes, entry::ATTRIBUTES, &part.attributes.bits().to_le_bytes());
        for (index, unit) in part.label.as_str().encode_utf16().enumerate() {
            put(bytes, entry::NAME + 2 * index, &unit.to_le_bytes());
        }
    }
    entries
}

/// The sector of a header.
pub(super) fn encode_header(layout: &Layout, entries: &[u8], my_lba: u64, alternate: u64, entries_lba: u64) -> Vec<u8> {
    let mut head = vec![0; layout.sector_size().bytes() as usize];
    put(&mut head, 0, SIGNATURE);
    put(&mut head, header::REVISION, &REVISION.to_le_bytes());
    put(&mut head, header::SIZE, &HEADER_BYTES.to_le_bytes());
    put(&mut head, header::MY_LBA, &my_lba.to_le_bytes());
    put(&mut head, header::ALTERNATE_LBA, &alternate.to_le_bytes());
    put(&mut head, header::FIRST_USABLE, &layout.first_usable().to_le_bytes());
    put(&mut head, header::LAST_USABLE, &layout.last_usable().to_le_bytes());
    put(&mut head, header::DISK_GUID, &layout.disk_guid().to_disk());
    put(&mut head, header::ENTRIES_LBA, &entries_lba.to_le_bytes());
    put(&mut head, header::ENTRIES, &MAX_PARTITIONS.to_le_bytes());
    put(&mut head, header::ENTRY_BYTES, &ENTRY_BYTES.to_le_bytes());
    put(&mut head, header::ENTRIES_CRC, &crc32fast::hash(entries).to_le_bytes());
    let checksum = crc32fast::hash(&head[..HEADER_BYTES as usize]);
    put(&mut head, header::CRC, &checksum.to_le_bytes());
    head
}

fn read_at<D: Read + Seek>(device: &mut D, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    device.seek(SeekFrom::Start(offset))?;
    device.read_exact(buffer)
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("the slice has the array's length")
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

fn guid_at(bytes: &[u8], offset: usize) -> Guid {
    Guid::from_disk(array_at(bytes, offset))
}
