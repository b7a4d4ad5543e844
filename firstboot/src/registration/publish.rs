//! Telling the control plane at which step a node is, for whoever looks at the registry instead of a console.
//!
//! It is told whenever a step fails, and once all are done: in the annotation [`ANNOTATION`] of the Node, or in the
//! edge's ConfigMap. That is a favour and no duty: it takes a bounded time, and what does not arrive is only in this
//! node's own log. A node that is stuck before it has credentials cannot tell: before the step `cluster` has once
//! succeeded, before an edge has found the API, and, at a later start, before the mesh is there.
//!
//! What is told is what the console shows, and no console shows a secret.

use std::cell::RefCell;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Node as KubernetesNode};
use kube::Api;
use kube::api::Patch;
use nodezero_profile::Role;
use nodezero_profile::node::Node;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::k3s::{CONFIG, KUBELET};
use crate::kubernetes::{Access, ApiError, Connection, NAMESPACE, as_manager};
use crate::summary::Failure;

/// The Node's annotation.
pub(crate) const ANNOTATION: &str = "nodezero.dev/status";
/// The key of an edge's ConfigMap.
pub(crate) const KEY: &str = "status";
/// Apart from the step's own manager, so that neither takes away what the other said.
pub(super) const MANAGER: &str = "nodezero-status";
/// The longest text that is told, in characters.
const TEXT_LIMIT: usize = 1000;
/// How often it is tried to tell that all is well.
const READY_TRIES: u32 = 3;
const READY_PAUSE: Duration = Duration::from_secs(2);

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// All steps are done.
    Ready,
    /// A step failed, and is tried again.
    Waiting,
    /// A step failed, and only a change helps.
    Failed,
}

/// What is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// The step.
    pub(crate) step: String,
    /// How it is.
    pub(crate) state: State,
    /// What is the matter, and why. Where all steps are done: what is not as it should be nevertheless.
    pub(crate) message: String,
    /// What to do.
    pub(crate) remedy: String,
    /// When this was told (RFC 3339).
    pub(crate) at: String,
}

impl Told {
    /// A step that failed.
    pub(crate) fn failed(step: &str, failure: &Failure) -> Self {
        let state = if failure.is_retried() { State::Waiting } else { State::Failed };
        let message = bounded(&format!("{}: {}", failure.what(), failure.why()));
        Self { step: step.to_owned(), state, message, remedy: bounded(failure.remedy()), at: now() }
    }

    /// All steps are done; `warnings` are what is not as it should be nevertheless.
    fn ready(step: &str, warnings: &[String]) -> Self {
        let message = bounded(&warnings.join("; "));
        Self { step: step.to_owned(), state: State::Ready, message, remedy: String::new(), at: now() }
    }
}

fn bounded(text: &str) -> String {
    text.chars().take(TEXT_LIMIT).collect()
}

/// The time, as this node has it (RFC 3339).
pub(super) fn now() -> String {
    jiff::Timestamp::now().strftime("%FT%TZ").to_string()
}

/// In what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    /// The node's own.
    Node(String),
    /// An edge's.
    ConfigMap(String),
}

/// Where a node's status is published, once that is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target(Rc<RefCell<Option<(Access, Object)>>>);

impl Target {
    /// A node of a cluster is known by its name from the start; an edge finds its place when it registers.
    pub(crate) fn of(node: &Node) -> Self {
        let target = Self::default();
        if node.role != Role::Edge && node.cluster.is_some() {
            target.set(Access::file(KUBELET), Object::Node(node.name.to_string()));
        }
        target
    }

    /// From now on it is published there.
    pub(crate) fn set(&self, access: Access, object: Object) {
        *self.0.borrow_mut() = Some((access, object));
    }

    /// Tells it. Gives what came in between.
    pub(crate) fn publish(&self, told: &Told) -> Option<String> {
        let (access, object) = self.0.borrow().clone()?;
        match access {
            // Not yet written: there is nobody to tell.
            Access::File { path, .. } if !path.exists() => None,
            access => tell(&directly(access), &object, told).err().map(|error| error.to_string()),
        }
    }

    /// Tells that all steps are done, `step` the last, with `warnings`. Gives what came in between.
    pub(crate) fn publish_ready(&self, step: &str, warnings: &[String]) -> Option<String> {
        let told = Told::ready(step, warnings);
        let mut error = self.publish(&told);
        for _ in 1..READY_TRIES {
            error.as_ref()?;
            std::thread::sleep(READY_PAUSE);
            error = self.publish(&told);
        }
        error
    }
}

