//! The way that is gone when nothing goes wrong, each point asserted from outside the nodes.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, Service};
use qemu_tests::cluster::wait_until;
use qemu_tests::guest::{expect_silent, free_port};
use qemu_tests::machine::Network;
use serde_json::{Value, json};

use super::site::{EDGE_KEY, NAMESPACE, PODS, SEEN, Site, probe};

/// What of the kubelet and of SSH a worker must not show outside the mesh.
const INNER: [u16; 2] = [10250, 22];
/// What an edge node shows, and what it does not although somebody listens.
const OPEN: [u16; 2] = [80, 443];
const CLOSED: [u16; 2] = [22, 8080];
const GREETING: &str = "good morning";

/// A control node alone: Ready, at its mesh address, in the registry.
pub(super) fn control(site: &mut Site<'_>) -> Result<()> {
    let machine = site.machine("control-1")?;
    site.start(&machine, "first")?;
    site.expect_node("control-1")?;
    site.expect_registered("control-1", "control", 0)?;
    site.expect_secrets("control-1", &["agent-token", "join-token"])?;
    site.expect_iptables("control-1")?;
    site.note_memory("control-1")
}

/// A worker joins over the mesh, and both disks are Longhorn's.
pub(super) fn worker(site: &mut Site<'_>) -> Result<()> {
    let forwards = forwards(&INNER)?;
    let machine = site.worker_on("worker-1")?.network(Network::User { forwards: forwards.clone() });
    site.start(&machine, "first")?;
    let node = site.expect_node("worker-1")?;
    expect_silent(&forwards)?;
    let label = node.metadata.labels.unwrap_or_default().remove("node.longhorn.io/create-default-disk");
    ensure!(label.as_deref() == Some("config"), "Longhorn's label is {label:?}");
    let annotations = node.metadata.annotations.unwrap_or_default();
    let config = annotations.get("node.longhorn.io/default-disks-config").context("no disks for Longhorn")?;
    let config: Value = serde_json::from_str(config).context("reading Longhorn's disks")?;
    let mut paths: Vec<&str> =
        config.as_array().into_iter().flatten().filter_map(|disk| disk["path"].as_str()).collect();
    paths.sort_unstable();
    ensure!(paths == ["/var/mnt/longhorn/bulk-1", "/var/mnt/longhorn/bulk-2"], "Longhorn's disks: {config}");
    site.expect_registered("worker-1", "worker", 2)?;
    site.file_systems = site.said("worker-1", "uuid")?;
    ensure!(site.file_systems.len() == 2, "the worker's file systems are {:?}", site.file_systems);
    site.expect_kubectl(&["control-1", "worker-1"])?;
    site.expect_secrets("worker-1", &["join-token"])?;
    site.expect_iptables("worker-1")?;
    site.note_memory("worker-1")
}

/// Pods of either node reach pods of the other, and a Service, over the mesh. Their image came with the node's.
pub(super) fn pods(site: &mut Site<'_>) -> Result<()> {
    site.with_worker()?;
    let mut addresses = BTreeMap::new();
    for node in ["control-1", "worker-1"] {
        let name = format!("echo-{node}");
        wait_until("the API to take a pod", SEEN, || {
            site.api.apply::<Pod>("default", &pod(&name, node, "Always", &[])).map(Some)
        })?;
    }
    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "echo" },
        "spec": { "selector": { "app": "echo-control-1" }, "ports": [{ "port": 80, "targetPort": 8080 }] } });
    let service: Service = site.api.apply("default", &service)?;
    let cluster_ip = service.spec.and_then(|spec| spec.cluster_ip).context("the Service has no address")?;
    for node in ["control-1", "worker-1"] {
        let address = wait_until(&format!("the pod on {node}"), PODS, || {
            let pod: Option<Pod> = site.api.find("default", &format!("echo-{node}"))?;
            let status = pod.and_then(|pod| pod.status).unwrap_or_default();
            Ok(status.pod_ip.filter(|_| status.phase.as_deref() == Some("Running")))
        })?;
        addresses.insert(node, address);
    }
    let url = |address: &str, port: u16| format!("http://{address}:{port}/");
    let fetches = [
        ("worker-to-control", "worker-1", url(&addresses["control-1"], 8080)),
        ("control-to-worker", "control-1", url(&addresses["worker-1"], 8080)),
        ("worker-to-service", "worker-1", url(&cluster_ip, 80)),
    ];
    for (name, node, url) in &fetches {
        site.api.apply::<Pod>("default", &pod(name, node, "OnFailure", &["fetch", url]))?;
    }
    for (name, _, url) in &fetches {
        wait_until(&format!("{name}: {url}"), PODS, || {
            let pod: Option<Pod> = site.api.find("default", name)?;
            let phase = pod.and_then(|pod| pod.status).and_then(|status| status.phase);
            if phase.as_deref() == Some("Succeeded") { Ok(Some(())) } else { bail!("the pod is {phase:?}") }
        })?;
    }
    Ok(())
}

