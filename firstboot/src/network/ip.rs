//! The value of `ip=`, in its three forms, and the addresses in it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::types::{Address, Cidr, InterfaceName, MacAddress, Method, bits};

/// The smallest and the largest packet size of a link, in bytes.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65535;
/// The longest host name, in bytes.
const HOSTNAME_LIMIT: usize = 64;

/// What one `ip=` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum IpWord {
    /// `METHOD`: every physical link that no other word names.
    Any(Method),
    /// The two other forms.
    Interface(Box<IpOfInterface>),
}

/// What one `ip=` says of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IpOfInterface {
    pub(super) interface: InterfaceName,
    /// `None`: there is an address, and nothing beside it.
    pub(super) method: Option<Method>,
    pub(super) address: Option<Address>,
    pub(super) gateway: Option<IpAddr>,
    pub(super) hostname: Option<String>,
    pub(super) tail: Tail,
}

/// What may stand after the method.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) mtu: Option<u32>,
    pub(super) mac: Option<MacAddress>,
    pub(super) dns: Vec<IpAddr>,
}

/// Parses the value of `ip=`.
///
/// # Errors
/// What is wrong, and what would be right.
pub(super) fn parse(value: &str) -> Result<IpWord, String> {
    let fields = split_fields(value)?;
    match fields.as_slice() {
        ["single-dhcp"] => Ok(IpWord::Any(Method::Dhcp)),
        [method] => Ok(IpWord::Any(parse_method(method)?)),
        [interface, method, tail @ ..] if !interface.is_empty() && !looks_like_address(interface) => {
            let of_interface = IpOfInterface {
                interface: interface.parse()?,
                method: Some(parse_method(method)?),
                address: None,
                gateway: None,
                hostname: None,
                tail: parse_tail(tail)?,
            };
            if !of_interface.tail.dns.is_empty() {
                return Err("DNS servers after INTERFACE:METHOD: give them as nameserver=ADDRESS".to_owned());
            }
            Ok(IpWord::Interface(Box::new(of_interface)))
        }
        [client, peer, gateway, netmask, hostname, interface, rest @ ..] => {
            let (method, tail) = rest.split_first().unwrap_or((&"", &[]));
            full([client, peer, gateway, netmask, hostname, interface, method], tail)
                .map(|found| IpWord::Interface(Box::new(found)))
        }
        _ => Err(format!(
            "has {} fields: it is METHOD, or INTERFACE:METHOD, or \
             ADDRESS:PEER:GATEWAY:NETMASK:HOSTNAME:INTERFACE:METHOD",
            fields.len()
        )),
    }
}

/// The form with an address, or with a place for one.
fn full(fields: [&str; 7], tail: &[&str]) -> Result<IpOfInterface, String> {
    let [client, peer, gateway, netmask, hostname, interface, method] = fields;
    let interface = interface.parse().map_err(|error| format!("{error}: an address is that of one interface"))?;
    let present = |text: &str| if text.is_empty() { Ok(None) } else { parse_address(text).map(Some) };
    let client = present(client)?;
    let gateway = present(gateway)?;
    let peer = if peer.is_empty() { None } else { Some(parse_peer(peer)?) };
    let method = match (method, client) {
        ("" | "none" | "off", Some(_)) => None,
        ("", None) => return Err("neither an address nor a method is given".to_owned()),
        (method, _) => Some(parse_method(method)?),
    };
    let address = match client {
        Some(client) => Some(parse_own(client, peer, netmask)?),
        None if !netmask.is_empty() || peer.is_some() => {
            return Err("a netmask or a peer is given, and no address".to_owned());
        }
        None => None,
    };
    if let Some(gateway) = gateway {
        check_gateway(gateway, address, method)?;
    }
    let hostname = if hostname.is_empty() { None } else { Some(parse_hostname(hostname)?) };
    Ok(IpOfInterface { interface, method, address, gateway, hostname, tail: parse_tail(tail)? })
}

