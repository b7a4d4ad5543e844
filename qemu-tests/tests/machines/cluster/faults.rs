//! What can go wrong, and how it ends.

use std::env;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use qemu_tests::cluster::{image, wait_until};
use qemu_tests::guest::key;
use qemu_tests::ignition::data_url;
use qemu_tests::machine::{Clock, Network};
use qemu_tests::wire::{Link, Quality};
use qemu_tests::{Machine, Role, storage};
use serde_json::Value;

use super::site::{BOOT, FILL, HOLD, SEEN, Site};

/// How long the cluster's API is away, unless the environment says otherwise.
const OUTAGE: Duration = Duration::from_secs(45);
/// One packet of twenty is lost, and there and back takes a fifth of a second.
const LOSSY: Quality = Quality { loss: 5, delay: Duration::from_millis(100), seed: 1 };
/// Where a node has its join token.
const JOIN_TOKEN: &str = "/etc/nodezero/secrets/join-token";

/// The power of the first control node is cut while K3s makes the cluster's store and certificates, and while it registers
/// the node. What comes of it is for the phase `control` to see.
pub(super) fn first_cuts(site: &mut Site<'_>) -> Result<()> {
    cut_at(
        site,
        "control-1",
        &[
            ("nodezero: step cluster: k3s.service is started", Duration::from_secs(10)),
            ("nodezero: step cluster: node control-1 is Ready", Duration::from_millis(500)),
        ],
    )
}

/// The power of a new worker is cut while it joins the mesh, while K3s starts for the first time, and while it registers:
/// in the end it is Ready.
pub(super) fn cuts(site: &mut Site<'_>) -> Result<()> {
    site.make_room()?;
    let moments = [
        ("nodezero: step firewall:", Duration::from_secs(3)),
        ("nodezero: step cluster: k3s-agent.service is started", Duration::from_secs(5)),
        ("nodezero: step cluster: node worker-2 is Ready", Duration::from_millis(500)),
    ];
    cut_at(site, "worker-2", &moments)?;
    let machine = site.machine("worker-2")?;
    site.start(&machine, "after cuts")?;
    site.expect_node("worker-2")?;
    site.expect_registered("worker-2", "worker", 0)?;
    site.power_off("worker-2")
}

/// A worker with another cluster's token, then with one that nobody knows: each is said, with what to do about it.
pub(super) fn refused(site: &mut Site<'_>) -> Result<()> {
    site.make_room()?;
    let machine = site.machine("worker-3")?;
    let token = join_token(&machine, |token| token.to_owned())?;
    let (authority, secret) = token.split_once("::").context("a join token has a hash and a secret")?;
    let another: String = authority.chars().rev().collect();
    let another = format!("K10{}::{secret}", another.trim_end_matches("01K"));
    join_token(&machine, |_| another)?;
    site.switch_on(&machine)?;
    site.wait_told("worker-3", "the join token is for another cluster", "check cluster.server")?;
    site.cut_power("worker-3")?;
    join_token(&machine, |_| format!("{authority}::node:0123456789abcdef0123456789abcdef"))?;
    site.switch_on(&machine)?;
    site.wait_told("worker-3", "the cluster refuses the join token", "render worker-3 anew")?;
    site.power_off("worker-3")
}

/// The cluster's API is away when a worker wants to join: it says what it waits for, and joins when the API is back.
pub(super) fn outage(site: &mut Site<'_>) -> Result<()> {
    let seconds = env::var("NODEZERO_FLOW_OUTAGE").ok().map(|text| text.parse().map(Duration::from_secs)).transpose();
    let outage = seconds.context("reading NODEZERO_FLOW_OUTAGE")?.unwrap_or(OUTAGE);
    site.make_room()?;
    let machine = site.machine("worker-3")?;
    site.vm("control-1")?.qmp().stop()?;
    site.switch_on(&machine)?;
    site.wait_for("worker-3", "nodezero: step cluster: k3s-agent.service is started")?;
    thread::sleep(outage);
    let said = site.vm("worker-3")?.console().find("the cluster's API at https://");
    site.vm("control-1")?.qmp().cont()?;
    ensure!(said.is_some_and(|line| line.text.contains("is not reached")), "the worker does not say what it waits for");
    site.wait("worker-3", "API away")?;
    site.expect_node("worker-3")?;
    site.expect_registered("worker-3", "worker", 0)?;
    site.power_off("worker-3")
}

