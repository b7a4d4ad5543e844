//! Cases for what is or is not JSON, and for versions.

use super::verdict;

#[test]
fn versions() {
    let cases = [
        ("3.0.0", 'v'),
        ("3.1.0", 'v'),
        ("3.2.0", 'v'),
        ("3.3.0", 'v'),
        ("3.4.0", 'v'),
        ("3.5.0", 'v'),
        ("3.6.0", 'v'),
        ("3.0.0-", 'v'),
        ("3.0.0+", 'v'),
        ("3.0.0-+", 'v'),
        ("03.00.0", 'v'),
        ("3.7.0", 'x'),
        ("4.0.0", 'x'),
        ("2.3.0", 'x'),
        ("1.0.0", 'x'),
        ("1", 'x'),
        ("3", 'x'),
        ("3.0", 'x'),
        ("3.0.0.0", 'x'),
        ("3.0.1", 'x'),
        ("3.0.0-a", 'x'),
        ("3.0.0+a", 'x'),
        ("3.0.-0", 'x'),
        ("+3.0.0", 'x'),
        ("-3.0.0", 'x'),
        (" 3.0.0", 'x'),
        ("3.0.0 ", 'x'),
        ("3..0", 'x'),
        ("a.b.c", 'x'),
        ("", 'x'),
        ("99999999999999999999.0.0", 'x'),
        ("3.0.0-_", 'x'),
        ("3.6.0-experimental", 'x'),
        ("3.5.0-experimental", 'x'),
        // The reference accepts this one, whose rules may still change; no types of it exist here.
        ("3.7.0-experimental", 'x'),
    ];
    for (version, expected) in cases {
        let (found, report) = verdict(&format!(r#"{{"ignition":{{"version":"{version}"}}}}"#));
        assert_eq!(found, expected, "{version:?}: {report}");
    }
}

#[test]
fn texts() {
    let cases = [
        (r#"{"ignition":{"version":"3.4.0"}}"#, 'v'),
        ("\r\n\t {\"ignition\":{\"version\":\"3.4.0\"}} \n", 'v'),
        (r#"{"Ignition":{"Version":"3.4.0"}}"#, 'w'),
        (r#"{"ignition":{"version":"3.4.0"},"ignition":{}}"#, 'v'),
        (r#"{"ignition":{"version":"3.4.0","version":null}}"#, 'v'),
        (r#"{"ignition":{"version":"\u0033.4.0"}}"#, 'v'),
        (r#"{"\u0069gnition":{"version":"3.4.0"}}"#, 'v'),
        (r#"{"ignition":{"version":"3.4.0"},"ignition":{"version":"3.9.0"}}"#, 'x'),
        (r#"{"ignition":null}"#, 'x'),
        (r#"{"ignition":[]}"#, 'x'),
        (r#"{"ignition":{"version":5}}"#, 'x'),
        (r#"{"ignition":{}}"#, 'x'),
        ("{}", 'x'),
        ("[]", 'x'),
        ("null", 'x'),
        ("5", 'x'),
        ("", 'x'),
        (" ", 'x'),
        ("{", 'x'),
        (r#"{"ignition":{"version":"3.4.0"}}x"#, 'x'),
        (r#"{"ignition":{"version":"3.4.0"}}{}"#, 'x'),
        (r#"{"ignition":{"version":"3.4.0"},}"#, 'x'),
        ("{'ignition':{}}", 'x'),
        ("\u{feff}{\"ignition\":{\"version\":\"3.4.0\"}}", 'x'),
        ("\u{a0}{\"ignition\":{\"version\":\"3.4.0\"}}", 'x'),
    ];
    for (text, expected) in cases {
        let (found, report) = verdict(text);
        assert_eq!(found, expected, "{text}: {report}");
    }
}

#[test]
fn values() {
    let cases = [
        ("0", true),
        ("-0", true),
        ("-1.5e+3", true),
        ("1E5", true),
        ("1e999", true),
        ("01", false),
        ("1.", false),
        (".5", false),
        ("-", false),
        ("+1", false),
        ("1e", false),
        ("1e+", false),
        ("0x1", false),
        ("1_0", false),
        ("NaN", false),
        ("nul", false),
        ("nulll", false),
        ("True", false),
        (r#""a"#, false),
        (r#""\x""#, false),
        (r#""\u12""#, false),
        (r#""\u12G4""#, false),
        (r#""\ud800""#, true),
        (r#""\/\b\f\n\r\t\\\"""#, true),
        ("\"\t\"", false),
        ("\"\u{7f}\"", true),
        (r#""\'""#, false),
        ("[1,]", false),
        ("[,1]", false),
        ("[1 2]", false),
        ("[1", false),
        ("[]", true),
        ("[[],{}]", true),
        (r#"{"a" 1}"#, false),
        ("{a:1}", false),
        (r#"{"a":1,}"#, false),
        (r#"{"a":1 "b":2}"#, false),
        (r#"{"a":{"b":[]}}"#, true),
        (r#"{"a"]"#, false),
        ("[1}", false),
    ];
    for (value, expected) in cases {
        let (found, report) = verdict(&format!(r#"{{"ignition":{{"version":"3.6.0"}},"x":{value}}}"#));
        assert_eq!(found, if expected { 'w' } else { 'x' }, "{value}: {report}");
    }
}

#[test]
fn bytes_that_are_not_utf8_are_replaced_one_by_one() {
    let cases: [(&[u8], &[u8], bool); 4] = [
        (b"\xff\xfe", b"\xc3", false),
        (b"\xff\xfe", b"\xfe\xff", true),
        (b"\xe2\x82", b"\xff\xff", true),
        (b"\xed\xa0\x80", b"\\ud800\\ud800\\ud800", true),
    ];
    for (one, other, same) in cases {
        let users = [&br#"{"ignition":{"version":"3.4.0"},"passwd":{"users":[{"name":""#[..], one];
        let text = [&users.concat()[..], br#""},{"name":""#, other, br#""}]}}"#].concat();
        // Users of the same name are refused.
        assert_eq!(super::parse(&text).is_err(), same, "{one:x?} and {other:x?}");
    }
}

#[test]
fn depth_is_bounded() {
    for (depth, expected) in [(9_999, 'w'), (10_000, 'x')] {
        let (found, report) =
            verdict(&format!(r#"{{"ignition":{{"version":"3.6.0"}},"x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth)));
        assert_eq!(found, expected, "{depth}: {report}");
    }
}

#[test]
fn says_what_a_text_is_instead() {
    let cases: [(&[u8], &str); 8] = [
        (b"", "error: config is empty"),
        (b"\n", "error: config is empty"),
        (b"\n#cloud-config\n", "cloud-config"),
        (b"#!/bin/sh\n", "script"),
        (b"variant: fcos\n", "butane"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\xff\xfe{\0", "UTF-16"),
        (b"{\n  x", "error at line 2 col 3: not JSON: 'x' stands where an object's key in double quotes is expected"),
    ];
    for (text, expected) in cases {
        let report = super::parse(text).expect_err("a refused text").to_string();
        assert!(report.contains(expected), "{}: {report}", text.escape_ascii());
    }
}
