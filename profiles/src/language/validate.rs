//! From texts to [`Profiles`], with everything that is wrong.

use std::collections::{BTreeMap, BTreeSet};

use ignition_config::{Warning, v3_5};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::model::{ClusterFile, NodeFile, RawK3s, RawNodeMesh, SecretRef, WipePolicy};
use super::render::reserved;
use super::yaml::{self, Node as Tree, Position};
use super::{
    AGENT_TOKEN, CLUSTER_FILE, Cluster, Finding, JOIN_TOKEN, Profile, Profiles, Source, Sources, k3s, network, schema,
    shape, together,
};
use crate::node::join::{
    self, Network, SECRETS, Server, check_labels, check_login_server, check_tag, check_taints, is_wait,
};
use crate::node::{self, Node, NodeName, Time};
use crate::problem::Findings;
use crate::{Role, node::join::Mesh};

/// Where pods have their addresses when nothing is said.
const POD_NETWORK: &str = "10.42.0.0/16";
/// Where services have theirs.
const SERVICE_NETWORK: &str = "10.43.0.0/16";
/// The longest list of SSH keys.
const KEYS_LIMIT: usize = 64;

/// A document with what is wrong in it.
pub(super) struct Document {
    pub(super) path: String,
    root: Tree,
    findings: Vec<Finding>,
    warnings: Vec<Finding>,
}

impl Document {
    /// Parses a text and compares it with a schema; the model where enough of it is right.
    fn read<T: DeserializeOwned>(source: &Source, schema: &Value) -> (Self, Option<T>) {
        let mut document = Self {
            path: source.path.clone(),
            root: Tree { at: Position::START, content: yaml::Content::Null },
            findings: Vec::new(),
            warnings: Vec::new(),
        };
        document.root = match yaml::parse(&source.text) {
            Ok(root) => root,
            Err(faults) => {
                for fault in faults {
                    document.find_at(fault.at, "", fault.message, None);
                }
                return (document, None);
            }
        };
        let (value, misfits) = shape::fit(schema, &document.root);
        for misfit in misfits {
            document.find_at(misfit.at, &misfit.path, misfit.message, misfit.hint);
        }
        let model = value.and_then(|value| match serde_json::from_value(value) {
            Ok(model) => Some(model),
            Err(error) => {
                document.find("", error.to_string(), None);
                None
            }
        });
        (document, model)
    }

    fn find_at(&mut self, at: Position, path: &str, message: String, hint: Option<String>) {
        let finding = self.finding(at, path, message, hint);
        self.findings.push(finding);
    }

    fn finding(&self, at: Position, path: &str, message: String, hint: Option<String>) -> Finding {
        let (file, path) = (self.path.clone(), path.to_owned());
        Finding { file, line: at.line, column: at.column, path, message, hint }
    }

    /// Notes something at a path that is sound, and likely not what is wanted.
    pub(super) fn warn(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        let warning = self.finding(self.root.locate(path), path, message.into(), Some(hint.into()));
        self.warnings.push(warning);
    }

    /// Whether nothing is wrong in it so far.
    pub(super) fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    /// Notes something that is wrong at a path.
    pub(super) fn find(&mut self, path: &str, message: impl Into<String>, hint: Option<String>) {
        self.find_at(self.root.locate(path), path, message.into(), hint);
    }

    /// Notes what was found in a part, but for what follows from something that did not fit there.
    fn take(&mut self, findings: Findings) {
        let known = self.findings.len();
        for problem in findings.into_list() {
            if !self.findings[..known].iter().any(|misfit| misfit.path.starts_with(&problem.path)) {
                self.find(&problem.path, problem.message, None);
            }
        }
    }
}

/// What of the cluster is needed to judge a node.
pub(super) struct Common {
    pub(super) cluster: Cluster,
    /// Whether the server's name is one.
    pub(super) server_known: bool,
    pub(super) mesh: Mesh,
    auth_key: Option<SecretRef>,
    /// Whether it is known that there is none: what is wrong with it was told already.
    no_auth_key: bool,
    tags: BTreeMap<Role, Vec<String>>,
    pub(super) pods: Network,
    pub(super) services: Network,
    config: BTreeMap<Role, Map<String, Value>>,
    wait: Option<u32>,
    time: Option<Time>,
    authorized_keys: Vec<String>,
    wipe: WipePolicy,
    pub(super) replicas: Option<u32>,
}

/// A node with the document that it comes from.
pub(super) struct Member {
    pub(super) document: Document,
    pub(super) profile: Option<Profile>,
    /// Name and role as far as they are known, so that one mistake does not make others.
    pub(super) name: Option<NodeName>,
    pub(super) role: Option<Role>,
}