fn tell(access: &Access, object: &Object, told: &Told) -> Result<(), ApiError> {
    let text = serde_json::to_string(told).expect("texts");
    Connection::open(access)?.call(async |client| {
        match object {
            Object::Node(name) => {
                let patch = json!({ "apiVersion": "v1", "kind": "Node",
                    "metadata": { "name": name, "annotations": { ANNOTATION: text } } });
                let nodes = Api::<KubernetesNode>::all(client);
                // A patch would make the object where there is none.
                if nodes.get_opt(name).await?.is_some() {
                    nodes.patch(name, &as_manager(MANAGER), &Patch::Apply(patch)).await?;
                }
            }
            Object::ConfigMap(name) => {
                let patch = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name },
                    "data": { KEY: text } });
                Api::<ConfigMap>::namespaced(client, NAMESPACE)
                    .patch(name, &as_manager(MANAGER), &Patch::Apply(patch))
                    .await?;
            }
        }
        Ok(())
    })
}

/// A kubelet's server is a proxy in K3s: while K3s does not run, the server that it would reach is asked itself.
fn directly(access: Access) -> Access {
    match access {
        Access::File { path, instead: None } => Access::File { instead: joined(Path::new(CONFIG)), path },
        access => access,
    }
}

/// The server in K3s' configuration, where it is an address: names are K3s' to resolve.
fn joined(config: &Path) -> Option<String> {
    let text = fs::read_to_string(config).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("server: "))?;
    let url: String = serde_json::from_str(value).ok()?;
    url.strip_prefix("https://")?.parse::<SocketAddr>().is_ok().then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::fake::{Fake, Reply};

    #[test]
    fn a_failure_is_told_and_then_that_all_is_well() {
        let fake = Fake::start(|_| Reply::json(&json!({ "metadata": { "name": "n-1" } })));
        let target = Target::default();
        let failure = Failure::new("no disk", "why ".repeat(1000), "look");
        assert_eq!(target.publish(&Told::failed("cluster", &failure)), None, "nobody to tell yet");
        for (object, path) in [
            (Object::Node("n-1".into()), "/api/v1/nodes/n-1"),
            (
                Object::ConfigMap("registration-n-1".into()),
                "/api/v1/namespaces/nodezero-system/configmaps/registration-n-1",
            ),
        ] {
            target.set(fake.access(), object);
            assert_eq!(target.publish(&Told::failed("cluster", &failure)), None);
            assert_eq!(target.publish_ready("confirm", &["the clock".into(), "taints".into()]), None);
            let applied: Vec<_> = fake.applied().into_iter().filter(|(at, ..)| at == path).collect();
            let told = |body: &serde_json::Value| -> Told {
                let text = body["metadata"]["annotations"][ANNOTATION].as_str().or(body["data"][KEY].as_str());
                serde_json::from_str(text.expect("told")).expect("JSON")
            };
            let (first, last) = (told(&applied[0].2), told(&applied[1].2));
            assert_eq!((first.step.as_str(), first.state, first.remedy.as_str()), ("cluster", State::Failed, "look"));
            assert!(first.message.starts_with("no disk: why") && first.message.len() <= TEXT_LIMIT);
            let said = (last.step.as_str(), last.state, last.message.as_str());
            assert_eq!(said, ("confirm", State::Ready, "the clock; taints"));
            assert_eq!(applied[0].1, MANAGER);
        }
    }

    #[test]
    fn nothing_is_made_where_there_is_no_node_and_no_credentials() {
        let fake = Fake::start(|_| Reply::status(404, "not found"));
        let target = Target::default();
        let told = Told::failed("cluster", &Failure::new("a", "b", "c").retrying());
        assert_eq!(told.state, State::Waiting);
        target.set(fake.access(), Object::Node("n-1".into()));
        assert_eq!(target.publish(&told), None);
        assert!(fake.applied().is_empty());
        target.set(Access::file("/does/not/exist"), Object::Node("n-1".into()));
        assert_eq!(target.publish(&told), None, "K3s has not run yet");
        target.set(fake.access(), Object::ConfigMap("registration-n-1".into()));
        assert!(target.publish(&told).is_some_and(|error| error.contains("404")));
    }

    #[test]
    fn the_server_that_was_joined_is_read_back() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("config.yaml");
        for (text, expected) in [
            ("node-name: \"a\"\nserver: \"https://100.64.0.1:6443\"\n", Some("https://100.64.0.1:6443")),
            ("server: \"https://[fd00::1]:6443\"\n", Some("https://[fd00::1]:6443")),
            ("server: \"https://control.example:6443\"\n", None),
            ("node-name: \"a\"\n", None),
        ] {
            fs::write(&path, text).expect("written");
            assert_eq!(joined(&path).as_deref(), expected, "{text}");
        }
        assert_eq!(joined(Path::new("/does/not/exist")), None);
    }
}
