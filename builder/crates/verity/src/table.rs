//! The device-mapper table of a verity device.
//!
//! Parameters: <https://docs.kernel.org/admin-guide/device-mapper/verity.html>. Talking to the device mapper is left
//! to who has a kernel at hand.

use std::fmt::{self, Write as _};

use crate::{BLOCK_SIZE, Error, RootHash, Superblock};

/// Name of the device-mapper target type.
pub const TARGET_TYPE: &str = "verity";

const SECTOR_SIZE: u64 = 512;
/// The tree follows the superblock's block.
const HASH_START_BLOCK: u64 = 1;

/// What the kernel does when a block does not match its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCorruption {
    /// The read fails with an I/O error, and the kernel logs the block.
    Fail,
    /// The machine restarts.
    Restart,
    /// The kernel panics, so that its message stays on the console unless `panic=` says otherwise.
    Panic,
}

/// A table of one verity target that covers the whole device. Prints as the line that `dmsetup create` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    sectors: u64,
    parameters: String,
}

impl Table {
    /// The table for a data device and a hash device that begins with `superblock`. The devices are named by path or
    /// as `major:minor`.
    pub fn new(
        superblock: &Superblock,
        root_hash: &RootHash,
        data_device: &str,
        hash_device: &str,
        on_corruption: OnCorruption,
    ) -> Result<Self, Error> {
        for device in [data_device, hash_device] {
            let splits = |character: char| character.is_whitespace() || character.is_control() || character == '\\';
            if device.is_empty() || device.contains(splits) {
                return Err(Error::DeviceName(device.to_owned()));
            }
        }
        let data_blocks = superblock.data_blocks();
        let mut parameters = format!(
            "1 {data_device} {hash_device} {BLOCK_SIZE} {BLOCK_SIZE} {data_blocks} {HASH_START_BLOCK} sha256 {root_hash} "
        );
        match superblock.salt() {
            [] => parameters.push('-'),
            salt => salt.iter().for_each(|byte| write!(parameters, "{byte:02x}").expect("a String takes all")),
        }
        parameters.push_str(match on_corruption {
            OnCorruption::Fail => "",
            OnCorruption::Restart => " 1 restart_on_corruption",
            OnCorruption::Panic => " 1 panic_on_corruption",
        });
        Ok(Self { sectors: superblock.data_length() / SECTOR_SIZE, parameters })
    }

    /// Length of the device in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The target's parameter string.
    pub fn parameters(&self) -> &str {
        &self.parameters
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0 {} {TARGET_TYPE} {}", self.sectors, self.parameters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "f9d6f7f3f05332d289912d32a972054979ee0c1aeea0e0258943ed944218483b";

    #[test]
    fn tables_follow_the_kernel_documentation() {
        let cases: [(&[u8], OnCorruption, &str); 3] = [
            (&[0, 0x1f, 0xff], OnCorruption::Fail, "001fff"),
            (&[], OnCorruption::Restart, "- 1 restart_on_corruption"),
            (&[0xab], OnCorruption::Panic, "ab 1 panic_on_corruption"),
        ];
        for (salt, on_corruption, end) in cases {
            let superblock = Superblock::new([0; 16], 129, salt).unwrap();
            let root = ROOT.parse().unwrap();
            let table = Table::new(&superblock, &root, "/dev/vda3", "254:4", on_corruption).unwrap();
            let parameters = format!("1 /dev/vda3 254:4 4096 4096 129 1 sha256 {ROOT} {end}");
            assert_eq!(table.parameters(), parameters, "{on_corruption:?}");
            assert_eq!(table.sectors(), 129 * 8);
            assert_eq!(table.to_string(), format!("0 1032 verity {parameters}"));
        }
    }

    #[test]
    fn device_names_must_be_one_word() {
        let superblock = Superblock::new([0; 16], 1, &[]).unwrap();
        for device in ["", "/dev/a b", "/dev/a\\b", "/dev/a\n", "\t"] {
            for (data, hash) in [(device, "/dev/ok"), ("/dev/ok", device)] {
                let table = Table::new(&superblock, &ROOT.parse().unwrap(), data, hash, OnCorruption::Fail);
                assert!(matches!(table, Err(Error::DeviceName(name)) if name == device), "{device:?}");
            }
        }
    }
}
