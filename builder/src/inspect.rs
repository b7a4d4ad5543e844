//! `nodezero inspect`: what is in an image, read back from its bytes, and whether its hash tree holds.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use disk::esp::Found;
use disk::image::Region;
use disk::{Layout, SectorSize, esp, table};
use rootfs::squashfs::read::Kind;
use serde_json::{Value, json};
use verity::{Area, RootHash};

use crate::manifest::ImageRecord;
use crate::progress::Size;
use crate::shares::{self, Boot, Share};

/// The largest UKI that is read into memory.
const UKI_LIMIT: u64 = 512 << 20;
/// The largest record of an image.
const RECORD_LIMIT: u64 = 16 << 20;
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// A boot entry: a UKI in the ESP.
#[derive(Clone, Debug)]
pub struct BootEntry {
    /// Its path in the ESP.
    pub path: String,
    /// Its command line.
    pub cmdline: String,
    /// The root hash that it demands.
    pub root_hash: Option<RootHash>,
    /// The sizes of its parts; why they cannot be told.
    boot: Result<Boot, String>,
}

/// A root slot.
#[derive(Clone, Debug)]
pub struct Slot {
    /// `root-a` or `root-b`.
    pub label: String,
    /// The root hash whose identifiers the partitions have, if a boot entry demands one for them.
    pub root_hash: Option<RootHash>,
    /// Whether root and tree agree with the root hash; why not.
    pub verified: Result<u64, String>,
}

/// What an image holds.
#[derive(Debug)]
pub struct Report {
    layout: Layout,
    findings: Vec<String>,
    entries: Vec<BootEntry>,
    slots: Vec<Slot>,
    root: Option<Root>,
}

/// A root file system that was verified.
#[derive(Debug)]
struct Root {
    record: Option<ImageRecord>,
    files: Vec<String>,
    /// How the image's size is shared; why that cannot be told.
    shares: Result<Vec<Share>, String>,
}

/// Reads an image, decompressing it first where it is compressed.
///
/// # Errors
/// When it is no image, or not one of NodeZero's.
pub fn inspect(path: &Path) -> Result<Report> {
    let mut file = open_raw(path)?;
    let sector = SectorSize::new(512)?;
    let sectors = file.seek(io::SeekFrom::End(0)).with_context(|| format!("reading {}", path.display()))? / 512;
    let found = table::read_table(&mut file, sector, sectors)
        .with_context(|| format!("reading the partition table of {}", path.display()))?;
    let entries = read_entries(&mut file, &found.layout)?;
    let mut slots = Vec::new();
    let mut root = None;
    for (label, tree_label) in [("root-a", "root-a-verity"), ("root-b", "root-b-verity")] {
        let (Some((_, data)), Some((_, tree))) = (found.layout.find(label), found.layout.find(tree_label)) else {
            continue;
        };
        let is_of = |hash: &&RootHash| {
            data.guid.to_bytes() == hash.data_partuuid() && tree.guid.to_bytes() == hash.hash_partuuid()
        };
        let root_hash = entries.iter().filter_map(|entry| entry.root_hash.as_ref()).find(is_of).cloned();
        let area = |partition: &disk::Partition| {
            let range = found.layout.byte_range(partition);
            Area::new(&file, range.start, range.end - range.start)
        };
        let verified = match &root_hash {
            None => Err("no boot entry demands what the partitions are named after".to_owned()),
            Some(hash) => verity::hash_tree::verify(area(data), area(tree), hash, threads())
                .map(|superblock| superblock.data_length())
                .map_err(|error| error.to_string()),
        };
        if let (None, Ok(length)) = (&root, &verified) {
            root = Some((found.layout.byte_range(data), *length, root_hash));
        }
        slots.push(Slot { label: label.to_owned(), root_hash, verified });
    }
    // What did not verify is not parsed.
    let root = root.map(|(range, length, hash)| {
        let esp = esp_of(&found.layout)?;
        let esp = esp::list(&mut Region::of_partition(&mut file, &found.layout, esp)).context("reading the ESP")?;
        let booted = entries.iter().find(|entry| entry.root_hash == hash);
        let boot = booted.map_or(Err("no boot entry demands the root".to_owned()), |entry| entry.boot.clone());
        let tree = verity::hash_tree::hash_area_size(length / verity::BLOCK_SIZE);
        read_root(Region::new(&mut file, range.start, range.end - range.start), &Around { boot, esp, tree })
    });
    let root = root.transpose()?;
    let findings = found.findings.iter().map(ToString::to_string).collect();
    Ok(Report { layout: found.layout, findings, entries, slots, root })
}

