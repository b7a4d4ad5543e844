//! Networks that are wrong, and how sound ones are written.

use super::*;

fn network(yaml: &str) -> (Network, Vec<String>) {
    let root = crate::language::yaml::parse(yaml).expect(yaml);
    let schema = serde_json::to_value(schemars::schema_for!(RawNetwork)).expect("JSON");
    let (value, misfits) = crate::language::shape::fit(&schema, &root);
    assert!(misfits.is_empty(), "{yaml}: {misfits:?}");
    let raw = serde_json::from_value(value.expect(yaml)).expect(yaml);
    let mut findings = Findings::default();
    let network = validate(raw, &mut findings);
    let shown = findings.into_list().iter().map(|problem| format!("{}: {}", problem.path, problem.message)).collect();
    (network, shown)
}

#[test]
fn what_is_wrong_is_told() {
    for (case, interfaces, expected) in [
        (
            "name",
            "lo: {dhcp: true}",
            vec!["lo: \"lo\" is not the name of a link", "lo: lo is not a name that systemd gives"],
        ),
        ("no mac", "lan: {dhcp: true}", vec!["lan: lan is not a name that systemd gives to a wired link"]),
        ("no address", "eno1: {}", vec!["eno1: no address"]),
        (
            "prefix",
            "eno1: {addresses: [192.0.2.5]}",
            vec!["eno1.addresses[0]: \"192.0.2.5\" is not an address with its prefix", "eno1: no address"],
        ),
        (
            "network",
            "eno1: {addresses: [192.0.2.0/24]}",
            vec!["eno1.addresses[0]: \"192.0.2.0/24\" is the first or last address", "eno1: no address"],
        ),
        (
            "gateway",
            "eno1: {addresses: [192.0.2.5/24], gateways: [192.0.3.1]}",
            vec!["eno1.gateways[0]: the gateway 192.0.3.1 is in no network of this link, which has 192.0.2.0/24"],
        ),
        (
            "own gateway",
            "eno1: {addresses: [192.0.2.5/24], gateways: [192.0.2.5]}",
            vec!["eno1.gateways[0]: the gateway 192.0.2.5 is the machine's own"],
        ),
        (
            "two gateways",
            "eno1: {addresses: [192.0.2.5/24], gateways: [192.0.2.1, 192.0.2.2]}",
            vec!["eno1.gateways[1]: 192.0.2.2 is a second gateway"],
        ),
        (
            "family",
            "eno1: {addresses: [192.0.2.5/24], routes: [{to: 'fd00::/8', via: 192.0.2.1}]}",
            vec!["eno1.routes[0]: the gateway 192.0.2.1 is of another family"],
        ),
        (
            "VLAN's name",
            "vlan6: {vlan: {id: 5, link: eno1}, dhcp: true}",
            vec!["vlan6.vlan: the name vlan6 is not that of this VLAN: call it vlan5 or eno1.5"],
        ),
        (
            "circle",
            "vlan1: {vlan: {id: 1, link: vlan2}}\n  vlan2: {vlan: {id: 2, link: vlan1}}",
            vec!["vlan1: vlan1 is made of itself", "vlan2: vlan2 is made of itself"],
        ),
        (
            "member's address",
            "bond0: {bond: {members: [eno1]}, dhcp: true}\n  eno1: {dhcp: true}",
            vec!["eno1: a member of bond0 has no address"],
        ),
        (
            "no members",
            "bond0: {bond: {members: []}, dhcp: true}",
            vec!["bond0.bond.members: a bond has at least one member"],
        ),
        (
            "shared member",
            "bond0: {bond: {members: [eno1]}, dhcp: true}\n  bond1: {bond: {members: [eno1]}, dhcp: true}",
            vec!["bond1.bond: eno1 is a member of bond0 and of bond1"],
        ),
        (
            "mac",
            "eno1: {mac: '01:00:5e:00:00:01', dhcp: true}",
            vec!["eno1.mac: \"01:00:5e:00:00:01\" is not a MAC address of one machine"],
        ),
        (
            "address twice",
            "eno1: {addresses: [192.0.2.5/24]}\n  eno2: {addresses: [192.0.2.5/24]}",
            vec!["eno2.addresses[0]: 192.0.2.5 is also at network.interfaces.eno1.addresses[0]"],
        ),
    ] {
        let (_, found) = network(&format!("interfaces:\n  {interfaces}\n"));
        let prefixed = |expected: &&str| format!("network.interfaces.{expected}");
        let same = found.len() == expected.len()
            && found.iter().zip(&expected).all(|(found, expected)| found.starts_with(&prefixed(expected)));
        assert!(same, "{case}: {found:#?}");
    }
}

