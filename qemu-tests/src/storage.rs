//! Disks for machines, made from images that stay as they are, and damaged on purpose.
//!
//! Machines write to qcow2 overlays. A raw sparse file ends at 16 TiB on ext4, so larger disks are qcow2 files too.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::tools;

/// The size of a boot disk in bytes, larger than an image, so that there is room for what the first boot adds.
pub const BOOT_DISK: u64 = 16 << 30;

/// An 18 TB disk in bytes, as large as those are that are sold so.
pub const DISK_18T: u64 = 18_000_207_937_536;

/// What qemu-io reads and writes at once, at least.
const SECTOR: u64 = 512;

/// Makes an empty sparse disk of `size` bytes, in the format qcow2.
pub fn empty(size: u64, disk: &Path) -> Result<()> {
    let mut command = tools::command("qemu-img")?;
    tools::run(command.args(["create", "-q", "-f", "qcow2"]).arg(disk).arg(size.to_string())).map(drop)
}

/// Makes a disk of `size` bytes at `overlay`, in the format qcow2, that begins as the raw `image`, which stays as it is.
pub fn overlay(image: &Path, size: u64, overlay: &Path) -> Result<()> {
    let image = image.canonicalize().with_context(|| format!("finding {}", image.display()))?;
    let mut command = tools::command("qemu-img")?;
    command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(image).arg(overlay).arg(size.to_string());
    tools::run(&mut command).map(drop)
}

/// Writes the raw `image` over the beginning of a qcow2 disk, which keeps what is behind it, as `dd` does on a machine.
pub fn write_over(image: &Path, disk: &Path) -> Result<()> {
    let length = image.metadata().with_context(|| format!("looking at {}", image.display()))?.len();
    // qemu-io takes its command apart at blanks, and knows no quotes: directories may have some, an image's name has none.
    let (directory, name) = (image.parent(), image.file_name().and_then(OsStr::to_str));
    let (directory, name) = directory.zip(name).with_context(|| format!("{} is no file", image.display()))?;
    let mut command = tools::command("qemu-io")?;
    command.current_dir(directory).args(["-f", "qcow2", "-c", &format!("write -q -s {name} 0 {length}")]).arg(disk);
    tools::run(&mut command).map(drop)
}

/// Makes an XFS file system that begins at `start` of a qcow2 disk of `size` bytes one that cannot be mounted, although it
/// can be recognised: its root directory's inode is overwritten.
///
/// Format: `struct xfs_dsb` in `fs/xfs/libxfs/xfs_format.h` of Linux; fields are big-endian. The root directory is in the
/// first allocation group, where an inode's number tells its place.
pub fn damage_xfs(disk: &Path, size: u64, start: u64) -> Result<()> {
    let beginning = ends(disk, size, 2 * start)?.0;
    let superblock = &beginning[usize::try_from(start)?..];
    ensure!(superblock.starts_with(b"XFSB"), "{} has no XFS at byte {start}", disk.display());
    let inode = u64::from_be_bytes(superblock[56..64].try_into().expect("eight bytes"));
    let inode_size = u64::from(u16::from_be_bytes(superblock[104..106].try_into().expect("two bytes")));
    let mut command = tools::command("qemu-io")?;
    let write = format!("write -q -P 0xff {} {inode_size}", start + inode * inode_size);
    tools::run(command.args(["-f", "qcow2", "-c", &write]).arg(disk)).map(drop)
}

/// Copies `from` to `to`, leaving holes where zeros are.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).with_context(|| format!("opening {}", from.display()))?;
    let mut target = File::create(to).with_context(|| format!("creating {}", to.display()))?;
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let mut block = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let length = block.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
        let block = &mut block[..length];
        source.read_exact(block).with_context(|| format!("reading {}", from.display()))?;
        if block.iter().any(|byte| *byte != 0) {
            target.seek(SeekFrom::Start(at))?;
            target.write_all(block).with_context(|| format!("writing {}", to.display()))?;
        }
        at += length as u64;
    }
    Ok(())
}

/// A partition of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The GPT label.
    pub label: String,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// The partitions of the raw `image`, as `sfdisk` sees them.
pub fn partitions(image: &Path) -> Result<Vec<Partition>> {
    let stdout = tools::run(tools::command("sfdisk")?.arg("--json").arg(image))?;
    parse_partitions(&stdout).with_context(|| format!("reading the partition table of {}", image.display()))
}

/// The partition of the raw `image` with the label `label`.
pub fn partition(image: &Path, label: &str) -> Result<Partition> {
    let found = partitions(image)?;
    let labels: Vec<String> = found.iter().map(|partition| partition.label.clone()).collect();
    found
        .into_iter()
        .find(|partition| partition.label == label)
        .with_context(|| format!("no partition {label} among {labels:?} in {}", image.display()))
}

