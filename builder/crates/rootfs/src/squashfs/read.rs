//! Reading images: list what is in them, read files.
//!
//! Input may be hostile: every position, length and count is checked before it is used, memory does not grow beyond a
//! small multiple of what the image has bytes, and a directory that contains itself is an error.

mod stored;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Seek, SeekFrom, Write},
};

use super::{
    BLOCK_DEVICE, CHARACTER_DEVICE, DIRECTORY, ENTRIES_MAX, EXTENDED, FIFO, FILE, LISTING_EXTRA, METADATA_LEN,
    METADATA_UNCOMPRESSED, NO_TABLE, NONE, SOCKET, SUPERBLOCK_LEN, SYMLINK, Superblock, XATTR_OUT_OF_LINE,
    XATTR_PREFIXES,
};
use crate::{
    Error, Meta, Result,
    block::{Decoder, StoredSize},
    error::show,
    tree::{DeviceKind, NAME_MAX, PATH_MAX, join},
};

/// Metadata blocks kept decompressed, 8 KiB each.
const CACHED_BLOCKS: usize = 1024;

/// An open image.
pub struct Image<R> {
    reader: R,
    superblock: Superblock,
    decoder: Decoder,
    metadata: BTreeMap<u64, (Vec<u8>, u64)>,
    ids: Vec<u32>,
    fragments: Vec<(u64, StoredSize)>,
    xattrs: Option<XattrTable>,
    /// The fragment block read last.
    fragment: Option<(u32, Vec<u8>)>,
}

