//! Runs a build's plan: from pinned packages to a bootable image with its manifest.
//!
//! Every output is written under a temporary name in the output directory and renamed at the end, the manifest last.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use debian::digest::Sha256;
use disk::image::Region;
use disk::{Guid, Layout};
use nodezero_profile::Role;
use rootfs::squashfs::read::Image;
use rootfs::{Node, Pack, Tree};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use uki::{Name, Section, SectionData};
use verity::{Area, RootHash, Superblock};

use crate::cache::{self, Cache};
use crate::component::{self, Component, Demand, Taken};
use crate::compose::{self, Kernel};
use crate::fetch;
use crate::kernel::Package;
use crate::lock::{Lock, Pins, Supply};
use crate::manifest::{self, ImageRecord, Manifest, PackageRecord, PartitionRecord, Sizes};
use crate::output::{self, Format, Output};
use crate::passwd::Table;
use crate::plan::BuildPlan;
use crate::progress::{Progress, StageTime};
use crate::recipe::{Platform, Recipe};
use crate::scripts::Rules;
use crate::shares::{Boot, Share};
use crate::unpack::{self, Unpacked};
use crate::{disk_image, firstboot, initrd, shares};

/// Changes whenever the same inputs give other bytes.
const FORMAT_VERSION: &str = "1";
/// How strongly the initrd is compressed. It is small, and loaded at every boot.
const INITRD_LEVEL: i32 = 12;

/// What to build, and from where.
#[derive(Clone, Debug)]
pub struct Options {
    /// Recipes and lock.
    pub images: PathBuf,
    /// The role.
    pub role: Role,
    /// The platform, or the role's own.
    pub platform: Option<Platform>,
    /// Forms to write.
    pub formats: Vec<Format>,
    /// Where to.
    pub out: PathBuf,
    /// The first-boot binary, or built from the workspace.
    pub firstboot: Option<PathBuf>,
    /// Whether only the cache may be used.
    pub offline: bool,
    /// Whether a vanished package is an error.
    pub locked: bool,
    /// A mirror that replaces the host's own.
    pub mirror: Option<String>,
    /// What the user says of components, by name.
    pub components: BTreeMap<String, component::Choice>,
    /// Whether a stand-in is an error.
    pub official_only: bool,
    /// Downloads and packs.
    pub cache: Cache,
}

/// What was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// The image's manifest.
    pub manifest: Manifest,
    /// Where the manifest is.
    pub manifest_path: PathBuf,
    /// The images.
    pub outputs: Vec<Output>,
}

impl Built {
    /// What `--json` prints.
    #[must_use]
    pub fn to_json(&self, stages: &[StageTime]) -> Value {
        json!({
            "name": self.manifest.image.name,
            "version": self.manifest.image.version,
            "root_hash": self.manifest.root_hash,
            "manifest": self.manifest_path,
            "sizes": self.manifest.sizes,
            "outputs": self.outputs,
            "stages": stages,
        })
    }
}

/// A build's plan to be looked at: without the first-boot binary, and with the sources of components in the order in
/// which a build tries them.
///
/// # Errors
/// When recipe and lock do not fit.
pub fn plan_only(images: &Path, role: Role, platform: Option<Platform>) -> Result<Value> {
    let recipe = Recipe::load(images, role, platform)?;
    let plan = BuildPlan::new(&recipe, &Lock::read(images)?, &Taken::default(), &digest_images(images, &recipe)?)?;
    let mut value = serde_json::to_value(&plan).context("printing the plan")?;
    let components = Component::load_all(images)?;
    let components = components.iter().filter(|component| component.roles.contains(&role));
    value["components"] = components
        .map(|component| {
            let sources = component.sources.iter();
            let sources: Vec<Value> =
                sources.map(|source| json!({"source": source.word(), "version": source.version()})).collect();
            json!({"name": component.name, "sources": sources})
        })
        .collect();
    Ok(value)
}

