//! The step against a tailscaled that is none: its local API on a Unix socket, with a control server that answers,
//! refuses, or does not answer. What it says was said by tailscaled 1.100 in the same situations.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::{fs, thread};

use serde_json::{Value, json};

use super::*;

const SERVER: &str = "http://10.0.2.2:8080";
const REFUSED: &str = "invalid key: API key does not exist";
const UNREACHED: &str =
    "fetch control key: Get \"http://10.0.2.2:8080/key?v=141\": dial tcp 10.0.2.2:8080: connect: connection refused";
/// As its source has it.
const PUT_OFF: &str = "node registration rate limited; will retry after 5s";
const NAME: &str = "worker-1";
const ADDRESS: &str = "100.64.0.1";

/// What the control server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Answers,
    IsDown,
    IsSilent,
    /// It wants to be asked later.
    PutsOff,
    /// It knows no key.
    Refuses,
    /// It wants an approval.
    Waits,
    /// It gives another name.
    Renames,
    /// It knows the node no longer.
    Forgot,
    /// It answers, but no relay does.
    HasNoRelay,
}

/// tailscaled.
#[derive(Debug)]
struct Daemon {
    control: Control,
    running: bool,
    enrolled: bool,
    /// The last attempt to log in, refused.
    refused: bool,
    key: Option<String>,
    preferences: Value,
    address: &'static str,
    /// What was asked, but for looks.
    log: Vec<String>,
}

impl Daemon {
    fn status(&self) -> Value {
        let logged_out = |error: &str| format!("You are logged out. The last login error was: {error}");
        let (state, health) = match self.control {
            Control::Forgot if self.key.is_none() => ("NeedsLogin", vec![]),
            Control::IsDown if self.enrolled => ("NoState", vec![logged_out(UNREACHED)]),
            Control::IsSilent if self.enrolled => ("NoState", vec![]),
            Control::IsDown => ("NeedsLogin", vec![logged_out(UNREACHED)]),
            Control::PutsOff => ("NeedsLogin", vec![logged_out(PUT_OFF)]),
            Control::Waits if self.enrolled => ("NeedsMachineAuth", vec![]),
            Control::HasNoRelay if self.enrolled => ("Starting", vec!["no relay".to_owned()]),
            _ if self.refused => ("NeedsLogin", vec![logged_out(REFUSED)]),
            _ if self.enrolled => ("Running", vec![]),
            _ => ("NeedsLogin", vec!["Tailscale is stopped.".to_owned()]),
        };
        let name = if self.control == Control::Renames { "worker-1-1" } else { NAME };
        let has_map = matches!(state, "Running" | "Starting");
        json!({
            "BackendState": state, "HaveNodeKey": self.enrolled, "Health": health, "AuthURL": "",
            "TailscaleIPs": has_map.then(|| json!(["fd7a:115c:a1e0::1", self.address])),
            "Self": { "DNSName": if has_map { format!("{name}.mesh.test.") } else { String::new() } },
            "Peer": has_map.then(|| json!({"nodekey:a": {"DNSName": "control-1.mesh.test.", "TailscaleIPs": ["100.64.0.9"]}})),
        })
    }

    fn answer(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let name = path.trim_start_matches("/localapi/v0/");
        if method != "GET" {
            self.log.push(format!("{method} {name}"));
        }
        match (method, name) {
            ("GET", "status") => (200, self.status()),
            ("GET", "prefs") => (200, self.preferences.clone()),
            ("PATCH", "prefs") => {
                let masked = body.as_object().expect("an object");
                for (key, value) in masked.iter().filter(|(key, _)| masked.contains_key(&format!("{key}Set"))) {
                    self.preferences[key] = value.clone();
                }
                (200, self.preferences.clone())
            }
            ("POST", "start") => {
                assert!(body["UpdatePrefs"].get("Config").is_none(), "its own state is not given back: {body}");
                self.preferences = body["UpdatePrefs"].clone();
                self.key = body["AuthKey"].as_str().map(str::to_owned);
                (204, Value::Null)
            }
            ("POST", "login-interactive") => {
                self.refused = self.control == Control::Refuses;
                self.enrolled =
                    !matches!(self.control, Control::IsDown | Control::Refuses | Control::IsSilent | Control::PutsOff);
                (204, Value::Null)
            }
            _ => (404, Value::Null),
        }
    }
}

