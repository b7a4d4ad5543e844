//! The same network as unit files of systemd-networkd, in the form of [`nodezero_profile::networkd`].
//!
//! A device is told by the hardware address of the link that the first stage found for a name, for udev may give it
//! another.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use nodezero_profile::networkd::{self, Files, Found, Link, Made, Routers, Unit};

use super::bond;
use super::config::{NetworkConfig, Origin};
use super::plan::Pin;
use super::types::{Address, Interface, InterfaceName, Method, Route, Virtual};
use crate::files::write_atomically;

/// The first line of every file.
const HEADER: &str = "# Written by nodezero-firstboot at this boot, from the words for the network.\n";

/// The unit files for a network, sorted by name. Without words there are none, and the image's own count.
pub(crate) fn render_units(config: &NetworkConfig, pins: &BTreeMap<InterfaceName, Pin>) -> Vec<Unit> {
    if config.origin == Origin::Default {
        return Vec::new();
    }
    let mut files = Files::new(HEADER);
    for (name, mac) in &config.macs {
        files.rename(name.as_str(), &found(pins.get(name).copied().unwrap_or(Pin::Current(*mac))));
    }
    for (name, virtual_link) in &config.virtuals {
        let made = match virtual_link {
            Virtual::Vlan(vlan) => Made::Vlan(vlan.id),
            Virtual::Bond(bond) => Made::Bond(bond::unit_lines(bond)),
            Virtual::Bridge(_) => Made::Bridge,
        };
        let interface = config.interfaces.get(name);
        let mac = interface.and_then(|interface| interface.mac).map(|mac| mac.to_string());
        files.make(name.as_str(), &made, interface.and_then(|interface| interface.mtu), mac.as_deref());
    }
    for (name, interface) in &config.interfaces {
        let is_made = config.virtuals.contains_key(name);
        let found = match (pins.get(name), interface.mac) {
            (Some(_), _) if is_made => Found::Name(name.to_string()),
            (None, _) => Found::Name(name.to_string()),
            (Some(Pin::Current(_)), Some(mac)) => found(Pin::Current(mac)),
            (Some(pin), _) => found(*pin),
        };
        files.configure(name.as_str(), &found, &link(config, Some(name), interface), is_made);
    }
    let any = config.any.as_ref().filter(|any| any.is_addressed());
    files.configure_others(any.map(|any| link(config, None, any)).as_ref());
    files.into_units()
}

/// Lays the files into a directory, and takes away those of an earlier time.
///
/// # Errors
/// With the path, what the file system answers.
pub(crate) fn write_units(units: &[Unit], directory: &Path) -> anyhow::Result<()> {
    let reading = || format!("reading {}", directory.display());
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    for entry in fs::read_dir(directory).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ours = name.starts_with("70-nodezero-") || name.starts_with("71-nodezero-");
        if ours && !units.iter().any(|unit| unit.name == name) {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    units.iter().try_for_each(|unit| write_atomically(&directory.join(&unit.name), unit.content.as_bytes(), 0o644))
}

fn found(pin: Pin) -> Found {
    match pin {
        Pin::Permanent(mac) => Found::Permanent(mac.to_string()),
        Pin::Current(mac) => Found::Current(mac.to_string()),
    }
}

fn link(config: &NetworkConfig, name: Option<&InterfaceName>, interface: &Interface) -> Link {
    let address = |address: &Address| (address.local.to_string(), address.peer.map(|peer| peer.to_string()));
    Link {
        mtu: interface.mtu,
        mac: interface.mac.map(|mac| mac.to_string()),
        dhcp4: interface.dhcp(),
        dhcp6: interface.methods.contains(&Method::Any) || interface.methods.contains(&Method::Either6),
        hostname: interface.hostname.clone(),
        routers: routers(config, name, interface),
        own_dns: !config.peer_dns,
        nameservers: if interface.is_addressed() { config.nameservers.clone() } else { Vec::new() },
        uses: name.map(|name| uses(config, name)).unwrap_or_default(),
        addresses: interface.addresses.iter().map(address).collect(),
        routes: interface.routes.iter().map(route).collect(),
    }
}

fn routers(config: &NetworkConfig, name: Option<&InterfaceName>, interface: &Interface) -> Routers {
    if interface.link6() || name.is_some_and(|name| config.is_member(name)) {
        Routers::Unheard
    } else if !interface.is_addressed() {
        // networkd is not to wait for a router on it.
        Routers::Unaddressed
    } else if interface.auto6() || interface.methods.contains(&Method::Any) {
        // Else it would end when the cluster lets the machine forward packets.
        Routers::Heard
    } else {
        Routers::Unsaid
    }
}

/// What is made of a link.
fn uses(config: &NetworkConfig, name: &InterfaceName) -> Vec<String> {
    let mut lines = Vec::new();
    for (other, made) in config.virtuals.iter().filter(|(_, made)| made.needs().contains(name)) {
        match made {
            Virtual::Vlan(_) => lines.push(format!("VLAN={other}")),
            Virtual::Bridge(_) => lines.push(format!("Bridge={other}")),
            Virtual::Bond(bond) => {
                lines.push(format!("Bond={other}"));
                let primary = bond.options.get("primary").is_some_and(|primary| primary == name.as_str());
                lines.extend(primary.then(|| "PrimarySlave=yes".to_owned()));
            }
        }
    }
    lines
}

fn route(route: &Route) -> networkd::Route {
    let is_said = !route.destination.is_default() || route.gateway.is_none();
    let destination = is_said.then(|| route.destination.to_string());
    networkd::Route { destination, gateway: route.gateway, on_link: route.on_link }
}
