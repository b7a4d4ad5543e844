//! Becoming what the configuration says: Ignition's stages with the new root as their root directory, once.
//!
//! When, is what [`super::record`] decides. Before anything is changed the whole configuration is fetched and validated.
//! The stages are processes of their own, run by this same program from the verified root and in it, so that the
//! programs that they call are those of the image. Their log goes to the kernel's log and to
//! `/run/nodezero/state/nodezero/ignition.log`, on `state`; a failure shows its last lines.
//!
//! systemd applies presets only where there is no machine-id, which the first stage has made; so units that the
//! configuration enables or disables are so by `systemctl` in the new root, whatever the image's presets say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::record::{Decision, Progress, Record, decide};
use super::state;
use crate::boot::{CONFIG_FILE, ConfigOrigin, RUN_DIRECTORY};
use crate::command::{CommandError, run_in_root};
use crate::console;
use crate::files::write_atomically;
use crate::ignition::config::types;
use crate::summary::{Failure, OrFail};

/// This program, in the new root.
const PROGRAM: &str = "/usr/bin/nodezero-firstboot";
/// What the stages hand on to each other. All of them may hold secrets, and none of them outlives the first stage.
const CACHE: &str = "/run/nodezero/ignition.json";
const STATE: &str = "/run/nodezero/ignition-state.json";
const NEED_NETWORK: &str = "/run/nodezero/neednet";
/// How long fetching one thing may take, where the configuration sets no time of its own.
const FETCH_TIMEOUT: &str = "10m";
/// Lines of a failed stage that its summary shows.
const SHOWN: usize = 12;
/// The log's name, beside the record.
const LOG: &str = "ignition.log";
/// Directories of the new root, but for `/etc`, that a configuration may write to: they all lie in `/var`.
const WRITABLE: [&str; 8] = ["var", "home", "root", "opt", "srv", "mnt", "media", "usr/local"];

const REFUSED: &str = "the configuration is refused";
const CORRECT: &str = "correct the configuration and restart; nothing was changed";
const AGAIN: &str = "correct the configuration and restart: it is then applied from the start";

/// What stays in `/etc` when a configuration takes another's place: keys and names by which others know this machine,
/// and accounts that are half made, which the next attempt takes back.
const KEPT: [&str; 8] = [
    "ssh/ssh_host_ed25519_key",
    "ssh/ssh_host_ed25519_key.pub",
    "luks",
    "iscsi/initiatorname.iscsi",
    "rancher/node",
    "machine-id",
    ".ignition-accounts",
    ".pwd.lock",
];

/// A configuration that was found, and is to be applied.
#[derive(Debug)]
pub(crate) struct Application {
    sysroot: PathBuf,
    config: types::Config,
    record: Record,
}

/// What became of the configuration on this boot.
#[derive(Debug)]
pub(crate) enum Provision {
    /// There is none, or it stays as it was applied: where it came from.
    Settled(ConfigOrigin),
    /// It is to be applied now.
    Apply(Box<Application>),
}

/// What the record says before any configuration is looked for.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn read_record() -> Result<Option<Record>, Failure> {
    Record::read(&identity()).or_fail(
        "the record of the applied configuration cannot be used",
        "start a rescue system and look at nodezero/ignition.json in the partition `state`; without that file the \
         configuration is applied as if for the first time, and all of /var is lost",
    )
}

