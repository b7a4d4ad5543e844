//! The root's own users and groups, read from its `/etc/passwd` and `/etc/group`.
//!
//! There is no name service in a static program, and the caller's would answer for the wrong system. Formats: passwd(5),
//! group(5), shadow(5), gshadow(5): lines of fields with colons between them, name and password first.
//!
//! Password hashes are put into their files here: every program that takes one takes it in its argument list, which
//! all processes can read.

use anyhow::{Context, bail, ensure};
use rustix::fs::{FlockOperation, fcntl_lock};

use super::tree::{Attributes, Owner, Tree, is_directory};
use crate::ignition::config::types::{NodeGroup, NodeUser};

/// How large an account file may be, in bytes.
const LIMIT: u64 = 16 << 20;

/// Where a user's hash lies: in the first of these that knows the user.
pub(super) const USER_HASHES: [&str; 2] = ["/etc/shadow", "/etc/passwd"];

/// Where a group's hash lies.
pub(super) const GROUP_HASHES: [&str; 2] = ["/etc/gshadow", "/etc/group"];

/// The files that the shadow suite locks.
const FILES: [&str; 6] = ["passwd", "shadow", "group", "gshadow", "subuid", "subgid"];

/// A user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    /// Number.
    pub(super) uid: u32,
    /// Number of the primary group.
    pub(super) gid: u32,
    /// Home directory, as it is called in the tree.
    pub(super) home: String,
}

/// Looks a user up by name.
///
/// # Errors
/// When `/etc/passwd` cannot be read.
pub(super) fn user(tree: &Tree, name: &str) -> anyhow::Result<Option<User>> {
    Ok(tree.read("/etc/passwd", LIMIT)?.and_then(|text| parse_user(&text, name)))
}

/// Looks a group's number up by name.
///
/// # Errors
/// When `/etc/group` cannot be read.
pub(super) fn group(tree: &Tree, name: &str) -> anyhow::Result<Option<u32>> {
    Ok(tree.read("/etc/group", LIMIT)?.and_then(|text| parse_group(&text, name)))
}

/// The number of the user whom an existing home belongs to, when it can only be the user of that home who is not listed
/// any more: a configuration that is applied anew finds `/etc` as the image has it, and homes as they were left. `None`
/// where there is no such home, where it is root's, or where the number is another user's by now.
///
/// # Errors
/// When `/etc/passwd` or the home cannot be read.
pub(super) fn former_owner(tree: &Tree, home: &str) -> anyhow::Result<Option<u32>> {
    let Some(node) = tree.stat(&tree.follow(home)?)?.filter(is_directory) else { return Ok(None) };
    let text = tree.read("/etc/passwd", LIMIT)?.unwrap_or_default();
    Ok(Some(node.st_uid).filter(|&uid| uid != 0 && !has_uid(&text, uid)))
}

/// The numbers of a node's owner. A number stands before a name; nothing said is nobody.
///
/// # Errors
/// When a name is unknown, or a number is none that the kernel has.
pub(super) fn owner(tree: &Tree, user: Option<&NodeUser>, group: Option<&NodeGroup>) -> anyhow::Result<Owner> {
    let mut owner = Owner::default();
    if let Some(node) = user {
        owner.uid = match (node.id, node.name.as_deref().filter(|name| !name.is_empty())) {
            (Some(id), _) => Some(number(id)?),
            (None, Some(name)) => {
                let found = self::user(tree, name)?.with_context(|| format!("there is no user {name:?}"))?;
                Some(found.uid)
            }
            (None, None) => None,
        };
    }
    if let Some(node) = group {
        owner.gid = match (node.id, node.name.as_deref().filter(|name| !name.is_empty())) {
            (Some(id), _) => Some(number(id)?),
            (None, Some(name)) => {
                Some(self::group(tree, name)?.with_context(|| format!("there is no group {name:?}"))?)
            }
            (None, None) => None,
        };
    }
    Ok(owner)
}

/// The password field of a name.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn hash(tree: &Tree, files: [&str; 2], name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    for path in files {
        let Some(text) = tree.read(path, LIMIT)? else { continue };
        if let Some(line) = lines(&text).find(|line| is_of(line, name)) {
            return Ok(fields(line).nth(1).map(<[u8]>::to_vec));
        }
    }
    Ok(None)
}

/// Sets the password field of a name, in the first of the files that has it. Nothing else of the line changes.
///
/// # Errors
/// When no file has the name, or the hash cannot stand in one, or one cannot be written; the hash is never shown.
pub(super) fn set_hash(tree: &Tree, files: [&str; 2], name: &str, hash: &str) -> anyhow::Result<()> {
    ensure!(!hash.contains([':', '\n', '\0']), "the password hash of {name} holds a colon, a line end or a NUL");
    for path in files {
        let Some(text) = tree.read(path, LIMIT)? else { continue };
        let Some(changed) = replace_hash(&text, name, hash) else { continue };
        let place = tree.follow(path)?;
        let node = tree.stat(&place)?.with_context(|| format!("{place} is gone"))?;
        let attributes =
            Attributes { owner: Owner::default().or(&node), ..Attributes::mode(super::tree::permissions(&node)) };
        return tree.write(&place, &changed, attributes);
    }
    bail!("neither {} nor {} knows {name:?}", files[0], files[1])
}

