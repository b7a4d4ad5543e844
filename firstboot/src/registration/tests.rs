//! The step against an API that is played: what each role writes, that a second run writes nothing, and how refusals
//! are told.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use nodezero_profile::inventory::Transport;
use serde_json::{Value, json};

use super::publish::Told;
use super::*;
use crate::data_disks::Prepared;
use crate::kubernetes::fake::{Fake, Reply, Request};
use crate::registry::derive::{Health, derive};

/// A disk that was sold as 18 TB.
pub(super) fn prepared(name: &str) -> Prepared {
    Prepared {
        entry: "bulk".into(),
        serial: name.to_ascii_uppercase(),
        size: 18_000_000_000_000,
        transport: Transport::Sata,
        rotational: true,
        mount: format!("/var/mnt/longhorn/{name}").into(),
    }
}

struct Here;

impl Mesh for Here {
    fn address(&self, _journal: &Journal) -> Result<IpAddr, Failure> {
        Ok(IpAddr::from([100, 64, 0, 7]))
    }

    fn resolve(&self, _journal: &mut Journal, _name: &str) -> Result<IpAddr, Failure> {
        Ok(IpAddr::from([127, 0, 0, 1]))
    }
}

/// What was asked of systemd.
#[derive(Clone, Default)]
pub(super) struct Noted(pub(super) Rc<RefCell<Vec<String>>>);

impl control::Services for Noted {
    fn hand_over(&self, kubeconfig: &[u8]) -> anyhow::Result<()> {
        self.0.borrow_mut().push(String::from_utf8(kubeconfig.to_vec())?);
        Ok(())
    }

    fn start(&self, unit: &str) -> anyhow::Result<()> {
        self.0.borrow_mut().push(format!("start {unit}"));
        Ok(())
    }
}

/// An API that keeps what is applied, with the fields of each manager.
fn keeping(objects: BTreeMap<String, Value>) -> impl Fn(&Request) -> Reply {
    let objects = Mutex::new(objects);
    move |request: &Request| {
        let mut objects = objects.lock().expect("no panic");
        match request.method.as_str() {
            "POST" if request.path.ends_with("/token") => {
                Reply::json(&json!({ "metadata": {}, "spec": { "audiences": [] },
                    "status": { "token": "minted", "expirationTimestamp": "2030-01-01T00:00:00Z" } }))
            }
            "GET" => objects.get(&request.path).map_or_else(|| Reply::status(404, "not found"), Reply::json),
            _ => {
                let mut object = request.body.clone();
                let names = |field: &str| -> serde_json::Map<String, Value> {
                    let map = request.body["metadata"][field].as_object().cloned().unwrap_or_default();
                    map.keys().map(|key| (format!("f:{key}"), json!({}))).collect()
                };
                object["metadata"]["managedFields"] = json!([{ "manager": MANAGER, "operation": "Apply",
                    "fieldsV1": { "f:metadata": { "f:labels": names("labels"), "f:annotations": names("annotations") } } }]);
                objects.insert(request.path.clone(), object.clone());
                Reply::json(&object)
            }
        }
    }
}

pub(super) struct Rig {
    fake: Arc<Fake>,
    pub(super) directory: tempfile::TempDir,
    journal: Journal,
    pub(super) noted: Noted,
    pub(super) target: Target,
    pub(super) step: Registration,
}

pub(super) fn rig(json: &str, fake: Fake, disks: Vec<Prepared>) -> Rig {
    let directory = tempfile::tempdir().expect("tempdir");
    let journal = Journal::open(&directory.path().join("journal"), "a").expect("opened");
    let node = Node::parse(json.as_bytes()).unwrap_or_else(|problems| panic!("{json}: {problems}"));
    let (noted, target) = (Noted::default(), Target::of(&node));
    let mut step = Registration::new(&node, Some("0.1.0".into()), target.clone()).expect("it registers");
    step.mesh = Box::new(Here);
    step.services = Box::new(noted.clone());
    step.disks = Box::new(move |_, _| Ok(disks.clone()));
    let fake = Arc::new(fake);
    if let Way::Kubelet { .. } = step.way {
        let Access::File { path, .. } = fake.access() else { panic!("a file") };
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("there")).expect("JSON");
        config["clusters"][0]["cluster"]["certificate-authority-data"] = json!("UEVN");
        step.admin = directory.path().join("k3s.yaml");
        std::fs::write(&step.admin, config.to_string()).expect("written");
        step.kubelet = fake.access();
    }
    Rig { fake, directory, journal, noted, target, step }
}

