//! What a guest says about itself on the console, and assertions on it.
//!
//! `nodezero-firstboot` reports in lines of the form `nodezero: report key=value key="value with spaces" …` about the
//! machine and `nodezero: disk /dev/NAME key=value …` about each disk. When nothing is left to do it prints
//! `nodezero: ready`.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::console::Line;

/// What the line about the machine contains before its keys.
pub const REPORT: &str = "nodezero: report ";

/// What the line about a disk contains before the disk's name and its keys.
pub const DISK: &str = "nodezero: disk ";

/// What the last line of a good boot contains.
pub const READY: &str = "nodezero: ready";

/// What the summary of a failure begins with.
pub const SUMMARY: &str = "NodeZero cannot start";

/// What the summary of a failed step begins with.
pub const STOPPED: &str = "NodeZero cannot finish step";

/// What every line of ours contains; the first one proves that user space runs.
pub const OURS: &str = "nodezero: ";

/// Keys of report lines.
pub mod key {
    /// The role that the image is for.
    pub const ROLE: &str = "role";
    /// Where a configuration was found: `none`, `cmdline`, `fw_cfg`, `esp`, and further sources.
    pub const CONFIG: &str = "config";
    /// The root hash that the root file system was verified with, in hexadecimal.
    pub const ROOT_HASH: &str = "root-hash";
    /// How many times this machine has booted, this time included.
    pub const BOOT: &str = "boot";
    /// `created` or `kept`.
    pub const STATE: &str = "state";
    /// The machine's identifier, as in `/etc/machine-id`.
    pub const MACHINE_ID: &str = "machine-id";
    /// A disk's serial number; each disk has a line of its own.
    pub const SERIAL: &str = "serial";
    /// A disk's size in bytes.
    pub const SIZE: &str = "bytes";
}

/// All report lines of one boot, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    lines: Vec<BTreeMap<String, String>>,
}

impl Report {
    /// Finds the report lines among `lines`. A report line that is not of the documented form is an error.
    pub fn parse(lines: &[Line]) -> Result<Report> {
        let keys = |line: &'_ Line| {
            let machine = line.text.split_once(REPORT).map(|(_, keys)| keys.to_owned());
            let disk = line.text.split_once(DISK).and_then(|(_, rest)| rest.split_once(' '));
            machine.or_else(|| disk.map(|(_, keys)| keys.to_owned()))
        };
        let lines = lines.iter().filter_map(keys).map(|keys| parse_keys(&keys)).collect::<Result<_>>()?;
        Ok(Report { lines })
    }

    /// The value of `key` in the first line that has it.
    pub fn value(&self, key: &str) -> Result<&str> {
        let found = self.lines.iter().find_map(|line| line.get(key));
        found.map(String::as_str).with_context(|| format!("no {key}= in the report {:?}", self.lines))
    }

    /// Asserts that `key` has the value `expected`.
    pub fn expect_value(&self, key: &str, expected: &str) -> Result<()> {
        let value = self.value(key)?;
        ensure!(value == expected, "the report says {key}={value}, expected {expected}");
        Ok(())
    }

    /// The first line in which `key` has the value `value`.
    pub fn line(&self, key: &str, value: &str) -> Result<&BTreeMap<String, String>> {
        let found = self.lines.iter().find(|line| line.get(key).is_some_and(|found| found == value));
        found.with_context(|| format!("no line with {key}={value} in the report {:?}", self.lines))
    }

    /// The lines, for what has no assertion of its own.
    pub fn lines(&self) -> &[BTreeMap<String, String>] {
        &self.lines
    }
}

/// A TCP port of the host's loopback that nobody listens on now.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Asserts that nothing in the guest answers on any of its ports, given as forwarded: the host's port, the guest's.
///
/// QEMU's user network accepts on the host before it asks the guest, so a connection proves nothing. An answer does:
/// an SSH server speaks first, a web or TLS server answers a bad request. A port that is filtered is as silent as one
/// where nobody listens, which is what this asserts.
pub fn expect_silent(forwards: &[(u16, u16)]) -> Result<()> {
    thread::scope(|scope| {
        // All at once: each that is silent takes the whole time-out.
        let tries: Vec<_> = forwards.iter().map(|(host, guest)| (guest, scope.spawn(|| is_silent(*host)))).collect();
        tries.into_iter().try_for_each(|(guest, tried)| {
            tried.join().expect("reading a socket does not panic").with_context(|| format!("port {guest} of the guest"))
        })
    })
}

