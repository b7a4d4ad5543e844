//! Building and verifying the hash area.
//!
//! The area is the superblock's block, then the tree from its top level (one block) down to level 0, which holds the
//! digests of the data blocks. Each level is padded with zeros to a whole block. A single data block needs no level:
//! its digest is the root hash. A digest is SHA-256 of the salt followed by the block.
//!
//! Data is read by position in chunks, by several threads; the levels, 1/127 of the data, are held in memory.

use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::thread;

use sha2::{Digest as _, Sha256};

use crate::superblock::SUPERBLOCK_SIZE;
use crate::{Area, AreaKind, BLOCK_SIZE, DIGEST_SIZE, Digest, Error, Place, RootHash, Superblock};

const BLOCK: usize = BLOCK_SIZE as usize;
const DIGESTS_PER_BLOCK: u64 = BLOCK_SIZE / DIGEST_SIZE as u64;
/// Data blocks that a thread reads at a time: 1 MiB.
const CHUNK_BLOCKS: usize = 256;

/// Builds the tree over `data`, which must be exactly what `superblock` describes, and writes the whole hash area,
/// [`Superblock::hash_area_size`] bytes, to `out`.
pub fn build(
    data: Area<'_>,
    superblock: &Superblock,
    out: &mut impl Write,
    threads: NonZeroUsize,
) -> Result<RootHash, Error> {
    if data.length() != superblock.data_length() {
        return Err(Error::DataLength { found: data.length(), expected: superblock.data_length() });
    }
    let hasher = Sha256::new_with_prefix(superblock.salt());
    let mut digests = digest_data(data, superblock.data_blocks(), &hasher, threads)?;
    let mut levels = Vec::new();
    while digests.len() > DIGEST_SIZE {
        digests.resize(digests.len().next_multiple_of(BLOCK), 0);
        let above = digest_blocks(&digests, &hasher);
        levels.push(std::mem::replace(&mut digests, above));
    }
    let mut first_block = [0; BLOCK];
    first_block[..SUPERBLOCK_SIZE].copy_from_slice(&superblock.to_bytes());
    out.write_all(&first_block).map_err(Error::Write)?;
    levels.iter().rev().try_for_each(|level| out.write_all(level)).map_err(Error::Write)?;
    Ok(RootHash::new(digest_at(&digests, 0)))
}

/// Verifies `data` against the tree in `hash`, and the tree against `root_hash`, from the top down, and yields the
/// superblock found. The error names the first bad block of the topmost level that has one. Both areas may be longer
/// than what the superblock describes, as partitions are.
pub fn verify(
    data: Area<'_>,
    hash: Area<'_>,
    root_hash: &RootHash,
    threads: NonZeroUsize,
) -> Result<Superblock, Error> {
    let superblock = read_superblock(hash)?;
    let needs = [(AreaKind::Data, data, superblock.data_length()), (AreaKind::Hash, hash, superblock.hash_area_size())];
    for (area, found, needed) in needs {
        if found.length() < needed {
            return Err(Error::AreaTooShort { area, found: found.length(), needed });
        }
    }
    let hasher = Sha256::new_with_prefix(superblock.salt());
    let mut expected = root_hash.digest().as_bytes().to_vec();
    let mut offset = BLOCK_SIZE;
    let levels = level_blocks(superblock.data_blocks());
    for (level, blocks) in levels.iter().enumerate().rev() {
        let mut content = vec![0; memory_size(blocks * BLOCK_SIZE)];
        let read = hash.read_exact_at(&mut content, offset);
        read.map_err(|source| Error::Read { area: AreaKind::Hash, offset, source })?;
        let top = level + 1 == levels.len();
        compare(&digest_blocks(&content, &hasher), &expected, Place::Level(level), offset, top)?;
        offset += blocks * BLOCK_SIZE;
        expected = content;
    }
    let found = digest_data(data, superblock.data_blocks(), &hasher, threads)?;
    compare(&found, &expected, Place::Data, 0, levels.is_empty())?;
    Ok(superblock)
}

/// Reads the superblock at the start of a hash area.
pub fn read_superblock(hash: Area<'_>) -> Result<Superblock, Error> {
    let mut bytes = [0; SUPERBLOCK_SIZE];
    let read = hash.read_exact_at(&mut bytes, 0);
    read.map_err(|source| Error::Read { area: AreaKind::Hash, offset: 0, source })?;
    Superblock::parse(&bytes)
}

