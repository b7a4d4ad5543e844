//! Links, addresses and routes of the kernel, by [rtnetlink](https://man7.org/linux/man-pages/man7/rtnetlink.7.html).
//!
//! One blocking socket, one request at a time, each answered before the next. What is there already is not an error,
//! so that everything here can be done twice. Messages are those of `netlink-packet-route`; its companion `rtnetlink`
//! would bring an executor and a task for the connection, for what are a dozen requests.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo};
use netlink_packet_route::link::{
    InfoBond, InfoBridge, InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, send, socket_with};

use super::names;
use super::types::{Address, Cidr, MacAddress, Route, Virtual};

/// How long the kernel may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// The largest datagram that the kernel makes of a dump, in bytes.
const DATAGRAM: usize = 64 << 10;

/// A link that the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    /// The kernel's number of it.
    pub(crate) index: u32,
    /// Its name.
    pub(crate) name: String,
    /// Names that the running system may give it.
    pub(crate) aliases: Vec<String>,
    /// Its hardware address.
    pub(crate) mac: Option<MacAddress>,
    /// The hardware address that it was made with, where it tells.
    pub(crate) permanent_mac: Option<MacAddress>,
    /// What kind of virtual link it is; `None` for a device.
    pub(crate) kind: Option<String>,
    /// Whether it is an Ethernet link.
    pub(crate) ethernet: bool,
    /// Whether it is up.
    pub(crate) up: bool,
    /// Whether it has a carrier. Only known while it is up.
    pub(crate) carrier: bool,
    /// The number of the link that it is part of.
    pub(crate) master: Option<u32>,
    /// The largest packet, in bytes.
    pub(crate) mtu: u32,
}

/// An address that a link has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkAddress {
    pub(super) link: u32,
    pub(super) address: Cidr,
    /// It counts within the link alone.
    pub(super) link_local: bool,
    /// It is not known yet whether anybody else has it.
    pub(super) tentative: bool,
    /// Somebody else has it.
    pub(super) taken: bool,
}

