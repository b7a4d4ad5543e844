//! `nodezero node remove`: takes a node's rights first, then its objects. Its profile and secrets stay with the operator.

use std::fmt::Debug;

use ::kube::Api;
use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use nodezero_profile::node::NodeName;
use serde::de::DeserializeOwned;

use super::objects::Edge;
use super::{Deed, deed, is_ready, readmit};
use crate::kube::{Cluster, NAMESPACE};

/// Removes what the cluster has of the node. Doing it twice is no error.
///
/// # Errors
/// When the Node is Ready and `force` is not given, or the API refuses.
pub async fn remove(cluster: &Cluster, name: &NodeName, force: bool) -> Result<Deed> {
    let nodes = cluster.all::<Node>();
    let node = cluster.find(&nodes, name).await?;
    if node.as_ref().is_some_and(is_ready) && !force {
        bail!(
            "the Node {name} is Ready: its machine would join again at its next start; drain it and switch it off \
             first, or say --force"
        );
    }
    let mut gone = Gone { cluster, lines: Vec::new() };
    gone.edge(&Edge::new(name)).await?;
    gone.delete(&nodes, "Node", name, node.and_then(|node| node.metadata.uid)).await?;
    gone.delete(&cluster.of::<Secret>(readmit::PASSWORDS), "Secret", &readmit::password(name), None).await?;
    let mut lines = gone.lines;
    lines.push(match lines.is_empty() {
        true => format!("the cluster has nothing of {name}"),
        false => format!("{name} is removed; its profile nodes/{name}.yaml stays, and so does its machine in the mesh"),
    });
    Ok(deed(name, lines))
}

/// What is gone so far.
struct Gone<'a> {
    cluster: &'a Cluster,
    lines: Vec<String>,
}

impl Gone<'_> {
    /// Rights and token come first: what is cut after them leaves objects, and nobody who may use them.
    async fn edge(&mut self, edge: &Edge) -> Result<()> {
        let cluster = self.cluster;
        let account = edge.account();
        self.delete(&cluster.of::<RoleBinding>(NAMESPACE), "RoleBinding", &account, None).await?;
        self.delete(&cluster.of::<Secret>(NAMESPACE), "Secret", &edge.token(), None).await?;
        self.delete(&cluster.of::<ServiceAccount>(NAMESPACE), "ServiceAccount", &account, None).await?;
        self.delete(&cluster.of::<Role>(NAMESPACE), "Role", &account, None).await?;
        let maps = cluster.of::<ConfigMap>(NAMESPACE);
        self.delete(&maps, "ConfigMap", &edge.registration(), None).await?;
        self.delete(&maps, "ConfigMap", &edge.routes(), None).await
    }

    async fn delete<K>(&mut self, api: &Api<K>, kind: &str, name: &str, uid: Option<String>) -> Result<()>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        if self.cluster.delete(api, name, uid).await? {
            self.lines.push(format!("deleted {kind} {name}"));
        }
        Ok(())
    }
}
