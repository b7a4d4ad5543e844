//! What tailscaled says of itself: the answer of its local API to `GET /localapi/v0/status`.
//!
//! Its form is `ipn/ipnstate.Status` of Tailscale's source. Fields that are not used here are passed over, as each
//! version has others.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;

/// What precedes the control server's word, or the reason why there is none, in a health message.
const LOGIN_ERROR: &str = "The last login error was: ";
/// How such a message begins when the control server wants to be asked later.
pub(super) const RATE_LIMITED: &str = "node registration rate limited";
/// How such a message begins when the control server has not been reached, or not understood, or wants to be asked later.
const UNREACHED: [&str; 5] = ["fetch control key:", "getNoiseClient:", "register request:", "hostinfo:", RATE_LIMITED];
/// How it begins when the control server refused, not by its protocol's words but by HTTP, as older versions of Headscale
/// do. It is the server itself: nobody in between sees what is asked for.
const REFUSED: [&str; 3] =
    ["register request: http 400:", "register request: http 401:", "register request: http 403:"];

/// Where tailscaled is on its way into the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum BackendState {
    /// It has not heard from the control server since it was started.
    NoState,
    /// It needs an auth key.
    NeedsLogin,
    /// Somebody has to approve the machine.
    NeedsMachineAuth,
    /// It was told to stay out.
    Stopped,
    /// It has a map of the mesh, and no way to others yet.
    Starting,
    /// It is in.
    Running,
    /// Another one: its name is lost, as serde gives no text to this variant.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// tailscaled's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// Where it is on its way.
    pub(crate) state: BackendState,
    /// Whether it has a key that the control server knew at some time.
    pub(crate) enrolled: bool,
    /// The control server wants somebody to log in at this address.
    pub(crate) login_page: Option<String>,
    /// This node's addresses in the mesh, IPv4 first.
    pub(crate) addresses: Vec<IpAddr>,
    /// This node's name in the mesh, and the domain after it.
    pub(crate) name: Option<String>,
    /// Domain of the mesh, without dots at either end.
    pub(crate) domain: Option<String>,
    /// The other machines.
    pub(crate) peers: Vec<Peer>,
    /// What it finds wrong with itself.
    pub(crate) health: Vec<String>,
}

/// Another machine of the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The first label of its DNS name.
    pub(crate) name: String,
    /// Its addresses, IPv4 first.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether the control server hears from it.
    pub(crate) online: bool,
}

/// Why tailscaled is not in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LoginError {
    /// The control server has not been reached, or answers nonsense, or wants to be asked later.
    Unreached(String),
    /// It refused, in these words.
    Refused(String),
}

impl Status {
    /// Parses the answer.
    ///
    /// # Errors
    /// When it is not JSON of this form.
    pub(crate) fn parse(json: &[u8]) -> serde_json::Result<Self> {
        let raw: RawStatus = serde_json::from_slice(json)?;
        let (name, domain) = raw.own.as_ref().map_or((None, None), |own| split(&own.dns_name));
        let peers = raw.peer.unwrap_or_default().into_values().filter_map(|peer| {
            let name = split(&peer.dns_name).0?;
            let addresses = sorted(peer.tailscale_ips.unwrap_or_default());
            Some(Peer { name, addresses, online: peer.online })
        });
        Ok(Self {
            state: raw.backend_state,
            enrolled: raw.have_node_key,
            login_page: Some(raw.auth_url).filter(|page| !page.is_empty()),
            addresses: sorted(raw.tailscale_ips.unwrap_or_default()),
            name,
            domain,
            peers: peers.collect(),
            health: raw.health.unwrap_or_default(),
        })
    }

    /// Why the last attempt to log in failed.
    pub(crate) fn login_error(&self) -> Option<LoginError> {
        let error =
            self.health.iter().find_map(|message| Some(message.split_once(LOGIN_ERROR)?.1.trim().to_owned()))?;
        let begins_as = |begins: &[&str]| begins.iter().any(|begin| error.starts_with(begin));
        let unreached = begins_as(&UNREACHED) && !begins_as(&REFUSED);
        Some(if unreached { LoginError::Unreached(error) } else { LoginError::Refused(error) })
    }

    /// The addresses of the machine with this name, this node itself included; IPv4 first.
    ///
    /// # Errors
    /// With how many there are, when there is not one.
    pub(crate) fn find(&self, name: &str) -> Result<&[IpAddr], usize> {
        let own = self.name.as_deref().map(|own| (own, &self.addresses));
        let peers = self.peers.iter().map(|peer| (&*peer.name, &peer.addresses));
        let mut found = own.into_iter().chain(peers).filter(|(known, _)| known.eq_ignore_ascii_case(name));
        match (found.next(), found.count()) {
            (Some((_, addresses)), 0) => Ok(addresses),
            (None, _) => Err(0),
            (Some(_), more) => Err(1 + more),
        }
    }
}

