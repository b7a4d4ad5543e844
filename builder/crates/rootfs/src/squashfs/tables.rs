//! The metadata of an image: inodes, directories, and the tables of fragment blocks, owners and extended attributes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    DIRECTORY, ENTRIES_MAX, EXTENDED, FLAG_COMPRESSOR_OPTIONS, FLAG_DUPLICATES, FLAG_NO_XATTRS, LISTING_ENTRY_LEN,
    LISTING_EXTRA, LISTING_HEADER_LEN, METADATA_LEN, MetadataRef, NO_TABLE, NONE, Superblock, XATTR_PREFIXES,
    metadata::{MetadataWriter, lookup_table},
    write::{Arena, Entry, Inode, Layout, Options},
};
use crate::{Node, Result};

/// All that follows the data.
pub(super) struct Metadata {
    pub(super) bytes: Vec<u8>,
    pub(super) superblock: Superblock,
}

impl Metadata {
    pub(super) fn new(arena: &Arena<'_>, layout: &Layout<'_>, options: &Options) -> Result<Metadata> {
        let level = options.level;
        let xattrs = Xattrs::new(arena, level)?;
        let ids = Ids::new(arena)?;
        let tables = Tables {
            arena,
            layout,
            mtime: options.mtime,
            xattrs: &xattrs,
            ids: &ids,
            inodes: MetadataWriter::new(level)?,
            directories: MetadataWriter::new(level)?,
            places: vec![MetadataRef::default(); arena.inodes.len()],
            listings: HashMap::new(),
        };
        let (mut bytes, directories, root) = tables.write()?;
        let inode_table = layout.end;
        let directory_table = inode_table + bytes.len() as u64;
        bytes.extend_from_slice(&directories);

        let mut fragment_table = NO_TABLE;
        if !layout.fragments.is_empty() {
            let mut records = Vec::with_capacity(16 * layout.fragments.len());
            for (start, size) in &layout.fragments {
                records.extend_from_slice(&start.to_le_bytes());
                records.extend_from_slice(&size.raw().to_le_bytes());
                records.extend_from_slice(&[0; 4]);
            }
            let (table, start) = lookup_table(layout.end + bytes.len() as u64, &records, b"", level)?;
            bytes.extend_from_slice(&table);
            fragment_table = start;
        }
        let records: Vec<u8> = ids.list.iter().flat_map(|id| id.to_le_bytes()).collect();
        let (table, id_table) = lookup_table(layout.end + bytes.len() as u64, &records, b"", level)?;
        bytes.extend_from_slice(&table);

        let mut flags = FLAG_DUPLICATES | FLAG_COMPRESSOR_OPTIONS;
        let mut xattr_table = NO_TABLE;
        if xattrs.count == 0 {
            flags |= FLAG_NO_XATTRS;
        } else {
            let pairs_at = layout.end + bytes.len() as u64;
            bytes.extend_from_slice(&xattrs.pairs);
            let mut header = pairs_at.to_le_bytes().to_vec();
            header.extend_from_slice(&xattrs.count.to_le_bytes());
            header.extend_from_slice(&[0; 4]);
            let (table, start) = lookup_table(layout.end + bytes.len() as u64, &xattrs.records, &header, level)?;
            bytes.extend_from_slice(&table);
            xattr_table = start;
        }
        let superblock = Superblock {
            inodes: arena.inodes.len() as u32,
            mtime: options.mtime,
            block_size: options.block_size,
            fragments: layout.fragments.len() as u32,
            flags,
            ids: ids.list.len() as u16,
            root: root.raw(),
            bytes_used: layout.end + bytes.len() as u64,
            id_table,
            xattr_table,
            inode_table,
            directory_table,
            fragment_table,
        };
        Ok(Metadata { bytes, superblock })
    }
}

/// The users and groups of a tree, in ascending order.
struct Ids {
    list: Vec<u32>,
}

