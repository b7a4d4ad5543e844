//! Unit files of systemd-networkd: the one place that knows their form, for the operator's rendering of a profile and
//! for a node that makes them of its kernel's words.
//!
//! Files are called `70-nodezero-NAME`, and `71-nodezero-any.network` is what they say of all other devices, so that
//! the image's default of DHCP everywhere comes after them. Formats: systemd.network(5), systemd.netdev(5),
//! systemd.link(5). Pure. Values are texts that were checked by who gives them.

use std::fmt::Write;
use std::net::IpAddr;

/// What tells devices from links that are made.
const DEVICE: &str = "Kind=!*";

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its name, without directory.
    pub name: String,
    /// Its content.
    pub content: String,
}

/// By what a link is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// By its name.
    Name(String),
    /// A device by the hardware address that it came with.
    Permanent(String),
    /// A device by the hardware address that it has.
    Current(String),
    /// Every Ethernet device that no other file is about.
    Other,
}

/// What a virtual link is, with its own settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// A VLAN with this identifier.
    Vlan(u16),
    /// A bond, with the lines of its section.
    Bond(Vec<String>),
    /// A bridge.
    Bridge,
}

/// What a link says to router advertisements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Routers {
    /// What networkd does by itself.
    #[default]
    Unsaid,
    /// It listens, also where the machine forwards packets.
    Heard,
    /// It does not listen.
    Unheard,
    /// It does not listen, nor has any address of its own: it only carries others.
    Unaddressed,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network that it leads to; `None` for all of the gateway's family.
    pub destination: Option<String>,
    /// Through whom.
    pub gateway: Option<IpAddr>,
    /// Whether the gateway is on the link though no address says so.
    pub on_link: bool,
}

/// What a link is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The largest packet, in bytes.
    pub mtu: Option<u32>,
    /// The hardware address that it is to have.
    pub mac: Option<String>,
    /// Whether it asks for IPv4 addresses.
    pub dhcp4: bool,
    /// Whether it asks for IPv6 addresses.
    pub dhcp6: bool,
    /// The host name that DHCP servers are told.
    pub hostname: Option<String>,
    /// What it says to router advertisements.
    pub routers: Routers,
    /// Whether DNS servers that others name are left alone.
    pub own_dns: bool,
    /// DNS servers.
    pub nameservers: Vec<IpAddr>,
    /// Lines about links that are made of this one, such as `VLAN=NAME`.
    pub uses: Vec<String>,
    /// Addresses with the lengths of their prefixes, each with the other end of the line where there is one.
    pub addresses: Vec<(String, Option<String>)>,
    /// Routes.
    pub routes: Vec<Route>,
}

/// The files of a machine, as they are gathered.
#[derive(Clone, Debug)]
pub struct Files {
    header: &'static str,
    units: Vec<Unit>,
}

impl Files {
    /// None yet. `header` is the first line of each, a comment with its line's end.
    #[must_use]
    pub fn new(header: &'static str) -> Self {
        Self { header, units: Vec::new() }
    }

    /// A device is to have this name.
    pub fn rename(&mut self, name: &str, found: &Found) {
        let mut text = Text(self.header.to_owned());
        text.section("Match", match_lines(found));
        text.section("Link", [format!("Name={name}")]);
        self.add(format!("70-nodezero-{name}.link"), text);
    }

    /// A virtual link is to be made. Its packet size and hardware address are given here.
    pub fn make(&mut self, name: &str, made: &Made, mtu: Option<u32>, mac: Option<&str>) {
        let (kind, section, lines) = match made {
            Made::Vlan(id) => ("vlan", "VLAN", vec![format!("Id={id}")]),
            Made::Bond(lines) => ("bond", "Bond", lines.clone()),
            Made::Bridge => ("bridge", "Bridge", vec!["ForwardDelaySec=0".to_owned()]),
        };
        let mut text = Text(self.header.to_owned());
        let head = [format!("Name={name}"), format!("Kind={kind}")];
        text.section("NetDev", head.into_iter().chain(shape_lines(mtu, mac)));
        text.section(section, lines);
        self.add(format!("70-nodezero-{name}.netdev"), text);
    }

    /// What a link with a name is to be. Of one that is made, packet size and hardware address are said elsewhere.
    pub fn configure(&mut self, name: &str, found: &Found, link: &Link, is_made: bool) {
        let text = self.network(found, link, is_made);
        self.add(format!("70-nodezero-{name}.network"), text);
    }

    /// What all other devices are to be: left alone where nothing is said.
    pub fn configure_others(&mut self, link: Option<&Link>) {
        let text = match link {
            Some(link) => self.network(&Found::Other, link, false),
            None => {
                let mut text = Text(self.header.to_owned());
                text.section("Match", match_lines(&Found::Other));
                text.section("Link", ["Unmanaged=yes".to_owned()]);
                text
            }
        };
        self.add("71-nodezero-any.network".to_owned(), text);
    }

    /// All of them, sorted by name.
    #[must_use]
    pub fn into_units(mut self) -> Vec<Unit> {
        self.units.sort_by(|one, other| one.name.cmp(&other.name));
        self.units
    }

    fn add(&mut self, name: String, content: Text) {
        self.units.push(Unit { name, content: content.0 });
    }

