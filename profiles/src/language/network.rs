//! The network of a node: what a profile says of it, checked, and written in two languages.
//!
//! For the running system these are unit files of systemd-networkd (systemd.network(5), systemd.netdev(5),
//! systemd.link(5)). A machine that needs its network before it can fetch a configuration has the same in the words of
//! dracut.cmdline(7), in the ESP's `/nodezero/network`.
//!
//! Left out: bridges, wireless links, DHCPv6, and options of bonds beside mode and monitoring.

mod render;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::model::{BondMode, RawInterface, RawNetwork, RawRoute};
use crate::node::join::Network as Cidr;
use crate::problem::Findings;

pub(crate) use render::{units, words};

/// The network of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    /// Each link that is named, members of others included.
    pub(crate) interfaces: BTreeMap<String, Interface>,
    /// DNS servers.
    pub(crate) nameservers: Vec<IpAddr>,
}

/// One link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    /// What it is made of.
    pub(crate) made: Made,
    /// The hardware address by which it is known.
    pub(crate) mac: Option<String>,
    /// Whether it asks for an IPv4 address.
    pub(crate) dhcp: bool,
    /// Whether it listens to router advertisements.
    pub(crate) ipv6_auto: bool,
    /// Fixed addresses.
    pub(crate) addresses: Vec<Address>,
    /// Routes, the default ones first.
    pub(crate) routes: Vec<Route>,
    /// Packet size in bytes.
    pub(crate) mtu: Option<u32>,
}

/// What a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// A device.
    Device,
    /// A VLAN.
    Vlan {
        /// Its identifier.
        id: u16,
        /// The link that it is on.
        on: String,
    },
    /// A bond.
    Bond {
        /// Its members, in order.
        members: Vec<String>,
        /// Its mode.
        mode: BondMode,
        /// How often members are looked at, in milliseconds.
        miimon: u32,
    },
}

/// An address and the network around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// The address.
    pub(crate) address: IpAddr,
    /// Its network.
    pub(crate) network: Cidr,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The network that it leads to; `None` for all of the gateway's family.
    pub(crate) to: Option<Cidr>,
    /// The gateway.
    pub(crate) via: Option<IpAddr>,
    /// Whether the gateway is on the link though no address says so.
    pub(crate) on_link: bool,
}

impl Interface {
    /// Whether it has or asks for an address.
    pub(crate) fn is_addressed(&self) -> bool {
        self.dhcp || self.ipv6_auto || !self.addresses.is_empty()
    }

    /// The links that it needs.
    fn needs(&self) -> &[String] {
        match &self.made {
            Made::Device => &[],
            Made::Vlan { on, .. } => std::slice::from_ref(on),
            Made::Bond { members, .. } => members,
        }
    }
}

impl Network {
    /// The bond that a link is a member of.
    pub(crate) fn bond_of(&self, name: &str) -> Option<&str> {
        let is_member = |made: &Made| match made {
            Made::Bond { members, .. } => members.iter().any(|member| member == name),
            Made::Device | Made::Vlan { .. } => false,
        };
        self.interfaces.iter().find(|(_, interface)| is_member(&interface.made)).map(|(bond, _)| bond.as_str())
    }

    /// All fixed addresses, with the path of each.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (String, Address)> + '_ {
        self.interfaces.iter().flat_map(|(name, interface)| {
            let path = path_of(name);
            let addresses = interface.addresses.iter().enumerate();
            addresses.map(move |(index, address)| (format!("{path}.addresses[{index}]"), *address))
        })
    }
}

fn path_of(name: &str) -> String {
    super::shape::join("network.interfaces", name)
}

/// Checks the network of a profile. Gives what is sound of it.
pub(crate) fn validate(raw: RawNetwork, findings: &mut Findings) -> Network {
    let mut nameservers = Vec::new();
    for (index, text) in raw.nameservers.iter().enumerate() {
        let path = format!("network.nameservers[{index}]");
        nameservers.extend(findings.take(&path, parse_host(text)));
    }
    let mut interfaces = BTreeMap::new();
    for (name, raw) in raw.interfaces {
        let interface = interface(&name, raw, findings);
        interfaces.insert(name, interface);
    }
    // Links that others need, and of which nothing else is said.
    let needed: Vec<String> = interfaces.values().flat_map(|link: &Interface| link.needs().to_vec()).collect();
    for name in needed {
        interfaces.entry(name).or_insert_with(|| Interface {
            made: Made::Device,
            mac: None,
            dhcp: false,
            ipv6_auto: false,
            addresses: Vec::new(),
            routes: Vec::new(),
            mtu: None,
        });
    }
    let network = Network { interfaces, nameservers };
    check_together(&network, findings);
    network
}