impl Ids {
    fn new(arena: &Arena<'_>) -> Result<Ids> {
        let ids: BTreeSet<u32> = arena.inodes.iter().map(Inode::meta).flat_map(|meta| [meta.uid, meta.gid]).collect();
        if ids.len() > usize::from(u16::MAX) {
            return Err(arena.unrepresentable(0, "has more than 65535 users and groups"));
        }
        Ok(Ids { list: ids.into_iter().collect() })
    }

    fn index(&self, id: u32) -> u16 {
        self.list.binary_search(&id).expect("the list has every ID of the tree") as u16
    }
}

/// The sets of extended attributes of a tree, each once.
struct Xattrs {
    /// The set of each inode that has any.
    sets: HashMap<usize, u32>,
    count: u32,
    pairs: Vec<u8>,
    records: Vec<u8>,
}

impl Xattrs {
    fn new(arena: &Arena<'_>, level: i32) -> Result<Xattrs> {
        let mut writer = MetadataWriter::new(level)?;
        let mut xattrs = Xattrs { sets: HashMap::new(), count: 0, pairs: Vec::new(), records: Vec::new() };
        let mut known: BTreeMap<&BTreeMap<Vec<u8>, Vec<u8>>, u32> = BTreeMap::new();
        for (index, inode) in arena.inodes.iter().enumerate() {
            let set = &inode.meta().xattrs;
            if set.is_empty() {
                continue;
            }
            if let Some(number) = known.get(set) {
                xattrs.sets.insert(index, *number);
                continue;
            }
            let bytes = encode_xattrs(set).map_err(|reason| arena.unrepresentable(index, reason))?;
            xattrs.records.extend_from_slice(&writer.position().raw().to_le_bytes());
            xattrs.records.extend_from_slice(&(set.len() as u32).to_le_bytes());
            xattrs.records.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            writer.write(&bytes)?;
            known.insert(set, xattrs.count);
            xattrs.sets.insert(index, xattrs.count);
            xattrs.count += 1;
        }
        xattrs.pairs = writer.finish()?;
        Ok(xattrs)
    }

    fn of(&self, index: usize) -> Option<u32> {
        self.sets.get(&index).copied()
    }
}

fn encode_xattrs(set: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<u8>, String> {
    // Linux' own limits, below those of the format.
    const NAME_MAX: usize = 255;
    const VALUE_MAX: usize = 65536;
    let mut bytes = Vec::new();
    for (name, value) in set {
        let shown = String::from_utf8_lossy(name);
        let prefixes = XATTR_PREFIXES.iter().zip(0u16..);
        let known = prefixes.filter_map(|(prefix, kind)| Some((kind, name.strip_prefix(*prefix)?))).next();
        let Some((kind, rest)) = known else {
            return Err(format!("has extended attribute {shown}, which is not in user, trusted or security"));
        };
        if rest.is_empty() || name.contains(&0) || name.len() > NAME_MAX || value.len() > VALUE_MAX {
            return Err(format!("has extended attribute {shown} with an impossible name or value"));
        }
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&(rest.len() as u16).to_le_bytes());
        bytes.extend_from_slice(rest);
        bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
        bytes.extend_from_slice(value);
    }
    Ok(bytes)
}

/// The inode and directory tables being written.
struct Tables<'a> {
    arena: &'a Arena<'a>,
    layout: &'a Layout<'a>,
    mtime: u32,
    xattrs: &'a Xattrs,
    ids: &'a Ids,
    inodes: MetadataWriter,
    directories: MetadataWriter,
    /// Where each inode is.
    places: Vec<MetadataRef>,
    /// The listing of each directory whose entries are written.
    listings: HashMap<usize, Listing>,
}

#[derive(Default)]
struct Listing {
    start: MetadataRef,
    len: u32,
    directories: u32,
    index: Vec<IndexEntry>,
}

/// Where in a long listing a header is that begins a metadata block, and the name that follows.
struct IndexEntry {
    offset: u32,
    block: u32,
    name: Vec<u8>,
}

