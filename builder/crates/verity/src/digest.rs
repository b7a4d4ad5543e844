//! SHA-256 digests, and the one that is the root hash.

use std::fmt;
use std::str::FromStr;

use crate::DIGEST_SIZE;

/// A SHA-256 digest. Prints as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; DIGEST_SIZE]);

/// The digest that stands for all data of a tree. Prints and parses as 64 hexadecimal digits.
///
/// The Discoverable Partitions Specification derives the unique GUIDs of both partitions from it, so that an initrd
/// that knows the root hash knows its partitions. Both are returned as the UUID's bytes in the order in which they
/// are printed (RFC 9562, big-endian), that is, the hash's hexadecimal digits read straight on:
///
/// ```
/// # fn main() -> Result<(), verity::ParseDigestError> {
/// let hash: verity::RootHash = "f9d6f7f3f05332d289912d32a972054979ee0c1aeea0e0258943ed944218483b".parse()?;
/// // The root partition's PARTUUID is f9d6f7f3-f053-32d2-8991-2d32a9720549.
/// assert_eq!(u128::from_be_bytes(hash.data_partuuid()), 0xf9d6f7f3_f053_32d2_8991_2d32a9720549);
/// // The verity partition's PARTUUID is 79ee0c1a-eea0-e025-8943-ed944218483b.
/// assert_eq!(u128::from_be_bytes(hash.hash_partuuid()), 0x79ee0c1a_eea0_e025_8943_ed944218483b);
/// # Ok(())
/// # }
/// ```
///
/// A GPT entry stores a GUID with its first three groups little-endian: who writes one from these bytes must swap them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootHash(Digest);

/// A string that is no SHA-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a SHA-256 digest of 64 hexadecimal digits")]
pub struct ParseDigestError(String);

impl Digest {
    /// The digest with these bytes.
    pub const fn new(bytes: [u8; DIGEST_SIZE]) -> Self {
        Self(bytes)
    }

    /// The digest's bytes.
    pub const fn as_bytes(&self) -> &[u8; DIGEST_SIZE] {
        &self.0
    }
}

impl RootHash {
    /// The root hash that is this digest.
    pub const fn new(digest: Digest) -> Self {
        Self(digest)
    }

    /// The digest itself.
    pub const fn digest(&self) -> &Digest {
        &self.0
    }

    /// Unique GUID of the data (root) partition: the first 128 bits of the hash, in printing order.
    pub fn data_partuuid(&self) -> [u8; 16] {
        self.half(0)
    }

    /// Unique GUID of the hash (root-verity) partition: the final 128 bits of the hash, in printing order.
    pub fn hash_partuuid(&self) -> [u8; 16] {
        self.half(16)
    }

    fn half(&self, start: usize) -> [u8; 16] {
        std::array::from_fn(|index| self.0.0[start + index])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseDigestError(text.chars().take(2 * DIGEST_SIZE + 1).collect());
        if text.len() != 2 * DIGEST_SIZE {
            return Err(error());
        }
        let mut bytes = [0; DIGEST_SIZE];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let nibble = |index: usize| char::from(pair[index]).to_digit(16).ok_or_else(error);
            *byte = u8::try_from(nibble(0)? << 4 | nibble(1)?).expect("two hexadecimal digits fit a byte");
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RootHash {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_hashes_parse_strictly_and_print_back() {
        let text = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff";
        assert_eq!(text.parse::<RootHash>().unwrap().to_string(), text);
        assert_eq!(text.to_uppercase().parse::<RootHash>().unwrap().to_string(), text);
        let cases = ["", "00", &text[1..], &format!("{text}0"), &text.replace('f', "g"), &text.replacen("00", "+1", 1)];
        for case in cases.iter().chain(&[&*text.replacen("00", "é", 1), &*text.replacen("00", " 0", 1)]) {
            assert!(case.parse::<RootHash>().is_err(), "{case:?} is refused");
        }
    }

    #[test]
    fn partition_uuids_are_the_printed_halves() {
        let hash: RootHash = "000102030405060708090a0b0c0d0e0ff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff".parse().unwrap();
        let hex = |bytes: [u8; 16]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(hash.data_partuuid()), hash.to_string()[..32]);
        assert_eq!(hex(hash.hash_partuuid()), hash.to_string()[32..]);
    }
}
