//! The parts of `node.json` that make a machine a member: mesh, cluster, registration, and the firewall of a node with
//! a public address.
//!
//! ```json
//! "mesh": { "loginServer": "https://mesh.example", "authKeyFile": "/etc/nodezero/secrets/auth-key", "tags": ["tag:worker"] },
//! "cluster": { "server": "toronto-0001", "tokenFile": "/etc/nodezero/secrets/join-token", "labels": {"site": "home"} }
//! ```
//!
//! No secret stands in `node.json`: it names the files that hold them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{LIST_LIMIT, NodeName};
use crate::Role;
use crate::problem::Findings;

/// Where secrets of a node lie.
pub const SECRETS: &str = "/etc/nodezero/secrets";
/// The port of the Kubernetes API where a server is a bare name.
pub const API_PORT: u16 = 6443;
/// The longest wait of a step in seconds: a day.
const WAIT_LIMIT: u32 = 86_400;

/// The mesh that a node joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    /// Base URL of the control server; Tailscale's own where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_server: Option<String>,
    /// The file that holds the auth key until the node is enrolled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_key_file: Option<PathBuf>,
    /// Tags that the node asks for, each `tag:NAME`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// How long to wait for an address at once, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<u32>,
}

/// The cluster that a control or worker node is part of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// The server to join; a control node without one starts the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// The file that holds the join token: on a worker the one of agents.
    pub token_file: PathBuf,
    /// On a control node the file that holds the token with which it lets workers join, and nothing else; without it
    /// they join with its own, which opens the whole cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_token_file: Option<PathBuf>,
    /// Addresses of pods, in CIDR notation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_network: Option<Network>,
    /// Addresses of services, in CIDR notation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_network: Option<Network>,
    /// Labels of the Node.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Taints of the Node, each `KEY[=VALUE]:EFFECT`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<String>,
    /// Further settings of K3s' config.yaml, as they are.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub config: serde_json::Map<String, serde_json::Value>,
    /// How long to wait for the node to be Ready at once, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<u32>,
}

/// Where an edge node registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// The cluster's API.
    pub server: Server,
    /// The file that holds the token.
    pub token_file: PathBuf,
    /// The certificate of the authority that signed the API's, as PEM.
    pub certificate_authority: String,
}

/// What a node lets in on other interfaces than the mesh's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Firewall {
    /// TCP ports.
    pub tcp: Vec<u16>,
    /// UDP ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub udp: Vec<u16>,
}

/// The Kubernetes API of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum Server {
    /// A node of the mesh by its name there, at port [`API_PORT`].
    Node(NodeName),
    /// An address with `https://`.
    Url(String),
}

/// A text that is no server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither the name of a node nor an address that begins with https://")]
pub struct ServerError(String);

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        let refused = || ServerError(text.chars().take(80).collect());
        match text.strip_prefix("https://") {
            Some(rest) if is_authority(rest.trim_end_matches('/')) => {
                Ok(Self::Url(format!("https://{}", rest.trim_end_matches('/'))))
            }
            Some(_) => Err(refused()),
            None => text.parse().map(Self::Node).map_err(|_| refused()),
        }
    }
}

/// Whether this is `HOST` or `HOST:PORT` without user, path or query.
fn is_authority(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']');
    !text.is_empty() && text.len() <= 255 && text.bytes().all(plain)
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => name.fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

impl From<Server> for String {
    fn from(server: Server) -> Self {
        server.to_string()
    }
}

/// A network in CIDR notation, such as `10.42.0.0/16`; no bit of its address is set beyond the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// A text that is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// It has another form.
    #[error("{0:?} is not a network such as 10.42.0.0/16")]
    Form(String),
    /// The address has bits beyond the prefix.
    #[error("{0:?} has bits set beyond its prefix; the network is {1}")]
    HostBits(String, String),
}

