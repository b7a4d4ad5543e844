//! The tree of the system that is configured, as a root of its own.
//!
//! Every path of a config is resolved here: symbolic links on the way mean the tree's own directories, absolute or
//! relative, and `..` ends at its root. A resolved [`Place`] is reached directory by directory without following any
//! link, so that nothing outside the tree is ever touched. What is new is made beside its place under a name of its
//! own and renamed, so that a power cut leaves the old or the new.
//!
//! Left out: SELinux labels.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::fs::{self, AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, StatxAttributes, StatxFlags, Uid};
use rustix::io::Errno;

/// Mode of directories that a path needs and that are not there.
pub(super) const PARENT_MODE: u32 = 0o755;

/// The bits of a mode that are permissions.
const PERMISSIONS: u32 = 0o7777;

/// How many symbolic links one path may lead through, as in the kernel.
const LINKS: usize = 40;

/// Under this name a node is made before it is renamed. One that a power cut left is replaced.
const DRAFT: &str = ".ignition-draft";

/// Opens a directory for walking through it.
const WALK: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a node to read it.
const READ: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// The tree.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    path: PathBuf,
}

/// A place in the tree, whether something is there or not; no directory on the way to it is a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(Vec<OsString>);

impl Place {
    /// How many directories and names lead to it; 0 is the root.
    pub(super) fn depth(&self) -> usize {
        self.0.len()
    }

    /// Its directory's path, and its name there.
    fn split(&self) -> anyhow::Result<(&[OsString], &OsStr)> {
        let (name, parent) = self.0.split_last().context("the root directory cannot be replaced")?;
        Ok((parent, name))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("/");
        }
        self.0.iter().try_for_each(|name| write!(f, "/{}", name.display()))
    }
}

/// Who a node belongs to, where that is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Owner {
    /// The user's number.
    pub(super) uid: Option<u32>,
    /// The group's number.
    pub(super) gid: Option<u32>,
}

impl Owner {
    /// The owner of a node that is there, where this one says nothing.
    pub(super) fn or(self, node: &Stat) -> Self {
        Self { uid: self.uid.or(Some(node.st_uid)), gid: self.gid.or(Some(node.st_gid)) }
    }

    /// As the kernel takes it.
    pub(super) fn numbers(self) -> (Option<Uid>, Option<Gid>) {
        (self.uid.map(Uid::from_raw), self.gid.map(Gid::from_raw))
    }
}

/// Whether a node is a regular file.
pub(super) fn is_file(node: &Stat) -> bool {
    FileType::from_raw_mode(node.st_mode) == FileType::RegularFile
}

/// Whether a node is a directory.
pub(super) fn is_directory(node: &Stat) -> bool {
    FileType::from_raw_mode(node.st_mode) == FileType::Directory
}

/// A node's permission bits.
pub(super) fn permissions(node: &Stat) -> u32 {
    node.st_mode & PERMISSIONS
}

impl Tree {
    /// Takes a directory as the root.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open(root: &Path) -> anyhow::Result<Self> {
        let root = if root.as_os_str().is_empty() { Path::new("/") } else { root };
        let open = || -> io::Result<Self> {
            let path = std::path::absolute(root)?;
            // Not NOFOLLOW: the caller names the root as it likes.
            Ok(Self { root: fs::open(&path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?, path })
        };
        open().with_context(|| format!("opening the root directory {}", root.display()))
    }

    /// The arguments that make a program of the shadow suite, or `systemctl`, work on this tree.
    ///
    /// # Errors
    /// When the root's path is no UTF-8.
    pub(super) fn arguments(&self) -> anyhow::Result<Vec<&str>> {
        if self.path == Path::new("/") {
            return Ok(Vec::new());
        }
        let path = self.path.to_str().with_context(|| format!("{} is no UTF-8", self.path.display()))?;
        Ok(vec!["--root", path])
    }

    /// Resolves a path; its last component is not followed.
    ///
    /// # Errors
    /// When a file stands where a directory must be, or links lead in a circle.
    pub(super) fn resolve(&self, path: impl AsRef<Path>) -> anyhow::Result<Place> {
        self.walk(path.as_ref(), false)
    }

