//! Scenarios of several machines that become a cluster: what the operator has beside them, the mesh's control server,
//! and assertions through the API, as the operator makes them.
//!
//! - [`MeshServer`] is Tailscale's own test control server on the host's loopback, from `qemu-tests/rig`;
//! - [`Profiles`] is a directory of profiles with its secrets, and the `nodezero` commands that work on it;
//! - [`Api`] is the cluster's API through a port of the host that leads to a control node's;
//! - [`Timings`] is how long each power-on took until its node was Ready, and which steps took it.

use std::collections::BTreeMap;
use std::env;
use std::fmt::{self, Debug};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authorization::v1::{ResourceRule, SelfSubjectRulesReview, SelfSubjectRulesReviewSpec};
use kube::api::PostParams;
use nodezero::cache::Cache;
use nodezero::demo::rig;
use nodezero::kube::{ANSWER, Access, Cluster, block_on};
use nodezero::manifest::Manifest;
use nodezero::progress::Progress;
use nodezero::shares::{self, Share};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::guest::{READY, STOPPED};
use crate::{Image, Role, Vm, images, spawn, tools};

/// How long a server of the rig may take until it listens.
const LISTEN: Duration = Duration::from_secs(60);

/// How often something is asked that is waited for.
const POLL: Duration = Duration::from_secs(2);

/// What a node says of a step that waiting does not help.
const LASTING: &str = "again when disks or addresses change, or after a restart";

/// What the last line of the first stage contains, and what is before its milliseconds since the kernel started.
const SWITCH_ROOT: &str = "nodezero: switch root: ";
const AT: &str = ", at ";

/// What the line with a node's timings contains.
const SUMMARY: &str = "nodezero: summary: node ";

/// The program `name` of the rig: ready made in `NODEZERO_RIG`, else built.
pub fn program(name: &str) -> Result<PathBuf> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("rig");
    rig::program(&module, name, &Cache::open(None)?, &Progress::new(false))
}

/// What [`image`] has built.
static BUILT: Mutex<BTreeMap<Role, Image>> = Mutex::new(BTreeMap::new());

/// The images that were asked for so far.
pub fn images_so_far() -> BTreeMap<Role, Image> {
    BUILT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
}

/// The image of `role` with its components: where they come from is `nodezero build`'s choice, unless
/// `NODEZERO_FLOW_COMPONENTS` has words such as `k3s=PATH tailscale=PATH`. Its kernel is the small one of servers.
pub fn image(role: Role) -> Result<Image> {
    let mut known = BUILT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(image) = known.get(&role) {
        return Ok(image.clone());
    }
    let out = crate::scenario::base()?.join("cluster-images");
    let mut command = Command::new(images::nodezero()?);
    command.args(["build", role.name(), "--platform", "vps", "--format", "raw", "--json", "--out"]).arg(&out);
    let choices = env::var("NODEZERO_FLOW_COMPONENTS").unwrap_or_default();
    // An edge image has no K3s.
    let of_role = |choice: &&str| role != Role::Edge || !choice.starts_with("k3s=");
    for choice in choices.split_whitespace().filter(of_role) {
        command.args(["--component", choice]);
    }
    let image = Image::parse(&tools::run(&mut command)?)
        .with_context(|| format!("reading what nodezero build {} answered", role.name()))?;
    known.insert(role, image.clone());
    Ok(image)
}

/// Asks until there is an answer. What went wrong last is told when there is none in time.
pub fn wait_until<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        let last = match ask() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if started.elapsed() > deadline {
            let error = last.unwrap_or_else(|| anyhow::anyhow!("it is not so"));
            return Err(error.context(format!("waiting {deadline:?} for {what}")));
        }
        thread::sleep(POLL);
    }
}

/// Waits until a node says that it is ready. Steps that it tries again by itself are no reason to stop.
pub fn wait_ready(vm: &Vm, deadline: Duration) -> Result<Duration> {
    let console = vm.console();
    console.expect(STOPPED);
    let line = console.wait_for_any(&[READY, LASTING], deadline)?;
    if line.text.contains(LASTING) {
        bail!("a step cannot be finished:\n{}", console.tail(20));
    }
    Ok(line.at)
}

/// The mesh's control server. It ends with this.
#[derive(Debug)]
pub struct MeshServer {
    child: Child,
    /// The server runs while this is open.
    _stdin: ChildStdin,
    addresses: Addresses,
}

/// What the server prints when it listens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Addresses {
    guest: String,
    admin: String,
}