/// The own address, with the prefix from the netmask, else from the peer.
fn parse_own(client: IpAddr, peer: Option<(IpAddr, Option<u8>)>, netmask: &str) -> Result<Address, String> {
    let mask = if netmask.is_empty() { None } else { Some(parse_netmask(netmask, client)?) };
    if let Some((peer, _)) = peer.filter(|(peer, _)| peer.is_ipv4() != client.is_ipv4()) {
        return Err(format!("the address {client} and the peer {peer} are of different families"));
    }
    let peer_prefix = peer.and_then(|(_, prefix)| prefix);
    let prefix = match (mask, peer_prefix, peer) {
        (Some(prefix), _, _) => prefix,
        (None, Some(prefix), _) => prefix,
        (None, None, Some(_)) => bits(client),
        (None, None, None) => return Err(format!("the netmask or prefix length of {client} is missing")),
    };
    let local = Cidr::new(client, prefix).ok_or_else(|| format!("{client} has no prefix of {prefix} bits"))?;
    let Some((peer, prefix)) = peer else {
        check_host(local)?;
        return Ok(Address { local, peer: None });
    };
    let prefix = prefix.unwrap_or_else(|| bits(peer));
    let peer = Cidr::new(peer, prefix).ok_or_else(|| format!("{peer} has no prefix of {prefix} bits"))?;
    Ok(Address { local: Cidr::host(client), peer: Some(peer) })
}

/// An IPv4 network's first and last addresses are nobody's.
fn check_host(local: Cidr) -> Result<(), String> {
    let IpAddr::V4(address) = local.address() else { return Ok(()) };
    let host_bits = 32 - u32::from(local.prefix());
    if host_bits < 2 {
        return Ok(());
    }
    let mask = u32::MAX.checked_shl(host_bits).map_or(u32::MAX, |mask| !mask);
    match u32::from(address) & mask {
        0 => Err(format!("{local} is the network itself, not an address in it")),
        host if host == mask => Err(format!("{local} is the network's broadcast address")),
        _ => Ok(()),
    }
}

fn check_gateway(gateway: IpAddr, address: Option<Address>, method: Option<Method>) -> Result<(), String> {
    match address.map(|address| address.local.address()) {
        Some(own) if own.is_ipv4() != gateway.is_ipv4() => {
            Err(format!("the address {own} and the gateway {gateway} are of different families"))
        }
        Some(own) if own == gateway => Err(format!("the gateway {gateway} is the machine's own address")),
        None if method == Some(Method::Off) => Err(format!("the gateway {gateway} is given, and no address")),
        _ => Ok(()),
    }
}

