//! `nodezero node readmit`: a machine that lost its state may join again under its name.
//!
//! K3s remembers a password of each node in the Secret `NAME.node-password.k3s` and refuses another machine that comes
//! under that name ([node registration](https://docs.k3s.io/architecture#how-agent-node-registration-works)). A machine
//! that was installed anew without its `state` partition is such another machine. So the Secret goes, and the old Node
//! with it, unless that is Ready: then a machine is using it.

use anyhow::Result;
use k8s_openapi::api::core::v1::{Node, Secret};
use nodezero_profile::node::NodeName;

use super::{Deed, deed, is_ready};
use crate::kube::Cluster;

/// The namespace in which K3s keeps node passwords.
pub(super) const PASSWORDS: &str = "kube-system";

/// The name of the Secret with a node's password.
pub(super) fn password(name: &NodeName) -> String {
    format!("{name}.node-password.k3s")
}

/// Forgets the node's password, and its Node unless that is Ready. Doing it twice is no error.
///
/// # Errors
/// When the API cannot be asked, or refuses.
pub async fn readmit(cluster: &Cluster, name: &NodeName) -> Result<Deed> {
    let nodes = cluster.all::<Node>();
    let node = cluster.find(&nodes, name).await?;
    let mut lines = Vec::new();
    let secret = password(name);
    let forgotten = cluster.delete(&cluster.of::<Secret>(PASSWORDS), &secret, None).await?;
    lines.push(match forgotten {
        true => format!("deleted the node password of {name} (Secret {PASSWORDS}/{secret})"),
        false => format!("there was no node password of {name}"),
    });
    match node {
        Some(node) if is_ready(&node) => {
            lines.push(format!("kept the Node {name}: it is Ready, so a machine is using it"));
        }
        Some(node) => {
            // By its uid: a machine may have registered anew meanwhile.
            cluster.delete(&nodes, name, node.metadata.uid).await?;
            lines.push(format!("deleted the Node {name}, which was not Ready"));
        }
        None => lines.push(format!("there was no Node {name}")),
    }
    lines.push(format!("the next machine that comes as {name} with a join token is taken in"));
    Ok(deed(name, lines))
}
