//! Every form that the manual documents, right and wrong.

use super::super::config::{NetworkConfig, Origin};
use super::config;

/// An interface in one line.
fn shown(words: &str, name: &str) -> String {
    let config = config(words);
    let interface = config.interfaces.get(&name.parse().expect(name)).unwrap_or_else(|| panic!("{words}: no {name}"));
    let mut parts: Vec<String> = interface.methods.iter().map(|method| format!("{method:?}")).collect();
    for address in &interface.addresses {
        parts.push(address.local.to_string());
        parts.extend(address.peer.map(|peer| format!("peer {peer}")));
    }
    parts.extend(interface.routes.iter().map(|route| format!("[{route}]")));
    parts.extend(interface.mtu.map(|mtu| format!("mtu {mtu}")));
    parts.extend(interface.mac.map(|mac| format!("mac {mac}")));
    parts.extend(interface.hostname.as_ref().map(|host| format!("host {host}")));
    parts.extend(config.nameservers.iter().map(|server| format!("dns {server}")));
    parts.join(" ")
}

#[test]
fn every_form_of_ip_for_an_interface() {
    for (words, expected) in [
        // INTERFACE:METHOD[:[MTU][:MAC]]
        ("ip=eth0:dhcp", "Dhcp"),
        ("ip=eth0:on", "Any"),
        ("ip=eth0:any", "Any"),
        ("ip=eth0:auto6", "Auto6"),
        ("ip=eth0:either6", "Either6"),
        ("ip=eth0:link6", "Link6"),
        ("ip=eth0:none", "Off"),
        ("ip=eth0:off", "Off"),
        ("ip=eth0:dhcp:9000", "Dhcp mtu 9000"),
        ("ip=eth0:dhcp:9000:52:54:00:ab:cd:ef", "Dhcp mtu 9000 mac 52:54:00:ab:cd:ef"),
        ("ip=eth0:dhcp::52:54:00:ab:cd:ef", "Dhcp mac 52:54:00:ab:cd:ef"),
        ("ip=eth0:dhcp:", "Dhcp"),
        ("ip=eth0:dhcp::", "Dhcp"),
        // ADDRESS:PEER:GATEWAY:NETMASK:HOSTNAME:INTERFACE:METHOD
        ("ip=192.0.2.5::192.0.2.1:255.255.255.0:h:eth0:none", "192.0.2.5/24 [0.0.0.0/0 via 192.0.2.1] host h"),
        ("ip=192.0.2.5::192.0.2.1:24::eth0:off", "192.0.2.5/24 [0.0.0.0/0 via 192.0.2.1]"),
        ("ip=192.0.2.5:::24::eth0", "192.0.2.5/24"),
        ("ip=192.0.2.5:::24::eth0:", "192.0.2.5/24"),
        ("ip=192.0.2.5:::24::eth0:dhcp", "Dhcp 192.0.2.5/24"),
        ("ip=192.0.2.5:::31::eth0:none", "192.0.2.5/31"),
        ("ip=192.0.2.5::172.31.1.1:32::eth0:none", "192.0.2.5/32 [0.0.0.0/0 via 172.31.1.1 on-link]"),
        ("ip=::::h:eth0:dhcp", "Dhcp host h"),
        ("ip=::192.0.2.1:::eth0:dhcp", "Dhcp [0.0.0.0/0 via 192.0.2.1]"),
        ("ip=::::h.example.com:eth0:none", "Off host h.example.com"),
        (
            "ip=192.0.2.5:192.0.2.6:192.0.2.6::h:eth0:none",
            "192.0.2.5/32 peer 192.0.2.6/32 [0.0.0.0/0 via 192.0.2.6] host h",
        ),
        ("ip=192.0.2.5:192.0.2.6/30:::h:eth0:none", "192.0.2.5/32 peer 192.0.2.6/30 host h"),
        // [:[MTU][:MAC]] or [:[DNS1][:DNS2]]
        ("ip=192.0.2.5:::24::eth0:none:1400", "192.0.2.5/24 mtu 1400"),
        ("ip=192.0.2.5:::24::eth0:none:1400:52:54:00:ab:cd:ef", "192.0.2.5/24 mtu 1400 mac 52:54:00:ab:cd:ef"),
        ("ip=192.0.2.5:::24::eth0:none::52:54:00:ab:cd:ef", "192.0.2.5/24 mac 52:54:00:ab:cd:ef"),
        ("ip=192.0.2.5:::24::eth0:none:9.9.9.9", "192.0.2.5/24 dns 9.9.9.9"),
        ("ip=192.0.2.5:::24::eth0:none:9.9.9.9:1.1.1.1", "192.0.2.5/24 dns 9.9.9.9 dns 1.1.1.1"),
        ("ip=192.0.2.5:::24::eth0:none::1.1.1.1", "192.0.2.5/24 dns 1.1.1.1"),
        ("ip=192.0.2.5:::24::eth0:none:[2001:db8::9]:1.1.1.1", "192.0.2.5/24 dns 2001:db8::9 dns 1.1.1.1"),
        // IPv6
        ("ip=[2001:db8::5]::[2001:db8::1]:64::eth0:none", "2001:db8::5/64 [::/0 via 2001:db8::1]"),
        ("ip=[2001:db8::5]::[fe80::1]:128::eth0:none", "2001:db8::5/128 [::/0 via fe80::1]"),
        ("ip=[2001:db8::5]::[2001:db9::1]:64::eth0:none", "2001:db8::5/64 [::/0 via 2001:db9::1 on-link]"),
        ("ip=[2001:db8::5]:[2001:db8::6]/64:::h:eth0:none", "2001:db8::5/128 peer 2001:db8::6/64 host h"),
        ("ip=[2001:db8::5]:[2001:db8::6/64]:::h:eth0:none", "2001:db8::5/128 peer 2001:db8::6/64 host h"),
        // Several words for one interface
        ("ip=eth0:dhcp ip=[2001:db8::5]:::64::eth0:none", "Dhcp 2001:db8::5/64"),
        ("ip=192.0.2.5:::24::eth0:none ip=192.0.2.6:::24::eth0:none:1400", "192.0.2.5/24 192.0.2.6/24 mtu 1400"),
        // Routes and DNS servers
        ("ip=eth0:dhcp rd.route=10.0.0.0/8:192.0.2.9:eth0", "Dhcp [10.0.0.0/8 via 192.0.2.9]"),
        ("ip=eth0:dhcp rd.route=10.0.0.0/255.0.0.0:192.0.2.9:eth0", "Dhcp [10.0.0.0/8 via 192.0.2.9]"),
        ("ip=eth0:dhcp rd.route=10.1.2.3/8:192.0.2.9", "Dhcp [10.0.0.0/8 via 192.0.2.9]"),
        ("ip=eth0:dhcp rd.route=10.0.0.0/8::eth0", "Dhcp [10.0.0.0/8]"),
        ("ip=eth0:dhcp rd.route=[2001:DB8:3::/8]:[2001:DB8:2::1]:eth0", "Dhcp [2000::/8 via 2001:db8:2::1]"),
        ("ip=eth0:dhcp rd.route=[2001:db8::]/32:[fe80::1]:eth0", "Dhcp [2001:db8::/32 via fe80::1]"),
        (
            "ip=192.0.2.5:::24::eth0:none ip=198.51.100.5:::24::eth1:none rd.route=10.0.0.0/8:192.0.2.9",
            "192.0.2.5/24 [10.0.0.0/8 via 192.0.2.9]",
        ),
        ("ip=eth0:dhcp nameserver=9.9.9.9 nameserver=[2001:db8::9]", "Dhcp dns 9.9.9.9 dns 2001:db8::9"),
        ("ip=eth0:dhcp nameserver=2001:db8::9 nameserver=2001:db8::9", "Dhcp dns 2001:db8::9"),
    ] {
        assert_eq!(shown(words, "eth0"), expected, "{words}");
    }
}

