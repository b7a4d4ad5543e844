//! Where the node's configuration comes from.
//!
//! In the design's order: the kernel command line ([`word`]), QEMU's [`fw_cfg`], the ESP of the own disk, a config
//! drive ([`drive`]), the metadata service ([`provider`]) of the provider that the firmware names ([`identity`]). The
//! first source that has one counts; one that is present and broken is an error, not a reason to ask the next.
//!
//! There are two passes, so that the network is brought up only for those who need it: [`local`] asks what needs none,
//! and says what is left to be asked; [`remote`] asks that. What is found is handed on as it is: it is parsed and
//! applied later.

mod content;
mod drive;
mod exchange;
pub(crate) mod fw_cfg;
mod identity;
mod label;
#[cfg(test)]
mod mock;
mod provider;
mod word;

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

pub(crate) use self::drive::{KernelMounts, Mounts};
pub(crate) use self::identity::Provider;
pub(crate) use self::provider::Patience;

use self::drive::Places;
use self::identity::{Dmi, detect};
use self::label::FileSystem;
use self::word::{Named, shown};
use crate::boot::ConfigOrigin;
use crate::ignition::config::types::{Ignition, Resource};
use crate::ignition::fetch::{Fetcher, needs_network};
use crate::ignition::log::Log;

/// The file on the ESP.
pub(crate) const ESP_FILE: &str = "nodezero/config.ign";
/// The specification whose rules hold for fetching what the kernel command line names.
const FETCH_SPECIFICATION: &str = "3.5.0";

/// What the sources need to know of the machine.
pub(crate) struct SourceEnv<'a> {
    /// What the kernel command line names, see [`crate::cmdline::Cmdline::config_url`].
    pub(crate) cmdline: Option<&'a str>,
    /// `/sys`.
    pub(crate) sys: &'a Path,
    /// `/dev`.
    pub(crate) dev: &'a Path,
    /// The kernel's name of the own disk, where no config drive is looked for.
    pub(crate) own_disk: Option<&'a str>,
    /// The device file of the own disk's ESP.
    pub(crate) esp: Option<&'a Path>,
    /// How drives are mounted.
    pub(crate) mounts: &'a dyn Mounts,
    /// How long is waited for a device that the kernel command line names.
    pub(crate) device_patience: Duration,
    /// How long is waited for a metadata service; of it, the total is also for what the command line names by URL.
    pub(crate) patience: Patience,
    /// Asked in place of the provider's own addresses.
    pub(crate) metadata: Option<SocketAddr>,
    /// Whether only the command line, `fw_cfg` and the ESP are asked: on a machine that has been configured.
    pub(crate) nearest_only: bool,
    /// Called once before drives are looked for, to bring them into view.
    pub(crate) reveal_drives: &'a dyn Fn(),
    /// Told what is being waited for.
    pub(crate) say: &'a dyn Fn(&str),
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// There is no source: maintenance mode.
    None,
    /// There is a source, and it says that there is no configuration: maintenance mode.
    Empty {
        /// Which, for the console.
        source: String,
    },
    /// A configuration.
    Config {
        /// Where it was.
        origin: ConfigOrigin,
        /// As it was; from drives and metadata services decompressed.
        content: Vec<u8>,
    },
}

/// The result of the first pass.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Local {
    /// It is settled.
    Settled(Found),
    /// It needs the network.
    Needs(Remote),
}

/// A source that needs the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Remote {
    /// What the kernel command line names.
    Url(String),
    /// A provider's metadata service.
    Provider(Provider),
}

impl fmt::Display for Remote {
    /// For the console: without what may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(&shown(url)),
            Self::Provider(provider) => write!(f, "metadata service of {provider}"),
        }
    }
}

