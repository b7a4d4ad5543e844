//! The real kernel, in a network namespace of the test's own: two links that are each other's end, and a DHCP server on
//! the far one. Needs root, and a kernel with veth.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use rustix::thread::UnshareFlags;
use socket2::{Domain, Protocol, Socket, Type};

use super::super::apply::{How, Settings, Up, bring_up_with};
use super::super::dhcp::Pauses;
use super::super::netlink::Netlink;
use super::super::types::Address;
use super::config;

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const LEASED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

/// Short times, and veths count as devices.
const SETTINGS: Settings = Settings {
    links: Duration::from_millis(500),
    carrier: Duration::from_secs(2),
    dhcp: Duration::from_secs(3),
    ipv6: Duration::from_secs(8),
    pauses: Pauses { first: Duration::from_millis(300), jitter: Duration::from_millis(50) },
    physical: |link| link.ethernet && link.name.starts_with("eth"),
};

/// Runs a test in a namespace of its own, where that is possible.
fn in_namespace(test: impl FnOnce(&mut Netlink) + Send) {
    std::thread::scope(|scope| {
        let run = || {
            #[expect(deprecated, reason = "only the network namespace is left, which changes no descriptor")]
            if let Err(error) = rustix::thread::unshare(UnshareFlags::NEWNET) {
                println!("skipped: no network namespace: {error}");
                return;
            }
            let mut netlink = Netlink::open().expect("netlink");
            match pair(&mut netlink, "eth0", "far0") {
                Ok(()) => test(&mut netlink),
                Err(error) => println!("skipped: no veth: {error:#}"),
            }
        };
        scope.spawn(run).join().expect("the test ends");
    });
}

/// Makes two links that are each other's end, the second one up.
fn pair(netlink: &mut Netlink, near: &str, far: &str) -> anyhow::Result<()> {
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName(far.to_owned()));
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(near.to_owned()));
    let data = LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)));
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), data]));
    netlink.add(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
    let far = netlink.link(far)?.index;
    netlink.set_up(far, true)
}

fn bring_up(words: &str) -> anyhow::Result<Up> {
    let mut log = |line: &str| println!("  {line}");
    bring_up_with(&config(words), Instant::now() + Duration::from_secs(20), &SETTINGS, &mut log)
}

/// What a server does with the packets of a client.
type Rule = fn(MessageType, u32) -> Option<MessageType>;

/// Answers every packet as it should be.
fn well(asked: MessageType, _: u32) -> Option<MessageType> {
    match asked {
        MessageType::Discover => Some(MessageType::Offer),
        MessageType::Request => Some(MessageType::Ack),
        _ => None,
    }
}

/// Runs `client` while a server answers on a link.
fn with_server<T>(link: &str, address: Ipv4Addr, leased: Ipv4Addr, rule: Rule, client: impl FnOnce() -> T) -> T {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).expect("socket");
    socket.set_reuse_address(true).expect("option");
    socket.bind_device(Some(link.as_bytes())).expect("device");
    socket.set_broadcast(true).expect("option");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 67)).into()).expect("bind");
    let socket = UdpSocket::from(OwnedFd::from(socket));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut buffer, mut count) = ([0; 1500], 0);
            while !stop.load(Ordering::Relaxed) {
                let Ok(length) = socket.recv(&mut buffer) else { continue };
                let asked = Message::decode(&mut Decoder::new(&buffer[..length])).expect("the client's packet");
                count += 1;
                let kind = asked.opts().msg_type().expect("a type");
                if let Some(kind) = rule(kind, count) {
                    socket.send_to(b"\x02\x01\x06", ("255.255.255.255", 68)).expect("rubbish before");
                    socket.send_to(&answer(&asked, kind, address, leased), ("255.255.255.255", 68)).expect("sent");
                }
            }
        });
        let result = client();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

fn answer(asked: &Message, kind: MessageType, server: Ipv4Addr, leased: Ipv4Addr) -> Vec<u8> {
    let mut message = asked.clone();
    message.set_opcode(Opcode::BootReply).set_yiaddr(leased);
    let identifier = asked.opts().get(OptionCode::ClientIdentifier).cloned();
    assert!(matches!(identifier, Some(DhcpOption::ClientIdentifier(id)) if id.len() == 7 && id[0] == 1));
    if asked.opts().has_msg_type(MessageType::Request) {
        assert_eq!(asked.opts().get(OptionCode::RequestedIpAddress), Some(&DhcpOption::RequestedIpAddress(leased)));
    }
    let options = message.opts_mut();
    options.clear();
    for option in [
        DhcpOption::MessageType(kind),
        DhcpOption::ServerIdentifier(server),
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
        DhcpOption::Router(vec![server]),
        DhcpOption::DomainNameServer(vec![Ipv4Addr::new(9, 9, 9, 9)]),
        DhcpOption::InterfaceMtu(1400),
        DhcpOption::AddressLeaseTime(600),
        DhcpOption::Hostname("ignored".to_owned()),
    ] {
        options.insert(option);
    }
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).expect("encodes");
    bytes
}

