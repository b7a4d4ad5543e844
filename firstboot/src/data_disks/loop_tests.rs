//! The real programs: what libblkid says of foreign content in files, and mkfs and wipefs on loop devices, for which
//! root is needed. The kernel need not show partitions of loop devices: a second one stands for the partition.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use nodezero_profile::data_disks::{Target, Verdict};
use nodezero_profile::inventory::{Content, Disk, Stage};
use nodezero_profile::node::FileSystem;

use super::device::mkfs;
use super::prepare::{Bench, prepare};
use super::tests::{decide, disk, target};
use super::wipe::wipe;
use crate::disks::content::examine;

const SIZE: u64 = 2 << 30;

/// Whether these programs are there; says so when they are not.
fn have(programs: &[&str]) -> bool {
    let missing = |program: &&&str| Command::new(program).arg("--version").output().is_err();
    match programs.iter().find(missing) {
        Some(program) => {
            assert!(std::env::var_os("CI").is_none(), "{program} is missing");
            eprintln!("skipped: {program} is missing");
            false
        }
        None => true,
    }
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = crate::command::run(program, arguments, b"", |code| code == 0)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A loop device, detached when it goes.
struct Loop(String);

impl Loop {
    fn attach(file: &Path, sector: u32, place: Range<u64>) -> anyhow::Result<Self> {
        let (offset, size) = (place.start.to_string(), (place.end - place.start).to_string());
        let (sector, file) = (sector.to_string(), file.to_string_lossy());
        let words = ["--find", "--show", "--sector-size", &sector, "--offset", &offset, "--sizelimit", &size, &file];
        Ok(Self(run("losetup", &words)?))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach", &self.0]);
    }
}

/// A disk on a loop device. `fuel` is how many more times it is opened for writing or formatted before power is cut.
struct OnLoop<'a> {
    file: &'a Path,
    disk: Disk,
    device: &'a Loop,
    fuel: Cell<u32>,
}

impl OnLoop<'_> {
    fn burn(&self) -> anyhow::Result<()> {
        let Some(left) = self.fuel.get().checked_sub(1) else { bail!("power is cut") };
        self.fuel.set(left);
        Ok(())
    }
}

impl Bench for OnLoop<'_> {
    type Device = File;

    fn open(&mut self) -> anyhow::Result<File> {
        self.burn()?;
        Ok(OpenOptions::new().read(true).write(true).open(&self.device.0)?)
    }

    fn barrier(device: &mut File) -> io::Result<()> {
        device.sync_all()
    }

    fn reread(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn examine(&mut self) -> Content {
        examine(Path::new(&self.device.0), self.disk.size, self.disk.sector_size)
    }

    fn make_file_system(&mut self, target: &Target, place: &Range<u64>, again: bool) -> anyhow::Result<()> {
        self.burn()?;
        File::open(&self.device.0)?.sync_all()?;
        let partition = Loop::attach(self.file, self.disk.sector_size, place.clone())?;
        mkfs(Path::new(&partition.0), target, again)?;
        Ok(())
    }
}

/// Prepares a disk on a loop device as the plan says, with so much fuel. Gives the stage in which it was found.
fn attempt(bench: &mut OnLoop<'_>, target: &Target, fuel: u32) -> (String, anyhow::Result<()>) {
    bench.disk.content = bench.examine();
    bench.fuel.set(fuel);
    let disk = bench.disk.clone();
    let planned = decide(&disk);
    let word = planned.verdict.word().to_owned();
    match planned.verdict {
        Verdict::Prepare(_) => (word, prepare(bench, &disk, target, None)),
        Verdict::Continue(_, stage) => (format!("{word} {stage:?}"), prepare(bench, &disk, target, Some(stage))),
        _ => (word, Ok(())),
    }
}

#[test]
fn disks_are_prepared_continued_and_kept_on_loop_devices() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: loop devices need root");
        return;
    }
    if !have(&["losetup", "mkfs.xfs", "wipefs", "blkid", "xfs_repair"]) {
        return;
    }
    for sector in [512, 4096] {
        let file = tempfile::NamedTempFile::new().expect("tempfile");
        file.as_file().set_len(SIZE).expect("sparse");
        let device = match Loop::attach(file.path(), sector, 0..SIZE) {
            Ok(device) => device,
            Err(error) => return eprintln!("skipped: {error:#}"),
        };
        // As the lock does: while somebody has the disk open, the kernel keeps what it has cached of it.
        let _held = File::open(&device.0).expect("held");
        let target = target("Z1");
        let disk = disk(&device.0, SIZE, sector);
        let mut bench = OnLoop { file: file.path(), disk, device: &device, fuel: Cell::new(0) };
        for (fuel, expected) in [
            (0, "prepare"),
            (1, "prepare"),
            (0, "continue FileSystem"),
            (1, "continue FileSystem"),
            (9, "continue FileSystem"),
        ] {
            let (word, result) = attempt(&mut bench, &target, fuel);
            assert_eq!(word, expected, "{sector} {fuel}: {result:?}");
            assert_eq!(result.is_ok(), fuel == 9, "{sector} {fuel}: {result:?}");
        }
        let before = ends(file.path());
        let (word, result) = attempt(&mut bench, &target, 0);
        assert_eq!((word.as_str(), result.is_ok(), ends(file.path()) == before), ("keep", true, true), "{sector}");
        let place = (1 << 20)..(SIZE - (1 << 20));
        let partition = Loop::attach(file.path(), sector, place).expect("attached");
        run("xfs_repair", &["-n", &partition.0]).expect("a sound file system");
        let label = run("blkid", &["-p", "-s", "LABEL", "-o", "value", &partition.0]).expect("labelled");
        assert_eq!(label, target.marks.label);
        drop(partition);
        // Consent loses it all, and leaves a disk that can be prepared.
        bench.fuel.set(9);
        let disk = bench.disk.clone();
        wipe(&mut bench, &disk).expect("wiped");
        assert_eq!(attempt(&mut bench, &target, 9).0, "prepare", "{sector}");
    }
}

