//! The stages on loop devices, with the real tools. Without root, loop devices or a tool they skip and say why.

use std::fs::{self, File};

use sha2::{Digest, Sha256};

use super::*;
use crate::ignition::stages::{State, mount};

const MIB: u64 = 1 << 20;

/// A loop device over a sparse file, taken away when dropped.
struct Loop {
    path: String,
    _directory: tempfile::TempDir,
}

impl Loop {
    fn new(mib: u64, sector: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: loop devices need root");
            return None;
        }
        for tool in ["losetup", "sgdisk", "partx", "blkid", "wipefs", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mkfs.fat"]
        {
            if !is_in_path(tool) {
                eprintln!("skipped: {tool} is not there");
                return None;
            }
        }
        let directory = tempfile::tempdir().expect("tempdir");
        let file = directory.path().join("disk");
        File::create(&file).and_then(|file| file.set_len(mib * MIB)).expect("sparse file");
        let (file, sector) = (file.to_str().expect("UTF-8"), sector.to_string());
        let path = match program("losetup", &["--find", "--show", "--sector-size", &sector, file]) {
            Ok(path) => path.trim().to_owned(),
            Err(error) => {
                eprintln!("skipped: no loop device: {error}");
                return None;
            }
        };
        Some(Self { path, _directory: directory })
    }

    /// The device file of a partition.
    fn part(&self, number: u32) -> String {
        format!("{}p{number}", self.path)
    }

    /// A digest of the whole content.
    fn content(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        let mut device = File::open(&self.path).expect("there");
        std::io::copy(&mut device, &mut digest).expect("readable");
        digest.finalize().into()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = program("partx", &["--delete", &self.path]);
        let _ = program("losetup", &["--detach", &self.path]);
    }
}

