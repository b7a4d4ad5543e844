//! Writing images.
//!
//! First all is laid out: where each content's blocks will be, then the metadata, which needs no content. Then threads
//! copy the blocks, each to its place, so that the bytes do not depend on who came first.

use std::{
    collections::HashMap,
    fs::File,
    io::Cursor,
    os::unix::fs::FileExt,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use super::{
    BLOCK_DEVICE, CHARACTER_DEVICE, DIRECTORY, FIFO, FILE, METADATA_UNCOMPRESSED, SUPERBLOCK_LEN, SYMLINK,
    tables::Metadata,
};
use crate::{
    Content, Digest, Error, FileId, Meta, Node, Pack, PackOptions, PackWriter, Result, Tree,
    block::StoredSize,
    error::show,
    pack::{FileRecord, find},
    tree::{DeviceKind, Directory, join},
};

/// Images are padded to a multiple of this, as loop devices and device mapper want it.
const ALIGNMENT: u64 = 4096;

/// Extents longer than this are copied first, so that no thread is left alone with one at the end.
const LARGE_EXTENT: u64 = 4 << 20;

/// How an image is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The size of a data block in bytes, which all packs have too.
    pub block_size: u32,
    /// The modification time of everything, in seconds since 1970.
    pub mtime: u32,
    /// The level of zstd, 1 to 22, for metadata and contents that are in no pack.
    pub level: i32,
    /// How many threads copy, at least 1. The bytes written do not depend on it.
    pub threads: usize,
}

/// What an image has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageSummary {
    /// Length in bytes without padding.
    pub bytes_used: u64,
    /// Length in bytes, a multiple of 4096.
    pub size: u64,
    /// Entries, with the root.
    pub inodes: u32,
    /// Fragment blocks.
    pub fragments: u32,
    /// Files whose content another file has too.
    pub duplicates: u32,
    /// Bytes of compressed contents.
    pub data_bytes: u64,
    /// Bytes of contents, duplicates included.
    pub content_bytes: u64,
}

/// Writes the image of `tree`, whose packed contents are in `packs`, at the beginning of `out`.
///
/// # Errors
/// See [`write_image_at`].
pub fn write_image(tree: &Tree, packs: &[Pack], out: &File, options: &Options) -> Result<ImageSummary> {
    write_image_at(tree, packs, out, 0, options)
}

/// Writes the image of `tree`, whose packed contents are in `packs`, at `offset` of `out`. Nothing of `out` before the
/// offset or after the image changes.
///
/// # Errors
/// [`Error::PackDigest`] when a pack's data is not what was written, [`Error::UnknownContent`] for contents that are in
/// no pack, [`Error::Unrepresentable`] for what SquashFS cannot hold, [`Error::InvalidOption`], and when reading or
/// writing fails. What was written then is no image: the superblock comes last.
pub fn write_image_at(tree: &Tree, packs: &[Pack], out: &File, offset: u64, options: &Options) -> Result<ImageSummary> {
    let pack_options = PackOptions { block_size: options.block_size, level: options.level }.check()?;
    if let Some(pack) = packs.iter().find(|pack| pack.block_size() != options.block_size) {
        let (name, is) = (pack.name(), pack.block_size());
        let reason = format!("pack {name} has block size {is}, expected {}", options.block_size);
        return Err(Error::InvalidOption { reason });
    }
    let arena = Arena::new(tree)?;
    let inline = InlinePack::new(&arena, pack_options)?;
    let mut head = vec![0; SUPERBLOCK_LEN];
    head.extend_from_slice(&(METADATA_UNCOMPRESSED | 4).to_le_bytes());
    head.extend_from_slice(&options.level.to_le_bytes());

    let layout = Layout::new(&arena, packs, &inline, head.len() as u64)?;
    let failed = AtomicBool::new(false);
    let copier = Copier { copies: &layout.copies, next: AtomicUsize::new(0), failed: &failed, out, offset };
    let errors = Mutex::new(Vec::new());
    let copy = || {
        if let Err(error) = copier.run() {
            errors.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(error);
        }
    };
    let metadata = thread::scope(|scope| {
        for _ in 1..options.threads {
            scope.spawn(copy);
        }
        let metadata = Metadata::new(&arena, &layout, options);
        if metadata.is_err() {
            failed.store(true, Ordering::Relaxed);
        }
        copy();
        metadata
    })?;
    if let Some(error) = errors.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).pop() {
        return Err(error);
    }

    let mut superblock = metadata.superblock;
    superblock.block_size = options.block_size;
    superblock.mtime = options.mtime;
    let size = superblock.bytes_used.next_multiple_of(ALIGNMENT);
    let mut tail = metadata.bytes;
    tail.resize((size - layout.end) as usize, 0);
    head[..SUPERBLOCK_LEN].copy_from_slice(&superblock.encode());
    for (bytes, at) in [(&tail, layout.end), (&head, 0)] {
        out.write_all_at(bytes, offset + at).map_err(writing)?;
    }
    Ok(ImageSummary {
        bytes_used: superblock.bytes_used,
        size,
        inodes: superblock.inodes,
        fragments: superblock.fragments,
        duplicates: layout.duplicates,
        data_bytes: layout.end - head.len() as u64,
        content_bytes: layout.content_bytes,
    })
}

