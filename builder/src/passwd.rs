//! Users and groups of an image, from the fixed table in `images/users.toml`.
//!
//! Ids are fixed in data because files on a node's `state` partition outlive any image: an id that moved from one
//! build to the next would give them to someone else. A name that a package declares in sysusers.d(5) and that the
//! table lacks fails the build.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::recipe::Source;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    #[serde(default)]
    user: Vec<RawUser>,
    #[serde(default)]
    group: Vec<RawGroup>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUser {
    name: toml::Spanned<String>,
    uid: u32,
    gid: Option<u32>,
    group: Option<String>,
    home: String,
    shell: String,
    #[serde(default)]
    comment: String,
    #[expect(dead_code, reason = "required of every entry for its reader")]
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    name: toml::Spanned<String>,
    gid: u32,
    #[serde(default)]
    members: Vec<String>,
    #[expect(dead_code, reason = "required of every entry for its reader")]
    reason: String,
}

/// A user account; every one is locked.
#[derive(Clone, Debug)]
struct User {
    uid: u32,
    gid: u32,
    home: String,
    shell: String,
    comment: String,
}

/// All users and groups.
#[derive(Clone, Debug)]
pub struct Table {
    users: BTreeMap<String, User>,
    groups: BTreeMap<String, (u32, Vec<String>)>,
}

impl Table {
    /// Reads `images/users.toml`.
    ///
    /// # Errors
    /// When a name or id stands twice, or a group or member is unknown, with file, line and column.
    pub fn read(images: &Path) -> Result<Self> {
        let source = Source::read(&images.join("users.toml"))?;
        let raw: RawTable = source.parse()?;
        let mut groups = BTreeMap::new();
        let mut gids = BTreeSet::new();
        for group in raw.group {
            let span = group.name.span();
            let name = group.name.into_inner();
            if !gids.insert(group.gid) || groups.contains_key(&name) {
                bail!(source.error(&span, format!("group {name} or gid {} stands twice", group.gid)));
            }
            groups.insert(name, (group.gid, group.members));
        }
        let mut users = BTreeMap::new();
        let mut uids = BTreeSet::new();
        for user in raw.user {
            let span = user.name.span();
            let name = user.name.into_inner();
            if !uids.insert(user.uid) || users.contains_key(&name) {
                bail!(source.error(&span, format!("user {name} or uid {} stands twice", user.uid)));
            }
            let group = user.group.as_ref().map(|group| groups.get(group).map(|(gid, _)| *gid));
            let gid = match (group, user.gid) {
                (Some(Some(gid)), None) | (None, Some(gid)) => gid,
                (None, None) => groups.get(&name).map_or(user.uid, |(gid, _)| *gid),
                _ => bail!(source.error(&span, format!("user {name}: the group is unknown, or given twice"))),
            };
            let (home, shell, comment) = (user.home, user.shell, user.comment);
            users.insert(name, User { uid: user.uid, gid, home, shell, comment });
        }
        let table = Self { users, groups };
        for (group, (_, members)) in &table.groups {
            if let Some(unknown) = members.iter().find(|member| !table.users.contains_key(*member)) {
                bail!(source.error(&(0..0), format!("group {group} has member {unknown}, who is no user")));
            }
        }
        for (name, user) in &table.users {
            if !table.groups.values().any(|(gid, _)| *gid == user.gid) {
                bail!(source.error(&(0..0), format!("user {name} has gid {}, which no group has", user.gid)));
            }
        }
        Ok(table)
    }

    /// The id of a user.
    #[must_use]
    pub fn uid(&self, name: &str) -> Option<u32> {
        self.users.get(name).map(|user| user.uid)
    }

    /// The id of a group.
    #[must_use]
    pub fn gid(&self, name: &str) -> Option<u32> {
        self.groups.get(name).map(|(gid, _)| *gid)
    }

