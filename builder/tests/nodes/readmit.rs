//! Letting a machine join again, and taking a node out.

use serde_json::{Value, json};

use crate::Operator;

const NODE: &str = "/api/v1/nodes/worker-1";
const PASSWORD: &str = "/api/v1/namespaces/kube-system/secrets/worker-1.node-password.k3s";

fn node(ready: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "worker-1" },
        "status": { "conditions": [
            { "type": "MemoryPressure", "status": "False" }, { "type": "Ready", "status": ready } ] } })
}

fn password() -> Value {
    json!({ "apiVersion": "v1", "kind": "Secret", "data": { "hash": "eA==" },
        "metadata": { "name": "worker-1.node-password.k3s", "namespace": "kube-system" } })
}

#[test]
fn a_lost_machine_may_come_again() {
    let operator = Operator::new();
    for (case, ready, kept) in [("Ready", "True", true), ("not Ready", "False", false), ("silent", "Unknown", false)] {
        operator.api.put(NODE, node(ready));
        operator.api.put(PASSWORD, password());
        let outcome =
            operator.run(&["node", "readmit", "worker-1"]).succeeds(&["deleted the node password", "taken in"]);
        assert_eq!(operator.api.object(NODE).is_some(), kept, "{case}");
        assert_eq!(outcome.stdout.contains("kept the Node worker-1"), kept, "{case}: {outcome:#?}");
        assert_eq!(operator.api.object(PASSWORD), None, "{case}");
        operator.api.take_requests();
    }
    operator.run(&["node", "readmit", "worker-1"]).succeeds(&["no node password", "no Node worker-1"]);
    assert_eq!(operator.api.take_writes(), [format!("DELETE {PASSWORD}")], "nothing else is touched");
    operator.run(&["node", "readmit", "Worker_1", "--json"]);
}

#[test]
fn the_node_that_was_looked_at_is_the_one_that_goes() {
    let operator = Operator::new();
    operator.api.put(NODE, node("False"));
    operator.run(&["node", "readmit", "worker-1"]).succeeds(&[]);
    let deleted =
        operator.api.take_requests().into_iter().find(|request| request.method == "DELETE" && request.path == NODE);
    assert_eq!(deleted.expect("it was deleted").body["preconditions"]["uid"], "uid-of-worker-1");
}

#[test]
fn a_node_is_taken_out() {
    let operator = Operator::new();
    operator.api.put(NODE, node("True"));
    operator.api.put(PASSWORD, password());
    operator.run(&["node", "remove", "worker-1"]).fails_with(&["worker-1 is Ready", "--force"]);
    assert_eq!(operator.api.objects().len(), 2, "nothing was touched");
    operator.api.take_requests();
    operator.run(&["node", "remove", "worker-1", "--force"]).succeeds(&["deleted Node worker-1", "profile"]);
    assert_eq!(operator.api.objects().len(), 0);
    operator.run(&["node", "remove", "worker-1"]).succeeds(&["the cluster has nothing of worker-1"]);
}
