//! cpio archives in the `newc` format, as the kernel unpacks them into its initial root file system.
//!
//! Specification: <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>.
//!
//! The root directory itself is not in an archive: the kernel has made it already. Inode numbers count from 1 in the
//! order of the tree; contents that occur twice are in an archive twice.
//!
//! # Compression
//!
//! The kernel unpacks one compressed member after the other, and each member must end where an archive ends
//! (`unpack_to_rootfs` in `init/initramfs.c`, `lib/decompress_unzstd.c`). So frames of zstd may not cut an archive in
//! pieces, but many small archives, each in its own frame, make one initrd. [`write_zstd`] does that, so that threads
//! can compress them side by side. Tools that list an initrd often stop at the first archive's end.
//!
//! Left out: hard links, extended attributes (the format has none), files of 4 GiB and more, checksums.

use std::{
    io::Write,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    Content, Error, Node, Pack, Result, Tree,
    error::show,
    pack::{Contents, PackOptions, find},
    tree::DeviceKind,
};

const DIRECTORY: u32 = 0o040000;
const FILE: u32 = 0o100000;
const SYMLINK: u32 = 0o120000;
const BLOCK_DEVICE: u32 = 0o060000;
const CHARACTER_DEVICE: u32 = 0o020000;
const FIFO: u32 = 0o010000;

const TRAILER: &[u8] = b"TRAILER!!!";
const ALIGNMENT: u64 = 512;

/// The content that one archive of [`write_zstd`] has before the next begins, in bytes.
const SEGMENT: u64 = 4 << 20;

/// The kernel refuses windows beyond 128 MiB, and needs as much memory as the window has.
const WINDOW_LOG_MAX: u32 = 23;

/// What an initrd has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Entries, without trailers.
    pub entries: u32,
    /// Length of the archives in bytes, uncompressed.
    pub bytes: u64,
}

/// Writes `tree` as one archive, not compressed; `mtime` is that of all entries, in seconds since 1970.
///
/// # Errors
/// [`Error::Unrepresentable`] for extended attributes and files of 4 GiB or more, [`Error::PackDigest`] and
/// [`Error::UnknownContent`] for contents, and when writing fails.
pub fn write(tree: &Tree, packs: &[Pack], out: impl Write, mtime: u32) -> Result<Summary> {
    let entries = entries(tree, packs)?;
    let bytes = write_archive(&entries, packs, out, mtime)?;
    Ok(Summary { entries: entries.len() as u32, bytes })
}

/// Writes `tree` as archives compressed with zstd, one frame each, by `threads` threads. The bytes depend on `level`, 1
/// to 22, but not on `threads`.
///
/// # Errors
/// As [`write()`], and [`Error::InvalidOption`] for the level.
pub fn write_zstd(
    tree: &Tree,
    packs: &[Pack],
    mut out: impl Write,
    mtime: u32,
    level: i32,
    threads: usize,
) -> Result<Summary> {
    PackOptions { block_size: 4096, level }.check()?;
    let entries = entries(tree, packs)?;
    let segments = segments(&entries);
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let done = Mutex::new((0..segments.len()).map(|_| None).collect::<Vec<Option<Result<(Vec<u8>, u64)>>>>());
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(segment) = segments.get(index) else { break };
            let frame = compress_segment(segment, packs, mtime, level);
            if frame.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            done.lock().unwrap_or_else(|poisoned| poisoned.into_inner())[index] = Some(frame);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let mut summary = Summary { entries: entries.len() as u32, bytes: 0 };
    let frames = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    // Segments are taken in order, so those that were not begun come after the one that failed.
    for (frame, len) in frames.into_iter().flatten().collect::<Result<Vec<_>>>()? {
        out.write_all(&frame).map_err(writing)?;
        summary.bytes += len;
    }
    out.flush().map_err(writing)?;
    Ok(summary)
}

struct Entry<'a> {
    number: u32,
    path: Vec<u8>,
    node: &'a Node,
}

/// All entries but the root, checked to fit the format.
fn entries<'a>(tree: &'a Tree, packs: &[Pack]) -> Result<Vec<Entry<'a>>> {
    let mut entries = Vec::new();
    for ((path, node), number) in tree.walk().zip(1..) {
        let unrepresentable = |reason: &str| Error::Unrepresentable { path: show(&path), reason: reason.into() };
        if !node.meta().xattrs.is_empty() {
            return Err(unrepresentable("has extended attributes, which cpio cannot hold"));
        }
        if let Node::File { content, .. } = node {
            find(packs, content, || path.clone())?;
            if content.size() > u64::from(u32::MAX) {
                return Err(unrepresentable("is a file of 4 GiB or more, which cpio cannot hold"));
            }
        }
        entries.push(Entry { number, path, node });
    }
    Ok(entries)
}