/// Asks the sources that need no network, in order.
///
/// # Errors
/// When a source is present and broken; it names the source.
pub(crate) fn local(env: &SourceEnv<'_>) -> anyhow::Result<Local> {
    if let Some(word) = env.cmdline {
        return named(word, env);
    }
    let fw_cfg = fw_cfg::read(env.sys);
    if let Some(content) = usable(fw_cfg, "QEMU fw_cfg opt/com.coreos/config")? {
        let origin = ConfigOrigin::FwCfg { size: content.len() as u64 };
        return Ok(Local::Settled(Found::Config { origin, content }));
    }
    if let Some(content) = usable(read_esp(env), "/nodezero/config.ign on the ESP")? {
        let origin = ConfigOrigin::Esp { size: content.len() as u64 };
        return Ok(Local::Settled(Found::Config { origin, content }));
    }
    if env.nearest_only {
        return Ok(Local::Settled(Found::None));
    }
    (env.reveal_drives)();
    if let Some(drive) = drive::find(places(env), env.mounts, env.say)? {
        return Ok(Local::Settled(match drive.content {
            Some(content) => {
                let (label, device, size) = (drive.label, drive.device, content.len() as u64);
                Found::Config { origin: ConfigOrigin::Drive { label, device, size }, content }
            }
            None => Found::Empty { source: format!("config drive {} ({})", drive.label, drive.device.display()) },
        }));
    }
    Ok(match detect(&Dmi::read(env.sys)) {
        Some(provider) => Local::Needs(Remote::Provider(provider)),
        None => Local::Settled(Found::None),
    })
}

/// Asks a source that needs the network, which is up.
///
/// # Errors
/// When it does not answer within the patience, or what it answers is no configuration; it names the source.
pub(crate) fn remote(remote: &Remote, env: &SourceEnv<'_>) -> anyhow::Result<Found> {
    match remote {
        Remote::Url(url) => fetch(url, env),
        Remote::Provider(provider) => {
            let content = provider::user_data(*provider, env.metadata, env.patience, env.say)?;
            Ok(match content {
                Some(content) => {
                    let size = content.len() as u64;
                    Found::Config { origin: ConfigOrigin::Provider { provider: *provider, size }, content }
                }
                None => Found::Empty { source: remote.to_string() },
            })
        }
    }
}

fn places<'a>(env: &SourceEnv<'a>) -> Places<'a> {
    Places { sys: env.sys, dev: env.dev, own_disk: env.own_disk }
}

/// What the kernel command line names, if that needs no network.
fn named(word: &str, env: &SourceEnv<'_>) -> anyhow::Result<Local> {
    match Named::parse(word)? {
        Named::Url(url) if needs_network(&resource(&url)) => Ok(Local::Needs(Remote::Url(url))),
        Named::Url(url) => fetch(&url, env).map(Local::Settled),
        Named::File(_) if env.nearest_only => Ok(Local::Settled(Found::None)),
        Named::File(file) => {
            (env.reveal_drives)();
            let read = drive::read_named(&file, places(env), env.mounts, env.device_patience, env.say);
            let (device, content) = read.context("reading the configuration that the kernel command line names")?;
            let origin = ConfigOrigin::File { device, path: file.path, size: content.len() as u64 };
            Ok(Local::Settled(Found::Config { origin, content }))
        }
    }
}

/// Fetches what the kernel command line names by URL.
fn fetch(url: &str, env: &SourceEnv<'_>) -> anyhow::Result<Found> {
    let get = || {
        let settings = Ignition::new(FETCH_SPECIFICATION.to_owned());
        let fetcher = Fetcher::new(&settings, Some(env.patience.total), Log::Kernel)?;
        content::present(fetcher.fetch(&resource(url), content::LIMIT as usize)?)
    };
    let content = get()
        .with_context(|| format!("fetching the configuration that the kernel command line names, {}", shown(url)))?;
    Ok(Found::Config { origin: ConfigOrigin::Fetched { url: shown(url), size: content.len() as u64 }, content })
}

fn resource(url: &str) -> Resource {
    Resource { source: Some(url.to_owned()), ..Resource::default() }
}

/// The configuration on the ESP, if there is one.
fn read_esp(env: &SourceEnv<'_>) -> anyhow::Result<Option<Vec<u8>>> {
    env.esp.map_or(Ok(None), |device| read_from_esp(device, ESP_FILE, env.mounts))
}