/// See [`Profiles::parse`].
pub(super) fn validate(sources: &Sources<'_>) -> Result<Profiles, Vec<Finding>> {
    let (mut cluster, raw) = Document::read::<ClusterFile>(&sources.cluster, &schema::cluster());
    let common = raw.map_or_else(Common::unknown, |raw| common(raw, &mut cluster));
    let schema = schema::node();
    let mut members: Vec<Member> =
        sources.nodes.iter().map(|source| member(source, &schema, &common, sources.read)).collect();
    together::check(&common, &mut cluster, &mut members);
    let (mut findings, mut warnings) = (cluster.findings, cluster.warnings);
    let mut nodes = BTreeMap::new();
    for member in members {
        findings.extend(member.document.findings);
        warnings.extend(member.document.warnings);
        if let Some(profile) = member.profile {
            nodes.insert(profile.node.name.clone(), profile);
        }
    }
    if findings.is_empty() {
        warnings.sort();
        return Ok(Profiles { cluster: common.cluster, nodes, warnings });
    }
    findings.sort();
    Err(findings)
}

impl Common {
    /// What stands for a cluster of which too little is known, so that its nodes are judged all the same.
    fn unknown() -> Self {
        let name: NodeName = "unknown".parse().expect("a name");
        let network = |text: &str| text.parse::<Network>().expect("a network");
        Self {
            cluster: Cluster {
                name: name.clone(),
                server: name,
                token: SecretRef::Secret(JOIN_TOKEN.to_owned()),
                agent_token: SecretRef::Secret(AGENT_TOKEN.to_owned()),
                registries: None,
            },
            server_known: false,
            mesh: Mesh { login_server: None, auth_key_file: None, tags: Vec::new(), wait: None },
            auth_key: None,
            no_auth_key: false,
            tags: BTreeMap::new(),
            pods: network(POD_NETWORK),
            services: network(SERVICE_NETWORK),
            config: BTreeMap::new(),
            wait: None,
            time: None,
            authorized_keys: Vec::new(),
            // What is not known to be forbidden is not told.
            wipe: WipePolicy::Named,
            replicas: None,
        }
    }
}

fn common(raw: ClusterFile, document: &mut Document) -> Common {
    let mut findings = Findings::default();
    let name = findings.take("name", raw.name.parse::<NodeName>());
    if let Some(url) = &raw.mesh.login_server {
        findings.take("mesh.loginServer", check_login_server(url));
    }
    let mut tags = BTreeMap::new();
    for role in Role::ALL {
        let list = raw.mesh.tags.of(role);
        for (index, tag) in list.iter().enumerate() {
            findings.take(&format!("mesh.tags.{role}[{index}]"), check_tag(tag));
        }
        tags.insert(role, list.clone());
    }
    is_wait("mesh.wait", raw.mesh.wait, &mut findings);
    check_reference("mesh.authKey", raw.mesh.auth_key.as_ref(), &mut findings);
    let (server, pods, services) = check_k3s(&raw.k3s, &mut findings);
    let time = raw.time.map(|time| time.validate(&mut findings));
    check_keys("authorizedKeys", &raw.authorized_keys, &mut findings);
    document.take(findings);
    let (k3s, unknown) = (raw.k3s, Common::unknown());
    Common {
        server_known: server.is_some(),
        cluster: Cluster {
            name: name.unwrap_or(unknown.cluster.name),
            server: server.unwrap_or(unknown.cluster.server),
            token: k3s.token.unwrap_or(unknown.cluster.token),
            agent_token: k3s.agent_token.unwrap_or(unknown.cluster.agent_token),
            registries: k3s.registries,
        },
        mesh: Mesh {
            login_server: raw.mesh.login_server.map(|url| url.trim_end_matches('/').to_owned()),
            auth_key_file: None,
            tags: Vec::new(),
            wait: raw.mesh.wait,
        },
        no_auth_key: raw.mesh.auth_key.is_none() && !document.findings.iter().any(|it| it.path.starts_with("mesh")),
        auth_key: raw.mesh.auth_key,
        tags,
        pods: pods.unwrap_or(unknown.pods),
        services: services.unwrap_or(unknown.services),
        config: BTreeMap::from([(Role::Control, k3s.config.control), (Role::Worker, k3s.config.worker)]),
        wait: k3s.wait,
        time,
        authorized_keys: raw.authorized_keys,
        wipe: raw.storage.wipe,
        replicas: raw.storage.replicas,
    }
}

