//! From a tailscaled that runs to a node that is in the mesh, in a bounded time, with a word about each wait.

use std::time::Duration;

use nodezero_profile::node::join;
use serde_json::{Value, json};

use super::INTERFACE;
use super::local_api::{AuthKey, LocalApi, Preferences};
use super::machine::Machine;
use super::status::{BackendState, LoginError, RATE_LIMITED, Status};
use crate::run::time::span;
use crate::summary::Failure;

/// The control server of a tailscaled that is told of none.
const TAILSCALE: &str = "https://controlplane.tailscale.com";
/// How long a node that has been in the mesh waits for the control server, before it goes on without.
const CUT_OFF_PATIENCE: Duration = Duration::from_secs(60);
/// How long a word of the control server may be one about an earlier attempt.
const ECHO: Duration = Duration::from_secs(10);
/// How long the control server may say nothing at all about a key, before it is presented over another connection:
/// tailscaled would wait on the one that it has, which may lead to nobody any more.
const SILENCE: Duration = Duration::from_secs(90);
/// How often tailscaled is asked, and how often something is said.
const PAUSE: Duration = Duration::from_millis(500);
const WORD: Duration = Duration::from_secs(30);

/// What is joined, and by what.
pub(super) struct Joining<'a> {
    pub(super) api: &'a LocalApi,
    pub(super) machine: &'a dyn Machine,
    /// The node's name.
    pub(super) name: &'a str,
    pub(super) settings: &'a join::Mesh,
    /// How long it may take.
    pub(super) patience: Duration,
}

/// How it ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The node is in.
    In(Status),
    /// It is enrolled, and the control server or the mesh does not answer, as one line.
    CutOff(String),
}

/// What is remembered between two looks.
struct Progress {
    since: Duration,
    /// When the key was presented, and what stood there about an earlier attempt.
    presented: Option<(Duration, Option<LoginError>)>,
    adjusted: bool,
    waits_for: String,
    next_word: Duration,
}