#[test]
fn a_lease_becomes_the_network() {
    in_namespace(|netlink| {
        // Both ends are in one namespace, which else drops what comes from an address of its own.
        std::fs::write("/proc/sys/net/ipv4/conf/all/accept_local", "1").expect("root may");
        let up = with_server("far0", SERVER, LEASED, well, || bring_up("ip=eth0:dhcp nameserver=1.1.1.1")).expect("up");
        assert_eq!(up.links.len(), 1);
        let link = &up.links[0];
        assert_eq!(link.how, [How::Dhcp { server: SERVER, lifetime: 600 }]);
        assert_eq!(link.to_string(), "eth0: 192.0.2.77/24 via 192.0.2.1 (DHCP from 192.0.2.1 for 600 s)");
        assert_eq!(up.dns, [IpAddr::from([1, 1, 1, 1]), IpAddr::from([9, 9, 9, 9])]);
        assert_eq!(netlink.link("eth0").expect("there").mtu, 1400);
        let again =
            with_server("far0", SERVER, LEASED, well, || bring_up("ip=eth0:dhcp:1500 rd.peerdns=0")).expect("up");
        assert_eq!((again.links.len(), again.dns.len()), (1, 0), "a second time, without its DNS servers");
        assert_eq!(netlink.link("eth0").expect("there").mtu, 1500, "a given MTU goes before the server's");
    });
}

#[test]
fn lost_packets_and_refusals_are_survived() {
    let deaf: Rule = |asked, count| well(asked, count).filter(|_| count > 2);
    let refusing: Rule = |asked, count| match asked {
        MessageType::Request if count == 2 => Some(MessageType::Nak),
        other => well(other, count),
    };
    for (what, rule) in [("the first two packets are lost", deaf), ("the first request is refused", refusing)] {
        in_namespace(|_| {
            let up = with_server("far0", SERVER, LEASED, rule, || bring_up("ip=eth0:dhcp")).expect(what);
            assert_eq!(up.links[0].addresses[0].to_string(), "192.0.2.77/24", "{what}");
        });
    }
}

#[test]
fn a_failure_says_what_was_tried() {
    let offering: Rule = |asked, count| well(asked, count).filter(|kind| *kind == MessageType::Offer);
    in_namespace(|netlink| {
        let error = bring_up("ip=eth0:dhcp").expect_err("nobody answers").to_string();
        assert!(error.starts_with("no link reaches a network\neth0: no DHCP answer in 3 s, "), "{error}");
        let error = with_server("far0", SERVER, LEASED, offering, || bring_up("ip=eth0:dhcp")).expect_err("no end");
        let error = error.to_string();
        assert!(error.contains("eth0: no DHCP lease in 3 s: 192.0.2.1 offered one, and did not confirm it"), "{error}");
        let error = bring_up("ip=eth7:dhcp ip=eth8:dhcp").expect_err("not there").to_string();
        assert!(error.starts_with("no link is called eth7, eth8; the links are: "), "{error}");
        assert!(error.contains("eth0") && error.contains("far0 ("), "{error}");
        let far = netlink.link("far0").expect("there").index;
        netlink.set_up(far, false).expect("down");
        let error = bring_up("ip=eth0:dhcp").expect_err("no carrier").to_string();
        assert_eq!(error, "no link reaches a network\neth0: no carrier (is the cable in?) in 2 s");
    });
}

#[test]
fn the_first_of_all_links_is_enough() {
    in_namespace(|netlink| {
        pair(netlink, "eth1", "far1").expect("another pair");
        pair(netlink, "eth2", "far2").expect("a third pair");
        let far = netlink.link("far2").expect("there").index;
        netlink.set_up(far, false).expect("down");
        let begin = Instant::now();
        std::fs::write("/proc/sys/net/ipv4/conf/all/accept_local", "1").expect("root may");
        let up = with_server("far1", SERVER, LEASED, well, || bring_up("")).expect("up");
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        assert_eq!(up.links.iter().map(|link| link.interface.as_str()).collect::<Vec<_>>(), ["eth1"]);
        let words = "ip=dhcp ip=198.51.100.5:::24::eth0:none";
        let up = with_server("far1", SERVER, LEASED, well, || bring_up(words)).expect("up");
        assert_eq!(up.links.iter().map(|link| link.interface.as_str()).collect::<Vec<_>>(), ["eth0", "eth1"]);
        let other = "eth2: another link was there first";
        assert!(up.problems.iter().any(|problem| problem == other), "{:?}", up.problems);
    });
}

