//! Whole stages, from the command line to the files that they leave.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::fetch::data;
use super::fetch::tests::network;
use super::fetch::tests::server::{Reply, Server};
use super::fetch::tests::tls::authority_in_pem;
use super::*;

/// A machine to run stages on.
struct Machine {
    directory: tempfile::TempDir,
    environment: Environment,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("cmdline"), "quiet\n").expect("written");
        let environment = Environment {
            system_config: vec![at("run"), at("etc"), at("usr")],
            config_file: at("config.ign"),
            handed_on: at("handed-on.ign"),
            cmdline: at("cmdline"),
            sys: at("sys"),
            network: network(),
        };
        Self { directory, environment }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file, with its directory.
    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("below the directory")).expect("made");
        fs::write(path, content).expect("written");
    }

    /// Runs a stage, and gives the exit code.
    fn run(&self, platform: &str, stage: &str) -> u8 {
        let flags = [
            ("platform", platform.into()),
            ("stage", stage.into()),
            ("root", self.path("root").display().to_string()),
            ("config-cache", self.path("cache/ignition.json").display().to_string()),
            ("state-file", self.path("state/state").display().to_string()),
            ("neednet", self.path("needs/net").display().to_string()),
            ("fetch-timeout", "5s".to_owned()),
            ("log-to-stdout", "true".to_owned()),
        ];
        let words: Vec<OsString> = flags.iter().map(|(name, value)| format!("--{name}={value}").into()).collect();
        match flags::parse(&words) {
            Ok(Request::Run(flags)) => run(&flags, &self.environment),
            other => panic!("{words:?}: {other:?}"),
        }
    }

    fn neednet(&self) -> bool {
        self.path("needs/net").exists()
    }

    fn cache(&self) -> Option<Value> {
        let text = fs::read(self.path("cache/ignition.json")).ok()?;
        Some(serde_json::from_slice(&text).expect("JSON"))
    }

    /// The paths of the cached config's files.
    fn files(&self) -> Vec<String> {
        let cache = self.cache().expect("a cache");
        let files = cache["storage"]["files"].as_array().cloned().unwrap_or_default();
        files.iter().map(|file| file["path"].as_str().expect("a path").to_owned()).collect()
    }

    fn state(&self) -> State {
        State::load(&self.path("state/state")).expect("a state")
    }
}

/// A config with one file, whose contents come from there.
fn with_file(path: &str, source: &str) -> Value {
    json!({"ignition": {"version": "3.3.0"}, "storage": {"files": [{"path": path, "contents": {"source": source}}]}})
}

/// A config with one file, which refers to others.
fn referring(path: &str, key: &str, references: Value) -> Value {
    let mut config = with_file(path, "data:,x");
    config["ignition"]["config"] = json!({ key: references });
    config
}

fn in_data_url(config: &Value) -> String {
    data::encode(config.to_string().as_bytes())
}

