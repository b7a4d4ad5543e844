//! `run`: the first-boot service, after systemd has taken over.
//!
//! It reports, to all consoles and to standard output (the journal), what this node is, where it can be reached, which
//! disks it has and where its configuration was found. Then it runs the steps that make the node what
//! `/etc/nodezero/node.json` says, and says that the node is ready:
//!
//! | configuration | steps |
//! |---|---|
//! | none | identity, root: maintenance mode; the report is repeated when disks or addresses change |
//! | without node.json | identity, root, confirm: Ignition has done the rest |
//! | with node.json | identity, time, data disks, firewall, mesh, cluster, registration, root, confirm |
//!
//! Of these, firewall, mesh, cluster and registration are there where node.json has something for them to do.
//!
//! A start in maintenance mode is not confirmed: of two images, the one that finds the configuration shall win.
//!
//! To systemd the service is up as soon as it runs, so that its watchdog counts from then on and nothing waits for a
//! step; what needs a step's work is started by that step. Once all is done it ends, unless the clock is not
//! synchronised yet. SIGTERM ends it between steps and in every wait.

pub(crate) mod accounts;
mod boot_counting;
mod confirm;
mod engine;
mod identity;
pub(crate) mod journal;
mod notify;
mod report;
mod root;
mod scrub;
mod service;
pub(crate) mod status;
pub(crate) mod step;
pub(crate) mod time;

use std::env;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use nodezero_profile::node::Node;

pub(crate) use self::confirm::scrub as scrub_secret;
use self::confirm::{Confirm, Partition};
pub(crate) use self::engine::unwritten;
use self::engine::{Outcome, Pause, World, insist};
use self::identity::{Identity, ImageEtc, Kernel};
use self::journal::{Journal, State};
use self::notify::{Notifier, Pulse, Watchdog, work_of_others};
use self::root::Root;
use self::service::{Service, addresses, say};
use self::status::{Phase, StepState};
use self::step::{Later, Step};
use self::time::{Start, Time};
use crate::boot::{Boot, CONFIG_FILE, ConfigOrigin, RUN_DIRECTORY, uptime_ms};
use crate::command;
use crate::console;
use crate::data_disks::DataDisks;
use crate::disks;
use crate::files::read_bounded;
use crate::firewall::Firewall;
use crate::k3s::Cluster;
use crate::mesh::Mesh;
use crate::registration::Registration;
use crate::registration::publish::Target;
use crate::summary::{Failure, OrFail};
use crate::sys;

/// Where the node keeps what it knows about itself.
pub(crate) const LIB_DIRECTORY: &str = "/var/lib/nodezero";
/// What the node is to be.
pub(crate) const NODE_FILE: &str = "/etc/nodezero/node.json";
/// The largest one that is read, in bytes.
const NODE_LIMIT: u64 = 1 << 20;
/// Held by the one service that runs.
const LOCK_FILE: &str = "run.lock";
/// The device that the first stage made.
const ROOT_DEVICE: &str = "/dev/mapper/root";
/// The label of the partition that UKIs lie on.
const ESP_LABEL: &str = "ESP";
/// How long to wait for an address.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(20);
const ADDRESS_PAUSE: Duration = Duration::from_millis(250);
/// How often what is not yet as it should be is looked at, once all steps are done.
const LATER_PAUSE: Duration = Duration::from_secs(5);
/// How long maintenance mode waits at once.
const MAINTENANCE_PAUSE: Duration = Duration::from_secs(3600);

/// Runs the service.
///
/// # Errors
/// When the first stage left no record, or another service runs. It is on the consoles, too.
pub(crate) fn main() -> anyhow::Result<()> {
    serve().inspect_err(|error| console::to_consoles(&format!("nodezero: first-boot service stopped: {error:#}")))
}

