//! Users and groups that a later image brings, for a node whose `/etc` has older lists of its own.
//!
//! `/etc` is an overlay: once anything adds a user on the node, its `passwd` hides the image's for ever. So what the
//! image's lists have and the node's lack is added, by name, at the end. What stands there is never changed: neither
//! ids, nor members, nor a line that is no account ([passwd(5)], [group(5)], [shadow(5)], [gshadow(5)]). An account
//! that the configuration deleted comes back; there is no telling it from one that is new.
//!
//! An id that the node gave to another name is an error: files of one would be the other's. Left out: `subuid`, `subgid`,
//! and locking, as nothing else edits these files while the node starts.
//!
//! [passwd(5)]: https://man7.org/linux/man-pages/man5/passwd.5.html
//! [group(5)]: https://man7.org/linux/man-pages/man5/group.5.html
//! [shadow(5)]: https://man7.org/linux/man-pages/man5/shadow.5.html
//! [gshadow(5)]: https://manpages.debian.org/gshadow.5

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use anyhow::Context;

/// The lists in the order in which they are completed, and whether a line's third field is an id. A group is there
/// before its first user, an account before its password.
const LISTS: [(&str, bool); 4] = [("group", true), ("gshadow", false), ("passwd", true), ("shadow", false)];

/// What the image's lists have and the node's lack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    /// For each list that lacks something: its name, and the lines.
    lists: Vec<(&'static str, Vec<String>)>,
    /// Accounts whose ids differ, one line each.
    pub(crate) differing: Vec<String>,
}

impl Missing {
    /// Compares the lists in two directories: the image's `/etc`, and the node's.
    ///
    /// # Errors
    /// When a list cannot be read, or an id is taken.
    pub(crate) fn find(image: &Path, node: &Path) -> anyhow::Result<Self> {
        let mut missing = Self::default();
        for (list, has_ids) in LISTS {
            let theirs = read(&image.join(list))?;
            let ours = read(&node.join(list))?;
            let (lines, mut differing) =
                compare(&theirs, &ours, has_ids).with_context(|| format!("comparing /etc/{list} with the image's"))?;
            missing.differing.append(&mut differing);
            if !lines.is_empty() {
                missing.lists.push((list, lines));
            }
        }
        Ok(missing)
    }

    /// Whether nothing is missing.
    pub(crate) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// The names that are missing, each once, sorted.
    pub(crate) fn names(&self) -> Vec<&str> {
        let lines = self.lists.iter().flat_map(|(_, lines)| lines);
        let mut names: Vec<&str> = lines.filter_map(|line| line.split(':').next()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Adds what is missing to the lists in `node`, each atomically. One that is not there gets mode and owner of the
    /// image's.
    ///
    /// # Errors
    /// What the file system answers.
    pub(crate) fn add(&self, image: &Path, node: &Path) -> anyhow::Result<()> {
        for (list, lines) in &self.lists {
            let path = node.join(list);
            let like = if path.exists() { path.clone() } else { image.join(list) };
            let mut content = read(&path)?;
            if !content.is_empty() && !content.ends_with(b"\n") {
                content.push(b'\n');
            }
            lines.iter().for_each(|line| content.extend([line.as_bytes(), b"\n"].concat()));
            replace(&path, &content, &like).with_context(|| format!("adding to {}", path.display()))?;
        }
        Ok(())
    }
}

/// A list's content; nothing where it is not there.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.with_context(|| format!("reading {}", path.display())),
    }
}

/// The lines of `image` whose names `node` lacks, and what differs. Pure.
fn compare(image: &[u8], node: &[u8], has_ids: bool) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let ours = accounts(node, has_ids);
    let by_id: BTreeMap<&str, &str> = ours.iter().filter_map(|(name, (id, _))| Some(((*id)?, *name))).collect();
    let (mut missing, mut differing) = (Vec::new(), Vec::new());
    for (name, (id, line)) in accounts(image, has_ids) {
        let Some(id) = id else {
            if !ours.contains_key(name) {
                missing.push(line.to_owned());
            }
            continue;
        };
        match (ours.get(name).and_then(|(id, _)| *id), by_id.get(id)) {
            (Some(ours), _) if ours == id => {}
            (Some(ours), _) => differing.push(format!("{name} has id {ours} on this node, {id} in the image")),
            (None, Some(taken)) => anyhow::bail!("the image's {name} has id {id}, which {taken} has on this node"),
            (None, None) if ours.contains_key(name) => {}
            (None, None) => missing.push(line.to_owned()),
        }
    }
    Ok((missing, differing))
}

/// The accounts of a list by name, each with its id, where the list has any, and its line. Comments, empty lines, and
/// lines that are no text are none; the first of a name counts, as for the C library.
fn accounts(list: &[u8], has_ids: bool) -> BTreeMap<&str, (Option<&str>, &str)> {
    let mut accounts = BTreeMap::new();
    for line in list.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()) {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        let id = fields.nth(1).filter(|_| has_ids);
        // NIS entries begin with a sign.
        let is_account = line.contains(':') && !name.is_empty() && !name.starts_with(['#', '+', '-']);
        if is_account && (!has_ids || id.is_some()) {
            accounts.entry(name).or_insert((id, line));
        }
    }
    accounts
}

