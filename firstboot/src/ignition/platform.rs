//! The platforms, and how each hands a config to its machine.
//!
//! The kernel's command line and `user.ign` come before any platform's own way, as the reference implementation has it.
//! Specification: [supported platforms](https://coreos.github.io/ignition/supported-platforms/).

use std::path::Path;

use anyhow::Context;

use super::config::types::Resource;
use super::environment::Environment;
use super::fetch::{self, Fetcher};
use super::log::Log;
use crate::cmdline::Cmdline;
use crate::command;
use crate::files::read_bounded;
use crate::sources::fw_cfg;

/// The platform of our own machines.
pub(crate) const NODEZERO: &str = "nodezero";
/// The largest config that is taken, in bytes, decompressed.
pub(crate) const CONFIG_LIMIT: usize = 32 << 20;

/// What there is to find a config with.
pub(crate) struct Access<'a> {
    /// Places on this machine.
    pub(crate) environment: &'a Environment,
    /// Fetches, or answers [`fetch::NeedsNetwork`] where the network may not be used yet.
    pub(crate) fetcher: &'a Fetcher,
    /// The log.
    pub(crate) log: Log,
}

/// A platform. A new one is a line in [`PLATFORMS`].
pub(crate) struct Platform {
    /// As `-platform` names it.
    pub(crate) name: &'static str,
    /// Whether the kernel's command line is asked before it.
    pub(crate) after_cmdline: bool,
    /// Gives the config, or `None` where the machine was given none.
    ///
    /// Errors: when there is one that cannot be had. Where the network is needed and [`Fetcher::is_offline`], the
    /// error is [`fetch::NeedsNetwork`].
    pub(crate) acquire: fn(&Access<'_>) -> anyhow::Result<Option<Vec<u8>>>,
}

/// Every platform.
pub(crate) const PLATFORMS: &[Platform] = &[
    Platform { name: "file", after_cmdline: true, acquire: from_file },
    // A machine of metal is given its config by the kernel's command line, which was asked before.
    Platform { name: "metal", after_cmdline: true, acquire: |_| Ok(None) },
    // The first stage has asked all there is, the command line first, and hands on what it found.
    Platform { name: NODEZERO, after_cmdline: false, acquire: |access| read_present(&access.environment.handed_on) },
    Platform { name: "qemu", after_cmdline: true, acquire: from_fw_cfg },
];

/// A config as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acquired {
    /// Who had it: `cmdline`, `system`, or the platform.
    pub(crate) source: String,
    /// Its text.
    pub(crate) text: Vec<u8>,
}

/// The platform of that name.
pub(crate) fn find(name: &str) -> Option<&'static Platform> {
    PLATFORMS.iter().find(|platform| platform.name == name)
}

/// The machine's own config: from the kernel's command line, `user.ign` or the platform, whichever has one first.
///
/// # Errors
/// When there is one that cannot be had, or the platform is unknown.
pub(crate) fn acquire(name: &str, access: &Access<'_>) -> anyhow::Result<Option<Acquired>> {
    let platform = find(name).with_context(|| format!("{name} is not a valid platform"))?;
    let acquired = |source: &str, text| Some(Acquired { source: source.to_owned(), text });
    if platform.after_cmdline
        && let Some(text) = from_cmdline(access).context("asking the kernel command line")?
    {
        return Ok(acquired("cmdline", text));
    }
    for directory in &access.environment.system_config {
        let user = directory.join("user.ign");
        if let Some(text) = read_present(&user)? {
            access.log.info(format!("using {}", user.display()));
            return Ok(acquired("system", text));
        }
    }
    let text = (platform.acquire)(access).with_context(|| format!("asking platform {name}"))?;
    Ok(text.and_then(|text| acquired(name, text)))
}

/// Reads a config of the system, if there is one.
pub(super) fn read_present(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    match path.symlink_metadata() {
        Ok(_) => read_bounded(path, CONFIG_LIMIT as u64).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn from_cmdline(access: &Access<'_>) -> anyhow::Result<Option<Vec<u8>>> {
    let path = &access.environment.cmdline;
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let Some(source) = Cmdline::parse(&text)?.config_url else { return Ok(None) };
    access.log.info(format!("the kernel command line names {}", fetch::shown(&source)));
    let resource = Resource { source: Some(source), ..Resource::default() };
    access.fetcher.fetch(&resource, CONFIG_LIMIT).map(Some)
}

fn from_file(access: &Access<'_>) -> anyhow::Result<Option<Vec<u8>>> {
    let path = &access.environment.config_file;
    access.log.info(format!("using config file at {path:?}"));
    read_bounded(path, CONFIG_LIMIT as u64).map(Some)
}

fn from_fw_cfg(access: &Access<'_>) -> anyhow::Result<Option<Vec<u8>>> {
    let sys = &access.environment.sys;
    if !sys.join("firmware/qemu_fw_cfg").exists() {
        // Where the module is built in, or there is no such device, this does not help, and does no harm.
        if let Err(error) = command::run("modprobe", &["qemu_fw_cfg"], b"", |code| code == 0) {
            access.log.info(format!("loading qemu_fw_cfg: {error}"));
        }
    }
    let text = fw_cfg::read(sys).context("reading QEMU fw_cfg opt/com.coreos/config")?;
    if text.is_none() {
        access.log.info("QEMU fw_cfg holds no config");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_found_by_name() {
        for name in ["file", "metal", "nodezero", "qemu"] {
            assert_eq!(find(name).map(|platform| platform.name), Some(name));
        }
        for name in ["", "File", "moon"] {
            assert!(find(name).is_none(), "{name:?}");
        }
    }
}
