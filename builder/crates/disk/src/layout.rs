//! Partitions of a disk as data: what an image holds and what the first boot adds. Pure; nothing here reads or writes.
//!
//! The image's order on disk is ESP, `root-a-verity`, `root-a`, though their numbers are 1, 4 and 3: with `root-a` last,
//! its partition needs to be no larger than its content in the image, and the first boot can still grow it to the size
//! of a slot ([`SlotSizes`]), so that later and larger generations fit slot a as they fit slot b. Number 2 stays free:
//! it is for a loader that needs a partition of its own, and syslinux boots from the ESP.
//!
//! Left out: choosing a disk, and file systems.

mod complete;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{BitOr, Range};

pub use complete::{Change, Completion, StateStep, complete, finish_state, keep_state};

use crate::error::{Error, Result};
use crate::guid::Guid;
use crate::type_guid::PartitionType;

/// Partitions start and end at multiples of this many bytes.
pub const ALIGNMENT: u64 = 1 << 20;

/// Entries in a table; also the highest partition number.
pub const MAX_PARTITIONS: u32 = 128;

/// Bytes of one copy of the partition entries.
pub(crate) const ENTRIES_BYTES: u64 = MAX_PARTITIONS as u64 * 128;

/// The least size of `state`, in bytes.
pub const MIN_STATE_BYTES: u64 = 1 << 30;

/// The least size of a root slot, in bytes.
pub const MIN_ROOT_SLOT_BYTES: u64 = 2 << 30;

/// A partition that this project makes: number, label and type belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// EFI system partition.
    Esp,
    /// Kept for a BIOS loader that needs a partition; not made today.
    Bios,
    /// Root file system of slot a.
    RootA,
    /// Hash tree of slot a.
    RootAVerity,
    /// Root file system of slot b.
    RootB,
    /// Hash tree of slot b.
    RootBVerity,
    /// What outlives a generation.
    State,
}

impl Role {
    /// Every role, by partition number.
    pub const ALL: [Role; 7] =
        [Role::Esp, Role::Bios, Role::RootA, Role::RootAVerity, Role::RootB, Role::RootBVerity, Role::State];

    /// The partition number.
    pub const fn number(self) -> u32 {
        match self {
            Role::Esp => 1,
            Role::Bios => 2,
            Role::RootA => 3,
            Role::RootAVerity => 4,
            Role::RootB => 5,
            Role::RootBVerity => 6,
            Role::State => 7,
        }
    }

    /// The partition label.
    pub const fn label(self) -> &'static str {
        match self {
            Role::Esp => "ESP",
            Role::Bios => "BIOS",
            Role::RootA => "root-a",
            Role::RootAVerity => "root-a-verity",
            Role::RootB => "root-b",
            Role::RootBVerity => "root-b-verity",
            Role::State => "state",
        }
    }

    /// The partition type.
    pub const fn partition_type(self) -> PartitionType {
        match self {
            Role::Esp => PartitionType::Esp,
            Role::Bios => PartitionType::BiosBoot,
            Role::RootA | Role::RootB => PartitionType::RootX86_64,
            Role::RootAVerity | Role::RootBVerity => PartitionType::RootX86_64Verity,
            Role::State => PartitionType::LinuxGeneric,
        }
    }

    /// What the table says about the partition. systemd's generator shall mount none of ours by itself: the first
    /// stage does, by root hash.
    const fn attributes(self) -> Attributes {
        match self {
            Role::Esp | Role::Bios => Attributes::NONE,
            Role::RootA | Role::RootAVerity | Role::RootB | Role::RootBVerity => {
                Attributes(Attributes::READ_ONLY.0 | Attributes::NO_AUTO.0)
            }
            Role::State => Attributes::NO_AUTO,
        }
    }

    fn partition(self, guid: Guid, first_lba: u64, sectors: u64) -> Partition {
        Partition {
            label: Label(self.label().to_owned()),
            partition_type: self.partition_type(),
            guid,
            first_lba,
            sectors,
            attributes: self.attributes(),
        }
    }
}

