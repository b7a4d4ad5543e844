//! Packages to packs: each is unpacked and compressed once, and kept by digest.
//!
//! A pack holds the contents of a package's files; its user data holds everything else: paths, modes, owners, links
//! and maintainer scripts. What the recipe drops everywhere is not packed at all.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use debian::deb::{self, Deb};
use debian::digest::Sha256;
use rootfs::{Pack, PackOptions, PackWriter};
use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::fetch;
use crate::glob::Dropped;
use crate::lock::Pin;
use crate::parallel;
use crate::progress::Progress;
use crate::recipe::Set;

/// Changes whenever the content of packs does.
const PACK_VERSION: u32 = 1;
/// How contents are compressed: measured, see `builder/benches/README.md`.
pub const PACK_OPTIONS: PackOptions = PackOptions { block_size: 512 << 10, level: 9 };

/// A path of a package.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Relative to the root.
    pub path: String,
    /// Permission bits.
    pub mode: u16,
    /// Owner's id in the package.
    pub uid: u32,
    /// Group's id in the package.
    pub gid: u32,
    /// Owner's name, which decides where there is one.
    pub owner: String,
    /// Group's name.
    pub group: String,
    /// Extended attributes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// What it is.
    pub kind: Kind,
}

/// What an entry is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file; hard links become files that share their content.
    File {
        /// Index in the pack.
        file: u32,
    },
    /// A symbolic link.
    Symlink {
        /// Where to.
        target: String,
    },
    /// A named pipe.
    Fifo,
}

/// All that a package is, but its files' contents.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PackageIndex {
    /// Entries in the package's order.
    pub entries: Vec<Entry>,
    /// Maintainer scripts and triggers by name.
    pub scripts: BTreeMap<String, Vec<u8>>,
}

/// A package whose contents are in a pack.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// Which package.
    pub pin: Pin,
    /// What is in it.
    pub index: PackageIndex,
    /// The cache key of its pack.
    pub key: String,
}

/// The globs that decide what of `pin` is packed: those of the first set, which every image has, and those of the
/// sets that ask for this very package or brought its kernel. Other rules apply when a tree is composed.
fn pack_drops<'a>(sets: &'a [Set], pin: &Pin) -> Dropped<'a> {
    let kernel = pin.name.starts_with("linux-image-");
    let deciding = || {
        sets.iter().enumerate().filter(move |(index, set)| {
            *index == 0 || kernel || set.packages.iter().any(|package| package.name == pin.name)
        })
    };
    // What any set keeps must be there, whichever set drops it.
    Dropped::new(
        deciding().flat_map(|(_, set)| &set.drops).map(|rule| &rule.glob),
        sets.iter().flat_map(|set| &set.keeps).map(|rule| &rule.glob),
    )
}

fn pack_key(pin: &Pin, drops: &Dropped<'_>) -> String {
    let PackOptions { block_size, level } = PACK_OPTIONS;
    let text = format!("pack {PACK_VERSION}\n{}\n{block_size} {level}\n{drops}", pin.sha256);
    Sha256::of(text.as_bytes()).to_string()
}

/// What is to be done to have a pack of every package.
pub struct Job<'a> {
    pin: &'a Pin,
    drops: Dropped<'a>,
    key: String,
    /// Whether the pack is to be made.
    missing: bool,
}

/// Looks which packs are missing. The packages that the builder itself uses come with empty `sets`.
#[must_use]
pub fn plan<'a>(cache: &Cache, sets: &'a [Set], pins: &'a [Pin]) -> Vec<Job<'a>> {
    pins.iter()
        .map(|pin| {
            let drops = pack_drops(sets, pin);
            let key = pack_key(pin, &drops);
            let missing = !cache.path("packs", &key).exists();
            Job { pin, drops, key, missing }
        })
        .collect()
}

impl<'a> Job<'a> {
    /// The package, if its pack is missing and so its archive is needed.
    #[must_use]
    pub fn needs(&self) -> Option<&'a Pin> {
        self.missing.then_some(self.pin)
    }
}

