//! The superblock at the start of a hash area.
//!
//! 512 bytes, integers little-endian, version 1 of <https://gitlab.com/cryptsetup/cryptsetup/-/wikis/DMVerity>.
//! The root hash does not cover it: a changed superblock shows as digests that do not match, or, in its UUID, not at
//! all. Nothing may be trusted because it stands here.

use crate::{AreaKind, BLOCK_SIZE, Error, hash_tree};

/// Size of a superblock in bytes. The first block of the hash area is kept for it.
pub const SUPERBLOCK_SIZE: usize = 512;
/// The longest salt in bytes.
pub const MAX_SALT_SIZE: usize = 256;
/// The most data blocks for which every byte offset fits 63 bits.
pub const MAX_DATA_BLOCKS: u64 = i64::MAX as u64 / BLOCK_SIZE;

const SIGNATURE: [u8; 8] = *b"verity\0\0";
const VERSION: u32 = 1;
/// Salt before data, digests packed without gaps.
const HASH_TYPE: u32 = 1;
const ALGORITHM: &[u8] = b"sha256";

const VERSION_OFFSET: usize = 8;
const HASH_TYPE_OFFSET: usize = 12;
const UUID_OFFSET: usize = 16;
const ALGORITHM_OFFSET: usize = 32;
const DATA_BLOCK_SIZE_OFFSET: usize = 64;
const HASH_BLOCK_SIZE_OFFSET: usize = 68;
const DATA_BLOCKS_OFFSET: usize = 72;
const SALT_SIZE_OFFSET: usize = 80;
const RESERVED_OFFSET: usize = 82;
const SALT_OFFSET: usize = 88;

/// Parameters of a tree, with SHA-256 and blocks of 4096 bytes throughout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    uuid: [u8; 16],
    data_blocks: u64,
    salt: Vec<u8>,
}

impl Superblock {
    /// A superblock for `data_blocks` blocks of data. `uuid`, in printing order, names the hash area and means nothing
    /// else; `salt` goes before every hashed block and may be empty.
    pub fn new(uuid: [u8; 16], data_blocks: u64, salt: &[u8]) -> Result<Self, Error> {
        if salt.len() > MAX_SALT_SIZE {
            return Err(Error::SaltLength(salt.len()));
        }
        if !(1..=MAX_DATA_BLOCKS).contains(&data_blocks) {
            return Err(Error::DataBlocks(data_blocks));
        }
        Ok(Self { uuid, data_blocks, salt: salt.to_vec() })
    }

    /// Parses the superblock that `bytes` begin with; what follows its 512 bytes is ignored. Anything that
    /// [`Superblock::to_bytes`] would not have written is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let bytes: &[u8; SUPERBLOCK_SIZE] = bytes.first_chunk().ok_or(Error::SuperblockTooShort(bytes.len()))?;
        let signature = field(bytes, 0);
        if signature != SIGNATURE {
            return Err(Error::Signature(signature));
        }
        let u32_at = |offset| u32::from_le_bytes(field(bytes, offset));
        match (u32_at(VERSION_OFFSET), u32_at(HASH_TYPE_OFFSET)) {
            (VERSION, HASH_TYPE) => {}
            (VERSION, hash_type) => return Err(Error::HashType(hash_type)),
            (version, _) => return Err(Error::Version(version)),
        }
        let algorithm: [u8; 32] = field(bytes, ALGORITHM_OFFSET);
        let name = trim_nul(&algorithm);
        if name != ALGORITHM {
            return Err(Error::Algorithm(name.escape_ascii().to_string()));
        }
        for (area, offset) in [(AreaKind::Data, DATA_BLOCK_SIZE_OFFSET), (AreaKind::Hash, HASH_BLOCK_SIZE_OFFSET)] {
            let found = u32_at(offset);
            if u64::from(found) != BLOCK_SIZE {
                return Err(Error::BlockSize { area, found });
            }
        }
        let salt_size = usize::from(u16::from_le_bytes(field(bytes, SALT_SIZE_OFFSET)));
        let salt = bytes[SALT_OFFSET..][..MAX_SALT_SIZE].get(..salt_size).ok_or(Error::SaltLength(salt_size))?;
        let reserved = (RESERVED_OFFSET..SALT_OFFSET).chain(SALT_OFFSET + salt_size..SUPERBLOCK_SIZE);
        if let Some(offset) = reserved.into_iter().find(|offset| bytes[*offset] != 0) {
            return Err(Error::Reserved(offset));
        }
        Self::new(field(bytes, UUID_OFFSET), u64::from_le_bytes(field(bytes, DATA_BLOCKS_OFFSET)), salt)
    }

    /// The superblock as it is on disk.
    pub fn to_bytes(&self) -> [u8; SUPERBLOCK_SIZE] {
        let block_size = (BLOCK_SIZE as u32).to_le_bytes();
        let mut bytes = [0; SUPERBLOCK_SIZE];
        let mut put = |offset: usize, value: &[u8]| bytes[offset..][..value.len()].copy_from_slice(value);
        put(0, &SIGNATURE);
        put(VERSION_OFFSET, &VERSION.to_le_bytes());
        put(HASH_TYPE_OFFSET, &HASH_TYPE.to_le_bytes());
        put(UUID_OFFSET, &self.uuid);
        put(ALGORITHM_OFFSET, ALGORITHM);
        put(DATA_BLOCK_SIZE_OFFSET, &block_size);
        put(HASH_BLOCK_SIZE_OFFSET, &block_size);
        put(DATA_BLOCKS_OFFSET, &self.data_blocks.to_le_bytes());
        put(SALT_SIZE_OFFSET, &(self.salt.len() as u16).to_le_bytes());
        put(SALT_OFFSET, &self.salt);
        bytes
    }

    /// The hash area's UUID, in printing order.
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// Number of data blocks.
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// Length of the protected data in bytes.
    pub fn data_length(&self) -> u64 {
        self.data_blocks * BLOCK_SIZE
    }

    /// The salt, at most 256 bytes.
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// Length of the hash area in bytes, superblock included.
    pub fn hash_area_size(&self) -> u64 {
        hash_tree::hash_area_size(self.data_blocks)
    }
}

