//! A bounded range of a file, read by position so that threads share it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A range of a file: a whole file system image, or one partition of a disk image.
#[derive(Debug, Clone, Copy)]
pub struct Area<'a> {
    file: &'a File,
    start: u64,
    length: u64,
}

impl<'a> Area<'a> {
    /// The `length` bytes of `file` that begin at byte `start`. Whether they exist shows when they are read.
    pub fn new(file: &'a File, start: u64, length: u64) -> Self {
        Self { file, start, length }
    }

    /// All of a regular file. A block device reports no length: name its range with [`Area::new`].
    pub fn whole(file: &'a File) -> io::Result<Self> {
        Ok(Self::new(file, 0, file.metadata()?.len()))
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Fills `buffer` from byte `offset` of the area; reading past the area's end is `UnexpectedEof`.
    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.length);
        let position = end.and_then(|_| self.start.checked_add(offset)).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.file.read_exact_at(buffer, position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn reads_stay_inside_the_area() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        assert_eq!(Area::whole(&file).unwrap().length(), 10);
        let area = Area::new(&file, 2, 5);
        let cases: [(u64, usize, Option<&[u8]>); 6] = [
            (0, 5, Some(b"23456")),
            (4, 1, Some(b"6")),
            (5, 0, Some(b"")),
            (4, 2, None),
            (u64::MAX, 1, None),
            (6, 0, None),
        ];
        for (offset, length, expected) in cases {
            let mut buffer = vec![0; length];
            let read = area.read_exact_at(&mut buffer, offset).ok().map(|()| buffer.as_slice());
            assert_eq!(read, expected, "{length} bytes at {offset}");
        }
        assert!(Area::new(&file, u64::MAX, 5).read_exact_at(&mut [0; 2], 1).is_err());
        assert!(Area::new(&file, 0, 11).read_exact_at(&mut [0; 11], 0).is_err());
    }
}
