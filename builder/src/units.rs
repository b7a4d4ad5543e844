//! Enabling and masking systemd units: the links that `systemctl enable` and `mask` would make.
//!
//! An enabled unit gets the links that its `[Install]` section asks for (systemd.unit(5)): `WantedBy=`, `RequiredBy=`,
//! `UpheldBy=`, `Alias=`, and the units in `Also=`. Links stand in `/etc/systemd/system`. Specifiers other than `%i`
//! do not occur in the sections of the chosen packages and are an error.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use rootfs::pack::Contents;
use rootfs::{Content, Node, Tree};

use crate::compose::read_text;

const DIRS: [&str; 2] = ["etc/systemd/system", "usr/lib/systemd/system"];

#[derive(Debug, Default, PartialEq, Eq)]
struct Install {
    wanted_by: Vec<String>,
    required_by: Vec<String>,
    upheld_by: Vec<String>,
    alias: Vec<String>,
    also: Vec<String>,
    default_instance: Option<String>,
}

impl Install {
    fn parse(text: &str) -> Self {
        let mut install = Self::default();
        let mut inside = false;
        let joined = text.replace("\\\n", " ");
        for line in joined.lines().map(str::trim) {
            if line.starts_with('[') {
                inside = line == "[Install]";
                continue;
            }
            let Some((key, value)) = line.split_once('=').filter(|_| inside && !line.starts_with(['#', ';'])) else {
                continue;
            };
            let words = || value.split_whitespace().map(str::to_owned);
            match key.trim() {
                "WantedBy" => install.wanted_by.extend(words()),
                "RequiredBy" => install.required_by.extend(words()),
                "UpheldBy" => install.upheld_by.extend(words()),
                "Alias" => install.alias.extend(words()),
                "Also" => install.also.extend(words()),
                "DefaultInstance" => install.default_instance = words().next(),
                _ => {}
            }
        }
        install
    }
}

/// The unit file that serves `unit`: itself, or its template.
fn find(tree: &Tree, unit: &str) -> Option<(String, Option<String>)> {
    let exists = |path: &String| tree.lookup(path).is_some();
    let plain = DIRS.iter().map(|dir| format!("{dir}/{unit}")).find(exists);
    if let Some(path) = plain {
        return Some((path, None));
    }
    let (prefix, rest) = unit.split_once('@')?;
    let (instance, suffix) = rest.rsplit_once('.')?;
    let path = DIRS.iter().map(|dir| format!("{dir}/{prefix}@.{suffix}")).find(exists)?;
    Some((path, Some(instance.to_owned())))
}

/// Whether a unit that another one's `Also=` names is there and not masked.
fn can_be_enabled(tree: &Tree, unit: &str) -> bool {
    find(tree, unit).is_some_and(
        |(path, _)| !matches!(tree.lookup(&path), Some(Node::Symlink { target, .. }) if target == b"/dev/null"),
    )
}

/// Makes the links of an enabled unit, and of those that its `Also=` names.
///
/// # Errors
/// When the unit is not in the tree or has no `[Install]` section.
pub fn enable(tree: &mut Tree, contents: &mut Contents<'_>, unit: &str) -> Result<()> {
    let mut queue = vec![unit.to_owned()];
    let mut seen = BTreeSet::new();
    while let Some(unit) = queue.pop() {
        if !seen.insert(unit.clone()) {
            continue;
        }
        let (path, instance) =
            find(tree, &unit).with_context(|| format!("enabling {unit}: there is no such unit in the image"))?;
        let text = match tree.lookup(&path) {
            Some(Node::File { content, .. }) => read_text(contents, content)?,
            // A link is an alias of another unit, which is what gets enabled.
            Some(Node::Symlink { target, .. }) if target == b"/dev/null" => bail!("enabling {unit}: it is masked"),
            Some(Node::Symlink { target, .. }) => {
                let target = String::from_utf8_lossy(target).into_owned();
                queue.push(target.rsplit('/').next().unwrap_or(&target).to_owned());
                continue;
            }
            _ => bail!("enabling {unit}: {path} is not a file"),
        };
        let install = Install::parse(&text);
        if install == Install::default() {
            bail!("enabling {unit}: {path} has no [Install] section, so it needs no enabling or cannot be enabled");
        }
        let name = match (&instance, &install.default_instance) {
            (None, Some(default)) => unit.replace("@.", &format!("@{default}.")),
            _ => unit.clone(),
        };
        let instance = instance.or(install.default_instance.clone()).unwrap_or_default();
        let target = format!("/{path}");
        let expand = |word: &str| word.replace("%i", &instance);
        for (words, kind) in
            [(&install.wanted_by, "wants"), (&install.required_by, "requires"), (&install.upheld_by, "upholds")]
        {
            for word in words {
                link(tree, &format!("etc/systemd/system/{}.{kind}/{name}", expand(word)), &target)?;
            }
        }
        for alias in &install.alias {
            link(tree, &format!("etc/systemd/system/{}", expand(alias)), &target)?;
        }
        queue.extend(install.also.iter().map(|word| expand(word)).filter(|also| can_be_enabled(tree, also)));
    }
    Ok(())
}

