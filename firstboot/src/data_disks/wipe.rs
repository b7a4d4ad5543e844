//! Wiping a disk that the profile consents to lose: signatures of its partitions, its own, then both ends.
//!
//! The journal says that it is begun before the first byte is touched, and that the consent is used up once the disk
//! reads back blank. In between, a power cut leads back here. What lies in the middle of the disk stays, and means
//! nothing without its signatures.

use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, bail};
use nodezero_profile::inventory::{Content, Disk};

use super::prepare::Bench;
use crate::command::run;
use crate::disks::{self, recognise::EDGE};

const CHUNK: usize = 1 << 20;

/// Wipes a disk.
///
/// # Errors
/// When it is another than was looked at, in use, failing, or not blank afterwards.
pub(super) fn wipe<B: Bench>(bench: &mut B, disk: &Disk) -> anyhow::Result<()> {
    drop(bench.open()?);
    for partition in disks::partitions(&disk.name) {
        erase_signatures(&Path::new("/dev").join(&partition.name))?;
    }
    erase_signatures(Path::new(&disk.path))?;
    let mut device = bench.open()?;
    zero_ends(&mut device, disk.size).with_context(|| format!("zeroing the ends of {}", disk.path))?;
    B::barrier(&mut device).with_context(|| format!("flushing {}", disk.path))?;
    drop(device);
    // Partitions that are no more must not be found by their names.
    bench.reread().with_context(|| format!("making the kernel read the partition table of {} again", disk.path))?;
    match bench.examine() {
        Content::Blank => Ok(()),
        other => bail!("{} is not blank after wiping: {other:?}", disk.path),
    }
}

/// Erases all signatures that libblkid knows.
fn erase_signatures(device: &Path) -> anyhow::Result<()> {
    run("wipefs", &["--all", "--quiet", &device.to_string_lossy()], b"", |code| code == 0)?;
    Ok(())
}

/// The bytes that are zeroed, end first: the start is what tells best what was there.
fn ends(size: u64) -> [Range<u64>; 2] {
    let head = size.min(EDGE);
    [head.max(size.saturating_sub(EDGE))..size, 0..head]
}

fn zero_ends(device: &mut (impl Write + Seek), size: u64) -> io::Result<()> {
    let zeros = vec![0; CHUNK];
    for range in ends(size) {
        device.seek(SeekFrom::Start(range.start))?;
        let mut left = range.end - range.start;
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            device.write_all(&zeros[..length])?;
            left -= length as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use super::*;

    #[test]
    fn both_ends_are_zeroed_and_no_more() {
        for size in [3 * EDGE + 512, 2 * EDGE, EDGE + 4096, 4096] {
            let mut disk = Cursor::new(vec![0xff_u8; usize::try_from(size).expect("fits")]);
            zero_ends(&mut disk, size).expect("written");
            let mut bytes = Vec::new();
            disk.seek(SeekFrom::Start(0)).and_then(|_| disk.read_to_end(&mut bytes)).expect("read");
            assert_eq!(bytes.len() as u64, size);
            let expected = |at: u64| if at < EDGE || at >= size.saturating_sub(EDGE) { 0 } else { 0xff };
            let wrong = (0..).zip(&bytes).find(|(at, byte)| expected(*at) != **byte);
            assert_eq!(wrong, None, "{size}");
        }
    }
}
