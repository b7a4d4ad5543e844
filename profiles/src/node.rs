//! NodeZero's part of a node's configuration: `/etc/nodezero/node.json`.
//!
//! ```json
//! {
//!   "version": 1,
//!   "name": "toronto-0002",
//!   "role": "worker",
//!   "dataDisks": [
//!     { "name": "bulk", "select": { "size": "18TB", "rotational": true }, "count": 2 }
//!   ],
//!   "time": { "servers": ["0.pool.ntp.org"], "wait": 90 }
//! }
//! ```
//!
//! An entry of `dataDisks` may have `"filesystem": "ext4"` (else it is XFS), and `"wipe": true` where it names one very
//! disk by its whole serial number or WWN. That consent is good for one time; `"wipeConsent": 2` gives it once more.
//!
//! Mesh, cluster, registration and firewall are in [`join`].

pub mod join;

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use self::join::{Cluster, Firewall, Mesh, RawCluster, RawFirewall, RawMesh, RawRegistration, Registration};
use crate::Role;
use crate::problem::{Findings, Problems};
use crate::selector::{Count, RawSelector, Selector};

/// The format's version.
const VERSION: u32 = 1;

/// The longest wait for time servers in seconds.
const WAIT_LIMIT: u16 = 3600;

/// The most entries of a list. A machine has 24 disks or so.
const LIST_LIMIT: usize = 64;

/// What a node is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "RawNode")]
pub struct Node {
    version: u32,
    /// Host name.
    pub name: NodeName,
    /// The role; the image must be built for it.
    pub role: Role,
    /// Data disks, chosen by selectors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data_disks: Vec<DataDisks>,
    /// Time synchronisation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// The mesh to join.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<Mesh>,
    /// The cluster to be part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
    /// Where an edge node registers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration: Option<Registration>,
    /// What is let in from outside the mesh; the role's default where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firewall: Option<Firewall>,
    /// Digest of the profile that this was rendered from: 64 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

/// Disks that are to carry data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DataDisks {
    /// What people call them; unique in the node. Nothing on a disk follows from it.
    pub name: String,
    /// Which disks.
    pub select: Selector,
    /// How many of them there must be.
    pub count: Count,
    /// The file system that they get.
    pub filesystem: FileSystem,
    /// Consent to lose what is on the one disk that this selects. Its number is good once for each disk.
    #[serde(flatten, serialize_with = "wipe_fields")]
    pub wipe: Option<u32>,
}

/// A file system of data disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "language", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    /// XFS.
    #[default]
    Xfs,
    /// ext4.
    Ext4,
}

impl FileSystem {
    /// The kernel's and libblkid's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Ext4 => "ext4",
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Time synchronisation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Time {
    /// Names or addresses of NTP servers; those of the image where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// How long a start waits for them, in seconds; 90 where nothing is said. The clock is set when they answer later,
    /// too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<u16>,
}

/// The name of a node: a DNS label (RFC 1123, section 2.1), in lower case as Kubernetes wants it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NodeName(String);

/// A text that is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name: use 1 to 63 of a-z, 0-9 and -, with a letter or digit at either end")]
pub struct NameError(String);

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if is_dns_label(text) { Ok(Self(text.to_owned())) } else { Err(NameError(text.chars().take(80).collect())) }
    }
}

impl Deref for NodeName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

pub(crate) fn is_dns_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| plain(byte) || byte == b'-')
        && [text.bytes().next(), text.bytes().last()].into_iter().flatten().all(plain)
}

impl Node {
    /// A node with nothing but its name and role.
    #[cfg(feature = "language")]
    pub(crate) fn bare(name: NodeName, role: Role) -> Self {
        Self {
            version: VERSION,
            name,
            role,
            data_disks: Vec::new(),
            time: None,
            mesh: None,
            cluster: None,
            registration: None,
            firewall: None,
            profile: None,
        }
    }

    /// Parses `node.json`.
    ///
    /// # Errors
    /// With line and column when it is not JSON of this form; else with everything that is wrong in it.
    pub fn parse(json: &[u8]) -> Result<Self, Problems> {
        serde_json::from_slice::<RawNode>(json)?.try_into()
    }
}

