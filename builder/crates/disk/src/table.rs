//! GUID partition tables on files and block devices
//! ([UEFI 2.10, chapter 5](https://uefi.org/specs/UEFI/2.10/05_GUID_Partition_Table_Format.html)).
//!
//! **Why not write with the `gpt` crate.** Version 4 packs partitions into the first entries when it writes, so our
//! fixed numbers 1, 3, 4 would become 1, 2, 3; it writes the entries of both copies in turn with no barrier between,
//! so a power cut can damage both; and it panics on a table with another entry size. So the structure, which is small,
//! is encoded and decoded here, as a list of writes and barriers that can be looked at and cut anywhere. The crate
//! remains as the second opinion: before a disk is touched, the writes are rehearsed in memory and read by it.
//!
//! **Order.** Backup entries and header, barrier, primary entries and header, barrier, protective MBR, barrier, and
//! then everything is read back. At each moment one copy is whole: a valid primary counts, and is the old table until
//! the backup at the disk's end is the new one. On a new disk the MBR comes last and makes the table visible.
//!
//! Left out: tables with other than 128 entries are read but written with 128; hybrid MBRs are replaced.

mod copy;
mod scratch;

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};

pub use copy::Defect;

use crate::error::{Context, Error, Result};
use crate::layout::{Layout, SectorSize};

/// Bytes of boot code in an MBR.
pub const BOOT_CODE_BYTES: usize = 440;

/// What becomes of the MBR's boot code when a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootCode<'a> {
    /// It stays as it is on the disk, as does the disk signature.
    Keep,
    /// It is zero.
    Clear,
    /// It is replaced.
    Install(&'a [u8; BOOT_CODE_BYTES]),
}

/// One step of writing a table.
#[derive(Clone, PartialEq, Eq)]
pub enum Step {
    /// Write bytes at an offset of the device.
    Write {
        /// What it is, for messages.
        what: &'static str,
        /// Offset in bytes.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// All writes before must have reached the medium before one that follows.
    Barrier,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Write { what, offset, bytes } => write!(f, "write {what} of {} bytes at {offset}", bytes.len()),
            Step::Barrier => f.write_str("barrier"),
        }
    }
}

/// Something about a table on a disk that writing it again would repair.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// The primary copy is damaged; the layout is the backup's.
    PrimaryDamaged(Defect),
    /// The backup copy is damaged.
    BackupDamaged(Defect),
    /// The backup copy is not in the disk's last sector, as after writing an image to a larger disk.
    BackupMisplaced {
        /// Where the primary header says it is.
        at: u64,
        /// The disk's last sector.
        last: u64,
    },
    /// Both copies are valid and differ, as after a power cut while writing; the layout is the primary's.
    CopiesDiffer,
    /// The MBR does not protect the disk.
    NoProtectiveMbr,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::PrimaryDamaged(defect) => write!(f, "primary table damaged ({defect}), taken from the backup"),
            Finding::BackupDamaged(defect) => write!(f, "backup table damaged ({defect})"),
            Finding::BackupMisplaced { at, last } => {
                write!(f, "backup table in sector {at}, the disk ends with {last}")
            }
            Finding::CopiesDiffer => f.write_str("primary and backup table differ"),
            Finding::NoProtectiveMbr => f.write_str("no protective MBR"),
        }
    }
}

/// A table read from a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The table of the copy that counts. Its `disk_sectors` are what the table says.
    pub layout: Layout,
    /// What is not as it should be. Empty for a sound table.
    pub findings: Vec<Finding>,
}

