//! The cluster's API as a node uses it: one connection for a few short calls, each bounded in time.
//!
//! Calls go out on a runtime of one thread that lives as long as the connection. Server-side apply is what writes
//! ([reference](https://kubernetes.io/docs/reference/using-api/server-side-apply/)): what a manager no longer applies
//! goes away, what others wrote stays, and the same content twice changes nothing.
//!
//! The program is linked statically, so names are not resolved through the C library: an address is given as an IP
//! address, and [`Endpoint`] keeps the name that the certificate is checked for. Left out: everything that a long-lived
//! client needs, which is in [`crate::registry`].

#[cfg(test)]
pub(crate) mod fake;

use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Resource};
use nodezero_profile::node::join::{API_PORT, Server};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Where NodeZero's own objects are.
pub(crate) const NAMESPACE: &str = "nodezero-system";
/// Under which the registry lies there, one key a node.
pub(crate) const REGISTRY: &str = "node-registry";
/// The label of the objects in which edge nodes register.
pub(crate) const REGISTRATION_LABEL: &str = "nodezero.dev/registration";

/// How long a connection, and one whole call, may take.
const CONNECT: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(20);

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The credentials cannot be read or used.
    #[error("{0}")]
    Credentials(String),
    /// Nobody answered, or not in a way that can be trusted.
    #[error("{server} does not answer: {reason}")]
    Unreachable {
        /// Who was asked.
        server: String,
        /// What happened instead.
        reason: String,
    },
    /// The API said no.
    #[error("{server} answered {code}: {message}")]
    Refused {
        /// Who was asked.
        server: String,
        /// The HTTP status.
        code: u16,
        /// Its words.
        message: String,
    },
}

impl ApiError {
    /// The HTTP status, where there was an answer.
    #[cfg(test)]
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Credentials(_) | Self::Unreachable { .. } => None,
        }
    }

    fn of(server: &str, error: &kube::Error) -> Self {
        let server = server.to_owned();
        match error {
            kube::Error::Api(status) => Self::Refused { server, code: status.code, message: status.message.clone() },
            error => Self::Unreachable { server, reason: chain(error) },
        }
    }
}

/// What the API answered, on one line.
pub(crate) fn answer(status: &Status) -> String {
    format!("the API answered {}: {}", status.code, status.message)
}

/// An error and its causes on one line, without those that only say again what was said.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let this = error.to_string();
        if !text.contains(&this) {
            text = format!("{text}: {this}");
        }
        cause = error.source();
    }
    text
}

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Its address and port.
    pub(crate) address: SocketAddr,
    /// The name that its certificate is for, where that is no address.
    pub(crate) name: Option<String>,
}

impl Endpoint {
    /// The API of a server. A node of the mesh is found by `resolve`, a host name by DNS.
    ///
    /// # Errors
    /// When there is no such node or host, or `resolve` cannot tell.
    pub(crate) fn of<E>(server: &Server, resolve: impl FnOnce(&str) -> Result<IpAddr, E>) -> Result<Self, E>
    where
        E: From<anyhow::Error>,
    {
        match server {
            Server::Node(name) => Ok(Self { address: (resolve(name)?, API_PORT).into(), name: None }),
            Server::Url(url) => Self::of_url(url).map_err(E::from),
        }
    }

    fn of_url(url: &str) -> anyhow::Result<Self> {
        let parsed = url::Url::parse(url).with_context(|| format!("parsing {url}"))?;
        let port = parsed.port_or_known_default().with_context(|| format!("{url} names no port"))?;
        let address = match parsed.host().with_context(|| format!("{url} names no host"))? {
            url::Host::Ipv4(address) => return Ok(Self { address: (address, port).into(), name: None }),
            url::Host::Ipv6(address) => return Ok(Self { address: (address, port).into(), name: None }),
            url::Host::Domain(name) => lookup(name)?,
        };
        let name = parsed.host_str().map(str::to_owned);
        Ok(Self { address: (address, port).into(), name })
    }

    /// The address as a URL.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "https://{name}:{} ({})", self.address.port(), self.address.ip()),
            None => f.write_str(&self.url()),
        }
    }
}

/// The first address of a host.
fn lookup(name: &str) -> anyhow::Result<IpAddr> {
    let runtime = runtime()?;
    let found =
        runtime.block_on(async { tokio::time::timeout(CALL, crate::ignition::fetch::names::lookup(name)).await });
    let found = found.with_context(|| format!("resolving {name} took longer than {} s", CALL.as_secs()))?;
    let found = found.map_err(|error| anyhow::anyhow!("{error}"))?;
    found.first().copied().with_context(|| format!("{name} has no address"))
}

