use std::io::Cursor;
use std::process::Command;

use super::*;
use crate::syslinux::tests::fake_loader;

const MIB: u64 = 1 << 20;

fn spec(size: u64, sector: SectorSize) -> Spec {
    Spec {
        size,
        sector,
        first_lba: 2048,
        volume_id: 0x1234_abcd,
        label: "ESP".to_owned(),
        unix_time: 1_760_000_000,
        directories: vec!["nodezero".to_owned(), "EFI/systemd".to_owned()],
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at / 7) as u8 ^ (at as u8).wrapping_mul(31) ^ seed).collect()
}

/// Paths and contents: short and long names, several directories, sizes around a cluster's.
fn contents() -> Vec<(String, Vec<u8>)> {
    let mut files = vec![
        ("EFI/BOOT/BOOTX64.EFI".to_owned(), pattern(90_001, 1)),
        ("EFI/Linux/nodezero-worker_2026.11.21+3.efi".to_owned(), pattern(3_000_000, 2)),
        ("EFI/Linux/nodezero-worker_2026.11.20.efi".to_owned(), pattern(4096, 3)),
        ("loader/loader.conf".to_owned(), b"timeout 0\n".to_vec()),
        ("loader/entries.srel".to_owned(), Vec::new()),
        ("größe.txt".to_owned(), pattern(4097, 4)),
    ];
    // A directory that takes several clusters.
    files.extend((0..200).map(|index| (format!("many/a file with a long name, number {index}"), pattern(index, 5))));
    files
}

fn files(contents: &[(String, Vec<u8>)]) -> Vec<File<'_>> {
    contents
        .iter()
        .enumerate()
        .map(|(index, (path, bytes))| {
            let content = if index % 2 == 0 {
                Content::Bytes(Cow::Borrowed(&bytes[..]))
            } else {
                Content::Stream { reader: Box::new(&bytes[..]), len: bytes.len() as u64 }
            };
            File { path: path.clone(), content }
        })
        .collect()
}

fn written(spec: &Spec, contents: &[(String, Vec<u8>)]) -> (Cursor<Vec<u8>>, Plan) {
    let mut disk = Cursor::new(vec![0; spec.size as usize]);
    let plan = write(&mut disk, spec, files(contents), None).unwrap();
    assert_eq!(disk.get_ref().len() as u64, spec.size);
    (disk, plan)
}

#[test]
fn another_implementation_reads_what_was_written() {
    for (size, sector) in [(40 * MIB, SectorSize::B512), (270 * MIB, SectorSize::B512), (270 * MIB, SectorSize::B4096)]
    {
        let contents = contents();
        let (mut disk, plan) = written(&spec(size, sector), &contents);
        for (path, bytes) in &contents {
            let read = read_file(&mut disk, path, MIB * 4).unwrap().unwrap_or_else(|| panic!("{path} is missing"));
            assert!(read == *bytes, "{path} in {size} {sector:?}");
            let extent = plan.extent(path);
            assert_eq!(extent.is_none(), bytes.is_empty(), "{path}");
            if let Some(extent) = extent {
                let start = (extent.first_sector * sector.bytes()) as usize;
                assert!(disk.get_ref()[start..start + bytes.len()] == bytes[..], "extent of {path}");
                assert_eq!(extent.sectors, (bytes.len() as u64).div_ceil(sector.bytes()), "{path}");
            }
        }
        let found = list(&mut disk).unwrap();
        let expected_files: Vec<_> = found.iter().filter_map(|found| found.len.map(|len| (&found.path, len))).collect();
        assert_eq!(expected_files.len(), contents.len());
        assert!(contents.iter().all(|(path, bytes)| expected_files.contains(&(path, bytes.len() as u64))));
        let directories: Vec<_> = found.iter().filter(|found| found.len.is_none()).map(|found| &*found.path).collect();
        assert_eq!(directories, ["EFI", "EFI/BOOT", "EFI/Linux", "EFI/systemd", "loader", "many", "nodezero"]);

        let file_system =
            fatfs::FileSystem::new(Cursor::new(&mut disk.get_mut()[..]), fatfs::FsOptions::new()).unwrap();
        assert_eq!(file_system.fat_type(), fatfs::FatType::Fat32);
        assert_eq!(file_system.volume_id(), 0x1234_abcd);
        assert_eq!(file_system.volume_label(), "ESP");
        assert_eq!(file_system.read_volume_label_from_root_dir().unwrap().as_deref(), Some("ESP"));
        let stats = file_system.stats().unwrap();
        assert_eq!(u64::from(stats.free_clusters()) * plan.cluster_bytes(), plan.free_bytes());
        let entry = file_system.root_dir().iter().map(Result::unwrap).find(|entry| entry.file_name() == "loader");
        let modified = entry.unwrap().modified();
        assert_eq!((modified.date.year, modified.date.month, modified.date.day), (2025, 10, 9));
        assert_eq!((modified.time.hour, modified.time.min, modified.time.sec), (8, 53, 20));
    }
}