/// Decides what is to be done with what was found; validates it, and takes back what an earlier application made where
/// it is to be applied. `/etc` must not be mounted yet. `connect` brings up the network.
///
/// # Errors
/// When the configuration is refused or cannot be fetched, with nothing changed.
pub(crate) fn prepare(
    sysroot: &Path,
    record: Option<Record>,
    origin: ConfigOrigin,
    content: Option<&[u8]>,
    connect: &mut dyn FnMut() -> Result<(), Failure>,
) -> Result<Provision, Failure> {
    let digest = content.map(|content| hex(&Sha256::digest(content)));
    let (first, content, sha256) = match (decide(record.as_ref(), digest.as_deref()), content, digest) {
        (Decision::Apply { first }, Some(content), Some(digest)) => (first, content, digest),
        (Decision::Lost, _, _) => {
            return Err(Failure::new(
                "the configuration that was being applied is gone",
                "applying it was interrupted, and none is found on this start",
                "provide the configuration again, and restart",
            ));
        }
        (Decision::Maintenance | Decision::Keep | Decision::Apply { .. }, _, _) => {
            return Ok(Provision::Settled(record.map_or(origin, |record| record.origin)));
        }
    };
    hand_on(content).or_fail("the configuration cannot be handed on", "restart; report this if it stays")?;
    let correct =
        if record.as_ref().is_some_and(|record| record.progress == Progress::Begun) { AGAIN } else { CORRECT };
    begin_log();
    run_stage(sysroot, "fetch-offline").or_fail(REFUSED, correct)?;
    let needs_network = sysroot.join(NEED_NETWORK.trim_start_matches('/')).exists();
    if needs_network {
        connect()?;
    }
    // Contents alone may need the network; then the config is complete without it.
    if !cache(sysroot).exists() {
        console::say("nodezero: ignition: fetching what the configuration refers to");
        run_stage(sysroot, "fetch").or_fail(
            "the configuration cannot be fetched, or is refused",
            "correct the configuration, or make sure that what it refers to can be reached from here, and restart",
        )?;
    }
    run_stage(sysroot, "kargs").or_fail(REFUSED, correct)?;
    let config = read_cache(sysroot).or_fail("the configuration cannot be read back", "report this")?;
    refuse_what_is_done_once(&config, first)?;
    let begun =
        begin(&config, record, Record { progress: Progress::Begun, sha256, origin, first, made: BTreeMap::new() });
    let record = begun.or_fail("applying the configuration cannot be begun", state::REPAIR)?;
    Ok(Provision::Apply(Box::new(Application { sysroot: sysroot.to_owned(), config, record })))
}

impl Application {
    /// The configuration, without what the image itself has.
    pub(crate) fn config(&self) -> &types::Config {
        &self.config
    }

    /// Applies the configuration. `/etc` and `/var` are mounted.
    ///
    /// # Errors
    /// When a stage fails; the next start begins anew.
    pub(crate) fn apply(mut self) -> Result<ConfigOrigin, Failure> {
        let remedy = "correct the configuration or what it names, and restart: it is then applied from the start";
        for stage in ["disks", "mount", "files"] {
            run_stage(&self.sysroot, stage)
                .or_fail(&format!("the configuration's stage {stage} ended early"), remedy)?;
        }
        let enabled = enable_units(&self.sysroot, &self.config);
        enabled.or_fail("the configuration's units cannot be enabled", remedy)?;
        run_stage(&self.sysroot, "umount").or_fail("the configuration's file systems cannot be unmounted", remedy)?;
        let complete = self.complete();
        complete.or_fail("the record of the applied configuration cannot be written", state::REPAIR)?;
        let forgotten = forget(&self.sysroot);
        forgotten.or_fail("the configuration cannot be removed from memory", "report this with the image's version")?;
        Ok(self.record.origin)
    }

    /// Says in the record that all is done, and what was made.
    fn complete(&mut self) -> anyhow::Result<()> {
        for (path, made) in &mut self.record.made {
            *made = digest(path)?;
        }
        self.record.made.retain(|_, made| made.is_some());
        // What was made is on the disk before the record says so.
        rustix::fs::sync();
        self.record.progress = Progress::Complete;
        self.record.write(&identity())
    }
}