/// The tree as a list: the root first, then directory by directory all its entries. An inode's number is its index + 1,
/// so the entries of a directory have numbers in sequence.
pub(super) struct Arena<'a> {
    pub(super) inodes: Vec<Inode<'a>>,
}

pub(super) struct Inode<'a> {
    pub(super) entry: Entry<'a>,
    pub(super) name: &'a [u8],
    pub(super) parent: usize,
    /// First entry and number of entries of a directory.
    pub(super) children: (usize, usize),
}

#[derive(Clone, Copy)]
pub(super) enum Entry<'a> {
    Directory(&'a Directory),
    Other(&'a Node),
}

impl<'a> Arena<'a> {
    fn new(tree: &'a Tree) -> Result<Arena<'a>> {
        let root = Inode { entry: Entry::Directory(tree.root()), name: b"", parent: 0, children: (0, 0) };
        let mut arena = Arena { inodes: vec![root] };
        let mut index = 0;
        while index < arena.inodes.len() {
            if let Entry::Directory(directory) = arena.inodes[index].entry {
                arena.inodes[index].children = (arena.inodes.len(), directory.len());
                for (name, node) in directory.entries() {
                    let entry = match node {
                        Node::Directory(directory) => Entry::Directory(directory),
                        other => Entry::Other(other),
                    };
                    arena.inodes.push(Inode { entry, name, parent: index, children: (0, 0) });
                }
            }
            index += 1;
        }
        if arena.inodes.len() >= i32::MAX as usize {
            return Err(Error::Unrepresentable { path: "/".into(), reason: "has more than 2^31 entries".into() });
        }
        Ok(arena)
    }

    /// The indices of all inodes in the order of the tree's walk, so that what is near in the tree is near on the disk.
    fn walk(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.inodes.len());
        let mut stack = vec![0];
        while let Some(index) = stack.pop() {
            order.push(index);
            let (first, count) = self.inodes[index].children;
            stack.extend((first..first + count).rev());
        }
        order
    }

    pub(super) fn children(&self, index: usize) -> &[Inode<'a>] {
        let (first, count) = self.inodes[index].children;
        &self.inodes[first..first + count]
    }

    fn path(&self, mut index: usize) -> Vec<u8> {
        let mut names = Vec::new();
        while index != 0 {
            names.push(self.inodes[index].name);
            index = self.inodes[index].parent;
        }
        names.iter().rev().fold(Vec::new(), |path, name| join(&path, name))
    }

    pub(super) fn unrepresentable(&self, index: usize, reason: impl Into<String>) -> Error {
        Error::Unrepresentable { path: show(&self.path(index)), reason: reason.into() }
    }
}

impl<'a> Inode<'a> {
    pub(super) fn meta(&self) -> &'a Meta {
        match self.entry {
            Entry::Directory(directory) => &directory.meta,
            Entry::Other(node) => node.meta(),
        }
    }

    fn content(&self) -> Option<&'a Content> {
        match self.entry {
            Entry::Other(Node::File { content, .. }) => Some(content),
            Entry::Other(_) | Entry::Directory(_) => None,
        }
    }

    /// The type of its inode in the basic form.
    pub(super) fn kind(&self) -> u16 {
        match self.entry {
            Entry::Directory(_) | Entry::Other(Node::Directory(_)) => DIRECTORY,
            Entry::Other(Node::File { .. }) => FILE,
            Entry::Other(Node::Symlink { .. }) => SYMLINK,
            Entry::Other(Node::Device { kind: DeviceKind::Block, .. }) => BLOCK_DEVICE,
            Entry::Other(Node::Device { kind: DeviceKind::Character, .. }) => CHARACTER_DEVICE,
            Entry::Other(Node::Fifo { .. }) => FIFO,
        }
    }
}

/// The contents that are in memory, packed like the others.
struct InlinePack {
    pack: Pack,
    /// The file of each inode with an inline content.
    files: HashMap<usize, FileId>,
}

impl InlinePack {
    fn new(arena: &Arena<'_>, options: PackOptions) -> Result<InlinePack> {
        let mut writer = PackWriter::new(Cursor::new(Vec::new()), options)?;
        let mut files = HashMap::new();
        for index in arena.walk() {
            if let Some(Content::Inline(bytes)) = arena.inodes[index].content() {
                files.insert(index, writer.add(&mut &bytes[..], bytes.len() as u64)?);
            }
        }
        let (bytes, _) = writer.finish(b"")?;
        Ok(InlinePack { pack: Pack::from_bytes(bytes.into_inner())?, files })
    }
}

/// Where the contents are.
pub(super) struct Layout<'a> {
    /// The data of each inode that is a file.
    pub(super) data: HashMap<usize, Data<'a>>,
    pub(super) fragments: Vec<(u64, StoredSize)>,
    copies: Vec<Copy<'a>>,
    pub(super) end: u64,
    duplicates: u32,
    content_bytes: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Data<'a> {
    pub(super) size: u64,
    pub(super) start: u64,
    pub(super) blocks: &'a [StoredSize],
    pub(super) fragment: Option<(u32, u32)>,
    /// Bytes of blocks that are all zeros.
    pub(super) sparse: u64,
}