/// The server and the networks of pods and services.
fn check_k3s(raw: &RawK3s, findings: &mut Findings) -> (Option<NodeName>, Option<Network>, Option<Network>) {
    let server = findings.take("k3s.server", raw.server.parse::<NodeName>());
    let mut network = |path: &str, text: &Option<String>, default: &str| {
        findings.take(path, text.as_deref().unwrap_or(default).parse::<Network>())
    };
    let pods = network("k3s.podNetwork", &raw.pod_network, POD_NETWORK);
    let services = network("k3s.serviceNetwork", &raw.service_network, SERVICE_NETWORK);
    if let (Some(pods), Some(services)) = (pods, services)
        && pods.overlaps(services)
    {
        findings.add("k3s.serviceNetwork", format!("the services' {services} overlaps the pods' {pods}"));
    }
    // Of each node's /24 and of the addresses that Kubernetes itself takes.
    for (path, network, most) in [("k3s.podNetwork", pods, 23), ("k3s.serviceNetwork", services, 27)] {
        if let Some(network) = network.filter(|network| network.address().is_ipv4() && network.prefix() > most) {
            findings.add(path, format!("{network} is too small: a prefix of {most} bits or fewer"));
        }
    }
    for (role, config) in [(Role::Control, &raw.config.control), (Role::Worker, &raw.config.worker)] {
        k3s::check_config(&format!("k3s.config.{role}"), config, findings);
    }
    for (key, value) in raw.registries.iter().flatten() {
        k3s::check_registries(&shape::join("k3s.registries", key), value, findings);
    }
    check_tokens(raw, findings);
    is_wait("k3s.wait", raw.wait, findings);
    (server, pods, services)
}

/// Who has the one token is not given the other.
fn check_tokens(raw: &RawK3s, findings: &mut Findings) {
    check_reference("k3s.token", raw.token.as_ref(), findings);
    check_reference("k3s.agentToken", raw.agent_token.as_ref(), findings);
    let reference =
        |said: &Option<SecretRef>, name: &str| said.clone().unwrap_or_else(|| SecretRef::Secret(name.to_owned()));
    if reference(&raw.token, JOIN_TOKEN) == reference(&raw.agent_token, AGENT_TOKEN) {
        let path = if raw.agent_token.is_some() { "k3s.agentToken" } else { "k3s.token" };
        findings.add(path, "control nodes and workers have the same token, with which a worker has the whole cluster");
    }
}

fn check_reference(path: &str, reference: Option<&SecretRef>, findings: &mut Findings) {
    let (kind, text) = match reference {
        Some(SecretRef::Secret(text)) => ("secret", text),
        Some(SecretRef::File(text)) => ("file", text),
        Some(SecretRef::Env(text)) => ("env", text),
        None => return,
    };
    let sound = match kind {
        "file" => !text.is_empty() && !text.contains('\0'),
        "env" => !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'),
        _ => !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)),
    };
    if !sound {
        findings.add(format!("{path}.{kind}"), "not a name that a secret can have");
    }
}

/// SSH public keys, as lines of authorized_keys (sshd(8)).
fn check_keys(path: &str, keys: &[String], findings: &mut Findings) {
    if keys.len() > KEYS_LIMIT {
        findings.add(path, format!("{} keys, {KEYS_LIMIT} at most", keys.len()));
    }
    for (index, key) in keys.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if key.contains("PRIVATE KEY") {
            findings.add(path, "this is a private key, which no one else may ever see: take the line of its .pub file");
            continue;
        }
        let is_type = |word: &str| {
            ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-sha2-"].iter().any(|prefix| word.starts_with(prefix))
        };
        let is_blob = |word: &str| word.starts_with("AAAA") && word.bytes().all(|byte| byte.is_ascii_graphic());
        let words: Vec<&str> = key.split_ascii_whitespace().collect();
        let is_key = words.windows(2).any(|pair| is_type(pair[0]) && is_blob(pair[1]));
        if !is_key || key.contains(['\n', '\r']) {
            findings.add(path, "not a line of authorized_keys, such as \"ssh-ed25519 AAAA… name\"");
        }
    }
}

/// The name that a file's path gives to its node.
fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

type Read<'a> = &'a dyn Fn(&str) -> Result<String, String>;

