//! `seen`: an edge node says that it is alive.
//!
//! A node of the cluster has its kubelet for that. For an edge a timer of systemd, which the step starts once the node
//! is registered, runs this program every five minutes: one connection, one write of the time to the key [`KEY`] of the
//! node's own ConfigMap, with the same narrow token. Nothing stays in memory, and nobody listens.
//!
//! The registry goes by the API's own clock ([`heard`]): a clock of the node that is wrong, or lies, moves nothing. One
//! that has said nothing for [`SILENCE`] is not called well any more. A failed attempt is told in the log of
//! `nodezero-seen.service` alone: the next one comes soon, and the registry notices.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use nodezero_profile::Role;
use nodezero_profile::node::Node;
use serde_json::json;

use super::{MANAGER as REGISTERS, edge, publish};
use crate::kubernetes::{Access, ApiError, Connection, Endpoint};
use crate::{mesh, run};

/// What runs this program, again and again.
pub(super) const TIMER: &str = "nodezero-seen.timer";
/// The key of the edge's ConfigMap.
const KEY: &str = "seen";
/// Apart from the step's own manager, so that neither takes away what the other said.
const MANAGER: &str = "nodezero-seen";
/// How long an edge may say nothing. It speaks every five minutes; one whose steps fail speaks every ten at least.
pub(crate) const SILENCE: SignedDuration = SignedDuration::from_secs(15 * 60);

/// Says once that this node is alive.
///
/// # Errors
/// When it is no edge node that registers, or the API does not take it.
pub(crate) fn main() -> anyhow::Result<()> {
    let node = run::read_node(Path::new(run::NODE_FILE))?;
    let access = access(&node, mesh::find)?;
    Ok(say(&access, &node.name)?)
}

/// As whom, and where; `find` knows the mesh.
fn access(node: &Node, find: impl FnOnce(&str) -> anyhow::Result<IpAddr>) -> anyhow::Result<Access> {
    let place = node.registration.as_ref().filter(|_| node.role == Role::Edge);
    let place = place.with_context(|| format!("{} is no edge node that registers", node.name))?;
    let endpoint = Endpoint::of(&place.server, find)?;
    let (authority, token_file) = (place.certificate_authority.clone(), place.token_file.clone());
    Ok(Access::Token { endpoint, authority, token_file })
}

pub(super) fn say(access: &Access, name: &str) -> Result<(), ApiError> {
    let name = edge::object_name(name);
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name },
        "data": { KEY: publish::now() } });
    Connection::open(access)?.apply::<ConfigMap>(MANAGER, &name, &object).map(drop)
}

