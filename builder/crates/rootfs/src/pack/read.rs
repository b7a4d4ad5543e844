//! Reading packs.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{
    BLOCK_LEN, COUNTS_LEN, END_MAGIC, FILE_LEN, FRAGMENT_LEN, FileId, HEADER_LEN, MAGIC, NO_FRAGMENT, PackId,
    PackOptions, TRAILER_LEN, VERSION, write::header,
};
use crate::{
    Content, Digest, Error, Result,
    block::{Decoder, StoredSize},
};

/// How much is read at once.
const CHUNK: usize = 1 << 20;

/// A pack whose index has been verified. Data is verified when it is read.
#[derive(Debug)]
pub struct Pack {
    source: Source,
    name: String,
    block_size: u32,
    files: Vec<FileRecord>,
    fragments: Vec<FragmentRecord>,
    blocks: Vec<StoredSize>,
    user: Vec<u8>,
}

/// What a pack knows about one of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// SHA-256 of the content.
    pub digest: Digest,
    /// Length of the content in bytes.
    pub size: u64,
}

#[derive(Debug)]
enum Source {
    File(File),
    Memory(Vec<u8>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct FileRecord {
    pub(crate) digest: Digest,
    pub(crate) stored_digest: Digest,
    pub(crate) size: u64,
    pub(crate) offset: u64,
    pub(crate) first_block: u32,
    pub(crate) block_count: u32,
    /// The fragment block and the offset in it.
    pub(crate) fragment: Option<(u32, u32)>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct FragmentRecord {
    pub(crate) stored_digest: Digest,
    pub(crate) offset: u64,
    pub(crate) size: StoredSize,
    /// Length when decompressed.
    pub(crate) len: u32,
}

impl Pack {
    /// Opens the pack at `path` and verifies its index.
    ///
    /// # Errors
    /// [`Error::PackFormat`] and [`Error::PackDigest`] when the file is no pack of this version or is damaged, and
    /// when it cannot be read. A caller with a cache makes the pack anew then.
    pub fn open(path: impl AsRef<Path>) -> Result<Pack> {
        let path: PathBuf = path.as_ref().into();
        let name = path.display().to_string();
        let file = File::open(&path).map_err(Error::io(format!("opening {name}")))?;
        let len = file.metadata().map_err(Error::io(format!("reading {name}")))?.len();
        Pack::parse(Source::File(file), len, name)
    }

    /// A pack in memory.
    ///
    /// # Errors
    /// As [`Pack::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Pack> {
        let len = bytes.len() as u64;
        Pack::parse(Source::Memory(bytes), len, "in memory".into())
    }

    /// The size of its blocks in bytes.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The number of files.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// What the caller gave to [`PackWriter::finish`](super::PackWriter::finish).
    pub fn user(&self) -> &[u8] {
        &self.user
    }

    /// Digest and size of a file; `None` when there is no such file.
    pub fn file(&self, id: FileId) -> Option<FileInfo> {
        self.record(id).map(|file| FileInfo { digest: file.digest, size: file.size })
    }

    /// The content of a tree's file that is this file of this pack, which will be the `pack`th of an image's packs.
    pub fn content(&self, pack: PackId, id: FileId) -> Option<Content> {
        self.record(id).map(|file| Content::Packed { digest: file.digest, size: file.size, pack, file: id })
    }

    /// Reads a file whole, verified.
    ///
    /// # Errors
    /// [`Error::PackDigest`] when its bytes are not those that were written, and when reading fails.
    pub fn read_file(&self, id: FileId) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.copy_file(id, &mut out)?;
        Ok(out)
    }

    /// Writes a file to `out`, decompressed and verified. Stored bytes are verified before the first byte is written.
    ///
    /// # Errors
    /// As [`Pack::read_file`], and when writing fails.
    pub fn copy_file(&self, id: FileId, out: &mut dyn Write) -> Result<()> {
        Decompression::new()?.copy(self, 0, id, out)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn record(&self, id: FileId) -> Option<&FileRecord> {
        self.files.get(id.index() as usize)
    }

    pub(crate) fn fragment(&self, index: u32) -> &FragmentRecord {
        // Files of a parsed pack have fragment blocks that exist.
        &self.fragments[index as usize]
    }

    pub(crate) fn blocks(&self, file: &FileRecord) -> &[StoredSize] {
        &self.blocks[file.first_block as usize..][..file.block_count as usize]
    }

    pub(crate) fn stored_len(&self, file: &FileRecord) -> u64 {
        self.blocks(file).iter().map(|block| u64::from(block.len())).sum()
    }

    /// Gives the bytes at `offset` to `each`, in pieces, and verifies them at the end.
    pub(crate) fn read_stored(
        &self,
        (offset, len): (u64, u64),
        expected: Digest,
        what: impl FnOnce() -> String,
        buffer: &mut Vec<u8>,
        mut each: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut hasher = Sha256::new();
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(CHUNK as u64);
            self.read_at(offset + done, piece as usize, buffer)?;
            hasher.update(&buffer[..]);
            each(buffer)?;
            done += piece;
        }
        let actual = Digest::finish(hasher);
        if actual == expected {
            Ok(())
        } else {
            Err(Error::PackDigest { pack: self.name.clone(), what: what(), expected, actual })
        }
    }

    /// Replaces `buffer` by the `len` bytes at `offset`.
    fn read_at(&self, offset: u64, len: usize, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.resize(len, 0);
        self.source.read_exact_at(buffer, offset).map_err(Error::io(format!("reading pack {}", self.name)))
    }

    fn parse(source: Source, file_len: u64, name: String) -> Result<Pack> {
        let format = |reason: &str| Error::PackFormat { pack: name.clone(), reason: reason.into() };
        let read = |offset: u64, len: usize| {
            let mut bytes = vec![0; len];
            source.read_exact_at(&mut bytes, offset).map_err(Error::io(format!("reading pack {name}")))?;
            Ok::<_, Error>(bytes)
        };
        if file_len < (HEADER_LEN + COUNTS_LEN + TRAILER_LEN) as u64 {
            return Err(format("is too short"));
        }
        let start = read(0, HEADER_LEN)?;
        let trailer_at = file_len - TRAILER_LEN as u64;
        let trailer = read(trailer_at, TRAILER_LEN)?;
        if start[..8] != MAGIC || trailer[56..] != END_MAGIC {
            return Err(format("is not a pack"));
        }
        if u32_at(&start, 8) != VERSION {
            return Err(format(&format!("has version {}, expected {VERSION}", u32_at(&start, 8))));
        }
        let block_size = PackOptions { block_size: u32_at(&start, 12), level: 1 }.check()?.block_size;
        let [index_at, index_len, user_len] = [0, 8, 16].map(|at| u64_at(&trailer, at));
        let end = index_at.checked_add(index_len).and_then(|end| end.checked_add(user_len));
        if index_at < HEADER_LEN as u64 || end.is_none_or(|end| end > trailer_at) || index_len < COUNTS_LEN as u64 {
            return Err(format("has an index that lies outside of it"));
        }
        let index = read(index_at, index_len as usize)?;
        let user = read(index_at + index_len, user_len as usize)?;
        let mut hasher = Sha256::new();
        for part in [&header(block_size), index.as_slice(), &user, &trailer[..24]] {
            hasher.update(part);
        }
        let (actual, expected) = (Digest::finish(hasher), digest_at(&trailer, 24));
        if actual != expected {
            return Err(Error::PackDigest { pack: name, what: "index".into(), expected, actual });
        }

        let [file_count, fragment_count, block_count] = [0, 4, 8].map(|at| u32_at(&index, at) as usize);
        let records = &index[COUNTS_LEN..];
        let (files_len, fragments_len) = (file_count * FILE_LEN, fragment_count * FRAGMENT_LEN);
        if records.len() != files_len + fragments_len + block_count * BLOCK_LEN {
            return Err(format("has an index of another length than its counts"));
        }
        let (files, records) = records.split_at(files_len);
        let (fragments, blocks) = records.split_at(fragments_len);
        let blocks = blocks.chunks_exact(BLOCK_LEN).map(|raw| StoredSize::parse(u32_at(raw, 0), block_size));
        let fragments = fragments.chunks_exact(FRAGMENT_LEN).map(|raw| FragmentRecord::decode(raw, block_size));
        let pack = Pack {
            block_size,
            files: files.chunks_exact(FILE_LEN).map(FileRecord::decode).collect(),
            fragments: fragments.collect::<Option<_>>().ok_or_else(|| format("has an impossible fragment block"))?,
            blocks: blocks.collect::<Option<_>>().ok_or_else(|| format("has an impossible block size"))?,
            user,
            name: name.clone(),
            source,
        };
        match pack.files.iter().position(|file| !pack.is_consistent(file, index_at)) {
            Some(file) => Err(format(&format!("has an impossible file {file}"))),
            None if pack.fragments.iter().any(|fragment| !within(fragment.offset, fragment.size.len(), index_at)) => {
                Err(format("has a fragment block that lies outside of its data"))
            }
            None => Ok(pack),
        }
    }

    /// Whether a record fits the other records and the data, which ends at `data_end`.
    fn is_consistent(&self, file: &FileRecord, data_end: u64) -> bool {
        let Some(last) = file.first_block.checked_add(file.block_count) else { return false };
        if last as usize > self.blocks.len() {
            return false;
        }
        let block_size = u64::from(self.block_size);
        let placed = match file.fragment {
            None => u64::from(file.block_count) == file.size.div_ceil(block_size),
            Some((index, offset)) => {
                let tail = file.size % block_size;
                let fragment = self.fragments.get(index as usize);
                tail > 0
                    && u64::from(file.block_count) == file.size / block_size
                    && fragment.is_some_and(|fragment| u64::from(offset) + tail <= u64::from(fragment.len))
            }
        };
        placed
            && file.offset >= HEADER_LEN as u64
            && file.offset.checked_add(self.stored_len(file)).is_some_and(|end| end <= data_end)
    }
}

/// Reads contents of trees, wherever they are. It keeps the fragment block that was read last, so small files that were
/// neighbours in their package are cheap to read one after the other.
pub struct Contents<'a> {
    packs: &'a [Pack],
    decompression: Decompression,
}

