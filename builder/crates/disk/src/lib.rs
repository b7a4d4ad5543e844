//! Disk images and partition tables: what the builder writes and the first boot completes.
//!
//! - [`layout`]: which partitions an image has and what the first boot adds to them. Pure.
//! - [`table`]: GPT on a file or block device, in an order that survives a power cut.
//! - [`esp`]: the FAT32 file system of the ESP, computed first and written once.
//! - [`syslinux`]: the BIOS loader, installed without running its installer.
//! - [`image`]: the three together as one sparse raw image.
//!
//! Left out: MBR partition tables, hybrid MBRs, and file systems other than FAT32. Image formats other than raw are
//! the builder's.

pub mod error;
pub mod esp;
pub mod guid;
pub mod image;
pub mod layout;
pub mod syslinux;
pub mod table;
pub mod type_guid;

pub use error::{Error, Result};
pub use guid::Guid;
pub use layout::{Attributes, Completion, Label, Layout, Partition, SectorSize, SlotSizes, complete, image_layout};
pub use type_guid::PartitionType;