#[test]
fn ext4_is_made_too() {
    if !rustix::process::geteuid().is_root() || !have(&["losetup", "wipefs", "blkid"]) {
        eprintln!("skipped: loop devices need root");
        return;
    }
    let file = tempfile::NamedTempFile::new().expect("tempfile");
    file.as_file().set_len(SIZE).expect("sparse");
    let Ok(device) = Loop::attach(file.path(), 512, 0..SIZE) else { return eprintln!("skipped: no loop device") };
    let target = Target { filesystem: FileSystem::Ext4, ..target("Z1") };
    let disk = disk(&device.0, SIZE, 512);
    let mut bench = OnLoop { file: file.path(), disk: disk.clone(), device: &device, fuel: Cell::new(9) };
    prepare(&mut bench, &disk, &target, None).expect("prepared");
    let Content::Prepared(found) = bench.examine() else { panic!("{:?}", bench.examine()) };
    assert_eq!(found.stage, Stage::Done);
    assert_eq!(found.file_system.expect("made").kind, "ext4");
}

/// The bytes that tell most of what a disk holds.
fn ends(path: &Path) -> Vec<u8> {
    let file = File::open(path).expect("open");
    let mut bytes = vec![0; 4 << 20];
    file.read_exact_at(&mut bytes[..2 << 20], 0).expect("start");
    file.read_exact_at(&mut bytes[2 << 20..], SIZE - (2 << 20)).expect("end");
    bytes
}

/// Each kind of foreign content is refused by its name, and looking at it changes nothing.
#[test]
fn foreign_content_is_refused_by_its_name() {
    if !have(&["wipefs", "blkid"]) {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("disk");
    let at = path.to_string_lossy().into_owned();
    // The content by a program, or by bytes at an offset (from the end where it is negative).
    let (mut programs, mut missing) = (0, Vec::new());
    let mkfs: [(&str, &[&str]); 17] = [
        ("ext2", &["mkfs.ext2", "-qF"]),
        ("ext3", &["mkfs.ext3", "-qF"]),
        ("ext4", &["mkfs.ext4", "-qF"]),
        ("xfs", &["mkfs.xfs", "-qf"]),
        ("btrfs", &["mkfs.btrfs", "-qf"]),
        ("f2fs", &["mkfs.f2fs", "-qf"]),
        ("vfat", &["mkfs.vfat", "-I"]),
        ("exfat", &["mkfs.exfat"]),
        ("ntfs", &["mkfs.ntfs", "-FqQ"]),
        ("swap", &["mkswap", "-q"]),
        (
            "crypto_LUKS",
            &[
                "cryptsetup",
                "luksFormat",
                "-q",
                "--type",
                "luks1",
                "--pbkdf-force-iterations",
                "1000",
                "--key-file",
                "/etc/os-release",
            ],
        ),
        (
            "crypto_LUKS",
            &[
                "cryptsetup",
                "luksFormat",
                "-q",
                "--type",
                "luks2",
                "--pbkdf",
                "pbkdf2",
                "--pbkdf-force-iterations",
                "1000",
                "--key-file",
                "/etc/os-release",
            ],
        ),
        ("bcache", &["make-bcache", "-B"]),
        ("gpt", &["sgdisk", "-n", "1:0:0"]),
        ("erofs", &["mkfs.erofs"]),
        ("squashfs", &["mksquashfs"]),
        ("iso9660", &["genisoimage", "-o"]),
    ];
    for (kind, words) in mkfs {
        let mut words: Vec<&str> = words.to_vec();
        words.push(&at);
        match words[0] {
            "mkfs.erofs" => words.push("/etc/apt"),
            "mksquashfs" => words = vec!["mksquashfs", "/etc/apt", &at, "-quiet", "-no-progress", "-noappend"],
            "genisoimage" => words.extend(["-quiet", "/etc/apt"]),
            _ => {}
        }
        fresh(&path);
        if run(words[0], &words[1..]).is_err() {
            missing.push(words[0].to_owned());
            continue;
        }
        programs += 1;
        refused(kind, &path);
    }
    // ZFS' labels are many pages of generator: the scenarios in virtual machines have them.
    let generated: [(&str, &str, i64, &[u8]); 8] = [
        ("dos", "an MBR", 0, &mbr()),
        ("linux_raid_member", "mdraid 1.2", 4096, &mdraid_1_2()),
        ("linux_raid_member", "mdraid 0.90", -65_536, &mdraid_0_90()),
        ("LVM2_member", "LVM label", 0, &lvm_label()),
        ("ceph_bluestore", "Ceph BlueStore", 0, b"bluestore block device\n9f1d7c0e-0000-4000-8000-000000000000\n"),
        ("unknown data at byte 0", "raw data at the start", 0, b"once upon a time"),
        ("unknown data at byte 16777200", "raw data further in", (16 << 20) - 16, b"once upon a time"),
        ("unknown data at byte 2147483136", "raw data at the end", -512, b"the end"),
    ];
    for (kind, case, offset, bytes) in generated {
        fresh(&path);
        let file = OpenOptions::new().write(true).open(&path).expect(case);
        let offset = u64::try_from(offset).unwrap_or_else(|_| SIZE - offset.unsigned_abs());
        file.write_all_at(bytes, offset).expect(case);
        refused(kind, &path);
    }
    eprintln!("refused: {} of programs, {} generated; could not be made here: {missing:?}", programs, generated.len());
    assert!(programs + generated.len() >= 5, "{missing:?}");
}

fn fresh(path: &Path) {
    let _ = fs::remove_file(path);
    File::create(path).and_then(|file| file.set_len(SIZE)).expect("sparse");
}

/// Makes sure that a disk with this content is refused, with `kind` named, and is not changed by being looked at.
fn refused(kind: &str, path: &Path) {
    if fs::metadata(path).expect("there").len() < SIZE {
        OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(SIZE)).expect("grown");
    }
    let before = ends(path);
    let content = examine(path, SIZE, 512);
    let verdict = decide(&Disk { content, ..disk("/dev/sda", SIZE, 512) }).verdict;
    let Verdict::Refuse { why, .. } = &verdict else { panic!("{kind}: {verdict:?}") };
    assert!(why.contains(&format!("holds {kind}")) || why.contains(&format!(", {kind} at byte")), "{kind}: {why}");
    assert!(ends(path) == before, "{kind}: looking at it changed it");
}

