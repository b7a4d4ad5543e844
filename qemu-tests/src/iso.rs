//! Small discs: an ISO 9660 file system with the names of Rock Ridge, as OpenStack and NoCloud make config drives.
//!
//! Specifications: [ECMA-119](https://ecma-international.org/publications-and-standards/standards/ecma-119/), and beside
//! it SUSP 1.12 and RRIP 1.12, of which there are the entries `SP`, `PX` and `NM`. The plain names are numbers, so that
//! a reader that does not know Rock Ridge finds nothing that it should. Left out: Joliet, files larger than 4 GiB, more
//! of a directory than fits into one sector, the order of plain names, dates.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The size of a sector, and of a block, in bytes.
const SECTOR: usize = 2048;
/// The sector of the primary volume descriptor. Behind it are the end of descriptors, and the path tables.
const DESCRIPTOR: usize = 16;
const LITTLE_TABLE: usize = DESCRIPTOR + 2;
const BIG_TABLE: usize = LITTLE_TABLE + 1;
/// The first sector of directories.
const DIRECTORIES: usize = BIG_TABLE + 1;
/// The length of a label, in bytes.
const LABEL: usize = 32;
/// File modes, as `stat(2)` has them.
const DIRECTORY_MODE: u32 = 0o040_555;
const FILE_MODE: u32 = 0o100_444;

/// Writes a disc with a label, and files by path.
///
/// # Errors
/// When a label, a name or a directory is too long for this writer, or the file cannot be written.
pub fn write(disc: &Path, label: &str, files: &[(&str, &[u8])]) -> Result<()> {
    let bytes = image(label, files).with_context(|| format!("making the disc {label}"))?;
    std::fs::write(disc, bytes).with_context(|| format!("writing {}", disc.display()))
}

/// A directory of the disc.
#[derive(Debug, Default)]
struct Directory {
    /// The directory that it is in, by number. The root is in itself.
    parent: usize,
    /// What is in it.
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, Copy)]
enum Entry {
    /// By number.
    Directory(usize),
    /// Its first sector, and its length in bytes.
    File { sector: usize, length: usize },
}

fn image(label: &str, files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    ensure!(label.len() <= LABEL, "the label has {} bytes, at most {LABEL} fit", label.len());
    let mut directories = tree(files)?;
    // Each directory has one sector, and files begin behind the last.
    let mut next = DIRECTORIES + directories.len();
    let mut contents = Vec::new();
    for (path, content) in files {
        let (directory, name) = place(&directories, path);
        directories[directory].entries.insert(name, Entry::File { sector: next, length: content.len() });
        contents.extend(*content);
        contents.resize(contents.len().next_multiple_of(SECTOR), 0);
        next += content.len().div_ceil(SECTOR);
    }
    let tables = [u32::to_le_bytes, u32::to_be_bytes].map(|order| path_table(&directories, order));
    let mut sectors = vec![vec![0; DESCRIPTOR * SECTOR], primary(label, next, tables[0].len())];
    sectors.push(descriptor(255));
    sectors.extend(tables.into_iter().map(sector).collect::<Result<Vec<_>>>()?);
    for number in 0..directories.len() {
        sectors.push(sector(records(&directories, number))?);
    }
    sectors.push(contents);
    Ok(sectors.concat())
}

/// The directories that the files lie in, the root first and each behind the one that it is in.
fn tree(files: &[(&str, &[u8])]) -> Result<Vec<Directory>> {
    let mut directories = vec![Directory::default()];
    for (path, _) in files {
        let mut at = 0;
        let mut names: Vec<&str> = path.split('/').collect();
        ensure!(names.iter().all(|name| (1..=128).contains(&name.len())), "{path} has a name that cannot be");
        names.pop();
        for name in names {
            at = match directories[at].entries.get(name) {
                Some(Entry::Directory(number)) => *number,
                _ => {
                    let number = directories.len();
                    directories[at].entries.insert(name.to_owned(), Entry::Directory(number));
                    directories.push(Directory { parent: at, entries: BTreeMap::new() });
                    number
                }
            };
        }
    }
    Ok(directories)
}

