//! What the registry says, from what the cluster knows. Pure, so that several control nodes say the same.
//!
//! A Node is written by Kubernetes and by a node of the cluster. An edge's object is written by a machine with a public
//! address: its name is the object's, its role is edge, and every text of it is bounded, so that the worst it can do is
//! to say untrue things of itself; whether it is alive is told by the API's clock and not by its own.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::ResourceExt;
use nodezero_profile::Role;
use serde::{Deserialize, Serialize};

use crate::k3s::config::ROLE_LABEL;
use crate::registration::publish::{self, State, Told};
use crate::registration::{DiskFact, edge, node, seen};

/// The longest text of an entry, in characters.
const TEXT_LIMIT: usize = 1000;
/// The most disks of an entry. A machine has 24 or so.
const DISK_LIMIT: usize = 64;

/// What the registry says of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    /// Its name.
    pub(crate) name: String,
    /// Its role; unknown where it has not registered.
    pub(crate) role: Option<Role>,
    /// The image's version.
    pub(crate) version: Option<String>,
    /// Its address in the mesh.
    pub(crate) mesh_address: Option<String>,
    /// Its data disks.
    pub(crate) disks: Vec<DiskFact>,
    /// Digest of its profile.
    pub(crate) profile: Option<String>,
    /// How it is.
    pub(crate) health: Health,
    /// The step that it does not come past; none where all are done.
    pub(crate) step: Option<String>,
    /// What is the matter, and what to do.
    pub(crate) message: Option<String>,
    /// When it registered first (RFC 3339).
    pub(crate) registered: Option<String>,
    /// When it was last heard of.
    pub(crate) seen: Option<String>,
}

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Health {
    /// As it shall be.
    Ready,
    /// Its kubelet says that it is not.
    NotReady,
    /// A step of its service fails.
    Stuck,
    /// Nobody has heard of it for a while, or ever.
    Unknown,
}

/// The entries, by name, as they are `now`.
pub(crate) fn derive<'a>(
    nodes: impl IntoIterator<Item = &'a Node>,
    edges: impl IntoIterator<Item = &'a ConfigMap>,
    now: Timestamp,
) -> BTreeMap<String, Entry> {
    // A Node of the same name is the better witness.
    let edges = edges.into_iter().filter_map(|edge| of_edge(edge, now));
    edges.chain(nodes.into_iter().map(of_node)).map(|entry| (entry.name.clone(), entry)).collect()
}

fn of_node(object: &Node) -> Entry {
    let annotation = |key: &str| object.annotations().get(key).map(|text| bounded(text));
    let told = object.annotations().get(publish::ANNOTATION).and_then(|json| serde_json::from_str::<Told>(json).ok());
    let conditions = object.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
    let status = ready.map(|ready| ready.status.as_str());
    let heartbeat = ready.and_then(|ready| ready.last_heartbeat_time.as_ref()).map(|time| time.0.to_string());
    let health = match (status, told.as_ref().map(|told| told.state)) {
        (None | Some("Unknown"), _) => Health::Unknown,
        (Some(_), Some(State::Waiting | State::Failed)) => Health::Stuck,
        (Some("True"), Some(State::Ready) | None) => Health::Ready,
        (Some(_), Some(State::Ready) | None) => Health::NotReady,
    };
    let reason = ready.filter(|_| health != Health::Ready).and_then(|ready| ready.message.as_deref()).map(bounded);
    let disks = object.annotations().get(node::DISKS).and_then(|json| serde_json::from_str(json).ok());
    let registered = object.annotations().contains_key(node::MESH_ADDRESS);
    Entry {
        name: object.name_any(),
        role: object.labels().get(ROLE_LABEL).and_then(|role| role.parse().ok()),
        version: annotation(node::VERSION),
        mesh_address: annotation(node::MESH_ADDRESS),
        disks: disks.map(some).unwrap_or_default(),
        profile: annotation(node::PROFILE),
        health,
        step: told.as_ref().and_then(step),
        message: told.as_ref().and_then(message).or(reason),
        registered: object.creation_timestamp().filter(|_| registered).map(|time| time.0.to_string()),
        seen: [heartbeat, told.map(|told| bounded(&told.at))].into_iter().flatten().max(),
    }
}