fn member(source: &Source, schema: &Value, common: &Common, read: Read<'_>) -> Member {
    let (mut document, raw) = Document::read::<NodeFile>(source, schema);
    let name = match stem(&source.path).parse::<NodeName>() {
        Ok(name) => Some(name),
        Err(error) => {
            let hint = "the name of the file is the name of the node";
            document.find("", error.to_string(), Some(hint.to_owned()));
            None
        }
    };
    let role = raw.as_ref().map(|raw| raw.role);
    if let (Some(raw), Some(name)) = (&raw, &name)
        && let Some(said) = raw.name.as_ref().filter(|said| **said != **name)
    {
        let hint = format!("leave it out, or call the file nodes/{said}.yaml");
        document.find("name", format!("{said:?} is not the file's name, {name}"), Some(hint));
    }
    let profile = raw.map(|raw| {
        let mut findings = Findings::default();
        // What has no name is judged all the same.
        let name = name.clone().unwrap_or_else(|| common.cluster.name.clone());
        let profile = profile(&name, raw, common, read, &mut findings);
        document.take(findings);
        profile
    });
    Member { document, profile, name, role }
}

fn profile(name: &NodeName, raw: NodeFile, common: &Common, read: Read<'_>, findings: &mut Findings) -> Profile {
    let role = raw.role;
    check_role(&raw, findings);
    check_reference("registration.token", raw.registration.token.as_ref(), findings);
    let (mesh, auth_key) = mesh(raw.mesh, role, common, findings);
    k3s::check_config("k3s.config", &raw.k3s.config, findings);
    check_keys("authorizedKeys", &raw.authorized_keys, findings);
    let mut node = Node::bare(name.clone(), role);
    node.data_disks = node::data_disks(raw.data_disks, findings);
    node.time.clone_from(&common.time);
    node.mesh = Some(mesh);
    node.cluster = (role != Role::Edge).then(|| {
        let mut config = common.config.get(&role).cloned().unwrap_or_default();
        config.extend(raw.k3s.config);
        join::Cluster {
            server: (*name != common.cluster.server).then(|| Server::Node(common.cluster.server.clone())),
            token_file: format!("{SECRETS}/{JOIN_TOKEN}").into(),
            agent_token_file: (role == Role::Control).then(|| format!("{SECRETS}/{AGENT_TOKEN}").into()),
            pod_network: Some(common.pods),
            service_network: Some(common.services),
            labels: raw.labels,
            taints: raw.taints,
            config,
            wait: common.wait,
        }
    });
    node.firewall = raw.firewall.map(|firewall| firewall.validate(findings));
    let registration = (role == Role::Edge)
        .then(|| raw.registration.token.unwrap_or_else(|| SecretRef::Secret(format!("registration-{name}"))));
    let network = raw.network.map(|network| network::validate(network, findings));
    let mut authorized_keys = common.authorized_keys.clone();
    authorized_keys.extend(raw.authorized_keys.into_iter().filter(|key| !common.authorized_keys.contains(key)));
    let ignition = further(raw.ignition, raw.ignition_file, read, findings);
    Profile { node, auth_key, registration, network, authorized_keys, ignition }
}