/// The directory that a file lies in, and its name there.
fn place(directories: &[Directory], path: &str) -> (usize, String) {
    let mut names: Vec<&str> = path.split('/').collect();
    let name = names.pop().expect("a path has a name").to_owned();
    let at = names.into_iter().fold(0, |at, name| match directories[at].entries[name] {
        Entry::Directory(number) => number,
        Entry::File { .. } => unreachable!("directories alone are in the tree yet"),
    });
    (at, name)
}

/// Fills a sector up.
fn sector(mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    ensure!(bytes.len() <= SECTOR, "a directory has {} bytes, at most {SECTOR} fit", bytes.len());
    bytes.resize(SECTOR, 0);
    Ok(bytes)
}

/// The beginning of any volume descriptor (8.1).
fn descriptor(kind: u8) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR];
    bytes[0] = kind;
    bytes[1..7].copy_from_slice(b"CD001\x01");
    bytes
}

/// The primary volume descriptor (8.4).
fn primary(label: &str, sectors: usize, table: usize) -> Vec<u8> {
    let mut bytes = descriptor(1);
    // Texts are padded with blanks: system, volume, and from the set of volumes to the bibliography.
    for text in [8..40, 40..72, 190..813] {
        bytes[text].fill(b' ');
    }
    bytes[40..40 + label.len()].copy_from_slice(label.as_bytes());
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(80, &both32(sectors));
    for at in [120, 124] {
        put(at, &both16(1));
    }
    put(128, &both16(SECTOR));
    put(132, &both32(table));
    put(140, &both32(LITTLE_TABLE)[..4]);
    put(148, &both32(BIG_TABLE)[4..]);
    put(156, &record(&[0], Entry::Directory(0), &[]));
    // Dates (8.4.26.1) of sixteen zeros as digits are none.
    for at in [813, 830, 847, 864] {
        put(at, b"0000000000000000\0");
    }
    put(881, &[1]);
    bytes
}

/// A path table (9.4) in one of the two byte orders.
fn path_table(directories: &[Directory], order: fn(u32) -> [u8; 4]) -> Vec<u8> {
    let half = |value: usize| {
        let bytes = order(u32::try_from(value).expect("a disc is small"));
        // Which of the halves is not zero tells the order.
        if order(1)[0] == 1 { [bytes[0], bytes[1]] } else { [bytes[2], bytes[3]] }
    };
    let mut table = Vec::new();
    for (number, directory) in directories.iter().enumerate() {
        let name = if number == 0 { vec![0] } else { plain_name(number).into_bytes() };
        table.extend([u8::try_from(name.len()).expect("plain names are short"), 0]);
        table.extend(order(u32::try_from(DIRECTORIES + number).expect("a disc is small")));
        table.extend(half(directory.parent + 1));
        table.extend(&name);
        table.resize(table.len().next_multiple_of(2), 0);
    }
    table
}

/// The records of a directory: itself, the one that it is in, and what is in it.
fn records(directories: &[Directory], number: usize) -> Vec<u8> {
    // SP (SUSP 5.3) in the root says that such entries are used.
    let begin: &[u8] = if number == 0 { b"SP\x07\x01\xbe\xef\x00" } else { b"" };
    let own = record(&[0], Entry::Directory(number), &[begin, &posix(DIRECTORY_MODE)].concat());
    let parent = record(&[1], Entry::Directory(directories[number].parent), &posix(DIRECTORY_MODE));
    let mut bytes = [own, parent].concat();
    for (index, (name, entry)) in directories[number].entries.iter().enumerate() {
        let (plain, mode) = match entry {
            Entry::Directory(number) => (plain_name(*number), DIRECTORY_MODE),
            Entry::File { .. } => (format!("{}.;1", plain_name(index)), FILE_MODE),
        };
        bytes.extend(record(plain.as_bytes(), *entry, &[posix(mode), alternate_name(name)].concat()));
    }
    bytes
}

fn plain_name(number: usize) -> String {
    format!("N{number:05}")
}

