//! What several profiles say together.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::validate::{Common, Document, Member};
use super::{CLUSTER_FILE, shape};
use crate::Role;
use crate::node::join::Network;
use crate::node::{DataDisks, NodeName};

/// Where a Tailscale mesh has its IPv4 addresses.
const MESH: &str = "100.64.0.0/10";

pub(super) fn check(common: &Common, cluster: &mut Document, members: &mut [Member]) {
    check_names(members);
    if common.server_known {
        check_server(common, cluster, members);
    }
    check_networks(common, cluster, members);
    check_addresses(members);
    check_disks(members);
    check_replicas(common, cluster, members);
    warn_of_tags(common, cluster, members);
    warn_of_two(cluster, members);
    set_cluster_init(members);
    for member in members {
        if let Some(profile) = &member.profile {
            common.check_wipe(&profile.node, &mut member.document);
        }
    }
}

/// `a.yaml` and `a.yml` are the same node.
fn check_names(members: &mut [Member]) {
    let mut seen: BTreeMap<NodeName, String> = BTreeMap::new();
    for member in members {
        let Some(name) = &member.name else { continue };
        if let Some(first) = seen.insert(name.clone(), member.document.path.clone()) {
            member.document.find("", format!("{name} is also the node of {first}"), None);
        }
    }
}

/// The server is a control node that there is.
fn check_server(common: &Common, cluster: &mut Document, members: &mut [Member]) {
    let server = &common.cluster.server;
    let names: Vec<&str> = members
        .iter()
        .filter(|member| member.role == Some(Role::Control))
        .filter_map(|member| member.name.as_deref())
        .collect();
    let named = members.iter().find(|member| member.name.as_ref() == Some(server));
    match named.map(|member| member.role) {
        Some(Some(Role::Control) | None) => {}
        Some(Some(role @ (Role::Worker | Role::Edge))) => {
            cluster.find(
                "k3s.server",
                format!("{server} is of role {role}, and only a control node is a server"),
                None,
            );
        }
        None if names.is_empty() => {
            let hint = format!("write nodes/{server}.yaml with role: control");
            cluster.find("k3s.server", format!("no node is called {server}, and there is no control node"), Some(hint));
        }
        None => {
            let hint = shape::nearest(server, &names).map(|name| format!("did you mean {name}?"));
            let hint = hint.unwrap_or_else(|| format!("control nodes are {}", names.join(", ")));
            cluster.find("k3s.server", format!("no node is called {server}"), Some(hint));
        }
    }
}

/// Pods, services, the mesh and the networks of nodes have nothing in common.
fn check_networks(common: &Common, cluster: &mut Document, members: &mut [Member]) {
    let mesh: Network = MESH.parse().expect("a network");
    let own = [("k3s.podNetwork", "pods'", common.pods), ("k3s.serviceNetwork", "services'", common.services)];
    for (path, whose, network) in own {
        if network.overlaps(mesh) {
            cluster.find(path, format!("the {whose} {network} overlaps the mesh's {mesh}"), None);
        }
    }
    for member in members {
        let Some(network) = member.profile.as_ref().and_then(|profile| profile.network.as_ref()) else { continue };
        let addresses: Vec<_> = network.addresses().collect();
        for (path, address) in addresses {
            let others = own.into_iter().map(|(_, whose, network)| (whose, network)).chain([("mesh's", mesh)]);
            for (whose, other) in others.filter(|(_, other)| other.overlaps(address.network)) {
                let message = format!("{} overlaps the {whose} {other}", address.network);
                let hint = (whose != "mesh's").then(|| format!("choose another network in {CLUSTER_FILE}"));
                member.document.find(&path, message, hint);
            }
        }
    }
}

/// No two machines have the same address or hardware address.
fn check_addresses(members: &mut [Member]) {
    let mut addresses: BTreeMap<IpAddr, String> = BTreeMap::new();
    let mut macs: BTreeMap<String, String> = BTreeMap::new();
    for member in members {
        let Some(network) = member.profile.as_ref().and_then(|profile| profile.network.as_ref()) else { continue };
        let mut twice = Vec::new();
        for (path, address) in network.addresses() {
            match addresses.get(&address.address) {
                Some(other) if *other != member.document.path => {
                    twice.push((path, format!("{} is also an address of {other}", address.address)));
                }
                Some(_) => {}
                None => drop(addresses.insert(address.address, member.document.path.clone())),
            }
        }
        for (name, interface) in &network.interfaces {
            let Some(mac) = &interface.mac else { continue };
            if let Some(other) = macs.insert(mac.clone(), format!("{name} of {}", member.document.path)) {
                let path = format!("{}.mac", shape::join("network.interfaces", name));
                twice.push((path, format!("{mac} is also {other}")));
            }
        }
        for (path, message) in twice {
            member.document.find(&path, message, None);
        }
    }
}

