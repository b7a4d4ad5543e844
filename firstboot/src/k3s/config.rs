//! K3s' `config.yaml`: what a node says to K3s, from its profile and its place in the mesh. Pure.
//!
//! Every key is an option of K3s' command line
//! ([server](https://docs.k3s.io/cli/server), [agent](https://docs.k3s.io/cli/agent)). One that the running K3s does not
//! know it skips with a warning, which the step repeats; so an agent is given none of the server's. Values are written as
//! JSON, which YAML takes, so that no text of a profile can become something else.
//!
//! A profile's `cluster.config` is taken over as it is, but for what follows from the profile's other fields and the
//! mesh ([`OWN`]): two places for one fact would differ one day.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use nodezero_profile::Role;
use nodezero_profile::node::Node;
use nodezero_profile::node::join::Cluster;
use serde_json::{Value, json};

use crate::mesh;

/// The label that says a node's role from its first moment on.
pub(crate) const ROLE_LABEL: &str = "nodezero.dev/role";

/// What only NodeZero sets. Secrets are in files; data, credentials and the API are where this program looks for them.
const OWN: [&str; 19] = [
    "advertise-address",
    "agent-token",
    "agent-token-file",
    "cluster-cidr",
    "config",
    "data-dir",
    "disable-agent",
    "flannel-iface",
    "https-listen-port",
    "node-ip",
    "node-name",
    "server",
    "service-cidr",
    "token",
    "token-file",
    "vpn-auth",
    "vpn-auth-file",
    "with-node-id",
    "write-kubeconfig",
];

/// Lists to which a profile may add.
const LISTS: [&str; 3] = ["node-label", "node-taint", "tls-san"];

/// A setting that the profile may not make there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("cluster.config sets {0:?}, which follows from other fields of the profile or from the mesh")]
pub(crate) struct NotYours(String);

/// What there is to know about a node's place.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// The node.
    pub(crate) node: &'a Node,
    /// Its part in the cluster.
    pub(crate) cluster: &'a Cluster,
    /// Its address in the mesh.
    pub(crate) address: IpAddr,
    /// The URL of the server that it joins.
    pub(crate) server: Option<String>,
}

/// The file's text: the same for the same place.
///
/// # Errors
/// When the profile sets what is not for it to set.
pub(crate) fn render(place: &Place<'_>) -> Result<String, NotYours> {
    let mut settings: BTreeMap<&str, Value> = BTreeMap::new();
    if place.node.role == Role::Control {
        settings.insert("write-kubeconfig-mode", json!("0600"));
    }
    for (key, value) in &place.cluster.config {
        if OWN.contains(&key.as_str()) {
            return Err(NotYours(key.clone()));
        }
        settings.insert(key, value.clone());
    }
    for (key, ours) in lists(place) {
        let theirs = settings.remove(key);
        let list = ours.into_iter().map(Value::String).chain(theirs.into_iter().flat_map(elements));
        let mut kept: Vec<Value> = Vec::new();
        list.for_each(|value| {
            if !kept.contains(&value) {
                kept.push(value)
            }
        });
        if !kept.is_empty() {
            settings.insert(key, Value::Array(kept));
        }
    }
    settings.extend(own(place));
    let mut text = "# Written by nodezero-firstboot from /etc/nodezero/node.json and the mesh.\n".to_owned();
    for (key, value) in settings {
        let _ = writeln!(text, "{key}: {value}");
    }
    Ok(text)
}

fn own(place: &Place<'_>) -> BTreeMap<&'static str, Value> {
    let Place { node, cluster, address, server } = place;
    let mut settings = BTreeMap::from([
        ("flannel-iface", json!(mesh::INTERFACE)),
        ("node-ip", json!(address)),
        ("node-name", json!(&*node.name)),
        ("token-file", json!(cluster.token_file)),
    ]);
    if let Some(server) = server {
        settings.insert("server", json!(server));
    }
    if node.role == Role::Control {
        settings.insert("advertise-address", json!(address));
        settings.extend(cluster.agent_token_file.as_ref().map(|path| ("agent-token-file", json!(path))));
        let networks = [("cluster-cidr", cluster.pod_network), ("service-cidr", cluster.service_network)];
        settings.extend(networks.into_iter().filter_map(|(key, network)| Some((key, json!(network?)))));
    }
    settings
}

fn lists(place: &Place<'_>) -> [(&'static str, Vec<String>); LISTS.len()] {
    let Place { node, cluster, address, .. } = place;
    let mut labels = vec![format!("{ROLE_LABEL}={}", node.role)];
    labels.extend(cluster.labels.iter().map(|(key, value)| format!("{key}={value}")));
    // Whoever knows the server by its name in the mesh finds that name in its certificate.
    let names = match node.role {
        Role::Control => vec![node.name.to_string(), address.to_string()],
        Role::Worker | Role::Edge => Vec::new(),
    };
    [(LISTS[0], labels), (LISTS[1], cluster.taints.clone()), (LISTS[2], names)]
}

