//! Profiles as they are written: `cluster.yaml` and `nodes/NAME.yaml`. The JSON Schema is derived from these types, and
//! what their fields say here is what editors show.

use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::Role;
use crate::node::join::RawFirewall;
use crate::node::{RawDataDisks, RawTime};

/// What the nodes of a cluster have in common.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ClusterFile {
    /// The cluster's name, for people and in kubeconfigs: a DNS label.
    pub(crate) name: String,
    /// The mesh that all nodes join.
    #[serde(default)]
    pub(crate) mesh: RawClusterMesh,
    /// The Kubernetes cluster of control and worker nodes.
    pub(crate) k3s: RawK3s,
    /// Policy for data disks.
    #[serde(default)]
    pub(crate) storage: RawStorage,
    /// Time synchronisation of all nodes.
    pub(crate) time: Option<RawTime>,
    /// SSH public keys that open every node, each as a line of authorized_keys. Without any, nobody ever logs in.
    #[serde(default)]
    pub(crate) authorized_keys: Vec<String>,
}

/// The mesh that all nodes join.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "ClusterMesh")]
pub(crate) struct RawClusterMesh {
    /// Base URL of the control server, such as https://mesh.example; Tailscale's own where nothing is said.
    pub(crate) login_server: Option<String>,
    /// The auth key of nodes that have none of their own, by reference.
    pub(crate) auth_key: Option<SecretRef>,
    /// Tags that nodes ask for, each such as tag:worker, by role.
    #[serde(default)]
    pub(crate) tags: ByRole<Vec<String>>,
    /// How long a start waits for a mesh address at once, in seconds; 300 where nothing is said.
    pub(crate) wait: Option<u32>,
}

/// The Kubernetes cluster of control and worker nodes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "K3s")]
pub(crate) struct RawK3s {
    /// The name of the control node that starts the cluster, and that the others join.
    pub(crate) server: String,
    /// The secret part of the token with which control nodes join, by reference; {secret: join-token} where nothing is
    /// said. Whoever has it has the whole cluster, so no worker is given it.
    pub(crate) token: Option<SecretRef>,
    /// The secret part of the token with which workers join, by reference; {secret: agent-token} where nothing is said.
    pub(crate) agent_token: Option<SecretRef>,
    /// Addresses of pods; 10.42.0.0/16 where nothing is said.
    pub(crate) pod_network: Option<String>,
    /// Addresses of services; 10.43.0.0/16 where nothing is said.
    pub(crate) service_network: Option<String>,
    /// Further settings of K3s' config.yaml, by role, as K3s documents them.
    #[serde(default)]
    pub(crate) config: SettingsByRole,
    /// K3s' registries.yaml (mirrors and credentials of container registries), as K3s documents it. A password or
    /// token in it is a reference.
    pub(crate) registries: Option<Map<String, Value>>,
    /// How long a start waits for the node to be Ready at once, in seconds; 1800 where nothing is said.
    pub(crate) wait: Option<u32>,
}

/// Something for each role.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ByRole<T: Default> {
    /// For control nodes.
    #[serde(default)]
    pub(crate) control: T,
    /// For worker nodes.
    #[serde(default)]
    pub(crate) worker: T,
    /// For edge nodes.
    #[serde(default)]
    pub(crate) edge: T,
}

impl<T: Default> ByRole<T> {
    /// That of a role.
    pub(crate) fn of(&self, role: Role) -> &T {
        match role {
            Role::Control => &self.control,
            Role::Worker => &self.worker,
            Role::Edge => &self.edge,
        }
    }
}

/// Settings of K3s for each role that runs it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SettingsByRole {
    /// For control nodes, which run the server.
    #[serde(default)]
    pub(crate) control: Map<String, Value>,
    /// For worker nodes, which run the agent.
    #[serde(default)]
    pub(crate) worker: Map<String, Value>,
}

/// Policy for data disks.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Storage")]
pub(crate) struct RawStorage {
    /// How many copies of its data a volume has: no more than there are nodes with data disks.
    #[schemars(range(min = 1, max = 20))]
    pub(crate) replicas: Option<u32>,
    /// Whether a node's profile may consent to wipe a disk.
    #[serde(default)]
    pub(crate) wipe: WipePolicy,
}

/// Whether a node's profile may consent to wipe a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WipePolicy {
    /// Never: an entry with "wipe: true" is an error.
    #[default]
    Never,
    /// One very disk at a time, by its whole serial number or WWN.
    Named,
}

/// One node. Its name is the file's name.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NodeFile {
    /// The node's name: that of the file, or left out.
    pub(crate) name: Option<String>,
    /// What the machine is for; its image must be built for this.
    pub(crate) role: Role,
    /// Labels of the Node.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// Taints of the Node, each such as key=value:NoSchedule.
    #[serde(default)]
    pub(crate) taints: Vec<String>,
    /// Disks that are to carry data, chosen by selectors.
    #[serde(default)]
    pub(crate) data_disks: Vec<RawDataDisks>,
    /// The network; DHCP on every wired link where nothing is said.
    pub(crate) network: Option<RawNetwork>,
    /// SSH public keys that open this node, beside those of the cluster.
    #[serde(default)]
    pub(crate) authorized_keys: Vec<String>,
    /// What is let in from outside the mesh; on an edge node TCP 80 and 443 where nothing is said.
    pub(crate) firewall: Option<RawFirewall>,
    /// Where this node differs from the cluster's mesh.
    #[serde(default)]
    pub(crate) mesh: RawNodeMesh,
    /// Where this node differs from the cluster's settings of K3s.
    #[serde(default)]
    pub(crate) k3s: RawNodeK3s,
    /// How an edge node registers.
    #[serde(default)]
    pub(crate) registration: RawNodeRegistration,
    /// Further parts of the Ignition config, in Ignition's own words (specification 3.5).
    pub(crate) ignition: Option<Map<String, Value>>,
    /// The same from a file of JSON beside cluster.yaml or below it.
    pub(crate) ignition_file: Option<String>,
}

