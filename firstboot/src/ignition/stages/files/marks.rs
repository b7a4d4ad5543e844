//! Extended attributes of files that the stage writes.
//!
//! A file that something was appended to says so in an attribute, by the digest of what was appended: nothing else
//! tells whether a run that was cut off had come to that file, and appending twice is not what the config says. The
//! attribute comes with the file in one rename. On a file system without such attributes it is left out.

use std::fs::File;
use std::io;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;

/// The attribute: SHA-256 of all fragments together, in hexadecimal.
const APPENDED: &str = "user.nodezero.appended";

/// How long an attribute, or the list of names, may be: the kernel's own bound, in bytes.
const LIMIT: usize = 1 << 16;

/// Whether these fragments were appended to the file.
pub(super) fn is_marked(file: &File, digest: &str) -> bool {
    read(file, APPENDED).is_ok_and(|value| value == digest.as_bytes())
}

/// Says in the file that these fragments were appended to it.
pub(super) fn mark(file: &File, digest: &str) {
    // Without the mark all is as without this module.
    let _ = fsetxattr(file, APPENDED, digest.as_bytes(), XattrFlags::empty());
}

/// Gives a file the attributes of another, access lists among them, as far as both file systems have them.
///
/// # Errors
/// What the kernel answers otherwise.
pub(super) fn copy_attributes(from: &File, to: &File) -> io::Result<()> {
    let mut names = vec![0; LIMIT];
    let length = match flistxattr(from, &mut names) {
        Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    let names = names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    for name in names.filter(|&name| name != APPENDED.as_bytes()) {
        let value = read(from, name)?;
        match fsetxattr(to, name, &value, XattrFlags::empty()) {
            // Labels and the like are for who may set them.
            Err(Errno::NOTSUP | Errno::PERM) => {}
            other => other?,
        }
    }
    Ok(())
}

fn read(file: &File, name: impl rustix::path::Arg) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; LIMIT];
    let length = fgetxattr(file, name, &mut value)?;
    value.truncate(length);
    Ok(value)
}
