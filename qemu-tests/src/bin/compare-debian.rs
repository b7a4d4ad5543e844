//! Compares the root of an image with what Debian's own tools install from the same packages.
//!
//! The builder lays packages out without running a maintainer script; `images/` says what stands in for each. This
//! tool shows what that leaves different from a real installation, so that a person can judge every line:
//!
//! ```text
//! compare-debian --image IMAGE.raw --debian DIR    the comparison, sorted, a summary at its end
//! compare-debian --image IMAGE.raw --packages      the image's packages, for mmdebstrap's --include
//! ```
//!
//! `qemu-tests/compare-debian.sh` makes DIR and calls it. The image is read through `nodezero inspect` (modes, owners,
//! links, packages) and unsquashfs (contents); `images/README.md` records what differs and why.
//!
//! Before comparing, `/usr/share/factory/var` of the image is taken for its `/var`, and owners become names, because
//! ids differ on purpose. Left out: file capabilities and other extended attributes, hard links, time stamps,
//! diversions, and the contents of `/dev`, `/proc`, `/run`, `/sys` and `/tmp`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use nodezero::glob::Dropped;
use nodezero::recipe::{self, Recipe};
use qemu_tests::{images, tools};
use serde_json::Value;

const USAGE: &str = "usage: compare-debian --image IMAGE.raw (--debian DIR [--all] | --packages) [--images DIR]";
/// Directories that only a running system fills.
const RUNTIME: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];
/// Where the image keeps what the first stage copies to `/var`.
const FACTORY: &str = "usr/share/factory/var";
/// Links that merge `/usr`; packages' lists may still name files through them.
const MERGED: [&str; 4] = ["bin/", "lib/", "lib64/", "sbin/"];
/// Links followed before a chain counts as a loop, as in Linux.
const MAX_LINKS: usize = 40;
const UNIT_DIRS: [&str; 4] =
    ["etc/systemd/system/", "etc/systemd/user/", "usr/lib/systemd/system/", "usr/lib/systemd/user/"];

/// Entries of one directory that are listed singly, unless `--all` is given.
const LISTED: usize = 40;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare-debian: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments = Arguments::parse(std::env::args_os().skip(1))?;
    let inspected = inspect(&arguments.image)?;
    let Some(debian) = &arguments.debian else {
        let packages = packages_of_image(&inspected)?;
        println!("{}", packages.keys().cloned().collect::<Vec<_>>().join(","));
        return Ok(());
    };
    let (role, platform) = (text(&inspected, "/image/role")?, text(&inspected, "/image/platform")?);
    let images = recipe::find_images(arguments.images.as_deref())?;
    let recipe = Recipe::load(&images, role.parse()?, Some(platform.parse().map_err(anyhow::Error::msg)?))?;
    let unpacked = tempfile::tempdir().context("making a temporary directory")?;
    let image = image_side(&arguments.image, &inspected, &unpacked.path().join("root"))?;
    let debian = debian_side(debian)?;
    print!("{}", Comparison { image: &image, debian: &debian, recipe: &recipe }.report(arguments.all));
    Ok(())
}

#[derive(Debug)]
struct Arguments {
    image: PathBuf,
    /// `None` to list packages.
    debian: Option<PathBuf>,
    images: Option<PathBuf>,
    all: bool,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self> {
        let (mut image, mut debian, mut images, mut all, mut packages) = (None, None, None, false, false);
        while let Some(word) = words.next() {
            let mut value =
                || words.next().map(PathBuf::from).with_context(|| format!("{word:?} needs a value\n{USAGE}"));
            match word.to_str() {
                Some("--image") => image = Some(value()?),
                Some("--debian") => debian = Some(value()?),
                Some("--images") => images = Some(value()?),
                Some("--all") => all = true,
                Some("--packages") => packages = true,
                _ => bail!("unknown argument {word:?}\n{USAGE}"),
            }
        }
        if debian.is_some() == packages {
            bail!("give either --debian or --packages\n{USAGE}");
        }
        Ok(Self { image: image.with_context(|| format!("--image is missing\n{USAGE}"))?, debian, images, all })
    }
}

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    Symlink(String),
    /// A device, FIFO or socket, by the letter that ls(1) shows.
    Special(char),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    kind: Kind,
    mode: u32,
    /// `user:group`, by name where the tree's own tables know the ids.
    owner: String,
}

