//! Reading the label of a file system, without mounting it: vfat, iso9660, and ext2 to ext4.
//!
//! The first stage has no udev and so no `/dev/disk/by-label`. Where the labels stand:
//!
//! - iso9660: the primary volume descriptor, at byte 32768
//!   ([ECMA-119](https://ecma-international.org/publications-and-standards/standards/ecma-119/) 8.4);
//! - ext4: the superblock, at byte 1024
//!   ([layout](https://docs.kernel.org/filesystems/ext4/globals.html#super-block));
//! - vfat: the entry of the root directory that says it is the volume's label, else the field of the boot sector
//!   (Microsoft's FAT specification of 2000, "Boot Sector and BPB" and "FAT Directory Structure").
//!
//! A disc that also starts as a disk has several of them, and counts as iso9660. Left out: the label in Unicode of
//! Joliet, which every program writes beside the plain one; a root directory of vfat past its first 64 KiB, or past
//! its first cluster.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom};

/// Start of the first volume descriptor of iso9660, in bytes.
const ISO_DESCRIPTOR: u64 = 32_768;
/// Start of ext4's superblock, in bytes.
const EXT_SUPERBLOCK: u64 = 1024;
/// Size of a boot sector, as far as it is read, in bytes.
const BOOT_SECTOR: usize = 512;
/// How much of a root directory is looked through, in bytes.
const ROOT_DIRECTORY_LIMIT: u64 = 64 << 10;
/// Size of one entry of a directory of vfat, in bytes.
const DIRECTORY_ENTRY: usize = 32;
/// Length of a label of vfat, in bytes.
const FAT_LABEL: usize = 11;

/// A file system that a configuration may lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// FAT in any of its three widths.
    Vfat,
    /// The one of CDs.
    Iso9660,
    /// Ext2, ext3 and ext4: one driver mounts all.
    Ext4,
}

/// A file system and its label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labelled {
    /// The kind.
    pub(crate) file_system: FileSystem,
    /// The label, without the blanks that pad it; empty when there is none.
    pub(crate) label: String,
}

impl FileSystem {
    /// The kernel's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vfat => "vfat",
            Self::Iso9660 => "iso9660",
            Self::Ext4 => "ext4",
        }
    }
}

/// Reads which of the three file systems a device has, and its label. `None` when it has none of them.
///
/// # Errors
/// What the device answers; one that is too short for a file system is no error.
pub(crate) fn read_label(device: &mut (impl Read + Seek)) -> io::Result<Option<Labelled>> {
    for (file_system, read) in [
        (FileSystem::Iso9660, read_iso9660 as fn(&mut _) -> io::Result<Option<String>>),
        (FileSystem::Ext4, read_ext4),
        (FileSystem::Vfat, read_vfat),
    ] {
        if let Some(label) = read(device)? {
            return Ok(Some(Labelled { file_system, label }));
        }
    }
    Ok(None)
}

/// The volume identifier: bytes 40 to 71 of the descriptor.
fn read_iso9660(device: &mut (impl Read + Seek)) -> io::Result<Option<String>> {
    let descriptor: Option<[u8; 72]> = read_at(device, ISO_DESCRIPTOR)?;
    Ok(descriptor.filter(|bytes| bytes.starts_with(b"\x01CD001")).map(|bytes| text(&bytes[40..])))
}

/// `s_volume_name`: 16 bytes at 0x78, ended by a zero. `s_magic` is 0xEF53 at 0x38.
fn read_ext4(device: &mut (impl Read + Seek)) -> io::Result<Option<String>> {
    let superblock: Option<[u8; 0x88]> = read_at(device, EXT_SUPERBLOCK)?;
    let magic = |bytes: &[u8; 0x88]| bytes[0x38..0x3a] == 0xef53_u16.to_le_bytes();
    Ok(superblock.filter(magic).map(|bytes| text(&bytes[0x78..])))
}

