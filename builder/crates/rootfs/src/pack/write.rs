//! Writing packs.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::Path,
};

use sha2::{Digest as _, Sha256};

use super::{END_MAGIC, FileId, FileRecord, FragmentRecord, HEADER_LEN, MAGIC, PackOptions, VERSION};
use crate::{
    Digest, Error, Result,
    block::{Encoder, StoredSize, is_zero},
};

/// Contents up to this size are read whole, so that a duplicate is known before it is compressed.
const WHOLE_MAX: u64 = 4 << 20;

/// What went into a pack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackSummary {
    /// Different contents.
    pub files: u32,
    /// Contents that were there already.
    pub duplicates: u32,
    /// Fragment blocks.
    pub fragments: u32,
    /// Bytes read, duplicates included.
    pub input_bytes: u64,
    /// Bytes of data stored.
    pub stored_bytes: u64,
}

/// Writes one pack. It is complete once [`PackWriter::finish`] returns; write to a temporary name and rename then.
///
/// After an error the writer is good for nothing but being dropped.
pub struct PackWriter<W> {
    out: W,
    position: u64,
    /// The furthest byte written, beyond `position` after a duplicate was taken back.
    reached: u64,
    options: PackOptions,
    encoder: Encoder,
    files: Vec<FileRecord>,
    blocks: Vec<StoredSize>,
    fragments: Vec<FragmentRecord>,
    known: HashMap<Digest, FileId>,
    pending: [Pending; 2],
    buffer: Vec<u8>,
    summary: PackSummary,
}

/// A fragment block being filled, with its place in the list of fragment blocks.
#[derive(Default)]
struct Pending {
    index: Option<u32>,
    data: Vec<u8>,
}

/// Whether a content is worth compressing. The value is the index of its pending fragment block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Compress = 0,
    Store = 1,
}

impl PackWriter<BufWriter<File>> {
    /// Creates a pack in a new file, or in place of the file at `path`.
    ///
    /// # Errors
    /// When the file cannot be created or an option is out of range.
    pub fn create(path: impl AsRef<Path>, options: PackOptions) -> Result<Self> {
        let path = path.as_ref();
        let file = File::create(path).map_err(Error::io(format!("creating {}", path.display())))?;
        PackWriter::new(BufWriter::with_capacity(1 << 18, file), options)
    }
}

impl<W: Write + Seek> PackWriter<W> {
    /// Starts a pack at the beginning of `out`, which is empty.
    ///
    /// # Errors
    /// When writing fails or an option is out of range.
    pub fn new(mut out: W, options: PackOptions) -> Result<Self> {
        let options = options.check()?;
        out.write_all(&header(options.block_size)).map_err(writing)?;
        Ok(PackWriter {
            out,
            position: HEADER_LEN as u64,
            reached: 0,
            options,
            encoder: Encoder::new(options.level).map_err(compressing)?,
            files: Vec::new(),
            blocks: Vec::new(),
            fragments: Vec::new(),
            known: HashMap::new(),
            pending: Default::default(),
            buffer: Vec::new(),
            summary: PackSummary::default(),
        })
    }

    /// Adds the content that `reader` gives, `size` bytes up to its end.
    ///
    /// # Errors
    /// [`Error::ContentSize`] when the reader ends early or late, and when reading or writing fails.
    pub fn add(&mut self, reader: &mut dyn Read, size: u64) -> Result<FileId> {
        self.add_with(reader, size, Method::Compress)
    }

    /// As [`PackWriter::add`], for a content that is known to be compressed already: it is stored as it is.
    ///
    /// # Errors
    /// As [`PackWriter::add`].
    pub fn add_stored(&mut self, reader: &mut dyn Read, size: u64) -> Result<FileId> {
        self.add_with(reader, size, Method::Store)
    }

    /// Completes the pack with the caller's `user` bytes and gives back where it was written.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self, user: &[u8]) -> Result<(W, PackSummary)> {
        self.flush_fragment(Method::Compress)?;
        self.flush_fragment(Method::Store)?;
        self.summary.files = self.files.len() as u32;
        self.summary.fragments = self.fragments.len() as u32;
        self.summary.stored_bytes = self.position - HEADER_LEN as u64;

