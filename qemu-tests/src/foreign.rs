//! Disks with somebody else's content: one kind of file system, volume manager or raw data each, on sparse files.
//!
//! Most are made by the programs that make them anywhere, from the tools tree; what those programs make on a block
//! device alone, or with a kernel's help, is written here after its specification, with valid checksums, so that any
//! prober takes it for what it is.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::tools;

/// Size of each disk in bytes: more than the least that a data disk may have.
pub const SIZE: u64 = 2 << 30;

/// The polynomial of bcache's checksum: ECMA-182, most significant bit first.
const CRC64: u64 = 0x42f0_e1eb_a9ea_3693;
/// The value that LVM2 begins its checksums with.
const LVM_CRC: u32 = 0xf597_a6cf;
/// The magic number of Linux' software RAID.
const MD_MAGIC: u32 = 0xa92b_4efc;

/// A kind of content.
#[derive(Clone, Copy)]
pub struct Foreign {
    /// Names it in tests: a word.
    pub name: &'static str,
    /// What a refusal must name, one of the words that libblkid has for it.
    pub found: &'static str,
    make: fn(&Path) -> Result<()>,
}

impl Foreign {
    /// Makes the disk at `path`, a raw sparse file of [`SIZE`] bytes.
    ///
    /// # Errors
    /// When a program fails, or what it made is empty.
    pub fn make(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        file.set_len(SIZE)?;
        (self.make)(path).with_context(|| format!("making a disk with {}", self.name))?;
        ensure!(fs::metadata(path)?.len() == SIZE, "{} changed its size", self.name);
        Ok(())
    }
}

/// All kinds.
pub const ALL: [Foreign; 30] = [
    Foreign { name: "gpt", found: "gpt", make: gpt },
    Foreign { name: "gpt-backup-alone", found: "gpt", make: gpt_backup_alone },
    Foreign { name: "mbr", found: "dos", make: mbr },
    Foreign { name: "ext2", found: "ext2", make: |disk| mke2fs(disk, "ext2", None) },
    Foreign { name: "ext3", found: "ext3", make: |disk| mke2fs(disk, "ext3", None) },
    Foreign { name: "ext4", found: "ext4", make: |disk| mke2fs(disk, "ext4", None) },
    Foreign { name: "xfs", found: "xfs", make: |disk| tool("mkfs.xfs", &["-q"], disk) },
    Foreign { name: "btrfs", found: "btrfs", make: |disk| tool("mkfs.btrfs", &["-q"], disk) },
    Foreign { name: "f2fs", found: "f2fs", make: |disk| tool("mkfs.f2fs", &["-q"], disk) },
    Foreign { name: "vfat", found: "vfat", make: |disk| tool("mkfs.fat", &[], disk) },
    Foreign { name: "exfat", found: "exfat", make: |disk| tool("mkfs.exfat", &[], disk) },
    Foreign { name: "ntfs", found: "ntfs", make: |disk| tool("mkntfs", &["-q", "-F", "-f"], disk) },
    Foreign { name: "iso9660", found: "iso9660", make: iso9660 },
    Foreign { name: "swap", found: "swap", make: |disk| tool("mkswap", &["-q"], disk) },
    Foreign { name: "luks1", found: "crypto_LUKS", make: luks1 },
    Foreign { name: "luks2", found: "crypto_LUKS", make: luks2 },
    Foreign { name: "lvm2", found: "LVM2_member", make: lvm2 },
    Foreign { name: "md-0.90", found: "linux_raid_member", make: md_0_90 },
    Foreign { name: "md-1.0", found: "linux_raid_member", make: |disk| md_1(disk, (SIZE - 8192) / 4096 * 4096) },
    Foreign { name: "md-1.2", found: "linux_raid_member", make: |disk| md_1(disk, 4096) },
    Foreign { name: "zfs", found: "zfs_member", make: zfs },
    Foreign { name: "bcache", found: "bcache", make: bcache },
    Foreign { name: "bluestore", found: "ceph_bluestore", make: bluestore },
    Foreign { name: "squashfs", found: "squashfs", make: squashfs },
    Foreign { name: "erofs", found: "erofs", make: erofs },
    Foreign { name: "longhorn", found: "ext4", make: longhorn },
    Foreign { name: "raw-at-start", found: "unknown data", make: |disk| write(disk, 777_777, b"not a signature") },
    Foreign { name: "raw-first-byte", found: "unknown data", make: |disk| write(disk, 0, b"x") },
    Foreign { name: "raw-at-end", found: "unknown data", make: |disk| write(disk, SIZE - 300_000, b"not one either") },
    Foreign { name: "raw-last-byte", found: "unknown data", make: |disk| write(disk, SIZE - 1, b"x") },
];

