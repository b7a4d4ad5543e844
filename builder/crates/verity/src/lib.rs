//! dm-verity hash areas: the superblock, the Merkle tree and the device-mapper table that uses them.
//!
//! A data area (the read-only root file system) is hashed in blocks of 4096 bytes; the digests, packed into blocks,
//! are hashed again until one digest is left, the root hash. The hash area holds a superblock and the tree, laid out
//! as `veritysetup format` does, so that the kernel, `veritysetup` and `systemd-dissect` read what this crate writes.
//!
//! - On-disk format: <https://gitlab.com/cryptsetup/cryptsetup/-/wikis/DMVerity>
//! - Kernel target: <https://docs.kernel.org/admin-guide/device-mapper/verity.html>
//! - Partition UUIDs from the root hash: <https://uapi-group.org/specifications/specs/discoverable_partitions_specification/>
//!
//! Left out: digests other than SHA-256, block sizes other than 4096, the Chrome OS format (hash type 0), forward
//! error correction, root hash signatures, hash areas without a superblock or behind the data on the same device.

mod area;
mod digest;
mod error;
pub mod hash_tree;
pub mod superblock;
pub mod table;

pub use area::Area;
pub use digest::{Digest, ParseDigestError, RootHash};
pub use error::{AreaKind, Error, Place};
pub use superblock::Superblock;

/// Size of data and hash blocks in bytes.
pub const BLOCK_SIZE: u64 = 4096;
/// Size of a SHA-256 digest in bytes.
pub const DIGEST_SIZE: usize = 32;