    /// Checks one sysusers.d(5) file: what it declares must be in the table, with the id that it fixes.
    ///
    /// # Errors
    /// Naming the file and the name.
    pub fn check_sysusers(&self, path: &str, text: &str) -> Result<()> {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [kind, name, ..] = words[..] else { continue };
            let fixed: Option<u32> = words.get(2).and_then(|id| id.split(':').next()).and_then(|id| id.parse().ok());
            let found = match kind.trim_end_matches(['!', '-']) {
                "u" => self.uid(name),
                "g" => self.gid(name),
                "m" => {
                    let Some(group) = words.get(2) else { continue };
                    let known =
                        self.groups.get(*group).is_some_and(|(_, members)| members.iter().any(|member| member == name));
                    if !known {
                        bail!("{path} puts {name} into group {group}: do so in images/users.toml");
                    }
                    continue;
                }
                _ => continue,
            };
            match (found, fixed) {
                (None, _) => bail!("{path} declares {name}: give it a fixed id in images/users.toml"),
                (Some(found), Some(fixed)) if found != fixed => {
                    bail!("{path} gives {name} id {fixed}, images/users.toml {found}")
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// `/etc/passwd`, ordered by id.
    #[must_use]
    pub fn passwd(&self) -> String {
        let mut users: Vec<_> = self.users.iter().collect();
        users.sort_by_key(|(_, user)| user.uid);
        users.iter().fold(String::new(), |mut text, (name, user)| {
            let _ = writeln!(text, "{name}:x:{}:{}:{}:{}:{}", user.uid, user.gid, user.comment, user.home, user.shell);
            text
        })
    }

    /// `/etc/group`, ordered by id.
    #[must_use]
    pub fn group(&self) -> String {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|(_, (gid, _))| *gid);
        groups.iter().fold(String::new(), |mut text, (name, (gid, members))| {
            let _ = writeln!(text, "{name}:x:{gid}:{}", members.join(","));
            text
        })
    }

    /// `/etc/shadow`: every account locked, with no password that could match.
    #[must_use]
    pub fn shadow(&self) -> String {
        let mut users: Vec<_> = self.users.iter().collect();
        users.sort_by_key(|(_, user)| user.uid);
        users.iter().fold(String::new(), |mut text, (name, _)| {
            let _ = writeln!(text, "{name}:!*:::::::");
            text
        })
    }

    /// `/etc/gshadow`, without passwords.
    #[must_use]
    pub fn gshadow(&self) -> String {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|(_, (gid, _))| *gid);
        groups.iter().fold(String::new(), |mut text, (name, (_, members))| {
            let _ = writeln!(text, "{name}:*::{}", members.join(","));
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<Table> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("users.toml"), text)?;
        Table::read(dir.path())
    }

    const ROOT: &str = "[[group]]\nname='root'\ngid=0\nreason='r'\n[[group]]\nname='kvm'\ngid=103\nreason='r'\n\
                        [[user]]\nname='root'\nuid=0\ngroup='root'\nhome='/root'\nshell='/usr/sbin/nologin'\nreason='r'\n";

    #[test]
    fn accounts_are_locked() {
        let table = table(ROOT).expect("valid");
        assert_eq!(table.passwd(), "root:x:0:0::/root:/usr/sbin/nologin\n");
        assert_eq!(table.shadow(), "root:!*:::::::\n");
        assert_eq!(table.group(), "root:x:0:\nkvm:x:103:\n");
    }

    #[test]
    fn sysusers_must_agree_with_the_table() {
        let table = table(ROOT).expect("valid");
        for (line, accepted) in [
            ("g kvm - -", true),
            ("g kvm 103 -", true),
            ("g kvm 104 -", false),
            ("u! tss - - -", false),
            ("# g tss", true),
            ("m root kvm", false),
        ] {
            assert_eq!(table.check_sysusers("x.conf", line).is_ok(), accepted, "{line}");
        }
    }

    #[test]
    fn contradictions_are_named_with_their_place() {
        let twice = format!("{ROOT}[[group]]\nname='other'\ngid=0\nreason='r'\n");
        let error = table(&twice).expect_err("gid 0 stands twice").to_string();
        assert!(error.contains("users.toml:17:6") && error.contains("gid 0"), "{error}");
    }
}
