//! The step `mesh`: the node is in the mesh, under its own name, and its address is on `tailscale0`.
//!
//! It starts tailscaled and speaks to it by its local API ([`local_api`]). The auth key is presented only by a node that
//! is not enrolled; once the node is in, the file that held it is overwritten and removed. What is set, and stays set:
//!
//! | preference | value | why |
//! |---|---|---|
//! | `ControlURL` | `mesh.loginServer` | an enrolled node does not change over to another one by itself |
//! | `Hostname` | the node's name | names are identities here: another one given by the control server is an error |
//! | `AdvertiseTags` | `mesh.tags` | |
//! | `CorpDNS` | on | names of the mesh by systemd-resolved, for this domain alone unless the control server wants more |
//! | `RouteAll` | off | routes that others advertise could cover the pods' networks |
//! | `NetfilterMode` | on | the mesh's interface is let in, and nobody else with its addresses |
//! | `RunSSH`, `AutoUpdate`, `ShieldsUp`, `AdvertiseRoutes` | off, none | nobody logs in; the image is what it is |
//!
//! **Without its control server** an enrolled node has no address after a start: tailscaled 1.100 stays in `NoState`, and
//! its interface empty, unless the control server lets it keep its map of the mesh (the capability `cache-network-maps`).
//! K3s must start nevertheless. So the address of the last time, which the journal has, is put on the interface after a
//! minute, and the step is done with a warning. When the control server answers, tailscaled puts the same one there
//! (it replaces, so that ours is harmless), and the warning ends.
//!
//! For later steps: [`address`], [`resolve`], [`status`]. Left out: exit nodes, subnet routes, ephemeral nodes, tailnet
//! lock.

mod joining;
mod known;
mod local_api;
mod machine;
mod status;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nodezero_profile::node::Node;
use nodezero_profile::node::join;

use self::joining::Joining;
use self::known::Known;
use self::local_api::{AuthKey, LocalApi, SOCKET};
use self::machine::{Machine, System, read_secret};
pub(crate) use self::status::{BackendState, Status};
use crate::run::journal::Journal;
use crate::run::scrub_secret;
use crate::run::step::{Check, Later, Step};
use crate::summary::{Failure, OrFail};

/// tailscaled's network interface.
pub(crate) const INTERFACE: &str = "tailscale0";
/// How long an address is waited for, where the profile does not say.
const PATIENCE: Duration = Duration::from_secs(300);

/// This node's mesh address, IPv4 where there is one, as the step recorded it at this or an earlier start.
///
/// # Errors
/// When the node has never been in the mesh.
pub(crate) fn address(journal: &Journal) -> Result<IpAddr, Failure> {
    let address = Known::read(journal).and_then(|known| known.addresses.first().copied());
    let remedy = "name a mesh in the profile, and let the step mesh end first";
    address.ok_or_else(|| Failure::new("this node has no mesh address", "it has never joined a mesh", remedy))
}

/// The mesh address of the node with this name there; the first label of its DNS name is meant. While tailscaled knows
/// no other machines, it is the one that was found before.
///
/// # Errors
/// When there is none or more than one; it may come later.
pub(crate) fn resolve(journal: &mut Journal, name: &str) -> Result<IpAddr, Failure> {
    resolve_at(&LocalApi::at(Path::new(SOCKET)), journal, name)
}

fn resolve_at(api: &LocalApi, journal: &mut Journal, name: &str) -> Result<IpAddr, Failure> {
    let known = Known::read(journal).unwrap_or_default();
    let before = known.others.get(name).copied();
    let missing = |why: String| {
        let remedy =
            format!("start {name} and look whether it has joined the mesh, or correct its name in the profile");
        Failure::new(format!("the mesh address of {name} is not known"), why, remedy).retrying()
    };
    let status = match (api.status(), before) {
        (Ok(status), _) => status,
        (Err(_), Some(before)) => return Ok(before),
        (Err(error), None) => return Err(missing(format!("{error:#}"))),
    };
    match (status.find(name).map(|addresses| addresses.first().copied()), before) {
        (Ok(Some(found)), _) => {
            if before != Some(found) {
                let mut others = known.others.clone();
                others.insert(name.to_owned(), found);
                Known { others, ..known }.write(journal)?;
            }
            Ok(found)
        }
        (Err(count @ 2..), _) => Err(missing(format!("{count} machines of the mesh are called {name}"))),
        // Without a map of the mesh nobody is known; with one, who is gone is gone.
        (Ok(None) | Err(_), Some(before)) if status.state != BackendState::Running => Ok(before),
        (Ok(None) | Err(_), _) => {
            let state = &status.state;
            Err(missing(format!("none of {} other machines is called so; tailscaled is {state}", status.peers.len())))
        }
    }
}