    /// Resolves a path; its last component is followed too.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub(super) fn follow(&self, path: impl AsRef<Path>) -> anyhow::Result<Place> {
        self.walk(path.as_ref(), true)
    }

    fn walk(&self, path: &Path, follow_last: bool) -> anyhow::Result<Place> {
        let resolve = || -> io::Result<Place> {
            let (mut place, mut links) = (Place(Vec::new()), 0);
            let mut pending = components_reversed(path);
            while let Some(component) = pending.pop() {
                if component == ".." {
                    place.0.pop();
                    continue;
                }
                place.0.push(component);
                if pending.is_empty() && !follow_last {
                    break;
                }
                let Some(target) = self.read_link(&place)? else { continue };
                links += 1;
                if links > LINKS {
                    return Err(Errno::LOOP.into());
                }
                place.0.pop();
                if target.is_absolute() {
                    place.0.clear();
                }
                pending.extend(components_reversed(&target));
            }
            Ok(place)
        };
        resolve().with_context(|| format!("resolving {}", path.display()))
    }

    /// The target of a symbolic link, if one is there.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn read_link(&self, place: &Place) -> io::Result<Option<PathBuf>> {
        let Some((name, parent)) = place.0.split_last() else { return Ok(None) };
        let read = || fs::readlinkat(self.directory(parent)?, name, Vec::new());
        match read() {
            Ok(target) => Ok(Some(OsString::from_vec(target.into_bytes()).into())),
            // What is below a file is not there either; whoever must make it finds the file.
            Err(Errno::NOENT | Errno::INVAL | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What is there, if anything.
    ///
    /// # Errors
    /// What the kernel answers otherwise.
    pub(super) fn stat(&self, place: &Place) -> anyhow::Result<Option<Stat>> {
        let stat = || match place.0.split_last() {
            Some((name, parent)) => fs::statat(self.directory(parent)?, name, AtFlags::SYMLINK_NOFOLLOW),
            None => fs::fstat(&self.root),
        };
        match stat() {
            Ok(node) => Ok(Some(node)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("looking at {place}")),
        }
    }

    /// Opens what is there, for reading.
    ///
    /// # Errors
    /// What the kernel answers; a symbolic link is refused.
    pub(super) fn open_node(&self, place: &Place) -> anyhow::Result<File> {
        let open = || match place.0.split_last() {
            Some((name, parent)) => fs::openat(self.directory(parent)?, name, READ, Mode::empty()),
            None => Ok(rustix::io::dup(&self.root)?),
        };
        Ok(open().with_context(|| format!("opening {place}"))?.into())
    }

    /// Opens a file for a lock that keeps others out.
    ///
    /// # Errors
    /// What the kernel answers; a symbolic link is refused.
    pub(super) fn open_for_locking(&self, place: &Place) -> anyhow::Result<File> {
        let (parent, name) = place.split()?;
        let open = || fs::openat(self.directory(parent)?, name, READ | OFlags::RDWR, Mode::empty());
        Ok(open().with_context(|| format!("opening {place}"))?.into())
    }

    /// A regular file's content, wherever links lead, if there is one.
    ///
    /// # Errors
    /// When something else is there, or it cannot be read, or is larger than `limit` bytes.
    pub(super) fn read(&self, path: &str, limit: u64) -> anyhow::Result<Option<Vec<u8>>> {
        let place = self.follow(path)?;
        let Some(node) = self.stat(&place)? else { return Ok(None) };
        ensure!(is_file(&node), "{place} is no regular file");
        let mut content = Vec::new();
        let mut file = self.open_node(&place)?.take(limit + 1);
        file.read_to_end(&mut content).with_context(|| format!("reading {place}"))?;
        ensure!(content.len() as u64 <= limit, "{place} is larger than {limit} bytes");
        Ok(Some(content))
    }

    /// The names in a directory, sorted; none where it is not there.
    ///
    /// # Errors
    /// When it is no directory, or cannot be read.
    pub(super) fn names(&self, directory: &Place) -> anyhow::Result<Vec<OsString>> {
        if self.stat(directory)?.is_none() {
            return Ok(Vec::new());
        }
        let node = OwnedFd::from(self.open_node(directory)?);
        names(&node).with_context(|| format!("listing {directory}"))
    }

    /// The directory that a place lies in, with the place's name there. Missing directories are made.
    ///
    /// # Errors
    /// What the kernel answers; the root has no parent.
    pub(super) fn parent<'p>(&self, place: &'p Place, mode: u32) -> anyhow::Result<(OwnedFd, &'p OsStr)> {
        let (parent, name) = place.split()?;
        let directory = self.make_directories(parent, mode);
        Ok((directory.with_context(|| format!("making the directories that lead to {place}"))?, name))
    }

    /// Makes a directory and what leads to it, where missing.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn make_directory(&self, place: &Place) -> anyhow::Result<()> {
        self.make_directories(&place.0, PARENT_MODE).with_context(|| format!("making {place}"))?;
        Ok(())
    }

    /// Sets owner and permissions of a file or directory, where they differ. Where no mode is said, it stays, the
    /// bits too that a change of owner would clear.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn set_permissions(&self, place: &Place, owner: Owner, mode: Option<u32>) -> anyhow::Result<()> {
        let node = self.open_node(place)?;
        let before = fs::fstat(&node).with_context(|| format!("looking at {place}"))?;
        let mode = mode.unwrap_or(permissions(&before));
        let set = || -> io::Result<()> {
            if owner.or(&before) != Owner::default().or(&before) {
                let (uid, gid) = owner.numbers();
                fs::fchown(&node, uid, gid)?;
            }
            if permissions(&fs::fstat(&node)?) != mode {
                fs::fchmod(&node, Mode::from_raw_mode(mode))?;
            }
            Ok(())
        };
        set().with_context(|| format!("setting owner and mode of {place}"))
    }

    /// Removes what is there, if anything, with all below it.
    ///
    /// # Errors
    /// What the kernel answers; when a file system is mounted there or below.
    pub(super) fn remove(&self, place: &Place) -> anyhow::Result<()> {
        let (parent, name) = place.split()?;
        match self.directory(parent) {
            Ok(parent) => remove_at(parent.as_fd(), name).with_context(|| format!("removing {place}")),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("removing {place}")),
        }
    }

    /// Writes a whole file, unless it is there already with this content, owner and mode. What else is there, other
    /// than a directory, is replaced.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn write(&self, place: &Place, content: &[u8], file: Attributes) -> anyhow::Result<()> {
        let (parent, name) = self.parent(place, file.parent_mode)?;
        let write = || -> anyhow::Result<()> {
            let (draft, mut out) = Draft::file(&parent)?;
            out.write_all(content)?;
            finish(&out, file.owner, file.mode)?;
            if !self.is_same(place, &out)? {
                draft.put(name)?;
            }
            Ok(())
        };
        write().with_context(|| format!("writing {place}"))
    }

    /// Whether a regular file with the draft's content, owner and mode is there.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn is_same(&self, place: &Place, draft: &File) -> anyhow::Result<bool> {
        let Some(node) = self.stat(place)?.filter(is_file) else { return Ok(false) };
        let wanted = fs::fstat(draft)?;
        let facts = |stat: &Stat| (stat.st_size, stat.st_uid, stat.st_gid, permissions(stat));
        Ok(facts(&node) == facts(&wanted) && same_content(&self.open_node(place)?, draft)?)
    }

    /// Makes what was renamed last through a power cut, on whatever file systems below the root.
    pub(super) fn flush(&self) {
        fs::sync();
    }

    /// Opens a directory without following links; it is there.
    fn directory(&self, components: &[OsString]) -> rustix::io::Result<OwnedFd> {
        components
            .iter()
            .try_fold(rustix::io::dup(&self.root)?, |directory, name| fs::openat(&directory, name, WALK, Mode::empty()))
    }

    fn make_directories(&self, components: &[OsString], mode: u32) -> rustix::io::Result<OwnedFd> {
        components.iter().try_fold(rustix::io::dup(&self.root)?, |directory, name| {
            match fs::openat(&directory, name, WALK, Mode::empty()) {
                Err(Errno::NOENT) => {
                    fs::mkdirat(&directory, name, Mode::from_raw_mode(mode))?;
                    fs::openat(&directory, name, WALK, Mode::empty())
                }
                other => other,
            }
        })
    }
}

