//! The in-memory file system that images are made of.
//!
//! Paths are bytes, relative to the root; a leading `/` or `./` changes nothing, `..` is refused. Operations follow
//! symbolic links to directories on the way to a path's last component, inside the tree and never out of it, so a
//! package that ships `lib/foo` lands in `usr/lib/foo` where `/lib` links to `usr/lib`.
//!
//! Left out: times (an image has one for all), hard links (they become files that share one content), sockets.

use std::{
    collections::{BTreeMap, VecDeque, btree_map},
    sync::Arc,
};

use crate::{Digest, Error, FileId, PackId, Result, error::show};

/// The longest name of an entry, in bytes.
pub const NAME_MAX: usize = 255;
/// The longest path, in bytes, without a leading slash.
pub const PATH_MAX: usize = 4095;

/// How many symbolic links one path may lead through, as in Linux.
const LINKS_MAX: usize = 40;

/// Owner, permissions and extended attributes of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits with set-user-ID, set-group-ID and sticky: 0 to 0o7777.
    pub mode: u16,
    /// The owner's user ID.
    pub uid: u32,
    /// The owner's group ID.
    pub gid: u32,
    /// Extended attributes by full name, as `security.capability`.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Meta {
    /// Permissions `mode`, owned by root, without extended attributes.
    pub fn new(mode: u16) -> Meta {
        Meta { mode, ..Meta::default() }
    }
}

/// The content of a regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes in memory. They are compressed whenever an image is written: large contents belong into a pack.
    Inline(Arc<[u8]>),
    /// A file of a pack.
    Packed {
        /// SHA-256 of the content.
        digest: Digest,
        /// Length of the content in bytes.
        size: u64,
        /// The pack: an index into the slice of packs that a writer is given.
        pack: PackId,
        /// The file in the pack.
        file: FileId,
    },
}

impl Content {
    /// The length in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Content::Inline(bytes) => bytes.len() as u64,
            Content::Packed { size, .. } => *size,
        }
    }

    /// SHA-256 of the content, computed where it is inline.
    pub fn digest(&self) -> Digest {
        match self {
            Content::Inline(bytes) => Digest::of(bytes),
            Content::Packed { digest, .. } => *digest,
        }
    }
}

/// The two kinds of device nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A block device.
    Block,
    /// A character device.
    Character,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory and all that is in it.
    Directory(Directory),
    /// A regular file.
    File {
        /// Owner and permissions.
        meta: Meta,
        /// What is in it.
        content: Content,
    },
    /// A symbolic link.
    Symlink {
        /// Owner; the permissions of a link are 0o777 in images.
        meta: Meta,
        /// Where it leads, not empty.
        target: Vec<u8>,
    },
    /// A device node.
    Device {
        /// Owner and permissions.
        meta: Meta,
        /// Block or character.
        kind: DeviceKind,
        /// Major number, below 4096.
        major: u32,
        /// Minor number, below 1048576.
        minor: u32,
    },
    /// A named pipe.
    Fifo {
        /// Owner and permissions.
        meta: Meta,
    },
}

impl Node {
    /// An empty directory of root.
    pub fn directory(mode: u16) -> Node {
        Node::Directory(Directory::new(Meta::new(mode)))
    }

    /// A file of root.
    pub fn file(mode: u16, content: Content) -> Node {
        Node::File { meta: Meta::new(mode), content }
    }

    /// A file of root with these bytes.
    pub fn inline(mode: u16, bytes: impl Into<Arc<[u8]>>) -> Node {
        Node::file(mode, Content::Inline(bytes.into()))
    }

    /// A symbolic link of root.
    pub fn symlink(target: impl Into<Vec<u8>>) -> Node {
        Node::Symlink { meta: Meta::new(0o777), target: target.into() }
    }

    /// Owner, permissions and extended attributes.
    pub fn meta(&self) -> &Meta {
        match self {
            Node::Directory(directory) => &directory.meta,
            Node::File { meta, .. } | Node::Symlink { meta, .. } | Node::Device { meta, .. } | Node::Fifo { meta } => {
                meta
            }
        }
    }