fn program(name: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = crate::command::run(name, arguments, b"", |code| code == 0)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Parses a storage section, `DISK` in it replaced.
fn config(disk: &str, storage: &str) -> Config {
    let json = format!(r#"{{"ignition":{{"version":"3.6.0"}},"storage":{{{storage}}}}}"#);
    serde_json::from_str(&json.replace("DISK", disk)).expect("a config")
}

fn with_stage<T>(root: &Path, act: impl FnOnce(&mut Stage<'_>) -> T) -> (T, State) {
    let fetcher = Fetcher::new(&Default::default(), None, Log::Stdout).expect("a fetcher");
    let mut state = State::default();
    let mut stage = Stage { root, fetcher: &fetcher, log: Log::Stdout, state: &mut state };
    (act(&mut stage), state)
}

fn run_stage(config: &Config) -> anyhow::Result<State> {
    let (result, state) = with_stage(Path::new("/"), |stage| run(stage, config));
    result.map(|()| state)
}

const EVERY_FORMAT: &str = r#"
    "disks": [{"device": "DISK", "wipeTable": true, "partitions": [
        {"number": 1, "label": "a", "sizeMiB": 64},
        {"number": 2, "label": "b", "sizeMiB": 400},
        {"number": 3, "label": "c", "sizeMiB": 64},
        {"number": 4, "label": "d", "sizeMiB": 256},
        {"number": 5, "label": "e", "sizeMiB": 16},
        {"number": 6, "label": "f"}]}],
    "filesystems": [
        {"device": "DISKp1", "format": "ext4", "path": "/a", "label": "one", "options": ["-O", "^has_journal"],
         "uuid": "F90BB1AC-4F94-4DBB-8EC3-8C8F2F9E9C0D", "mountOptions": ["noatime", "nosuid"]},
        {"device": "DISKp2", "format": "xfs", "path": "/a/b/c", "label": "two",
         "uuid": "f90bb1ac-4f94-4dbb-8ec3-8c8f2f9e9c0e"},
        {"device": "DISKp3", "format": "vfat", "label": "THREE", "uuid": "A1B2-C3D4"},
        {"device": "DISKp4", "format": "btrfs", "path": "/d", "label": "four",
         "uuid": "f90bb1ac-4f94-4dbb-8ec3-8c8f2f9e9c0f"},
        {"device": "DISKp5", "format": "swap", "path": "/swap", "label": "five",
         "uuid": "f90bb1ac-4f94-4dbb-8ec3-8c8f2f9e9c10"},
        {"device": "DISKp6", "format": "none"}]"#;

/// What is on a partition, as `kind label uuid`.
fn found(path: &str) -> String {
    match probe::probe(Path::new(path)).expect("readable") {
        probe::Content::Found(found) => format!("{} {} {}", found.kind, found.label, found.uuid),
        other => other.describe(),
    }
}

#[test]
fn every_format_is_made_kept_and_mounted() {
    let Some(disk) = Loop::new(832, 512) else { return };
    let first = config(&disk.path, EVERY_FORMAT);
    run_stage(&first).expect("made");
    let expected = [
        "ext4 one f90bb1ac-4f94-4dbb-8ec3-8c8f2f9e9c0d",
        "xfs two f90bb1ac-4f94-4dbb-8ec3-8c8f2f9e9c0e",
        "vfat THREE A1B2-C3D4",
        "btrfs four f90bb1ac-4f94-4dbb-8ec3-8c8f2f9e9c0f",
        "swap five f90bb1ac-4f94-4dbb-8ec3-8c8f2f9e9c10",
        "nothing",
    ];
    for (number, expected) in (1..).zip(expected) {
        assert_eq!(found(&disk.part(number)), expected, "partition {number}");
    }
    let features = program("dumpe2fs", &["-h", &disk.part(1)]).expect("dumpe2fs");
    assert!(!features.contains("has_journal"), "the options count");

    let root = tempfile::tempdir().expect("tempdir");
    with_stage(root.path(), |stage| mount::mount(stage, &first)).0.expect("mounted");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let of = |at: &str| {
        let at = format!(" {} ", root.path().join(at).display());
        mounts.lines().find(|line| line.contains(&at)).map(str::to_owned).unwrap_or_default()
    };
    assert!(of("a").contains("nosuid,noatime") && of("a").contains("ext4"), "{}", of("a"));
    assert!(of("a/b/c").contains("xfs") && of("d").contains("btrfs"), "{mounts}");
    assert!(!root.path().join("swap").exists(), "swap space is not mounted");
    let used = Device::find(Path::new(&disk.path)).and_then(|device| device.usage()).expect("known");
    assert_eq!(used.partitions.keys().copied().collect::<Vec<_>>(), [1, 2, 4]);
    let error = format!("{:#}", run_stage(&first).expect_err("in use"));
    assert!(error.contains("wipeTable is true, and partition 1 is mounted at "), "{error}");
    fs::write(root.path().join("a/b/c/kept"), "data").expect("written");
    with_stage(root.path(), |stage| mount::umount(stage, &first)).0.expect("unmounted");
    assert!(
        !fs::read_to_string("/proc/self/mountinfo").expect("readable").contains(root.path().to_str().expect("UTF-8"))
    );

    let second = config(&disk.path, &EVERY_FORMAT.replace(r#""wipeTable": true, "#, ""));
    let before = disk.content();
    run_stage(&second).expect("kept");
    assert!(disk.content() == before, "the second run changes nothing");
}

#[test]
fn what_is_refused_is_refused_before_anything_is_written() {
    let Some(disk) = Loop::new(96, 512) else { return };
    let made = r#""disks": [{"device": "DISK", "partitions": [{"number": 1, "label": "a", "sizeMiB": 32}]}],
                  "filesystems": [{"device": "DISKp1", "format": "ext4", "label": "one"}]"#;
    run_stage(&config(&disk.path, made)).expect("made");
    let two = r#""disks": [{"device": "DISK", "partitions": [{"number": 1, "label": "a"},
                 {"number": 2, "label": "b"}]}], "filesystems": [{"device": "DISKp1", "#;
    let close = "}]";
    let before = disk.content();
    for (case, filesystem, expected) in [
        ("format", r#""format": "vfat""#, "storage.filesystems.0"),
        ("label", r#""format": "ext4", "label": "two""#, "it holds ext4 version 1.0 with label \"one\""),
        ("uuid", r#""format": "ext4", "uuid": "f90bb1ac-4f94-4dbb-8ec3-8c8f2f9e9c0d""#, "wipeFilesystem is not true"),
        ("none", r#""format": "none""#, "wipeFilesystem is not true"),
        (
            "format unknown",
            r#""format": "reiserfs", "wipeFilesystem": true"#,
            "the format \"reiserfs\" is not supported",
        ),
    ] {
        let config = config(&disk.path, &format!("{two}{filesystem}{close}"));
        let error = format!("{:#}", run_stage(&config).expect_err(case));
        assert!(error.contains(expected), "{case}: {error}");
        assert!(disk.content() == before, "{case}: the disk changed");
    }
    let volume = r#""luks": [{"name": "x", "device": "DISKp1"}]"#;
    let array = r#""raid": [{"name": "x", "level": "raid1", "devices": ["DISKp1", "DISK"]}]"#;
    for (case, storage, tool, expected) in
        [("luks", volume, "cryptsetup", "wipeVolume is not true"), ("raid", array, "mdadm", "DISKp1 holds ext4")]
    {
        if is_in_path(tool) {
            let error = format!("{:#}", run_stage(&config(&disk.path, storage)).expect_err(case));
            assert!(error.contains(&expected.replace("DISK", &disk.path)), "{case}: {error}");
            assert!(disk.content() == before, "{case}: the disk changed");
        }
    }
    // With consent, each becomes what the config says.
    for (filesystem, expected) in [
        (r#""format": "vfat", "wipeFilesystem": true, "label": "NEW", "uuid": "A1B2C3D4""#, "vfat NEW A1B2-C3D4"),
        (r#""format": "none", "wipeFilesystem": true"#, "nothing"),
    ] {
        run_stage(&config(&disk.path, &format!("{two}{filesystem}{close}"))).expect(expected);
        assert_eq!(found(&disk.part(1)), expected);
    }
}

#[test]
fn partitions_beside_one_in_use_are_made_and_shown() {
    let Some(disk) = Loop::new(256, 512) else { return };
    let made = r#""disks": [{"device": "DISK", "partitions": [{"number": 1, "label": "a", "sizeMiB": 32},
                  {"number": 2, "sizeMiB": 8}]}],
                  "filesystems": [{"device": "DISKp1", "format": "ext4", "path": "/"}]"#;
    let made = config(&disk.path, made);
    run_stage(&made).expect("made");
    let root = tempfile::tempdir().expect("tempdir");
    with_stage(root.path(), |stage| mount::mount(stage, &made)).0.expect("mounted");
    let changed = r#""disks": [{"device": "DISK", "partitions": [{"number": 3, "label": "c", "sizeMiB": 16},
        {"number": 2, "sizeMiB": 64, "resize": true},
        {"number": 1, "label": "a"}]}]"#;
    let result = run_stage(&config(&disk.path, changed));
    let smaller = r#""disks": [{"device": "DISK", "partitions": [{"number": 1, "sizeMiB": 16, "resize": true}]}]"#;
    let refused = run_stage(&config(&disk.path, smaller));
    with_stage(root.path(), |stage| mount::umount(stage, &made)).0.expect("unmounted");
    // The third lies in the largest block, right after the second, which therefore cannot grow.
    assert!(result.is_err(), "no room");
    let error = format!("{:#}", refused.expect_err("in use"));
    assert!(error.contains("partition 1 is resized, but it is mounted at "), "{error}");

    with_stage(root.path(), |stage| mount::mount(stage, &made)).0.expect("mounted");
    let changed = r#""disks": [{"device": "DISK", "partitions": [{"number": 2, "sizeMiB": 64, "resize": true},
        {"number": 3, "label": "c", "sizeMiB": 16}]}]"#;
    let result = run_stage(&config(&disk.path, changed));
    with_stage(root.path(), |stage| mount::umount(stage, &made)).0.expect("unmounted");
    result.expect("made beside the one in use");
    let shown = Device::find(Path::new(&disk.path)).expect("there").shown_partitions();
    let mib = 2048;
    assert_eq!(shown, [(1, (mib, 32 * mib)), (2, (33 * mib, 64 * mib)), (3, (97 * mib, 16 * mib))].into());
}

#[test]
fn sectors_of_4096_bytes_count() {
    let Some(disk) = Loop::new(512, 4096) else { return };
    let storage = r#""disks": [{"device": "DISK", "partitions": [
        {"number": 1, "label": "a", "startMiB": 8, "sizeMiB": 64}, {"number": 2, "label": "b"}]}],
        "filesystems": [{"device": "/dev/disk/by-partlabel/nz-4kn-x", "format": "ext4", "wipeFilesystem": true}]"#;
    let storage = storage.replace("\"b\"", "\"nz-4kn-x\"");
    run_stage(&config(&disk.path, &storage)).expect("made");
    let shown = Device::find(Path::new(&disk.path)).expect("there").shown_partitions();
    assert_eq!(shown[&1], (8 * 2048, 64 * 2048), "in units of 512 bytes");
    assert_eq!(shown[&2].0, 72 * 2048);
    assert!(found(&disk.part(2)).starts_with("ext4 "), "found by its label");
}

