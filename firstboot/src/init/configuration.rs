//! Finding the configuration, and bringing up the network where that or the configuration needs it.
//!
//! Drivers of network devices and of drives that are not the own disk come from the verified root, which has all of
//! them; so the initrd needs none. Where there is USB, drives are given some seconds to appear: a hub asks its ports one
//! by one, and a stick is left alone for its first second. What the network was told is laid into `/run/systemd/network`,
//! so that the running system goes on with the same.

use std::cell::{OnceCell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::modules::{Loader, ModuleIndex};
use super::own_disk::OwnDisk;
use super::uevents::Uevents;
use super::{SYSROOT, modules_directory};
use crate::boot::{ConfigOrigin, RUN_DIRECTORY};
use crate::cmdline::Cmdline;
use crate::console;
use crate::disks;
use crate::ignition::config::types;
use crate::network::{self, NetworkConfig, Up};
use crate::sources::{self, Found, KernelMounts, Local, Patience, SourceEnv};
use crate::summary::{Failure, OrFail};

/// How long the network may take to come up.
const NETWORK_PATIENCE: Duration = Duration::from_secs(120);
/// How long a device that the kernel command line names may take to appear.
const DEVICE_PATIENCE: Duration = Duration::from_secs(60);
/// Behind USB all drives are there when nothing has appeared for this long, and how long that is waited for at most.
const USB_QUIET: Duration = Duration::from_millis(2500);
const USB_PATIENCE: Duration = Duration::from_secs(15);
/// Where systemd-networkd finds what one boot alone has.
const NETWORK_UNITS: &str = "/run/systemd/network";
/// Where names are looked up until systemd-resolved takes over: in the initrd, and in the new root, whose
/// `/etc/resolv.conf` leads there.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/stub-resolv.conf"];

/// What finds the configuration.
pub(crate) struct Finder<'a> {
    cmdline: &'a Cmdline,
    own: &'a OwnDisk,
    esp: &'a Path,
    /// The modules of the verified root.
    index: OnceCell<ModuleIndex>,
    up: RefCell<Option<Up>>,
}

impl<'a> Finder<'a> {
    /// Nothing is looked at yet. The new root is mounted.
    pub(crate) fn new(cmdline: &'a Cmdline, own: &'a OwnDisk, esp: &'a Path) -> Self {
        Self { cmdline, own, esp, index: OnceCell::new(), up: RefCell::new(None) }
    }

    /// Asks the sources in order. On a machine that was `configured` before, neither drives nor the network are.
    ///
    /// # Errors
    /// When a source is present and broken.
    pub(crate) fn find(&self, configured: bool) -> Result<(ConfigOrigin, Option<Vec<u8>>), Failure> {
        let mounts = KernelMounts { at: Path::new(RUN_DIRECTORY).join("drive") };
        let env = SourceEnv {
            cmdline: self.cmdline.config_url.as_deref(),
            sys: Path::new("/sys"),
            dev: Path::new("/dev"),
            own_disk: Some(&self.own.disk.name),
            esp: Some(self.esp),
            mounts: &mounts,
            device_patience: DEVICE_PATIENCE,
            patience: Patience::default(),
            metadata: None,
            nearest_only: configured,
            reveal_drives: &|| self.reveal_drives(),
            say: &|line| console::say(&format!("nodezero: {line}")),
        };
        let local = sources::local(&env).or_fail(BROKEN, CORRECT)?;
        let found = match local {
            Local::Settled(found) => found,
            // It was fetched when it was applied.
            Local::Needs(_) if configured => Found::None,
            Local::Needs(remote) => {
                console::say(&format!("nodezero: configuration: asking {remote}"));
                self.connect()?;
                sources::remote(&remote, &env).or_fail(BROKEN, CORRECT)?
            }
        };
        Ok(match found {
            Found::None => (ConfigOrigin::None, None),
            Found::Empty { source } => {
                console::say(&format!("nodezero: configuration: {source} has none"));
                (ConfigOrigin::None, None)
            }
            Found::Config { origin, content } => (origin, Some(content)),
        })
    }

    /// Brings up the network, unless it is up.
    ///
    /// # Errors
    /// When its words are wrong, or no link reaches a network.
    pub(crate) fn connect(&self) -> Result<(), Failure> {
        if self.up.borrow().is_some() {
            return Ok(());
        }
        let config = self.network()?;
        let modules: Vec<&str> = config.modules().into_iter().chain(["af_packet"]).collect();
        self.load_drivers(&modules);
        let mut say = |line: &str| console::say(&format!("nodezero: network: {line}"));
        let up = network::bring_up(&config, Instant::now() + NETWORK_PATIENCE, &mut say).or_fail(
            "the network cannot be brought up, and the configuration needs it",
            "check cables and the network's DHCP server, or name static addresses on the kernel command line or in \
             /nodezero/network on the ESP",
        )?;
        up.problems.iter().for_each(|problem| say(problem));
        let prepare = || -> anyhow::Result<()> {
            for path in RESOLVERS.map(PathBuf::from) {
                let directory = path.parent().context("a path without a directory")?;
                fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
                up.write_resolv_conf(&path)?;
            }
            // Certificate authorities, for what is fetched from here.
            let certificates = Path::new("/etc/ssl");
            if !certificates.exists() {
                std::os::unix::fs::symlink(Path::new(SYSROOT).join("etc/ssl"), certificates)?;
            }
            Ok(())
        };
        prepare().or_fail("the initrd cannot be written to", "report this with the image's version")?;
        self.up.replace(Some(up));
        Ok(())
    }

