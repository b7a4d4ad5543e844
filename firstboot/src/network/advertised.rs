//! DNS servers that routers advertise ([RFC 8106](https://www.rfc-editor.org/rfc/rfc8106)).
//!
//! The kernel takes addresses and routes from router advertisements itself, and hands on the options that are for user
//! space: messages of the type `RTM_NEWNDUSEROPT` to the group `RTNLGRP_ND_USEROPT` of
//! [rtnetlink](https://man7.org/linux/man-pages/man7/rtnetlink.7.html), which `netlink-packet-route` does not know.
//! Listening begins before a link is up, so that none is missed. Left out: search domains, which names in a
//! configuration do not need, and servers with a link-local address, for which `/etc/resolv.conf` would have to name
//! the link.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with};

/// `RTNLGRP_ND_USEROPT` of `linux/rtnetlink.h`, as a bit.
const GROUP: u32 = 1 << (20 - 1);
/// `RTM_NEWNDUSEROPT`.
const NEW_OPTION: u16 = 68;
/// Size of `struct nlmsghdr`, and of `struct nduseroptmsg`, in bytes.
const HEADER: usize = 16;
/// `ND_ROUTER_ADVERT` of ICMPv6.
const ROUTER_ADVERTISEMENT: u8 = 134;
/// The option "recursive DNS server".
const SERVERS: u8 = 25;
/// Lengths of options are in units of this many bytes.
const UNIT: usize = 8;
/// The largest datagram that is taken, in bytes; an option has 2040 at most.
const DATAGRAM: usize = 8 << 10;

/// Hears advertisements.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    /// By the kernel's number of the link.
    heard: BTreeMap<u32, Vec<IpAddr>>,
}

impl Listener {
    /// Begins to listen, on all links.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn open() -> anyhow::Result<Self> {
        let open = || -> Result<OwnedFd, Errno> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            // The family's protocol 0 is NETLINK_ROUTE.
            let socket = socket_with(rustix::net::AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
            bind(&socket, &netlink::SocketAddrNetlink::new(0, GROUP))?;
            Ok(socket)
        };
        let socket = open().context("opening a netlink socket for router advertisements")?;
        Ok(Self { socket, heard: BTreeMap::new() })
    }

    /// The servers that were advertised on a link so far, in the routers' order.
    pub(super) fn servers(&mut self, link: u32) -> Vec<IpAddr> {
        let mut buffer = [0; DATAGRAM];
        // Whatever ends it, there is nothing more to be had now.
        while let Ok((length, _)) = recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
            for advertised in parse(&buffer[..length]) {
                self.note(advertised);
            }
        }
        self.heard.get(&link).cloned().unwrap_or_default()
    }

    fn note(&mut self, advertised: Advertised) {
        let heard = self.heard.entry(advertised.link).or_default();
        for server in advertised.servers {
            heard.retain(|known| *known != server);
            if advertised.lives {
                heard.push(server);
            }
        }
    }
}

/// One option.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Advertised {
    link: u32,
    /// A lifetime of 0 takes the servers back.
    lives: bool,
    servers: Vec<IpAddr>,
}

/// The options of one datagram. What is of another form is passed over.
fn parse(datagram: &[u8]) -> Vec<Advertised> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while let Some((length, kind)) = message_header(rest).filter(|(length, _)| *length >= HEADER) {
        let message = &rest[..length.min(rest.len())];
        if kind == NEW_OPTION {
            found.extend(option_message(&message[HEADER..]));
        }
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    found
}

/// Length and type of `struct nlmsghdr`, in the machine's byte order.
fn message_header(bytes: &[u8]) -> Option<(usize, u16)> {
    let header = bytes.get(..HEADER)?;
    let length = u32::from_ne_bytes(header[..4].try_into().ok()?);
    Some((usize::try_from(length).ok()?, u16::from_ne_bytes(header[4..6].try_into().ok()?)))
}

/// `struct nduseroptmsg`, in the machine's byte order, and the options behind it, in the network's.
fn option_message(message: &[u8]) -> Vec<Advertised> {
    let Some((header, rest)) = message.split_at_checked(HEADER) else { return Vec::new() };
    let length = u16::from_ne_bytes([header[2], header[3]]);
    let link = u32::from_ne_bytes(header[4..8].try_into().expect("four bytes"));
    if header[8] != ROUTER_ADVERTISEMENT {
        return Vec::new();
    }
    let mut options = &rest[..usize::from(length).min(rest.len())];
    let mut found = Vec::new();
    while let [kind, units, ..] = *options {
        let size = usize::from(units) * UNIT;
        // Without this an option of no length would never end.
        let Some((option, behind)) = options.split_at_checked(size).filter(|_| size > 0) else { break };
        if kind == SERVERS {
            found.push(server_option(link, option));
        }
        options = behind;
    }
    found
}