/// One disk is in one machine.
fn check_disks(members: &mut [Member]) {
    let mut seen: BTreeMap<(&str, String), String> = BTreeMap::new();
    for member in members {
        let Some(profile) = &member.profile else { continue };
        let mut twice = Vec::new();
        for (index, disks) in profile.node.data_disks.iter().enumerate() {
            for (key, value) in exact(disks) {
                let path = format!("dataDisks[{index}].select.{key}");
                if let Some(other) = seen.insert((key, value.to_ascii_lowercase()), member.document.path.clone()) {
                    twice.push((path, format!("the disk {value} is also selected in {other}")));
                }
            }
        }
        for (path, message) in twice {
            member.document.find(&path, message, None);
        }
    }
}

/// What names one very disk.
fn exact(disks: &DataDisks) -> impl Iterator<Item = (&'static str, String)> {
    let criteria = [("serial", &disks.select.serial), ("wwn", &disks.select.wwn)];
    criteria.into_iter().filter_map(|(key, pattern)| {
        pattern.as_ref().filter(|pattern| pattern.is_exact()).map(|pattern| (key, pattern.to_string()))
    })
}

/// A volume has at most one copy on each node.
fn check_replicas(common: &Common, cluster: &mut Document, members: &[Member]) {
    let with_disks = |member: &&Member| member.profile.as_ref().is_some_and(|own| !own.node.data_disks.is_empty());
    let nodes = members.iter().filter(with_disks).count();
    let known = members.iter().all(|member| member.document.is_sound());
    if let Some(replicas) = common.replicas.filter(|&replicas| known && replicas as usize > nodes) {
        let message = format!("{replicas} copies of each volume, and {nodes} nodes with data disks");
        cluster.find("storage.replicas", message, Some("each copy is on another node".to_owned()));
    }
}

/// Keys of nodes expire on Tailscale, unless the nodes are tagged
/// ([key expiry](https://tailscale.com/kb/1028/key-expiry)). What another control server does is not known.
fn warn_of_tags(common: &Common, cluster: &mut Document, members: &[Member]) {
    let server = common.mesh.login_server.as_deref();
    if server.is_some_and(|url| !url.ends_with("tailscale.com")) {
        return;
    }
    let bare = |member: &&Member| {
        let mesh = member.profile.as_ref().and_then(|profile| profile.node.mesh.as_ref());
        mesh.is_some_and(|mesh| mesh.tags.is_empty())
    };
    let names: Vec<&str> = members.iter().filter(bare).filter_map(|member| member.name.as_deref()).collect();
    if !names.is_empty() {
        let message = format!(
            "no tags for {}: Tailscale lets the key of a node without tags expire, after 180 days by default, and the \
             node is out of the mesh then",
            names.join(", ")
        );
        let hint = "say mesh.tags, which the mesh's access rules must know and the auth key must be allowed to have; \
                    or disable key expiry for these machines in the mesh's console";
        cluster.warn("mesh.tags", message, hint);
    }
}

/// A majority of two is both ([etcd](https://etcd.io/docs/latest/faq/#what-is-failure-tolerance)).
fn warn_of_two(cluster: &mut Document, members: &[Member]) {
    if members.iter().filter(|member| member.role == Some(Role::Control)).count() == 2 {
        let message = "two control nodes: etcd works only while both do, so the loss of either one stops the cluster";
        cluster.warn("k3s.server", message, "have one control node, or three");
    }
}

/// K3s keeps the state of several servers in etcd, and the first one must be told
/// ([high availability](https://docs.k3s.io/datastore/ha-embedded)).
fn set_cluster_init(members: &mut [Member]) {
    let controls = members.iter().filter(|member| member.role == Some(Role::Control)).count();
    for member in members.iter_mut().filter(|_| controls > 1) {
        let cluster = member.profile.as_mut().and_then(|profile| profile.node.cluster.as_mut());
        if let Some(cluster) = cluster.filter(|cluster| cluster.server.is_none()) {
            cluster.config.insert("cluster-init".to_owned(), true.into());
        }
    }
}