    /// Owner, permissions and extended attributes, to change.
    pub fn meta_mut(&mut self) -> &mut Meta {
        match self {
            Node::Directory(directory) => &mut directory.meta,
            Node::File { meta, .. } | Node::Symlink { meta, .. } | Node::Device { meta, .. } | Node::Fifo { meta } => {
                meta
            }
        }
    }

    /// What the node is, in a word or two for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Node::Directory(_) => "directory",
            Node::File { .. } => "file",
            Node::Symlink { .. } => "symbolic link",
            Node::Device { kind: DeviceKind::Block, .. } => "block device",
            Node::Device { kind: DeviceKind::Character, .. } => "character device",
            Node::Fifo { .. } => "named pipe",
        }
    }
}

/// A directory: entries sorted by the bytes of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Owner and permissions.
    pub meta: Meta,
    entries: BTreeMap<Vec<u8>, Node>,
}

impl Directory {
    /// A directory without entries.
    pub fn new(meta: Meta) -> Directory {
        Directory { meta, entries: BTreeMap::new() }
    }

    /// The entry called `name`.
    pub fn entry(&self, name: &[u8]) -> Option<&Node> {
        self.entries.get(name)
    }

    /// The entry called `name`, to change.
    pub fn entry_mut(&mut self, name: &[u8]) -> Option<&mut Node> {
        self.entries.get_mut(name)
    }

    /// The entries in order of their names.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&[u8], &Node)> {
        self.entries.iter().map(|(name, node)| (name.as_slice(), node))
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Puts `node` at `name` and returns what was there.
    ///
    /// # Errors
    /// When the name is empty, `.`, `..`, longer than [`NAME_MAX`], or has a slash or a null byte.
    pub fn insert(&mut self, name: impl Into<Vec<u8>>, node: Node) -> Result<Option<Node>> {
        let name = name.into();
        check_name(&name)?;
        Ok(self.entries.insert(name, node))
    }

    /// Takes the entry called `name` out.
    pub fn remove(&mut self, name: &[u8]) -> Option<Node> {
        self.entries.remove(name)
    }

    /// Keeps the entries for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &mut Node) -> bool) {
        self.entries.retain(|name, node| keep(name, node));
    }
}

/// A whole file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    root: Directory,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree::new()
    }
}

impl Tree {
    /// A tree with nothing but its root, mode 0o755.
    pub fn new() -> Tree {
        Tree { root: Directory::new(Meta::new(0o755)) }
    }

    /// The root directory.
    pub fn root(&self) -> &Directory {
        &self.root
    }

    /// The root directory, to change.
    pub fn root_mut(&mut self) -> &mut Directory {
        &mut self.root
    }

    /// Puts `node` at `path`, whose parent must exist. A directory, for a path at which a directory or a link to one
    /// is, leaves that as it is and gives it its own entries.
    ///
    /// # Errors
    /// [`Error::Conflict`] when something else is there, [`Error::Missing`] without a parent, [`Error::NotADirectory`]
    /// when the path leads through a file, and for paths that no tree can hold.
    pub fn insert(&mut self, path: impl AsRef<[u8]>, node: Node) -> Result<()> {
        self.put(path.as_ref(), node, Parents::Require, Existing::Keep).map(|_| ())
    }

    /// As [`Tree::insert`], with missing parents made as directories of root, mode 0o755.
    ///
    /// # Errors
    /// As [`Tree::insert`], but for missing parents.
    pub fn insert_with_parents(&mut self, path: impl AsRef<[u8]>, node: Node) -> Result<()> {
        self.put(path.as_ref(), node, Parents::Create, Existing::Keep).map(|_| ())
    }

    /// Puts `node` at `path`, in place of what is there, and returns that. Missing parents are made. A directory takes
    /// the place of a directory by giving it its owner, permissions and entries; the other entries stay.
    ///
    /// # Errors
    /// [`Error::NotEmpty`] when a directory with entries would be lost, and as [`Tree::insert_with_parents`].
    pub fn replace(&mut self, path: impl AsRef<[u8]>, node: Node) -> Result<Option<Node>> {
        self.put(path.as_ref(), node, Parents::Create, Existing::Replace)
    }

