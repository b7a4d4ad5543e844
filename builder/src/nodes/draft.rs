//! The profile that a new node begins with: `nodes/NAME.yaml`, with comments that say what may stand there. Pure.

use std::fmt::Write as _;

use nodezero_profile::node::NodeName;

use super::add::{Kind, registration_token};

/// Where the mesh's auth key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthKey {
    /// In a file.
    File(String),
    /// In an environment variable.
    Env(String),
}

/// The profile's text.
#[must_use]
pub fn profile(name: &NodeName, kind: Kind, key: Option<&AuthKey>) -> String {
    let mut text = format!(
        "# yaml-language-server: $schema=../.schema/node.json\n# The {} {name}. What is not said here is as cluster.yaml says.\nrole: {}\n",
        word(kind),
        word(kind)
    );
    text.push_str("\n# The key that enrols the machine in the mesh, once. Secrets are named here, never written.\n");
    text.push_str(&mesh(name, key));
    text.push_str(match kind {
        Kind::Worker => WORKER,
        Kind::Edge => EDGE,
    });
    if kind == Kind::Edge {
        // A write into a String cannot fail.
        let _ = write!(
            text,
            "\n# With what it registers: made by `nodezero node add`.\nregistration:\n  token: {{ secret: {} }}\n",
            registration_token(name)
        );
    }
    text
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Worker => "worker",
        Kind::Edge => "edge",
    }
}

fn mesh(name: &NodeName, key: Option<&AuthKey>) -> String {
    // Any text is a YAML text in this form, which is JSON's.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    match key {
        Some(AuthKey::File(path)) => format!("mesh:\n  authKey: {{ file: {} }}\n", quoted(path)),
        Some(AuthKey::Env(name)) => format!("mesh:\n  authKey: {{ env: {} }}\n", quoted(name)),
        None => {
            format!(
                "# Without one of its own it is the cluster's.\n#mesh:\n#  authKey: {{ secret: auth-key-{name} }}     # or {{ file: PATH }}, or {{ env: NAME }}\n"
            )
        }
    }
}

const WORKER: &str = "
# The disks that carry data: all that match, and just as many. `nodezero profile plan` shows beforehand what becomes
# of each disk of a machine.
#dataDisks:
#  - name: bulk
#    select: { size: 18TB, rotational: true }
#    count: 2

# Labels and taints of the Kubernetes Node.
#labels: { site: home }
#taints: [ \"dedicated=storage:NoSchedule\" ]
";

const EDGE: &str = "
# What it lets in from outside the mesh.
firewall:
  tcp: [80, 443]
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_names_secrets_and_holds_none() {
        let name = "vps-1".parse().expect("a name");
        let edge = profile(&name, Kind::Edge, Some(&AuthKey::Env("TS \"KEY".into())));
        for expected in ["role: edge\n", "authKey: { env: \"TS \\\"KEY\" }", "token: { secret: registration-vps-1 }"] {
            assert!(edge.contains(expected), "{expected}\n{edge}");
        }
        let worker = profile(&name, Kind::Worker, None);
        assert!(worker.contains("\n#mesh:\n") && worker.contains("#dataDisks:"), "{worker}");
        assert!(!worker.contains("registration"), "{worker}");
    }
}
