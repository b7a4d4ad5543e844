//! Encrypted volumes: LUKS2 by `cryptsetup`, opened as `/dev/mapper/NAME`.
//!
//! Keys go through standard input, never through arguments or files. A volume is reused when the config has its key and
//! it matches in all that the config says; a volume that is bound by `clevis` never is, since nobody can tell whether
//! the binding is the one that the config asks for. Left out: keys in IBM's crypto cards (`cex`), an error.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::clevis;
use super::device::{self, Device};
use super::probe::{Content, Signature, probe};
use crate::command;
use crate::ignition::config::types::{Clevis, Luks};
use crate::ignition::fetch::Fetcher;
use crate::ignition::log::Log;

/// Where key files lie in the system.
const KEY_DIRECTORY: &str = "/etc/luks";

/// Random bytes of a key that is made here; twice as many characters, as `clevis` cannot take all bytes.
const KEY_BYTES: usize = 1024;

/// The largest key file that is taken: what `cryptsetup` reads.
const KEY_LIMIT: usize = 8 << 20;

/// `blkid`'s name for an encrypted volume.
const KIND: &str = "crypto_LUKS";

/// A volume's key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key(Vec<u8>);

/// A volume with its key, which is fetched or made before anything is written.
#[derive(Debug)]
pub(crate) struct Volume<'a> {
    config: &'a Luks,
    key: Key,
    /// Whether the key was made here.
    generated: bool,
}

/// What is done about a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// It is there and is opened.
    Open,
    /// It is made and opened.
    Format,
}

/// The part that is looked at of what `cryptsetup luksDump --dump-json-metadata` prints. Other fields are others'.
#[derive(Debug, Default, Deserialize)]
struct Dump {
    #[serde(default)]
    config: DumpConfig,
}

#[derive(Debug, Default, Deserialize)]
struct DumpConfig {
    #[serde(default)]
    flags: Vec<String>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}

impl Key {
    /// A new one.
    fn generate() -> anyhow::Result<Self> {
        let mut bytes = [0; KEY_BYTES];
        // The device waits, early in a boot, until the kernel has gathered randomness.
        File::open("/dev/random").and_then(|mut file| file.read_exact(&mut bytes)).context("reading /dev/random")?;
        Ok(Self(bytes.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect()))
    }
}

/// The device file of an open volume.
pub(crate) fn device_path(config: &Luks) -> PathBuf {
    Path::new("/dev/mapper").join(&config.name)
}

/// The clevis settings that ask for something.
pub(crate) fn binding(config: &Luks) -> Option<&Clevis> {
    let asks = |clevis: &&Clevis| {
        clevis.tpm2 == Some(true)
            || clevis.tang.as_ref().is_some_and(|tang| !tang.is_empty())
            || clevis.custom.as_ref().is_some_and(|custom| custom.pin.as_ref().is_some_and(|pin| !pin.is_empty()))
    };
    config.clevis.as_ref().filter(asks)
}

impl<'a> Volume<'a> {
    /// Fetches or makes the key.
    ///
    /// # Errors
    /// When it cannot be fetched, or the config asks for what is not supported.
    pub(crate) fn new(config: &'a Luks, fetcher: &Fetcher) -> anyhow::Result<Self> {
        let cex = config.cex.as_ref().and_then(|cex| cex.enabled) == Some(true);
        ensure!(!cex, "cex is not supported: this program does not run where these cards are");
        let source = |key_file: &&_| has_source(key_file);
        let (key, generated) = match config.key_file.as_ref().filter(source) {
            Some(key_file) => (Key(fetcher.fetch(key_file, KEY_LIMIT).context("fetching keyFile")?), false),
            None => (Key::generate()?, true),
        };
        ensure!(!key.0.is_empty(), "keyFile is empty");
        Ok(Self { config, key, generated })
    }

    /// The key file that the system shall have: path and contents in base64.
    pub(crate) fn key_file(&self) -> Option<(PathBuf, String)> {
        let kept = !(self.generated && binding(self.config).is_some());
        kept.then(|| (Path::new(KEY_DIRECTORY).join(&self.config.name), STANDARD.encode(&self.key.0)))
    }

