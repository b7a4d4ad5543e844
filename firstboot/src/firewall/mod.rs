//! The step `firewall`: who reaches this node on other interfaces than the mesh's.
//!
//! | node | let in from outside |
//! |---|---|
//! | edge | what the profile's `firewall` says; 80 and 443 over TCP where it says nothing |
//! | of a cluster, with `firewall` | what it says |
//! | of a cluster, without | everything but the cluster's own ports: [`CLUSTER_TCP`], [`CLUSTER_UDP`] |
//! | other, with `firewall` | what it says |
//! | other, without | everything: it listens to nothing by itself |
//!
//! A cluster at home serves its own network: NodePorts, a load balancer, a DNS server in a pod. So only what must be for
//! nodes alone is closed there without being asked: the API and the kubelet, and above all the pods' network, whose
//! packets nobody authenticates. Nodes reach each other over the mesh.
//!
//! The rules are a table of their own, [nftables](https://wiki.nftables.org) `inet nodezero`, replaced in one transaction
//! before the mesh is joined, at every start. The mesh's own port, UDP [`MESH_UDP`], is open on every node that has one. A packet that another table drops stays dropped, so neither Tailscale's rules
//! nor kube-proxy's are touched. Forwarded packets are not looked at: an edge forwards none, and what a pod gets is the
//! cluster's to say. The table carries the digest of its rules, by which it is known again.

use std::fmt::Write as _;

use nodezero_profile::Role;
use nodezero_profile::node::Node;
use nodezero_profile::node::join::Firewall as Wanted;
use sha2::{Digest, Sha256};

use crate::command::run;
use crate::ignition::fetch::hex;
use crate::mesh;
use crate::run::journal::Journal;
use crate::run::step::{Check, Step};
use crate::summary::{Failure, OrFail};

/// The table.
const TABLE: &str = "inet nodezero";
/// What an edge serves where its profile says nothing.
const WEB: [u16; 2] = [80, 443];

/// Ports of the cluster over TCP: K3s' API, etcd, the registry mirror, kubelet and its neighbours
/// ([requirements](https://docs.k3s.io/installation/requirements#networking)).
const CLUSTER_TCP: &str = "2379-2381, 5001, 6443, 6444, 10248-10260";
/// Ports of the cluster over UDP: flannel's VXLAN and WireGuard.
const CLUSTER_UDP: &str = "8472, 51820, 51821";

/// tailscaled's port over UDP, as its unit says. It answers nobody but members of the mesh; closed, a node without an open
/// port on the other side either is reached through a relay alone.
const MESH_UDP: &str = "41641";

/// Interfaces of pods, as flannel, Calico and Cilium call them: to the node they are not outside.
const PODS: [&str; 7] = ["cni0", "flannel*", "veth*", "cali*", "vxlan.calico", "cilium*", "lxc*"];

const WHAT: &str = "the firewall cannot be set up";
const REMEDY: &str = "restart; if it stays, the kernel lacks nf_tables or the profile's firewall has too much in it";

/// Who is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Policy {
    /// Only these.
    Only { tcp: Vec<u16>, udp: Vec<u16>, pods: bool, mesh: bool },
    /// All but the cluster's ports.
    NotTheCluster,
}

impl Policy {
    /// What a profile means. `None` for everybody.
    fn of(node: &Node) -> Option<Self> {
        let is_member = node.cluster.is_some();
        let only = |tcp: &[u16], udp: &[u16]| {
            Some(Self::Only { tcp: tcp.to_vec(), udp: udp.to_vec(), pods: is_member, mesh: node.mesh.is_some() })
        };
        match (&node.firewall, node.role) {
            (Some(Wanted { tcp, udp }), _) => only(tcp, udp),
            (None, Role::Edge) => only(&WEB, &[]),
            (None, Role::Control | Role::Worker) if is_member => Some(Self::NotTheCluster),
            (None, Role::Control | Role::Worker) => None,
        }
    }

