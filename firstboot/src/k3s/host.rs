//! What the step needs of the machine: systemd's units and their logs, the node's own object, and time.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use k8s_openapi::api::core::v1::Node;
use kube::Api;

use super::log::{self, Line};
use crate::command::{run, run_in_root};
use crate::kubernetes::{Access, ApiError, Connection};
use crate::run::time;
use crate::sys;

/// How long a connection to a server is tried.
const CONNECT: Duration = Duration::from_secs(5);
/// How much of a unit's log is looked at.
const LINES: &str = "--lines=60";
/// The same at the log's beginning, where K3s reads its configuration.
const FIRST_LINES: &str = "--lines=+60";

/// A unit of systemd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Whether systemd has it.
    pub(crate) is_loaded: bool,
    /// `active`, `activating`, `failed` and others.
    pub(crate) active: String,
    /// `running`, `auto-restart` and others.
    pub(crate) sub: String,
    /// How often systemd has restarted it.
    pub(crate) restarts: u64,
}

impl Unit {
    /// Whether it has said that it is ready.
    pub(crate) fn is_active(&self) -> bool {
        self.active == "active"
    }
}

/// The machine.
pub(crate) trait Host {
    /// How a unit is.
    fn unit(&self, unit: &str) -> anyhow::Result<Unit>;

    /// Has systemd start a unit, which it stops before where it is to start `again`, and does not wait for the start.
    fn start(&self, unit: &str, again: bool) -> anyhow::Result<()>;

    /// The last lines of a unit's log of this boot; none where it cannot be read.
    fn log(&self, unit: &str) -> Vec<Line>;

    /// The first lines of a unit's log of this boot; none where it cannot be read.
    fn first_log(&self, unit: &str) -> Vec<Line>;

    /// The node's own object.
    fn node(&self, access: &Access, name: &str) -> Result<Option<Node>, ApiError>;

    /// Whether somebody listens there.
    fn connect(&self, address: SocketAddr) -> Result<(), String>;

    /// The kernel's id of this boot.
    fn boot_id(&self) -> anyhow::Result<String>;

    /// What is missing on this machine for K3s, if anything.
    fn ready_for_k3s(&self) -> anyhow::Result<()>;

    /// Has all that was written below `/var` be on its disk.
    fn flush(&self) -> anyhow::Result<()>;

    /// How long it has been.
    fn now(&self) -> Duration;

    /// What is to be said of its clock, if that is not synchronised.
    fn clock_doubt(&self) -> Option<String>;

    /// Lets time pass. Whether the service may go on.
    fn sleep(&self, duration: Duration) -> bool;
}

/// This machine.
pub(crate) struct System {
    begin: Instant,
}

impl System {
    /// From now on.
    pub(crate) fn new() -> Self {
        Self { begin: Instant::now() }
    }
}

impl Host for System {
    fn unit(&self, unit: &str) -> anyhow::Result<Unit> {
        let properties = "--property=LoadState,ActiveState,SubState,NRestarts";
        let output = run("systemctl", &["show", properties, unit], b"", |code| code == 0)?;
        parse_unit(&String::from_utf8_lossy(&output.stdout)).with_context(|| format!("reading the state of {unit}"))
    }

    fn start(&self, unit: &str, again: bool) -> anyhow::Result<()> {
        // A unit that failed too often is started again only once that is forgotten.
        run("systemctl", &["reset-failed", unit], b"", |_| true)?;
        if again {
            run("systemctl", &["stop", unit], b"", |code| code == 0)?;
        }
        run("systemctl", &["--no-block", "start", unit], b"", |code| code == 0)?;
        Ok(())
    }

    fn log(&self, unit: &str) -> Vec<Line> {
        journal(unit, LINES)
    }

    fn first_log(&self, unit: &str) -> Vec<Line> {
        journal(unit, FIRST_LINES)
    }

    fn node(&self, access: &Access, name: &str) -> Result<Option<Node>, ApiError> {
        Connection::open(access)?.call(async |client| Api::<Node>::all(client).get_opt(name).await)
    }

    fn connect(&self, address: SocketAddr) -> Result<(), String> {
        TcpStream::connect_timeout(&address, CONNECT).map(drop).map_err(|error| error.to_string())
    }

    fn boot_id(&self) -> anyhow::Result<String> {
        let path = "/proc/sys/kernel/random/boot_id";
        let read = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        Ok(read.trim().to_owned())
    }

    fn ready_for_k3s(&self) -> anyhow::Result<()> {
        check_machine(Path::new("/"))
    }

