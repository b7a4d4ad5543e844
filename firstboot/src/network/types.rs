//! What the words say once they are understood: validated types, and no text any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The longest name of a link, in bytes (`IFNAMSIZ` less its end).
const NAME_LIMIT: usize = 15;

/// The name of a link, as the kernel and a unit file may hold it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = String;

    /// Letters, digits, `.`, `_` and `-`: the kernel takes more, but neither globs nor specifiers may reach a unit
    /// file.
    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if text.is_empty() {
            return Err("the name of an interface is missing".to_owned());
        }
        if text.len() > NAME_LIMIT {
            return Err(format!(
                "the interface name {text} has {} characters, the limit is {NAME_LIMIT}",
                text.chars().count()
            ));
        }
        if matches!(text, "." | ".." | "all" | "default" | "lo") || !text.chars().all(allowed) {
            return Err(format!("{text} is not the name of an interface: letters, digits, '.', '_' and '-'"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The hardware address of an Ethernet link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MacAddress([u8; 6]);

impl MacAddress {
    /// Of the bytes that the kernel gives; `None` where it is another kind of address, or all zero.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        <[u8; 6]>::try_from(bytes).ok().filter(|bytes| bytes != &[0; 6]).map(Self)
    }

    /// Its six bytes.
    pub(crate) fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text} is not a MAC address of one machine (such as 52:54:00:12:34:56)");
        let groups: Vec<&str> = text.split([':', '-']).collect();
        let digits = |group: &&str| group.len() == 2 && group.bytes().all(|c| c.is_ascii_hexdigit());
        if groups.len() != 6 || !groups.iter().all(digits) {
            return Err(wrong());
        }
        let mut bytes = [0; 6];
        for (byte, group) in bytes.iter_mut().zip(groups) {
            *byte = u8::from_str_radix(group, 16).map_err(|_| wrong())?;
        }
        // The lowest bit of the first byte marks addresses of groups.
        if bytes == [0; 6] || bytes[0] & 1 != 0 { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An address with the length of its network's prefix, in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// `None` when the prefix is longer than the address.
    pub(crate) fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= bits(address)).then_some(Self { address, prefix })
    }

    /// The address alone, with the longest prefix.
    pub(crate) fn host(address: IpAddr) -> Self {
        Self { address, prefix: bits(address) }
    }

    /// The address.
    pub(crate) fn address(self) -> IpAddr {
        self.address
    }

    /// Length of the prefix, in bits.
    pub(crate) fn prefix(self) -> u8 {
        self.prefix
    }

    /// The network: the same prefix, with all bits behind it zero.
    pub(crate) fn network(self) -> Self {
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(address) & mask))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(address) & mask))
            }
        };
        Self { address, prefix: self.prefix }
    }

    /// Whether an address lies in this network.
    pub(crate) fn contains(self, address: IpAddr) -> bool {
        Self::new(address, self.prefix)
            .is_some_and(|other| other.address.is_ipv4() == self.address.is_ipv4() && other.network() == self.network())
    }

    /// Whether this is every address of its family.
    pub(crate) fn is_default(self) -> bool {
        self.prefix == 0
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The number of bits of an address.
pub(crate) fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// How an interface comes by its addresses, beside those that are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Method {
    /// `none`, `off`: it does not.
    Off,
    /// `dhcp`: DHCPv4.
    Dhcp,
    /// `on`, `any`: DHCPv4; the running system also asks by DHCPv6 where a router says so.
    Any,
    /// `auto6`: IPv6 addresses from router advertisements.
    Auto6,
    /// `either6`: as `auto6`; the running system also asks by DHCPv6.
    Either6,
    /// `link6`: the IPv6 link-local address alone.
    Link6,
}

/// An address that is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    /// The own address.
    pub(crate) local: Cidr,
    /// The other end, on a point-to-point link.
    pub(crate) peer: Option<Cidr>,
}

impl Address {
    /// Whether another address is reached over the link itself.
    pub(crate) fn reaches(&self, other: IpAddr) -> bool {
        self.peer.unwrap_or(self.local).contains(other)
    }
}

/// A route that is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    /// Where to.
    pub(crate) destination: Cidr,
    /// Through whom; without one the destination is on the link itself.
    pub(crate) gateway: Option<IpAddr>,
    /// The gateway is on the link though no address of the link's says so.
    pub(crate) on_link: bool,
}

impl Route {
    /// The route to everything through a gateway.
    pub(crate) fn default_through(gateway: IpAddr) -> Self {
        let any = match gateway {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { destination: Cidr { address: any, prefix: 0 }, gateway: Some(gateway), on_link: false }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if self.on_link { f.write_str(" on-link") } else { Ok(()) }
    }
}

/// What the words say of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    /// How it comes by addresses. Empty: it is only named by a route, a vlan, a bond or a bridge.
    pub(crate) methods: BTreeSet<Method>,
    /// Given addresses, in order.
    pub(crate) addresses: Vec<Address>,
    /// Given routes, default routes among them, in order.
    pub(crate) routes: Vec<Route>,
    /// The largest packet, in bytes.
    pub(crate) mtu: Option<u32>,
    /// The hardware address that it is to have.
    pub(crate) mac: Option<MacAddress>,
    /// The host name that DHCP servers are told by the running system.
    pub(crate) hostname: Option<String>,
}