/// Runs a program with the disk as its last argument.
fn tool(program: &str, arguments: &[&str], disk: &Path) -> Result<()> {
    tools::run(tools::command(program)?.args(arguments).arg(disk)).map(drop)
}

fn write(disk: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    let mut file = File::options().write(true).open(disk)?;
    file.seek(SeekFrom::Start(offset))?;
    Ok(file.write_all(bytes)?)
}

fn gpt(disk: &Path) -> Result<()> {
    tool("sgdisk", &["--new=1:0:+100M", "--change-name=1:somebody"], disk)
}

/// A disk whose start was overwritten: the protective MBR and the primary table are gone.
fn gpt_backup_alone(disk: &Path) -> Result<()> {
    gpt(disk)?;
    write(disk, 0, &[0; 34 * 512])
}

fn mbr(disk: &Path) -> Result<()> {
    // One primary partition of type Linux from sector 2048 on, and the boot signature.
    let mut sector = [0; 512];
    sector[440..444].copy_from_slice(&0x1234_5678_u32.to_le_bytes());
    sector[446..462].copy_from_slice(&[0, 32, 33, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0x20, 3, 0]);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    write(disk, 0, &sector)
}

fn mke2fs(disk: &Path, kind: &str, content: Option<&Path>) -> Result<()> {
    let mut command = tools::command("mke2fs")?;
    command.args(["-q", "-F", "-t", kind]);
    if let Some(content) = content {
        command.arg("-d").arg(content);
    }
    tools::run(command.arg(disk)).map(drop)
}

/// Another node's Longhorn disk without a partition table: a file system with Longhorn's files.
fn longhorn(disk: &Path) -> Result<()> {
    let content = tempfile::tempdir()?;
    fs::create_dir(content.path().join("replicas"))?;
    let config = br#"{"diskName":"data","diskUUID":"8e4b1f0e-60a5-4d63-9a6f-7d8f6e6ed9a1","diskDriver":""}"#;
    fs::write(content.path().join("longhorn-disk.cfg"), config)?;
    mke2fs(disk, "ext4", Some(content.path()))
}

fn squashfs(disk: &Path) -> Result<()> {
    image(disk, |content, image| {
        tools::run(tools::command("mksquashfs")?.arg(content).arg(image).args(["-quiet", "-no-progress"])).map(drop)
    })
}

fn erofs(disk: &Path) -> Result<()> {
    image(disk, |content, image| {
        tools::run(tools::command("mkfs.erofs")?.arg("--quiet").arg(image).arg(content)).map(drop)
    })
}

/// An image of a directory, written to the start of the disk.
fn image(disk: &Path, make: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (content, image) = (scratch.path().join("content"), scratch.path().join("image"));
    fs::create_dir(&content)?;
    fs::write(content.join("file"), "somebody's")?;
    make(&content, &image)?;
    write(disk, 0, &fs::read(&image)?)
}

/// [ECMA-119](https://ecma-international.org/publications-and-standards/standards/ecma-119/), sections 8.1 to 8.4: the
/// primary volume descriptor in sector 16, and the end of the descriptors.
fn iso9660(disk: &Path) -> Result<()> {
    let descriptor = |kind: u8| {
        let mut sector = [0; 2048];
        sector[0] = kind;
        sector[1..7].copy_from_slice(b"CD001\x01");
        sector
    };
    let mut primary = descriptor(1);
    primary[8..72].fill(b' ');
    primary[40..48].copy_from_slice(b"SOMEBODY");
    primary[80..88].copy_from_slice(&[0, 1, 0, 0, 0, 0, 1, 0]);
    primary[128..132].copy_from_slice(&[0, 8, 8, 0]);
    write(disk, 16 * 2048, &primary)?;
    write(disk, 17 * 2048, &descriptor(255))
}

