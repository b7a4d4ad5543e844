//! Where everything of a new FAT32 file system goes, computed before any of it is written.

use std::collections::BTreeMap;

use super::Spec;
use super::name::{self, ENTRY_BYTES, Names};
use crate::error::{Error, Result};

/// Fewer clusters make a volume FAT16, whatever it calls itself; more have no number.
const MIN_CLUSTERS: u64 = 65_525;
const MAX_CLUSTERS: u64 = 0x0fff_fff4;

/// Some readers draw the line at [`MIN_CLUSTERS`] a little differently; the specification advises this distance.
const CLUSTERS_MARGIN: u64 = 16;

const FIRST_CLUSTER: u32 = 2;
const END_OF_CHAIN: u32 = 0x0fff_ffff;
const MEDIA: u8 = 0xf8;

/// Sectors before the first FAT, at least; where the second copy of the first three is.
const RESERVED_SECTORS: u64 = 32;
const BACKUP_BOOT_SECTOR: u64 = 6;

/// Attributes of a directory entry.
mod attribute {
    pub(super) const READ_ONLY: u8 = 0x01;
    pub(super) const HIDDEN: u8 = 0x02;
    pub(super) const SYSTEM: u8 = 0x04;
    pub(super) const VOLUME_ID: u8 = 0x08;
    pub(super) const DIRECTORY: u8 = 0x10;
    pub(super) const ARCHIVE: u8 = 0x20;
}

/// A file to be planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedFile {
    /// Path from the root.
    pub path: String,
    /// Bytes.
    pub len: u64,
    /// Whether it is marked read-only, hidden and system.
    pub hidden: bool,
}

impl PlannedFile {
    /// A file with no special marks.
    pub fn new(path: &str, len: u64) -> PlannedFile {
        PlannedFile { path: path.to_owned(), len, hidden: false }
    }
}

/// A run of sectors, counted from the start of the partition in the disk's sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First sector.
    pub first_sector: u64,
    /// Number of sectors that hold bytes of the file.
    pub sectors: u64,
}