impl Rig {
    pub(super) fn run(&mut self) -> Result<String, Failure> {
        let mut said = String::new();
        let Self { step, journal, .. } = self;
        step.check(journal)?;
        step.apply(journal, &mut |line| said = line.to_owned())?;
        step.verify(journal)?;
        Ok(said)
    }
}

pub(super) fn cluster_node(role: &str) -> String {
    format!(
        r#"{{"version":1,"name":"n-1","role":"{role}","mesh":{{}},"profile":"{}","cluster":{{"server":"control-1",
            "tokenFile":"/t","labels":{{"site":"home","node-role.kubernetes.io/x":"y"}}}}}}"#,
        "ab".repeat(32)
    )
}

fn known(paths: &[&str]) -> BTreeMap<String, Value> {
    paths.iter().map(|path| ((*path).to_owned(), json!({ "metadata": { "name": "x" } }))).collect()
}

const NODE: &str = "/api/v1/nodes/n-1";

#[test]
fn a_worker_writes_its_own_node_and_a_second_run_writes_nothing() {
    let disks = vec![prepared("z1"), prepared("z2")];
    let mut rig = rig(&cluster_node("worker"), Fake::start(keeping(known(&[NODE]))), disks);
    assert_eq!(rig.run().expect("registered"), "the Node is written, with 2 data disks");
    let applied = rig.fake.applied();
    assert_eq!(applied.len(), 1, "{applied:?}");
    let (path, manager, body) = &applied[0];
    assert_eq!((path.as_str(), manager.as_str()), (NODE, "nodezero"));
    assert_eq!(
        body["metadata"]["labels"],
        json!({ "nodezero.dev/role": "worker", "site": "home", "node.longhorn.io/create-default-disk": "config" })
    );
    let annotations = &body["metadata"]["annotations"];
    assert_eq!(annotations["nodezero.dev/mesh-address"], "100.64.0.7");
    assert_eq!(annotations["nodezero.dev/version"], "0.1.0");
    assert_eq!(annotations["nodezero.dev/profile"], "ab".repeat(32));
    let disks: Vec<DiskFact> =
        serde_json::from_str(annotations["nodezero.dev/disks"].as_str().expect("text")).expect("JSON");
    assert_eq!((disks.len(), disks[0].serial.as_str(), disks[0].mount.as_str()), (2, "Z1", "/var/mnt/longhorn/z1"));
    assert_eq!(rig.run().expect("registered"), "the Node is as it shall be, with 2 data disks");
    assert_eq!(rig.fake.applied().len(), 1);
    // Without its disks, what was said of them goes away.
    rig.step.disks = Box::new(|_, _| Ok(Vec::new()));
    assert_eq!(rig.run().expect("registered"), "the Node is written");
    assert_eq!(rig.fake.applied()[1].2["metadata"]["labels"].as_object().expect("labels").len(), 2);
    assert!(rig.noted.0.borrow().is_empty(), "no registry on a worker");
}