    /// One line.
    fn words(&self) -> String {
        match self {
            Self::Only { tcp, udp, .. } if tcp.is_empty() && udp.is_empty() => {
                "nothing is let in but over the mesh".to_owned()
            }
            Self::Only { tcp, udp, .. } => {
                let named = [("tcp", tcp), ("udp", udp)];
                let lists = named.iter().filter(|(_, ports)| !ports.is_empty());
                let lists: Vec<String> = lists.map(|(name, ports)| format!("{name} {}", list(ports))).collect();
                format!("besides the mesh, {} is let in", lists.join(" and "))
            }
            Self::NotTheCluster => "the cluster's own ports are reached over the mesh alone".to_owned(),
        }
    }

    /// The rules of the chain, one a line.
    fn rules(&self) -> String {
        let mut rules = format!("iifname \"lo\" accept\niifname \"{}\" accept\n", mesh::INTERFACE);
        let mut add = |rule: &str| {
            let _ = writeln!(rules, "{rule}");
        };
        let pods = |add: &mut dyn FnMut(&str)| PODS.iter().for_each(|name| add(&format!("iifname \"{name}\" accept")));
        match self {
            Self::Only { tcp, udp, pods: has_pods, mesh: has_mesh } => {
                add("ct state established,related accept");
                add("ct state invalid drop");
                if *has_pods {
                    pods(&mut add);
                }
                // Errors, path MTU and neighbours: IPv6 does not work without.
                add("meta l4proto { icmp, ipv6-icmp } accept");
                add("udp sport 67 udp dport 68 accept");
                add("ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept");
                if *has_mesh {
                    add(&format!("udp dport {MESH_UDP} accept"));
                }
                if !tcp.is_empty() {
                    add(&format!("tcp dport {{ {} }} accept", list(tcp)));
                }
                if !udp.is_empty() {
                    add(&format!("udp dport {{ {} }} accept", list(udp)));
                }
                add("drop");
            }
            Self::NotTheCluster => {
                pods(&mut add);
                // Before what is established: no connection to them was made by the way that is closed.
                add(&format!("tcp dport {{ {CLUSTER_TCP} }} ct direction original drop"));
                add(&format!("udp dport {{ {CLUSTER_UDP} }} ct direction original drop"));
            }
        }
        rules
    }

    /// What nft is given: one transaction.
    fn script(&self) -> String {
        let policy = match self {
            Self::Only { .. } => "drop",
            Self::NotTheCluster => "accept",
        };
        let rules = self.rules().replace('\n', "\n    ");
        format!(
            "table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n  comment \"{}\"\n  chain input {{\n    \
             type filter hook input priority filter; policy {policy};\n    {}\n  }}\n}}\n",
            self.digest(),
            rules.trim_end()
        )
    }

    fn digest(&self) -> String {
        hex(&Sha256::digest(self.rules().as_bytes()))
    }
}

fn list(ports: &[u16]) -> String {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// The step.
#[derive(Debug)]
pub(crate) struct Firewall {
    policy: Policy,
}

impl Firewall {
    /// For a node that not everybody may reach.
    pub(crate) fn new(node: &Node) -> Option<Self> {
        Policy::of(node).map(|policy| Self { policy })
    }

    /// Whether the kernel has these rules.
    fn is_set(&self) -> bool {
        let words: Vec<&str> = ["list", "table"].into_iter().chain(TABLE.split(' ')).collect();
        let listed = run("nft", &words, b"", |code| code == 0);
        listed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(&self.policy.digest()))
    }
}