/// A computed file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    spec: Spec,
    label: [u8; 11],
    geometry: Geometry,
    root: Directory,
    /// First cluster and length in clusters of each chain, in order and without gaps.
    chains: Vec<(u32, u32)>,
    extents: BTreeMap<String, Extent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Geometry {
    sector: u64,
    sectors: u64,
    cluster_sectors: u64,
    reserved: u64,
    fat_sectors: u64,
    clusters: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Directory {
    /// By folded name, so that sorting does not depend on case.
    members: BTreeMap<String, Member>,
    cluster: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    name: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Directory(Directory),
    File { path: String, len: u32, hidden: bool, cluster: u32 },
}

/// A path as [`Plan`] names it: no leading slash.
pub(super) fn normal(path: &str) -> String {
    path.strip_prefix('/').unwrap_or(path).to_owned()
}

/// The components of a path, each of them valid.
fn components(path: &str) -> Result<Vec<&str>> {
    let components: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
    match components.iter().find(|component| name::check(component).is_err()) {
        None => Ok(components),
        Some(_) => Err(Error::FatPath(path.to_owned())),
    }
}

impl Plan {
    /// Computes the file system of these files.
    pub fn new(spec: &Spec, files: &[PlannedFile]) -> Result<Plan> {
        let label = name::volume_label(&spec.label)?;
        let geometry = Geometry::new(spec)?;
        let mut root = Directory::default();
        for path in &spec.directories {
            root.descend(path, &components(path)?)?;
        }
        for file in files {
            root.insert(file)?;
        }
        let mut allocator = Allocator { geometry, next: u64::from(FIRST_CLUSTER), chains: Vec::new() };
        root.allocate(&mut allocator, true);
        let mut extents = BTreeMap::new();
        root.allocate_files(&mut allocator, &mut extents);
        let needed = allocator.next - u64::from(FIRST_CLUSTER);
        if needed > geometry.clusters {
            return Err(Error::FatFull { needed, have: geometry.clusters });
        }
        Ok(Plan { spec: spec.clone(), label, geometry, root, chains: allocator.chains, extents })
    }

    /// Where a file lies; nothing for an empty file or one that is not there.
    pub fn extent(&self, path: &str) -> Option<Extent> {
        self.extents.get(&normal(path)).copied()
    }

    /// All files that have bytes, by path without a leading slash, and where they lie.
    pub fn extents(&self) -> impl Iterator<Item = (&str, Extent)> {
        self.extents.iter().map(|(path, extent)| (path.as_str(), *extent))
    }

    /// Bytes of a cluster.
    pub fn cluster_bytes(&self) -> u64 {
        self.geometry.cluster_sectors * self.geometry.sector
    }

    /// Bytes that further files can take.
    pub fn free_bytes(&self) -> u64 {
        (self.geometry.clusters - self.used_clusters()) * self.cluster_bytes()
    }

    fn used_clusters(&self) -> u64 {
        self.chains.iter().map(|(_, clusters)| u64::from(*clusters)).sum()
    }

    /// The first 512 bytes of the boot sector, with code that only halts: UEFI runs none.
    pub fn boot_sector(&self) -> [u8; 512] {
        let geometry = &self.geometry;
        let mut sector = [0; 512];
        sector[..11].copy_from_slice(b"\xeb\x58\x90NODEZERO");
        let put16 = |sector: &mut [u8; 512], at: usize, value: u64| {
            sector[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
        };
        let put32 = |sector: &mut [u8; 512], at: usize, value: u64| {
            sector[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
        };
        put16(&mut sector, 11, geometry.sector);
        sector[13] = geometry.cluster_sectors as u8;
        put16(&mut sector, 14, geometry.reserved);
        sector[16] = 2;
        sector[21] = MEDIA;
        // Sectors per track and heads, as BIOSes report them for large disks.
        put16(&mut sector, 24, 63);
        put16(&mut sector, 26, 255);
        // Hidden sectors have 32 bits; an ESP beyond them is none that a BIOS boots.
        put32(&mut sector, 28, u64::from(u32::try_from(self.spec.first_lba).unwrap_or(0)));
        put32(&mut sector, 32, geometry.sectors);
        put32(&mut sector, 36, geometry.fat_sectors);
        put32(&mut sector, 44, u64::from(FIRST_CLUSTER));
        put16(&mut sector, 48, 1);
        put16(&mut sector, 50, BACKUP_BOOT_SECTOR);
        sector[64] = 0x80;
        sector[66] = 0x29;
        put32(&mut sector, 67, u64::from(self.spec.volume_id));
        sector[71..82].copy_from_slice(&self.label);
        sector[82..90].copy_from_slice(b"FAT32   ");
        // hlt; jmp to it.
        sector[90..93].copy_from_slice(&[0xf4, 0xeb, 0xfd]);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    /// Everything but the contents of files: offsets in bytes and what goes there, in ascending order.
    pub(super) fn metadata(&self, boot_sector: &[u8; 512]) -> Vec<(u64, Vec<u8>)> {
        let Geometry { sector, reserved, fat_sectors, .. } = self.geometry;
        let mut pieces = Vec::new();
        for copy in [0, BACKUP_BOOT_SECTOR] {
            pieces.push((copy * sector, boot_sector.to_vec()));
            pieces.push(((copy + 1) * sector, self.info_sector()));
            // The third sector is boot code that is not there; it carries its signature all the same.
            pieces.push(((copy + 2) * sector + 508, vec![0, 0, 0x55, 0xaa]));
        }
        let fat = self.allocation_table();
        pieces.push((reserved * sector, fat.clone()));
        pieces.push(((reserved + fat_sectors) * sector, fat));
        let stamp = timestamp(self.spec.unix_time);
        let mut label = entry(&self.label, attribute::VOLUME_ID, stamp, 0, 0);
        self.root.emit(None, &mut label, stamp, &mut |cluster, bytes| {
            pieces.push((self.geometry.cluster_offset(cluster), bytes));
        });
        pieces
    }

    fn info_sector(&self) -> Vec<u8> {
        let used = self.used_clusters();
        let mut sector = vec![0; 512];
        let next = u64::from(FIRST_CLUSTER) + used;
        for (at, value) in [
            (0, 0x4161_5252),
            (484, 0x6141_7272),
            (488, (self.geometry.clusters - used) as u32),
            (492, if used < self.geometry.clusters { next as u32 } else { u32::MAX }),
            (508, 0xaa55_0000),
        ] {
            sector[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        sector
    }

    /// The table up to the last used entry.
    fn allocation_table(&self) -> Vec<u8> {
        let mut table: Vec<u32> = vec![0x0fff_ff00 | u32::from(MEDIA), END_OF_CHAIN];
        for &(first, clusters) in &self.chains {
            table.extend(first + 1..first + clusters);
            table.push(END_OF_CHAIN);
        }
        table.into_iter().flat_map(u32::to_le_bytes).collect()
    }
}

impl Geometry {
    /// Clusters of 4 KiB where the volume is large enough for FAT32 with them, else smaller ones; larger ones from 8 GiB
    /// on, as the specification advises. The data begin at a multiple of the cluster size.
    fn new(spec: &Spec) -> Result<Geometry> {
        let sector = spec.sector.bytes();
        let sectors = spec.size / sector;
        let mut cluster_bytes: u64 = match spec.size >> 30 {
            0..8 => 4096,
            8..16 => 8192,
            16..32 => 16_384,
            _ => 32_768,
        };
        cluster_bytes = cluster_bytes.max(sector);
        loop {
            let geometry = Geometry::with_clusters(sector, sectors, cluster_bytes / sector);
            let clusters = geometry.clusters;
            if (MIN_CLUSTERS + CLUSTERS_MARGIN..=MAX_CLUSTERS).contains(&clusters) && sectors <= u64::from(u32::MAX) {
                return Ok(geometry);
            }
            if cluster_bytes == sector || clusters > MAX_CLUSTERS {
                return Err(Error::FatSize { bytes: spec.size, clusters });
            }
            cluster_bytes /= 2;
        }
    }

    fn with_clusters(sector: u64, sectors: u64, cluster_sectors: u64) -> Geometry {
        // The table is sized for clusters on all sectors: a little more than needed, and no circular reckoning.
        let fat_sectors = ((sectors / cluster_sectors + 2) * 4).div_ceil(sector);
        let start = (RESERVED_SECTORS + 2 * fat_sectors).next_multiple_of(cluster_sectors);
        let reserved = start - 2 * fat_sectors;
        let clusters = sectors.saturating_sub(start) / cluster_sectors;
        Geometry { sector, sectors, cluster_sectors, reserved, fat_sectors, clusters }
    }

    fn cluster_sector(&self, cluster: u32) -> u64 {
        self.reserved + 2 * self.fat_sectors + u64::from(cluster - FIRST_CLUSTER) * self.cluster_sectors
    }

    fn cluster_offset(&self, cluster: u32) -> u64 {
        self.cluster_sector(cluster) * self.sector
    }
}

/// Hands out clusters from the first on.
struct Allocator {
    geometry: Geometry,
    next: u64,
    chains: Vec<(u32, u32)>,
}

impl Allocator {
    /// A chain for so many bytes, of one cluster at least. Beyond the volume's end the numbers are of no use, and
    /// [`Plan::new`] sees by `next` that there are any.
    fn allocate(&mut self, bytes: u64) -> u32 {
        let clusters = bytes.div_ceil(self.geometry.cluster_sectors * self.geometry.sector).max(1);
        let first = self.next as u32;
        self.next += clusters;
        if self.next - u64::from(FIRST_CLUSTER) <= self.geometry.clusters {
            self.chains.push((first, clusters as u32));
        }
        first
    }
}

impl Directory {
    fn insert(&mut self, file: &PlannedFile) -> Result<()> {
        let path = normal(&file.path);
        let duplicate = || Error::FatDuplicate(file.path.clone());
        let too_large = |_| Error::TooLarge { what: file.path.clone(), len: file.len, room: u64::from(u32::MAX) };
        let len = u32::try_from(file.len).map_err(too_large)?;
        let mut components = components(&file.path)?;
        let last = components.pop().expect("splitting yields at least one component");
        let directory = self.descend(&file.path, &components)?;
        let kind = Kind::File { path: path.clone(), len, hidden: file.hidden, cluster: 0 };
        let member = Member { name: last.to_owned(), kind };
        match directory.members.insert(name::folded(last), member) {
            None => Ok(()),
            Some(_) => Err(duplicate()),
        }
    }

    /// The directory of these components of `path`, made where it is missing.
    fn descend(&mut self, path: &str, components: &[&str]) -> Result<&mut Directory> {
        let mut directory = self;
        for component in components {
            let member = directory.members.entry(name::folded(component)).or_insert_with(|| Member {
                name: (*component).to_owned(),
                kind: Kind::Directory(Directory::default()),
            });
            match &mut member.kind {
                Kind::Directory(inner) => directory = inner,
                Kind::File { .. } => return Err(Error::FatDuplicate(path.to_owned())),
            }
        }
        Ok(directory)
    }

    fn names(&self) -> Vec<Names> {
        let names: Vec<&str> = self.members.values().map(|member| member.name.as_str()).collect();
        name::assign(&names)
    }

    /// Clusters of this directory and of those in it, so that all directories come before all files.
    fn allocate(&mut self, allocator: &mut Allocator, is_root: bool) {
        // The volume's label in the root, "." and ".." elsewhere.
        let own = if is_root { 1 } else { 2 };
        let entries = own + self.names().iter().map(Names::entries).sum::<usize>();
        self.cluster = allocator.allocate((entries * ENTRY_BYTES) as u64);
        for member in self.members.values_mut() {
            if let Kind::Directory(directory) = &mut member.kind {
                directory.allocate(allocator, false);
            }
        }
    }

    fn allocate_files(&mut self, allocator: &mut Allocator, extents: &mut BTreeMap<String, Extent>) {
        for member in self.members.values_mut() {
            match &mut member.kind {
                Kind::Directory(directory) => directory.allocate_files(allocator, extents),
                Kind::File { len: 0, .. } => {}
                Kind::File { path, len, cluster, .. } => {
                    let bytes = u64::from(*len);
                    *cluster = allocator.allocate(bytes);
                    let first_sector = allocator.geometry.cluster_sector(*cluster);
                    let sectors = bytes.div_ceil(allocator.geometry.sector);
                    extents.insert(path.clone(), Extent { first_sector, sectors });
                }
            }
        }
    }

    /// The bytes of this directory and of those in it. `parent` is the parent's cluster as ".." has it.
    fn emit(&self, parent: Option<u32>, head: &mut Vec<u8>, stamp: Stamp, out: &mut impl FnMut(u32, Vec<u8>)) {
        let mut bytes = std::mem::take(head);
        if let Some(parent) = parent {
            bytes.extend(entry(b".          ", attribute::DIRECTORY, stamp, self.cluster, 0));
            bytes.extend(entry(b"..         ", attribute::DIRECTORY, stamp, parent, 0));
        }
        for (member, names) in self.members.values().zip(self.names()) {
            bytes.extend(names.long_entries());
            bytes.extend(match &member.kind {
                Kind::Directory(inner) => entry(&names.short, attribute::DIRECTORY, stamp, inner.cluster, 0),
                Kind::File { len, hidden, cluster, .. } => {
                    let marks = attribute::READ_ONLY | attribute::HIDDEN | attribute::SYSTEM;
                    let attributes = attribute::ARCHIVE | if *hidden { marks } else { 0 };
                    entry(&names.short, attributes, stamp, *cluster, *len)
                }
            });
        }
        out(self.cluster, bytes);
        // The root's number is written as 0 in "..".
        let as_parent = if parent.is_none() { 0 } else { self.cluster };
        for member in self.members.values() {
            if let Kind::Directory(inner) = &member.kind {
                inner.emit(Some(as_parent), &mut Vec::new(), stamp, out);
            }
        }
    }
}

/// A date and a time as FAT stores them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) date: u16,
    pub(super) time: u16,
}

/// The stamp of a time in seconds since 1970. Times outside 1980 to 2107 become the nearest that FAT knows.
pub(super) fn timestamp(unix_time: u64) -> Stamp {
    let (days, seconds) = (unix_time / 86_400, unix_time % 86_400);
    let mut year = 1970;
    let mut left = days;
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while year < 2108 && left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    if year < 1980 {
        return Stamp { date: 1 << 5 | 1, time: 0 };
    }
    if year > 2107 {
        return Stamp { date: 127 << 9 | 12 << 5 | 31, time: 23 << 11 | 59 << 5 | 29 };
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    let date = (year - 1980) << 9 | month << 5 | (left + 1);
    let time = (seconds / 3600) << 11 | (seconds / 60 % 60) << 5 | ((seconds % 60) / 2);
    Stamp { date: date as u16, time: time as u16 }
}

fn entry(name: &[u8; 11], attributes: u8, stamp: Stamp, cluster: u32, len: u32) -> Vec<u8> {
    let mut bytes = vec![0; ENTRY_BYTES];
    bytes[..11].copy_from_slice(name);
    bytes[11] = attributes;
    let [c0, c1, c2, c3] = cluster.to_le_bytes();
    for (at, value) in [
        (14, stamp.time.to_le_bytes()),
        (16, stamp.date.to_le_bytes()),
        (18, stamp.date.to_le_bytes()),
        (20, [c2, c3]),
        (22, stamp.time.to_le_bytes()),
        (24, stamp.date.to_le_bytes()),
        (26, [c0, c1]),
    ] {
        bytes[at..at + 2].copy_from_slice(&value);
    }
    bytes[28..].copy_from_slice(&len.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::SectorSize;

    #[test]
    fn times_are_fat_times() {
        for (unix_time, date, time) in [
            (0, (1980, 1, 1), (0, 0, 0)),
            (315_532_800, (1980, 1, 1), (0, 0, 0)),
            (951_782_400, (2000, 2, 29), (0, 0, 0)),
            (1_735_689_599, (2024, 12, 31), (23, 59, 58)),
            (1_767_225_601, (2026, 1, 1), (0, 0, 0)),
            (4_102_444_800, (2100, 1, 1), (0, 0, 0)),
            (4_354_819_199, (2107, 12, 31), (23, 59, 58)),
            (u64::MAX, (2107, 12, 31), (23, 59, 58)),
        ] {
            let stamp = timestamp(unix_time);
            let read = (1980 + (stamp.date >> 9), stamp.date >> 5 & 15, stamp.date & 31);
            assert_eq!(read, date, "{unix_time}");
            assert_eq!((stamp.time >> 11, stamp.time >> 5 & 63, (stamp.time & 31) * 2), time, "{unix_time}");
        }
    }

    #[test]
    fn every_size_is_truly_fat32() {
        let spec = |size, sector| Spec {
            size,
            sector,
            first_lba: 2048,
            volume_id: 1,
            label: "ESP".to_owned(),
            unix_time: 0,
            directories: Vec::new(),
        };
        const MIB: u64 = 1 << 20;
        for (mib, sector, cluster_bytes) in [
            (33, SectorSize::B512, Some(512)),
            (32, SectorSize::B512, None),
            (100, SectorSize::B512, Some(1024)),
            (256, SectorSize::B512, Some(2048)),
            (300, SectorSize::B512, Some(4096)),
            (512, SectorSize::B512, Some(4096)),
            (9 << 10, SectorSize::B512, Some(8192)),
            (64 << 10, SectorSize::B512, Some(32_768)),
            (3 << 20, SectorSize::B512, None),
            (256, SectorSize::B4096, None),
            (260, SectorSize::B4096, Some(4096)),
        ] {
            let plan = Plan::new(&spec(mib * MIB, sector), &[]);
            assert_eq!(plan.as_ref().ok().map(Plan::cluster_bytes), cluster_bytes, "{mib} MiB {sector:?}");
            if let Ok(plan) = plan {
                let geometry = plan.geometry;
                assert!(geometry.clusters >= MIN_CLUSTERS + CLUSTERS_MARGIN);
                assert!((geometry.clusters + 2) * 4 <= geometry.fat_sectors * geometry.sector);
                let data = geometry.cluster_sector(FIRST_CLUSTER);
                assert!(data + geometry.clusters * geometry.cluster_sectors <= geometry.sectors);
                assert_eq!(data % geometry.cluster_sectors, 0);
            }
        }
    }
}