impl Joining<'_> {
    /// Waits until the node is in; presents the key where it is not enrolled. `was_in` says that it has been in at an
    /// earlier start.
    ///
    /// # Errors
    /// When it is refused, or the time is over.
    pub(super) fn join(
        &self,
        key: Option<&AuthKey>,
        was_in: bool,
        say: &mut dyn FnMut(&str),
    ) -> Result<Outcome, Failure> {
        let since = self.machine.elapsed();
        let waits_for = "tailscaled to answer".to_owned();
        let mut progress = Progress { since, presented: None, adjusted: false, waits_for, next_word: WORD };
        let mut last = None;
        loop {
            match self.api.status() {
                Ok(status) => {
                    if self.is_in(&status)? && progress.adjusted {
                        return Ok(Outcome::In(status));
                    }
                    self.advance(&status, key, &mut progress)?;
                    progress.waits_for = self.waits_for(&status);
                    last = Some(status);
                }
                Err(error) => progress.waits_for = format!("tailscaled to answer: {error:#}"),
            }
            if self.machine.is_stopped() {
                return Err(Failure::new("the wait for the mesh was ended", "the service stops", "start it again"));
            }
            let waited = self.machine.elapsed().saturating_sub(progress.since);
            let bearable = was_in && last.as_ref().is_some_and(can_be_cut_off);
            let patience = if bearable { self.patience.min(CUT_OFF_PATIENCE) } else { self.patience };
            if waited >= patience {
                let why = format!("waited {} for {}", span(waited), progress.waits_for);
                return if bearable { Ok(Outcome::CutOff(why)) } else { Err(self.too_late(last.as_ref(), why)) };
            }
            if waited >= progress.next_word {
                say(&format!("waiting for {}, since {} of {}", progress.waits_for, span(waited), span(patience)));
                progress.next_word += WORD;
            }
            self.machine.pause(PAUSE);
        }
    }

    /// Whether the node is in, with its address on the interface.
    ///
    /// # Errors
    /// When it is in under another name.
    pub(super) fn is_in(&self, status: &Status) -> Result<bool, Failure> {
        let there = self.machine.addresses();
        let placed = status.addresses.first().is_some_and(|address| there.contains(address));
        if status.state != BackendState::Running || !placed {
            return Ok(false);
        }
        match &status.name {
            Some(name) if name != self.name => {
                let what = format!("the mesh calls this node {name}, and not {}", self.name);
                let why = format!("another machine at {} is called {}", self.server(), self.name);
                let remedy = format!(
                    "where that is an earlier installation of this machine, delete it there and rename {name} to {}; else give this node another name",
                    self.name
                );
                Err(Failure::new(what, why, remedy).retrying())
            }
            Some(_) | None => Ok(true),
        }
    }

    /// Does what is to be done at this state, once.
    fn advance(&self, status: &Status, key: Option<&AuthKey>, progress: &mut Progress) -> Result<(), Failure> {
        let now = self.machine.elapsed();
        let wants_key = !status.enrolled || status.state == BackendState::NeedsLogin;
        match (&progress.presented, wants_key) {
            (None, true) => self.present(status, key, progress),
            (None, false) if !progress.adjusted => {
                let preferences = self.preferences()?;
                self.is_same_server(&preferences)?;
                let changes = differing(&self.wanted(), &preferences);
                if !changes.is_empty() {
                    self.api.change(&changes).map_err(not_taken)?;
                }
                progress.adjusted = true;
                Ok(())
            }
            (Some((at, before)), true) => match status.login_error() {
                Some(LoginError::Refused(words)) => {
                    let echo = before.as_ref() == Some(&LoginError::Refused(words.clone()));
                    let may_be_echo = echo && now.saturating_sub(*at) < ECHO;
                    if may_be_echo { Ok(()) } else { Err(self.refused(&words)) }
                }
                None if status.login_page.is_none() && now.saturating_sub(*at) >= SILENCE => {
                    self.present(status, key, progress)
                }
                Some(LoginError::Unreached(_)) | None => Ok(()),
            },
            (None | Some(_), false) => Ok(()),
        }
    }

    fn present(&self, status: &Status, key: Option<&AuthKey>, progress: &mut Progress) -> Result<(), Failure> {
        let key = key.ok_or_else(|| self.no_key(status))?;
        let preferences = self.preferences()?;
        let all = preferences.into_iter().chain(self.wanted()).collect();
        self.api.join(all, key).map_err(not_taken)?;
        (progress.presented, progress.adjusted) = (Some((self.machine.elapsed(), status.login_error())), true);
        Ok(())
    }

    fn preferences(&self) -> Result<Preferences, Failure> {
        let retry = "it is tried again; if this stays, look at the journal of the unit tailscaled";
        let asked = self.api.preferences();
        asked.map_err(|error| Failure::new("tailscaled does not answer", format!("{error:#}"), retry).retrying())
    }

    /// The preferences that shall be.
    pub(super) fn wanted(&self) -> Preferences {
        let server = self.settings.login_server.as_deref().unwrap_or_default();
        let wanted = json!({
            "ControlURL": server,
            "Hostname": self.name,
            "AdvertiseTags": self.settings.tags,
            "WantRunning": true,
            "LoggedOut": false,
            "CorpDNS": true,
            "RouteAll": false,
            "NetfilterMode": 2,
            "ShieldsUp": false,
            "RunSSH": false,
            "AdvertiseRoutes": [],
            "AutoUpdate": { "Check": false, "Apply": false },
        });
        match wanted {
            Value::Object(wanted) => wanted,
            _ => unreachable!("it is written as an object above"),
        }
    }

    /// An enrolled node is what its control server knows it as.
    fn is_same_server(&self, preferences: &Preferences) -> Result<(), Failure> {
        let found = preferences.get("ControlURL").and_then(Value::as_str).unwrap_or_default();
        if server(found) == server(self.server()) {
            return Ok(());
        }
        let why = format!("it is enrolled at {}, the profile names {}", server(found), self.server());
        let remedy = "put the profile's loginServer back; to move the node, erase its partition `state` and give it an auth key of the other one";
        Err(Failure::new("this node is in another mesh", why, remedy))
    }

    fn server(&self) -> &str {
        server(self.settings.login_server.as_deref().unwrap_or_default())
    }

    /// What is waited for in this state.
    fn waits_for(&self, status: &Status) -> String {
        let server = self.server();
        match (&status.state, status.login_error(), &status.login_page) {
            (BackendState::NoState | BackendState::NeedsLogin, Some(LoginError::Unreached(error)), _) => {
                format!("the control server {server}: {error}")
            }
            (BackendState::NeedsLogin, _, Some(page)) => {
                format!("somebody to log in at {page}: the auth key is not enough")
            }
            (BackendState::NoState | BackendState::NeedsLogin, _, _) => {
                format!("an answer of the control server {server}")
            }
            (BackendState::NeedsMachineAuth, _, _) => format!("somebody to approve this machine at {server}"),
            (BackendState::Starting, _, _) => {
                let health = status.health.join("; ");
                let told = if health.is_empty() { health } else { format!(": {health}") };
                format!("a relay or another machine of the mesh{told}")
            }
            (BackendState::Running, _, _) => format!("its address on {INTERFACE}"),
            (BackendState::Stopped | BackendState::Unknown, _, _) => format!("tailscaled, which is {}", status.state),
        }
    }

    fn no_key(&self, status: &Status) -> Failure {
        let remedy = "make an auth key at the control server, render the profile with it, and give this machine the new configuration";
        let file = self.settings.auth_key_file.as_ref();
        if status.enrolled {
            let mut why =
                format!("{} wants a login: the node was deleted there, or its key has expired", self.server());
            let mut remedy = remedy.to_owned();
            // tailscaled goes by the clock here, and asks nobody.
            if let Some(doubt) = self.machine.clock_doubt() {
                why.push_str(&format!("; {doubt}"));
                remedy = format!(
                    "if the clock is wrong, see that its time servers are reached (time.servers), or set the firmware's clock and restart; else {remedy}"
                );
            }
            return Failure::new("this node is no longer in the mesh", why, remedy).retrying();
        }
        let why = file.map_or("the profile names no mesh.authKeyFile".to_owned(), |path| {
            format!("there is no {}, and this node is not enrolled at {}", path.display(), self.server())
        });
        Failure::new("this node has no auth key for the mesh", why, remedy)
    }

    fn refused(&self, words: &str) -> Failure {
        let tags = self.settings.tags.join(", ");
        let tags = if tags.is_empty() { tags } else { format!(" that may have {tags}") };
        let remedy = format!(
            "make another auth key{tags} there, render the profile with it, and give this machine the new configuration"
        );
        let what = "the control server of the mesh refuses this node";
        Failure::new(what, format!("{} answers: {words}", self.server()), remedy).retrying()
    }

    fn too_late(&self, last: Option<&Status>, why: String) -> Failure {
        let error = last.and_then(Status::login_error);
        let (what, remedy) = match (last.map(|status| &status.state), error) {
            (None, _) => ("tailscaled does not answer", "look at the journal of the unit tailscaled"),
            (Some(_), Some(LoginError::Unreached(error))) if error.contains("x509: certificate") => (
                "the control server of the mesh cannot be trusted",
                "look at this machine's clock (the step time) and at the server's certificate",
            ),
            (Some(_), Some(LoginError::Unreached(error))) if error.starts_with(RATE_LIMITED) => (
                "the control server of the mesh puts this node off",
                "it is asked again; if this stays, see who asks it so often",
            ),
            (Some(BackendState::NeedsMachineAuth), _) => (
                "this machine is not approved in the mesh",
                "approve it at the control server, or use a key that is approved beforehand",
            ),
            (Some(BackendState::Starting | BackendState::Running), _) => (
                "the mesh is joined and not reached",
                "see that UDP and HTTPS to its relays (DERP) go out of this network",
            ),
            (Some(_), _) => (
                "the control server of the mesh is not reached",
                "look at the uplink, at the firewall before it, and at the profile's mesh.loginServer",
            ),
        };
        Failure::new(what, why, remedy).retrying()
    }
}