impl Node {
    fn describe(&self) -> String {
        match &self.kind {
            Kind::File => "file".to_owned(),
            Kind::Directory => "directory".to_owned(),
            Kind::Symlink(target) => format!("-> {target}"),
            Kind::Special(letter) => format!("special file ({letter})"),
        }
    }
}

/// Paths relative to the root.
type Files = BTreeMap<String, Node>;

/// One of the two trees.
#[derive(Debug)]
struct Side {
    files: Files,
    /// Where contents lie.
    root: PathBuf,
    /// Where the contents of `/var` lie.
    var: PathBuf,
    /// Versions by name.
    packages: BTreeMap<String, String>,
    /// Packages by the paths that they list; empty for an image, which has no such lists.
    owners: BTreeMap<String, BTreeSet<String>>,
    accounts: Accounts,
}

impl Side {
    fn content(&self, path: &str) -> Result<Vec<u8>> {
        let place = path.strip_prefix("var/").map_or_else(|| self.root.join(path), |below| self.var.join(below));
        fs::read(&place).with_context(|| format!("reading {}", place.display()))
    }

    /// Where a path leads in the end; the path itself, with its links resolved, when nothing is there.
    fn resolve(&self, path: &str) -> String {
        let mut pending: Vec<String> = path.rsplit('/').map(str::to_owned).collect();
        let mut done: Vec<String> = Vec::new();
        let mut followed = 0;
        while let Some(part) = pending.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => drop(done.pop()),
                _ => done.push(part),
            }
            if let Some(Node { kind: Kind::Symlink(target), .. }) = self.files.get(&done.join("/")) {
                followed += 1;
                if followed > MAX_LINKS {
                    return format!("loop of links at {path}");
                }
                if target.starts_with('/') {
                    done.clear();
                } else {
                    done.pop();
                }
                pending.extend(target.rsplit('/').map(str::to_owned));
            }
        }
        done.join("/")
    }
}

/// The account files of a tree.
#[derive(Debug, Default)]
struct Accounts {
    users: BTreeMap<String, BTreeMap<&'static str, String>>,
    groups: BTreeMap<String, BTreeMap<&'static str, String>>,
    user_names: BTreeMap<String, String>,
    group_names: BTreeMap<String, String>,
}

impl Accounts {
    fn read(root: &Path) -> Result<Self> {
        let table = |name: &str| -> Result<Vec<Vec<String>>> {
            let path = root.join("etc").join(name);
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            Ok(text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect())
        };
        let mut accounts = Self::default();
        for fields in table("group")? {
            let [name, _, gid, members] = fields.as_slice() else {
                bail!("{}: not a group: {fields:?}", root.display())
            };
            let values = BTreeMap::from([("gid", gid.clone()), ("members", members.clone())]);
            accounts.group_names.insert(gid.clone(), name.clone());
            accounts.groups.insert(name.clone(), values);
        }
        for fields in table("passwd")? {
            let [name, _, uid, gid, comment, home, shell] = fields.as_slice() else {
                bail!("{}: not a user: {fields:?}", root.display())
            };
            let group = accounts.group_names.get(gid).unwrap_or(gid).clone();
            let values = BTreeMap::from([
                ("uid", uid.clone()),
                ("group", group),
                ("comment", comment.clone()),
                ("home", home.clone()),
                ("shell", shell.clone()),
            ]);
            accounts.user_names.insert(uid.clone(), name.clone());
            accounts.users.insert(name.clone(), values);
        }
        for fields in table("shadow")? {
            let [name, password, ..] = fields.as_slice() else { bail!("{}: not a shadow entry", root.display()) };
            if let Some(values) = accounts.users.get_mut(name) {
                let password = match password.as_str() {
                    "" => "empty",
                    // crypt(5) gives no hash that begins with either.
                    locked if locked.starts_with(['!', '*']) => "none",
                    _ => "set",
                };
                values.insert("password", password.to_owned());
            }
        }
        Ok(accounts)
    }

    fn owner(&self, uid: &str, gid: &str) -> String {
        let user = self.user_names.get(uid).map_or(uid, String::as_str);
        let group = self.group_names.get(gid).map_or(gid, String::as_str);
        format!("{user}:{group}")
    }
}

fn inspect(image: &Path) -> Result<Value> {
    let output = tools::run(Command::new(images::nodezero()?).args(["inspect", "--json", "--files"]).arg(image))?;
    serde_json::from_slice(&output).context("reading what nodezero inspect answered")
}

fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("nodezero inspect gave no {pointer}"))
}

fn list<'a>(value: &'a Value, pointer: &str) -> Result<&'a [Value]> {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.map(Vec::as_slice).with_context(|| format!("nodezero inspect gave no {pointer}"))
}

fn packages_of_image(inspected: &Value) -> Result<BTreeMap<String, String>> {
    let packages = list(inspected, "/image/packages")?.iter();
    packages.map(|package| Ok((text(package, "/name")?.to_owned(), text(package, "/version")?.to_owned()))).collect()
}

fn image_side(image: &Path, inspected: &Value, root: &Path) -> Result<Side> {
    let partitions = list(inspected, "/partitions")?;
    let partition =
        partitions.iter().find(|partition| partition["label"] == "root-a").context("the image has no root-a")?;
    let offset = partition["offset"].as_u64().context("nodezero inspect gave no offset of root-a")?;
    let mut command = tools::command("unsquashfs")?;
    command
        .args(["-quiet", "-no-progress", "-no-xattrs", "-offset", &offset.to_string(), "-dest"])
        .arg(root)
        .arg(image);
    tools::run(&mut command)?;
    let accounts = Accounts::read(root)?;
    let mut files = Files::new();
    let mut factory = Files::new();
    for line in list(inspected, "/files")? {
        let line = line.as_str().context("nodezero inspect gave a file that is no text")?;
        let (path, node) = parse_file_line(line, &accounts).with_context(|| format!("reading {line:?}"))?;
        match path.strip_prefix(FACTORY) {
            Some(below) => factory.insert(format!("var{below}"), node),
            None => files.insert(path, node),
        };
    }
    files.extend(factory);
    Ok(Side {
        files,
        root: root.to_owned(),
        var: root.join(FACTORY),
        packages: packages_of_image(inspected)?,
        owners: BTreeMap::new(),
        accounts,
    })
}

/// Reads a line of `nodezero inspect --files`: `-0644 0:0 12 /path`, `l0777 0:0 0 /path -> target`.
fn parse_file_line(line: &str, accounts: &Accounts) -> Result<(String, Node)> {
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().context("a word is missing");
    let (mode, owner, _size, path) = (word()?, word()?, word()?, word()?);
    let (letter, mode) = mode.split_at_checked(1).context("there is no mode")?;
    let mode = u32::from_str_radix(mode, 8).context("the mode is not octal")?;
    let (uid, gid) = owner.split_once(':').context("the owner has no group")?;
    let (path, kind) = match (letter, path.split_once(" -> ")) {
        ("l", Some((path, target))) => (path, Kind::Symlink(target.to_owned())),
        ("-", _) => (path, Kind::File),
        ("d", _) => (path, Kind::Directory),
        ("b" | "c" | "p" | "s", _) => (path, Kind::Special(letter.chars().next().unwrap_or('?'))),
        _ => bail!("unknown kind {letter:?}"),
    };
    let path = path.strip_prefix('/').context("the path is not absolute")?;
    Ok((path.to_owned(), Node { kind, mode, owner: accounts.owner(uid, gid) }))
}

fn debian_side(root: &Path) -> Result<Side> {
    let accounts = Accounts::read(root)?;
    let mut files = Files::new();
    let mut pending = vec![String::new()];
    while let Some(path) = pending.pop() {
        let place = root.join(&path);
        let reading = || format!("reading {}", place.display());
        let meta = fs::symlink_metadata(&place).with_context(reading)?;
        let kind = meta.file_type();
        let kind = if kind.is_dir() {
            Kind::Directory
        } else if kind.is_symlink() {
            Kind::Symlink(fs::read_link(&place).with_context(reading)?.to_string_lossy().into_owned())
        } else if kind.is_file() {
            Kind::File
        } else {
            let letters = [(kind.is_block_device(), 'b'), (kind.is_char_device(), 'c'), (kind.is_fifo(), 'p')];
            Kind::Special(letters.iter().find(|(is, _)| *is).map_or('s', |(_, letter)| *letter))
        };
        if kind == Kind::Directory && !RUNTIME.contains(&path.as_str()) {
            for entry in fs::read_dir(&place).with_context(reading)? {
                let name = entry.with_context(reading)?.file_name();
                pending.push(format!("{path}{}{}", if path.is_empty() { "" } else { "/" }, name.to_string_lossy()));
            }
        }
        let owner = accounts.owner(&meta.uid().to_string(), &meta.gid().to_string());
        files.insert(path, Node { kind, mode: meta.mode() & 0o7777, owner });
    }
    let info = root.join("var/lib/dpkg");
    Ok(Side {
        files,
        root: root.to_owned(),
        var: root.join("var"),
        packages: installed(&info.join("status"))?,
        owners: owners(&info.join("info"))?,
        accounts,
    })
}

