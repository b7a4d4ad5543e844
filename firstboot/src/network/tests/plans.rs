//! Words and links to plans, as text.

use super::super::netlink::Link;
use super::super::plan::{Pin, plan};
use super::{config, device};

const PHYSICAL: fn(&Link) -> bool = |link| link.ethernet && link.kind.is_none();

/// Two devices, of which the running system knows the first by its place, and what is no device.
fn links() -> Vec<Link> {
    let loopback = Link { index: 1, name: "lo".to_owned(), ..Link::default() };
    let first = Link { aliases: vec!["enx525400000001".into(), "enp2s0".into()], ..device(2, "eth0", 1) };
    let made = Link { kind: Some("veth".to_owned()), permanent_mac: None, ..device(4, "veth0", 9) };
    vec![loopback, first, device(3, "eth1", 2), made]
}

fn planned(words: &str) -> Result<String, String> {
    plan(&config(words), &links(), PHYSICAL).map(|plan| plan.to_string())
}

#[test]
fn plans_are_made_in_order() {
    for (words, expected) in [
        (
            "",
            "bring eth0 up\nbring eth1 up\nreach the network on eth0 by DHCP\nreach the network on eth1 by DHCP\n\
             the first link is enough\n",
        ),
        ("ip=none", ""),
        (
            "ip=auto6 rd.route=10.0.0.0/8:192.0.2.9",
            "take router advertisements on eth0\nbring eth0 up\ntake router advertisements on eth1\nbring eth1 up\n\
             route 10.0.0.0/8 via 192.0.2.9 through eth0\nroute 10.0.0.0/8 via 192.0.2.9 through eth1\n\
             reach the network on eth0 by router advertisements\nreach the network on eth1 by router advertisements\n\
             the first link is enough\n",
        ),
        ("ip=enp2s0:dhcp", "bring eth0 up\nreach the network on eth0 by DHCP\n"),
        (
            "ip=enx525400000001:link6",
            "take no router advertisements on eth0\nbring eth0 up\nreach the network on eth0 by link-local\n",
        ),
        (
            "ip=eth1:dhcp rd.route=10.0.0.0/8:192.0.2.9 rd.route=10.1.0.0/16::eth1",
            "bring eth1 up\nroute 10.1.0.0/16 through eth1\n\
             reach the network on eth1 by DHCP, then route 10.0.0.0/8 via 192.0.2.9\n",
        ),
        (
            "ip=dhcp ip=192.0.2.5::192.0.2.1:24::eth1:none:9000:52:54:00:00:00:05",
            "set the MAC address of eth1 to 52:54:00:00:00:05\nset the MTU of eth1 to 9000\nbring eth1 up\nbring eth0 up\n\
             give eth1 192.0.2.5/24\nroute 0.0.0.0/0 via 192.0.2.1 through eth1\n\
             reach the network on eth1 by 192.0.2.5/24\nreach the network on eth0 by DHCP\n",
        ),
        (
            "ifname=lan0:52:54:00:00:00:02",
            "rename eth1 to lan0\nbring eth0 up\nbring lan0 up\nreach the network on eth0 by DHCP\n\
             reach the network on lan0 by DHCP\nthe first link is enough\n",
        ),
        (
            "ifname=lan0:52:54:00:00:00:02 vlan=lan0.5:lan0 ip=192.0.2.5:192.0.2.6:::h:lan0.5:none",
            "rename eth1 to lan0\nmake lan0.5, VLAN 5 on lan0\nbring lan0 up\nbring lan0.5 up\n\
             give lan0.5 192.0.2.5, with 192.0.2.6/32 at the other end\nreach the network on lan0.5 by 192.0.2.5/32\n",
        ),
        (
            "bond=bond0:enp2s0,eth1:mode=802.3ad,miimon=100:9000 vlan=bond0.7:bond0 ip=bond0.7:dhcp ip=bond0:none",
            "make bond0, a bond miimon=100 mode=802.3ad\nset the MTU of bond0 to 9000\nmake eth0 part of bond0\n\
             make eth1 part of bond0\nmake bond0.7, VLAN 7 on bond0\nbring eth0 up\nbring eth1 up\nbring bond0 up\n\
             bring bond0.7 up\nreach the network on bond0.7 by DHCP\n",
        ),
        (
            "bridge=br0:eth0,vlan5 vlan=vlan5:eth1 ip=br0:dhcp ip=[2001:db8::5]:::64::br0:none",
            "make vlan5, VLAN 5 on eth1\nmake br0, a bridge\nmake eth0 part of br0\nmake vlan5 part of br0\nbring eth0 up\n\
             bring eth1 up\nbring vlan5 up\nbring br0 up\ngive br0 2001:db8::5/64\n\
             reach the network on br0 by 2001:db8::5/64, DHCP\n",
        ),
    ] {
        assert_eq!(planned(words).as_deref(), Ok(expected), "{words}");
    }
}

#[test]
fn names_that_stand_for_no_link_or_for_one_twice_are_errors() {
    const LINKS: &str = "eth0 = enp2s0 (52:54:00:00:00:01), eth1 (52:54:00:00:00:02), veth0 (52:54:00:00:00:09)";
    for (words, expected) in [
        ("ip=eno1:dhcp", format!("no link is called eno1; the links are: {LINKS}")),
        (
            "ip=eno1:dhcp ifname=lan0:52:54:00:00:00:08",
            format!("no link is called eno1, lan0 (52:54:00:00:00:08); the links are: {LINKS}"),
        ),
        (
            "ip=enp2s0:dhcp ip=eth0:auto6",
            "enp2s0 and eth0 are the same link eth0 = enp2s0 (52:54:00:00:00:01)".to_owned(),
        ),
        (
            "ifname=eth1:52:54:00:00:00:01 ip=eth1:dhcp",
            "eth0 = enp2s0 (52:54:00:00:00:01) cannot be called eth1: eth1 (52:54:00:00:00:02) is".to_owned(),
        ),
    ] {
        assert_eq!(planned(words), Err(expected), "{words}");
    }
    let twins: Vec<Link> = [(2, "eth0"), (3, "eth1")]
        .map(|(index, name)| Link { aliases: vec!["ens1".into()], ..device(index, name, 1) })
        .into();
    let error = plan(&config("ip=ens1:dhcp"), &twins, PHYSICAL).expect_err("two");
    assert_eq!(error, "ens1 may be eth0 = ens1 (52:54:00:00:00:01) or eth1 = ens1 (52:54:00:00:00:01): use ifname=");
}

#[test]
fn devices_are_pinned_by_the_address_they_were_made_with() {
    let plan = plan(&config("ip=enp2s0:dhcp ip=veth0:dhcp vlan=vlan5:enp2s0 ip=vlan5:dhcp"), &links(), PHYSICAL)
        .expect("plans");
    let pins: Vec<_> = plan.pins.iter().map(|(name, pin)| (name.to_string(), *pin)).collect();
    let mac = |last: &str| format!("52:54:00:00:00:{last}").parse().expect("an address");
    assert_eq!(pins, [("enp2s0".to_owned(), Pin::Permanent(mac("01"))), ("veth0".to_owned(), Pin::Current(mac("09")))]);
}