    fn flush(&self) -> anyhow::Result<()> {
        let var = std::fs::File::open("/var").context("opening /var")?;
        rustix::fs::syncfs(var).context("flushing /var")
    }

    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    fn clock_doubt(&self) -> Option<String> {
        time::doubt()
    }

    fn sleep(&self, duration: Duration) -> bool {
        let until = Instant::now() + duration;
        while !sys::is_terminated() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(250).min(until - Instant::now()));
        }
        !sys::is_terminated()
    }
}

/// So many lines of a unit's log of this boot.
fn journal(unit: &str, lines: &str) -> Vec<Line> {
    let arguments = ["--boot", "--quiet", "--no-pager", "--output=short-unix", lines, "--unit", unit];
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let output = run("journalctl", &arguments, b"", |code| code == 0);
    output.map(|output| log::parse(&String::from_utf8_lossy(&output.stdout), now)).unwrap_or_default()
}

/// Parses `systemctl show`.
fn parse_unit(output: &str) -> Option<Unit> {
    let value = |key: &str| {
        output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(|value| value.trim().to_owned())
    };
    Some(Unit {
        is_loaded: value("LoadState")? == "loaded",
        active: value("ActiveState")?,
        sub: value("SubState")?,
        restarts: value("NRestarts").and_then(|count| count.parse().ok()).unwrap_or(0),
    })
}

/// Kernel modules that K3s and its pods' network need. The image has them load at the start; what is built in is fine.
const MODULES: [&str; 5] = ["br_netfilter", "nf_conntrack", "nf_tables", "overlay", "vxlan"];
/// Kernel settings without which pods reach nobody. The image makes them.
const SETTINGS: [&str; 2] = ["proc/sys/net/ipv4/ip_forward", "proc/sys/net/bridge/bridge-nf-call-iptables"];
/// The programs.
const K3S: &str = "usr/bin/k3s";
/// What K3s needs of `/var` at the least, in bytes: images are unpacked there.
const SPACE: u64 = 1 << 30;

/// Says what this machine lacks.
fn check_machine(root: &Path) -> anyhow::Result<()> {
    let k3s = root.join(K3S);
    anyhow::ensure!(k3s.is_file(), "there is no {}: this image was built without K3s", k3s.display());
    run_in_root(root, "modprobe", &[&["--all"], &MODULES[..]].concat(), |code| code == 0)
        .context("loading kernel modules")?;
    check_settings(root)?;
    let var = rustix::fs::statvfs(root.join("var")).context("asking how much space /var has")?;
    let free = var.f_bavail * var.f_frsize;
    anyhow::ensure!(free >= SPACE, "/var has {free} bytes left, K3s needs {SPACE}");
    Ok(())
}

fn check_settings(root: &Path) -> anyhow::Result<()> {
    for setting in SETTINGS {
        let path = root.join(setting);
        let value = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        anyhow::ensure!(value.trim() == "1", "{} is {}, expected 1", path.display(), value.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_units_are_parsed() {
        let text = "LoadState=loaded\nActiveState=activating\nSubState=auto-restart\nNRestarts=7\n";
        let unit = parse_unit(text).expect("parsed");
        assert_eq!((unit.restarts, unit.is_active(), unit.is_loaded), (7, false, true));
        let text = "LoadState=not-found\nActiveState=inactive\nSubState=dead\n";
        let unit = parse_unit(text).expect("parsed");
        assert_eq!((unit.restarts, unit.is_active(), unit.is_loaded), (0, false, false));
        assert_eq!(parse_unit(""), None);
    }

    #[test]
    fn settings_are_checked() {
        let root = tempfile::tempdir().expect("tempdir");
        for (values, expected) in [
            (["1", "1"], None),
            (["1", "0"], Some("bridge-nf-call-iptables is 0, expected 1")),
            (["0", "1"], Some("ip_forward is 0, expected 1")),
        ] {
            for (setting, value) in SETTINGS.iter().zip(values) {
                let path = root.path().join(setting);
                std::fs::create_dir_all(path.parent().expect("has one")).expect("made");
                std::fs::write(path, format!("{value}\n")).expect("written");
            }
            let found = check_settings(root.path()).err().map(|error| error.to_string());
            assert_eq!(found.is_some(), expected.is_some(), "{values:?}");
            assert!(found.unwrap_or_default().ends_with(expected.unwrap_or_default()), "{values:?}");
        }
        let empty = tempfile::tempdir().expect("tempdir");
        assert!(check_settings(empty.path()).is_err(), "br_netfilter is not loaded");
        let error = check_machine(empty.path()).expect_err("no K3s").to_string();
        assert!(error.contains("usr/bin/k3s: this image was built without K3s"), "{error}");
    }
}