impl<'a> Contents<'a> {
    /// A reader of contents that are inline or in `packs`.
    ///
    /// # Errors
    /// When there is no memory for a decompressor.
    pub fn new(packs: &'a [Pack]) -> Result<Contents<'a>> {
        Ok(Contents { packs, decompression: Decompression::new()? })
    }

    /// Reads a content whole, verified.
    ///
    /// # Errors
    /// As [`Pack::read_file`], and [`Error::UnknownContent`] when the pack or the file does not exist or is another.
    pub fn read(&mut self, content: &Content) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.copy(content, &mut out)?;
        Ok(out)
    }

    /// Writes a content to `out`, verified.
    ///
    /// # Errors
    /// As [`Contents::read`], and when writing fails.
    pub fn copy(&mut self, content: &Content, out: &mut dyn Write) -> Result<()> {
        match content {
            Content::Inline(bytes) => out.write_all(bytes).map_err(Error::io("writing a content")),
            Content::Packed { pack, file, .. } => {
                let (found, _) = find(self.packs, content, || b"content".to_vec())?.expect("the content is packed");
                self.decompression.copy(found, pack.index(), *file, out)
            }
        }
    }
}

/// The pack and the record of a packed content, checked to be what the tree says; `None` for an inline content.
pub(crate) fn find<'a>(
    packs: &'a [Pack],
    content: &Content,
    path: impl Fn() -> Vec<u8>,
) -> Result<Option<(&'a Pack, &'a FileRecord)>> {
    let Content::Packed { digest, size, pack, file } = content else { return Ok(None) };
    let unknown = |reason| Error::UnknownContent { path: crate::error::show(&path()), reason };
    let found = packs.get(pack.index() as usize).ok_or_else(|| unknown(format!("there is no pack {pack}")))?;
    let record = found.record(*file).ok_or_else(|| unknown(format!("pack {} has no file {file}", found.name)))?;
    if (record.digest, record.size) != (*digest, *size) {
        return Err(unknown(format!(
            "file {file} of pack {} has {} bytes with SHA-256 {}, expected {size} with {digest}",
            found.name, record.size, record.digest
        )));
    }
    Ok(Some((found, record)))
}