/// By what a node shows who it is.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    /// What K3s wrote.
    File {
        /// A kubeconfig.
        path: PathBuf,
        /// Whom to ask instead of whom it names: its server may be a proxy of a service that does not run.
        instead: Option<String>,
    },
    /// A token, good for the API with a certificate of this authority.
    Token {
        /// Whom to ask.
        endpoint: Endpoint,
        /// The authority's certificate, as PEM.
        authority: String,
        /// The file that has the token.
        token_file: PathBuf,
    },
}

impl Access {
    /// The kubeconfig at `path`.
    pub(crate) fn file(path: impl Into<PathBuf>) -> Self {
        Self::File { path: path.into(), instead: None }
    }

    fn kubeconfig(&self) -> anyhow::Result<Kubeconfig> {
        match self {
            Self::File { path, instead } => {
                let mut kubeconfig =
                    Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
                let clusters = kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut());
                if let Some(instead) = instead {
                    clusters.for_each(|cluster| cluster.server = Some(instead.clone()));
                }
                Ok(kubeconfig)
            }
            Self::Token { endpoint, authority, token_file } => {
                let token = fs::read_to_string(token_file);
                let token = token.with_context(|| format!("reading {}", token_file.display()))?;
                anyhow::ensure!(!token.trim().is_empty(), "{} is empty", token_file.display());
                let written = kubeconfig(&endpoint.url(), endpoint.name.as_deref(), authority, token.trim());
                // Its own message could show what it read.
                serde_json::from_value(written).map_err(|_| anyhow::anyhow!("the token is no text of one line"))
            }
        }
    }
}

/// A kubeconfig, as JSON, which YAML is a superset of.
pub(crate) fn kubeconfig(server: &str, name: Option<&str>, authority: &str, token: &str) -> Value {
    let mut cluster = json!({ "server": server, "certificate-authority-data": BASE64_STANDARD.encode(authority) });
    if let Some(name) = name {
        cluster["tls-server-name"] = json!(name);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "cluster", "cluster": cluster }],
        "users": [{ "name": "node", "user": { "token": token } }],
        "contexts": [{ "name": "node", "context": { "cluster": "cluster", "user": "node" } }],
        "current-context": "node",
    })
}

/// The configuration of a client.
///
/// # Errors
/// When the kubeconfig, or a file that it names, cannot be used.
pub(crate) async fn client_config(access: &Access) -> anyhow::Result<Config> {
    let kubeconfig = access.kubeconfig()?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.connect_timeout = Some(CONNECT);
    // Who calls decides whether to try again, and says that it does.
    config.default_retry = false;
    Ok(config)
}

/// A connection.
pub(crate) struct Connection {
    runtime: Runtime,
    client: Client,
    server: String,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection to {}", self.server)
    }
}

impl Connection {
    /// Prepares a connection; the first call opens it.
    ///
    /// # Errors
    /// When the credentials cannot be used.
    pub(crate) fn open(access: &Access) -> Result<Self, ApiError> {
        let open = || -> anyhow::Result<Self> {
            let runtime = runtime()?;
            let (client, server) = runtime.block_on(async {
                let config = client_config(access).await?;
                let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
                anyhow::Ok((Client::try_from(config)?, server))
            })?;
            Ok(Self { runtime, client, server })
        };
        open().map_err(|error| ApiError::Credentials(format!("{error:#}")))
    }

    /// Makes calls, which together may take [`CALL`].
    ///
    /// # Errors
    /// What the API answers, or that it did not.
    pub(crate) fn call<T>(&self, calls: impl AsyncFnOnce(Client) -> kube::Result<T>) -> Result<T, ApiError> {
        let done = self.runtime.block_on(async { tokio::time::timeout(CALL, calls(self.client.clone())).await });
        let late = || format!("nothing came within {} s", CALL.as_secs());
        let done = done.map_err(|_| ApiError::Unreachable { server: self.server.clone(), reason: late() })?;
        done.map_err(|error| ApiError::of(&self.server, &error))
    }

    /// Applies an object of NodeZero's namespace as `manager`.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(crate) fn apply<K>(&self, manager: &str, name: &str, object: &Value) -> Result<K, ApiError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + DeserializeOwned + fmt::Debug,
    {
        self.call(async |client| {
            Api::<K>::namespaced(client, NAMESPACE).patch(name, &as_manager(manager), &Patch::Apply(object)).await
        })
    }
}

/// Applying as this manager. What it applies is its own, whoever set it before.
pub(crate) fn as_manager(manager: &str) -> PatchParams {
    PatchParams::apply(manager).force()
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")
}

