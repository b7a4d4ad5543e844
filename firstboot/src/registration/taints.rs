//! Taints of the Node against those of the profile.
//!
//! K3s gives a profile's taints to a Node once, when it registers first, and no kubelet may change them afterwards
//! ([NodeRestriction](https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction)).
//! So a control node mends its own with the operator's credentials that K3s gave it; any other node warns, with the
//! command that an operator is to run.
//!
//! Taints are also set by Kubernetes and by operators, and stay: only what a profile of this node had at an earlier
//! registration, as the annotation [`RECORD`] keeps it, is called stale. A taint stays on record as long as the Node
//! has it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node as Object, Taint};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use nodezero_profile::node::Node;
use nodezero_profile::node::join::Cluster;
use serde_json::{Value, json};

use super::MANAGER;
use crate::kubernetes::{ApiError, Connection};

/// The annotation with the taints that came from profiles, as a list in JSON.
pub(super) const RECORD: &str = "nodezero.dev/taints";

/// The setting of K3s that adds to a profile's taints.
const SETTING: &str = "node-taint";

/// What differs. Taints are texts of the form `KEY[=VALUE]:EFFECT`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Drift {
    wanted: BTreeSet<String>,
    missing: BTreeSet<String>,
    stale: BTreeSet<String>,
}

impl Drift {
    /// Between a node's profile and its object.
    pub(super) fn of(node: &Node, object: &Object) -> Self {
        let wanted: BTreeSet<String> = node.cluster.as_ref().map(of_profile).unwrap_or_default();
        let taints = object.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        let present: BTreeSet<String> = taints.map(text).collect();
        let record = object.annotations().get(RECORD).and_then(|json| serde_json::from_str(json).ok());
        let before: BTreeSet<String> = record.unwrap_or_default();
        let missing = wanted.difference(&present).cloned().collect();
        let stale = before.intersection(&present).filter(|taint| !wanted.contains(*taint)).cloned().collect();
        Self { wanted, missing, stale }
    }

    /// What is to be kept in [`RECORD`].
    pub(super) fn record(&self) -> Option<String> {
        let all: BTreeSet<&String> = self.wanted.union(&self.stale).collect();
        (!all.is_empty()).then(|| serde_json::to_string(&all).expect("texts"))
    }

    /// What an operator is told.
    pub(super) fn warning(&self, name: &str) -> Option<String> {
        let told = |taints: &BTreeSet<String>, how: &str| {
            let list: Vec<&str> = taints.iter().map(String::as_str).collect();
            (!list.is_empty()).then(|| format!("{how} {}", list.join(" ")))
        };
        let parts = [told(&self.missing, "it lacks"), told(&self.stale, "it still has")];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| {
            let (what, command) = (parts.join(", and "), self.command(name));
            format!(
                "the taints of {name} are not those of its profile: {what}; a kubelet may not change that: {command}"
            )
        })
    }

    fn command(&self, name: &str) -> String {
        // One that is set anew with another value is replaced, and kubectl refuses to remove it as well.
        let replaced = |taint: &&String| self.missing.iter().any(|other| place(other) == place(taint));
        let removed = self.stale.iter().filter(|taint| !replaced(taint)).map(|taint| format!("{taint}-"));
        let words: Vec<String> = self.missing.iter().cloned().chain(removed).collect();
        format!("kubectl taint nodes {name} --overwrite {}", words.join(" "))
    }

    /// The taints that the object should have.
    fn mended(&self, object: &Object) -> Vec<Taint> {
        let present = object.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        let replaced = |taint: &Taint| self.missing.iter().any(|missing| place(missing) == place(&text(taint)));
        let kept = present.filter(|taint| !self.stale.contains(&text(taint)) && !replaced(taint)).cloned();
        kept.chain(self.missing.iter().map(|missing| parse(missing))).collect()
    }
}

/// Gives the object the taints of the profile, with credentials that may.
pub(super) fn mend(connection: &Connection, node: &Node) -> Result<(), ApiError> {
    connection.call(async |client| {
        let nodes = Api::<Object>::all(client);
        let object = nodes.get(&node.name).await?;
        let drift = Drift::of(node, &object);
        if drift.missing.is_empty() && drift.stale.is_empty() {
            return Ok(());
        }
        // The whole list is replaced: whoever changed the object meanwhile makes this a conflict, and another try.
        let patch = json!({ "metadata": { "resourceVersion": object.resource_version() },
            "spec": { "taints": drift.mended(&object) } });
        let manager = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        nodes.patch(&node.name, &manager, &Patch::Merge(patch)).await.map(drop)
    })
}

