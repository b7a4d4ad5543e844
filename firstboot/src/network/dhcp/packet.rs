//! The packets: pure functions from bytes and to bytes.

use std::net::{IpAddr, Ipv4Addr};

use dhcproto::v4::{DhcpOption, Flags, HType, MIN_PACKET_SIZE, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};

use crate::network::types::{Cidr, MacAddress, Route};

/// Where options begin: behind the fixed fields and the cookie.
const OPTIONS_START: usize = 240;
/// The smallest MTU that is taken from a server: what every host must take.
const SMALLEST_MTU: u16 = 576;
/// The largest answer that servers may send, in bytes.
const LARGEST_ANSWER: u16 = 1472;
/// What servers are asked for. Classless routes come before routers, as RFC 3442 demands.
const ASKED: [OptionCode; 5] = [
    OptionCode::SubnetMask,
    OptionCode::ClasslessStaticRoute,
    OptionCode::Router,
    OptionCode::DomainNameServer,
    OptionCode::InterfaceMtu,
];
/// Options that are read. All others are cut out unread: what nobody asked for can break nothing.
const READ: [OptionCode; 8] = [
    OptionCode::SubnetMask,
    OptionCode::ClasslessStaticRoute,
    OptionCode::Router,
    OptionCode::DomainNameServer,
    OptionCode::InterfaceMtu,
    OptionCode::MessageType,
    OptionCode::ServerIdentifier,
    OptionCode::AddressLeaseTime,
];

/// What a server gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::network) struct Lease {
    /// The address, with its network's prefix.
    pub(in crate::network) address: Cidr,
    /// Routes, those to gateways before those through them.
    pub(in crate::network) routes: Vec<Route>,
    /// DNS servers, in order.
    pub(in crate::network) dns: Vec<IpAddr>,
    /// The largest packet, in bytes.
    pub(in crate::network) mtu: Option<u32>,
    /// Who gave it.
    pub(in crate::network) server: Ipv4Addr,
    /// For how long, in seconds; `u32::MAX` is for ever.
    pub(in crate::network) lifetime: u32,
}

/// What a packet says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Offer(Lease),
    Acknowledged(Lease),
    Refused,
}

/// Who asks, and in which exchange.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) mac: MacAddress,
    pub(super) exchange: u32,
}

impl Client {
    /// A packet to all servers; with an offer it names the server and the address.
    pub(super) fn packet(self, kind: MessageType, offer: Option<&Lease>, seconds: u16) -> Vec<u8> {
        let mac = self.mac.bytes();
        let mut message = Message::default();
        message
            .set_opcode(Opcode::BootRequest)
            .set_htype(HType::Eth)
            .set_xid(self.exchange)
            .set_secs(seconds)
            .set_flags(Flags::default().set_broadcast())
            .set_chaddr(&mac);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ClientIdentifier([&[u8::from(HType::Eth)], mac.as_slice()].concat()));
        options.insert(DhcpOption::MaxMessageSize(LARGEST_ANSWER));
        options.insert(DhcpOption::ParameterRequestList(ASKED.to_vec()));
        if let Some(offer) = offer {
            options.insert(DhcpOption::ServerIdentifier(offer.server));
            if let IpAddr::V4(address) = offer.address.address() {
                options.insert(DhcpOption::RequestedIpAddress(address));
            }
        }
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).expect("the options are short and few");
        // Some relays drop packets that are shorter than BOOTP's.
        bytes.resize(bytes.len().max(MIN_PACKET_SIZE), 0);
        bytes
    }

    /// Reads a packet. `None` when it is for somebody else.
    ///
    /// # Errors
    /// Why it cannot be used, when it is for us.
    pub(super) fn read(self, packet: &[u8]) -> Result<Option<Answer>, String> {
        // The decoder trusts the length of the hardware address, and is not to see another one.
        if packet.len() < OPTIONS_START || packet[2] != 6 {
            return Ok(None);
        }
        let message =
            Message::decode(&mut Decoder::new(&only_read_options(packet)?)).map_err(|error| error.to_string())?;
        let ours = message.opcode() == Opcode::BootReply
            && message.xid() == self.exchange
            && message.chaddr() == self.mac.bytes();
        if !ours {
            return Ok(None);
        }
        match message.opts().msg_type() {
            Some(MessageType::Offer) => Ok(Some(Answer::Offer(lease(&message)?))),
            Some(MessageType::Ack) => Ok(Some(Answer::Acknowledged(lease(&message)?))),
            Some(MessageType::Nak) => Ok(Some(Answer::Refused)),
            Some(_) => Ok(None),
            None => Err("it has no message type".to_owned()),
        }
    }
}

