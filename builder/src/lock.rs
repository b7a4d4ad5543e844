//! The lock: which packages of which versions and digests every image is made of.
//!
//! `nodezero lock` resolves all recipes against the signed indexes of Debian's suites and writes `images/lock.toml`.
//! A build reads the lock alone. Its timestamp, that of the newest suite, is every file's time in every image.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use debian::digest::Sha256;
use debian::index::Package;
use debian::release::{Keyring, Release};
use debian::resolve::{Policy, Request, Universe};
use nodezero_profile::Role;
use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::component::{self, Component};
use crate::fetch::{self, Fetcher, Gone, Length};
use crate::mirror::{Archive, Mirrors};
use crate::progress::Progress;
use crate::recipe::{self, Platform, Recipe, Set, Source, Wanted};

/// The name of the target that holds the programs for tests.
pub const TOOLS: &str = "tools";
/// An `InRelease` is some 150 kB.
const INRELEASE_LIMIT: u64 = 4 << 20;
/// The index of Debian's main component is some 55 MB.
const INDEX_LIMIT: u64 = 512 << 20;
/// The version of the lock's own form.
const VERSION: u32 = 1;

/// One pinned package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Package name.
    pub name: String,
    /// Debian version.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// The archive that has it.
    pub archive: Archive,
    /// Path within the archive.
    pub filename: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// What the resolver chose for one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// `worker-metal`, or [`TOOLS`].
    pub name: String,
    /// Digest of what the recipe asked for, so that a changed recipe is noticed.
    pub asked: String,
    /// Names of all packages, sorted.
    pub packages: Vec<String>,
    /// Packages that the builder itself uses, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
}

/// The pins of one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pins {
    /// What is laid into the root, sorted by name.
    pub packages: Vec<Pin>,
    /// What the builder itself uses, sorted by name.
    pub inputs: Vec<Pin>,
}

/// A suite as it was when the lock was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteRecord {
    /// Suite name.
    pub name: String,
    /// The archive that has it.
    pub archive: Archive,
    /// Its date, RFC 3339.
    pub date: String,
    /// SHA-256 of its `InRelease`.
    pub sha256: String,
}

/// The lock file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    version: u32,
    /// The newest suite's date, RFC 3339.
    pub timestamp: String,
    /// The suites that were read.
    #[serde(rename = "suite")]
    pub suites: Vec<SuiteRecord>,
    /// One entry for each image.
    #[serde(rename = "target")]
    pub targets: Vec<Target>,
    /// Every package of any target, sorted by name.
    #[serde(rename = "package")]
    pub packages: Vec<Pin>,
    /// What components are made of, in the order of their sources.
    #[serde(default, rename = "component", skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<component::pin::Pin>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawArchive {
    components: Vec<String>,
    architecture: String,
    suite: Vec<RawSuite>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSuite {
    name: String,
    archive: Archive,
}

impl Pin {
    fn of(package: &Package, archive: Archive) -> Self {
        Self {
            name: package.name.clone(),
            version: package.version.to_string(),
            architecture: package.architecture.clone(),
            archive,
            filename: package.filename.clone(),
            size: package.size,
            sha256: package.sha256.to_string(),
        }
    }

    /// The digest in its own type.
    ///
    /// # Errors
    /// When the lock was edited by hand into something else.
    pub fn digest(&self) -> Result<Sha256> {
        self.sha256.parse().map_err(|error| anyhow!("the lock's digest of {}: {error}", self.name))
    }

    /// What to fetch.
    ///
    /// # Errors
    /// As for [`Self::digest`].
    pub fn wanted(&self, mirrors: &Mirrors) -> Result<fetch::Wanted> {
        Ok(fetch::Wanted {
            title: format!("{} {} ({})", self.name, self.version, self.architecture),
            urls: mirrors.urls(self.archive, &self.filename),
            sha256: self.digest()?,
            length: Length::Exactly(self.size),
        })
    }
}

impl Lock {
    /// Where the lock of an `images/` directory is.
    #[must_use]
    pub fn path(images: &Path) -> PathBuf {
        images.join("lock.toml")
    }

