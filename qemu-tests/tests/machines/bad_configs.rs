//! A configuration that cannot be used ends in one clear summary, and nothing on any data disk is changed.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use qemu_tests::ignition::Config;
use qemu_tests::{Machine, Role, images, scenario, storage};

/// A case: its name, the config, and what the summary must say.
struct Bad {
    name: &'static str,
    config: Vec<u8>,
    why: &'static str,
}

fn bad(name: &'static str, config: impl Into<Vec<u8>>, why: &'static str) -> Bad {
    Bad { name, config: config.into(), why }
}

/// Runs one case after the other on machines of their own, which differ in a file of one image's ESP.
fn are_refused(name: &str, cases: Vec<Bad>) {
    scenario(name, |s| {
        let image = images::built(Role::Edge, Role::Edge.usual_platform())?.path;
        let copy = s.dir().join("image.raw");
        storage::copy_sparse(&image, &copy)?;
        let content = b"somebody's data".repeat(1000);
        for case in cases {
            let data = s.file("data.raw", &content)?;
            fs::OpenOptions::new().write(true).open(&data)?.set_len(1 << 30)?;
            storage::write_to_esp(&copy, "/nodezero", "config.ign", &case.config)?;
            let disk = s.boot_disk(&copy)?;
            let data_disk = qemu_tests::Disk::new(&data, qemu_tests::machine::Format::Raw).serial("DATA");
            let vm = s.start(&Machine::new("edge").disk(disk).disk(data_disk))?;
            let summary = vm.expect_refusal(case.why).with_context(|| case.name.to_owned())?;
            ensure!(summary.contains("what to do:"), "{}: {summary}", case.name);
            vm.cut_power()?;
            let after = fs::read(&data)?;
            ensure!(after.starts_with(&content), "{}: the data disk was changed", case.name);
            ensure!(after[content.len()..].iter().all(|byte| *byte == 0), "{}: the data disk was changed", case.name);
        }
        Ok(())
    });
}

#[test]
fn that_are_malformed() {
    let mut large = b"{\"ignition\":{\"version\":\"3.4.0\"},\"x\":\"".to_vec();
    large.resize(10 << 20, b'a');
    let whole = Config::new().file("/etc/greeting", 0o644, b"hello").to_bytes();
    are_refused(
        "bad-config-malformed",
        vec![
            bad("not JSON", "#cloud-config\nusers: []\n", "cloud-config"),
            bad("wrong version", r#"{"ignition":{"version":"9.9.9"}}"#, "9.9.9"),
            bad(
                "unknown value",
                r#"{"ignition":{"version":"3.4.0"},"storage":{"files":[{"path":"relative"}]}}"#,
                "relative",
            ),
            bad("10 MB, without an end", large, "refused"),
            bad("truncated", &whole[..whole.len() / 2], "refused"),
        ],
    );
}

#[test]
fn that_refer_to_what_cannot_be_had() -> Result<()> {
    let merge = |source: &str, rest: &str| {
        format!(r#"{{"ignition":{{"version":"3.4.0","config":{{"merge":[{{"source":"{source}"{rest}}}]}}}}}}"#)
    };
    // Nobody listens on port 1; the guest's network answers that at once.
    let timeouts = r#","timeouts":{"httpTotal":3}"#;
    let unreachable = merge("http://10.0.2.2:1/config.ign", "").replacen("}}}", &format!("}}{timeouts}}}}}"), 1);
    let hash = format!(r#","verification":{{"hash":"sha256-{}"}}"#, "0".repeat(64));
    let bomb = gzip_of_zeros(1 << 30)?;
    let bomb = merge(&qemu_tests::ignition::data_url(&bomb), r#","compression":"gzip""#);
    are_refused(
        "bad-config-unreachable",
        vec![
            bad("unreachable URL", unreachable, "10.0.2.2:1"),
            bad("hash mismatch", merge("data:,%7B%7D", &hash), "hash"),
            bad("gzip bomb", bomb, "refused"),
            bad(
                "kernel arguments",
                r#"{"ignition":{"version":"3.4.0"},"kernelArguments":{"shouldExist":["debug"]}}"#,
                "kernelArguments",
            ),
            bad(
                "a program that images have not",
                r#"{"ignition":{"version":"3.4.0"},"storage":{"raid":[
                    {"name":"data","level":"linear","devices":["/dev/vdb"]}]}}"#,
                "the program mdadm is not found, storage.raid needs it",
            ),
        ],
    );
    Ok(())
}

fn gzip_of_zeros(size: u64) -> Result<Vec<u8>> {
    let mut gzip = Command::new("gzip").arg("-9").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = gzip.stdin.take().context("gzip's input")?;
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        let block = vec![0; 1 << 20];
        (0..size >> 20).try_for_each(|_| input.write_all(&block))
    });
    let output = gzip.wait_with_output()?;
    writer.join().expect("writing does not panic")?;
    Ok(output.stdout)
}
