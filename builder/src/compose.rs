//! The root tree of an image: packages laid over each other, then what Debian's maintainer scripts would have done.
//!
//! Nothing of the target is executed. Users and groups come from a table, units are enabled by links, the CA bundle,
//! module indexes and `os-release` are computed, `/var` becomes a factory that the first stage copies from.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use rootfs::pack::Contents;
use rootfs::{Content, Meta, Node, Pack, Tree};

use crate::component::{Laid, Place};
use crate::kmod::Modules;
use crate::passwd::Table;
use crate::plan::BuildPlan;
use crate::recipe::{Recipe, Set};
use crate::units;
use crate::unpack::{Entry, Kind, Unpacked};

/// Where the first-boot binary lies in the root.
pub const FIRSTBOOT: &str = "usr/lib/nodezero/nodezero-firstboot";
/// Where the content of `/var` lies until the first stage copies it to `state`.
const FACTORY: &str = "usr/share/factory/var";
/// Top-level directories that hold a machine's own data: links into `/var`, with mode and the name there.
const LINKED: [(&str, &str, u16); 6] = [
    ("home", "var/home", 0o755),
    ("root", "var/roothome", 0o700),
    ("opt", "var/opt", 0o755),
    ("srv", "var/srv", 0o755),
    ("mnt", "var/mnt", 0o755),
    ("media", "var/media", 0o755),
];
/// Directories that must exist as mount points in a read-only root.
const MOUNT_POINTS: [(&str, u16); 9] = [
    ("boot", 0o755),
    ("dev", 0o755),
    ("efi", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
];

/// The text of a file, wherever its content is.
///
/// # Errors
/// When its pack is damaged, or it is not UTF-8.
pub fn read_text(contents: &mut Contents<'_>, content: &Content) -> Result<String> {
    String::from_utf8(contents.read(content)?).map_err(|_| anyhow!("not a text file"))
}

/// What a tree is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Names and versions.
    pub plan: &'a BuildPlan,
    /// Sets, links, units.
    pub recipe: &'a Recipe,
    /// Packages, in the order of `packs`.
    pub packages: &'a [Unpacked],
    /// The contents of the packages.
    pub packs: &'a [Pack],
    /// What components lay in; their packs stand behind those of packages.
    pub components: &'a [Laid],
    /// Users and groups.
    pub users: &'a Table,
    /// The first-boot binary.
    pub firstboot: &'a [u8],
    /// Kernel version and modules.
    pub kernel: &'a Kernel,
}

/// The kernel of an image.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub version: String,
    /// Its modules, without those that the recipe drops.
    pub modules: Modules,
    /// `modules.builtin`.
    pub builtin: String,
    /// `modules.builtin.modinfo`.
    pub builtin_modinfo: Vec<u8>,
}

/// Composes the root tree.
///
/// # Errors
/// When packages conflict, or the recipe asks for something that they do not give.
pub fn compose(inputs: Inputs<'_>) -> Result<Tree> {
    let mut tree = Tree::new();
    lay_packages(&mut tree, &inputs)?;
    lay_components(&mut tree, &inputs)?;
    for set in &inputs.recipe.sets {
        if let Some(dir) = &set.files {
            lay_files(&mut tree, dir, dir).with_context(|| format!("laying in {}", dir.display()))?;
        }
    }
    let mut contents = Contents::new(inputs.packs)?;
    make_accounts(&mut tree, &mut contents, inputs.users)?;
    make_os_release(&mut tree, inputs.plan)?;
    make_ca_bundle(&mut tree, &mut contents)?;
    make_module_indexes(&mut tree, inputs.kernel)?;
    tree.replace(FIRSTBOOT, Node::inline(0o755, inputs.firstboot))?;
    tree.replace("usr/bin/nodezero-firstboot", Node::symlink("../lib/nodezero/nodezero-firstboot"))?;
    for set in &inputs.recipe.sets {
        apply_set(&mut tree, &mut contents, set, inputs.users)?;
    }
    // Empty: the first stage writes the machine's own into the overlay before systemd starts.
    tree.replace("etc/machine-id", Node::inline(0o444, &b""[..]))?;
    move_var(&mut tree)?;
    for (path, mode) in MOUNT_POINTS {
        tree.insert(path, Node::directory(mode))?;
        if let Some(node) = tree.lookup_mut(path) {
            *node.meta_mut() = Meta::new(mode);
        }
    }
    Ok(tree)
}

