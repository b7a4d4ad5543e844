//! A small blocking client of the QEMU Machine Protocol.
//!
//! Specification: <https://www.qemu.org/docs/master/interop/qmp-spec.html>, commands in
//! <https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html>. Events are kept by name; out-of-band execution is left
//! out.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

/// How long QEMU may take for one answer. Snapshots write the guest's memory within one command.
const ANSWER: Duration = Duration::from_secs(120);

/// A connection to one QEMU process.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    events: Vec<String>,
}

impl Qmp {
    /// Reads QEMU's greeting from `stream` and leaves capabilities negotiation.
    pub fn handshake(stream: UnixStream) -> Result<Qmp> {
        stream.set_read_timeout(Some(ANSWER))?;
        let writer = stream.try_clone().context("cloning the QMP socket")?;
        let mut qmp = Qmp { reader: BufReader::new(stream), writer, events: Vec::new() };
        match qmp.message()? {
            Message::Greeting => {}
            other => bail!("QMP began with {other:?}, not with a greeting"),
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and answers with what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = serde_json::to_vec(&json!({ "arguments": arguments, "execute": command }))?;
        line.push(b'\n');
        self.writer.write_all(&line).with_context(|| format!("sending {command} to QEMU"))?;
        loop {
            match self.message().with_context(|| format!("waiting for the answer to {command}"))? {
                Message::Return(value) => return Ok(value),
                Message::Error(text) => bail!("QEMU refused {command}: {text}"),
                Message::Event(name) => self.events.push(name),
                Message::Greeting => bail!("a second greeting from QEMU"),
            }
        }
    }

    /// Presses the power button: the guest is asked to shut down.
    pub fn powerdown(&mut self) -> Result<()> {
        self.execute("system_powerdown", json!({})).map(drop)
    }

    /// Presses the reset button.
    pub fn reset(&mut self) -> Result<()> {
        self.execute("system_reset", json!({})).map(drop)
    }

    /// Ends QEMU, as pulling the plug would, but with QEMU's own caches written.
    pub fn quit(&mut self) -> Result<()> {
        self.execute("quit", json!({})).map(drop)
    }

    /// Halts all processors.
    pub fn stop(&mut self) -> Result<()> {
        self.execute("stop", json!({})).map(drop)
    }

    /// Lets the processors run again.
    pub fn cont(&mut self) -> Result<()> {
        self.execute("cont", json!({})).map(drop)
    }

    /// Saves the machine's state with its disks, as the snapshot `name`. All disks that can be written must
    /// be qcow2 ones, and none an NVMe one, which QEMU cannot save.
    pub fn save(&mut self, name: &str) -> Result<()> {
        self.monitor(&format!("savevm {name}"))
    }

    /// Returns to the snapshot `name`.
    pub fn restore(&mut self, name: &str) -> Result<()> {
        self.monitor(&format!("loadvm {name}"))
    }

    /// Unplugs the device `id`. The guest takes part in it, so the device goes some time after this returns.
    pub fn unplug(&mut self, id: &str) -> Result<()> {
        self.execute("device_del", json!({ "id": id })).map(drop)
    }

    /// Pulls the cable of the card `id` out, or plugs it in.
    pub fn plug(&mut self, id: &str, plugged: bool) -> Result<()> {
        self.execute("set_link", json!({ "name": id, "up": plugged })).map(drop)
    }

    /// The run state: `running`, `paused`, `shutdown`, and others.
    pub fn status(&mut self) -> Result<String> {
        let answer = self.execute("query-status", json!({}))?;
        Ok(answer["status"].as_str().context("no status in QEMU's answer")?.to_owned())
    }

    /// The names of the events that came in between answers so far.
    pub fn events(&self) -> &[String] {
        &self.events
    }

    /// Runs a command of the human monitor, which answers with text: none for these commands if all went well.
    fn monitor(&mut self, line: &str) -> Result<()> {
        let answer = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        match answer.as_str().map(str::trim) {
            Some("") => Ok(()),
            Some(text) => bail!("QEMU refused {line}: {text}"),
            None => bail!("QEMU answered {line} with {answer}"),
        }
    }

    fn message(&mut self) -> Result<Message> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).context("reading from QEMU")? == 0 {
            bail!("QEMU closed the connection")
        }
        Message::parse(&line)
    }
}

#[derive(Debug, PartialEq)]
enum Message {
    Greeting,
    Return(Value),
    Error(String),
    Event(String),
}

