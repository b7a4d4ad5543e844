//! Adding nodes.

use std::fs;

use nodezero::secrets::Store;
use serde_json::{Value, json};

use crate::api::TOKEN;
use crate::{Operator, run};

const NAMESPACED: &str = "/api/v1/namespaces/nodezero-system";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/nodezero-system";

const ADD_EDGE: [&str; 7] = ["node", "add", "vps-1", "--role", "edge", "--auth-key-env", "TS_KEY"];

#[test]
fn an_edge_node_gets_an_account_of_its_own() {
    let operator = Operator::with_profiles();
    let outcome = operator.run(&ADD_EDGE).succeeds(&["edge-vps-1", "nodes/vps-1.yaml", "nodezero render vps-1"]);
    assert!(!format!("{outcome:?}").contains(TOKEN), "the token is shown: {outcome:#?}");
    let requests = operator.api.take_requests();
    let writes: Vec<String> =
        requests.iter().filter(|r| r.method != "GET").map(|r| format!("{} {}", r.method, r.path)).collect();
    assert_eq!(
        writes,
        [
            "PATCH /api/v1/namespaces/nodezero-system".to_owned(),
            format!("PATCH {NAMESPACED}/configmaps/registration-vps-1"),
            format!("PATCH {NAMESPACED}/configmaps/routes-vps-1"),
            format!("PATCH {RBAC}/roles/edge-vps-1"),
            format!("PATCH {RBAC}/rolebindings/edge-vps-1"),
            format!("PATCH {NAMESPACED}/serviceaccounts/edge-vps-1"),
            format!("PATCH {NAMESPACED}/secrets/edge-vps-1-token"),
        ]
    );
    for request in requests.iter().filter(|request| request.method == "PATCH") {
        assert!(
            request.query.contains("fieldManager=nodezero-operator") && request.query.contains("force=true"),
            "{request:?}"
        );
    }
    let role = operator.api.object(&format!("{RBAC}/roles/edge-vps-1")).expect("made");
    let expected: Value = json!([
        { "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["registration-vps-1"],
            "verbs": ["get", "update", "patch"] },
        { "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["routes-vps-1"], "verbs": ["get", "watch"] },
    ]);
    assert_eq!(role["rules"], expected);
    let map = operator.api.object(&format!("{NAMESPACED}/configmaps/registration-vps-1")).expect("made");
    assert_eq!(map["metadata"]["labels"]["nodezero.dev/registration"], "edge");
    assert_eq!(operator.secret("registration-vps-1").as_deref(), Some(TOKEN));
    let profile = fs::read_to_string(operator.path("profiles/nodes/vps-1.yaml")).expect("written");
    assert!(profile.contains("authKey: { env: \"TS_KEY\" }") && !profile.contains(TOKEN), "{profile}");
    // What it wrote is what the other commands read.
    let control = operator.path("profiles/nodes/control-1.yaml");
    fs::write(control, "role: control\n").expect("written");
    operator.run(&["profile", "check"]).succeeds(&[]);
    let rendered = run(operator.command(&["render", "vps-1"]).env("TS_KEY", "tskey")).succeeds(&["registration-token"]);
    assert!(serde_json::from_str::<Value>(&rendered.stdout).is_ok(), "{rendered:?}");
}

#[test]
fn a_name_that_is_taken_is_refused() {
    let operator = Operator::with_profiles();
    let profile = operator.path("profiles/nodes/vps-1.yaml");
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "vps-1" } });
    operator.api.put("/api/v1/nodes/vps-1", node);
    operator.run(&ADD_EDGE).fails_with(&["has a Node vps-1 already"]);
    operator.run(&["node", "add", "vps-1", "--role", "worker"]).fails_with(&["has a Node vps-1 already"]);
    operator.api.remove("/api/v1/nodes/vps-1");
    let registered = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "registration-vps-1" },
        "data": { "registration": "{}" } });
    let path = format!("{NAMESPACED}/configmaps/registration-vps-1");
    operator.api.put(&path, registered);
    operator.run(&ADD_EDGE).fails_with(&["a machine has registered as vps-1", "nodezero node remove vps-1"]);
    assert_eq!(operator.api.take_writes(), Vec::<String>::new(), "refused before anything is made");
    operator.api.remove(&path);
    fs::write(&profile, "role: edge\n").expect("written");
    operator.run(&ADD_EDGE).fails_with(&["nodes/vps-1.yaml is there already", "--keep-profile"]);
    assert_eq!(operator.api.take_requests(), [], "the cluster need not be asked");
    run(operator.command(&ADD_EDGE).arg("--keep-profile")).succeeds(&["edge-vps-1"]);
    assert_eq!(fs::read_to_string(&profile).expect("there"), "role: edge\n");
    assert_eq!(operator.secret("registration-vps-1").as_deref(), Some(TOKEN));
    fs::remove_file(operator.path("profiles/cluster.yaml")).expect("removed");
    operator.run(&ADD_EDGE).fails_with(&["has no cluster.yaml", "nodezero cluster init"]);
}

