//! The step `registration`: the control plane knows this node, and what it is.
//!
//! | role | as whom | writes |
//! |---|---|---|
//! | worker, control | its kubelet | labels and annotations of its own Node: [`node`], [`longhorn`] |
//! | control, besides | the operator of `k3s.yaml` | NodeZero's namespace, and what the registry needs: [`control`] |
//! | edge | its narrow token | its ConfigMap `registration-NAME`: [`edge`] |
//!
//! Everything is applied on the server's side under a name of its own, and only where it differs: a second run changes
//! nothing, and nothing of others is touched. The kubelet's credentials may change this node's object and no other
//! (Kubernetes' [NodeRestriction]); an edge's token may do what its Role says by the names of its objects.
//!
//! A changed profile counts at the next start: labels and annotations that it no longer gives go away. Taints are not
//! for a kubelet to change: [`taints`].
//!
//! At which step a node is stuck is told by [`publish`], as far as there are credentials. That an edge is alive is told
//! by [`seen`].
//!
//! [NodeRestriction]: https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction

pub(crate) mod control;
pub(crate) mod edge;
mod facts;
mod longhorn;
pub(crate) mod node;
pub(crate) mod publish;
#[cfg(test)]
mod real_tests;
pub(crate) mod seen;
mod taints;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use nodezero_profile::Role;
use nodezero_profile::node::Node;
use nodezero_profile::node::join::Registration as Where;

pub(crate) use self::facts::{DiskFact, Facts};
use self::publish::{Object, Target};
use crate::data_disks;
use crate::k3s::{self, ADMIN, Joined, KUBELET, Mesh};
use crate::kubernetes::{Access, ApiError, Connection};
use crate::run::journal::Journal;
use crate::run::step::{Check, Step};
use crate::summary::{Failure, OrFail};

/// Under which name the API keeps what this step applied.
const MANAGER: &str = "nodezero";

const WHAT: &str = "this node cannot register";

/// Tells the data disks that are mounted.
type Disks = dyn Fn(&Node, &Journal) -> anyhow::Result<Vec<data_disks::Prepared>>;

/// As whom, and where.
#[derive(Clone, Debug)]
enum Way {
    Kubelet { is_control: bool },
    Edge(Where),
}

/// The step.
pub(crate) struct Registration {
    node: Node,
    way: Way,
    version: Option<String>,
    mesh: Box<dyn Mesh>,
    kubelet: Access,
    admin: PathBuf,
    services: Box<dyn control::Services>,
    disks: Box<Disks>,
    target: Target,
    warnings: Vec<String>,
}

impl Registration {
    /// For a node whose profile says where it registers. `version` is the image's; `target` learns where the node's
    /// status is published.
    pub(crate) fn new(node: &Node, version: Option<String>, target: Target) -> Option<Self> {
        let way = match (node.role, &node.cluster, &node.registration) {
            (Role::Edge, _, Some(registration)) => Way::Edge(registration.clone()),
            (Role::Edge, _, None) | (_, None, _) => return None,
            (role, Some(_), _) => Way::Kubelet { is_control: role == Role::Control },
        };
        Some(Self {
            node: node.clone(),
            way,
            version,
            mesh: Box::new(Joined),
            kubelet: Access::file(KUBELET),
            admin: ADMIN.into(),
            services: Box::new(control::Systemd),
            disks: Box::new(data_disks::prepared),
            target,
            warnings: Vec::new(),
        })
    }

    fn facts(&self, journal: &Journal) -> Result<(Facts, Vec<data_disks::Prepared>), Failure> {
        let disks = (self.disks)(&self.node, journal).or_fail(WHAT, "look at the step data-disks")?;
        let facts = Facts {
            name: self.node.name.to_string(),
            role: self.node.role,
            version: self.version.clone(),
            mesh_address: self.mesh.address(journal)?,
            disks: disks.iter().map(DiskFact::of).collect(),
            profile: self.node.profile.clone(),
        };
        Ok((facts, disks))
    }

    fn edge_access(&self, place: &Where, journal: &mut Journal) -> Result<Access, Failure> {
        let endpoint = k3s::locate(&place.server, &*self.mesh, journal, WHAT, "registration.server")?;
        let (authority, token_file) = (place.certificate_authority.clone(), place.token_file.clone());
        Ok(Access::Token { endpoint, authority, token_file })
    }