/// The packet with nothing but the options that are read.
fn only_read_options(packet: &[u8]) -> Result<Vec<u8>, String> {
    let (fixed, mut rest) = packet.split_at(OPTIONS_START);
    let mut kept = fixed.to_vec();
    loop {
        match *rest {
            [] | [255, ..] => break,
            [0, ref after @ ..] => rest = after,
            [code, length, ref after @ ..] if after.len() >= usize::from(length) => {
                let (value, after) = after.split_at(usize::from(length));
                // The decoder passes over an option of a wrong length, which then would look as if it were not there.
                if length_of(code).is_some_and(|expected| expected != length) {
                    return Err(format!("its option {code} has {length} bytes"));
                }
                if READ.contains(&OptionCode::from(code)) {
                    kept.extend([code, length]);
                    kept.extend(value);
                }
                rest = after;
            }
            [code, ..] => return Err(format!("its option {code} is cut off")),
        }
    }
    kept.push(255);
    Ok(kept)
}

/// The length that an option must have, where it has one and cannot be done without.
fn length_of(code: u8) -> Option<u8> {
    match OptionCode::from(code) {
        OptionCode::SubnetMask | OptionCode::ServerIdentifier | OptionCode::AddressLeaseTime => Some(4),
        OptionCode::MessageType => Some(1),
        _ => None,
    }
}

/// What an offer or acknowledgement gives.
fn lease(message: &Message) -> Result<Lease, String> {
    let option = |code| message.opts().get(code);
    let address = message.yiaddr();
    if !is_host(address) {
        return Err(format!("it gives the address {address}"));
    }
    let Some(DhcpOption::ServerIdentifier(server)) = option(OptionCode::ServerIdentifier) else {
        return Err("it does not say which server it is from".to_owned());
    };
    let lifetime = match option(OptionCode::AddressLeaseTime) {
        Some(DhcpOption::AddressLeaseTime(seconds)) if *seconds > 0 => *seconds,
        _ => return Err("it gives the address for no time".to_owned()),
    };
    let mask = match option(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => u32::from(*mask),
        _ => class_mask(address),
    };
    if mask.leading_ones() + mask.trailing_zeros() < 32 || mask == 0 {
        return Err(format!("it gives the netmask {}", Ipv4Addr::from(mask)));
    }
    let prefix = u8::try_from(mask.leading_ones()).expect("at most 32");
    let own = Cidr::new(IpAddr::V4(address), prefix).ok_or("it gives no network")?;
    let dns = match option(OptionCode::DomainNameServer) {
        Some(DhcpOption::DomainNameServer(servers)) => servers.clone(),
        _ => Vec::new(),
    };
    let mtu = match option(OptionCode::InterfaceMtu) {
        Some(DhcpOption::InterfaceMtu(mtu)) if *mtu >= SMALLEST_MTU => Some(u32::from(*mtu)),
        _ => None,
    };
    Ok(Lease {
        address: own,
        routes: routes(message, own),
        dns: dns.into_iter().filter(|server| is_host(*server)).map(IpAddr::V4).collect(),
        mtu,
        server: *server,
        lifetime,
    })
}

/// Classless routes where there are any that can be read, else one default route through the first router.
fn routes(message: &Message, own: Cidr) -> Vec<Route> {
    let mut routes: Vec<Route> = match message.opts().get(OptionCode::ClasslessStaticRoute) {
        Some(DhcpOption::ClasslessStaticRoute(routes)) if !routes.is_empty() => routes
            .iter()
            .filter(|(_, gateway)| gateway.is_unspecified() || is_host(*gateway))
            .filter_map(|(network, gateway)| {
                let destination = Cidr::new(IpAddr::V4(network.addr()), network.prefix_len())?.network();
                let gateway = (!gateway.is_unspecified()).then_some(IpAddr::V4(*gateway));
                Some(Route { destination, gateway, on_link: false })
            })
            .collect(),
        _ => match message.opts().get(OptionCode::Router) {
            Some(DhcpOption::Router(routers)) => {
                let first = routers.iter().find(|router| is_host(**router));
                first.map(|router| Route::default_through(IpAddr::V4(*router))).into_iter().collect()
            }
            _ => Vec::new(),
        },
    };
    // Stable, so that the server's order counts among routes of one kind.
    routes.sort_by_key(|route| route.gateway.is_some());
    let direct: Vec<Cidr> =
        routes.iter().filter(|route| route.gateway.is_none()).map(|route| route.destination).collect();
    for route in &mut routes {
        let Some(gateway) = route.gateway else { continue };
        route.on_link = !own.contains(gateway) && !direct.iter().any(|network| network.contains(gateway));
    }
    routes
}

/// Whether this can be one machine's address.
fn is_host(address: Ipv4Addr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && !address.is_broadcast()
}