fn serve() -> anyhow::Result<()> {
    sys::watch_sigterm().context("watching for SIGTERM")?;
    let run_directory = Path::new(RUN_DIRECTORY);
    let boot = Boot::read(run_directory)?;
    let _lock = lock(&run_directory.join(LOCK_FILE))?;
    let notifier = Arc::new(Notifier::new(env::var_os("NOTIFY_SOCKET").as_deref())?);
    let pulse = Arc::new(Pulse::new());
    let watchdog = Watchdog::new(Arc::clone(&pulse), work_of_others);
    watchdog.start(env::var_os("WATCHDOG_USEC").as_deref(), Arc::clone(&notifier));
    let mut service = Service::new(boot, Arc::clone(&notifier), pulse);
    service.publish();
    notifier.send("READY=1\nSTATUS=starting");
    if make_node(&mut service).is_none() {
        notifier.send("STOPPING=1");
        service.enter(Phase::Stopped);
        say("nodezero: first-boot service ended by request");
    }
    Ok(())
}

/// Everything from the journal to the last wait. `None` when the service is to end.
fn make_node(service: &mut Service) -> Option<()> {
    let boot = service.status.boot.clone();
    let mut journal = insist(service, "journal", |_| open_journal())?;
    service.status.steps.clear();
    service.warn("journal", journal.warnings().to_vec());
    service.status.boots = journal.boots();
    let node_file = Path::new(NODE_FILE);
    report(service, node_file.exists())?;

    let mode = insist(service, "configuration", |_| {
        let mode = Mode::find(node_file, &boot)?;
        journal.set_node(mode.node().map(|node| &*node.name)).map_err(engine::unwritten)?;
        Ok(mode)
    })?;
    if let Mode::Ignition = mode {
        say(&format!(
            "nodezero: there is no {NODE_FILE}: Ignition has made this machine, and nothing more is to be done"
        ));
    }
    service.status.name = mode.node().map(|node| node.name.to_string());
    service.target = mode.node().map(Target::of).unwrap_or_default();
    let mut steps = steps(&mode, &boot, &service.target);
    service.status.plan(&steps.iter().map(|step| step.name()).collect::<Vec<_>>());
    service.enter(Phase::Running);
    if engine::run(&mut steps, &mut journal, service) == Outcome::Stopped {
        return None;
    }
    finish(service, &mode, &mut steps, &mut journal)
}

/// What the node is to be.
enum Mode {
    /// Nobody has said.
    Maintenance,
    /// What Ignition made of it.
    Ignition,
    /// A node of NodeZero.
    Node(Box<Node>),
}

impl Mode {
    /// Reads node.json.
    ///
    /// # Errors
    /// When it is there and cannot be used.
    fn find(path: &Path, boot: &Boot) -> Result<Self, Failure> {
        let remedy = "correct the profile, render it, and give this machine the new configuration";
        let what = "the node's configuration cannot be used";
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(if boot.config == ConfigOrigin::None { Self::Maintenance } else { Self::Ignition });
            }
            Ok(_) | Err(_) => {}
        }
        let node = read_node(path).or_fail(what, remedy)?;
        match boot.role {
            Some(role) if role != node.role => {
                let why = format!("{} is to be of role {}, this image is for {role}", node.name, node.role);
                Err(Failure::new(what, why, format!("write the {} image to this machine, or {remedy}", node.role)))
            }
            Some(_) | None => Ok(Self::Node(Box::new(node))),
        }
    }

    fn node(&self) -> Option<&Node> {
        match self {
            Self::Maintenance | Self::Ignition => None,
            Self::Node(node) => Some(node),
        }
    }
}

/// Reads node.json.
///
/// # Errors
/// When it cannot be read, or says what makes no sense.
pub(crate) fn read_node(path: &Path) -> anyhow::Result<Node> {
    let json = read_bounded(path, NODE_LIMIT)?;
    Node::parse(&json).with_context(|| format!("parsing {}", path.display()))
}

/// The steps of a mode, in order.
fn steps(mode: &Mode, boot: &Boot, target: &Target) -> Vec<Box<dyn Step>> {
    let mut steps: Vec<Box<dyn Step>> = vec![Box::new(Identity {
        name: mode.node().map(|node| node.name.to_string()),
        machine_id: boot.machine_id.clone(),
        etc: "/etc".into(),
        image: ImageEtc::BelowOverlay,
        kernel: Box::new(Kernel),
        differing: Vec::new(),
    })];
    if let Mode::Node(node) = mode {
        steps.push(Box::new(time_step(node, boot)));
        steps.push(Box::new(DataDisks::new(Node::clone(node))));
        // The firewall stands before anybody can reach this node over what the mesh opens.
        steps.extend(Firewall::new(node).map(boxed));
        steps.extend(Mesh::new(node).map(boxed));
        steps.extend(Cluster::new(node).map(boxed));
        steps.extend(Registration::new(node, boot.version.clone(), target.clone()).map(boxed));
    }
    steps.push(Box::new(Root { device: ROOT_DEVICE.into(), verified: None }));
    match mode {
        Mode::Maintenance => {}
        Mode::Ignition | Mode::Node(_) => steps.push(Box::new(confirm_step(boot))),
    }
    steps
}