    /// Reads the lock.
    ///
    /// # Errors
    /// When it is missing, is of another version, or is not a lock.
    pub fn read(images: &Path) -> Result<Self> {
        let path = Self::path(images);
        let source = Source::read(&path).map_err(|error| match error {
            recipe::Error::Read { source, .. } if crate::cache::is_missing(&source) => {
                anyhow!("{} does not exist: run nodezero lock", path.display())
            }
            error => error.into(),
        })?;
        let lock: Self = source.parse()?;
        if lock.version != VERSION {
            bail!("{} is of version {}, expected {VERSION}: run nodezero lock", path.display(), lock.version);
        }
        Ok(lock)
    }

    /// Writes the lock, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, images: &Path) -> Result<()> {
        let path = Self::path(images);
        let header = "# Written by `nodezero lock`; a build uses what stands here and nothing else.\n\n";
        let text = header.to_owned() + &toml::to_string(self).context("writing the lock as TOML")?;
        let file = tempfile::NamedTempFile::new_in(images).with_context(|| format!("writing {}", path.display()))?;
        fs::write(file.path(), text).with_context(|| format!("writing {}", path.display()))?;
        crate::cache::publish(file, &path)
    }

    /// Seconds since 1970 of the lock.
    ///
    /// # Errors
    /// When the lock's timestamp is not one.
    pub fn unix_time(&self) -> Result<u64> {
        let at: jiff::Timestamp =
            self.timestamp.parse().with_context(|| format!("reading the lock's timestamp {:?}", self.timestamp))?;
        u64::try_from(at.as_second()).context("the lock's timestamp lies before 1970")
    }

    /// The packages of `target`.
    ///
    /// # Errors
    /// When the recipe asks for something that the lock was not made for.
    pub fn pins(&self, target: &str, wanted: &Wanted) -> Result<Pins> {
        let remedy = "run nodezero lock";
        let locked = self
            .targets
            .iter()
            .find(|locked| locked.name == target)
            .with_context(|| format!("the lock has no target {target}: {remedy}"))?;
        for (name, origin) in &wanted.packages {
            if locked.packages.binary_search(name).is_err() {
                bail!("{origin}: package {name} is not in the lock for {target}: {remedy}");
            }
        }
        if locked.asked != wanted.digest() {
            bail!("the recipe of {target} changed after the lock was made: {remedy}");
        }
        let by_name: BTreeMap<&str, &Pin> = self.packages.iter().map(|pin| (pin.name.as_str(), pin)).collect();
        let pins = |names: &[String]| -> Result<Vec<Pin>> {
            names
                .iter()
                .map(|name| {
                    let pin = by_name.get(name.as_str());
                    pin.map(|pin| (*pin).clone()).with_context(|| format!("the lock pins no {name}: {remedy}"))
                })
                .collect()
        };
        Ok(Pins { packages: pins(&locked.packages)?, inputs: pins(&locked.inputs)? })
    }

    /// What changed from `old` to this lock, a line each.
    #[must_use]
    pub fn changes_since(&self, old: Option<&Self>) -> Vec<String> {
        let index = |lock: &Self| -> BTreeMap<String, Pin> {
            lock.packages.iter().map(|pin| (pin.name.clone(), pin.clone())).collect()
        };
        let before = old.map(index).unwrap_or_default();
        let after = index(self);
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let mut lines = Vec::new();
        for name in names {
            match (before.get(name), after.get(name)) {
                (None, Some(new)) => lines.push(format!("+ {name} {}", new.version)),
                (Some(old), None) => lines.push(format!("- {name} {}", old.version)),
                (Some(old), Some(new)) if old.version != new.version => {
                    lines.push(format!("~ {name} {} -> {}", old.version, new.version));
                }
                (Some(old), Some(new)) if old.sha256 != new.sha256 => {
                    lines.push(format!("~ {name} {}: the same version with another SHA-256", new.version));
                }
                _ => {}
            }
        }
        let before = old.map(|lock| lock.components.as_slice()).unwrap_or_default();
        let changed = |from: &[component::pin::Pin], to: &[component::pin::Pin], sign: char| -> Vec<String> {
            to.iter().filter(|pin| !from.contains(pin)).map(|pin| format!("{sign} {pin}")).collect()
        };
        lines.extend(changed(&self.components, before, '-'));
        lines.extend(changed(before, &self.components, '+'));
        lines
    }
}