/// A worker far away, whose network is slow and loses packets from its first moment on: it joins nevertheless.
pub(super) fn slow_network(site: &mut Site<'_>) -> Result<()> {
    site.make_room()?;
    let link = Link::start(LOSSY)?;
    let machine = site.machine("worker-4")?.network(Network::Cards(vec![link.card(Vec::new())]));
    site.start(&machine, "slow network")?;
    site.expect_node("worker-4")?;
    site.expect_registered("worker-4", "worker", 0)?;
    let (sent, received) = (link.sent(), link.received());
    ensure!(sent.lost > 0 && received.lost > 0, "nothing was lost: {sent:?}, {received:?}");
    site.power_off("worker-4")
}

/// A new worker that is in the cluster and cannot finish a later step: the operator sees which.
pub(super) fn stuck(site: &mut Site<'_>) -> Result<()> {
    site.make_room()?;
    let flag = site.s.file("hold", b"1")?;
    let machine = site.machine("worker-5")?.fw_cfg(HOLD, flag);
    site.switch_on(&machine)?;
    site.wait_told("worker-5", "a secret that is not needed any more cannot be removed", "restart")?;
    wait_until("worker-5 to be listed as stuck", SEEN, || {
        let node = site.listed("worker-5")?;
        ensure!(node["health"] == "stuck" && node["step"] == "confirm", "{node}");
        let table = site.profiles.nodezero(&["nodes"])?;
        let line = table.lines().find(|line| line.starts_with("worker-5")).context("not in the table")?;
        ensure!(line.contains("confirm"), "{line}");
        Ok(Some(()))
    })?;
    site.cut_power("worker-5")
}

/// The `state` of a worker of the cluster is full at a later start.
pub(super) fn full_state(site: &mut Site<'_>) -> Result<()> {
    site.make_room()?;
    let flag = site.s.file("fill", b"1")?;
    let machine = site.machine("worker-2")?.fw_cfg(FILL, flag);
    site.switch_on(&machine)?;
    site.wait_for("worker-2", "No space left")?;
    site.wait_for("worker-2", "`state` is full")?;
    site.cut_power("worker-2")
}

/// A disk of a worker of the cluster is gone at a later start: the node is Ready nevertheless, and the operator sees what it
/// lacks. Then the disk is back.
pub(super) fn lost_disk(site: &mut Site<'_>) -> Result<()> {
    site.make_room()?;
    let machine = site.worker_with("worker-1", &["bulk-1"])?;
    site.start(&machine, "without a disk")?;
    site.expect_node("worker-1")?;
    site.expect_registered("worker-1", "worker", 1)?;
    wait_until("the registry to name the disk", SEEN, || {
        let node = site.listed("worker-1")?;
        let message = node["message"].as_str().unwrap_or_default();
        ensure!(message.contains("serial:BULK-2") && message.contains("it is not there"), "{node}");
        Ok(Some(()))
    })?;
    site.power_off("worker-1")?;
    site.with_worker()?;
    site.expect_registered("worker-1", "worker", 2)?;
    site.expect_file_systems()?;
    let node = site.listed("worker-1")?;
    ensure!(!node["message"].as_str().unwrap_or_default().contains("BULK-2"), "{node}");
    Ok(())
}

/// A node whose clock is decades wrong, and that no time server helps, says that its clock may be it; with a right clock it
/// is Ready again, so that nothing of the wrong one was kept.
pub(super) fn wrong_clock(site: &mut Site<'_>) -> Result<()> {
    site.make_room()?;
    let late = site.worker_on("worker-1")?.clock(Clock::At("2040-01-01T00:00:00".to_owned()));
    site.switch_on(&late)?;
    site.wait_told("worker-1", "this machine's clock, which is not synchronised, reads 2040", "if the clock is wrong")?;
    site.power_off("worker-1")?;
    // Not 1970, which OVMF takes for 2070. The image's time, to which the clock is raised at least, is before the
    // cluster's authorities began, or after.
    let early = site.worker_on("worker-1")?.clock(Clock::At("2001-01-01T00:00:00".to_owned()));
    site.switch_on(&early)?;
    // A line is told as soon as it holds what is waited for, so its last words they shall be.
    let reading = site.vm("worker-1")?.console().wait_for("; waiting up to 1 s for", BOOT)?;
    ensure!(!reading.text.contains("reads 2040"), "the clock of the start before was kept: {}", reading.text);
    ensure!(reading.text.contains(" behind, and was set to the latest time that is known"), "{}", reading.text);
    let outcome = wait_until("worker-1 to be Ready or to say why not", BOOT, || {
        let lines = site.vm("worker-1")?.console().lines();
        let said = ["the server's certificate cannot be verified", "nodezero: ready"];
        Ok(said.into_iter().find(|said| lines.iter().any(|line| line.text.contains(said))))
    })?;
    if outcome != "nodezero: ready" {
        site.wait_told("worker-1", outcome, "check the clocks of both nodes")?;
    }
    site.power_off("worker-1")?;
    let machine = site.worker_on("worker-1")?;
    site.start(&machine, "right clock")?;
    site.expect_node("worker-1").map(drop)
}

