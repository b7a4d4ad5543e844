//! `run`: the first-boot service, after systemd has taken over.
//!
//! So far it applies nothing: it reports, to all consoles and to standard output (the journal), what this node is, where
//! it can be reached, which disks it has and where its configuration was found, then checks the whole root, and says
//! that it is ready. The same is in `/run/nodezero/status.json`.

mod boots;
mod report;
mod scrub;

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::boot::{Boot, RUN_DIRECTORY};
use crate::command::run_in_root;
use crate::console;
use crate::disks::{self, Disk};
use crate::files::write_atomically;
use crate::sys::{self, InterfaceAddress};

/// Where the node keeps what it knows about itself.
const LIB_DIRECTORY: &str = "/var/lib/nodezero";
const STATUS_FILE: &str = "status.json";
/// The device that the first stage made.
const ROOT_DEVICE: &str = "/dev/mapper/root";
/// How long to wait for an address.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(20);
const ADDRESS_PAUSE: Duration = Duration::from_millis(250);

/// What the service found, for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Status {
    /// Whether the service has come to its end.
    pub(crate) ready: bool,
    /// How often this node has started.
    pub(crate) boots: u64,
    /// What the first stage did.
    pub(crate) boot: Boot,
    /// Addresses of each interface, as `ADDRESS/PREFIX`.
    pub(crate) addresses: Vec<Address>,
    /// The disks.
    pub(crate) disks: Vec<Disk>,
    /// Bytes of the root device that were read and found intact, once that is done.
    pub(crate) root_verified_bytes: Option<u64>,
    /// The report as it was printed.
    pub(crate) report: Vec<String>,
}

/// An address of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Address {
    /// The interface.
    pub(crate) interface: String,
    /// The address.
    pub(crate) address: IpAddr,
    /// Length of the network's prefix in bits.
    pub(crate) prefix: u8,
}

/// Runs the service.
///
/// # Errors
/// When the first stage left no record, or `state` cannot be written, or the root is not intact. It is on the
/// consoles, too.
pub(crate) fn main() -> anyhow::Result<()> {
    service().inspect_err(|error| console::to_consoles(&format!("nodezero: first-boot service stopped: {error:#}")))
}

/// Reads what the service wrote.
///
/// # Errors
/// When it has not got that far in this boot.
pub(crate) fn read_status() -> anyhow::Result<Status> {
    let path = Path::new(RUN_DIRECTORY).join(STATUS_FILE);
    let json = fs::read(&path).with_context(|| format!("reading {} (has the service run?)", path.display()))?;
    serde_json::from_slice(&json).with_context(|| format!("parsing {}", path.display()))
}

fn service() -> anyhow::Result<()> {
    let boot = Boot::read(Path::new(RUN_DIRECTORY))?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("reading the boot id")?;
    let boots = boots::count(Path::new(LIB_DIRECTORY), &boot_id)?;
    // udev knows serial numbers and contents that the kernel does not tell. Without it, the rest is still told.
    let settled = run_in_root(Path::new("/"), "udevadm", &["settle", "--timeout=10"], |code| code == 0);
    if let Err(error) = settled {
        say(&format!("nodezero: udev has not settled: {error}"));
    }
    let addresses = wait_for_addresses()?;
    let disks = disks::survey();
    let lines = report::lines(&boot, boots, &addresses, &disks);
    lines.iter().for_each(|line| say(line));
    let addresses = addresses
        .into_iter()
        .map(|InterfaceAddress { interface, address, prefix }| Address { interface, address, prefix })
        .collect();
    let mut status = Status { ready: false, boots, boot, addresses, disks, root_verified_bytes: None, report: lines };
    write_status(&status)?;

    // Should the kernel stop now, this line and the kernel's own tell why.
    say("nodezero: root verification begins; a corrupted block stops this machine");
    let begin = Instant::now();
    let bytes = scrub::read_all(Path::new(ROOT_DEVICE)).context("the root file system is corrupted")?;
    say(&format!("nodezero: root verified bytes={bytes} ms={}", begin.elapsed().as_millis()));
    (status.ready, status.root_verified_bytes) = (true, Some(bytes));
    write_status(&status)?;
    say(report::READY);
    Ok(())
}

/// Says a line on the consoles and on standard output.
fn say(line: &str) {
    console::to_consoles(line);
    println!("{line}");
}

fn write_status(status: &Status) -> anyhow::Result<()> {
    let json = serde_json::to_vec_pretty(status).context("writing the status as JSON")?;
    write_atomically(&Path::new(RUN_DIRECTORY).join(STATUS_FILE), &json, 0o600)
}

/// Waits a while for an address that reaches further than the link.
fn wait_for_addresses() -> anyhow::Result<Vec<InterfaceAddress>> {
    let deadline = Instant::now() + ADDRESS_PATIENCE;
    loop {
        let mut addresses = sys::interface_addresses().context("listing addresses")?;
        addresses.retain(|found| !is_link_local(found.address));
        if !addresses.is_empty() || Instant::now() >= deadline {
            return Ok(addresses);
        }
        std::thread::sleep(ADDRESS_PAUSE);
    }
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

    #[test]
    fn link_local_addresses_are_told_apart() {
        for (address, expected) in
            [("169.254.3.4", true), ("fe80::1", true), ("10.0.2.15", false), ("fec0::15", false), ("fd7a::1", false)]
        {
            assert_eq!(is_link_local(address.parse().expect(address)), expected, "{address}");
        }
    }

    #[test]
    fn the_status_is_read_as_it_was_written() {
        let status = Status {
            ready: true,
            boots: 2,
            boot: crate::boot::tests::example(),
            addresses: vec![Address { interface: "eth0".into(), address: [10, 0, 2, 15].into(), prefix: 24 }],
            disks: Vec::new(),
            root_verified_bytes: Some(4096),
            report: vec![report::READY.into()],
        };
        let json = serde_json::to_string(&status).expect("JSON");
        assert_eq!(serde_json::from_str::<Status>(&json).expect("parses"), status);
    }
}