/// Answers one question.
fn serve(mut stream: UnixStream, daemon: &Mutex<Daemon>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        head.push(line);
    }
    assert!(head.iter().any(|line| line.trim().eq_ignore_ascii_case("host: local-tailscaled.sock")), "{head:?}");
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut words = head[0].split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (status, answer) = daemon.lock().expect("whole").answer(method, path, &body);
    // 204 has no content (RFC 9110, section 15.3.5): who has read its head is done, and resets what would follow. In one
    // piece, as an answer is not to depend on who runs when.
    let content = if status == 204 { String::new() } else { answer.to_string() };
    let length = if status == 204 { String::new() } else { format!("Content-Length: {}\r\n", content.len()) };
    stream.write_all(format!("HTTP/1.1 {status} X\r\n{length}Connection: close\r\n\r\n{content}").as_bytes())?;
    // What is closed with something unread is reset, and the answer may be lost.
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.shutdown(Shutdown::Write)?;
    std::io::copy(&mut reader, &mut std::io::sink()).map(drop)
}

/// The machine, whose time passes by pauses alone.
#[derive(Clone, Debug)]
struct Fake {
    daemon: Arc<Mutex<Daemon>>,
    placed: Rc<std::cell::RefCell<BTreeSet<IpAddr>>>,
    elapsed: Rc<Cell<Duration>>,
    stopped: bool,
    clock_doubt: Option<&'static str>,
}

impl Machine for Fake {
    fn start(&self) -> Result<(), Failure> {
        self.daemon.lock().expect("whole").running = true;
        Ok(())
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let status = Status::parse(self.daemon.lock().expect("whole").status().to_string().as_bytes()).expect("parses");
        status.addresses.into_iter().chain(self.placed.borrow().iter().copied()).collect()
    }

    fn place(&self, address: IpAddr) -> anyhow::Result<()> {
        anyhow::ensure!(address.is_ipv4(), "this kernel has no IPv6");
        self.placed.borrow_mut().insert(address);
        Ok(())
    }

    fn take_away(&self, address: IpAddr) -> anyhow::Result<()> {
        anyhow::ensure!(self.placed.borrow_mut().remove(&address), "there is no {address}");
        Ok(())
    }

    fn elapsed(&self) -> Duration {
        self.elapsed.get()
    }

    fn pause(&self, duration: Duration) {
        self.elapsed.set(self.elapsed.get() + duration);
    }

    fn clock_doubt(&self) -> Option<String> {
        self.clock_doubt.map(str::to_owned)
    }

    fn is_stopped(&self) -> bool {
        self.stopped
    }
}

/// A node, its tailscaled and its journal.
struct World {
    root: tempfile::TempDir,
    machine: Fake,
    journal: Journal,
    said: Vec<String>,
}