fn is_silent(host_port: u16) -> Result<()> {
    let timeout = Duration::from_secs(5);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, host_port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, timeout) else { return Ok(()) };
    stream.set_read_timeout(Some(timeout))?;
    let mut answer = [0; 64];
    // The connection may be cut while we speak; only what comes back counts.
    let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
    match stream.read(&mut answer) {
        Ok(0) => Ok(()),
        Ok(read) => bail!("it answers {:?}", String::from_utf8_lossy(&answer[..read])),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error).context("reading from it"),
        },
    }
}

fn parse_keys(text: &str) -> Result<BTreeMap<String, String>> {
    let mut keys = BTreeMap::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').with_context(|| format!("{rest:?} in a report line has no value"))?;
        ensure!(!key.is_empty() && !key.contains([' ', '"']), "{key:?} in a report line is no key");
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => {
                let (value, after) = quoted.split_once('"').with_context(|| format!("{key} in a report has no end"))?;
                ensure!(after.is_empty() || after.starts_with(' '), "{key} in a report line goes on after its end");
                (value, after)
            }
            None => after.split_once(' ').unwrap_or((after, "")),
        };
        ensure!(keys.insert(key.to_owned(), value.to_owned()).is_none(), "{key} is twice in a report line");
        rest = after.trim_start();
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Result<Report> {
        let at = Duration::ZERO;
        Report::parse(&lines.iter().map(|text| Line { at, text: (*text).to_owned() }).collect::<Vec<_>>())
    }

    #[test]
    fn values() {
        let report = report(&[
            "[  OK  ] Started nodezero: something else",
            "nodezero: report role=worker config=none boot=2",
            "<6>nodezero: disk /dev/vdb serial=NZ-1 model=\"QEMU HARDDISK\" bytes=18000000000000 ",
            "nodezero: disk /dev/vdc serial=NZ-2 model=\"\" bytes=1",
        ])
        .unwrap();
        assert_eq!(report.lines().len(), 3);
        assert_eq!(report.value("boot").unwrap(), "2");
        assert_eq!(report.value("serial").unwrap(), "NZ-1", "the first of two");
        assert_eq!(report.line("serial", "NZ-1").unwrap()["model"], "QEMU HARDDISK");
        assert_eq!(report.line("serial", "NZ-2").unwrap()["model"], "");
        report.expect_value("config", "none").unwrap();
        let error = report.expect_value("role", "edge").unwrap_err().to_string();
        assert!(error.contains("role=worker, expected edge"), "{error}");
        assert!(report.value("mesh").is_err() && report.line("serial", "NZ-3").is_err());
    }

    #[test]
    fn malformed_reports() {
        for line in ["role", "role=a role=b", "=a", "model=\"open", "a b=c", "x=\"a\" \"b=c", "x=\"a\"b=c"] {
            assert!(report(&[&format!("{REPORT}{line}")]).is_err(), "{line}");
        }
        assert_eq!(report(&["nodezero: ready"]).unwrap(), Report::default());
    }

    #[test]
    fn an_answer_is_told_from_silence() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = thread::spawn(move || {
            drop(listener.accept().unwrap());
            let (mut speaking, _) = listener.accept().unwrap();
            speaking.write_all(b"SSH-2.0-").unwrap();
            // Until the other side has read it and gone, or the greeting might be lost with a reset.
            let _ = speaking.read_to_end(&mut Vec::new());
        });
        expect_silent(&[(port, 22)]).unwrap();
        let error = format!("{:#}", expect_silent(&[(port, 22)]).unwrap_err());
        assert!(error.contains("port 22") && error.contains("SSH-2.0-"), "{error}");
        serving.join().unwrap();
        expect_silent(&[(port, 22)]).unwrap();
    }
}