impl MeshServer {
    /// Starts it with these auth keys, each as `--auth-key` takes it. What it says goes to `log`.
    pub fn start(keys: &[&str], log: &Path) -> Result<MeshServer> {
        let mut command = Command::new(program("meshserver")?);
        for key in keys {
            command.args(["--auth-key", key]);
        }
        let log = fs::File::create(log).with_context(|| format!("creating {}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = spawn::guarded(command).context("starting meshserver")?;
        let (stdin, stdout) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        let (sender, line) = channel();
        thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(stdout).read_line(&mut line).map(|_| line);
            // Who waited may have given up.
            let _ = sender.send(read);
        });
        let said = line.recv_timeout(LISTEN).map_err(anyhow::Error::from).and_then(|read| Ok(read?));
        let addresses = said.and_then(|line| Addresses::parse(&line));
        if addresses.is_err() {
            // It has ended, or does not do what it should.
            let _ = child.kill();
            let _ = child.wait();
        }
        Ok(MeshServer { child, _stdin: stdin, addresses: addresses.context("starting meshserver")? })
    }

    /// Its URL, as guests reach it.
    pub fn url(&self) -> &str {
        &self.addresses.guest
    }

    /// Asks its administration; see the rig's README.
    pub fn admin(&self, method: &str, path: &str, body: &str) -> Result<String> {
        http(&self.addresses.admin, method, path, body).with_context(|| format!("asking meshserver to {method} {path}"))
    }
}

impl Drop for MeshServer {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Addresses {
    fn parse(line: &str) -> Result<Addresses> {
        serde_json::from_str(line).with_context(|| format!("meshserver said {line:?}"))
    }
}

/// One request to `http://HOST:PORT`, which ends the connection with its answer.
fn http(url: &str, method: &str, path: &str, body: &str) -> Result<String> {
    let host = url.strip_prefix("http://").with_context(|| format!("{url} is no http URL"))?;
    let mut stream = TcpStream::connect(host).with_context(|| format!("connecting to {host}"))?;
    stream.set_read_timeout(Some(LISTEN))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its head")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status.starts_with('2'), "it answers {status}: {}", body.trim());
    Ok(body.to_owned())
}

/// A directory of profiles, and who may open its secrets.
#[derive(Debug)]
pub struct Profiles {
    dir: PathBuf,
    environment: BTreeMap<String, String>,
}

impl Profiles {
    /// Begins one by `nodezero cluster init`, with a key of its own.
    pub fn init(dir: &Path) -> Result<Profiles> {
        let key = dir.with_extension("key").display().to_string();
        let mut profiles = Profiles { dir: dir.to_owned(), environment: BTreeMap::new() };
        profiles.set("NODEZERO_AGE_IDENTITY", &key);
        profiles.nodezero(&["cluster", "init", &dir.display().to_string(), "--new-identity", &key])?;
        Ok(profiles)
    }

    /// Sets a variable of the environment of all commands.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a profile, `cluster.yaml` or `nodes/NAME.yaml`, as JSON, which is YAML.
    pub fn write(&self, name: &str, profile: &Value) -> Result<()> {
        let path = self.dir.join(name);
        fs::create_dir_all(path.parent().context("a profile has a directory")?)?;
        fs::write(&path, format!("{profile:#}\n")).with_context(|| format!("writing {}", path.display()))
    }

    /// Adds text to a profile.
    pub fn append(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        let file = fs::OpenOptions::new().append(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| format!("writing {}", path.display()))
    }

    /// Runs `nodezero` in the directory, and gives what it prints.
    pub fn nodezero(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(images::nodezero()?);
        command.args(args).envs(&self.environment);
        if self.dir.is_dir() {
            command.current_dir(&self.dir);
        }
        Ok(String::from_utf8_lossy(&tools::run(&mut command)?).into_owned())
    }

    /// Renders a node's Ignition config into `file`.
    pub fn render(&self, node: &str, file: &Path) -> Result<PathBuf> {
        self.nodezero(&["render", node, "--out", &file.display().to_string()])?;
        Ok(file.to_owned())
    }

    /// Mints the operator's kubeconfig for the API at `server`, and makes all commands use it.
    pub fn kubeconfig(&mut self, server: &str, file: &Path) -> Result<Api> {
        let out = file.display().to_string();
        self.nodezero(&["kubeconfig", "--server", server, "--out", &out])?;
        self.set("KUBECONFIG", &out);
        Ok(Api { kubeconfig: file.to_owned() })
    }
}

/// The cluster's API, as the operator reaches it.
#[derive(Clone, Debug)]
pub struct Api {
    kubeconfig: PathBuf,
}

impl Api {
    /// The API that a kubeconfig names.
    pub fn new(kubeconfig: PathBuf) -> Api {
        Api { kubeconfig }
    }

    /// Does something with the API.
    pub fn with<T, F: Future<Output = Result<T>>>(&self, work: impl FnOnce(Cluster) -> F) -> Result<T> {
        let access = Access { kubeconfig: Some(self.kubeconfig.clone()), context: None };
        block_on(async move { work(access.cluster(Some(ANSWER)).await?).await })
    }

