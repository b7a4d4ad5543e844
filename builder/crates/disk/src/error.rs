//! The one error type of this crate.

use std::io;

/// What a function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a layout, a table, a file system or an image was refused. Sizes are in bytes unless the text says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device or file failed.
    #[error("{what}")]
    Io {
        /// What was being done, as a participle: "writing the backup header".
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// A text is not a GUID.
    #[error("{0:?} is not a GUID")]
    Guid(String),
    /// A sector size other than 512 and 4096.
    #[error("sector size is {0} bytes, expected 512 or 4096")]
    SectorSize(u64),
    /// A partition label that does not fit an entry.
    #[error("partition label {0:?} does not fit 36 UTF-16 units, or holds a NUL")]
    Label(String),
    /// A partition number outside 1 to 128.
    #[error("partition number is {0}, expected 1 to 128")]
    Number(u32),
    /// A partition that is empty or reaches outside the sectors a table may use.
    #[error(
        "partition {label:?} covers {sectors} sectors from {first_lba}, usable are {first_usable} to {last_usable}"
    )]
    OutOfRange {
        /// The partition's label.
        label: String,
        /// Its first sector.
        first_lba: u64,
        /// Its length in sectors.
        sectors: u64,
        /// First sector that a partition may use.
        first_usable: u64,
        /// Last sector that a partition may use.
        last_usable: u64,
    },
    /// Two partitions share sectors.
    #[error("partitions {first:?} and {second:?} overlap")]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The other.
        second: String,
    },
    /// A number of sectors whose bytes no file offset can count.
    #[error("a disk of {0} sectors cannot be")]
    SectorCount(u64),
    /// Partitions that are not of this project stand where ours would go.
    #[error("the disk holds partitions that are not NodeZero's: {}", .0.join(", "))]
    Foreign(Vec<String>),
    /// A partition that every image has is not there.
    #[error("the disk has no partition {0:?}")]
    Missing(&'static str),
    /// The disk is smaller than what must go on it.
    #[error("the disk has {have} bytes, needed are {needed}")]
    DiskTooSmall {
        /// Size of the disk.
        have: u64,
        /// Least size that would do.
        needed: u64,
    },
    /// A partition cannot get its size where it stands.
    #[error("partition {label:?} needs {needed} bytes where {have} are free")]
    NoRoom {
        /// The partition's label.
        label: String,
        /// Bytes it needs.
        needed: u64,
        /// Bytes it can have.
        have: u64,
    },
    /// Content that is larger than its partition.
    #[error("content of {what} is {len} bytes, its place has {room}")]
    TooLarge {
        /// The partition or file.
        what: String,
        /// Size of the content.
        len: u64,
        /// Size of its place.
        room: u64,
    },
    /// Content that ended before, or went on after, its declared length.
    #[error("content of {what} is {read} bytes or more, declared were {declared}")]
    Length {
        /// The partition or file.
        what: String,
        /// Bytes it was said to have.
        declared: u64,
        /// Bytes that were read.
        read: u64,
    },
    /// Neither copy of the table is valid.
    #[error("no valid GPT: primary {primary}; backup {backup}")]
    NoTable {
        /// What is wrong with the primary copy.
        primary: crate::table::Defect,
        /// What is wrong with the copy at the disk's end.
        backup: crate::table::Defect,
    },
    /// The `gpt` crate reads something else from the planned writes than was meant. Nothing was written.
    #[error("a second GPT implementation disagrees with the planned table: {0}")]
    Rehearsal(String),
    /// The table read back is not the table written.
    #[error("the table read back differs from the one written: {0}")]
    ReadBack(String),
    /// A path or name that FAT cannot hold.
    #[error("{0:?} cannot be a FAT path")]
    FatPath(String),
    /// Two files of one name, or a file where a directory is needed. FAT ignores case.
    #[error("{0:?} is given twice, or is both file and directory")]
    FatDuplicate(String),
    /// The volume is too small or too large for FAT32.
    #[error("a FAT32 volume of {bytes} bytes has {clusters} clusters, expected 65525 to 268435444")]
    FatSize {
        /// Size of the volume.
        bytes: u64,
        /// Clusters it would have at the smallest cluster size.
        clusters: u64,
    },
    /// The files do not fit the volume.
    #[error("the files need {needed} clusters, the volume has {have}")]
    FatFull {
        /// Clusters that files and directories need.
        needed: u64,
        /// Clusters the volume has.
        have: u64,
    },
    /// The loader's parts are not what this crate knows how to install.
    #[error("syslinux: {0}")]
    Syslinux(String),
}

/// Attaches what was being done to a system error.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io { what: what(), source })
    }
}
