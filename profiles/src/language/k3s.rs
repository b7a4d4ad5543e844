//! What K3s' settings may hold: its [configuration](https://docs.k3s.io/installation/configuration), but for what
//! NodeZero decides itself, and for secrets.

use serde_json::{Map, Value};

use super::model::SecretRef;
use super::shape::join;
use crate::node::join::{is_for_kubelet, is_label_key};
use crate::problem::Findings;

/// Settings that follow from the profile, and where they are said there.
const OURS: [(&str, &str); 38] = [
    ("server", "it follows from k3s.server of cluster.yaml"),
    ("token", "it follows from k3s.token of cluster.yaml"),
    ("token-file", "it follows from k3s.token of cluster.yaml"),
    ("agent-token", "it follows from k3s.agentToken of cluster.yaml"),
    ("agent-token-file", "it follows from k3s.agentToken of cluster.yaml"),
    ("node-name", "it is the name of the file"),
    ("with-node-id", "the node is known by the name of the file alone"),
    ("node-ip", "it is the mesh address"),
    ("node-external-ip", "nodes are reached over the mesh"),
    ("flannel-external-ip", "nodes are reached over the mesh"),
    ("advertise-address", "it is the mesh address"),
    ("advertise-port", "nodes and the operator reach the API at port 6443"),
    ("https-listen-port", "nodes, the operator and the firewall know the API at port 6443"),
    ("bind-address", "the firewall decides who reaches the API"),
    ("flannel-iface", "it is the mesh"),
    ("vpn-auth", "a node is in the mesh before K3s starts"),
    ("vpn-auth-file", "a node is in the mesh before K3s starts"),
    ("write-kubeconfig", "a control node finds it at /etc/rancher/k3s/k3s.yaml"),
    ("private-registry", "say k3s.registries in cluster.yaml"),
    ("disable-agent", "a control node is a Node, too, and waits until that is Ready"),
    ("disable-apiserver", "a control node has all of a server"),
    ("disable-controller-manager", "a control node has all of a server"),
    ("disable-scheduler", "a control node has all of a server"),
    ("disable-etcd", "a control node has all of a server"),
    ("container-runtime-endpoint", "the image's containers are in K3s' own containerd"),
    ("docker", "the image's containers are in K3s' own containerd"),
    ("log", "a node reads in the journal why K3s does not start"),
    ("cluster-cidr", "say k3s.podNetwork in cluster.yaml"),
    ("service-cidr", "say k3s.serviceNetwork in cluster.yaml"),
    ("node-label", "say labels"),
    ("node-taint", "say taints"),
    ("data-dir", "it is /var/lib/rancher/k3s"),
    ("cluster-init", "it follows from the number of control nodes"),
    ("cluster-reset", "it is done once, by hand"),
    ("cluster-reset-restore-path", "it is done once, by hand"),
    ("config", "these settings are that file"),
    ("debug", "say v: 1 or more"),
    ("rootless", "K3s runs as root"),
];

/// Settings that hold secrets.
const SECRET: [&str; 4] = ["datastore-endpoint", "etcd-s3-access-key", "etcd-s3-secret-key", "etcd-s3-session-token"];

/// Checks settings of K3s' config.yaml.
pub(crate) fn check_config(path: &str, config: &Map<String, Value>, findings: &mut Findings) {
    for key in config.keys() {
        let path = join(path, key);
        let name = key.trim_end_matches('+');
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !name.bytes().all(plain) || name.is_empty() {
            findings.add(path, format!("{key:?} is not a setting of K3s: they are written as tls-san is"));
        } else if let Some((_, instead)) = OURS.iter().find(|(ours, _)| *ours == name) {
            findings.add(path, format!("{name} is not said here: {instead}"));
        } else if SECRET.contains(&name) {
            findings
                .add(path, format!("{name} holds a secret, and profiles are committed: lay it in a file of its own"));
        }
    }
}

/// Keys of registries.yaml that hold secrets.
const CREDENTIALS: [&str; 4] = ["password", "auth", "identity_token", "token"];

/// Checks that credentials in registries.yaml are references.
pub(crate) fn check_registries(path: &str, value: &Value, findings: &mut Findings) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = join(path, key);
                // `auth` is also what a mapping of credentials is called.
                let inline = CREDENTIALS.contains(&key.as_str()) && !value.is_object();
                if inline {
                    findings.add(path, "a secret never stands in a profile: write {secret: NAME}");
                } else {
                    check_registries(&path, value, findings);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                check_registries(&format!("{path}[{index}]"), item, findings);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A reference to a secret that stands where a text may.
pub(crate) fn reference(value: &Value) -> Option<SecretRef> {
    let map = value.as_object().filter(|map| map.len() == 1)?;
    let (key, value) = map.iter().next()?;
    let text = value.as_str()?.to_owned();
    match key.as_str() {
        "secret" => Some(SecretRef::Secret(text)),
        "file" => Some(SecretRef::File(text)),
        "env" => Some(SecretRef::Env(text)),
        _ => None,
    }
}

/// Why a label's key cannot be given, where it is a key.
pub(crate) fn refuse_label(key: &str) -> Option<String> {
    let (prefix, _) = key.split_once('/')?;
    if !is_label_key(key) {
        return None;
    }
    if prefix == "nodezero.dev" || prefix.ends_with(".nodezero.dev") {
        return Some("labels of nodezero.dev follow from the profile".to_owned());
    }
    (!is_for_kubelet(key)).then(|| format!("a kubelet may not give its node labels of {prefix}, and would not start"))
}
