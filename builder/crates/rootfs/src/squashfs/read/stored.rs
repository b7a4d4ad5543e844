//! What contents take in an image.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek};

use super::{Entry, FileData, Image, Kind, damaged};
use crate::Result;

impl<R: Read + Seek> Image<R> {
    /// How many bytes of the image the content of each of these entries takes, in their order: its blocks as they are
    /// stored, and of a fragment block, which several files share, a part as large as the file's part of what they have of it.
    /// A content that several files have counts for the first of them. So the sum is what all of them take together.
    ///
    /// # Errors
    /// [`Error::ImageFormat`](crate::Error::ImageFormat) when a file refers to a fragment block that is not there.
    pub fn stored_sizes(&self, entries: &[Entry]) -> Result<Vec<u64>> {
        let mut seen = BTreeSet::new();
        let mut first = |entry: &Entry| match &entry.kind {
            Kind::File(file) => seen.insert(file.place()),
            Kind::Directory | Kind::Symlink(_) | Kind::Device { .. } | Kind::Fifo | Kind::Socket => false,
        };
        let firsts: Vec<bool> = entries.iter().map(&mut first).collect();
        let mut shared: BTreeMap<u32, Shared> = BTreeMap::new();
        for (entry, _) in entries.iter().zip(&firsts).filter(|(_, first)| **first) {
            if let Some((index, tail)) = self.tail(entry) {
                let stored = self.fragments.get(index as usize).map(|(_, size)| u64::from(size.len()));
                let stored = stored.ok_or_else(|| damaged(format!("has no fragment block {index}")))?;
                let block = shared.entry(index).or_insert(Shared { stored, content: 0, before: 0 });
                block.content += tail;
            }
        }
        let size = |(entry, first): (&Entry, bool)| {
            let (Kind::File(file), true) = (&entry.kind, first) else { return 0 };
            let part = self.tail(entry).and_then(|(index, tail)| Some(shared.get_mut(&index)?.part(tail)));
            file.blocks_len() + part.unwrap_or(0)
        };
        Ok(entries.iter().zip(firsts).map(size).collect())
    }

    /// The fragment block that an entry's end is in, and how many bytes of it.
    fn tail(&self, entry: &Entry) -> Option<(u32, u64)> {
        let Kind::File(file) = &entry.kind else { return None };
        let (index, _) = file.fragment?;
        Some((index, file.size % u64::from(self.superblock.block_size)))
    }
}

impl FileData {
    /// What is the same for files that share their content, and for those alone: where it is, and how long. A file of
    /// zeros is nowhere, and may name any place.
    fn place(&self) -> (u64, Option<(u32, u32)>, u64, u64) {
        (self.start, self.fragment, self.size, self.blocks_len())
    }

    /// The length of its blocks in the image.
    fn blocks_len(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.len())).sum()
    }
}

/// A fragment block.
struct Shared {
    /// Its length in the image.
    stored: u64,
    /// The length of what is in it.
    content: u64,
    /// How much of its content was counted already.
    before: u64,
}

impl Shared {
    /// The part of the next `tail` bytes of content. All parts together are the whole block.
    fn part(&mut self, tail: u64) -> u64 {
        let until = |content: u64| (u128::from(self.stored) * u128::from(content) / u128::from(self.content)) as u64;
        let part = until(self.before + tail) - until(self.before);
        self.before += tail;
        part
    }
}
