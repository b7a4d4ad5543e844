//! Cases of the form "disk before, config, disk after", on files, with the real `sgdisk` and `blkid`. A machine
//! without them skips.

use std::path::PathBuf;

use super::*;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
const ROOT: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
const GUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// Two partitions of 8 MiB with a gap of 8 MiB between, and 40 MiB free at the end.
const TWO: &[&str] = &[
    "--new=1:2048:+16384",
    "--change-name=1:one",
    "--partition-guid=1:01234567-89ab-cdef-0123-456789abcdef",
    "--attributes=1:set:2",
    "--new=2:34816:+16384",
    "--change-name=2:two",
];

fn sgdisk(path: &Path, arguments: &[&str]) {
    let arguments = [arguments, &[path.to_str().expect("UTF-8")]].concat();
    command::run("sgdisk", &arguments, b"", |code| code == 0).expect("sgdisk");
}

fn has_tools() -> bool {
    let found = ["sgdisk", "blkid"].iter().all(|tool| command::run(tool, &["--version"], b"", |_| true).is_ok());
    if !found {
        eprintln!("skipped: sgdisk and blkid are needed");
    }
    found
}

/// A disk in a file. No arguments for `sgdisk`: blank.
fn disk(directory: &tempfile::TempDir, before: &[&str]) -> PathBuf {
    let path = directory.path().join("disk");
    File::create(&path).and_then(|file| file.set_len(SIZE)).expect("sparse file");
    if !before.is_empty() {
        sgdisk(&path, before);
    }
    path
}