/// An MBR with one partition of type Linux.
fn mbr() -> Vec<u8> {
    let mut sector = vec![0_u8; 512];
    sector[446..462].copy_from_slice(&[0, 32, 33, 0, 0x83, 0xfe, 0xff, 0xff, 0, 8, 0, 0, 0, 0, 32, 0]);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// The superblock of mdraid 1.2, 4 KiB into the device, with its checksum (`md_p.h` of the kernel has the form).
fn mdraid_1_2() -> Vec<u8> {
    let mut block = vec![0_u8; 256];
    block[..4].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
    block[4..8].copy_from_slice(&1_u32.to_le_bytes());
    block[16..32].copy_from_slice(&[0x5a; 16]);
    block[144..152].copy_from_slice(&8_u64.to_le_bytes());
    let words = block.chunks(4).map(|word| u64::from(u32::from_le_bytes(word.try_into().expect("four"))));
    let sum: u64 = words.sum();
    let folded = u32::try_from((sum & 0xffff_ffff) + (sum >> 32)).expect("a small sum");
    block[216..220].copy_from_slice(&folded.to_le_bytes());
    block
}

/// The superblock of mdraid 0.90, in the last whole 64 KiB of the device.
fn mdraid_0_90() -> Vec<u8> {
    let mut block = vec![0_u8; 4096];
    for (word, value) in [(0, 0xa92b_4efc_u32), (2, 90), (5, 0x1234_5678), (13, 0x9abc_def0), (7, 1), (8, 1000)] {
        block[word * 4..word * 4 + 4].copy_from_slice(&value.to_le_bytes());
    }
    block
}

/// The label of an LVM2 physical volume in its second sector, with its checksum over all after it
/// (`lib/format_text/layout.h` and `lib/misc/crc.c` of LVM2 define the form).
fn lvm_label() -> Vec<u8> {
    let mut sector = vec![0_u8; 512];
    sector[..8].copy_from_slice(b"LABELONE");
    sector[8..16].copy_from_slice(&1_u64.to_le_bytes());
    sector[20..24].copy_from_slice(&32_u32.to_le_bytes());
    sector[24..32].copy_from_slice(b"LVM2 001");
    sector[32..64].copy_from_slice(&[b'a'; 32]);
    let mut crc = 0xf597_a6cf_u32;
    for byte in &sector[20..] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    sector[16..20].copy_from_slice(&crc.to_le_bytes());
    [vec![0; 512], sector].concat()
}

/// A device that cannot be read is told so, and never taken for blank.
#[test]
fn a_device_that_cannot_be_read_is_not_blank() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("short");
    File::create(&path).and_then(|file| file.set_len(1 << 20)).context("short").expect("made");
    for path in [path.as_path(), Path::new("/nonexistent"), directory.path()] {
        let content = examine(path, SIZE, 512);
        assert!(matches!(content, Content::Unreadable { .. }), "{}: {content:?}", path.display());
    }
}
