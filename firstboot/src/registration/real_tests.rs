//! The step against a real API, which `NODEZERO_TEST_KUBECONFIG` names with an operator's rights: what the fake cannot
//! know, such as which rights a call needs. Skipped without. `NODEZERO_TEST_KUBELET` is a kubelet's kubeconfig there, and
//! `NODEZERO_TEST_NODE` the name of its node. Objects of NodeZero are made, and stay.

use std::env;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Node as Object_, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role as Rights, RoleBinding};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PostParams};
use serde_json::{Value, json};

use super::tests::{Rig, cluster_node, prepared, rig};
use super::*;
use crate::kubernetes::fake::{Fake, Reply};
use crate::kubernetes::{Endpoint, NAMESPACE, REGISTRY, as_manager, authority_of};

/// The operator's kubeconfig, where there is a cluster.
fn cluster() -> Option<PathBuf> {
    let path = env::var_os("NODEZERO_TEST_KUBECONFIG").map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: NODEZERO_TEST_KUBECONFIG names no cluster");
    }
    path
}

fn connect(path: &std::path::Path) -> Connection {
    Connection::open(&Access::file(path)).expect("usable")
}

/// Applies a ConfigMap, with these rights.
fn write(connection: &Connection, name: &str) -> Result<ConfigMap, ApiError> {
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "a": "b" } });
    connection.call(async |client| {
        Api::<ConfigMap>::namespaced(client, NAMESPACE).patch(name, &as_manager("test"), &Patch::Apply(object)).await
    })
}

fn registered(admin: &std::path::Path, kubelet: &std::path::Path, node: &str) -> Rig {
    let json = cluster_node("control").replace("n-1", node);
    let mut rig = rig(&json, Fake::start(|_| Reply::status(500, "")), vec![prepared("z1")]);
    (rig.step.kubelet, rig.step.admin) = (Access::file(kubelet), admin.to_owned());
    rig.run().expect("registered");
    assert_eq!(rig.run().expect("registered"), "the Node is as it shall be, with one data disk");
    rig.target.set(Access::file(kubelet), Object::Node(node.to_owned()));
    assert_eq!(rig.target.publish_ready("confirm", &[]), None);
    assert_eq!(rig.run().expect("registered"), "the Node is as it shall be, with one data disk", "its status stays");
    rig
}

#[test]
fn a_node_writes_itself_and_the_registry_has_no_more_rights_than_it_needs() {
    let Some(admin) = cluster() else { return };
    let name = env::var("NODEZERO_TEST_NODE").unwrap_or_else(|_| "n-real".to_owned());
    let kubelet = env::var_os("NODEZERO_TEST_KUBELET").map_or_else(|| admin.clone(), PathBuf::from);
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
    connect(&admin)
        .call(async |client| Api::<Object_>::all(client).patch(&name, &as_manager("test"), &Patch::Apply(node)).await)
        .expect("a node");
    let rig = registered(&admin, &kubelet, &name);
    let path = rig.directory.path().join("registry.kubeconfig");
    std::fs::write(&path, rig.noted.0.borrow()[0].as_bytes()).expect("written");
    let registry = connect(&path);
    write(&registry, REGISTRY).expect("its own");
    assert_eq!(write(&registry, "another").expect_err("not its own").code(), Some(403));
    let secrets = registry.call(async |client| Api::<Secret>::all(client).list(&ListParams::default()).await);
    assert_eq!(secrets.expect_err("no Secrets").code(), Some(403));
    if kubelet != admin {
        a_changed_profile_counts(&admin, &kubelet, &name);
    }
}

/// On a Node that its kubelet has made, as K3s has it do, with a label and a taint of the profile.
fn a_changed_profile_counts(admin: &std::path::Path, kubelet: &std::path::Path, name: &str) {
    let operator = connect(admin);
    let (of, made) = (DeleteParams::default(), PostParams { field_manager: Some("k3s".into()), ..Default::default() });
    operator.call(async |client| Api::<Object_>::all(client).delete(name, &of).await).expect("deleted");
    let node = json!({ "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name, "site": "home" } },
        "spec": { "taints": [{ "key": "old", "effect": "NoSchedule" }] } });
    let node: Object_ = serde_json::from_value(node).expect("a node");
    connect(kubelet).call(async |client| Api::<Object_>::all(client).create(&made, &node).await).expect("made");
    let register = |role: &str, labels: Value, taints: Value| -> (Vec<String>, Object_) {
        let mut profile: Value = serde_json::from_str(&cluster_node(role).replace("n-1", name)).expect("JSON");
        (profile["cluster"]["labels"], profile["cluster"]["taints"]) = (labels, taints);
        let mut rig = rig(&profile.to_string(), Fake::start(|_| Reply::status(500, "")), vec![]);
        (rig.step.kubelet, rig.step.admin) = (Access::file(kubelet), admin.to_owned());
        rig.run().expect("registered");
        assert_eq!(rig.run().expect("registered"), "the Node is as it shall be");
        let object = operator.call(async |client| Api::<Object_>::all(client).get(name).await).expect("there");
        (rig.step.warnings(), object)
    };
    let label = |object: &Object_, key: &str| object.metadata.labels.clone().unwrap_or_default().get(key).cloned();
    let has = |object: &Object_, key: &str| {
        object.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| taint.key == key)
    };
    let (warnings, object) = register("worker", json!({ "site": "home" }), json!(["old:NoSchedule"]));
    assert_eq!((warnings, label(&object, "site").as_deref()), (vec![], Some("home")));
    let changed = || (json!({ "topology.kubernetes.io/zone": "a" }), json!(["new=x:NoExecute"]));
    let (labels, taints) = changed();
    let (warnings, object) = register("worker", labels, taints);
    assert_eq!((label(&object, "site"), label(&object, "topology.kubernetes.io/zone").as_deref()), (None, Some("a")));
    assert!(has(&object, "old") && !has(&object, "new"), "{object:?}");
    assert!(warnings[0].contains("new=x:NoExecute old:NoSchedule-"), "{warnings:?}");
    let (labels, taints) = changed();
    let (warnings, object) = register("control", labels, taints);
    assert!(warnings.is_empty() && has(&object, "new") && !has(&object, "old"), "{warnings:?} {object:?}");
}

