//! Whole configs: verdicts by version, findings, what becomes of an accepted config, and bytes at random.
//!
//! The tables' verdicts were agreed on with the reference's validator 2.27, version by version.

mod devices;
mod files;
mod ignition;
mod luks;
mod sources;
mod systemd;
mod texts;

use std::time::{Duration, Instant};

use super::{merge, parse, prune, types};

/// Checks a table of cases, one a line: a letter for each version from 3.0.0 to 3.6.0 (`v` for valid, `w` for valid
/// with warnings, `x` for refused), and what takes the place of CASE in the template. `<N>` is N times the letter x.
fn check(template: &str, table: &str) {
    let mut cases = 0;
    for line in table.lines().filter(|line| !line.is_empty()) {
        let (verdicts, case) = line.split_once(' ').expect("verdicts and a case");
        assert_eq!(verdicts.len(), 7, "one verdict a version: {line}");
        for (minor, expected) in verdicts.chars().enumerate() {
            let text = template.replace("VERSION", &format!("3.{minor}.0")).replace("CASE", &repeated(case));
            let (found, report) = verdict(&text);
            assert_eq!(found, expected, "3.{minor}.0: {case}\n{report}");
            cases += 1;
        }
    }
    assert!(cases > 0, "a table without cases");
}

fn verdict(text: &str) -> (char, super::Report) {
    match parse(text.as_bytes()) {
        Ok((_, report)) if report.entries.is_empty() => ('v', report),
        Ok((_, report)) => ('w', report),
        Err(report) => ('x', report),
    }
}

/// A case with each `<N>` written out.
fn repeated(case: &str) -> String {
    let mut parts = case.split('<');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once('>').map(|(count, rest)| (count.parse::<usize>(), rest)) {
            Some((Ok(count), rest)) => text.extend([&"x".repeat(count), rest]),
            _ => text.extend(["<", part]),
        }
    }
    text
}

fn accepted(text: &str) -> types::Config {
    parse(text.as_bytes()).unwrap_or_else(|report| panic!("{text}: {report}")).0
}

fn json(config: &types::Config) -> serde_json::Value {
    let mut value = serde_json::to_value(config).expect("a config serialises");
    prune(&mut value);
    value
}

