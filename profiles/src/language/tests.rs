//! The examples, checked and rendered, and directories of profiles that are wrong.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::*;

/// Test values for every secret.
pub(super) struct TestSecrets;

impl Secrets for TestSecrets {
    fn read(&self, reference: &SecretRef) -> Result<Secret, String> {
        Ok(Secret::new(&format!("value of {reference}")))
    }

    fn authority(&self, file: &str) -> Result<Secret, String> {
        Ok(Secret::verbatim(format!("-----BEGIN CERTIFICATE-----\n{file}\n-----END CERTIFICATE-----\n")))
    }
}

fn own(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn no_file(_: &str) -> Result<String, String> {
    Err("no such file".to_owned())
}

fn sources(cluster: &str, nodes: &[(&str, &str)]) -> Sources<'static> {
    Sources {
        cluster: Source { path: CLUSTER_FILE.to_owned(), text: cluster.to_owned() },
        nodes: nodes
            .iter()
            .map(|(name, text)| Source { path: format!("nodes/{name}.yaml"), text: (*text).to_owned() })
            .collect(),
        read: &no_file,
    }
}

fn example() -> Profiles {
    let read = |path: &str| fs::read_to_string(own("examples/home").join(path)).expect(path);
    let names = ["toronto-0001", "toronto-0002", "vps-1"];
    let nodes: Vec<(&str, String)> = names.map(|name| (name, read(&format!("nodes/{name}.yaml")))).into();
    let nodes: Vec<(&str, &str)> = nodes.iter().map(|(name, text)| (*name, text.as_str())).collect();
    Profiles::parse(&sources(&read(CLUSTER_FILE), &nodes)).unwrap_or_else(|findings| panic!("{findings:#?}"))
}

/// Compares with a file that is committed; writes it anew where `NODEZERO_BLESS` is set.
fn golden(path: &str, text: &str) {
    let file = own(path);
    if std::env::var_os("NODEZERO_BLESS").is_some() {
        fs::create_dir_all(file.parent().expect("a directory")).expect("made");
        fs::write(&file, text).expect("written");
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(text, committed, "{path} is not in step: run these tests with NODEZERO_BLESS=1, and commit it");
}

#[test]
fn the_schema_is_in_step() {
    for (path, schema) in [("schema/cluster.json", schema::cluster()), ("schema/node.json", schema::node())] {
        golden(path, &(serde_json::to_string_pretty(&schema).expect("JSON") + "\n"));
    }
}

/// A rendered node with the contents of its files in plain text.
fn shown(profiles: &Profiles, name: &str) -> String {
    let rendered = render(profiles, name, &TestSecrets).expect(name);
    let mut config: Value = serde_json::from_str(rendered.config.expose()).expect("JSON");
    for file in config["storage"]["files"].as_array_mut().expect("files") {
        let contents = file["contents"].as_object_mut().expect("contents");
        let compressed = contents.remove("compression").is_some();
        let source = contents.remove("source").expect("a source");
        let bytes = decode(source.as_str().expect("a text"), compressed);
        let lines = String::from_utf8(bytes).expect("text").lines().map(Value::from).collect();
        file["contents"] = Value::Array(lines);
    }
    serde_json::to_string_pretty(&schema::sorted(config)).expect("JSON") + "\n"
}

fn decode(source: &str, compressed: bool) -> Vec<u8> {
    use base64::Engine as _;
    use std::io::Read as _;
    let bytes = match source.strip_prefix("data:;base64,") {
        Some(base64) => base64::engine::general_purpose::STANDARD.decode(base64).expect("base64"),
        None => unescape(source.strip_prefix("data:,").expect("a data URL")),
    };
    if !compressed {
        return bytes;
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes.as_slice()).read_to_end(&mut plain).expect("gzip");
    plain
}

fn unescape(text: &str) -> Vec<u8> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).expect("hex"));
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    bytes
}

