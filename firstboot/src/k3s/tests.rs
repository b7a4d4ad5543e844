//! The step against a machine that is played: what is written, what is started, what is said, and how each cause ends.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;

use k8s_openapi::api::core::v1::Node as Object;
use serde_json::json;

use super::host::Unit;
use super::log::Line;
use super::*;
use crate::kubernetes::ApiError;

const BOOT: &str = "boot-2";
const SECRET: &str = "s3cret";

/// A machine at a moment.
#[derive(Clone)]
struct Moment {
    unit: Unit,
    log: Vec<&'static str>,
    node: Result<Option<Object>, u16>,
    port: Result<(), &'static str>,
}

impl Moment {
    fn starting() -> Self {
        let port = Ok(());
        Self { unit: unit("activating", "start", 0), log: vec![], node: Err(0), port }
    }

    fn ready() -> Self {
        let node = Ok(Some(node("True", BOOT, "100.64.0.7")));
        Self { unit: unit("active", "running", 0), node, ..Self::starting() }
    }

    fn said(line: &'static str) -> Self {
        Self { log: vec![line], ..Self::starting() }
    }
}

fn unit(active: &str, sub: &str, restarts: u64) -> Unit {
    Unit { is_loaded: true, active: active.into(), sub: sub.into(), restarts }
}

fn node(ready: &str, boot_id: &str, address: &str) -> Object {
    let ready = json!({ "type": "Ready", "status": ready, "message": "container runtime network not ready",
        "lastHeartbeatTime": null, "lastTransitionTime": null });
    serde_json::from_value(json!({
        "metadata": { "name": "n-1" },
        "status": {
            "conditions": [{ "type": "MemoryPressure", "status": "False" }, ready],
            "addresses": [{ "type": "Hostname", "address": "n-1" }, { "type": "InternalIP", "address": address }],
            "nodeInfo": { "bootID": boot_id, "kubeletVersion": "v1.35.4", "architecture": "", "containerRuntimeVersion": "",
                "kernelVersion": "", "kubeProxyVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
                "systemUUID": "" },
        },
    }))
    .expect("a node")
}

/// What was done to the machine, and what it will be, by second.
#[derive(Default)]
struct Played {
    moments: RefCell<Vec<(u64, Moment)>>,
    now: Cell<Duration>,
    started: RefCell<Vec<String>>,
    stop_at: Cell<Option<u64>>,
    flushed: Cell<u32>,
}

impl Played {
    fn moment(&self) -> Moment {
        let moments = self.moments.borrow();
        let now = self.now.get().as_secs();
        moments.iter().rev().find(|(from, _)| *from <= now).expect("one from the start").1.clone()
    }
}

impl Host for Rc<Played> {
    fn unit(&self, _unit: &str) -> anyhow::Result<Unit> {
        Ok(self.moment().unit)
    }

    fn start(&self, unit: &str, again: bool) -> anyhow::Result<()> {
        self.started.borrow_mut().push(format!("{unit}{}", if again { " again" } else { "" }));
        Ok(())
    }

    fn log(&self, _unit: &str) -> Vec<Line> {
        let line = |text: &&str| Line { age: Duration::ZERO, text: (*text).to_owned() };
        self.moment().log.iter().map(line).collect()
    }

    fn first_log(&self, _unit: &str) -> Vec<Line> {
        let moments = self.moments.borrow();
        let lines = moments.iter().flat_map(|(_, moment)| &moment.log);
        lines.map(|text| Line { age: self.now.get(), text: (*text).to_owned() }).collect()
    }

    fn node(&self, _access: &Access, _name: &str) -> Result<Option<Object>, ApiError> {
        let server = "https://127.0.0.1:6444".to_owned();
        self.moment().node.map_err(|code| match code {
            0 => ApiError::Credentials("no such file".into()),
            code => ApiError::Refused { server, code, message: "no".into() },
        })
    }

    fn connect(&self, _address: SocketAddr) -> Result<(), String> {
        self.moment().port.map_err(str::to_owned)
    }

    fn boot_id(&self) -> anyhow::Result<String> {
        Ok(BOOT.to_owned())
    }

    fn ready_for_k3s(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn flush(&self) -> anyhow::Result<()> {
        self.flushed.set(self.flushed.get() + 1);
        Ok(())
    }

    fn now(&self) -> Duration {
        self.now.get()
    }

    fn clock_doubt(&self) -> Option<String> {
        Some("this machine's clock is doubtful".to_owned())
    }

    fn sleep(&self, duration: Duration) -> bool {
        self.now.set(self.now.get() + duration);
        self.stop_at.get().is_none_or(|at| self.now.get().as_secs() < at)
    }
}

/// A mesh of two.
struct Known(Cell<u8>);

impl Mesh for Rc<Known> {
    fn address(&self, _journal: &Journal) -> Result<IpAddr, Failure> {
        Ok(IpAddr::from([100, 64, 0, 7]))
    }

