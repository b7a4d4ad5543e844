//! SquashFS 4.0 with zstd: a writer that copies compressed blocks out of packs, and a bounded reader.
//!
//! Specification: the format as documented by squashfs-tools-ng,
//! <https://github.com/AgentD/squashfs-tools-ng/blob/master/doc/format.adoc>, and Linux' `fs/squashfs`.
//!
//! Left out: compressors other than zstd, the export table (NFS), sockets, hard links (files share their data instead),
//! and extended attributes outside of `user.`, `trusted.` and `security.`, which the format cannot name.

mod metadata;
pub mod read;
mod tables;
mod write;

pub use write::{ImageSummary, Options, write_image, write_image_at};

const MAGIC: u32 = 0x7371_7368;
const SUPERBLOCK_LEN: usize = 96;
const VERSION_MAJOR: u16 = 4;
const VERSION_MINOR: u16 = 0;
const COMPRESSOR_ZSTD: u16 = 6;

const FLAG_DUPLICATES: u16 = 0x0040;
const FLAG_NO_XATTRS: u16 = 0x0200;
const FLAG_COMPRESSOR_OPTIONS: u16 = 0x0400;

/// The uncompressed size of a metadata block.
const METADATA_LEN: usize = 8192;
/// In the header of a metadata block: not compressed.
const METADATA_UNCOMPRESSED: u16 = 0x8000;

/// The position of a table that is not there.
const NO_TABLE: u64 = u64::MAX;
/// No fragment block, no extended attributes.
const NONE: u32 = u32::MAX;

const DIRECTORY: u16 = 1;
const FILE: u16 = 2;
const SYMLINK: u16 = 3;
const BLOCK_DEVICE: u16 = 4;
const CHARACTER_DEVICE: u16 = 5;
const FIFO: u16 = 6;
const SOCKET: u16 = 7;
/// Added to an inode's type for its extended form.
const EXTENDED: u16 = 7;

/// The most entries that one header of a directory listing may have.
const ENTRIES_MAX: usize = 256;
const LISTING_HEADER_LEN: usize = 12;
const LISTING_ENTRY_LEN: usize = 8;
/// What a directory's size has more than its listing has bytes, for `.` and `..`.
const LISTING_EXTRA: u32 = 3;

/// The name spaces of extended attributes; an attribute's type is the index.
const XATTR_PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
/// In an extended attribute's type: the value is elsewhere.
const XATTR_OUT_OF_LINE: u16 = 0x0100;

/// The superblock, but for what is the same in all images of this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Superblock {
    inodes: u32,
    mtime: u32,
    block_size: u32,
    fragments: u32,
    flags: u16,
    ids: u16,
    /// Reference of the root's inode.
    root: u64,
    bytes_used: u64,
    id_table: u64,
    xattr_table: u64,
    inode_table: u64,
    directory_table: u64,
    fragment_table: u64,
}

impl Superblock {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SUPERBLOCK_LEN);
        for number in [MAGIC, self.inodes, self.mtime, self.block_size, self.fragments] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let log = self.block_size.ilog2() as u16;
        for number in [COMPRESSOR_ZSTD, log, self.flags, self.ids, VERSION_MAJOR, VERSION_MINOR] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let tables = [self.id_table, self.xattr_table, self.inode_table, self.directory_table, self.fragment_table];
        for number in [self.root, self.bytes_used].into_iter().chain(tables).chain([NO_TABLE]) {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out
    }

    /// Why these 96 bytes are not the superblock of an image that can be read, or what it says.
    fn decode(raw: &[u8; SUPERBLOCK_LEN]) -> Result<Superblock, String> {
        let u16_at = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if u32_at(0) != MAGIC {
            return Err("has no superblock".into());
        }
        let (major, minor) = (u16_at(28), u16_at(30));
        if (major, minor) != (VERSION_MAJOR, VERSION_MINOR) {
            return Err(format!("has version {major}.{minor}, expected {VERSION_MAJOR}.{VERSION_MINOR}"));
        }
        if u16_at(20) != COMPRESSOR_ZSTD {
            return Err(format!("has compressor {}, expected {COMPRESSOR_ZSTD} (zstd)", u16_at(20)));
        }
        let block_size = u32_at(12);
        if !crate::block::BLOCK_SIZES.contains(&block_size) || block_size != 1u32.unbounded_shl(u16_at(22).into()) {
            return Err(format!("has block size {block_size} and logarithm {}", u16_at(22)));
        }
        Ok(Superblock {
            inodes: u32_at(4),
            mtime: u32_at(8),
            block_size,
            fragments: u32_at(16),
            flags: u16_at(24),
            ids: u16_at(26),
            root: u64_at(32),
            bytes_used: u64_at(40),
            id_table: u64_at(48),
            xattr_table: u64_at(56),
            inode_table: u64_at(64),
            directory_table: u64_at(72),
            fragment_table: u64_at(80),
        })
    }
}

/// Where a metadata block begins in its table, and an offset into its uncompressed bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct MetadataRef {
    block: u32,
    offset: u16,
}

impl MetadataRef {
    fn raw(self) -> u64 {
        u64::from(self.block) << 16 | u64::from(self.offset)
    }
}