/// Writes a file into the ESP of the raw `image`, making the directory that it is in.
pub fn write_to_esp(image: &Path, directory: &str, name: &str, content: &[u8]) -> Result<()> {
    let esp = partition(image, "ESP")?;
    let mut drive = image.as_os_str().to_owned();
    drive.push(format!("@@{}", esp.offset));
    let scratch = tempfile::tempdir().context("making a scratch directory")?;
    let source = scratch.path().join(name);
    fs::write(&source, content).with_context(|| format!("writing {}", source.display()))?;
    let exists = tools::run(tools::command("mdir")?.arg("-b").arg("-i").arg(&drive).arg(format!("::{directory}")));
    if exists.is_err() {
        tools::run(tools::command("mmd")?.arg("-i").arg(&drive).arg(format!("::{directory}")))?;
    }
    let mut copy = tools::command("mcopy")?;
    tools::run(copy.arg("-o").arg("-i").arg(&drive).arg(source).arg(format!("::{directory}/{name}"))).map(drop)
}

/// Makes a floppy-sized FAT file system at `drive`, with a label, and files by path: a config drive.
pub fn fat_drive(drive: &Path, label: &str, files: &[(&str, &[u8])]) -> Result<()> {
    // mformat makes a file, and does not overwrite one.
    if drive.exists() {
        fs::remove_file(drive).with_context(|| format!("removing {}", drive.display()))?;
    }
    let mut format = tools::command("mformat")?;
    tools::run(format.args(["-C", "-f", "2880", "-v", label, "-i"]).arg(drive).arg("::"))?;
    let scratch = tempfile::tempdir().context("making a scratch directory")?;
    let source = scratch.path().join("file");
    for (path, content) in files {
        for (at, _) in path.match_indices('/') {
            // Another file may have brought it already.
            let there =
                tools::run(tools::command("mdir")?.arg("-b").arg("-i").arg(drive).arg(format!("::{}", &path[..at])));
            if there.is_err() {
                tools::run(tools::command("mmd")?.arg("-i").arg(drive).arg(format!("::{}", &path[..at])))?;
            }
        }
        fs::write(&source, content).with_context(|| format!("writing {}", source.display()))?;
        tools::run(tools::command("mcopy")?.arg("-i").arg(drive).arg(&source).arg(format!("::{path}")))?;
    }
    Ok(())
}

/// Reads `buffer.len()` bytes of the raw `image` at `offset`.
pub fn read_at(image: &Path, offset: u64, buffer: &mut [u8]) -> Result<()> {
    let mut file = File::open(image).with_context(|| format!("opening {}", image.display()))?;
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(buffer).with_context(|| format!("reading {} at {offset}", image.display()))
}

/// Makes a disk like [`overlay`] in which the lowest bit of the byte at `offset` is the other way round.
pub fn overlay_with_flipped_bit(image: &Path, size: u64, offset: u64, disk: &Path) -> Result<()> {
    overlay(image, size, disk)?;
    let sector = offset / SECTOR * SECTOR;
    let mut content = [0; SECTOR as usize];
    read_at(image, sector, &mut content)?;
    content[usize::try_from(offset - sector)?] ^= 1;
    let scratch = tempfile::tempdir().context("making a scratch directory")?;
    fs::write(scratch.path().join("sector"), content)?;
    let disk = disk.canonicalize()?;
    // The name of the file stands within a command line of qemu-io, so it is a plain one, in the current directory.
    let write = format!("write -q -s sector {sector} {SECTOR}");
    let mut command = tools::command("qemu-io")?;
    tools::run(command.current_dir(scratch.path()).args(["-f", "qcow2", "-c", &write]).arg(disk)).map(drop)
}

/// Where in a squashfs the metadata block begins that holds the inode of its root directory, so that no mount can do
/// without it. `superblock` is its first 96 bytes.
///
/// Format: <https://docs.kernel.org/filesystems/squashfs.html>; fields are little-endian.
pub fn squashfs_root_inode(superblock: &[u8; 96]) -> Result<u64> {
    let field = |offset: usize| u64::from_le_bytes(superblock[offset..offset + 8].try_into().expect("eight bytes"));
    ensure!(superblock.starts_with(b"hsqs"), "the root file system is not squashfs");
    // The upper part of an inode's reference is where its block begins in the inode table.
    let (root_inode, inode_table) = (field(32), field(64));
    Ok(inode_table + (root_inode >> 16))
}

