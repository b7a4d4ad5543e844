//! A configuration from QEMU's firmware configuration device
//! ([specification](https://www.qemu.org/docs/master/specs/fw_cfg.html)), as the kernel shows it in `/sys`.

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::files::read_bounded;

/// The largest one, in bytes. The kernel reads it byte by byte, and each page of it from the start again, so that a
/// large one would take minutes.
const FW_CFG_LIMIT: u64 = 512 << 10;
/// The directory of `fw_cfg`, below `/sys`, that holds an Ignition config and its size.
const FW_CFG: &str = "firmware/qemu_fw_cfg/by_name/opt/com.coreos/config";

/// Reads the configuration, if there is one.
///
/// # Errors
/// When it is there and cannot be read, or is too large.
pub(crate) fn read(sys: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let item = sys.join(FW_CFG);
    if !item.exists() {
        return Ok(None);
    }
    let size: u64 = fs::read_to_string(item.join("size")).context("reading its size")?.trim().parse()?;
    anyhow::ensure!(
        size <= FW_CFG_LIMIT,
        "it has {size} bytes, the limit is {FW_CFG_LIMIT}: put it on the ESP instead"
    );
    read_bounded(&item.join("raw"), FW_CFG_LIMIT).map(Some)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Lays a configuration into a directory like `/sys`.
    pub(crate) fn write(sys: &Path, content: &str, size: &str) {
        let item = sys.join(FW_CFG);
        fs::create_dir_all(&item).expect("directory");
        fs::write(item.join("raw"), content).expect("file");
        fs::write(item.join("size"), size).expect("file");
    }

    #[test]
    fn it_is_read_unless_it_is_too_large() {
        let sys = tempfile::tempdir().expect("tempdir");
        assert_eq!(read(sys.path()).expect("absent"), None);
        write(sys.path(), "{}", "2\n");
        assert_eq!(read(sys.path()).expect("fits"), Some(b"{}".to_vec()));
        write(sys.path(), "{}", "524289\n");
        let error = read(sys.path()).expect_err("too large").to_string();
        assert_eq!(error, "it has 524289 bytes, the limit is 524288: put it on the ESP instead");
        fs::remove_file(sys.path().join(FW_CFG).join("size")).expect("removed");
        assert!(read(sys.path()).is_err(), "no size");
    }
}