/// Makes the missing packs on all processors, the largest packages first, and opens all.
///
/// # Errors
/// When a package is damaged or a pack in the cache is.
pub fn run(cache: &Cache, jobs: &[Job<'_>], progress: &Progress) -> Result<(Vec<Unpacked>, Vec<Pack>)> {
    let mut missing: Vec<&Job<'_>> = jobs.iter().filter(|job| job.missing).collect();
    missing.sort_by_key(|job| (std::cmp::Reverse(job.pin.size), &job.pin.name));
    if !missing.is_empty() {
        progress.start_count("unpacking", missing.iter().map(|job| job.pin.size).sum());
    }
    for result in parallel::map(&missing, |job| make_pack(cache, job).inspect(|()| progress.add(job.pin.size))) {
        result?;
    }
    let opened = parallel::map(jobs, |job| -> Result<(Unpacked, Pack)> {
        let path = cache.path("packs", &job.key);
        let pack = Pack::open(&path).context("a cached pack is not usable: remove it and build again")?;
        let index = serde_json::from_slice(pack.user()).with_context(|| format!("reading {}", path.display()))?;
        Ok((Unpacked { pin: job.pin.clone(), index, key: job.key.clone() }, pack))
    });
    let mut unpacked = Vec::with_capacity(jobs.len());
    let mut packs = Vec::with_capacity(jobs.len());
    for result in opened {
        let (package, pack) = result?;
        unpacked.push(package);
        packs.push(pack);
    }
    Ok((unpacked, packs))
}

fn make_pack(cache: &Cache, job: &Job<'_>) -> Result<()> {
    let deb: PathBuf = cache.path("debs", &job.pin.sha256);
    let file = crate::cache::open(&deb)?;
    let temporary = cache.temporary()?;
    let title = format!("{} {}", job.pin.name, job.pin.version);
    let index_and_writer = pack_entries(file, &title, job, &temporary).with_context(|| format!("unpacking {title}"))?;
    let (index, writer) = index_and_writer;
    let user = serde_json::to_vec(&index).context("writing a package's index")?;
    writer.finish(&user).with_context(|| format!("packing {title}"))?;
    cache.publish(temporary, "packs", &job.key)?;
    Ok(())
}

fn pack_entries(
    file: File,
    title: &str,
    job: &Job<'_>,
    temporary: &tempfile::NamedTempFile,
) -> Result<(PackageIndex, PackWriter<BufWriter<File>>)> {
    let mut writer = PackWriter::create(temporary.path(), PACK_OPTIONS)?;
    let mut index = PackageIndex::default();
    let mut contents: BTreeMap<String, Kind> = BTreeMap::new();
    let deb = Deb::open(BufReader::with_capacity(1 << 20, file), title)?;
    index.scripts = deb.control().scripts.clone();
    deb.for_each(|entry: deb::Entry, reader: &mut dyn Read| -> Result<()> {
        let path = entry.path.clone();
        // A dropped file may still be the target of a hard link that is kept; Debian has none, and it would be noticed.
        let kernel = path.starts_with("boot/vmlinuz-");
        if !kernel && job.drops.covers(&path) {
            return Ok(());
        }
        let kind = match &entry.kind {
            deb::Kind::Directory => Kind::Directory,
            deb::Kind::File => {
                let compressed = path.ends_with(".xz") || path.ends_with(".zst") || path.ends_with(".gz");
                let file =
                    if compressed { writer.add_stored(reader, entry.size)? } else { writer.add(reader, entry.size)? };
                Kind::File { file: file.index() }
            }
            deb::Kind::Symlink { target } => Kind::Symlink { target: target.clone() },
            deb::Kind::Hardlink { target } => contents
                .get(target)
                .cloned()
                .with_context(|| format!("/{path} is a hard link to /{target}, which is not in the package"))?,
            deb::Kind::Fifo => Kind::Fifo,
            deb::Kind::CharDevice { .. } | deb::Kind::BlockDevice { .. } => {
                bail!("/{path} is a device node, which images do not hold")
            }
        };
        if matches!(kind, Kind::File { .. }) {
            contents.insert(path.clone(), kind.clone());
        }
        index.entries.push(Entry {
            path,
            mode: u16::try_from(entry.mode & 0o7777).unwrap_or_default(),
            uid: entry.uid,
            gid: entry.gid,
            owner: entry.user.clone(),
            group: entry.group.clone(),
            xattrs: entry.xattrs.clone(),
            kind,
        });
        Ok(())
    })?;
    Ok((index, writer))
}

/// Verifies the archives of all missing packs, so that none is parsed before.
///
/// # Errors
/// Naming the file and both digests.
pub fn verify_archives(cache: &Cache, jobs: &[Job<'_>]) -> Result<()> {
    let missing: Vec<&Job<'_>> = jobs.iter().filter(|job| job.missing).collect();
    for result in parallel::map(&missing, |job| {
        fetch::verify_file(
            &cache.path("debs", &job.pin.sha256),
            &job.pin.digest()?,
            fetch::Length::Exactly(job.pin.size),
        )
    }) {
        result?;
    }
    Ok(())
}