/// Removes the lock files of the shadow suite that a run which was cut off left, with what it was about to write.
///
/// A lock holds the number of a process, which after the next start may be another's, and then nobody would ever get the
/// lock. Whether one of these programs runs is known for certain by the lock that the kernel keeps on `/etc/.pwd.lock`.
///
/// # Errors
/// What the kernel answers.
pub(super) fn clear_locks(tree: &Tree) -> anyhow::Result<()> {
    let guard = tree.follow("/etc/.pwd.lock")?;
    if tree.stat(&guard)?.is_some() {
        let file = tree.open_for_locking(&guard)?;
        if fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(());
        }
    }
    let etc = tree.follow("/etc")?;
    for name in tree.names(&etc)? {
        let Some(name) = name.to_str() else { continue };
        let Some(file) = FILES.iter().find(|&&file| name.starts_with(file)) else { continue };
        let rest = &name[file.len()..];
        let place = tree.resolve(format!("/etc/{name}"))?;
        let left = match rest.strip_prefix('.') {
            // A lock before it has its name holds the number that it is named by.
            Some(number) if number.parse::<u32>().is_ok() => {
                tree.read(&format!("/etc/{name}"), 64)?.is_some_and(|text| text == format!("{number}\0").as_bytes())
            }
            Some(suffix) => suffix == "lock",
            None => rest == "+",
        };
        if left {
            tree.remove(&place)?;
        }
    }
    Ok(())
}

/// A user's or group's number.
///
/// # Errors
/// When it is negative, or too large, or the one that means none.
fn number(id: i64) -> anyhow::Result<u32> {
    let number = u32::try_from(id).ok().filter(|&number| number != u32::MAX);
    number.with_context(|| format!("{id} is no number of a user or group"))
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n')
}

fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&byte| byte == b':')
}

/// Whether an account's line is that of `name`.
fn is_of(line: &[u8], name: &str) -> bool {
    line.contains(&b':') && fields(line).next() == Some(name.as_bytes())
}

fn parse_user(text: &[u8], name: &str) -> Option<User> {
    lines(text).filter(|line| is_of(line, name)).find_map(|line| {
        let fields: Vec<&str> = std::str::from_utf8(line).ok()?.split(':').collect();
        let [_, _, uid, gid, _, home, _] = fields[..] else { return None };
        Some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: home.to_owned() })
    })
}

/// Whether a line is that of a user with this number.
fn has_uid(text: &[u8], uid: u32) -> bool {
    let third = |line| fields(line).nth(2).and_then(|field| std::str::from_utf8(field).ok());
    lines(text).any(|line| third(line).and_then(|field| field.parse().ok()) == Some(uid))
}

fn parse_group(text: &[u8], name: &str) -> Option<u32> {
    let mut found = lines(text).filter(|line| is_of(line, name));
    found.find_map(|line| std::str::from_utf8(fields(line).nth(2)?).ok()?.parse().ok())
}

/// The text with another password field for `name`, if it has the name.
fn replace_hash(text: &[u8], name: &str, hash: &str) -> Option<Vec<u8>> {
    lines(text).find(|line| is_of(line, name))?;
    let mut done = false;
    let replaced = lines(text).map(|line| {
        if done || !is_of(line, name) {
            return line.to_vec();
        }
        done = true;
        let mut fields: Vec<&[u8]> = fields(line).collect();
        fields[1] = hash.as_bytes();
        fields.join(&b':')
    });
    Some(replaced.collect::<Vec<_>>().join(&b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_looked_up_by_their_whole_name() {
        let text = b"root:x:0:0:root:/root:/bin/bash\nbad line\n+::::::\ncore:x:500:501:a b:/home/core:\n:x:7:7::/:\n";
        let core = User { uid: 500, gid: 501, home: "/home/core".into() };
        for (name, expected) in [("core", Some(core)), ("cor", None), ("bad line", None), ("+", None), ("Core", None)] {
            assert_eq!(parse_user(text, name), expected, "{name}");
        }
        let text = b"root:x:0:\nsudo:x:27:core\nbroken:x:\nlast:x:9:";
        for (name, expected) in [("sudo", Some(27)), ("broken", None), ("last", Some(9)), ("su", None), ("core", None)]
        {
            assert_eq!(parse_group(text, name), expected, "{name}");
        }
    }

    #[test]
    fn numbers_are_found_whoever_has_them() {
        let text = b"root:x:0:0:root:/root:/bin/bash\nbad\ncore:x:500:501:a b:/home/core:";
        for (uid, expected) in [(0, true), (500, true), (501, false), (50, false)] {
            assert_eq!(has_uid(text, uid), expected, "{uid}");
        }
    }

    #[test]
    fn a_hash_replaces_one_field_of_one_line() {
        let text = b"root:*:1:0:::::\ncore:!:2:0:99999:7:::\ncore2:!:3:\n";
        let changed = replace_hash(text, "core", "$y$x").expect("known");
        assert_eq!(changed, b"root:*:1:0:::::\ncore:$y$x:2:0:99999:7:::\ncore2:!:3:\n");
        assert_eq!(replace_hash(text, "cor", "$y$x"), None);
    }

    #[test]
    fn numbers_that_the_kernel_has_not_are_refused() {
        for (id, expected) in [(0, Some(0)), (4_294_967_294, Some(u32::MAX - 1)), (4_294_967_295, None), (-1, None)] {
            assert_eq!(number(id).ok(), expected, "{id}");
        }
    }
}