        let mut index = Vec::new();
        for count in [self.files.len(), self.fragments.len(), self.blocks.len(), 0] {
            let count = u32::try_from(count).map_err(|_| Error::InvalidOption {
                reason: format!("a pack holds at most {} blocks, this one has {count}", u32::MAX),
            })?;
            index.extend_from_slice(&count.to_le_bytes());
        }
        self.files.iter().for_each(|file| file.encode(&mut index));
        self.fragments.iter().for_each(|fragment| fragment.encode(&mut index));
        self.blocks.iter().for_each(|block| index.extend_from_slice(&block.raw().to_le_bytes()));

        let mut numbers = [0; 24];
        for (bytes, number) in numbers.chunks_exact_mut(8).zip([self.position, index.len() as u64, user.len() as u64]) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        let mut hasher = Sha256::new();
        for part in [&header(self.options.block_size), index.as_slice(), user, &numbers] {
            hasher.update(part);
        }
        let digest = Digest::finish(hasher);

        for part in [&index, user] {
            self.write(part)?;
        }
        // What a duplicate taken back left behind must not follow the trailer.
        let end = self.position + super::TRAILER_LEN as u64;
        let padding = vec![0; self.reached.saturating_sub(end) as usize];
        for part in [padding.as_slice(), &numbers, digest.as_bytes(), &END_MAGIC] {
            self.write(part)?;
        }
        self.out.flush().map_err(writing)?;
        Ok((self.out, self.summary))
    }

    fn add_with(&mut self, reader: &mut dyn Read, size: u64, method: Method) -> Result<FileId> {
        let mut reader = Exact { reader, size, read: 0 };
        self.summary.input_bytes += size;
        let mut buffer = std::mem::take(&mut self.buffer);
        let added = if size <= WHOLE_MAX {
            reader
                .fill(&mut buffer, size as usize)
                .and_then(|()| reader.finish())
                .and_then(|()| self.add_whole(&buffer, method))
        } else {
            self.add_stream(&mut reader, &mut buffer, method)
        };
        self.buffer = buffer;
        added
    }

    fn add_whole(&mut self, content: &[u8], method: Method) -> Result<FileId> {
        let digest = Digest::of(content);
        if let Some(known) = self.known.get(&digest) {
            self.summary.duplicates += 1;
            return Ok(*known);
        }
        let mut extent = self.start_extent();
        for block in content.chunks(self.options.block_size as usize) {
            self.put_piece(block, method, &mut extent)?;
        }
        Ok(self.push(extent, digest, content.len() as u64))
    }

    fn add_stream(&mut self, reader: &mut Exact<'_>, buffer: &mut Vec<u8>, method: Method) -> Result<FileId> {
        let mut hasher = Sha256::new();
        let mut extent = self.start_extent();
        let mut left = reader.size;
        while left > 0 {
            let len = left.min(u64::from(self.options.block_size));
            reader.fill(buffer, len as usize)?;
            hasher.update(&buffer);
            left -= len;
            self.put_piece(buffer, method, &mut extent)?;
        }
        reader.finish()?;
        let digest = Digest::finish(hasher);
        if let Some(known) = self.known.get(&digest).copied() {
            // The blocks are there already: take them back.
            self.summary.duplicates += 1;
            self.blocks.truncate(extent.first_block);
            self.reached = self.reached.max(self.position);
            self.position = extent.offset;
            self.out.seek(SeekFrom::Start(self.position)).map_err(writing)?;
            return Ok(known);
        }
        Ok(self.push(extent, digest, reader.size))
    }

    /// Puts the next piece of a content where it belongs: into a fragment block where it is the whole of a small
    /// content. The last piece of a large one stays a short block of its own: in fragment blocks such tails measured a
    /// ten-thousandth smaller, and reading one would cost a whole fragment block.
    fn put_piece(&mut self, piece: &[u8], method: Method, extent: &mut Extent) -> Result<()> {
        if piece.len() < self.options.block_size as usize && extent.first_block == self.blocks.len() {
            extent.fragment = Some(self.put_fragment(piece, method)?);
            return Ok(());
        }
        self.put_block(piece, method, extent)
    }

    fn start_extent(&self) -> Extent {
        Extent { offset: self.position, first_block: self.blocks.len(), hasher: Sha256::new(), fragment: None }
    }

    fn put_block(&mut self, block: &[u8], method: Method, extent: &mut Extent) -> Result<()> {
        if is_zero(block) {
            self.blocks.push(StoredSize::HOLE);
            return Ok(());
        }
        let (size, bytes) = match method {
            Method::Compress => self.encoder.encode(block).map_err(compressing)?,
            Method::Store => (StoredSize::uncompressed(block.len()), block),
        };
        self.blocks.push(size);
        extent.hasher.update(bytes);
        self.out.write_all(bytes).map_err(writing)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Puts a content, not empty and smaller than a block, into a fragment block: which, and where in it.
    fn put_fragment(&mut self, content: &[u8], method: Method) -> Result<(u32, u32)> {
        if self.pending[method as usize].data.len() + content.len() > self.options.block_size as usize {
            self.flush_fragment(method)?;
        }
        let pending = &mut self.pending[method as usize];
        let index = *pending.index.get_or_insert_with(|| {
            self.fragments.push(FragmentRecord::PENDING);
            self.fragments.len() as u32 - 1
        });
        let offset = pending.data.len() as u32;
        pending.data.extend_from_slice(content);
        Ok((index, offset))
    }

    fn flush_fragment(&mut self, method: Method) -> Result<()> {
        let pending = &mut self.pending[method as usize];
        let Some(index) = pending.index.take() else { return Ok(()) };
        let (size, bytes) = match method {
            Method::Compress => self.encoder.encode(&pending.data).map_err(compressing)?,
            Method::Store => (StoredSize::uncompressed(pending.data.len()), pending.data.as_slice()),
        };
        self.fragments[index as usize] = FragmentRecord {
            stored_digest: Digest::of(bytes),
            offset: self.position,
            size,
            len: pending.data.len() as u32,
        };
        self.out.write_all(bytes).map_err(writing)?;
        self.position += bytes.len() as u64;
        pending.data.clear();
        Ok(())
    }

    fn push(&mut self, extent: Extent, digest: Digest, size: u64) -> FileId {
        self.push_record(FileRecord {
            digest,
            stored_digest: Digest::finish(extent.hasher),
            size,
            offset: extent.offset,
            first_block: extent.first_block as u32,
            block_count: (self.blocks.len() - extent.first_block) as u32,
            fragment: extent.fragment,
        })
    }

    fn push_record(&mut self, record: FileRecord) -> FileId {
        let id = FileId::new(self.files.len() as u32);
        self.known.insert(record.digest, id);
        self.files.push(record);
        id
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(writing)?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

/// A file's blocks being written.
struct Extent {
    offset: u64,
    first_block: usize,
    hasher: Sha256,
    fragment: Option<(u32, u32)>,
}

/// Reads exactly as many bytes as were announced.
struct Exact<'a> {
    reader: &'a mut dyn Read,
    size: u64,
    read: u64,
}

impl Exact<'_> {
    fn fill(&mut self, buffer: &mut Vec<u8>, len: usize) -> Result<()> {
        buffer.clear();
        let read = (&mut *self.reader).take(len as u64).read_to_end(buffer).map_err(Error::io("reading a content"))?;
        self.read += read as u64;
        if read == len { Ok(()) } else { Err(Error::ContentSize { expected: self.size, actual: self.read }) }
    }

    fn finish(&mut self) -> Result<()> {
        let more = (&mut *self.reader).take(1).read_to_end(&mut Vec::new()).map_err(Error::io("reading a content"))?;
        if more == 0 { Ok(()) } else { Err(Error::ContentSize { expected: self.size, actual: self.size + 1 }) }
    }
}

pub(super) fn header(block_size: u32) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..].copy_from_slice(&block_size.to_le_bytes());
    header
}

fn writing(source: std::io::Error) -> Error {
    Error::Io { doing: "writing a pack".into(), source }
}

fn compressing(source: std::io::Error) -> Error {
    Error::Io { doing: "compressing a block".into(), source }
}