#[test]
fn given_addresses_and_routes_are_there_and_may_be_there_already() {
    in_namespace(|netlink| {
        let words = "ip=192.0.2.5::192.0.2.1:24:h:eth0:none:1400:52:54:00:ab:cd:ef rd.route=10.0.0.0/8:192.0.2.9:eth0 \
                     rd.route=198.51.100.0/24::eth0 ip=[2001:db8::5]::[2001:db8::1]:64::eth0:none nameserver=9.9.9.9";
        for _ in 0..2 {
            let up = bring_up(words).expect("up");
            let shown = "eth0: 192.0.2.5/24, 2001:db8::5/64 via 192.0.2.1, 2001:db8::1 (given)";
            assert_eq!(up.links[0].to_string(), shown);
            assert_eq!(up.links[0].mac.map(|mac| mac.to_string()).as_deref(), Some("52:54:00:ab:cd:ef"));
        }
        assert_eq!(netlink.link("eth0").expect("there").mtu, 1400);
        let routes = std::fs::read_to_string("/proc/thread-self/net/route").expect("routes");
        let wanted = ["eth0\t00000000\t010200C0", "eth0\t0000000A\t090200C0", "eth0\t006433C6\t00000000"];
        for route in wanted {
            assert_eq!(routes.matches(route).count(), 1, "{route}: {routes}");
        }
    });
}

#[test]
fn a_gateway_outside_the_network_is_on_the_link() {
    in_namespace(|_| {
        let up = bring_up("ip=192.0.2.5::172.31.1.1:32::eth0:none").expect("up");
        assert_eq!(up.links[0].to_string(), "eth0: 192.0.2.5/32 via 172.31.1.1 (given)");
        let up = bring_up("ip=192.0.2.6:192.0.2.7:192.0.2.7:::eth0:none").expect("a peer");
        assert!(up.links[0].gateways.contains(&IpAddr::from([192, 0, 2, 7])), "{}", up.links[0]);
    });
}

#[test]
fn an_ipv6_address_of_somebody_else_is_an_error() {
    in_namespace(|netlink| {
        let far = netlink.link("far0").expect("there").index;
        let taken = super::super::types::Cidr::new("2001:db8::5".parse().expect("address"), 64).expect("in range");
        let near = netlink.link("eth0").expect("there").index;
        netlink.set_up(near, true).expect("up");
        netlink.add_address(far, Address { local: taken, peer: None }, None).expect("added");
        // Until the other end's own address is settled it does not defend it.
        let settled = |netlink: &mut Netlink| {
            netlink.addresses(far).expect("listed").iter().any(|own| own.address == taken && !own.tentative)
        };
        let end = Instant::now() + Duration::from_secs(8);
        while !settled(netlink) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
        }
        let error = bring_up("ip=[2001:db8::5]:::64::eth0:none").expect_err("taken").to_string();
        let expected = "no link reaches a network\neth0: the address 2001:db8::5/64 is in use by another machine";
        assert_eq!(error, expected);
    });
}

#[test]
fn ipv6_alone_is_waited_for() {
    in_namespace(|_| {
        let up = bring_up("ip=eth0:link6").expect("up");
        assert_eq!(up.links[0].how, [How::LinkLocal]);
        assert!(up.links[0].addresses[0].to_string().starts_with("fe80::"), "{}", up.links[0]);
        let error = bring_up("ip=eth0:auto6").expect_err("no router").to_string();
        assert!(error.contains("eth0: no address from a router advertisement (DHCPv6 is not asked) in 8 s"), "{error}");
    });
}

/// A router advertisement ([RFC 4861](https://www.rfc-editor.org/rfc/rfc4861), section 4.2) with a prefix of 64 bits to
/// make addresses of and two DNS servers.
fn advertisement(prefix: &str) -> Vec<u8> {
    let address = |text: &str| text.parse::<std::net::Ipv6Addr>().expect("address").octets();
    let mut packet = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    packet.extend([3, 4, 64, 0xc0, 0, 0, 7, 8, 0, 0, 7, 8, 0, 0, 0, 0]);
    packet.extend(address(prefix));
    packet.extend([25, 5, 0, 0, 0, 0, 7, 8]);
    packet.extend([address("2001:db8:1::53"), address("fe80::53")].concat());
    packet
}