    fn resolve(&self, _journal: &mut Journal, name: &str) -> Result<IpAddr, Failure> {
        match name {
            "control-1" => Ok(IpAddr::from([100, 64, 0, self.0.get()])),
            name => Err(Failure::new("no such node", name, "add it").retrying()),
        }
    }
}

struct Rig {
    root: tempfile::TempDir,
    host: Rc<Played>,
    mesh: Rc<Known>,
    journal: Journal,
    step: Cluster,
}

fn rig(role: &str, cluster: &str, moments: Vec<(u64, Moment)>) -> Rig {
    let root = tempfile::tempdir().expect("tempdir");
    let journal = Journal::open(&root.path().join("journal"), BOOT).expect("opened");
    let token = root.path().join("s/token");
    fs::create_dir_all(token.parent().expect("has one")).expect("made");
    fs::write(&token, format!("K10abc::server:{SECRET}\n")).expect("written");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("set");
    let program = root.path().join("usr/bin/k3s");
    fs::create_dir_all(program.parent().expect("has one")).expect("made");
    fs::write(program, "a program").expect("written");
    let json = format!(
        r#"{{"version":1,"name":"n-1","role":"{role}","mesh":{{}},"cluster":{{"tokenFile":"/s/token","wait":600{cluster}}}}}"#
    );
    let node = Node::parse(json.as_bytes()).unwrap_or_else(|problems| panic!("{json}: {problems}"));
    let host = Rc::new(Played { moments: RefCell::new(moments), ..Played::default() });
    let mesh = Rc::new(Known(Cell::new(1)));
    let mut step = Cluster::new(&node).expect("it has a cluster");
    (step.host, step.mesh, step.root) = (Box::new(Rc::clone(&host)), Box::new(Rc::clone(&mesh)), root.path().into());
    Rig { root, host, mesh, journal, step }
}

impl Rig {
    fn run(&mut self) -> (Result<String, Failure>, Vec<String>) {
        let mut said = Vec::new();
        let Self { step, journal, .. } = self;
        let result = step.check(journal).and_then(|_| {
            step.apply(journal, &mut |line| said.push(line.to_owned()))?;
            step.verify(journal)
        });
        (result, said)
    }

