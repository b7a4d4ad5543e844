//! Reads packages that `dpkg-deb` built, and compares with what it says about them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use debian::Error;
use debian::deb::{Control, Deb, Entry, Kind};

const COMPRESSIONS: [&str; 4] = ["xz", "gzip", "zstd", "none"];

/// Everything that is read from a package, with the contents of files.
type Everything = (Control, Vec<(Entry, Vec<u8>)>);

fn read_all(package: &[u8]) -> Result<Everything, Error> {
    let mut entries = Vec::new();
    let deb = Deb::open(package, "test.deb")?;
    let stanza = deb.control().stanza.clone();
    let control = deb.for_each(|entry, content| {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(|source| Error::DebRead {
            deb: "test.deb".to_owned(),
            part: entry.path.clone(),
            source,
        })?;
        entries.push((entry, bytes));
        Ok::<_, Error>(())
    })?;
    assert_eq!(control.stanza, stanza);
    Ok((control, entries))
}

/// The program, or none where it is not installed. Where the project is tested for good, it has to be.
fn dpkg_deb() -> Option<&'static str> {
    let found = Command::new("dpkg-deb").arg("--version").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "dpkg-deb is not installed");
    if !found {
        eprintln!("skipped: dpkg-deb is not installed");
    }
    found.then_some("dpkg-deb")
}