/// The document as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawNode {
    version: u32,
    name: String,
    role: Role,
    #[serde(default)]
    data_disks: Vec<RawDataDisks>,
    time: Option<RawTime>,
    mesh: Option<RawMesh>,
    cluster: Option<RawCluster>,
    registration: Option<RawRegistration>,
    firewall: Option<RawFirewall>,
    profile: Option<String>,
}

/// Disks that are to carry data.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "language", derive(schemars::JsonSchema), schemars(rename = "DataDisks"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RawDataDisks {
    /// What people call them; unique in the node.
    pub(crate) name: String,
    /// Which disks: every criterion must hold.
    pub(crate) select: RawSelector,
    /// How many disks there must be: 2, "1..4", ">= 1" or "<= 4".
    pub(crate) count: Count,
    /// The file system that they get; xfs where nothing is said.
    #[serde(default)]
    pub(crate) filesystem: FileSystem,
    /// Consent to lose what is on the one disk that is selected by its whole serial or wwn. It is good for one time.
    #[serde(default)]
    pub(crate) wipe: bool,
    /// The number of the consent, counted from 1: a higher one gives it once more.
    pub(crate) wipe_consent: Option<u32>,
}

/// Time synchronisation.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(feature = "language", derive(schemars::JsonSchema), schemars(rename = "Time"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RawTime {
    /// Names or addresses of NTP servers; those of the image where there are none.
    #[serde(default)]
    servers: Vec<String>,
    /// How long a start waits for them, in seconds; 90 where nothing is said.
    wait: Option<u16>,
}

fn wipe_fields<S: serde::Serializer>(wipe: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap;
    let mut map = serializer.serialize_map(None)?;
    if let Some(consent) = wipe {
        map.serialize_entry("wipe", &true)?;
        map.serialize_entry("wipeConsent", consent)?;
    }
    map.end()
}

impl TryFrom<RawNode> for Node {
    type Error = Problems;

