//! Hash areas against known root hashes, against `veritysetup`, and tampered with at every level.

use std::fs::File;
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use verity::hash_tree::{build, hash_area_size, read_superblock, verify};
use verity::{Area, AreaKind, Error, Place, RootHash, Superblock};

const SIZES: [u64; 7] = [1, 2, 127, 128, 129, 128 * 128, 128 * 128 + 1];
const UUID: [u8; 16] = [0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
const UUID_TEXT: &str = "00112233-4455-6677-8899-aabbccddeeff";
const THREADS: NonZeroUsize = NonZeroUsize::new(3).unwrap();

/// A file of blocks that all differ.
fn patterned(path: &Path, blocks: u64) -> File {
    let mut content = Vec::new();
    for block in 0..blocks {
        let mut state = block + 1;
        for _ in 0..512 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            content.extend((state ^ state >> 33).to_le_bytes());
        }
    }
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    file.write_all(&content).unwrap();
    file
}

/// Builds the tree of `data` into the file `path`.
fn build_file(data: &File, salt: &[u8], path: &Path) -> (File, RootHash) {
    let data = Area::whole(data).unwrap();
    let superblock = Superblock::new(UUID, data.length() / 4096, salt).unwrap();
    let mut area = Vec::new();
    let root = build(data, &superblock, &mut area, THREADS).unwrap();
    assert_eq!(area.len() as u64, superblock.hash_area_size());
    std::fs::write(path, area).unwrap();
    (File::options().read(true).write(true).open(path).unwrap(), root)
}

fn verify_files(data: &File, hash: &File, root: &RootHash) -> Result<Superblock, Error> {
    verify(Area::whole(data).unwrap(), Area::whole(hash).unwrap(), root, THREADS)
}

fn flip(file: &File, offset: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs `veritysetup`; `None` when it is not installed, which CI does not accept.
fn veritysetup(arguments: &[&str]) -> Option<std::process::Output> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    match Command::new("veritysetup").args(arguments).env("PATH", path).env("LC_ALL", "C").output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var_os("CI").is_none(), "veritysetup is needed in CI");
            eprintln!("skipped: veritysetup is not installed");
            None
        }
        Err(error) => panic!("running veritysetup: {error}"),
    }
}

/// The value of a `Name: value` line of veritysetup's output.
fn value_of(output: &std::process::Output, name: &str) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim_start_matches(':').trim().to_owned()
}

