//! The table of nodes.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Operator, run};

const REGISTRY: &str = "/api/v1/namespaces/nodezero-system/configmaps/node-registry";

/// How long a change may take to be shown.
const PATIENCE: Duration = Duration::from_secs(20);

fn registry(entries: &[(&str, Value)]) -> Value {
    let data: serde_json::Map<String, Value> =
        entries.iter().map(|(name, entry)| ((*name).to_owned(), json!(entry.to_string()))).collect();
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": data,
        "metadata": { "name": "node-registry", "namespace": "nodezero-system" } })
}

fn worker(health: &str) -> Value {
    json!({ "name": "worker-1", "role": "worker", "version": "0.1.0", "meshAddress": "100.64.0.2", "health": health,
        "disks": [{ "serial": "ZL2", "size": 18_000_207_937_536_u64, "mount": "/var/mnt/longhorn/zl2" }] })
}

#[test]
fn nodes_are_shown_and_what_is_malformed_is_told() {
    let operator = Operator::new();
    let stuck = json!({ "name": "vps-1", "role": "edge", "health": "stuck", "step": "mesh", "message": "no answer" });
    operator.api.put(REGISTRY, registry(&[("worker-1", worker("ready")), ("vps-1", stuck), ("x", json!(3))]));
    let outcome = operator.run(&["nodes"]).succeeds(&["NAME", "x: the entry is malformed: "]);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines[1].starts_with("vps-1 ") && lines[1].ends_with("stuck   mesh: no answer"), "{lines:#?}");
    assert!(lines[2].contains("100.64.0.2") && lines[2].contains("1, 18.0 TB"), "{lines:#?}");
    let outcome = operator.run(&["nodes", "--json"]).succeeds(&[]);
    let json: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    assert_eq!((&json["nodes"][1]["name"], &json["malformed"][0]["name"]), (&json!("worker-1"), &json!("x")));
    operator.api.put(REGISTRY, registry(&[]));
    operator.run(&["nodes"]).succeeds(&["no node has registered yet"]);
}

#[test]
fn what_is_in_the_way_is_told_with_what_to_do() {
    let operator = Operator::new();
    let url = operator.api.url();
    operator.run(&["nodes"]).fails_with(&["no node registry", &url, "--watch"]);
    for (status, expected) in [(401, "nodezero kubeconfig"), (403, "does not permit it"), (500, "answers 500: no")] {
        operator.api.refuse(Some(status));
        operator.run(&["nodes"]).fails_with(&[&url, expected]);
    }
    operator.run(&["nodes", "--context", "nowhere"]).fails_with(&["the kubeconfig has no cluster \"gone\""]);
    operator
        .run(&["nodes", "--kubeconfig", "none"])
        .fails_with(&["reading the kubeconfig none", "nodezero kubeconfig"]);
    run(operator.command(&["nodes"]).env("KUBECONFIG", operator.path("gone")))
        .fails_with(&["reading the kubeconfig", "gone"]);
    let closed = operator.api.kubeconfig().replace(&url, "http://127.0.0.1:1");
    std::fs::write(operator.path("closed"), closed).expect("written");
    for watch in [&["nodes"][..], &["nodes", "--watch"]] {
        run(operator.command(watch).env("KUBECONFIG", operator.path("closed"))).fails_with(&[
            "http://127.0.0.1:1 cannot be reached",
            "Connection refused",
            "mesh",
        ]);
    }
}

#[test]
fn changes_are_shown_as_they_come() {
    let operator = Operator::new();
    let mut command = operator.command(&["nodes", "--watch"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("started");
    let (sender, lines) = mpsc::channel();
    let out = BufReader::new(child.stdout.take().expect("it is a pipe"));
    thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut told = Vec::new();
    for change in [Some("ready"), Some("stuck"), None] {
        match change {
            Some(health) => operator.api.put(REGISTRY, registry(&[("worker-1", worker(health))])),
            None => operator.api.remove(REGISTRY),
        }
        told.push(lines.recv_timeout(PATIENCE));
    }
    // It runs until it is ended.
    child.kill().expect("killed");
    child.wait().expect("ended");
    let told: Vec<String> = told.into_iter().map(|line| line.expect("a line for each change")).collect();
    assert!(told[0].starts_with("worker-1") && told[0].contains("ready"), "{told:?}");
    assert!(told[1].contains("stuck"), "{told:?}");
    assert_eq!(told[2], "worker-1 is gone");
}
