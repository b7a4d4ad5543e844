//! What is mounted, from `/proc/self/mountinfo`
//! ([proc(5)](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Number of the device, `MAJOR:MINOR`.
    pub(crate) device: String,
    /// Where it is mounted.
    pub(crate) at: PathBuf,
    /// Kind of file system.
    pub(crate) kind: String,
    /// What it was mounted from.
    pub(crate) source: String,
    /// Options of this mount.
    pub(crate) options: Vec<String>,
}

/// All mounts that this process sees, in the order in which they were made.
///
/// # Errors
/// When the list cannot be read.
pub(crate) fn read_mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

fn parse(list: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
        Some(Mount {
            device: text(fields.get(2)?),
            at: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
            kind: text(fields.get(dash + 1)?),
            source: text(fields.get(dash + 2)?),
            options: text(fields.get(5)?).split(',').map(str::to_owned).collect(),
        })
    };
    list.split(|&byte| byte == b'\n').filter_map(line).collect()
}

/// The kernel writes blanks, line ends and backslashes as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut at = 0;
    while let Some(&byte) = field.get(at) {
        let digits = field.get(at + 1..at + 4).filter(|_| byte == b'\\');
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(byte));
        at += if code.is_some() { 4 } else { 1 };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_parsed() {
        let list = b"36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 - ext3 /dev/r\\134t rw,errors=continue\n\
                     40 35 8:1 / /var rw shared:2 master:1 - xfs /dev/sda1 rw\nnonsense\n41 35 8:2 / / ro -\n";
        let mounts = parse(list);
        assert_eq!(mounts.len(), 2, "{mounts:?}");
        assert_eq!((mounts[0].at.to_str(), mounts[0].source.as_str()), (Some("/mnt/a b"), "/dev/r\\t"));
        assert_eq!((mounts[0].device.as_str(), mounts[0].kind.as_str()), ("98:0", "ext3"));
        assert_eq!(mounts[0].options, ["rw", "noatime"]);
        assert_eq!((mounts[1].device.as_str(), mounts[1].kind.as_str()), ("8:1", "xfs"));
        assert!(read_mounts().expect("readable").iter().any(|mount| mount.at.as_os_str() == "/"));
    }
}
