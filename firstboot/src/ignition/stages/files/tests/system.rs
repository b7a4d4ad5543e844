//! Units, LUKS volumes, and the stage as a whole.

use std::sync::Mutex;

use super::accounts::{failure, success};
use super::*;

#[test]
fn units_and_dropins_are_written() {
    let unit = |unit: &str| format!(r#""systemd":{{"units":[{{"name":"a.service",{unit}}}]}}"#);
    let (text, empty, none, off) = (
        unit(r#""contents":"[Unit]\n""#),
        unit(r#""contents":"","dropins":[{"name":"x.conf","contents":""}]"#),
        unit(r#""dropins":[{"name":"x.conf"}]"#),
        unit(r#""mask":false"#),
    );
    let mask = unit(r#""contents":"[Unit]\n","mask":true"#);
    check_good(&[
        ("a unit", &[], &text, &["f 644 /etc/systemd/system/a.service [Unit]\n"]),
        (
            "a unit that is there is replaced",
            &["f 600 /etc/systemd/system/a.service old"],
            &text,
            &["f 644 /etc/systemd/system/a.service [Unit]\n"],
        ),
        (
            "a mask gives way to contents",
            &["l /etc/systemd/system/a.service /dev/null"],
            &text,
            &["f 644 /etc/systemd/system/a.service [Unit]\n"],
        ),
        (
            "no contents, no unit; an empty drop-in is written",
            &[],
            &empty,
            &["f 644 /etc/systemd/system/a.service.d/x.conf "],
        ),
        ("a drop-in without contents is not", &[], &none, &[]),
        (
            "drop-ins",
            &["f 600 /etc/systemd/system/a.service.d/x.conf old", "f 600 /etc/systemd/system/a.service.d/z.conf z"],
            &unit(r#""dropins":[{"name":"x.conf","contents":"x"},{"name":"y.conf","contents":"y"}]"#),
            &[
                "f 644 /etc/systemd/system/a.service.d/x.conf x",
                "f 644 /etc/systemd/system/a.service.d/y.conf y",
                "f 600 /etc/systemd/system/a.service.d/z.conf z",
            ],
        ),
        ("masked", &[], &unit(r#""mask":true"#), &["l /etc/systemd/system/a.service /dev/null"]),
        (
            "masked in place of a unit",
            &["f 600 /etc/systemd/system/a.service old"],
            &unit(r#""mask":true"#),
            &["l /etc/systemd/system/a.service /dev/null"],
        ),
        ("masked, with contents", &[], &mask, &["l /etc/systemd/system/a.service /dev/null"]),
        ("unmasked", &["l /etc/systemd/system/a.service /dev/null"], &off, &["d 755 /etc/systemd/system"]),
        ("unmasked, nothing there", &[], &off, &[]),
        (
            "unmasking leaves other links",
            &["l /etc/systemd/system/a.service /dev/zero"],
            &off,
            &["l /etc/systemd/system/a.service /dev/zero"],
        ),
        (
            "unmasking leaves units",
            &["f 644 /etc/systemd/system/a.service old"],
            &off,
            &["f 644 /etc/systemd/system/a.service old"],
        ),
        (
            "a link on the way is the root's own",
            &["l /etc/systemd /lib/s"],
            &text,
            &["l /etc/systemd /lib/s", "f 644 /lib/s/system/a.service [Unit]\n"],
        ),
    ]);
    check_bad(&[("a directory in its place", &["d 700 /etc/systemd/system/a.service"], &text, "unit a.service")]);
}

#[test]
fn presets_are_written_once() {
    let preset = "/etc/systemd/system-preset/20-ignition.preset";
    let units = r#""systemd":{"units":[{"name":"b.service","enabled":true},{"name":"a.service","enabled":true},
        {"name":"e@x.service","enabled":true},{"name":"e@y.service","enabled":true},
        {"name":"on.service","enabled":false},{"name":"off.service","enabled":false},
        {"name":"t@on.service","enabled":false},{"name":"t@off.service","enabled":false}]}"#;
    let lines =
        "disable on.service\ndisable t@.service on\nenable a.service\nenable b.service\nenable e@.service x y\n";
    // Sorted by name with what shall be: `a.service-enabled` comes first.
    let mut sorted: Vec<&str> = lines.lines().collect();
    sorted.sort_by_key(|line| line.split(' ').nth(1));
    let lines = sorted.join("\n") + "\n";
    for (before, mode) in [("", "644"), ("# mine\nenable a.service\n", "600")] {
        let world = World::new(&[]);
        if !before.is_empty() {
            world.lay(&format!("f {mode} {preset} {before}"));
        }
        let (ran, on) = (Mutex::new(Vec::new()), Mutex::new(vec!["on.service", "t@on.service"]));
        let systemctl = |program: &str, arguments: &[&str]| {
            let [_, _, verb, unit] = arguments else { panic!("{program} {arguments:?}") };
            let mut on = on.lock().expect("whole");
            let known = on.contains(unit);
            ran.lock().expect("whole").push(format!("{program} {verb} {unit}"));
            if *verb == "disable" {
                on.retain(|name| name != unit);
            }
            if known { Ok(success(b"enabled\n")) } else { Err(failure("systemctl".into())) }
        };
        let added: String =
            lines.lines().filter(|line| !before.contains(line)).map(|line| line.to_owned() + "\n").collect();
        for time in ["first", "second"] {
            world.apply(units, &systemctl).expect(time);
            assert_eq!(world.dump(), [format!("f {mode} {preset} {before}{added}")], "{time} time");
        }
        let expected = [
            "systemctl is-enabled off.service",
            "systemctl is-enabled on.service",
            "systemctl disable on.service",
            "systemctl is-enabled t@on.service",
            "systemctl disable t@on.service",
            "systemctl is-enabled t@off.service",
        ];
        assert_eq!(ran.lock().expect("whole")[..6], expected);
    }
    let world = World::new(&[]);
    let off = r#""systemd":{"units":[{"name":"a.service","enabled":false},{"name":"b.service"}]}"#;
    let no_systemctl = |_: &str, _: &[&str]| crate::command::run("/nonexistent/systemctl", &[], &[], |_| true);
    world.apply(off, &no_systemctl).expect("nothing to do");
    assert_eq!(world.dump(), [""; 0], "nothing is written when nothing is on");
}

#[test]
fn luks_volumes_get_their_keys_and_lines() {
    let volumes = r#""storage":{"luks":[{"name":"data","device":"/dev/a"},
        {"name":"tang","device":"/dev/b","clevis":{"tang":[{"url":"http://t","thumbprint":"x"}]}},
        {"name":"tpm","device":"/dev/c","clevis":{"tpm2":true}},
        {"name":"pin","device":"/dev/d","clevis":{"custom":{"pin":"p","config":"{}","needsNetwork":true}}},
        {"name":"local","device":"/dev/e","clevis":{"custom":{"pin":"p","config":"{}","needsNetwork":false}}}]}"#;
    let cryptsetup = |program: &str, arguments: &[&str]| {
        assert_eq!((program, arguments[0]), ("cryptsetup", "luksUUID"));
        Ok(success(format!("uuid-of{}\n", arguments[1].replace('/', "-")).as_bytes()))
    };
    let table = "data UUID=uuid-of-dev-a /etc/luks/data luks,x-initrd.attach\n\
        tang UUID=uuid-of-dev-b none luks,_netdev,x-initrd.attach\n\
        tpm UUID=uuid-of-dev-c none luks,x-initrd.attach\n\
        pin UUID=uuid-of-dev-d none luks,_netdev,x-initrd.attach\n\
        local UUID=uuid-of-dev-e none luks,x-initrd.attach\n";
    let keys = BTreeMap::from([(PathBuf::from("/etc/luks/data"), "a2V5".to_owned())]);
    for (name, before, old, directory) in [
        ("nothing there", vec![], "", "700"),
        ("others there", vec!["f 644 /etc/crypttab other x y z\n", "d 711 /etc/luks"], "other x y z\n", "711"),
    ] {
        let mut world = World::new(&before);
        let expected = [
            format!("f 600 /etc/crypttab {old}{table}"),
            format!("d {directory} /etc/luks"),
            "f 600 /etc/luks/data key".to_owned(),
        ];
        // The third time is after a run that came to its end: the state file has no key any more.
        for keys in [keys.clone(), keys.clone(), BTreeMap::new()] {
            world.state.luks_key_files = keys;
            world.apply(volumes, &cryptsetup).expect(name);
            assert_eq!(world.dump(), expected, "{name}");
        }
        // A volume that was made anew has another key.
        world.state.luks_key_files = BTreeMap::from([(PathBuf::from("/etc/luks/data"), "bmV3".to_owned())]);
        world.apply(volumes, &cryptsetup).expect(name);
        assert_eq!(world.dump()[2], "f 600 /etc/luks/data new", "{name}");
    }
    let error = World::new(&[]).apply(volumes, &cryptsetup).expect_err("no key");
    assert!(error.contains("LUKS volume \"data\": its key file is not in the state file"), "{error}");
    let mut world = World::new(&[]);
    world.state.luks_key_files = keys;
    let error = world.apply(volumes, &|_, _| Ok(success(b"\n"))).expect_err("no UUID");
    assert!(error.contains("/dev/a has no UUID"), "{error}");
    world.apply(volumes, &|_, _| Err(failure("cryptsetup".into()))).expect_err("cryptsetup fails");
}

#[test]
fn the_stage_ends_with_its_report() {
    let world = World::new(&[]);
    let fetcher = Fetcher::new(&Ignition::default(), None, Log::Stdout).expect("a fetcher");
    let fetched = |kind: &str| Fetched { kind: kind.into(), source: String::new(), sha512: String::new() };
    let mut state = State { fetched: vec![fetched("base"), fetched("user")], ..State::default() };
    state.luks_key_files.insert("/etc/luks/gone".into(), String::new());
    let config = parse(r#""storage":{"files":[{"path":"/a"}]}"#);
    let path = world.path("etc/.ignition-result.json");
    for earlier in [None, Some("a report"), Some("no JSON")] {
        if earlier == Some("no JSON") {
            fs::write(&path, "{").expect("written");
        }
        let mut stage = Stage { root: world.directory.path(), fetcher: &fetcher, log: Log::Stdout, state: &mut state };
        run(&mut stage, &config).expect("applied");
        assert!(state.luks_key_files.is_empty(), "keys do not stay in the state file");
        assert_eq!(path.metadata().expect("there").mode() & 0o777, 0o600);
        let report: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("there")).expect("JSON");
        assert_eq!(report["userConfigProvided"], true);
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot");
        assert_eq!(report["provisioningBootID"], boot.trim());
        let date = report["provisioningDate"].as_str().expect("a date");
        assert!(date.len() == 20 && date.parse::<jiff::Timestamp>().is_ok(), "{date}");
        assert_eq!(report.get("previousReport").is_some(), earlier == Some("a report"), "{report}");
    }
}

#[test]
fn a_root_that_is_not_there_is_an_error() {
    let error = Tree::open(Path::new("/nonexistent/root")).expect_err("not there").to_string();
    assert_eq!(error, "opening the root directory /nonexistent/root");
    let tree = Tree::open(Path::new("")).expect("the root");
    assert!(tree.arguments().expect("UTF-8").is_empty(), "the programs' own root is not named");
}