#[test]
fn arrays_are_made_and_kept() {
    if !Path::new("/proc/mdstat").exists() || !is_in_path("mdadm") {
        eprintln!("skipped: no md in this kernel, or no mdadm");
        return;
    }
    let Some(disk) = Loop::new(256, 512) else { return };
    let storage = r#""disks": [{"device": "DISK", "partitions": [{"number": 1, "sizeMiB": 64},
                     {"number": 2, "sizeMiB": 64}]}],
        "raid": [{"name": "nz-try", "level": "raid1", "devices": ["DISKp1", "DISKp2"], "options": ["--bitmap=none"]}],
        "filesystems": [{"device": "/dev/md/nz-try", "format": "ext4", "label": "array"}]"#;
    let config = config(&disk.path, storage);
    for round in ["made", "kept", "started"] {
        run_stage(&config).unwrap_or_else(|error| panic!("{round}: {error:#}"));
        assert!(found("/dev/md/nz-try").starts_with("ext4 array "), "{round}");
        if round != "made" {
            program("mdadm", &["--stop", "/dev/md/nz-try"]).expect("stopped");
        }
    }
}

#[test]
fn volumes_are_made_and_reused() {
    // The device file alone may be there without the kernel's part.
    let misc = fs::read_to_string("/proc/misc").unwrap_or_default();
    if !misc.contains("device-mapper") || !is_in_path("cryptsetup") {
        eprintln!("skipped: no device mapper, or no cryptsetup");
        return;
    }
    let Some(disk) = Loop::new(128, 512) else { return };
    let storage = r#""luks": [{"name": "nz-try", "device": "DISK", "label": "crypt", "discard": true,
            "keyFile": {"source": "data:,a%20key"}, "options": ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"],
            "uuid": "f90bb1ac-4f94-4dbb-8ec3-8c8f2f9e9c0d"}],
        "filesystems": [{"device": "/dev/mapper/nz-try", "format": "ext4", "label": "inside"}]"#;
    let good = config(&disk.path, storage);
    for round in ["made", "open", "reused"] {
        let state = run_stage(&good).unwrap_or_else(|error| panic!("{round}: {error:#}"));
        assert!(found("/dev/mapper/nz-try").starts_with("ext4 inside "), "{round}");
        assert_eq!(state.luks_key_files[Path::new("/etc/luks/nz-try")], "YSBrZXk=", "{round}");
        if round != "made" {
            program("cryptsetup", &["close", "nz-try"]).expect("closed");
        }
    }
    let before = disk.content();
    for (case, storage, expected) in [
        ("key", storage.replace("a%20key", "b"), "trying the key"),
        ("label", storage.replace("\"crypt\"", "\"other\""), "its label is \"crypt\", specified is \"other\""),
        ("discard", storage.replace("\"discard\": true", "\"discard\": false"), "discarding is set to true"),
    ] {
        let error = format!("{:#}", run_stage(&config(&disk.path, &storage)).expect_err(case));
        assert!(error.contains(expected), "{case}: {error}");
        assert!(!error.contains("a key"), "{case}: no secret in {error}");
        assert!(disk.content() == before, "{case}: the disk changed");
    }
}

