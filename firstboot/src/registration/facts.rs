//! What a node says about itself to the control plane.

use std::net::IpAddr;

use nodezero_profile::Role;
use serde::{Deserialize, Serialize};

use crate::data_disks::Prepared;

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Facts {
    /// Its name.
    pub(crate) name: String,
    /// Its role.
    pub(crate) role: Role,
    /// The image's version.
    pub(crate) version: Option<String>,
    /// Its address in the mesh.
    pub(crate) mesh_address: IpAddr,
    /// Its data disks.
    #[serde(default)]
    pub(crate) disks: Vec<DiskFact>,
    /// Digest of its profile.
    pub(crate) profile: Option<String>,
}

/// One data disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskFact {
    /// Serial number, or WWN where it tells none.
    pub(crate) serial: String,
    /// In bytes.
    pub(crate) size: u64,
    /// Where it is mounted.
    pub(crate) mount: String,
}

impl DiskFact {
    /// Of a disk that is mounted.
    pub(crate) fn of(disk: &Prepared) -> Self {
        Self { serial: disk.serial.clone(), size: disk.size, mount: disk.mount.display().to_string() }
    }
}