    fn try_from(raw: RawNode) -> Result<Self, Problems> {
        let mut findings = Findings::default();
        if raw.version != VERSION {
            findings.add("version", format!("version is {}, expected {VERSION}", raw.version));
        }
        let name = findings.take("name", raw.name.parse());
        if raw.role == Role::Edge && !raw.data_disks.is_empty() {
            findings.add("dataDisks", "an edge node has no data disks");
        }
        let data_disks = data_disks(raw.data_disks, &mut findings);
        let time = raw.time.map(|time| time.validate(&mut findings));
        let mesh = raw.mesh.map(|mesh| mesh.validate(&mut findings));
        let cluster = raw.cluster.and_then(|cluster| cluster.validate(raw.role, &mut findings));
        let registration = raw.registration.and_then(|it| it.validate(raw.role, &mut findings));
        let firewall = raw.firewall.map(|firewall| firewall.validate(&mut findings));
        if (cluster.is_some() || registration.is_some()) && mesh.is_none() {
            findings.add("mesh", "a node of a cluster, or one that registers, is reached over the mesh");
        }
        if let Some(digest) = &raw.profile
            && !(digest.len() == 64 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
        {
            findings.add("profile", "not a SHA-256 digest of 64 hex digits");
        }
        let node = name.map(|name| Self {
            version: VERSION,
            name,
            role: raw.role,
            data_disks,
            time,
            mesh,
            cluster,
            registration,
            firewall,
            profile: raw.profile,
        });
        findings.settle(node)
    }
}

pub(crate) fn data_disks(raw: Vec<RawDataDisks>, findings: &mut Findings) -> Vec<DataDisks> {
    if raw.len() > LIST_LIMIT {
        findings.add("dataDisks", format!("{} entries, {LIST_LIMIT} at most", raw.len()));
    }
    let mut entries: Vec<DataDisks> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for (index, raw) in raw.into_iter().enumerate() {
        let path = format!("dataDisks[{index}]");
        if names.contains(&raw.name) {
            findings.add(format!("{path}.name"), format!("{:?} is the name of an entry before", raw.name));
        }
        names.push(raw.name.clone());
        entries.extend(raw.validate(&path, findings));
    }
    entries
}

impl RawDataDisks {
    fn validate(self, path: &str, findings: &mut Findings) -> Option<DataDisks> {
        if !is_dns_label(&self.name) {
            findings.add(format!("{path}.name"), NameError(self.name.chars().take(80).collect()));
        }
        let select = self.select.validate(&format!("{path}.select"), findings);
        let wipe = match (self.wipe, self.wipe_consent) {
            (true, Some(0)) => {
                findings.add(format!("{path}.wipeConsent"), "consents are counted from 1");
                None
            }
            (true, consent) => Some(consent.unwrap_or(1)),
            (false, Some(_)) => {
                findings.add(format!("{path}.wipeConsent"), "a consent without \"wipe\": true");
                None
            }
            (false, None) => None,
        };
        let select = select?;
        if self.wipe && !(select.is_one_very_disk() && self.count == Count::ONE) {
            let message = "only one very disk can be wiped: select it by its whole serial or wwn, with a count of 1";
            findings.add(format!("{path}.wipe"), message);
        }
        Some(DataDisks { name: self.name, select, count: self.count, filesystem: self.filesystem, wipe })
    }
}

impl RawTime {
    pub(crate) fn validate(self, findings: &mut Findings) -> Time {
        if self.servers.len() > LIST_LIMIT {
            findings.add("time.servers", format!("{} entries, {LIST_LIMIT} at most", self.servers.len()));
        }
        for (index, server) in self.servers.iter().enumerate() {
            // Letters of either case, and underscores, stand in names that work.
            let label = |label: &str| is_dns_label(&label.to_ascii_lowercase().replace('_', "x"));
            let is_name = server.len() <= 253 && server.split('.').all(label);
            if !is_name && server.parse::<IpAddr>().is_err() {
                findings.add(format!("time.servers[{index}]"), format!("{server:?} is neither a name nor an address"));
            }
        }
        if let Some(wait) = self.wait.filter(|wait| *wait > WAIT_LIMIT) {
            findings.add("time.wait", format!("{wait} s, {WAIT_LIMIT} s at most"));
        }
        Time { servers: self.servers, wait: self.wait }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A node with these entries of data disks.
    pub(crate) fn node(entries: &str) -> Node {
        let json = format!(r#"{{"version":1,"name":"toronto-0002","role":"worker","dataDisks":[{entries}]}}"#);
        Node::parse(json.as_bytes()).unwrap_or_else(|problems| panic!("{json}: {problems}"))
    }

    #[test]
    fn a_node_is_parsed_and_printed() {
        let json = r#"{"version":1,"name":"a","role":"worker","dataDisks":[
            {"name":"bulk","select":{"size":"18TB","rotational":true,"byPath":"pci-*"},"count":2},
            {"name":"one","select":{"serial":"Z1"},"count":"1..1","filesystem":"ext4","wipe":true,"wipeConsent":3},
            {"name":"two","select":{"wwn":"0x5"},"count":1,"wipe":true}],
            "time":{"servers":["0.pool.ntp.org","fd00::1"]}}"#;
        let node = Node::parse(json.as_bytes()).expect("valid");
        assert_eq!(&*node.name, "a");
        assert_eq!(node.data_disks[0].filesystem, FileSystem::Xfs);
        assert_eq!(node.data_disks.iter().map(|entry| entry.wipe).collect::<Vec<_>>(), [None, Some(3), Some(1)]);
        let printed = serde_json::to_string(&node).expect("JSON");
        assert_eq!(Node::parse(printed.as_bytes()), Ok(node), "{printed}");
        assert!(!printed.contains("null"), "{printed}");
        let least = Node::parse(br#"{"version":1,"name":"a","role":"edge"}"#).expect("valid");
        assert_eq!((least.data_disks.len(), least.time), (0, None));
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let json = r#"{"version":2,"name":"A b","role":"worker","dataDisks":[
            {"name":"","select":{"size":"18","transport":"pigeon"},"count":2},
            {"name":"x","select":{},"count":1},
            {"name":"x","select":{"serial":"Z*"},"count":1,"wipe":true},
            {"name":"y","select":{"serial":"Z"},"count":"1..2","wipe":true},
            {"name":"z","select":{"model":"Z"},"count":1,"wipeConsent":1},
            {"name":"w","select":{"wwn":"Z"},"count":1,"wipe":true,"wipeConsent":0}],
            "time":{"servers":["a b"]}}"#;
        let problems = Node::parse(json.as_bytes()).expect_err("invalid");
        let paths: Vec<&str> = problems.list().iter().map(|problem| problem.path.as_str()).collect();
        let expected = [
            "version",
            "name",
            "dataDisks[0].name",
            "dataDisks[0].select.size",
            "dataDisks[0].select.transport",
            "dataDisks[1].select",
            "dataDisks[2].name",
            "dataDisks[2].wipe",
            "dataDisks[3].wipe",
            "dataDisks[4].wipeConsent",
            "dataDisks[5].wipeConsent",
            "time.servers[0]",
        ];
        assert_eq!(paths, expected, "{problems}");
        assert!(
            problems.to_string().starts_with("version: version is 2, expected 1\nname: \"A b\" is not"),
            "{problems}"
        );
    }