impl Network {
    /// The first address.
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// The prefix' length in bits.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The network of so many bits around an address; `None` when it has fewer.
    #[must_use]
    pub fn around(address: IpAddr, prefix: u8) -> Option<Self> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= bits).then(|| Self { address: masked(address, prefix), prefix })
    }

    /// Whether an address is of this network.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && masked(address, self.prefix) == self.address
    }

    /// Whether the two have an address in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::from((v4.to_bits() & mask).to_be_bytes())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::from(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let form = || NetworkError::Form(text.chars().take(80).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= bits).ok_or_else(form)?;
        let network = Self { address: masked(address, prefix), prefix };
        if network.address == address {
            Ok(network)
        } else {
            Err(NetworkError::HostBits(text.to_owned(), network.to_string()))
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

/// What stands in `node.json` of all this.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawMesh {
    login_server: Option<String>,
    auth_key_file: Option<PathBuf>,
    #[serde(default)]
    tags: Vec<String>,
    wait: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawCluster {
    server: Option<String>,
    token_file: PathBuf,
    agent_token_file: Option<PathBuf>,
    pod_network: Option<String>,
    service_network: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    taints: Vec<String>,
    #[serde(default)]
    config: serde_json::Map<String, serde_json::Value>,
    wait: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RawRegistration {
    server: String,
    token_file: PathBuf,
    certificate_authority: String,
}

/// What a node lets in on other interfaces than the mesh's.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "language", derive(schemars::JsonSchema), schemars(rename = "Firewall"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RawFirewall {
    /// TCP ports.
    #[serde(default)]
    tcp: Vec<u16>,
    /// UDP ports.
    #[serde(default)]
    udp: Vec<u16>,
}

impl RawMesh {
    pub(super) fn validate(self, findings: &mut Findings) -> Mesh {
        if let Some(url) = &self.login_server {
            findings.take("mesh.loginServer", check_login_server(url));
        }
        if let Some(path) = &self.auth_key_file {
            is_secret_file("mesh.authKeyFile", path, findings);
        }
        limit("mesh.tags", self.tags.len(), findings);
        for (index, tag) in self.tags.iter().enumerate() {
            findings.take(&format!("mesh.tags[{index}]"), check_tag(tag));
        }
        is_wait("mesh.wait", self.wait, findings);
        Mesh {
            login_server: self.login_server.map(|url| url.trim_end_matches('/').to_owned()),
            auth_key_file: self.auth_key_file,
            tags: self.tags,
            wait: self.wait,
        }
    }
}

/// Whether this is the base URL of a mesh's control server.
pub(crate) fn check_login_server(url: &str) -> Result<(), String> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let is = rest.is_some_and(|rest| is_authority(rest.trim_end_matches('/')));
    is.then_some(()).ok_or_else(|| format!("{url:?} is not an address such as https://mesh.example"))
}

/// Whether this is a tag of the mesh.
pub(crate) fn check_tag(tag: &str) -> Result<(), String> {
    let name = tag.strip_prefix("tag:").unwrap_or_default();
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let is = plain && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    is.then_some(()).ok_or_else(|| format!("{tag:?} is not a tag such as tag:worker"))
}

impl RawCluster {
    pub(super) fn validate(self, role: Role, findings: &mut Findings) -> Option<Cluster> {
        if role == Role::Edge {
            findings.add("cluster", "an edge node is not part of the cluster");
        }
        if role == Role::Worker && self.server.is_none() {
            findings.add("cluster.server", "a worker joins a server: name it");
        }
        let server = self.server.map(|text| findings.take("cluster.server", text.parse()));
        is_secret_file("cluster.tokenFile", &self.token_file, findings);
        if let Some(path) = &self.agent_token_file {
            is_secret_file("cluster.agentTokenFile", path, findings);
            if role != Role::Control {
                findings.add("cluster.agentTokenFile", "only a control node lets others join");
            }
        }
        let mut network =
            |path, text: Option<String>| text.and_then(|text| findings.take(path, text.parse::<Network>()));
        let pods = network("cluster.podNetwork", self.pod_network);
        let services = network("cluster.serviceNetwork", self.service_network);
        if let (Some(pods), Some(services)) = (pods, services)
            && pods.overlaps(services)
        {
            findings.add("cluster.serviceNetwork", format!("{services} overlaps the pods' {pods}"));
        }
        check_labels("cluster.labels", &self.labels, findings);
        check_taints("cluster.taints", &self.taints, findings);
        is_wait("cluster.wait", self.wait, findings);
        let server = match server {
            Some(None) => return None,
            Some(Some(server)) => Some(server),
            None => None,
        };
        Some(Cluster {
            server,
            token_file: self.token_file,
            agent_token_file: self.agent_token_file,
            pod_network: pods,
            service_network: services,
            labels: self.labels,
            taints: self.taints,
            config: self.config,
            wait: self.wait,
        })
    }
}