/// `None` for an object that is no registration.
fn of_edge(object: &ConfigMap, now: Timestamp) -> Option<Entry> {
    let name = object.name_any();
    let name = name.strip_prefix(edge::PREFIX)?.to_owned();
    let data = |key: &str| object.data.as_ref().and_then(|data| data.get(key));
    let written = data(edge::KEY).and_then(|json| serde_json::from_str::<edge::Written>(json).ok());
    let told = data(publish::KEY).and_then(|json| serde_json::from_str::<Told>(json).ok());
    let heard = seen::heard(object);
    let is_silent = heard.is_none_or(|heard| now.duration_since(heard) > seen::SILENCE);
    let health = match (&written, told.as_ref().map(|told| told.state)) {
        _ if is_silent => Health::Unknown,
        (_, Some(State::Waiting | State::Failed)) => Health::Stuck,
        (Some(_), Some(State::Ready)) => Health::Ready,
        (None, _) | (_, None) => Health::Unknown,
    };
    let last_words = told.as_ref().and_then(message);
    let message = match (&written, heard.filter(|_| is_silent)) {
        (None, _) if told.is_none() => Some("it has not registered yet".to_owned()),
        (_, Some(heard)) => {
            let before = last_words.map(|words| format!("; its last words: {words}")).unwrap_or_default();
            Some(bounded(&format!("nothing was heard of it since {heard}{before}")))
        }
        (_, None) => last_words,
    };
    let is_time = |text: &String| text.parse::<Timestamp>().is_ok();
    let registered = written.as_ref().map(|written| written.registered.clone()).filter(is_time);
    let facts = written.map(|written| written.facts);
    Some(Entry {
        name,
        role: Some(Role::Edge),
        version: facts.as_ref().and_then(|facts| facts.version.as_deref()).map(bounded),
        mesh_address: facts.as_ref().map(|facts| facts.mesh_address.to_string()),
        disks: Vec::new(),
        profile: facts.and_then(|facts| facts.profile).as_deref().map(bounded),
        health,
        step: told.as_ref().and_then(step),
        message,
        seen: heard.map(|heard| heard.to_string()),
        registered,
    })
}

/// The step that failed. A node whose steps are all done tells the last of them.
fn step(told: &Told) -> Option<String> {
    (told.state != State::Ready).then(|| bounded(&told.step))
}

/// What a node told of itself, with what to do.
fn message(told: &Told) -> Option<String> {
    match (told.message.is_empty(), told.remedy.is_empty()) {
        (true, _) => None,
        (false, true) => Some(bounded(&told.message)),
        (false, false) => Some(bounded(&format!("{}; what to do: {}", told.message, told.remedy))),
    }
}

/// A text of bounded length, without what would move a terminal's cursor.
fn bounded(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(TEXT_LIMIT).map(plain).collect()
}

