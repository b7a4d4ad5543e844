//! Device-mapper devices, through `/dev/mapper/control`.
//!
//! The structures are those of the kernel's `linux/dm-ioctl.h`, version 4: a header of 312 bytes, for a table followed
//! by a target of 40 bytes and its parameters. Only what one read-only device needs is here.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::sys::{self, DM_HEADER_LEN};

const VERSION: [u32; 3] = [4, 0, 0];
const TARGET_LEN: usize = 40;
/// Space for the kernel's answer about a table's state.
const ANSWER_LEN: usize = 4096;

const DEV_CREATE: u8 = 3;
const DEV_SUSPEND: u8 = 6;
const TABLE_LOAD: u8 = 9;
const TABLE_STATUS: u8 = 12;

const READ_ONLY: u32 = 1;
const SUSPEND: u32 = 1 << 1;
/// Do not freeze the file system while suspending: it is read-only.
const SKIP_LOCKFS: u32 = 1 << 10;
/// The answer did not fit.
const BUFFER_FULL: u32 = 1 << 8;

const DATA_SIZE_OFFSET: usize = 12;
const DATA_START_OFFSET: usize = 16;
const TARGET_COUNT_OFFSET: usize = 20;
const FLAGS_OFFSET: usize = 28;
const DEV_OFFSET: usize = 40;
const NAME_OFFSET: usize = 48;
const NAME_LEN: usize = 128;
const UUID_OFFSET: usize = 176;
const UUID_LEN: usize = 129;

/// One target over a whole device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    /// Length in sectors of 512 bytes.
    pub(crate) sectors: u64,
    /// Name of the target's type.
    pub(crate) kind: &'a str,
    /// The type's own parameters.
    pub(crate) parameters: &'a str,
}

/// A read-only device that was created here.
#[derive(Debug)]
pub(crate) struct Device {
    control: File,
    name: String,
    node: PathBuf,
}

impl Device {
    /// Creates a device and starts it with a table.
    ///
    /// # Errors
    /// When the kernel has no device mapper, or refuses the device or its table.
    pub(crate) fn create(name: &str, uuid: &str, target: Target<'_>) -> anyhow::Result<Self> {
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/mapper/control")
            .context("opening /dev/mapper/control (is dm_mod among the modules?)")?;
        let mut request = header(name, uuid, READ_ONLY, DM_HEADER_LEN)?;
        sys::device_mapper(control.as_fd(), DEV_CREATE, &mut request)
            .with_context(|| format!("creating the device {name}"))?;
        let dev = u64::from_le_bytes(request[DEV_OFFSET..DEV_OFFSET + 8].try_into().expect("eight bytes"));
        let node = PathBuf::from(format!("/dev/dm-{}", rustix::fs::minor(dev)));
        let device = Self { control, name: name.to_owned(), node };
        device.replace_table(target)?;
        Ok(device)
    }

    /// The device's file.
    pub(crate) fn node(&self) -> &Path {
        &self.node
    }

    /// Makes `/dev/mapper/NAME` lead to the device, as udev would.
    ///
    /// # Errors
    /// What the file system answers.
    pub(crate) fn link(&self) -> anyhow::Result<()> {
        let link = Path::new("/dev/mapper").join(&self.name);
        let target = Path::new("..").join(self.node.strip_prefix("/dev").unwrap_or(&self.node));
        if fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(target, &link).with_context(|| format!("linking {}", link.display()))?;
        }
        Ok(())
    }

    /// Gives the device another table. Reads that come meanwhile wait.
    ///
    /// # Errors
    /// When the kernel refuses the table; the device then keeps the one that it has.
    pub(crate) fn replace_table(&self, target: Target<'_>) -> anyhow::Result<()> {
        let mut request = table_request(&self.name, target)?;
        self.send(TABLE_LOAD, &mut request, "loading the table")?;
        let mut suspend = header(&self.name, "", SUSPEND | SKIP_LOCKFS, DM_HEADER_LEN)?;
        self.send(DEV_SUSPEND, &mut suspend, "suspending")?;
        let mut resume = header(&self.name, "", 0, DM_HEADER_LEN)?;
        self.send(DEV_SUSPEND, &mut resume, "starting")
    }

    /// The target's own word about its state. For verity: `V` while all was valid, `C` once a block was corrupted.
    ///
    /// # Errors
    /// When the kernel does not answer, or not in the documented form.
    pub(crate) fn status(&self) -> anyhow::Result<String> {
        let mut request = header(&self.name, "", 0, ANSWER_LEN)?;
        self.send(TABLE_STATUS, &mut request, "asking about the state")?;
        parse_status(&request)
    }

    fn send(&self, command: u8, request: &mut [u8], doing: &str) -> anyhow::Result<()> {
        sys::device_mapper(self.control.as_fd(), command, request)
            .with_context(|| format!("{doing} of the device {}", self.name))
    }
}