/// LUKS1's phdr: magic number, version, cipher, payload offset and UUID; there is nothing behind it to unlock.
fn luks1(disk: &Path) -> Result<()> {
    let mut header = vec![0; 592];
    header[..8].copy_from_slice(b"LUKS\xba\xbe\x00\x01");
    header[8..11].copy_from_slice(b"aes");
    header[40..51].copy_from_slice(b"xts-plain64");
    header[72..78].copy_from_slice(b"sha256");
    header[104..108].copy_from_slice(&4096_u32.to_be_bytes());
    header[108..112].copy_from_slice(&64_u32.to_be_bytes());
    header[168..204].copy_from_slice(b"0b5cd6f1-6c3b-4b3a-9d57-0c8a4f1f1f6e");
    write(disk, 0, &header)
}

/// LUKS2's binary header, primary and secondary: magic number, version, size of the area, UUID.
fn luks2(disk: &Path) -> Result<()> {
    const AREA: u64 = 16384;
    for (offset, magic) in [(0, b"LUKS\xba\xbe"), (AREA, b"SKUL\xba\xbe")] {
        let mut header = vec![0; 4096];
        header[..6].copy_from_slice(magic);
        header[6..8].copy_from_slice(&2_u16.to_be_bytes());
        header[8..16].copy_from_slice(&AREA.to_be_bytes());
        header[16..24].copy_from_slice(&1_u64.to_be_bytes());
        header[72..78].copy_from_slice(b"sha256");
        header[168..204].copy_from_slice(b"5d0c6a3e-3a2f-4f6e-8f0e-2f3f8a9b1c2d");
        header[256..264].copy_from_slice(&offset.to_be_bytes());
        write(disk, offset, &header)?;
    }
    Ok(())
}

/// The label of an LVM2 physical volume in sector 1: its checksum is a CRC-32 without the last inversion.
fn lvm2(disk: &Path) -> Result<()> {
    let mut sector = [0; 512];
    sector[..8].copy_from_slice(b"LABELONE");
    sector[8..16].copy_from_slice(&1_u64.to_le_bytes());
    sector[20..24].copy_from_slice(&32_u32.to_le_bytes());
    sector[24..32].copy_from_slice(b"LVM2 001");
    sector[32..64].copy_from_slice(b"zW3bGkO1xQnP5rT7uV9yA2cE4fH6jL8m");
    sector[64..72].copy_from_slice(&SIZE.to_le_bytes());
    let mut crc = crc32fast::Hasher::new_with_initial(!LVM_CRC);
    crc.update(&sector[20..]);
    sector[16..20].copy_from_slice(&(!crc.finalize()).to_le_bytes());
    write(disk, 512, &sector)
}

/// Version 0.90 of md's superblock, 64 KiB to 128 KiB before the end.
/// Words as in `md_p.h`: <https://github.com/torvalds/linux/blob/master/include/uapi/linux/raid/md_p.h>.
fn md_0_90(disk: &Path) -> Result<()> {
    let mut words = [0_u32; 1024];
    words[0] = MD_MAGIC;
    words[2] = 90;
    words[5] = 0x1111_1111;
    words[7] = 1;
    words[8] = u32::try_from(SIZE / 1024 - 64)?;
    words[9..12].fill(2);
    words[13..16].copy_from_slice(&[0x2222_2222, 0x3333_3333, 0x4444_4444]);
    words[33] = 1;
    words[38] = fold(words.iter().map(|word| u64::from(*word)).sum());
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    write(disk, SIZE / 65536 * 65536 - 65536, &bytes)
}

/// Version 1 of md's superblock: at the start plus 4 KiB (1.2), or at the end (1.0).
fn md_1(disk: &Path, offset: u64) -> Result<()> {
    const DEVICES: usize = 2;
    let mut block = vec![0; 256 + 2 * DEVICES];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MD_MAGIC.to_le_bytes());
    put(4, &1_u32.to_le_bytes());
    put(16, &[0x5a; 16]);
    put(32, b"somebody:0");
    put(72, &1_u32.to_le_bytes());
    put(80, &(SIZE / 512 - 4096).to_le_bytes());
    put(92, &2_u32.to_le_bytes());
    put(128, &2048_u64.to_le_bytes());
    put(136, &(SIZE / 512 - 4096).to_le_bytes());
    put(144, &(offset / 512).to_le_bytes());
    put(220, &u32::try_from(DEVICES)?.to_le_bytes());
    let words = block.chunks(4).map(|word| u64::from(u32::from_le_bytes(word.try_into().expect("four bytes"))));
    let sum = fold(words.sum());
    block[216..220].copy_from_slice(&sum.to_le_bytes());
    write(disk, offset, &block)
}

