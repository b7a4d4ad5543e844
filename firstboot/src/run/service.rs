//! The service's side of the engine: consoles, status file, systemd, and waiting.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::engine::{Event, Pause, World};
use super::notify::{Notifier, Pulse};
use super::status::{self, Address, Phase, Status, whole_ms};
use super::time::span;
use crate::boot::{Boot, RUN_DIRECTORY};
use crate::command::run_in_root;
use crate::console;
use crate::disks;
use crate::registration::publish::{Target, Told};
use crate::sys::{self, InterfaceAddress};

/// Where a person finds more than the summary says.
const LOG: &str = "journal of the unit nodezero-firstboot (on `state`: /var/log/journal); nodezero-firstboot status";
/// How often a wait looks around, and how often at the machine.
const LOOK: Duration = Duration::from_millis(250);
const LOOK_AT_MACHINE: Duration = Duration::from_secs(2);

/// What of a machine a failed step, or a node in maintenance mode, is waiting for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    disks: Vec<(String, u64)>,
    addresses: Vec<InterfaceAddress>,
}

/// The service.
pub(crate) struct Service {
    /// What is told to programs.
    pub(crate) status: Status,
    notifier: Arc<Notifier>,
    pulse: Arc<Pulse>,
    warnings: BTreeMap<&'static str, Vec<String>>,
    /// Where the control plane is told how this node is.
    pub(crate) target: Target,
    /// The machine as it was last observed. A change since then ends a wait, also one that came while a step was tried.
    seen: Seen,
}

impl Service {
    /// Of a boot.
    pub(crate) fn new(boot: Boot, notifier: Arc<Notifier>, pulse: Arc<Pulse>) -> Self {
        Self {
            status: Status::new(boot),
            notifier,
            pulse,
            warnings: BTreeMap::new(),
            target: Target::default(),
            seen: look(),
        }
    }

    /// Writes the status for programs.
    pub(crate) fn publish(&self) {
        if let Err(error) = self.status.write(Path::new(RUN_DIRECTORY)) {
            log(&format!("nodezero: the status cannot be written: {error:#}"));
        }
    }

    /// Tells the control plane that all steps are done, the last one included, and what is not as it should be.
    pub(crate) fn publish_ready(&self, last: &str) {
        if let Some(error) = self.target.publish_ready(last, &self.status.warnings) {
            log(&format!("nodezero: the control plane cannot be told that this node is ready: {error}"));
        }
    }

    /// Goes to a phase.
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.status.phase = phase;
        self.notifier.status(&format!("{phase:?}").to_lowercase());
        self.publish();
    }

    /// Sets what is not as it should be, by whose it is, and tells what is new.
    pub(crate) fn warn(&mut self, whose: &'static str, warnings: Vec<String>) {
        let before = self.warnings.insert(whose, warnings).unwrap_or_default();
        let now = self.warnings.get(whose).into_iter().flatten();
        now.filter(|warning| !before.contains(warning))
            .for_each(|warning| say(&format!("nodezero: warning: {warning}")));
        self.status.warnings = self.warnings.values().flatten().cloned().collect();
        self.publish();
    }

    /// Reads the machine's disks and addresses anew into the status. Gives the addresses.
    pub(crate) fn observe(&mut self) -> Vec<InterfaceAddress> {
        self.seen = look();
        // udev knows serial numbers and contents that the kernel does not tell. Without it, the rest is still told.
        let settled = run_in_root(Path::new("/"), "udevadm", &["settle", "--timeout=10"], |code| code == 0);
        if let Err(error) = settled {
            say(&format!("nodezero: udev has not settled: {error}"));
        }
        let addresses = addresses();
        self.status.disks = disks::survey();
        let told = |found: &InterfaceAddress| {
            let InterfaceAddress { interface, address, prefix } = found.clone();
            Address { interface, address, prefix }
        };
        self.status.addresses = addresses.iter().map(told).collect();
        addresses
    }

    /// The line about a node that has come up, with what took how long.
    pub(crate) fn summary(&self, uptime_ms: u64) -> String {
        let steps = self.status.steps.iter().map(|step| format!("{} {} ms", step.name, step.ms.unwrap_or(0)));
        let steps: Vec<String> = steps.collect();
        let name = self.status.name.as_deref().unwrap_or("without a name");
        let (seconds, tenths) = (uptime_ms / 1000, uptime_ms % 1000 / 100);
        format!(
            "nodezero: summary: node {name} is up {seconds}.{tenths} s after the kernel started: {}",
            steps.join(", ")
        )
    }
}

impl World for Service {
    fn tell(&mut self, step: &'static str, event: Event<'_>) {
        self.pulse.beat();
        self.status.note(step, &event);
        match &event {
            // One line a step is on the consoles; the service's log has this one, too.
            Event::Needed(what) => log(&format!("nodezero: step {step}: {what}")),
            Event::Progress(_) | Event::Done { .. } | Event::Failed { .. } => say(&line(step, &event)),
        }
        self.notifier.status(&line(step, &event));
        if let Event::Failed { failure, .. } = &event
            && let Some(error) = self.target.publish(&Told::failed(step, failure))
        {
            log(&format!("nodezero: the control plane cannot be told: {error}"));
        }
        if let Event::Done { warnings, .. } = event {
            self.warn(step, warnings);
        }
        self.publish();
    }

