//! `registry`: keeps the ConfigMap `node-registry` in step with what the cluster knows of its nodes.
//!
//! It watches Nodes, and the ConfigMaps in which edge nodes register, and applies what [`derive`] makes of them: after each
//! change, and every few minutes anyway, so that silence is noticed. What the object should be depends on the present
//! state and the time alone, never on what was seen before, so that a missed event costs minutes at most.
//!
//! Every control node runs one, without a leader: they derive the same from the same, and applying what is there
//! already changes nothing. One with an older view may write it once more, and mends that with its next event.
//!
//! It opens no port, keeps nothing on a disk, and ends on SIGTERM as any program does: there is nothing to finish. What it
//! may do in the cluster is in [`crate::registration::control`]. Left out: the passwords of nodes, which the operator's
//! `nodezero node readmit` removes; and Longhorn, which reads the Node's annotation by itself when a node comes back.

pub(crate) mod derive;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{Api, Patch};
use kube::core::Status;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt, reflector as reflect};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use self::derive::{Entry, derive};
use crate::boot::RUN_DIRECTORY;
use crate::kubernetes::{Access, NAMESPACE, REGISTRATION_LABEL, REGISTRY, answer, as_manager, chain, client_config};
use crate::registration::control::KUBECONFIG;

/// Under which name the API keeps what the registry applied.
const MANAGER: &str = "nodezero-registry";
/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_secs(1);
/// How often it is written although nothing changed.
const RESYNC: Duration = Duration::from_secs(300);
/// How long one write may take.
const WRITE: Duration = Duration::from_secs(20);

/// Where the service's credentials are: what systemd hands over, else where the step laid them.
fn credentials() -> PathBuf {
    let handed = std::env::var_os("CREDENTIALS_DIRECTORY").map(|directory| PathBuf::from(directory).join(KUBECONFIG));
    handed.unwrap_or_else(|| PathBuf::from(RUN_DIRECTORY).join(KUBECONFIG))
}

/// Keeps the registry until it is ended.
///
/// # Errors
/// When the credentials cannot be used, or are refused.
pub(crate) fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
    runtime.block_on(async {
        let path = credentials();
        let config =
            client_config(&Access::file(&path)).await.with_context(|| format!("reading {}", path.display()))?;
        println!("nodezero: registry: watching nodes and registrations at {}", config.cluster_url);
        keep(Client::try_from(config)?, RESYNC).await
    })
}

/// What happened to what is watched.
type Event = Result<(), watcher::Error>;

async fn keep(client: Client, resync: Duration) -> anyhow::Result<()> {
    let nameless = |node: &mut Node| node.managed_fields_mut().clear();
    let (nodes, node_events) = watch(Api::<Node>::all(client.clone()), watcher::Config::default(), nameless);
    let registrations = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE);
    // Who wrote last, and when, tells whether an edge is alive; what, does not matter.
    let fieldless =
        |edge: &mut ConfigMap| edge.managed_fields_mut().iter_mut().for_each(|entry| entry.fields_v1 = None);
    let (edges, edge_events) = watch(registrations, watcher::Config::default().labels(REGISTRATION_LABEL), fieldless);
    let mut events = futures::stream::select(node_events, edge_events);
    let mut ticks = interval_at(Instant::now() + resync, resync);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let registry = Api::<ConfigMap>::namespaced(client, NAMESPACE);
    let mut written: Option<BTreeMap<String, Entry>> = None;
    loop {
        tokio::select! {
            event = events.next() => take(event.context("the watch ended")?)?,
            _ = ticks.tick() => written = None,
        }
        if !(is_whole(&nodes).await && is_whole(&edges).await) {
            continue;
        }
        // Others that came at once are taken with it.
        gather(&mut events).await?;
        let (nodes, edges) = (nodes.state(), edges.state());
        let now = jiff::Timestamp::now();
        let entries = derive(nodes.iter().map(|node| &**node), edges.iter().map(|edge| &**edge), now);
        if written.as_ref() == Some(&entries) {
            continue;
        }
        match write(&registry, &entries).await {
            Ok(()) => {
                println!("nodezero: registry: {} nodes are written", entries.len());
                written = Some(entries);
            }
            // The next event, or the next round, tries again.
            Err(error) => {
                eprintln!("nodezero: registry: writing {REGISTRY}: {error:#}");
                written = None;
            }
        }
    }
}

/// A store that follows a collection, without what `slim` takes away, and a signal for each change of it.
fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    slim: impl FnMut(&mut K) + 'static,
) -> (Store<K>, impl Stream<Item = Event> + Unpin)
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let stream = watcher(api, config).default_backoff().modify(slim);
    (store, Box::pin(reflect(writer, stream).map(|event| event.map(drop))))
}

/// Takes one event in. Errors of a watch are told, and mended by its next attempt; a token that is refused is not.
fn take(event: Event) -> anyhow::Result<()> {
    let Err(error) = event else { return Ok(()) };
    let status = status_of(&error);
    let text = status.map_or_else(|| chain(&error), answer);
    let is_refused = status.is_some_and(|status| status.code == 401);
    anyhow::ensure!(!is_refused, "the registry's token is refused; a restart of this node makes another: {text}");
    eprintln!("nodezero: registry: watching: {text}");
    Ok(())
}

/// The API's answer, where that is what went wrong.
fn status_of(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}