/// Names and versions of the packages that dpkg's status file calls installed.
fn installed(path: &Path) -> Result<BTreeMap<String, String>> {
    let status = fs::read_to_string(path)
        .with_context(|| format!("reading {}: is it an installation of Debian", path.display()))?;
    let mut packages = BTreeMap::new();
    for stanza in status.split("\n\n") {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        if let (Some(name), Some(version), Some("install ok installed")) =
            (field("Package"), field("Version"), field("Status"))
        {
            packages.insert(name.to_owned(), version.to_owned());
        }
    }
    Ok(packages)
}

/// The packages that list each path, from dpkg's `info/*.list`.
fn owners(info: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut owners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let reading = || format!("reading {}", info.display());
    for entry in fs::read_dir(info).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".list")) else { continue };
        let package = name.split(':').next().unwrap_or(name);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        for line in text.lines() {
            let relative = line.trim_start_matches('/');
            let merged = MERGED.iter().any(|dir| relative.starts_with(dir));
            let path = if merged { format!("usr/{relative}") } else { relative.to_owned() };
            owners.entry(path).or_default().insert(package.to_owned());
        }
    }
    Ok(owners)
}

/// Why a path is in Debian's tree alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Absence {
    /// A rule of the recipe leaves it out.
    Dropped,
    /// Its packages are not in the image.
    OtherPackage,
    /// A package of the image has it, and no rule leaves it out.
    Unexplained,
    /// No package lists it: a maintainer script or a trigger made it.
    Made,
}

struct Comparison<'a> {
    image: &'a Side,
    debian: &'a Side,
    recipe: &'a Recipe,
}