    /// The failure that an answer of the API is.
    fn failure(&self, error: &ApiError) -> Failure {
        let name = &self.node.name;
        let (what, remedy) = match (&self.way, error) {
            (Way::Edge(_), ApiError::Refused { code: 401, .. }) => (
                "the cluster does not know this node's registration token".to_owned(),
                format!(
                    "`nodezero node add {name}` makes one; render the node anew, and give it the new configuration"
                ),
            ),
            (Way::Edge(_), ApiError::Refused { code: 403 | 404, .. }) => (
                format!("the cluster has no place for the registration of {name}"),
                format!("`nodezero node add {name}` makes it"),
            ),
            (Way::Edge(place), ApiError::Credentials(_)) => {
                (WHAT.to_owned(), format!("render the node anew, so that {} has its token", place.token_file.display()))
            }
            (Way::Edge(_), _) => (
                WHAT.to_owned(),
                "see that the control node is up and in the mesh; check registration.server and \
                 registration.certificateAuthority of the profile"
                    .to_owned(),
            ),
            (Way::Kubelet { .. }, _) => {
                (WHAT.to_owned(), "see that the cluster's API is up; look at the log of K3s on this node".to_owned())
            }
        };
        Failure::new(what, error, remedy).retrying()
    }

    fn register(&mut self, journal: &mut Journal) -> Result<String, Failure> {
        let (facts, disks) = self.facts(journal)?;
        match self.way.clone() {
            Way::Kubelet { is_control } => self.register_node(&facts, &disks, is_control),
            Way::Edge(place) => self.register_edge(&facts, &place, journal),
        }
    }

    fn register_node(
        &mut self,
        facts: &Facts,
        disks: &[data_disks::Prepared],
        is_control: bool,
    ) -> Result<String, Failure> {
        let desired = node::Desired::of(&self.node, facts, disks);
        if is_control {
            let open = Connection::open(&Access::file(&self.admin));
            let mended = open.and_then(|connection| taints::mend(&connection, &self.node));
            mended.map_err(|error| self.failure(&error))?;
        }
        let open = Connection::open(&self.kubelet);
        let done = open.and_then(|connection| node::apply(&connection, &self.node, &desired));
        let node::Applied { changed, drift } = done.map_err(|error| self.failure(&error))?;
        self.warnings = drift.warning(&self.node.name).into_iter().collect();
        if is_control {
            self.establish()?;
        }
        Ok(said(changed, "the Node", disks.len()))
    }

    fn register_edge(&mut self, facts: &Facts, place: &Where, journal: &mut Journal) -> Result<String, Failure> {
        let access = self.edge_access(place, journal)?;
        let name = edge::object_name(&self.node.name);
        self.target.set(access.clone(), Object::ConfigMap(name));
        let open = Connection::open(&access);
        let done = open.and_then(|connection| edge::apply(&connection, facts));
        let edge::Applied { changed, has_routes } = done.map_err(|error| self.failure(&error))?;
        let started = self.services.start(seen::TIMER);
        started.or_fail("this node cannot go on saying that it is alive", "report this with the image's version")?;
        let routes = if has_routes { "its routes are there" } else { "it has no routes yet" };
        Ok(format!("{}; {routes}", said(changed, "the registration", 0)))
    }

    /// What only a control node does: it sees to it that there is a registry, and that it runs.
    fn establish(&self) -> Result<(), Failure> {
        let authority = crate::kubernetes::authority_of(&self.admin).or_fail(WHAT, "look at the log of k3s.service")?;
        let open = Connection::open(&Access::file(&self.admin));
        let token = open.and_then(|connection| control::establish(&connection));
        let token = token.map_err(|error| self.failure(&error))?;
        let started = control::start(&*self.services, &authority, &token);
        started.or_fail("the node registry cannot be started", "look at the log of nodezero-registry.service")
    }
}

fn said(changed: bool, what: &str, disks: usize) -> String {
    let verb = if changed { "is written" } else { "is as it shall be" };
    match disks {
        0 => format!("{what} {verb}"),
        1 => format!("{what} {verb}, with one data disk"),
        disks => format!("{what} {verb}, with {disks} data disks"),
    }
}

impl Step for Registration {
    fn name(&self) -> &'static str {
        "registration"
    }

    /// What the API has is compared where it is written: one look, and not two.
    fn check(&mut self, _journal: &Journal) -> Result<Check, Failure> {
        let server = match &self.way {
            Way::Kubelet { .. } => "the cluster".to_owned(),
            Way::Edge(place) => place.server.to_string(),
        };
        Ok(Check::Needed(format!("{} registers with {server}", self.node.name)))
    }

    fn apply(&mut self, journal: &mut Journal, progress: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        let line = self.register(journal)?;
        progress(&line);
        Ok(())
    }

    /// The API has answered each write with what it keeps.
    fn verify(&mut self, journal: &Journal) -> Result<String, Failure> {
        Ok(format!("{} is registered at {}", self.node.name, self.mesh.address(journal)?))
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }
}