/// Bytes of a logical sector, the unit of every LBA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SectorSize {
    /// 512 bytes: nearly every disk, and all images for providers.
    B512,
    /// 4096 bytes: "4Kn" disks.
    B4096,
}

impl SectorSize {
    /// From a number of bytes, as BLKSSZGET or `queue/logical_block_size` tell it.
    pub fn new(bytes: u64) -> Result<SectorSize> {
        match bytes {
            512 => Ok(SectorSize::B512),
            4096 => Ok(SectorSize::B4096),
            other => Err(Error::SectorSize(other)),
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            SectorSize::B512 => 512,
            SectorSize::B4096 => 4096,
        }
    }

    /// Sectors of one [`ALIGNMENT`].
    const fn per_alignment(self) -> u64 {
        ALIGNMENT / self.bytes()
    }

    /// Sectors of one copy of the entries.
    pub(crate) const fn entries_sectors(self) -> u64 {
        ENTRIES_BYTES / self.bytes()
    }

    /// First sector a partition may use: after the protective MBR, the header and the entries.
    const fn first_usable(self) -> u64 {
        2 + self.entries_sectors()
    }
}

/// A partition label of at most 36 UTF-16 units.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(String);

impl Label {
    /// Checks that the text fits an entry.
    pub fn new(text: &str) -> Result<Label> {
        if text.encode_utf16().count() > 36 || text.contains('\0') {
            return Err(Error::Label(text.to_owned()));
        }
        Ok(Label(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// From an entry's units up to the first NUL. Units that are not UTF-16 become U+FFFD.
    pub(crate) fn from_units(units: &[u16]) -> Label {
        let end = units.iter().position(|&unit| unit == 0).unwrap_or(units.len());
        Label(String::from_utf16_lossy(&units[..end]))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The attribute bits of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Attributes(u64);

impl Attributes {
    /// No bit.
    pub const NONE: Attributes = Attributes(0);
    /// Bit 2: a legacy BIOS boots from this partition.
    pub const LEGACY_BIOS_BOOTABLE: Attributes = Attributes(1 << 2);
    /// Bit 60: mount read-only.
    pub const READ_ONLY: Attributes = Attributes(1 << 60);
    /// Bit 63: do not mount by discovery.
    pub const NO_AUTO: Attributes = Attributes(1 << 63);

    /// From the entry's field; unknown bits are kept.
    pub const fn from_bits(bits: u64) -> Attributes {
        Attributes(bits)
    }

    /// The entry's field.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Attributes) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Attributes {
    type Output = Attributes;

    fn bitor(self, other: Attributes) -> Attributes {
        Attributes(self.0 | other.0)
    }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// One entry of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The label.
    pub label: Label,
    /// The type.
    pub partition_type: PartitionType,
    /// The partition's own GUID, `PARTUUID` to Linux.
    pub guid: Guid,
    /// First sector.
    pub first_lba: u64,
    /// Length in sectors.
    pub sectors: u64,
    /// Attribute bits.
    pub attributes: Attributes,
}

impl Partition {
    /// The sector after the last. Saturates, so that a nonsense entry fails its range check.
    pub fn end_lba(&self) -> u64 {
        self.first_lba.saturating_add(self.sectors)
    }
}

/// A whole table: its partitions by number lie within the disk and do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    sector: SectorSize,
    disk_guid: Guid,
    disk_sectors: u64,
    partitions: BTreeMap<u32, Partition>,
}

impl Layout {
    /// Checks numbers, ranges and overlaps. Alignment is not checked: a table found on a disk may have its own.
    pub fn new(
        sector: SectorSize,
        disk_guid: Guid,
        disk_sectors: u64,
        partitions: BTreeMap<u32, Partition>,
    ) -> Result<Layout> {
        if disk_sectors > i64::MAX as u64 / sector.bytes() {
            return Err(Error::SectorCount(disk_sectors));
        }
        let layout = Layout { sector, disk_guid, disk_sectors, partitions };
        // Two headers, two copies of the entries, the MBR, and one sector to use.
        let least = 2 * sector.entries_sectors() + 4;
        if disk_sectors < least {
            let bytes = sector.bytes();
            return Err(Error::DiskTooSmall { have: disk_sectors * bytes, needed: least * bytes });
        }
        let (first_usable, last_usable) = (layout.first_usable(), layout.last_usable());
        for (&number, partition) in &layout.partitions {
            if number == 0 || number > MAX_PARTITIONS {
                return Err(Error::Number(number));
            }
            if partition.sectors == 0 || partition.first_lba < first_usable || partition.end_lba() > last_usable + 1 {
                return Err(Error::OutOfRange {
                    label: partition.label.0.clone(),
                    first_lba: partition.first_lba,
                    sectors: partition.sectors,
                    first_usable,
                    last_usable,
                });
            }
        }
        for pair in layout.by_position().windows(2) {
            let ((_, first), (_, second)) = (pair[0], pair[1]);
            if first.end_lba() > second.first_lba {
                return Err(Error::Overlap { first: first.label.0.clone(), second: second.label.0.clone() });
            }
        }
        Ok(layout)
    }

    /// The logical sector size.
    pub fn sector_size(&self) -> SectorSize {
        self.sector
    }

    /// The disk's GUID.
    pub fn disk_guid(&self) -> Guid {
        self.disk_guid
    }

    /// Sectors of the disk or image that the table covers.
    pub fn disk_sectors(&self) -> u64 {
        self.disk_sectors
    }

    /// Bytes of the disk or image that the table covers.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_sectors * self.sector.bytes()
    }

    /// First sector that a partition may use.
    pub fn first_usable(&self) -> u64 {
        self.sector.first_usable()
    }

    /// Last sector that a partition may use.
    pub fn last_usable(&self) -> u64 {
        self.disk_sectors - self.sector.entries_sectors() - 2
    }

    /// The partitions by number.
    pub fn partitions(&self) -> &BTreeMap<u32, Partition> {
        &self.partitions
    }

    /// The partitions and their numbers in the order of their first sectors.
    pub fn by_position(&self) -> Vec<(u32, &Partition)> {
        let mut sorted: Vec<_> = self.partitions.iter().map(|(&number, partition)| (number, partition)).collect();
        sorted.sort_by_key(|(_, partition)| partition.first_lba);
        sorted
    }

    /// The first partition by number that has this label.
    pub fn find(&self, label: &str) -> Option<(u32, &Partition)> {
        self.partitions.iter().find(|(_, partition)| partition.label.0 == label).map(|(&number, part)| (number, part))
    }

    /// The partition of a role, where it is there under that role's number, label and type.
    pub fn role(&self, role: Role) -> Option<&Partition> {
        self.partitions
            .get(&role.number())
            .filter(|part| part.label.0 == role.label() && part.partition_type == role.partition_type())
    }

    /// The bytes of the disk that a partition covers.
    pub fn byte_range(&self, partition: &Partition) -> Range<u64> {
        let bytes = self.sector.bytes();
        partition.first_lba.saturating_mul(bytes)..partition.end_lba().saturating_mul(bytes)
    }

    /// The sector after the last that an aligned partition may cover.
    fn aligned_end(&self) -> u64 {
        (self.last_usable() + 1) / self.sector.per_alignment() * self.sector.per_alignment()
    }
}

/// One line for the disk, one for each partition by number.
impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "disk {} sectors {} of {}", self.disk_guid, self.disk_sectors, self.sector.bytes())?;
        for (number, part) in &self.partitions {
            let Partition { label, partition_type, guid, first_lba, sectors, attributes } = part;
            writeln!(
                f,
                "{number:>3} {label:13} {partition_type:18} {guid} first {first_lba} sectors {sectors} attributes {:#x}",
                attributes.bits()
            )?;
        }
        Ok(())
    }
}

