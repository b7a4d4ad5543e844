//! Compares versions as `dpkg` does.

use std::cmp::Ordering;
use std::process::Command;

use debian::version::Version;

/// Versions that differ in one thing each, and some that compare equal.
const VERSIONS: [&str; 22] = [
    "0",
    "0-0",
    "0:0",
    "00",
    "1~~",
    "1~~a",
    "1~",
    "1~rc1-1",
    "1",
    "1a",
    "1a0",
    "1+",
    "1.",
    "1.0-1~deb13u1",
    "1.0-1",
    "1.0-1+b1",
    "1-2-3",
    "1.09",
    "1.10",
    "1:0~",
    "1Z",
    "99999999999999999999",
];

#[test]
fn the_order_is_that_of_dpkg() {
    let found = Command::new("dpkg").arg("--version").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "dpkg is not installed");
    if !found {
        eprintln!("skipped: dpkg is not installed");
        return;
    }
    for (index, left) in VERSIONS.iter().enumerate() {
        for right in &VERSIONS[index + 1..] {
            let holds = |operator| {
                Command::new("dpkg").args(["--compare-versions", left, operator, right]).status().unwrap().success()
            };
            let order = match (holds("lt"), holds("eq")) {
                (true, _) => Ordering::Less,
                (false, true) => Ordering::Equal,
                (false, false) => Ordering::Greater,
            };
            let ours = left.parse::<Version>().unwrap().cmp(&right.parse().unwrap());
            assert_eq!(ours, order, "{left} against {right}");
        }
    }
}