/// The label that the root directory has, else that of the boot sector.
fn read_vfat(device: &mut (impl Read + Seek)) -> io::Result<Option<String>> {
    let Some(sector) = read_at::<BOOT_SECTOR>(device, 0)? else { return Ok(None) };
    let Some(boot) = BootSector::parse(&sector) else { return Ok(None) };
    let mut directory = Vec::new();
    if seek(device, boot.root_start)? {
        device.take(boot.root_size.min(ROOT_DIRECTORY_LIMIT)).read_to_end(&mut directory)?;
    }
    Ok(Some(volume_entry(&directory).unwrap_or(boot.label)))
}

/// What of a boot sector is needed here.
#[derive(Debug)]
struct BootSector {
    /// Start of the root directory, in bytes.
    root_start: u64,
    /// Its size, or for FAT32 that of its first cluster, in bytes.
    root_size: u64,
    /// The label, empty where there is none.
    label: String,
}

impl BootSector {
    /// `None` when this is not the boot sector of a FAT: partition tables end in the same signature, so that the
    /// geometry must be sound as well.
    fn parse(sector: &[u8; BOOT_SECTOR]) -> Option<Self> {
        let half = |at: usize| u64::from(u16::from_le_bytes([sector[at], sector[at + 1]]));
        let word = |at: usize| half(at) | half(at + 2) << 16;
        let (sector_size, cluster, reserved) = (half(0x0b), u64::from(sector[0x0d]), half(0x0e));
        let (tables, entries, media) = (u64::from(sector[0x10]), half(0x11), sector[0x15]);
        let sound = matches!(sector_size, 512 | 1024 | 2048 | 4096)
            && cluster.is_power_of_two()
            && reserved > 0
            && (1..=2).contains(&tables)
            && media >= 0xf0
            && sector[0x1fe..] == [0x55, 0xaa];
        if !sound {
            return None;
        }
        // FAT32 has no fixed root directory, and counts the sectors of a table in a wider field.
        let wide = half(0x16) == 0;
        let table = if wide { word(0x24) } else { half(0x16) };
        let data = reserved + tables * table;
        let label_at = if wide { 0x47 } else { 0x2b };
        // The signature before the label's field says that there is one; the serial number's 4 bytes are between.
        let has_label = sector[label_at - 5] == 0x29;
        let label = if has_label { fat_label(&sector[label_at..label_at + FAT_LABEL]) } else { String::new() };
        let (root_start, root_size) = if wide {
            // Clusters are counted from 2.
            let first = word(0x2c).checked_sub(2)?;
            (data + first * cluster, cluster * sector_size)
        } else {
            (data, entries * DIRECTORY_ENTRY as u64)
        };
        Some(Self { root_start: root_start * sector_size, root_size, label })
    }
}

/// The name of the entry that is the volume's label. Its attributes (byte 11) have that bit (8) and, unlike a part of
/// a long name, not those of directories and system files.
fn volume_entry(directory: &[u8]) -> Option<String> {
    directory
        .chunks_exact(DIRECTORY_ENTRY)
        .take_while(|entry| entry[0] != 0)
        .find(|entry| entry[0] != 0xe5 && entry[11] & 0x1c == 0x08)
        .map(|entry| fat_label(&entry[..FAT_LABEL]))
}

/// A label of vfat. The words for "no name" stand for none.
fn fat_label(bytes: &[u8]) -> String {
    let label = text(bytes);
    if label == "NO NAME" { String::new() } else { label }
}

/// Text that is ended by a zero or padded with blanks.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim_end_matches(' ').to_owned()
}

/// Reads `N` bytes, unless the device ends before.
fn read_at<const N: usize>(device: &mut (impl Read + Seek), at: u64) -> io::Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    if !seek(device, at)? {
        return Ok(None);
    }
    match device.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Goes to a place, unless the device ends before: block devices refuse that, files do not.
