//! Recipes: what is in an image, as the data under `images/` says it.
//!
//! A role names sets; a set lists packages, what is left out of them, links, units and files; a platform adds the
//! kernel, firmware and what the initrd needs. Every entry carries a reason, which this module requires and keeps.
//! Nothing is resolved or read from the network here: see [`crate::lock`] and [`crate::plan`].

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nodezero_profile::Role;
use serde::{Deserialize, Serialize};

use crate::glob::{Dropped, Glob};

mod source;
mod wanted;

pub(crate) use source::Source;
pub use wanted::Wanted;

/// Where an image is to run: it decides kernel, firmware and boot loaders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Bare metal: the full kernel, firmware and microcode; UEFI.
    Metal,
    /// Virtual servers: the cloud kernel; UEFI and BIOS.
    Vps,
}

impl Platform {
    /// All platforms.
    pub const ALL: [Self; 2] = [Self::Metal, Self::Vps];

    /// The name as in files and arguments.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Metal => "metal",
            Self::Vps => "vps",
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|platform| platform.name() == word)
            .ok_or_else(|| format!("{word:?} is not a platform: use metal or vps"))
    }
}

/// A firmware interface that an image boots on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loader {
    /// systemd-boot and UKIs.
    Uefi,
    /// syslinux from the same ESP.
    Bios,
}

/// Where in the recipe something was asked for: file, line and column, for messages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Origin {
    file: PathBuf,
    line: usize,
    column: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// Something of a recipe that stands for itself: a package, an omitted package, a unit.
#[derive(Clone, Debug)]
pub struct Named {
    /// The package or unit.
    pub name: String,
    /// Why the recipe has it.
    pub reason: String,
    /// Where the recipe has it.
    pub origin: Origin,
}

/// Paths that are left out of packages, or kept although another rule leaves them out.
#[derive(Clone, Debug)]
pub struct PathRule {
    /// Which paths, relative to the root.
    pub glob: Glob,
    /// Where the recipe has it.
    pub origin: Origin,
}

/// A symbolic link that a maintainer script would have made.
#[derive(Clone, Debug)]
pub struct Link {
    /// Path of the link, relative to the root.
    pub path: String,
    /// What it points to.
    pub target: String,
    /// Where the recipe has it.
    pub origin: Origin,
}

/// Mode and owner of a path that its package or file does not give.
#[derive(Clone, Debug)]
pub struct Mode {
    /// Path relative to the root.
    pub path: String,
    /// Permission bits.
    pub mode: u16,
    /// Owner's name.
    pub owner: String,
    /// Group's name.
    pub group: String,
    /// Where the recipe has it.
    pub origin: Origin,
}

/// One set, platform or tools file.
#[derive(Clone, Debug)]
pub struct Set {
    /// The file's stem.
    pub name: String,
    /// Packages asked for.
    pub packages: Vec<Named>,
    /// Packages whose files the builder uses, such as boot loaders, and that are not laid into the root.
    pub inputs: Vec<Named>,
    /// Dependencies treated as satisfied.
    pub omits: Vec<Named>,
    /// Paths left out.
    pub drops: Vec<PathRule>,
    /// Paths kept although a rule of any set leaves them out.
    pub keeps: Vec<PathRule>,
    /// Links made.
    pub links: Vec<Link>,
    /// Units enabled.
    pub enables: Vec<Named>,
    /// Units masked.
    pub masks: Vec<Named>,
    /// Modes and owners set.
    pub modes: Vec<Mode>,
    /// Files laid in as they are, if the set has any.
    pub files: Option<PathBuf>,
}

/// Kernel, loaders and initrd of a platform.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The kernel's meta package.
    pub kernel: String,
    /// Firmware interfaces served.
    pub loaders: BTreeSet<Loader>,
    /// Words of the kernel command line.
    pub cmdline: Vec<String>,
    /// Modules in the initrd: names or path globs.
    pub modules: Vec<Named>,
    /// Modules that the initrd always loads.
    pub load: Vec<String>,
}