impl Found {
    /// Whether both copies are valid, equal and in place.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Reads the table of a device of `disk_sectors`. The primary copy counts where it is valid, else the copy in the last
/// sector; nothing is written. [`Error::NoTable`] where neither is.
pub fn read_table<D: Read + Seek>(device: &mut D, sector: SectorSize, disk_sectors: u64) -> Result<Found> {
    let last = disk_sectors.saturating_sub(1);
    let primary = match copy::read(device, sector, disk_sectors, 1) {
        Ok(primary) => primary,
        Err(primary) => {
            return match copy::read(device, sector, disk_sectors, last) {
                Ok(backup) => {
                    let findings = vec![Finding::PrimaryDamaged(primary)];
                    Ok(Found { layout: backup.layout, findings })
                }
                Err(backup) => Err(Error::NoTable { primary, backup }),
            };
        }
    };
    let mut findings = Vec::new();
    let at = primary.alternate_lba;
    if at != last {
        findings.push(Finding::BackupMisplaced { at, last });
    }
    match copy::read(device, sector, disk_sectors, at) {
        Ok(backup) if backup.layout != primary.layout || backup.alternate_lba != 1 => {
            findings.push(Finding::CopiesDiffer);
        }
        Ok(_) => {}
        Err(defect) => findings.push(Finding::BackupDamaged(defect)),
    }
    if !is_protective(&read_mbr(device)?) {
        findings.push(Finding::NoProtectiveMbr);
    }
    Ok(Found { layout: primary.layout, findings })
}

/// The table that the disk's last sector still has of what was on it before an image was written to its beginning: it is
/// valid, and the backup of another table than that in `found`.
pub fn read_earlier<D: Read + Seek>(device: &mut D, found: &Found, disk_sectors: u64) -> Option<Layout> {
    let misplaced = |finding: &Finding| matches!(finding, Finding::BackupMisplaced { .. });
    if !found.findings.iter().any(misplaced) {
        return None;
    }
    let last = disk_sectors.saturating_sub(1);
    let earlier = copy::read(device, found.layout.sector_size(), disk_sectors, last).ok()?;
    (earlier.alternate_lba == 1 && earlier.layout.disk_sectors() == disk_sectors).then_some(earlier.layout)
}

/// The steps that write `layout`, given the first 512 bytes that are on the disk. Pure.
pub fn plan_write(layout: &Layout, mbr: &[u8; 512], boot_code: BootCode<'_>) -> Vec<Step> {
    let bytes = layout.sector_size().bytes();
    let last = layout.disk_sectors() - 1;
    let entries = copy::encode_entries(layout);
    let backup_entries = last - layout.sector_size().entries_sectors();
    let write = |what, lba: u64, bytes_of: &[u8]| Step::Write { what, offset: lba * bytes, bytes: bytes_of.to_vec() };
    vec![
        write("backup partition entries", backup_entries, &entries),
        write("backup GPT header", last, &copy::encode_header(layout, &entries, last, 1, backup_entries)),
        Step::Barrier,
        write("primary partition entries", 2, &entries),
        write("primary GPT header", 1, &copy::encode_header(layout, &entries, 1, last, 2)),
        Step::Barrier,
        write("protective MBR", 0, &protective_mbr(layout, mbr, boot_code)),
        Step::Barrier,
    ]
}

/// Writes `layout` and reads it back. `barrier` makes what was written durable (`File::sync_data`); it is called
/// between the copies, see the module's notes on order. Also the way to repair what [`read_table`] found.
pub fn write_table<D: Read + Write + Seek>(
    device: &mut D,
    layout: &Layout,
    boot_code: BootCode<'_>,
    mut barrier: impl FnMut(&mut D) -> io::Result<()>,
) -> Result<()> {
    let steps = plan_write(layout, &read_mbr(device)?, boot_code);
    scratch::rehearse(&steps, layout)?;
    for step in &steps {
        apply(device, step, &mut barrier)?;
    }
    match read_table(device, layout.sector_size(), layout.disk_sectors())? {
        Found { layout: read, findings } if findings.is_empty() && read == *layout => Ok(()),
        Found { findings, .. } if !findings.is_empty() => {
            Err(Error::ReadBack(findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
        }
        Found { layout: read, .. } => Err(Error::ReadBack(read.to_string())),
    }
}

/// The MBR's boot code, as on the disk.
pub fn read_boot_code<D: Read + Seek>(device: &mut D) -> Result<[u8; BOOT_CODE_BYTES]> {
    let mbr = read_mbr(device)?;
    Ok(mbr[..BOOT_CODE_BYTES].try_into().expect("an MBR is longer than its boot code"))
}

fn apply<D: Write + Seek>(
    device: &mut D,
    step: &Step,
    barrier: &mut impl FnMut(&mut D) -> io::Result<()>,
) -> Result<()> {
    match step {
        Step::Write { what, offset, bytes } => device
            .seek(SeekFrom::Start(*offset))
            .and_then(|_| device.write_all(bytes))
            .context(|| format!("writing the {what}")),
        Step::Barrier => {
            device.flush().and_then(|()| barrier(device)).context(|| "flushing the partition table".to_owned())
        }
    }
}

fn read_mbr<D: Read + Seek>(device: &mut D) -> Result<[u8; 512]> {
    let mut mbr = [0; 512];
    device
        .seek(SeekFrom::Start(0))
        .and_then(|_| device.read_exact(&mut mbr))
        .context(|| "reading the MBR".to_owned())?;
    Ok(mbr)
}

/// Offset of the first partition record in an MBR, and the bytes of one.
const RECORDS: usize = 446;
const RECORD_BYTES: usize = 16;
const PROTECTIVE: u8 = 0xee;

fn is_protective(mbr: &[u8; 512]) -> bool {
    mbr[510..] == [0x55, 0xaa] && mbr[RECORDS..510].chunks(RECORD_BYTES).any(|record| record[4] == PROTECTIVE)
}

/// Boot code and disk signature, one record over the whole disk, and the signature.
fn protective_mbr(layout: &Layout, old: &[u8; 512], boot_code: BootCode<'_>) -> [u8; 512] {
    let mut mbr = [0; 512];
    match boot_code {
        BootCode::Keep => mbr[..RECORDS].copy_from_slice(&old[..RECORDS]),
        BootCode::Clear => {}
        BootCode::Install(code) => mbr[..BOOT_CODE_BYTES].copy_from_slice(code),
    }
    let record = &mut mbr[RECORDS..RECORDS + RECORD_BYTES];
    // Cylinder 0, head 0, sector 2, to the end of what these three bytes can say.
    record[..8].copy_from_slice(&[0, 0x00, 0x02, 0x00, PROTECTIVE, 0xff, 0xff, 0xff]);
    record[8..12].copy_from_slice(&1_u32.to_le_bytes());
    let sectors = u32::try_from(layout.disk_sectors() - 1).unwrap_or(u32::MAX);
    record[12..].copy_from_slice(&sectors.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

#[cfg(test)]
mod tests;