#[test]
fn every_form_of_ip_for_all_interfaces() {
    for (words, expected) in [
        ("ip=dhcp", "{Dhcp}"),
        ("ip=single-dhcp", "{Dhcp}"),
        ("ip=on", "{Any}"),
        ("ip=any", "{Any}"),
        ("ip=auto6", "{Auto6}"),
        ("ip=either6", "{Either6}"),
        ("ip=link6", "{Link6}"),
        ("ip=none", "{Off}"),
        ("ip=off", "{Off}"),
        ("ip=dhcp ip=auto6", "{Dhcp, Auto6}"),
        ("", "{Dhcp}"),
        ("nameserver=9.9.9.9", "{Dhcp}"),
        ("ifname=lan0:52:54:00:ab:cd:ef", "{Dhcp}"),
        ("rd.route=10.0.0.0/8:192.0.2.9", "{Dhcp}"),
    ] {
        let any = config(words).any.unwrap_or_else(|| panic!("{words}"));
        assert_eq!(format!("{:?}", any.methods), expected, "{words}");
    }
    assert_eq!(config("ip=eth0:dhcp").any, None);
}

#[test]
fn every_form_of_virtual_links() {
    for (words, name, expected) in [
        ("vlan=vlan0005:eth0 ip=vlan0005:dhcp", "vlan0005", "Vlan(Vlan { id: 5, parent: InterfaceName(\"eth0\") })"),
        ("vlan=vlan5:eth0 ip=vlan5:dhcp", "vlan5", "Vlan(Vlan { id: 5, parent: InterfaceName(\"eth0\") })"),
        ("vlan=eth0.0005:eth0 ip=eth0.0005:dhcp", "eth0.0005", "Vlan(Vlan { id: 5, parent: InterfaceName(\"eth0\") })"),
        (
            "vlan=eth0.4094:eth0 ip=eth0.4094:dhcp",
            "eth0.4094",
            "Vlan(Vlan { id: 4094, parent: InterfaceName(\"eth0\") })",
        ),
        (
            "bond=bond0:eth0,eth1 ip=bond0:dhcp",
            "bond0",
            "Bond(Bond { members: [InterfaceName(\"eth0\"), InterfaceName(\"eth1\")], options: {} })",
        ),
        (
            "bond=bond0:eth0:mode=4,miimon=100,arp_ip_target=192.0.2.1;192.0.2.2,lacp_rate=fast,primary=eth0:9000 \
             ip=bond0:dhcp",
            "bond0",
            "Bond(Bond { members: [InterfaceName(\"eth0\")], options: {\"arp_ip_target\": \"192.0.2.1 192.0.2.2\", \
             \"lacp_rate\": \"fast\", \"miimon\": \"100\", \"mode\": \"802.3ad\", \"primary\": \"eth0\"} })",
        ),
        (
            "bond=bond0:eth0::9000 ip=bond0:dhcp",
            "bond0",
            "Bond(Bond { members: [InterfaceName(\"eth0\")], options: {} })",
        ),
        ("bridge=br0:eth0,eth1 ip=br0:dhcp", "br0", "Bridge([InterfaceName(\"eth0\"), InterfaceName(\"eth1\")])"),
    ] {
        let config = config(words);
        let made = config.virtuals.get(&name.parse().expect(name)).unwrap_or_else(|| panic!("{words}"));
        assert_eq!(format!("{made:?}"), expected, "{words}");
    }
    let stacked = config("vlan=bond0.7:bond0 bond=bond0:eth0,eth1:mode=active-backup bridge=br0:bond0.7 ip=br0:dhcp");
    let order: Vec<_> = stacked.virtuals_in_order().iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(order, ["bond0", "bond0.7", "br0"]);
    assert_eq!(stacked.modules().into_iter().collect::<Vec<_>>(), ["8021q", "bonding", "bridge"]);
    assert!(config("ip=dhcp").modules().is_empty());
    assert_eq!(shown("bond=bond0:eth0::9000 ip=bond0:dhcp", "bond0"), "Dhcp mtu 9000");
}