fn some(disks: Vec<DiskFact>) -> Vec<DiskFact> {
    let plain = |disk: DiskFact| DiskFact { serial: bounded(&disk.serial), mount: bounded(&disk.mount), ..disk };
    disks.into_iter().take(DISK_LIMIT).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(state: &str) -> String {
        json!({ "step": "cluster", "state": state, "message": if state == "ready" { "" } else { "no disk" },
            "remedy": if state == "ready" { "" } else { "look" }, "at": "2026-11-21T12:00:00Z" })
        .to_string()
    }

    fn node(ready: Option<&str>, status: Option<&str>) -> Node {
        let disks = json!([{ "serial": "Z1", "size": 18, "mount": "/var/mnt/longhorn/z1" }]).to_string();
        let mut annotations = json!({ "nodezero.dev/version": "0.1.0", "nodezero.dev/mesh-address": "100.64.0.7",
            "nodezero.dev/disks": disks, "nodezero.dev/profile": "ab" });
        if let Some(status) = status {
            annotations["nodezero.dev/status"] = json!(told(status));
        }
        let conditions: Vec<Value> = ready
            .map(|status| {
                json!({ "type": "Ready", "status": status, "message": "kubelet says",
                "lastHeartbeatTime": "2026-11-21T12:34:56Z" })
            })
            .into_iter()
            .collect();
        serde_json::from_value(json!({
            "metadata": { "name": "n-1", "labels": { "nodezero.dev/role": "worker" }, "annotations": annotations,
                "creationTimestamp": "2026-11-01T00:00:00Z" },
            "status": { "conditions": conditions },
        }))
        .expect("a node")
    }

    /// The time of the tests, and of what nodes say in them.
    const NOW: &str = "2026-11-21T12:00:00Z";

    fn entries(nodes: &[Node], edges: &[ConfigMap]) -> BTreeMap<String, Entry> {
        derive(nodes, edges, NOW.parse().expect("a time"))
    }

    fn heard_at(mut edge: ConfigMap, time: &str) -> ConfigMap {
        let entry = json!({ "manager": "nodezero-seen", "operation": "Apply", "time": time });
        edge.metadata.managed_fields = Some(vec![serde_json::from_value(entry).expect("an entry")]);
        edge
    }

    fn edge(registration: Option<Value>, status: Option<&str>) -> ConfigMap {
        let mut data = serde_json::Map::new();
        data.extend(registration.map(|json| ("registration".to_owned(), json!(json.to_string()))));
        data.extend(status.map(|status| ("status".to_owned(), json!(told(status)))));
        let object = json!({ "metadata": { "name": "registration-edge-1" }, "data": data });
        heard_at(serde_json::from_value(object).expect("an object"), NOW)
    }

    fn written() -> Value {
        json!({ "name": "another", "role": "control", "version": "0.1.0\u{1b}[2J", "meshAddress": "100.64.0.9",
            "profile": "x".repeat(5000), "registered": "2026-11-02T00:00:00Z" })
    }

    #[test]
    fn the_health_of_a_node_follows_from_kubelet_and_service() {
        for (ready, status, expected, message) in [
            (Some("True"), Some("ready"), Health::Ready, None),
            (Some("True"), None, Health::Ready, None),
            (Some("True"), Some("waiting"), Health::Stuck, Some("no disk; what to do: look")),
            (Some("False"), Some("failed"), Health::Stuck, Some("no disk; what to do: look")),
            (Some("False"), Some("ready"), Health::NotReady, Some("kubelet says")),
            (Some("False"), None, Health::NotReady, Some("kubelet says")),
            (Some("Unknown"), Some("ready"), Health::Unknown, Some("kubelet says")),
            (Some("Unknown"), Some("failed"), Health::Unknown, Some("no disk; what to do: look")),
            (None, None, Health::Unknown, None),
        ] {
            let entry = entries(&[node(ready, status)], &[]).remove("n-1").expect("an entry");
            assert_eq!((entry.health, entry.message.as_deref()), (expected, message), "{ready:?} {status:?}");
            let step = matches!(status, Some("waiting" | "failed")).then_some("cluster");
            assert_eq!(entry.step.as_deref(), step, "{ready:?} {status:?}");
        }
    }

    #[test]
    fn an_entry_has_its_stable_shape() {
        let entries = entries(&[node(Some("True"), Some("ready"))], &[]);
        assert_eq!(
            serde_json::to_string(&entries["n-1"]).expect("JSON"),
            r#"{"name":"n-1","role":"worker","version":"0.1.0","meshAddress":"100.64.0.7","disks":[{"serial":"Z1","size":18,"mount":"/var/mnt/longhorn/z1"}],"profile":"ab","health":"ready","step":null,"message":null,"registered":"2026-11-01T00:00:00Z","seen":"2026-11-21T12:34:56Z"}"#
        );
    }

    #[test]
    fn an_edge_says_nothing_but_of_itself() {
        let derived = entries(&[], &[edge(Some(written()), Some("ready"))]);
        assert_eq!(derived.keys().collect::<Vec<_>>(), ["edge-1"]);
        let entry = &derived["edge-1"];
        assert_eq!((entry.role, entry.health), (Some(Role::Edge), Health::Ready));
        assert_eq!(entry.version.as_deref(), Some("0.1.0 [2J"));
        assert_eq!(entry.profile.as_ref().map(String::len), Some(TEXT_LIMIT));
        assert_eq!(entry.registered.as_deref(), Some("2026-11-02T00:00:00Z"));
        let node = node(Some("True"), None);
        let mut imposter = edge(Some(written()), None);
        imposter.metadata.name = Some("registration-n-1".into());
        assert_eq!(entries(&[node], &[imposter])["n-1"].role, Some(Role::Worker), "a Node is the better witness");
    }

    #[test]
    fn the_health_of_an_edge_follows_from_what_it_wrote() {
        for (case, registration, status, expected, message) in [
            ("made by the operator", None, None, Health::Unknown, Some("it has not registered yet")),
            ("registered", Some(written()), Some("ready"), Health::Ready, None),
            ("registers", Some(written()), None, Health::Unknown, None),
            ("stuck", Some(written()), Some("failed"), Health::Stuck, Some("no disk; what to do: look")),
            ("damaged", Some(json!({ "name": 7 })), None, Health::Unknown, Some("it has not registered yet")),
        ] {
            let entry = entries(&[], &[edge(registration, status)]).remove("edge-1").expect(case);
            assert_eq!((entry.health, entry.message.as_deref()), (expected, message), "{case}");
        }
    }

    #[test]
    fn an_edge_that_says_nothing_is_not_called_well() {
        for (case, time, status, expected, message) in [
            ("just now", NOW, "ready", Health::Ready, None),
            ("a while ago", "2026-11-21T11:45:00Z", "ready", Health::Ready, None),
            ("a clock ahead of the registry's", "2026-11-21T12:00:30Z", "ready", Health::Ready, None),
            (
                "too long ago",
                "2026-11-21T11:44:59Z",
                "ready",
                Health::Unknown,
                Some("nothing was heard of it since 2026-11-21T11:44:59Z"),
            ),
            ("stuck", "2026-11-21T11:50:00Z", "waiting", Health::Stuck, Some("no disk; what to do: look")),
            (
                "stuck, and then gone",
                "2026-11-20T12:00:00Z",
                "failed",
                Health::Unknown,
                Some("nothing was heard of it since 2026-11-20T12:00:00Z; its last words: no disk; what to do: look"),
            ),
        ] {
            let object = heard_at(edge(Some(written()), Some(status)), time);
            let entry = entries(&[], &[object]).remove("edge-1").expect(case);
            assert_eq!((entry.health, entry.message.as_deref()), (expected, message), "{case}");
            assert_eq!(entry.seen.as_deref(), Some(time), "{case}: by the API's clock");
        }
        let mut nobody = edge(Some(written()), Some("ready"));
        nobody.metadata.managed_fields = None;
        let entry = entries(&[], &[nobody]).remove("edge-1").expect("an entry");
        assert_eq!((entry.health, entry.seen), (Health::Unknown, None), "nobody knows when it wrote");
    }

    #[test]
    fn a_time_of_an_edge_that_is_none_is_left_out() {
        let mut written = written();
        written["registered"] = json!("long ago");
        assert_eq!(entries(&[], &[edge(Some(written), None)])["edge-1"].registered, None);
    }

    #[test]
    fn what_is_no_registration_is_left_out() {
        let mut other = edge(None, None);
        other.metadata.name = Some("kube-root-ca.crt".into());
        assert!(entries(&[], &[other]).is_empty());
        assert_eq!(entries(&[Node::default()], &[])[""].health, Health::Unknown);
    }
}