/// The first label of a DNS name and the rest, without the dot at the end.
fn split(dns_name: &str) -> (Option<String>, Option<String>) {
    let (label, domain) = dns_name.trim_end_matches('.').split_once('.').unwrap_or((dns_name, ""));
    let some = |text: &str| Some(text.to_ascii_lowercase()).filter(|text| !text.is_empty());
    (some(label), some(domain))
}

/// IPv4 before IPv6.
fn sorted(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort();
    addresses
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawStatus {
    backend_state: BackendState,
    #[serde(default)]
    have_node_key: bool,
    #[serde(rename = "AuthURL", default)]
    auth_url: String,
    #[serde(rename = "TailscaleIPs")]
    tailscale_ips: Option<Vec<IpAddr>>,
    #[serde(rename = "Self")]
    own: Option<RawPeer>,
    peer: Option<BTreeMap<String, RawPeer>>,
    health: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawPeer {
    #[serde(rename = "DNSName", default)]
    dns_name: String,
    #[serde(rename = "TailscaleIPs")]
    tailscale_ips: Option<Vec<IpAddr>>,
    #[serde(default)]
    online: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_parsed() {
        let json = r#"{"Version":"1.100.0","TUN":true,"BackendState":"Running","HaveNodeKey":true,"AuthURL":"",
            "TailscaleIPs":["fd7a:115c:a1e0::1","100.64.0.1"],"Self":{"DNSName":"Worker-1.mesh.test.","HostName":"worker-1"},
            "Health":[],"Peer":{"nodekey:1":{"DNSName":"control-1.mesh.test.","TailscaleIPs":["100.64.0.2"],"Online":true},
            "nodekey:2":{"DNSName":"phone.mesh.test.","TailscaleIPs":null},"nodekey:3":{"DNSName":"","TailscaleIPs":["100.64.0.9"]}}}"#;
        let status = Status::parse(json.as_bytes()).expect("parses");
        assert_eq!(
            (status.state.clone(), status.enrolled, status.login_page.clone()),
            (BackendState::Running, true, None)
        );
        assert_eq!((status.name.as_deref(), status.domain.as_deref()), (Some("worker-1"), Some("mesh.test")));
        assert!(status.addresses[0].is_ipv4() && status.addresses.len() == 2, "{status:?}");
        assert_eq!(status.peers.len(), 2, "one without a name is none");
        assert!(status.peers[0].online && !status.peers[1].online);
        let address = |name| status.find(name).map(|found| found.iter().map(IpAddr::to_string).collect::<Vec<_>>());
        assert_eq!(address("control-1"), Ok(vec!["100.64.0.2".to_owned()]));
        assert_eq!(address("CONTROL-1"), Ok(vec!["100.64.0.2".to_owned()]));
        assert_eq!(address("phone"), Ok(vec![]));
        assert_eq!(address("worker-1").map(|found| found.len()), Ok(2));
        assert_eq!(address("control"), Err(0));
        let twice = json.replace("phone", "control-1");
        assert_eq!(Status::parse(twice.as_bytes()).expect("parses").find("control-1"), Err(2));
    }

    #[test]
    fn a_status_without_a_map_is_parsed() {
        for (case, json, state) in [
            (
                "fresh",
                r#"{"BackendState":"NeedsLogin","TailscaleIPs":null,"Self":{"DNSName":""},"Peer":null}"#,
                BackendState::NeedsLogin,
            ),
            ("least", r#"{"BackendState":"NoState"}"#, BackendState::NoState),
            ("newer", r#"{"BackendState":"InUseOtherUser"}"#, BackendState::Unknown),
        ] {
            let status = Status::parse(json.as_bytes()).expect(case);
            assert_eq!(
                (status.state, status.enrolled, status.name, status.addresses),
                (state, false, None, vec![]),
                "{case}"
            );
        }
        assert!(Status::parse(b"{}").is_err() && Status::parse(b"access denied").is_err());
    }

    #[test]
    fn refusals_are_told_from_silence() {
        let unreached = |words: &str| Some(LoginError::Unreached(words.to_owned()));
        let refused = |words: &str| Some(LoginError::Refused(words.to_owned()));
        for message in ["", "Tailscale is starting. Please wait.", "You are logged out."] {
            assert_eq!(login_error(message), None, "{message}");
        }
        for (words, expected) in [
            ("invalid key: API key does not exist", refused as fn(&str) -> _),
            ("fetch control key: 500 Internal Server Error", unreached),
            ("register request: http 502: bad gateway", unreached),
            ("register request: http 401:", refused),
            ("register request: http 400: invalid key: not valid", refused),
            ("node registration rate limited; will retry after 1s", unreached),
        ] {
            let message = format!("You are logged out. The last login error was: {words}");
            assert_eq!(login_error(&message), expected(words), "{message}");
        }
    }

    fn login_error(message: &str) -> Option<LoginError> {
        let json = serde_json::json!({"BackendState": "NoState", "Health": ["other", message]}).to_string();
        Status::parse(json.as_bytes()).expect("it parses").login_error()
    }
}