#[test]
fn the_same_files_make_the_same_bytes_in_any_order() {
    let spec = spec(40 * MIB, SectorSize::B512);
    let mut contents = contents();
    let (first, _) = written(&spec, &contents);
    contents.reverse();
    let (second, _) = written(&spec, &contents);
    assert!(first.get_ref() == second.get_ref());
    assert_eq!(
        read_file(&mut first.clone(), "efi/boot/bootx64.efi", MIB).unwrap().map(|bytes| bytes.len()),
        Some(90_001)
    );
    assert_eq!(read_file(&mut first.clone(), "/no/such", MIB).unwrap(), None);
    assert!(matches!(read_file(&mut first.clone(), "EFI/BOOT/BOOTX64.EFI", 90_000), Err(Error::TooLarge { .. })));
}

#[test]
fn wrong_contents_are_refused() {
    let spec = spec(40 * MIB, SectorSize::B512);
    let attempt = |files: Vec<File<'_>>| write(&mut Cursor::new(vec![0; spec.size as usize]), &spec, files, None);
    let file = |path: &str| File { path: path.to_owned(), content: Content::Bytes(Cow::Borrowed(b"x")) };
    let stream = |len| File { path: "s".to_owned(), content: Content::Stream { reader: Box::new(&b"12345"[..]), len } };
    for paths in [&["a", "A"][..], &["a", "a/b"], &["a/b", "a"], &["Ä", "ä"], &["/a", "a"], &["nodezero"]] {
        let result = attempt(paths.iter().map(|path| file(path)).collect());
        assert!(matches!(result, Err(Error::FatDuplicate(_))), "{paths:?}");
    }
    for path in ["", "/", "a//b", "a/", "../a", "a/./b", "a:b"] {
        assert!(matches!(attempt(vec![file(path)]), Err(Error::FatPath(_))), "{path:?}");
    }
    assert!(attempt(vec![stream(5)]).is_ok());
    assert!(matches!(attempt(vec![stream(4)]), Err(Error::Length { declared: 4, read: 5, .. })));
    assert!(matches!(attempt(vec![stream(6)]), Err(Error::Length { declared: 6, read: 5, .. })));
    assert!(matches!(attempt(vec![stream(41 * MIB)]), Err(Error::FatFull { .. })));
    assert!(matches!(attempt(vec![stream(5 << 30)]), Err(Error::TooLarge { .. })));
    let two = |path: &str| PlannedFile::new(path, u64::from(u32::MAX));
    let many: Vec<_> = (0..5).map(|index| two(&format!("f{index}"))).collect();
    assert!(matches!(Plan::new(&spec, &many), Err(Error::FatFull { .. })));
}

#[test]
fn a_volume_is_filled_to_the_last_cluster() {
    let spec = spec(40 * MIB, SectorSize::B512);
    let free = Plan::new(&spec, &[]).unwrap().free_bytes();
    let bytes = pattern(free as usize, 9);
    let (mut disk, plan) = written(&spec, &[("f".to_owned(), bytes.clone())]);
    assert_eq!(plan.free_bytes(), 0);
    assert!(read_file(&mut disk, "f", free).unwrap().unwrap() == bytes);
    check_with_tools(disk.get_ref(), &[]);
    assert!(matches!(Plan::new(&spec, &[PlannedFile::new("f", free + 1)]), Err(Error::FatFull { .. })));
}

#[test]
fn a_file_is_put_replaced_and_removed() {
    let spec = spec(40 * MIB, SectorSize::B512);
    let (mut disk, _) = written(&spec, &contents());
    let before = list(&mut disk).unwrap();
    let path = "/nodezero/config.ign";
    for bytes in [pattern(70_000, 6), pattern(10, 7), pattern(9_000, 8)] {
        put_file(&mut disk, path, &bytes, 1_760_000_000).unwrap();
        assert!(read_file(&mut disk, path, MIB).unwrap().unwrap() == bytes);
    }
    let mut again = written(&spec, &contents()).0;
    for bytes in [pattern(70_000, 6), pattern(10, 7), pattern(9_000, 8)] {
        put_file(&mut again, path, &bytes, 1_760_000_000).unwrap();
    }
    assert!(again.get_ref() == disk.get_ref(), "putting files depends on something else");
    check_with_tools(disk.get_ref(), &[("nodezero/config.ign", &pattern(9_000, 8))]);
    assert!(remove_file(&mut disk, path).unwrap());
    assert!(!remove_file(&mut disk, path).unwrap());
    assert_eq!(list(&mut disk).unwrap(), before);
    assert!(put_file(&mut disk, "no/such/directory", b"", 0).is_err());
    assert!(put_file(&mut disk, "a//b", b"", 0).is_err());
    check_with_tools(disk.get_ref(), &[]);
}