#[test]
fn the_examples_are_rendered() {
    let profiles = example();
    for name in ["toronto-0001", "toronto-0002", "vps-1"] {
        golden(&format!("examples/rendered/{name}.json"), &shown(&profiles, name));
        if let Some(words) = network_words(&profiles, name).expect(name) {
            golden(&format!("examples/rendered/{name}.network"), &words);
        }
    }
}

#[test]
fn rendering_is_deterministic_and_the_digest_does_not_tell_secrets() {
    struct Others;
    impl Secrets for Others {
        fn read(&self, reference: &SecretRef) -> Result<Secret, String> {
            Ok(Secret::new(&format!("another {reference}")))
        }
        fn authority(&self, _: &str) -> Result<Secret, String> {
            Ok(Secret::new("another"))
        }
    }
    let profiles = example();
    let once = render(&profiles, "toronto-0001", &TestSecrets).expect("rendered");
    let again = render(&example(), "toronto-0001", &TestSecrets).expect("rendered");
    let other = render(&profiles, "toronto-0001", &Others).expect("rendered");
    assert_eq!(once.config, again.config);
    assert_ne!(once.config, other.config);
    assert_eq!(once.digest, other.digest);
    assert!(once.config.expose().len() < USER_DATA_LIMIT, "{} bytes", once.config.expose().len());
    let worker = render(&profiles, "toronto-0002", &TestSecrets).expect("rendered");
    assert_ne!(once.digest, worker.digest);
}

#[test]
fn what_is_rendered_is_what_a_node_reads() {
    let profiles = example();
    for name in ["toronto-0001", "toronto-0002", "vps-1"] {
        let config: Value = serde_json::from_str(&shown(&profiles, name)).expect("JSON");
        let files = config["storage"]["files"].as_array().expect("files");
        let node = files.iter().find(|file| file["path"] == "/etc/nodezero/node.json").expect("node.json");
        assert_eq!(node["mode"], 0o600, "{name}");
        let lines: Vec<&str> = node["contents"].as_array().expect("lines").iter().filter_map(Value::as_str).collect();
        let parsed = Node::parse(lines.join("\n").as_bytes()).unwrap_or_else(|problems| panic!("{name}: {problems}"));
        assert_eq!(parsed.profile, Some(render(&profiles, name, &TestSecrets).expect(name).digest), "{name}");
    }
    let unknown = render(&profiles, "nobody", &TestSecrets).expect_err("unknown").to_string();
    assert_eq!(unknown, "no node is called nobody: there are toronto-0001, toronto-0002, vps-1");
}

const CLUSTER: &str = "name: home\nmesh: {authKey: {secret: auth-key}}\nk3s: {server: a}\n";
const CONTROL: &str = "role: control\n";

/// All findings of a directory, one line each.
fn findings(cluster: &str, nodes: &[(&str, &str)]) -> Vec<String> {
    match Profiles::parse(&sources(cluster, nodes)) {
        Ok(_) => Vec::new(),
        Err(findings) => findings.iter().map(|finding| finding.to_string().replace("\n    hint: ", " — ")).collect(),
    }
}

#[test]
fn sound_profiles_are_sound() {
    for (case, cluster, nodes) in [
        ("least", CLUSTER, vec![("a", CONTROL)]),
        ("several servers", CLUSTER, vec![("a", CONTROL), ("b", CONTROL)]),
        ("own key", "name: h\nk3s: {server: a}\n", vec![("a", "role: control\nmesh: {authKey: {env: KEY}}\n")]),
        ("empty parts", CLUSTER, vec![("a", "role: control\nlabels: {}\ndataDisks: []\nnetwork:\n")]),
    ] {
        assert_eq!(findings(cluster, &nodes), [""; 0], "{case}");
    }
    let profiles = Profiles::parse(&sources(CLUSTER, &[("a", CONTROL), ("b", CONTROL)])).expect("sound");
    let nodes: Vec<&Node> = profiles.nodes().collect();
    let cluster = |index: usize| nodes[index].cluster.as_ref().expect("a cluster");
    assert_eq!(cluster(0).server, None, "the first starts the cluster");
    assert_eq!(cluster(0).config["cluster-init"], true, "and keeps its state in etcd");
    assert_eq!(cluster(1).server.as_ref().map(ToString::to_string).as_deref(), Some("a"));
    assert!(!cluster(1).config.contains_key("cluster-init"));
}