/// The `N` bytes at a constant offset.
fn field<const N: usize>(bytes: &[u8; SUPERBLOCK_SIZE], offset: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[offset + index])
}

/// A NUL-padded string without its padding.
fn trim_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock::new(*b"0123456789abcdef", 16385, &[0xa5; 32]).unwrap()
    }

    #[test]
    fn superblocks_round_trip() {
        for salt in [&[][..], &[7], &[0xa5; 32], &[1; MAX_SALT_SIZE]] {
            let superblock = Superblock::new([9; 16], MAX_DATA_BLOCKS, salt).unwrap();
            assert_eq!(Superblock::parse(&superblock.to_bytes()).unwrap(), superblock, "salt of {}", salt.len());
        }
        assert!(matches!(Superblock::new([0; 16], 1, &[0; 257]), Err(Error::SaltLength(257))));
        assert!(matches!(Superblock::new([0; 16], 0, &[]), Err(Error::DataBlocks(0))));
        assert!(matches!(Superblock::new([0; 16], u64::MAX, &[]), Err(Error::DataBlocks(u64::MAX))));
        assert!(Superblock::new([0; 16], MAX_DATA_BLOCKS, &[]).unwrap().hash_area_size() < i64::MAX as u64);
    }

    #[test]
    fn each_field_is_checked() {
        let cases: [(usize, u8, &str); 14] = [
            (0, b'V', "no verity superblock: signature is Verity\\x00\\x00"),
            (VERSION_OFFSET, 2, "superblock version is 2, expected 1"),
            (HASH_TYPE_OFFSET, 0, "hash type is 0, expected 1"),
            (ALGORITHM_OFFSET, b'S', "hash algorithm is \"Sha256\", expected \"sha256\""),
            (ALGORITHM_OFFSET + 7, b'x', "hash algorithm is \"sha256\\\\x00x\", expected \"sha256\""),
            (DATA_BLOCK_SIZE_OFFSET + 1, 8, "data block size is 2048, expected 4096"),
            (HASH_BLOCK_SIZE_OFFSET, 1, "hash block size is 4097, expected 4096"),
            (DATA_BLOCKS_OFFSET + 7, 0x80, "9223372036854792193 data blocks, expected 1 to 2251799813685247"),
            (SALT_SIZE_OFFSET + 1, 1, "salt is 288 bytes, at most 256 fit"),
            (SALT_SIZE_OFFSET, 31, "superblock's reserved byte 119 is not zero"),
            (RESERVED_OFFSET, 1, "superblock's reserved byte 82 is not zero"),
            (SALT_OFFSET + 32, 1, "superblock's reserved byte 120 is not zero"),
            (SALT_OFFSET + MAX_SALT_SIZE, 1, "superblock's reserved byte 344 is not zero"),
            (SUPERBLOCK_SIZE - 1, 1, "superblock's reserved byte 511 is not zero"),
        ];
        for (offset, value, expected) in cases {
            let mut bytes = sample().to_bytes();
            bytes[offset] = value;
            let error = Superblock::parse(&bytes).expect_err(expected);
            assert_eq!(error.to_string(), expected, "byte {offset} set to {value:#x}");
        }
        let short = &sample().to_bytes()[..511];
        assert_eq!(Superblock::parse(short).unwrap_err().to_string(), "superblock is 511 bytes, expected 512");
    }
}
