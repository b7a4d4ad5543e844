//! A node's profile as an [Ignition config](https://coreos.github.io/ignition/configuration-v3_5/), specification 3.5.
//!
//! The same profile and secrets give the same bytes. Contents are data URLs, compressed with gzip where that is shorter.
//! `node.json` holds the digest of what is rendered without secrets, so that a cluster shows which profile a node runs.

mod content;
mod merge;

use std::collections::BTreeMap;
use std::fmt;

use ignition_config::v3_5::{Config, Directory, File, Passwd, Resource, Storage, Systemd, Unit, User};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::model::SecretRef;
use super::{AGENT_TOKEN, Cluster, JOIN_TOKEN, Profile, Profiles, k3s, network, schema};
use crate::Role;
use crate::node::NodeName;
use crate::node::join::{Registration, SECRETS, Server};

pub(super) use merge::reserved;

/// The smallest limit that a provider of servers sets for user data, in bytes.
pub const USER_DATA_LIMIT: usize = 16 << 10;

/// Where K3s keeps its authorities and keys
/// ([custom CA certificates](https://docs.k3s.io/cli/certificate#using-custom-ca-certificates)).
const TLS: &str = "/var/lib/rancher/k3s/server/tls";

/// A text that nobody but its reader may see.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text, without blanks and line ends at its ends.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// Takes a text as it is, such as a file in PEM whose every byte counts.
    #[must_use]
    pub fn verbatim(text: String) -> Self {
        Self(text)
    }

    /// The text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where secrets come from.
pub trait Secrets {
    /// The secret that a profile refers to.
    ///
    /// # Errors
    /// Why it cannot be had, without any part of it.
    fn read(&self, reference: &SecretRef) -> Result<Secret, String>;

    /// A file of the cluster's authorities, by its name below K3s' `server/tls`, such as `server-ca.crt`.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn authority(&self, file: &str) -> Result<Secret, String>;
}

/// Files below K3s' `server/tls` that are there before the cluster first starts.
pub const AUTHORITY_FILES: [&str; 11] = [
    "client-ca.crt",
    "client-ca.key",
    "etcd/peer-ca.crt",
    "etcd/peer-ca.key",
    "etcd/server-ca.crt",
    "etcd/server-ca.key",
    "request-header-ca.crt",
    "request-header-ca.key",
    "server-ca.crt",
    "server-ca.key",
    "service.key",
];

/// References instead of what they refer to: what is rendered with these is no secret.
struct Placeholders;

impl Secrets for Placeholders {
    fn read(&self, reference: &SecretRef) -> Result<Secret, String> {
        Ok(Secret::verbatim(reference.to_string()))
    }

    fn authority(&self, file: &str) -> Result<Secret, String> {
        Ok(Secret::verbatim(format!("{{authority: {file}}}")))
    }
}

/// Why a node cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// No such node.
    #[error("no node is called {name}: there are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Those there are.
        known: String,
    },
    /// A secret that cannot be had.
    #[error("reading the secret {reference}: {why}")]
    Secret {
        /// The reference, or the file of an authority.
        reference: String,
        /// Why.
        why: String,
    },
    /// Something cannot be written as JSON.
    #[error("writing JSON")]
    Json(#[from] serde_json::Error),
}

/// A rendered node.
#[derive(Debug)]
pub struct Rendered {
    /// The Ignition config, as JSON. It holds secrets.
    pub config: Secret,
    /// What takes how many bytes in it, the largest first.
    pub parts: Vec<Part>,
    /// Digest of the same without secrets, as 64 hex digits.
    pub digest: String,
}

/// A part of a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The path of a file.
    pub path: String,
    /// What its content takes, in bytes.
    pub bytes: usize,
}

/// Renders a node.
///
/// # Errors
/// When there is no such node, or a secret cannot be had.
pub fn render(profiles: &Profiles, name: &str, secrets: &dyn Secrets) -> Result<Rendered, RenderError> {
    let profile = find(profiles, name)?;
    let without = config(&profiles.cluster, profile, &Placeholders, None)?;
    let digest = hex(&Sha256::digest(to_json(&without)?.as_bytes()));
    let config = config(&profiles.cluster, profile, secrets, Some(digest.clone()))?;
    Ok(Rendered { parts: parts(&config), config: Secret::verbatim(to_json(&config)?), digest })
}

/// The network of a node in the first stage's words, for the ESP's `/nodezero/network`; `None` where its profile says
/// nothing of it.
///
/// # Errors
/// When there is no such node.
pub fn network_words(profiles: &Profiles, name: &str) -> Result<Option<String>, RenderError> {
    Ok(find(profiles, name)?.network.as_ref().map(network::words))
}

fn find<'p>(profiles: &'p Profiles, name: &str) -> Result<&'p Profile, RenderError> {
    let found = name.parse::<NodeName>().ok().and_then(|name| profiles.nodes.get(&name));
    found.ok_or_else(|| {
        let known: Vec<&str> = profiles.nodes.keys().map(|name| &**name).collect();
        RenderError::Unknown { name: name.to_owned(), known: known.join(", ") }
    })
}