impl Wanted {
    /// A digest of what is asked for, without where.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut text = String::new();
        for name in self.packages.keys() {
            let _ = writeln!(text, "package {name}");
        }
        for name in self.inputs.keys() {
            let _ = writeln!(text, "input {name}");
        }
        for name in &self.omits {
            let _ = writeln!(text, "omit {name}");
        }
        Sha256::of(text.as_bytes()).to_string()
    }
}

/// Everything that Debian has now, verified.
pub struct Indexes {
    packages: Vec<Package>,
    archives: BTreeMap<String, Archive>,
    suites: Vec<SuiteRecord>,
    newest: u64,
}

/// Brings pinned packages into the cache, and takes the successor of one that has vanished from all sources.
#[derive(Debug)]
pub struct Supply<'a> {
    images: &'a Path,
    fetcher: Fetcher,
    mirrors: Mirrors,
    /// Without the snapshot, which has no newer packages than the lock.
    newest_mirrors: Mirrors,
}

impl<'a> Supply<'a> {
    /// A supply for `lock`, of the mirrors that the user or the host name.
    ///
    /// # Errors
    /// When the lock has no valid time.
    pub fn new(images: &'a Path, cache: Cache, mirror: Option<&str>, lock: &Lock, offline: bool) -> Result<Self> {
        let apt = Path::new("/etc/apt");
        Ok(Self {
            images,
            fetcher: Fetcher::new(cache, offline),
            mirrors: Mirrors::new(mirror, apt, Some(lock.unix_time()?)),
            newest_mirrors: Mirrors::new(mirror, apt, None),
        })
    }

    /// Fetches those of `pins` that `needed` indexes. One that no source has any more is replaced in `pins`, with a
    /// warning and a note; with `locked` that is an error.
    ///
    /// # Errors
    /// When a package cannot be had.
    pub fn fetch(&self, pins: &mut [Pin], needed: &[usize], locked: bool, progress: &Progress) -> Result<Vec<String>> {
        let wanted: Vec<fetch::Wanted> =
            needed.iter().map(|index| pins[*index].wanted(&self.mirrors)).collect::<Result<_>>()?;
        let results = self.fetcher.fetch("debs", &wanted, progress)?;
        let mut notes = Vec::new();
        let mut newest: Option<Indexes> = None;
        for (index, result) in needed.iter().zip(results) {
            let Err(error) = result else { continue };
            if error.downcast_ref::<Gone>().is_none() {
                return Err(error);
            }
            if locked {
                return Err(
                    error.context("the lock is out of date, and --locked forbids to depart from it: run nodezero lock")
                );
            }
            let indexes = match &mut newest {
                Some(indexes) => indexes,
                None => newest.insert(fetch_indexes(
                    self.images,
                    &self.fetcher,
                    &self.newest_mirrors,
                    unix_now()?,
                    progress,
                )?),
            };
            let pin = &mut pins[*index];
            let successor = indexes.newest_of(&pin.name).ok_or(error)?;
            let note = format!(
                "{} {} is gone from all sources; {} is taken instead",
                pin.name, pin.version, successor.version
            );
            progress.warn(&format!("{note}: run nodezero lock"));
            notes.push(note);
            let wanted = successor.wanted(&self.newest_mirrors)?;
            self.fetcher.fetch("debs", &[wanted], progress)?.pop().context("one file was asked for")??;
            *pin = successor;
        }
        Ok(notes)
    }
}

/// Seconds since 1970, by this machine's clock: for the validity of what is fetched, never for an image.
///
/// # Errors
/// When the clock stands before 1970.
pub fn unix_now() -> Result<u64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Ok(now.context("reading the clock")?.as_secs())
}