/// Splits at colons outside brackets.
pub(super) fn split_fields(value: &str) -> Result<Vec<&str>, String> {
    let (mut fields, mut start, mut depth) = (Vec::new(), 0, 0_u32);
    for (at, c) in value.char_indices() {
        match c {
            '[' if depth == 0 => depth = 1,
            ']' if depth == 1 => depth = 0,
            '[' | ']' => return Err(format!("the bracket at character {} has no partner", at + 1)),
            ':' if depth == 0 => {
                fields.push(&value[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if depth != 0 {
        return Err("a bracket is not closed".to_owned());
    }
    fields.push(&value[start..]);
    Ok(fields)
}

/// Whether this can only be meant as an address.
fn looks_like_address(field: &str) -> bool {
    field.starts_with('[') || field.parse::<Ipv4Addr>().is_ok()
}

/// An address of one machine: IPv4 plain, IPv6 in brackets.
pub(super) fn parse_address(text: &str) -> Result<IpAddr, String> {
    let address = match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().map(IpAddr::V6).ok(),
        None => text.parse::<Ipv4Addr>().map(IpAddr::V4).ok(),
    };
    let address =
        address.ok_or_else(|| format!("{text} is not an IP address (192.0.2.5, or [2001:db8::5] in brackets)"))?;
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast {
        return Err(format!("{address} is not an address of one machine in a network"));
    }
    Ok(address)
}

/// `ADDRESS` or `ADDRESS/PREFIX`, the prefix in or after the brackets.
fn parse_peer(text: &str) -> Result<(IpAddr, Option<u8>), String> {
    let (address, prefix) = split_prefix(text)?;
    let address = parse_address(&address)?;
    let prefix = prefix.map(|prefix| parse_prefix(&prefix, address)).transpose()?;
    Ok((address, prefix))
}

/// Splits the prefix off an address, whether it stands in the brackets or after them.
pub(super) fn split_prefix(text: &str) -> Result<(String, Option<String>), String> {
    let Some((address, prefix)) = text.split_once('/') else { return Ok((text.to_owned(), None)) };
    match (address.strip_prefix('['), prefix.strip_suffix(']')) {
        (Some(address), Some(prefix)) => Ok((format!("[{address}]"), Some(prefix.to_owned()))),
        (_, None) => Ok((address.to_owned(), Some(prefix.to_owned()))),
        (None, Some(_)) => Err(format!("{text} is not an address with a prefix")),
    }
}

/// A prefix length, in bits.
fn parse_prefix(text: &str, address: IpAddr) -> Result<u8, String> {
    let prefix = text.bytes().all(|c| c.is_ascii_digit()).then(|| text.parse::<u8>().ok()).flatten();
    prefix
        .filter(|prefix| *prefix <= bits(address))
        .ok_or_else(|| format!("{text} is not a prefix length from 0 to {}", bits(address)))
}

/// A prefix length, or for IPv4 a netmask.
pub(super) fn parse_netmask(text: &str, address: IpAddr) -> Result<u8, String> {
    let mask = if address.is_ipv4() { text.parse::<Ipv4Addr>().ok() } else { None };
    match mask.map(u32::from) {
        None => parse_prefix(text, address),
        Some(mask) if mask.leading_ones() + mask.trailing_zeros() >= 32 => {
            Ok(u8::try_from(mask.leading_ones()).expect("at most 32"))
        }
        Some(_) => Err(format!("{text} is not a netmask: its ones are not all in front")),
    }
}

fn parse_method(text: &str) -> Result<Method, String> {
    let unsupported = |what: &str, instead: &str| Err(format!("{what} is not supported: use {instead}"));
    match text {
        "none" | "off" => Ok(Method::Off),
        "dhcp" => Ok(Method::Dhcp),
        "on" | "any" => Ok(Method::Any),
        "auto6" => Ok(Method::Auto6),
        "either6" => Ok(Method::Either6),
        "link6" => Ok(Method::Link6),
        "dhcp6" => unsupported("DHCPv6 before the configuration is fetched", "auto6, or a given address"),
        "ibft" => unsupported("the boot firmware's iSCSI table", "dhcp, or a given address"),
        "link-local" => unsupported("an IPv4 link-local address", "link6, or a given address"),
        _ => Err(format!("{text:?} is not a method: one of dhcp, on, any, auto6, either6, link6, none, off")),
    }
}

fn parse_hostname(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        let inner = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(inner)
    };
    if text.len() <= HOSTNAME_LIMIT && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a host name: letters, digits, '-' and '.', at most {HOSTNAME_LIMIT}"))
    }
}

/// A packet size, in bytes.
pub(super) fn parse_mtu(text: &str) -> Result<u32, String> {
    let mtu = text.bytes().all(|c| c.is_ascii_digit()).then(|| text.parse::<u32>().ok()).flatten();
    mtu.filter(|mtu| MTU_RANGE.contains(mtu))
        .ok_or_else(|| format!("{text:?} is not an MTU from {} to {}", MTU_RANGE.start(), MTU_RANGE.end()))
}

/// `[MTU][:MAC]`, or `[DNS1][:DNS2]`. The fields are split at colons, those of a MAC address too.
fn parse_tail(fields: &[&str]) -> Result<Tail, String> {
    let mut tail = Tail::default();
    let Some((first, rest)) = fields.split_first() else { return Ok(tail) };
    if first.bytes().all(|c| c.is_ascii_digit()) {
        if !first.is_empty() {
            tail.mtu = Some(parse_mtu(first)?);
        }
    } else if looks_like_address(first) {
        tail.dns.push(parse_address(first)?);
    } else {
        return Err(format!("{first:?} after the method is neither an MTU nor the address of a DNS server"));
    }
    match rest {
        [] | [""] => {}
        [second] if tail.mtu.is_none() && looks_like_address(second) => tail.dns.push(parse_address(second)?),
        rest if tail.dns.is_empty() => tail.mac = Some(rest.join(":").parse()?),
        rest => return Err(format!("{:?} after a DNS server is not the address of another", rest.join(":"))),
    }
    Ok(tail)
}