#[test]
fn translates_to_one_form() {
    let cases = [
        (
            "what is empty is absent",
            r#"{"ignition":{"version":"3.0.0","config":{"merge":[],"replace":{}},"security":{"tls":{}}},
                "passwd":{"users":[]},"storage":{"disks":[{"device":"/d","partitions":[]}]},"systemd":{}}"#,
            r#"{"ignition":{"version":"3.6.0"},"storage":{"disks":[{"device":"/d"}]}}"#,
        ),
        (
            "special bits of modes are lost before 3.6.0",
            r#"{"ignition":{"version":"3.5.0"},"storage":{"files":[{"path":"/f","mode":2541}],"directories":[{"path":"/d","mode":1023}]}}"#,
            r#"{"ignition":{"version":"3.6.0"},"storage":{"files":[{"path":"/f","mode":493}],"directories":[{"path":"/d","mode":511}]}}"#,
        ),
        (
            "and kept since",
            r#"{"ignition":{"version":"3.6.0"},"storage":{"files":[{"path":"/f","mode":2541}]}}"#,
            r#"{"ignition":{"version":"3.6.0"},"storage":{"files":[{"path":"/f","mode":2541}]}}"#,
        ),
        (
            "keys that a version does not know are left out",
            r#"{"ignition":{"version":"3.1.0"},"passwd":{"users":[{"name":"a","shouldExist":false}]},"kernelArguments":{"shouldExist":["a"]}}"#,
            r#"{"ignition":{"version":"3.6.0"},"passwd":{"users":[{"name":"a"}]}}"#,
        ),
        (
            "an empty custom clevis of 3.2.0 is none",
            r#"{"ignition":{"version":"3.2.0"},"storage":{"luks":[{"name":"a","device":"/d","clevis":{"custom":{}}}]}}"#,
            r#"{"ignition":{"version":"3.6.0"},"storage":{"luks":[{"name":"a","device":"/d"}]}}"#,
        ),
        (
            "partition number 0 is none",
            r#"{"ignition":{"version":"3.4.0"},"storage":{"disks":[{"device":"/d","partitions":[{"number":0,"label":"a"}]}]}}"#,
            r#"{"ignition":{"version":"3.6.0"},"storage":{"disks":[{"device":"/d","partitions":[{"label":"a"}]}]}}"#,
        ),
        (
            "a link of 3.0 without a target has an empty one",
            r#"{"ignition":{"version":"3.0.0"},"storage":{"links":[{"path":"/l"}]}}"#,
            r#"{"ignition":{"version":"3.6.0"},"storage":{"links":[{"path":"/l","target":""}]}}"#,
        ),
        (
            "keys in another case, and twice",
            r#"{"Ignition":{"VERSION":"3.4.0"},"passwd":{"users":[{"Name":"a","uid":1,"uid":2}]},"passwd":{"groups":[{"name":"g"}]}}"#,
            r#"{"ignition":{"version":"3.6.0"},"passwd":{"groups":[{"name":"g"}],"users":[{"name":"a","uid":2}]}}"#,
        ),
        (
            "characters that are none",
            r#"{"ignition":{"version":"3.4.0"},"passwd":{"users":[{"name":"a","gecos":"\ud800\u0041\ud83d\ude00\\\/\b"}]}}"#,
            "{\"ignition\":{\"version\":\"3.6.0\"},\"passwd\":{\"users\":[{\"name\":\"a\",\"gecos\":\"\u{fffd}A\u{1f600}\\\\/\\b\"}]}}",
        ),
    ];
    for (case, text, expected) in cases {
        let expected: serde_json::Value = serde_json::from_str(expected).expect("JSON");
        assert_eq!(json(&accepted(text)), expected, "{case}");
    }
}

#[test]
fn says_where() {
    let text = "{\n \"ignition\": {\"version\": \"3.1.0\"},\n \"storage\": {\n  \"files\": [\n   {\"path\": \"a\", \"x\": 1,\n\
                \u{20}   \"mode\": 4096}],\n  \"luks\": [],\n  \"disks\": [{}]},\n \"y\": {}\n}";
    let report = parse(text.as_bytes()).expect_err("a refused config");
    let expected = "error at $.storage.files.0.path, line 5 col 13: \"a\" is not absolute\n\
                    warning at $.storage.files.0.x, line 5 col 18: unused key x\n\
                    error at $.storage.files.0.mode, line 6 col 13: mode is 4096, must be 0 to 4095\n\
                    warning at $.storage.luks, line 7 col 3: unused key luks: it is known since version 3.2.0\n\
                    error at $.storage.disks.0.device, line 8 col 14: device is missing\n\
                    warning at $.y, line 9 col 2: unused key y";
    assert_eq!(report.to_string(), expected);
}