#[test]
fn what_is_sound_and_likely_unwanted_is_warned_of() {
    let cluster = |mesh: &str| format!("name: h\nk3s: {{server: a}}\nmesh: {{authKey: {{env: K}}{mesh}}}\n");
    let expires = "cluster.yaml:3:1: mesh.tags: no tags for ";
    let two = "cluster.yaml:2:15: k3s.server: two control nodes";
    let (tagged, all) = (("b", "role: edge\nmesh: {tags: [tag:edge]}\n"), ", tags: {control: [tag:control]}");
    for (case, mesh, nodes, expected) in [
        ("no tags", "", vec![("a", CONTROL), ("b", "role: edge\n")], vec![format!("{expires}a, b: Tailscale")]),
        ("one has its own", "", vec![("a", CONTROL), tagged], vec![format!("{expires}a: Tailscale")]),
        ("all have", all, vec![("a", CONTROL), tagged], vec![]),
        ("another mesh", ", loginServer: https://mesh.example", vec![("a", CONTROL)], vec![]),
        ("two", all, vec![("a", CONTROL), ("b", CONTROL)], vec![two.to_owned()]),
        ("three", all, vec![("a", CONTROL), ("b", CONTROL), ("c", CONTROL)], vec![]),
    ] {
        let profiles = Profiles::parse(&sources(&cluster(mesh), &nodes)).unwrap_or_else(|found| panic!("{found:?}"));
        let found: Vec<String> = profiles.warnings().iter().map(ToString::to_string).collect();
        let same =
            found.len() == expected.len() && found.iter().zip(&expected).all(|(one, other)| one.starts_with(other));
        assert!(same, "{case}: {found:#?}");
    }
}

#[test]
fn each_role_has_the_tokens_that_it_needs() {
    struct Same;
    impl Secrets for Same {
        fn read(&self, _: &SecretRef) -> Result<Secret, String> {
            Ok(Secret::new("s3cret"))
        }
        fn authority(&self, file: &str) -> Result<Secret, String> {
            TestSecrets.authority(file)
        }
    }
    let nodes = [("a", CONTROL), ("b", CONTROL), ("c", "role: worker\n"), ("d", "role: edge\n")];
    let profiles = Profiles::parse(&sources(CLUSTER, &nodes)).expect("sound");
    let (join, agent) = ("value of {secret: join-token}", "value of {secret: agent-token}");
    for (name, join_token, agent_token) in [
        ("a", Some(join.to_owned()), Some(agent)),
        ("b", Some(format!("::server:{join}")), Some(agent)),
        ("c", Some(format!("::node:{agent}")), None),
        ("d", None, None),
    ] {
        let config: Value = serde_json::from_str(&shown(&profiles, name)).expect("JSON");
        let files = config["storage"]["files"].as_array().expect("files");
        let content = |file: &str| {
            let found = files.iter().find(|it| it["path"] == format!("{}/{file}", crate::node::join::SECRETS))?;
            Some(found["contents"][0].as_str().expect("a text").to_owned())
        };
        let found = content("join-token");
        let is = |(found, expected): (&String, &String)| found.ends_with(expected.as_str());
        assert!(found.as_ref().zip(join_token.as_ref()).map_or(found == join_token, is), "{name}: {found:?}");
        assert_eq!(content("agent-token").as_deref(), agent_token, "{name}");
    }
    let error = render(&profiles, "a", &Same).expect_err("one token for all").to_string();
    assert!(
        error.starts_with("reading the secret {secret: agent-token}: it is the same as {secret: join-token}"),
        "{error}"
    );
}