#[test]
fn the_other_words() {
    assert!(!config("ip=dhcp rd.peerdns=0").peer_dns);
    assert!(config("ip=dhcp rd.peerdns=1").peer_dns);
    let named = config("ifname=lan0:52:54:00:AB:CD:EF ip=lan0:dhcp");
    let macs: Vec<_> = named.macs.iter().map(|(name, mac)| format!("{name} {mac}")).collect();
    assert_eq!(macs, ["lan0 52:54:00:ab:cd:ef"]);
}

#[test]
fn what_is_wrong_is_said_with_what_would_be_right() {
    const METHODS: &str = "one of dhcp, on, any, auto6, either6, link6, none, off";
    for (word, expected) in [
        ("ip=", "ip= needs a value"),
        ("ip", "ip= needs a value"),
        ("ip=eth0", &format!("\"eth0\" is not a method: {METHODS}")),
        ("ip=DHCP", &format!("\"DHCP\" is not a method: {METHODS}")),
        ("ip=eth0:static", &format!("\"static\" is not a method: {METHODS}")),
        ("ip=eth0:", &format!("\"\" is not a method: {METHODS}")),
        ("ip=dhcp6", "DHCPv6 before the configuration is fetched is not supported: use auto6, or a given address"),
        ("ip=eth0:dhcp6", "DHCPv6 before the configuration is fetched is not supported: use auto6, or a given address"),
        ("ip=ibft", "the boot firmware's iSCSI table is not supported: use dhcp, or a given address"),
        ("ip=link-local", "an IPv4 link-local address is not supported: use link6, or a given address"),
        ("ip=e:dhcp:1:2", "\"1\" is not an MTU from 68 to 65535"),
        ("ip=e:dhcp:1500:2", "2 is not a MAC address of one machine (such as 52:54:00:12:34:56)"),
        ("ip=e:dhcp:fast", "\"fast\" after the method is neither an MTU nor the address of a DNS server"),
        ("ip=e:dhcp:9.9.9.9", "DNS servers after INTERFACE:METHOD: give them as nameserver=ADDRESS"),
        ("ip=eth*:dhcp", "eth* is not the name of an interface: letters, digits, '.', '_' and '-'"),
        ("ip=sixteen-letters-:dhcp", "the interface name sixteen-letters- has 16 characters, the limit is 15"),
        (
            "ip=192.0.2.5:dhcp",
            "has 2 fields: it is METHOD, or INTERFACE:METHOD, or \
             ADDRESS:PEER:GATEWAY:NETMASK:HOSTNAME:INTERFACE:METHOD",
        ),
        ("ip=192.0.2.5:::24:::none", "the name of an interface is missing: an address is that of one interface"),
        ("ip=192.0.2.5:::::eth0:none", "the netmask or prefix length of 192.0.2.5 is missing"),
        ("ip=192.0.2.5:::33::eth0:none", "33 is not a prefix length from 0 to 32"),
        ("ip=192.0.2.5:::255.0.255.0::eth0:none", "255.0.255.0 is not a netmask: its ones are not all in front"),
        ("ip=[2001:db8::5]:::255.0.0.0::eth0:none", "255.0.0.0 is not a prefix length from 0 to 128"),
        ("ip=192.0.2.0:::24::eth0:none", "192.0.2.0/24 is the network itself, not an address in it"),
        ("ip=192.0.2.255:::24::eth0:none", "192.0.2.255/24 is the network's broadcast address"),
        ("ip=192.0.2.5::192.0.2.5:24::eth0:none", "the gateway 192.0.2.5 is the machine's own address"),
        (
            "ip=192.0.2.5::[2001:db8::1]:24::eth0:none",
            "the address 192.0.2.5 and the gateway 2001:db8::1 are of different families",
        ),
        (
            "ip=192.0.2.5:[2001:db8::1]:::h:eth0:none",
            "the address 192.0.2.5 and the peer 2001:db8::1 are of different families",
        ),
        ("ip=127.0.0.1:::8::eth0:none", "127.0.0.1 is not an address of one machine in a network"),
        ("ip=224.0.0.1:::8::eth0:none", "224.0.0.1 is not an address of one machine in a network"),
        ("ip=::192.0.2.1:::eth0:none", "the gateway 192.0.2.1 is given, and no address"),
        ("ip=:::24::eth0:dhcp", "a netmask or a peer is given, and no address"),
        ("ip=::::h:eth0:", "neither an address nor a method is given"),
        ("ip=::::a_b:eth0:dhcp", "\"a_b\" is not a host name: letters, digits, '-' and '.', at most 64"),
        ("ip=192.0.2.5:::24::eth0:none:9.9.9.9:x", "\"x\" after a DNS server is not the address of another"),
        ("ip=[2001:db8::5:::64::eth0:none", "a bracket is not closed"),
        ("ip=2001:db8::5]:::64::eth0:none", "the bracket at character 12 has no partner"),
        ("rd.route=10.0.0.0/8", "neither a gateway nor an interface is given"),
        ("rd.route=10.0.0.0:192.0.2.1:eth0", "\"10.0.0.0\" is not NETWORK/NETMASK"),
        (
            "rd.route=10.0.0.0/8:[fe80::1]:eth0",
            "the network 10.0.0.0/8 and the gateway fe80::1 are of different families",
        ),
        ("rd.route=a:b:c:d", "has 4 fields: it is NETWORK/NETMASK:GATEWAY[:INTERFACE]"),
        ("nameserver=dns.example", "dns.example is not an IP address (192.0.2.5, or [2001:db8::5] in brackets)"),
        ("nameserver=", "nameserver= needs a value"),
        ("rd.peerdns=2", "\"2\" is neither 0 nor 1"),
        ("vlan=vlan5", "it is vlan=NAME:INTERFACE"),
        ("vlan=lan:eth0", "the name lan says no VLAN: it is vlan5 or eth0.5"),
        ("vlan=eth1.5:eth0", "the name eth1.5 says no VLAN: it is vlan5 or eth0.5"),
        ("vlan=vlan4095:eth0", "4095 is not a VLAN identifier from 1 to 4094"),
        ("vlan=vlan0:eth0", "0 is not a VLAN identifier from 1 to 4094"),
        ("vlan=vlan5:vlan5", "vlan5 cannot be made of itself"),
        ("bond", "bond= needs a value"),
        ("bond=bond0", "no member is named: it is bond=NAME:MEMBER,MEMBER[:OPTIONS[:MTU]]"),
        ("bond=bond0:eth0,eth0", "the member eth0 is named twice"),
        ("bond=bond0:eth0:mode", "\"mode\" is not OPTION=VALUE"),
        (
            "bond=bond0:eth0:mode=fast",
            "mode=fast is not one of balance-rr, active-backup, balance-xor, broadcast, 802.3ad, balance-tlb, balance-alb",
        ),
        ("bond=bond0:eth0:miimon=soon", "miimon=soon is not a number"),
        ("bond=bond0:eth0:miimon=1,miimon=2", "the option miimon is given twice"),
        ("bond=bond0:eth0:miimon=1,arp_interval=2", "miimon and arp_interval exclude each other"),
        ("bond=bond0:eth0:primary=eth1", "primary=eth1 is not a member of the bond"),
        ("bond=bond0:eth0:arp_ip_target=a", "arp_ip_target=a is not a list of IPv4 addresses, separated by semicolons"),
        (
            "bond=bond0:eth0:speed=1",
            "\"speed\" is not a supported option of a bond: mode, miimon, updelay, downdelay, lacp_rate, xmit_hash_policy, \
             ad_select, fail_over_mac, primary_reselect, min_links, arp_interval, arp_ip_target, primary",
        ),
        ("bridge=br0", "it is bridge=NAME:MEMBER,MEMBER"),
        ("ifname=lan0", "it is ifname=NAME:MAC"),
        ("ifname=lan0:52:54:00", "52:54:00 is not a MAC address of one machine (such as 52:54:00:12:34:56)"),
        ("team=team0:eth0", "teams are not supported: use bond="),
        ("bootdev=eth0", "not supported: every interface that is named counts; leave it out"),
        (
            "gateway=192.0.2.1",
            "is not a word for the network: one of ip=, rd.route=, nameserver=, vlan=, bond=, bridge=, ifname=, rd.peerdns=",
        ),
    ] {
        // In the file, where a word that nobody knows is wrong too.
        let problems = NetworkConfig::parse("quiet", Some(word)).expect_err(word);
        let expected = format!("/nodezero/network:1:1: {word}: {expected}");
        assert_eq!(problems.to_string(), expected, "{word}");
    }
}