fn threads() -> NonZeroUsize {
    NonZeroUsize::new(crate::parallel::threads()).unwrap_or(NonZeroUsize::MIN)
}

fn esp_of(layout: &Layout) -> Result<&disk::Partition> {
    layout.find("ESP").map(|(_, esp)| esp).context("the image has no ESP: it is not one of NodeZero's")
}

fn read_entries(file: &mut File, layout: &Layout) -> Result<Vec<BootEntry>> {
    let mut device = Region::of_partition(file, layout, esp_of(layout)?);
    let mut entries = Vec::new();
    for found in esp::list(&mut device).context("reading the ESP")? {
        let lower = found.path.to_ascii_lowercase();
        if !lower.trim_start_matches('/').starts_with("efi/linux/") || !lower.ends_with(".efi") {
            continue;
        }
        let bytes =
            esp::read_file(&mut device, &found.path, UKI_LIMIT)?.with_context(|| format!("{} vanished", found.path))?;
        let uki = uki::Uki::read(&mut io::Cursor::new(&bytes)).with_context(|| format!("reading {}", found.path))?;
        let cmdline = uki.cmdline().map(ToString::to_string).unwrap_or_default();
        let root_hash = cmdline.split_whitespace().find_map(|word| word.strip_prefix("roothash=")?.parse().ok());
        let boot = Boot::read(&mut io::Cursor::new(&bytes)).map_err(|error| format!("{error:#}"));
        entries.push(BootEntry { path: found.path, cmdline, root_hash, boot });
    }
    Ok(entries)
}

/// What an image holds besides its root file system.
struct Around {
    boot: Result<Boot, String>,
    esp: Vec<Found>,
    tree: u64,
}

fn read_root(mut device: Region<'_, File>, around: &Around) -> Result<Root> {
    let mut image = rootfs::squashfs::read::Image::open(&mut device).context("reading the root file system")?;
    let entries = image.entries().context("listing the root file system")?;
    let mut record: Option<ImageRecord> = None;
    for entry in entries.iter().filter(|entry| entry.path == b"usr/lib/nodezero/image.json") {
        if let Kind::File(data) = &entry.kind {
            let bytes = image.read_file(data, RECORD_LIMIT).context("reading the image's record")?;
            record = Some(serde_json::from_slice(&bytes).context("reading the image's record")?);
        }
    }
    let components = record.as_ref().map(|record| record.components.as_slice()).unwrap_or_default();
    let shares = around.boot.clone().and_then(|boot| {
        let measured = shares::measure(&image, &entries, &boot, &around.esp, around.tree, components);
        measured.map_err(|error| format!("{error:#}"))
    });
    Ok(Root { files: entries.iter().map(file_line).collect(), record, shares })
}

/// The table of sizes, or why there is none.
fn write_shares(text: &mut String, shares: &Result<Vec<Share>, String>) {
    match shares {
        Ok(shares) => shares::lines(shares).iter().for_each(|line| {
            let _ = writeln!(text, "{line}");
        }),
        Err(why) => {
            let _ = writeln!(text, "sizes of its parts cannot be told: {why}");
        }
    }
}