fn segments<'a, 'b>(entries: &'b [Entry<'a>]) -> Vec<&'b [Entry<'a>]> {
    let mut segments = Vec::new();
    let mut start = 0;
    let mut size = 0;
    for (index, entry) in entries.iter().enumerate() {
        size += content(entry.node).map_or(0, Content::size);
        if size >= SEGMENT {
            segments.push(&entries[start..=index]);
            (start, size) = (index + 1, 0);
        }
    }
    if start < entries.len() || segments.is_empty() {
        segments.push(&entries[start..]);
    }
    segments
}

fn compress_segment(entries: &[Entry<'_>], packs: &[Pack], mtime: u32, level: i32) -> Result<(Vec<u8>, u64)> {
    let compressing = || Error::io("compressing an initrd");
    let mut encoder = zstd::Encoder::new(Vec::new(), level).map_err(compressing())?;
    if level > 19 {
        encoder.window_log(WINDOW_LOG_MAX).map_err(compressing())?;
    }
    let len = write_archive(entries, packs, &mut encoder, mtime)?;
    Ok((encoder.finish().map_err(compressing())?, len))
}

fn write_archive(entries: &[Entry<'_>], packs: &[Pack], out: impl Write, mtime: u32) -> Result<u64> {
    let mut out = Counted { out, written: 0 };
    let mut contents = Contents::new(packs)?;
    for entry in entries {
        let meta = entry.node.meta();
        let (kind, device) = match entry.node {
            Node::Directory(_) => (DIRECTORY, (0, 0)),
            Node::File { .. } => (FILE, (0, 0)),
            Node::Symlink { .. } => (SYMLINK, (0, 0)),
            Node::Device { kind: DeviceKind::Block, major, minor, .. } => (BLOCK_DEVICE, (*major, *minor)),
            Node::Device { kind: DeviceKind::Character, major, minor, .. } => (CHARACTER_DEVICE, (*major, *minor)),
            Node::Fifo { .. } => (FIFO, (0, 0)),
        };
        let (links, size) = match entry.node {
            Node::Directory(directory) => {
                let below = directory.entries().filter(|(_, node)| matches!(node, Node::Directory(_))).count();
                (2 + below as u32, 0)
            }
            Node::Symlink { target, .. } => (1, target.len() as u32),
            node => (1, content(node).map_or(0, Content::size) as u32),
        };
        let mode = kind | u32::from(meta.mode & 0o7777);
        let owner = (meta.uid, meta.gid);
        out.header(&Header { number: entry.number, mode, owner, links, mtime, size, device }, &entry.path)?;
        match entry.node {
            Node::Symlink { target, .. } => out.write_all(target).map_err(writing)?,
            node => content(node).map_or(Ok(()), |content| contents.copy(content, &mut out))?,
        }
        out.pad(4)?;
    }
    out.header(&Header { links: 1, ..Header::default() }, TRAILER)?;
    out.pad(ALIGNMENT)?;
    out.flush().map_err(writing)?;
    Ok(out.written)
}

fn content(node: &Node) -> Option<&Content> {
    match node {
        Node::File { content, .. } => Some(content),
        Node::Directory(_) | Node::Symlink { .. } | Node::Device { .. } | Node::Fifo { .. } => None,
    }
}

#[derive(Default)]
struct Header {
    number: u32,
    mode: u32,
    owner: (u32, u32),
    links: u32,
    mtime: u32,
    size: u32,
    device: (u32, u32),
}

/// A writer that knows where it is.
struct Counted<W> {
    out: W,
    written: u64,
}

impl<W: Write> Counted<W> {
    fn header(&mut self, header: &Header, name: &[u8]) -> Result<()> {
        let Header { number, mode, owner, links, mtime, size, device } = header;
        let name_len = name.len() as u32 + 1;
        // Two device numbers, of which the first is that of the file system the entry is on; and no checksum.
        let fields = [*number, *mode, owner.0, owner.1, *links, *mtime, *size, 0, 0, device.0, device.1, name_len, 0];
        let mut bytes = b"070701".to_vec();
        fields.iter().for_each(|field| bytes.extend_from_slice(format!("{field:08X}").as_bytes()));
        bytes.extend_from_slice(name);
        bytes.push(0);
        self.write_all(&bytes).map_err(writing)?;
        self.pad(4)
    }

    fn pad(&mut self, alignment: u64) -> Result<()> {
        let len = self.written.next_multiple_of(alignment) - self.written;
        self.write_all(&[0; ALIGNMENT as usize][..len as usize]).map_err(writing)
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

fn writing(source: std::io::Error) -> Error {
    Error::Io { doing: "writing an initrd".into(), source }
}
