//! What the step needs of the machine: the service tailscaled, its interface, time that passes.

use std::fmt;
use std::fs::OpenOptions;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::INTERFACE;
use crate::boot::uptime_ms;
use crate::command;
use crate::run::time;
use crate::summary::{Failure, OrFail};
use crate::sys;

/// The unit.
const UNIT: &str = "tailscaled.service";
/// The program that an image with the component Tailscale has.
const PROGRAM: &str = "/usr/sbin/tailscaled";
/// Opening it loads the module.
const TUN: &str = "/dev/net/tun";
/// How many lines of the service's log are shown when it does not start.
const LOG_LINES: &str = "5";

/// The machine.
pub(super) trait Machine: fmt::Debug {
    /// Starts tailscaled, if it does not run.
    ///
    /// # Errors
    /// When it cannot be started.
    fn start(&self) -> Result<(), Failure>;

    /// The addresses of its interface, if that is up.
    fn addresses(&self) -> Vec<IpAddr>;

    /// Gives its interface an address, and sets it up. One that is there already is none the worse.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn place(&self, address: IpAddr) -> anyhow::Result<()>;

    /// Takes an address from its interface.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn take_away(&self, address: IpAddr) -> anyhow::Result<()>;

    /// Time since some moment.
    fn elapsed(&self) -> Duration;

    /// Lets time pass.
    fn pause(&self, duration: Duration);

    /// What is to be said of its clock, if that is not synchronised.
    fn clock_doubt(&self) -> Option<String>;

    /// Whether the service is to end.
    fn is_stopped(&self) -> bool;
}

/// This machine.
#[derive(Debug)]
pub(super) struct System;

impl Machine for System {
    fn start(&self) -> Result<(), Failure> {
        OpenOptions::new().read(true).write(true).open(TUN).map_err(|error| {
            let why = format!("opening {TUN}: {error}; the kernel's module tun makes it");
            Failure::new("this machine has no tun device for the mesh", why, "write another version of the image")
        })?;
        let started = command::run("systemctl", &["start", UNIT], &[], |code| code == 0);
        let Err(error) = started else { return Ok(()) };
        let what = "tailscaled cannot be started";
        if !Path::new(PROGRAM).exists() {
            let why = format!("there is no {PROGRAM} in this image: {error}");
            return Err(Failure::new(what, why, "build the image with the component tailscale, and write it"));
        }
        let log = command::run("journalctl", &["-u", UNIT, "-n", LOG_LINES, "-o", "cat", "--no-pager"], &[], |_| true);
        let log = log.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
        Err(Failure::new(what, format!("{error}\n{log}"), "look at the journal of the unit tailscaled").retrying())
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let all = sys::interface_addresses().unwrap_or_default();
        all.into_iter().filter(|found| found.interface == INTERFACE).map(|found| found.address).collect()
    }

    fn place(&self, address: IpAddr) -> anyhow::Result<()> {
        command::run("ip", &["link", "set", "dev", INTERFACE, "up"], &[], |code| code == 0)?;
        command::run("ip", &["address", "replace", &host(address), "dev", INTERFACE], &[], |code| code == 0)?;
        Ok(())
    }

    fn take_away(&self, address: IpAddr) -> anyhow::Result<()> {
        command::run("ip", &["address", "delete", &host(address), "dev", INTERFACE], &[], |code| code == 0)?;
        Ok(())
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(uptime_ms())
    }

    fn pause(&self, duration: Duration) {
        std::thread::sleep(duration);
    }

    fn clock_doubt(&self) -> Option<String> {
        time::doubt()
    }

    fn is_stopped(&self) -> bool {
        sys::is_terminated()
    }
}

/// An address alone, in CIDR notation, as tailscaled gives it to its interface.
fn host(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// Reads a file that holds a secret.
///
/// # Errors
/// When it cannot be read. `None` when there is none.
pub(super) fn read_secret(path: &Path) -> Result<Option<String>, Failure> {
    const LIMIT: u64 = 4096;
    if std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let read = crate::files::read_bounded(path, LIMIT).and_then(|content| Ok(String::from_utf8(content)?));
    read.map(Some).or_fail("the auth key of the mesh cannot be read", "restart; if this stays, write the image anew")
}