/// The first and the last `length` bytes of a qcow2 disk of `size` bytes: where partition tables are.
pub fn ends(disk: &Path, size: u64, length: u64) -> Result<(Vec<u8>, Vec<u8>)> {
    let scratch = tempfile::tempdir().context("making a scratch directory")?;
    let read = |skip: u64| -> Result<Vec<u8>> {
        let out = scratch.path().join(skip.to_string());
        let mut command = tools::command("qemu-img")?;
        command.args(["dd", "-f", "qcow2", "-O", "raw", &format!("bs={length}"), "count=1", &format!("skip={skip}")]);
        let operand = |name: &str, path: &Path| {
            let mut operand = std::ffi::OsString::from(name);
            operand.push(path);
            operand
        };
        tools::run(command.arg(operand("if=", disk)).arg(operand("of=", &out)))?;
        fs::read(&out).with_context(|| format!("reading {}", out.display()))
    };
    ensure!(size.is_multiple_of(length), "{size} is no multiple of {length}");
    Ok((read(0)?, read(size / length - 1)?))
}

/// A digest of a sparse file's content: of each block that is not all zero, with its place. Holes are not read.
pub fn digest(file: &Path) -> Result<String> {
    const BLOCK: u64 = 4096;
    let source = File::open(file).with_context(|| format!("opening {}", file.display()))?;
    let size = source.metadata()?.len();
    let mut hash = Sha256::new();
    hash.update(size.to_le_bytes());
    let mut at = 0;
    // Behind the last data there is none: ENXIO.
    while let Ok(data) = rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(at)) {
        let hole = rustix::fs::seek(&source, rustix::fs::SeekFrom::Hole(data))?;
        let mut offset = data / BLOCK * BLOCK;
        while offset < hole {
            let mut block = vec![0; usize::try_from(BLOCK.min(size - offset))?];
            source.read_exact_at(&mut block, offset).with_context(|| format!("reading {}", file.display()))?;
            if block.iter().any(|byte| *byte != 0) {
                hash.update(offset.to_le_bytes());
                hash.update(&block);
            }
            offset += BLOCK;
        }
        at = offset;
        if at >= size {
            break;
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn parse_partitions(json: &[u8]) -> Result<Vec<Partition>> {
    /// Other members than these do not matter here.
    #[derive(Deserialize)]
    struct Dump {
        partitiontable: Table,
    }
    #[derive(Deserialize)]
    struct Table {
        label: String,
        sectorsize: u64,
        #[serde(default)]
        partitions: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        start: u64,
        size: u64,
        #[serde(default)]
        name: String,
    }
    let Dump { partitiontable: table } = serde_json::from_slice(json).context("parsing the output of sfdisk")?;
    ensure!(table.label == "gpt", "the partition table is {}, expected gpt", table.label);
    let bytes = |entry: Entry| Partition {
        label: entry.name,
        offset: entry.start * table.sectorsize,
        size: entry.size * table.sectorsize,
    };
    Ok(table.partitions.into_iter().map(bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_tables() {
        let json = br#"{"partitiontable": {"label": "gpt", "id": "X", "device": "i", "unit": "sectors",
            "firstlba": 34, "lastlba": 100, "sectorsize": 512, "partitions": [
            {"node": "i1", "start": 2048, "size": 8, "type": "C12A", "uuid": "A", "name": "ESP"},
            {"node": "i2", "start": 4096, "size": 16, "type": "4F68", "uuid": "B"}]}}"#;
        let partition = |label: &str, offset, size| Partition { label: label.into(), offset, size };
        assert_eq!(parse_partitions(json).unwrap(), [partition("ESP", 1 << 20, 4096), partition("", 2 << 20, 8192)]);
        let mbr = br#"{"partitiontable": {"label": "dos", "sectorsize": 512}}"#;
        assert!(parse_partitions(mbr).unwrap_err().to_string().contains("dos, expected gpt"));
        assert!(parse_partitions(b"").is_err());
    }

    #[test]
    fn holes_stay_holes() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        let mut file = File::create(&from).unwrap();
        file.set_len((64 << 20) + 3).unwrap();
        for (offset, text) in [(5 << 20, "middle"), ((64 << 20) - 3, "at end")] {
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
        copy_sparse(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap(), "the copy differs");
        let allocated = fs::metadata(&to).unwrap().blocks() * 512;
        assert!(allocated <= 8 << 20, "{allocated} bytes allocated");
    }

    #[test]
    fn root_inode_of_squashfs() {
        let mut superblock = [0; 96];
        assert!(squashfs_root_inode(&superblock).is_err());
        superblock[..4].copy_from_slice(b"hsqs");
        superblock[32..40].copy_from_slice(&(0x2000_u64 << 16 | 0x123).to_le_bytes());
        superblock[64..72].copy_from_slice(&0x50_0000_u64.to_le_bytes());
        assert_eq!(squashfs_root_inode(&superblock).unwrap(), 0x50_2000);
    }
}
