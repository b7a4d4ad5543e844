//! Lines for whoever stands before the machine: on every active console, and in the kernel's log.
//!
//! `/sys/class/tty/console/active` names the consoles ([ABI](https://docs.kernel.org/admin-guide/abi-testing.html));
//! before `/sys` is there, `/dev/console` has to do. The copy in `/dev/kmsg` has the level of debug messages, so that
//! the kernel does not print on the same consoles what was just written there.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

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
        let _ = append(&PathBuf::from("/dev/kmsg"), &format!("<7>{line}"));
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

/// Writes to a device without making it the controlling terminal.
fn append(device: &PathBuf, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY).open(device)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
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
}