/// What a join token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joins {
    /// Further control nodes, and the whole cluster.
    Control,
    /// Workers alone.
    Worker,
}

/// The full join token: with the digest of the authority's certificate, so that a node knows the server before it says
/// the secret. K3s takes the digest of the file where it holds one certificate, and of the root's DER where it holds a
/// chain ([tokens](https://docs.k3s.io/cli/token#token-format)); the root is the last of the chain. The user before the
/// secret is the one whom K3s knows by it.
#[must_use]
pub fn join_token(authority: &str, joins: Joins, secret: &Secret) -> Secret {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    let digest = match authority.rmatch_indices(BEGIN).next() {
        Some((at, _)) if authority.matches(BEGIN).count() > 1 => {
            let body = authority[at + BEGIN.len()..].split("-----END").next().unwrap_or_default();
            let body: String = body.split_ascii_whitespace().collect();
            content::from_base64(&body).map(Sha256::digest)
        }
        _ => None,
    };
    let digest = digest.unwrap_or_else(|| Sha256::digest(authority.as_bytes()));
    let user = match joins {
        Joins::Control => "server",
        Joins::Worker => "node",
    };
    Secret::verbatim(format!("K10{}::{user}:{}", hex(&digest), secret.expose()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// What is laid into a node.
struct Laid {
    /// How contents are written.
    write: fn(&[u8]) -> Resource,
    directories: BTreeMap<String, i64>,
    files: BTreeMap<String, File>,
}

impl Laid {
    fn directory(&mut self, path: &str, mode: i64) {
        self.directories.insert(path.to_owned(), mode);
    }

    fn file(&mut self, path: &str, mode: i64, bytes: &[u8]) {
        let mut file = File::new(path.to_owned());
        file.contents = Some((self.write)(bytes));
        file.mode = Some(mode);
        file.overwrite = Some(true);
        self.files.insert(path.to_owned(), file);
    }
}

fn config(
    cluster: &Cluster,
    profile: &Profile,
    secrets: &dyn Secrets,
    digest: Option<String>,
) -> Result<Config, RenderError> {
    // What compression makes of a text is not the same in every version; the digest is.
    let write = if digest.is_some() { content::shortest } else { content::plain };
    let mut laid = Laid { write, directories: BTreeMap::new(), files: BTreeMap::new() };
    laid.file("/etc/hostname", 0o644, format!("{}\n", profile.node.name).as_bytes());
    lay_secrets(&mut laid, cluster, profile, secrets)?;
    lay_node(&mut laid, cluster, profile, secrets, digest)?;
    for unit in profile.network.iter().flat_map(network::units) {
        laid.file(&format!("/etc/systemd/network/{}", unit.name), 0o644, unit.content.as_bytes());
    }
    if let Some(registries) = cluster.registries.as_ref().filter(|_| profile.node.role != Role::Edge) {
        let mut registries = Value::Object(registries.clone());
        put_secrets(&mut registries, secrets)?;
        // Every JSON document is one of YAML.
        let text = serde_json::to_string_pretty(&schema::sorted(registries))? + "\n";
        laid.file("/etc/rancher/k3s/registries.yaml", 0o600, text.as_bytes());
    }
    let directories =
        laid.directories.into_iter().map(|(path, mode)| Directory { mode: Some(mode), ..Directory::new(path) });
    let storage = Storage {
        directories: Some(directories.collect()),
        files: Some(laid.files.into_values().collect()),
        ..Storage::default()
    };
    let mut config = Config { storage: Some(storage), ..Config::default() };
    if !profile.authorized_keys.is_empty() {
        let root = User { ssh_authorized_keys: Some(profile.authorized_keys.clone()), ..User::new("root".to_owned()) };
        config.passwd = Some(Passwd { groups: None, users: Some(vec![root]) });
        let ssh = Unit { enabled: Some(true), ..Unit::new("ssh.service".to_owned()) };
        config.systemd = Some(Systemd { units: Some(vec![ssh]) });
    }
    if let Some(extra) = &profile.ignition {
        merge::merge(&mut config, extra.clone());
    }
    Ok(config)
}

fn read(secrets: &dyn Secrets, reference: &SecretRef) -> Result<Secret, RenderError> {
    secrets.read(reference).map_err(|why| RenderError::Secret { reference: reference.to_string(), why })
}

fn authority(secrets: &dyn Secrets, file: &str) -> Result<Secret, RenderError> {
    secrets.authority(file).map_err(|why| RenderError::Secret { reference: file.to_owned(), why })
}

fn lay_secrets(
    laid: &mut Laid,
    cluster: &Cluster,
    profile: &Profile,
    secrets: &dyn Secrets,
) -> Result<(), RenderError> {
    laid.directory(SECRETS, 0o700);
    let mut lay =
        |name: &str, secret: &Secret| laid.file(&format!("{SECRETS}/{name}"), 0o600, secret.expose().as_bytes());
    lay("auth-key", &read(secrets, &profile.auth_key)?);
    if let Some(reference) = &profile.registration {
        lay("registration-token", &read(secrets, reference)?);
    }
    let full = |joins: Joins, secret: &Secret| -> Result<Secret, RenderError> {
        Ok(join_token(authority(secrets, "server-ca.crt")?.expose(), joins, secret))
    };
    match profile.node.role {
        Role::Edge => {}
        Role::Worker => lay(JOIN_TOKEN, &full(Joins::Worker, &read(secrets, &cluster.agent_token)?)?),
        Role::Control => {
            let (token, agents) = tokens(cluster, secrets)?;
            // The server that starts the cluster has nobody to check, and K3s takes its token as it is.
            let is_first = profile.node.name == cluster.server;
            lay(JOIN_TOKEN, &if is_first { token } else { full(Joins::Control, &token)? });
            lay(AGENT_TOKEN, &agents);
            lay_authorities(laid, secrets)?;
        }
    }
    Ok(())
}

/// The token of control nodes and that of workers, which is another.
fn tokens(cluster: &Cluster, secrets: &dyn Secrets) -> Result<(Secret, Secret), RenderError> {
    let (token, agents) = (read(secrets, &cluster.token)?, read(secrets, &cluster.agent_token)?);
    if token == agents {
        let why = format!("it is the same as {}, with which a worker would have the whole cluster", cluster.token);
        return Err(RenderError::Secret { reference: cluster.agent_token.to_string(), why });
    }
    Ok((token, agents))
}

fn lay_authorities(laid: &mut Laid, secrets: &dyn Secrets) -> Result<(), RenderError> {
    laid.directory(TLS, 0o700);
    laid.directory(&format!("{TLS}/etcd"), 0o700);
    for file in AUTHORITY_FILES {
        let content = authority(secrets, file)?;
        laid.file(&format!("{TLS}/{file}"), 0o600, content.expose().as_bytes());
    }
    Ok(())
}

fn lay_node(
    laid: &mut Laid,
    cluster: &Cluster,
    profile: &Profile,
    secrets: &dyn Secrets,
    digest: Option<String>,
) -> Result<(), RenderError> {
    let mut node = profile.node.clone();
    if profile.registration.is_some() {
        node.registration = Some(Registration {
            server: Server::Node(cluster.server.clone()),
            token_file: format!("{SECRETS}/registration-token").into(),
            certificate_authority: authority(secrets, "server-ca.crt")?.expose().to_owned(),
        });
    }
    node.profile = digest;
    let json = serde_json::to_string_pretty(&schema::sorted(serde_json::to_value(&node)?))? + "\n";
    laid.file("/etc/nodezero/node.json", 0o600, json.as_bytes());
    Ok(())
}

/// Puts secrets in the place of references to them.
fn put_secrets(value: &mut Value, secrets: &dyn Secrets) -> Result<(), RenderError> {
    if let Some(reference) = k3s::reference(value) {
        *value = Value::from(read(secrets, &reference)?.expose());
        return Ok(());
    }
    match value {
        Value::Object(map) => map.values_mut().try_for_each(|value| put_secrets(value, secrets)),
        Value::Array(items) => items.iter_mut().try_for_each(|value| put_secrets(value, secrets)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

/// The config as JSON: keys in order, and nothing that is not said.
fn to_json(config: &Config) -> Result<String, serde_json::Error> {
    let mut value = serde_json::to_value(config)?;
    strip(&mut value);
    serde_json::to_string(&schema::sorted(value))
}

/// Takes away what is null; lists keep their length.
fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn parts(config: &Config) -> Vec<Part> {
    let files = config.storage.as_ref().and_then(|storage| storage.files.as_ref());
    let size =
        |file: &File| file.contents.as_ref().and_then(|contents| contents.source.as_ref()).map_or(0, String::len);
    let mut parts: Vec<Part> =
        files.into_iter().flatten().map(|file| Part { path: file.path.clone(), bytes: size(file) }).collect();
    parts.sort_by(|one, other| other.bytes.cmp(&one.bytes).then_with(|| one.path.cmp(&other.path)));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_hold_the_digest_that_k3s_takes() {
        let one = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n";
        let secret = Secret::new(" s3cret\n");
        let token = |authority: &str| join_token(authority, Joins::Worker, &secret).expose().to_owned();
        let expected = format!("K10{}::node:s3cret", hex(&Sha256::digest(one.as_bytes())));
        assert_eq!(token(one), expected, "one certificate: the file as it is");
        let server = join_token(one, Joins::Control, &secret);
        assert_eq!(server.expose(), expected.replace("::node:", "::server:"), "of a control node");
        let chain = one.replace("AAEC", "CQkJ") + one;
        let expected = format!("K10{}::node:s3cret", hex(&Sha256::digest([0, 1, 2])));
        assert_eq!(token(&chain), expected, "a chain: the root's DER");
    }

    #[test]
    fn secrets_do_not_show_themselves() {
        assert_eq!(format!("{:?}", Secret::new("s3cret")), "Secret(…)");
    }
}
