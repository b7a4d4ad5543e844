//! Waiting for a node to be Ready: what it waits for now, and what that means for a person.
//!
//! The node's own object is the truth, read with its kubelet's credentials. The API keeps saying "Ready" for a while after
//! a node went away, so the object counts only when the kubelet of this very boot wrote it. As long as it does not say
//! so, systemd, K3s' log and the server's port are asked why.
//!
//! A cause that only a person can change ends the wait early; it is tried again later, for people do change things.
//! Everything else is waited out: a server that is down for ten minutes is none of a worker's business.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;

use super::host::{Host, Unit};
use super::log::{self, Told};
use crate::kubernetes::{Access, ApiError};
use crate::summary::Failure;

/// How often is looked, and told.
const LOOK: Duration = Duration::from_secs(3);
const TELL: Duration = Duration::from_secs(30);
/// How long a definite cause must stand before it ends the wait: a server that starts may refuse at first.
const DEFINITE: Duration = Duration::from_secs(30);
/// How old a line of the log may be to say something about now. It is shorter than the above, so that K3s has said it
/// again meanwhile: it does so every five to ten seconds.
const RECENT: Duration = Duration::from_secs(20);
/// The same for a K3s that ends and is started again, which says it once each time.
const RECENT_ENDS: Duration = Duration::from_secs(300);
/// How often K3s may end before that is taken for a failure of its own.
const RESTARTS: u64 = 5;

/// What is waited for.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// The unit that runs K3s.
    pub(crate) unit: &'a str,
    /// The node.
    pub(crate) name: &'a str,
    /// The address that it must have.
    pub(crate) address: IpAddr,
    /// The kubelet's credentials.
    pub(crate) access: Access,
    /// The server that it joins, where that is another node.
    pub(crate) server: Option<SocketAddr>,
    /// The kernel's id of this boot.
    pub(crate) boot_id: String,
    /// Where the join token is.
    pub(crate) token_file: String,
    /// What no message may show.
    pub(crate) secrets: Vec<String>,
    /// How long to wait at once.
    pub(crate) patience: Duration,
}

/// Why a node is not Ready yet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    /// K3s starts and has said nothing of note.
    Starting(Unit),
    /// K3s ended, and does so again and again.
    Failed(Unit),
    /// K3s told why.
    Told(Told, String),
    /// The server's port.
    Unreachable(SocketAddr, String),
    /// The API, asked with the kubelet's credentials.
    Api(String),
    /// The API has no such node.
    NoNode,
    /// What the API has is of an earlier boot.
    Earlier,
    /// The kubelet says what it lacks.
    NotReady(String),
    /// It is Ready at other addresses.
    Elsewhere(String),
}

/// Whether the node is Ready now, as one line.
///
/// # Errors
/// The cause when it is not.
pub(crate) fn ready_now(host: &dyn Host, wanted: &Wanted<'_>) -> Result<String, Failure> {
    look(host, wanted, u64::MAX - RESTARTS).map_err(|cause| failure(&cause, host, wanted, Duration::ZERO))
}

/// Waits until the node is Ready.
///
/// # Errors
/// The cause, when time is over or waiting on is of no use.
pub(crate) fn ready(host: &dyn Host, wanted: &Wanted<'_>, progress: &mut dyn FnMut(&str)) -> Result<(), Failure> {
    let begin = host.now();
    let restarts = host.unit(wanted.unit).map_or(0, |unit| unit.restarts);
    let mut next_tell = begin + TELL;
    let mut definite: Option<(Told, Duration)> = None;
    loop {
        let cause = match look(host, wanted, restarts) {
            Ok(_) => return Ok(()),
            Err(cause) => cause,
        };
        let now = host.now();
        definite = match (&cause, definite) {
            (Cause::Told(told, _), Some((before, since))) if *told == before => Some((before, since)),
            (Cause::Told(told, _), _) if told.is_definite() => Some((*told, now)),
            _ => None,
        };
        let is_definite = definite.is_some_and(|(_, since)| now - since >= DEFINITE);
        if is_definite || matches!(cause, Cause::Failed(_)) || now - begin >= wanted.patience {
            return Err(failure(&cause, host, wanted, now - begin));
        }
        if now >= next_tell {
            next_tell = now + TELL;
            let (waited, patience) = ((now - begin).as_secs(), wanted.patience.as_secs());
            let why = log::redact(&in_words(&cause, wanted), &wanted.secrets);
            progress(&format!("waiting for node {} to be Ready, {waited} s of {patience} s: {why}", wanted.name));
        }
        if !host.sleep(LOOK) {
            return Err(Failure::new("the wait for the node was ended", "the service was asked to end", "restart"));
        }
    }
}