/// Reads the keys in `images/keyring/`.
///
/// # Errors
/// When there are none, or a file is not a key.
pub fn read_keyring(images: &Path) -> Result<Keyring> {
    let dir = images.join("keyring");
    let mut paths: Vec<PathBuf> = fs::read_dir(&dir)
        .with_context(|| format!("reading {}", dir.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "asc" || ext == "gpg" || ext == "pgp"))
        .collect();
    paths.sort();
    let mut keyring: Option<Keyring> = None;
    for path in paths {
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let keys = Keyring::from_armored_or_binary(&bytes)
            .with_context(|| format!("reading the keys in {}", path.display()))?;
        match &mut keyring {
            None => keyring = Some(keys),
            Some(all) => all.merge(keys),
        }
    }
    keyring.with_context(|| format!("{} has no keys (*.asc, *.gpg)", dir.display()))
}

/// Fetches and verifies the indexes of all suites.
///
/// # Errors
/// When a signature, digest or index is refused, or a suite cannot be fetched.
pub fn fetch_indexes(
    images: &Path,
    fetcher: &Fetcher,
    mirrors: &Mirrors,
    now: u64,
    progress: &Progress,
) -> Result<Indexes> {
    let raw: RawArchive = Source::read(&images.join("archive.toml"))?.parse()?;
    let keyring = read_keyring(images)?;
    let mut wanted = Vec::new();
    let mut suites = Vec::new();
    let mut newest = 0;
    for suite in &raw.suite {
        let path = format!("dists/{}", suite.name);
        let title = format!("{} {path}/InRelease", suite.archive.name());
        let bytes = fetcher.read_unpinned(
            &title,
            &mirrors.urls(suite.archive, &format!("{path}/InRelease")),
            INRELEASE_LIMIT,
        )?;
        let release = debian::release::verify_inrelease(&bytes, &title, &keyring, now)?;
        newest = newest.max(release.date);
        suites.push(SuiteRecord {
            name: suite.name.clone(),
            archive: suite.archive,
            date: rfc3339(release.date)?,
            sha256: Sha256::of(&bytes).to_string(),
        });
        for component in &raw.components {
            let index = format!("{component}/binary-{}/Packages.xz", raw.architecture);
            wanted.push((suite, index_wanted(&release, suite, &path, &index, mirrors)?));
        }
    }
    let files: Vec<fetch::Wanted> = wanted.iter().map(|(_, file)| file.clone()).collect();
    let paths = fetcher.fetch("indexes", &files, progress)?;
    let mut packages = Vec::new();
    let mut archives = BTreeMap::new();
    for ((suite, file), path) in wanted.iter().zip(paths) {
        let path = path?;
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        if Sha256::of(&bytes) != file.sha256 {
            bail!("{} changed while it was read; remove it and try again", path.display());
        }
        let text = debian::index::decompress("Packages.xz", &bytes, INDEX_LIMIT)?;
        archives.insert(suite.name.clone(), suite.archive);
        let found = debian::index::parse_packages(&text, &suite.name, &[raw.architecture.as_str(), "all"])?;
        packages.extend(found);
    }
    Ok(Indexes { packages, archives, suites, newest })
}

fn index_wanted(
    release: &Release,
    suite: &RawSuite,
    path: &str,
    index: &str,
    mirrors: &Mirrors,
) -> Result<fetch::Wanted> {
    let entry =
        release.files.get(index).with_context(|| format!("the InRelease of {} names no {index}", suite.name))?;
    let (dir, _) = index.rsplit_once('/').unwrap_or(("", index));
    let mut urls = Vec::new();
    if release.acquire_by_hash {
        urls = mirrors.urls(suite.archive, &format!("{path}/{dir}/by-hash/SHA256/{}", entry.sha256));
    }
    urls.extend(mirrors.urls(suite.archive, &format!("{path}/{index}")));
    Ok(fetch::Wanted {
        title: format!("{} {index}", suite.name),
        urls,
        sha256: entry.sha256,
        length: Length::Exactly(entry.size),
    })
}