/// One category of differences: its title and its lines.
type Category = (&'static str, Vec<String>);

impl Comparison<'_> {
    fn report(&self, all: bool) -> String {
        let mut categories = vec![
            ("packages whose versions differ", self.versions()),
            ("packages in Debian's installation alone", self.other_packages()),
            ("users", accounts(&self.debian.accounts.users, &self.image.accounts.users)),
            ("groups", accounts(&self.debian.accounts.groups, &self.image.accounts.groups)),
            ("units' links", self.units()),
        ];
        let absent = self.absent();
        let titles = [
            (Absence::Unexplained, "in Debian alone, of a package of the image, and no rule drops it"),
            (Absence::Made, "in Debian alone, of no package: made at installation"),
            (Absence::Dropped, "in Debian alone, dropped by a rule of images/"),
            (Absence::OtherPackage, "in Debian alone, of a package that the image does not have"),
        ];
        let mut hidden = Vec::new();
        for (absence, title) in titles {
            let paths: BTreeSet<&str> =
                absent.iter().filter(|(_, of)| **of == absence).map(|(path, _)| *path).collect();
            match absence {
                Absence::Dropped | Absence::OtherPackage if !all => hidden.push((title, paths.len())),
                _ => categories.push((title, self.collapse(&paths, all))),
            }
        }
        categories.extend(self.image_alone());
        categories.extend(self.common());
        let mut report = String::new();
        for (title, lines) in &categories {
            report.push_str(&format!("== {title}: {}\n", lines.len()));
            lines.iter().for_each(|line| report.push_str(&format!("  {line}\n")));
            report.push('\n');
        }
        report.push_str("== summary\n");
        let counts = categories.iter().map(|(title, lines)| (*title, lines.len(), "lines"));
        for (title, count, what) in
            counts.chain(hidden.into_iter().map(|(title, count)| (title, count, "paths; --all lists them")))
        {
            report.push_str(&format!("{count:7} {what:24} {title}\n"));
        }
        report
    }

    fn versions(&self) -> Vec<String> {
        let lines = self.image.packages.iter().filter_map(|(name, ours)| match self.debian.packages.get(name) {
            Some(theirs) if theirs == ours => None,
            Some(theirs) => Some(format!("{name}: Debian {theirs}, image {ours}")),
            None => Some(format!("{name}: not installed in Debian, image {ours}")),
        });
        lines.collect()
    }

    fn other_packages(&self) -> Vec<String> {
        let omitted: BTreeSet<&str> =
            self.recipe.sets.iter().flat_map(|set| &set.omits).map(|omit| omit.name.as_str()).collect();
        let others = self.debian.packages.keys().filter(|name| !self.image.packages.contains_key(*name));
        let lines = others.map(|name| {
            let paths = self
                .debian
                .owners
                .iter()
                .filter(|(path, by)| by.len() == 1 && by.contains(name) && !self.image.files.contains_key(*path));
            let why = if omitted.contains(name.as_str()) {
                "omitted by the recipe"
            } else {
                "Essential, or a dependency of what is omitted"
            };
            format!("{name}: {} paths, {why}", paths.count())
        });
        lines.collect()
    }

    /// Links by which systemd finds what is enabled, masked or an alias.
    fn units(&self) -> Vec<String> {
        let links = |side: &Side| -> BTreeMap<String, String> {
            let of = side.files.iter().filter(|(path, node)| is_unit_link(path, node));
            of.map(|(path, node)| (path.clone(), node.describe())).collect()
        };
        let (debian, image) = (links(self.debian), links(self.image));
        let dropped = self.recipe.dropped();
        let paths: BTreeSet<&String> = debian.keys().chain(image.keys()).collect();
        let lines = paths.into_iter().filter_map(|path| match (debian.get(path), image.get(path)) {
            (Some(_), Some(_)) if self.debian.resolve(path) == self.image.resolve(path) => None,
            (Some(theirs), Some(ours)) => Some(format!("{path}: Debian {theirs}, image {ours}")),
            (Some(theirs), None) => Some(format!("{path}: only Debian {theirs}{}", self.why_absent(path, &dropped))),
            (None, Some(ours)) => Some(format!("{path}: only image {ours}")),
            (None, None) => None,
        });
        lines.collect()
    }

    fn why_absent(&self, path: &str, dropped: &Dropped<'_>) -> String {
        match self.absence(path, dropped) {
            Absence::Dropped => " (dropped)".to_owned(),
            Absence::OtherPackage => format!(" (of {})", self.owned_by(path)),
            Absence::Unexplained | Absence::Made => String::new(),
        }
    }

    fn owned_by(&self, path: &str) -> String {
        let owners = self.debian.owners.get(path).map(|owners| owners.iter().cloned().collect::<Vec<_>>());
        owners.unwrap_or_default().join(", ")
    }

    fn absence(&self, path: &str, dropped: &Dropped<'_>) -> Absence {
        match self.debian.owners.get(path) {
            // What was made in a directory of another package, such as compiled python modules, goes with it.
            None if dropped.covers(path) => Absence::Dropped,
            None if self.nearest_owners(path).is_some_and(|owners| !self.any_in_image(owners)) => Absence::OtherPackage,
            None => Absence::Made,
            // The builder takes the kernel out of its package.
            Some(_) if dropped.covers(path) || path.starts_with("boot/") => Absence::Dropped,
            Some(owners) if self.any_in_image(owners) => Absence::Unexplained,
            Some(_) => Absence::OtherPackage,
        }
    }

    fn any_in_image(&self, owners: &BTreeSet<String>) -> bool {
        owners.iter().any(|owner| self.image.packages.contains_key(owner))
    }

    /// The packages that list the nearest directory above `path` that any lists.
    fn nearest_owners(&self, path: &str) -> Option<&BTreeSet<String>> {
        path.rmatch_indices('/').find_map(|(at, _)| self.debian.owners.get(&path[..at]))
    }

    fn absent(&self) -> BTreeMap<&str, Absence> {
        let dropped = self.recipe.dropped();
        let alone = self.debian.files.iter().filter(|(path, node)| {
            !is_unit_link(path, node) && !is_unit_group(path) && !self.image.files.contains_key(*path)
        });
        alone.map(|(path, _)| (path.as_str(), self.absence(path, &dropped))).collect()
    }

    /// A line for each path; one for a whole directory where all in it is meant, or too much to be read.
    fn collapse(&self, paths: &BTreeSet<&str>, all_lines: bool) -> Vec<String> {
        let all: BTreeMap<String, usize> = below(self.debian.files.keys().map(String::as_str));
        let meant: BTreeMap<String, usize> = below(paths.iter().copied());
        let mut siblings: BTreeMap<&str, usize> = BTreeMap::new();
        paths.iter().for_each(|path| *siblings.entry(parent(path)).or_default() += 1);
        let mut lines = Vec::new();
        let mut collapsed: Option<String> = None;
        let mut summed = BTreeSet::new();
        for path in paths {
            if collapsed.as_ref().is_some_and(|dir| path.starts_with(dir.as_str())) {
                continue;
            }
            let node = &self.debian.files[*path];
            let owners = self.owned_by(path);
            let of = if owners.is_empty() { owners } else { format!(" ({owners})") };
            match meant.get(*path) {
                Some(count) if all.get(*path) == Some(count) => {
                    collapsed = Some(format!("{path}/"));
                    lines.push(format!("{path}/ with {count} below{of}"));
                }
                _ if !all_lines && siblings[parent(path)] > LISTED => {
                    let dir = parent(path);
                    if summed.insert(dir) {
                        lines.push(format!("{dir}/ {} entries, such as {path} {}", siblings[dir], node.describe()));
                    }
                }
                _ => lines.push(format!("{path} {}{of}", node.describe())),
            }
        }
        lines
    }

    fn image_alone(&self) -> Vec<Category> {
        let links: BTreeSet<&str> =
            self.recipe.sets.iter().flat_map(|set| &set.links).map(|link| link.path.as_str()).collect();
        let laid = |path: &str| {
            self.recipe
                .sets
                .iter()
                .filter_map(|set| set.files.as_ref())
                .any(|dir| dir.join(path).symlink_metadata().is_ok())
        };
        let (mut from_files, mut from_links, mut other) = (Vec::new(), Vec::new(), Vec::new());
        for (path, node) in &self.image.files {
            if is_unit_link(path, node) || is_unit_group(path) || self.debian.files.contains_key(path) {
                continue;
            }
            let line = format!("{path} {}", node.describe());
            if laid(path) {
                from_files.push(line);
            } else if links.contains(path.as_str()) {
                from_links.push(line);
            } else {
                other.push(line);
            }
        }
        vec![
            ("in the image alone, laid in from images/files", from_files),
            ("in the image alone, links of images/", from_links),
            ("in the image alone, made by the builder", other),
        ]
    }

    fn common(&self) -> Vec<Category> {
        let (mut kinds, mut ways, mut links, mut modes, mut contents) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (path, ours) in &self.image.files {
            let Some(theirs) = self.debian.files.get(path) else { continue };
            if is_unit_link(path, ours) || is_unit_link(path, theirs) {
                continue;
            }
            let both = format!("{path}: Debian {}, image {}", theirs.describe(), ours.describe());
            match (&theirs.kind, &ours.kind) {
                (Kind::Symlink(a), Kind::Symlink(b)) if a == b => {}
                (Kind::Symlink(_), Kind::Symlink(_)) if self.debian.resolve(path) == self.image.resolve(path) => {
                    ways.push(both)
                }
                (Kind::Symlink(_), Kind::Symlink(_)) => links.push(both),
                (a, b) if a != b => kinds.push(both),
                (Kind::File, _) => match (self.debian.content(path), self.image.content(path)) {
                    (Ok(a), Ok(b)) if a == b => {}
                    (Ok(a), Ok(b)) => {
                        contents.push(format!("{path}: Debian {} bytes, image {} bytes", a.len(), b.len()))
                    }
                    (Err(error), _) | (_, Err(error)) => contents.push(format!("{path}: {error:#}")),
                },
                (Kind::Directory | Kind::Special(_) | Kind::Symlink(_), _) => {}
            }
            let of = |node: &Node| format!("{:04o} {}", node.mode, node.owner);
            if theirs.kind == ours.kind && !matches!(ours.kind, Kind::Symlink(_)) && of(theirs) != of(ours) {
                modes.push(format!("{path}: Debian {}, image {}", of(theirs), of(ours)));
            }
        }
        vec![
            ("in both, of different kinds", kinds),
            ("links that lead elsewhere", links),
            ("links that lead to the same place by another way", ways),
            ("modes and owners", modes),
            ("contents", contents),
        ]
    }
}