fn boxed(step: impl Step + 'static) -> Box<dyn Step> {
    Box::new(step)
}

fn time_step(node: &Node, boot: &Boot) -> Time {
    let restart = || {
        command::run("systemctl", &["restart", "systemd-timesyncd.service"], &[], |code| code == 0)?;
        Ok(())
    };
    Time {
        clock: Box::new(time::System { stopped: sys::is_terminated }),
        servers: node.time.as_ref().map(|time| time.servers.clone()).unwrap_or_default(),
        patience: node
            .time
            .as_ref()
            .and_then(|time| time.wait)
            .map_or(time::PATIENCE, |wait| Duration::from_secs(wait.into())),
        drop_ins: time::DROP_INS.into(),
        restart: Box::new(restart),
        image_time: time::image_time(Path::new("/")).ok(),
        start: Start::read(Path::new(RUN_DIRECTORY), boot),
        lib: LIB_DIRECTORY.into(),
        problem: None,
        unnoted: None,
    }
}

fn confirm_step(boot: &Boot) -> Confirm {
    let own = boot.disk.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let esp = disks::partitions(&own).into_iter().find(|partition| partition.label.as_deref() == Some(ESP_LABEL));
    let device = esp.map(|partition| Path::new("/dev").join(partition.name));
    let run_directory = Path::new(RUN_DIRECTORY);
    Confirm {
        firmware: "/sys/firmware".into(),
        esp: Box::new(Partition { device, at: run_directory.join("esp") }),
        secrets: vec![run_directory.join(CONFIG_FILE)],
        not_marked: None,
    }
}

/// Says what the node is and has, after a bounded wait for an address. `None` when the service is to end.
fn report(service: &mut Service, node_is_known: bool) -> Option<()> {
    let deadline = Instant::now() + ADDRESS_PATIENCE;
    if addresses().is_empty() {
        say(&format!("nodezero: waiting up to {} s for an address", ADDRESS_PATIENCE.as_secs()));
    }
    while addresses().is_empty() && Instant::now() < deadline {
        if service.is_stopped() {
            return None;
        }
        std::thread::sleep(ADDRESS_PAUSE);
    }
    let found = service.observe();
    let status = &mut service.status;
    status.report = report::lines(&status.boot, status.boots, &found, &status.disks, node_is_known);
    status.report.iter().for_each(|line| say(line));
    service.publish();
    Some(())
}

/// Says that the node is ready, and waits for what is still to come. `None` when the service is to end.
fn finish(service: &mut Service, mode: &Mode, steps: &mut [Box<dyn Step>], journal: &mut Journal) -> Option<()> {
    say(&service.summary(uptime_ms()));
    service.status.ready = true;
    match mode {
        Mode::Maintenance => {
            service.enter(Phase::Maintenance);
            say(report::READY);
            loop {
                match service.pause(MAINTENANCE_PAUSE) {
                    Pause::Over => {}
                    Pause::Stopped => return None,
                    Pause::Changed => report(service, false)?,
                }
            }
        }
        Mode::Ignition | Mode::Node(_) => {
            service.enter(Phase::Ready);
            say(report::READY);
            let last = steps.last().map_or("confirm", |step| step.name());
            service.publish_ready(last);
            let warned = service.status.warnings.clone();
            wait_for_later(service, steps, journal)?;
            if service.status.warnings != warned {
                service.publish_ready(last);
            }
            Some(())
        }
    }
}