/// An image is written over a worker's disk as `dd` does it. Its `state` is kept: the same node to mesh and cluster.
pub(super) fn reflashed(site: &mut Site<'_>) -> Result<()> {
    site.with_worker()?;
    let identity = site.vm("worker-1")?.report()?.value(key::MACHINE_ID)?.to_owned();
    let presented = site.keys_presented("worker-1")?;
    site.power_off("worker-1")?;
    let machine = site.worker_on("worker-1")?;
    storage::write_over(&image(Role::Worker)?.path, machine.disks()[0].file())?;
    site.start(&machine, "reflashed")?;
    let report = site.vm("worker-1")?.report()?;
    report.expect_value(key::MACHINE_ID, &identity)?;
    report.expect_value(key::STATE, "kept")?;
    site.expect_node("worker-1")?;
    ensure!(site.keys_presented("worker-1")? == presented, "it presented its key again");
    site.expect_registered("worker-1", "worker", 2)
}

/// A machine without its `state` is a second one of the same name, to the mesh and to K3s: each refuses it, and says what
/// lets it in. Its data stays.
pub(super) fn reinstalled(site: &mut Site<'_>) -> Result<()> {
    site.make_room()?;
    let machine = site.worker_on("worker-1-anew")?;
    site.switch_on(&machine)?;
    site.wait_told("worker-1", "the mesh calls this node worker-1-1", "delete it there and rename")?;
    // As the operator of a mesh does it.
    site.mesh.admin("DELETE", "/nodes/worker-1", "")?;
    site.mesh.admin("POST", "/nodes/worker-1-1/rename/worker-1", "")?;
    site.wait_told("worker-1", "knows another machine by the name worker-1", "nodezero node readmit worker-1")?;
    let said = site.profiles.nodezero(&["node", "readmit", "worker-1"])?;
    ensure!(said.contains("deleted the node password"), "{said}");
    site.wait("worker-1", "reinstalled")?;
    site.expect_node("worker-1")?;
    site.expect_registered("worker-1", "worker", 2)?;
    site.expect_file_systems()
}

/// Switches a machine on, and cuts its power so long after it said each of these.
fn cut_at(site: &mut Site<'_>, name: &str, moments: &[(&str, Duration)]) -> Result<()> {
    let machine = site.machine(name)?;
    for (text, moment) in moments {
        site.switch_on(&machine)?;
        site.wait_for(name, text)?;
        thread::sleep(*moment);
        site.cut_power(name)?;
    }
    Ok(())
}

/// Changes the join token in a machine's configuration, which is rendered anew for each [`Machine`]. Gives the one that
/// was there.
fn join_token(machine: &Machine, change: impl FnOnce(&str) -> String) -> Result<String> {
    let config = machine.fw_cfg_file("opt/com.coreos/config").context("the machine has no configuration")?;
    let mut content: Value = serde_json::from_slice(&fs::read(config)?)?;
    let files = content["storage"]["files"].as_array_mut().context("a configuration without files")?;
    let file = files.iter_mut().find(|file| file["path"] == JOIN_TOKEN).context("no join token")?;
    let source = file["contents"]["source"].as_str().context("a file without source")?;
    let token = source.strip_prefix("data:,").with_context(|| format!("the token is in a URL like {:.6}", source))?;
    let token = token.replace("%3A", ":").replace("%0A", "");
    let changed = change(&token);
    file["contents"]["source"] = data_url(format!("{changed}\n").as_bytes()).into();
    fs::write(config, content.to_string())?;
    Ok(token)
}
