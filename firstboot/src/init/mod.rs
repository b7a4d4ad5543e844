//! The first stage: `/init` of the initrd, from the kernel's hands to systemd's.
//!
//! Each stage is a module; this one is their order, their times and what happens when one fails. Programs that a stage
//! needs (mkfs, fsck) run from the verified root, which is mounted first. The own disk is written to only to finish its
//! partition table and its `state`; other disks only by the configuration's own stages.
//!
//! A failure ends in a summary on all consoles, repeated every minute. There is no shell. The machine stays so, unless
//! `nodezero.panic=SECONDS` on the kernel command line has it restart.

mod configuration;
mod device_mapper;
mod factory;
mod listed;
mod modalias;
pub(crate) mod modules;
mod mounts;
mod own_disk;
mod partitions;
mod provision;
mod record;
mod root;
mod state;
mod switch;
mod uevents;
mod undo;

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use disk::layout::StateStep;
use verity::RootHash;

use self::configuration::Finder;
use self::listed::{List, Listed};
use self::modules::{Loader, ModuleIndex};
use self::own_disk::{OwnDisk, Wanted};
use self::partitions::Partitions;
use self::provision::Provision;
use self::record::Progress;
use self::root::Root;
use crate::boot::{Boot, BootDisk, RUN_DIRECTORY, StageTime, StateOrigin, uptime_ms};
use crate::cmdline::Cmdline;
use crate::console;
use crate::run::time;
use crate::summary::{Failure, OrFail};

/// How long after a failure the machine restarts, for whoever fails.
static RESTART_AFTER: OnceLock<Option<Duration>> = OnceLock::new();
/// Where the new root is built.
const SYSROOT: &str = "/sysroot";
/// Names of modules that are loaded on every machine, one on a line.
const MODULES_LOAD: &str = "/etc/nodezero/modules-load";
/// How many modules of the list are loaded at once: one that takes long, and those beside it.
const LISTED_AT_ONCE: usize = 2;
/// The alias of everything that hashes as dm-verity needs it.
const SHA256: &str = "crypto-sha256";
/// There where the firmware describes QEMU's `fw_cfg`.
const FW_CFG_DEVICE: &str = "/sys/bus/acpi/devices/QEMU0002:00";
/// How often the summary of a failure is shown.
const REPEAT: Duration = Duration::from_secs(60);

/// Runs the first stage as the first process. It never comes back.
pub(crate) fn main() -> ! {
    std::panic::set_hook(Box::new(|panic| {
        stop(
            &Failure::new("the first stage has an error of its own", panic, "report this with the image's version"),
            RESTART_AFTER.get().copied().flatten(),
        )
    }));
    let mut restart_after = None;
    let failure = match prepare() {
        Ok(cmdline) => {
            restart_after = *RESTART_AFTER.get_or_init(|| cmdline.restart_after);
            match start(&cmdline) {
                Ok(never) => match never {},
                Err(failure) => failure,
            }
        }
        Err(failure) => failure,
    };
    stop(&failure, restart_after)
}

/// The directory of the running kernel's modules.
pub(crate) fn modules_directory() -> PathBuf {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    Path::new("/usr/lib/modules").join(release)
}

/// The directory of all modules of the running kernel where the verified root is mounted, else of those of the initrd.
pub(crate) fn largest_modules_directory() -> PathBuf {
    let own = modules_directory();
    let all = Path::new(SYSROOT).join(own.strip_prefix("/").unwrap_or(&own));
    if all.is_dir() { all } else { own }
}

/// Reads the kernel command line.
///
/// # Errors
/// When `/proc` is not mounted, or a word of ours does not parse.
pub(crate) fn read_cmdline() -> anyhow::Result<Cmdline> {
    let text = fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?;
    Ok(Cmdline::parse(&text)?)
}

/// When each stage ended.
#[derive(Debug)]
struct Timeline {
    last: u64,
    stages: Vec<StageTime>,
}

impl Timeline {
    fn begin() -> Self {
        Self { last: uptime_ms(), stages: Vec::new() }
    }

    /// Ends a stage, and says so in one line.
    fn end(&mut self, stage: &str, result: &str) {
        let now = uptime_ms();
        let took = now.saturating_sub(self.last);
        self.last = now;
        self.stages.push(StageTime { name: stage.to_owned(), took_ms: took, at_ms: now });
        console::say(&format!("nodezero: {stage}: {result} ({took} ms, at {now} ms)"));
    }
}