    /// An object in a namespace, if it is there.
    pub fn find<K>(&self, namespace: &str, name: &str) -> Result<Option<K>>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + serde::de::DeserializeOwned
            + Debug,
    {
        self.with(async |cluster| cluster.find(&cluster.of::<K>(namespace), name).await)
    }

    /// An object that is in no namespace, if it is there.
    pub fn find_global<K>(&self, name: &str) -> Result<Option<K>>
    where
        K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + Debug,
    {
        self.with(async |cluster| cluster.find(&cluster.all::<K>(), name).await)
    }

    /// Makes an object in a namespace as it is described.
    pub fn apply<K>(&self, namespace: &str, object: &Value) -> Result<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + serde::de::DeserializeOwned
            + Debug,
    {
        let name = object["metadata"]["name"].as_str().context("an object has a name")?;
        self.with(async |cluster| cluster.apply(&cluster.of::<K>(namespace), name, object).await)
    }

    /// What these credentials may do in a namespace by the cluster's roles, but for what everybody may: ask who they are,
    /// and what they may do. Each as `VERB RESOURCE NAME`, sorted; `*` stands for any name.
    pub fn rights(&self, namespace: &str) -> Result<Vec<String>> {
        let review = SelfSubjectRulesReview {
            spec: SelfSubjectRulesReviewSpec { namespace: Some(namespace.to_owned()) },
            ..SelfSubjectRulesReview::default()
        };
        let review = self.with(async |cluster| {
            let reviews = cluster.all::<SelfSubjectRulesReview>();
            reviews.create(&PostParams::default(), &review).await.context("asking for the rules of a token")
        })?;
        let rules = review.status.context("no answer about the rules of a token")?.resource_rules;
        let everybodys = |group: &String| ["authorization.k8s.io", "authentication.k8s.io"].contains(&group.as_str());
        let of_us = rules.into_iter().filter(|rule| {
            !rule.api_groups.as_ref().is_some_and(|groups| !groups.is_empty() && groups.iter().all(everybodys))
        });
        let mut rights = Vec::new();
        for ResourceRule { verbs, resources, resource_names, .. } in of_us {
            let names = resource_names.filter(|names| !names.is_empty()).unwrap_or_else(|| vec!["*".to_owned()]);
            let things = resources.iter().flatten().flat_map(|resource| names.iter().map(move |name| (resource, name)));
            rights.extend(
                things.flat_map(|(resource, name)| verbs.iter().map(move |verb| format!("{verb} {resource} {name}"))),
            );
        }
        rights.sort();
        Ok(rights)
    }
}

/// How long one power-on took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// The node's name.
    pub node: String,
    /// Which power-on of it.
    pub power_on: String,
    /// From power-on until the node said that it is ready, in milliseconds.
    pub ready_ms: u64,
    /// Each part in order, and its milliseconds: firmware and loader, kernel and first stage, systemd until the first
    /// step, and the steps.
    pub parts: Vec<(String, u64)>,
    /// What the node has in use when it is at rest, in MiB: all but what the kernel calls available.
    pub memory_mib: Option<u64>,
}

impl Timing {
    /// Reads it from a node's console.
    pub fn read(vm: &Vm, power_on: &str) -> Result<Timing> {
        let ready = vm.console().find(READY).context("the node has not got ready")?;
        let summary = vm.console().find(SUMMARY).context("no summary on the console")?;
        let first_stage = vm.console().find(SWITCH_ROOT).context("no end of the first stage on the console")?;
        let since_kernel = parse_at(&first_stage.text)?;
        let ms = |at: Duration| u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        let (node, steps) = parse_summary(&summary.text)?;
        let (ready_ms, first_stage_ms) = (ms(ready.at), ms(first_stage.at));
        let in_steps: u64 = steps.iter().map(|(_, ms)| ms).sum();
        let before = [
            ("firmware", first_stage_ms.saturating_sub(since_kernel)),
            ("first stage", since_kernel),
            ("systemd", ready_ms.saturating_sub(first_stage_ms + in_steps)),
        ];
        let parts = before.map(|(part, ms)| (part.to_owned(), ms)).into_iter().chain(steps).collect();
        Ok(Timing { node, power_on: power_on.to_owned(), ready_ms, parts, memory_mib: None })
    }
}

/// The milliseconds since the kernel started in `nodezero: switch root: … (N ms, at N ms)`.
fn parse_at(line: &str) -> Result<u64> {
    let ms = line.rsplit_once(AT).and_then(|(_, rest)| rest.trim_end().strip_suffix(" ms)")?.parse().ok());
    ms.with_context(|| format!("{line:?} says no time"))
}

