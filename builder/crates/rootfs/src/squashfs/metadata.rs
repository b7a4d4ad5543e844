//! Writing metadata: records that run through compressed blocks of 8 KiB.

use super::{METADATA_LEN, METADATA_UNCOMPRESSED, MetadataRef};
use crate::{Error, Result, block::Encoder};

/// Writes records one after the other and says where each begins.
pub(super) struct MetadataWriter {
    encoder: Encoder,
    pending: Vec<u8>,
    out: Vec<u8>,
}

impl MetadataWriter {
    pub(super) fn new(level: i32) -> Result<MetadataWriter> {
        let encoder = Encoder::new(level).map_err(Error::io("making a compressor"))?;
        Ok(MetadataWriter { encoder, pending: Vec::new(), out: Vec::new() })
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> MetadataRef {
        let block = u32::try_from(self.out.len()).expect("metadata tables are smaller than 4 GiB");
        MetadataRef { block, offset: self.pending.len() as u16 }
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while self.pending.len() + bytes.len() >= METADATA_LEN {
            let (now, later) = bytes.split_at(METADATA_LEN - self.pending.len());
            self.pending.extend_from_slice(now);
            bytes = later;
            self.flush()?;
        }
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// The table, as it stands in an image.
    pub(super) fn finish(mut self) -> Result<Vec<u8>> {
        if !self.pending.is_empty() {
            self.flush()?;
        }
        Ok(self.out)
    }

    fn flush(&mut self) -> Result<()> {
        let (size, bytes) = self.encoder.encode(&self.pending).map_err(Error::io("compressing metadata"))?;
        let flag = if size.is_compressed() { 0 } else { METADATA_UNCOMPRESSED };
        self.out.extend_from_slice(&(size.len() as u16 | flag).to_le_bytes());
        self.out.extend_from_slice(bytes);
        self.pending.clear();
        Ok(())
    }
}

/// A lookup table for the position `at` of an image: its metadata blocks, then `header`, then the positions of the
/// blocks. Returns the bytes and the position of the header.
pub(super) fn lookup_table(at: u64, records: &[u8], header: &[u8], level: i32) -> Result<(Vec<u8>, u64)> {
    let mut writer = MetadataWriter::new(level)?;
    let mut positions = Vec::new();
    for block in records.chunks(METADATA_LEN) {
        positions.push(at + u64::from(writer.position().block));
        writer.write(block)?;
    }
    let mut out = writer.finish()?;
    let start = at + out.len() as u64;
    out.extend_from_slice(header);
    positions.iter().for_each(|position| out.extend_from_slice(&position.to_le_bytes()));
    Ok((out, start))
}