/// Length in bytes of the hash area for so many data blocks, superblock included. Saturates for counts that no
/// [`Superblock`] can hold.
pub fn hash_area_size(data_blocks: u64) -> u64 {
    level_blocks(data_blocks).iter().sum::<u64>().saturating_add(1).saturating_mul(BLOCK_SIZE)
}

/// Blocks in each level, from level 0 to the top.
fn level_blocks(data_blocks: u64) -> Vec<u64> {
    let above = |blocks: &u64| (*blocks > 1).then(|| blocks.div_ceil(DIGESTS_PER_BLOCK));
    std::iter::successors(Some(data_blocks), above).skip(1).collect()
}

/// Digests of the data's blocks in order. The threads take chunks of the result from a common queue.
fn digest_data(data: Area<'_>, blocks: u64, hasher: &Sha256, threads: NonZeroUsize) -> Result<Vec<u8>, Error> {
    let mut digests = vec![0; memory_size(blocks) * DIGEST_SIZE];
    let queue = Mutex::new(digests.chunks_mut(CHUNK_BLOCKS * DIGEST_SIZE).enumerate());
    let next = || queue.lock().expect("no thread panics while it holds the queue").next();
    let work = || {
        let mut buffer = vec![0; CHUNK_BLOCKS * BLOCK];
        while let Some((chunk, digests)) = next() {
            let content = &mut buffer[..digests.len() / DIGEST_SIZE * BLOCK];
            let offset = (chunk * CHUNK_BLOCKS) as u64 * BLOCK_SIZE;
            if let Err(source) = data.read_exact_at(content, offset) {
                // The other threads stop when nothing is left to take.
                while next().is_some() {}
                return Err(Error::Read { area: AreaKind::Data, offset, source });
            }
            digest_into(content, hasher, digests);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.get()).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("hashing does not panic"))
    })?;
    Ok(digests)
}

fn digest_blocks(content: &[u8], hasher: &Sha256) -> Vec<u8> {
    let mut digests = vec![0; content.len() / BLOCK * DIGEST_SIZE];
    digest_into(content, hasher, &mut digests);
    digests
}

/// Digests each block of `content` with a copy of `hasher`, which has taken in the salt.
fn digest_into(content: &[u8], hasher: &Sha256, digests: &mut [u8]) {
    for (block, digest) in content.chunks_exact(BLOCK).zip(digests.chunks_exact_mut(DIGEST_SIZE)) {
        digest.copy_from_slice(&hasher.clone().chain_update(block).finalize());
    }
}

/// Compares the digests of the blocks at `place`, which begins at byte `start` of its area, with the level above,
/// where the last block's padding follows the digests.
fn compare(found: &[u8], expected: &[u8], place: Place, start: u64, top: bool) -> Result<(), Error> {
    let pairs = found.chunks_exact(DIGEST_SIZE).zip(expected.chunks_exact(DIGEST_SIZE));
    let Some(index) = pairs.into_iter().position(|(found, expected)| found != expected) else {
        return Ok(());
    };
    let (found, expected) = (digest_at(found, index), digest_at(expected, index));
    if top {
        return Err(Error::RootHash { found: RootHash::new(found), expected: RootHash::new(expected) });
    }
    let block = index as u64;
    Err(Error::Corrupt { place, block, offset: start + block * BLOCK_SIZE, found, expected })
}

fn digest_at(digests: &[u8], index: usize) -> Digest {
    Digest::new(std::array::from_fn(|byte| digests[index * DIGEST_SIZE + byte]))
}

/// A size that was compared with the length of a file before, as a length in memory.
fn memory_size(size: u64) -> usize {
    usize::try_from(size).expect("the tree of a file that exists can be addressed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_shrink_by_128() {
        let cases: [(u64, &[u64]); 9] = [
            (1, &[]),
            (2, &[1]),
            (128, &[1]),
            (129, &[2, 1]),
            (128 * 128, &[128, 1]),
            (128 * 128 + 1, &[129, 2, 1]),
            (128 * 128 * 128, &[16384, 128, 1]),
            (128 * 128 * 128 + 1, &[16385, 129, 2, 1]),
            (1 << 51, &[1 << 44, 1 << 37, 1 << 30, 1 << 23, 1 << 16, 512, 4, 1]),
        ];
        for (data_blocks, levels) in cases {
            assert_eq!(level_blocks(data_blocks), levels, "{data_blocks} data blocks");
            assert_eq!(hash_area_size(data_blocks), (levels.iter().sum::<u64>() + 1) * 4096, "{data_blocks}");
        }
        assert_eq!(hash_area_size(u64::MAX), u64::MAX);
    }
}