#[test]
fn programs_are_required_by_field() {
    let storage = |json: &str| serde_json::from_str::<Storage>(json).expect("a storage section");
    for (json, expected) in [
        (r#"{"disks":[{"device":"/dev/none"}]}"#, &["blkid storage"][..]),
        (
            r#"{"disks":[{"device":"/dev/none","wipeTable":true}]}"#,
            &["blkid storage", "partx storage.disks", "sgdisk storage.disks"],
        ),
        (r#"{"raid":[{"name":"x"}]}"#, &["blkid storage", "mdadm storage.raid"]),
        (
            r#"{"luks":[{"name":"x","wipeVolume":true,"clevis":{"tpm2":true}}]}"#,
            &[
                "blkid storage",
                "clevis storage.luks.0.clevis",
                "cryptsetup storage.luks.0",
                "wipefs storage.luks.0.wipeVolume",
            ],
        ),
    ] {
        let needed = needed_programs(&storage(json));
        let needed: Vec<String> = needed.into_iter().map(|(program, field)| format!("{program} {field}")).collect();
        assert_eq!(needed, expected, "{json}");
    }
    for (format, action, expected) in [
        ("swap", Some(Action::Keep), &[][..]),
        ("swap", Some(Action::Make), &["mkswap", "wipefs"]),
        ("vfat", None, &["mkfs.fat", "wipefs"]),
        ("none", Some(Action::Wipe), &["wipefs"]),
    ] {
        let config = Filesystem { format: Some(format.into()), ..Filesystem::new("/dev/none".into()) };
        assert_eq!(filesystem_programs(&config, action), expected, "{format} {action:?}");
    }
    assert!(is_in_path("sh") && !is_in_path("there-is-no-such-program"));
}

#[test]
fn devices_that_the_config_makes_are_not_waited_for() {
    let storage: Storage = serde_json::from_str(
        r#"{"disks":[{"device":"/dev/none","partitions":[{"number":1}]}],"raid":[{"name":"md"}],"luks":[{"name":"c"}]}"#,
    )
    .expect("a storage section");
    let plan = Plan { disks: vec![], raid: &[], volumes: vec![], filesystems: &[] };
    for (path, expected) in [
        ("/dev/none1", true),
        ("/dev/nonep1", true),
        ("/dev/none-part1", true),
        ("/dev/none", false),
        ("/dev/nonesuch", false),
        ("/dev/other1", false),
        ("/dev/disk/by-partlabel/x", true),
        ("/dev/disk/by-id/ata-x", false),
        ("/dev/disk/by-id/ata-x-part2", true),
        ("/dev/md/md", true),
        ("/dev/md/other", false),
        ("/dev/mapper/c", true),
        ("/dev/mapper/d", false),
        ("/dev/disk/by-id/dm-name-c", true),
        ("/dev/disk/by-label/x", true),
    ] {
        assert_eq!(plan.is_made_here(&storage, Path::new(path)), expected, "{path}");
    }
    let none = Storage::default();
    assert!(!plan.is_made_here(&none, Path::new("/dev/disk/by-label/x")), "nothing is made");
}

#[test]
fn nothing_to_do_needs_nothing() {
    for storage in ["", r#""disks":[],"filesystems":[]"#, r#""files":[{"path":"/x"}]"#] {
        run_stage(&config("", storage)).unwrap_or_else(|error| panic!("{storage}: {error:#}"));
    }
    run_stage(&Config::default()).expect("no storage");
}