/// Whether a store has had its first whole list: before that, what it lacks may well be there.
async fn is_whole<K>(store: &Store<K>) -> bool
where
    K: kube::Resource<DynamicType = ()> + Clone + 'static,
{
    matches!(tokio::time::timeout(Duration::ZERO, store.wait_until_ready()).await, Ok(Ok(())))
}

async fn gather(events: &mut (impl Stream<Item = Event> + Unpin)) -> anyhow::Result<()> {
    let end = sleep(GATHER);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return Ok(()),
            event = events.next() => take(event.context("the watch ended")?)?,
        }
    }
}

async fn write(registry: &Api<ConfigMap>, entries: &BTreeMap<String, Entry>) -> anyhow::Result<()> {
    let patch = patch(entries)?;
    let done = tokio::time::timeout(WRITE, registry.patch(REGISTRY, &as_manager(MANAGER), &Patch::Apply(patch))).await;
    let done = done.with_context(|| format!("nothing came within {} s", WRITE.as_secs()))?;
    done.map(drop).map_err(|error| match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", answer(&status)),
        error => anyhow::anyhow!("{}", chain(&error)),
    })
}

/// The whole of what this manager says: a node that is gone is said no longer.
fn patch(entries: &BTreeMap<String, Entry>) -> anyhow::Result<Value> {
    let data: Result<BTreeMap<&String, String>, _> =
        entries.iter().map(|(name, entry)| Ok((name, serde_json::to_string(entry)?))).collect();
    let data = data.map_err(|error: serde_json::Error| error).context("writing an entry as JSON")?;
    Ok(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": REGISTRY, "namespace": NAMESPACE },
        "data": data }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::kubernetes::fake::{Fake, Reply};

    /// An API whose watches end at once, so that each round is a list.
    fn fake(nodes: &'static [&'static str], code: u16) -> Fake {
        let lists = Arc::new(AtomicU64::new(0));
        Fake::start(move |request| {
            if code != 200 {
                return Reply::status(code, "no");
            }
            if request.method == "PATCH" {
                return Reply::json(&request.body);
            }
            if request.query.contains("watch=true") {
                return Reply::status(410, "too old");
            }
            let version = lists.fetch_add(1, Ordering::Relaxed).to_string();
            let items: Vec<Value> = match request.path.as_str() {
                "/api/v1/nodes" => nodes.iter().map(|name| json!({ "metadata": { "name": name } })).collect(),
                _ => vec![json!({ "metadata": { "name": "registration-edge-1" } })],
            };
            Reply::json(&json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": version },
                "items": items }))
        })
    }

    fn run(fake: &Fake, resync: Duration, length: Duration) -> Option<anyhow::Result<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio");
        runtime.block_on(async {
            let config = client_config(&fake.access()).await.expect("usable");
            let client = Client::try_from(config).expect("a client");
            tokio::time::timeout(length, keep(client, resync)).await.ok()
        })
    }

    #[test]
    fn what_is_watched_is_written_once_and_again_each_round() {
        let fake = fake(&["n-1", "n-2"], 200);
        assert!(run(&fake, Duration::from_secs(2), Duration::from_millis(4500)).is_none(), "it does not end");
        let applied = fake.applied();
        assert!((2..=3).contains(&applied.len()), "once, and each 2 s: {applied:?}");
        let (path, manager, body) = &applied[0];
        assert_eq!(path, "/api/v1/namespaces/nodezero-system/configmaps/node-registry");
        assert_eq!(manager, MANAGER);
        let data = body["data"].as_object().expect("data");
        assert_eq!(data.keys().collect::<Vec<_>>(), ["edge-1", "n-1", "n-2"]);
        let entry: Entry = serde_json::from_str(data["n-1"].as_str().expect("text")).expect("JSON");
        assert_eq!(entry.name, "n-1");
        let labelled = fake.requests().iter().any(|request| request.query.contains("labelSelector=nodezero.dev"));
        assert!(labelled, "only registrations are looked at");
    }

    #[test]
    fn a_refused_token_ends_it() {
        let fake = fake(&[], 401);
        let ended = run(&fake, Duration::from_secs(60), Duration::from_secs(20)).expect("it ends");
        let error = ended.expect_err("refused").to_string();
        assert!(error.contains("token is refused") && error.contains("restart of this node"), "{error}");
    }

    /// Against the cluster that `NODEZERO_TEST_KUBECONFIG` names; see [`crate::registration`]'s tests.
    #[test]
    fn a_real_cluster_is_watched() {
        let Some(path) = std::env::var_os("NODEZERO_TEST_KUBECONFIG") else {
            eprintln!("skipped: NODEZERO_TEST_KUBECONFIG names no cluster");
            return;
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio");
        let data = runtime.block_on(async {
            let config = client_config(&Access::file(path)).await.expect("usable");
            let client = Client::try_from(config).expect("a client");
            let nodes = Api::<Node>::all(client.clone());
            let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n-watched" } });
            let later = async {
                sleep(Duration::from_secs(4)).await;
                nodes.patch("n-watched", &as_manager("test"), &Patch::Apply(node)).await.expect("made");
                sleep(Duration::from_secs(5)).await;
            };
            tokio::select! {
                ended = keep(client.clone(), RESYNC) => panic!("{ended:?}"),
                () = later => {}
            }
            let registry = Api::<ConfigMap>::namespaced(client, NAMESPACE).get(REGISTRY).await;
            registry.expect("written").data.unwrap_or_default()
        });
        let entry: Entry = serde_json::from_str(&data["n-watched"]).expect("JSON");
        assert_eq!(entry.health, derive::Health::Unknown);
    }
}