    /// The device, as the config names it.
    pub(crate) fn device(&self) -> anyhow::Result<&'a str> {
        self.config.device.as_deref().context("a volume without a device")
    }

    /// Looks at the device and decides. Nothing is written.
    ///
    /// # Errors
    /// When something else is there and `wipeVolume` is not true, when the key does not open the volume that is there,
    /// and when the device would be written to and is in use.
    pub(crate) fn check(&self, device: &Device) -> anyhow::Result<Action> {
        let wipe = self.config.wipe_volume == Some(true);
        let content = if wipe { Content::Nothing } else { probe(&device.path)? };
        let action = self.decide(&content)?;
        match action {
            Action::Format => {
                if let Some(users) = device.usage()?.describe() {
                    bail!("it {users}");
                }
            }
            Action::Open => self.check_open(device).context("wipeVolume is not true, and it cannot be reused")?,
        }
        Ok(action)
    }

    /// Decides, given what is on the device.
    fn decide(&self, content: &Content) -> anyhow::Result<Action> {
        match content {
            Content::Nothing => Ok(Action::Format),
            Content::Found(found) if found.kind == KIND => {
                self.check_signature(found).with_context(|| {
                    format!("it holds {}, wipeVolume is not true, and it cannot be reused", content.describe())
                })?;
                Ok(Action::Open)
            }
            other => bail!("it holds {}, and wipeVolume is not true", other.describe()),
        }
    }

    /// Whether the volume that is there is one that may be reused.
    fn check_signature(&self, found: &Signature) -> anyhow::Result<()> {
        ensure!(found.version == "2", "its version is {}, only LUKS2 is reused", found.version);
        ensure!(binding(self.config).is_none(), "clevis is specified");
        ensure!(!self.generated, "keyFile is not specified");
        if let Some(label) = self.config.label.as_ref().filter(|label| **label != found.label) {
            bail!("its label is {:?}, specified is {label:?}", found.label);
        }
        if let Some(uuid) = self.config.uuid.as_ref().filter(|uuid| !uuid.eq_ignore_ascii_case(&found.uuid)) {
            bail!("its UUID is {:?}, specified is {uuid:?}", found.uuid);
        }
        Ok(())
    }

    /// Whether discarding is set as specified and the key fits.
    fn check_open(&self, device: &Device) -> anyhow::Result<()> {
        let path = device.argument()?;
        let dump = command::run("cryptsetup", &["luksDump", "--dump-json-metadata", path], b"", |code| code == 0)?;
        let dump: Dump = serde_json::from_slice(&dump.stdout).context("parsing the volume's metadata")?;
        let (discard, wanted) = (has_discard(&dump), self.config.discard == Some(true));
        ensure!(discard == wanted, "discarding is set to {discard}, specified is {wanted}");
        let arguments = ["open", "--test-passphrase", "--key-file", "-", path];
        command::run("cryptsetup", &arguments, &self.key.0, |code| code == 0).context("trying the key")?;
        Ok(())
    }

    /// Looks, decides, makes the volume where that is needed, and opens it.
    ///
    /// # Errors
    /// As [`Self::check`], and when a program fails.
    pub(crate) fn apply(&self, fetcher: &Fetcher, log: Log) -> anyhow::Result<()> {
        let device = Device::find(Path::new(self.device()?))?;
        let path = device.argument()?;
        if self.is_open_on(&device) {
            log.info(format_args!("{} is open", self.config.name));
            return Ok(());
        }
        let action = self.check(&device)?;
        if action == Action::Format {
            if self.config.wipe_volume == Some(true) {
                command::run("wipefs", &["--all", path], b"", |code| code == 0)?;
            }
            self.cryptsetup(&format_arguments(self.config, path), log)?;
        }
        self.cryptsetup(&open_arguments(self.config, path), log)?;
        if action == Action::Format
            && let Some(binding) = binding(self.config)
        {
            self.bind(binding, path, fetcher, log)?;
        }
        device::settle(&device)?;
        device::wait_for(&[device_path(self.config)], device::PATIENCE, log)
    }

    /// Binds a new volume to what shall unlock it, tries that, and takes a key away that was made here for this alone.
    fn bind(&self, binding: &Clevis, path: &str, fetcher: &Fetcher, log: Log) -> anyhow::Result<()> {
        clevis::bind(binding, path, &self.key.0, fetcher, log).context("binding clevis")?;
        if clevis::can_unlock_now(binding) {
            self.cryptsetup(&["close".to_owned(), self.config.name.clone()], log)?;
            clevis::unlock(path, &self.config.name, log).context("unlocking by clevis")?;
        }
        if self.generated {
            self.cryptsetup(&["luksRemoveKey", path, "--key-file", "-"].map(str::to_owned), log)?;
        }
        Ok(())
    }

    /// Whether the volume is open, with this device below it.
    fn is_open_on(&self, device: &Device) -> bool {
        Device::find(&device_path(self.config)).is_ok_and(|open| device.is_held_by(&open))
    }

    /// Runs `cryptsetup` with the key as its standard input.
    fn cryptsetup(&self, arguments: &[String], log: Log) -> anyhow::Result<()> {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        log.info(format_args!("running cryptsetup {}", arguments.join(" ")));
        command::run("cryptsetup", &arguments, &self.key.0, |code| code == 0)?;
        Ok(())
    }
}

fn has_source(key_file: &crate::ignition::config::types::Resource) -> bool {
    key_file.source.as_ref().is_some_and(|source| !source.is_empty())
}

fn has_discard(dump: &Dump) -> bool {
    dump.config.flags.iter().any(|flag| flag == "allow-discards")
}

fn format_arguments(config: &Luks, path: &str) -> Vec<String> {
    let fixed = ["luksFormat", "--batch-mode", "--type", "luks2", "--key-file", "-"];
    let mut arguments: Vec<String> = fixed.into_iter().map(str::to_owned).collect();
    for (option, value) in [("--label", &config.label), ("--uuid", &config.uuid)] {
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            arguments.extend([option.to_owned(), value.clone()]);
        }
    }
    arguments.extend(config.options.clone().unwrap_or_default());
    arguments.push(path.to_owned());
    arguments
}

/// Flags are written into the volume, for those who open it later.
fn open_arguments(config: &Luks, path: &str) -> Vec<String> {
    let fixed = ["luksOpen", path, &config.name, "--key-file", "-", "--persistent"];
    let mut arguments: Vec<String> = fixed.into_iter().map(str::to_owned).collect();
    if config.discard == Some(true) {
        arguments.push("--allow-discards".to_owned());
    }
    arguments.extend(config.open_options.clone().unwrap_or_default());
    arguments
}

#[cfg(test)]
mod tests;
