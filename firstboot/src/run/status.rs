//! What the service knows, for people and programs: `/run/nodezero/status.json`, `nodezero-firstboot status`.
//!
//! The file is replaced whole at each change, so it can be read at any time. Its shape is stable; later versions add
//! fields. A field whose value is not known is `null`.
//!
//! | field | value |
//! |---|---|
//! | `version`, `role` | of the image |
//! | `name` | of the node, in node.json |
//! | `phase` | `starting`, `running`, `waiting` (a step failed and is tried again), `failed` (it failed, and only a change of the machine or its configuration helps), `maintenance`, `ready`, `stopped` |
//! | `ready` | whether the service has come to its end |
//! | `steps` | in order: `name`; `state`: `pending`, `running`, `done`, `failed`; `result`: a line; `ms`; `attempts`; `failure`: `what`, `why`, `remedy`, `retried` |
//! | `warnings` | lines: what is not as it should be, although nothing failed |
//! | `addresses` | `interface`, `address`, `prefix` in bits |
//! | `disks` | what kernel and udev tell of each, see [`crate::disks::Disk`]; what is on them tells `inventory --json` |
//! | `boot` | the first stage's record |
//! | `boots` | how often this node has started |
//! | `report` | the lines of the report on the console |

use std::fmt::{self, Write as _};
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nodezero_profile::Role;
use serde::{Deserialize, Serialize};

use super::engine::Event;
use crate::boot::{Boot, RUN_DIRECTORY};
use crate::disks::Disk;
use crate::files::write_atomically;
use crate::summary::Failure;

const FILE: &str = "status.json";

/// What the service knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The image's version.
    pub(crate) version: Option<String>,
    /// The image's role.
    pub(crate) role: Option<Role>,
    /// The node's name.
    pub(crate) name: Option<String>,
    /// Where the service is.
    pub(crate) phase: Phase,
    /// Whether it has come to its end.
    pub(crate) ready: bool,
    /// The steps, in order.
    pub(crate) steps: Vec<StepStatus>,
    /// What is not as it should be, although nothing failed.
    pub(crate) warnings: Vec<String>,
    /// Addresses that reach further than their link.
    pub(crate) addresses: Vec<Address>,
    /// The disks.
    pub(crate) disks: Vec<Disk>,
    /// What the first stage did.
    pub(crate) boot: Boot,
    /// How often this node has started.
    pub(crate) boots: u64,
    /// The report as it was printed.
    pub(crate) report: Vec<String>,
}

/// Where the service is. The meanings are in the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// No step has begun.
    Starting,
    /// Steps run.
    Running,
    /// A step failed and is tried again.
    Waiting,
    /// A step failed, and trying again would not help.
    Failed,
    /// Nobody has said what the node is to be.
    Maintenance,
    /// All steps are done.
    Ready,
    /// It was ended.
    Stopped,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepStatus {
    /// Its name.
    pub(crate) name: String,
    /// How it is.
    pub(crate) state: StepState,
    /// What it does, or what came out of it.
    pub(crate) result: Option<String>,
    /// How long its last run took, in milliseconds.
    pub(crate) ms: Option<u64>,
    /// How often it was tried by this run of the service.
    pub(crate) attempts: u64,
    /// Why its last attempt failed.
    pub(crate) failure: Option<FailureStatus>,
}

/// How a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StepState {
    /// Its turn has not come.
    Pending,
    /// It runs.
    Running,
    /// It is done.
    Done,
    /// Its last attempt failed.
    Failed,
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FailureStatus {
    /// What is the matter.
    pub(crate) what: String,
    /// Its cause.
    pub(crate) why: String,
    /// What to do.
    pub(crate) remedy: String,
    /// Whether it is tried again by itself.
    pub(crate) retried: bool,
}

/// An address of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Address {
    /// The interface.
    pub(crate) interface: String,
    /// The address.
    pub(crate) address: IpAddr,
    /// Length of the network's prefix in bits.
    pub(crate) prefix: u8,
}