/// Whether an enrolled node may go on in this state without the control server: it has not been refused.
fn can_be_cut_off(status: &Status) -> bool {
    match status.state {
        BackendState::NoState | BackendState::Starting => {
            status.enrolled && !matches!(status.login_error(), Some(LoginError::Refused(_)))
        }
        BackendState::NeedsLogin
        | BackendState::NeedsMachineAuth
        | BackendState::Stopped
        | BackendState::Running
        | BackendState::Unknown => false,
    }
}

/// The wanted preferences that are others now.
pub(super) fn differing(wanted: &Preferences, now: &Preferences) -> Preferences {
    let is_same = |name: &str, wanted: &Value| match (wanted, now.get(name)) {
        (Value::String(wanted), Some(Value::String(now))) if name == "ControlURL" => server(wanted) == server(now),
        (Value::Array(wanted), None | Some(Value::Null)) => wanted.is_empty(),
        (wanted, now) => Some(wanted) == now,
    };
    let differing = wanted.iter().filter(|(name, value)| !is_same(name, value));
    differing.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// A control server's address in one form.
fn server(url: &str) -> &str {
    match url.trim_end_matches('/') {
        "" => TAILSCALE,
        url => url,
    }
}

fn not_taken(error: anyhow::Error) -> Failure {
    let remedy = "correct the profile's mesh; if it is right, look at the journal of the unit tailscaled";
    Failure::new("tailscaled does not take the profile's settings", format!("{error:#}"), remedy).retrying()
}