fn link(tree: &mut Tree, path: &str, target: &str) -> Result<()> {
    if path.contains('%') {
        bail!("{path}: specifiers other than %i are not expanded");
    }
    if tree.lookup(path).is_none() {
        tree.insert_with_parents(path, Node::symlink(target))?;
    }
    Ok(())
}

/// Masks a unit: it cannot be started by anything. The unit need not exist, so that generators' units can be masked.
///
/// # Errors
/// When something else than a link stands at its place in `/etc`.
pub fn mask(tree: &mut Tree, unit: &str) -> Result<()> {
    let path = format!("etc/systemd/system/{unit}");
    match tree.lookup(&path) {
        Some(Node::File { content: Content::Inline(_) | Content::Packed { .. }, .. }) => {
            bail!("masking {unit}: /{path} is a file of the image")
        }
        _ => {
            tree.replace(&path, Node::symlink("/dev/null"))?;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn install_sections_are_read_as_systemd_reads_them() {
        let text =
            "[Unit]\nAlias=no\n[Install]\nWantedBy=a.target \\\n b.target\n# WantedBy=c.target\nAlias=x.service\n";
        let install = Install::parse(text);
        assert_eq!(install.wanted_by, ["a.target", "b.target"]);
        assert_eq!(install.alias, ["x.service"]);
    }

    #[test]
    fn enabling_makes_the_links_and_refuses_what_cannot_be_enabled() {
        let mut tree = Tree::new();
        let unit = |text: &str| Node::inline(0o644, text.as_bytes());
        for (name, text) in [
            ("a.service", "[Install]\nWantedBy=multi-user.target\nAlso=a.socket gone.socket\nAlias=dbus-a.service\n"),
            ("a.socket", "[Install]\nWantedBy=sockets.target\n"),
            ("t@.service", "[Install]\nWantedBy=getty.target\nDefaultInstance=tty1\n"),
            ("static.service", "[Service]\n"),
        ] {
            tree.insert_with_parents(format!("usr/lib/systemd/system/{name}"), unit(text)).expect("a fresh tree");
        }
        let mut contents = Contents::new(&[]).expect("no pack can be damaged");
        enable(&mut tree, &mut contents, "a.service").expect("it has an Install section");
        enable(&mut tree, &mut contents, "t@x.service").expect("a template with an instance");
        for path in [
            "multi-user.target.wants/a.service",
            "sockets.target.wants/a.socket",
            "dbus-a.service",
            "getty.target.wants/t@x.service",
        ] {
            assert!(tree.lookup(format!("etc/systemd/system/{path}")).is_some(), "{path}");
        }
        assert!(enable(&mut tree, &mut contents, "static.service").is_err());
        assert!(enable(&mut tree, &mut contents, "none.service").is_err());
        mask(&mut tree, "getty@.service").expect("nothing is there");
        assert!(tree.lookup("etc/systemd/system/getty@.service").is_some());
    }
}