#[test]
fn a_control_node_makes_the_registry() {
    let mut rig = rig(&cluster_node("control"), Fake::start(keeping(known(&[NODE]))), vec![]);
    rig.run().expect("registered");
    let paths: Vec<String> = rig.fake.applied().into_iter().map(|(path, ..)| path).collect();
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    assert_eq!(
        paths,
        [
            NODE.to_owned(),
            "/api/v1/namespaces/nodezero-system".to_owned(),
            format!("{rbac}/clusterroles/node-registry"),
            format!("{rbac}/clusterrolebindings/node-registry"),
            "/api/v1/namespaces/nodezero-system/serviceaccounts/node-registry".to_owned(),
            format!("{rbac}/namespaces/nodezero-system/roles/node-registry"),
            format!("{rbac}/namespaces/nodezero-system/rolebindings/node-registry"),
            "/api/v1/namespaces/nodezero-system/configmaps/node-registry".to_owned(),
        ]
    );
    let rights: Vec<Value> = rig
        .fake
        .applied()
        .into_iter()
        .flat_map(|(.., body)| body["rules"].as_array().cloned().unwrap_or_default())
        .collect();
    let all = serde_json::to_string(&rights).expect("JSON");
    assert!(
        !all.contains("secrets") && !all.contains('*') && !all.contains("create") && !all.contains("delete"),
        "{all}"
    );
    let configmap = rig.fake.applied().pop().expect("the last").2;
    assert!(configmap.get("data").is_none(), "the registry's content is the registry's");
    let noted = rig.noted.0.borrow();
    let kubeconfig: Value = serde_json::from_str(&noted[0]).expect("JSON");
    assert_eq!(kubeconfig["users"][0]["user"]["token"], "minted");
    assert_eq!(kubeconfig["clusters"][0]["cluster"]["server"], "https://127.0.0.1:6443");
    assert_eq!(kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"], "UEVN");
    assert_eq!(noted[1], "start nodezero-registry.service");
}

#[test]
fn refusals_of_a_cluster_are_told_and_tried_again() {
    let mut rig = rig(&cluster_node("worker"), Fake::start(|_| Reply::status(403, "nodes is forbidden")), vec![]);
    let failure = rig.run().expect_err("refused");
    assert!(failure.is_retried() && failure.why().contains("answered 403: nodes is forbidden"), "{failure}");
}

fn edge_node(fake: &Fake, directory: &std::path::Path) -> String {
    std::fs::write(directory.join("token"), "narrow\n").expect("written");
    json!({
        "version": 1, "name": "edge-1", "role": "edge", "mesh": {},
        "registration": { "server": format!("https://{}", fake.address), "tokenFile": directory.join("token"),
            "certificateAuthority": fake.authority() },
    })
    .to_string()
}

const PLACE: &str = "/api/v1/namespaces/nodezero-system/configmaps/registration-edge-1";
const ROUTES: &str = "/api/v1/namespaces/nodezero-system/configmaps/routes-edge-1";

#[test]
fn an_edge_writes_its_one_object() {
    let directory = tempfile::tempdir().expect("tempdir");
    let fake = Fake::start_tls(keeping(known(&[PLACE, ROUTES])));
    let json = edge_node(&fake, directory.path());
    let mut rig = rig(&json, fake, vec![]);
    assert_eq!(rig.target.publish_ready("x", &[]), None, "it has no place yet");
    assert_eq!(rig.run().expect("registered"), "the registration is written; its routes are there");
    let (path, _, body) = rig.fake.applied().pop().expect("applied");
    assert_eq!(path, PLACE);
    let written: edge::Written =
        serde_json::from_str(body["data"]["registration"].as_str().expect("text")).expect("JSON");
    assert_eq!((written.facts.name.as_str(), written.facts.role), ("edge-1", Role::Edge));
    assert_eq!(*rig.noted.0.borrow(), ["start nodezero-seen.timer"], "from now on it says that it is alive");
    assert_eq!(rig.run().expect("registered"), "the registration is as it shall be; its routes are there");
    assert_eq!(rig.fake.applied().len(), 1);
    assert!(rig.fake.requests().iter().all(|request| request.authorization.as_deref() == Some("Bearer narrow")));
    assert_eq!(rig.target.publish_ready("confirm", &[]), None);
    assert_eq!(rig.fake.applied().len(), 2, "its status has a place now");
    drop(rig.directory);
}

#[test]
fn what_keeps_an_edge_from_registering_has_its_remedy() {
    for (code, what, remedy) in [
        (401, "does not know this node's registration token", "nodezero node add edge-1"),
        (403, "no place for the registration of edge-1", "nodezero node add edge-1"),
        (404, "no place for the registration of edge-1", "nodezero node add edge-1"),
        (500, "cannot register", "control node is up"),
    ] {
        let directory = tempfile::tempdir().expect("tempdir");
        let fake = Fake::start_tls(move |_| Reply::status(code, "no"));
        let json = edge_node(&fake, directory.path());
        let failure = rig(&json, fake, vec![]).run().expect_err("refused");
        let told = format!("{} / {} / {}", failure.what(), failure.why(), failure.remedy());
        assert!(failure.what().contains(what) && failure.remedy().contains(remedy), "{code}: {told}");
        assert!(failure.is_retried() && !told.contains("narrow"), "{code}: {told}");
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let fake = Fake::start_tls(|_| Reply::status(404, "no"));
    let json = edge_node(&fake, directory.path());
    std::fs::remove_file(directory.path().join("token")).expect("removed");
    let failure = rig(&json, fake, vec![]).run().expect_err("no token");
    assert!(failure.remedy().contains("render the node anew"), "{failure}");
}

/// Whatever the step writes is refused, what is told of its state is not.
fn refusing(objects: BTreeMap<String, Value>) -> impl Fn(&Request) -> Reply {
    let kept = keeping(objects);
    move |request: &Request| {
        let is_step = request.query.split('&').any(|pair| pair == "fieldManager=nodezero");
        if request.method == "PATCH" && is_step { Reply::status(500, "no room") } else { kept(request) }
    }
}

#[test]
fn a_node_that_is_stuck_here_or_later_is_seen_in_the_registry() {
    let directory = tempfile::tempdir().expect("tempdir");
    let edges = Fake::start_tls(refusing(known(&[PLACE])));
    let edge = edge_node(&edges, directory.path());
    let nodes = || Fake::start(refusing(known(&[NODE])));
    for (json, fake, place) in
        [(edge, edges, PLACE), (cluster_node("worker"), nodes(), NODE), (cluster_node("control"), nodes(), NODE)]
    {
        let mut rig = rig(&json, fake, vec![]);
        if place == NODE {
            // In the image it is K3s' own file from the start.
            rig.target.set(rig.fake.access(), Object::Node("n-1".into()));
        }
        let failure = rig.run().expect_err("refused");
        for (step, failure) in [("registration", &failure), ("root", &Failure::new("a broken block", "x", "y"))] {
            assert_eq!(rig.target.publish(&Told::failed(step, failure)), None, "{place}");
            let (path, _, body) = rig.fake.applied().pop().expect("told");
            assert_eq!(path, place);
            let now = "2026-11-21T12:00:00Z";
            let written = json!([{ "manager": "nodezero-status", "operation": "Apply", "time": now }]);
            let mut object = body;
            object["metadata"]["managedFields"] = written;
            object["status"] = json!({ "conditions": [{ "type": "Ready", "status": "True" }] });
            let now = now.parse().expect("a time");
            let mut entries = if place == NODE {
                derive([&serde_json::from_value(object).expect("a Node")], [], now)
            } else {
                derive([], [&serde_json::from_value(object).expect("a ConfigMap")], now)
            };
            let (_, entry) = entries.pop_first().expect("an entry");
            assert_eq!((entry.health, entry.step.as_deref()), (Health::Stuck, Some(step)), "{place}");
            assert!(entry.message.is_some_and(|message| message.starts_with(failure.what())), "{place}");
        }
    }
}

#[test]
fn taints_are_mended_by_a_control_node_and_told_by_a_worker() {
    let tainted = || {
        let object = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n-1", "resourceVersion": "7",
            "annotations": { "nodezero.dev/taints": "[\"old:NoSchedule\"]" } },
            "spec": { "taints": [{ "key": "old", "effect": "NoSchedule" }] } });
        BTreeMap::from([(NODE.to_owned(), object)])
    };
    let profile =
        |role: &str| cluster_node(role).replace(r#""tokenFile""#, r#""taints":["new=x:NoExecute"],"tokenFile""#);
    let mut worker = rig(&profile("worker"), Fake::start(keeping(tainted())), vec![]);
    worker.run().expect("registered");
    let warnings = worker.step.warnings();
    assert!(
        warnings.len() == 1
            && warnings[0].ends_with("kubectl taint nodes n-1 --overwrite new=x:NoExecute old:NoSchedule-"),
        "{warnings:?}"
    );
    let (.., body) = worker.fake.applied().pop().expect("applied");
    assert_eq!(body.get("spec"), None, "a kubelet may not, and does not try");
    assert_eq!(body["metadata"]["annotations"]["nodezero.dev/taints"], r#"["new=x:NoExecute","old:NoSchedule"]"#);
    let mut control = rig(&profile("control"), Fake::start(keeping(tainted())), vec![]);
    control.run().expect("registered");
    let (path, _, body) = control.fake.applied().remove(0);
    assert_eq!((path.as_str(), &body["metadata"]["resourceVersion"]), (NODE, &json!("7")));
    assert_eq!(body["spec"]["taints"], json!([{ "key": "new", "value": "x", "effect": "NoExecute" }]));
    assert!(control.step.warnings().is_empty());
}

#[test]
fn who_registers_where_follows_from_the_profile() {
    for (case, json, expected) in [
        ("alone", r#"{"version":1,"name":"a","role":"worker"}"#, false),
        ("an edge alone", r#"{"version":1,"name":"a","role":"edge"}"#, false),
        ("in a cluster", &cluster_node("worker"), true),
    ] {
        let node = Node::parse(json.as_bytes()).expect(case);
        assert_eq!(Registration::new(&node, None, Target::of(&node)).is_some(), expected, "{case}");
    }
}
