//! File trees and the file systems made of them.
//!
//! An image is composed of many packages. Each is unpacked and compressed once, into a [`pack`] that lies in a cache;
//! a build puts a [`tree`] together whose files point into packs, and [`squashfs`] copies the compressed blocks out of
//! them, checking each one's SHA-256 on the way. So an image whose packages are cached costs a copy, not a compression.
//!
//! - [`tree`]: the in-memory file system, aware of merged-`/usr` links
//! - [`normalize`]: what a tree's modes and owners become in an image
//! - [`pack`]: compressed file contents of one package, ready to be copied into an image
//! - [`squashfs`]: SquashFS 4.0 with zstd, writer and bounded reader
//! - [`cpio`]: newc archives for initrds, plain or compressed with zstd
//!
//! Everything here is deterministic: the same tree and the same contents give the same bytes, with any number of
//! threads. Nothing reads a clock, and times are what the caller says.

mod block;
pub mod cpio;
mod digest;
mod error;
pub mod normalize;
pub mod pack;
pub mod squashfs;
pub mod tree;

pub use digest::Digest;
pub use error::{Error, Result};
pub use pack::{FileId, Pack, PackId, PackOptions, PackSummary, PackWriter};
pub use tree::{Content, Directory, Meta, Node, Tree};