    fn is_stopped(&self) -> bool {
        sys::is_terminated()
    }

    fn pause(&mut self, duration: Duration) -> Pause {
        let until = Instant::now() + duration;
        let mut next_look = Instant::now() + LOOK_AT_MACHINE;
        loop {
            self.pulse.beat();
            if self.is_stopped() {
                return Pause::Stopped;
            }
            let now = Instant::now();
            if now >= until {
                return Pause::Over;
            }
            if now >= next_look {
                next_look = now + LOOK_AT_MACHINE;
                if look() != self.seen {
                    say("nodezero: disks or addresses have changed");
                    self.observe();
                    self.publish();
                    return Pause::Changed;
                }
            }
            std::thread::sleep(LOOK.min(until - now));
        }
    }
}

/// What is said about an event.
fn line(step: &str, event: &Event<'_>) -> String {
    match event {
        Event::Needed(line) | Event::Progress(line) => format!("nodezero: step {step}: {line}"),
        Event::Done { result, took, .. } => format!("nodezero: step {step}: {result} ({} ms)", whole_ms(*took)),
        Event::Failed { failure, attempts, pause } => {
            let rule = "=".repeat(72);
            let told = failure.told(&format!("NodeZero cannot finish step {step}"), LOG);
            let times = status::times(*attempts);
            let next = if failure.is_retried() {
                format!("tried {times}; again in {}, or when disks or addresses change", span(*pause))
            } else {
                format!("tried {times}; again when disks or addresses change, or after a restart")
            };
            format!("{rule}\n{told}\n  next: {next}\n{rule}")
        }
    }
}

/// Says a line on the consoles and in the service's log.
pub(crate) fn say(line: &str) {
    console::to_consoles(line);
    log(line);
}

/// Says a line in the service's log alone.
fn log(line: &str) {
    // A log that is gone is no reason to stop.
    let _ = writeln!(io::stdout(), "{line}");
}

/// The addresses that reach further than their link.
pub(crate) fn addresses() -> Vec<InterfaceAddress> {
    let mut addresses = sys::interface_addresses().unwrap_or_else(|error| {
        log(&format!("nodezero: addresses cannot be listed: {error}"));
        Vec::new()
    });
    addresses.retain(|found| !is_link_local(found.address));
    addresses
}

fn look() -> Seen {
    let disks = disks::survey().into_iter().map(|disk| (disk.name, disk.size)).collect();
    Seen { disks, addresses: addresses() }
}

/// Whether an address is good on its own link only.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::Failure;

    #[test]
    fn link_local_addresses_are_told_apart() {
        for (address, expected) in
            [("169.254.3.4", true), ("fe80::1", true), ("10.0.2.15", false), ("fec0::15", false), ("fd7a::1", false)]
        {
            assert_eq!(is_link_local(address.parse().expect(address)), expected, "{address}");
        }
    }

    #[test]
    fn events_are_lines_and_failures_are_blocks() {
        let took = Duration::from_millis(1234);
        let done = Event::Done { result: "synchronised", took, warnings: vec![] };
        assert_eq!(line("time", &done), "nodezero: step time: synchronised (1234 ms)");
        assert_eq!(line("time", &Event::Progress("waiting")), "nodezero: step time: waiting");
        let lasting = Failure::new("no disk", "1 of 2", "look at the cables");
        let block = line("data-disks", &Event::Failed { failure: &lasting, attempts: 1, pause: took });
        let lines: Vec<&str> = block.lines().collect();
        assert_eq!(lines[1], "NodeZero cannot finish step data-disks: no disk");
        assert_eq!(lines[2..4], ["  why: 1 of 2", "  what to do: look at the cables"]);
        assert!(
            lines[4].starts_with("  log: ") && lines[5].starts_with("  next: tried once; again when disks"),
            "{block}"
        );
        assert!(lines[0] == lines[6] && lines[0].starts_with("==="), "{block}");
        let retried = Event::Failed { failure: &lasting.retrying(), attempts: 3, pause: Duration::from_secs(20) };
        assert!(line("x", &retried).contains("  next: tried 3 times; again in 20 s, or when"));
    }

    #[test]
    fn the_summary_has_all_timings() {
        let mut service = Service::new(
            crate::boot::tests::example(),
            Arc::new(Notifier::new(None).expect("none")),
            Arc::new(Pulse::new()),
        );
        service.status.plan(&["identity", "confirm"]);
        service.status.name = Some("toronto-0002".into());
        service.status.steps[0].ms = Some(12);
        assert_eq!(
            service.summary(41_260),
            "nodezero: summary: node toronto-0002 is up 41.2 s after the kernel started: identity 12 ms, confirm 0 ms"
        );
    }
}