    /// Puts all of `other` into this tree as [`Tree::insert`] does, but for the root's owner and permissions.
    ///
    /// # Errors
    /// As [`Tree::insert`]. The tree then holds a part of `other`.
    pub fn merge(&mut self, other: Tree) -> Result<()> {
        other.root.entries.into_iter().try_for_each(|(name, node)| self.insert(name, node))
    }

    /// What is at `path`; a symbolic link itself, not what it leads to.
    pub fn lookup(&self, path: impl AsRef<[u8]>) -> Option<&Node> {
        let (parent, name) = self.resolve_parent(path).ok()?;
        self.directory_at(&parent)?.entry(&name)
    }

    /// What is at `path`, to change; a symbolic link itself, not what it leads to.
    pub fn lookup_mut(&mut self, path: impl AsRef<[u8]>) -> Option<&mut Node> {
        let (parent, name) = self.resolve_parent(path).ok()?;
        self.directory_at_mut(&parent)?.entry_mut(&name)
    }

    /// The directory at `path`, through symbolic links; the root for an empty path.
    pub fn lookup_directory(&self, path: impl AsRef<[u8]>) -> Option<&Directory> {
        let components = self.resolve(components(path.as_ref()).ok()?, path.as_ref()).ok()?;
        self.directory_at(&components)
    }

    /// Takes out what is at `path`, with all that is in it.
    pub fn remove(&mut self, path: impl AsRef<[u8]>) -> Option<Node> {
        let (parent, name) = self.resolve_parent(path).ok()?;
        self.directory_at_mut(&parent)?.remove(&name)
    }

    /// Moves what is at `from` to `to`, whose parent must exist and where nothing may be.
    ///
    /// # Errors
    /// [`Error::Missing`] when nothing is at `from`, [`Error::Conflict`] when something is at `to`, and
    /// [`Error::InvalidPath`] when `to` lies within `from`. The tree is then as it was.
    pub fn rename(&mut self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let (from_parent, from_name) = self.resolve_parent(from)?;
        let (to_parent, to_name) = self.resolve_parent(to)?;
        let moved = self.directory_at(&from_parent).and_then(|directory| directory.entry(&from_name));
        let moved = moved.ok_or_else(|| Error::Missing { path: show(from) })?;
        let target =
            self.directory_at(&to_parent).ok_or_else(|| Error::Missing { path: show(&to_parent.join(&b'/')) })?;
        if let Some(existing) = target.entry(&to_name) {
            return Err(Error::Conflict { path: show(to), existing: existing.kind(), new: moved.kind() });
        }
        if to_parent.len() > from_parent.len()
            && to_parent.starts_with(&from_parent)
            && to_parent[from_parent.len()] == from_name
        {
            return Err(Error::InvalidPath { path: show(to), reason: "lies within what is to be moved there" });
        }
        let node = self.directory_at_mut(&from_parent).and_then(|directory| directory.remove(&from_name));
        let target = self.directory_at_mut(&to_parent);
        let (node, target) = node.zip(target).expect("both were found above");
        target.insert(to_name, node).map(|_| ())
    }

