//! The step `cluster`: this node is part of its cluster, as a K3s server or agent, and Ready at its mesh address.
//!
//! - [`config`] makes K3s' `config.yaml` of the profile and the mesh; a server that the profile names is looked up in the
//!   mesh at every start, so that it may get another address;
//! - [`wait`] waits for the node to be Ready, and says for what; [`log`] knows K3s' words for it;
//! - [`leftovers`] mends what an interrupted start left;
//! - [`host`] is what all this needs of the machine.
//!
//! K3s is not enabled in the image: this step starts it, on every start, once the mesh address exists. It is restarted
//! only where its configuration changed. The token's file stays, for K3s reads it at each start.
//!
//! Documents: [configuration file](https://docs.k3s.io/installation/configuration),
//! [tokens](https://docs.k3s.io/cli/token), [node passwords](https://docs.k3s.io/architecture). Left out: taints that
//! change later, which K3s takes at a node's first registration only, and labels that a profile has no longer: K3s gives
//! a node its labels at each start, and takes none away. Both are looked at by the step `registration`.

pub(crate) mod config;
pub(crate) mod host;
mod leftovers;
pub(crate) mod log;
#[cfg(test)]
mod tests;
pub(crate) mod wait;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use nodezero_profile::Role;
use nodezero_profile::node::Node;
use nodezero_profile::node::join::{Cluster as Membership, Server};

use self::config::Place;
use self::host::{Host, System};
use self::wait::Wanted;
use crate::files::{read_bounded, write_atomically};
use crate::kubernetes::{Access, Endpoint};
use crate::mesh;
use crate::run::journal::Journal;
use crate::run::step::{Check, Step};
use crate::run::unwritten;
use crate::summary::{Failure, OrFail};

/// The kubelet's credentials, which K3s writes.
pub(crate) const KUBELET: &str = "/var/lib/rancher/k3s/agent/kubelet.kubeconfig";
/// The operator's credentials on a control node, which K3s writes.
pub(crate) const ADMIN: &str = "/etc/rancher/k3s/k3s.yaml";
/// What K3s is configured by.
pub(crate) const CONFIG: &str = "/etc/rancher/k3s/config.yaml";
const CONFIG_LIMIT: u64 = 1 << 20;
/// The largest join token.
const TOKEN_LIMIT: u64 = 4096;
/// The note of the journal that has the program of K3s with which this node was Ready, and all it wrote flushed.
const SETTLED: &str = "cluster.settled";
/// How long to wait where the profile does not say.
const PATIENCE: Duration = Duration::from_secs(1800);

const WHAT: &str = "this node cannot be made part of its cluster";
const RERENDER: &str = "correct the profile, render it, and give this machine the new configuration";

/// Where the mesh says that nodes are.
pub(crate) trait Mesh {
    /// This node's address.
    fn address(&self, journal: &Journal) -> Result<IpAddr, Failure>;

    /// That of a node by its name.
    fn resolve(&self, journal: &mut Journal, name: &str) -> Result<IpAddr, Failure>;
}

/// The mesh that the step `mesh` has joined.
#[derive(Debug)]
pub(crate) struct Joined;

impl Mesh for Joined {
    fn address(&self, journal: &Journal) -> Result<IpAddr, Failure> {
        mesh::address(journal)
    }

    fn resolve(&self, journal: &mut Journal, name: &str) -> Result<IpAddr, Failure> {
        mesh::resolve(journal, name)
    }
}

/// Where the API of a server is: a node is found in the mesh, a host name by DNS. `what` cannot be done without it, and
/// `setting` is where the profile names it.
///
/// # Errors
/// When it is not found; it may come later.
pub(crate) fn locate(
    server: &Server,
    mesh: &dyn Mesh,
    journal: &mut Journal,
    what: &str,
    setting: &str,
) -> Result<Endpoint, Failure> {
    let resolve = |name: &str| mesh.resolve(journal, name).map_err(Unresolved::Mesh);
    Endpoint::of(server, resolve).map_err(|unresolved| match unresolved {
        Unresolved::Mesh(failure) => failure,
        Unresolved::Name(error) => {
            let remedy = format!("check {setting} of the profile, and that this network has DNS");
            Failure::new(what, format!("{error:#}"), remedy).retrying()
        }
    })
}