/// Runs `client` while a router advertises on a link.
fn with_router<T>(link: &str, index: u32, prefix: &str, client: impl FnOnce() -> T) -> T {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).expect("socket");
    socket.bind_device(Some(link.as_bytes())).expect("device");
    socket.set_multicast_hops_v6(255).expect("option");
    let all: std::net::Ipv6Addr = "ff02::1".parse().expect("address");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Until the link has settled its own address there is none to send from.
                let to = SocketAddr::from(std::net::SocketAddrV6::new(all, 0, 0, index));
                let _ = socket.send_to(&advertisement(prefix), &to.into());
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let result = client();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

#[test]
fn routers_advertise_addresses_and_dns_servers() {
    in_namespace(|netlink| {
        let index = netlink.link("far0").expect("there").index;
        let prefix = "2001:db8:1::";
        let up = with_router("far0", index, prefix, || bring_up("ip=eth0:auto6")).expect("up");
        assert_eq!(up.links[0].how, [How::Advertised]);
        assert!(up.links[0].addresses[0].to_string().starts_with("2001:db8:1:0:"), "{}", up.links[0]);
        assert_eq!(up.dns, ["2001:db8:1::53".parse::<IpAddr>().expect("address")]);
        let words = "ip=eth0:auto6 nameserver=9.9.9.9 rd.peerdns=0";
        let up = with_router("far0", index, prefix, || bring_up(words)).expect("up");
        assert_eq!(up.dns, [IpAddr::from([9, 9, 9, 9])]);
    });
}

#[test]
fn an_address_of_a_site_is_more_than_link_local() {
    in_namespace(|netlink| {
        let index = netlink.link("far0").expect("there").index;
        let up = with_router("far0", index, "fec0::", || bring_up("ip=eth0:auto6")).expect("up");
        assert_eq!(up.links[0].how, [How::Advertised]);
        assert!(
            up.links[0].addresses.iter().all(|address| address.to_string().starts_with("fec0::")),
            "{}",
            up.links[0]
        );
    });
}

#[test]
fn a_bridge_is_made_and_a_link_renamed() {
    in_namespace(|netlink| {
        let mac = netlink.link("eth0").expect("there").mac.expect("an address");
        let words = format!("ifname=lan0:{mac} bridge=br0:lan0 ip=192.0.2.5:::24::br0:none:1400");
        for _ in 0..2 {
            let up = bring_up(&words).expect("up");
            assert_eq!(up.links[0].to_string(), "br0: 192.0.2.5/24 (given)");
        }
        let (bridge, member) = (netlink.link("br0").expect("made"), netlink.link("lan0").expect("renamed"));
        assert_eq!((bridge.kind.as_deref(), bridge.mtu), (Some("bridge"), 1400));
        assert_eq!(member.master, Some(bridge.index));
    });
}

#[test]
fn what_cannot_be_done_is_said() {
    in_namespace(|_| {
        let error = bring_up("bond=eth0:far0 ip=eth0:dhcp").expect_err("a device is no bond");
        let expected = "make eth0, a bond: a link of this name is there: it is a veth, expected a bond";
        assert_eq!(format!("{error:#}"), expected);
        let error = bring_up("ip=eth0:dhcp:70").expect_err("too small for IPv6, not for the kernel").to_string();
        assert!(error.contains("no DHCP answer"), "{error}");
    });
}

#[test]
fn links_that_no_word_names_fail_one_by_one() {
    in_namespace(|netlink| {
        pair(netlink, "eth1", "far1").expect("another pair");
        let error = bring_up("ip=auto6 rd.route=10.0.0.0/8:192.0.2.9").expect_err("no network holds the gateway");
        let reason = |link| {
            format!("\n{link}: route 10.0.0.0/8 via 192.0.2.9 through {link}: Network is unreachable (os error 101)")
        };
        assert_eq!(error.to_string(), format!("no link reaches a network{}{}", reason("eth0"), reason("eth1")));
    });
}

#[test]
fn what_the_kernel_does_not_know_is_said() {
    in_namespace(|_| match bring_up("vlan=eth0.5:eth0 ip=192.0.2.5:::24::eth0.5:none") {
        Ok(up) => assert_eq!(up.links[0].to_string(), "eth0.5: 192.0.2.5/24 (given)"),
        // This kernel has no VLANs: then the error says what was to be made.
        Err(error) => assert!(format!("{error:#}").starts_with("make eth0.5, VLAN 5 on eth0: "), "{error:#}"),
    });
}

#[test]
fn a_network_that_is_switched_off_stays_so() {
    in_namespace(|netlink| {
        assert_eq!(bring_up("ip=none").expect("nothing to do"), Up::default());
        assert!(!netlink.link("eth0").expect("there").up);
    });
}