fn lay_packages(tree: &mut Tree, inputs: &Inputs<'_>) -> Result<()> {
    let dropped = inputs.recipe.dropped();
    // base-files brings the links that merge /usr, so it comes first.
    let mut order: Vec<usize> = (0..inputs.packages.len()).collect();
    order.sort_by_key(|index| inputs.packages[*index].pin.name != "base-files");
    for index in order {
        let package = &inputs.packages[index];
        for entry in &package.index.entries {
            if dropped.covers(&entry.path)
                || entry.path.is_empty()
                || entry.path == "boot"
                || entry.path.starts_with("boot/")
            {
                continue;
            }
            let node = entry_node(entry, index, &inputs.packs[index], inputs.users)
                .with_context(|| format!("package {}: /{}", package.pin.name, entry.path))?;
            let same = |there: &Node| same_file(there, &node);
            if !matches!(entry.kind, Kind::Directory) && tree.lookup(&entry.path).is_some_and(same) {
                continue;
            }
            tree.insert_with_parents(&entry.path, node).with_context(|| {
                let others: Vec<&str> = inputs
                    .packages
                    .iter()
                    .filter(|other| other.pin.name != package.pin.name)
                    .filter(|other| other.index.entries.iter().any(|theirs| theirs.path == entry.path))
                    .map(|other| other.pin.name.as_str())
                    .collect();
                let beside = if others.is_empty() { String::new() } else { format!(" beside {}", others.join(", ")) };
                format!("laying in /{} of package {}{beside}", entry.path, package.pin.name)
            })?;
        }
    }
    Ok(())
}

fn lay_components(tree: &mut Tree, inputs: &Inputs<'_>) -> Result<()> {
    for laid in inputs.components {
        let node = match &laid.place {
            Place::Link { target } => Node::symlink(target.as_str()),
            Place::Packed { pack, mode } => {
                let index = inputs.packages.len() + pack;
                let id = rootfs::PackId::new(u32::try_from(index).context("more packages than an image can have")?);
                let content = inputs.packs.get(index).and_then(|pack| pack.content(id, rootfs::FileId::new(0)));
                Node::file(*mode, content.context("the pack does not hold it")?)
            }
        };
        tree.insert_with_parents(&laid.path, node)
            .with_context(|| format!("laying in /{} of a component", laid.path))?;
    }
    Ok(())
}

/// Two packages may ship the same file.
fn same_file(there: &Node, new: &Node) -> bool {
    match (there, new) {
        (Node::File { content: a, .. }, Node::File { content: b, .. }) => a.digest() == b.digest(),
        (a, b) => a == b,
    }
}

fn entry_node(entry: &Entry, index: usize, pack: &Pack, users: &Table) -> Result<Node> {
    let uid = users.uid(&entry.owner).or((entry.owner.is_empty()).then_some(entry.uid));
    let gid = users.gid(&entry.group).or((entry.group.is_empty()).then_some(entry.gid));
    let meta = Meta {
        mode: entry.mode,
        uid: uid.with_context(|| format!("owner {} is not in images/users.toml", entry.owner))?,
        gid: gid.with_context(|| format!("group {} is not in images/users.toml", entry.group))?,
        xattrs: entry.xattrs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.clone())).collect(),
    };
    Ok(match &entry.kind {
        Kind::Directory => Node::Directory(rootfs::Directory::new(meta)),
        Kind::Symlink { target } => Node::Symlink { meta, target: target.as_bytes().to_vec() },
        Kind::File { file } => {
            let id = rootfs::PackId::new(u32::try_from(index).context("more packages than an image can have")?);
            let content = pack.content(id, rootfs::FileId::new(*file)).context("the pack does not hold it")?;
            Node::File { meta, content }
        }
        Kind::Fifo => Node::Fifo { meta },
    })
}

