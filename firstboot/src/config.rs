//! Where the node's configuration comes from.
//!
//! In the design's order: the kernel command line, QEMU's `fw_cfg`, the ESP of the own disk. The first source that has
//! one counts, and one that is present and broken is an error, not a reason to ask the next. What is found is handed on
//! as it is; it is parsed and applied later. Left out so far: fetching what the command line names, config drives and
//! metadata services.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;

use crate::boot::{CONFIG_FILE, ConfigOrigin};
use crate::files::{read_bounded, write_atomically};

/// The largest configuration that is taken, in bytes.
const LIMIT: u64 = 16 << 20;
/// The largest one from `fw_cfg`, in bytes. The kernel reads it byte by byte, and each page of it from the start
/// again, so that a large one would take minutes.
const FW_CFG_LIMIT: u64 = 512 << 10;
/// The directory of `fw_cfg`, below `/sys`, that holds an Ignition config and its size.
const FW_CFG: &str = "firmware/qemu_fw_cfg/by_name/opt/com.coreos/config";
/// The file on the ESP.
pub(crate) const ESP_FILE: &str = "nodezero/config.ign";

/// Asks the sources in order: what the command line names, then the two readers, of which `None` means that there is
/// no configuration. Gives what the first one has that has one, and where that was.
///
/// # Errors
/// When a source is present and broken; it names the source.
pub(crate) fn find(
    cmdline: Option<&str>,
    fw_cfg: impl FnOnce() -> anyhow::Result<Option<Vec<u8>>>,
    esp: impl FnOnce() -> anyhow::Result<Option<Vec<u8>>>,
) -> anyhow::Result<(ConfigOrigin, Option<Vec<u8>>)> {
    if let Some(url) = cmdline {
        return Ok((ConfigOrigin::Cmdline { url: url.to_owned() }, None));
    }
    if let Some(content) = usable(fw_cfg(), "QEMU fw_cfg opt/com.coreos/config")? {
        return Ok((ConfigOrigin::FwCfg { size: content.len() as u64 }, Some(content)));
    }
    if let Some(content) = usable(esp(), "/nodezero/config.ign on the ESP")? {
        return Ok((ConfigOrigin::Esp { size: content.len() as u64 }, Some(content)));
    }
    Ok((ConfigOrigin::None, None))
}

/// What a source answered, unless it is broken.
fn usable(answer: anyhow::Result<Option<Vec<u8>>>, source: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let content = answer.with_context(|| format!("reading the configuration from {source}"))?;
    anyhow::ensure!(
        content.as_ref().is_none_or(|content| !content.is_empty()),
        "the configuration in {source} is empty"
    );
    Ok(content)
}

/// Reads a configuration file, if there is one.
///
/// # Errors
/// When it is there and cannot be read, or is larger than [`LIMIT`].
pub(crate) fn read_file(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    match fs::symlink_metadata(path) {
        Ok(_) => read_bounded(path, LIMIT).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Reads the configuration from `fw_cfg`, if there is one.
///
/// # Errors
/// When it is there and cannot be read, or is too large.
pub(crate) fn read_fw_cfg(sys: &Path) -> anyhow::Result<Option<Vec<u8>>> {
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

/// Lays a found configuration into a directory, readable for root alone.
///
/// # Errors
/// What the file system answers.
pub(crate) fn hand_on(content: &[u8], directory: &Path) -> anyhow::Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    write_atomically(&directory.join(CONFIG_FILE), content, 0o600)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_first_source_that_has_one_counts() {
        let bytes = |text: &str| text.as_bytes().to_vec();
        let url = "http://h/c";
        for (cmdline, fw_cfg, esp, origin, content) in [
            (None, None, None, ConfigOrigin::None, None),
            (Some(url), Some("fw"), Some("esp"), ConfigOrigin::Cmdline { url: url.into() }, None),
            (None, Some("fw"), Some("esp"), ConfigOrigin::FwCfg { size: 2 }, Some("fw")),
            (None, None, Some("esp"), ConfigOrigin::Esp { size: 3 }, Some("esp")),
        ] {
            let found = find(cmdline, || Ok(fw_cfg.map(bytes)), || Ok(esp.map(bytes))).expect("none is broken");
            assert_eq!(found, (origin, content.map(bytes)), "{cmdline:?} {fw_cfg:?} {esp:?}");
        }
    }

    #[test]
    fn a_broken_source_is_an_error_and_the_next_is_not_asked() {
        let asked = Cell::new(false);
        let esp = || {
            asked.set(true);
            Ok(None)
        };
        let error = find(None, || anyhow::bail!("input/output error"), esp).expect_err("broken");
        let expected = "reading the configuration from QEMU fw_cfg opt/com.coreos/config: input/output error";
        assert_eq!(format!("{error:#}"), expected);
        let error = find(None, || Ok(Some(Vec::new())), esp).expect_err("empty");
        assert_eq!(error.to_string(), "the configuration in QEMU fw_cfg opt/com.coreos/config is empty");
        assert!(!asked.get());
    }

    #[test]
    fn fw_cfg_is_read_unless_it_is_too_large() {
        let sys = tempfile::tempdir().expect("tempdir");
        assert_eq!(read_fw_cfg(sys.path()).expect("absent"), None);
        let item = sys.path().join(FW_CFG);
        fs::create_dir_all(&item).expect("directory");
        fs::write(item.join("raw"), "{}").expect("file");
        assert!(read_fw_cfg(sys.path()).is_err(), "no size");
        fs::write(item.join("size"), "2\n").expect("file");
        assert_eq!(read_fw_cfg(sys.path()).expect("fits"), Some(b"{}".to_vec()));
        fs::write(item.join("size"), "524289\n").expect("file");
        let error = read_fw_cfg(sys.path()).expect_err("too large").to_string();
        assert_eq!(error, "it has 524289 bytes, the limit is 524288: put it on the ESP instead");
    }

    #[test]
    fn files_are_read_with_a_bound_and_handed_on_in_private() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("config");
        assert_eq!(read_file(&path).expect("absent"), None);
        let large = fs::File::create(&path).expect("file");
        large.set_len(LIMIT + 1).expect("sparse");
        assert!(read_file(&path).is_err(), "too large");
        large.set_len(LIMIT).expect("sparse");
        assert_eq!(read_file(&path).expect("fits").map(|content| content.len() as u64), Some(LIMIT));
        hand_on(b"{}", directory.path()).expect("handed on");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
        assert_eq!((mode(directory.path()), mode(&directory.path().join(CONFIG_FILE))), (0o700, 0o600));
    }
}
