//! The same network as unit files of systemd-networkd.
//!
//! Files are called `70-nodezero-NAME`, and `71-nodezero-any.network` is what they say of all other devices, so that
//! the image's default of DHCP everywhere comes after them. A device is told by the hardware address of the link that
//! the first stage found for a name, for udev may give it another. Formats: systemd.network(5), systemd.netdev(5),
//! systemd.link(5).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;

use super::bond;
use super::config::{NetworkConfig, Origin};
use super::plan::Pin;
use super::types::{Interface, InterfaceName, Method, Route, Virtual};
use crate::files::write_atomically;

/// The first line of every file.
const HEADER: &str = "# Written by nodezero-firstboot at this boot, from the words for the network.\n";
/// What tells devices from links that are made.
const DEVICE: &str = "Kind=!*";

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Its name, without directory.
    pub(crate) name: String,
    /// Its content.
    pub(crate) content: String,
}

/// The unit files for a network, sorted by name. Without words there are none, and the image's own count.
pub(crate) fn render_units(config: &NetworkConfig, pins: &BTreeMap<InterfaceName, Pin>) -> Vec<Unit> {
    if config.origin == Origin::Default {
        return Vec::new();
    }
    let mut units = Vec::new();
    let mut add = |name: String, content: Text| units.push(Unit { name, content: content.0 });
    for (name, mac) in &config.macs {
        let pin = pins.get(name).copied().unwrap_or(Pin::Current(*mac));
        let mut text = Text::new();
        text.section("Match", [match_of(pin), DEVICE.to_owned()]);
        text.section("Link", [format!("Name={name}")]);
        add(format!("70-nodezero-{name}.link"), text);
    }
    for (name, made) in &config.virtuals {
        add(format!("70-nodezero-{name}.netdev"), netdev(name, made, config.interfaces.get(name)));
    }
    for (name, interface) in &config.interfaces {
        let mut text = Text::new();
        text.section("Match", match_lines(config, name, interface, pins.get(name)));
        network(&mut text, config, Some(name), interface);
        add(format!("70-nodezero-{name}.network"), text);
    }
    let mut text = Text::new();
    text.section("Match", ["Type=ether".to_owned(), DEVICE.to_owned()]);
    match config.any.as_ref().filter(|any| any.is_addressed()) {
        Some(any) => network(&mut text, config, None, any),
        None => text.section("Link", ["Unmanaged=yes".to_owned()]),
    }
    add("71-nodezero-any.network".to_owned(), text);
    units.sort_by(|one, other| one.name.cmp(&other.name));
    units
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

/// The text of a file, section by section.
struct Text(String);

impl Text {
    fn new() -> Self {
        Self(HEADER.to_owned())
    }

    /// A section, unless it would be empty.
    fn section(&mut self, name: &str, lines: impl IntoIterator<Item = String>) {
        let mut lines = lines.into_iter().peekable();
        if lines.peek().is_some() {
            write!(self.0, "\n[{name}]\n").expect("a string takes everything");
            lines.for_each(|line| self.0 += &format!("{line}\n"));
        }
    }
}

/// A virtual link.
fn netdev(name: &InterfaceName, made: &Virtual, interface: Option<&Interface>) -> Text {
    let kind = match made {
        Virtual::Vlan(_) => "vlan",
        Virtual::Bond(_) => "bond",
        Virtual::Bridge(_) => "bridge",
    };
    let mut text = Text::new();
    let mut lines = vec![format!("Name={name}"), format!("Kind={kind}")];
    lines.extend(interface.into_iter().flat_map(shape_lines));
    text.section("NetDev", lines);
    match made {
        Virtual::Vlan(vlan) => text.section("VLAN", [format!("Id={}", vlan.id)]),
        Virtual::Bond(bond) => text.section("Bond", bond::unit_lines(bond)),
        Virtual::Bridge(_) => text.section("Bridge", ["ForwardDelaySec=0".to_owned()]),
    }
    text
}

/// Packet size and hardware address.
fn shape_lines(interface: &Interface) -> Vec<String> {
    let mtu = interface.mtu.map(|mtu| format!("MTUBytes={mtu}"));
    let mac = interface.mac.map(|mac| format!("MACAddress={mac}"));
    mtu.into_iter().chain(mac).collect()
}

fn match_of(pin: Pin) -> String {
    match pin {
        Pin::Permanent(mac) => format!("PermanentMACAddress={mac}"),
        Pin::Current(mac) => format!("MACAddress={mac}"),
    }
}

/// How networkd finds the link that a name stands for.
fn match_lines(config: &NetworkConfig, name: &InterfaceName, interface: &Interface, pin: Option<&Pin>) -> Vec<String> {
    match (pin, interface.mac) {
        _ if config.virtuals.contains_key(name) => vec![format!("Name={name}")],
        (None, _) => vec![format!("Name={name}")],
        (Some(Pin::Current(_)), Some(mac)) => vec![match_of(Pin::Current(mac)), DEVICE.to_owned()],
        (Some(pin), _) => vec![match_of(*pin), DEVICE.to_owned()],
    }
}

/// Everything behind `[Match]` of a `.network` file.
fn network(text: &mut Text, config: &NetworkConfig, name: Option<&InterfaceName>, interface: &Interface) {
    if !name.is_some_and(|name| config.virtuals.contains_key(name)) {
        text.section("Link", shape_lines(interface));
    }
    text.section("Network", network_lines(config, name, interface));
    let no_dns = (!config.peer_dns).then(|| "UseDNS=no".to_owned());
    if interface.dhcp() {
        let mut lines = vec!["ClientIdentifier=mac".to_owned(), "UseHostname=no".to_owned()];
        lines.extend(interface.mtu.is_none().then(|| "UseMTU=yes".to_owned()));
        lines.extend(interface.hostname.as_ref().map(|hostname| format!("Hostname={hostname}")));
        lines.extend(no_dns.clone());
        text.section("DHCPv4", lines);
    }
    if interface.methods.contains(&Method::Any) || interface.methods.contains(&Method::Either6) {
        text.section("DHCPv6", ["UseHostname=no".to_owned()].into_iter().chain(no_dns.clone()));
    }
    text.section("IPv6AcceptRA", no_dns);
    for address in &interface.addresses {
        let peer = address.peer.map(|peer| format!("Peer={peer}"));
        text.section("Address", [format!("Address={}", address.local)].into_iter().chain(peer));
    }
    for route in &interface.routes {
        text.section("Route", route_lines(route));
    }
}

fn network_lines(config: &NetworkConfig, name: Option<&InterfaceName>, interface: &Interface) -> Vec<String> {
    let mut lines = vec![format!("DHCP={}", dhcp_value(interface))];
    if interface.link6() || name.is_some_and(|name| config.is_member(name)) {
        lines.push("IPv6AcceptRA=no".to_owned());
    } else if !interface.is_addressed() {
        // What only carries others has no address of its own, and networkd is not to wait for a router on it.
        lines.extend(["LinkLocalAddressing=no".to_owned(), "IPv6AcceptRA=no".to_owned()]);
    } else if interface.auto6() || interface.methods.contains(&Method::Any) {
        // Else it would end when the cluster lets the machine forward packets.
        lines.push("IPv6AcceptRA=yes".to_owned());
    }
    lines.extend(["LLMNR=no".to_owned(), "MulticastDNS=no".to_owned()]);
    if interface.is_addressed() {
        lines.extend(config.nameservers.iter().map(|server| format!("DNS={server}")));
    }
    let Some(name) = name else { return lines };
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

fn dhcp_value(interface: &Interface) -> &'static str {
    let v6 = interface.methods.contains(&Method::Any) || interface.methods.contains(&Method::Either6);
    match (interface.dhcp(), v6) {
        (true, true) => "yes",
        (true, false) => "ipv4",
        (false, true) => "ipv6",
        (false, false) => "no",
    }
}

fn route_lines(route: &Route) -> Vec<String> {
    let destination = (!route.destination.is_default() || route.gateway.is_none())
        .then(|| format!("Destination={}", route.destination));
    let gateway = route.gateway.map(|gateway| format!("Gateway={gateway}"));
    let on_link = route.on_link.then(|| "GatewayOnLink=yes".to_owned());
    destination.into_iter().chain(gateway).chain(on_link).collect()
}