/// An entry of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The path from the root, without a leading slash; empty for the root.
    pub path: Vec<u8>,
    /// Owner, permissions and extended attributes.
    pub meta: Meta,
    /// Modification time in seconds since 1970.
    pub mtime: u32,
    /// The number of hard links that the inode claims.
    pub links: u32,
    /// What it is.
    pub kind: Kind,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File(FileData),
    /// A symbolic link and where it leads.
    Symlink(Vec<u8>),
    /// A device node.
    Device {
        /// Block or character.
        kind: DeviceKind,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Where the content of a file is, for [`Image::copy_file`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileData {
    size: u64,
    start: u64,
    blocks: Vec<StoredSize>,
    fragment: Option<(u32, u32)>,
}

impl FileData {
    /// The length of the content in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

struct XattrTable {
    pairs_at: u64,
    /// Reference and number of the pairs of each set.
    sets: Vec<(u64, u32)>,
}

impl<R: Read + Seek> Image<R> {
    /// Opens the image at the beginning of `reader`.
    ///
    /// # Errors
    /// [`Error::ImageFormat`] when it is no image that can be read, and when reading fails.
    pub fn open(mut reader: R) -> Result<Image<R>> {
        let mut raw = [0; SUPERBLOCK_LEN];
        reader.seek(SeekFrom::Start(0)).and_then(|_| reader.read_exact(&mut raw)).map_err(reading)?;
        let superblock = Superblock::decode(&raw).map_err(damaged)?;
        let len = reader.seek(SeekFrom::End(0)).map_err(reading)?;
        if superblock.bytes_used > len {
            return Err(damaged(format!("has {len} bytes, expected {}", superblock.bytes_used)));
        }
        let decoder = Decoder::new().map_err(Error::io("making a decompressor"))?;
        let mut image = Image {
            reader,
            superblock,
            decoder,
            metadata: BTreeMap::new(),
            ids: Vec::new(),
            fragments: Vec::new(),
            xattrs: None,
            fragment: None,
        };
        image.load_tables()?;
        Ok(image)
    }

    /// The size of a data block in bytes.
    pub fn block_size(&self) -> u32 {
        self.superblock.block_size
    }

    /// The length of the image in bytes, without padding.
    pub fn bytes_used(&self) -> u64 {
        self.superblock.bytes_used
    }

    /// The modification time of the image in seconds since 1970.
    pub fn mtime(&self) -> u32 {
        self.superblock.mtime
    }

    /// All entries, the root first, sorted depth-first.
    ///
    /// # Errors
    /// [`Error::ImageFormat`] for a damaged image, and when reading fails.
    pub fn entries(&mut self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut seen = BTreeSet::new();
        let mut stack = vec![(Vec::new(), self.superblock.root)];
        while let Some((path, place)) = stack.pop() {
            if entries.len() >= self.superblock.inodes as usize {
                return Err(damaged(format!("has more entries than its {} inodes", self.superblock.inodes)));
            }
            let (entry, listing) = self.inode(path, place)?;
            if let Some(listing) = listing {
                if !seen.insert(place) {
                    return Err(damaged(format!("has directory {} in two places", show(&entry.path))));
                }
                let children = self.listing(listing, &entry.path)?;
                stack.extend(children.into_iter().rev().map(|(name, place)| (join(&entry.path, &name), place)));
            }
            entries.push(entry);
        }
        if !matches!(entries[0].kind, Kind::Directory) {
            return Err(damaged("has a root that is not a directory"));
        }
        Ok(entries)
    }

    /// The entry at `path`; a symbolic link itself, and none on the way to it.
    ///
    /// # Errors
    /// [`Error::ImageFormat`] for a damaged image, and when reading fails.
    pub fn lookup(&mut self, path: impl AsRef<[u8]>) -> Result<Option<Entry>> {
        let (mut entry, mut listing) = self.inode(Vec::new(), self.superblock.root)?;
        for name in path.as_ref().split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let Some(place) = listing else { return Ok(None) };
            let children = self.listing(place, &entry.path)?;
            let Some((_, place)) = children.into_iter().find(|(child, _)| child == name) else { return Ok(None) };
            (entry, listing) = self.inode(join(&entry.path, name), place)?;
        }
        Ok(Some(entry))
    }

    /// Reads a file of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::ImageFormat`] when the file is longer or damaged, and when reading fails.
    pub fn read_file(&mut self, file: &FileData, limit: u64) -> Result<Vec<u8>> {
        if file.size > limit {
            return Err(damaged(format!("has a file of {} bytes, expected at most {limit}", file.size)));
        }
        let mut out = Vec::new();
        self.copy_file(file, &mut out)?;
        Ok(out)
    }

    /// Writes a file's content to `out`: [`FileData::size`] bytes, which may be far more than the image has.
    ///
    /// # Errors
    /// [`Error::ImageFormat`] when the file is damaged, and when reading or writing fails.
    pub fn copy_file(&mut self, file: &FileData, out: &mut dyn Write) -> Result<()> {
        let block_size = u64::from(self.superblock.block_size);
        let writing = Error::io("writing a file of an image");
        let mut position = file.start;
        let mut left = file.size;
        let mut result = Ok(());
        for block in &file.blocks {
            let len = left.min(block_size);
            let bytes = self.block(position, *block, len as usize)?;
            position = position.saturating_add(u64::from(block.len()));
            left -= len;
            result = out.write_all(&bytes);
            if result.is_err() {
                break;
            }
        }
        if let (Ok(()), Some((index, offset))) = (&result, file.fragment) {
            let offset = offset as usize;
            let bytes = self.fragment(index)?.get(offset..).and_then(|rest| rest.get(..left as usize));
            result = out.write_all(bytes.ok_or_else(|| damaged("has a file outside of its fragment block"))?);
        }
        result.map_err(writing)
    }

    fn fragment(&mut self, index: u32) -> Result<&[u8]> {
        if self.fragment.as_ref().is_none_or(|(loaded, _)| *loaded != index) {
            let found = self.fragments.get(index as usize);
            let (start, size) = *found.ok_or_else(|| damaged(format!("has no fragment block {index}")))?;
            if size.is_hole() {
                return Err(damaged(format!("has an empty fragment block {index}")));
            }
            let stored = self.read_at(start, size.len() as usize)?;
            let block = self.decode(stored, size)?;
            self.fragment = Some((index, block));
        }
        Ok(self.fragment.as_ref().map_or(&[], |(_, block)| block))
    }

    /// A data block that has `len` bytes.
    fn block(&mut self, at: u64, size: StoredSize, len: usize) -> Result<Vec<u8>> {
        if size.is_hole() {
            return Ok(vec![0; len]);
        }
        let stored = self.read_at(at, size.len() as usize)?;
        let mut block = self.decode(stored, size)?;
        if block.len() > len {
            return Err(damaged(format!("has a block of {} bytes, expected {len}", block.len())));
        }
        block.resize(len, 0);
        Ok(block)
    }

    fn decode(&mut self, stored: Vec<u8>, size: StoredSize) -> Result<Vec<u8>> {
        if !size.is_compressed() {
            return Ok(stored);
        }
        let mut out = Vec::new();
        let limit = self.superblock.block_size as usize;
        self.decoder.decode(&stored, limit, &mut out).map_err(|_| damaged("has a damaged data block"))?;
        Ok(out)
    }

    fn read_at(&mut self, at: u64, len: usize) -> Result<Vec<u8>> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.superblock.bytes_used) {
            return Err(damaged("refers to what lies beyond its end"));
        }
        let mut bytes = vec![0; len];
        self.reader.seek(SeekFrom::Start(at)).and_then(|_| self.reader.read_exact(&mut bytes)).map_err(reading)?;
        Ok(bytes)
    }

    /// The uncompressed bytes of the metadata block at `at`, and where the next block is.
    fn metadata_block(&mut self, at: u64) -> Result<(&[u8], u64)> {
        if !self.metadata.contains_key(&at) {
            if self.metadata.len() >= CACHED_BLOCKS {
                self.metadata.clear();
            }
            let header = self.read_at(at, 2)?;
            let header = u16::from_le_bytes([header[0], header[1]]);
            let len = usize::from(header & !METADATA_UNCOMPRESSED);
            if len == 0 || len > METADATA_LEN {
                return Err(damaged(format!("has a metadata block of {len} bytes")));
            }
            let stored = self.read_at(at + 2, len)?;
            let block = if header & METADATA_UNCOMPRESSED == 0 {
                let mut out = Vec::new();
                let decoded = self.decoder.decode(&stored, METADATA_LEN, &mut out);
                decoded.map_err(|_| damaged("has a damaged metadata block"))?;
                out
            } else {
                stored
            };
            self.metadata.insert(at, (block, at + 2 + len as u64));
        }
        let (block, next) = &self.metadata[&at];
        Ok((block, *next))
    }

    fn cursor(&mut self, table: u64, reference: u64) -> Result<Cursor<'_, R>> {
        let block = table.checked_add(reference >> 16).ok_or_else(|| damaged("has an impossible reference"))?;
        Ok(Cursor { image: self, block, offset: (reference & 0xffff) as usize })
    }

    fn load_tables(&mut self) -> Result<()> {
        let Superblock { ids, fragments, id_table, fragment_table, xattr_table, block_size, .. } = self.superblock;
        let raw = self.lookup_table(id_table, 4 * u64::from(ids))?;
        self.ids = raw.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
        if fragments > 0 {
            let raw = self.lookup_table(fragment_table, 16 * u64::from(fragments))?;
            for record in raw.as_chunks::<16>().0 {
                let (start, size) = (u128::from_le_bytes(*record) as u64, (u128::from_le_bytes(*record) >> 64) as u32);
                let size = StoredSize::parse(size, block_size);
                self.fragments.push((start, size.ok_or_else(|| damaged("has an impossible fragment block"))?));
            }
        }
        if xattr_table != NO_TABLE {
            let header = self.read_at(xattr_table, 16)?;
            let header = u128::from_le_bytes(header.try_into().expect("16 bytes were read"));
            let (pairs_at, count) = (header as u64, (header >> 64) as u32);
            let raw = self.lookup_table(xattr_table.saturating_add(16), 16 * u64::from(count))?;
            let sets = raw.as_chunks::<16>().0.iter().map(|record| {
                let record = u128::from_le_bytes(*record);
                (record as u64, (record >> 64) as u32)
            });
            self.xattrs = Some(XattrTable { pairs_at, sets: sets.collect() });
        }
        Ok(())
    }

    /// The `len` bytes of the lookup table whose positions are at `at`.
    fn lookup_table(&mut self, at: u64, len: u64) -> Result<Vec<u8>> {
        let blocks = len.div_ceil(METADATA_LEN as u64);
        if blocks * 8 > self.superblock.bytes_used {
            return Err(damaged("has a table that is longer than it"));
        }
        let positions = self.read_at(at, blocks as usize * 8)?;
        let mut out = Vec::new();
        for position in positions.as_chunks().0 {
            let (block, _) = self.metadata_block(u64::from_le_bytes(*position))?;
            out.extend_from_slice(block);
        }
        if (out.len() as u64) < len {
            return Err(damaged("has a table that is too short"));
        }
        out.truncate(len as usize);
        Ok(out)
    }

    /// An inode, and the reference and size of its listing where it is a directory.
    fn inode(&mut self, path: Vec<u8>, reference: u64) -> Result<(Entry, Option<(u64, u32)>)> {
        let block_size = u64::from(self.superblock.block_size);
        let table = self.superblock.inode_table;
        let mut cursor = self.cursor(table, reference)?;
        let [raw_kind, mode, uid, gid] = [cursor.u16()?, cursor.u16()?, cursor.u16()?, cursor.u16()?];
        let (mtime, _number) = (cursor.u32()?, cursor.u32()?);
        let extended = raw_kind > EXTENDED;
        let kind = if extended { raw_kind - EXTENDED } else { raw_kind };
        let mut links = 1;
        let mut xattr = NONE;
        let mut listing = None;
        let kind = match kind {
            DIRECTORY => {
                let (block, size, offset);
                if extended {
                    links = cursor.u32()?;
                    size = cursor.u32()?;
                    block = cursor.u32()?;
                    let (_parent, _index_count) = (cursor.u32()?, cursor.u16()?);
                    offset = cursor.u16()?;
                    xattr = cursor.u32()?;
                } else {
                    block = cursor.u32()?;
                    links = cursor.u32()?;
                    size = u32::from(cursor.u16()?);
                    offset = cursor.u16()?;
                }
                listing = Some((u64::from(block) << 16 | u64::from(offset), size.saturating_sub(LISTING_EXTRA)));
                Kind::Directory
            }
            FILE => {
                let (start, size, fragment, offset);
                if extended {
                    start = cursor.u64()?;
                    size = cursor.u64()?;
                    let _sparse = cursor.u64()?;
                    links = cursor.u32()?;
                    fragment = cursor.u32()?;
                    offset = cursor.u32()?;
                    xattr = cursor.u32()?;
                } else {
                    start = u64::from(cursor.u32()?);
                    fragment = cursor.u32()?;
                    offset = cursor.u32()?;
                    size = u64::from(cursor.u32()?);
                }
                let fragment = (fragment != NONE && size % block_size > 0).then_some((fragment, offset));
                let count = if fragment.is_some() { size / block_size } else { size.div_ceil(block_size) };
                // Not allocated at once: a count that is a lie ends where the metadata ends.
                let mut blocks = Vec::new();
                for _ in 0..count {
                    let block = StoredSize::parse(cursor.u32()?, block_size as u32);
                    blocks.push(block.ok_or_else(|| damaged(format!("has an impossible block in {}", show(&path))))?);
                }
                Kind::File(FileData { size, start, blocks, fragment })
            }
            SYMLINK => {
                links = cursor.u32()?;
                let len = cursor.u32()? as usize;
                if len > PATH_MAX {
                    return Err(damaged(format!("has a symbolic link {} to a path of {len} bytes", show(&path))));
                }
                let target = cursor.bytes(len)?;
                if extended {
                    xattr = cursor.u32()?;
                }
                Kind::Symlink(target)
            }
            BLOCK_DEVICE | CHARACTER_DEVICE => {
                links = cursor.u32()?;
                let device = cursor.u32()?;
                if extended {
                    xattr = cursor.u32()?;
                }
                Kind::Device {
                    kind: if kind == BLOCK_DEVICE { DeviceKind::Block } else { DeviceKind::Character },
                    major: device >> 8 & 0xfff,
                    minor: device & 0xff | device >> 12 & 0xfff00,
                }
            }
            FIFO | SOCKET => {
                links = cursor.u32()?;
                if extended {
                    xattr = cursor.u32()?;
                }
                if kind == FIFO { Kind::Fifo } else { Kind::Socket }
            }
            _ => return Err(damaged(format!("has an inode of type {raw_kind} for {}", show(&path)))),
        };
        let id = |index: u16| {
            let id = self.ids.get(usize::from(index)).copied();
            id.ok_or_else(|| damaged(format!("has no owner {index} of {}", show(&path))))
        };
        let (uid, gid) = (id(uid)?, id(gid)?);
        let xattrs = if xattr == NONE { BTreeMap::new() } else { self.xattr_set(xattr)? };
        Ok((Entry { path, meta: Meta { mode: mode & 0o7777, uid, gid, xattrs }, mtime, links, kind }, listing))
    }

    /// Names and inode references of a directory's entries.
    fn listing(&mut self, (reference, size): (u64, u32), path: &[u8]) -> Result<Vec<(Vec<u8>, u64)>> {
        let table = self.superblock.directory_table;
        let wrong = |what: &str| damaged(format!("has directory {} {what}", show(path)));
        let inodes = self.superblock.inodes as usize;
        let mut cursor = self.cursor(table, reference)?;
        let mut entries: Vec<(Vec<u8>, u64)> = Vec::new();
        let mut left = u64::from(size);
        while left > 0 {
            let (count, block, _number) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
            if count as usize >= ENTRIES_MAX || entries.len() >= inodes {
                return Err(wrong("with too many entries"));
            }
            left = left.checked_sub(12).ok_or_else(|| wrong("with a cut listing"))?;
            for _ in 0..=count {
                let (offset, _delta, _kind, len) = (cursor.u16()?, cursor.u16()?, cursor.u16()?, cursor.u16()?);
                let name = cursor.bytes(usize::from(len) + 1)?;
                left = left.checked_sub(8 + name.len() as u64).ok_or_else(|| wrong("with a cut listing"))?;
                let reserved = matches!(name.as_slice(), b"." | b"..");
                if reserved || name.len() > NAME_MAX || name.contains(&b'/') || name.contains(&0) {
                    return Err(wrong("with an impossible name"));
                }
                if entries.last().is_some_and(|(last, _)| *last >= name) {
                    return Err(wrong("with names out of order"));
                }
                entries.push((name, u64::from(block) << 16 | u64::from(offset)));
            }
        }
        if path.len() > PATH_MAX {
            return Err(damaged("has directories that are nested too deep"));
        }
        Ok(entries)
    }

    fn xattr_set(&mut self, index: u32) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let set = self.xattrs.as_ref().and_then(|table| Some((table.pairs_at, *table.sets.get(index as usize)?)));
        let (table, (reference, count)) = set.ok_or_else(|| damaged(format!("has no extended attributes {index}")))?;
        let mut cursor = self.cursor(table, reference)?;
        let mut xattrs = BTreeMap::new();
        for _ in 0..count {
            let kind = cursor.u16()?;
            let prefix = XATTR_PREFIXES.get(usize::from(kind & !XATTR_OUT_OF_LINE));
            let prefix = *prefix.ok_or_else(|| damaged(format!("has an extended attribute of type {kind}")))?;
            let len = cursor.u16()?;
            let name = [prefix, &cursor.bytes(usize::from(len))?].concat();
            let mut value = cursor.value()?;
            if kind & XATTR_OUT_OF_LINE != 0 {
                let place: [u8; 8] = value.try_into().map_err(|_| damaged("has a damaged extended attribute"))?;
                value = cursor.image.cursor(table, u64::from_le_bytes(place))?.value()?;
            }
            if xattrs.insert(name, value).is_some() {
                return Err(damaged("has an extended attribute twice"));
            }
        }
        Ok(xattrs)
    }
}

