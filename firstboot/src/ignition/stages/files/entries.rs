//! Directories, files and links, in the order in which they can be made.
//!
//! The specification's words on `overwrite` are kept: without it nothing that is there gives way. In one point this is
//! more than it says: what is there already exactly as the config wants it, content, owner and mode, is left alone
//! and no error, so that a first boot that was cut off can begin again.

use std::collections::BTreeMap;
use std::fs::File as Out;
use std::io::{self, Seek, Write};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::fs::Stat;
use sha2::{Digest, Sha256};

use super::tree::{self, Draft, Owner, PARENT_MODE, Place, is_directory, is_file, permissions};
use super::{Site, accounts, marks};
use crate::ignition::config::types::{Directory, File, Link, Resource, Storage};

/// Mode of a new file for which none is said.
const FILE_MODE: u32 = 0o644;

/// Makes all that the config lists.
///
/// # Errors
/// At the first that cannot be made; those before it stay.
pub(super) fn apply(site: &Site<'_>, storage: &Storage) -> anyhow::Result<()> {
    for (place, entry) in order(site, storage)? {
        let made = match entry {
            Entry::Directory(directory) => make_directory(site, &place, directory),
            Entry::File(file) => make_file(site, &place, file),
            Entry::Link(link) => make_link(site, &place, link),
        };
        made.with_context(|| format!("making {} {place}", entry.kind()))?;
    }
    Ok(())
}

/// One entry of the config.
#[derive(Clone, Copy, Debug)]
enum Entry<'a> {
    Directory(&'a Directory),
    File(&'a File),
    Link(&'a Link),
}

impl<'a> Entry<'a> {
    fn path(self) -> &'a str {
        match self {
            Self::Directory(Directory { path, .. }) | Self::File(File { path, .. }) | Self::Link(Link { path, .. }) => {
                path
            }
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Directory(_) => "directory",
            Self::File(_) => "file",
            Self::Link(_) => "link",
        }
    }

    fn is_hard_link(self) -> bool {
        matches!(self, Self::Link(Link { hard: Some(true), .. }))
    }
}

/// Resolves all paths and sorts the entries: by depth, so that parents come first, and hard links, whose targets may
/// lie deeper, at the end.
///
/// # Errors
/// When a path cannot be resolved, or two paths are one place.
fn order<'a>(site: &Site<'_>, storage: &'a Storage) -> anyhow::Result<Vec<(Place, Entry<'a>)>> {
    let directories = storage.directories.iter().flatten().map(Entry::Directory);
    let files = storage.files.iter().flatten().map(Entry::File);
    let links = storage.links.iter().flatten().map(Entry::Link);
    let mut taken = BTreeMap::new();
    let mut entries = Vec::new();
    for entry in directories.chain(files).chain(links) {
        let place = site.tree.resolve(entry.path())?;
        if let Some(other) = taken.insert(place.clone(), entry.path()) {
            anyhow::bail!("{} and {other} are the same place, {place}", entry.path());
        }
        entries.push((place, entry));
    }
    // The sort keeps the order of equals: directories, files, links, each as in the config.
    entries.sort_by_key(|(place, entry)| if entry.is_hard_link() { (1, 0) } else { (0, place.depth()) });
    Ok(entries)
}

/// A mode of the config, in bits.
fn mode_bits(mode: Option<i64>) -> anyhow::Result<Option<u32>> {
    let bits = |mode| u32::try_from(mode).ok().filter(|bits| bits & !0o7777 == 0);
    mode.map(|mode| bits(mode).with_context(|| format!("{mode} is no mode"))).transpose()
}

fn make_directory(site: &Site<'_>, place: &Place, directory: &Directory) -> anyhow::Result<()> {
    let owner = accounts::owner(&site.tree, directory.user.as_ref(), directory.group.as_ref())?;
    let mode = mode_bits(directory.mode)?;
    let mut there = site.tree.stat(place)?;
    if there.is_some() && directory.overwrite == Some(true) {
        site.log.info(format_args!("removing {place}, as its entry overwrites"));
        site.tree.remove(place)?;
        there = None;
    }
    match there {
        Some(node) => ensure!(is_directory(&node), "something that is no directory is there, and overwrite is false"),
        None => {
            site.log.info(format_args!("making directory {place}"));
            site.tree.make_directory(place)?;
        }
    }
    site.tree.set_permissions(place, owner, mode)
}

fn make_link(site: &Site<'_>, place: &Place, link: &Link) -> anyhow::Result<()> {
    let target = link.target.as_deref().filter(|target| !target.is_empty()).context("it has no target")?;
    let overwrite = link.overwrite == Some(true);
    let there = site.tree.stat(place)?;
    if link.hard == Some(true) {
        return make_hard_link(site, place, target, there.as_ref(), overwrite);
    }
    let owner = accounts::owner(&site.tree, link.user.as_ref(), link.group.as_ref())?;
    let mut wanted = owner;
    if let Some(node) = there.as_ref().filter(|_| !overwrite) {
        let found =
            site.tree.read_link(place)?.context("something that is no link is there, and overwrite is false")?;
        ensure!(
            clean(&found) == clean(Path::new(target)),
            "a link to {} is there, expected one to {target}, and overwrite is false",
            found.display()
        );
        wanted = owner.or(node);
        if wanted == Owner::default().or(node) {
            return Ok(());
        }
    }
    site.log.info(format_args!("writing link {place} to {target}"));
    let (parent, name) = site.tree.parent(place, PARENT_MODE)?;
    Draft::symbolic_link(&parent, target, wanted)?.put_over(name)
}