/// Labels of a Node.
pub(crate) fn check_labels(path: &str, labels: &BTreeMap<String, String>, findings: &mut Findings) {
    limit(path, labels.len(), findings);
    for (key, value) in labels {
        let path = format!("{path}[{key:?}]");
        findings.take(&path, is_label_key(key).then_some(()).ok_or("not a label key such as example.org/site"));
        let is_value = value.is_empty() || is_label_name(value);
        findings.take(&path, is_value.then_some(()).ok_or("the value has up to 63 of A-Z, a-z, 0-9, -, _ and ."));
    }
}

/// Taints of a Node.
pub(crate) fn check_taints(path: &str, taints: &[String], findings: &mut Findings) {
    limit(path, taints.len(), findings);
    for (index, taint) in taints.iter().enumerate() {
        if !is_taint(taint) {
            let message = "not a taint such as key=value:NoSchedule (or PreferNoSchedule, NoExecute)";
            findings.add(format!("{path}[{index}]"), format!("{taint:?} is {message}"));
        }
    }
}

impl RawRegistration {
    pub(super) fn validate(self, role: Role, findings: &mut Findings) -> Option<Registration> {
        if role != Role::Edge {
            findings.add("registration", "only an edge node has one; others register with their kubelet's credentials");
        }
        is_secret_file("registration.tokenFile", &self.token_file, findings);
        if !self.certificate_authority.trim_start().starts_with("-----BEGIN CERTIFICATE-----") {
            findings.add("registration.certificateAuthority", "not a certificate in PEM");
        }
        let server = findings.take("registration.server", self.server.parse())?;
        Some(Registration { server, token_file: self.token_file, certificate_authority: self.certificate_authority })
    }
}

impl RawFirewall {
    pub(crate) fn validate(self, findings: &mut Findings) -> Firewall {
        for (path, ports) in [("firewall.tcp", &self.tcp), ("firewall.udp", &self.udp)] {
            limit(path, ports.len(), findings);
            if ports.contains(&0) {
                findings.add(path, "0 is not a port");
            }
        }
        Firewall { tcp: self.tcp, udp: self.udp }
    }
}

fn limit(path: &str, count: usize, findings: &mut Findings) {
    if count > LIST_LIMIT {
        findings.add(path, format!("{count} entries, {LIST_LIMIT} at most"));
    }
}

pub(crate) fn is_wait(path: &str, wait: Option<u32>, findings: &mut Findings) {
    if let Some(wait) = wait.filter(|wait| !(1..=WAIT_LIMIT).contains(wait)) {
        findings.add(path, format!("{wait} s, expected 1 to {WAIT_LIMIT} s"));
    }
}

fn is_secret_file(path: &str, file: &Path, findings: &mut Findings) {
    let plain = file.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !file.is_absolute() || !plain {
        findings.add(path, format!("{:?} is not an absolute path", file.display().to_string()));
    }
}

/// A label's or annotation's key: an optional DNS subdomain and a name (Kubernetes, "Labels and Selectors").
#[must_use]
pub fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => {
            prefix.len() <= 253 && prefix.split('.').all(super::is_dns_label) && is_label_name(name)
        }
        None => is_label_name(key),
    }
}

fn is_label_name(name: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// Labels of `kubernetes.io` and `k8s.io` that a kubelet may give its own Node, beside those of two domains.
const KUBELET_LABELS: [&str; 9] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "beta.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
];

/// Whether a kubelet may give its own Node a label with this key, and take it away
/// ([NodeRestriction](https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction)).
#[must_use]
pub fn is_for_kubelet(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let within = |other: &str| domain.strip_suffix(other).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let reserved = within("kubernetes.io") || within("k8s.io");
    let allowed = within("kubelet.kubernetes.io") || within("node.kubernetes.io") || KUBELET_LABELS.contains(&key);
    !reserved || allowed
}