impl World {
    fn new(control: Control) -> Self {
        let root = tempfile::tempdir().expect("tempdir");
        let preferences = json!({
            "ControlURL": "", "Hostname": "", "AdvertiseTags": null, "WantRunning": false, "CorpDNS": true,
            "NetfilterMode": 2, "Egg": true, "Config": null, "AutoUpdate": {"Check": true, "Apply": null},
        });
        let daemon = Daemon {
            control,
            running: false,
            enrolled: false,
            refused: false,
            key: None,
            preferences,
            address: ADDRESS,
            log: Vec::new(),
        };
        let daemon = Arc::new(Mutex::new(daemon));
        let listener = UnixListener::bind(root.path().join("sock")).expect("bound");
        let served = Arc::clone(&daemon);
        // Who goes away early is the only one to notice.
        thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(serve(stream, &served))));
        let journal = Journal::open(&root.path().join("lib"), "a").expect("opened");
        fs::write(root.path().join("key"), "k-1\n").expect("written");
        let machine = Fake { daemon, placed: Rc::default(), elapsed: Rc::default(), stopped: false, clock_doubt: None };
        Self { root, machine, journal, said: Vec::new() }
    }

    /// One that was in the mesh at an earlier start, and finds this control server now.
    fn enrolled(control: Control) -> Self {
        let mut world = Self::new(Control::Answers);
        world.run().expect("joined");
        world.daemon().control = control;
        world.daemon().log.clear();
        world.said.clear();
        world
    }

    fn daemon(&self) -> MutexGuard<'_, Daemon> {
        self.machine.daemon.lock().expect("whole")
    }

    fn key(&self) -> PathBuf {
        self.root.path().join("key")
    }

    fn step(&self) -> Mesh {
        let settings = join::Mesh {
            login_server: Some(SERVER.to_owned()),
            auth_key_file: Some(self.key()),
            tags: vec!["tag:worker".to_owned()],
            wait: None,
        };
        let api = LocalApi::at(&self.root.path().join("sock"));
        Mesh { name: NAME.to_owned(), settings, api, machine: Box::new(self.machine.clone()), cut_off: None }
    }

    /// Check, apply and verify, as the engine does.
    fn run(&mut self) -> Result<(Mesh, String), Failure> {
        let mut step = self.step();
        let line = match step.check(&self.journal)? {
            Check::Done(line) => line,
            Check::Needed(_) => {
                step.apply(&mut self.journal, &mut |line| self.said.push(line.to_owned()))?;
                step.verify(&self.journal)?
            }
        };
        Ok((step, line))
    }
}

#[test]
fn a_fresh_node_joins_and_its_key_is_removed() {
    let mut world = World::new(Control::Answers);
    let (step, line) = world.run().expect("joined");
    assert_eq!(line, "worker-1 of mesh.test at 100.64.0.1 and fd7a:115c:a1e0::1, beside 1 others");
    assert!(step.warnings().is_empty() && !world.key().exists());
    assert_eq!(address(&world.journal).expect("known").to_string(), ADDRESS);
    let daemon = world.daemon();
    assert_eq!(daemon.log, ["POST start", "POST login-interactive"]);
    assert_eq!(daemon.key.as_deref(), Some("k-1"));
    let preferences = &daemon.preferences;
    assert_eq!((&preferences["ControlURL"], &preferences["Hostname"]), (&json!(SERVER), &json!(NAME)));
    assert_eq!((&preferences["AdvertiseTags"], &preferences["WantRunning"]), (&json!(["tag:worker"]), &json!(true)));
    assert_eq!(preferences["Egg"], json!(true), "what is not known stays");
    drop(daemon);

    let Check::Done(again) = world.step().check(&world.journal).expect("checked") else {
        panic!("something is to be done")
    };
    assert_eq!(again, line);
    let left = format!("{:?} {:?}", world.journal, world.said);
    assert!(!left.contains("k-1"), "{left}");
}

#[test]
fn an_enrolled_node_needs_no_key_and_uses_none() {
    for key in [None, Some("k-2")] {
        let mut world = World::enrolled(Control::Answers);
        key.into_iter().for_each(|key| fs::write(world.key(), key).expect("written"));
        world.daemon().preferences["RouteAll"] = json!(true);
        world.run().expect("in");
        let daemon = world.daemon();
        assert_eq!((daemon.key.as_deref(), daemon.log.join(" ").as_str()), (Some("k-1"), "PATCH prefs"), "{key:?}");
        assert_eq!(daemon.preferences["RouteAll"], json!(false));
        assert!(!world.key().exists(), "{key:?}");
    }
}