    #[test]
    fn what_is_not_understood_is_told_with_its_place() {
        for (case, json, expected) in [
            ("not JSON", "version: 1", "expected value at line 1 column 1"),
            ("empty", "", "EOF while parsing a value at line 1 column 0"),
            ("cut", "{\"version\":1,\n\"name\":\"a", "EOF while parsing a string at line 2 column 9"),
            (
                "unknown",
                "{\"version\":1,\n \"maesh\":{}}",
                "unknown field `maesh`, expected one of `version`, `name`, `role`, `dataDisks`, `time`, ",
            ),
            (
                "unknown in an entry",
                r#"{"version":1,"name":"a","role":"worker","dataDisks":[{"disk":"sda"}]}"#,
                "unknown field `disk`",
            ),
            (
                "unknown criterion",
                r#"{"version":1,"name":"a","role":"worker","dataDisks":[{"name":"a","select":{"path":"/dev/sda"}}]}"#,
                "unknown field `path`",
            ),
            (
                "no count",
                r#"{"version":1,"name":"a","role":"worker","dataDisks":[{"name":"a","select":{"size":"1TB"}}]}"#,
                "missing field `count`",
            ),
            (
                "bad count",
                r#"{"version":1,"name":"a","role":"worker","dataDisks":[{"name":"a","select":{"size":"1TB"},"count":0}]}"#,
                "\"0\" is not a count",
            ),
            ("twice", r#"{"version":1,"version":1}"#, "duplicate field `version`"),
            ("trailing", r#"{"version":1,"name":"a","role":"edge"} x"#, "trailing characters at line 1 column 40"),
            ("role", r#"{"version":1,"name":"a","role":"Worker"}"#, "unknown variant `Worker`"),
        ] {
            let problems = Node::parse(json.as_bytes()).expect_err(case).to_string();
            assert!(problems.starts_with(expected), "{case}: {problems}");
        }
        let edge = Node::parse(
            br#"{"version":1,"name":"a","role":"edge","dataDisks":[{"name":"a","select":{"serial":"Z"},"count":1}]}"#,
        );
        assert_eq!(edge.expect_err("edge").to_string(), "dataDisks: an edge node has no data disks");
    }

    #[test]
    fn names_are_dns_labels() {
        for (name, valid) in [
            ("a", true),
            ("0", true),
            ("toronto-0002", true),
            (&*"x".repeat(63), true),
            (&*"x".repeat(64), false),
            ("", false),
            ("-a", false),
            ("a-", false),
            ("A", false),
            ("a.b", false),
            ("a_b", false),
            ("a\n", false),
        ] {
            assert_eq!(name.parse::<NodeName>().is_ok(), valid, "{name:?}");
        }
    }

    #[test]
    fn no_document_makes_the_parser_panic() {
        let json =
            serde_json::to_vec(&node(r#"{"name":"bulk","select":{"size":"18TB","serial":"Z"},"count":1,"wipe":true}"#))
                .expect("JSON");
        arbtest::arbtest(|u| {
            let mut bytes = json.clone();
            for _ in 0..u.int_in_range(1..=3)? {
                let at = u.choose_index(bytes.len())?;
                bytes[at] = u.arbitrary()?;
            }
            if let Ok(node) = Node::parse(&bytes) {
                assert_eq!(Node::parse(&serde_json::to_vec(&node).expect("JSON")), Ok(node));
            }
            let _ = Node::parse(u.arbitrary()?);
            Ok(())
        });
    }
}