/// A taint as K3s takes it: `KEY[=VALUE]:EFFECT` (Kubernetes, "Taints and Tolerations").
#[must_use]
pub fn is_taint(taint: &str) -> bool {
    let Some((pair, effect)) = taint.rsplit_once(':') else { return false };
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    let is_effect = matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute");
    is_effect && is_label_key(key) && (value.is_empty() || is_label_name(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_parsed_and_compared() {
        let network = |text: &str| text.parse::<Network>();
        for (text, address, is_in) in [
            ("10.42.0.0/16", "10.42.255.1", true),
            ("10.42.0.0/16", "10.43.0.1", false),
            ("0.0.0.0/0", "255.1.1.1", true),
            ("0.0.0.0/0", "fd00::1", false),
            ("fd00::/8", "fdff::1", true),
            ("192.0.2.1/32", "192.0.2.1", true),
        ] {
            let parsed = network(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed.contains(address.parse().expect("address")), is_in, "{address} in {text}");
            assert_eq!(parsed.to_string(), text);
        }
        for text in ["10.42.0.0", "10.42.0.0/33", "fd00::/129", "10.42.0.1/16", "/8", "a/8", "10.42.0.0/-1"] {
            assert!(network(text).is_err(), "{text}");
        }
        let overlap = |a: &str, b: &str| network(a).unwrap().overlaps(network(b).unwrap());
        assert!(overlap("10.0.0.0/8", "10.42.0.0/16") && overlap("10.42.0.0/16", "10.0.0.0/8"));
        assert!(!overlap("10.42.0.0/16", "10.43.0.0/16") && !overlap("::/0", "10.42.0.0/16"));
    }

    #[test]
    fn servers_are_names_or_addresses() {
        for (text, expected) in [
            ("toronto-0001", Some("toronto-0001")),
            ("https://10.0.0.1:6443/", Some("https://10.0.0.1:6443")),
            ("https://[fd00::1]:6443", Some("https://[fd00::1]:6443")),
            ("http://a", None),
            ("https://", None),
            ("https://a/b", None),
            ("https://user@a", None),
            ("a.b", None),
            ("", None),
        ] {
            assert_eq!(text.parse::<Server>().ok().map(|server| server.to_string()).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn only_a_control_node_has_the_token_that_lets_workers_join() {
        for (role, file, expected) in [
            ("control", "/s/a", None),
            ("worker", "/s/a", Some("cluster.agentTokenFile: only a control node lets others join")),
            ("control", "s/a", Some("cluster.agentTokenFile: \"s/a\" is not an absolute path")),
        ] {
            let json = format!(
                r#"{{"version":1,"name":"n","role":"{role}","mesh":{{}},"cluster":{{"server":"c","tokenFile":"/s/t","agentTokenFile":"{file}"}}}}"#
            );
            let found = crate::node::Node::parse(json.as_bytes()).err().map(|problems| problems.to_string());
            assert_eq!(found.as_deref(), expected, "{role}: {file}");
        }
    }

    #[test]
    fn labels_and_taints_are_as_kubernetes_wants_them() {
        for (key, is) in
            [("site", true), ("a.b/c_D.e", true), ("a/", false), ("/a", false), ("A.b/c", false), ("-a", false)]
        {
            assert_eq!(is_label_key(key), is, "{key}");
        }
        for (key, is) in [
            ("kubernetes.io/hostname", true),
            ("topology.kubernetes.io/zone", true),
            ("x.node.kubernetes.io/a", true),
            ("node-role.kubernetes.io/worker", false),
            ("node-restriction.kubernetes.io/a", false),
            ("kubernetes.io/a", false),
            ("x.k8s.io/a", false),
            ("notkubernetes.io/a", true),
            ("node.longhorn.io/create-default-disk", true),
            ("site", true),
        ] {
            assert_eq!(is_for_kubelet(key), is, "{key}");
        }
        for (taint, is) in [
            ("a=b:NoSchedule", true),
            ("a:NoExecute", true),
            ("a.b/c=:PreferNoSchedule", true),
            ("a=b", false),
            ("a=b:Never", false),
            ("=b:NoSchedule", false),
        ] {
            assert_eq!(is_taint(taint), is, "{taint}");
        }
    }
}