/// Serves these configs by path; the address in them is written as `BASE`.
fn serve(configs: Vec<(&'static str, Value)>) -> Server {
    Server::http(move |request, _| {
        let base = format!("http://{}", request.header("host")[0]);
        let found = configs.iter().find(|(path, _)| request.line == format!("GET {path}"));
        found.map_or(Reply::status(404), |(_, config)| Reply::ok(config.to_string().replace("BASE", &base)))
    })
}

#[test]
fn a_config_that_holds_all_it_needs_needs_no_network() {
    let machine = Machine::new();
    machine.write("config.ign", with_file("/a", "data:,x").to_string());
    assert_eq!(machine.run("file", "fetch-offline"), 0);
    assert!(!machine.neednet());
    assert_eq!(machine.files(), ["/a"]);
    assert_eq!(machine.cache().expect("a cache")["ignition"]["version"], "3.6.0");
    for name in ["cache/ignition.json", "state/state"] {
        let mode = fs::metadata(machine.path(name)).expect("there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{name}");
    }
    let state = machine.state();
    assert_eq!(state.fetched.len(), 1);
    assert_eq!((state.fetched[0].kind.as_str(), state.fetched[0].source.as_str()), ("user", "file"));
}

#[test]
fn fetch_offline_asks_for_the_network() {
    let server = serve(vec![("/c", with_file("/from-net", "data:,x"))]);
    for (case, config, cached) in [
        ("a config that replaces", referring("/a", "replace", json!({"source": server.url("/c")})), false),
        ("a config that is merged", referring("/a", "merge", json!([{"source": server.url("/c")}])), false),
        ("contents of a file", with_file("/a", "http://h.test/x"), true),
    ] {
        let machine = Machine::new();
        machine.write("config.ign", config.to_string());
        assert_eq!(machine.run("file", "fetch-offline"), 0, "{case}");
        assert!(machine.neednet(), "{case}");
        assert_eq!(machine.cache().is_some(), cached, "{case}");
        if !cached {
            assert_eq!(server.requests().len(), 0, "{case}: the network was used");
        }
    }
    let machine = Machine::new();
    machine.write("config.ign", referring("/a", "merge", json!([{"source": server.url("/c")}])).to_string());
    assert_eq!(machine.run("file", "fetch-offline"), 0);
    assert_eq!(machine.run("file", "fetch"), 0);
    assert_eq!(machine.files(), ["/a", "/from-net"]);
    let kinds: Vec<String> = machine.state().fetched.into_iter().map(|fetched| fetched.kind).collect();
    assert_eq!(kinds, ["user", "referenced"]);
}

#[test]
fn the_network_is_needed_for_these() {
    let luks = |extra: Value| {
        let mut volume = json!({"name": "v", "device": "/dev/v"});
        volume.as_object_mut().expect("object").extend(extra.as_object().expect("object").clone());
        json!({"ignition": {"version": "3.4.0"}, "storage": {"luks": [volume]}})
    };
    let tang = |advertisement: Value| json!({"clevis": {"tang": [{"url": "http://t.test", "thumbprint": "x", "advertisement": advertisement}]}});
    let custom = |needs: bool| json!({"clevis": {"custom": {"pin": "tpm2", "config": "{}", "needsNetwork": needs}}});
    let append = json!({"ignition": {"version": "3.0.0"},
        "storage": {"files": [{"path": "/a", "append": [{"source": "data:,x"}, {"source": "http://h.test/"}]}]}});
    for (case, config, expected) in [
        ("nothing", json!({"ignition": {"version": "3.0.0"}}), false),
        ("data", with_file("/a", "data:,x"), false),
        ("contents", with_file("/a", "https://h.test/"), true),
        ("tftp", with_file("/a", "tftp://h.test/x"), true),
        ("append", append, true),
        ("a key file", luks(json!({"keyFile": {"source": "http://h.test/"}})), true),
        ("a key file in data", luks(json!({"keyFile": {"source": "data:,x"}})), false),
        ("tang", luks(tang(Value::Null)), true),
        ("tang, advertised", luks(tang(json!("{\"payload\":\"\",\"protected\":\"\",\"signature\":\"\"}"))), false),
        ("clevis, custom", luks(custom(true)), true),
        ("clevis, custom, without", luks(custom(false)), false),
    ] {
        let (config, _) =
            config::parse(config.to_string().as_bytes()).unwrap_or_else(|report| panic!("{case}: {report:?}"));
        assert_eq!(stages::fetch::config_needs_network(&config), expected, "{case}");
    }
}

#[test]
fn no_config_and_an_empty_one_are_an_empty_machine() {
    for (case, platform, content) in
        [("empty", "file", Some("")), ("metal", "metal", None), ("none", "qemu", None), ("none", "nodezero", None)]
    {
        let machine = Machine::new();
        if let Some(content) = content {
            machine.write("config.ign", content);
        }
        assert_eq!(machine.run(platform, "fetch-offline"), 0, "{case} {platform}");
        assert_eq!(machine.cache().expect("a cache")["ignition"]["version"], "3.6.0", "{case} {platform}");
        assert!(machine.state().fetched.is_empty(), "{case} {platform}");
    }
    for (case, content) in [
        ("no file", None),
        ("white space", Some(" ")),
        ("not JSON", Some("#cloud-config\n")),
        ("another version", Some(r#"{"ignition": {"version": "9.0.0"}}"#)),
        ("not valid", Some(r#"{"ignition": {"version": "3.0.0"}, "storage": {"files": [{"path": "relative"}]}}"#)),
    ] {
        let machine = Machine::new();
        if let Some(content) = content {
            machine.write("config.ign", content);
        }
        assert_eq!(machine.run("file", "fetch-offline"), 1, "{case}");
        assert!(machine.cache().is_none() && !machine.neednet(), "{case}");
        assert!(!machine.path("state/state").exists(), "{case}");
    }
}

#[test]
fn sources_are_asked_in_their_order() {
    let server = serve(vec![("/c", with_file("/cmdline", "data:,x"))]);
    let machine = Machine::new();
    machine.write("config.ign", with_file("/platform", "data:,x").to_string());
    machine.write("handed-on.ign", with_file("/first-stage", "data:,x").to_string());
    assert_eq!(machine.run("nodezero", "fetch"), 0);
    assert_eq!(machine.files(), ["/first-stage"]);
    machine.write("usr/user.ign", with_file("/vendor", "data:,x").to_string());
    assert_eq!(machine.run("file", "fetch"), 0);
    assert_eq!(machine.files(), ["/vendor"]);
    machine.write("etc/user.ign", with_file("/local", "data:,x").to_string());
    assert_eq!(machine.run("file", "fetch"), 0);
    assert_eq!(machine.files(), ["/local"]);
    machine.write("cmdline", format!("quiet ignition.config.url={}\n", server.url("/c")));
    fs::remove_file(machine.path("cache/ignition.json")).expect("there");
    assert_eq!(machine.run("file", "fetch-offline"), 0);
    assert!(machine.neednet() && machine.cache().is_none());
    assert_eq!(machine.run("file", "fetch"), 0);
    assert_eq!(machine.files(), ["/cmdline"]);
    machine.write("cmdline", format!("ignition.config.url={}\n", server.url("/missing")));
    assert_eq!(machine.run("file", "fetch"), 1, "a source that is present and broken");
    machine.write("cmdline", "ignition.config.device=x ignition.config.path=/y\n");
    assert_eq!(machine.run("file", "fetch"), 1, "what is not supported");
}

#[test]
fn a_config_from_fw_cfg_is_taken() {
    let machine = Machine::new();
    let text = with_file("/fw", "data:,x").to_string();
    machine.write("sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/size", format!("{}\n", text.len()));
    machine.write("sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/raw", &text);
    assert_eq!(machine.run("qemu", "fetch-offline"), 0);
    assert_eq!(machine.files(), ["/fw"]);
}

#[test]
fn configs_replace_and_merge_in_order() {
    let server = serve(vec![
        ("/replacing", referring("/r", "merge", json!([{"source": "BASE/one"}, {"source": "BASE/two"}]))),
        ("/one", referring("/1", "merge", json!([{"source": "BASE/one-one"}]))),
        ("/one-one", with_file("/1.1", "data:,x")),
        ("/two", referring("/lost", "replace", json!({"source": "BASE/two-instead"}))),
        ("/two-instead", with_file("/2", "data:,x")),
    ]);
    let machine = Machine::new();
    machine.write("config.ign", referring("/gone", "replace", json!({"source": server.url("/replacing")})).to_string());
    assert_eq!(machine.run("file", "fetch"), 0);
    assert_eq!(machine.files(), ["/r", "/1", "/1.1", "/2"]);
    let cache = machine.cache().expect("a cache");
    let references = &cache["ignition"]["config"];
    assert!(references.get("merge").is_none() && references.get("replace").is_none(), "{cache}");
    let sources: Vec<String> = machine.state().fetched.into_iter().map(|fetched| fetched.source).collect();
    let expected = ["/replacing", "/one", "/one-one", "/two", "/two-instead"].map(|path| server.url(path));
    assert_eq!(sources, [&["file".to_owned()], &expected[..]].concat());
}

#[test]
fn a_child_counts_more_than_its_parent() {
    let machine = Machine::new();
    let child = with_file("/same", "data:,child");
    let mut parent = referring("/same", "merge", json!([{"source": in_data_url(&child)}]));
    parent["storage"]["files"][0]["mode"] = json!(0o600);
    machine.write("config.ign", parent.to_string());
    assert_eq!(machine.run("file", "fetch-offline"), 0);
    let cache = machine.cache().expect("a cache");
    assert_eq!(cache["storage"]["files"][0]["contents"]["source"], "data:,child");
    assert_eq!(cache["storage"]["files"][0]["mode"], 0o600);
}

#[test]
fn references_are_verified_sent_headers_and_decompressed() {
    use std::io::Write;
    let text = with_file("/a", "data:,x").to_string();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).expect("memory");
    let compressed = encoder.finish().expect("memory");
    let server = Server::http(move |request, _| match request.header("x-auth")[..] {
        ["right"] => Reply::ok(compressed.clone()),
        _ => Reply::status(401),
    });
    let hash = {
        use sha2::{Digest, Sha512};
        format!("sha512-{}", fetch::hex(&Sha512::digest(&text)))
    };
    let wrong = format!("sha512-{}", "0".repeat(128));
    for (auth, hash, expected) in [("right", &hash, 0), ("wrong", &hash, 1), ("right", &wrong, 1)] {
        let machine = Machine::new();
        let reference = json!({"source": server.url("/c"), "compression": "gzip", "verification": {"hash": hash},
            "httpHeaders": [{"name": "X-Auth", "value": auth}]});
        machine.write("config.ign", referring("/b", "merge", json!([reference])).to_string());
        assert_eq!(machine.run("file", "fetch"), expected, "{auth} {hash}");
        assert_eq!(machine.cache().is_some(), expected == 0);
        if expected == 0 {
            let cache = fs::read_to_string(machine.path("cache/ignition.json")).expect("there");
            assert!(!cache.contains("right"), "{cache}");
        }
    }
}

#[test]
fn configs_that_refer_to_themselves_or_too_deep_are_refused() {
    let many = |count: usize| {
        let reference = |index| json!({"source": in_data_url(&with_file(&format!("/{index}"), "data:,x"))});
        referring("/m", "merge", Value::Array((0..count).map(reference).collect()))
    };
    let mut deep = with_file("/deepest", "data:,x");
    for depth in 0..17 {
        deep = referring(&format!("/{depth}"), "merge", json!([{"source": in_data_url(&deep)}]));
    }
    for (case, configs) in [
        ("replaces itself", vec![("/c", referring("/a", "replace", json!({"source": "BASE/c"})))]),
        ("merges itself", vec![("/c", referring("/a", "merge", json!([{"source": "BASE/c"}])))]),
        (
            "by way of another",
            vec![
                ("/c", referring("/a", "merge", json!([{"source": "BASE/d"}]))),
                ("/d", referring("/b", "replace", json!({"source": "BASE/c"}))),
            ],
        ),
        ("too deep", vec![("/c", deep)]),
        ("too many", vec![("/c", many(256))]),
        ("refers to an empty one", vec![("/c", referring("/a", "merge", json!([{"source": "data:,"}])))]),
        ("refers to one that is not valid", vec![("/c", referring("/a", "merge", json!([{"source": "data:,{}"}])))]),
    ] {
        let server = serve(configs);
        let machine = Machine::new();
        machine.write("config.ign", referring("/x", "replace", json!({"source": server.url("/c")})).to_string());
        assert_eq!(machine.run("file", "fetch"), 1, "{case}");
        assert!(machine.cache().is_none(), "{case}");
        assert!(server.requests().len() < 5, "{case}: {} requests", server.requests().len());
    }
    let twice = serve(vec![
        ("/c", referring("/c", "merge", json!([{"source": "BASE/d"}, {"source": "BASE/e"}]))),
        ("/d", referring("/d", "merge", json!([{"source": "BASE/f"}]))),
        ("/e", referring("/e", "merge", json!([{"source": "BASE/f"}]))),
        ("/f", with_file("/f", "data:,x")),
    ]);
    let machine = Machine::new();
    machine.write("config.ign", referring("/x", "replace", json!({"source": twice.url("/c")})).to_string());
    assert_eq!(machine.run("file", "fetch"), 0, "two ways to one config are no circle");
    assert_eq!(machine.files(), ["/c", "/d", "/f", "/e"]);
}

#[test]
fn the_system_s_configs_lie_below_the_machine_s_own() {
    let machine = Machine::new();
    let kernel = |words: &[&str]| json!({"ignition": {"version": "3.3.0"}, "kernelArguments": {"shouldExist": words}});
    machine.write("config.ign", json!({"ignition": {"version": "3.3.0"}}).to_string());
    assert_eq!(machine.run("file", "fetch-offline"), 0);
    assert_eq!(machine.run("file", "kargs"), 0, "nothing is asked for");
    machine.write("usr/base.d/10.ign", kernel(&["quiet"]).to_string());
    assert_eq!(machine.run("file", "kargs"), 0, "what is there already");
    machine.write("usr/base.platform.d/file/10.ign", kernel(&["splash"]).to_string());
    assert_eq!(machine.run("file", "kargs"), 1, "of the platform");
    assert_eq!(machine.run("metal", "kargs"), 0, "of another platform");
    machine.write("etc/base.platform.d/file/10.ign", kernel(&["quiet"]).to_string());
    assert_eq!(machine.run("file", "kargs"), 0, "hidden by its namesake");
    assert!(machine.cache().expect("a cache").get("kernelArguments").is_none_or(Value::is_null), "never cached");
    for (case, name, text) in [
        ("not JSON", "usr/base.d/20.ign", "hello"),
        ("empty", "usr/base.d/20.ign", ""),
        ("of the platform", "usr/base.platform.d/file/20.ign", "hello"),
    ] {
        machine.write(name, text);
        assert_eq!(machine.run("file", "kargs"), 1, "{case}");
        fs::remove_file(machine.path(name)).expect("there");
    }
    machine.write("usr/base.d/20.ign", with_file("/net", "http://h.test/").to_string());
    assert_eq!(machine.run("file", "fetch-offline"), 0);
    assert!(machine.neednet(), "for what the system's config refers to");
}

#[test]
fn names_decide_which_of_the_system_s_configs_comes_last() {
    let machine = Machine::new();
    for (name, source) in [
        ("usr/base.d/30.ign", "data:,last"),
        ("etc/base.d/20.ign", "data:,second"),
        ("run/base.d/10.ign", "data:,first"),
    ] {
        machine.write(name, with_file("/same", source).to_string());
    }
    let (merged, fetched) = system::base(&machine.environment, "file", Log::Stdout).expect("valid");
    let files = merged.expect("some").storage.expect("set").files.expect("set");
    assert_eq!(files.len(), 1);
    let source = files[0].contents.as_ref().and_then(|contents| contents.source.as_deref());
    assert_eq!(source, Some("data:,last"));
    let names: Vec<&str> =
        fetched.iter().filter_map(|fetched| Path::new(&fetched.source).file_name()?.to_str()).collect();
    assert_eq!(names, ["10.ign", "20.ign", "30.ign"]);
}

#[test]
fn stages_need_the_cache_and_a_state_that_can_be_read() {
    let machine = Machine::new();
    assert_eq!(machine.run("file", "kargs"), 1, "no cache");
    machine.write("config.ign", json!({"ignition": {"version": "3.3.0"}}).to_string());
    assert_eq!(machine.run("file", "fetch-offline"), 0);
    machine.write("state/state", "not JSON");
    assert_eq!(machine.run("file", "kargs"), 3, "a state that cannot be read");
    fs::remove_file(machine.path("state/state")).expect("there");
    machine.write("cache/ignition.json", "not JSON");
    assert_eq!(machine.run("file", "kargs"), 1, "a cache that cannot be read");
}

#[test]
fn authorities_are_kept_in_the_cache() {
    let pem = authority_in_pem();
    let served = pem.clone();
    let server = Server::http(move |_, _| Reply::ok(served.clone()));
    let machine = Machine::new();
    let authority = json!({"source": server.url("/ca"), "httpHeaders": [{"name": "X-Auth", "value": "secret"}]});
    let config = json!({"ignition": {"version": "3.3.0", "timeouts": {"httpTotal": 7},
        "security": {"tls": {"certificateAuthorities": [authority]}}}});
    machine.write("config.ign", config.to_string());
    assert_eq!(machine.run("file", "fetch-offline"), 0);
    assert!(machine.neednet() && machine.cache().is_none());
    assert_eq!(machine.run("file", "fetch"), 0);
    let cache = machine.cache().expect("a cache");
    let kept = &cache["ignition"]["security"]["tls"]["certificateAuthorities"][0];
    assert_eq!(kept["source"], data::encode(pem.as_bytes()));
    assert!(kept.get("httpHeaders").is_none_or(Value::is_null));
    assert_eq!(cache["ignition"]["timeouts"]["httpTotal"], 7);
    assert_eq!(server.requests().len(), 1, "fetched once");
}