/// An edge node is added on the control side. At its first start the mesh's control server is silent, then its key has
/// expired; it says so, and gets in as soon as both are mended. It registers itself, may do nothing else, and shows two
/// ports.
pub(super) fn edge(site: &mut Site<'_>) -> Result<()> {
    site.make_room()?;
    site.profiles.nodezero(&["node", "add", "edge-1", "--role", "edge", "--auth-key-env", "NODEZERO_FLOW_EDGE_KEY"])?;
    let mut ignition = probe();
    ignition["systemd"]["units"].as_array_mut().context("the probe has units")?.extend(greeters());
    site.profiles.append("nodes/edge-1.yaml", &format!("ignition: {ignition}\n"))?;
    let forwards = forwards(&[OPEN, CLOSED].concat())?;
    let machine = site.machine("edge-1")?.network(Network::User { forwards: forwards.clone() });
    site.mesh.admin("POST", "/control/hang", "")?;
    site.switch_on(&machine)?;
    site.wait_for("edge-1", "waiting for an answer of the control server http")?;
    site.mesh.admin("POST", "/control/up", "")?;
    site.wait_told("edge-1", "the control server of the mesh refuses this node", "make another auth key")?;
    let said = site.vm("edge-1")?.console().find("API key has expired");
    ensure!(said.is_some(), "the node does not say that its key has expired");
    site.mesh.admin("POST", "/keys", EDGE_KEY)?;
    site.wait("edge-1", "first")?;
    site.expect_registered("edge-1", "edge", 0)?;
    site.expect_secrets("edge-1", &["registration-token"])?;
    expect_rights(site)?;
    let (open, closed) = forwards.split_at(OPEN.len());
    expect_silent(closed)?;
    open.iter().try_for_each(|forward| expect_greeting(*forward))?;
    site.note_memory("edge-1")
}

/// What the edge node's token may do, by the cluster's own account, and what of it and of the rest it can do.
fn expect_rights(site: &Site<'_>) -> Result<()> {
    let edge = site.edge_api("edge-1")?;
    edge.find::<ConfigMap>(NAMESPACE, "registration-edge-1")?.context("the edge node cannot read its registration")?;
    for (what, outcome) in [
        ("the registry", edge.find::<ConfigMap>(NAMESPACE, "node-registry").map(drop)),
        ("its own Secret", edge.find::<Secret>(NAMESPACE, "edge-edge-1-token").map(drop)),
        ("a Node", edge.find_global::<Node>("control-1").map(drop)),
    ] {
        let error = outcome.err().with_context(|| format!("the edge node's token may read {what}"))?;
        ensure!(format!("{error:#}").contains("does not permit"), "{what}: {error:#}");
    }
    for (namespace, expected) in [
        (
            NAMESPACE,
            &[
                "get configmaps registration-edge-1",
                "get configmaps routes-edge-1",
                "patch configmaps registration-edge-1",
                "update configmaps registration-edge-1",
                "watch configmaps routes-edge-1",
            ][..],
        ),
        ("default", &[]),
        ("kube-system", &[]),
    ] {
        let rights = edge.rights(namespace)?;
        ensure!(rights == expected, "in {namespace} the edge node's token may {rights:?}");
    }
    Ok(())
}

/// All power goes and comes back, in another order and while the mesh's control server is down: the control node is Ready
/// nevertheless. Nobody presents a key again, and no disk is made anew.
pub(super) fn power(site: &mut Site<'_>) -> Result<()> {
    site.with_worker()?;
    let names = ["control-1", "worker-1", "edge-1"];
    let before = names.map(|name| site.keys_presented(name));
    site.power_off_all()?;
    site.mesh.admin("POST", "/control/refuse", "")?;
    let control = site.machine("control-1")?;
    site.start(&control, "without mesh control")?;
    site.expect_node("control-1")?;
    site.mesh.admin("POST", "/control/up", "")?;
    if site.profiles.dir().join("nodes/edge-1.yaml").exists() {
        let edge = site.machine("edge-1")?;
        site.start(&edge, "second")?;
        site.expect_registered("edge-1", "edge", 0)?;
        site.power_off("edge-1")?;
    }
    let worker = site.worker_on("worker-1")?;
    site.start(&worker, "second")?;
    site.expect_node("worker-1")?;
    site.expect_registered("worker-1", "worker", 2)?;
    site.expect_file_systems()?;
    for (name, before) in names.iter().zip(before) {
        let (before, now) = (before?, site.keys_presented(name)?);
        ensure!(before == now, "{name} presented a key {before} times before, and {now} times after");
    }
    Ok(())
}

/// A port of this host for each of the guest's.
fn forwards(ports: &[u16]) -> Result<Vec<(u16, u16)>> {
    ports.iter().map(|port| Ok((free_port()?, *port))).collect()
}

/// Something answers on a guest's port.
fn expect_greeting((host, guest): (u16, u16)) -> Result<()> {
    wait_until(&format!("port {guest} to answer"), SEEN, || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, host))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        ensure!(said.contains(GREETING), "it says {said:?}");
        Ok(Some(()))
    })
}

/// Units for an edge node that answer on all of its ports, as its web servers would.
fn greeters() -> [Value; 2] {
    let ports = [OPEN, CLOSED].concat();
    let listen: String = ports.iter().map(|port| format!("ListenStream={port}\n")).collect();
    let socket = format!("[Socket]\nAccept=yes\n{listen}[Install]\nWantedBy=sockets.target\n");
    let service = format!("[Service]\nExecStart=/bin/echo {GREETING}\nStandardInput=socket\nStandardOutput=socket\n");
    [
        json!({ "name": "greeter.socket", "enabled": true, "contents": socket }),
        json!({ "name": "greeter@.service", "contents": service }),
    ]
}

/// A pod of the test image on a node.
fn pod(name: &str, node: &str, restart: &str, args: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                { "name": "echo", "image": "nodezero.dev/rig/echo:1", "imagePullPolicy": "Never", "args": args },
            ],
        },
    })
}
