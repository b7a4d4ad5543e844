//! Labels and annotations of the node's own Node object.
//!
//! Labels of `kubernetes.io` and `k8s.io` are left out: a kubelet may not change most of them (NodeRestriction), so K3s
//! sets them, once, at the node's first registration.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node as Object;
use kube::Api;
use kube::api::Patch;
use nodezero_profile::node::Node;
use serde_json::{Value, json};

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
        let ours = profile.filter(|(key, _)| !is_kubernetes_own(key));
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
            let entries = object.metadata.managed_fields.iter().flatten();
            let ours = entries.filter(|entry| entry.manager.as_deref() == Some(MANAGER));
            let fields =
                ours.filter_map(|entry| entry.fields_v1.as_ref()?.0.get("f:metadata")?.get(field)?.as_object());
            fields.flat_map(|map| map.keys().filter_map(|key| key.strip_prefix("f:").map(str::to_owned))).collect()
        };
        let keys = |ours: &BTreeMap<String, String>| ours.keys().cloned().collect::<BTreeSet<String>>();
        said(&object.metadata.labels, &self.labels)
            && said(&object.metadata.annotations, &self.annotations)
            && owned("f:labels") == keys(&self.labels)
            && owned("f:annotations") == keys(&self.annotations)
    }

    fn patch(&self, name: &str) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": name, "labels": self.labels, "annotations": self.annotations },
        })
    }
}

/// Whether only Kubernetes gives such labels a meaning.
fn is_kubernetes_own(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    ["kubernetes.io", "k8s.io"]
        .iter()
        .any(|own| domain.strip_suffix(own).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

/// Makes the object say what is desired. Whether that was a change.
pub(super) fn apply(connection: &Connection, name: &str, desired: &Desired) -> Result<bool, ApiError> {
    connection.call(async |client| {
        let nodes = Api::<Object>::all(client);
        if desired.is_said_by(&nodes.get(name).await?) {
            return Ok(false);
        }
        nodes.patch(name, &as_manager(MANAGER), &Patch::Apply(desired.patch(name))).await?;
        Ok(true)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_own_labels_are_told_apart() {
        for (key, own) in [
            ("kubernetes.io/hostname", true),
            ("node-role.kubernetes.io/worker", true),
            ("x.k8s.io/a", true),
            ("notkubernetes.io/a", false),
            ("node.longhorn.io/create-default-disk", false),
            ("site", false),
        ] {
            assert_eq!(is_kubernetes_own(key), own, "{key}");
        }
    }
}