/// Lays out the tree of a package with one of every kind of entry that a user can make.
fn lay_out(root: &Path) {
    let long = "a".repeat(60);
    for directory in ["DEBIAN", "usr/bin", "usr/share/doc/test", &format!("usr/share/{long}/{long}/{long}")] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    let noise: Vec<u8> = (0..200_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (path, content, mode) in [
        (
            "DEBIAN/control",
            &b"Package: test\nVersion: 1:2-3\nArchitecture: all\nMaintainer: T <t@example.org>\nDescription: a test\n"
                [..],
            0o644,
        ),
        ("DEBIAN/postinst", b"#!/bin/sh\nexit 0\n", 0o755),
        ("DEBIAN/triggers", b"activate-noawait ldconfig\n", 0o644),
        ("DEBIAN/md5sums", b"", 0o644),
        ("usr/bin/tool", b"#!/bin/sh\n", 0o4755),
        ("usr/share/doc/test/empty", b"", 0o644),
        ("usr/share/doc/test/noise", &noise, 0o600),
        (&format!("usr/share/{long}/{long}/{long}/deep"), b"deep", 0o644),
    ] {
        fs::write(root.join(path), content).unwrap();
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/tool-again")).unwrap();
    symlink("../../bin/tool", root.join("usr/share/doc/test/link")).unwrap();
    symlink(format!("/{}", "b/".repeat(80)), root.join("usr/share/doc/test/long-link")).unwrap();
    assert!(Command::new("mkfifo").arg(root.join("usr/share/doc/test/pipe")).status().unwrap().success());
}

fn build(program: &str, tree: &Path, compression: &str) -> Vec<u8> {
    let package = tree.with_extension(compression);
    let output = Command::new(program)
        .args(["--root-owner-group", "--uniform-compression", "-Z", compression, "--build"])
        .args([tree, &package])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read(package).unwrap()
}

#[test]
fn reads_what_dpkg_deb_built() {
    let Some(program) = dpkg_deb() else { return };
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    lay_out(&tree);
    for compression in COMPRESSIONS {
        let package = build(program, &tree, compression);
        let (control, entries) = read_all(&package).unwrap();
        assert_eq!(control.stanza.field("version"), Some("1:2-3"), "{compression}");
        assert_eq!(control.scripts.keys().collect::<Vec<_>>(), ["postinst", "triggers"], "{compression}");
        assert_eq!(control.scripts["postinst"], b"#!/bin/sh\nexit 0\n", "{compression}");

        let extracted = directory.path().join(format!("extracted-{compression}"));
        let archive = tree.with_extension(compression);
        assert!(Command::new(program).arg("-x").args([&archive, &extracted]).status().unwrap().success());
        compare(&extracted, &entries);
    }
}

/// Compares entries with the tree that dpkg-deb extracted from the same package.
fn compare(extracted: &Path, entries: &[(Entry, Vec<u8>)]) {
    let mut inodes = BTreeMap::new();
    for (entry, content) in entries {
        let path = extracted.join(&entry.path);
        let found = fs::symlink_metadata(&path).unwrap();
        assert_eq!((entry.uid, entry.gid), (0, 0), "{}", entry.path);
        assert_eq!((entry.user.as_str(), entry.group.as_str()), ("root", "root"), "{}", entry.path);
        match &entry.kind {
            Kind::File => {
                assert!(found.is_file(), "{}", entry.path);
                assert_eq!(content, &fs::read(&path).unwrap(), "{}", entry.path);
                assert_eq!(entry.size, found.len(), "{}", entry.path);
                assert_eq!(entry.mtime, found.mtime() as u64, "{}", entry.path);
            }
            Kind::Directory => assert!(found.is_dir(), "{}", entry.path),
            Kind::Symlink { target } => assert_eq!(Path::new(target), fs::read_link(&path).unwrap()),
            Kind::Hardlink { target } => assert_eq!(inodes.get(target), Some(&found.ino()), "{}", entry.path),
            Kind::Fifo => assert_eq!(found.mode() & 0o170_000, 0o010_000, "{}", entry.path),
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } => panic!("{} is a device", entry.path),
        }
        if !matches!(entry.kind, Kind::Symlink { .. }) {
            assert_eq!(entry.mode, found.mode() & 0o7777, "{}", entry.path);
        }
        assert!(entry.kind == Kind::File || content.is_empty(), "{}", entry.path);
        inodes.insert(entry.path.clone(), found.ino());
    }
    let count = |directory: &Path| {
        let mut pending = vec![directory.to_owned()];
        let mut count = 0;
        while let Some(path) = pending.pop() {
            count += 1;
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                pending.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
        count
    };
    assert_eq!(entries.len(), count(extracted));
    assert!(entries.iter().any(|(entry, _)| matches!(entry.kind, Kind::Hardlink { .. })));
    assert!(entries.iter().any(|(entry, _)| entry.path.len() > 180));
}

#[test]
fn every_cut_is_an_error() {
    let Some(program) = dpkg_deb() else { return };
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    lay_out(&tree);
    for compression in COMPRESSIONS {
        let package = build(program, &tree, compression);
        let near_ends = (0..200).chain(package.len() - 200..package.len());
        for end in (0..package.len()).step_by(97).chain(near_ends) {
            let err = read_all(&package[..end]).expect_err("a package that was cut");
            assert!(err.to_string().starts_with("test.deb: "), "{compression} cut at {end}: {err}");
        }
    }
}

/// A changed bit in the compressed streams is noticed by their checksums; elsewhere it must at least not panic.
#[test]
fn flipped_bits_are_noticed() {
    let Some(program) = dpkg_deb() else { return };
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    lay_out(&tree);
    let package = build(program, &tree, "xz");
    let (control, entries) = read_all(&package).unwrap();
    for at in (0..package.len()).step_by(101) {
        let mut changed = package.clone();
        changed[at] ^= 4;
        if let Ok((changed_control, changed_entries)) = read_all(&changed) {
            assert_eq!(changed_control, control, "byte {at}");
            assert_eq!(changed_entries, entries, "byte {at}");
        }
    }
}

fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = b"!<arch>\n".to_vec();
    for (name, content) in members {
        archive.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, content.len()).bytes());
        archive.extend(*content);
        archive.extend(vec![b'\n'; content.len() % 2]);
    }
    archive
}

/// A tar archive with one entry, to which `change` is applied before its checksum is computed.
fn tar_of(path: &str, content: &[u8], change: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    // Not by `set_path`, which refuses what is to be tested.
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    header.set_entry_type(tar::EntryType::Regular);
    change(&mut header);
    header.set_cksum();
    let mut archive = tar::Builder::new(Vec::new());
    archive.append(&header, content).unwrap();
    archive.into_inner().unwrap()
}

fn control_tar(text: &str) -> Vec<u8> {
    tar_of("./control", text.as_bytes(), |_| ())
}

const CONTROL: &str = "Package: t\nVersion: 1\nArchitecture: all\n";