/// The mesh of a node, and its auth key.
fn mesh(raw: RawNodeMesh, role: Role, common: &Common, findings: &mut Findings) -> (Mesh, SecretRef) {
    check_reference("mesh.authKey", raw.auth_key.as_ref(), findings);
    let auth_key = raw.auth_key.or_else(|| common.auth_key.clone());
    if auth_key.is_none() && common.no_auth_key {
        let message = "no auth key: say mesh.authKey here or in cluster.yaml, such as {secret: auth-key}";
        findings.add("mesh", message);
    }
    let mut tags = common.tags.get(&role).cloned().unwrap_or_default();
    for (index, tag) in raw.tags.into_iter().enumerate() {
        findings.take(&format!("mesh.tags[{index}]"), check_tag(&tag));
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    let mesh = Mesh { auth_key_file: Some(format!("{SECRETS}/auth-key").into()), tags, ..common.mesh.clone() };
    // One that is missing has been told.
    (mesh, auth_key.unwrap_or_else(|| SecretRef::Secret("auth-key".to_owned())))
}

/// Further parts of the Ignition config, from one of two places.
fn further(
    inline: Option<Map<String, Value>>,
    file: Option<String>,
    read: Read<'_>,
    findings: &mut Findings,
) -> Option<v3_5::Config> {
    match (inline, file) {
        (Some(_), Some(_)) => {
            findings.add("ignitionFile", "beside ignition: say one of the two");
            None
        }
        (Some(inline), None) => extra("ignition", inline, findings),
        (None, Some(path)) => {
            extra_file(&path, read, findings).and_then(|inline| extra("ignitionFile", inline, findings))
        }
        (None, None) => None,
    }
}

/// What belongs to one role alone.
fn check_role(raw: &NodeFile, findings: &mut Findings) {
    let said = [
        ("labels", !raw.labels.is_empty()),
        ("taints", !raw.taints.is_empty()),
        ("dataDisks", !raw.data_disks.is_empty()),
        ("k3s", !raw.k3s.config.is_empty()),
    ];
    for (path, _) in said.into_iter().filter(|(_, said)| *said && raw.role == Role::Edge) {
        findings.add(path, "an edge node is not part of the cluster, and has none");
    }
    if raw.role != Role::Edge && raw.registration.token.is_some() {
        findings.add("registration", "only an edge node has one; others register with their kubelet's credentials");
    }
    check_labels("labels", &raw.labels, findings);
    for key in raw.labels.keys() {
        if let Some(why) = k3s::refuse_label(key) {
            findings.add(format!("labels[{key:?}]"), why);
        }
    }
    check_taints("taints", &raw.taints, findings);
}

impl Common {
    /// Notes consents that the cluster's policy does not allow.
    pub(super) fn check_wipe(&self, node: &Node, document: &mut Document) {
        let consents = node.data_disks.iter().enumerate().filter(|(_, disks)| disks.wipe.is_some());
        for (index, _) in consents.filter(|_| self.wipe == WipePolicy::Never) {
            let hint = format!("say storage.wipe: named in {CLUSTER_FILE}, for as long as it is needed");
            let message = "the cluster's policy is that no disk is wiped";
            document.find(&format!("dataDisks[{index}].wipe"), message, Some(hint));
        }
    }
}

fn extra_file(path: &str, read: Read<'_>, findings: &mut Findings) -> Option<Map<String, Value>> {
    let below = !path.starts_with('/') && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !below {
        findings.add("ignitionFile", format!("{path:?} is not a path below the directory of profiles"));
        return None;
    }
    let text = findings.take("ignitionFile", read(path).map_err(|error| format!("reading {path}: {error}")))?;
    let parsed = serde_json::from_str(&text).map_err(|error| format!("{path} is not a JSON object: {error}"));
    findings.take("ignitionFile", parsed)
}

/// Further parts of an Ignition config. Whatever version of specification 3 they are written for up to 3.5, they are
/// taken as 3.5, which has all that those have.
fn extra(path: &str, mut inline: Map<String, Value>, findings: &mut Findings) -> Option<v3_5::Config> {
    let head = inline.entry("ignition").or_insert_with(|| json!({}));
    let Some(head) = head.as_object_mut() else {
        findings.add(format!("{path}.ignition"), "not a mapping");
        return None;
    };
    let version = head.get("version").map(|version| version.as_str().unwrap_or_default().to_owned());
    let known = ["3.0.0", "3.1.0", "3.2.0", "3.3.0", "3.4.0", "3.5.0"];
    if let Some(version) = version.filter(|version| !known.contains(&version.as_str())) {
        findings.add(format!("{path}.ignition.version"), format!("{version:?} is not one of {}", known.join(", ")));
        return None;
    }
    head.insert("version".to_owned(), "3.5.0".into());
    let text = Value::Object(inline).to_string();
    let parsed = ignition_config::Config::parse_str(&text).map_err(|error| format!("not an Ignition config: {error}"));
    let (config, warnings) = findings.take(path, parsed)?;
    for warning in &warnings {
        match warning {
            Warning::UnusedKey(key) => {
                let key = key.strip_prefix('$').unwrap_or(key);
                findings.add(format!("{path}{key}"), "not known to Ignition");
            }
            other => findings.add(path, other),
        }
    }
    match config {
        ignition_config::Config::V3_5(config) => {
            check_paths(path, &config, findings);
            Some(config)
        }
        _ => None,
    }
}

/// Each path once, and none that NodeZero lays in.
fn check_paths(path: &str, config: &v3_5::Config, findings: &mut Findings) {
    let Some(storage) = &config.storage else { return };
    let files = storage.files.iter().flatten().map(|file| &file.path);
    let directories = storage.directories.iter().flatten().map(|directory| &directory.path);
    let links = storage.links.iter().flatten().map(|link| &link.path);
    let mut seen = BTreeSet::new();
    for target in files.chain(directories).chain(links) {
        if reserved(target) {
            findings.add(path, format!("{target} is laid in by nodezero: say it in the profile"));
        } else if !seen.insert(target) {
            findings.add(path, format!("{target} stands there twice"));
        }
    }
}
