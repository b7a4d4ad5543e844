//! The network in the words of systemd-networkd and of dracut.cmdline(7).

use std::net::IpAddr;

use super::{Interface, Made, Network};
use crate::networkd::{self, Files, Found, Link, Routers, Unit};

/// The first line of every file.
const HEADER: &str = "# Rendered by nodezero from this node's profile.\n";

/// The unit files, sorted by name. They have the names that the first stage gives to the files that it makes of words,
/// and lie in `/etc`, so that they count before those.
pub(crate) fn units(network: &Network) -> Vec<Unit> {
    let mut files = Files::new(HEADER);
    for (name, interface) in &network.interfaces {
        let found = match &interface.mac {
            Some(mac) => Found::Permanent(mac.clone()),
            None => Found::Name(name.clone()),
        };
        if interface.mac.is_some() {
            files.rename(name, &found);
        }
        let made = match &interface.made {
            Made::Device => None,
            Made::Vlan { id, .. } => Some(networkd::Made::Vlan(*id)),
            Made::Bond { mode, miimon, .. } => {
                Some(networkd::Made::Bond(vec![format!("Mode={}", mode.name()), format!("MIIMonitorSec={miimon}ms")]))
            }
        };
        if let Some(made) = &made {
            files.make(name, made, interface.mtu, None);
        }
        files.configure(name, &found, &link(network, name, interface), made.is_some());
    }
    files.configure_others(None);
    files.into_units()
}

fn link(network: &Network, name: &str, interface: &Interface) -> Link {
    let vlans = network.interfaces.iter().filter_map(|(other, link)| match &link.made {
        Made::Vlan { on, .. } if on == name => Some(format!("VLAN={other}")),
        Made::Device | Made::Vlan { .. } | Made::Bond { .. } => None,
    });
    let bond = network.bond_of(name).map(|bond| format!("Bond={bond}"));
    Link {
        mtu: interface.mtu,
        dhcp4: interface.dhcp,
        // Said either way, for the cluster makes the machine forward packets.
        routers: if interface.ipv6_auto { Routers::Heard } else { Routers::Unheard },
        nameservers: if interface.is_addressed() { network.nameservers.clone() } else { Vec::new() },
        uses: vlans.chain(bond).collect(),
        addresses: interface
            .addresses
            .iter()
            .map(|own| (format!("{}/{}", own.address, own.network.prefix()), None))
            .collect(),
        routes: interface.routes.iter().map(route).collect(),
        ..Link::default()
    }
}

fn route(route: &super::Route) -> networkd::Route {
    let destination = route.to.map(|to| to.to_string());
    networkd::Route { destination, gateway: route.via, on_link: route.on_link }
}

/// The same in the first stage's words, one on each line.
pub(crate) fn words(network: &Network) -> String {
    let mut words = Vec::new();
    for (name, interface) in &network.interfaces {
        words.extend(interface.mac.iter().map(|mac| format!("ifname={name}:{mac}")));
        match &interface.made {
            Made::Device => {}
            Made::Vlan { on, .. } => words.push(format!("vlan={name}:{on}")),
            Made::Bond { members, mode, miimon } => {
                words.push(format!("bond={name}:{}:mode={},miimon={miimon}", members.join(","), mode.name()));
            }
        }
        address_words(name, interface, &mut words);
    }
    words.extend(network.nameservers.iter().map(|server| format!("nameserver={}", bracketed(*server))));
    words.iter().fold(HEADER.to_owned(), |text, word| text + word + "\n")
}

fn address_words(name: &str, interface: &Interface, words: &mut Vec<String>) {
    let mut mtu = interface.mtu.map(|mtu| format!(":{mtu}")).unwrap_or_default();
    for (asked, method) in [(interface.dhcp, "dhcp"), (interface.ipv6_auto, "auto6")] {
        if asked {
            words.push(format!("ip={name}:{method}{}", std::mem::take(&mut mtu)));
        }
    }
    for own in &interface.addresses {
        let mtu = std::mem::take(&mut mtu);
        words.push(format!("ip={}:::{}::{name}:none{mtu}", bracketed(own.address), own.network.prefix()));
    }
    // Only links that nothing uses need an address; others may want a packet size all the same.
    if !mtu.is_empty() {
        words.push(format!("ip={name}:none{mtu}"));
    }
    for route in &interface.routes {
        let via = route.via.map(bracketed).unwrap_or_default();
        let to = match (route.to, route.via) {
            (Some(to), _) => format!("{}/{}", bracketed(to.address()), to.prefix()),
            (None, Some(IpAddr::V6(_))) => "[::]/0".to_owned(),
            (None, _) => "0.0.0.0/0".to_owned(),
        };
        words.push(format!("rd.route={to}:{via}:{name}"));
    }
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}