/// The components of an image, and what it is not.
fn write_components(text: &mut String, record: &ImageRecord) {
    for component in &record.components {
        let _ = writeln!(text, "component {component}");
        for file in &component.files {
            let _ = writeln!(text, "  /{} {} bytes sha256 {}", file.path, file.size, file.sha256);
        }
    }
    for name in &record.standin {
        let _ = writeln!(text, "stand-in: {name} is not the real one; this image is for tests only");
    }
    for name in &record.missing {
        let _ = writeln!(text, "incomplete: the image goes without {name}");
    }
}

/// One line for a file: kind, mode, owner, size, path, target.
fn file_line(entry: &rootfs::squashfs::read::Entry) -> String {
    let (letter, size, target) = match &entry.kind {
        Kind::Directory => ('d', 0, None),
        Kind::File(data) => ('-', data.size(), None),
        Kind::Symlink(target) => ('l', 0, Some(target)),
        Kind::Device { kind: rootfs::tree::DeviceKind::Block, .. } => ('b', 0, None),
        Kind::Device { kind: rootfs::tree::DeviceKind::Character, .. } => ('c', 0, None),
        Kind::Fifo => ('p', 0, None),
        Kind::Socket => ('s', 0, None),
    };
    let path = String::from_utf8_lossy(&entry.path);
    let arrow = target.map(|target| format!(" -> {}", String::from_utf8_lossy(target))).unwrap_or_default();
    format!("{letter}{:04o} {}:{} {size} /{path}{arrow}", entry.meta.mode, entry.meta.uid, entry.meta.gid)
}

/// The image as a raw file: itself, or unpacked into an unnamed temporary file, its zeroes as holes.
fn open_raw(path: &Path) -> Result<File> {
    let mut file = crate::cache::open(path)?;
    let reading = || format!("reading {}", path.display());
    let mut magic = [0; 4];
    let count = file.read(&mut magic).with_context(reading)?;
    file.rewind().with_context(reading)?;
    match &magic[..count] {
        [0x28, 0xb5, 0x2f, 0xfd] => {
            unpack_sparse(zstd::Decoder::new(file).with_context(reading)?).with_context(reading)
        }
        [0x1f, 0x8b, ..] => unpack_sparse(flate2::read::MultiGzDecoder::new(file)).with_context(reading),
        magic if *magic == QCOW2_MAGIC => {
            bail!("{} is qcow2: convert it with qemu-img convert -O raw, or inspect the raw image", path.display())
        }
        _ => Ok(file),
    }
}

fn unpack_sparse(mut reader: impl Read) -> io::Result<File> {
    use std::os::unix::fs::FileExt as _;
    let file = tempfile::tempfile()?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if !crate::qcow2::is_zero(&buffer[..count]) {
            file.write_all_at(&buffer[..count], at)?;
        }
        at += count as u64;
    }
    file.set_len(at)?;
    Ok(file)
}

/// Whether an image is qcow2.
///
/// # Errors
/// When it cannot be read.
pub fn is_qcow2(path: &Path) -> Result<bool> {
    let mut magic = [0; 4];
    let count = crate::cache::open(path)?.read(&mut magic).with_context(|| format!("reading {}", path.display()))?;
    Ok(count == 4 && magic == QCOW2_MAGIC)
}

/// Whether a raw image has a BIOS loader; `None` where that cannot be told, as of qcow2.
#[must_use]
pub fn bios_bootable(path: &Path) -> Option<bool> {
    if is_qcow2(path).ok()? {
        return None;
    }
    let mut file = File::open(path).ok()?;
    let code = table::read_boot_code(&mut file).ok()?;
    Some(!crate::qcow2::is_zero(&code))
}