/// What a file that is written whole is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    /// Its permissions.
    pub(super) mode: u32,
    /// Its owner; the process's own where nothing is said.
    pub(super) owner: Owner,
    /// Permissions of directories that are made for it.
    pub(super) parent_mode: u32,
}

impl Attributes {
    /// Of the process's own user, in directories for all.
    pub(super) fn mode(mode: u32) -> Self {
        Self { mode, owner: Owner::default(), parent_mode: PARENT_MODE }
    }
}

/// A node beside its place, before it has its name. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    directory: &'a OwnedFd,
}

impl<'a> Draft<'a> {
    /// An empty file that only its owner can read.
    pub(super) fn file(directory: &'a OwnedFd) -> rustix::io::Result<(Self, File)> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        clear(directory)?;
        let file = fs::openat(directory, DRAFT, flags, Mode::from_raw_mode(0o600))?;
        Ok((Self { directory }, file.into()))
    }

    /// A symbolic link.
    pub(super) fn symbolic_link(directory: &'a OwnedFd, target: &str, owner: Owner) -> rustix::io::Result<Self> {
        clear(directory)?;
        fs::symlinkat(target, directory, DRAFT)?;
        let draft = Self { directory };
        let (uid, gid) = owner.numbers();
        if uid.is_some() || gid.is_some() {
            fs::chownat(directory, DRAFT, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(draft)
    }

    /// Another name of the node that is at `target`; a symbolic link there is not followed.
    pub(super) fn hard_link(directory: &'a OwnedFd, tree: &Tree, target: &Place) -> anyhow::Result<Self> {
        clear(directory)?;
        let (parent, name) = target.split()?;
        fs::linkat(tree.directory(parent)?, name, directory, DRAFT, AtFlags::empty())?;
        Ok(Self { directory })
    }

    /// Gives it its name. Anything there but a directory is replaced in one step.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn put(self, name: &OsStr) -> rustix::io::Result<()> {
        fs::renameat(self.directory, DRAFT, self.directory, name)
    }

    /// As [`Self::put`], but a directory there is removed first.
    ///
    /// # Errors
    /// As [`Tree::remove`].
    pub(super) fn put_over(self, name: &OsStr) -> anyhow::Result<()> {
        match fs::renameat(self.directory, DRAFT, self.directory, name) {
            Err(Errno::ISDIR) => {
                remove_at(self.directory.as_fd(), name)?;
                Ok(self.put(name)?)
            }
            other => Ok(other?),
        }
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        // After the rename there is none; else it is of no use, and the next draft replaces it.
        let _ = clear(self.directory);
    }
}

/// Gives a file its owner, then its mode, and flushes it.
///
/// # Errors
/// What the kernel answers.
pub(super) fn finish(file: &File, owner: Owner, mode: u32) -> io::Result<()> {
    let (uid, gid) = owner.numbers();
    if uid.is_some() || gid.is_some() {
        fs::fchown(file, uid, gid)?;
    }
    fs::fchmod(file, Mode::from_raw_mode(mode))?;
    file.sync_all()
}

/// The names in an open directory, sorted.
fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort();
    Ok(names)
}