/// Type, length, two reserved bytes, the lifetime in seconds, then addresses. `option` has eight bytes at least.
fn server_option(link: u32, option: &[u8]) -> Advertised {
    let lives = option[4..UNIT].iter().any(|byte| *byte != 0);
    let addresses = option[UNIT..].chunks_exact(16);
    let addresses = addresses.map(|bytes| Ipv6Addr::from(<[u8; 16]>::try_from(bytes).expect("sixteen bytes")));
    let usable = |address: &Ipv6Addr| {
        !address.is_unicast_link_local()
            && !address.is_multicast()
            && !address.is_unspecified()
            && !address.is_loopback()
    };
    Advertised { link, lives, servers: addresses.filter(usable).map(IpAddr::V6).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An option as a router sends it.
    fn option(lifetime: u32, servers: &[&str]) -> Vec<u8> {
        let units = u8::try_from(1 + 2 * servers.len()).expect("small");
        let addresses = servers.iter().flat_map(|server| server.parse::<Ipv6Addr>().expect("address").octets());
        [&[SERVERS, units, 0, 0], &lifetime.to_be_bytes()[..]].concat().into_iter().chain(addresses).collect()
    }

    /// A message as the kernel sends it, with the source's address behind the options.
    fn message(kind: u16, icmp: u8, link: u32, options: &[u8]) -> Vec<u8> {
        let mut payload = vec![10, 0];
        payload.extend(u16::try_from(options.len()).expect("small").to_ne_bytes());
        payload.extend(link.to_ne_bytes());
        payload.extend([icmp, 0, 0, 0, 0, 0, 0, 0]);
        payload.extend(options);
        payload.extend([20, 0, 1, 0]);
        payload.extend([0xfe; 16]);
        let length = u32::try_from(HEADER + payload.len()).expect("small");
        let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]].concat();
        [header, payload].concat()
    }

    fn told(datagram: &[u8]) -> Vec<(u32, bool, Vec<String>)> {
        let text = |servers: Vec<IpAddr>| servers.iter().map(IpAddr::to_string).collect();
        parse(datagram).into_iter().map(|own| (own.link, own.lives, text(own.servers))).collect()
    }

    #[test]
    fn servers_are_read() {
        let two = option(600, &["2001:db8::1", "fd00::53"]);
        let both = vec!["2001:db8::1".to_owned(), "fd00::53".to_owned()];
        let domains = [31, 1, 0, 0, 0, 0, 0, 9];
        for (case, datagram, expected) in [
            ("two", message(NEW_OPTION, 134, 7, &two), vec![(7, true, both.clone())]),
            ("withdrawn", message(NEW_OPTION, 134, 7, &option(0, &["fd00::53"])), vec![(7, false, both[1..].to_vec())]),
            (
                "behind another option",
                message(NEW_OPTION, 134, 7, &[&domains[..], &two].concat()),
                vec![(7, true, both)],
            ),
            ("link-local", message(NEW_OPTION, 134, 7, &option(9, &["fe80::1"])), vec![(7, true, vec![])]),
            ("no address", message(NEW_OPTION, 134, 7, &option(9, &[])), vec![(7, true, vec![])]),
            ("no length", message(NEW_OPTION, 134, 7, &[SERVERS, 0, 0, 0, 0, 0, 0, 0]), vec![]),
            ("cut off", message(NEW_OPTION, 134, 7, &two[..30]), vec![]),
            ("another type", message(16, 134, 7, &two), vec![]),
            ("no advertisement", message(NEW_OPTION, 137, 7, &two), vec![]),
            ("nothing", vec![], vec![]),
        ] {
            assert_eq!(told(&datagram), expected, "{case}");
        }
        let twice = [message(NEW_OPTION, 134, 1, &two), message(NEW_OPTION, 134, 2, &two)].concat();
        assert_eq!(told(&twice).len(), 2);
    }

    #[test]
    fn a_later_advertisement_counts() {
        let mut listener = Listener::open().expect("a netlink socket");
        let server = |text: &str| text.parse::<IpAddr>().expect("address");
        for (lives, servers) in [(true, ["fd00::1", "fd00::2"]), (false, ["fd00::1", "fd00::3"])] {
            listener.note(Advertised { link: 7, lives, servers: servers.map(server).to_vec() });
        }
        assert_eq!(listener.servers(7), [server("fd00::2")]);
        assert!(listener.servers(8).is_empty());
    }

    #[test]
    fn whatever_comes_reading_ends() {
        arbtest::arbtest(|u| {
            let _ = parse(u.arbitrary::<Vec<u8>>()?.as_slice());
            let options: Vec<u8> = u.arbitrary()?;
            let options = &options[..options.len().min(4096)];
            parse(&message(NEW_OPTION, 134, u.arbitrary()?, options));
            Ok(())
        })
        .budget_ms(500);
    }
}