/// Everything that `images/` says of one image.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The role.
    pub role: Role,
    /// The platform.
    pub platform: Platform,
    /// Sets in the role's order, then the platform's own, then those of stand-ins.
    pub sets: Vec<Set>,
    /// How it boots.
    pub boot: Boot,
    /// Names of the sets of stand-ins.
    pub standins: Vec<String>,
}

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("reading {}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what the schema says: unknown field, wrong type, not TOML.
    #[error("{origin}: {message}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What.
        message: String,
    },
    /// No `images/` directory.
    #[error("no images directory with roles in {}: run nodezero inside a checkout, or give --images DIR", .0.display())]
    NoImages(PathBuf),
    /// A role has no recipe.
    #[error("{}: there is no recipe for role {role}; recipes there: {known}", .dir.display())]
    UnknownRole {
        /// The role.
        role: String,
        /// Where it was looked for.
        dir: PathBuf,
        /// What is there.
        known: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawRole {
    #[expect(dead_code, reason = "required of every recipe for its reader")]
    description: String,
    default_platform: Platform,
    sets: Vec<toml::Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNamed {
    name: toml::Spanned<String>,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUnit {
    unit: toml::Spanned<String>,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPaths {
    paths: Vec<toml::Spanned<String>>,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    path: toml::Spanned<String>,
    target: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMode {
    path: toml::Spanned<String>,
    mode: toml::Spanned<String>,
    owner: Option<String>,
    group: Option<String>,
    reason: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInitrd {
    #[serde(default)]
    modules: Vec<RawNamed>,
    #[serde(default)]
    load: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSet {
    #[expect(dead_code, reason = "required of every recipe for its reader")]
    description: String,
    #[serde(default)]
    package: Vec<RawNamed>,
    #[serde(default)]
    input: Vec<RawNamed>,
    #[serde(default)]
    omit: Vec<RawNamed>,
    #[serde(default)]
    drop: Vec<RawPaths>,
    #[serde(default)]
    keep: Vec<RawPaths>,
    #[serde(default)]
    link: Vec<RawLink>,
    #[serde(default)]
    enable: Vec<RawUnit>,
    #[serde(default)]
    mask: Vec<RawUnit>,
    #[serde(default)]
    mode: Vec<RawMode>,
    // Of platforms only.
    kernel: Option<toml::Spanned<String>>,
    #[serde(default)]
    loaders: BTreeSet<Loader>,
    #[serde(default)]
    cmdline: Vec<String>,
    #[serde(default)]
    initrd: RawInitrd,
}

/// Entries of sets.
impl Source {
    fn named(&self, raw: RawNamed) -> Result<Named, Error> {
        let origin = self.origin(raw.name.span().start);
        let name = self.filled(&raw.name, "a name")?;
        self.reason(&raw.name.span(), &raw.reason)?;
        Ok(Named { name, reason: raw.reason, origin })
    }

    fn rules(&self, list: Vec<RawPaths>) -> Result<Vec<PathRule>, Error> {
        let mut rules = Vec::new();
        for raw in list {
            for path in raw.paths {
                self.reason(&path.span(), &raw.reason)?;
                let text = self.filled(&path, "a path")?;
                let glob =
                    Glob::new(text.strip_prefix('/').unwrap_or(&text)).map_err(|m| self.error(&path.span(), m))?;
                rules.push(PathRule { glob, origin: self.origin(path.span().start) });
            }
        }
        Ok(rules)
    }
}

impl Set {
    /// Reads the tools that tests use: a set of its own that belongs to no image.
    ///
    /// # Errors
    /// As for [`Recipe::load`].
    pub fn load_tools(images: &Path) -> Result<Self, Error> {
        let source = Source::read(&images.join("tools.toml"))?;
        let raw: RawSet = source.parse()?;
        Self::from_raw("tools", &source, raw, None)
    }

    fn load(images: &Path, name: &str) -> Result<Self, Error> {
        let source = Source::read(&images.join("sets").join(format!("{name}.toml")))?;
        let raw: RawSet = source.parse()?;
        if let Some(kernel) = &raw.kernel {
            return Err(source.error(&kernel.span(), "kernel belongs to a platform, not to a set"));
        }
        Self::from_raw(name, &source, raw, files_of(images, name))
    }

    fn from_raw(name: &str, source: &Source, raw: RawSet, files: Option<PathBuf>) -> Result<Self, Error> {
        let named = |list: Vec<RawNamed>| list.into_iter().map(|raw| source.named(raw)).collect::<Result<Vec<_>, _>>();
        let units = |list: Vec<RawUnit>| {
            list.into_iter()
                .map(|raw| source.named(RawNamed { name: raw.unit, reason: raw.reason }))
                .collect::<Result<Vec<_>, _>>()
        };
        let mut links = Vec::new();
        for raw in raw.link {
            source.reason(&raw.path.span(), &raw.reason)?;
            let path = source.path(&raw.path)?;
            links.push(Link { path, target: raw.target, origin: source.origin(raw.path.span().start) });
        }
        let mut modes = Vec::new();
        for raw in raw.mode {
            source.reason(&raw.path.span(), &raw.reason)?;
            modes.push(Mode {
                path: source.path(&raw.path)?,
                mode: source.mode(&raw.mode)?,
                owner: raw.owner.unwrap_or_else(|| "root".into()),
                group: raw.group.unwrap_or_else(|| "root".into()),
                origin: source.origin(raw.path.span().start),
            });
        }
        Ok(Self {
            name: name.to_owned(),
            packages: named(raw.package)?,
            inputs: named(raw.input)?,
            omits: named(raw.omit)?,
            drops: source.rules(raw.drop)?,
            keeps: source.rules(raw.keep)?,
            links,
            enables: units(raw.enable)?,
            masks: units(raw.mask)?,
            modes,
            files,
        })
    }
}

/// Finds the `images/` directory: the one given, else the nearest one above the working directory or the program.
///
/// # Errors
/// When none of them has `roles/`.
pub fn find_images(given: Option<&Path>) -> Result<PathBuf, Error> {
    let has_roles = |dir: &Path| dir.join("roles").is_dir();
    if let Some(dir) = given {
        return if has_roles(dir) { Ok(dir.to_owned()) } else { Err(Error::NoImages(dir.to_owned())) };
    }
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let program = std::env::current_exe().unwrap_or_default();
    here.ancestors()
        .chain(program.ancestors())
        .map(|dir| dir.join("images"))
        .find(|dir| has_roles(dir))
        .ok_or(Error::NoImages(here))
}

fn files_of(images: &Path, name: &str) -> Option<PathBuf> {
    let dir = images.join("files").join(name);
    dir.is_dir().then_some(dir)
}

impl Recipe {
    /// Reads the recipe of `role` on `platform`, or on the role's own default platform.
    ///
    /// # Errors
    /// [`Error`], with file, line and column of what is wrong.
    pub fn load(images: &Path, role: Role, platform: Option<Platform>) -> Result<Self, Error> {
        let path = images.join("roles").join(format!("{role}.toml"));
        if !path.exists() {
            return Err(unknown_role(images, role.name()));
        }
        let source = Source::read(&path)?;
        let raw: RawRole = source.parse()?;
        let platform = platform.unwrap_or(raw.default_platform);
        let mut sets = Vec::new();
        for name in raw.sets {
            let set = images.join("sets").join(format!("{}.toml", name.get_ref()));
            if !set.is_file() {
                let message = format!("there is no set {:?}: {} does not exist", name.get_ref(), set.display());
                return Err(source.error(&name.span(), message));
            }
            sets.push(Set::load(images, name.get_ref())?);
        }
        let source = Source::read(&images.join("platforms").join(format!("{platform}.toml")))?;
        let mut raw: RawSet = source.parse()?;
        let Some(kernel) = raw.kernel.take() else {
            return Err(source.error(&(0..0), "a platform names its kernel: kernel = \"linux-image-…\""));
        };
        if raw.loaders.is_empty() {
            return Err(source.error(&kernel.span(), "a platform names its loaders: loaders = [\"uefi\"]"));
        }
        let initrd = std::mem::take(&mut raw.initrd);
        let boot = Boot {
            kernel: source.filled(&kernel, "a package")?,
            loaders: std::mem::take(&mut raw.loaders),
            cmdline: std::mem::take(&mut raw.cmdline),
            modules: initrd.modules.into_iter().map(|raw| source.named(raw)).collect::<Result<_, _>>()?,
            load: initrd.load,
        };
        sets.push(Set::from_raw(platform.name(), &source, raw, files_of(images, platform.name()))?);
        if !sets.iter().flat_map(|set| &set.packages).any(|package| package.name == boot.kernel) {
            let message = format!("the kernel {} is no [[package]] of the recipe", boot.kernel);
            return Err(source.error(&kernel.span(), message));
        }
        Ok(Self { role, platform, sets, boot, standins: Vec::new() })
    }

    /// Adds the set of packages that a stand-in needs.
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn add_standin(&mut self, images: &Path, set: &str) -> Result<(), Error> {
        self.sets.push(Set::load(images, set)?);
        self.standins.push(set.to_owned());
        Ok(())
    }

    /// What the recipe leaves out of packages.
    #[must_use]
    pub fn dropped(&self) -> Dropped<'_> {
        Dropped::new(
            self.sets.iter().flat_map(|set| &set.drops).map(|rule| &rule.glob),
            self.sets.iter().flat_map(|set| &set.keeps).map(|rule| &rule.glob),
        )
    }

    /// The name that outputs and messages use: `worker-metal`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-{}", self.role, self.platform)
    }

    /// The name that the lock uses: `worker-metal`, or with a stand-in `worker-metal+k3s-standin`.
    #[must_use]
    pub fn target(&self) -> String {
        self.standins.iter().fold(self.name(), |name, set| format!("{name}+{set}"))
    }
}

/// The error for a word that is no role, listing those that have a recipe.
#[must_use]
pub fn unknown_role(images: &Path, role: &str) -> Error {
    let dir = images.join("roles");
    let mut known: Vec<String> = fs::read_dir(&dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_string_lossy().into_owned()))
        .collect();
    known.sort();
    Error::UnknownRole { role: role.to_owned(), dir, known: known.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("a name has a parent")).expect("temporary directories can be made");
        fs::write(path, text).expect("temporary files can be written");
    }

    fn images(set: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write(
            dir.path(),
            "roles/worker.toml",
            "description = \"w\"\ndefault-platform = \"metal\"\nsets = [\"base\"]\n",
        );
        write(dir.path(), "sets/base.toml", set);
        write(
            dir.path(),
            "platforms/metal.toml",
            "description = \"m\"\nkernel = \"linux\"\nloaders = [\"uefi\"]\n[[package]]\nname = \"linux\"\nreason = \"r\"\n",
        );
        dir
    }

    #[test]
    fn mistakes_are_named_with_file_line_and_column() {
        let cases = [
            (
                "description = \"b\"\n[[package]]\nnmae = \"udev\"\nreason = \"r\"\n",
                "sets/base.toml:3:1",
                "unknown field `nmae`",
            ),
            (
                "description = \"b\"\n[[package]]\nname = \"udev\"\nreason = \" \"\n",
                "sets/base.toml:3:8",
                "reason is empty",
            ),
            (
                "description = \"b\"\n[[drop]]\npaths = [\"usr/../x\"]\nreason = \"r\"\n",
                "sets/base.toml:3:10",
                "component",
            ),
            ("description = \"b\"\nkernel = \"x\"\n", "sets/base.toml:2:10", "belongs to a platform"),
            (
                "description = \"b\"\n[[mode]]\npath = \"/a\"\nmode = \"9\"\nreason = \"r\"\n",
                "sets/base.toml:4:8",
                "not an octal mode",
            ),
            ("description = [\n", "sets/base.toml:", ""),
        ];
        for (text, place, what) in cases {
            let dir = images(text);
            let error = Recipe::load(dir.path(), Role::Worker, None).expect_err(text).to_string();
            assert!(error.contains(place) && error.contains(what), "{text:?}: {error}");
        }
    }

    #[test]
    fn unknown_roles_and_sets_say_what_there_is() {
        let dir = images("description = \"b\"\n");
        let error = Recipe::load(dir.path(), Role::Edge, None).expect_err("no such recipe").to_string();
        assert!(error.contains("edge") && error.contains("worker"), "{error}");
        fs::remove_file(dir.path().join("sets/base.toml")).expect("it was written");
        let error = Recipe::load(dir.path(), Role::Worker, None).expect_err("no such set").to_string();
        assert!(error.contains("roles/worker.toml:3:9") && error.contains("base"), "{error}");
    }

    #[test]
    fn asking_for_what_is_omitted_is_an_error() {
        let dir = images(
            "description = \"b\"\n[[package]]\nname = \"udev\"\nreason = \"r\"\n[[omit]]\nname = \"udev\"\nreason = \"r\"\n",
        );
        let recipe = Recipe::load(dir.path(), Role::Worker, None).expect("the recipe itself is valid");
        let error = Wanted::of(&recipe.sets).expect_err("contradiction").to_string();
        assert!(error.contains("base.toml:6:8") && error.contains("base.toml:3:8"), "{error}");
    }
}