fn interface(name: &str, raw: RawInterface, findings: &mut Findings) -> Interface {
    let path = path_of(name);
    let made = match (raw.vlan, raw.bond) {
        (Some(_), Some(_)) => {
            findings.add(&*path, "a link is a VLAN or a bond, not both");
            Made::Device
        }
        (Some(vlan), None) => {
            if name != format!("vlan{}", vlan.id) && name != format!("{}.{}", vlan.link, vlan.id) {
                let expected = format!("vlan{} or {}.{}", vlan.id, vlan.link, vlan.id);
                findings.add(
                    format!("{path}.vlan"),
                    format!("the name {name} is not that of this VLAN: call it {expected}"),
                );
            }
            Made::Vlan { id: vlan.id, on: vlan.link }
        }
        (None, Some(bond)) => {
            check_members(&path, &bond.members, findings);
            Made::Bond { members: bond.members, mode: bond.mode, miimon: bond.miimon.unwrap_or(100) }
        }
        (None, None) => Made::Device,
    };
    check_name(&path, name, findings);
    let mac = raw.mac.and_then(|mac| findings.take(&format!("{path}.mac"), parse_mac(&mac)));
    let mut addresses: Vec<Address> = Vec::new();
    for (index, text) in raw.addresses.iter().enumerate() {
        addresses.extend(findings.take(&format!("{path}.addresses[{index}]"), parse_address(text)));
    }
    let mut routes = Vec::new();
    for (index, text) in raw.gateways.iter().enumerate() {
        let path = format!("{path}.gateways[{index}]");
        let Some(via) = findings.take(&path, parse_host(text)) else { continue };
        if routes.iter().any(|route: &Route| route.via.is_some_and(|other| other.is_ipv4() == via.is_ipv4())) {
            findings.add(&*path, format!("{via} is a second gateway of its family"));
        }
        routes.extend(route(&path, None, Some(via), raw.dhcp, &addresses, findings));
    }
    for (index, RawRoute { to, via }) in raw.routes.iter().enumerate() {
        let path = format!("{path}.routes[{index}]");
        let to = findings.take(&format!("{path}.to"), to.parse::<Cidr>());
        let via = via.as_ref().map(|via| findings.take(&format!("{path}.via"), parse_host(via)));
        if let (Some(to), Some(via)) = (to, via.map_or(Some(None), |via| via.map(Some))) {
            routes.extend(route(&path, Some(to), via, raw.dhcp, &addresses, findings));
        }
    }
    Interface { made, mac, dhcp: raw.dhcp, ipv6_auto: raw.ipv6_auto, addresses, routes, mtu: raw.mtu }
}

/// A route, if its gateway can be reached.
fn route(
    path: &str,
    to: Option<Cidr>,
    via: Option<IpAddr>,
    dhcp: bool,
    addresses: &[Address],
    findings: &mut Findings,
) -> Option<Route> {
    let Some(gateway) = via else { return Some(Route { to, via, on_link: false }) };
    if to.is_some_and(|to| to.address().is_ipv4() != gateway.is_ipv4()) {
        findings.add(path, format!("the gateway {gateway} is of another family than the network"));
        return None;
    }
    if addresses.iter().any(|own| own.address == gateway) {
        findings.add(path, format!("the gateway {gateway} is the machine's own address"));
        return None;
    }
    let family: Vec<&Address> = addresses.iter().filter(|own| own.address.is_ipv4() == gateway.is_ipv4()).collect();
    let link_local = matches!(gateway, IpAddr::V6(gateway) if gateway.is_unicast_link_local());
    let reached = family.iter().any(|own| own.network.contains(gateway));
    if reached || link_local || (dhcp && gateway.is_ipv4()) {
        return Some(Route { to, via, on_link: false });
    }
    // Providers of servers give a machine one address with the longest prefix, and a gateway beside it.
    let longest = if gateway.is_ipv4() { 32 } else { 128 };
    if family.iter().any(|own| own.network.prefix() == longest) {
        return Some(Route { to, via, on_link: true });
    }
    let networks: Vec<String> = family.iter().map(|own| own.network.to_string()).collect();
    let networks = if networks.is_empty() { "no address of its family".to_owned() } else { networks.join(", ") };
    findings.add(path, format!("the gateway {gateway} is in no network of this link, which has {networks}"));
    None
}

