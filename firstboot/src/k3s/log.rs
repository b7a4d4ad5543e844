//! What K3s' log says about why a node does not join. Pure.
//!
//! K3s has no other way to tell, so its words are looked for: short parts of them that have stood for years
//! (`pkg/agent/config` and `pkg/clientaccess` of its source). A line that is not known is shown as it is.

use std::collections::BTreeSet;
use std::time::Duration;

/// A line of a unit's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// How old it is.
    pub(crate) age: Duration,
    /// What it says.
    pub(crate) text: String,
}

/// A reason that K3s told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The token's hash is of another authority than the server's.
    AuthorityDiffers,
    /// The token has not the form of one.
    TokenMalformed,
    /// The server does not know the token.
    TokenRefused,
    /// The data store was made with another token.
    DataStoreToken,
    /// Another machine had this node's name.
    NodePassword,
    /// A server's certificate is not good now, or not of its authority.
    Certificate,
    /// The mesh's interface is not there.
    Interface,
    /// An option is not known.
    Option,
    /// The server is reached, and not ready.
    ServerStarts,
    /// The server is not reached.
    Unreachable,
}

impl Told {
    /// Whether only a person, or a time server, can change it: then waiting on is of no use.
    pub(crate) fn is_definite(self) -> bool {
        match self {
            Self::AuthorityDiffers
            | Self::TokenMalformed
            | Self::TokenRefused
            | Self::DataStoreToken
            | Self::NodePassword
            | Self::Certificate
            | Self::Option => true,
            Self::Interface | Self::ServerStarts | Self::Unreachable => false,
        }
    }
}

/// Parts of lines, in lower case. The first that is found in a line counts.
const WORDS: [(&str, Told); 22] = [
    ("token ca hash does not match", Told::AuthorityDiffers),
    ("invalid token ca hash length", Told::TokenMalformed),
    ("invalid token format", Told::TokenMalformed),
    ("token must not be empty", Told::TokenMalformed),
    ("encrypted with different token", Told::DataStoreToken),
    ("node password rejected", Told::NodePassword),
    ("unable to verify password for node", Told::NodePassword),
    ("401 unauthorized", Told::TokenRefused),
    ("token is not valid", Told::TokenRefused),
    ("flag provided but not defined", Told::Option),
    // Of a component. One of config.yaml that K3s does not know it skips: see `skipped`.
    ("unknown flag: ", Told::Option),
    ("unable to find interface", Told::Interface),
    ("failed to find the interface", Told::Interface),
    ("ca cert validation failed", Told::Certificate),
    ("certificate has expired or is not yet valid", Told::Certificate),
    ("certificate signed by unknown authority", Told::Certificate),
    ("503 service unavailable", Told::ServerStarts),
    ("connection refused", Told::Unreachable),
    ("no route to host", Told::Unreachable),
    ("i/o timeout", Told::Unreachable),
    ("context deadline exceeded", Told::Unreachable),
    ("client.timeout exceeded", Told::Unreachable),
];

/// The newest reason among the lines of the last `within`, with its line.
pub(crate) fn reason(lines: &[Line], within: Duration) -> Option<(Told, &str)> {
    lines.iter().rev().take_while(|line| line.age <= within).find_map(|line| Some((told(&line.text)?, &*line.text)))
}

fn told(text: &str) -> Option<Told> {
    let text = text.to_ascii_lowercase();
    WORDS.iter().find(|(part, _)| text.contains(part)).map(|(_, told)| *told)
}

/// The settings of `config.yaml` that K3s said it skips, for it does not know them.
pub(crate) fn skipped(lines: &[Line]) -> BTreeSet<String> {
    let name = |line: &Line| {
        let (_, rest) = line.text.split_once("Unknown flag ")?;
        let (name, rest) = rest.split_once(' ')?;
        let name = name.trim_start_matches('-');
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        (is_name && rest.starts_with("found in ") && rest.contains("skipping")).then(|| name.to_owned())
    };
    lines.iter().filter_map(name).collect()
}

/// The last lines as a block, bounded, without `secrets`.
pub(crate) fn tail(lines: &[Line], secrets: &[String]) -> String {
    const LINES: usize = 8;
    const WIDTH: usize = 400;
    let last = &lines[lines.len().saturating_sub(LINES)..];
    if last.is_empty() {
        return "its log is empty".to_owned();
    }
    let shown = last.iter().map(|line| redact(&line.text, secrets).chars().take(WIDTH).collect::<String>());
    format!("its last lines:\n{}", shown.collect::<Vec<_>>().join("\n"))
}

/// A text without `secrets`.
pub(crate) fn redact(text: &str, secrets: &[String]) -> String {
    let secrets = secrets.iter().filter(|secret| !secret.is_empty());
    secrets.fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "(secret)"))
}

