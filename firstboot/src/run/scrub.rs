//! Reading the whole root device once, so that dm-verity checks every block before the node is called ready.
//!
//! A block that nothing reads while starting could be corrupted without anybody noticing until it is needed. With the
//! table that the first stage leaves, a corrupted block stops the kernel with a message that says so; with another
//! table, the read fails here.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;
use rustix::fs::{Advice, fadvise};

/// How much is read at a time, and dropped from memory again, in bytes.
const CHUNK: usize = 1 << 20;

/// Reads a device or file to its end. Gives its size in bytes.
///
/// # Errors
/// When a block cannot be read; the message says where.
pub(crate) fn read_all(device: &Path) -> anyhow::Result<u64> {
    let mut file = File::open(device).with_context(|| format!("opening {}", device.display()))?;
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(length) => {
                // Else the cache would fill with blocks that nobody wants. It is advice: refusing it costs memory only.
                let _ = fadvise(&file, total, std::num::NonZeroU64::new(length as u64), Advice::DontNeed);
                total += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(error).with_context(|| format!("reading {} from byte {total} on", device.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_read_and_a_failing_read_is_told() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("root");
        let length = 3 * CHUNK as u64 + 5;
        File::create(&path).and_then(|file| file.set_len(length)).expect("sparse file");
        assert_eq!(read_all(&path).expect("readable"), length);
        let error = format!("{:#}", read_all(directory.path()).expect_err("a directory cannot be read"));
        assert!(error.contains("from byte 0 on"), "{error}");
    }
}