/// A directory record (9.1) with entries for its system use.
fn record(name: &[u8], entry: Entry, system: &[u8]) -> Vec<u8> {
    let (sector, length, flags) = match entry {
        Entry::Directory(number) => (DIRECTORIES + number, SECTOR, 2),
        Entry::File { sector, length } => (sector, length, 0),
    };
    let mut bytes = vec![0, 0];
    bytes.extend(both32(sector));
    bytes.extend(both32(length));
    // A date of zeros is none.
    bytes.extend([0; 7]);
    bytes.extend([flags, 0, 0]);
    bytes.extend(both16(1));
    bytes.push(u8::try_from(name.len()).expect("plain names are short"));
    bytes.extend(name);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes.extend(system);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes[0] = u8::try_from(bytes.len()).expect("names are bounded");
    bytes
}

/// PX (RRIP 4.1.1): mode, links, user, group, serial number.
fn posix(mode: u32) -> Vec<u8> {
    let mode = usize::try_from(mode).expect("32 bits");
    [b"PX\x2c\x01".to_vec(), both32(mode), both32(1), both32(0), both32(0), both32(0)].concat()
}

/// NM (RRIP 4.1.4): the name as it is.
fn alternate_name(name: &str) -> Vec<u8> {
    let length = u8::try_from(5 + name.len()).expect("names are bounded");
    [&[b'N', b'M', length, 1, 0], name.as_bytes()].concat()
}

/// A number in both byte orders (7.2.3 and 7.3.3).
fn both16(value: usize) -> Vec<u8> {
    let value = u16::try_from(value).expect("a disc is small");
    [value.to_le_bytes(), value.to_be_bytes()].concat()
}

fn both32(value: usize) -> Vec<u8> {
    let value = u32::try_from(value).expect("a disc is small");
    [value.to_le_bytes(), value.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools;

    const FILES: &[(&str, &[u8])] = &[
        ("openstack/latest/user_data", b"user data\n"),
        ("openstack/latest/meta_data.json", &[b'm'; 5000]),
        ("Empty", b""),
    ];

    #[test]
    fn an_independent_prober_knows_it_and_its_label() {
        let scratch = tempfile::tempdir().unwrap();
        let disc = scratch.path().join("disc");
        write(&disc, "config-2", FILES).unwrap();
        let found = tools::run(tools::command("wipefs").unwrap().args(["--no-act", "--json"]).arg(&disc)).unwrap();
        let found = String::from_utf8(found).unwrap();
        assert!(found.contains("\"iso9660\"") && found.contains("\"config-2\""), "{found}");
    }

    #[test]
    fn an_independent_reader_finds_the_files() {
        if nodezero::tools::own_command("isoinfo").is_none() {
            eprintln!("skipped: there is no isoinfo on this machine, and virtual machines read such discs, too");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let disc = scratch.path().join("disc");
        write(&disc, "cidata", FILES).unwrap();
        let isoinfo = |args: &[&str]| {
            let mut command = tools::command("isoinfo").unwrap();
            tools::run(command.arg("-i").arg(&disc).args(args)).unwrap()
        };
        let listed = String::from_utf8(isoinfo(&["-R", "-f"])).unwrap();
        let mut listed: Vec<&str> = listed.lines().collect();
        listed.sort_unstable();
        let expected = ["/Empty", "/openstack", "/openstack/latest"];
        let files = ["/openstack/latest/meta_data.json", "/openstack/latest/user_data"];
        assert_eq!(listed, [&expected[..], &files].concat());
        for (path, content) in FILES {
            assert!(isoinfo(&["-R", "-x", &format!("/{path}")]) == *content, "{path}");
        }
        assert!(String::from_utf8(isoinfo(&["-d"])).unwrap().contains("Volume id: cidata\n"));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let long = "x".repeat(129);
        let many: Vec<String> = (0..30).map(|number| format!("file-{number}")).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
        let label = "l".repeat(33);
        for (label, files, expected) in [
            (label.as_str(), vec![], "label has 33 bytes"),
            ("l", vec![(long.as_str(), &b""[..])], "a name that cannot be"),
            ("l", vec![("a//b", &b""[..])], "a name that cannot be"),
            ("l", many, "at most 2048 fit"),
        ] {
            let error = image(label, &files).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