impl Tables<'_> {
    /// The inode table, the directory table and where the root is.
    fn write(mut self) -> Result<(Vec<u8>, Vec<u8>, MetadataRef)> {
        // Directories below come later in the arena, so their listings are written before the inodes that refer to
        // them; and the inodes of one directory's entries stand together.
        for index in (0..self.arena.inodes.len()).rev() {
            if self.arena.inodes[index].kind() == DIRECTORY {
                let (first, count) = self.arena.inodes[index].children;
                for child in first..first + count {
                    self.write_inode(child)?;
                }
                let listing = self.write_listing(index)?;
                self.listings.insert(index, listing);
            }
        }
        self.write_inode(0)?;
        Ok((self.inodes.finish()?, self.directories.finish()?, self.places[0]))
    }

    fn write_listing(&mut self, index: usize) -> Result<Listing> {
        let children = self.arena.children(index);
        let (first, _) = self.arena.inodes[index].children;
        let mut listing = Listing { start: self.directories.position(), ..Listing::default() };
        listing.directories = children.iter().filter(|child| child.kind() == DIRECTORY).count() as u32;
        let mut done = 0;
        while done < children.len() {
            let header_at = self.directories.position();
            if header_at.block != listing.index.last().map_or(listing.start.block, |entry| entry.block) {
                let name = children[done].name.to_vec();
                listing.index.push(IndexEntry { offset: listing.len, block: header_at.block, name });
            }
            let count = self.run_len(first + done, &children[done..], header_at);
            let run = &children[done..done + count];
            let block = self.places[first + done].block;
            let number = (first + done + 1) as u32;
            let mut bytes = Vec::new();
            for field in [count as u32 - 1, block, number] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
            for (child, delta) in run.iter().zip(0u16..) {
                let place = self.places[first + done + usize::from(delta)];
                for field in [place.offset, delta, child.kind(), child.name.len() as u16 - 1] {
                    bytes.extend_from_slice(&field.to_le_bytes());
                }
                bytes.extend_from_slice(child.name);
            }
            self.directories.write(&bytes)?;
            listing.len = u32::try_from(bytes.len())
                .ok()
                .and_then(|len| listing.len.checked_add(len))
                .filter(|len| *len < u32::MAX - LISTING_EXTRA)
                .ok_or_else(|| self.arena.unrepresentable(index, "has too many entries"))?;
            done += count;
        }
        Ok(listing)
    }

    /// How many of `children`, the first of which is inode `first`, share one header at `header_at`: their inodes are
    /// in one metadata block, and the header after them is in the next metadata block if they fill this one, so that
    /// the directory's index can point to it.
    fn run_len(&self, first: usize, children: &[Inode<'_>], header_at: MetadataRef) -> usize {
        let block = self.places[first].block;
        let mut len = usize::from(header_at.offset) + LISTING_HEADER_LEN;
        let mut count = 0;
        for (child, index) in children.iter().zip(first..).take(ENTRIES_MAX) {
            if self.places[index].block != block || (count > 0 && len >= METADATA_LEN) {
                break;
            }
            len += LISTING_ENTRY_LEN + child.name.len();
            count += 1;
        }
        count
    }

    fn write_inode(&mut self, index: usize) -> Result<()> {
        self.places[index] = self.inodes.position();
        let inode = &self.arena.inodes[index];
        let bytes = match inode.entry {
            Entry::Directory(_) | Entry::Other(Node::Directory(_)) => self.directory(index),
            Entry::Other(Node::File { .. }) => self.file(index),
            Entry::Other(Node::Symlink { target, .. }) => {
                if target.is_empty() || target.len() > crate::tree::PATH_MAX {
                    return Err(self.arena.unrepresentable(index, "is a symbolic link with an impossible target"));
                }
                let mut body = 1u32.to_le_bytes().to_vec();
                body.extend_from_slice(&(target.len() as u32).to_le_bytes());
                body.extend_from_slice(target);
                self.with_xattr(index, body)
            }
            Entry::Other(Node::Device { major, minor, .. }) => {
                if *major >= 1 << 12 || *minor >= 1 << 20 {
                    return Err(self.arena.unrepresentable(index, format!("is device {major}:{minor}")));
                }
                let device = (minor & 0xff) | major << 8 | (minor & !0xff) << 12;
                self.with_xattr(index, [1u32.to_le_bytes(), device.to_le_bytes()].concat())
            }
            Entry::Other(Node::Fifo { .. }) => self.with_xattr(index, 1u32.to_le_bytes().to_vec()),
        };
        self.inodes.write(&bytes)
    }

    /// The header that all inodes have.
    fn header(&self, index: usize, extended: bool) -> Vec<u8> {
        let inode = &self.arena.inodes[index];
        let meta = inode.meta();
        let kind = inode.kind() + if extended { EXTENDED } else { 0 };
        let mut bytes = Vec::with_capacity(64);
        for field in [kind, meta.mode & 0o7777, self.ids.index(meta.uid), self.ids.index(meta.gid)] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&self.mtime.to_le_bytes());
        bytes.extend_from_slice(&(index as u32 + 1).to_le_bytes());
        bytes
    }

    /// An inode whose extended form has nothing more than the extended attributes at its end.
    fn with_xattr(&self, index: usize, body: Vec<u8>) -> Vec<u8> {
        let xattr = self.xattrs.of(index);
        let mut bytes = self.header(index, xattr.is_some());
        bytes.extend_from_slice(&body);
        if let Some(xattr) = xattr {
            bytes.extend_from_slice(&xattr.to_le_bytes());
        }
        bytes
    }

    fn directory(&self, index: usize) -> Vec<u8> {
        let listing = &self.listings[&index];
        let xattr = self.xattrs.of(index);
        let links = 2 + listing.directories;
        let size = listing.len + LISTING_EXTRA;
        // The root has no parent; a number that no inode has stands for it.
        let parent = if index == 0 { self.arena.inodes.len() } else { self.arena.inodes[index].parent } as u32 + 1;
        // More index entries than their 16-bit count can say are left out: the listing is read from the last of them.
        let entries = &listing.index[..listing.index.len().min(usize::from(u16::MAX))];
        if xattr.is_none() && entries.is_empty() && size <= u32::from(u16::MAX) {
            let mut bytes = self.header(index, false);
            bytes.extend_from_slice(&listing.start.block.to_le_bytes());
            bytes.extend_from_slice(&links.to_le_bytes());
            bytes.extend_from_slice(&(size as u16).to_le_bytes());
            bytes.extend_from_slice(&listing.start.offset.to_le_bytes());
            bytes.extend_from_slice(&parent.to_le_bytes());
            return bytes;
        }
        let mut bytes = self.header(index, true);
        for field in [links, size, listing.start.block, parent] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&(entries.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&listing.start.offset.to_le_bytes());
        bytes.extend_from_slice(&xattr.unwrap_or(NONE).to_le_bytes());
        for entry in entries {
            for field in [entry.offset, entry.block, entry.name.len() as u32 - 1] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
            bytes.extend_from_slice(&entry.name);
        }
        bytes
    }

    fn file(&self, index: usize) -> Vec<u8> {
        let data = &self.layout.data[&index];
        let xattr = self.xattrs.of(index);
        let (fragment, offset) = data.fragment.unwrap_or((NONE, 0));
        // Where there is no block, the start means nothing.
        let start = if data.blocks.is_empty() { 0 } else { data.start };
        let basic = (u32::try_from(start), u32::try_from(data.size), xattr, data.sparse);
        let mut bytes = if let (Ok(start), Ok(size), None, 0) = basic {
            let mut bytes = self.header(index, false);
            for field in [start, fragment, offset, size] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
            bytes
        } else {
            let mut bytes = self.header(index, true);
            for field in [start, data.size, data.sparse] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
            for field in [1, fragment, offset, xattr.unwrap_or(NONE)] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
            bytes
        };
        data.blocks.iter().for_each(|block| bytes.extend_from_slice(&block.raw().to_le_bytes()));
        bytes
    }
}
