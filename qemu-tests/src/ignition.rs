//! Ignition configs for guests, and units in them by which a guest says on its console what a scenario asserts.

use serde_json::{Value, json};

/// What the lines of [`Config::probe`] begin with.
pub const PROBE: &str = "probe: ";

/// A config under construction.
#[derive(Debug, Clone)]
pub struct Config(Value);

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

impl Config {
    /// One that changes nothing.
    pub fn new() -> Config {
        Config(json!({ "ignition": { "version": "3.4.0" } }))
    }

    /// Adds a file.
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Config {
        self.add("/storage/files", json!({ "path": path, "mode": mode, "contents": { "source": data_url(content) } }))
    }

    /// Adds an object to the list at a JSON pointer, such as `/passwd/users`.
    pub fn add(mut self, list: &str, entry: Value) -> Config {
        let mut at = &mut self.0;
        for key in list.split('/').skip(1) {
            at = &mut at[key];
        }
        match at {
            Value::Array(entries) => entries.push(entry),
            empty => *empty = json!([entry]),
        }
        self
    }

    /// Adds `/etc/nodezero/node.json`, NodeZero's own part of a configuration.
    pub fn node(self, node: &Value) -> Config {
        self.file("/etc/nodezero/node.json", 0o600, node.to_string().as_bytes())
    }

    /// Adds a unit that runs, once the first-boot service is done or cannot go on, a shell's commands, whose output
    /// appears on the serial console: each line after [`PROBE`], the last one being `done`.
    pub fn probe(self, commands: &str) -> Config {
        self.probe_in("waiting|failed|maintenance|ready", commands)
    }

    /// Like [`Config::probe`], once the service is done, however often it could not go on before.
    pub fn probe_ready(self, commands: &str) -> Config {
        self.probe_in("ready", commands)
    }

    fn probe_in(self, phases: &str, commands: &str) -> Config {
        let settled =
            format!("until grep -qE '\"phase\": \"({phases})\"' /run/nodezero/status.json; do sleep 0.5; done");
        let script = format!(
            "{settled}\n({commands}) 2>&1 | sed 's/^/{PROBE}/' > /dev/ttyS0; echo '{PROBE}done' > /dev/ttyS0\n"
        );
        let unit = "[Unit]\nAfter=nodezero-firstboot.service\n\
             [Service]\nType=oneshot\nExecStart=/bin/sh /etc/probe.sh\n[Install]\nWantedBy=multi-user.target\n";
        self.file("/etc/probe.sh", 0o644, script.as_bytes())
            .add("/systemd/units", json!({ "name": "probe.service", "enabled": true, "contents": unit }))
    }

    /// The config as text.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.to_string().into_bytes()
    }
}

/// A `data:` URL of any bytes ([RFC 2397](https://www.rfc-editor.org/rfc/rfc2397)).
pub fn data_url(bytes: &[u8]) -> String {
    let escaped: String = bytes
        .iter()
        .map(|byte| match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b'_' | b'~' => char::from(*byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect();
    format!("data:,{escaped}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_grow_where_they_are() {
        let config =
            Config::new().file("/a", 0o644, b"x y").file("/b", 0o600, b"").add("/passwd/users", json!({"name": "u"}));
        let parsed: Value = serde_json::from_slice(&config.to_bytes()).unwrap();
        assert_eq!(parsed["storage"]["files"][0]["contents"]["source"], "data:,x%20y");
        assert_eq!(parsed["storage"]["files"][1]["path"], "/b");
        assert_eq!(parsed["passwd"]["users"][0]["name"], "u");
    }
}