#[test]
fn what_is_wrong_with_a_cluster_is_told_with_its_place() {
    for (case, cluster, expected) in [
        ("empty", "", "cluster.yaml:1:1: expected a mapping, found nothing — give it a value, or leave the key out"),
        ("not YAML", "name: [\n", "cluster.yaml:2:1: "),
        (
            "unknown",
            "name: h\nmesh: {authKey: {env: K}}\ntimes: {}\nk3s: {server: a}\n",
            "cluster.yaml:3:1: times: unknown field \"times\" — did you mean time?",
        ),
        (
            "missing",
            "name: h\n",
            "cluster.yaml:1:1: k3s is missing — The Kubernetes cluster of control and worker nodes",
        ),
        (
            "secret",
            "name: h\nmesh: {authKey: tskey-x}\nk3s: {server: a}\n",
            "cluster.yaml:2:17: mesh.authKey: expected a mapping, found a text — a secret never stands in a profile: write {secret: NAME} for an entry of secrets.age, {file: PATH} or {env: NAME}",
        ),
        (
            "two sources",
            "name: h\nmesh: {authKey: {secret: a, env: B}}\nk3s: {server: a}\n",
            "cluster.yaml:2:17: mesh.authKey: 2 keys stand here, expected 1 — a secret never stands in a profile",
        ),
        (
            "name",
            "name: My Cloud\nmesh: {authKey: {env: K}}\nk3s: {server: a}\n",
            "cluster.yaml:1:7: name: \"My Cloud\" is not a name",
        ),
        (
            "no such server",
            "name: h\nmesh: {authKey: {env: K}}\nk3s: {server: aa}\n",
            "cluster.yaml:3:15: k3s.server: no node is called aa — did you mean a?",
        ),
        (
            "networks",
            "name: h\nmesh: {authKey: {env: K}}\nk3s:\n  server: a\n  serviceNetwork: 10.42.3.0/24\n",
            "cluster.yaml:5:19: k3s.serviceNetwork: the services' 10.42.3.0/24 overlaps the pods' 10.42.0.0/16",
        ),
        (
            "small",
            "name: h\nmesh: {authKey: {env: K}}\nk3s:\n  server: a\n  podNetwork: 10.9.3.0/24\n",
            "cluster.yaml:5:15: k3s.podNetwork: 10.9.3.0/24 is too small: a prefix of 23 bits or fewer",
        ),
        (
            "host bits",
            "name: h\nmesh: {authKey: {env: K}}\nk3s:\n  server: a\n  podNetwork: 10.9.3.0/16\n",
            "cluster.yaml:5:15: k3s.podNetwork: \"10.9.3.0/16\" has bits set beyond its prefix; the network is 10.9.0.0/16",
        ),
        (
            "mesh",
            "name: h\nmesh: {authKey: {env: K}}\nk3s:\n  server: a\n  podNetwork: 100.64.0.0/16\n",
            "cluster.yaml:5:15: k3s.podNetwork: the pods' 100.64.0.0/16 overlaps the mesh's 100.64.0.0/10",
        ),
        (
            "our setting",
            "name: h\nmesh: {authKey: {env: K}}\nk3s:\n  server: a\n  config: {control: {node-ip: 1.2.3.4}}\n",
            "cluster.yaml:5:31: k3s.config.control.node-ip: node-ip is not said here: it is the mesh address",
        ),
        (
            "secret setting",
            "name: h\nmesh: {authKey: {env: K}}\nk3s:\n  server: a\n  config: {control: {datastore-endpoint: x}}\n",
            "cluster.yaml:5:42: k3s.config.control.datastore-endpoint: datastore-endpoint holds a secret",
        ),
        (
            "token",
            "name: h\nmesh: {authKey: {env: K}}\nk3s:\n  server: a\n  config: {worker: {token: x}}\n",
            "cluster.yaml:5:28: k3s.config.worker.token: token is not said here: it follows from k3s.token",
        ),
        (
            "another port",
            "name: h\nmesh: {authKey: {env: K}}\nk3s:\n  server: a\n  config: {control: {https-listen-port: 443}}\n",
            "cluster.yaml:5:41: k3s.config.control.https-listen-port: https-listen-port is not said here: nodes, the",
        ),
        (
            "one token",
            "name: h\nmesh: {authKey: {env: K}}\nk3s:\n  server: a\n  agentToken: {secret: join-token}\n",
            "cluster.yaml:5:3: k3s.agentToken: control nodes and workers have the same token",
        ),
        (
            "the other token",
            "name: h\nmesh: {authKey: {env: K}}\nk3s:\n  server: a\n  token: {secret: agent-token}\n",
            "cluster.yaml:5:3: k3s.token: control nodes and workers have the same token",
        ),
        (
            "password",
            "name: h\nmesh: {authKey: {env: K}}\nk3s:\n  server: a\n  registries: {configs: {r.example: {auth: {password: x}}}}\n",
            "cluster.yaml:5:55: k3s.registries.configs[\"r.example\"].auth.password: a secret never stands in a profile",
        ),
        (
            "tag",
            "name: h\nmesh: {authKey: {env: K}, tags: {worker: [worker]}}\nk3s: {server: a}\n",
            "cluster.yaml:2:43: mesh.tags.worker[0]: \"worker\" is not a tag such as tag:worker",
        ),
        (
            "replicas",
            "name: h\nmesh: {authKey: {env: K}}\nk3s: {server: a}\nstorage: {replicas: 2}\n",
            "cluster.yaml:4:21: storage.replicas: 2 copies of each volume, and 0 nodes with data disks",
        ),
        (
            "time",
            "name: h\nmesh: {authKey: {env: K}}\nk3s: {server: a}\ntime: {servers: [a b]}\n",
            "cluster.yaml:4:18: time.servers[0]: \"a b\" is neither a name nor an address",
        ),
        (
            "private key",
            "name: h\nmesh: {authKey: {env: K}}\nk3s: {server: a}\nauthorizedKeys:\n  - |\n    -----BEGIN OPENSSH PRIVATE KEY-----\n",
            "cluster.yaml:6:5: authorizedKeys[0]: this is a private key",
        ),
    ] {
        let found = findings(cluster, &[("a", CONTROL)]);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{case}: {found:#?}");
    }
}

#[test]
fn what_is_wrong_with_a_node_is_told_with_its_place() {
    let disks = "role: worker\ndataDisks:\n  - name: bulk\n";
    for (case, node, expected) in [
        ("role", "role: agent\n".to_owned(), "nodes/b.yaml:1:7: role: \"agent\" is not one of control, worker, edge"),
        (
            "name",
            "name: c\nrole: worker\n".to_owned(),
            "nodes/b.yaml:1:7: name: \"c\" is not the file's name, b — leave it out",
        ),
        ("taint", "role: worker\ntaints: [a=b]\n".to_owned(), "nodes/b.yaml:2:10: taints[0]: \"a=b\" is not a taint"),
        ("label", "role: worker\nlabels: {a b: c}\n".to_owned(), "nodes/b.yaml:2:15: labels[\"a b\"]: not a label key"),
        (
            "value",
            "role: worker\nlabels: {a: 1}\n".to_owned(),
            "nodes/b.yaml:2:13: labels.a: expected a text, found the number 1",
        ),
        (
            "foreign label",
            "role: worker\nlabels:\n  node-role.kubernetes.io/worker: \"\"\n".to_owned(),
            "nodes/b.yaml:3:35: labels[\"node-role.kubernetes.io/worker\"]: a kubelet may not give its node labels of",
        ),
        (
            "size",
            format!("{disks}    select: {{size: 18}}\n    count: 2\n"),
            "nodes/b.yaml:4:20: dataDisks[0].select.size: expected a text, found the number 18",
        ),
        (
            "no unit",
            format!("{disks}    select: {{size: '18'}}\n    count: 2\n"),
            "nodes/b.yaml:4:20: dataDisks[0].select.size: \"18\" is not a size: a unit is missing",
        ),
        (
            "count",
            format!("{disks}    select: {{size: 18TB}}\n    count: two\n"),
            "nodes/b.yaml:5:12: dataDisks[0].count: \"two\" is not a count",
        ),
        (
            "no count",
            format!("{disks}    select: {{size: 18TB}}\n"),
            "nodes/b.yaml:3:5: dataDisks[0]: count is missing — How many",
        ),
        (
            "criterion",
            format!("{disks}    select: {{path: /dev/sda, size: 1TB}}\n    count: 2\n"),
            "nodes/b.yaml:4:14: dataDisks[0].select.path: unknown field \"path\" — ",
        ),
        (
            "wipe",
            format!("{disks}    select: {{serial: Z1}}\n    count: 1\n    wipe: true\n"),
            "nodes/b.yaml:6:11: dataDisks[0].wipe: the cluster's policy is that no disk is wiped — say storage.wipe: named",
        ),
        (
            "edge with disks",
            "role: edge\nlabels: {a: b}\n".to_owned(),
            "nodes/b.yaml:2:1: labels: an edge node is not part",
        ),
        (
            "registration",
            "role: worker\nregistration: {token: {env: A}}\n".to_owned(),
            "nodes/b.yaml:2:1: registration: only an edge",
        ),
        ("twice", "role: worker\nrole: edge\n".to_owned(), "nodes/b.yaml:2:1: the key \"role\" stands here again"),
        (
            "reserved",
            "role: worker\nignition: {storage: {files: [{path: /etc/nodezero/node.json}]}}\n".to_owned(),
            "nodes/b.yaml:2:1: ignition: /etc/nodezero/node.json is laid in by nodezero",
        ),
        (
            "Ignition",
            "role: worker\nignition: {storage: {file: []}}\n".to_owned(),
            "nodes/b.yaml:2:22: ignition.storage.file: not known to Ignition",
        ),
        (
            "Ignition file",
            "role: worker\nignitionFile: a.ign\n".to_owned(),
            "nodes/b.yaml:2:15: ignitionFile: reading a.ign: no such file",
        ),
        (
            "outside",
            "role: worker\nignitionFile: ../a.ign\n".to_owned(),
            "nodes/b.yaml:2:15: ignitionFile: \"../a.ign\" is not a path below",
        ),
        ("port", "role: edge\nfirewall: {tcp: [0]}\n".to_owned(), "nodes/b.yaml:2:12: firewall.tcp: 0 is not a port"),
        (
            "key",
            "role: edge\nauthorizedKeys: [ssh-ed25519]\n".to_owned(),
            "nodes/b.yaml:2:18: authorizedKeys[0]: not a line of",
        ),
    ] {
        let found = findings(CLUSTER, &[("a", CONTROL), ("b", &node)]);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{case}: {found:#?}");
    }
}

#[test]
fn profiles_are_judged_together() {
    let disk = "role: worker\ndataDisks:\n  - {name: d, select: {serial: Z1}, count: 1}\n";
    let address = "role: worker\nnetwork: {interfaces: {eno1: {addresses: [192.168.1.5/24]}}}\n";
    for (case, nodes, expected) in [
        (
            "no control",
            vec![("b", "role: worker\n")],
            vec![
                "cluster.yaml:3:15: k3s.server: no node is called a, and there is no control node — write nodes/a.yaml with role: control",
            ],
        ),
        (
            "a worker as server",
            vec![("a", "role: worker\n")],
            vec!["cluster.yaml:3:15: k3s.server: a is of role worker, and only a control node is a server"],
        ),
        (
            "one disk twice",
            vec![("a", CONTROL), ("b", disk), ("c", disk)],
            vec!["nodes/c.yaml:3:32: dataDisks[0].select.serial: the disk Z1 is also selected in nodes/b.yaml"],
        ),
        (
            "one address twice",
            vec![("a", CONTROL), ("b", address), ("c", address)],
            vec![
                "nodes/c.yaml:2:43: network.interfaces.eno1.addresses[0]: 192.168.1.5 is also an address of nodes/b.yaml",
            ],
        ),
        (
            "pods",
            vec![("a", "role: control\nnetwork: {interfaces: {eno1: {addresses: [10.42.9.1/24]}}}\n")],
            vec![
                "nodes/a.yaml:2:43: network.interfaces.eno1.addresses[0]: 10.42.9.0/24 overlaps the pods' 10.42.0.0/16 — choose another network in cluster.yaml",
            ],
        ),
        (
            "file name",
            vec![("a", CONTROL), ("B_b", "role: worker\n")],
            vec![
                "nodes/B_b.yaml:1:1: \"B_b\" is not a name: use 1 to 63 of a-z, 0-9 and -, with a letter or digit at either end — the name of the file is the name of the node",
            ],
        ),
        (
            "a file without name",
            vec![("a", CONTROL), ("B_b", "role: worker\ntaints: [x]\n")],
            vec!["nodes/B_b.yaml:1:1: \"B_b\" is not a name", "nodes/B_b.yaml:2:10: taints[0]: \"x\" is not a taint"],
        ),
        (
            "everything at once",
            vec![("a", "rôle: x\n"), ("b", "role: worker\ntaints: [x]\nfoo: 1\n")],
            vec![
                "nodes/a.yaml:1:1: role is missing — What the machine is for",
                "nodes/a.yaml:1:1: [\"rôle\"]: unknown field \"rôle\" — did you mean role?",
                "nodes/b.yaml:2:10: taints[0]: \"x\" is not a taint such as key=value:NoSchedule (or PreferNoSchedule, NoExecute)",
                "nodes/b.yaml:3:1: foo: unknown field \"foo\" — known here: ",
            ],
        ),
    ] {
        let found = findings(CLUSTER, &nodes);
        let same = found.len() == expected.len()
            && found.iter().zip(&expected).all(|(found, expected)| found.starts_with(expected));
        assert!(same, "{case}: {found:#?}");
    }
}

#[test]
fn nodes_are_judged_though_the_cluster_is_wrong() {
    let found = findings("name: h\n", &[("b", "role: worker\ntaints: [x]\ndataDisks: 1\n")]);
    let expected = [
        "cluster.yaml:1:1: k3s is missing",
        "nodes/b.yaml:2:10: taints[0]: \"x\" is not a taint",
        "nodes/b.yaml:3:12: dataDisks: expected a list, found the number 1",
    ];
    let same = found.len() == 3 && found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected));
    assert!(same, "{found:#?}");
}

#[test]
fn no_text_makes_the_front_end_panic() {
    let worker = fs::read_to_string(own("examples/home/nodes/toronto-0002.yaml")).expect("the example");
    let edge = fs::read_to_string(own("examples/home/nodes/vps-1.yaml")).expect("the example");
    arbtest::arbtest(|u| {
        let mut bytes = u.choose(&[&worker, &edge])?.as_bytes().to_vec();
        for _ in 0..u.int_in_range(1..=4)? {
            let at = u.choose_index(bytes.len())?;
            match u.int_in_range(0..=2)? {
                0 => bytes[at] = u.arbitrary()?,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, *u.choose(b":-[]{}&*!|>'\"#, \n\t0")?),
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(profiles) = Profiles::parse(&sources(CLUSTER, &[("a", CONTROL), ("b", &text)])) {
            let rendered = render(&profiles, "b", &TestSecrets).expect("what is sound is rendered");
            serde_json::from_str::<Value>(rendered.config.expose()).expect("JSON");
        }
        let _ = yaml::parse(u.arbitrary()?);
        Ok(())
    })
    .budget_ms(700);
}
