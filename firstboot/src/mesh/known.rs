//! What the journal keeps about the mesh, for starts at which its control server does not answer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::run::journal::Journal;
use crate::run::unwritten;
use crate::summary::Failure;

/// The note of the journal.
const NOTE: &str = "mesh";

/// What was seen when this node was last in the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Known {
    /// This node's addresses, IPv4 first.
    pub(super) addresses: Vec<IpAddr>,
    /// Addresses of other machines that a step asked for, by their names.
    #[serde(default)]
    pub(super) others: BTreeMap<String, IpAddr>,
}

impl Known {
    /// Reads the note. One that cannot be read is none: the next time in the mesh writes it anew.
    pub(super) fn read(journal: &Journal) -> Option<Self> {
        journal.note::<Self>(NOTE).ok().flatten().filter(|known| !known.addresses.is_empty())
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub(super) fn write(&self, journal: &mut Journal) -> Result<(), Failure> {
        journal.set_note(NOTE, self).map_err(unwritten)
    }
}