/// Lays a directory of `images/files` in, over what packages brought. Files are 0644 and of root; `[[mode]]` entries
/// say otherwise, so that no mode of a checkout reaches an image.
fn lay_files(tree: &mut Tree, top: &Path, dir: &Path) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(dir)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .with_context(|| format!("reading {}", dir.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = path.strip_prefix(top).context("a directory's entries lie in it")?;
        let place = name.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        let kind = entry.file_type().with_context(|| format!("reading {}", path.display()))?;
        let reading = || format!("reading {}", path.display());
        if kind.is_dir() {
            tree.insert_with_parents(place, Node::directory(0o755))?;
            lay_files(tree, top, &path)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).with_context(reading)?;
            tree.replace(place, Node::symlink(target.to_str().with_context(reading)?))?;
        } else {
            tree.replace(place, Node::inline(0o644, fs::read(&path).with_context(reading)?))?;
        }
    }
    Ok(())
}

fn make_accounts(tree: &mut Tree, contents: &mut Contents<'_>, users: &Table) -> Result<()> {
    for dir in ["usr/lib/sysusers.d", "etc/sysusers.d"] {
        let Some(Node::Directory(directory)) = tree.lookup(dir) else { continue };
        for (name, node) in directory.entries() {
            if let Node::File { content, .. } = node {
                let path = format!("/{dir}/{}", String::from_utf8_lossy(name));
                users.check_sysusers(&path, &read_text(contents, content)?)?;
            }
        }
    }
    let shadow = users.gid("shadow").unwrap_or(0);
    for (path, mode, gid, text) in [
        ("etc/passwd", 0o644, 0, users.passwd()),
        ("etc/group", 0o644, 0, users.group()),
        ("etc/shadow", 0o640, shadow, users.shadow()),
        ("etc/gshadow", 0o640, shadow, users.gshadow()),
    ] {
        let meta = Meta { gid, ..Meta::new(mode) };
        tree.replace(path, Node::File { meta, content: Content::Inline(text.into_bytes().into()) })?;
    }
    Ok(())
}

/// The image's identity, os-release(5). It stands in the UKI too, where systemd-boot reads it.
#[must_use]
pub fn os_release(plan: &BuildPlan) -> String {
    let mut text = String::new();
    let title = format!("NodeZero {} {}", plan.role, plan.version);
    for (key, value) in [
        ("NAME", "NodeZero"),
        ("ID", "nodezero"),
        ("ID_LIKE", "debian"),
        ("PRETTY_NAME", title.as_str()),
        ("VERSION_ID", plan.version.as_str()),
        ("VERSION_CODENAME", "trixie"),
        ("VARIANT_ID", plan.role.name()),
        ("IMAGE_ID", plan.name.as_str()),
        ("IMAGE_VERSION", plan.version.as_str()),
    ] {
        let _ = writeln!(text, "{key}=\"{value}\"");
    }
    let standins = plan.standins().join(" ");
    if !standins.is_empty() {
        let _ = writeln!(text, "VARIANT=\"{} with a stand-in for {standins}: for tests only\"", plan.role);
        let _ = writeln!(text, "NODEZERO_STANDIN=\"{standins}\"");
    }
    if !plan.missing.is_empty() {
        let _ = writeln!(text, "NODEZERO_MISSING=\"{}\"", plan.missing.join(" "));
    }
    text
}

fn make_os_release(tree: &mut Tree, plan: &BuildPlan) -> Result<()> {
    tree.replace("usr/lib/os-release", Node::inline(0o644, os_release(plan).into_bytes()))?;
    tree.replace("etc/os-release", Node::symlink("../usr/lib/os-release"))?;
    Ok(())
}