    /// Every entry but the root, sorted depth-first: a directory, then all in it, then the next. Paths have no leading
    /// slash.
    pub fn walk(&self) -> Walk<'_> {
        Walk { stack: vec![(Vec::new(), self.root.entries.iter())] }
    }

    /// Calls `visit` with every entry but the root, in the order of [`Tree::walk`].
    pub fn for_each_mut(&mut self, mut visit: impl FnMut(&[u8], &mut Node)) {
        let mut stack = vec![(Vec::new(), self.root.entries.iter_mut())];
        while let Some((prefix, entries)) = stack.last_mut() {
            let Some((name, node)) = entries.next() else {
                stack.pop();
                continue;
            };
            let path = join(prefix, name);
            visit(&path, node);
            if let Node::Directory(directory) = node {
                stack.push((path, directory.entries.iter_mut()));
            }
        }
    }

    /// The directory that holds `path`'s last component, as components free of symbolic links, and that component.
    /// Components that do not exist stay as they are.
    ///
    /// # Errors
    /// For the root, for paths that no tree can hold, and for those that lead through what is not a directory.
    pub fn resolve_parent(&self, path: impl AsRef<[u8]>) -> Result<(Vec<Vec<u8>>, Vec<u8>)> {
        let path = path.as_ref();
        let mut components = components(path)?;
        let name = components.pop_back();
        let name = name.ok_or_else(|| Error::InvalidPath { path: show(path), reason: "is the root" })?;
        Ok((self.resolve(components, path)?, name))
    }

    fn resolve(&self, mut todo: VecDeque<Vec<u8>>, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut done: Vec<Vec<u8>> = Vec::new();
        // The directories at `done`, from the root; `None` below what does not exist.
        let mut directories = vec![Some(&self.root)];
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                // Only targets of links have these; above the root is the root.
                if done.pop().is_some() {
                    directories.pop();
                }
                continue;
            }
            let here = directories.last().copied().flatten();
            match here.and_then(|directory| directory.entry(&name)) {
                Some(Node::Directory(directory)) => {
                    directories.push(Some(directory));
                    done.push(name);
                }
                Some(Node::Symlink { target, .. }) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Error::SymlinkLoop { path: show(path) });
                    }
                    if target.starts_with(b"/") {
                        done.clear();
                        directories.truncate(1);
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        if !part.is_empty() && part != b"." {
                            todo.push_front(part.to_vec());
                        }
                    }
                }
                Some(other) => {
                    done.push(name);
                    return Err(Error::NotADirectory { path: show(&done.join(&b'/')), found: other.kind() });
                }
                None => {
                    directories.push(None);
                    done.push(name);
                }
            }
        }
        Ok(done)
    }

    fn directory_at(&self, components: &[Vec<u8>]) -> Option<&Directory> {
        components.iter().try_fold(&self.root, |directory, name| match directory.entry(name) {
            Some(Node::Directory(directory)) => Some(directory),
            _ => None,
        })
    }

    fn directory_at_mut(&mut self, components: &[Vec<u8>]) -> Option<&mut Directory> {
        components.iter().try_fold(&mut self.root, |directory, name| match directory.entry_mut(name) {
            Some(Node::Directory(directory)) => Some(directory),
            _ => None,
        })
    }

    fn parent_mut(&mut self, components: &[Vec<u8>], parents: Parents) -> Result<&mut Directory> {
        let mut directory = &mut self.root;
        for (depth, name) in components.iter().enumerate() {
            let at = || show(&components[..=depth].join(&b'/'));
            if parents == Parents::Create && !directory.entries.contains_key(name) {
                check_name(name)?;
                directory.entries.insert(name.clone(), Node::directory(0o755));
            }
            directory = match directory.entry_mut(name) {
                Some(Node::Directory(directory)) => directory,
                Some(other) => return Err(Error::NotADirectory { path: at(), found: other.kind() }),
                None => return Err(Error::Missing { path: at() }),
            };
        }
        Ok(directory)
    }

    fn put(&mut self, path: &[u8], node: Node, parents: Parents, existing: Existing) -> Result<Option<Node>> {
        let (mut parent, mut name) = self.resolve_parent(path)?;
        if matches!(node, Node::Directory(_)) && existing == Existing::Keep {
            // A link to a directory stands for that directory.
            let mut whole: VecDeque<_> = parent.iter().cloned().collect();
            whole.push_back(name.clone());
            if let Ok(mut target) = self.resolve(whole, path)
                && self.directory_at(&target).is_some()
                && let Some(last) = target.pop()
            {
                (parent, name) = (target, last);
            }
        }
        let directory = self.parent_mut(&parent, parents)?;
        match (directory.entry_mut(&name), node) {
            (None, node) => directory.insert(name, node),
            (Some(Node::Directory(old)), Node::Directory(new)) => {
                if existing == Existing::Replace {
                    old.meta = new.meta;
                }
                let mut path = parent.join(&b'/');
                path = join(&path, &name);
                for (name, node) in new.entries {
                    self.put(&join(&path, &name), node, parents, existing)?;
                }
                Ok(None)
            }
            (Some(old), node) => match existing {
                Existing::Keep => Err(Error::Conflict { path: show(path), existing: old.kind(), new: node.kind() }),
                Existing::Replace => match old {
                    Node::Directory(old) if !old.is_empty() => Err(Error::NotEmpty { path: show(path) }),
                    old => Ok(Some(std::mem::replace(old, node))),
                },
            },
        }
    }
}

