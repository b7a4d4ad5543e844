//! Unit files as text.

use std::collections::BTreeMap;
use std::fs;

use nodezero_profile::networkd::Unit;

use super::super::plan::Pin;
use super::super::types::InterfaceName;
use super::super::units::{render_units, write_units};
use super::config;

/// All files in one text, without the first line that each has.
fn rendered(words: &str, pins: &[(&str, Pin)]) -> String {
    let pins: BTreeMap<InterfaceName, Pin> =
        pins.iter().map(|(name, pin)| (name.parse().expect("a name"), *pin)).collect();
    let header = "# Written by nodezero-firstboot at this boot, from the words for the network.\n";
    let shown = |unit: Unit| {
        let content = unit.content.strip_prefix(header).expect("the header").replace("\n[", "[");
        format!("== {}\n{content}", unit.name)
    };
    render_units(&config(words), &pins).into_iter().map(shown).collect()
}

const OTHERS: &str = "== 71-nodezero-any.network\n[Match]\nType=ether\nKind=!*\n[Link]\nUnmanaged=yes\n";
const QUIET: &str = "LLMNR=no\nMulticastDNS=no\n";

#[test]
fn units_say_what_the_words_say() {
    let mac = "52:54:00:00:00:01".parse().expect("an address");
    for (words, pins, expected) in [
        ("", vec![], String::new()),
        ("ip=off", vec![], OTHERS.to_owned()),
        (
            "ip=dhcp nameserver=9.9.9.9 rd.peerdns=0",
            vec![],
            format!(
                "== 71-nodezero-any.network\n[Match]\nType=ether\nKind=!*\n[Network]\nDHCP=ipv4\n{QUIET}DNS=9.9.9.9\n\
                 [DHCPv4]\nClientIdentifier=mac\nUseHostname=no\nUseMTU=yes\nUseDNS=no\n[IPv6AcceptRA]\nUseDNS=no\n"
            ),
        ),
        (
            "ip=192.0.2.5::192.0.2.1:24:h:eth0:none:1400 rd.route=10.0.0.0/8:192.0.2.9 rd.route=10.1.0.0/16::eth0 \
             nameserver=9.9.9.9",
            vec![("eth0", Pin::Permanent(mac))],
            format!(
                "== 70-nodezero-eth0.network\n[Match]\nPermanentMACAddress=52:54:00:00:00:01\nKind=!*\n[Link]\nMTUBytes=1400\n\
                 [Network]\nDHCP=no\n{QUIET}DNS=9.9.9.9\n[Address]\nAddress=192.0.2.5/24\n[Route]\nGateway=192.0.2.1\n\
                 [Route]\nDestination=10.1.0.0/16\n[Route]\nDestination=10.0.0.0/8\nGateway=192.0.2.9\n{OTHERS}"
            ),
        ),
        (
            "ip=192.0.2.5:192.0.2.6:172.31.1.1::h:eth0:none",
            vec![],
            format!(
                "== 70-nodezero-eth0.network\n[Match]\nName=eth0\n[Network]\nDHCP=no\n{QUIET}[Address]\n\
                 Address=192.0.2.5/32\nPeer=192.0.2.6/32\n[Route]\nGateway=172.31.1.1\nGatewayOnLink=yes\n{OTHERS}"
            ),
        ),
        (
            "ip=::::h:eth0:any:1400:52:54:00:00:00:05",
            vec![("eth0", Pin::Current(mac))],
            format!(
                "== 70-nodezero-eth0.network\n[Match]\nMACAddress=52:54:00:00:00:05\nKind=!*\n[Link]\nMTUBytes=1400\n\
                 MACAddress=52:54:00:00:00:05\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\n{QUIET}[DHCPv4]\n\
                 ClientIdentifier=mac\nUseHostname=no\nHostname=h\n[DHCPv6]\nUseHostname=no\n{OTHERS}"
            ),
        ),
        (
            "ip=eth0:either6 ip=eth1:link6",
            vec![],
            format!(
                "== 70-nodezero-eth0.network\n[Match]\nName=eth0\n[Network]\nDHCP=ipv6\nIPv6AcceptRA=yes\n{QUIET}[DHCPv6]\n\
                 UseHostname=no\n== 70-nodezero-eth1.network\n[Match]\nName=eth1\n[Network]\nDHCP=no\nIPv6AcceptRA=no\n\
                 {QUIET}{OTHERS}"
            ),
        ),
        (
            "ifname=lan0:52:54:00:00:00:01 bond=bond0:lan0:mode=active-backup,miimon=100,primary=lan0:9000 \
             vlan=bond0.5:bond0 ip=bond0.5:auto6",
            vec![("lan0", Pin::Permanent(mac))],
            format!(
                "== 70-nodezero-bond0.5.netdev\n[NetDev]\nName=bond0.5\nKind=vlan\n[VLAN]\nId=5\n\
                 == 70-nodezero-bond0.5.network\n[Match]\nName=bond0.5\n[Network]\nDHCP=no\nIPv6AcceptRA=yes\n{QUIET}\
                 == 70-nodezero-bond0.netdev\n[NetDev]\nName=bond0\nKind=bond\nMTUBytes=9000\n[Bond]\nMode=active-backup\n\
                 MIIMonitorSec=100ms\n== 70-nodezero-bond0.network\n[Match]\nName=bond0\n[Network]\nDHCP=no\n\
                 LinkLocalAddressing=no\nIPv6AcceptRA=no\n{QUIET}VLAN=bond0.5\n== 70-nodezero-lan0.link\n[Match]\nPermanentMACAddress=52:54:00:00:00:01\nKind=!*\n[Link]\n\
                 Name=lan0\n== 70-nodezero-lan0.network\n[Match]\nPermanentMACAddress=52:54:00:00:00:01\nKind=!*\n\
                 [Network]\nDHCP=no\nIPv6AcceptRA=no\n{QUIET}Bond=bond0\nPrimarySlave=yes\n{OTHERS}"
            ),
        ),
        (
            "bridge=br0:eth0 ip=[2001:db8::5]::[fe80::1]:64::br0:none",
            vec![],
            format!(
                "== 70-nodezero-br0.netdev\n[NetDev]\nName=br0\nKind=bridge\n[Bridge]\nForwardDelaySec=0\n\
                 == 70-nodezero-br0.network\n[Match]\nName=br0\n[Network]\nDHCP=no\n{QUIET}[Address]\n\
                 Address=2001:db8::5/64\n[Route]\nGateway=fe80::1\n== 70-nodezero-eth0.network\n[Match]\nName=eth0\n\
                 [Network]\nDHCP=no\nIPv6AcceptRA=no\n{QUIET}Bridge=br0\n{OTHERS}"
            ),
        ),
    ] {
        assert_eq!(rendered(words, &pins), expected, "{words}");
    }
}

#[test]
fn files_of_an_earlier_boot_go() {
    let directory = tempfile::tempdir().expect("tempdir");
    let below = directory.path().join("network");
    let written = |words: &str| {
        write_units(&render_units(&config(words), &BTreeMap::new()), &below).expect(words);
        let mut names: Vec<String> = fs::read_dir(&below)
            .expect("there")
            .map(|entry| entry.expect("read").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(written("ip=eth0:dhcp"), ["70-nodezero-eth0.network", "71-nodezero-any.network"]);
    fs::write(below.join("50-other.network"), "").expect("file");
    assert_eq!(written("ip=dhcp"), ["50-other.network", "71-nodezero-any.network"]);
    assert_eq!(written(""), ["50-other.network"]);
}