impl Message {
    fn parse(line: &str) -> Result<Message> {
        /// Every kind of message has exactly one of these. Other members are allowed by the specification.
        #[derive(Deserialize)]
        struct Raw {
            #[serde(rename = "QMP")]
            greeting: Option<Value>,
            #[serde(default, rename = "return", deserialize_with = "present")]
            answer: Option<Value>,
            error: Option<RawError>,
            event: Option<String>,
        }
        #[derive(Deserialize)]
        struct RawError {
            class: String,
            desc: String,
        }
        /// Keeps `null` apart from nothing.
        fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
            Value::deserialize(value).map(Some)
        }
        let raw: Raw =
            serde_json::from_str(line).with_context(|| format!("parsing {:?} from QEMU", line.trim_end()))?;
        match raw {
            Raw { answer: Some(value), greeting: None, error: None, event: None } => Ok(Message::Return(value)),
            Raw { answer: None, greeting: Some(_), error: None, event: None } => Ok(Message::Greeting),
            Raw { answer: None, greeting: None, error: Some(RawError { class, desc }), event: None } => {
                Ok(Message::Error(format!("{desc} ({class})")))
            }
            Raw { answer: None, greeting: None, error: None, event: Some(name) } => Ok(Message::Event(name)),
            _ => bail!("{:?} from QEMU is of no known kind", line.trim_end()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn messages() {
        let cases = [
            (r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#, Some(Message::Greeting)),
            (r#"{"return": {}}"#, Some(Message::Return(json!({})))),
            (r#"{"return": null, "id": 3}"#, Some(Message::Return(Value::Null))),
            (
                r#"{"error": {"class": "GenericError", "desc": "no such device"}}"#,
                Some(Message::Error("no such device (GenericError)".into())),
            ),
            (
                r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true}}"#,
                Some(Message::Event("SHUTDOWN".into())),
            ),
            (r#"{"return": {}, "event": "RESUME"}"#, None),
            (r#"{}"#, None),
            (r#"{"error": {"desc": "no class"}}"#, None),
            ("not JSON", None),
            ("", None),
        ];
        for (line, expected) in cases {
            assert_eq!(Message::parse(line).ok(), expected, "{line}");
        }
    }

    /// Answers a client that does `steps` with the given lines, one for each line received, the greeting first.
    fn served<T>(lines: &'static [&'static str], steps: impl FnOnce(UnixStream) -> T) -> (T, Vec<String>) {
        let (client, server) = UnixStream::pair().unwrap();
        let serving = thread::spawn(move || {
            let mut reader = BufReader::new(server.try_clone().unwrap());
            let mut received = Vec::new();
            for (number, line) in lines.iter().enumerate() {
                if number > 0 {
                    let mut request = String::new();
                    if reader.read_line(&mut request).unwrap() == 0 {
                        break;
                    }
                    received.push(request.trim_end().to_owned());
                }
                (&server).write_all(line.as_bytes()).unwrap();
            }
            received
        });
        let result = steps(client);
        (result, serving.join().unwrap())
    }

    #[test]
    fn a_conversation() {
        let lines = &[
            "{\"QMP\": {}}\n",
            "{\"return\": {}}\n",
            "{\"event\": \"STOP\"}\n{\"return\": {}}\n",
            "{\"return\": {\"status\": \"paused\", \"running\": false}}\n",
            "{\"return\": \"Error: no block device can store vmstate\\r\\n\"}\n",
        ];
        let (result, received) = served(lines, |stream| {
            let mut qmp = Qmp::handshake(stream)?;
            qmp.stop()?;
            assert_eq!(qmp.status()?, "paused");
            assert_eq!(qmp.events(), ["STOP"]);
            qmp.save("ready")
        });
        let error = result.unwrap_err().to_string();
        assert!(error.contains("savevm ready: Error: no block device"), "{error}");
        assert_eq!(
            received,
            [
                r#"{"arguments":{},"execute":"qmp_capabilities"}"#,
                r#"{"arguments":{},"execute":"stop"}"#,
                r#"{"arguments":{},"execute":"query-status"}"#,
                r#"{"arguments":{"command-line":"savevm ready"},"execute":"human-monitor-command"}"#,
            ]
        );
    }

    #[test]
    fn broken_conversations() {
        let cases: [(&'static [&'static str], &str); 3] = [
            (&["{\"return\": {}}\n"], "not with a greeting"),
            (&[""], "closed the connection"),
            (&["{\"QMP\": {}}\n", "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}}\n"], "refused"),
        ];
        for (lines, expected) in cases {
            let (result, _) = served(lines, Qmp::handshake);
            let error = format!("{:#}", result.unwrap_err());
            assert!(error.contains(expected), "{lines:?}: {error}");
        }
    }
}
