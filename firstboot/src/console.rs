//! Lines for whoever stands before the machine: on every active console, and in the kernel's log.
//!
//! `/sys/class/tty/console/active` names the consoles ([ABI](https://docs.kernel.org/admin-guide/abi-testing.html));
//! before `/sys` is there, `/dev/console` has to do. The copy in `/dev/kmsg` has the level of debug messages, so that
//! the kernel does not print on the same consoles what was just written there.
//!
//! A console that takes nothing (a terminal whose output was stopped, a line without flow) is given up after a moment,
//! with the rest of the text: a node must not stand still because of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a console may take nothing before it is given up.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Writes a line to all consoles and to the kernel's log. A console that cannot be written to is passed over: there
/// is nowhere left to say so.
pub(crate) fn say(line: &str) {
    to_consoles(line);
    to_kernel_log(line);
}

/// Writes text, a line or several, to all consoles.
pub(crate) fn to_consoles(text: &str) {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    for console in devices(&active) {
        // A console that the kernel names may have no working device behind it.
        let _ = append(&console, &format!("{text}\n"));
    }
}

/// Writes text to the kernel's log, a record for each line.
pub(crate) fn to_kernel_log(text: &str) {
    for line in text.lines().filter(|line| !line.is_empty()) {
        // Without /dev/kmsg there is no log to write to; the consoles have the line.
        let _ = append(Path::new("/dev/kmsg"), &format!("<7>{line}"));
    }
}

/// The device files of the consoles that the kernel calls active.
fn devices(active: &str) -> Vec<PathBuf> {
    let mut devices: Vec<PathBuf> = active.split_whitespace().map(|name| PathBuf::from("/dev").join(name)).collect();
    if devices.is_empty() {
        devices.push(PathBuf::from("/dev/console"));
    }
    devices
}

/// Writes to a device without making it the controlling terminal, and without waiting for it for ever.
fn append(device: &Path, text: &str) -> io::Result<()> {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let mut file = OpenOptions::new().write(true).custom_flags(flags).open(device)?;
    write_patiently(&mut file, text.as_bytes(), PATIENCE)
}

/// Writes all of it to a file that does not block, as long as it takes something within `patience`.
fn write_patiently(file: &mut File, mut rest: &[u8], patience: Timespec) -> io::Result<()> {
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut wanted = [PollFd::new(file, PollFlags::OUT)];
                match poll(&mut wanted, Some(&patience)) {
                    Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn consoles_are_those_that_the_kernel_names() {
        for (active, expected) in [
            ("tty0 ttyS0\n", vec!["/dev/tty0", "/dev/ttyS0"]),
            ("hvc0\n", vec!["/dev/hvc0"]),
            ("", vec!["/dev/console"]),
        ] {
            assert_eq!(devices(active), expected.into_iter().map(PathBuf::from).collect::<Vec<_>>(), "{active:?}");
        }
    }

    /// A line on which the other side has not read yet.
    fn line() -> (File, UnixStream) {
        let (here, there) = UnixStream::pair().expect("sockets");
        here.set_nonblocking(true).expect("not blocking");
        there.set_read_timeout(Some(Duration::from_secs(10))).expect("bounded");
        (File::from(OwnedFd::from(here)), there)
    }

    #[test]
    fn a_slow_console_gets_all_and_a_stopped_one_is_given_up() {
        let text = vec![b'x'; 4 << 20];
        let (mut slow, mut there) = line();
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            there.read_to_end(&mut text).map(|_| text.len())
        });
        write_patiently(&mut slow, &text, Timespec { tv_sec: 10, tv_nsec: 0 }).expect("written");
        drop(slow);
        assert_eq!(reader.join().expect("no panic").expect("read"), text.len());

        let (mut stopped, _there) = line();
        let short = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let error = write_patiently(&mut stopped, &text, short).expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