/// A decompressor with its buffers, and the fragment block that it read last.
struct Decompression {
    decoder: Decoder,
    stored: Vec<u8>,
    block: Vec<u8>,
    fragment: Vec<u8>,
    /// Pack and index of what is in `fragment`.
    fragment_of: Option<(u32, u32)>,
}

impl Decompression {
    fn new() -> Result<Decompression> {
        Ok(Decompression {
            decoder: Decoder::new().map_err(Error::io("making a decompressor"))?,
            stored: Vec::new(),
            block: Vec::new(),
            fragment: Vec::new(),
            fragment_of: None,
        })
    }

    fn copy(&mut self, pack: &Pack, pack_index: u32, id: FileId, out: &mut dyn Write) -> Result<()> {
        let missing = || Error::PackFormat { pack: pack.name.clone(), reason: format!("has no file {id}") };
        let file = pack.record(id).ok_or_else(missing)?;
        let mut out = Hashed { out, hasher: Sha256::new() };
        let what = || format!("file {id}, as stored,");
        let extent = (file.offset, pack.stored_len(file));
        pack.read_stored(extent, file.stored_digest, what, &mut self.stored, |_| Ok(()))?;
        self.copy_blocks(pack, file, id, &mut out)?;
        if let Some((index, offset)) = file.fragment {
            self.load_fragment(pack, pack_index, index)?;
            let tail = (file.size % u64::from(pack.block_size)) as usize;
            out.write(&self.fragment[offset as usize..][..tail])?;
        }
        let actual = Digest::finish(out.hasher);
        if actual == file.digest {
            return Ok(());
        }
        let what = format!("content of file {id}");
        Err(Error::PackDigest { pack: pack.name.clone(), what, expected: file.digest, actual })
    }