/// The address that tailscaled knows now of the node with this name, for who keeps no journal.
///
/// # Errors
/// When tailscaled does not answer, or knows none or more than one.
pub(crate) fn find(name: &str) -> anyhow::Result<IpAddr> {
    let status = LocalApi::at(Path::new(SOCKET)).status()?;
    let found = status.find(name).map(|addresses| addresses.first().copied());
    let missing = || format!("the mesh address of {name} is not known; tailscaled is {}", status.state);
    found.ok().flatten().with_context(missing)
}

/// Records addresses as if the step had.
#[cfg(test)]
pub(crate) fn record(journal: &mut Journal, addresses: &[IpAddr]) {
    let known = Known { addresses: addresses.to_vec(), ..Known::default() };
    known.write(journal).expect("written");
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Mesh {
    name: String,
    settings: join::Mesh,
    api: LocalApi,
    machine: Box<dyn Machine>,
    cut_off: Option<CutOff>,
}

/// A start without the control server.
#[derive(Debug)]
struct CutOff {
    /// What is missing, as one line.
    why: String,
    /// What was put on the interface.
    placed: Vec<IpAddr>,
    /// The line about its end.
    ended: Option<String>,
}

impl Mesh {
    /// The step of this node; `None` when its profile names no mesh.
    pub(crate) fn new(node: &Node) -> Option<Self> {
        let (name, settings) = (node.name.to_string(), node.mesh.clone()?);
        let (api, machine) = (LocalApi::at(Path::new(SOCKET)), Box::new(System));
        Some(Self { name, settings, api, machine, cut_off: None })
    }

    /// The key in the file that the profile names.
    fn read_key(&self) -> Result<Option<AuthKey>, Failure> {
        let Some(path) = &self.settings.auth_key_file else { return Ok(None) };
        let Some(text) = read_secret(path)? else { return Ok(None) };
        let remedy = "correct the profile's auth key, render it, and give this machine the new configuration";
        let what = format!("the auth key in {} cannot be used", path.display());
        AuthKey::parse(&text).map(Some).or_fail(&what, remedy)
    }

    fn joining(&self) -> Joining<'_> {
        Joining {
            api: &self.api,
            machine: &*self.machine,
            name: &self.name,
            settings: &self.settings,
            patience: self.settings.wait.map_or(PATIENCE, |wait| Duration::from_secs(wait.into())),
        }
    }

    /// What is not as it shall be.
    fn lacks(&self, journal: &Journal) -> Result<String, String> {
        let asked = self.api.status().and_then(|status| Ok((status, self.api.preferences()?)));
        let Ok((status, preferences)) = asked else { return Err("tailscaled is to be started".to_owned()) };
        if !self.joining().is_in(&status).map_err(|failure| failure.what().to_owned())? {
            return Err(format!("the mesh is to be joined; tailscaled is {}", status.state));
        }
        if !joining::differing(&self.joining().wanted(), &preferences).is_empty() {
            return Err("tailscaled's preferences are to be changed".to_owned());
        }
        if Known::read(journal).is_none_or(|known| known.addresses != status.addresses) {
            return Err("the mesh address is to be recorded".to_owned());
        }
        if self.settings.auth_key_file.as_ref().is_some_and(|path| path.symlink_metadata().is_ok()) {
            return Err("the auth key is to be removed".to_owned());
        }
        Ok(told(&self.name, &status))
    }

    /// Goes on with the addresses of the last time.
    fn go_on_without(&mut self, known: &Known, why: String, progress: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        let there = self.machine.addresses();
        let mut placed = Vec::new();
        for address in known.addresses.iter().filter(|address| !there.contains(address)) {
            // A kernel without IPv6 is no reason to stop, as K3s binds to the first one.
            match self.machine.place(*address) {
                Ok(()) => placed.push(*address),
                Err(error) if known.addresses.first() == Some(address) => {
                    let what = format!("the mesh address {address} of the last time cannot be put on {INTERFACE}");
                    let remedy = "look at the journal of the unit tailscaled; it makes the interface";
                    return Err(Failure::new(what, format!("{error:#}; {why}"), remedy).retrying());
                }
                Err(error) => progress(&format!("{address} cannot be put on {INTERFACE}: {error:#}")),
            }
        }
        self.cut_off = Some(CutOff { why, placed, ended: None });
        Ok(())
    }
}

