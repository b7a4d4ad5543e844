//! Becoming what the configuration says: Ignition's stages with the new root as their root directory, once.
//!
//! When, is what [`super::record`] decides. Before anything is changed the whole configuration is fetched and validated.
//! The stages are processes of their own, run by this same program from the verified root and in it, so that the
//! programs that they call are those of the image. Their log goes to the kernel's log and to
//! `/run/nodezero/state/nodezero/ignition.log`, on `state`; a failure shows its last lines.
//!
//! systemd applies presets only where there is no machine-id, which the first stage has made; so units that the
//! configuration enables or disables are so by `systemctl` in the new root, whatever the image's presets say.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};

use super::record::{Decision, Progress, Record, decide};
use super::{state, undo};
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
const REFUSED: &str = "the configuration is refused";
const CORRECT: &str = "correct the configuration and restart; nothing was changed";
const AGAIN: &str = "correct the configuration and restart: it is then applied from the start";

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
    let begun = undo::begin(
        &state::mount_point(),
        &config,
        record,
        Record { progress: Progress::Begun, sha256, origin, first, made: BTreeMap::new() },
    );
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
        let closed = close_volumes(&self.sysroot, &self.config);
        closed.or_fail("the configuration's encrypted volumes cannot be closed", remedy)?;
        let complete = self.complete();
        complete.or_fail("the record of the applied configuration cannot be written", state::REPAIR)?;
        let forgotten = forget(&self.sysroot);
        forgotten.or_fail("the configuration cannot be removed from memory", "report this with the image's version")?;
        Ok(self.record.origin)
    }

    /// Says in the record that all is done, and what was made.
    fn complete(&mut self) -> anyhow::Result<()> {
        for (path, made) in &mut self.record.made {
            *made = undo::digest(&state::mount_point(), path)?;
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
        CommandError::Status { status, output, .. } => anyhow::anyhow!("stage {stage} ended with {status}{output}"),
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

/// Closes the LUKS volumes that the stage `disks` has opened, which systemd opens again by `/etc/crypttab`. There is no
/// udev here, and a volume that was opened without it is none that systemd would ever take for ready.
fn close_volumes(sysroot: &Path, config: &types::Config) -> anyhow::Result<()> {
    let volumes = config.storage.iter().flat_map(|storage| storage.luks.iter().flatten());
    for volume in volumes {
        run_in_root(sysroot, "/usr/sbin/cryptsetup", &["close", &volume.name], |code| code == 0)
            .with_context(|| format!("LUKS volume {:?}", volume.name))?;
    }
    Ok(())
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

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_what_matters_of_the_log() {
        let log = "INFO     : one\nERR      : two\nINFO     : three\nCRITICAL : four\n";
        assert_eq!(last_words(log), "ERR      : two\nCRITICAL : four");
        assert_eq!(last_words("a\nb"), "a\nb", "lines without a level are shown");
        assert_eq!(last_words("INFO     : one"), "INFO     : one", "rather this than nothing");
        let long: String = (0..100).map(|number| format!("ERR {number}\n")).collect();
        assert!(last_words(&long).starts_with("ERR 88"), "the end counts");
    }
}