/// Whether the node is Ready now, as one line; else why not.
fn look(host: &dyn Host, wanted: &Wanted<'_>, restarts: u64) -> Result<String, Cause> {
    let unit = host.unit(wanted.unit).map_err(|error| Cause::Api(format!("{error:#}")))?;
    let found = host.node(&wanted.access, wanted.name);
    let state = match &found {
        Ok(Some(node)) => judge(node, wanted),
        Ok(None) => Err(Cause::NoNode),
        Err(ApiError::Credentials(_)) => Err(Cause::Starting(unit.clone())),
        Err(error) => Err(Cause::Api(error.to_string())),
    };
    let cause = match state {
        Ok(line) if unit.is_active() => return Ok(line),
        Ok(_) => Cause::Starting(unit.clone()),
        Err(cause) => cause,
    };
    // Its kubelet runs and says what it lacks; what K3s said before is over.
    if matches!(cause, Cause::NotReady(_) | Cause::Elsewhere(_)) {
        return Err(cause);
    }
    let lines = host.log(wanted.unit);
    let told = log::reason(&lines, RECENT);
    if let Some((told, line)) = told.filter(|(told, _)| told.is_definite()) {
        return Err(Cause::Told(told, line.to_owned()));
    }
    if let Some((server, error)) = wanted.server.and_then(|server| Some((server, host.connect(server).err()?))) {
        return Err(Cause::Unreachable(server, error));
    }
    // One that is inactive has its start queued, as a rule.
    if unit.active == "failed" || unit.restarts >= restarts + RESTARTS {
        let last = log::reason(&lines, RECENT_ENDS).filter(|(told, _)| told.is_definite());
        return Err(last.map_or(Cause::Failed(unit), |(told, line)| Cause::Told(told, line.to_owned())));
    }
    Err(match told {
        Some((told, line)) => Cause::Told(told, line.to_owned()),
        None => cause,
    })
}

/// Whether the object says that the node is as wanted, as one line.
fn judge(node: &Node, wanted: &Wanted<'_>) -> Result<String, Cause> {
    let status = node.status.clone().unwrap_or_default();
    let info = status.node_info.unwrap_or_default();
    if info.boot_id != wanted.boot_id {
        return Err(Cause::Earlier);
    }
    let conditions = status.conditions.unwrap_or_default();
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) if ready.status == "True" => {}
        Some(ready) => {
            let why = ready.message.as_deref().or(ready.reason.as_deref()).unwrap_or("no reason is given");
            return Err(Cause::NotReady(why.to_owned()));
        }
        None => return Err(Cause::NotReady("the kubelet has not told its conditions yet".to_owned())),
    }
    let addresses = status.addresses.unwrap_or_default();
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP").map(|it| it.address.as_str());
    let internal: Vec<&str> = internal.collect();
    if internal.iter().any(|address| address.parse() == Ok(wanted.address)) {
        Ok(format!("node {} is Ready at {} with {}", wanted.name, wanted.address, info.kubelet_version))
    } else {
        Err(Cause::Elsewhere(internal.join(", ")))
    }
}