#[test]
fn words_that_contradict_each_other_are_named() {
    for (words, expected) in [
        ("ip=dhcp ip=dhcp", "the same is asked for twice"),
        ("ip=eth0:dhcp ip=eth0:none", "none and another method are asked for on eth0"),
        ("ip=eth0:auto6 ip=eth0:link6", "link6 and auto6 are asked for on eth0"),
        ("ip=eth0:dhcp:1400 ip=eth0:auto6:1500", "the MTU of eth0 is 1500 here, and 1400 in another word"),
        ("ip=192.0.2.5:::24::e:none ip=192.0.2.5:::25::e:none", "the address 192.0.2.5 is given twice"),
        (
            "ifname=eth0:52:54:00:00:00:01 ip=eth0:dhcp::52:54:00:00:00:02",
            "a MAC address for eth0 and ifname=eth0: exclude each other",
        ),
        ("ifname=a:52:54:00:00:00:01 ifname=b:52:54:00:00:00:01", "the link 52:54:00:00:00:01 is also named a"),
        ("ifname=a:52:54:00:00:00:01 ifname=a:52:54:00:00:00:02", "a is also the name of the link 52:54:00:00:00:01"),
        ("vlan=vlan5:eth0 vlan=vlan5:eth1", "vlan5 is made twice"),
        ("vlan=vlan5:eth0", "vlan5 has no address: add ip=vlan5:dhcp, or ip=vlan5:none if it is to have none"),
        ("bond=b:eth0 ip=b:dhcp ip=eth0:dhcp", "eth0 is a member of another link, and can have no address of its own"),
        ("bond=b:e ip=b:dhcp bridge=c:e ip=c:dhcp", "e is a member of b and of c"),
        ("bond=b:e ip=b:dhcp ifname=b:52:54:00:00:00:01", "b is made, and cannot also be named by ifname="),
        ("bridge=a:vlan5 vlan=vlan5:a ip=a:dhcp", "a is made of itself in a circle"),
        (
            "ip=eth0:dhcp ip=eth1:dhcp rd.route=10.0.0.0/8:192.0.2.9",
            "no interface has 192.0.2.9 in its network: name the interface as the third field",
        ),
    ] {
        let problems = NetworkConfig::parse(words, None).expect_err(words).to_string();
        assert!(problems.contains(expected), "{words}: {problems}");
    }
}