/// Removes a draft that an earlier run left.
fn clear(directory: &OwnedFd) -> rustix::io::Result<()> {
    match fs::unlinkat(directory, DRAFT, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// A path's names and `..`, last first. What else a path may hold says nothing.
fn components_reversed(path: &Path) -> Vec<OsString> {
    let wanted = |component: &Component<'_>| matches!(component, Component::Normal(_) | Component::ParentDir);
    path.components().rev().filter(wanted).map(|component| component.as_os_str().to_owned()).collect()
}

/// Whether two files hold the same bytes, each read from its beginning.
fn same_content(one: &File, other: &File) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut offset = 0;
    loop {
        let read = one.read_at(&mut left, offset)?;
        if read == 0 {
            return Ok(other.read_at(&mut right, offset)? == 0);
        }
        match other.read_exact_at(&mut right[..read], offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            result => result?,
        }
        if left[..read] != right[..read] {
            return Ok(false);
        }
        offset += read as u64;
    }
}

/// Removes a node with all below it, never across a mount point: what is mounted there was not named.
fn remove_at(parent: BorrowedFd<'_>, name: &OsStr) -> anyhow::Result<()> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error).with_context(|| name.display().to_string()),
    }
    let context = || name.display().to_string();
    let directory = fs::openat(parent, name, READ | OFlags::DIRECTORY, Mode::empty()).with_context(context)?;
    let facts = fs::statx(&directory, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).with_context(context)?;
    if facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        bail!("a file system is mounted at {}", name.display());
    }
    let names = names(&directory).with_context(context)?;
    names.iter().try_for_each(|name| remove_at(directory.as_fd(), name)).with_context(context)?;
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR).with_context(context)
}