#[test]
fn zeros_have_known_root_hashes() {
    // From `veritysetup format --salt 0011223344556677` of cryptsetup 2.6.1.
    let expected = [
        "23a19f0549353c5af0804c2ffbe69945d7192267dc7c8f3e956313b5f6cd66ac",
        "a39fe625c3696bf97473c2e58a6a810333eed56f37646af1c0d4b39ed8039883",
        "55aa035f4eb023131bd6ca183f931bb1f2cd948a334274a36fc3a318b11a55b4",
        "41a9f7b47c02e15f260024256abb69dc4817e854cfea6750ad19465e82d1ae0e",
        "f9d6f7f3f05332d289912d32a972054979ee0c1aeea0e0258943ed944218483b",
        "0d930be4a19a9c6634234330283ecb43fa714330af389976839070ed9c574431",
        "51b1344efef54f29b8c6dd4fcc4030b4c8be09f9cf07a3f3e9fc907344627fd7",
    ];
    let directory = tempfile::tempdir().unwrap();
    for (blocks, expected) in SIZES.into_iter().zip(expected) {
        let data = tempfile::tempfile().unwrap();
        data.set_len(blocks * 4096).unwrap();
        let (_, root) =
            build_file(&data, &[0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77], &directory.path().join("h"));
        assert_eq!(root.to_string(), expected, "{blocks} blocks");
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let data = patterned(&directory.path().join("data"), 1000);
    let superblock = Superblock::new(UUID, 1000, b"salt").unwrap();
    let outputs = [1, 2, 7, 64].map(|threads| {
        let mut area = Vec::new();
        let threads = NonZeroUsize::new(threads).unwrap();
        (build(Area::whole(&data).unwrap(), &superblock, &mut area, threads).unwrap(), area)
    });
    assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn areas_may_lie_inside_a_disk_image() {
    let directory = tempfile::tempdir().unwrap();
    let data = patterned(&directory.path().join("data"), 130);
    let (hash, root) = build_file(&data, b"s", &directory.path().join("hash"));
    let mut image = vec![0xee; 4096];
    image.extend(std::fs::read(directory.path().join("data")).unwrap());
    let hash_start = image.len() as u64 + 512;
    image.extend([0xdd; 512]);
    image.extend(std::fs::read(directory.path().join("hash")).unwrap());
    image.extend([0xcc; 8192]);
    std::fs::write(directory.path().join("image"), &image).unwrap();
    let image = File::open(directory.path().join("image")).unwrap();
    let hash_length = hash.metadata().unwrap().len() + 8192;
    let found = verify(Area::new(&image, 4096, 131 * 4096), Area::new(&image, hash_start, hash_length), &root, THREADS);
    assert_eq!(found.unwrap().data_blocks(), 130);
}

#[test]
fn veritysetup_agrees() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    for blocks in SIZES {
        for salt in [&[][..], &[0xa5; 32], &[0x3c; 256]] {
            let case = format!("{blocks} blocks, salt of {} bytes", salt.len());
            let data = patterned(Path::new(&path("data")), blocks);
            let (hash, root) = build_file(&data, salt, Path::new(&path("ours")));
            let _ = std::fs::remove_file(path("theirs"));
            let salt_text = if salt.is_empty() { "-".to_owned() } else { hex(salt) };
            let uuid = format!("--uuid={UUID_TEXT}");
            let salt_argument = format!("--salt={salt_text}");
            let Some(format) = veritysetup(&["format", &uuid, &salt_argument, &path("data"), &path("theirs")]) else {
                return;
            };
            assert!(format.status.success(), "{case}: {format:?}");
            assert_eq!(root.to_string(), value_of(&format, "Root hash"), "{case}");
            assert_eq!(std::fs::read(path("ours")).unwrap(), std::fs::read(path("theirs")).unwrap(), "{case}");

            let theirs = File::open(path("theirs")).unwrap();
            let superblock = verify_files(&data, &theirs, &root).unwrap();
            assert_eq!(
                (superblock.uuid(), superblock.data_blocks(), superblock.salt()),
                (UUID, blocks, salt),
                "{case}"
            );

            let dump = veritysetup(&["dump", &path("ours")]).unwrap();
            assert_eq!(value_of(&dump, "UUID"), UUID_TEXT, "{case}");
            assert_eq!(value_of(&dump, "Data blocks"), blocks.to_string(), "{case}");
            assert_eq!(value_of(&dump, "Salt"), salt_text, "{case}");

            let accepted = veritysetup(&["verify", &path("data"), &path("ours"), &root.to_string()]).unwrap();
            assert!(accepted.status.success(), "{case}: {accepted:?}");
            flip(&hash, hash_area_size(blocks) - 4000);
            if blocks > 1 {
                let refused = veritysetup(&["verify", &path("data"), &path("ours"), &root.to_string()]).unwrap();
                assert!(!refused.status.success(), "{case}: a flipped bit");
            }
        }
    }
}

#[test]
fn a_flipped_bit_is_found_at_every_level() {
    let directory = tempfile::tempdir().unwrap();
    let blocks = 128 * 128 + 1;
    let data = patterned(&directory.path().join("data"), blocks);
    let (hash, root) = build_file(&data, b"salt", &directory.path().join("hash"));
    assert_eq!(verify_files(&data, &hash, &root).unwrap().data_blocks(), blocks);
    // The area: superblock, top (level 2), 2 blocks of level 1, 129 of level 0.
    let cases = [
        (&data, 0, Place::Data, 0),
        (&data, 4096 * 700 + 4095, Place::Data, 700),
        (&data, 4096 * (blocks - 1), Place::Data, blocks - 1),
        (&hash, 4096 * 4, Place::Level(0), 0),
        (&hash, 4096 * 4 + 4096 * 77 + 32, Place::Level(0), 77),
        (&hash, 4096 * 4 + 4096 * 128 + 4000, Place::Level(0), 128),
        (&hash, 4096 * 2, Place::Level(1), 0),
        (&hash, 4096 * 3 + 2000, Place::Level(1), 1),
    ];
    for (file, offset, place, block) in cases {
        flip(file, offset);
        let error = verify_files(&data, &hash, &root).unwrap_err();
        let start = offset / 4096 * 4096;
        match &error {
            Error::Corrupt { place: p, block: b, offset: o, found, expected } => {
                assert_eq!((*p, *b, *o), (place, block, start), "{error}");
                assert_ne!(found, expected);
                assert!(error.to_string().contains(&format!("has digest {found}, expected {expected}")), "{error}");
            }
            error => panic!("{place} block {block}: {error}"),
        }
        flip(file, offset);
    }
    flip(&hash, 4096 + 5);
    let error = verify_files(&data, &hash, &root).unwrap_err();
    assert!(matches!(error, Error::RootHash { expected, found } if expected == root && found != root), "{error}");
    flip(&hash, 4096 + 5);

    // Two bad blocks: the first is named, whichever thread meets it.
    flip(&data, 4096 * 9000);
    flip(&data, 4096 * 300);
    assert!(matches!(verify_files(&data, &hash, &root), Err(Error::Corrupt { block: 300, .. })));
    flip(&data, 4096 * 9000);
    flip(&data, 4096 * 300);
    assert!(verify_files(&data, &hash, &root).is_ok());
}

#[test]
fn one_block_is_checked_against_the_root_hash_itself() {
    let directory = tempfile::tempdir().unwrap();
    let data = patterned(&directory.path().join("data"), 1);
    let (hash, root) = build_file(&data, b"", &directory.path().join("hash"));
    assert_eq!(hash.metadata().unwrap().len(), 4096);
    flip(&data, 4095);
    assert!(matches!(verify_files(&data, &hash, &root), Err(Error::RootHash { expected, .. }) if expected == root));
}

#[test]
fn superblocks_that_do_not_match_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let data = patterned(&directory.path().join("data"), 130);
    let (hash, root) = build_file(&data, b"salt", &directory.path().join("hash"));
    let cases: [(u64, u8, &str); 5] = [
        (0, b'V', "no verity superblock: signature is Verity\\x00\\x00"),
        (73, 1, "data area is 532480 bytes, the superblock needs 1581056"),
        (80, 3, "superblock's reserved byte 91 is not zero"),
        // A longer salt takes in the zeros behind it; a changed one, like it, gives other digests.
        (80, 5, "root hash is "),
        (88, b'S', "root hash is "),
    ];
    let intact = std::fs::read(directory.path().join("hash")).unwrap();
    for (offset, value, expected) in cases {
        hash.write_all_at(&[value], offset).unwrap();
        let message = verify_files(&data, &hash, &root).expect_err(expected).to_string();
        assert!(message.starts_with(expected), "byte {offset}: {message}");
        hash.write_all_at(&intact, 0).unwrap();
    }
    assert!(verify_files(&data, &hash, &root).is_ok());
    let other: RootHash = "00".repeat(32).parse().unwrap();
    assert!(matches!(verify_files(&data, &hash, &other), Err(Error::RootHash { found, .. }) if found == root));
}

