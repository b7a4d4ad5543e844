//! The network in the words of systemd-networkd and of dracut.cmdline(7).

use std::fmt::Write as _;
use std::net::IpAddr;

use super::{Interface, Made, Network, Route};

/// The first line of every unit file.
const HEADER: &str = "# Rendered by nodezero from this node's profile.\n";
/// What tells devices from links that are made.
const DEVICE: &str = "Kind=!*";

/// A unit file of systemd-networkd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Its name, without directory.
    pub(crate) name: String,
    /// Its content.
    pub(crate) content: String,
}

/// The unit files, sorted by name. They have the names that the first stage gives to the files that it makes of words,
/// and lie in `/etc`, so that they count before those.
pub(crate) fn units(network: &Network) -> Vec<Unit> {
    let mut units = Vec::new();
    for (name, interface) in &network.interfaces {
        let mut add = |suffix: &str, text: Text| {
            units.push(Unit { name: format!("70-nodezero-{name}.{suffix}"), content: text.0 });
        };
        if let Some(mac) = &interface.mac {
            let mut text = Text::new();
            text.section("Match", [format!("PermanentMACAddress={mac}"), DEVICE.to_owned()]);
            text.section("Link", [format!("Name={name}")]);
            add("link", text);
        }
        if let Some(text) = netdev(name, interface) {
            add("netdev", text);
        }
        add("network", network_unit(network, name, interface));
    }
    let mut text = Text::new();
    text.section("Match", ["Type=ether".to_owned(), DEVICE.to_owned()]);
    text.section("Link", ["Unmanaged=yes".to_owned()]);
    units.push(Unit { name: "71-nodezero-any.network".to_owned(), content: text.0 });
    units.sort_by(|one, other| one.name.cmp(&other.name));
    units
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

fn mtu_line(interface: &Interface) -> Option<String> {
    interface.mtu.map(|mtu| format!("MTUBytes={mtu}"))
}

/// A link that is made.
fn netdev(name: &str, interface: &Interface) -> Option<Text> {
    let mut text = Text::new();
    let mut head = |kind: &str| {
        let lines = [format!("Name={name}"), format!("Kind={kind}")];
        text.section("NetDev", lines.into_iter().chain(mtu_line(interface)));
    };
    match &interface.made {
        Made::Device => return None,
        Made::Vlan { id, .. } => {
            head("vlan");
            text.section("VLAN", [format!("Id={id}")]);
        }
        Made::Bond { mode, miimon, .. } => {
            head("bond");
            text.section("Bond", [format!("Mode={}", mode.name()), format!("MIIMonitorSec={miimon}ms")]);
        }
    }
    Some(text)
}

fn network_unit(network: &Network, name: &str, interface: &Interface) -> Text {
    let mut text = Text::new();
    match &interface.mac {
        Some(mac) => text.section("Match", [format!("PermanentMACAddress={mac}"), DEVICE.to_owned()]),
        None => text.section("Match", [format!("Name={name}")]),
    }
    if interface.made == Made::Device {
        text.section("Link", mtu_line(interface));
    }
    let mut lines = vec![
        format!("DHCP={}", if interface.dhcp { "ipv4" } else { "no" }),
        // Said either way, for the cluster makes the machine forward packets.
        format!("IPv6AcceptRA={}", if interface.ipv6_auto { "yes" } else { "no" }),
        "LLMNR=no".to_owned(),
        "MulticastDNS=no".to_owned(),
    ];
    if interface.is_addressed() {
        lines.extend(network.nameservers.iter().map(|server| format!("DNS={server}")));
    }
    lines.extend(network.interfaces.iter().filter_map(|(other, link)| match &link.made {
        Made::Vlan { on, .. } if on == name => Some(format!("VLAN={other}")),
        Made::Device | Made::Vlan { .. } | Made::Bond { .. } => None,
    }));
    lines.extend(network.bond_of(name).map(|bond| format!("Bond={bond}")));
    text.section("Network", lines);
    if interface.dhcp {
        let lines = ["ClientIdentifier=mac", "UseHostname=no"].map(str::to_owned);
        text.section("DHCPv4", lines.into_iter().chain(interface.mtu.is_none().then(|| "UseMTU=yes".to_owned())));
    }
    for own in &interface.addresses {
        text.section("Address", [format!("Address={}/{}", own.address, own.network.prefix())]);
    }
    for route in &interface.routes {
        text.section("Route", route_lines(route));
    }
    text
}

fn route_lines(route: &Route) -> impl Iterator<Item = String> {
    let to = route.to.map(|to| format!("Destination={to}"));
    let via = route.via.map(|via| format!("Gateway={via}"));
    to.into_iter().chain(via).chain(route.on_link.then(|| "GatewayOnLink=yes".to_owned()))
}

/// The same in the first stage's words, one on each line.
pub(crate) fn words(network: &Network) -> String {
    let mut words = Vec::new();
    for (name, interface) in &network.interfaces {
        words.extend(interface.mac.iter().map(|mac| format!("ifname={name}:{mac}")));
        match &interface.made {
            Made::Device => {}
            Made::Vlan { on, .. } => words.push(format!("vlan={name}:{on}")),
            Made::Bond { members, mode, miimon } => {
                words.push(format!("bond={name}:{}:mode={},miimon={miimon}", members.join(","), mode.name()));
            }
        }
        address_words(name, interface, &mut words);
    }
    words.extend(network.nameservers.iter().map(|server| format!("nameserver={}", bracketed(*server))));
    words.iter().fold(HEADER.to_owned(), |text, word| text + word + "\n")
}

fn address_words(name: &str, interface: &Interface, words: &mut Vec<String>) {
    let mut mtu = interface.mtu.map(|mtu| format!(":{mtu}")).unwrap_or_default();
    for (asked, method) in [(interface.dhcp, "dhcp"), (interface.ipv6_auto, "auto6")] {
        if asked {
            words.push(format!("ip={name}:{method}{}", std::mem::take(&mut mtu)));
        }
    }
    for own in &interface.addresses {
        let mtu = std::mem::take(&mut mtu);
        words.push(format!("ip={}:::{}::{name}:none{mtu}", bracketed(own.address), own.network.prefix()));
    }
    // Only links that nothing uses need an address; others may want a packet size all the same.
    if !mtu.is_empty() {
        words.push(format!("ip={name}:none{mtu}"));
    }
    for route in &interface.routes {
        let via = route.via.map(bracketed).unwrap_or_default();
        let to = match (route.to, route.via) {
            (Some(to), _) => format!("{}/{}", bracketed(to.address()), to.prefix()),
            (None, Some(IpAddr::V6(_))) => "[::]/0".to_owned(),
            (None, _) => "0.0.0.0/0".to_owned(),
        };
        words.push(format!("rd.route={to}:{via}:{name}"));
    }
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}