/// How large the two slots of a disk are.
///
/// The image fixes it once by the size of its `root-a-verity` partition, and the first boot reads it from there. So it
/// needs no constant shared between an image and a later first boot, and asking again gives the same answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotSizes {
    /// In units of [`ALIGNMENT`].
    verity: u64,
}

impl SlotSizes {
    /// Root bytes for each byte of hash tree. A tree of SHA-256 over 4096-byte blocks takes 1/127 of its data, a few
    /// blocks for its upper levels, and a superblock; 1/120 leaves room for all of these at any size.
    pub const ROOT_PER_VERITY: u64 = 120;

    /// The slots of an image whose root has `root_bytes`: twice that, and [`MIN_ROOT_SLOT_BYTES`] at least, for later
    /// generations are larger and a disk cannot be divided again.
    pub fn for_content(root_bytes: u64) -> SlotSizes {
        let root = root_bytes.saturating_mul(2).max(MIN_ROOT_SLOT_BYTES);
        SlotSizes { verity: root.div_ceil(Self::ROOT_PER_VERITY * ALIGNMENT) }
    }

    /// The slots of a disk whose `root-a-verity` partition has `verity_bytes`.
    pub fn for_verity(verity_bytes: u64) -> SlotSizes {
        SlotSizes { verity: verity_bytes / ALIGNMENT }
    }