/// Parses what `journalctl --output=short-unix` prints: seconds since 1970, host, program, text.
pub(crate) fn parse(output: &str, now: Duration) -> Vec<Line> {
    let line = |line: &str| {
        let (time, rest) = line.split_once(' ')?;
        let at = Duration::try_from_secs_f64(time.parse().ok()?).ok()?;
        let (_, text) = rest.split_once(": ")?;
        Some(Line { age: now.saturating_sub(at), text: text.trim().to_owned() })
    };
    output.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(age: u64, text: &str) -> Line {
        Line { age: Duration::from_secs(age), text: text.to_owned() }
    }

    #[test]
    fn reasons_are_found_in_real_lines() {
        for (text, expected) in [
            (
                r#"level=error msg="token CA hash does not match the Cluster CA certificate hash: f08 != 8e7""#,
                Some(Told::AuthorityDiffers),
            ),
            (
                r#"level=info msg="Waiting to retrieve agent configuration; server is not ready: Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match""#,
                Some(Told::NodePassword),
            ),
            (
                r#"level=info msg="Waiting to retrieve agent configuration; server is not ready: failed to retrieve configuration from server: https://127.0.0.1:6444/v1-k3s/config: 401 Unauthorized""#,
                Some(Told::TokenRefused),
            ),
            (
                r#"level=error msg="token is not valid: https://192.0.2.1:6443/apis: 401 Unauthorized""#,
                Some(Told::TokenRefused),
            ),
            (
                r#"level=error msg="failed to get CA certs: Get \"https://127.0.0.1:6444/cacerts\": dial tcp: connect: connection refused""#,
                Some(Told::Unreachable),
            ),
            (
                r#"level=fatal msg="starting kubernetes: preparing server: bootstrap data already found and encrypted with different token""#,
                Some(Told::DataStoreToken),
            ),
            (
                r#"level=info msg="server is not ready: https://a/v1-k3s/readyz: 503 Service Unavailable""#,
                Some(Told::ServerStarts),
            ),
            (r#"level=fatal msg="flag provided but not defined: -flanel""#, Some(Told::Option)),
            (
                r#"level=fatal msg="kubelet exited: failed to parse kubelet flag: unknown flag: --flanel""#,
                Some(Told::Option),
            ),
            (r#"level=warning msg="Unknown flag --flanel found in config.yaml, skipping\n""#, None),
            (r#"level=info msg="Running kubelet""#, None),
            ("", None),
        ] {
            assert_eq!(told(text), expected, "{text}");
        }
    }

    #[test]
    fn what_k3s_skips_is_found() {
        let lines = [
            line(9, r#"time="x" level=warning msg="Unknown flag --no-such found in config.yaml, skipping\n""#),
            line(9, r#"level=warning msg="Unknown flag --a found in config.yaml, skipping""#),
            line(8, r#"level=warning msg="Unknown flag --a found in config.yaml, skipping""#),
            line(8, r#"level=fatal msg="unknown flag: --b""#),
            line(8, "Unknown flag -- found in config.yaml, skipping"),
            line(8, "Unknown flag"),
        ];
        assert_eq!(skipped(&lines).into_iter().collect::<Vec<_>>(), ["a", "no-such"]);
    }

    #[test]
    fn the_newest_reason_counts_and_old_ones_do_not() {
        let lines = [
            line(90, "Node password rejected"),
            line(40, "token is not valid"),
            line(20, "connection refused"),
            line(1, "something else"),
        ];
        let within = Duration::from_secs(60);
        assert_eq!(reason(&lines, within).map(|(told, _)| told), Some(Told::Unreachable));
        assert_eq!(reason(&lines[..2], within).map(|(told, _)| told), Some(Told::TokenRefused));
        assert_eq!(reason(&lines[..1], within), None);
        assert_eq!(reason(&[], within), None);
    }

    #[test]
    fn the_journal_is_parsed_and_its_tail_has_no_secret() {
        let output = "1700000000.123456 node k3s[77]: time=\"x\" msg=\"token s3cret is: bad\"\n-- Boot --\n\
                      1700000005.000001 node systemd[1]: k3s.service: Main process exited\n";
        let lines = parse(output, Duration::from_secs(1_700_000_010));
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1], line(4, "k3s.service: Main process exited").aged(lines[1].age));
        assert_eq!((lines[0].age.as_secs(), lines[1].age.as_secs()), (9, 4));
        let shown = tail(&lines, &["s3cret".to_owned(), String::new(), "Main".to_owned()]);
        assert!(shown.contains("token (secret) is: bad") && !shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("k3s.service: (secret) process"), "{shown}");
        assert_eq!(tail(&[], &["x".to_owned()]), "its log is empty");
        let many: Vec<Line> = (0..50).map(|_| line(1, &"y".repeat(9000))).collect();
        assert!(tail(&many, &[]).len() < 4000);
    }

    impl Line {
        fn aged(self, age: Duration) -> Self {
            Self { age, ..self }
        }
    }
}