/// A connection to the kernel.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> anyhow::Result<Self> {
        let open = || -> Result<OwnedFd, Errno> {
            let socket = socket_with(
                rustix::net::AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                // The family's protocol 0 is NETLINK_ROUTE.
                None,
            )?;
            bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
            set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER))?;
            Ok(socket)
        };
        Ok(Self { socket: open().context("opening a netlink socket")?, sequence: 0 })
    }

    /// All links, in the order of their numbers.
    pub(super) fn links(&mut self) -> anyhow::Result<Vec<Link>> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).context("listing links")?;
        let links = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(link_of(&message)),
            _ => None,
        });
        let mut links: Vec<Link> = links.collect();
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// The link of a name.
    pub(super) fn link(&mut self, name: &str) -> anyhow::Result<Link> {
        let found = self.links()?.into_iter().find(|link| link.name == name);
        found.with_context(|| format!("there is no link {name}"))
    }

    /// All addresses of a link.
    pub(super) fn addresses(&mut self, link: u32) -> anyhow::Result<Vec<LinkAddress>> {
        let answers =
            self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).context("listing addresses")?;
        let addresses = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => address_of(&message),
            _ => None,
        });
        Ok(addresses.filter(|address| address.link == link).collect())
    }

    /// The gateways of the default routes through a link.
    pub(super) fn gateways(&mut self, link: u32) -> anyhow::Result<Vec<IpAddr>> {
        let answers = self.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default())).context("listing routes")?;
        let gateways = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => default_gateway(message, link),
            _ => None,
        });
        Ok(gateways.collect())
    }

    /// Gives a link another name. It must be down for that on kernels before 6.2.
    pub(super) fn rename(&mut self, link: u32, name: &str) -> anyhow::Result<()> {
        self.set_link(link, LinkFlags::empty(), LinkFlags::empty(), vec![LinkAttribute::IfName(name.to_owned())])
    }

    /// Changes the largest packet, in bytes.
    pub(super) fn set_mtu(&mut self, link: u32, mtu: u32) -> anyhow::Result<()> {
        self.set_link(link, LinkFlags::empty(), LinkFlags::empty(), vec![LinkAttribute::Mtu(mtu)])
    }

    /// Changes the hardware address.
    pub(super) fn set_mac(&mut self, link: u32, mac: MacAddress) -> anyhow::Result<()> {
        let address = LinkAttribute::Address(mac.bytes().to_vec());
        self.set_link(link, LinkFlags::empty(), LinkFlags::empty(), vec![address])
    }

    /// Makes a link part of another.
    pub(super) fn set_master(&mut self, link: u32, master: u32) -> anyhow::Result<()> {
        self.set_link(link, LinkFlags::empty(), LinkFlags::empty(), vec![LinkAttribute::Controller(master)])
    }

    /// Brings a link up or down.
    pub(super) fn set_up(&mut self, link: u32, up: bool) -> anyhow::Result<()> {
        let flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.set_link(link, flags, LinkFlags::Up, Vec::new())
    }

    fn set_link(
        &mut self,
        link: u32,
        flags: LinkFlags,
        mask: LinkFlags,
        attributes: Vec<LinkAttribute>,
    ) -> anyhow::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.header.flags = flags;
        message.header.change_mask = mask;
        message.attributes = attributes;
        Ok(self.ask(RouteNetlinkMessage::NewLink(message), 0)?)
    }

    /// Makes a virtual link. One that is there already stays as it is, but for a bond without members: the driver makes
    /// one of its own accord when it is loaded, and that has not the options that are wanted.
    pub(super) fn make(&mut self, name: &str, link: &Virtual, bond: Vec<InfoBond>) -> anyhow::Result<()> {
        let (kind, data) = match link {
            Virtual::Vlan(vlan) => (InfoKind::Vlan, InfoData::Vlan(vec![InfoVlan::Id(vlan.id)])),
            Virtual::Bond(_) => (InfoKind::Bond, InfoData::Bond(bond)),
            // Without spanning tree the first seconds of listening are for nothing.
            Virtual::Bridge(_) => (InfoKind::Bridge, InfoData::Bridge(vec![InfoBridge::ForwardDelay(0)])),
        };
        let links = self.links()?;
        let wanted = kind.to_string();
        let info = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]);
        if let Some(there) = links.iter().find(|there| there.name == name) {
            let found = there.kind.as_deref().unwrap_or("device");
            anyhow::ensure!(found == wanted, "a link of this name is there: it is a {found}, expected a {wanted}");
            let unused = matches!(link, Virtual::Bond(_))
                && !there.up
                && links.iter().all(|own| own.master != Some(there.index));
            let none = LinkFlags::empty();
            return if unused { self.set_link(there.index, none, none, vec![info]) } else { Ok(()) };
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        if let Virtual::Vlan(vlan) = link {
            message.attributes.push(LinkAttribute::Link(self.link(vlan.parent.as_str())?.index));
        }
        message.attributes.push(info);
        self.add(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds an address; with a lifetime it goes when nobody renews it.
    pub(super) fn add_address(&mut self, link: u32, address: Address, lifetime: Option<u32>) -> anyhow::Result<()> {
        let mut message = AddressMessage::default();
        let local = address.local;
        message.header.family = family(local.address());
        message.header.index = link;
        message.header.scope = AddressScope::Universe;
        message.header.prefix_len = address.peer.unwrap_or(local).prefix();
        message.attributes.push(AddressAttribute::Local(local.address()));
        message.attributes.push(AddressAttribute::Address(address.peer.unwrap_or(local).address()));
        if let (IpAddr::V4(own), None, 0..=30) = (local.address(), address.peer, local.prefix()) {
            let host_mask = u32::MAX.checked_shr(u32::from(local.prefix())).unwrap_or(0);
            message.attributes.push(AddressAttribute::Broadcast((u32::from(own) | host_mask).into()));
        }
        if let Some(seconds) = lifetime {
            let mut lifetimes = CacheInfo::default();
            (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (seconds, seconds);
            message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
        }
        self.add(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds a route.
    pub(super) fn add_route(&mut self, link: u32, route: Route, from: RouteOrigin) -> anyhow::Result<()> {
        let mut message = RouteMessage::default();
        let destination = route.destination;
        message.header.address_family = family(destination.address());
        message.header.destination_prefix_length = destination.prefix();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        message.header.scope = if route.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
        (message.header.protocol, _) = from.parts();
        if route.on_link {
            message.header.flags = RouteFlags::Onlink;
        }
        if !destination.is_default() {
            message.attributes.push(RouteAttribute::Destination(RouteAddress::from(destination.address())));
        }
        if let Some(gateway) = route.gateway {
            message.attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        }
        message.attributes.push(RouteAttribute::Oif(link));
        if let (_, Some(metric)) = from.parts() {
            message.attributes.push(RouteAttribute::Priority(metric));
        }
        if let RouteOrigin::Dhcp(own) = from {
            message.attributes.push(RouteAttribute::PrefSource(RouteAddress::from(own)));
        }
        // IPv4 takes the same destination through two links, the first one counts; IPv6 would use both at once.
        let flags = if destination.address().is_ipv4() { NLM_F_APPEND } else { NLM_F_EXCL };
        self.add(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | flags)
    }

    /// Asks for something to be made, which may be there already.
    pub(super) fn add(&mut self, message: RouteNetlinkMessage, flags: u16) -> anyhow::Result<()> {
        match self.ask(message, flags) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks for a change, and waits until the kernel has made it.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Errno> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        loop {
            for (header, payload) in self.receive()? {
                match payload {
                    NetlinkPayload::Error(answer) if header.sequence_number == self.sequence => {
                        return answer.code.map_or(Ok(()), |code| Err(Errno::from_raw_os_error(-code.get())));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Asks for a list.
    fn dump(&mut self, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Errno> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut found = Vec::new();
        loop {
            for (header, payload) in self.receive()? {
                if header.sequence_number != self.sequence {
                    continue;
                }
                match payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(answer) => {
                        return Err(answer.code.map_or(Errno::PROTO, |code| Errno::from_raw_os_error(-code.get())));
                    }
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (flags, self.sequence);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        send(&self.socket, &buffer, SendFlags::empty()).map(drop)
    }

    /// The messages of one datagram. One that does not decode is left out: a newer kernel may tell more of a link.
    fn receive(&self) -> Result<Vec<(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>)>, Errno> {
        let mut buffer = vec![0; DATAGRAM];
        let (length, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        let mut messages = Vec::new();
        while let Some(size) = rest.get(..4).and_then(|size| size.try_into().ok()).map(u32::from_ne_bytes) {
            let size = (size as usize).clamp(4, rest.len());
            if let Ok(message) = NetlinkMessage::deserialize(&rest[..size]) {
                messages.push(message.into_parts());
            }
            rest = &rest[size.next_multiple_of(4).min(rest.len())..];
        }
        Ok(messages)
    }
}

/// Who gave a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteOrigin {
    /// A word.
    Static,
    /// A DHCP server, with this address of ours.
    Dhcp(IpAddr),
}

impl RouteOrigin {
    /// As systemd-networkd marks such routes, so that it takes them over; a given route goes before a leased one.
    fn parts(self) -> (RouteProtocol, Option<u32>) {
        match self {
            Self::Static => (RouteProtocol::Static, None),
            Self::Dhcp(_) => (RouteProtocol::Dhcp, Some(1024)),
        }
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn link_of(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether && !flags.contains(LinkFlags::Loopback),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp) && flags.contains(LinkFlags::Running),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = MacAddress::from_bytes(bytes),
            LinkAttribute::PermAddress(bytes) => link.permanent_mac = MacAddress::from_bytes(bytes),
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link.aliases = names::of_link(&link.name, link.permanent_mac.or(link.mac));
    link
}

/// The gateway, when this is a default route through the link.
fn default_gateway(message: &RouteMessage, link: u32) -> Option<IpAddr> {
    let header = &message.header;
    if header.destination_prefix_length != 0 || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let through = message.attributes.contains(&RouteAttribute::Oif(link));
    let gateway = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(IpAddr::V4(*gateway)),
        RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => Some(IpAddr::V6(*gateway)),
        _ => None,
    });
    gateway.filter(|_| through)
}

fn address_of(message: &AddressMessage) -> Option<LinkAddress> {
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut address, mut local) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(found) => address = Some(*found),
            AddressAttribute::Local(found) => local = Some(*found),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    Some(LinkAddress {
        link: message.header.index,
        address: Cidr::new(local.or(address)?, message.header.prefix_len)?,
        // What routers of a site advertise, as QEMU's user network does, reaches them.
        link_local: !matches!(message.header.scope, AddressScope::Universe | AddressScope::Site),
        tentative: flags.contains(AddressFlags::Tentative),
        taken: flags.contains(AddressFlags::Dadfailed),
    })
}