#[test]
fn all_problems_are_told_at_once_with_their_places() {
    let file = "# static\nip=eth0:dhcp  ip=eth1:bogus\n\n  nameserver=x # one more\n";
    let problems = NetworkConfig::parse("quiet", Some(file)).expect_err("two");
    let places: Vec<String> =
        problems.iter().map(|problem| problem.to_string().split(": ").take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(places, ["/nodezero/network:2:15 ip=eth1:bogus", "/nodezero/network:4:3 nameserver=x"]);
    let problems = NetworkConfig::parse("ip=eth1:bogus", None).expect_err("one").to_string();
    assert!(problems.starts_with("kernel command line: ip=eth1:bogus: "), "{problems}");
}

#[test]
fn the_command_line_goes_before_the_file_as_a_whole() {
    let file = Some("ip=eth0:dhcp nameserver=9.9.9.9");
    for (cmdline, file, origin, nameservers) in [
        ("quiet", None, Origin::Default, 0),
        ("quiet", Some("# nothing\n"), Origin::Default, 0),
        ("quiet", file, Origin::File, 1),
        ("ip=dhcp", file, Origin::Cmdline, 0),
        ("ip=dhcp", Some("broken"), Origin::Cmdline, 0),
        ("quiet -- ip=bogus", file, Origin::File, 1),
    ] {
        let config = NetworkConfig::parse(cmdline, file).expect(cmdline);
        assert_eq!((config.origin, config.nameservers.len()), (origin, nameservers), "{cmdline} {file:?}");
    }
}

#[test]
fn no_text_makes_the_parser_panic() {
    const PIECES: [&str; 24] = [
        "ip=",
        "rd.route=",
        "nameserver=",
        "vlan=",
        "bond=",
        "bridge=",
        "ifname=",
        "eth0",
        "bond0",
        ":",
        ":",
        "::",
        "[",
        "]",
        "/",
        "192.0.2.5",
        "2001:db8::5",
        "24",
        "dhcp",
        "none",
        ",",
        " ",
        "\n",
        "#",
    ];
    arbtest::arbtest(|u| {
        let mut text = String::new();
        for _ in 0..u.int_in_range(0..=40)? {
            match u.int_in_range(0..=PIECES.len())? {
                index if index < PIECES.len() => text += PIECES[index],
                _ => text.push(u.arbitrary()?),
            }
        }
        for parsed in [NetworkConfig::parse(&text, None), NetworkConfig::parse("", Some(&text))] {
            match parsed {
                Ok(config) => assert_eq!(config.virtuals_in_order().len(), config.virtuals.len(), "{text:?}"),
                Err(problems) => {
                    assert!(problems.iter().count() > 0 && !problems.to_string().contains('\r'), "{text:?}")
                }
            }
        }
        Ok(())
    })
    .budget_ms(2000);
}