impl Status {
    /// That of a service that begins.
    pub(crate) fn new(boot: Boot) -> Self {
        Self {
            version: boot.version.clone(),
            role: boot.role,
            name: None,
            phase: Phase::Starting,
            ready: false,
            steps: Vec::new(),
            warnings: Vec::new(),
            addresses: Vec::new(),
            disks: Vec::new(),
            boot,
            boots: 0,
            report: Vec::new(),
        }
    }

    /// Replaces the list of steps by these, all pending.
    pub(crate) fn plan(&mut self, names: &[&str]) {
        self.steps = names.iter().map(|name| StepStatus::pending(name)).collect();
    }

    /// Takes in what happened to a step.
    pub(crate) fn note(&mut self, name: &str, event: &Event<'_>) {
        let at = self.steps.iter().position(|step| step.name == name).unwrap_or_else(|| {
            self.steps.push(StepStatus::pending(name));
            self.steps.len() - 1
        });
        let step = &mut self.steps[at];
        self.phase = match event {
            Event::Needed(line) | Event::Progress(line) => {
                step.state = StepState::Running;
                step.result = Some((*line).to_owned());
                Phase::Running
            }
            Event::Done { result, took, .. } => {
                (step.state, step.failure) = (StepState::Done, None);
                (step.result, step.ms) = (Some((*result).to_owned()), Some(whole_ms(*took)));
                step.attempts += 1;
                Phase::Running
            }
            Event::Failed { failure, attempts, .. } => {
                (step.state, step.attempts) = (StepState::Failed, *attempts);
                (step.result, step.failure) = (None, Some(FailureStatus::of(failure)));
                if failure.is_retried() { Phase::Waiting } else { Phase::Failed }
            }
        };
    }

    /// Writes it into the directory of this boot.
    ///
    /// # Errors
    /// What the file system answers.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_vec_pretty(self).context("writing the status as JSON")?;
        write_atomically(&directory.join(FILE), &json, 0o600)
    }

    /// Reads what the service wrote.
    ///
    /// # Errors
    /// When it has not got that far in this boot.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let path = Path::new(RUN_DIRECTORY).join(FILE);
        let json = fs::read(&path).with_context(|| format!("reading {} (has the service run?)", path.display()))?;
        serde_json::from_slice(&json).with_context(|| format!("parsing {}", path.display()))
    }
}

impl StepStatus {
    fn pending(name: &str) -> Self {
        let name = name.to_owned();
        Self { name, state: StepState::Pending, result: None, ms: None, attempts: 0, failure: None }
    }
}

impl FailureStatus {
    fn of(failure: &Failure) -> Self {
        let (what, why, remedy) = (failure.what().to_owned(), failure.why().to_owned(), failure.remedy().to_owned());
        Self { what, why, remedy, retried: failure.is_retried() }
    }
}

/// How often something was tried, in words.
pub(crate) fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