/// K3s takes one value where a list may stand.
fn elements(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values,
        value => vec![value],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(json: &str, server: Option<&str>) -> Result<String, NotYours> {
        let node = Node::parse(json.as_bytes()).unwrap_or_else(|problems| panic!("{json}: {problems}"));
        let cluster = node.cluster.clone().expect("a cluster");
        let address = IpAddr::from([100, 64, 0, 7]);
        render(&Place { node: &node, cluster: &cluster, address, server: server.map(str::to_owned) })
    }

    fn node(role: &str, cluster: &str) -> String {
        format!(r#"{{"version":1,"name":"n-1","role":"{role}","mesh":{{}},"cluster":{{"tokenFile":"/s/t"{cluster}}}}}"#)
    }

    #[test]
    fn a_first_server_has_its_networks_and_names() {
        let json = node(
            "control",
            r#","podNetwork":"10.42.0.0/16","serviceNetwork":"10.43.0.0/16","labels":{"site":"home"},
               "agentTokenFile":"/s/a","taints":["a=b:NoSchedule"],
               "config":{"disable":["traefik","servicelb"],"tls-san":"k.example","node-label":["x=y","site=home"],
                         "write-kubeconfig-mode":"0640","kubelet-arg":["v=2"]}"#,
        );
        assert_eq!(
            rendered(&json, None).expect("rendered"),
            "# Written by nodezero-firstboot from /etc/nodezero/node.json and the mesh.\n\
             advertise-address: \"100.64.0.7\"\n\
             agent-token-file: \"/s/a\"\n\
             cluster-cidr: \"10.42.0.0/16\"\n\
             disable: [\"traefik\",\"servicelb\"]\n\
             flannel-iface: \"tailscale0\"\n\
             kubelet-arg: [\"v=2\"]\n\
             node-ip: \"100.64.0.7\"\n\
             node-label: [\"nodezero.dev/role=control\",\"site=home\",\"x=y\"]\n\
             node-name: \"n-1\"\n\
             node-taint: [\"a=b:NoSchedule\"]\n\
             service-cidr: \"10.43.0.0/16\"\n\
             tls-san: [\"n-1\",\"100.64.0.7\",\"k.example\"]\n\
             token-file: \"/s/t\"\n\
             write-kubeconfig-mode: \"0640\"\n"
        );
    }

    #[test]
    fn an_agent_is_given_nothing_of_a_server() {
        let json = node("worker", r#","server":"control-1","podNetwork":"10.42.0.0/16""#);
        assert_eq!(
            rendered(&json, Some("https://100.64.0.1:6443")).expect("rendered"),
            "# Written by nodezero-firstboot from /etc/nodezero/node.json and the mesh.\n\
             flannel-iface: \"tailscale0\"\n\
             node-ip: \"100.64.0.7\"\n\
             node-label: [\"nodezero.dev/role=worker\"]\n\
             node-name: \"n-1\"\n\
             server: \"https://100.64.0.1:6443\"\n\
             token-file: \"/s/t\"\n"
        );
    }

    #[test]
    fn what_follows_from_elsewhere_is_refused() {
        for key in OWN {
            let json = node("control", &format!(r#","config":{{"{key}":"x"}}"#));
            assert_eq!(rendered(&json, None), Err(NotYours(key.to_owned())), "{key}");
        }
    }

    #[test]
    fn texts_stay_texts() {
        let json = node("control", r#","config":{"a":"yes: no\n- #","b":true,"c":null,"d":7}"#);
        let text = rendered(&json, None).expect("rendered");
        for line in [r#"a: "yes: no\n- #""#, "b: true", "c: null", "d: 7"] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
