//! The profile language of NodeZero: what a node is to be, as the operator writes it.
//!
//! - [`node`]: what a node reads, `/etc/nodezero/node.json`;
//! - [`selector`] and [`size`]: the language in which disks are chosen;
//! - [`inventory`]: what a machine says about its disks;
//! - [`data_disks`]: what becomes of each disk, decided once for the node and for the operator; pure;
//! - [`mark`]: by what a node knows its disks again;
//! - [`networkd`]: unit files of systemd-networkd.
//!
//! - `language` (with the feature of that name): profiles as the operator writes them, and their rendering to an
//!   Ignition config. Nodes have no need of it.

pub mod data_disks;
pub mod inventory;
#[cfg(feature = "language")]
pub mod language;
pub mod mark;
pub mod networkd;
pub mod node;
mod problem;
pub mod selector;
pub mod size;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use problem::{Problem, Problems};

/// What a machine is for. An image is built for one role, and a node has the role of its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "language", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs the K3s server, and workloads too.
    Control,
    /// Runs the K3s agent, with data disks.
    Worker,
    /// Outside the cluster: terminates TLS and forwards over the mesh.
    Edge,
}

impl Role {
    /// All roles, in the order in which a cluster starts them.
    pub const ALL: [Self; 3] = [Self::Control, Self::Worker, Self::Edge];

    /// The name as it stands in recipes, file names and on the kernel command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Worker => "worker",
            Self::Edge => "edge",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role: use control, worker or edge")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|role| role.name() == word).ok_or_else(|| UnknownRole(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_parses_as_it_is_printed() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role), "{role}");
        }
        assert!("Worker".parse::<Role>().is_err(), "names are lower case");
    }
}
