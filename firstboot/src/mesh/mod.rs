//! The mesh, as the steps after it see it. The step itself is not here yet.

use std::net::IpAddr;

use anyhow::Context;

use crate::run::journal::Journal;
use crate::summary::{Failure, OrFail};

/// tailscaled's network interface.
pub(crate) const INTERFACE: &str = "tailscale0";

const NOTE: &str = "mesh.addresses";

/// This node's address in the mesh, as it was recorded.
pub(crate) fn address(journal: &Journal) -> Result<IpAddr, Failure> {
    let noted: Option<Vec<IpAddr>> =
        journal.note(NOTE).or_fail("the mesh address is not known", "restart this node")?;
    let first = noted.and_then(|noted| noted.first().copied()).context("no address is recorded");
    first.or_fail("the mesh address is not known", "look at the step mesh")
}

/// The mesh address of the node with this name.
pub(crate) fn resolve(_journal: &mut Journal, name: &str) -> Result<IpAddr, Failure> {
    Err(Failure::new("a node of the mesh cannot be found", format!("{name} is not known"), "look at the mesh")
        .retrying())
}