#[test]
fn failures_say_what_why_and_what_to_do() {
    for (control, enrolled, key, what, why, remedy) in [
        (Control::Refuses, false, true, "refuses this node", REFUSED, "another auth key that may have tag:worker"),
        (Control::Answers, false, false, "has no auth key", "there is no ", "make an auth key"),
        (Control::IsDown, false, true, "is not reached", "connection refused", "look at the uplink"),
        (
            Control::IsSilent,
            false,
            true,
            "is not reached",
            "waited 5 min for an answer of the control server http://10",
            "uplink",
        ),
        (Control::PutsOff, false, true, "puts this node off", PUT_OFF, "it is asked again"),
        (Control::Waits, false, true, "is not approved", "somebody to approve", "approve it"),
        (
            Control::Renames,
            false,
            true,
            "calls this node worker-1-1",
            "another machine at http://10",
            "delete it there and rename",
        ),
        (
            Control::HasNoRelay,
            false,
            true,
            "joined and not reached",
            "a relay or another machine of the mesh: no relay",
            "DERP",
        ),
        (
            Control::Forgot,
            true,
            false,
            "no longer in the mesh",
            "was deleted there, or its key has expired",
            "make an auth key",
        ),
    ] {
        let mut world = if enrolled { World::enrolled(control) } else { World::new(control) };
        if control == Control::Forgot {
            world.daemon().key = None;
        }
        if !key {
            let _ = fs::remove_file(world.key());
        }
        let failure = world.run().err().unwrap_or_else(|| panic!("{control:?}: it succeeded"));
        assert!(failure.what().contains(what), "{control:?}: {failure}");
        assert!(failure.why().contains(why), "{control:?}: {failure}");
        assert!(failure.remedy().contains(remedy), "{control:?}: {failure}");
        assert_eq!(failure.is_retried(), enrolled || key, "{control:?}: {failure}");
        assert!(!format!("{failure} {:?}", world.said).contains("k-1"), "{control:?}: the key is told");
        assert_eq!(world.key().exists(), key, "{control:?}: the key is kept until the node is in");
    }
}

#[test]
fn a_key_that_has_expired_by_a_doubtful_clock_is_told_with_the_clock() {
    let mut world = World::enrolled(Control::Forgot);
    world.daemon().key = None;
    let sure = world.run().expect_err("no longer in the mesh");
    assert!(sure.remedy().starts_with("make an auth key"), "{sure}");
    world.machine.clock_doubt = Some("this machine's clock reads 2040");
    let failure = world.run().expect_err("no longer in the mesh");
    assert!(failure.why().ends_with("its key has expired; this machine's clock reads 2040"), "{failure}");
    assert!(
        failure.remedy().contains("time.servers") && failure.remedy().contains("else make an auth key"),
        "{failure}"
    );
}

#[test]
fn each_wait_is_bounded_and_told() {
    let mut world = World::new(Control::IsSilent);
    world.run().expect_err("nobody answers");
    assert_eq!(world.machine.elapsed().as_secs(), PATIENCE.as_secs());
    assert_eq!(world.said.len(), 9, "{:?}", world.said);
    assert_eq!(world.said[0], "waiting for an answer of the control server http://10.0.2.2:8080, since 30 s of 5 min");
    let presented = |world: &World| world.daemon().log.iter().filter(|asked| *asked == "POST start").count();
    assert_eq!(presented(&world), 4, "at once, and after each 90 s without a word");
    world.machine.stopped = true;
    let failure = world.run().expect_err("ended");
    assert_eq!(failure.what(), "the wait for the mesh was ended");
}

#[test]
fn who_is_not_reached_or_waits_for_a_person_is_presented_one_key() {
    for control in [Control::IsDown, Control::Waits] {
        let mut world = World::new(control);
        world.run().expect_err("it does not come in");
        let presented = world.daemon().log.iter().filter(|asked| *asked == "POST start").count();
        assert_eq!(presented, 1, "{control:?}");
    }
}

#[test]
fn a_key_that_is_good_after_all_is_taken_at_the_next_attempt() {
    let mut world = World::new(Control::Refuses);
    world.run().expect_err("refused");
    world.daemon().control = Control::Answers;
    world.run().expect("joined");
}

#[test]
fn a_word_about_an_earlier_attempt_is_not_one_about_this() {
    let mut world = World::new(Control::Refuses);
    world.run().expect_err("refused");
    let before = world.machine.elapsed();
    world.run().expect_err("refused again");
    assert!(world.machine.elapsed() - before >= Duration::from_secs(10), "the old word was taken for the new one");
}