/// Those of a profile, what it adds to K3s' own setting included.
fn of_profile(cluster: &Cluster) -> BTreeSet<String> {
    let further: Vec<&str> = match cluster.config.get(SETTING) {
        Some(Value::Array(taints)) => taints.iter().filter_map(Value::as_str).collect(),
        Some(taint) => taint.as_str().into_iter().collect(),
        None => Vec::new(),
    };
    let all = cluster.taints.iter().map(String::as_str).chain(further);
    all.map(|taint| text(&parse(taint))).collect()
}

fn parse(taint: &str) -> Taint {
    let (pair, effect) = taint.rsplit_once(':').unwrap_or((taint, ""));
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    let value = (!value.is_empty()).then(|| value.to_owned());
    Taint { key: key.to_owned(), value, effect: effect.to_owned(), time_added: None }
}

/// The one form of each: an empty value is none.
fn text(taint: &Taint) -> String {
    match taint.value.as_deref() {
        None | Some("") => format!("{}:{}", taint.key, taint.effect),
        Some(value) => format!("{}={value}:{}", taint.key, taint.effect),
    }
}

/// Of which a Node has one at most: key and effect.
fn place(taint: &str) -> (String, String) {
    let Taint { key, effect, .. } = parse(taint);
    (key, effect)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever a test needs to know: what the profile, the record and the object have; then the command's words, the
    /// taints of a mended object, and how many stay on record.
    type Case<'a> = (&'a str, [&'a [&'a str]; 3], Option<&'a str>, &'a [&'a str], usize);

    const UNREADY: &str = "node.kubernetes.io/not-ready:NoExecute";
    const OLD: &str = "a=b:NoSchedule";

    const CASES: &[Case<'_>] = &[
        ("none", [&[], &[], &[UNREADY]], None, &[UNREADY], 0),
        ("the same", [&[OLD], &[], &[OLD]], None, &[OLD], 1),
        ("an empty value", [&["a=:NoExecute"], &[], &["a:NoExecute"]], None, &["a:NoExecute"], 1),
        ("a new one", [&[OLD], &[], &[UNREADY]], Some("a=b:NoSchedule"), &[UNREADY, OLD], 1),
        ("one that is gone", [&[], &[OLD], &[OLD, UNREADY]], Some("a=b:NoSchedule-"), &[UNREADY], 1),
        ("one that an operator set", [&[], &[], &[OLD]], None, &[OLD], 0),
        ("one that an operator removed", [&[], &[OLD], &[]], None, &[], 0),
        ("another value", [&["a=c:NoSchedule"], &[OLD], &[OLD]], Some("a=c:NoSchedule"), &["a=c:NoSchedule"], 2),
        (
            "another effect",
            [&["a=b:NoExecute"], &[OLD], &[OLD]],
            Some("a=b:NoExecute a=b:NoSchedule-"),
            &["a=b:NoExecute"],
            2,
        ),
    ];

    fn node(cluster: &Value) -> Node {
        let mut fields = json!({ "server": "c", "tokenFile": "/t" });
        fields.as_object_mut().expect("an object").extend(cluster.as_object().expect("an object").clone());
        let node = json!({ "version": 1, "name": "n-1", "role": "worker", "mesh": {}, "cluster": fields });
        Node::parse(node.to_string().as_bytes()).unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[test]
    fn what_differs_has_its_command_and_is_mended() {
        for (case, [profile, record, present], command, mended, kept) in CASES {
            let taints: Vec<Value> = present.iter().map(|taint| json!(parse(taint))).collect();
            let record = serde_json::to_string(record).expect("JSON");
            let object = json!({ "metadata": { "name": "n-1", "annotations": { RECORD: record } },
                "spec": { "taints": taints } });
            let object: Object = serde_json::from_value(object).expect("a node");
            let drift = Drift::of(&node(&json!({ "taints": profile })), &object);
            let warning = drift.warning("n-1");
            let found = warning.as_deref().and_then(|text| text.split_once("kubectl taint nodes n-1 --overwrite "));
            assert_eq!(found.map(|(_, words)| words), *command, "{case}: {warning:?}");
            let found: Vec<String> = drift.mended(&object).iter().map(text).collect();
            assert_eq!(found, *mended, "{case}");
            let record: Option<Vec<String>> = drift.record().map(|json| serde_json::from_str(&json).expect("JSON"));
            assert_eq!(record.map_or(0, |record| record.len()), *kept, "{case}");
        }
    }

    #[test]
    fn what_k3s_is_told_besides_counts_too() {
        for setting in [json!("x=y:NoExecute"), json!(["x=y:NoExecute", "a:NoSchedule"])] {
            let node = node(&json!({ "taints": ["a:NoSchedule"], "config": { SETTING: setting } }));
            assert_eq!(Drift::of(&node, &Object::default()).missing.len(), 2);
        }
    }
}