/// Whether a path is a link of a unit: of `*.wants` and the like, or of a directory of the machine's own units.
fn is_unit_link(path: &str, node: &Node) -> bool {
    if !matches!(node.kind, Kind::Symlink(_)) {
        return false;
    }
    UNIT_DIRS.iter().filter_map(|dir| Some((dir, path.strip_prefix(dir)?))).any(|(dir, rest)| {
        match rest.split_once('/') {
            None => dir.starts_with("etc/"),
            Some((group, _)) => is_group(group),
        }
    })
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Whether a path is a directory of such links.
fn is_unit_group(path: &str) -> bool {
    UNIT_DIRS.iter().filter_map(|dir| path.strip_prefix(dir)).any(|rest| !rest.contains('/') && is_group(rest))
}

fn is_group(name: &str) -> bool {
    [".wants", ".requires", ".upholds"].iter().any(|end| name.ends_with(end))
}

/// How many of `paths` lie below each directory.
fn below<'a>(paths: impl Iterator<Item = &'a str>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for path in paths {
        for (at, _) in path.match_indices('/') {
            *counts.entry(path[..at].to_owned()).or_default() += 1;
        }
    }
    counts
}

type Table = BTreeMap<String, BTreeMap<&'static str, String>>;

fn accounts(debian: &Table, image: &Table) -> Vec<String> {
    let all = |fields: &BTreeMap<&str, String>| {
        fields.iter().map(|(key, value)| format!("{key} {value:?}")).collect::<Vec<_>>().join(", ")
    };
    let names: BTreeSet<&String> = debian.keys().chain(image.keys()).collect();
    let lines = names.into_iter().filter_map(|name| match (debian.get(name), image.get(name)) {
        (Some(theirs), Some(ours)) => {
            let differ =
                theirs.iter().filter_map(|(key, value)| Some((key, value, ours.get(key)?))).filter(|(_, a, b)| a != b);
            let fields: Vec<String> = differ.map(|(key, a, b)| format!("{key} Debian {a:?}, image {b:?}")).collect();
            (!fields.is_empty()).then(|| format!("{name}: {}", fields.join("; ")))
        }
        (Some(theirs), None) => Some(format!("{name}: only Debian: {}", all(theirs))),
        (None, Some(ours)) => Some(format!("{name}: only image: {}", all(ours))),
        (None, None) => None,
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use nodezero::glob::Glob;

    use super::*;

    fn node(kind: Kind) -> Node {
        Node { kind, mode: 0o777, owner: "root:root".into() }
    }

    fn link(target: &str) -> Node {
        node(Kind::Symlink(target.into()))
    }

    fn side(files: &[(&str, Node)]) -> Side {
        Side {
            files: files.iter().map(|(path, node)| ((*path).to_owned(), node.clone())).collect(),
            root: PathBuf::new(),
            var: PathBuf::new(),
            packages: BTreeMap::new(),
            owners: BTreeMap::new(),
            accounts: Accounts::default(),
        }
    }

    fn no_recipe() -> Recipe {
        Recipe {
            role: "worker".parse().expect("a role"),
            platform: recipe::Platform::Metal,
            sets: Vec::new(),
            boot: recipe::Boot {
                kernel: String::new(),
                loaders: BTreeSet::new(),
                cmdline: Vec::new(),
                modules: Vec::new(),
                load: Vec::new(),
            },
            standins: Vec::new(),
        }
    }

    #[test]
    fn file_lines_of_inspect() {
        let mut accounts = Accounts::default();
        accounts.user_names.insert("0".into(), "root".into());
        let cases = [
            ("-4755 0:7 12 /usr/bin/a b", Some(("usr/bin/a b", Kind::File, 0o4755, "root:7"))),
            ("l0777 0:0 0 /bin -> usr/bin", Some(("bin", Kind::Symlink("usr/bin".into()), 0o777, "root:0"))),
            ("d0755 9:0 0 /", Some(("", Kind::Directory, 0o755, "9:0"))),
            ("c0600 0:0 0 /n", Some(("n", Kind::Special('c'), 0o600, "root:0"))),
            ("l0777 0:0 0 /bin", None),
            ("-0800 0:0 0 /a", None),
            ("x0644 0:0 0 /a", None),
            ("-0644 0:0 0 a", None),
            ("-0644 0:0", None),
            ("", None),
        ];
        for (line, expected) in cases {
            let expected = expected
                .map(|(path, kind, mode, owner)| (path.to_owned(), Node { kind, mode, owner: owner.to_owned() }));
            assert_eq!(parse_file_line(line, &accounts).ok(), expected, "{line:?}");
        }
    }

    #[test]
    fn links_are_followed_to_their_end() {
        let side = side(&[
            ("bin", link("usr/bin")),
            ("usr/bin/awk", link("/etc/alternatives/awk")),
            ("etc/alternatives/awk", link("/bin/mawk")),
            ("usr/bin/up", link("../../../usr/bin/x")),
            ("a", link("b")),
            ("b", link("a")),
        ]);
        for (path, end) in [
            ("usr/bin/awk", "usr/bin/mawk"),
            ("usr/bin/up", "usr/bin/x"),
            ("none", "none"),
            ("a", "loop of links at a"),
        ] {
            assert_eq!(side.resolve(path), end, "{path}");
        }
    }

    #[test]
    fn links_of_units() {
        let cases = [
            ("etc/systemd/system/a.target.wants/b.service", true),
            ("etc/systemd/system/alias.service", true),
            ("usr/lib/systemd/system/a.target.wants/b.service", true),
            ("usr/lib/systemd/user/a.target.upholds/b.service", true),
            ("usr/lib/systemd/system/alias.service", false),
            ("etc/systemd/network/a", false),
        ];
        for (path, expected) in cases {
            assert_eq!(is_unit_link(path, &link("x")), expected, "{path}");
            assert!(!is_unit_link(path, &node(Kind::File)), "{path}");
        }
    }

    #[test]
    fn accounts_differ_by_field() {
        let table = |entries: &[(&str, &str, &str)]| -> Table {
            let of = entries.iter();
            of.map(|(name, gid, members)| {
                ((*name).to_owned(), BTreeMap::from([("gid", (*gid).to_owned()), ("members", (*members).to_owned())]))
            })
            .collect()
        };
        let debian = table(&[("a", "1", ""), ("b", "2", ""), ("c", "3", "")]);
        let image = table(&[("a", "1", ""), ("b", "9", "x"), ("d", "4", "")]);
        assert_eq!(
            accounts(&debian, &image),
            [
                "b: gid Debian \"2\", image \"9\"; members Debian \"\", image \"x\"",
                "c: only Debian: gid \"3\", members \"\"",
                "d: only image: gid \"4\", members \"\"",
            ]
        );
    }

    #[test]
    fn whole_directories_are_one_line() {
        let (image, recipe) = (side(&[]), no_recipe());
        let directory = node(Kind::Directory);
        let file = node(Kind::File);
        let debian = side(&[
            ("a", directory.clone()),
            ("a/b", file.clone()),
            ("a/c", file.clone()),
            ("d", directory),
            ("d/e", file.clone()),
            ("d/f", file),
        ]);
        let comparison = Comparison { image: &image, debian: &debian, recipe: &recipe };
        let paths = BTreeSet::from(["a", "a/b", "a/c", "d", "d/e"]);
        assert_eq!(comparison.collapse(&paths, false), ["a/ with 2 below", "d directory", "d/e file"]);
    }

    #[test]
    fn absences_have_their_reason() {
        let set = |packages: &[&str]| packages.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let mut image = side(&[]);
        image.packages = BTreeMap::from([("ours".to_owned(), "1".to_owned())]);
        let mut debian = side(&[]);
        debian.owners = BTreeMap::from([
            ("usr/bin/a".to_owned(), set(&["ours"])),
            ("usr/bin/b".to_owned(), set(&["theirs"])),
            ("usr/lib/x".to_owned(), set(&["theirs"])),
            ("usr/lib/y".to_owned(), set(&["ours", "theirs"])),
            ("usr/share/doc/a".to_owned(), set(&["ours"])),
        ]);
        let glob = Glob::new("usr/share/doc/**").expect("a valid glob");
        let dropped = Dropped::new([&glob], []);
        let recipe = no_recipe();
        let comparison = Comparison { image: &image, debian: &debian, recipe: &recipe };
        let cases = [
            ("usr/bin/a", Absence::Unexplained),
            ("usr/bin/b", Absence::OtherPackage),
            ("usr/share/doc/a", Absence::Dropped),
            ("usr/share/doc/made", Absence::Dropped),
            ("usr/lib/x/made/deep", Absence::OtherPackage),
            ("usr/lib/y/made", Absence::Made),
            ("made", Absence::Made),
        ];
        for (path, expected) in cases {
            assert_eq!(comparison.absence(path, &dropped), expected, "{path}");
        }
    }
}