    fn copy_blocks(&mut self, pack: &Pack, file: &FileRecord, id: FileId, out: &mut Hashed<'_>) -> Result<()> {
        let damaged =
            || Error::PackFormat { pack: pack.name.clone(), reason: format!("has a damaged block in file {id}") };
        let mut position = file.offset;
        let mut left = file.size;
        for block in pack.blocks(file) {
            let len = left.min(u64::from(pack.block_size)) as usize;
            let bytes = if block.is_hole() {
                self.block.clear();
                self.block.resize(len, 0);
                &self.block
            } else {
                pack.read_at(position, block.len() as usize, &mut self.stored)?;
                position += u64::from(block.len());
                if block.is_compressed() {
                    self.decoder.decode(&self.stored, len, &mut self.block).map_err(|_| damaged())?;
                    &self.block
                } else {
                    &self.stored
                }
            };
            if bytes.len() != len {
                return Err(damaged());
            }
            out.write(bytes)?;
            left -= len as u64;
        }
        Ok(())
    }

    fn load_fragment(&mut self, pack: &Pack, pack_index: u32, index: u32) -> Result<()> {
        if self.fragment_of == Some((pack_index, index)) {
            return Ok(());
        }
        self.fragment_of = None;
        let record = pack.fragment(index);
        let what = || format!("fragment block {index}");
        let extent = (record.offset, u64::from(record.size.len()));
        pack.read_stored(extent, record.stored_digest, what, &mut self.stored, |_| Ok(()))?;
        let decoded = if record.size.is_compressed() {
            self.decoder.decode(&self.stored, record.len as usize, &mut self.fragment).is_ok()
        } else {
            self.fragment.clone_from(&self.stored);
            true
        };
        if !decoded || self.fragment.len() != record.len as usize {
            let reason = format!("has a damaged fragment block {index}");
            return Err(Error::PackFormat { pack: pack.name.clone(), reason });
        }
        self.fragment_of = Some((pack_index, index));
        Ok(())
    }
}

/// A writer that hashes what passes.
struct Hashed<'a> {
    out: &'a mut dyn Write,
    hasher: Sha256,
}

impl Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes).map_err(Error::io("writing a content"))
    }
}

impl Source {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Source::File(file) => file.read_exact_at(buffer, offset),
            Source::Memory(bytes) => {
                let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
                let from = from.and_then(|from| from.get(..buffer.len()));
                buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

impl FileRecord {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (fragment, fragment_offset) = self.fragment.unwrap_or((NO_FRAGMENT, 0));
        out.extend_from_slice(self.digest.as_bytes());
        out.extend_from_slice(self.stored_digest.as_bytes());
        for number in [self.size, self.offset] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.first_block, self.block_count, fragment, fragment_offset] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn decode(raw: &[u8]) -> FileRecord {
        let fragment = u32_at(raw, 88);
        FileRecord {
            digest: digest_at(raw, 0),
            stored_digest: digest_at(raw, 32),
            size: u64_at(raw, 64),
            offset: u64_at(raw, 72),
            first_block: u32_at(raw, 80),
            block_count: u32_at(raw, 84),
            fragment: (fragment != NO_FRAGMENT).then(|| (fragment, u32_at(raw, 92))),
        }
    }
}

impl FragmentRecord {
    /// What stands in the index until the fragment block is full.
    pub(super) const PENDING: FragmentRecord =
        FragmentRecord { stored_digest: Digest::from_bytes([0; 32]), offset: 0, size: StoredSize::HOLE, len: 0 };

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.stored_digest.as_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.size.raw().to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
    }

    fn decode(raw: &[u8], block_size: u32) -> Option<FragmentRecord> {
        let size = StoredSize::parse(u32_at(raw, 40), block_size)?;
        let record =
            FragmentRecord { stored_digest: digest_at(raw, 0), offset: u64_at(raw, 32), size, len: u32_at(raw, 44) };
        (!size.is_hole() && record.len > 0 && record.len <= block_size).then_some(record)
    }
}

fn within(offset: u64, len: u32, end: u64) -> bool {
    offset >= HEADER_LEN as u64 && offset.checked_add(u64::from(len)).is_some_and(|last| last <= end)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has this length")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn digest_at(bytes: &[u8], at: usize) -> Digest {
    Digest::from_bytes(array_at(bytes, at))
}