impl Interface {
    /// Whether it asks by DHCPv4.
    pub(crate) fn dhcp(&self) -> bool {
        self.methods.contains(&Method::Dhcp) || self.methods.contains(&Method::Any)
    }

    /// Whether it takes addresses from router advertisements, and is waited for until it has one.
    pub(crate) fn auto6(&self) -> bool {
        self.methods.contains(&Method::Auto6) || self.methods.contains(&Method::Either6)
    }

    /// Whether its link-local address is all that it is to have of IPv6.
    pub(crate) fn link6(&self) -> bool {
        self.methods.contains(&Method::Link6)
    }

    /// Whether it comes by any address.
    pub(crate) fn is_addressed(&self) -> bool {
        !self.addresses.is_empty() || self.methods.iter().any(|method| *method != Method::Off)
    }
}

/// A VLAN on top of another link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vlan {
    /// Its identifier, 1 to 4094.
    pub(crate) id: u16,
    /// The link that it is on.
    pub(crate) parent: InterfaceName,
}

/// A link made of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bond {
    /// Its members, in order.
    pub(crate) members: Vec<InterfaceName>,
    /// Its options, each once.
    pub(crate) options: BTreeMap<&'static str, String>,
}

/// A virtual link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Virtual {
    /// `vlan=`.
    Vlan(Vlan),
    /// `bond=`.
    Bond(Bond),
    /// `bridge=`, with its members in order.
    Bridge(Vec<InterfaceName>),
}

impl Virtual {
    /// The links that it needs to be there.
    pub(crate) fn needs(&self) -> &[InterfaceName] {
        match self {
            Self::Vlan(vlan) => std::slice::from_ref(&vlan.parent),
            Self::Bond(bond) => &bond.members,
            Self::Bridge(members) => members,
        }
    }

    /// The links that become part of it, and have no address of their own.
    pub(crate) fn members(&self) -> &[InterfaceName] {
        match self {
            Self::Vlan(_) => &[],
            Self::Bond(bond) => &bond.members,
            Self::Bridge(members) => members,
        }
    }

    /// The kernel module that makes such links.
    pub(crate) fn module(&self) -> &'static str {
        match self {
            Self::Vlan(_) => "8021q",
            Self::Bond(_) => "bonding",
            Self::Bridge(_) => "bridge",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces_are_checked() {
        for (text, good) in [
            ("eth0", true),
            ("bond0.0005", true),
            ("enx525400123456", true),
            ("a_b-c", true),
            ("", false),
            ("sixteen-letters-", false),
            ("lo", false),
            ("all", false),
            ("..", false),
            ("a/b", false),
            ("eth*", false),
            ("eth%i", false),
            ("eth 0", false),
            ("\u{e9}th0", false),
        ] {
            assert_eq!(text.parse::<InterfaceName>().is_ok(), good, "{text:?}");
        }
    }

    #[test]
    fn mac_addresses_are_of_one_machine() {
        for (text, expected) in [
            ("52:54:00:AB:cd:ef", Some("52:54:00:ab:cd:ef")),
            ("52-54-00-ab-cd-ef", Some("52:54:00:ab:cd:ef")),
            ("00:00:00:00:00:00", None),
            ("ff:ff:ff:ff:ff:ff", None),
            ("01:00:5e:00:00:01", None),
            ("52:54:00:ab:cd", None),
            ("52:54:00:ab:cd:e", None),
            ("52:54:00:ab:cd:+f", None),
        ] {
            let parsed = text.parse::<MacAddress>().ok().map(|mac| mac.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn networks_hold_what_their_prefix_says() {
        let cidr = |address: &str, prefix| Cidr::new(address.parse().expect(address), prefix).expect("in range");
        for (network, address, expected) in [
            (cidr("192.0.2.5", 24), "192.0.2.200", true),
            (cidr("192.0.2.5", 24), "192.0.3.5", false),
            (cidr("192.0.2.5", 32), "192.0.2.5", true),
            (cidr("192.0.2.5", 32), "192.0.2.4", false),
            (cidr("192.0.2.5", 0), "8.8.8.8", true),
            (cidr("192.0.2.5", 0), "2001:db8::1", false),
            (cidr("2001:db8::5", 64), "2001:db8::ffff", true),
            (cidr("2001:db8::5", 64), "2001:db9::", false),
            (cidr("::", 0), "2001:db9::", true),
        ] {
            assert_eq!(network.contains(address.parse().expect(address)), expected, "{network} {address}");
        }
        assert_eq!(Cidr::new("192.0.2.1".parse().expect("address"), 33), None);
        assert_eq!(cidr("192.0.2.129", 25).network().to_string(), "192.0.2.128/25");
    }
}