#[test]
fn an_edge_writes_its_object_and_nothing_else() {
    let Some(admin) = cluster() else { return };
    let operator = connect(&admin);
    operator
        .call(async |client| {
            let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
            Api::<k8s_openapi::api::core::v1::Namespace>::all(client)
                .patch(NAMESPACE, &as_manager("test"), &Patch::Apply(namespace))
                .await
        })
        .expect("a namespace");
    let metadata = json!({ "name": "edge-edge-1" });
    let object = |kind: &str, version: &str, fields: serde_json::Value| {
        let mut object = fields;
        (object["apiVersion"], object["kind"], object["metadata"]) = (json!(version), json!(kind), metadata.clone());
        object
    };
    let rbac = "rbac.authorization.k8s.io/v1";
    let rules = json!([
        { "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["registration-edge-1"],
          "verbs": ["get", "update", "patch"] },
        { "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["routes-edge-1"], "verbs": ["get", "watch"] },
    ]);
    let name = "edge-edge-1";
    operator.apply::<ServiceAccount>("test", name, &object("ServiceAccount", "v1", json!({}))).expect("made");
    operator.apply::<Rights>("test", name, &object("Role", rbac, json!({ "rules": rules }))).expect("made");
    let binding = json!({ "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
        "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": NAMESPACE }] });
    operator.apply::<RoleBinding>("test", name, &object("RoleBinding", rbac, binding)).expect("made");
    let place = json!({ "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "registration-edge-1", "labels": { "nodezero.dev/registration": "edge" } } });
    operator.apply::<ConfigMap>("test", "registration-edge-1", &place).expect("made");
    let token = operator.call(async |client| {
        let request = TokenRequest { spec: TokenRequestSpec::default(), ..TokenRequest::default() };
        let accounts = Api::<ServiceAccount>::namespaced(client, NAMESPACE);
        accounts.create_token_request(name, &PostParams::default(), &request).await
    });
    let token = token.expect("a token").status.expect("a token").token;

    let directory = tempfile::tempdir().expect("tempdir");
    let token_file = directory.path().join("token");
    std::fs::write(&token_file, token).expect("written");
    let json = json!({ "version": 1, "name": "edge-1", "role": "edge", "mesh": {},
        "registration": { "server": "https://127.0.0.1:6443", "tokenFile": token_file,
            "certificateAuthority": authority_of(&admin).expect("there") } });
    let mut rig = rig(&json.to_string(), Fake::start(|_| Reply::status(500, "")), vec![]);
    rig.run().expect("registered");
    assert_eq!(rig.run().expect("registered"), "the registration is as it shall be; it has no routes yet");
    assert_eq!(rig.target.publish_ready("confirm", &[]), None);
    let endpoint = Endpoint { address: ([127, 0, 0, 1], 6443).into(), name: None };
    let authority = authority_of(&admin).expect("there");
    let access = Access::Token { endpoint, authority, token_file };
    let edge = Connection::open(&access).expect("usable");
    let object = || {
        let get = operator
            .call(async |client| Api::<ConfigMap>::namespaced(client, NAMESPACE).get("registration-edge-1").await);
        get.expect("there")
    };
    let heard = || seen::heard(&object()).expect("heard");
    let first = heard();
    // The API counts in seconds.
    for _ in 0..2 {
        std::thread::sleep(std::time::Duration::from_millis(1100));
        seen::say(&access, "edge-1").expect("said");
    }
    assert!(heard() > first, "by the API's clock");
    let data = object().data.unwrap_or_default();
    assert_eq!(data.keys().collect::<Vec<_>>(), ["registration", "seen", "status"], "each by its own manager");
    assert_eq!(write(&edge, "registration-edge-2").expect_err("not its own").code(), Some(403));
    assert_eq!(write(&edge, REGISTRY).expect_err("not its own").code(), Some(403));
    let nodes = edge.call(async |client| Api::<Object_>::all(client).list(&ListParams::default()).await);
    assert_eq!(nodes.expect_err("no Nodes").code(), Some(403));
}