/// When the API last took something that an edge says of itself.
pub(crate) fn heard(object: &ConfigMap) -> Option<Timestamp> {
    let entries = object.metadata.managed_fields.iter().flatten();
    let own = |manager: &str| [MANAGER, REGISTERS, publish::MANAGER].contains(&manager);
    let said = entries.filter(|entry| entry.manager.as_deref().is_some_and(own));
    said.filter_map(|entry| entry.time.as_ref()).map(|time| time.0).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::fake::{Fake, Reply};

    const PLACE: &str = "/api/v1/namespaces/nodezero-system/configmaps/registration-edge-1";

    fn node(fake: &Fake, directory: &Path, server: &str) -> Node {
        let token = directory.join("token");
        std::fs::write(&token, "narrow\n").expect("written");
        let json = json!({ "version": 1, "name": "edge-1", "role": "edge", "mesh": {},
            "registration": { "server": server, "tokenFile": token, "certificateAuthority": fake.authority() } });
        Node::parse(json.to_string().as_bytes()).unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[test]
    fn it_writes_the_time_and_nothing_else() {
        let directory = tempfile::tempdir().expect("tempdir");
        let fake = Fake::start_tls(|request| Reply::json(&request.body));
        let node = node(&fake, directory.path(), &format!("https://{}", fake.address));
        let access = access(&node, |_| unreachable!("an address needs no mesh")).expect("usable");
        say(&access, &node.name).expect("said");
        let requests = fake.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        assert_eq!(requests[0].authorization.as_deref(), Some("Bearer narrow"));
        let (path, manager, body) = fake.applied().remove(0);
        assert_eq!((path.as_str(), manager.as_str()), (PLACE, MANAGER));
        let data = body["data"].as_object().expect("data");
        assert_eq!(data.keys().collect::<Vec<_>>(), [KEY], "the registration and the status are others' to write");
        data[KEY].as_str().expect("text").parse::<Timestamp>().expect("a time");
    }

    #[test]
    fn refusals_are_told_without_the_token() {
        let directory = tempfile::tempdir().expect("tempdir");
        let fake = Fake::start_tls(|_| Reply::status(403, "forbidden"));
        let node = node(&fake, directory.path(), &format!("https://{}", fake.address));
        let access = access(&node, |_| unreachable!("an address needs no mesh")).expect("usable");
        let error = say(&access, &node.name).expect_err("refused").to_string();
        assert!(error.contains("403") && !error.contains("narrow"), "{error}");
    }

    #[test]
    fn who_registers_nowhere_has_nobody_to_tell() {
        let directory = tempfile::tempdir().expect("tempdir");
        let fake = Fake::start_tls(|_| Reply::status(500, ""));
        let edge = node(&fake, directory.path(), "control-1");
        let found = access(&edge, |name| anyhow::bail!("the mesh has no {name}")).map(drop);
        assert_eq!(found.expect_err("no mesh").to_string(), "the mesh has no control-1");
        let alone = Node::parse(br#"{"version":1,"name":"a","role":"edge"}"#).expect("a node");
        let error = access(&alone, |_| unreachable!("it has no server")).map(drop).expect_err("alone").to_string();
        assert_eq!(error, "a is no edge node that registers");
    }

    #[test]
    fn the_images_timer_runs_this_often_enough() {
        let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/files/edge/usr/lib/systemd/system");
        let unit =
            |name: &str| std::fs::read_to_string(units.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let timer = unit(TIMER);
        let minutes = timer.lines().find_map(|line| line.strip_prefix("OnUnitInactiveSec=")?.strip_suffix("min"));
        let minutes: i64 = minutes.and_then(|text| text.parse().ok()).expect("minutes");
        assert!(2 * minutes * 60 < SILENCE.as_secs(), "one may be lost: every {minutes} min");
        let service = unit(&TIMER.replace(".timer", ".service"));
        let runs = service.lines().find_map(|line| line.strip_prefix("ExecStart=-/usr/bin/"));
        let words = runs.expect("a program").split(' ').map(std::ffi::OsString::from);
        assert_eq!(crate::cli::Invocation::parse(words), Ok(crate::cli::Invocation::Seen));
    }

    #[test]
    fn the_last_word_of_the_node_itself_counts() {
        let entry = |manager: &str, time: &str| json!({ "manager": manager, "operation": "Apply", "time": time });
        for (case, entries, expected) in [
            ("nobody", vec![], None),
            ("the operator", vec![entry("nodezero-cli", "2026-11-21T12:00:00Z")], None),
            (
                "the node",
                vec![
                    entry(REGISTERS, "2026-11-21T10:00:00Z"),
                    entry(MANAGER, "2026-11-21T11:00:00Z"),
                    entry(publish::MANAGER, "2026-11-21T10:30:00Z"),
                    entry("kubectl", "2026-11-21T12:00:00Z"),
                ],
                Some("2026-11-21T11:00:00Z"),
            ),
        ] {
            let object = json!({ "metadata": { "name": "registration-edge-1", "managedFields": entries } });
            let object: ConfigMap = serde_json::from_value(object).expect(case);
            assert_eq!(heard(&object).map(|time| time.to_string()).as_deref(), expected, "{case}");
        }
    }
}
