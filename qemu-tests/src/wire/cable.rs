//! The end of a cable that leads to a guest's card, as QEMU's `-netdev stream` speaks over a Unix socket: each frame
//! after its length in four bytes, big-endian.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};

/// The longest frame that is taken, in bytes. Cards offer no larger ones, as no offload is agreed on.
const LONGEST_FRAME: usize = 65_536;

/// Sockets in a directory of their own, by these names. The name of a socket must be short, and a scenario's directory
/// may lie deep.
pub(super) fn sockets(names: impl Iterator<Item = String>) -> Result<(tempfile::TempDir, Vec<PathBuf>)> {
    let directory = tempfile::Builder::new().prefix("nodezero-").tempdir().context("making a directory for sockets")?;
    let paths = names.map(|name| directory.path().join(name)).collect();
    Ok((directory, paths))
}

/// Listens at `path`: `plugged` gets each cable to write to, then `take` each frame that comes by it, until it says that
/// it is enough.
pub(super) fn listen(
    path: &Path,
    mut plugged: impl FnMut(UnixStream) + Send + 'static,
    mut take: impl FnMut(Vec<u8>) -> bool + Send + 'static,
) -> Result<()> {
    let listener = UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
    thread::spawn(move || {
        // One guest after the other, as a machine is switched on again.
        for mut stream in listener.incoming().flatten() {
            let Ok(writable) = stream.try_clone() else { continue };
            plugged(writable);
            while let Ok(frame) = read(&mut stream) {
                if !take(frame) {
                    return;
                }
            }
        }
    });
    Ok(())
}

/// Writes a frame.
pub(super) fn write(stream: &mut UnixStream, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).expect("a frame is short").to_be_bytes();
    stream.write_all(&[&length[..], frame].concat())
}

fn read(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).expect("32 bits");
    if length > LONGEST_FRAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}