fn make_hard_link(
    site: &Site<'_>,
    place: &Place,
    target: &str,
    there: Option<&Stat>,
    overwrite: bool,
) -> anyhow::Result<()> {
    let from = site.tree.resolve(target)?;
    let node = site.tree.stat(&from)?.with_context(|| format!("the link's target {from} is not there"))?;
    let same = there.is_some_and(|there| (there.st_dev, there.st_ino) == (node.st_dev, node.st_ino));
    if same {
        return Ok(());
    }
    ensure!(there.is_none() || overwrite, "something that is not {from} is there, and overwrite is false");
    site.log.info(format_args!("writing hard link {place} to {from}"));
    let (parent, name) = site.tree.parent(place, PARENT_MODE)?;
    Draft::hard_link(&parent, &site.tree, &from)?.put_over(name)
}

/// A path without `.`, doubled slashes, and `..` after a name: two links that differ in these alone lead to one place.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match (component, clean.components().next_back()) {
            (Component::CurDir, _) | (Component::ParentDir, Some(Component::RootDir)) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => {
                clean.pop();
            }
            _ => clean.push(component),
        }
    }
    clean
}

/// Makes a file: its contents or what is there, then what is appended, under another name until it is whole.
fn make_file(site: &Site<'_>, place: &Place, file: &File) -> anyhow::Result<()> {
    let owner = accounts::owner(&site.tree, file.user.as_ref(), file.group.as_ref())?;
    let mode = mode_bits(file.mode)?;
    let contents = file.contents.as_ref().filter(|contents| contents.source.is_some());
    let appended = file.append.as_deref().unwrap_or_default();
    let overwrite = file.overwrite == Some(true);
    let kept = site.tree.stat(place)?.filter(|_| !overwrite);
    if let Some(node) = &kept {
        ensure!(is_file(node), "something that is no regular file is there, and overwrite is false");
        if contents.is_none() && appended.is_empty() {
            return site.tree.set_permissions(place, owner, mode);
        }
    }
    let (parent, name) = site.tree.parent(place, PARENT_MODE)?;
    let (draft, mut out) = Draft::file(&parent)?;
    match (contents, kept) {
        (Some(contents), kept) => {
            fetch(site, contents, &mut out)?;
            appended.iter().try_for_each(|fragment| fetch(site, fragment, &mut out))?;
            tree::finish(&out, owner, mode.unwrap_or(FILE_MODE))?;
            if site.tree.is_same(place, &out)? {
                return Ok(());
            }
            ensure!(kept.is_none(), "another file is there, and overwrite is false");
        }
        (None, kept) => {
            if append(site, place, kept.as_ref(), appended, &mut out)? {
                return site.tree.set_permissions(place, owner, mode);
            }
            let owner = kept.as_ref().map_or(owner, |node| owner.or(node));
            let mode = mode.unwrap_or(kept.as_ref().map_or(FILE_MODE, permissions));
            tree::finish(&out, owner, mode)?;
        }
    }
    site.log.info(format_args!("writing file {place}"));
    draft.put_over(name)
}

/// Writes what is there and the fragments. True when the file that is there holds these fragments already.
fn append(
    site: &Site<'_>,
    place: &Place,
    there: Option<&Stat>,
    fragments: &[Resource],
    out: &mut Out,
) -> anyhow::Result<bool> {
    let old = there.map(|_| site.tree.open_node(place)).transpose()?;
    if let Some(mut old) = old.as_ref() {
        old.rewind()?;
        io::copy(&mut old, out)?;
    }
    let mut out = Hashed { out, digest: Sha256::new() };
    fragments.iter().try_for_each(|fragment| fetch(site, fragment, &mut out))?;
    let Hashed { out, digest } = out;
    if fragments.is_empty() {
        return Ok(false);
    }
    let mark = format!("{:x}", digest.finalize());
    if old.as_ref().is_some_and(|old| marks::is_marked(old, &mark)) {
        return Ok(true);
    }
    if let Some(old) = &old {
        marks::copy_attributes(old, out)?;
    }
    marks::mark(out, &mark);
    Ok(false)
}

/// Writes a resource's contents; an empty source is empty contents.
fn fetch(site: &Site<'_>, resource: &Resource, out: &mut dyn Write) -> anyhow::Result<()> {
    match resource.source.as_deref() {
        None | Some("") => Ok(()),
        Some(_) => site.fetcher.fetch_to(resource, out),
    }
}

/// Passes bytes on and takes their digest.
struct Hashed<'a> {
    out: &'a mut Out,
    digest: Sha256,
}

impl Write for Hashed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buffer)?;
        self.digest.update(&buffer[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_targets_compare_as_places() {
        let cases = [
            ("/a/b", "/a/b"),
            ("/a//b/", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/x/../b", "/a/b"),
            ("/../b", "/b"),
            ("../a", "../a"),
            ("../../a", "../../a"),
            ("a/..", ""),
        ];
        for (path, expected) in cases {
            assert_eq!(clean(Path::new(path)), Path::new(expected), "{path}");
        }
    }
}