/// Why a server's address is not known.
enum Unresolved {
    Mesh(Failure),
    Name(anyhow::Error),
}

impl From<anyhow::Error> for Unresolved {
    fn from(error: anyhow::Error) -> Self {
        Self::Name(error)
    }
}

/// The step.
pub(crate) struct Cluster {
    node: Node,
    membership: Membership,
    mesh: Box<dyn Mesh>,
    host: Box<dyn Host>,
    root: PathBuf,
    server: Option<Endpoint>,
    /// Settings that K3s does not know.
    skipped: BTreeSet<String>,
}

impl Cluster {
    /// For a node whose profile has it in a cluster.
    pub(crate) fn new(node: &Node) -> Option<Self> {
        Some(Self {
            node: node.clone(),
            membership: node.cluster.clone()?,
            mesh: Box::new(Joined),
            host: Box::new(System::new()),
            root: "/".into(),
            server: None,
            skipped: BTreeSet::new(),
        })
    }

    fn unit(&self) -> &'static str {
        match self.node.role {
            Role::Control => "k3s.service",
            Role::Worker | Role::Edge => "k3s-agent.service",
        }
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Reads the tokens, to see that they are for root alone, and to know what no message may show.
    fn secrets(&self) -> anyhow::Result<Vec<String>> {
        let Membership { token_file, agent_token_file, .. } = &self.membership;
        [token_file].into_iter().chain(agent_token_file).map(|path| self.secret(path)).collect()
    }

    fn secret(&self, path: &Path) -> anyhow::Result<String> {
        let path = self.at(path);
        let metadata = fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?;
        let mode = metadata.mode() & 0o7777;
        ensure!(mode & 0o077 == 0, "{} has mode {mode:04o}, expected 0600", path.display());
        let token = String::from_utf8(read_bounded(&path, TOKEN_LIMIT)?).ok();
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let token = token.with_context(|| format!("{} holds no join token", path.display()))?;
        // All before the last colon is known to everybody: the authority's hash, and a user's name.
        Ok(token.rsplit(':').next().unwrap_or_default().to_owned())
    }

    fn wanted(&self, journal: &Journal) -> Result<Wanted<'_>, Failure> {
        Ok(Wanted {
            unit: self.unit(),
            name: &self.node.name,
            address: self.mesh.address(journal)?,
            access: Access::file(self.at(KUBELET)),
            server: self.server.as_ref().map(|server| server.address),
            boot_id: self.host.boot_id().or_fail(WHAT, "restart")?,
            token_file: self.membership.token_file.display().to_string(),
            secrets: self.secrets().or_fail(WHAT, RERENDER)?,
            patience: self.membership.wait.map_or(PATIENCE, |wait| Duration::from_secs(wait.into())),
        })
    }

    /// Mends what an interrupted start left, before K3s runs.
    fn mend(&self, settled: Option<&str>, progress: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        for leftover in leftovers::find(&self.root, settled)? {
            progress(&leftover.line(&self.root));
            leftover.remove()?;
        }
        leftovers::ensure_initiator(&self.root)?;
        if leftovers::ensure_password(&self.root)? && settled.is_some() {
            progress(
                "this node's password of K3s was lost, and is made anew: where the cluster refuses it, readmit the node",
            );
        }
        Ok(())
    }

    /// Writes K3s' configuration, if it changed.
    fn configure(&mut self, journal: &mut Journal) -> Result<bool, Failure> {
        let (what, setting) = ("the server to join is not found", "cluster.server");
        let server = self.membership.server.as_ref();
        let server = server.map(|server| locate(server, &*self.mesh, journal, what, setting));
        self.server = server.transpose()?;
        let address = self.mesh.address(journal)?;
        // K3s finds a host name by itself, and the certificate is for that name.
        let url = match (&self.membership.server, &self.server) {
            (Some(Server::Url(url)), _) => Some(url.clone()),
            (_, endpoint) => endpoint.as_ref().map(Endpoint::url),
        };
        let place = Place { node: &self.node, cluster: &self.membership, address, server: url };
        let text = config::render(&place).or_fail(WHAT, RERENDER)?;
        let path = self.at(CONFIG);
        let write = || -> anyhow::Result<bool> {
            if read_bounded(&path, CONFIG_LIMIT).is_ok_and(|before| before == text.as_bytes()) {
                return Ok(false);
            }
            let directory = path.parent().expect("it has one");
            fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
            write_atomically(&path, text.as_bytes(), 0o600)?;
            Ok(true)
        };
        write().or_fail(WHAT, "look whether `state` is full, and restart")
    }
}