/// One line about a node that is in.
fn told(name: &str, status: &Status) -> String {
    let addresses: Vec<String> = status.addresses.iter().map(IpAddr::to_string).collect();
    let domain = status.domain.as_deref().map(|domain| format!(" of {domain}")).unwrap_or_default();
    format!("{name}{domain} at {}, beside {} others", addresses.join(" and "), status.peers.len())
}

impl Step for Mesh {
    fn name(&self) -> &'static str {
        "mesh"
    }

    fn check(&mut self, journal: &Journal) -> Result<Check, Failure> {
        Ok(self.lacks(journal).map_or_else(Check::Needed, Check::Done))
    }

    fn apply(&mut self, journal: &mut Journal, progress: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        self.cut_off = None;
        let key = self.read_key()?;
        let known = Known::read(journal);
        self.machine.start()?;
        match (self.joining().join(key.as_ref(), known.is_some(), progress)?, known) {
            (joining::Outcome::In(status), known) => {
                let others = known.map(|known| known.others).unwrap_or_default();
                Known { addresses: status.addresses, others }.write(journal)?;
                if let Some(path) = &self.settings.auth_key_file {
                    scrub_secret(path)
                        .or_fail("the auth key, which is not needed any more, cannot be removed", "restart")?;
                }
                Ok(())
            }
            (joining::Outcome::CutOff(why), Some(known)) => self.go_on_without(&known, why, progress),
            (joining::Outcome::CutOff(why), None) => {
                Err(Failure::new("this node has no mesh address", why, "see that the control server answers")
                    .retrying())
            }
        }
    }

    fn verify(&mut self, journal: &Journal) -> Result<String, Failure> {
        if self.cut_off.is_some() {
            let address = address(journal)?;
            return Ok(format!("{} with the address of the last time, {address}", self.name));
        }
        let retry = "it is tried again; if this stays, look at the journal of the unit tailscaled";
        self.lacks(journal).map_err(|lacks| Failure::new("the mesh is not as it shall be", lacks, retry).retrying())
    }

    fn warnings(&self) -> Vec<String> {
        let cut_off = self.cut_off.iter().filter(|cut_off| cut_off.ended.is_none());
        cut_off.map(|it| format!("the mesh is not reached, and no other node by it: {}", it.why)).collect()
    }

    fn later(&mut self) -> Later {
        let Some(cut_off) = &mut self.cut_off else { return Later::Nothing };
        if let Some(line) = &cut_off.ended {
            return Later::Came(line.clone());
        }
        let Some(status) = self.api.status().ok().filter(|status| status.state == BackendState::Running) else {
            return Later::Waiting;
        };
        let (kept, stale): (Vec<IpAddr>, Vec<IpAddr>) =
            cut_off.placed.iter().partition(|address| status.addresses.contains(address));
        let mut line = told(&self.name, &status);
        for address in &stale {
            line += &format!("; {address}, of the last time, is no longer its address: restart this node");
            if let Err(error) = self.machine.take_away(*address) {
                line += &format!(" ({error:#})");
            }
        }
        cut_off.placed = kept;
        cut_off.ended = Some(line.clone());
        Later::Came(line)
    }
}