/// Reads records that run through metadata blocks.
struct Cursor<'a, R> {
    image: &'a mut Image<R>,
    block: u64,
    offset: usize,
}

impl<R: Read + Seek> Cursor<'_, R> {
    fn bytes(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(len.min(METADATA_LEN));
        while out.len() < len {
            let (block, next) = self.image.metadata_block(self.block)?;
            // Only a full block goes on in the next.
            if self.offset >= METADATA_LEN {
                self.offset -= METADATA_LEN;
                self.block = next;
                continue;
            }
            let rest = block.get(self.offset..).unwrap_or(&[]);
            if rest.is_empty() {
                return Err(damaged("has metadata that ends too early"));
            }
            let now = rest.len().min(len - out.len());
            out.extend_from_slice(&rest[..now]);
            self.offset += now;
        }
        Ok(out)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.bytes(N)?.try_into().expect("as many bytes as asked for"))
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The value of an extended attribute.
    fn value(&mut self) -> Result<Vec<u8>> {
        let len = self.u32()? as usize;
        if len > 65536 {
            return Err(damaged(format!("has an extended attribute of {len} bytes")));
        }
        self.bytes(len)
    }
}

fn damaged(reason: impl Into<String>) -> Error {
    Error::ImageFormat { reason: reason.into() }
}

fn reading(source: std::io::Error) -> Error {
    Error::Io { doing: "reading an image".into(), source }
}