/// Where a node differs from the cluster's mesh.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "NodeMesh")]
pub(crate) struct RawNodeMesh {
    /// This node's own auth key, by reference.
    pub(crate) auth_key: Option<SecretRef>,
    /// Tags beside those of its role.
    #[serde(default)]
    pub(crate) tags: Vec<String>,
}

/// Where a node differs from the cluster's settings of K3s.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "NodeK3s")]
pub(crate) struct RawNodeK3s {
    /// Settings of K3s' config.yaml that count before those of the cluster.
    #[serde(default)]
    pub(crate) config: Map<String, Value>,
}

/// How an edge node registers.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "NodeRegistration")]
pub(crate) struct RawNodeRegistration {
    /// The token that `nodezero node add` minted, by reference; {secret: registration-NAME} where nothing is said.
    pub(crate) token: Option<SecretRef>,
}

/// The network of a node. Links that are not named here stay down.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Network")]
pub(crate) struct RawNetwork {
    /// The links, by the names that systemd gives them, such as enp1s0; another name needs a mac.
    #[schemars(extend("minProperties" = 1))]
    pub(crate) interfaces: BTreeMap<String, RawInterface>,
    /// DNS servers.
    #[serde(default)]
    pub(crate) nameservers: Vec<String>,
}

/// One link.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Interface")]
pub(crate) struct RawInterface {
    /// The hardware address of the link that gets this name.
    pub(crate) mac: Option<String>,
    /// Whether it asks for an IPv4 address.
    #[serde(default)]
    pub(crate) dhcp: bool,
    /// Whether it takes IPv6 addresses and routes from router advertisements.
    #[serde(default)]
    pub(crate) ipv6_auto: bool,
    /// Fixed addresses with prefix, such as 192.0.2.5/24.
    #[serde(default)]
    pub(crate) addresses: Vec<String>,
    /// Default gateways, one for each family.
    #[serde(default)]
    pub(crate) gateways: Vec<String>,
    /// Further routes.
    #[serde(default)]
    pub(crate) routes: Vec<RawRoute>,
    /// Packet size in bytes.
    #[schemars(range(min = 68, max = 65535))]
    pub(crate) mtu: Option<u32>,
    /// Makes this link a VLAN on another; its name is vlanID or LINK.ID.
    pub(crate) vlan: Option<RawVlan>,
    /// Makes this link of others.
    pub(crate) bond: Option<RawBond>,
}

/// A route.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Route")]
pub(crate) struct RawRoute {
    /// The network that it leads to, such as 10.0.0.0/8.
    pub(crate) to: String,
    /// The gateway; none for a network that is on the link.
    pub(crate) via: Option<String>,
}

/// A VLAN.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Vlan")]
pub(crate) struct RawVlan {
    /// Its identifier.
    #[schemars(range(min = 1, max = 4094))]
    pub(crate) id: u16,
    /// The link that it is on.
    pub(crate) link: String,
}

/// A link made of others.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(rename = "Bond")]
pub(crate) struct RawBond {
    /// The links that it is made of.
    pub(crate) members: Vec<String>,
    /// How they share the load; active-backup where nothing is said.
    #[serde(default)]
    pub(crate) mode: BondMode,
    /// How often links are looked at, in milliseconds; 100 where nothing is said.
    #[schemars(range(min = 1, max = 60000))]
    pub(crate) miimon: Option<u32>,
}

/// How the links of a bond share the load (the bonding driver's words).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub(crate) enum BondMode {
    /// In turn.
    #[serde(rename = "balance-rr")]
    BalanceRr,
    /// One at a time.
    #[default]
    #[serde(rename = "active-backup")]
    ActiveBackup,
    /// By a hash of addresses.
    #[serde(rename = "balance-xor")]
    BalanceXor,
    /// LACP; the switch must speak it.
    #[serde(rename = "802.3ad")]
    Lacp,
    /// By load, outgoing.
    #[serde(rename = "balance-tlb")]
    BalanceTlb,
    /// By load, both ways.
    #[serde(rename = "balance-alb")]
    BalanceAlb,
}

impl BondMode {
    /// The bonding driver's word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BalanceRr => "balance-rr",
            Self::ActiveBackup => "active-backup",
            Self::BalanceXor => "balance-xor",
            Self::Lacp => "802.3ad",
            Self::BalanceTlb => "balance-tlb",
            Self::BalanceAlb => "balance-alb",
        }
    }
}

/// Where a secret comes from. Profiles are committed; secrets are not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SecretRef {
    /// This entry of `secrets.age`.
    Secret(String),
    /// The content of this file; a relative path begins at the directory of profiles.
    File(String),
    /// This environment variable.
    Env(String),
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "{{secret: {name}}}"),
            Self::File(path) => write!(f, "{{file: {path}}}"),
            Self::Env(name) => write!(f, "{{env: {name}}}"),
        }
    }
}

impl JsonSchema for SecretRef {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Where a secret comes from: one of secret, file and env. It never stands here itself.",
            "type": "object",
            "additionalProperties": false,
            "minProperties": 1,
            "maxProperties": 1,
            "properties": {
                "secret": { "description": "An entry of secrets.age.", "type": "string" },
                "file": { "description": "A file that holds it and nothing else.", "type": "string" },
                "env": { "description": "An environment variable.", "type": "string" },
            },
            "x-hint": "a secret never stands in a profile: write {secret: NAME} for an entry of secrets.age, \
                       {file: PATH} or {env: NAME}",
        })
    }
}