#[test]
fn words_and_units_say_the_same() {
    let yaml = "interfaces:\n  lan0: {mac: 52-54-00-AB-cd-ef, mtu: 9000}\n  bond0: {bond: {members: [lan0, eno2], mode: 802.3ad}}\n  \
                bond0.5: {vlan: {id: 5, link: bond0}, addresses: [192.0.2.5/24, '2001:db8::5/64'], gateways: [192.0.2.1], \
                routes: [{to: 10.0.0.0/8, via: 192.0.2.9}, {to: 'fd00::/8'}]}\n  eno3: {dhcp: true, ipv6Auto: true, mtu: 1400}\n\
                nameservers: [9.9.9.9, '2620:fe::fe']\n";
    let (network, found) = network(yaml);
    assert_eq!(found, [""; 0]);
    let expected = "# Rendered by nodezero from this node's profile.\n\
        bond=bond0:lan0,eno2:mode=802.3ad,miimon=100\n\
        vlan=bond0.5:bond0\n\
        ip=192.0.2.5:::24::bond0.5:none\n\
        ip=[2001:db8::5]:::64::bond0.5:none\n\
        rd.route=0.0.0.0/0:192.0.2.1:bond0.5\n\
        rd.route=10.0.0.0/8:192.0.2.9:bond0.5\n\
        rd.route=[fd00::]/8::bond0.5\n\
        ip=eno3:dhcp:1400\n\
        ip=eno3:auto6\n\
        ifname=lan0:52:54:00:ab:cd:ef\n\
        ip=lan0:none:9000\n\
        nameserver=9.9.9.9\n\
        nameserver=[2620:fe::fe]\n";
    assert_eq!(words(&network), expected);
    let shown: String = units(&network)
        .into_iter()
        .map(|unit| {
            format!("== {}\n{}", unit.name, unit.content.split_once('\n').expect("a header").1.replace("\n[", "["))
        })
        .collect();
    let quiet = "LLMNR=no\nMulticastDNS=no\n";
    let expected = format!(
        "== 70-nodezero-bond0.5.netdev\n[NetDev]\nName=bond0.5\nKind=vlan\n[VLAN]\nId=5\n\
         == 70-nodezero-bond0.5.network\n[Match]\nName=bond0.5\n[Network]\nDHCP=no\nIPv6AcceptRA=no\n{quiet}DNS=9.9.9.9\n\
         DNS=2620:fe::fe\n[Address]\nAddress=192.0.2.5/24\n[Address]\nAddress=2001:db8::5/64\n[Route]\nGateway=192.0.2.1\n\
         [Route]\nDestination=10.0.0.0/8\nGateway=192.0.2.9\n[Route]\nDestination=fd00::/8\n\
         == 70-nodezero-bond0.netdev\n[NetDev]\nName=bond0\nKind=bond\n[Bond]\nMode=802.3ad\nMIIMonitorSec=100ms\n\
         == 70-nodezero-bond0.network\n[Match]\nName=bond0\n[Network]\nDHCP=no\nIPv6AcceptRA=no\n{quiet}VLAN=bond0.5\n\
         == 70-nodezero-eno2.network\n[Match]\nName=eno2\n[Network]\nDHCP=no\nIPv6AcceptRA=no\n{quiet}Bond=bond0\n\
         == 70-nodezero-eno3.network\n[Match]\nName=eno3\n[Link]\nMTUBytes=1400\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=yes\n\
         {quiet}DNS=9.9.9.9\nDNS=2620:fe::fe\n[DHCPv4]\nClientIdentifier=mac\nUseHostname=no\n\
         == 70-nodezero-lan0.link\n[Match]\nPermanentMACAddress=52:54:00:ab:cd:ef\nKind=!*\n[Link]\nName=lan0\n\
         == 70-nodezero-lan0.network\n[Match]\nPermanentMACAddress=52:54:00:ab:cd:ef\nKind=!*\n[Link]\nMTUBytes=9000\n\
         [Network]\nDHCP=no\nIPv6AcceptRA=no\n{quiet}Bond=bond0\n\
         == 71-nodezero-any.network\n[Match]\nType=ether\nKind=!*\n[Link]\nUnmanaged=yes\n"
    );
    assert_eq!(shown, expected);
}

#[test]
fn a_gateway_beside_an_address_is_on_the_link() {
    for (interface, on_link) in [
        ("{addresses: [203.0.113.7/32], gateways: [203.0.113.1]}", true),
        ("{addresses: [203.0.113.7/24], gateways: [203.0.113.1]}", false),
        ("{dhcp: true, gateways: [203.0.113.1]}", false),
        ("{addresses: ['2001:db8::7/64'], gateways: ['fe80::1']}", false),
    ] {
        let (network, found) = network(&format!("interfaces: {{eno1: {interface}}}"));
        assert_eq!(found, [""; 0], "{interface}");
        assert_eq!(network.interfaces["eno1"].routes[0].on_link, on_link, "{interface}");
    }
}