#[test]
fn malformed_packages() {
    let control = control_tar(CONTROL);
    let empty = vec![0; 1024];
    let good = [("debian-binary", &b"2.0\n"[..]), ("control.tar", &control), ("data.tar", &empty)];
    read_all(&ar(&good)).unwrap();
    read_all(&ar(&[good[0], good[1], ("_more", b"x"), good[2], ("_after", b"yz")])).unwrap();
    read_all(&ar(&[("debian-binary/", b"2.0\n"), good[1], good[2]])).unwrap();
    let with_control = |text: &str| ar(&[good[0], ("control.tar", &control_tar(text)), good[2]]);
    let with_entry =
        |path: &str, change: fn(&mut tar::Header)| ar(&[good[0], good[1], ("data.tar", &tar_of(path, b"", change))]);
    for (case, package, problem) in [
        ("empty", vec![], "reading the beginning"),
        ("no archive", b"not a package".to_vec(), "no ar archive"),
        ("no members", ar(&[]), "it ends before its data"),
        ("no data", ar(&good[..2]), "it ends before its data"),
        ("version 3", ar(&[("debian-binary", b"3.0\n"), good[1], good[2]]), "the format is \"3.0\""),
        ("no version", ar(&good[1..]), "expected debian-binary"),
        ("data first", ar(&[good[0], good[2], good[1]]), "is in place of control.tar"),
        ("an unknown member", ar(&[good[0], good[1], ("other", b""), good[2]]), "is in place of data.tar"),
        ("bzip2", ar(&[good[0], good[1], ("data.tar.bz2", b"")]), "the compression \".bz2\""),
        ("not xz", ar(&[good[0], good[1], ("data.tar.xz", &empty)]), "reading data.tar"),
        ("not gzip", ar(&[good[0], good[1], ("data.tar.gz", &empty)]), "reading data.tar"),
        ("not zstd", ar(&[good[0], good[1], ("data.tar.zst", &empty)]), "reading data.tar"),
        ("no control file", ar(&[good[0], ("control.tar", &empty), good[2]]), "there is no control file"),
        ("no control fields", with_control("Package: t\nVersion: 1\n"), "control file"),
        ("two stanzas", with_control(&format!("{CONTROL}\n{CONTROL}")), "not one stanza"),
        ("upwards", with_entry("./a/../../b", |_| ()), "leads upwards"),
        ("no name", with_entry("", |_| ()), "leads upwards"),
        ("a file like a directory", with_entry("./a/", |_| ()), "the name of a directory"),
        ("a link to nothing", with_entry("./a", |header| header.set_entry_type(tar::EntryType::Symlink)), "no target"),
        ("a sparse file", with_entry("./a", |header| header.set_entry_type(tar::EntryType::new(b'V'))), "unsupported"),
        ("a large owner", with_entry("./a", |header| header.set_uid(u64::MAX >> 8)), "has an owner"),
    ] {
        let err = read_all(&package).map(|_| ()).expect_err(case).to_string();
        assert!(err.starts_with("test.deb: ") && err.contains(problem), "{case}: {err}");
    }
}

#[test]
fn extended_attributes_and_devices() {
    let capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\xff".as_slice();
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_pax_extensions([("SCHILY.xattr.security.capability", capability), ("comment", b"x")]).unwrap();
    let mut archive = archive.into_inner().unwrap();
    archive.truncate(1024);
    archive.extend(tar_of("./bin/ping", b"elf", |header| header.set_mode(0o755)));
    archive.truncate(2048);
    archive.extend(tar_of("dev/null", b"", |header| {
        header.set_entry_type(tar::EntryType::Char);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    }));
    let package = ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control_tar(CONTROL)), ("data.tar", &archive)]);
    let (_, entries) = read_all(&package).unwrap();
    assert_eq!(entries.len(), 2);
    let (ping, content) = &entries[0];
    assert_eq!((ping.path.as_str(), ping.mode, content.as_slice()), ("bin/ping", 0o755, &b"elf"[..]));
    assert_eq!(ping.xattrs, BTreeMap::from([("security.capability".to_owned(), capability.to_vec())]));
    assert_eq!(entries[1].0.kind, Kind::CharDevice { major: 1, minor: 3 });
    assert!(entries[1].0.xattrs.is_empty());
}

#[test]
fn large_control_archives_are_refused() {
    let text = format!("{CONTROL}Description: {}\n", "x".repeat(17 << 20));
    let package = ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control_tar(&text)), ("data.tar", &[0; 1024])]);
    let Err(Error::DebRead { part, source, .. }) = read_all(&package) else { panic!("it was taken") };
    assert_eq!((part.as_str(), source.kind()), ("control.tar", std::io::ErrorKind::FileTooLarge));
}