/// `update-ca-certificates`: all certificates of ca-certificates in one file, in the order of their names.
fn make_ca_bundle(tree: &mut Tree, contents: &mut Contents<'_>) -> Result<()> {
    let dir = "usr/share/ca-certificates/mozilla";
    let Some(Node::Directory(directory)) = tree.lookup(dir) else { return Ok(()) };
    let mut bundle = String::new();
    for (name, node) in directory.entries() {
        let Node::File { content, .. } = node else { continue };
        let text = read_text(contents, content).with_context(|| format!("/{dir}/{}", String::from_utf8_lossy(name)))?;
        bundle.push_str(text.trim_end());
        bundle.push('\n');
    }
    if bundle.is_empty() {
        bail!("/{dir} holds no certificates, so nothing could be verified from this image");
    }
    tree.replace("etc/ssl/certs/ca-certificates.crt", Node::inline(0o644, bundle.into_bytes()))?;
    // Only update-ca-certificates reads the single files.
    tree.remove("usr/share/ca-certificates");
    Ok(())
}

fn make_module_indexes(tree: &mut Tree, kernel: &Kernel) -> Result<()> {
    let indexes = kernel.modules.indexes(&kernel.builtin, &kernel.builtin_modinfo, ToOwned::to_owned)?;
    for (name, bytes) in indexes {
        tree.replace(format!("usr/lib/modules/{}/{name}", kernel.version), Node::inline(0o644, bytes))?;
    }
    Ok(())
}

fn apply_set(tree: &mut Tree, contents: &mut Contents<'_>, set: &Set, users: &Table) -> Result<()> {
    for link in &set.links {
        let path = link.path.as_str();
        tree.replace(path, Node::symlink(link.target.as_str()))
            .with_context(|| format!("{}: link /{}", link.origin, link.path))?;
    }
    for unit in &set.masks {
        units::mask(tree, &unit.name).with_context(|| unit.origin.to_string())?;
    }
    for unit in &set.enables {
        units::enable(tree, contents, &unit.name).with_context(|| unit.origin.to_string())?;
    }
    for mode in &set.modes {
        let node = tree
            .lookup_mut(&mode.path)
            .with_context(|| format!("{}: /{} is not in the image", mode.origin, mode.path))?;
        let account = |found: Option<u32>, name: &str| {
            found.with_context(|| format!("{}: {name} is not in images/users.toml", mode.origin))
        };
        let meta = node.meta_mut();
        meta.mode = mode.mode;
        meta.uid = account(users.uid(&mode.owner), &mode.owner)?;
        meta.gid = account(users.gid(&mode.group), &mode.group)?;
    }
    Ok(())
}

/// Moves what packages have in `/var`, and the directories that live there, to the factory.
fn move_var(tree: &mut Tree) -> Result<()> {
    let mut factory: BTreeMap<Vec<u8>, Node> = BTreeMap::new();
    if let Some(Node::Directory(var)) = tree.remove("var") {
        factory = var.entries().map(|(name, node)| (name.to_vec(), node.clone())).collect();
    }
    // These belong to the running system alone.
    for name in [&b"run"[..], b"lock"] {
        factory.remove(name);
    }
    for (name, target, mode) in LINKED {
        tree.remove(name);
        tree.insert(name, Node::symlink(target))?;
        let below = target.trim_start_matches("var/").as_bytes().to_vec();
        factory.entry(below).or_insert_with(|| Node::directory(mode)).meta_mut().mode = mode;
    }
    factory.insert(b"tmp".to_vec(), Node::directory(0o1777));
    factory.insert(b"run".to_vec(), Node::symlink("../run"));
    factory.insert(b"lock".to_vec(), Node::symlink("../run/lock"));
    tree.insert_with_parents(FACTORY, Node::directory(0o755))?;
    for (name, node) in factory {
        let path = [FACTORY.as_bytes(), b"/", &name].concat();
        tree.insert(path, node)?;
    }
    Ok(())
}