    /// Hands the network on to the running system, on every boot, whether it was brought up here or not.
    ///
    /// # Errors
    /// When its words are wrong.
    pub(crate) fn hand_on_network(&self) -> Result<(), Failure> {
        let config = self.network()?;
        let pins = self.up.borrow().as_ref().map(|up| up.pins.clone()).unwrap_or_default();
        let units = network::render_units(&config, &pins);
        let write = || -> anyhow::Result<()> {
            if units.is_empty() {
                return Ok(());
            }
            fs::create_dir_all(NETWORK_UNITS).with_context(|| format!("making {NETWORK_UNITS}"))?;
            network::write_units(&units, Path::new(NETWORK_UNITS))
        };
        write().or_fail("the network's units cannot be written", "report this with the image's version")
    }

    /// Takes away what names were looked up with here: systemd-resolved makes its own.
    ///
    /// # Errors
    /// What the file system answers.
    pub(crate) fn hand_over_names(&self) -> Result<(), Failure> {
        if self.up.borrow().is_none() {
            return Ok(());
        }
        let removed = fs::remove_file(RESOLVERS[1]).with_context(|| format!("removing {}", RESOLVERS[1]));
        removed.or_fail("the initrd cannot be written to", "report this with the image's version")
    }

    /// Loads what the disks of a configuration need: the drivers of all of them, file systems, mappers.
    pub(crate) fn load_for(&self, config: &types::Config) {
        let Some(storage) = &config.storage else { return };
        let formats = storage.filesystems.iter().flatten().filter_map(|entry| entry.format.as_deref());
        let mut names: Vec<String> = formats.map(|format| format!("fs-{format}")).collect();
        if storage.luks.iter().flatten().next().is_some() {
            names.extend(["dm-mod".to_owned(), "dm-crypt".to_owned()]);
        }
        let levels = storage.raid.iter().flatten().filter_map(|array| array.level.clone());
        names.extend(levels);
        let disks = storage.disks.iter().flatten().next().is_some();
        if disks || !names.is_empty() {
            self.load_drivers(&names.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }

    /// What the network shall be: by the kernel command line, else by the ESP's file.
    fn network(&self) -> Result<NetworkConfig, Failure> {
        let parse = || -> anyhow::Result<NetworkConfig> {
            let cmdline = fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?;
            let mounts = KernelMounts { at: Path::new(RUN_DIRECTORY).join("esp") };
            let file = sources::read_from_esp(self.esp, network::ESP_FILE, &mounts)?;
            let file = file.map(String::from_utf8).transpose().context("reading /nodezero/network on the ESP")?;
            Ok(NetworkConfig::parse(&cmdline, file.as_deref())?)
        };
        parse().or_fail(
            "the words for the network cannot be used",
            "correct them on the kernel command line or in /nodezero/network on the ESP, and restart",
        )
    }

    /// Brings all drives into view, and loads what mounts them.
    fn reveal_drives(&self) {
        let mut events = Uevents::listen();
        let mut loader = self.load_drivers(&["fs-iso9660", "fs-vfat", "fs-ext4"]);
        let sys = Path::new("/sys");
        let has_usb = fs::read_dir(sys.join("bus/usb/devices")).is_ok_and(|mut devices| devices.next().is_some());
        if has_usb {
            let mut shown = disks::shown();
            await_quiet(USB_QUIET, USB_PATIENCE, |deadline| {
                events.wait(deadline);
                let before = std::mem::replace(&mut shown, disks::shown());
                loader.load_all(sys) > 0 || before != shown
            });
        }
        console::to_kernel_log(&loader.take_log().join("\n"));
    }

    /// Loads modules by name, and the drivers of all devices. Gives what goes on with devices that appear later.
    fn load_drivers(&self, names: &[&str]) -> Loader<'_> {
        let index = self.index.get_or_init(|| {
            let directory = modules_directory();
            ModuleIndex::read(&Path::new(SYSROOT).join(directory.strip_prefix("/").unwrap_or(&directory)))
        });
        let mut loader = Loader::with_network(index, self.cmdline);
        for name in names {
            loader.load(name);
        }
        loader.load_all(Path::new("/sys"));
        console::to_kernel_log(&loader.take_log().join("\n"));
        loader
    }
}

/// Looks again and again, until nothing has changed for `quiet`, or `patience` is over. `look` waits a little first,
/// not past the given moment, and tells whether something changed.
fn await_quiet(quiet: Duration, patience: Duration, mut look: impl FnMut(Instant) -> bool) {
    let begin = Instant::now();
    let mut since = begin;
    loop {
        let deadline = (since + quiet).min(begin + patience);
        if Instant::now() >= deadline {
            return;
        }
        if look(deadline) {
            since = Instant::now();
        }
    }
}

const BROKEN: &str = "the configuration cannot be read";
const CORRECT: &str = "correct it, or remove it to start in maintenance mode, and restart";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_late_is_waited_for_but_not_for_ever() {
        let (quiet, pause) = (Duration::from_millis(200), Duration::from_millis(20));
        for (case, changes, patience, least) in [
            ("nothing comes", 0, Duration::from_secs(60), quiet),
            ("five come one after the other", 5, Duration::from_secs(60), quiet + 5 * pause),
            ("it never ends", usize::MAX, Duration::from_millis(400), Duration::from_millis(400)),
        ] {
            let (begin, mut seen) = (Instant::now(), 0);
            await_quiet(quiet, patience, |deadline| {
                std::thread::sleep(pause.min(deadline.saturating_duration_since(Instant::now())));
                seen += 1;
                seen <= changes
            });
            assert!(begin.elapsed() >= least, "{case}: {:?}", begin.elapsed());
            assert!(begin.elapsed() < Duration::from_secs(30) && seen > changes.min(5), "{case}: {seen}");
        }
    }
}