/// Bytes of a pack and their place in the image.
pub(super) struct Copy<'a> {
    pack: &'a Pack,
    from: u64,
    len: u64,
    to: u64,
    digest: Digest,
    /// The first file that has them.
    path: Vec<u8>,
    fragment: Option<u32>,
}

impl<'a> Layout<'a> {
    fn new(arena: &Arena<'_>, packs: &'a [Pack], inline: &'a InlinePack, start: u64) -> Result<Layout<'a>> {
        let mut layout = Layout {
            data: HashMap::new(),
            fragments: Vec::new(),
            copies: Vec::new(),
            end: start,
            duplicates: 0,
            content_bytes: 0,
        };
        let mut known: HashMap<Digest, Data<'a>> = HashMap::new();
        // The image's fragment block for one of a pack. The inline pack comes after all others.
        let mut fragments = HashMap::new();
        for index in arena.walk() {
            let Some(content) = arena.inodes[index].content() else { continue };
            let path = || arena.path(index);
            let (pack_index, pack, file) = match content {
                Content::Inline(_) => {
                    let file = inline.pack.record(inline.files[&index]);
                    (packs.len(), &inline.pack, file.expect("every inline content was packed"))
                }
                Content::Packed { pack, .. } => {
                    let (found, file) = find(packs, content, path)?.expect("the content is packed");
                    (pack.index() as usize, found, file)
                }
            };
            layout.content_bytes += file.size;
            let data = match known.get(&file.digest) {
                Some(data) => {
                    layout.duplicates += u32::from(data.size > 0);
                    *data
                }
                None => {
                    let data = layout.place(pack_index, pack, file, path, &mut fragments);
                    known.insert(file.digest, data);
                    data
                }
            };
            layout.data.insert(index, data);
        }
        // Stable, so what is large comes first and all is in the order of the image otherwise.
        layout.copies.sort_by_key(|copy| copy.len <= LARGE_EXTENT);
        Ok(layout)
    }

    fn place(
        &mut self,
        pack_index: usize,
        pack: &'a Pack,
        file: &'a FileRecord,
        path: impl Fn() -> Vec<u8>,
        fragments: &mut HashMap<(usize, u32), u32>,
    ) -> Data<'a> {
        let blocks = pack.blocks(file);
        let block_size = u64::from(pack.block_size());
        // The last block may be shorter than the others, and a hole too.
        let holes = blocks.iter().zip(0u64..).filter(|(block, _)| block.is_hole());
        let sparse = holes.map(|(_, index)| block_size.min(file.size - index * block_size)).sum();
        let mut data = Data { size: file.size, start: self.end, blocks, fragment: None, sparse };
        let (from, len, digest) = (file.offset, pack.stored_len(file), file.stored_digest);
        if len > 0 {
            self.copies.push(Copy { pack, from, len, to: self.end, digest, path: path(), fragment: None });
            self.end += len;
        }
        if let Some((fragment, offset)) = file.fragment {
            let index = *fragments.entry((pack_index, fragment)).or_insert_with(|| {
                let record = pack.fragment(fragment);
                let (from, len, digest) = (record.offset, u64::from(record.size.len()), record.stored_digest);
                let fragment = Some(fragment);
                self.copies.push(Copy { pack, from, len, to: self.end, digest, path: path(), fragment });
                self.fragments.push((self.end, record.size));
                self.end += len;
                self.fragments.len() as u32 - 1
            });
            data.fragment = Some((index, offset));
        }
        data
    }
}

/// Copies what is to be copied, with as many threads as run it.
struct Copier<'a> {
    copies: &'a [Copy<'a>],
    next: AtomicUsize,
    failed: &'a AtomicBool,
    out: &'a File,
    offset: u64,
}

impl Copier<'_> {
    fn run(&self) -> Result<()> {
        let mut buffer = Vec::new();
        while !self.failed.load(Ordering::Relaxed) {
            let Some(copy) = self.copies.get(self.next.fetch_add(1, Ordering::Relaxed)) else { break };
            self.copy(copy, &mut buffer).inspect_err(|_| self.failed.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    }

    fn copy(&self, copy: &Copy<'_>, buffer: &mut Vec<u8>) -> Result<()> {
        let what = || match copy.fragment {
            None => format!("{}, as stored,", show(&copy.path)),
            Some(fragment) => format!("fragment block {fragment} with {}", show(&copy.path)),
        };
        let mut to = self.offset + copy.to;
        copy.pack.read_stored((copy.from, copy.len), copy.digest, what, buffer, |bytes| {
            self.out.write_all_at(bytes, to).map_err(writing)?;
            to += bytes.len() as u64;
            Ok(())
        })
    }
}

fn writing(source: std::io::Error) -> Error {
    Error::Io { doing: "writing an image".into(), source }
}