/// A header that names a device, in a buffer of `len` bytes.
fn header(name: &str, uuid: &str, flags: u32, len: usize) -> anyhow::Result<Vec<u8>> {
    let mut buffer = vec![0; len];
    for (index, number) in VERSION.iter().enumerate() {
        put(&mut buffer, index * 4, &number.to_le_bytes());
    }
    put(&mut buffer, DATA_SIZE_OFFSET, &u32::try_from(len)?.to_le_bytes());
    put(&mut buffer, DATA_START_OFFSET, &u32::try_from(DM_HEADER_LEN)?.to_le_bytes());
    put(&mut buffer, FLAGS_OFFSET, &flags.to_le_bytes());
    for (text, offset, room) in [(name, NAME_OFFSET, NAME_LEN), (uuid, UUID_OFFSET, UUID_LEN)] {
        anyhow::ensure!(text.len() < room && !text.contains('\0'), "{text:?} does not fit a device's name");
        put(&mut buffer, offset, text.as_bytes());
    }
    Ok(buffer)
}

/// The request that loads a table of one target.
fn table_request(name: &str, target: Target<'_>) -> anyhow::Result<Vec<u8>> {
    // The kernel wants a NUL after the parameters, and the next target, were there one, at a multiple of eight.
    let len = (DM_HEADER_LEN + TARGET_LEN + target.parameters.len() + 1).next_multiple_of(8);
    let mut buffer = header(name, "", READ_ONLY, len)?;
    anyhow::ensure!(target.kind.len() < 16, "{:?} is no target type", target.kind);
    put(&mut buffer, TARGET_COUNT_OFFSET, &1_u32.to_le_bytes());
    put(&mut buffer, DM_HEADER_LEN + 8, &target.sectors.to_le_bytes());
    put(&mut buffer, DM_HEADER_LEN + 20, &u32::try_from(len - DM_HEADER_LEN)?.to_le_bytes());
    put(&mut buffer, DM_HEADER_LEN + 24, target.kind.as_bytes());
    put(&mut buffer, DM_HEADER_LEN + TARGET_LEN, target.parameters.as_bytes());
    Ok(buffer)
}

/// The text of the first target in the answer to a status request.
fn parse_status(answer: &[u8]) -> anyhow::Result<String> {
    let number = |offset: usize| -> anyhow::Result<u32> {
        let bytes = answer.get(offset..offset + 4).context("an answer shorter than its header")?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    };
    anyhow::ensure!(number(FLAGS_OFFSET)? & BUFFER_FULL == 0, "the answer does not fit {} bytes", answer.len());
    anyhow::ensure!(number(TARGET_COUNT_OFFSET)? == 1, "{} targets, expected 1", number(TARGET_COUNT_OFFSET)?);
    let text = usize::try_from(number(DATA_START_OFFSET)?)? + TARGET_LEN;
    let text = answer.get(text..).context("an answer shorter than its target")?;
    Ok(CStr::from_bytes_until_nul(text).context("an answer without an end")?.to_string_lossy().into_owned())
}

fn put(buffer: &mut [u8], offset: usize, bytes: &[u8]) {
    buffer[offset..offset + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_laid_out_as_the_header_file_says() {
        let target = Target { sectors: 0x1_0000_0001, kind: "verity", parameters: "1 254:1" };
        let request = table_request("root", target).expect("fits");
        assert_eq!(request.len(), 312 + 40 + 8);
        assert_eq!(&request[..12], [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&request[12..24], [104, 1, 0, 0, 56, 1, 0, 0, 1, 0, 0, 0]);
        assert_eq!(&request[28..32], [1, 0, 0, 0]);
        assert_eq!(&request[48..53], b"root\0");
        let spec = &request[312..];
        assert_eq!(&spec[..8], [0; 8]);
        assert_eq!(&spec[8..16], [1, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(&spec[20..24], [48, 0, 0, 0]);
        assert_eq!(&spec[24..31], b"verity\0");
        assert_eq!(&spec[40..], b"1 254:1\0");
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        assert!(header(&"n".repeat(NAME_LEN), "", 0, DM_HEADER_LEN).is_err());
        assert!(header(&"n".repeat(NAME_LEN - 1), "", 0, DM_HEADER_LEN).is_ok());
        assert!(header("a\0b", "", 0, DM_HEADER_LEN).is_err());
    }

    #[test]
    fn the_state_is_read_and_damage_noticed() {
        let mut answer = header("root", "", 0, 1024).expect("fits");
        put(&mut answer, TARGET_COUNT_OFFSET, &1_u32.to_le_bytes());
        put(&mut answer, DM_HEADER_LEN + TARGET_LEN, b"C\0");
        assert_eq!(parse_status(&answer).expect("parses"), "C");
        assert!(parse_status(&answer[..20]).is_err(), "short");
        put(&mut answer, DATA_START_OFFSET, &5000_u32.to_le_bytes());
        assert!(parse_status(&answer).is_err(), "text outside");
        put(&mut answer, FLAGS_OFFSET, &BUFFER_FULL.to_le_bytes());
        assert!(parse_status(&answer).is_err(), "truncated");
    }
}