/// Whole milliseconds of a duration.
pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Display for Status {
    /// As a person reads it, without a line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
        let phase = format!("{:?}", self.phase).to_lowercase();
        let (role, version) = (or_none(self.role.map(Role::name)), or_none(self.version.as_deref()));
        writeln!(text, "node {} ({role} {version}), start {}: {phase}", or_none(self.name.as_deref()), self.boots)?;
        for step in &self.steps {
            let state = format!("{:?}", step.state).to_lowercase();
            let took = step.ms.map_or(String::new(), |ms| format!(" ({ms} ms)"));
            writeln!(text, "  {:<12} {state:<8} {}{took}", step.name, step.result.as_deref().unwrap_or_default())?;
            if let Some(failure) = &step.failure {
                let indent = |text: &str| text.replace('\n', "\n      ");
                writeln!(text, "    {} (tried {})", indent(&failure.what), times(step.attempts))?;
                writeln!(text, "    why: {}\n    what to do: {}", indent(&failure.why), indent(&failure.remedy))?;
            }
        }
        self.warnings.iter().try_for_each(|warning| writeln!(text, "warning: {warning}"))?;
        for Address { interface, address, prefix } in &self.addresses {
            writeln!(text, "address {interface} {address}/{prefix}")?;
        }
        self.disks.iter().try_for_each(|disk| writeln!(text, "disk {}", disk.describe()))?;
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        f.write_str(&lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Status {
        let mut status = Status::new(crate::boot::tests::example());
        status.plan(&["identity", "time", "data-disks"]);
        (status.boots, status.name) = (3, Some("toronto-0002".into()));
        status.addresses = vec![Address { interface: "eth0".into(), address: [10, 0, 2, 15].into(), prefix: 24 }];
        status.warnings = vec!["clock is not synchronised; it reads 2026-01-01T00:00:00Z".into()];
        status.report = vec!["nodezero: address eth0 10.0.2.15/24".into()];
        status.note("identity", &Event::Needed("host name becomes toronto-0002"));
        let took = Duration::from_millis(12);
        status.note("identity", &Event::Done { result: "host name toronto-0002", took, warnings: vec![] });
        let failure = Failure::new("no disk", "1 found\n2 wanted", "look at the cables");
        status.note("time", &Event::Failed { failure: &failure, attempts: 2, pause: took });
        status
    }

    /// The stable shape: whoever changes a line here changes what programs rely on.
    const GOLDEN: &str = r#"{
  "version": "0.1.0",
  "role": "worker",
  "name": "toronto-0002",
  "phase": "failed",
  "ready": false,
  "steps": [
    {
      "name": "identity",
      "state": "done",
      "result": "host name toronto-0002",
      "ms": 12,
      "attempts": 1,
      "failure": null
    },
    {
      "name": "time",
      "state": "failed",
      "result": null,
      "ms": null,
      "attempts": 2,
      "failure": {
        "what": "no disk",
        "why": "1 found\n2 wanted",
        "remedy": "look at the cables",
        "retried": false
      }
    },
    {
      "name": "data-disks",
      "state": "pending",
      "result": null,
      "ms": null,
      "attempts": 0,
      "failure": null
    }
  ],
  "warnings": [
    "clock is not synchronised; it reads 2026-01-01T00:00:00Z"
  ],
  "addresses": [
    {
      "interface": "eth0",
      "address": "10.0.2.15",
      "prefix": 24
    }
  ],
  "disks": [],
  "boot": BOOT,
  "boots": 3,
  "report": [
    "nodezero: address eth0 10.0.2.15/24"
  ]
}"#;

    #[test]
    fn the_json_has_its_stable_shape() {
        let status = example();
        let boot = serde_json::to_string_pretty(&status.boot).expect("JSON").replace('\n', "\n  ");
        let json = serde_json::to_string_pretty(&status).expect("JSON");
        assert_eq!(json, GOLDEN.replace("BOOT", &boot));
        assert_eq!(serde_json::from_str::<Status>(&json).expect("parses"), status);
    }

    #[test]
    fn people_read_it_too() {
        assert_eq!(
            example().to_string(),
            "node toronto-0002 (worker 0.1.0), start 3: failed\n  \
             identity     done     host name toronto-0002 (12 ms)\n  \
             time         failed\n    no disk (tried 2 times)\n    why: 1 found\n      2 wanted\n    \
             what to do: look at the cables\n  data-disks   pending\n\
             warning: clock is not synchronised; it reads 2026-01-01T00:00:00Z\naddress eth0 10.0.2.15/24"
        );
    }

    #[test]
    fn phases_follow_what_happens() {
        let mut status = example();
        let took = Duration::ZERO;
        let busy = Failure::new("a", "b", "c").retrying();
        for (event, expected) in [
            (Event::Failed { failure: &busy, attempts: 1, pause: took }, Phase::Waiting),
            (Event::Needed("x"), Phase::Running),
            (Event::Progress("y"), Phase::Running),
            (Event::Done { result: "z", took, warnings: vec![] }, Phase::Running),
        ] {
            status.note("extra", &event);
            assert_eq!(status.phase, expected, "{event:?}");
        }
        let step = status.steps.last().expect("added");
        assert_eq!((step.state, step.attempts, step.failure.is_none()), (StepState::Done, 2, true));
    }
}