/// A sum of 32-bit words as md stores it: carries are added again.
fn fold(sum: u64) -> u32 {
    let low = sum & 0xffff_ffff;
    u32::try_from((low + (sum >> 32)) & 0xffff_ffff).expect("masked")
}

/// The four labels of a ZFS device, two at either end: name-value pairs in XDR
/// ([RFC 4506](https://www.rfc-editor.org/rfc/rfc4506)) with what a pool is known by, then a ring of uberblocks.
fn zfs(disk: &Path) -> Result<()> {
    const LABEL: u64 = 256 << 10;
    const PAIRS: u64 = 16 << 10;
    const RING: u64 = 128 << 10;
    // Type numbers of a 64-bit number and of a text.
    let number = |name: &str, value: u64| zfs_pair(name, 8, &value.to_be_bytes());
    let mut pairs = vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    pairs.extend(number("version", 5000));
    pairs.extend(zfs_pair("name", 9, &xdr_text("somebody")));
    pairs.extend(number("state", 0));
    pairs.extend(number("txg", 4));
    pairs.extend(number("pool_guid", 0x1111_2222_3333_4444));
    pairs.extend(number("top_guid", 0x5555_6666_7777_8888));
    pairs.extend(number("guid", 0x5555_6666_7777_8888));
    pairs.extend([0; 8]);
    let mut uberblock = [0; 1024];
    uberblock[..8].copy_from_slice(&0x00ba_b10c_u64.to_le_bytes());
    uberblock[8..16].copy_from_slice(&5000_u64.to_le_bytes());
    for label in [0, LABEL, SIZE - 2 * LABEL, SIZE - LABEL] {
        write(disk, label + PAIRS, &pairs)?;
        write(disk, label + RING - 40, &0x0210_da7a_b10c_7a11_u64.to_le_bytes())?;
        for slot in 0..128_u64 {
            uberblock[16..24].copy_from_slice(&(slot + 1).to_le_bytes());
            write(disk, label + RING + slot * 1024, &uberblock)?;
        }
    }
    Ok(())
}

/// A pair: its size encoded and decoded, its name, its type, one value.
fn zfs_pair(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let body = [xdr_text(name), kind.to_be_bytes().to_vec(), 1_u32.to_be_bytes().to_vec(), value.to_vec()].concat();
    let size = u32::try_from(body.len() + 8).expect("pairs are short");
    [size.to_be_bytes().to_vec(), (size + 32).to_be_bytes().to_vec(), body].concat()
}

/// A text: its length, then itself, filled up to four bytes.
fn xdr_text(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).expect("names are short").to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The superblock of a bcache backing device in sector 8.
fn bcache(disk: &Path) -> Result<()> {
    const MAGIC: [u8; 16] =
        [0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81];
    let mut block = [0; 208];
    block[8..16].copy_from_slice(&8_u64.to_le_bytes());
    block[16..24].copy_from_slice(&1_u64.to_le_bytes());
    block[24..40].copy_from_slice(&MAGIC);
    block[40..56].copy_from_slice(&[0x77; 16]);
    let sum = crc64(&block[8..]);
    block[..8].copy_from_slice(&sum.to_le_bytes());
    write(disk, 4096, &block)
}

fn crc64(bytes: &[u8]) -> u64 {
    let step = |crc: u64, _| if crc >> 63 == 1 { crc << 1 ^ CRC64 } else { crc << 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u64::from(*byte) << 56, step))
}

/// The label of a Ceph BlueStore device.
fn bluestore(disk: &Path) -> Result<()> {
    write(disk, 0, b"bluestore block device\n8e4b1f0e-60a5-4d63-9a6f-7d8f6e6ed9a1\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_independent_prober_knows_each_kind() {
        let scratch = tempfile::tempdir().unwrap();
        for kind in ALL {
            let disk = scratch.path().join(kind.name);
            kind.make(&disk).unwrap();
            if kind.found == "unknown data" {
                continue;
            }
            let found = tools::run(tools::command("wipefs").unwrap().args(["--no-act", "--json"]).arg(&disk)).unwrap();
            let found = String::from_utf8(found).unwrap();
            assert!(found.contains(&format!("\"{}\"", kind.found)), "{}: {found}", kind.name);
        }
    }
}
