//! Blocks of data: compressing, decompressing, and their sizes as SquashFS writes them.

use std::io;

use zstd::bulk::{Compressor, Decompressor};

/// Set in a [`StoredSize`] when the block is not compressed.
const UNCOMPRESSED: u32 = 1 << 24;

/// The smallest and the largest data block of SquashFS.
pub(crate) const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 4096..=1 << 20;

/// A block's length on disk and whether it is compressed, in the form that SquashFS has for it: 0 for a block of zeros
/// that is not on disk at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredSize(u32);

impl StoredSize {
    pub(crate) const HOLE: StoredSize = StoredSize(0);

    pub(crate) fn compressed(len: usize) -> StoredSize {
        StoredSize(u32::try_from(len).expect("blocks are at most 1 MiB"))
    }

    pub(crate) fn uncompressed(len: usize) -> StoredSize {
        StoredSize(StoredSize::compressed(len).0 | UNCOMPRESSED)
    }

    /// `None` unless the length is at most `block_size` and no unknown bit is set.
    pub(crate) fn parse(raw: u32, block_size: u32) -> Option<StoredSize> {
        let known = raw & !(UNCOMPRESSED | (UNCOMPRESSED - 1)) == 0 && raw & !UNCOMPRESSED <= block_size;
        (known && raw != UNCOMPRESSED).then_some(StoredSize(raw))
    }

    pub(crate) fn raw(self) -> u32 {
        self.0
    }

    pub(crate) fn len(self) -> u32 {
        self.0 & !UNCOMPRESSED
    }

    pub(crate) fn is_hole(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn is_compressed(self) -> bool {
        self.0 & UNCOMPRESSED == 0
    }
}

/// Compresses blocks with one context that is used again and again.
pub(crate) struct Encoder {
    main: Compressor<'static>,
    probe: Compressor<'static>,
    sample: Vec<u8>,
    out: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new(level: i32) -> io::Result<Encoder> {
        Ok(Encoder { main: Compressor::new(level)?, probe: Compressor::new(1)?, sample: Vec::new(), out: Vec::new() })
    }

    /// The bytes to store for `data`, which is not empty, compressed where that is smaller.
    pub(crate) fn encode<'a>(&'a mut self, data: &'a [u8]) -> io::Result<(StoredSize, &'a [u8])> {
        if !self.looks_compressible(data)? {
            return Ok((StoredSize::uncompressed(data.len()), data));
        }
        self.out.clear();
        self.out.reserve(zstd::zstd_safe::compress_bound(data.len()));
        let len = self.main.compress_to_buffer(data, &mut self.out)?;
        if len < data.len() {
            Ok((StoredSize::compressed(len), &self.out))
        } else {
            Ok((StoredSize::uncompressed(data.len()), data))
        }
    }

    /// High levels are slowest where nothing can be won, so four samples are tried with the fastest level first.
    fn looks_compressible(&mut self, data: &[u8]) -> io::Result<bool> {
        const SAMPLE: usize = 4096;
        if data.len() < 16 * SAMPLE {
            return Ok(true);
        }
        self.sample.clear();
        for index in 0..4 {
            let start = (data.len() - SAMPLE) / 3 * index;
            self.sample.extend_from_slice(&data[start..start + SAMPLE]);
        }
        self.out.clear();
        self.out.reserve(zstd::zstd_safe::compress_bound(self.sample.len()));
        let len = self.probe.compress_to_buffer(&self.sample, &mut self.out)?;
        Ok(len < self.sample.len() - self.sample.len() / 128)
    }
}

/// Decompresses blocks with one context that is used again and again.
pub(crate) struct Decoder(Decompressor<'static>);

impl Decoder {
    pub(crate) fn new() -> io::Result<Decoder> {
        Ok(Decoder(Decompressor::new()?))
    }

    /// Replaces `out` by the decompressed `data`, of at most `limit` bytes.
    ///
    /// # Errors
    /// When the data is no zstd frame or decompresses to more than `limit` bytes.
    pub(crate) fn decode(&mut self, data: &[u8], limit: usize, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        // The decompressor fills the capacity, so that must be the limit exactly.
        if out.capacity() != limit {
            *out = Vec::with_capacity(limit);
        }
        self.0.decompress_to_buffer(data, out)?;
        if out.len() > limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "block decompresses to more than its size"));
        }
        Ok(())
    }
}

pub(crate) fn is_zero(data: &[u8]) -> bool {
    let (words, rest) = data.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_sizes() {
        for (raw, ok) in [(0, true), (4096, true), (4097, false), (UNCOMPRESSED | 4096, true), (UNCOMPRESSED, false)] {
            assert_eq!(StoredSize::parse(raw, 4096).is_some(), ok, "{raw:#x}");
        }
        assert!(StoredSize::parse(1 << 25 | 1, 4096).is_none());
    }

    #[test]
    fn blocks_round_trip_within_their_limit() {
        let mut encoder = Encoder::new(3).unwrap();
        let text = b"all work and no play ".repeat(400);
        let (size, bytes) = encoder.encode(&text).unwrap();
        assert!(size.is_compressed() && bytes.len() < 200 && size.len() as usize == bytes.len());
        let bytes = bytes.to_vec();
        let mut out = Vec::new();
        let mut decoder = Decoder::new().unwrap();
        decoder.decode(&bytes, text.len(), &mut out).unwrap();
        assert_eq!(out, text);
        assert!(decoder.decode(&bytes, text.len() - 1, &mut out).is_err());
        assert!(decoder.decode(b"no frame", 100, &mut out).is_err());
    }
}