/// The netmask of an address's class, for servers that give none.
fn class_mask(address: Ipv4Addr) -> u32 {
    match address.octets()[0] {
        0..=127 => 0xff00_0000,
        128..=191 => 0xffff_0000,
        _ => 0xffff_ff00,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXCHANGE: u32 = 0x1234_5678;

    fn client() -> Client {
        Client { mac: "52:54:00:00:00:01".parse().expect("an address"), exchange: EXCHANGE }
    }

    /// A server's packet with these options, as bytes of code, length and value.
    fn packet(options: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; OPTIONS_START];
        bytes[..4].copy_from_slice(&[2, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&EXCHANGE.to_be_bytes());
        bytes[16..20].copy_from_slice(&[192, 0, 2, 77]);
        bytes[28..34].copy_from_slice(&client().mac.bytes());
        bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
        options.iter().for_each(|option| bytes.extend(*option));
        bytes.push(255);
        bytes
    }

    const OFFER: &[u8] = &[53, 1, 2];
    const ACK: &[u8] = &[53, 1, 5];
    const SERVER: &[u8] = &[54, 4, 192, 0, 2, 1];
    const TIME: &[u8] = &[51, 4, 0, 0, 2, 88];
    const MASK: &[u8] = &[1, 4, 255, 255, 255, 0];
    const ROUTER: &[u8] = &[3, 8, 192, 0, 2, 254, 192, 0, 2, 253];

    /// A lease in one line.
    fn shown(answer: Answer) -> String {
        let (kind, lease) = match answer {
            Answer::Offer(lease) => ("offer", lease),
            Answer::Acknowledged(lease) => ("ack", lease),
            Answer::Refused => return "refused".to_owned(),
        };
        let mut text = format!("{kind} {} from {} for {}", lease.address, lease.server, lease.lifetime);
        lease.routes.iter().for_each(|route| text += &format!(" [{route}]"));
        lease.dns.iter().for_each(|server| text += &format!(" dns {server}"));
        text + &lease.mtu.map_or(String::new(), |mtu| format!(" mtu {mtu}"))
    }

    #[test]
    fn leases_are_read() {
        for (what, options, expected) in [
            ("plain", vec![OFFER, SERVER, TIME, MASK], "offer 192.0.2.77/24 from 192.0.2.1 for 600"),
            ("class mask", vec![ACK, SERVER, TIME], "ack 192.0.2.77/24 from 192.0.2.1 for 600"),
            (
                "first router",
                vec![ACK, SERVER, TIME, MASK, ROUTER],
                "ack 192.0.2.77/24 from 192.0.2.1 for 600 [0.0.0.0/0 via 192.0.2.254]",
            ),
            (
                "router outside",
                vec![ACK, SERVER, TIME, &[1, 4, 255, 255, 255, 255], &[3, 4, 172, 31, 1, 1]],
                "ack 192.0.2.77/32 from 192.0.2.1 for 600 [0.0.0.0/0 via 172.31.1.1 on-link]",
            ),
            (
                "classless routes that end within one",
                vec![
                    ACK,
                    SERVER,
                    TIME,
                    &[1, 4, 255, 255, 255, 255],
                    ROUTER,
                    &[121, 23, 0, 10, 0, 0, 1, 32, 10, 0, 0, 1, 0, 0, 0, 0, 16, 198, 51, 10, 0, 0, 1, 0, 0],
                ],
                "ack 192.0.2.77/32 from 192.0.2.1 for 600 [0.0.0.0/0 via 192.0.2.254 on-link]",
            ),
            (
                "classless",
                vec![
                    ACK,
                    SERVER,
                    TIME,
                    &[1, 4, 255, 255, 255, 255],
                    ROUTER,
                    &[121, 21, 0, 10, 0, 0, 1, 32, 10, 0, 0, 1, 0, 0, 0, 0, 16, 198, 51, 10, 0, 0, 1],
                ],
                "ack 192.0.2.77/32 from 192.0.2.1 for 600 [10.0.0.1/32] [0.0.0.0/0 via 10.0.0.1] [198.51.0.0/16 via 10.0.0.1]",
            ),
            (
                "DNS and MTU",
                vec![ACK, SERVER, TIME, MASK, &[6, 8, 9, 9, 9, 9, 0, 0, 0, 0], &[26, 2, 5, 120]],
                "ack 192.0.2.77/24 from 192.0.2.1 for 600 dns 9.9.9.9 mtu 1400",
            ),
            (
                "an MTU that no host may have is ignored",
                vec![ACK, SERVER, TIME, MASK, &[26, 2, 0, 68]],
                "ack 192.0.2.77/24 from 192.0.2.1 for 600",
            ),
            (
                "for ever",
                vec![ACK, SERVER, MASK, &[51, 4, 255, 255, 255, 255]],
                "ack 192.0.2.77/24 from 192.0.2.1 for 4294967295",
            ),
            ("refusal", vec![&[53, 1, 6], SERVER], "refused"),
            (
                "what is not read may be broken",
                vec![OFFER, SERVER, TIME, MASK, &[119, 2, 192, 200], &[81, 0]],
                "offer 192.0.2.77/24 from 192.0.2.1 for 600",
            ),
        ] {
            let answer = client().read(&packet(&options)).expect(what).expect(what);
            assert_eq!(shown(answer), expected, "{what}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        for (options, expected) in [
            (vec![OFFER, TIME, MASK], "it does not say which server it is from"),
            (vec![OFFER, SERVER, MASK], "it gives the address for no time"),
            (vec![OFFER, SERVER, MASK, &[51, 4, 0, 0, 0, 0]], "it gives the address for no time"),
            (vec![OFFER, SERVER, TIME, &[1, 4, 255, 0, 255, 0]], "it gives the netmask 255.0.255.0"),
            (vec![OFFER, SERVER, TIME, &[1, 3, 255, 255, 255]], "its option 1 has 3 bytes"),
            (vec![SERVER, TIME], "it has no message type"),
            (vec![OFFER, &[54, 200, 1]], "its option 54 is cut off"),
        ] {
            assert_eq!(client().read(&packet(&options)).expect_err(expected), expected);
        }
        let mut nowhere = packet(&[OFFER, SERVER, TIME, MASK]);
        nowhere[16..20].copy_from_slice(&[224, 0, 0, 1]);
        assert_eq!(client().read(&nowhere).expect_err("multicast"), "it gives the address 224.0.0.1");
    }

    #[test]
    fn packets_for_others_are_passed_over() {
        let good = packet(&[OFFER, SERVER, TIME, MASK]);
        assert!(client().read(&good).expect("good").is_some());
        for (what, at) in
            [("a request", 0), ("another length of address", 2), ("another exchange", 7), ("another machine", 33)]
        {
            let mut other = good.clone();
            other[at] ^= 3;
            assert_eq!(client().read(&other), Ok(None), "{what}");
        }
        assert_eq!(client().read(&good[..100]), Ok(None), "cut off");
    }

    #[test]
    fn what_is_sent_is_what_was_meant() {
        let offer = match client().read(&packet(&[OFFER, SERVER, TIME, MASK])) {
            Ok(Some(Answer::Offer(lease))) => lease,
            other => panic!("{other:?}"),
        };
        let bytes = client().packet(MessageType::Request, Some(&offer), 7);
        assert!(bytes.len() >= MIN_PACKET_SIZE);
        let message = Message::decode(&mut Decoder::new(&bytes)).expect("decodes");
        assert_eq!((message.xid(), message.secs(), message.flags().broadcast()), (EXCHANGE, 7, true));
        assert_eq!((message.chaddr(), message.ciaddr()), (client().mac.bytes().as_slice(), Ipv4Addr::UNSPECIFIED));
        let identifier = DhcpOption::ClientIdentifier(vec![1, 0x52, 0x54, 0, 0, 0, 1]);
        for (code, expected) in [
            (OptionCode::MessageType, DhcpOption::MessageType(MessageType::Request)),
            (OptionCode::ClientIdentifier, identifier),
            (OptionCode::RequestedIpAddress, DhcpOption::RequestedIpAddress(Ipv4Addr::new(192, 0, 2, 77))),
            (OptionCode::ServerIdentifier, DhcpOption::ServerIdentifier(Ipv4Addr::new(192, 0, 2, 1))),
        ] {
            assert_eq!(message.opts().get(code), Some(&expected));
        }
    }

    #[test]
    fn no_packet_makes_the_reader_panic() {
        arbtest::arbtest(|u| {
            let mut bytes = packet(&[]);
            bytes.pop();
            for _ in 0..u.int_in_range(0..=8)? {
                let code = *u.choose(&READ)?;
                let length = u.int_in_range(0..=12)?;
                bytes.extend([u8::from(code), length]);
                bytes.extend(u.bytes(usize::from(length))?);
            }
            for _ in 0..u.int_in_range(0..=4)? {
                let at = u.choose_index(bytes.len())?;
                bytes[at] = u.arbitrary()?;
            }
            bytes.truncate(u.int_in_range(0..=bytes.len())?);
            if let Ok(Some(Answer::Offer(lease) | Answer::Acknowledged(lease))) = client().read(&bytes) {
                assert!(lease.lifetime > 0 && lease.address.prefix() > 0);
            }
            Ok(())
        })
        .budget_ms(2000);
    }
}
