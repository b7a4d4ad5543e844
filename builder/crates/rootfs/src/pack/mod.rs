//! Packs: compressed file contents, cut as SquashFS wants them, so that an image is made by copying.
//!
//! One pack holds the contents of one package. A [`PackWriter`] reads each file once: it hashes the content, cuts it in
//! blocks, compresses each block and leaves out blocks of zeros. Files smaller than a block share *fragment blocks*
//! with their neighbours; those said to be compressed already share others, which are stored as they are. A content
//! that occurs twice is in the pack once.
//!
//! # Format
//!
//! All integers are little-endian. The format is private to the cache: another version is not read but made anew.
//!
//! | section | content |
//! |---|---|
//! | header | magic (8 bytes), version `u32`, block size `u32` |
//! | data | each file's blocks one after the other, and fragment blocks between them |
//! | index | counts of files, fragment blocks and blocks (`u32` each), 4 zero bytes, then the records of each |
//! | user | bytes of the caller |
//! | trailer | offset and length of the index and length of the user section (`u64` each), SHA-256, magic (8 bytes) |
//!
//! A file's record has the SHA-256 of its content, that of its blocks as stored, size and data offset (`u64` each),
//! first block and number of blocks, fragment block (all ones: none) and offset in it (`u32` each). A fragment block's
//! record has the SHA-256 of it as stored, its offset (`u64`), stored size and uncompressed length (`u32` each). A
//! block's record is its stored size (`u32`): its length, with bit 24 set where it is not compressed, 0 for zeros.
//!
//! The trailer's SHA-256 is that of header, index, user section and the trailer's numbers, so nothing in a pack but its
//! data is believed before it is verified; and data is verified whenever it is copied or decompressed.
//!
//! Left out: sizes beyond 2^32 blocks in one pack, and appending.

mod read;
mod write;

use std::fmt;

pub use read::{Contents, FileInfo, Pack};
pub(crate) use read::{FileRecord, FragmentRecord, find};
pub use write::{PackSummary, PackWriter};

use crate::{Error, Result, block::BLOCK_SIZES};

const MAGIC: [u8; 8] = *b"\x89nzpack\n";
const END_MAGIC: [u8; 8] = *b"nzpack\n\x1a";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 16;
const COUNTS_LEN: usize = 16;
const FILE_LEN: usize = 96;
const FRAGMENT_LEN: usize = 48;
const BLOCK_LEN: usize = 4;
const TRAILER_LEN: usize = 64;
const NO_FRAGMENT: u32 = u32::MAX;

/// A pack among those that a tree's contents come from: its index in the slice that writers are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(u32);

/// A file of a pack: its index, in the order in which contents were added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(u32);