#[test]
fn bounds_a_report() {
    let users = vec!["{\"x\":1}"; 2000].join(",");
    let text = format!(r#"{{"ignition":{{"version":"3.4.0"}},"passwd":{{"users":[{users}]}}}}"#);
    let report = parse(text.as_bytes()).expect_err("users of the same empty name");
    assert!(report.entries.len() < 600, "{} entries", report.entries.len());
    assert!(report.entries.last().is_some_and(|entry| entry.message.contains("further findings")));
}

/// The validator's exit codes, told from its arguments and a file.
#[test]
fn validator_exits_as_the_reference_does() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.into_os_string()
    };
    let valid = file("valid.ign", r#"{"ignition":{"version":"3.4.0"}}"#);
    let warned = file("warned.ign", r#"{"ignition":{"version":"3.4.0"},"x":1}"#);
    let refused = file("refused.ign", r#"{"ignition":{"version":"3.4.0"},"storage":5}"#);
    let missing = directory.path().join("missing.ign").into_os_string();
    let cases = [
        (vec![valid.clone()], 0),
        (vec!["--".into(), valid.clone()], 0),
        (vec!["-version=false".into(), valid.clone()], 0),
        (vec![warned], 0),
        (vec![refused], 1),
        (vec![missing], 1),
        (vec![], 1),
        (vec![valid.clone(), valid.clone()], 1),
        (vec!["-version".into()], 0),
        (vec!["--version".into(), valid.clone()], 0),
        (vec!["-h".into()], 0),
        (vec!["-unknown".into(), valid], 2),
    ];
    for (arguments, expected) in cases {
        assert_eq!(super::validate_main(&arguments), std::process::ExitCode::from(expected), "{arguments:?}");
    }
}

/// Large and deep configs, in seconds even without optimisation.
#[test]
fn reads_large_configs() {
    let file = |index| format!(r#"{{"path":"/a/{index}","contents":{{"source":"data:,{}"}}}}"#, "x".repeat(60));
    let files: Vec<_> = (0..20_000).map(file).collect();
    let users: Vec<_> = (0..50_000).map(|index| format!(r#"{{"name":"{index}"}}"#)).collect();
    let partitions: Vec<_> =
        (1..20_000).map(|at| format!(r#"{{"number":{at},"startMiB":{at},"sizeMiB":1}}"#)).collect();
    let links: Vec<_> = (0..20_000).map(|index| format!(r#"{{"path":"/l/{index}","target":"t"}}"#)).collect();
    let cases = [
        (
            "one large file",
            format!(
                r#""storage":{{"files":[{{"path":"/a","contents":{{"source":"data:;base64,{}"}}}}]}}"#,
                "YWJj".repeat(2_600_000)
            ),
        ),
        ("many files", format!(r#""storage":{{"files":[{}]}}"#, files.join(","))),
        (
            "many files and links",
            format!(r#""storage":{{"files":[{}],"links":[{}]}}"#, files.join(","), links.join(",")),
        ),
        ("many users", format!(r#""passwd":{{"users":[{}]}}"#, users.join(","))),
        (
            "many partitions",
            format!(r#""storage":{{"disks":[{{"device":"/d","partitions":[{}]}}]}}"#, partitions.join(",")),
        ),
        ("many numbers", format!(r#""x":[{}1]"#, "1,".repeat(1_000_000))),
        ("deep arrays", format!(r#""x":{}{}"#, "[".repeat(9_999), "]".repeat(9_999))),
    ];
    for (case, fragment) in cases {
        let text = format!(r#"{{"ignition":{{"version":"3.4.0"}},{fragment}}}"#);
        let start = Instant::now();
        let outcome = parse(text.as_bytes());
        assert!(outcome.is_ok(), "{case}: {}", outcome.expect_err("refused"));
        assert!(start.elapsed() < Duration::from_secs(20), "{case} took {:?}", start.elapsed());
    }
    for deep in ["[".repeat(1_000_000), "{\"a\":".repeat(1_000_000)] {
        assert!(parse(deep.as_bytes()).is_err());
    }
}

/// Bytes at random, most of them from the pieces of a config.
#[test]
fn survives_any_bytes() {
    const PIECES: [&str; 36] = [
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "null",
        "true",
        "false",
        "1",
        "-1",
        "1e5",
        "\\u",
        "\\\"",
        "\"ignition\":",
        "\"version\":",
        "\"3.6.0\"",
        "\"3.2.0\"",
        "\"storage\":",
        "\"files\":",
        "\"path\":",
        "\"/a\"",
        "\"disks\":",
        "\"partitions\":",
        "\"label\":",
        "\"luks\":",
        "\"clevis\":",
        "\"systemd\":",
        "\"units\":",
        "\"contents\":",
        "\"[A]\\n\"",
        "\"name\":",
        "\"a.service\"",
        "\"source\":",
        "\"data:,a\"",
    ];
    arbtest::arbtest(|source| {
        let mut text = Vec::new();
        if source.arbitrary()? {
            text.extend(br#"{"ignition":{"version":"3.6.0"},"#);
        }
        while !source.is_empty() && text.len() < 4096 {
            if source.ratio(7, 8)? {
                text.extend(source.choose(&PIECES)?.as_bytes());
            } else {
                text.push(source.arbitrary()?);
            }
        }
        _ = parse(&text);
        Ok(())
    })
    .budget_ms(1500)
    .run();
}

/// Configs at random that are mostly valid: what is accepted serialises, parses again to the same, and merges with
/// itself and with an empty config to the same.
#[test]
fn accepted_configs_parse_again_to_the_same() {
    let mut accepted = 0;
    arbtest::arbtest(|source| {
        let minor = source.int_in_range(3..=6)?;
        let mut text = format!(r#"{{"ignition":{{"version":"3.{minor}.0"}},"#);
        text += &object(source, &super::schema::CONFIG, 0)?[1..];
        if let Ok((config, _)) = parse(text.as_bytes()) {
            accepted += 1;
            let again = serde_json::to_vec(&config).expect("a config serialises");
            let (second, _) = parse(&again).unwrap_or_else(|report| panic!("{text}\n{report}"));
            assert_eq!(config, second, "{text}");
            assert_eq!(merge(config.clone(), types::Config::default()), config, "{text}");
            assert_eq!(merge(types::Config::default(), config.clone()), config, "{text}");
        }
        Ok(())
    })
    .budget_ms(3000)
    .run();
    assert!(accepted > 0, "no random config was accepted");
}

/// An object of a schema, each value of its right type and often valid.
fn object(
    source: &mut arbitrary::Unstructured<'_>,
    schema: &super::schema::Schema,
    depth: u32,
) -> arbitrary::Result<String> {
    use super::schema::Shape;
    let mut members = Vec::new();
    for field in schema.fields {
        let wanted = field.required || source.ratio(1, 2 + depth)?;
        if !wanted || field.name == "version" || field.name == "ignition" {
            continue;
        }
        let value = match field.shape {
            Shape::Flag => source.arbitrary::<bool>()?.to_string(),
            Shape::Number | Shape::NumberOrZero => source.int_in_range(0..=9)?.to_string(),
            Shape::Text => word(source, field.name)?,
            Shape::Object(inner) => object(source, inner, depth + 1)?,
            Shape::Texts(_) => format!("[{}]", word(source, field.name)?),
            Shape::Objects(inner, _) => {
                let count = source.int_in_range(0..=2)?;
                let items = (0..count).map(|_| object(source, inner, depth + 1)).collect::<Result<Vec<_>, _>>()?;
                format!("[{}]", items.join(","))
            }
        };
        members.push(format!("\"{}\":{value}", field.name));
    }
    Ok(format!("{{{}}}", members.join(",")))
}

/// A text that suits a key more often than not.
fn word(source: &mut arbitrary::Unstructured<'_>, key: &str) -> arbitrary::Result<String> {
    let words: &[&str] = match key {
        "path" | "device" | "devices" | "target" => &["/a", "/b", "/c", "/d", "/e/f", "/g", ""],
        "source" | "url" | "httpProxy" | "httpsProxy" => &["http://a", "https://b/c?d", "data:,a", "data:;base64,YQ=="],
        "hash" | "guid" | "typeGuid" | "compression" | "label" => &["", "gzip", "x"],
        "contents" => &["[A]\\nb=c\\n", "", "[Install]\\nA=b"],
        "level" => &["raid1", "linear"],
        "format" => &["ext4", "xfs", "none"],
        "name" => &["a.service", "b@c.service", "d.conf", "e.mount"],
        "advertisement" => &["{}", ""],
        "pin" => &["tpm2", "tang"],
        _ => &["a", "b", "\\u00e4", ""],
    };
    Ok(format!("\"{}\"", source.choose(words)?))
}