/// The kernel of the first boot entry of a raw image.
///
/// # Errors
/// When the image cannot be read.
pub fn kernel_of(path: &Path) -> Result<Option<Vec<u8>>> {
    if is_qcow2(path)? {
        return Ok(None);
    }
    let mut file = crate::cache::open(path)?;
    let sectors = file.metadata().with_context(|| format!("reading {}", path.display()))?.len() / 512;
    let found = table::read_table(&mut file, SectorSize::new(512)?, sectors)?;
    let Some(entry) = read_entries(&mut file, &found.layout)?.into_iter().next() else { return Ok(None) };
    let Some((_, partition)) = found.layout.find("ESP") else { return Ok(None) };
    let mut device = Region::of_partition(&mut file, &found.layout, partition);
    let Some(bytes) = esp::read_file(&mut device, &entry.path, UKI_LIMIT)? else { return Ok(None) };
    let mut cursor = io::Cursor::new(&bytes);
    let uki = uki::Uki::read(&mut cursor)?;
    let mut kernel = Vec::new();
    uki.open_section(&mut cursor, uki::Name::Linux)?.read_to_end(&mut kernel).context("reading the kernel")?;
    Ok(Some(kernel))
}

impl Report {
    /// Whether the tables are sound and every slot that holds a root verifies.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty() && !self.slots.is_empty() && self.slots.iter().all(|slot| slot.verified.is_ok())
    }

    fn record(&self) -> Option<&ImageRecord> {
        self.root.as_ref()?.record.as_ref()
    }

    fn files(&self) -> &[String] {
        self.root.as_ref().map_or(&[], |root| &root.files)
    }

    /// For people.
    #[must_use]
    pub fn to_text(&self, files: bool) -> String {
        let mut text = String::new();
        if let Some(record) = self.record() {
            let _ = writeln!(text, "{} {} ({} on {})", record.name, record.version, record.role, record.platform);
        }
        for (number, partition) in self.layout.partitions() {
            let range = self.layout.byte_range(partition);
            let _ = writeln!(
                text,
                "partition {number} {:14} {:20} {} at {}, {}",
                partition.label.as_str(),
                partition.partition_type.to_string(),
                partition.guid,
                Size(range.start),
                Size(range.end - range.start)
            );
        }
        for finding in &self.findings {
            let _ = writeln!(text, "partition table: {finding}");
        }
        for entry in &self.entries {
            let _ = writeln!(text, "boot entry {}\n  {}", entry.path, entry.cmdline);
        }
        for slot in &self.slots {
            let hash = slot.root_hash.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string);
            let verdict = match &slot.verified {
                Ok(length) => format!("verified, {}", Size(*length)),
                Err(why) => format!("NOT VERIFIED: {why}"),
            };
            let _ = writeln!(text, "slot {} root hash {hash}: {verdict}", slot.label);
        }
        if let Some(root) = &self.root {
            write_shares(&mut text, &root.shares);
        }
        if let Some(record) = self.record() {
            for note in &record.notes {
                let _ = writeln!(text, "note: {note}");
            }
            write_components(&mut text, record);
            for package in &record.packages {
                let _ = writeln!(text, "package {} {} {}", package.name, package.version, package.architecture);
            }
        }
        for file in self.files().iter().filter(|_| files) {
            let _ = writeln!(text, "{file}");
        }
        text
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self, files: bool) -> Value {
        let partitions: Vec<Value> =
            crate::build::partition_records(&self.layout).iter().map(|record| json!(record)).collect();
        let slots: Vec<Value> = self
            .slots
            .iter()
            .map(|slot| {
                json!({
                    "label": slot.label,
                    "root_hash": slot.root_hash.as_ref().map(ToString::to_string),
                    "verified": slot.verified.is_ok(),
                    "problem": slot.verified.as_ref().err(),
                })
            })
            .collect();
        let entries: Vec<Value> =
            self.entries.iter().map(|entry| json!({"path": entry.path, "cmdline": entry.cmdline})).collect();
        let mut value = json!({
            "image": self.record(),
            "partitions": partitions,
            "findings": self.findings,
            "boot_entries": entries,
            "slots": slots,
            "shares": self.root.as_ref().and_then(|root| root.shares.as_ref().ok()),
        });
        if files {
            value["files"] = json!(self.files());
        }
        value
    }
}