macro_rules! index_newtype {
    ($name:ident) => {
        impl $name {
            /// The identifier with this index.
            pub const fn new(index: u32) -> $name {
                $name(index)
            }

            /// The index.
            pub const fn index(self) -> u32 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

index_newtype!(PackId);
index_newtype!(FileId);

/// How contents are cut and compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackOptions {
    /// The size of a data block in bytes: a power of two from 4 KiB to 1 MiB. All packs of an image have one size, and
    /// the image has it too.
    pub block_size: u32,
    /// The level of zstd, 1 to 22.
    pub level: i32,
}

/// What measured best for Debian packages: an image no larger than `mksquashfs -comp zstd` makes with its defaults, for
/// an eighth of the processor time. Blocks of 256 KiB, which are cheaper to read at random, made it 1.7 % larger.
impl Default for PackOptions {
    fn default() -> PackOptions {
        PackOptions { block_size: 512 * 1024, level: 9 }
    }
}

impl PackOptions {
    pub(crate) fn check(self) -> Result<PackOptions> {
        let PackOptions { block_size, level } = self;
        if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) {
            let reason = format!("block size is {block_size}, expected a power of two from 4096 to 1048576");
            return Err(Error::InvalidOption { reason });
        }
        if !(1..=22).contains(&level) {
            return Err(Error::InvalidOption { reason: format!("compression level is {level}, expected 1 to 22") });
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use super::*;
    use crate::{Content, Digest};

    const OPTIONS: PackOptions = PackOptions { block_size: 4096, level: 3 };

    /// Bytes that compress to about half.
    fn bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            b'a' + (state % 16) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for block in 0.. {
            out.extend_from_slice(Digest::of(&[seed.to_le_bytes(), u64::to_le_bytes(block)].concat()).as_bytes());
            if out.len() >= len {
                break;
            }
        }
        out.truncate(len);
        out
    }

    fn pack(contents: &[(Vec<u8>, bool)]) -> (Vec<u8>, Vec<FileId>, PackSummary) {
        let mut writer = PackWriter::new(Cursor::new(Vec::new()), OPTIONS).unwrap();
        let ids = contents.iter().map(|(content, store)| {
            let size = content.len() as u64;
            let mut reader = content.as_slice();
            if *store { writer.add_stored(&mut reader, size) } else { writer.add(&mut reader, size) }.unwrap()
        });
        let ids = ids.collect();
        let (out, summary) = writer.finish(b"the caller's").unwrap();
        (out.into_inner(), ids, summary)
    }

    fn sample() -> Vec<(Vec<u8>, bool)> {
        let sizes = [0, 1, 100, 4095, 4096, 4097, 8191, 8192, 8193, 20000, 3000, 3000];
        let mut contents: Vec<_> = sizes.iter().zip(1..).map(|(size, seed)| (bytes(seed, *size), false)).collect();
        contents.push((noise(1, 10000), false));
        contents.push((noise(2, 500), true));
        contents.push((noise(3, 9000), true));
        contents.push((vec![0; 12288], false));
        contents.push((vec![0; 12388], false));
        contents.push(([vec![0; 8192], bytes(9, 5000), vec![0; 4096], bytes(10, 10)].concat(), false));
        contents
    }

    #[test]
    fn contents_round_trip() {
        let contents = sample();
        let (bytes, ids, summary) = pack(&contents);
        assert_eq!(pack(&contents).0, bytes, "same contents, same bytes");
        let pack = Pack::from_bytes(bytes).unwrap();
        assert_eq!(pack.user(), b"the caller's");
        assert_eq!((pack.len(), pack.block_size()), (contents.len(), 4096));
        assert_eq!(summary.files as usize, contents.len());
        assert_eq!(summary.input_bytes, contents.iter().map(|(content, _)| content.len() as u64).sum::<u64>());
        let packs = [pack];
        let mut reader = Contents::new(&packs).unwrap();
        for ((content, _), id) in contents.iter().zip(ids) {
            assert_eq!(&packs[0].read_file(id).unwrap(), content, "file {id}");
            let info = packs[0].file(id).unwrap();
            assert_eq!((info.size, info.digest), (content.len() as u64, Digest::of(content)), "file {id}");
            let packed = packs[0].content(PackId::new(0), id).unwrap();
            assert_eq!(&reader.read(&packed).unwrap(), content, "file {id}");
        }
        assert!(packs[0].file(FileId::new(99)).is_none());
        assert!(packs[0].read_file(FileId::new(99)).is_err());
        let stray = Content::Packed { digest: Digest::of(b""), size: 1, pack: PackId::new(0), file: FileId::new(1) };
        assert!(reader.read(&stray).is_err(), "size and digest of the tree must be those of the pack");
    }

    #[test]
    fn equal_contents_are_stored_once() {
        let large = bytes(7, 5 << 20);
        let contents = [
            (bytes(1, 50), false),
            (bytes(2, 9000), false),
            (large.clone(), false),
            (bytes(1, 50), false),
            (bytes(2, 9000), true),
            (large, false),
        ];
        let (bytes, ids, summary) = pack(&contents);
        assert_eq!(ids[..3], ids[3..]);
        assert_eq!((summary.files, summary.duplicates), (3, 3));
        let (once, _, _) = pack(&contents[..3]);
        // The larger duplicate was streamed and taken back: the pack is as long as before that, at most.
        assert!(bytes.len() < 2 * once.len());
        assert_eq!(Pack::from_bytes(bytes).unwrap().read_file(ids[5]).unwrap(), contents[2].0);
    }

    #[test]
    fn sparse_files_take_no_space() {
        let mut writer = PackWriter::new(Cursor::new(Vec::new()), OPTIONS).unwrap();
        let size = 5 << 24;
        let id = writer.add(&mut std::io::repeat(0).take(size).chain(&b"end"[..]), size + 3).unwrap();
        let (out, summary) = writer.finish(b"").unwrap();
        assert!(summary.stored_bytes < 100, "{summary:?}");
        let pack = Pack::from_bytes(out.into_inner()).unwrap();
        let content = pack.read_file(id).unwrap();
        assert!(content.len() as u64 == size + 3 && content.ends_with(b"\0end"));
    }

    #[test]
    fn wrong_sizes_and_options_are_refused() {
        let mut writer = PackWriter::new(Cursor::new(Vec::new()), OPTIONS).unwrap();
        for (len, size) in [(10, 11), (11, 10), (4096, 5000), (9000, 8000), (0, 1), (5 << 20, (5 << 20) - 1)] {
            let content = bytes(1, len);
            assert!(
                matches!(writer.add(&mut content.as_slice(), size), Err(Error::ContentSize { .. })),
                "{len} for {size}"
            );
        }
        for options in [(4095, 3), (2048, 3), (2 << 20, 3), (12288, 3), (4096, 0), (4096, 23)] {
            let options = PackOptions { block_size: options.0, level: options.1 };
            assert!(PackWriter::new(Cursor::new(Vec::new()), options).is_err(), "{options:?}");
        }
    }

    #[test]
    fn damage_is_refused() {
        let contents = sample();
        let (good, ids, summary) = pack(&contents);
        let data = HEADER_LEN..HEADER_LEN + summary.stored_bytes as usize;
        // Every byte outside of the data is covered by the magic or the trailer's digest.
        for at in (0..HEADER_LEN).chain(data.end..good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(Pack::from_bytes(bad).is_err(), "byte {at}");
        }
        for len in [0, 15, 16, 79, 80, good.len() - 1] {
            assert!(Pack::from_bytes(good[..len].to_vec()).is_err(), "cut to {len}");
        }
        // Every byte of the data belongs to some file, and damage names it with both digests.
        for at in data.step_by(61) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            let bad = Pack::from_bytes(bad).unwrap();
            let refused = ids.iter().filter_map(|id| bad.read_file(*id).err()).next();
            let Some(Error::PackDigest { what, expected, actual, .. }) = refused else {
                panic!("byte {at}: {refused:?}");
            };
            assert!(expected != actual && (what.contains("file") || what.contains("fragment")), "byte {at}: {what}");
        }
    }
}