/// Refuses what must not happen again on a machine that has run, and what could not be kept.
fn refuse_what_is_done_once(config: &types::Config, first: bool) -> Result<(), Failure> {
    let Some(storage) = &config.storage else { return Ok(()) };
    let wiped = |flag: Option<bool>| flag == Some(true);
    let mut wipes = Vec::new();
    for (index, disk) in storage.disks.iter().flatten().enumerate() {
        if wiped(disk.wipe_table) {
            wipes.push(format!("$.storage.disks.{index}.wipeTable"));
        }
        let partitions = disk.partitions.iter().flatten().enumerate();
        wipes.extend(
            partitions
                .filter(|(_, entry)| wiped(entry.wipe_partition_entry))
                .map(|(partition, _)| format!("$.storage.disks.{index}.partitions.{partition}.wipePartitionEntry")),
        );
    }
    let filesystems = storage.filesystems.iter().flatten().enumerate();
    wipes.extend(
        filesystems
            .filter(|(_, entry)| wiped(entry.wipe_filesystem))
            .map(|(index, _)| format!("$.storage.filesystems.{index}.wipeFilesystem")),
    );
    let volumes = storage.luks.iter().flatten().enumerate();
    wipes.extend(
        volumes
            .clone()
            .filter(|(_, entry)| wiped(entry.wipe_volume))
            .map(|(index, _)| format!("$.storage.luks.{index}.wipeVolume")),
    );
    if !first && !wipes.is_empty() {
        return Err(Failure::new(
            "the configuration would wipe disks of a machine that has run",
            format!("another configuration was applied before, and this one has {}", wipes.join(", ")),
            "take these fields out of the configuration, or wipe the disk yourself; wiping is for a first boot",
        ));
    }
    let keyless = volumes.filter(|(_, entry)| entry.key_file.is_none() && entry.clevis.is_none());
    let keyless: Vec<String> = keyless.map(|(index, _)| format!("$.storage.luks.{index}.keyFile")).collect();
    if !keyless.is_empty() {
        return Err(Failure::new(
            REFUSED,
            format!("{} is missing: a key that is made here could be lost with the power", keyless.join(", ")),
            "give the volume a keyFile or clevis",
        ));
    }
    Ok(())
}

/// Where the node's identity and the record are.
fn identity() -> PathBuf {
    state::mount_point().join("nodezero")
}

fn hand_on(content: &[u8]) -> anyhow::Result<()> {
    write_atomically(&Path::new(RUN_DIRECTORY).join(CONFIG_FILE), content, 0o600)
}

/// Removes what may hold secrets.
fn forget(sysroot: &Path) -> anyhow::Result<()> {
    let config = format!("{RUN_DIRECTORY}/{CONFIG_FILE}");
    for path in [CACHE, STATE, NEED_NETWORK, &config] {
        match fs::remove_file(sysroot.join(path.trim_start_matches('/'))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {path}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Runs one stage in the new root, and keeps its log.
fn run_stage(sysroot: &Path, stage: &str) -> anyhow::Result<()> {
    let arguments = [
        "ignition",
        "--platform",
        "nodezero",
        "--stage",
        stage,
        "--root",
        "/",
        "--config-cache",
        CACHE,
        "--state-file",
        STATE,
        "--neednet",
        NEED_NETWORK,
        "--fetch-timeout",
        FETCH_TIMEOUT,
        "--log-to-stdout",
    ];
    let output = run_in_root(sysroot, PROGRAM, &arguments, |_| true).map_err(|error| match error {
        CommandError::Start { source, .. } => anyhow::Error::from(source).context("starting Ignition's stages"),
        // Killed: by the kernel for want of memory, most likely.
        CommandError::Status { status, .. } => anyhow::anyhow!("stage {stage} ended with {status}"),
    })?;
    let log = [output.stdout, output.stderr].concat();
    let log = String::from_utf8_lossy(&log);
    console::to_kernel_log(&log);
    // The log helps a person; the machine does not depend on it.
    let _ = keep_log(stage, &log);
    anyhow::ensure!(output.status.success(), "stage {stage}:\n{}", last_words(&log));
    Ok(())
}

/// The lines of a log that say why a stage failed: those above the level of information, else the last ones.
fn last_words(log: &str) -> String {
    let grave = |line: &&str| !line.starts_with("DEBUG") && !line.starts_with("INFO");
    let mut lines: Vec<&str> = log.lines().filter(grave).collect();
    if lines.is_empty() {
        lines = log.lines().collect();
    }
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}

/// Begins a log for this attempt.
fn begin_log() {
    // An old one that stays is longer, not wrong.
    let _ = fs::remove_file(identity().join(LOG));
}

/// Adds to the log on `state`.
fn keep_log(stage: &str, log: &str) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(identity().join(LOG))?;
    file.write_all(format!("--- {stage}\n{log}").as_bytes())?;
    Ok(())
}

/// The config as stages hand it on.
fn cache(sysroot: &Path) -> PathBuf {
    sysroot.join(CACHE.trim_start_matches('/'))
}

fn read_cache(sysroot: &Path) -> anyhow::Result<types::Config> {
    let path = cache(sysroot);
    let json = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&json).with_context(|| format!("parsing {}", path.display()))
}

/// Writes the new record, and takes back what an earlier application made: all of `/etc` but [`KEPT`], and of `/var`
/// either everything, when the system has never run, or what is still as it was made.
fn begin(config: &types::Config, earlier: Option<Record>, mut record: Record) -> anyhow::Result<Record> {
    let earlier = earlier.map(|record| record.made).unwrap_or_default();
    for (path, made) in earlier {
        // What something else has changed since is data, and no longer ours to take back.
        let found = digest(&path)?;
        if made.is_none() || found.is_none() || found == made {
            record.made.insert(path, None);
        }
    }
    for path in paths(config).into_iter().filter(|path| !path.starts_with("/etc")) {
        if digest(&path)?.is_none() {
            record.made.insert(path, None);
        }
    }
    record.write(&identity())?;
    let state = state::mount_point();
    reset_etc(&state.join("etc"))?;
    if record.first {
        empty(&state.join("var"))?;
    } else {
        record.made.keys().try_for_each(|path| remove(path))?;
    }
    // The image's own part of /var is laid in again.
    let marker = identity().join("factory-var");
    if marker.exists() {
        fs::remove_file(&marker).with_context(|| format!("removing {}", marker.display()))?;
    }
    rustix::fs::sync();
    Ok(record)
}

/// Empties the upper layer of `/etc` but for [`KEPT`], which wait aside meanwhile: whatever is found there was put there
/// by an attempt that was cut short.
fn reset_etc(etc: &Path) -> anyhow::Result<()> {
    let (upper, aside) = (etc.join("upper"), etc.join("kept"));
    fs::create_dir_all(&aside).with_context(|| format!("making {}", aside.display()))?;
    let carry = |from: &Path, to: &Path| -> anyhow::Result<()> {
        for name in KEPT {
            let (source, target) = (from.join(name), to.join(name));
            if fs::symlink_metadata(&source).is_err() || fs::symlink_metadata(&target).is_ok() {
                continue;
            }
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
            }
            fs::rename(&source, &target).with_context(|| format!("keeping {}", source.display()))?;
        }
        rustix::fs::sync();
        Ok(())
    };
    carry(&upper, &aside)?;
    empty(&upper)?;
    empty(&etc.join("work"))?;
    carry(&aside, &upper)?;
    fs::remove_dir_all(&aside).with_context(|| format!("removing {}", aside.display()))
}