#[test]
fn without_its_control_server_an_enrolled_node_goes_on() {
    for control in [Control::IsDown, Control::IsSilent] {
        let mut world = World::enrolled(control);
        let before = world.machine.elapsed();
        let (mut step, line) = world.run().expect("goes on");
        assert_eq!(line, "worker-1 with the address of the last time, 100.64.0.1", "{control:?}");
        assert_eq!((world.machine.elapsed() - before).as_secs(), 60, "{control:?}");
        assert!(step.warnings()[0].starts_with("the mesh is not reached"), "{:?}", step.warnings());
        assert_eq!(world.machine.placed.borrow().len(), 1, "{control:?}");
        assert_eq!(step.later(), Later::Waiting, "{control:?}");
        world.daemon().control = Control::Answers;
        for _ in 0..2 {
            let Later::Came(line) = step.later() else { panic!("{control:?}: it has come") };
            assert!(line.starts_with("worker-1 of mesh.test at 100.64.0.1"), "{line}");
        }
        assert!(step.warnings().is_empty(), "{control:?}");
        assert_eq!(world.machine.placed.borrow().len(), 1, "{control:?}: it is the right one");
    }
}

#[test]
fn an_address_that_is_no_longer_the_nodes_is_taken_away() {
    let mut world = World::enrolled(Control::IsDown);
    let (mut step, _) = world.run().expect("goes on");
    (world.daemon().control, world.daemon().address) = (Control::Answers, "100.64.0.7");
    let Later::Came(line) = step.later() else { panic!("it has come") };
    assert!(line.contains("100.64.0.1, of the last time, is no longer its address: restart this node"), "{line}");
    assert!(world.machine.placed.borrow().is_empty());
}

#[test]
fn a_node_does_not_change_over_to_another_control_server() {
    let mut world = World::enrolled(Control::Answers);
    world.daemon().preferences["ControlURL"] = json!("https://other.example");
    let failure = world.run().expect_err("refused");
    assert_eq!(failure.why(), "it is enrolled at https://other.example, the profile names http://10.0.2.2:8080");
    assert!(!failure.is_retried());
}

#[test]
fn keys_that_are_none_are_refused_without_being_shown() {
    for (case, text) in [("empty", ""), ("two words", "k-1 k-2"), ("no text", "\u{0}k-1")] {
        let mut world = World::new(Control::Answers);
        fs::write(world.key(), text).expect("written");
        let failure = world.run().expect_err(case);
        assert!(failure.what().contains("cannot be used") && !failure.to_string().contains("k-1"), "{case}: {failure}");
    }
}

#[test]
fn names_are_resolved_to_addresses() {
    let mut world = World::enrolled(Control::Answers);
    let api = LocalApi::at(&world.root.path().join("sock"));
    let mut find = |name: &str| resolve_at(&api, &mut world.journal, name).map(|address| address.to_string());
    assert_eq!(find("control-1").expect("a peer"), "100.64.0.9");
    assert_eq!(find("worker-1").expect("this node"), ADDRESS);
    let failure = find("control-2").expect_err("nobody");
    assert_eq!(failure.why(), "none of 1 other machines is called so; tailscaled is Running");
    assert!(failure.is_retried());

    world.daemon().control = Control::IsDown;
    let mut find = |name: &str| resolve_at(&api, &mut world.journal, name).map(|address| address.to_string());
    assert_eq!(find("control-1").expect("found before"), "100.64.0.9");
    assert!(find("control-2").is_err());
    let gone = LocalApi::at(Path::new("/nonexistent"));
    let mut find = |name: &str| resolve_at(&gone, &mut world.journal, name).map(|address| address.to_string());
    assert_eq!(find("control-1").expect("found before"), "100.64.0.9");
    assert!(find("control-2").expect_err("nobody to ask").why().contains("connecting"));
}

#[test]
fn a_node_without_a_mesh_has_no_address() {
    let directory = tempfile::tempdir().expect("tempdir");
    let mut journal = Journal::open(directory.path(), "a").expect("opened");
    assert!(address(&journal).is_err());
    record(&mut journal, &["100.64.0.3".parse().expect("valid")]);
    assert_eq!(address(&journal).expect("known").to_string(), "100.64.0.3");
    let node =
        |mesh| Node::parse(format!(r#"{{"version":1,"name":"n","role":"edge"{mesh}}}"#).as_bytes()).expect("valid");
    assert!(Mesh::new(&node("")).is_none());
    assert_eq!(Mesh::new(&node(r#","mesh":{}"#)).expect("one").name(), "mesh");
}