/// A file of the ESP, if it is there.
///
/// # Errors
/// When the ESP cannot be mounted, or the file cannot be read or is too large.
pub(crate) fn read_from_esp(device: &Path, file: &str, mounts: &dyn Mounts) -> anyhow::Result<Option<Vec<u8>>> {
    drive::read_file(device, FileSystem::Vfat, file, mounts)
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::drive::tests::Machine;
    use super::mock::{Answer, Mock};
    use super::*;

    const CONFIG: &[u8] = b"{\"ignition\":{}}";
    const SHORT: Duration = Duration::from_millis(10);

    /// Runs `ask` with what is known of a machine.
    fn with<T>(
        machine: &Machine,
        cmdline: Option<&str>,
        esp: Option<&Path>,
        ask: impl FnOnce(&SourceEnv<'_>) -> T,
    ) -> T {
        let (sys, dev) = (machine.sys(), machine.dev());
        let patience = Patience { first_pause: SHORT, ..Patience::default() };
        ask(&SourceEnv {
            cmdline,
            sys: &sys,
            dev: &dev,
            own_disk: Some("vda"),
            esp,
            mounts: &machine.mounts,
            device_patience: SHORT,
            patience,
            metadata: None,
            nearest_only: false,
            reveal_drives: &|| {},
            say: &|_| {},
        })
    }

    fn config(origin: ConfigOrigin) -> Local {
        Local::Settled(Found::Config { origin, content: CONFIG.to_vec() })
    }

    /// A machine that has the sources of a level and all after it: 0 is `fw_cfg`, 4 is none.
    fn machine(level: usize) -> (Machine, Option<PathBuf>) {
        let mut machine = Machine::new();
        if level == 0 {
            fw_cfg::tests::write(&machine.sys(), str::from_utf8(CONFIG).expect("text"), "15\n");
        }
        let file: &[(&str, &[u8])] = if level <= 1 { &[(ESP_FILE, CONFIG)] } else { &[] };
        let esp = machine.add("vda/vda1", "ESP", file);
        if level <= 2 {
            machine.add("sdb", "ignition", &[("config.ign", CONFIG)]);
        }
        if level <= 3 {
            let dmi = machine.sys().join("class/dmi/id");
            fs::create_dir_all(&dmi).expect("directory");
            fs::write(dmi.join("sys_vendor"), "Hetzner\n").expect("file");
        }
        (machine, Some(esp))
    }

    #[test]
    fn the_first_source_that_has_one_counts() {
        let size = CONFIG.len() as u64;
        let url = "https://user:secret@h/c";
        for (case, level, cmdline, expected) in [
            ("a URL", 0, Some(url), Local::Needs(Remote::Url(url.into()))),
            ("fw_cfg", 0, None, config(ConfigOrigin::FwCfg { size })),
            ("the ESP", 1, None, config(ConfigOrigin::Esp { size })),
            ("a provider", 3, None, Local::Needs(Remote::Provider(Provider::Hetzner))),
            ("nothing", 4, None, Local::Settled(Found::None)),
        ] {
            let (machine, esp) = machine(level);
            let found = with(&machine, cmdline, esp.as_deref(), local).expect(case);
            assert_eq!(found, expected, "{case}");
        }
        let (machine, esp) = machine(2);
        let drive = ConfigOrigin::Drive { label: "ignition".into(), device: machine.dev().join("sdb"), size };
        assert_eq!(with(&machine, None, esp.as_deref(), local).expect("a drive"), config(drive));
        let named = ConfigOrigin::File { device: machine.dev().join("sdb"), path: "config.ign".into(), size };
        let word = Some("LABEL=ignition:/config.ign");
        assert_eq!(with(&machine, word, esp.as_deref(), local).expect("a file"), config(named));
    }

    #[test]
    fn a_broken_source_is_an_error_and_the_next_is_not_asked() {
        let broken_fw_cfg = |machine: &Machine| fw_cfg::tests::write(&machine.sys(), "", "0\n");
        let broken_esp = |machine: &Machine| {
            let esp = &machine.mounts.0[&machine.dev().join("vda1")];
            fs::create_dir_all(esp.join("nodezero")).expect("directory");
            fs::write(esp.join(ESP_FILE), "").expect("file");
        };
        let broken_drive = |machine: &Machine| {
            let drive = &machine.mounts.0[&machine.dev().join("sdb")];
            fs::write(drive.join("config.ign"), "#cloud-config").expect("file");
        };
        let nothing = |_: &Machine| {};
        type Case<'a> = (&'a str, usize, Option<&'a str>, &'a dyn Fn(&Machine), &'a str);
        let cases: [Case<'_>; 5] = [
            ("fw_cfg", 1, None, &broken_fw_cfg, "the configuration in QEMU fw_cfg opt/com.coreos/config is empty"),
            ("the ESP", 2, None, &broken_esp, "the configuration in /nodezero/config.ign on the ESP is empty"),
            ("a drive", 2, None, &broken_drive, "reading the config drive ignition"),
            (
                "a word",
                0,
                Some("ftp://h/c"),
                &nothing,
                "the kernel command line names a configuration by a URL of scheme",
            ),
            (
                "a file that is not there",
                0,
                Some("LABEL=x:/c"),
                &nothing,
                "reading the configuration that the kernel command line names: no disk but the own one",
            ),
        ];
        for (case, level, cmdline, break_it, expected) in cases {
            let (machine, esp) = machine(level);
            break_it(&machine);
            let error = format!("{:#}", with(&machine, cmdline, esp.as_deref(), local).expect_err(case));
            assert!(error.starts_with(expected), "{case}: {error}");
        }
    }

    #[test]
    fn an_answer_that_there_is_none_ends_the_search() {
        let (mut machine, esp) = machine(3);
        machine.add("sr0", "config-2", &[("openstack/latest/meta_data.json", b"{}")]);
        let device = machine.dev().join("sr0");
        let found = with(&machine, None, esp.as_deref(), local).expect("no user data");
        let source = format!("config drive config-2 ({})", device.display());
        assert_eq!(found, Local::Settled(Found::Empty { source }));
    }

    #[test]
    fn a_provider_is_asked_in_the_second_pass() {
        let (machine, esp) = machine(3);
        let ask = |status, body: &[u8]| {
            let answer = Answer::Say(status, body.to_vec());
            let mock = Mock::start(move |_| answer.clone());
            with(&machine, None, esp.as_deref(), |env| {
                let env = SourceEnv { metadata: Some(mock.address), ..*env };
                let Local::Needs(next) = local(&env).expect("nothing local") else { panic!("settled") };
                remote(&next, &env)
            })
        };
        let origin = ConfigOrigin::Provider { provider: Provider::Hetzner, size: CONFIG.len() as u64 };
        let content = CONFIG.to_vec();
        assert_eq!(ask(200, CONFIG).expect("a config"), Found::Config { origin, content });
        let source = "metadata service of hetzner".to_owned();
        assert_eq!(ask(404, b"").expect("none"), Found::Empty { source });
        let error = format!("{:#}", ask(403, b"").expect_err("refused"));
        assert_eq!(
            error,
            "asking the metadata service of hetzner: GET /hetzner/v1/userdata was answered with status 403"
        );
    }

    #[test]
    fn errors_of_fetching_show_no_secret() {
        let (machine, _) = machine(4);
        let url = "http://user:secret@127.0.0.1:9/c?key=secret".to_owned();
        let fetched = with(&machine, None, None, |env| {
            let patience = Patience { total: SHORT, ..env.patience };
            remote(&Remote::Url(url), &SourceEnv { patience, ..*env })
        });
        let error = format!("{:#}", fetched.expect_err("nobody is there"));
        let expected = "fetching the configuration that the kernel command line names, http://127.0.0.1:9/c: ";
        assert!(error.starts_with(expected) && !error.contains("secret"), "{error}");
    }
}