fn rfc3339(seconds: u64) -> Result<String> {
    let seconds = i64::try_from(seconds).context("a date beyond all calendars")?;
    Ok(jiff::Timestamp::from_second(seconds).context("a date beyond all calendars")?.to_string())
}

impl Indexes {
    /// The newest version of one package, to replace a pin that no source has any more.
    #[must_use]
    pub fn newest_of(&self, name: &str) -> Option<Pin> {
        let package =
            self.packages.iter().filter(|package| package.name == name).max_by_key(|package| &package.version)?;
        Some(Pin::of(package, *self.archives.get(&package.origin)?))
    }

    fn newest(&self) -> BTreeMap<String, Pin> {
        let mut newest: BTreeMap<&str, &Package> = BTreeMap::new();
        for package in &self.packages {
            let known = newest.entry(&package.name).or_insert(package);
            if package.version > known.version {
                *known = package;
            }
        }
        let archive = |package: &Package| self.archives.get(&package.origin).copied().unwrap_or(Archive::Debian);
        newest.values().map(|package| (package.name.clone(), Pin::of(package, archive(package)))).collect()
    }

    /// Resolves every recipe under `images`, with and without its stand-in, and the tools, to a lock without components.
    ///
    /// # Errors
    /// When a recipe is wrong or cannot be satisfied; the message names the package and where it is asked for.
    pub fn lock(self, images: &Path) -> Result<Lock> {
        let newest: BTreeMap<String, Pin> = self.newest();
        let mut asked: Vec<(String, Wanted)> = Vec::new();
        let components = Component::load_all(images)?;
        for role in Role::ALL {
            for platform in Platform::ALL {
                let recipe = Recipe::load(images, role, Some(platform))?;
                asked.push((recipe.target(), Wanted::of(&recipe.sets)?));
                for component in components.iter().filter(|component| component.roles.contains(&role)) {
                    let Some(standin) = component.standin() else { continue };
                    let mut recipe = recipe.clone();
                    recipe.add_standin(images, &standin.set)?;
                    asked.push((recipe.target(), Wanted::of(&recipe.sets)?));
                }
            }
        }
        asked.push((TOOLS.to_owned(), Wanted::of(&[Set::load_tools(images)?])?));
        let universe = Universe::new(self.packages);
        let mut targets = Vec::new();
        let mut pins: BTreeMap<String, Pin> = BTreeMap::new();
        for (name, wanted) in asked {
            let chosen = resolve(&universe, &wanted).with_context(|| format!("resolving the packages of {name}"))?;
            let mut packages = Vec::new();
            for package in chosen {
                let archive = self.archives.get(&package.origin).copied().unwrap_or(Archive::Debian);
                packages.push(package.name.clone());
                pins.entry(package.name.clone()).or_insert_with(|| Pin::of(&package, archive));
            }
            for (input, origin) in &wanted.inputs {
                let pin = newest.get(input).with_context(|| format!("{origin}: there is no package {input}"))?;
                pins.entry(input.clone()).or_insert_with(|| pin.clone());
            }
            let inputs = wanted.inputs.keys().cloned().collect();
            targets.push(Target { name, asked: wanted.digest(), packages, inputs });
        }
        Ok(Lock {
            version: VERSION,
            timestamp: rfc3339(self.newest)?,
            suites: self.suites,
            targets,
            packages: pins.into_values().collect(),
            components: Vec::new(),
        })
    }
}

fn resolve(universe: &Universe, wanted: &Wanted) -> Result<Vec<Package>> {
    let requests: Vec<Request> = wanted
        .packages
        .iter()
        .map(|(name, origin)| Request { name: name.clone(), constraint: None, reason: origin.to_string() })
        .collect();
    let policy = Policy { omit: wanted.omits.clone(), prefer: BTreeMap::new() };
    let resolution = debian::resolve::resolve(&requests, universe, &policy)?;
    Ok(resolution.packages.into_iter().map(|selected| selected.package).collect())
}