impl Step for Firewall {
    fn name(&self) -> &'static str {
        "firewall"
    }

    fn check(&mut self, _journal: &Journal) -> Result<Check, Failure> {
        let words = self.policy.words();
        Ok(if self.is_set() { Check::Done(words) } else { Check::Needed(words) })
    }

    fn apply(&mut self, _journal: &mut Journal, _progress: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        let script = self.policy.script();
        run("nft", &["--file", "-"], script.as_bytes(), |code| code == 0).or_fail(WHAT, REMEDY).map(drop)
    }

    fn verify(&mut self, _journal: &Journal) -> Result<String, Failure> {
        if self.is_set() {
            return Ok(self.policy.words());
        }
        Err(Failure::new(WHAT, "nft took the rules, and the kernel does not have them", REMEDY).retrying())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn policy(json: &str) -> Option<Policy> {
        let json = format!(r#"{{"version":1,"name":"n",{json}}}"#);
        Policy::of(&Node::parse(json.as_bytes()).unwrap_or_else(|problems| panic!("{json}: {problems}")))
    }

    const MEMBER: &str = r#""role":"worker","mesh":{},"cluster":{"server":"c","tokenFile":"/t"}"#;

    #[test]
    fn the_policy_follows_from_the_profile() {
        for (case, json, expected) in [
            ("a bare worker", r#""role":"worker""#.to_owned(), None),
            ("an edge", r#""role":"edge""#.to_owned(), Some("besides the mesh, tcp 80, 443 is let in")),
            (
                "an edge with ports",
                r#""role":"edge","firewall":{"tcp":[443,22,443],"udp":[443]}"#.to_owned(),
                Some("besides the mesh, tcp 22, 443 and udp 443 is let in"),
            ),
            (
                "an edge without ports",
                r#""role":"edge","firewall":{}"#.to_owned(),
                Some("nothing is let in but over the mesh"),
            ),
            ("a member", MEMBER.to_owned(), Some("the cluster's own ports are reached over the mesh alone")),
            (
                "a member with ports",
                format!(r#"{MEMBER},"firewall":{{"tcp":[22]}}"#),
                Some("besides the mesh, tcp 22 is let in"),
            ),
        ] {
            assert_eq!(policy(&json).map(|policy| policy.words()).as_deref(), expected, "{case}");
        }
    }

    #[test]
    fn the_meshs_own_port_is_open_where_there_is_a_mesh() {
        for (json, expected) in [
            (r#""role":"edge","mesh":{}"#, true),
            (r#""role":"edge""#, false),
            (r#""role":"worker","mesh":{},"firewall":{"tcp":[22]}"#, true),
        ] {
            let rules = policy(json).expect("a policy").rules();
            assert_eq!(rules.contains("udp dport 41641 accept"), expected, "{json}: {rules}");
        }
        // Both are told by the unit and by this module.
        let unit = include_str!("../../../images/files/base/usr/lib/systemd/system/tailscaled.service");
        assert!(unit.contains(&format!("--port={MESH_UDP} ")));
    }

    #[test]
    fn the_rules_of_an_edge() {
        let policy = policy(r#""role":"edge","firewall":{"tcp":[80],"udp":[443]}"#).expect("one");
        assert_eq!(
            policy.rules(),
            "iifname \"lo\" accept\niifname \"tailscale0\" accept\nct state established,related accept\n\
             ct state invalid drop\nmeta l4proto { icmp, ipv6-icmp } accept\nudp sport 67 udp dport 68 accept\n\
             ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept\ntcp dport { 80 } accept\n\
             udp dport { 443 } accept\ndrop\n"
        );
        assert!(
            policy.script().starts_with("table inet nodezero\ndelete table inet nodezero\ntable inet nodezero {\n")
        );
    }

    /// In a network namespace of its own, as root; elsewhere there is nothing to see.
    #[test]
    fn the_kernel_takes_the_rules_and_keeps_other_tables() {
        if !rustix::process::geteuid().is_root() || run("nft", &["--version"], b"", |code| code == 0).is_err() {
            eprintln!("skipped: needs root and nft");
            return;
        }
        let member = policy(&format!(r#"{MEMBER},"firewall":{{"tcp":[22]}}"#));
        for policy in [policy(r#""role":"edge""#), policy(MEMBER), member].into_iter().flatten() {
            let script = "nft add table inet other && printf %s \"$1\" >\"$2\" && nft -f \"$2\" && nft -f \"$2\" && \
                          nft list ruleset";
            let directory = tempfile::tempdir().expect("tempdir");
            let mut command = Command::new("unshare");
            command.args(["--net", "sh", "-c", script, "sh", &policy.script()]).arg(directory.path().join("rules"));
            let output = command.output().expect("unshare runs");
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            if text.contains("Operation not supported") || text.contains("Operation not permitted") {
                eprintln!("skipped: this kernel has no nf_tables: {text}");
                return;
            }
            assert!(output.status.success(), "{policy:?}: {text}");
            assert!(text.contains("table inet other") && text.contains(&policy.digest()), "{policy:?}: {text}");
            assert_eq!(text.matches("chain input").count(), 1, "{policy:?}: {text}");
        }
    }
}