impl Step for Cluster {
    fn name(&self) -> &'static str {
        "cluster"
    }

    /// A start of K3s is a step's work at every boot; what runs already is looked at again.
    fn check(&mut self, journal: &Journal) -> Result<Check, Failure> {
        self.secrets().or_fail(WHAT, RERENDER)?;
        let address = self.mesh.address(journal)?;
        let server = self.membership.server.as_ref();
        let doing = server.map_or_else(|| "runs the cluster".to_owned(), |server| format!("joins {server}"));
        Ok(Check::Needed(format!("{} {doing} at {address}", self.unit())))
    }

    fn apply(&mut self, journal: &mut Journal, progress: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        let lacking = "use the image of this node's role, free space on `state`, and restart";
        self.host.ready_for_k3s().or_fail("this machine lacks what K3s needs", lacking)?;
        let changed = self.configure(journal)?;
        let unit = self.unit();
        let state = self.host.unit(unit).or_fail(WHAT, "restart")?;
        if !state.is_loaded {
            return Err(Failure::new(WHAT, format!("systemd has no {unit}"), "use the image of this node's role"));
        }
        let is_running = matches!(state.active.as_str(), "active" | "activating" | "reloading");
        let settled: Option<String> = journal.note(SETTLED).or_fail(WHAT, "restart")?;
        if !is_running {
            self.mend(settled.as_deref(), progress).or_fail(WHAT, "look whether `state` is full, and restart")?;
        }
        if changed || !is_running {
            let (server, again) = (self.server.as_ref(), changed && is_running);
            let joining = server.map_or_else(String::new, |server| format!(" to join {server}"));
            let word = if again { "restarted, for its configuration changed" } else { "started" };
            progress(&format!("{unit} is {word}{joining}"));
            self.host.start(unit, again).or_fail(WHAT, "restart")?;
        }
        let wanted = self.wanted(journal)?;
        wait::ready(&*self.host, &wanted, progress)?;
        let program = leftovers::program(&self.root).or_fail(WHAT, "restart")?;
        if settled.as_ref() != Some(&program) {
            self.host.flush().or_fail("what K3s wrote cannot be flushed", "look whether the disk of `state` fails")?;
            journal.set_note(SETTLED, &program).map_err(unwritten)?;
        }
        self.skipped = log::skipped(&self.host.first_log(unit));
        Ok(())
    }

    fn verify(&mut self, journal: &Journal) -> Result<String, Failure> {
        let wanted = self.wanted(journal)?;
        wait::ready_now(&*self.host, &wanted)
    }

    fn warnings(&self) -> Vec<String> {
        let warning = |name| {
            format!("K3s does not know the setting {name}, and goes on without it: correct k3s.config of the profile")
        };
        self.skipped.iter().map(warning).collect()
    }
}