/// Files and links of a configuration, and its users' keys.
fn paths(config: &types::Config) -> BTreeSet<PathBuf> {
    let storage = config.storage.iter();
    let files =
        storage.clone().flat_map(|storage| storage.files.iter().flatten()).map(|file| PathBuf::from(&file.path));
    let links = storage.flat_map(|storage| storage.links.iter().flatten()).map(|link| PathBuf::from(&link.path));
    // A key that a later configuration takes away must not stay.
    let users = config.passwd.iter().flat_map(|passwd| passwd.users.iter().flatten());
    let keys =
        users.filter(|user| user.ssh_authorized_keys.as_ref().is_some_and(|keys| !keys.is_empty())).map(|user| {
            let home = match (&user.home_dir, user.name.as_str()) {
                (Some(home), _) if !home.is_empty() => PathBuf::from(home),
                (_, "root") => PathBuf::from("/root"),
                (_, name) => Path::new("/home").join(name),
            };
            home.join(".ssh/authorized_keys.d/ignition")
        });
    files.chain(links).chain(keys).collect()
}

/// Removes everything below a directory, which stays.
fn empty(directory: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("listing {}", directory.display())),
    };
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", directory.display()))?.path();
        let directory = fs::symlink_metadata(&path)?.is_dir();
        let removed = if directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// The part of the new root that a path lies in, seen from `state`, on which neither `/etc` nor `/var` is mounted yet:
/// the top-level links of the image lead into `/var`.
fn on_state(path: &Path) -> Option<PathBuf> {
    let path = path.strip_prefix("/").ok()?;
    let top = WRITABLE.iter().find(|top| path.starts_with(top))?;
    let rest = path.strip_prefix(top).ok()?;
    let place = match *top {
        "var" => PathBuf::from("var"),
        "root" => PathBuf::from("var/roothome"),
        "usr/local" => PathBuf::from("var/usrlocal"),
        top => Path::new("var").join(top),
    };
    Some(place.join(rest))
}