/// Replaces a file atomically and durably by one with the mode and owner of `like`.
fn replace(path: &Path, content: &[u8], like: &Path) -> anyhow::Result<()> {
    let directory = path.parent().context("a path without a directory")?;
    let new = path.with_extension("nodezero-new");
    let metadata = fs::metadata(like).with_context(|| format!("reading {}", like.display()))?;
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        fchown(&file, Some(metadata.uid()), Some(metadata.gid()))?;
        file.set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "root:x:0:0:root:/root:/bin/sh\nnew:x:108:108::/:/usr/sbin/nologin\n";

    #[test]
    fn what_is_missing_is_found_by_name() {
        let new = vec!["new:x:108:108::/:/usr/sbin/nologin".to_owned()];
        let root = "root:x:0:0:root:/root:/bin/sh\n";
        for (case, node, missing, differing) in [
            ("nothing is missing", IMAGE.to_owned(), vec![], 0),
            ("one is", root.to_owned(), new.clone(), 0),
            ("another user beside", format!("{root}core:x:1000:1000::/home/core:/bin/sh\n"), new.clone(), 0),
            ("no line end", root.trim_end().to_owned(), new.clone(), 0),
            ("root was changed", "root:x:0:0:me:/root:/bin/bash\n".to_owned(), new.clone(), 0),
            ("another id", format!("{root}new:x:1001:1::/:/bin/sh\n"), vec![], 1),
            ("a comment", format!("{root}#new:x:108:108::/:/x\n"), new.clone(), 0),
            ("a NIS line", format!("{root}+new:x:108:108::/:/x\n+::::::\n"), new.clone(), 0),
            ("a longer name", format!("{root}newer:x:109:108::/:/x\n"), new, 0),
        ] {
            let (found, other) = compare(IMAGE.as_bytes(), node.as_bytes(), true).expect(case);
            assert_eq!((found, other.len()), (missing, differing), "{case}");
        }
        let (all, _) = compare(IMAGE.as_bytes(), b"", true).expect("empty");
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn an_id_that_is_taken_is_an_error() {
        let node = "root:x:0:0::/:/x\nmine:x:108:100::/:/x\n";
        let error = compare(IMAGE.as_bytes(), node.as_bytes(), true).expect_err("taken").to_string();
        assert_eq!(error, "the image's new has id 108, which mine has on this node");
        let shadow = "root:!*:1::::::\nnew:!*:108::::::\n";
        let node = "root:!*:1::::::\nmine:!*:108::::::\n";
        let (missing, _) = compare(shadow.as_bytes(), node.as_bytes(), false).expect("no ids");
        assert_eq!(missing, ["new:!*:108::::::"], "a day is no id");
    }

    #[test]
    fn lists_are_completed_and_nothing_else_changes() {
        let root = tempfile::tempdir().expect("tempdir");
        let (image, node) = (root.path().join("image"), root.path().join("node"));
        for (directory, list, content, mode) in [
            (&image, "group", "root:x:0:\nnew:x:108:\n", 0o644),
            (&image, "gshadow", "root:*::\nnew:*::\n", 0o640),
            (&image, "passwd", IMAGE, 0o644),
            (&image, "shadow", "root:!*:20000::::::\nnew:!*:20000::::::\n", 0o640),
            (&node, "group", "root:x:0:core\ncore:x:1000:", 0o600),
            (&node, "passwd", "root:x:0:0:me:/root:/bin/sh\n\u{e4}\ncore:x:1000:1000::/h:/bin/sh\n", 0o644),
            (&node, "shadow", "root:!*:1::::::\ncore:$y$:2::::::\n", 0o640),
        ] {
            fs::create_dir_all(directory).expect("made");
            fs::write(directory.join(list), content).expect("written");
            fs::set_permissions(directory.join(list), fs::Permissions::from_mode(mode)).expect("mode");
        }
        let missing = Missing::find(&image, &node).expect("compared");
        assert_eq!(missing.names(), ["new", "root"], "root has no line in gshadow");
        missing.add(&image, &node).expect("added");
        for (list, expected, mode) in [
            ("group", "root:x:0:core\ncore:x:1000:\nnew:x:108:\n", 0o600),
            ("gshadow", "new:*::\nroot:*::\n", 0o640),
            (
                "passwd",
                "root:x:0:0:me:/root:/bin/sh\n\u{e4}\ncore:x:1000:1000::/h:/bin/sh\nnew:x:108:108::/:/usr/sbin/nologin\n",
                0o644,
            ),
            ("shadow", "root:!*:1::::::\ncore:$y$:2::::::\nnew:!*:20000::::::\n", 0o640),
        ] {
            assert_eq!(fs::read_to_string(node.join(list)).expect("there"), expected, "{list}");
            let found = fs::metadata(node.join(list)).expect("there").permissions().mode() & 0o7777;
            assert_eq!(found, mode, "{list}");
        }
        assert!(Missing::find(&image, &node).expect("compared").is_empty(), "a second run finds nothing");
        assert_eq!(fs::read_dir(&node).expect("listed").count(), 4, "nothing is left behind");
    }
}
