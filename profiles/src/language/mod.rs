//! Profiles as the operator writes them, in YAML: a directory with `cluster.yaml` and `nodes/NAME.yaml`.
//!
//! ```text
//! text ─ yaml ─ shape (the JSON Schema of the model) ─ model ─ validate ─ Profiles ─ render ─ Ignition config
//! ```
//!
//! One model has two uses: the JSON Schema that editors know ([`schema`]) is derived from it, and the same schema is
//! what a document is held against, so that every unknown field and wrong type is told at once with its place. What is
//! right in its shape is then judged as a whole.
//!
//! No secret stands in a profile, only references ([`SecretRef`]); who renders gives the secrets ([`Secrets`]).

mod k3s;
mod model;
mod network;
mod render;
pub mod schema;
mod shape;
#[cfg(test)]
mod tests;
mod together;
mod validate;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

pub use self::model::SecretRef;
pub use self::render::{
    AUTHORITY_FILES, Joins, Part, RenderError, Rendered, Secret, Secrets, USER_DATA_LIMIT, join_token, network_words,
    render,
};
use crate::node::{Node, NodeName};

/// The file of what nodes have in common.
pub const CLUSTER_FILE: &str = "cluster.yaml";
/// The directory of nodes.
pub const NODES: &str = "nodes";
/// The file of secrets, encrypted with age.
pub const SECRETS_FILE: &str = "secrets.age";
/// The entry of secrets with which control nodes join, where `cluster.yaml` names no other.
pub const JOIN_TOKEN: &str = "join-token";
/// The same for workers.
pub const AGENT_TOKEN: &str = "agent-token";

/// A file as it was read.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its path, as it is to be called; for a node relative to the directory of profiles, such as `nodes/a.yaml`.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// What a directory of profiles holds.
pub struct Sources<'a> {
    /// `cluster.yaml`.
    pub cluster: Source,
    /// Each file of `nodes/`.
    pub nodes: Vec<Source>,
    /// Reads another file that a profile names, by its path relative to the directory.
    pub read: &'a dyn Fn(&str) -> Result<String, String>,
}

/// One thing that is wrong with profiles, or a warning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
    /// Where in the document, such as `dataDisks[0].select.size`; empty for the document as a whole.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right, where that can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, path, message, hint } = self;
        let separator = if path.is_empty() { "" } else { ": " };
        write!(f, "{file}:{line}:{column}: {path}{separator}{message}")?;
        match hint {
            Some(hint) => write!(f, "\n    hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Profiles that are sound.
#[derive(Debug)]
pub struct Profiles {
    cluster: Cluster,
    nodes: BTreeMap<NodeName, Profile>,
    warnings: Vec<Finding>,
}

/// What nodes have in common, beyond what each node has of it already.
#[derive(Debug)]
struct Cluster {
    name: NodeName,
    server: NodeName,
    token: SecretRef,
    agent_token: SecretRef,
    registries: Option<Map<String, Value>>,
}

/// One node.
#[derive(Debug)]
struct Profile {
    /// `node.json`, but for its digest and registration, which need secrets.
    node: Node,
    /// The auth key that enrols it.
    auth_key: SecretRef,
    /// The token with which an edge node registers.
    registration: Option<SecretRef>,
    network: Option<network::Network>,
    authorized_keys: Vec<String>,
    /// Further parts of its Ignition config.
    ignition: Option<ignition_config::v3_5::Config>,
}

impl Profiles {
    /// Reads and checks profiles.
    ///
    /// # Errors
    /// Everything that is wrong, sorted by file and place.
    pub fn parse(sources: &Sources<'_>) -> Result<Self, Vec<Finding>> {
        validate::validate(sources)
    }

    /// The cluster's name.
    #[must_use]
    pub fn cluster(&self) -> &NodeName {
        &self.cluster.name
    }

    /// The control node that starts the cluster.
    #[must_use]
    pub fn server(&self) -> &NodeName {
        &self.cluster.server
    }

    /// The secret part of the token with which control nodes join.
    #[must_use]
    pub fn token(&self) -> &SecretRef {
        &self.cluster.token
    }

    /// The secret part of the token with which workers join.
    #[must_use]
    pub fn agent_token(&self) -> &SecretRef {
        &self.cluster.agent_token
    }

    /// What is sound, and likely not what is wanted; sorted by file and place.
    #[must_use]
    pub fn warnings(&self) -> &[Finding] {
        &self.warnings
    }

    /// The nodes, by name. What they hold is `node.json` without digest and registration.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().map(|profile| &profile.node)
    }

    /// Every secret that some node's profile refers to.
    #[must_use]
    pub fn references(&self) -> BTreeSet<&SecretRef> {
        let own = self.nodes.values().flat_map(|profile| profile.registration.iter().chain([&profile.auth_key]));
        own.chain([&self.cluster.token, &self.cluster.agent_token]).collect()
    }
}