/// The directory that a path lies in, and its name there. Links never lead out of `state`.
fn parent(path: &Path) -> Option<(OwnedFd, PathBuf)> {
    let place = on_state(path)?;
    let (directory, name) = (place.parent()?, place.file_name()?);
    let state = File::open(state::mount_point()).ok()?;
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat2(&state, directory, flags, Mode::empty(), ResolveFlags::BENEATH).ok()?;
    Some((opened, name.into()))
}

/// A digest of a file's content or a link's target; `None` where there is neither.
///
/// # Errors
/// When it is there and cannot be read.
fn digest(path: &Path) -> anyhow::Result<Option<String>> {
    let Some((directory, name)) = parent(path) else { return Ok(None) };
    let reading = || format!("reading {}", path.display());
    match rustix::fs::readlinkat(&directory, &name, Vec::new()) {
        Ok(target) => return Ok(Some(format!("link {}", hex(&Sha256::digest(target.as_bytes()))))),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        // No link.
        Err(Errno::INVAL) => {}
        Err(error) => return Err(error).with_context(reading),
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut file = File::from(rustix::fs::openat(&directory, &name, flags, Mode::empty()).with_context(reading)?);
    if file.metadata().with_context(reading)?.is_dir() {
        return Ok(Some("directory".to_owned()));
    }
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).with_context(reading)? {
            0 => return Ok(Some(format!("file {}", hex(&hash.finalize())))),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Removes a file or link, if it is there.
fn remove(path: &Path) -> anyhow::Result<()> {
    let Some((directory, name)) = parent(path) else { return Ok(()) };
    match rustix::fs::unlinkat(&directory, &name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
    }
}

/// Enables and disables units as the configuration says.
fn enable_units(sysroot: &Path, config: &types::Config) -> anyhow::Result<()> {
    let units = config.systemd.iter().flat_map(|systemd| systemd.units.iter().flatten());
    for unit in units {
        let Some(enabled) = unit.enabled else { continue };
        let verb = if enabled { "enable" } else { "disable" };
        run_in_root(sysroot, "/usr/bin/systemctl", &["--root=/", verb, &unit.name], |code| code == 0)?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_on_state_whatever_link_leads_there() {
        for (path, expected) in [
            ("/var/lib/x", Some("var/lib/x")),
            ("/root/.profile", Some("var/roothome/.profile")),
            ("/home/core/.ssh/authorized_keys", Some("var/home/core/.ssh/authorized_keys")),
            ("/usr/local/bin/tool", Some("var/usrlocal/bin/tool")),
            ("/mnt/a", Some("var/mnt/a")),
            ("/etc/hostname", None),
            ("/usr/lib/x", None),
            ("/various", None),
        ] {
            assert_eq!(on_state(Path::new(path)), expected.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn a_failure_shows_what_matters_of_the_log() {
        let log = "INFO     : one\nERR      : two\nINFO     : three\nCRITICAL : four\n";
        assert_eq!(last_words(log), "ERR      : two\nCRITICAL : four");
        assert_eq!(last_words("a\nb"), "a\nb", "lines without a level are shown");
        assert_eq!(last_words("INFO     : one"), "INFO     : one", "rather this than nothing");
        let long: String = (0..100).map(|number| format!("ERR {number}\n")).collect();
        assert!(last_words(&long).starts_with("ERR 88"), "the end counts");
    }

    #[test]
    fn emptying_keeps_the_directory_and_follows_no_link() {
        let root = tempfile::tempdir().expect("tempdir");
        let (upper, other) = (root.path().join("upper"), root.path().join("other"));
        fs::create_dir_all(upper.join("a/b")).expect("directory");
        fs::create_dir(&other).expect("directory");
        fs::write(other.join("file"), "").expect("file");
        std::os::unix::fs::symlink(&other, upper.join("link")).expect("link");
        empty(&upper).expect("emptied");
        assert_eq!(fs::read_dir(&upper).expect("listed").count(), 0);
        assert!(other.join("file").exists());
        empty(&root.path().join("none")).expect("what is not there is empty");
    }
}