    fn config(&self) -> String {
        fs::read_to_string(self.root.path().join("etc/rancher/k3s/config.yaml")).expect("written")
    }
}

const JOINS: &str = r#","server":"control-1""#;

#[test]
fn a_worker_joins_and_a_second_run_changes_nothing() {
    let mut rig = rig(
        "worker",
        JOINS,
        vec![(0, Moment { unit: unit("inactive", "dead", 0), ..Moment::starting() }), (9, Moment::ready())],
    );
    let (result, said) = rig.run();
    assert_eq!(result.expect("ready"), "node n-1 is Ready at 100.64.0.7 with v1.35.4");
    assert_eq!(said, ["k3s-agent.service is started to join https://100.64.0.1:6443"]);
    assert!(rig.config().contains("server: \"https://100.64.0.1:6443\"\n"), "{}", rig.config());
    assert!(!rig.config().contains(SECRET));
    let mode = fs::metadata(rig.root.path().join("etc/rancher/k3s/config.yaml")).expect("there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let (result, said) = rig.run();
    assert!(result.is_ok() && said.is_empty(), "{said:?}");
    assert_eq!(*rig.host.started.borrow(), ["k3s-agent.service"]);
    assert_eq!(rig.host.flushed.get(), 1, "once, when it was Ready first");
    assert!(rig.root.path().join("etc/rancher/node/password").exists());
    // The server has another address at another start.
    rig.mesh.0.set(2);
    let (result, said) = rig.run();
    assert!(result.is_ok(), "{said:?}");
    assert_eq!(*rig.host.started.borrow(), ["k3s-agent.service", "k3s-agent.service again"]);
    assert!(rig.config().contains("https://100.64.0.2:6443") && said[0].contains("configuration changed"), "{said:?}");
}

#[test]
fn what_an_interrupted_start_left_is_mended() {
    let moments =
        || vec![(0, Moment { unit: unit("inactive", "dead", 0), ..Moment::starting() }), (9, Moment::ready())];
    let mut rig = rig("worker", JOINS, moments());
    let agent = rig.root.path().join("var/lib/rancher/k3s/agent");
    fs::create_dir_all(agent.join("containerd/snapshots")).expect("made");
    fs::write(agent.join("client-kubelet.key"), "").expect("written");
    let (result, said) = rig.run();
    result.expect("ready");
    assert!(said[0].contains("agent/containerd is removed") && said[1].contains("client-kubelet.key"), "{said:?}");
    // Once all of it is on the disk, only what is empty goes.
    fs::create_dir_all(agent.join("containerd/snapshots")).expect("made");
    rig.host.now.set(Duration::ZERO);
    let (result, said) = rig.run();
    result.expect("ready");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(agent.join("containerd/snapshots").exists());
    assert_eq!(rig.host.flushed.get(), 1);
}

#[test]
fn a_setting_that_k3s_skips_is_a_warning_and_no_cause() {
    let skips = Moment::said(r#"level=warning msg="Unknown flag --no-such found in config.yaml, skipping""#);
    let mut rig = rig("worker", JOINS, vec![(0, skips), (90, Moment::ready())]);
    let (result, said) = rig.run();
    result.expect("it is waited on");
    assert!(!said.iter().any(|line| line.contains("K3s says")), "{said:?}");
    let warnings = rig.step.warnings();
    assert!(warnings.len() == 1 && warnings[0].starts_with("K3s does not know the setting no-such"), "{warnings:?}");
}

#[test]
fn an_api_that_is_down_for_ten_minutes_is_waited_out() {
    let down = Moment {
        port: Err("connection refused"),
        log: vec!["failed to get CA certs: connection refused"],
        ..Moment::starting()
    };
    let mut rig = rig("worker", r#","server":"control-1""#, vec![(0, down), (580, Moment::ready())]);
    let (result, said) = rig.run();
    result.expect("ready in the end");
    assert_eq!(said.len(), 1 + 19, "a line each 30 s");
    assert_eq!(
        said[1],
        "waiting for node n-1 to be Ready, 30 s of 600 s: the cluster's API at https://100.64.0.1:6443 is not reached: \
         connection refused"
    );
}

#[test]
fn a_control_node_starts_a_cluster() {
    let mut rig = rig("control", "", vec![(0, Moment::starting()), (60, Moment::ready())]);
    let (result, said) = rig.run();
    result.expect("ready");
    // It was starting already.
    assert!(rig.host.started.borrow().contains(&"k3s.service again".to_owned()), "its configuration is new");
    assert!(said[0].starts_with("k3s.service is restarted"), "{said:?}");
    assert!(!rig.config().contains("server:") && rig.config().contains("advertise-address: \"100.64.0.7\""));
}

#[test]
fn each_cause_has_its_words_and_a_bound() {
    let not_ready = |status: &str, boot: &str, address: &str| Moment {
        node: Ok(Some(node(status, boot, address))),
        ..Moment::ready()
    };
    for (case, moment, what, why, remedy, within) in [
        (
            "hash",
            Moment::said("token CA hash does not match the Cluster CA certificate hash: a != b"),
            "the join token is for another cluster",
            "a != b",
            "render n-1 anew",
            40,
        ),
        (
            "token",
            Moment::said("https://127.0.0.1:6444/v1-k3s/config: 401 Unauthorized s3cret"),
            "the cluster refuses the join token",
            "401 Unauthorized (secret)",
            "render n-1 anew",
            40,
        ),
        (
            "name",
            Moment::said("Node password rejected, duplicate hostname"),
            "the cluster knows another machine by the name n-1",
            "duplicate hostname",
            "nodezero node readmit n-1",
            40,
        ),
        (
            "clock",
            Moment::said("CA cert validation failed: x509: certificate has expired or is not yet valid"),
            "the server's certificate cannot be verified",
            "not yet valid; this machine's clock is doubtful",
            "check the clocks of both nodes",
            40,
        ),
        (
            "option",
            Moment::said("flag provided but not defined: -x"),
            "K3s does not know a setting",
            "-x",
            "cluster.config",
            40,
        ),
        (
            "loop",
            Moment { unit: unit("activating", "auto-restart", 9), ..Moment::said("panic: oh") },
            "k3s-agent.service does not stay up",
            "panic: oh",
            "journalctl -u k3s-agent.service",
            9,
        ),
        (
            "failed",
            Moment { unit: unit("failed", "failed", 0), ..Moment::starting() },
            "k3s-agent.service does not stay up",
            "its log is empty",
            "journalctl",
            9,
        ),
        (
            "down",
            Moment { port: Err("timed out"), ..Moment::starting() },
            "the cluster's API is not reached",
            "https://100.64.0.1:6443 is not reached: timed out",
            "control node",
            610,
        ),
        (
            "not ready",
            not_ready("False", BOOT, "100.64.0.7"),
            "the node is not Ready",
            "container runtime network not ready",
            "log of k3s-agent",
            610,
        ),
        (
            "an earlier boot",
            not_ready("True", "boot-1", "100.64.0.7"),
            "the node is not Ready",
            "from before it started",
            "log of",
            610,
        ),
        (
            "another address",
            not_ready("True", BOOT, "192.168.1.5"),
            "has not its mesh address",
            "[192.168.1.5], expected 100.64.0.7",
            "cluster.config",
            610,
        ),
        (
            "no node",
            Moment { node: Ok(None), ..Moment::ready() },
            "the node is not Ready",
            "has not registered",
            "log of",
            610,
        ),
        (
            "refused",
            Moment { node: Err(403), ..Moment::ready() },
            "the node is not Ready",
            "answered 403",
            "log of",
            610,
        ),
        (
            "server starts",
            Moment::said("server is not ready: 503 Service Unavailable"),
            "the cluster's API does not get ready",
            "503",
            "k3s.service on the control node",
            610,
        ),
    ] {
        let begin = Moment { unit: unit("inactive", "dead", 0), ..Moment::starting() };
        let mut rig = rig("worker", JOINS, vec![(0, begin), (1, moment)]);
        let (result, said) = rig.run();
        let failure = result.expect_err(case);
        let told = format!("{} / {} / {}", failure.what(), failure.why(), failure.remedy());
        assert!(failure.what().contains(what), "{case}: {told}");
        assert!(failure.why().contains(why) && failure.remedy().contains(remedy), "{case}: {told}");
        assert!(failure.is_retried(), "{case}: a person or time may mend it");
        assert!(!told.contains(SECRET) && !said.join("").contains(SECRET), "{case}: {told}");
        let took = rig.host.now.get().as_secs();
        assert!(took <= within, "{case}: {took} s");
    }
}

#[test]
fn a_definite_cause_that_goes_away_is_no_failure() {
    let refused = Moment::said("Node password rejected");
    let mut rig = rig(
        "worker",
        JOINS,
        vec![(0, Moment::starting()), (3, refused), (12, Moment::starting()), (30, Moment::ready())],
    );
    rig.run().0.expect("ready");
}

#[test]
fn a_wait_can_be_ended() {
    let mut rig = rig("worker", JOINS, vec![(0, Moment::starting())]);
    rig.host.stop_at.set(Some(20));
    assert!(rig.run().0.expect_err("ended").what().contains("was ended"));
    assert!(rig.host.now.get().as_secs() <= 21);
}

#[test]
fn a_token_that_is_missing_open_or_empty_is_refused_before_anything_starts() {
    for (case, mode, content, expected) in [
        ("missing", 0o600, None, "reading"),
        ("open", 0o644, Some("K10a::server:x"), "mode 0644, expected 0600"),
        ("empty", 0o600, Some(" \n"), "holds no join token"),
    ] {
        let mut rig = rig("worker", JOINS, vec![(0, Moment::starting())]);
        let path = rig.root.path().join("s/token");
        fs::remove_file(&path).expect("removed");
        if let Some(content) = content {
            fs::write(&path, content).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        }
        let failure = rig.run().0.expect_err(case);
        assert!(failure.why().contains(expected) && !failure.is_retried(), "{case}: {failure}");
        assert!(rig.host.started.borrow().is_empty(), "{case}");
    }
}

#[test]
fn the_token_for_workers_is_a_secret_of_a_control_node() {
    let said = Moment::said("for-w0rkers is refused: i/o timeout");
    for (case, mode, expected) in [
        ("missing", None, "reading"),
        ("open", Some(0o640), "mode 0640, expected 0600"),
        ("sound", Some(0o600), "(secret) is refused"),
    ] {
        let mut rig = rig("control", r#","agentTokenFile":"/s/agents""#, vec![(0, said.clone())]);
        let path = rig.root.path().join("s/agents");
        if let Some(mode) = mode {
            fs::write(&path, "for-w0rkers\n").expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
        }
        let (result, lines) = rig.run();
        let failure = result.expect_err(case);
        assert!(failure.why().contains(expected), "{case}: {failure}");
        assert!(!format!("{failure}{lines:?}").contains("for-w0rkers"), "{case}: {failure}\n{lines:?}");
    }
}

#[test]
fn a_server_that_the_mesh_does_not_know_is_asked_for_again() {
    let mut rig = rig("worker", r#","server":"control-9""#, vec![(0, Moment::starting())]);
    let failure = rig.run().0.expect_err("unknown");
    assert!(failure.is_retried() && failure.why() == "control-9", "{failure}");
    assert!(rig.host.started.borrow().is_empty());
}