/// Builds an image.
///
/// # Errors
/// Whatever stops it; nothing is left under a final name then.
pub fn build(options: &Options, progress: &Progress) -> Result<Built> {
    let mut recipe = Recipe::load(&options.images, options.role, options.platform)?;
    let lock = Lock::read(&options.images)?;
    let users = Table::read(&options.images)?;
    let rules = read_rules(&options.images)?;
    output::prepare_out(&options.out)?;
    let mut taken = progress.stage("components", || take_components(options, &lock, &mut recipe, progress))?;
    let firstboot = progress
        .stage("first-boot binary", || firstboot::read(options.firstboot.as_deref(), &options.images, progress))?;
    let mut other = digest_images(&options.images, &recipe)?;
    other.push(("nodezero-firstboot".to_owned(), Sha256::of(&firstboot)));
    let mut plan = BuildPlan::new(&recipe, &lock, &taken, &other)?;
    let fetched = progress.stage("fetch", || fetch_packages(options, &recipe, &lock, &plan.pins, progress))?;
    let notes = fetched.notes;
    if !notes.is_empty() {
        plan = BuildPlan::with_pins(&recipe, &lock, fetched.pins, &taken, &other)?;
    }
    let mut source = progress.stage("unpack", || Source::open(&options.cache, &recipe, &plan.pins, progress))?;
    check_scripts(&source.packages, &rules)?;
    // Behind those of packages, so that theirs keep their numbers.
    source.packs.append(&mut taken.packs);
    let package = Package::find(&source.packages, &source.packs)?;
    let kernel = progress.stage("kernel modules", || package.load(&options.cache, &recipe.dropped()))?;
    let record = ImageRecord::new(&plan, &notes);
    let tree = progress.stage("tree", || {
        let mut tree = compose::compose(compose::Inputs {
            plan: &plan,
            recipe: &recipe,
            packages: &source.packages,
            packs: &source.packs,
            components: &taken.laid,
            users: &users,
            firstboot: &firstboot,
            kernel: &kernel,
        })?;
        let text = serde_json::to_vec_pretty(&record).context("writing the image's record")?;
        tree.replace("usr/lib/nodezero/image.json", Node::inline(0o644, text))?;
        Ok::<Tree, anyhow::Error>(tree)
    })?;
    let scratch = options.cache.temporary_dir()?;
    let root = progress.stage("root image", || write_root(&tree, &source.packs, &plan, scratch.path()))?;
    let verity = progress.stage("verity", || write_verity(&root, &plan, scratch.path()))?;
    let initrd =
        progress.stage("initrd", || write_initrd(&options.cache, &recipe, &kernel, &package, &firstboot, &plan))?;
    let cmdline = command_line(&recipe, &plan, &verity.root_hash);
    let uki =
        progress.stage("UKI", || write_uki(&source, &plan, &kernel, &package, &cmdline, &initrd, scratch.path()))?;
    let parts = Parts { root, verity, initrd, uki, cmdline };
    let (raw, layout) =
        progress.stage("disk image", || disk_image::assemble(options, &recipe, &plan, &source, &parts, &package))?;
    progress.stage("outputs", || finish(options, &plan, record, &source, &kernel, &parts, raw, &layout, &firstboot))
}

/// Takes the role's components, and adds to the recipe what stand-ins among them need.
fn take_components(options: &Options, lock: &Lock, recipe: &mut Recipe, progress: &Progress) -> Result<Taken> {
    let taken = component::take(&Demand {
        images: &options.images,
        role: options.role,
        lock,
        choices: &options.components,
        official_only: options.official_only,
        offline: options.offline,
        cache: &options.cache,
        progress,
    })?;
    for set in &taken.sets {
        recipe.add_standin(&options.images, set)?;
    }
    Ok(taken)
}

/// Digests of all data that reaches the image, by name: recipes, users, files.
fn digest_images(images: &Path, recipe: &Recipe) -> Result<Vec<(String, Sha256)>> {
    let mut files = vec![
        images.join("users.toml"),
        images.join("roles").join(format!("{}.toml", recipe.role)),
        images.join("platforms").join(format!("{}.toml", recipe.platform)),
    ];
    for set in &recipe.sets {
        let path = images.join("sets").join(format!("{}.toml", set.name));
        if path.is_file() {
            files.push(path);
        }
        if let Some(dir) = &set.files {
            list_files(dir, &mut files)?;
        }
    }
    files.sort();
    let mut digests = vec![("format".to_owned(), Sha256::of(FORMAT_VERSION.as_bytes()))];
    for path in files {
        let name = path.strip_prefix(images).unwrap_or(&path).display().to_string();
        let bytes = match fs::read_link(&path) {
            Ok(target) => target.into_os_string().into_encoded_bytes(),
            Err(_) => fs::read(&path).with_context(|| format!("reading {}", path.display()))?,
        };
        digests.push((name, Sha256::of(&bytes)));
    }
    Ok(digests)
}