fn seek(device: &mut impl Seek, at: u64) -> io::Result<bool> {
    match device.seek(SeekFrom::Start(at)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Cursor;
    use std::process::Command;

    use super::*;

    /// The parts of an iso9660 that matter.
    fn iso9660(label: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 34 << 10];
        image[32_768..32_774].copy_from_slice(b"\x01CD001");
        image[32_808..32_840].fill(b' ');
        image[32_808..32_808 + label.len()].copy_from_slice(label);
        image
    }

    fn ext4(label: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        image[0x478..0x478 + label.len()].copy_from_slice(label);
        image
    }

    /// A FAT of one width, with the label in the boot sector, and entries in the root directory.
    fn vfat(wide: bool, label: &[u8; 11], entries: &[[u8; 32]]) -> Vec<u8> {
        let mut image = vec![0; 8192];
        image[0x0b..0x11].copy_from_slice(&[0, 2, 2, 1, 0, 2]);
        image[0x15] = 0xf8;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        // One reserved sector, two tables of one, then the root directory: with FAT32 in the second cluster.
        let (label_at, root) = if wide { (0x47, 5 * 512) } else { (0x2b, 3 * 512) };
        if wide {
            (image[0x24], image[0x2c]) = (1, 3);
        } else {
            (image[0x16], image[0x11]) = (1, 16);
        }
        image[label_at - 5] = 0x29;
        image[label_at..label_at + 11].copy_from_slice(label);
        for (at, entry) in entries.iter().enumerate() {
            image[root + at * 32..][..32].copy_from_slice(entry);
        }
        image
    }

    fn entry(name: &[u8; 11], attributes: u8) -> [u8; 32] {
        let mut entry = [0; 32];
        entry[..11].copy_from_slice(name);
        entry[11] = attributes;
        entry
    }

    #[test]
    fn labels_are_read() {
        use FileSystem::{Ext4, Iso9660, Vfat};
        let deleted = entry(b"\xe5LD        ", 8);
        let long = entry(b"Along part  ".first_chunk().expect("11"), 0x0f);
        let named = entry(b"config-2   ", 8);
        let file = entry(b"USER-D~1   ", 0x20);
        let mut hybrid = iso9660(b"cidata");
        hybrid[..8192].copy_from_slice(&vfat(false, b"EFI        ", &[]));
        let mut table = vec![0; 512];
        table[0x1fe..].copy_from_slice(&[0x55, 0xaa]);
        for (case, image, expected) in [
            ("iso9660", iso9660(b"cidata"), Some((Iso9660, "cidata"))),
            ("iso9660 of full length", iso9660(&[b'x'; 32]), Some((Iso9660, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"))),
            ("iso9660 before what else is there", hybrid, Some((Iso9660, "cidata"))),
            ("ext4", ext4(b"ignition"), Some((Ext4, "ignition"))),
            ("ext4 without a label", ext4(b""), Some((Ext4, ""))),
            ("FAT16, boot sector", vfat(false, b"CIDATA     ", &[file]), Some((Vfat, "CIDATA"))),
            (
                "FAT16, root directory",
                vfat(false, b"OLD        ", &[deleted, long, file, named]),
                Some((Vfat, "config-2")),
            ),
            ("FAT32, boot sector", vfat(true, b"A B        ", &[]), Some((Vfat, "A B"))),
            ("FAT32, root directory", vfat(true, b"OLD        ", &[named]), Some((Vfat, "config-2"))),
            ("FAT without a name", vfat(true, b"NO NAME    ", &[]), Some((Vfat, ""))),
            ("a partition table", table, None),
            ("nothing", Vec::new(), None),
            ("zeros", vec![0; 64 << 10], None),
        ] {
            let found = read_label(&mut Cursor::new(image)).expect(case);
            let found = found.as_ref().map(|found| (found.file_system, found.label.as_str()));
            assert_eq!(found, expected, "{case}");
        }
    }

    #[test]
    fn one_wrong_byte_of_a_signature_is_noticed() {
        for (case, mut image, at) in [
            ("iso9660", iso9660(b"x"), 32_769),
            ("ext4", ext4(b"x"), 0x438),
            ("FAT, signature", vfat(false, b"X          ", &[]), 0x1fe),
            ("FAT, sector size", vfat(false, b"X          ", &[]), 0x0c),
            ("FAT, media", vfat(false, b"X          ", &[]), 0x15),
        ] {
            assert!(read_label(&mut Cursor::new(&image)).expect(case).is_some(), "{case}");
            image[at] ^= 0xff;
            assert_eq!(read_label(&mut Cursor::new(&image)).expect(case), None, "{case}");
        }
    }

    /// A device that refuses to go past its end, as block devices do.
    struct Device(Cursor<Vec<u8>>);

    impl Read for Device {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Seek for Device {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            let end = self.0.get_ref().len() as u64;
            match to {
                SeekFrom::Start(at) if at > end => Err(ErrorKind::InvalidInput.into()),
                SeekFrom::Start(_) | SeekFrom::End(_) | SeekFrom::Current(_) => self.0.seek(to),
            }
        }
    }

    #[test]
    fn a_short_device_is_no_error() {
        let mut far = vfat(true, b"FAR        ", &[]);
        far[0x2f] = 0x7f;
        for (case, image, expected) in [
            ("an ext4 shorter than the place of iso9660", ext4(b"x"), Some("x")),
            ("a FAT32 whose root directory is past the end", far, Some("FAR")),
            ("an extended partition", vec![0; 1024], None),
            ("nothing", Vec::new(), None),
        ] {
            let found = read_label(&mut Device(Cursor::new(image))).expect(case);
            assert_eq!(found.as_ref().map(|found| found.label.as_str()), expected, "{case}");
        }
    }

    #[test]
    fn what_the_tools_make_is_read() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (file, list) = (directory.path().join("user-data"), directory.path().join("list"));
        std::fs::write(&file, "{}").and_then(|()| std::fs::write(&list, file.display().to_string())).expect("files");
        let list = list.to_str().expect("text");
        for (case, size, program, arguments, expected) in [
            ("FAT12", 1 << 20, "mkfs.vfat", vec!["-n", "CIDATA"], (FileSystem::Vfat, "CIDATA")),
            ("FAT16", 32 << 20, "mkfs.vfat", vec!["-F", "16", "-n", "CONFIG-2"], (FileSystem::Vfat, "CONFIG-2")),
            ("FAT32", 64 << 20, "mkfs.vfat", vec!["-F", "32", "-n", "IGNITION"], (FileSystem::Vfat, "IGNITION")),
            ("FAT32, 4096", 300 << 20, "mkfs.vfat", vec!["-S", "4096", "-n", "X Y"], (FileSystem::Vfat, "X Y")),
            (
                "iso9660",
                0,
                "genisoimage",
                vec!["-quiet", "-J", "-r", "-V", "cidata", "-path-list", list, "-o"],
                (FileSystem::Iso9660, "cidata"),
            ),
            ("ext4", 8 << 20, "mkfs.ext4", vec!["-q", "-L", "ignition"], (FileSystem::Ext4, "ignition")),
            ("ext2", 1 << 20, "mkfs.ext2", vec!["-q", "-L", "config-2"], (FileSystem::Ext4, "config-2")),
        ] {
            let path = directory.path().join(case);
            File::create(&path).and_then(|file| file.set_len(size)).expect(case);
            let made = Command::new(program).args(&arguments).arg(&path).output();
            let Ok(made) = made else {
                eprintln!("skipped: {case}: {program} is not here");
                continue;
            };
            assert!(made.status.success(), "{case}: {made:?}");
            let found = read_label(&mut File::open(&path).expect(case)).expect(case).expect(case);
            assert_eq!((found.file_system, found.label.as_str()), expected, "{case}");
        }
    }

    #[test]
    fn whatever_the_bytes_reading_ends() {
        arbtest::arbtest(|u| {
            let mut image = match u.int_in_range(0..=3)? {
                0 => iso9660(b"label"),
                1 => ext4(b"label"),
                2 => vfat(false, b"LABEL      ", &[]),
                _ => vfat(true, b"LABEL      ", &[]),
            };
            for _ in 0..u.int_in_range(0..=16)? {
                let at = u.choose_index(image.len().min(2048))?;
                image[at] = u.arbitrary()?;
            }
            image.truncate(u.int_in_range(0..=image.len())?);
            let _ = read_label(&mut Cursor::new(image));
            let noise: Vec<u8> = u.arbitrary()?;
            let _ = read_label(&mut Cursor::new(noise));
            Ok(())
        })
        .budget_ms(2000);
    }
}