    /// Bytes of a root slot.
    pub fn root_bytes(self) -> u64 {
        self.verity.saturating_mul(Self::ROOT_PER_VERITY).saturating_mul(ALIGNMENT)
    }

    /// Bytes of a slot's hash tree.
    pub fn verity_bytes(self) -> u64 {
        self.verity * ALIGNMENT
    }
}

/// What an image shall hold. Sizes are in bytes and are rounded up to [`ALIGNMENT`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Sector size of the disks that the image is for.
    pub sector: SectorSize,
    /// GUID of the disk.
    pub disk_guid: Guid,
    /// Size of the ESP.
    pub esp_size: u64,
    /// GUID of the ESP.
    pub esp_guid: Guid,
    /// Size of the root file system's image.
    pub root_size: u64,
    /// GUID of `root-a`; see [`Guid::of_root_hash`].
    pub root_guid: Guid,
    /// Size of the hash tree with its superblock.
    pub verity_size: u64,
    /// GUID of `root-a-verity`; see [`Guid::of_root_hash`].
    pub verity_guid: Guid,
    /// Whether the ESP is marked as what a legacy BIOS boots.
    pub bios: bool,
}

/// The layout of an image: no longer than its content needs, with the backup table at its end, in whole MiB.
pub fn image_layout(spec: &Spec) -> Result<Layout> {
    let slots = SlotSizes::for_content(spec.root_size);
    if spec.verity_size > slots.verity_bytes() {
        let what = Role::RootAVerity.label().to_owned();
        return Err(Error::TooLarge { what, len: spec.verity_size, room: slots.verity_bytes() });
    }
    let unit = spec.sector.per_alignment();
    let mut partitions = BTreeMap::new();
    let mut next = unit;
    for (role, bytes, guid) in [
        (Role::Esp, spec.esp_size, spec.esp_guid),
        (Role::RootAVerity, slots.verity_bytes(), spec.verity_guid),
        (Role::RootA, spec.root_size, spec.root_guid),
    ] {
        let sectors = bytes.div_ceil(ALIGNMENT) * unit;
        let mut partition = role.partition(guid, next, sectors);
        if role == Role::Esp && spec.bios {
            partition.attributes = partition.attributes | Attributes::LEGACY_BIOS_BOOTABLE;
        }
        partitions.insert(role.number(), partition);
        next += sectors;
    }
    // The backup entries and header take less than one unit.
    Layout::new(spec.sector, spec.disk_guid, next + unit, partitions)
}