/// Waits until nothing is to come any more. `None` when the service is to end.
fn wait_for_later(service: &mut Service, steps: &mut [Box<dyn Step>], journal: &mut Journal) -> Option<()> {
    let mut waiting: Vec<&mut Box<dyn Step>> = steps.iter_mut().filter(|step| !step.warnings().is_empty()).collect();
    waiting.retain_mut(|step| step.later() != Later::Nothing);
    while !waiting.is_empty() {
        waiting.retain_mut(|step| match step.later() {
            Later::Waiting => true,
            Later::Nothing => false,
            Later::Came(line) => {
                came(service, step.as_mut(), &line, journal);
                false
            }
        });
        if !waiting.is_empty() && service.pause(LATER_PAUSE) == Pause::Stopped {
            return None;
        }
    }
    Some(())
}

/// Tells that what a step went on without has come.
fn came(service: &mut Service, step: &mut dyn Step, line: &str, journal: &mut Journal) {
    let name = step.name();
    say(&format!("nodezero: step {name}: {line}"));
    if let Err(error) = journal.end(name, State::Done, line, Duration::ZERO) {
        say(&format!("nodezero: {error:#}"));
    }
    if let Some(told) = service.status.steps.iter_mut().find(|told| told.name == name) {
        (told.state, told.result) = (StepState::Done, Some(line.to_owned()));
    }
    service.warn(name, step.warnings());
}

fn open_journal() -> Result<Journal, Failure> {
    let path = "/proc/sys/kernel/random/boot_id";
    let boot_id = fs::read_to_string(path).with_context(|| format!("reading {path}")).map_err(engine::unwritten)?;
    Journal::open(Path::new(LIB_DIRECTORY), &boot_id).map_err(engine::unwritten)
}

/// Takes the lock that ends with this process.
fn lock(path: &Path) -> anyhow::Result<File> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => anyhow::bail!("another nodezero-firstboot run is at work"),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use nodezero_profile::Role;

    use super::*;

    #[test]
    fn the_mode_follows_from_node_json_and_the_source() {
        let esp = ConfigOrigin::Esp { size: 12 };
        let node = r#"{"version":1,"name":"toronto-0002","role":"worker"}"#;
        for (case, json, config, expected) in [
            ("nothing", None, ConfigOrigin::None, Ok("identity root")),
            ("Ignition alone", None, esp.clone(), Ok("identity root confirm")),
            ("a node", Some(node), esp.clone(), Ok("identity time data-disks root confirm")),
            (
                "a member of a cluster",
                Some(r#"{"version":1,"name":"n","role":"worker","mesh":{},"cluster":{"server":"c","tokenFile":"/t"}}"#),
                esp.clone(),
                Ok("identity time data-disks firewall mesh cluster registration root confirm"),
            ),
            ("a node of an earlier start", Some(node), ConfigOrigin::None, Ok("identity time data-disks root confirm")),
            ("no JSON", Some("{"), esp.clone(), Err("EOF while parsing")),
            ("empty", Some(""), esp.clone(), Err("EOF while parsing")),
            (
                "unknown field",
                Some(r#"{"version":1,"name":"n","role":"worker","x":1}"#),
                esp.clone(),
                Err("unknown field"),
            ),
            (
                "another role",
                Some(r#"{"version":1,"name":"n","role":"edge"}"#),
                esp,
                Err("n is to be of role edge, this image is for worker"),
            ),
        ] {
            let directory = tempfile::tempdir().expect("tempdir");
            let path = directory.path().join("node.json");
            json.into_iter().for_each(|json| fs::write(&path, json).expect("written"));
            let boot = Boot { config, role: Some(Role::Worker), ..crate::boot::tests::example() };
            match (Mode::find(&path, &boot), expected) {
                (Ok(mode), Ok(expected)) => {
                    let names: Vec<&str> =
                        steps(&mode, &boot, &Target::default()).iter().map(|step| step.name()).collect();
                    assert_eq!(names.join(" "), expected, "{case}");
                }
                (Err(failure), Err(part)) => {
                    assert!(failure.why().contains(part) && !failure.is_retried(), "{case}: {failure}");
                }
                (found, _) => panic!("{case}: {:?}", found.err()),
            }
        }
        let directory = tempfile::tempdir().expect("tempdir");
        let boot = crate::boot::tests::example();
        assert!(Mode::find(directory.path(), &boot).is_err(), "a directory is no node.json");
    }

    #[test]
    fn one_service_runs_at_a_time() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join(LOCK_FILE);
        let first = lock(&path).expect("free");
        assert!(lock(&path).is_err());
        drop(first);
        lock(&path).expect("free again");
    }
}