#[test]
fn a_command_that_is_cut_is_run_again() {
    let whole = Operator::with_profiles();
    whole.run(&ADD_EDGE).succeeds(&[]);
    let expected = whole.api.objects();
    for writes in 0..7 {
        let operator = Operator::with_profiles();
        operator.api.fail_after_writes(Some(writes));
        operator.run(&ADD_EDGE).fails_with(&["answers 500: cut"]);
        assert!(!operator.path("profiles/nodes/vps-1.yaml").exists(), "after {writes} writes");
        operator.api.fail_after_writes(None);
        operator.run(&ADD_EDGE).succeeds(&[]);
        assert_eq!(operator.api.objects(), expected, "after {writes} writes");
        assert_eq!(operator.secret("registration-vps-1").as_deref(), Some(TOKEN), "after {writes} writes");
    }
}

#[test]
fn a_control_node_needs_its_profile_alone() {
    let operator = Operator::with_profiles();
    let outcome = operator.run(&["node", "add", "control-2", "--role", "control"]);
    outcome.fails_with(&["all that it needs is in secrets.age", "./nodes/control-2.yaml with `role: control`", "etcd"]);
    assert!(!operator.path("profiles/nodes/control-2.yaml").exists());
    assert_eq!(operator.api.take_requests(), [], "the cluster need not be asked");
    let outcome = operator.run(&["node", "add", "control-2", "--role", "boss"]);
    assert!(outcome.code == Some(2) && outcome.stderr.contains("control, worker or edge"), "{outcome:#?}");
}

#[test]
fn what_was_added_is_removed_again() {
    let operator = Operator::with_profiles();
    operator.run(&ADD_EDGE).succeeds(&[]);
    operator.api.take_requests();
    operator
        .run(&["node", "remove", "vps-1"])
        .succeeds(&["deleted RoleBinding edge-vps-1", "profile nodes/vps-1.yaml stays"]);
    let left: Vec<String> = operator.api.objects().into_keys().collect();
    assert_eq!(left, ["/api/v1/namespaces/nodezero-system"]);
    let writes = operator.api.take_writes();
    assert_eq!(
        writes[..2],
        [format!("DELETE {RBAC}/rolebindings/edge-vps-1"), format!("DELETE {NAMESPACED}/secrets/edge-vps-1-token")]
    );
}

#[test]
fn a_worker_needs_the_token_of_workers() {
    let operator = Operator::with_profiles();
    let add = ["node", "add", "worker-2", "--role", "worker"];
    let outcome =
        operator.run(&add).succeeds(&["the token of workers is in secrets.age", "wrote ./nodes/worker-2.yaml"]);
    for name in ["agent-token", "join-token"] {
        let token = operator.secret(name).expect("it was made with the cluster");
        assert!(!format!("{outcome:?}").contains(&token), "{name}: {outcome:#?}");
    }
    assert_eq!(operator.api.take_writes(), Vec::<String>::new(), "a worker needs nothing in the cluster");
    run(operator.command(&["node", "add", "worker-3", "--role", "worker", "--offline"]).env("KUBECONFIG", "none"))
        .succeeds(&[]);
    run(operator.command(&ADD_EDGE).arg("--offline")).fails_with(&["leave out --offline"]);
    run(operator.command(&add[..2]).args(["worker-4", "--role", "worker"]).env_remove("NODEZERO_AGE_IDENTITY"))
        .fails_with(&["--identity"]);
    assert!(!operator.path("profiles/nodes/worker-4.yaml").exists());
    let outcome = operator.run(&["node", "add", "worker-6", "--role", "worker", "--quiet"]).succeeds(&[]);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", ""), "{outcome:#?}");
    // A cluster that began before workers had a token of their own.
    let mut store = Store::open(&operator.path("profiles"), Some(&operator.path("key"))).expect("opened");
    assert!(store.remove("agent-token"));
    store.write().expect("written");
    let hint = "nodezero secret set agent-token --random";
    operator.run(&["node", "add", "worker-4", "--role", "worker"]).fails_with(&[
        "secrets.age has no entry agent-token",
        "server/agent-token",
        hint,
    ]);
    fs::write(operator.path("profiles/nodes/control-1.yaml"), "role: control\n").expect("written");
    operator.run(&["render", "worker-2"]).fails_with(&["reading the secret {secret: auth-key}"]);
    operator.run(&["secret", "set", "auth-key", "--random"]).succeeds(&[]);
    operator.run(&["render", "worker-2"]).fails_with(&["reading the secret {secret: agent-token}", hint]);
    operator.run(&["secret", "set", "agent-token", "--random"]).succeeds(&[]);
    let made = operator.secret("agent-token").expect("it was made");
    assert!(made.len() == 64 && made.bytes().all(|byte| byte.is_ascii_hexdigit()), "{} bytes", made.len());
    operator.run(&["secret", "set", "agent-token", "--random"]).fails_with(&["has an entry agent-token already"]);
    assert_eq!(operator.secret("agent-token"), Some(made));
    operator.run(&["render", "worker-2"]).succeeds(&["join-token"]);
    let other = "name: home\nmesh: {authKey: {secret: auth-key}}\nk3s: {server: control-1, agentToken: {env: TOKEN}}\n";
    fs::write(operator.path("profiles/cluster.yaml"), other).expect("written");
    operator.run(&["node", "add", "worker-5", "--role", "worker"]).succeeds(&["the token of workers is {env: TOKEN}"]);
}