/// The layout of a data disk: one partition of type linux-generic over all aligned sectors, as number 1.
pub fn data_disk(sector: SectorSize, disk_sectors: u64, disk_guid: Guid, label: Label, guid: Guid) -> Result<Layout> {
    let empty = Layout::new(sector, disk_guid, disk_sectors, BTreeMap::new())?;
    let first_lba = sector.per_alignment();
    let sectors = empty.aligned_end().saturating_sub(first_lba);
    if sectors == 0 {
        return Err(Error::DiskTooSmall { have: empty.disk_bytes(), needed: 3 * ALIGNMENT });
    }
    let partition_type = PartitionType::LinuxGeneric;
    let attributes = Attributes::NO_AUTO;
    let partition = Partition { label, partition_type, guid, first_lba, sectors, attributes };
    Layout::new(sector, disk_guid, disk_sectors, BTreeMap::from([(1, partition)]))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const MIB: u64 = 1 << 20;
    pub(crate) const GIB: u64 = 1 << 30;

    pub(crate) fn spec(sector: SectorSize) -> Spec {
        Spec {
            sector,
            disk_guid: Guid::derived("disk", b"test"),
            esp_size: 300 * MIB,
            esp_guid: Guid::derived("esp", b"test"),
            root_size: 250 * MIB + 4096,
            root_guid: Guid::derived("root", b"test"),
            verity_size: 2 * MIB + 8192,
            verity_guid: Guid::derived("verity", b"test"),
            bios: true,
        }
    }

    #[test]
    fn an_image_is_minimal_aligned_and_numbered() {
        let expected = "\
disk f7c43895-c79c-81b8-9fbb-8734a85c8a8a sectors 1169408 of 512
  1 ESP           esp                c0666faf-76c3-8900-8e58-dc0582c25182 first 2048 sectors 614400 attributes 0x4
  3 root-a        root-x86-64        4733910b-d262-876b-8035-456b8931ceb5 first 653312 sectors 514048 attributes 0x9000000000000000
  4 root-a-verity root-x86-64-verity 256d8f35-fcab-8155-b0d9-4ac083a27a84 first 616448 sectors 36864 attributes 0x9000000000000000
";
        let layout = image_layout(&spec(SectorSize::B512)).unwrap();
        assert_eq!(layout.to_string(), expected);
        let numbers: Vec<u32> = layout.by_position().iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [1, 4, 3]);
        for (size, unit) in [(SectorSize::B512, 2048), (SectorSize::B4096, 256)] {
            let layout = image_layout(&spec(size)).unwrap();
            let [esp, verity, root] =
                [Role::Esp, Role::RootAVerity, Role::RootA].map(|role| layout.role(role).unwrap());
            assert_eq!((esp.first_lba, esp.sectors), (unit, 300 * unit), "{size:?}");
            assert_eq!((verity.first_lba, verity.sectors), (301 * unit, 18 * unit), "{size:?}");
            assert_eq!((root.first_lba, root.sectors), (319 * unit, 251 * unit), "{size:?}");
            assert_eq!(layout.disk_bytes(), 571 * MIB, "{size:?}");
            assert!(esp.attributes.contains(Attributes::LEGACY_BIOS_BOOTABLE));
            assert_eq!(root.attributes.bits(), 1 << 60 | 1 << 63);
        }
        let uefi = image_layout(&Spec { bios: false, ..spec(SectorSize::B512) }).unwrap();
        assert_eq!(uefi.role(Role::Esp).unwrap().attributes, Attributes::NONE);
    }

    #[test]
    fn a_slot_s_tree_always_fits() {
        // The tree of dm-verity: each level holds 32 bytes for each block below it, down to one block.
        fn tree_bytes(root: u64) -> u64 {
            let (mut blocks, mut total) = (root.div_ceil(4096), 1);
            while blocks > 1 {
                blocks = blocks.div_ceil(128);
                total += blocks;
            }
            total * 4096
        }
        for root in [1, MIB, GIB, GIB + 1, 3 * GIB, 100 * GIB, 4096 * GIB] {
            let slots = SlotSizes::for_content(root);
            assert!(slots.root_bytes() >= 2 * root && slots.root_bytes() >= 2 * GIB, "{root}");
            assert!(tree_bytes(slots.root_bytes()) <= slots.verity_bytes(), "{root}");
            assert_eq!(SlotSizes::for_verity(slots.verity_bytes()), slots, "{root}");
        }
        let small = SlotSizes::for_verity(MIB);
        assert!(tree_bytes(small.root_bytes()) <= MIB);
        let too_large = Spec { verity_size: 19 * MIB, ..spec(SectorSize::B512) };
        assert!(matches!(image_layout(&too_large), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn wrong_layouts_are_refused() {
        let part = |first_lba, sectors| Role::State.partition(Guid::NIL, first_lba, sectors);
        let make = |parts: &[(u32, Partition)]| {
            Layout::new(SectorSize::B512, Guid::NIL, 10_000, parts.iter().cloned().collect()).map(|_| ())
        };
        assert!(make(&[(1, part(34, 10_000 - 34 - 33))]).is_ok());
        assert!(matches!(make(&[(0, part(34, 1))]), Err(Error::Number(0))));
        assert!(matches!(make(&[(129, part(34, 1))]), Err(Error::Number(129))));
        for (first, sectors) in [(33, 1), (34, 0), (34, 10_000 - 34 - 32), (u64::MAX, u64::MAX), (10_000, 1)] {
            assert!(matches!(make(&[(1, part(first, sectors))]), Err(Error::OutOfRange { .. })), "{first} {sectors}");
        }
        assert!(matches!(make(&[(1, part(100, 10)), (2, part(109, 5))]), Err(Error::Overlap { .. })));
        assert!(matches!(make(&[(2, part(100, 10)), (1, part(90, 11))]), Err(Error::Overlap { .. })));
        assert!(make(&[(1, part(100, 10)), (2, part(110, 5))]).is_ok());
        for sectors in [0, 1, 67] {
            let tiny = Layout::new(SectorSize::B512, Guid::NIL, sectors, BTreeMap::new());
            assert!(matches!(tiny, Err(Error::DiskTooSmall { .. })), "{sectors}");
        }
    }

    #[test]
    fn labels_are_36_units() {
        for (text, fits) in [("", true), (&*"x".repeat(36), true), (&*"x".repeat(37), false), (&*"𝄞".repeat(18), true)]
        {
            assert_eq!(Label::new(text).is_ok(), fits, "{text}");
        }
        assert!(Label::new(&"𝄞".repeat(19)).is_err());
        assert!(Label::new("a\0b").is_err());
        assert!(SectorSize::new(520).is_err());
    }

    #[test]
    fn a_data_disk_is_one_partition() {
        for (size, sectors) in [
            (SectorSize::B512, 18_000_207_937_536 / 512),
            (SectorSize::B4096, 18_000_207_937_536 / 4096),
            (SectorSize::B512, 3 * 2048),
        ] {
            let label = Label::new("lh-1").unwrap();
            let layout = data_disk(size, sectors, Guid::NIL, label, Guid::derived("data", b"")).unwrap();
            let part = &layout.partitions()[&1];
            assert_eq!(part.first_lba * size.bytes(), MIB);
            assert_eq!(part.sectors * size.bytes() % MIB, 0);
            assert!(layout.disk_bytes() - layout.byte_range(part).end < 2 * MIB);
        }
        let label = Label::new("x").unwrap();
        assert!(matches!(
            data_disk(SectorSize::B512, 4095, Guid::NIL, label, Guid::NIL),
            Err(Error::DiskTooSmall { .. })
        ));
    }
}