#[test]
fn foreign_tools_accept_it() {
    let contents = contents();
    let some: Vec<(&str, &[u8])> = contents[..6].iter().map(|(path, bytes)| (&path[..], &bytes[..])).collect();
    for (size, sector) in [(40 * MIB, SectorSize::B512), (270 * MIB, SectorSize::B512), (270 * MIB, SectorSize::B4096)]
    {
        let (disk, _) = written(&spec(size, sector), &contents);
        check_with_tools(disk.get_ref(), &some);
    }
    // With a loader, its file is hidden and both boot sectors are the loader's.
    let loader = fake_loader(9);
    let spec = spec(40 * MIB, SectorSize::B512);
    let mut disk = Cursor::new(vec![0; spec.size as usize]);
    let plan = write(&mut disk, &spec, files(&contents), Some(&loader)).unwrap();
    check_with_tools(disk.get_ref(), &some);
    let start = plan.extent("ldlinux.sys").unwrap().first_sector as usize * 512;
    assert!(disk.get_ref()[start..].starts_with(b"\r\nSYSLINUX 6"));
    assert_eq!(&disk.get_ref()[3..11], b"SYSLINUX");
    assert!(disk.get_ref()[..512] == disk.get_ref()[6 * 512..7 * 512]);
    let file_system = fatfs::FileSystem::new(Cursor::new(&mut disk.get_mut()[..]), fatfs::FsOptions::new()).unwrap();
    let entry = file_system.root_dir().iter().map(Result::unwrap).find(|entry| entry.file_name() == "ldlinux.sys");
    let hidden = fatfs::FileAttributes::HIDDEN | fatfs::FileAttributes::SYSTEM | fatfs::FileAttributes::READ_ONLY;
    assert!(entry.unwrap().attributes().contains(hidden));
}

/// The checks would see damage: in the count of free clusters, in one FAT, in a directory's reference to itself.
#[test]
fn fsck_sees_flipped_bits() {
    let (disk, plan) = written(&spec(40 * MIB, SectorSize::B512), &contents());
    let offsets: Vec<usize> = plan.metadata(&plan.boot_sector()).iter().map(|piece| piece.0 as usize).collect();
    let [info, second_fat, first_subdirectory] = [1, 7, 9].map(|index| offsets[index]);
    for offset in [info + 488, second_fat + 4 * 20, first_subdirectory + 26] {
        let mut bad = disk.get_ref().clone();
        bad[offset] ^= 0x08;
        if let Some(clean) = fsck(&bad) {
            assert!(clean.is_err(), "offset {offset}: {clean:?}");
        }
    }
}

#[test]
fn what_is_zero_stays_a_hole() {
    let spec = spec(300 * MIB, SectorSize::B512);
    let file = tempfile::tempfile().unwrap();
    file.set_len(spec.size).unwrap();
    write(&mut &file, &spec, files(&contents()), None).unwrap();
    use std::os::unix::fs::MetadataExt;
    let allocated = file.metadata().unwrap().blocks() * 512;
    assert!(allocated < 8 * MIB, "{allocated} bytes allocated");
}

#[test]
fn reading_needs_no_right_to_write() {
    let file = sparse_file(written(&spec(40 * MIB, SectorSize::B512), &contents()).0.get_ref());
    let mut read_only = std::fs::File::open(file.path()).unwrap();
    assert_eq!(list(&mut read_only).unwrap().len(), contents().len() + 7);
    assert_eq!(read_file(&mut read_only, "loader/loader.conf", 100).unwrap().unwrap(), b"timeout 0\n");
    assert!(put_file(&mut read_only, "x", b"x", 0).is_err());
}

/// `fsck.fat` finds nothing, `mdir` lists and `mtype` yields the files.
fn check_with_tools(image: &[u8], some: &[(&str, &[u8])]) {
    if let Some(clean) = fsck(image) {
        clean.unwrap();
    }
    let file = sparse_file(image);
    for (path, bytes) in some {
        let name = format!("::{path}");
        let output = Command::new("mtype").env("LC_ALL", "C.UTF-8").arg("-i").arg(file.path()).arg(&name).output();
        let Ok(output) = output else {
            assert!(std::env::var_os("CI").is_none(), "mtype is missing");
            eprintln!("skipped: mtype is missing");
            return;
        };
        assert!(output.status.success(), "mtype {path}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == *bytes, "mtype {path}");
    }
}

/// A file of these bytes with holes where they are zero.
fn sparse_file(bytes: &[u8]) -> tempfile::NamedTempFile {
    const CHUNK: usize = 1 << 16;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes.len() as u64).unwrap();
    for (index, chunk) in bytes.chunks(CHUNK).enumerate() {
        if chunk != &[0; CHUNK][..chunk.len()] {
            file.seek(SeekFrom::Start((index * CHUNK) as u64)).unwrap();
            file.write_all(chunk).unwrap();
        }
    }
    file
}

/// What `fsck.fat` says, where it is there. Its exit status is not 0 where it would change anything.
fn fsck(image: &[u8]) -> Option<Result<(), String>> {
    let file = sparse_file(image);
    let programs = ["fsck.fat", "/sbin/fsck.fat"];
    let Some(output) =
        programs.iter().find_map(|program| Command::new(program).arg("-n").arg(file.path()).output().ok())
    else {
        assert!(std::env::var_os("CI").is_none(), "fsck.fat is missing");
        eprintln!("skipped: fsck.fat is missing");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some(if output.status.success() { Ok(()) } else { Err(text) })
}