/// What every later stage rests on.
fn prepare() -> Result<Cmdline, Failure> {
    mounts::mount_api()?;
    // All of the first stage's lines shall reach the kernel's log, which else limits them. systemd sets its own.
    let _ = fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    answer_modprobe();
    let private = fs::DirBuilder::new().mode(0o700).create(RUN_DIRECTORY);
    private.or_fail("the directory for this boot's record cannot be made", "report this with the image's version")?;
    read_cmdline().or_fail("the kernel command line cannot be used", "correct the boot loader's entry")
}

/// Lets the kernel find this program where it asks for modules.
fn answer_modprobe() {
    let (program, link) = (Path::new("/init"), Path::new("/sbin/modprobe"));
    // Without it the kernel gets no modules by itself, and what needs them says so.
    let _ = fs::create_dir_all("/sbin").and_then(|()| std::os::unix::fs::symlink(program, link));
}

/// Finds the root device; on a failure after that, asks the device whether corruption was the cause.
fn start(cmdline: &Cmdline) -> Result<std::convert::Infallible, Failure> {
    let mut timeline = Timeline::begin();
    let root_hash = required_root_hash(cmdline)?;
    let deadline = Instant::now() + cmdline.timeout;

    let index = Arc::new(ModuleIndex::read(&modules_directory()));
    let mut loader = Loader::new(&index, cmdline);
    let listed = {
        let (index, cmdline) = (Arc::clone(&index), cmdline.clone());
        Listed::begin(listed_modules(), LISTED_AT_ONCE, move |list| load_listed(list, Loader::new(&index, &cmdline)))
    };
    let (own, partitions) = find_partitions(root_hash, &mut loader, deadline, &mut timeline)?;

    // dm-verity stays with the best implementation that is there when its device is made.
    for module in [SHA256, "dm-mod", "dm-verity"] {
        loader.load(module);
    }
    timeline.end("modules", "loaded");
    let root = Root::open(root_hash, &partitions.root, &partitions.verity)?;
    let failure = match enter(cmdline, &mut timeline, &own, &partitions, &root, &mut loader, &listed) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    Err(match root.corruption() {
        Some(corruption) => failure.caused_by(corruption),
        None => failure,
    })
}

/// Finds the own disk and finishes its partition table.
fn find_partitions(
    root_hash: RootHash,
    loader: &mut Loader<'_>,
    deadline: Instant,
    timeline: &mut Timeline,
) -> Result<(OwnDisk, Partitions), Failure> {
    let own = own_disk::find(Wanted::of(&root_hash), loader, deadline);
    console::to_kernel_log(&loader.take_log().join("\n"));
    let own = own?;
    timeline.end("own disk", &format!("{}, slot {}", own.disk.describe(), own.slot));
    let partitions = partitions::finish(&own)?;
    timeline.end("partitions", "complete");
    Ok((own, partitions))
}

/// Everything from the verified root on.
fn enter(
    cmdline: &Cmdline,
    timeline: &mut Timeline,
    own: &OwnDisk,
    partitions: &Partitions,
    root: &Root,
    loader: &mut Loader<'_>,
    listed: &Listed,
) -> Result<std::convert::Infallible, Failure> {
    let sysroot = Path::new(SYSROOT);
    fs::create_dir_all(sysroot).or_fail("the initrd cannot be written to", "report this with the image's version")?;
    root.mount(sysroot, loader)?;
    advance_clock(sysroot);
    mounts::move_api_into(sysroot)?;
    timeline.end("root", "verified and mounted");

    let origin = prepare_state(sysroot, own, partitions, loader)?;
    advance_clock_to_kept();
    timeline.end("state", &origin.to_string());

    listed.wait()?;
    let finder = Finder::new(cmdline, own, &partitions.esp);
    let record = provision::read_record()?;
    let configured = record.as_ref().is_some_and(|record| record.progress == Progress::Complete);
    let (found, content) = finder.find(configured)?;
    timeline.end("configuration", &found.to_string());
    let provision = provision::prepare(sysroot, record, found, content.as_deref(), &mut || finder.connect())?;
    finder.hand_on_network()?;
    state::mount_parts(sysroot)?;
    let machine_id = state::machine_id(sysroot)?;
    let filled = state::fill_var(sysroot, &required_root_hash(cmdline)?.to_string())?;
    timeline.end("factory", &filled.map_or("kept".to_owned(), |count| format!("{count} entries copied")));
    let config = match provision {
        Provision::Settled(origin) => origin,
        Provision::Apply(application) => {
            finder.load_for(application.config());
            let origin = application.apply()?;
            timeline.end("ignition", "applied");
            origin
        }
    };

    finder.hand_over_names()?;
    if let Some(corruption) = root.corruption() {
        return Err(corruption);
    }
    root.panic_on_corruption()?;
    timeline.end("switch root", "systemd takes over");
    let boot = Boot {
        role: cmdline.role,
        version: cmdline.version.clone(),
        standin: cmdline.standin,
        root_hash: required_root_hash(cmdline)?.to_string(),
        slot: own.slot,
        disk: BootDisk {
            path: own.disk.path.clone(),
            size: own.disk.size,
            model: own.disk.model.clone(),
            serial: own.disk.serial.clone(),
        },
        state: origin,
        machine_id,
        config,
        stages: std::mem::take(&mut timeline.stages),
    };
    boot.write(Path::new(RUN_DIRECTORY)).or_fail("the record of this boot cannot be written", "restart")?;
    Err(switch::switch_root(sysroot))
}