/// The authority's certificate in a kubeconfig, as PEM.
///
/// # Errors
/// When there is none, or it cannot be read.
pub(crate) fn authority_of(path: &Path) -> anyhow::Result<String> {
    let read = || -> anyhow::Result<String> {
        let kubeconfig = Kubeconfig::read_from(path)?;
        let cluster = kubeconfig.clusters.into_iter().find_map(|named| named.cluster).context("it has no cluster")?;
        let pem = match (cluster.certificate_authority_data, cluster.certificate_authority) {
            (Some(data), _) => BASE64_STANDARD.decode(data).context("its authority is no base64")?,
            (None, Some(file)) => fs::read(&file).with_context(|| format!("reading {file}"))?,
            (None, None) => anyhow::bail!("it names no authority"),
        };
        String::from_utf8(pem).context("its authority is no PEM")
    };
    read().with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Node};

    use super::fake::{Fake, Reply};
    use super::*;

    #[test]
    fn servers_become_endpoints() {
        let node = |name: &str| match name {
            "control-1" => Ok(IpAddr::from([100, 64, 0, 1])),
            name => Err(anyhow::anyhow!("no node {name}")),
        };
        for (text, expected) in [
            ("control-1", Some("https://100.64.0.1:6443")),
            ("control-2", None),
            ("https://10.0.0.1:7443", Some("https://10.0.0.1:7443")),
            ("https://10.0.0.1", Some("https://10.0.0.1:443")),
            ("https://[fd00::1]:6443", Some("https://[fd00::1]:6443")),
            ("https://localhost:6443", Some("https://localhost:6443 (127.0.0.1)")),
        ] {
            let server = text.parse::<Server>().unwrap_or_else(|error| panic!("{text}: {error}"));
            let endpoint = Endpoint::of(&server, node).map(|endpoint| endpoint.to_string());
            assert_eq!(endpoint.ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn answers_and_their_absence_are_told_apart() {
        let fake = Fake::start(|request| match request.path.as_str() {
            "/api/v1/nodes/a" => Reply::json(&json!({ "metadata": { "name": "a" } })),
            "/api/v1/nodes/b" => Reply::status(404, "nodes \"b\" not found"),
            _ => Reply::status(403, "forbidden"),
        });
        let connection = Connection::open(&fake.access()).expect("opened");
        let get = |name: &str| connection.call(async |client| Api::<Node>::all(client).get_opt(name).await);
        assert_eq!(get("a").expect("there").and_then(|node| node.metadata.name).as_deref(), Some("a"));
        assert_eq!(get("b").expect("answered"), None);
        assert_eq!(get("c").expect_err("refused").code(), Some(403));
        let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
        let access = fake.access_at(&format!("http://{closed}"));
        let error = Connection::open(&access)
            .and_then(|connection| connection.call(async |client| Api::<Node>::all(client).get("a").await));
        let error = error.expect_err("nobody listens").to_string();
        assert!(error.contains("does not answer") && error.contains("refused"), "{error}");
    }

    #[test]
    fn the_certificate_must_be_of_the_authority() {
        let fake = Fake::start_tls(|_| Reply::json(&json!({ "metadata": { "name": "registration-edge-1" } })));
        let directory = tempfile::tempdir().expect("tempdir");
        let token_file = directory.path().join("token");
        fs::write(&token_file, "the-token\n").expect("written");
        let access = |authority: String| Access::Token {
            endpoint: Endpoint { address: fake.address, name: None },
            authority,
            token_file: token_file.clone(),
        };
        let get = |access: &Access| {
            Connection::open(access)?
                .call(async |client| Api::<ConfigMap>::namespaced(client, NAMESPACE).get("registration-edge-1").await)
        };
        get(&access(fake.authority())).expect("trusted");
        let requests = fake.requests();
        assert_eq!(requests[0].authorization.as_deref(), Some("Bearer the-token"));
        let stranger = Fake::start_tls(|_| Reply::status(404, "")).authority();
        let error = get(&access(stranger)).expect_err("another authority").to_string();
        assert!(error.contains("certificate") && !error.contains("the-token"), "{error}");
        assert_eq!(fake.requests().len(), 1, "the token went nowhere");
    }

    #[test]
    fn credentials_that_cannot_be_used_are_told() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("kubeconfig");
        for (content, expected) in [(None, "reading"), (Some("clusters: 7"), "kubeconfig"), (Some("{}"), "")] {
            content.into_iter().for_each(|content| fs::write(&path, content).expect("written"));
            let error = Connection::open(&Access::file(&path)).expect_err("unusable").to_string();
            assert!(error.contains(expected), "{content:?}: {error}");
        }
    }
}