fn list_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry.with_context(|| format!("reading {}", dir.display()))?;
        if entry.file_type().with_context(|| format!("reading {}", entry.path().display()))?.is_dir() {
            list_files(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

struct Fetched {
    pins: Pins,
    /// Packages that had to be taken in another version than the lock's.
    notes: Vec<String>,
}

/// Brings the archives of all packages into the cache whose packs are not there yet.
fn fetch_packages(
    options: &Options,
    recipe: &Recipe,
    lock: &Lock,
    pins: &Pins,
    progress: &Progress,
) -> Result<Fetched> {
    let supply = Supply::new(&options.images, options.cache.clone(), options.mirror.as_deref(), lock, options.offline)?;
    let mut pins = pins.clone();
    let mut notes = Vec::new();
    for (sets, list) in [(recipe.sets.as_slice(), &mut pins.packages), (&[], &mut pins.inputs)] {
        let jobs = unpack::plan(&options.cache, sets, list);
        let needed: Vec<usize> = (0..jobs.len()).filter(|index| jobs[*index].needs().is_some()).collect();
        drop(jobs);
        notes.extend(supply.fetch(list, &needed, options.locked, progress)?);
    }
    Ok(Fetched { pins, notes })
}

/// The packages of an image, opened: those of the root, and those that the builder uses.
pub(crate) struct Source {
    packages: Vec<Unpacked>,
    packs: Vec<Pack>,
    inputs: Vec<Unpacked>,
    input_packs: Vec<Pack>,
}

impl Source {
    fn open(cache: &Cache, recipe: &Recipe, pins: &Pins, progress: &Progress) -> Result<Self> {
        let jobs = unpack::plan(cache, &recipe.sets, &pins.packages);
        unpack::verify_archives(cache, &jobs)?;
        let (packages, packs) = unpack::run(cache, &jobs, progress)?;
        let jobs = unpack::plan(cache, &[], &pins.inputs);
        unpack::verify_archives(cache, &jobs)?;
        let (inputs, input_packs) = unpack::run(cache, &jobs, progress)?;
        Ok(Self { packages, packs, inputs, input_packs })
    }

    /// Reads a file of a package that the builder itself uses.
    pub(crate) fn input(&self, path: &str) -> Result<Vec<u8>> {
        for (package, pack) in self.inputs.iter().zip(&self.input_packs) {
            for entry in package.index.entries.iter().filter(|entry| entry.path == path) {
                if let unpack::Kind::File { file } = entry.kind {
                    return Ok(pack.read_file(rootfs::FileId::new(file))?);
                }
            }
        }
        let names: Vec<&str> = self.inputs.iter().map(|input| input.pin.name.as_str()).collect();
        bail!("none of the platform's [[input]] packages ({}) has /{path}", names.join(", "))
    }
}

fn read_rules(images: &Path) -> Result<Rules> {
    let path = images.join("scripts.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Rules::parse(&text).with_context(|| format!("reading {}", path.display()))
}

/// Every maintainer script must be covered by a rule: what it would have done is done declaratively, or not needed.
fn check_scripts(packages: &[Unpacked], rules: &Rules) -> Result<()> {
    let mut uncovered = Vec::new();
    for package in packages {
        // Data for dpkg and debconf, not scripts.
        let scripts =
            package.index.scripts.iter().filter(|(kind, _)| !matches!(kind.as_str(), "conffiles" | "templates"));
        for (kind, text) in scripts {
            if let Err(error) = rules.check(&package.pin.name, kind, text) {
                uncovered.push(error.to_string());
            }
        }
    }
    if uncovered.is_empty() {
        return Ok(());
    }
    bail!(
        "{} maintainer scripts are not covered by images/scripts.toml; read each, see that the image has what it would \
         do, and add a rule:\n{}",
        uncovered.len(),
        uncovered.join("\n")
    )
}

fn write_root(tree: &Tree, packs: &[Pack], plan: &BuildPlan, scratch: &Path) -> Result<File> {
    let path = scratch.join("root");
    let file = File::options().read(true).write(true).create_new(true).open(&path).context("making the root image")?;
    let options = rootfs::squashfs::Options {
        block_size: unpack::PACK_OPTIONS.block_size,
        level: unpack::PACK_OPTIONS.level,
        mtime: u32::try_from(plan.timestamp).context("squashfs has no times after 2106")?,
        threads: crate::parallel::threads(),
    };
    rootfs::squashfs::write_image(tree, packs, &file, &options).context("writing the root image")?;
    Ok(file)
}

pub(crate) struct Verity {
    pub(crate) file: File,
    pub(crate) root_hash: RootHash,
}

fn write_verity(root: &File, plan: &BuildPlan, scratch: &Path) -> Result<Verity> {
    let length = root.metadata().context("reading the root image")?.len();
    let salt = Sha256::of(format!("nodezero verity salt {}", plan.inputs).as_bytes());
    let uuid = Guid::derived("verity", plan.inputs.as_bytes());
    let superblock = Superblock::new(uuid.to_bytes(), length / verity::BLOCK_SIZE, salt.as_bytes())?;
    let path = scratch.join("verity");
    let file = File::options().read(true).write(true).create_new(true).open(&path).context("making the hash tree")?;
    let mut out = BufWriter::with_capacity(1 << 20, &file);
    let threads = NonZeroUsize::new(crate::parallel::threads()).unwrap_or(NonZeroUsize::MIN);
    let root_hash = verity::hash_tree::build(Area::new(root, 0, length), &superblock, &mut out, threads)?;
    out.flush().context("writing the hash tree")?;
    drop(out);
    Ok(Verity { file, root_hash })
}

/// The initrd, from the cache or made.
fn write_initrd(
    cache: &Cache,
    recipe: &Recipe,
    kernel: &Kernel,
    package: &Package<'_>,
    firstboot: &[u8],
    plan: &BuildPlan,
) -> Result<Vec<u8>> {
    let modules = initrd::choose_modules(&recipe.boot, kernel)?;
    let mut key = format!("initrd {INITRD_LEVEL}\n{}\n{}\n{}\n", package.key(), Sha256::of(firstboot), plan.timestamp);
    for (name, path) in modules.iter() {
        key.push_str(&format!("{name} {path}\n"));
    }
    key.push_str(&recipe.boot.load.join("\n"));
    let name = format!("initrd-1-{}", Sha256::of(key.as_bytes()));
    if let Some(initrd) = cache.read_sealed("parts", &name)? {
        return Ok(initrd);
    }
    let tree = initrd::tree(&recipe.boot, kernel, package, &modules, firstboot)?;
    let mut archive = Vec::new();
    let mtime = u32::try_from(plan.timestamp).context("cpio has no times after 2106")?;
    rootfs::cpio::write(&tree, &[], &mut archive, mtime)?;
    let mut encoder = zstd::Encoder::new(Vec::new(), INITRD_LEVEL).context("compressing the initrd")?;
    encoder.set_pledged_src_size(Some(archive.len() as u64)).context("compressing the initrd")?;
    encoder.include_checksum(true).context("compressing the initrd")?;
    encoder.write_all(&archive).context("compressing the initrd")?;
    let initrd = encoder.finish().context("compressing the initrd")?;
    cache.publish_sealed(&initrd, "parts", &name)?;
    Ok(initrd)
}

/// The kernel's command line: what the first stage needs, then the platform's own words.
fn command_line(recipe: &Recipe, plan: &BuildPlan, root_hash: &RootHash) -> String {
    let mut words = vec![
        format!("roothash={root_hash}"),
        format!("nodezero.role={}", plan.role),
        format!("nodezero.version={}", plan.version),
    ];
    let standins = plan.standins();
    if !standins.is_empty() {
        // The first stage and the report say so on every console.
        words.push(format!("nodezero.standin={}", standins.join(",")));
    }
    words.extend(recipe.boot.cmdline.iter().cloned());
    words.join(" ")
}

pub(crate) struct Uki {
    pub(crate) file: File,
    pub(crate) size: u64,
    sha256: Sha256,
}

fn write_uki(
    source: &Source,
    plan: &BuildPlan,
    kernel: &Kernel,
    package: &Package<'_>,
    cmdline: &str,
    initrd: &[u8],
    scratch: &Path,
) -> Result<Uki> {
    let stub = source.input("usr/lib/systemd/boot/efi/linuxx64.efi.stub")?;
    let linux = package.vmlinuz()?;
    let osrel = compose::os_release(plan);
    let cmdline = uki::Cmdline::parse(cmdline)?;
    let microcode = crate::microcode::archive(&source.inputs, &source.input_packs, plan.timestamp)?;
    let mut sections = vec![
        Section { name: Name::Osrel, data: SectionData::Bytes(osrel.as_bytes()) },
        Section { name: Name::Cmdline, data: SectionData::Bytes(cmdline.as_str().as_bytes()) },
        Section { name: Name::Uname, data: SectionData::Bytes(kernel.version.as_bytes()) },
        Section { name: Name::Linux, data: SectionData::Bytes(&linux) },
        Section { name: Name::Initrd, data: SectionData::Bytes(initrd) },
    ];
    if let Some(microcode) = &microcode {
        sections.push(Section { name: Name::Ucode, data: SectionData::Bytes(microcode) });
    }
    let path = scratch.join("uki");
    let file = File::options().read(true).write(true).create_new(true).open(&path).context("making the UKI")?;
    let mut out = BufWriter::with_capacity(1 << 20, &file);
    let summary = uki::assemble(&stub, &sections, &mut out)?;
    out.flush().context("writing the UKI")?;
    drop(out);
    Ok(Uki { file, size: summary.size, sha256: Sha256::from_bytes(summary.sha256) })
}

/// What a disk image is assembled from.
pub(crate) struct Parts {
    pub(crate) root: File,
    pub(crate) verity: Verity,
    pub(crate) initrd: Vec<u8>,
    pub(crate) uki: Uki,
    pub(crate) cmdline: String,
}

/// Writes all formats, and beside them digest, manifest and bill of materials.
#[expect(clippy::too_many_arguments, reason = "the last stage gathers what all others made")]
fn finish(
    options: &Options,
    plan: &BuildPlan,
    record: ImageRecord,
    source: &Source,
    kernel: &Kernel,
    parts: &Parts,
    raw: NamedTempFile,
    layout: &Layout,
    firstboot: &[u8],
) -> Result<Built> {
    let stem = plan.stem();
    let (raw_sha256, raw_size) = fetch::hash_file(raw.path())?;
    let shares = measure(raw.path(), layout, parts, &record)?;
    let pending = output::convert_all(&options.formats, raw, raw_sha256, &options.out, &stem)?;
    let manifest = Manifest {
        timestamp: jiff::Timestamp::from_second(i64::try_from(plan.timestamp)?)?.to_string(),
        root_hash: parts.verity.root_hash.to_string(),
        kernel: kernel.version.clone(),
        cmdline: parts.cmdline.clone(),
        uki_sha256: parts.uki.sha256.to_string(),
        firstboot_sha256: Sha256::of(firstboot).to_string(),
        raw_sha256: raw_sha256.to_string(),
        partitions: partition_records(layout),
        sizes: Sizes {
            root: parts.root.metadata().context("reading the root image")?.len(),
            initrd: parts.initrd.len() as u64,
            uki: parts.uki.size,
            raw: raw_size,
            shares,
        },
        inputs_used: source.inputs.iter().map(|input| PackageRecord::from(&input.pin)).collect(),
        image: record,
    };
    let (outputs, sums) = output::publish_all(pending, &options.out, &stem)?;
    let json = |value: &dyn Fn() -> serde_json::Result<Vec<u8>>| value().context("writing the manifest");
    let manifest_path = options.out.join(format!("{stem}.manifest.json"));
    let bill = manifest::sbom(&manifest);
    for (path, bytes) in [
        (options.out.join(format!("{stem}.spdx.json")), json(&|| serde_json::to_vec_pretty(&bill))?),
        (options.out.join(format!("{stem}.sha256")), sums.into_bytes()),
        (manifest_path.clone(), json(&|| serde_json::to_vec_pretty(&manifest))?),
    ] {
        let mut file = output::temporary_in(&options.out)?;
        file.write_all(&bytes).with_context(|| format!("writing {}", path.display()))?;
        cache::publish(file, &path)?;
    }
    Ok(Built { manifest, manifest_path, outputs })
}

/// How what was built is shared, read back from it.
fn measure(raw: &Path, layout: &Layout, parts: &Parts, record: &ImageRecord) -> Result<Vec<Share>> {
    let mut raw = cache::open(raw)?;
    let (_, esp) = layout.find("ESP").context("the image has an ESP")?;
    let esp = disk::esp::list(&mut Region::of_partition(&mut raw, layout, esp)).context("reading the ESP")?;
    let mut image = Image::open(&parts.root).context("reading the root image")?;
    let entries = image.entries().context("reading the root image")?;
    let boot = Boot::read(&mut &parts.uki.file).context("reading the UKI")?;
    let tree = parts.verity.file.metadata().context("reading the hash tree")?.len();
    shares::measure(&image, &entries, &boot, &esp, tree, &record.components)
}

pub(crate) fn partition_records(layout: &Layout) -> Vec<PartitionRecord> {
    layout
        .partitions()
        .iter()
        .map(|(number, partition)| {
            let range = layout.byte_range(partition);
            PartitionRecord {
                number: *number,
                label: partition.label.as_str().to_owned(),
                kind: partition.partition_type.to_string(),
                guid: partition.guid.to_string(),
                offset: range.start,
                size: range.end - range.start,
            }
        })
        .collect()
}