/// Sets a clock right that is before the image's time: certificates are checked soon, and files get times.
fn advance_clock(sysroot: &Path) {
    say_advanced(time::image_time(sysroot).and_then(time::not_before), "the image's time");
}

/// The same with the time that this node's clock saved when it was synchronised last.
fn advance_clock_to_kept() {
    let kept = time::kept::settle(&state::mount_point().join("var"));
    say_advanced(kept.and_then(|kept| kept.map_or(Ok(None), time::not_before)), "the last synchronised time");
}

fn say_advanced(advanced: anyhow::Result<Option<Duration>>, earliest: &str) {
    match advanced {
        Ok(None) => {}
        Ok(Some(behind)) => {
            console::say(&format!(
                "nodezero: the clock was {} s before {earliest} and is set to that",
                behind.as_secs()
            ));
        }
        // A wrong clock is noticed again where time matters.
        Err(error) => console::say(&format!("nodezero: the clock is not compared with {earliest}: {error:#}")),
    }
}

/// The root hash of the command line.
fn required_root_hash(cmdline: &Cmdline) -> Result<RootHash, Failure> {
    let parse = || -> anyhow::Result<RootHash> {
        Ok(cmdline.root_hash.as_deref().context("the word roothash= is missing")?.parse()?)
    };
    parse().or_fail(
        "the kernel command line names no root file system",
        "correct the boot loader's entry, or write the image again",
    )
}

/// The modules that every machine needs, and that of QEMU's `fw_cfg` where the firmware describes one.
fn listed_modules() -> VecDeque<String> {
    let list = fs::read_to_string(MODULES_LOAD).unwrap_or_default();
    let fw_cfg = Path::new(FW_CFG_DEVICE).exists().then_some("qemu_fw_cfg");
    [SHA256].into_iter().chain(list.split_whitespace()).chain(fw_cfg).map(str::to_owned).collect()
}

/// Loads one module of the list after the other, until it is empty.
fn load_listed(list: &List, mut loader: Loader<'_>) {
    list.each(|name| {
        if !loader.load(name) {
            console::to_kernel_log(&format!("nodezero: module {name} is neither in the initrd nor built in"));
        }
    });
    console::to_kernel_log(&loader.take_log().join("\n"));
}

/// Makes or checks `state`, and mounts it.
fn prepare_state(
    sysroot: &Path,
    own: &OwnDisk,
    partitions: &Partitions,
    loader: &mut Loader<'_>,
) -> Result<StateOrigin, Failure> {
    let origin = match partitions.state_step {
        StateStep::Format => {
            state::make(sysroot, &partitions.state)?;
            partitions::name_state(own, partitions)?;
            StateOrigin::Created
        }
        StateStep::Keep | StateStep::KeepAndGrow => {
            state::check(sysroot, &partitions.state)?;
            StateOrigin::Kept
        }
    };
    for file_system in ["fs-ext4", "fs-overlay"] {
        loader.load(file_system);
    }
    state::mount_state(&partitions.state, partitions.state_size)?;
    state::make_directories()?;
    Ok(origin)
}

/// Shows a failure's summary for ever, or until the machine is to restart. The first process must not end.
fn stop(failure: &Failure, restart_after: Option<Duration>) -> ! {
    let rule = "=".repeat(72);
    let note = match restart_after {
        Some(after) => format!("  the machine restarts {} s after this was first shown", after.as_secs()),
        None => "  this stays until the machine is switched off or restarted".to_owned(),
    };
    let since = Instant::now();
    loop {
        console::say(&format!("{rule}\n{failure}\n{note}\n{rule}"));
        let until = Instant::now() + REPEAT.min(restart_after.unwrap_or(REPEAT));
        while Instant::now() < until {
            reap();
            std::thread::sleep(Duration::from_millis(200));
        }
        if restart_after.is_some_and(|after| since.elapsed() >= after) {
            rustix::fs::sync();
            // When the kernel refuses, the summary goes on.
            let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
        }
    }
}

/// Collects ended processes whose parent is gone.
fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
}