fn disk_config(json: &str) -> types::Disk {
    serde_json::from_str(&format!(r#"{{"device":"/dev/none",{json}}}"#)).expect(json)
}

fn run_on(path: &Path, json: &str, usage: &Usage) -> anyhow::Result<()> {
    let file = File::open(path)?;
    let change = plan(&disk_config(json), path, SectorSize::B512, (file, SIZE), usage, Log::Stdout)?;
    change.map_or(Ok(()), |change| write_and_verify(path, SectorSize::B512, &change, Log::Stdout))
}

/// The partitions in MiB, as `number label start+size`, those of the root type with a mark.
fn dump(path: &Path) -> String {
    let table = read_back(path, SectorSize::B512).expect("readable");
    let line = |(number, entry): (&u32, &Entry)| {
        let mib = |sectors: u64| format!("{}", sectors as f64 * 512.0 / MIB as f64);
        let mark = if entry.type_guid.to_string() == ROOT { " root" } else { "" };
        let attributes =
            if entry.attributes == 0 { String::new() } else { format!(" attributes={:x}", entry.attributes) };
        let guid = if entry.guid.to_string() == GUID { " guid" } else { "" };
        format!(
            "{number} {} {}+{}{mark}{guid}{attributes}",
            entry.label,
            mib(entry.place.start),
            mib(entry.place.sectors)
        )
    };
    table.iter().map(line).collect::<Vec<_>>().join("; ")
}

/// The dump of [`TWO`].
const TWO_DUMP: &str = "1 one 1+8 guid attributes=4; 2 two 17+8";

#[test]
fn disks_become_what_the_config_says() {
    if !has_tools() {
        return;
    }
    for (case, before, json, after) in [
        ("blank, no partitions", &[][..], r#""partitions":[]"#, ""),
        (
            "all fields",
            &[],
            r#""partitions":[{"number":1,"label":"data","startMiB":4,"sizeMiB":8,
               "typeGuid":"4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709","guid":"01234567-89AB-CDEF-0123-456789ABCDEF"}]"#,
            "1 data 4+8 root guid",
        ),
        (
            "whole disk",
            &[],
            r#""partitions":[{"number":1,"label":"all","startMiB":0,"sizeMiB":0}]"#,
            "1 all 1+62.98388671875",
        ),
        ("nothing specified", &[], r#""partitions":[{"number":1,"label":"all"}]"#, "1 all 1+62.98388671875"),
        (
            "two in turn",
            &[],
            r#""partitions":[{"number":1,"label":"a","sizeMiB":8},{"number":2,"label":"b"}]"#,
            "1 a 1+8; 2 b 9+54.98388671875",
        ),
        (
            "number zero is the next",
            TWO,
            r#""partitions":[{"number":0,"label":"a","sizeMiB":1},{"label":"b","sizeMiB":1}]"#,
            "1 one 1+8 guid attributes=4; 2 two 17+8; 3 a 25+1; 4 b 26+1",
        ),
        (
            "largest block, not the first",
            TWO,
            r#""partitions":[{"number":3,"label":"a","startMiB":0,"sizeMiB":4}]"#,
            "1 one 1+8 guid attributes=4; 2 two 17+8; 3 a 25+4",
        ),
        (
            "into the gap",
            TWO,
            r#""partitions":[{"number":7,"label":"a","startMiB":10,"sizeMiB":4}]"#,
            "1 one 1+8 guid attributes=4; 2 two 17+8; 7 a 10+4",
        ),
        ("absent and not wanted", TWO, r#""partitions":[{"number":9,"shouldExist":false}]"#, TWO_DUMP),
        (
            "absent and not wanted, wipe",
            TWO,
            r#""partitions":[{"number":9,"shouldExist":false,"wipePartitionEntry":true}]"#,
            TWO_DUMP,
        ),
        (
            "deleted",
            TWO,
            r#""partitions":[{"number":2,"shouldExist":false,"wipePartitionEntry":true}]"#,
            "1 one 1+8 guid attributes=4",
        ),
        ("matches", TWO, r#""partitions":[{"number":1,"label":"one","startMiB":1,"sizeMiB":8}]"#, TWO_DUMP),
        ("matches, wipe", TWO, r#""partitions":[{"number":2,"label":"two","wipePartitionEntry":true}]"#, TWO_DUMP),
        (
            "open size matches what it would be",
            &["--new=1:2048:+0", "--change-name=1:all"],
            r#""partitions":[{"number":1,"label":"all","startMiB":0,"sizeMiB":0}]"#,
            "1 all 1+62.98388671875",
        ),
        (
            "replaced",
            TWO,
            r#""partitions":[{"number":2,"label":"new","sizeMiB":16,"startMiB":20,"wipePartitionEntry":true}]"#,
            "1 one 1+8 guid attributes=4; 2 new 20+16",
        ),
        (
            "replaced where there is most room",
            TWO,
            r#""partitions":[{"number":1,"label":"new","wipePartitionEntry":true}]"#,
            "1 new 25+38.98388671875; 2 two 17+8",
        ),
        (
            "larger",
            TWO,
            r#""partitions":[{"number":1,"sizeMiB":12,"resize":true}]"#,
            "1 one 1+12 guid attributes=4; 2 two 17+8",
        ),
        (
            "to the end",
            TWO,
            r#""partitions":[{"number":2,"sizeMiB":0,"resize":true}]"#,
            "1 one 1+8 guid attributes=4; 2 two 17+46.98388671875",
        ),
        (
            "smaller",
            TWO,
            r#""partitions":[{"number":2,"sizeMiB":4,"resize":true}]"#,
            "1 one 1+8 guid attributes=4; 2 two 17+4",
        ),
        ("table wiped", TWO, r#""wipeTable":true"#, ""),
        (
            "table wiped, partitions",
            TWO,
            r#""wipeTable":true,"partitions":[{"number":2,"label":"new","sizeMiB":4}]"#,
            "2 new 1+4",
        ),
        ("not wiped", TWO, r#""wipeTable":false,"partitions":[]"#, TWO_DUMP),
    ] {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = disk(&directory, before);
        for round in ["first", "second"] {
            if round == "second" && (case.starts_with("number zero") || case.contains("most room")) {
                // A partition without a number is a new one each time, and the largest block is another now.
                continue;
            }
            run_on(&path, json, &Usage::default()).unwrap_or_else(|error| panic!("{case}, {round}: {error:#}"));
            assert_eq!(dump(&path), after, "{case}, {round}");
        }
    }
}

#[test]
fn what_is_refused_changes_nothing() {
    if !has_tools() {
        return;
    }
    let used = || Usage { whole: vec![], partitions: [(2, vec!["is mounted at /x".into()])].into() };
    let held = || Usage { whole: vec!["is held by md0".into()], ..Usage::default() };
    let free = Usage::default;
    for (case, usage, json, expected) in [
        ("there", free(), r#""partitions":[{"number":1,"shouldExist":false}]"#, "wipePartitionEntry is not true"),
        ("label", free(), r#""partitions":[{"number":1,"label":"x"}]"#, "its label is \"one\", specified is \"x\""),
        ("start", free(), r#""partitions":[{"number":1,"startMiB":2}]"#, "its first sector is 2048"),
        ("size", free(), r#""partitions":[{"number":1,"sizeMiB":2}]"#, "its size is 16384 sectors"),
        ("open size", free(), r#""partitions":[{"number":2,"sizeMiB":0}]"#, "its size is 16384 sectors"),
        (
            "size outside the largest block",
            free(),
            r#""partitions":[{"number":3,"startMiB":10,"sizeMiB":0}]"#,
            "asking where partitions would be",
        ),
        ("too large", free(), r#""partitions":[{"number":3,"sizeMiB":100}]"#, "sgdisk"),
        ("overlap", free(), r#""partitions":[{"number":3,"startMiB":20,"sizeMiB":1}]"#, "sgdisk"),
        ("larger than the room", free(), r#""partitions":[{"number":1,"sizeMiB":20,"resize":true}]"#, "sgdisk"),
        (
            "one of two",
            free(),
            r#""partitions":[{"number":3,"sizeMiB":1},{"number":1,"label":"x"}]"#,
            "its label is \"one\"",
        ),
        ("disk in use", held(), r#""partitions":[{"number":3}]"#, "the disk is held by md0"),
        ("wiped in use", used(), r#""wipeTable":true"#, "wipeTable is true, and partition 2 is mounted at /x"),
        (
            "deleted in use",
            used(),
            r#""partitions":[{"number":2,"shouldExist":false,"wipePartitionEntry":true}]"#,
            "partition 2 is deleted, but it is mounted at /x",
        ),
        (
            "resized in use",
            used(),
            r#""partitions":[{"number":2,"sizeMiB":16,"resize":true}]"#,
            "partition 2 is resized, but it is mounted at /x",
        ),
    ] {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = disk(&directory, TWO);
        let before = std::fs::read(&path).expect("readable");
        let error = run_on(&path, json, &usage).expect_err(case);
        let error = format!("{error:#}");
        assert!(error.contains(expected), "{case}: {error}");
        assert!(std::fs::read(&path).expect("readable") == before, "{case}: the disk changed");
    }
    // Beside a partition that is in use, others may be made.
    let directory = tempfile::tempdir().expect("tempdir");
    let path = disk(&directory, TWO);
    run_on(&path, r#""partitions":[{"number":3,"label":"a","sizeMiB":1}]"#, &used()).expect("possible");
    assert_eq!(dump(&path), format!("{TWO_DUMP}; 3 a 25+1"));
}

/// Writes bytes into a disk.
fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("writable");
    file.write_all_at(bytes, offset).expect("written");
}

#[test]
fn what_is_no_sound_table_is_refused_unless_it_is_wiped() {
    if !has_tools() {
        return;
    }
    let mbr = |path: &Path| {
        let mut sector = [0; 512];
        // One partition of type 0x83, from sector 2048 on.
        sector[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        write_at(path, 0, &sector);
    };
    let primary = |path: &Path| write_at(path, 512 + 40, &[0xff; 8]);
    let both = |path: &Path| {
        write_at(path, 512 + 40, &[0xff; 8]);
        write_at(path, SIZE - 512 + 40, &[0xff; 8]);
    };
    // The magic number of swap space, with a version, at the end of the first page.
    let swap = |path: &Path| {
        write_at(path, 1024, &[1, 0, 0, 0, 0xff, 0x3f, 0, 0]);
        write_at(path, 4096 - 10, b"SWAPSPACE2");
    };
    type Damage<'a> = (&'a str, &'a [&'a str], &'a dyn Fn(&Path), &'a str);
    let cases: &[Damage<'_>] = &[
        ("MBR", &[], &mbr, "the disk holds a dos partition table, and wipeTable is not true"),
        ("primary damaged", TWO, &primary, "the disk holds a GPT in disorder (primary table damaged"),
        ("both damaged", TWO, &both, "the disk holds"),
        ("swap space", &[], &swap, "the disk holds swap"),
    ];
    for (case, before, damage, expected) in cases {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = disk(&directory, before);
        damage(&path);
        let content = std::fs::read(&path).expect("readable");
        let json = r#""partitions":[{"number":1,"label":"x","sizeMiB":1}]"#;
        let error = format!("{:#}", run_on(&path, json, &Usage::default()).expect_err(case));
        assert!(error.contains(expected), "{case}: {error}");
        assert!(std::fs::read(&path).expect("readable") == content, "{case}: the disk changed");
        run_on(&path, &format!(r#""wipeTable":true,{json}"#), &Usage::default())
            .unwrap_or_else(|error| panic!("{case}, wiped: {error:#}"));
        assert_eq!(dump(&path), "1 x 1+1", "{case}, wiped");
    }
}

#[test]
fn a_disk_that_grew_is_taken_with_a_warning() {
    if !has_tools() {
        return;
    }
    let directory = tempfile::tempdir().expect("tempdir");
    let path = disk(&directory, TWO);
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("writable");
    file.set_len(2 * SIZE).expect("grown");
    let config = disk_config(r#""partitions":[{"number":3,"label":"a","sizeMiB":1}]"#);
    let open = (File::open(&path).expect("readable"), 2 * SIZE);
    let change = plan(&config, &path, SectorSize::B512, open, &Usage::default(), Log::Stdout).expect("possible");
    write_and_verify(&path, SectorSize::B512, &change.expect("a change"), Log::Stdout).expect("written");
    assert_eq!(dump(&path), format!("{TWO_DUMP}; 3 a 25+1"));
}
