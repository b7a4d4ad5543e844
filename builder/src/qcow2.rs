//! QCOW2 images: a writer that turns a raw image into one, without the zeroes.
//!
//! Specification: QEMU's `docs/interop/qcow2.txt`, version 3, 64 KiB clusters, no compression, no snapshots, no backing
//! file. Offsets are computed first, so the same raw image gives the same bytes.

use std::io;
use std::io::{Read, Seek, SeekFrom, Write};

const CLUSTER: u64 = 1 << 16;
const MAGIC: &[u8; 4] = b"QFI\xfb";
const VERSION: u32 = 3;
/// Refcounts of 16 bits: `refcount_order` 4.
const REFCOUNT_ORDER: u32 = 4;
const HEADER_LENGTH: u32 = 104;
const ENTRIES: u64 = CLUSTER / 8;
/// "The cluster is used once": bit 63 of L1 and L2 entries.
const COPIED: u64 = 1 << 63;

/// Writes the raw image `raw` as QCOW2 to `out`, at its current position 0.
///
/// # Errors
/// Those of reading and writing.
pub fn write(raw: &mut (impl Read + Seek), out: &mut (impl Write + Seek)) -> io::Result<()> {
    let size = raw.seek(SeekFrom::End(0))?;
    raw.rewind()?;
    let clusters = size.div_ceil(CLUSTER);
    let mut used = Vec::new();
    let mut buffer = vec![0; CLUSTER as usize];
    for index in 0..clusters {
        if read_cluster(raw, &mut buffer)? {
            used.push(index);
        }
    }
    let l2_tables: Vec<u64> = {
        let mut tables: Vec<u64> = used.iter().map(|index| index / ENTRIES).collect();
        tables.dedup();
        tables
    };
    // Layout: header, L1 table, refcount table, refcount blocks, L2 tables, data.
    let l1_entries = clusters.div_ceil(ENTRIES);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER).max(1);
    let fixed = 1 + l1_clusters + l2_tables.len() as u64 + used.len() as u64;
    let per_block = CLUSTER / 2;
    let (mut blocks, mut table_clusters) = (1, 1);
    while blocks * per_block < fixed + blocks + table_clusters {
        blocks += 1;
        table_clusters = (blocks * 8).div_ceil(CLUSTER);
    }
    let total = fixed + blocks + table_clusters;
    let l1_at = CLUSTER;
    let table_at = l1_at + l1_clusters * CLUSTER;
    let blocks_at = table_at + table_clusters * CLUSTER;
    let l2_at = blocks_at + blocks * CLUSTER;
    let data_at = l2_at + l2_tables.len() as u64 * CLUSTER;

    let mut header = Vec::new();
    header.extend(MAGIC);
    header.extend(VERSION.to_be_bytes());
    header.extend([0; 12]); // no backing file
    header.extend(CLUSTER.trailing_zeros().to_be_bytes());
    header.extend(size.to_be_bytes());
    header.extend([0; 4]); // no encryption
    header.extend(narrow(l1_entries)?.to_be_bytes());
    header.extend(l1_at.to_be_bytes());
    header.extend(table_at.to_be_bytes());
    header.extend(narrow(table_clusters)?.to_be_bytes());
    header.extend([0; 12]); // no snapshots
    header.extend([0; 24]); // no feature bits
    header.extend(REFCOUNT_ORDER.to_be_bytes());
    header.extend(HEADER_LENGTH.to_be_bytes());
    put(out, &header, CLUSTER)?;

    let mut l1 = vec![0u64; usize::try_from(l1_entries).map_err(io::Error::other)?];
    for (at, table) in l2_tables.iter().enumerate() {
        l1[usize::try_from(*table).map_err(io::Error::other)?] = (l2_at + at as u64 * CLUSTER) | COPIED;
    }
    put(out, &big_endian(&l1), l1_clusters * CLUSTER)?;
    let table: Vec<u64> = (0..blocks).map(|block| blocks_at + block * CLUSTER).collect();
    put(out, &big_endian(&table), table_clusters * CLUSTER)?;
    for block in 0..blocks {
        let counted = total.saturating_sub(block * per_block).min(per_block);
        let counts: Vec<u8> = (0..counted).flat_map(|_| 1u16.to_be_bytes()).collect();
        put(out, &counts, CLUSTER)?;
    }
    let mut next = 0u64;
    for table in &l2_tables {
        let mut entries = vec![0u64; ENTRIES as usize];
        for index in used.iter().filter(|index| *index / ENTRIES == *table) {
            entries[usize::try_from(index % ENTRIES).map_err(io::Error::other)?] = (data_at + next * CLUSTER) | COPIED;
            next += 1;
        }
        put(out, &big_endian(&entries), CLUSTER)?;
    }
    for index in used {
        raw.seek(SeekFrom::Start(index * CLUSTER))?;
        read_cluster(raw, &mut buffer)?;
        out.write_all(&buffer)?;
    }
    Ok(())
}

/// Fills `buffer` with the next cluster, zeroes past the end; returns whether there is anything but zeroes in it.
fn read_cluster(raw: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match raw.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    buffer[filled..].fill(0);
    Ok(!is_zero(buffer))
}

/// Whether there is nothing but zeroes; by comparison of memory, which is fast without optimisation too.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROES: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROES.len()).all(|chunk| *chunk == ZEROES[..chunk.len()])
}

fn put(out: &mut impl Write, bytes: &[u8], length: u64) -> io::Result<()> {
    out.write_all(bytes)?;
    let padding = usize::try_from(length).map_err(io::Error::other)?.saturating_sub(bytes.len());
    out.write_all(&vec![0; padding])
}

fn big_endian(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn narrow(value: u64) -> io::Result<u32> {
    u32::try_from(value).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn only_clusters_with_content_are_written() {
        let mut raw = vec![0; 40 * CLUSTER as usize + 512];
        raw[3 * CLUSTER as usize] = 1;
        let end = raw.len();
        raw[end - 1] = 2;
        let mut out = Cursor::new(Vec::new());
        write(&mut Cursor::new(&raw), &mut out).expect("memory can be written");
        let bytes = out.into_inner();
        // header, L1, refcount table, refcount block, L2, two data clusters
        assert_eq!(bytes.len() as u64, 7 * CLUSTER);
        assert_eq!(&bytes[..4], MAGIC);
        assert_eq!(bytes[5 * CLUSTER as usize], 1);
        assert_eq!(bytes[6 * CLUSTER as usize + 511], 2);
    }
}