    fn network(&self, found: &Found, link: &Link, is_made: bool) -> Text {
        let mut text = Text(self.header.to_owned());
        text.section("Match", match_lines(found));
        if !is_made {
            text.section("Link", shape_lines(link.mtu, link.mac.as_deref()));
        }
        text.section("Network", network_lines(link));
        let own_dns = link.own_dns.then(|| "UseDNS=no".to_owned());
        if link.dhcp4 {
            let mut lines = vec!["ClientIdentifier=mac".to_owned(), "UseHostname=no".to_owned()];
            lines.extend(link.mtu.is_none().then(|| "UseMTU=yes".to_owned()));
            lines.extend(link.hostname.as_ref().map(|hostname| format!("Hostname={hostname}")));
            lines.extend(own_dns.clone());
            text.section("DHCPv4", lines);
        }
        if link.dhcp6 {
            text.section("DHCPv6", ["UseHostname=no".to_owned()].into_iter().chain(own_dns.clone()));
        }
        text.section("IPv6AcceptRA", own_dns);
        for (address, peer) in &link.addresses {
            let peer = peer.iter().map(|peer| format!("Peer={peer}"));
            text.section("Address", [format!("Address={address}")].into_iter().chain(peer));
        }
        for route in &link.routes {
            text.section("Route", route_lines(route));
        }
        text
    }
}

/// The text of a file, section by section.
struct Text(String);

impl Text {
    /// A section, unless it would be empty.
    fn section(&mut self, name: &str, lines: impl IntoIterator<Item = String>) {
        let mut lines = lines.into_iter().peekable();
        if lines.peek().is_some() {
            write!(self.0, "\n[{name}]\n").expect("a string takes everything");
            lines.for_each(|line| self.0 += &format!("{line}\n"));
        }
    }
}

fn match_lines(found: &Found) -> Vec<String> {
    match found {
        Found::Name(name) => vec![format!("Name={name}")],
        Found::Permanent(mac) => vec![format!("PermanentMACAddress={mac}"), DEVICE.to_owned()],
        Found::Current(mac) => vec![format!("MACAddress={mac}"), DEVICE.to_owned()],
        Found::Other => vec!["Type=ether".to_owned(), DEVICE.to_owned()],
    }
}

/// Packet size and hardware address.
fn shape_lines(mtu: Option<u32>, mac: Option<&str>) -> impl Iterator<Item = String> {
    let mtu = mtu.map(|mtu| format!("MTUBytes={mtu}"));
    mtu.into_iter().chain(mac.map(|mac| format!("MACAddress={mac}")))
}

fn network_lines(link: &Link) -> Vec<String> {
    let dhcp = match (link.dhcp4, link.dhcp6) {
        (true, true) => "yes",
        (true, false) => "ipv4",
        (false, true) => "ipv6",
        (false, false) => "no",
    };
    let routers: &[&str] = match link.routers {
        Routers::Unsaid => &[],
        Routers::Heard => &["IPv6AcceptRA=yes"],
        Routers::Unheard => &["IPv6AcceptRA=no"],
        Routers::Unaddressed => &["LinkLocalAddressing=no", "IPv6AcceptRA=no"],
    };
    let mut lines = vec![format!("DHCP={dhcp}")];
    lines.extend(routers.iter().chain(&["LLMNR=no", "MulticastDNS=no"]).map(|line| (*line).to_owned()));
    lines.extend(link.nameservers.iter().map(|server| format!("DNS={server}")));
    lines.extend(link.uses.iter().cloned());
    lines
}

fn route_lines(route: &Route) -> impl Iterator<Item = String> {
    let destination = route.destination.as_ref().map(|to| format!("Destination={to}"));
    let gateway = route.gateway.map(|gateway| format!("Gateway={gateway}"));
    let on_link = route.on_link.then(|| "GatewayOnLink=yes".to_owned());
    destination.into_iter().chain(gateway).chain(on_link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_sorted_and_say_no_more_than_they_must() {
        let mut files = Files::new("# of a test\n");
        files.configure_others(None);
        let link = Link { mtu: Some(9000), dhcp4: true, ..Link::default() };
        files.configure("b", &Found::Permanent("02:00:00:00:00:01".to_owned()), &link, false);
        files.make("a", &Made::Vlan(7), Some(1400), None);
        files.configure("a", &Found::Name("a".to_owned()), &Link { mtu: Some(1400), ..Link::default() }, true);
        let shown: String =
            files.into_units().into_iter().map(|unit| format!("== {}\n{}", unit.name, unit.content)).collect();
        assert_eq!(
            shown.replace("# of a test\n\n", ""),
            "== 70-nodezero-a.netdev\n[NetDev]\nName=a\nKind=vlan\nMTUBytes=1400\n\n[VLAN]\nId=7\n\
             == 70-nodezero-a.network\n[Match]\nName=a\n\n[Network]\nDHCP=no\nLLMNR=no\nMulticastDNS=no\n\
             == 70-nodezero-b.network\n[Match]\nPermanentMACAddress=02:00:00:00:00:01\nKind=!*\n\n[Link]\nMTUBytes=9000\n\n\
             [Network]\nDHCP=ipv4\nLLMNR=no\nMulticastDNS=no\n\n[DHCPv4]\nClientIdentifier=mac\nUseHostname=no\n\
             == 71-nodezero-any.network\n[Match]\nType=ether\nKind=!*\n\n[Link]\nUnmanaged=yes\n"
        );
    }
}