/// Name and steps in `nodezero: summary: node NAME is up S.T s after the kernel started: STEP N ms, …`.
fn parse_summary(line: &str) -> Result<(String, Vec<(String, u64)>)> {
    let malformed = || format!("{line:?} is no summary");
    let (_, rest) = line.split_once(SUMMARY).with_context(malformed)?;
    let (name, rest) = rest.split_once(" is up ").with_context(malformed)?;
    let (_, steps) = rest.split_once(" s after the kernel started: ").with_context(malformed)?;
    let step = |text: &str| {
        let (step, ms) = text.trim().strip_suffix(" ms")?.rsplit_once(' ')?;
        Some((step.to_owned(), ms.parse().ok()?))
    };
    let steps = steps.split(", ").map(|text| step(text).with_context(malformed)).collect::<Result<_>>()?;
    Ok((name.to_owned(), steps))
}

/// What was measured: printed as tables, kept as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Power-ons in order.
    pub power_ons: Vec<Timing>,
    /// How the size of each role's image is shared.
    pub images: BTreeMap<String, Vec<Share>>,
}

impl Figures {
    /// Takes in how an image's size is shared, as its manifest says.
    pub fn add_image(&mut self, role: Role, image: &Image) -> Result<()> {
        let path = image.path.with_extension("manifest.json");
        let manifest = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let manifest: Manifest =
            serde_json::from_slice(&manifest).with_context(|| format!("parsing {}", path.display()))?;
        self.images.insert(role.name().to_owned(), manifest.sizes.shares);
        Ok(())
    }

    /// Writes them as JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self)?;
        fs::write(path, json).with_context(|| format!("writing {}", path.display()))
    }
}

/// Power-ons in seconds, one line each; then each image.
impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ms: u64| format!("{}.{}", ms / 1000, ms % 1000 / 100);
        for timing in &self.power_ons {
            let Timing { node, power_on, ready_ms, parts, memory_mib } = timing;
            write!(f, "{node:<10} {power_on:<22} {:>7} s:", seconds(*ready_ms))?;
            for (part, ms) in parts {
                write!(f, "  {part} {}", seconds(*ms))?;
            }
            let memory = memory_mib.map(|mib| format!("; {mib} MiB in use at rest")).unwrap_or_default();
            writeln!(f, "{memory}")?;
        }
        for (role, shares) in &self.images {
            writeln!(f, "image of {role}:")?;
            shares::lines(shares).iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nodezero::shares::Part;

    use super::*;

    #[test]
    fn summaries_are_read() {
        let line =
            "nodezero: summary: node worker-1 is up 81.2 s after the kernel started: data-disks 1200 ms, mesh 9 ms";
        let steps = vec![("data-disks".to_owned(), 1200), ("mesh".to_owned(), 9)];
        assert_eq!(parse_summary(line).expect("a summary"), ("worker-1".to_owned(), steps.clone()));
        for line in
            ["", "nodezero: summary: node a", "nodezero: summary: node a is up 1.0 s after the kernel started: x"]
        {
            assert!(parse_summary(line).is_err(), "{line}");
        }
        let timing = Timing {
            node: "worker-1".into(),
            power_on: "first".into(),
            ready_ms: 83_450,
            parts: steps,
            memory_mib: Some(412),
        };
        let share = Share { part: Part::Kernel, bytes: 12 << 20, packed: 11 << 20 };
        let figures = Figures { power_ons: vec![timing], images: [("edge".to_owned(), vec![share])].into() };
        let table = figures.to_string();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines[..2],
            [
                "worker-1   first                     83.4 s:  data-disks 1.2  mesh 0.0; 412 MiB in use at rest",
                "image of edge:"
            ]
        );
        assert!(lines[3].contains("kernel") && lines[3].ends_with("11.0 MiB"), "{table}");
        assert_eq!(parse_at("nodezero: switch root: systemd takes over (70 ms, at 5690 ms)").unwrap(), 5690);
        assert!(parse_at("nodezero: switch root: systemd takes over").is_err());
    }

    #[test]
    fn what_does_not_come_is_told_with_its_last_error() {
        let mut asked = 0;
        let error = wait_until::<()>("rain", Duration::ZERO, || {
            asked += 1;
            bail!("the sky is blue")
        });
        assert_eq!(format!("{:#}", error.unwrap_err()), "waiting 0ns for rain: the sky is blue");
        assert_eq!(asked, 1);
        assert_eq!(wait_until("rain", Duration::ZERO, || Ok(Some(1))).unwrap(), 1);
    }

    #[test]
    fn the_mesh_server_says_where_it_is() {
        let line = r#"{"control":"http://127.0.0.1:1","guest":"http://10.0.2.2:1","admin":"http://127.0.0.1:2"}"#;
        let addresses = Addresses::parse(line).unwrap();
        assert_eq!((&*addresses.guest, &*addresses.admin), ("http://10.0.2.2:1", "http://127.0.0.1:2"));
        assert!(format!("{:#}", Addresses::parse("panic").unwrap_err()).contains("\"panic\""));
    }
}