type Entries<'a> = btree_map::Iter<'a, Vec<u8>, Node>;

/// Iterator over a tree's entries; see [`Tree::walk`].
#[derive(Debug)]
pub struct Walk<'a> {
    /// Each open directory's path and what is left of its entries.
    stack: Vec<(Vec<u8>, Entries<'a>)>,
}

impl<'a> Iterator for Walk<'a> {
    type Item = (Vec<u8>, &'a Node);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (prefix, entries) = self.stack.last_mut()?;
            let Some((name, node)) = entries.next() else {
                self.stack.pop();
                continue;
            };
            let path = join(prefix, name);
            if let Node::Directory(directory) = node {
                self.stack.push((path.clone(), directory.entries.iter()));
            }
            return Some((path, node));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Parents {
    Require,
    Create,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    Keep,
    Replace,
}

pub(crate) fn join(prefix: &[u8], name: &[u8]) -> Vec<u8> {
    if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
}

fn check_name(name: &[u8]) -> Result<()> {
    let reason = match name {
        b"" => "name is empty",
        b"." | b".." => "name is reserved",
        _ if name.len() > NAME_MAX => "name is longer than 255 bytes",
        _ if name.contains(&b'/') => "name has a slash",
        _ if name.contains(&0) => "name has a null byte",
        _ => return Ok(()),
    };
    Err(Error::InvalidPath { path: String::from_utf8_lossy(name).into_owned(), reason })
}

/// The components of a path, each a valid name.
fn components(path: &[u8]) -> Result<VecDeque<Vec<u8>>> {
    if path.len() > PATH_MAX {
        return Err(Error::InvalidPath { path: show(path), reason: "path is longer than 4095 bytes" });
    }
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names
        .map(|name| match check_name(name) {
            Ok(()) => Ok(name.to_vec()),
            Err(Error::InvalidPath { reason, .. }) => Err(Error::InvalidPath { path: show(path), reason }),
            Err(other) => Err(other),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(tree: &Tree) -> String {
        let lines = tree.walk().map(|(path, node)| match node {
            Node::Symlink { target, .. } => {
                format!("{} -> {}", String::from_utf8_lossy(&path), String::from_utf8_lossy(target))
            }
            node => format!("{} {:o} {}", String::from_utf8_lossy(&path), node.meta().mode, node.kind()),
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn merged_usr() -> Tree {
        let mut tree = Tree::new();
        tree.insert_with_parents("usr/lib", Node::directory(0o755)).unwrap();
        tree.insert("lib", Node::symlink("usr/lib")).unwrap();
        tree.insert("lib64", Node::symlink("/lib/x86/../../lib")).unwrap();
        tree.insert("usr/lib/x86", Node::directory(0o700)).unwrap();
        tree
    }

    #[test]
    fn paths_follow_links_to_directories() {
        let mut tree = merged_usr();
        tree.insert("./lib/", Node::directory(0o711)).unwrap();
        tree.insert("/lib/a", Node::inline(0o644, *b"a")).unwrap();
        tree.insert("lib64/x86/b", Node::inline(0o600, *b"b")).unwrap();
        tree.insert_with_parents("lib/new/deep/c", Node::Fifo { meta: Meta::new(0o640) }).unwrap();
        let expected = "lib -> usr/lib\nlib64 -> /lib/x86/../../lib\nusr 755 directory\nusr/lib 755 directory\n\
                        usr/lib/a 644 file\nusr/lib/new 755 directory\nusr/lib/new/deep 755 directory\n\
                        usr/lib/new/deep/c 640 named pipe\nusr/lib/x86 700 directory\nusr/lib/x86/b 600 file";
        assert_eq!(list(&tree), expected);
        assert!(tree.lookup("lib64/a").is_some());
        assert_eq!(tree.lookup_directory("lib64").unwrap().len(), 3);
        assert_eq!(tree.remove("lib/x86/b").unwrap().kind(), "file");
        assert!(tree.lookup_mut("usr/lib/x86/b").is_none());
    }

    #[test]
    fn conflicts_name_the_path() {
        let mut tree = merged_usr();
        tree.insert("f", Node::inline(0o644, *b"1")).unwrap();
        tree.insert("loop", Node::symlink("loop")).unwrap();
        tree.insert("dangling", Node::symlink("nowhere")).unwrap();
        let file = || Node::inline(0o644, *b"2");
        let cases = [
            ("f", file(), "/f: a file is in the way of a file"),
            ("f", Node::directory(0o755), "/f: a file is in the way of a directory"),
            ("lib", file(), "/lib: a symbolic link is in the way of a file"),
            ("usr", file(), "/usr: a directory is in the way of a file"),
            ("dangling", Node::directory(0o755), "/dangling: a symbolic link is in the way of a directory"),
            ("f/x", file(), "/f: is a file, not a directory"),
            ("no/x", file(), "/no: no such entry"),
            ("loop/x", file(), "/loop/x: too many levels of symbolic links"),
            ("a/../b", file(), "/a/../b: name is reserved"),
            ("/", Node::directory(0o755), "/: is the root"),
            ("a\0b", file(), "/a\0b: name has a null byte"),
        ];
        let before = tree.clone();
        for (path, node, message) in cases {
            assert_eq!(tree.insert(path, node).unwrap_err().to_string(), message, "{path}");
        }
        assert!(tree.insert(vec![b'n'; 256], file()).is_err());
        assert!(tree.insert_with_parents(b"d/".repeat(2100), file()).is_err());
        assert_eq!(tree, before);
    }

    #[test]
    fn replace_is_explicit() {
        let mut tree = merged_usr();
        assert_eq!(tree.replace("new/f", Node::inline(0o644, *b"1")).unwrap(), None);
        assert_eq!(tree.replace("new/f", Node::symlink("x")).unwrap().unwrap().kind(), "file");
        assert_eq!(tree.replace("lib64", Node::directory(0o700)).unwrap().unwrap().kind(), "symbolic link");
        assert!(matches!(tree.replace("usr", Node::symlink("x")), Err(Error::NotEmpty { .. })));
        assert_eq!(tree.replace("usr", Node::directory(0o500)).unwrap(), None);
        assert_eq!(tree.lookup("usr").unwrap().meta().mode, 0o500);
        assert!(tree.lookup("usr/lib/x86").is_some());
    }

    #[test]
    fn merge_and_rename() {
        let mut package = Tree::new();
        package.insert_with_parents("lib/x86/m", Node::inline(0o644, *b"m")).unwrap();
        let mut tree = merged_usr();
        tree.merge(package.clone()).unwrap();
        assert!(tree.lookup("usr/lib/x86/m").is_some());
        assert_eq!(tree.merge(package).unwrap_err().to_string(), "/usr/lib/x86/m: a file is in the way of a file");
        tree.rename("lib/x86", "usr/y").unwrap();
        assert!(tree.lookup("usr/y/m").is_some() && tree.lookup("usr/lib/x86").is_none());
        for (from, to) in [("usr", "usr/y/z"), ("none", "x"), ("lib", "usr"), ("usr/y", "gone/y")] {
            let before = tree.clone();
            assert!(tree.rename(from, to).is_err(), "{from} to {to}");
            assert_eq!(tree, before);
        }
    }
}