/// What the links say together.
fn check_together(network: &Network, findings: &mut Findings) {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    let mut addresses: BTreeMap<IpAddr, String> = BTreeMap::new();
    for (path, address) in network.addresses() {
        if let Some(first) = addresses.insert(address.address, path.clone()) {
            findings.add(path, format!("{} is also at {first}", address.address));
        }
    }
    for (name, interface) in &network.interfaces {
        let path = path_of(name);
        if let Made::Bond { members, .. } = &interface.made {
            for member in members {
                if let Some(other) = seen.insert(member, name) {
                    findings.add(format!("{path}.bond"), format!("{member} is a member of {other} and of {name}"));
                }
            }
        }
        if let Some(bond) = network.bond_of(name)
            && (interface.is_addressed() || !interface.routes.is_empty())
        {
            findings.add(&*path, format!("a member of {bond} has no address of its own: give it to {bond}"));
        }
        if in_circle(network, name) {
            findings.add(&*path, format!("{name} is made of itself"));
        }
        if interface.made == Made::Device && interface.mac.is_none() && !is_predictable(name) {
            findings.add(
                &*path,
                format!("{name} is not a name that systemd gives to a wired link, such as enp1s0: add its mac"),
            );
        }
        if interface.made != Made::Device && interface.mac.is_some() {
            findings.add(format!("{path}.mac"), "a mac names a device, and this link is made");
        }
        let used = network.interfaces.values().any(|other| other.needs().contains(name));
        if !used && !interface.is_addressed() {
            findings.add(&*path, "no address: say dhcp: true, ipv6Auto: true or addresses");
        }
    }
}

fn in_circle(network: &Network, name: &str) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![name]);
    while let Some(current) = next.pop() {
        let needs = network.interfaces.get(current).map(Interface::needs).unwrap_or_default();
        for need in needs {
            if need == name {
                return true;
            }
            if seen.insert(need.as_str()) {
                next.push(need);
            }
        }
    }
    false
}

fn check_members(path: &str, members: &[String], findings: &mut Findings) {
    if members.is_empty() {
        findings.add(format!("{path}.bond.members"), "a bond has at least one member");
    }
    for (index, member) in members.iter().enumerate() {
        let path = format!("{path}.bond.members[{index}]");
        check_name(&path, member, findings);
        if members[..index].contains(member) {
            findings.add(path, format!("{member} is named twice"));
        }
    }
}

/// A name of a link: as the kernel takes it, and without what means something in our words.
fn check_name(path: &str, name: &str, findings: &mut Findings) {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_plain = (1..=15).contains(&name.len()) && name.bytes().all(plain);
    if !is_plain || matches!(name, "." | ".." | "lo" | "all" | "default") {
        findings.add(path, format!("{name:?} is not the name of a link: 1 to 15 of A-Z, a-z, 0-9, ., - and _"));
    }
}

/// Whether systemd's naming scheme gives such names to wired links.
fn is_predictable(name: &str) -> bool {
    name.strip_prefix("en")
        .is_some_and(|rest| rest.starts_with(['o', 's', 'p', 'P', 'x', 'b', 'a', 'v', 'd', 'u', 'c']))
}

fn parse_mac(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is not a MAC address of one machine, such as 52:54:00:12:34:56");
    let groups: Vec<&str> = text.split([':', '-']).collect();
    let is_group = |group: &&str| group.len() == 2 && group.bytes().all(|byte| byte.is_ascii_hexdigit());
    if groups.len() != 6 || !groups.iter().all(is_group) || groups.iter().all(|group| *group == "00") {
        return Err(wrong());
    }
    // The lowest bit of the first byte marks addresses of groups.
    let first = u8::from_str_radix(groups[0], 16).map_err(|_| wrong())?;
    if first & 1 == 1 { Err(wrong()) } else { Ok(groups.join(":").to_ascii_lowercase()) }
}

/// An address of one machine.
fn parse_host(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an address such as 192.0.2.1"))?;
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast {
        return Err(format!("{address} is not an address of one machine"));
    }
    Ok(address)
}

/// An address with its prefix.
fn parse_address(text: &str) -> Result<Address, String> {
    let wrong = || format!("{text:?} is not an address with its prefix, such as 192.0.2.5/24");
    let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let address = parse_host(address)?;
    let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
    let network = Cidr::around(address, prefix).ok_or_else(wrong)?;
    if let IpAddr::V4(own) = address
        && prefix < 31
    {
        let host = own.to_bits() & (u32::MAX >> prefix);
        if host == 0 || host == u32::MAX >> prefix {
            return Err(format!("{text:?} is the first or last address of {network}, which is nobody's"));
        }
    }
    Ok(Address { address, network })
}

#[cfg(test)]
mod tests;