#[test]
fn short_areas_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let data = patterned(&directory.path().join("data"), 130);
    let (hash, root) = build_file(&data, b"salt", &directory.path().join("hash"));
    let (data_length, hash_length) = (130 * 4096, hash_area_size(130));
    let outcome = |data_area, hash_area| verify(data_area, hash_area, &root, THREADS).unwrap_err();
    let whole = Area::whole(&hash).unwrap();

    let error = outcome(Area::new(&data, 0, data_length - 1), whole);
    assert!(matches!(error, Error::AreaTooShort { area: AreaKind::Data, .. }), "{error}");
    let error = outcome(Area::whole(&data).unwrap(), Area::new(&hash, 0, hash_length - 1));
    assert!(matches!(error, Error::AreaTooShort { area: AreaKind::Hash, .. }), "{error}");
    let error = outcome(Area::whole(&data).unwrap(), Area::new(&hash, 0, 511));
    assert!(matches!(error, Error::Read { area: AreaKind::Hash, offset: 0, .. }), "{error}");
    // The area claims more than the file has.
    data.set_len(data_length - 4096).unwrap();
    let error = outcome(Area::new(&data, 0, data_length), whole);
    assert!(matches!(error, Error::Read { area: AreaKind::Data, offset: 0, .. }), "{error}");
    let superblock = read_superblock(whole).unwrap();
    let error = build(Area::new(&data, 0, 129 * 4096), &superblock, &mut Vec::new(), THREADS).unwrap_err();
    assert_eq!(error.to_string(), "data area is 528384 bytes, expected 532480");
}
