use std::{fmt, io};

use crate::{BLOCK_SIZE, Digest, RootHash};

/// What can be wrong with a data area, a hash area or what is asked of them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading failed.
    #[error("reading the {area} area at byte {offset}")]
    Read {
        /// Which area was read.
        area: AreaKind,
        /// Where in the area, in bytes.
        offset: u64,
        /// The operating system's error.
        source: io::Error,
    },
    /// Writing the hash area failed.
    #[error("writing the hash area")]
    Write(#[source] io::Error),
    /// The salt does not fit into a superblock.
    #[error("salt is {0} bytes, at most {max} fit", max = crate::superblock::MAX_SALT_SIZE)]
    SaltLength(usize),
    /// There is nothing to protect, or more than can be addressed.
    #[error("{0} data blocks, expected 1 to {max}", max = crate::superblock::MAX_DATA_BLOCKS)]
    DataBlocks(u64),
    /// The data area given to build a tree of is not what the superblock says.
    #[error("data area is {found} bytes, expected {expected}")]
    DataLength {
        /// Length of the area in bytes.
        found: u64,
        /// Bytes that the superblock covers.
        expected: u64,
    },
    /// The area ends before what the superblock says it holds.
    #[error("{area} area is {found} bytes, the superblock needs {needed}")]
    AreaTooShort {
        /// Which area is too short.
        area: AreaKind,
        /// Length of the area in bytes.
        found: u64,
        /// Bytes that the superblock needs.
        needed: u64,
    },
    /// Fewer bytes than a superblock has.
    #[error("superblock is {0} bytes, expected {size}", size = crate::superblock::SUPERBLOCK_SIZE)]
    SuperblockTooShort(usize),
    /// The superblock does not begin with its signature.
    #[error("no verity superblock: signature is {}", .0.escape_ascii())]
    Signature([u8; 8]),
    /// A superblock version other than 1.
    #[error("superblock version is {0}, expected 1")]
    Version(u32),
    /// A hash type other than 1.
    #[error("hash type is {0}, expected 1")]
    HashType(u32),
    /// A digest algorithm other than sha256.
    #[error("hash algorithm is {0:?}, expected \"sha256\"")]
    Algorithm(String),
    /// A block size other than 4096.
    #[error("{area} block size is {found}, expected {size}", size = BLOCK_SIZE)]
    BlockSize {
        /// Which area's blocks.
        area: AreaKind,
        /// The size found in bytes.
        found: u32,
    },
    /// Bytes that the format reserves are not zero.
    #[error("superblock's reserved byte {0} is not zero")]
    Reserved(usize),
    /// The tree's top is not what the root hash stands for: another tree, or one that was changed.
    #[error("root hash is {found}, expected {expected}")]
    RootHash {
        /// Root hash of the area as it is.
        found: RootHash,
        /// Root hash that was asked for.
        expected: RootHash,
    },
    /// A block is not what the verified tree above it says.
    #[error("{place} block {block} (byte {offset} of its area) has digest {found}, expected {expected}")]
    Corrupt {
        /// The data, or which level of the tree.
        place: Place,
        /// The block's number within the data or level.
        block: u64,
        /// The block's position within the data or hash area in bytes.
        offset: u64,
        /// Digest of the block as it is.
        found: Digest,
        /// Digest that the level above holds.
        expected: Digest,
    },
    /// A device name that the device mapper's parser would split.
    #[error("device name {0:?} is empty or has white space, a backslash or a control character")]
    DeviceName(String),
}

/// One of the two areas that verity works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AreaKind {
    /// What is protected.
    Data,
    /// The superblock and the tree.
    Hash,
}

/// Where a block belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The protected data.
    Data,
    /// A level of the tree; level 0 holds the digests of data blocks.
    Level(usize),
}

impl fmt::Display for AreaKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data",
            Self::Hash => "hash",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data => f.write_str("data"),
            Self::Level(level) => write!(f, "hash level {level}"),
        }
    }
}