/// A cause in one line.
fn in_words(cause: &Cause, wanted: &Wanted<'_>) -> String {
    let unit = wanted.unit;
    match cause {
        Cause::Starting(state) => format!("{unit} is {} ({})", state.active, state.sub),
        Cause::Failed(state) => {
            format!("{unit} is {} ({}), restarted {} times", state.active, state.sub, state.restarts)
        }
        Cause::Told(_, line) => format!("K3s says: {line}"),
        Cause::Unreachable(server, error) => format!("the cluster's API at https://{server} is not reached: {error}"),
        Cause::Api(error) => error.clone(),
        Cause::NoNode => "K3s runs, and its kubelet has not registered the node yet".to_owned(),
        Cause::Earlier => "K3s starts; what the API knows of this node is from before it started".to_owned(),
        Cause::NotReady(why) => format!("the kubelet says: {why}"),
        Cause::Elsewhere(found) => format!("the node has the addresses [{found}], expected {}", wanted.address),
    }
}

fn failure(cause: &Cause, host: &dyn Host, wanted: &Wanted<'_>, waited: Duration) -> Failure {
    let (what, remedy) = match cause {
        Cause::Told(told, _) => told_failure(*told, wanted),
        Cause::Unreachable(..) => (
            "the cluster's API is not reached".to_owned(),
            "start the control node, and see that it is in the mesh; check cluster.server of the profile".to_owned(),
        ),
        Cause::Failed(_) => (
            format!("{} does not stay up", wanted.unit),
            format!("its log tells more: journalctl -u {}; correct cluster.config of the profile", wanted.unit),
        ),
        Cause::Starting(_) | Cause::Api(_) | Cause::NoNode | Cause::Earlier | Cause::NotReady(_) => (
            format!("the node is not Ready, waited for {} s", waited.as_secs()),
            format!("look at the log of {}; a slower machine may need a longer cluster.wait", wanted.unit),
        ),
        Cause::Elsewhere(_) => (
            "the node has not its mesh address in the cluster".to_owned(),
            "see that nothing in cluster.config changes its addresses, and restart".to_owned(),
        ),
    };
    let tail = log::tail(&host.log(wanted.unit), &wanted.secrets);
    let mut why = log::redact(&in_words(cause, wanted), &wanted.secrets);
    if let (Cause::Told(Told::Certificate, _), Some(doubt)) = (cause, host.clock_doubt()) {
        why.push_str(&format!("; {doubt}"));
    }
    Failure::new(what, format!("{why}\n{tail}"), remedy).retrying()
}

/// What K3s' words mean, and what helps.
fn told_failure(told: Told, wanted: &Wanted<'_>) -> (String, String) {
    let Wanted { name, token_file, .. } = wanted;
    let (what, remedy) = match told {
        Told::AuthorityDiffers => (
            "the join token is for another cluster: its hash is not that of the server's authority".to_owned(),
            format!("check cluster.server; else render {name} anew, so that {token_file} has this cluster's token"),
        ),
        Told::TokenMalformed => (
            format!("{token_file} holds no join token"),
            format!("render {name} anew, and give it the new configuration"),
        ),
        Told::TokenRefused => (
            "the cluster refuses the join token".to_owned(),
            format!(
                "render {name} anew with the cluster's present token, and give it the new configuration; control nodes \
                 must have a token before others join with it"
            ),
        ),
        Told::DataStoreToken => (
            "the join token is not the one that this cluster's data was made with".to_owned(),
            format!("give {name} the token that the cluster began with"),
        ),
        Told::NodePassword => (
            format!("the cluster knows another machine by the name {name}"),
            format!("if this machine takes that one's place: `nodezero node readmit {name}`; else rename one of them"),
        ),
        Told::Certificate => (
            "the server's certificate cannot be verified".to_owned(),
            "check the clocks of both nodes, and that cluster.server is the right one".to_owned(),
        ),
        Told::Interface => {
            ("the mesh's interface is gone".to_owned(), "look at the log of tailscaled.service".to_owned())
        }
        Told::Option => (
            "K3s does not know a setting".to_owned(),
            "correct cluster.config of the profile; /etc/rancher/k3s/config.yaml shows what was made of it".to_owned(),
        ),
        Told::ServerStarts | Told::Unreachable => (
            "the cluster's API does not get ready".to_owned(),
            "look at the log of k3s.service on the control node".to_owned(),
        ),
    };
    (what, remedy)
}
