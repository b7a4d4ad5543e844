//! Labels and annotations of the node's own Node object.
//!
//! K3s gives a profile's labels to a Node once, when it registers first; from then on they are this module's. A label
//! that a changed profile no longer has goes away, although the kubelet once said it too; where an operator says it as
//! well, it stays. Left out are labels that a kubelet may not change: with one of those it would not even start.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node as Object;
use kube::Api;
use kube::api::{Patch, PatchParams};
use nodezero_profile::node::Node;
use nodezero_profile::node::join::is_for_kubelet;
use serde_json::{Value, json};

use super::taints::{self, Drift};
use super::{Facts, MANAGER, longhorn};
use crate::data_disks::Prepared;
use crate::k3s::config::ROLE_LABEL;
use crate::kubernetes::{ApiError, Connection, as_manager};

/// The image's version.
pub(crate) const VERSION: &str = "nodezero.dev/version";
/// The address in the mesh.
pub(crate) const MESH_ADDRESS: &str = "nodezero.dev/mesh-address";
/// The data disks, as JSON.
pub(crate) const DISKS: &str = "nodezero.dev/disks";
/// The profile's digest.
pub(crate) const PROFILE: &str = "nodezero.dev/profile";

/// A label that every kubelet gives its Node, and nobody else does.
const HOST_NAME: &str = "kubernetes.io/hostname";

/// What came of it.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) changed: bool,
    /// How the Node's taints differ from the profile's.
    pub(super) drift: Drift,
}

/// What this manager says, all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Desired {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl Desired {
    /// What follows from a node's profile and facts.
    pub(super) fn of(node: &Node, facts: &Facts, disks: &[Prepared]) -> Self {
        let profile = node.cluster.iter().flat_map(|cluster| &cluster.labels);
        let ours = profile.filter(|(key, _)| is_for_kubelet(key));
        let mut labels: BTreeMap<String, String> = ours.map(|(key, value)| (key.clone(), value.clone())).collect();
        labels.insert(ROLE_LABEL.to_owned(), facts.role.to_string());
        let disks_json = serde_json::to_string(&facts.disks).expect("texts and numbers");
        let mut annotations =
            BTreeMap::from([(MESH_ADDRESS.to_owned(), facts.mesh_address.to_string()), (DISKS.to_owned(), disks_json)]);
        annotations.extend(facts.version.clone().map(|version| (VERSION.to_owned(), version)));
        annotations.extend(facts.profile.clone().map(|profile| (PROFILE.to_owned(), profile)));
        if !disks.is_empty() {
            labels.insert(longhorn::LABEL.to_owned(), longhorn::CONFIG.to_owned());
            annotations.insert(longhorn::ANNOTATION.to_owned(), longhorn::disks_config(disks));
        }
        Self { labels, annotations }
    }

    /// Whether the object says all of this, and nothing that this manager said before and no longer says.
    fn is_said_by(&self, object: &Object) -> bool {
        let said = |all: &Option<BTreeMap<String, String>>, ours: &BTreeMap<String, String>| {
            ours.iter().all(|(key, value)| all.as_ref().and_then(|all| all.get(key)) == Some(value))
        };
        let owned = |field: &str| -> BTreeSet<String> {
            owners(object, field).filter(|(manager, _)| *manager == MANAGER).flat_map(|(_, keys)| keys).collect()
        };
        let keys = |ours: &BTreeMap<String, String>| ours.keys().cloned().collect::<BTreeSet<String>>();
        said(&object.metadata.labels, &self.labels)
            && said(&object.metadata.annotations, &self.annotations)
            && owned("f:labels") == keys(&self.labels)
            && owned("f:annotations") == keys(&self.annotations)
    }

    /// Labels that this manager said and no longer says, and that would stay because the kubelet said them, too, when
    /// it made the object. What a third one says stays.
    fn left_behind(&self, object: &Object) -> BTreeSet<String> {
        let owners: Vec<(&str, BTreeSet<String>)> = owners(object, "f:labels").collect();
        let kubelets: BTreeSet<&str> =
            owners.iter().filter(|(_, keys)| keys.contains(HOST_NAME)).map(|(manager, _)| *manager).collect();
        let said_by = |meant: &dyn Fn(&str) -> bool| -> BTreeSet<String> {
            owners.iter().filter(|(manager, _)| meant(manager)).flat_map(|(_, keys)| keys.clone()).collect()
        };
        let ours = said_by(&|manager| manager == MANAGER);
        let others = said_by(&|manager| manager != MANAGER && !kubelets.contains(manager));
        let mut left = said_by(&|manager| kubelets.contains(manager));
        left.retain(|key| ours.contains(key) && !others.contains(key) && !self.labels.contains_key(key));
        left
    }

    fn patch(&self, name: &str) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": name, "labels": self.labels, "annotations": self.annotations },
        })
    }
}

