//! GUIDs as GPT has them: printed as RFC 9562 says, on disk with the first three fields little-endian
//! ([UEFI 2.10, appendix A](https://uefi.org/specs/UEFI/2.10/Apx_A_GUID_and_Time_Formats.html)).

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::error::{Error, Result};

/// A GUID. Printed in lower case with hyphens.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(Uuid);

impl Guid {
    /// The all-zero GUID: an unused entry's type.
    pub const NIL: Guid = Guid(Uuid::nil());

    /// From the printed form's number.
    pub const fn from_u128(value: u128) -> Guid {
        Guid(Uuid::from_u128(value))
    }

    /// From the sixteen bytes in a table.
    pub fn from_disk(bytes: [u8; 16]) -> Guid {
        Guid(Uuid::from_bytes_le(bytes))
    }

    /// The sixteen bytes in the order in which they are printed.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.into_bytes()
    }

    /// The sixteen bytes in a table.
    pub fn to_disk(self) -> [u8; 16] {
        self.0.to_bytes_le()
    }

    /// A GUID that follows from `content` alone: SHA-256 over the namespace, a NUL and the content, as a version 8
    /// UUID (RFC 9562, section 5.8). The namespace says what the GUID is for, so one digest serves several.
    pub fn derived(namespace: &str, content: &[u8]) -> Guid {
        let digest = Sha256::new().chain_update(namespace).chain_update([0]).chain_update(content).finalize();
        Guid(uuid::Builder::from_custom_bytes(first_16(&digest)).into_uuid())
    }

    /// The partition GUIDs of a root partition and of its hash tree, as the
    /// [Discoverable Partitions Specification](https://uapi-group.org/specifications/specs/discoverable_partitions_specification/)
    /// wants them: the root hash's first and last 128 bits. So the partitions of a root hash can be found by it.
    pub fn of_root_hash(root_hash: &[u8; 32]) -> (Guid, Guid) {
        (Guid(Uuid::from_bytes(first_16(root_hash))), Guid(Uuid::from_bytes(first_16(&root_hash[16..]))))
    }
}

fn first_16(bytes: &[u8]) -> [u8; 16] {
    bytes[..16].try_into().expect("callers pass at least 16 bytes")
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Guid {
    type Err = Error;

    /// Takes the hyphenated form alone, in either case.
    fn from_str(text: &str) -> Result<Guid> {
        match Uuid::try_parse(text) {
            Ok(uuid) if text.len() == 36 => Ok(Guid(uuid)),
            Ok(_) | Err(_) => Err(Error::Guid(text.to_owned())),
        }
    }
}

impl From<Uuid> for Guid {
    fn from(uuid: Uuid) -> Guid {
        Guid(uuid)
    }
}

impl From<Guid> for Uuid {
    fn from(guid: Guid) -> Uuid {
        guid.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_prints_and_swaps() {
        let text = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
        let guid: Guid = text.to_uppercase().parse().unwrap();
        assert_eq!(guid.to_string(), text);
        let disk = [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
        assert_eq!(guid.to_disk(), disk);
        assert_eq!(Guid::from_disk(disk), guid);
        for bad in [
            "",
            "c12a7328f81f11d2ba4b00a0c93ec93b",
            "{c12a7328-f81f-11d2-ba4b-00a0c93ec93b}",
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93",
        ] {
            assert!(bad.parse::<Guid>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn derived_guids_are_stable_distinct_and_marked() {
        let guid = Guid::derived("disk", b"content");
        assert_eq!(guid, Guid::derived("disk", b"content"));
        assert_ne!(guid, Guid::derived("esp", b"content"));
        assert_ne!(guid, Guid::derived("disk", b"other"));
        // The separator keeps namespace and content apart.
        assert_ne!(Guid::derived("a", b"b"), Guid::derived("ab", b""));
        let uuid = Uuid::from(guid);
        assert_eq!(uuid.get_version_num(), 8);
        assert_eq!(uuid.get_variant(), uuid::Variant::RFC4122);
    }

    #[test]
    fn a_root_hash_names_two_partitions() {
        let hash: [u8; 32] = std::array::from_fn(|i| i as u8);
        let (root, verity) = Guid::of_root_hash(&hash);
        assert_eq!(root.to_string(), "00010203-0405-0607-0809-0a0b0c0d0e0f");
        assert_eq!(verity.to_string(), "10111213-1415-1617-1819-1a1b1c1d1e1f");
    }
}