/// Who says which keys of a field of the metadata.
fn owners<'a>(object: &'a Object, field: &'a str) -> impl Iterator<Item = (&'a str, BTreeSet<String>)> {
    object.metadata.managed_fields.iter().flatten().filter_map(move |entry| {
        let fields = entry.fields_v1.as_ref()?.0.get("f:metadata")?.get(field)?.as_object()?;
        let keys = fields.keys().filter_map(|key| key.strip_prefix("f:").map(str::to_owned));
        Some((entry.manager.as_deref()?, keys.collect()))
    })
}

/// Makes the object say what is desired, as far as a kubelet may.
pub(super) fn apply(connection: &Connection, node: &Node, desired: &Desired) -> Result<Applied, ApiError> {
    let name = &*node.name;
    connection.call(async |client| {
        let nodes = Api::<Object>::all(client);
        let object = nodes.get(name).await?;
        let drift = Drift::of(node, &object);
        let mut desired = desired.clone();
        desired.annotations.extend(drift.record().map(|record| (taints::RECORD.to_owned(), record)));
        let left = desired.left_behind(&object);
        if left.is_empty() && desired.is_said_by(&object) {
            return Ok(Applied { changed: false, drift });
        }
        if !left.is_empty() {
            let labels: BTreeMap<String, Value> = left.into_iter().map(|key| (key, Value::Null)).collect();
            let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
            let manager = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            nodes.patch(name, &manager, &patch).await?;
        }
        nodes.patch(name, &as_manager(MANAGER), &Patch::Apply(desired.patch(name))).await?;
        Ok(Applied { changed: true, drift })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(manager: &str, labels: &[&str]) -> Value {
        let labels: serde_json::Map<String, Value> = labels.iter().map(|key| (format!("f:{key}"), json!({}))).collect();
        json!({ "manager": manager, "fieldsV1": { "f:metadata": { "f:labels": labels } } })
    }

    #[test]
    fn a_label_that_was_dropped_goes_unless_somebody_else_says_it() {
        let kubelet = |labels: &[&str]| entry("k3s", &[&[HOST_NAME], labels].concat());
        for (case, owners, expected) in [
            ("ours alone", vec![kubelet(&[]), entry(MANAGER, &["site"])], None),
            ("the kubelet's, too", vec![kubelet(&["site"]), entry(MANAGER, &["site"])], Some("site")),
            ("the kubelet's alone", vec![kubelet(&["site"]), entry(MANAGER, &["kept"])], None),
            ("still said", vec![kubelet(&["kept"]), entry(MANAGER, &["kept"])], None),
            (
                "an operator's, too",
                vec![kubelet(&["site"]), entry(MANAGER, &["site"]), entry("kubectl", &["site"])],
                None,
            ),
            ("nobody known to be a kubelet", vec![entry("k3s", &["site"]), entry(MANAGER, &["site"])], None),
        ] {
            let object = json!({ "metadata": { "name": "n-1", "managedFields": owners } });
            let object: Object = serde_json::from_value(object).expect(case);
            let labels = BTreeMap::from([("kept".to_owned(), "x".to_owned())]);
            let desired = Desired { labels, annotations: BTreeMap::new() };
            let left: Vec<String> = desired.left_behind(&object).into_iter().collect();
            assert_eq!(left, Vec::from_iter(expected), "{case}");
        }
    }
}
