//! Images as squashfs-tools sees them, as our reader sees them, and damaged.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::Cursor,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::Path,
    process::Command,
};

use rootfs::{
    Content, Directory, Error, FileId, Meta, Node, Pack, PackId, PackOptions, PackWriter, Tree,
    squashfs::{
        ImageSummary, Options,
        read::{Entry, Image, Kind},
        write_image, write_image_at,
    },
    tree::DeviceKind,
};

const BLOCK: u32 = 4096;
const OPTIONS: Options = Options { block_size: BLOCK, mtime: 1_700_000_000, level: 3, threads: 2 };

/// A small generator of numbers that are the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    /// Text, noise, zeros, or all of them.
    fn content(&mut self, len: usize) -> Vec<u8> {
        let kind = self.below(4);
        let mut out = vec![0; len];
        for (index, chunk) in out.chunks_mut(5000).enumerate() {
            match (kind, index % 3) {
                (0, _) | (3, 0) => chunk.fill_with(|| b'a' + self.below(6) as u8),
                (1, _) | (3, 1) => chunk.fill_with(|| self.below(256) as u8),
                _ => {}
            }
        }
        out
    }
}

/// Fills a pack with contents and says where they are.
struct Packing {
    writer: PackWriter<Cursor<Vec<u8>>>,
    index: u32,
}

impl Packing {
    fn new(index: u32) -> Packing {
        let options = PackOptions { block_size: BLOCK, level: 3 };
        Packing { writer: PackWriter::new(Cursor::new(Vec::new()), options).unwrap(), index }
    }

    fn add(&mut self, content: &[u8]) -> Content {
        let file = self.writer.add(&mut &content[..], content.len() as u64).unwrap();
        let (digest, size) = (rootfs::Digest::of(content), content.len() as u64);
        Content::Packed { digest, size, pack: PackId::new(self.index), file }
    }

    fn finish(self) -> Vec<u8> {
        self.writer.finish(b"").unwrap().0.into_inner()
    }
}

fn image(tree: &Tree, packs: &[Pack], options: &Options) -> (Vec<u8>, ImageSummary) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let summary = write_image(tree, packs, file.as_file(), options).unwrap();
    (fs::read(file.path()).unwrap(), summary)
}

/// A tool's output, or nothing where the tool is missing, which is an error on CI.
fn run(tool: &str, arguments: &[&str]) -> Option<String> {
    // Both write the names' bytes as they are where the locale does not say that they cannot be shown.
    let output = match Command::new(tool).args(arguments).env("LC_ALL", "C.UTF-8").env("TZ", "UTC").output() {
        Ok(output) => output,
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("skipped: {tool}: {error}");
            return None;
        }
        Err(error) => panic!("{tool}: {error}"),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{tool} {arguments:?}: {}{text}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

/// The tree as `unsquashfs -lln` lists it, with all spaces as one.
fn listing(tree: &Tree) -> Vec<String> {
    let root = Node::Directory(Directory::new(tree.root().meta.clone()));
    let mut lines = Vec::new();
    for (path, node) in std::iter::once((Vec::new(), &root)).chain(tree.walk()) {
        let meta = node.meta();
        let bit = |mask: u16, letter: char| if meta.mode & mask != 0 { letter } else { '-' };
        let execute = |mask: u16, special: u16, set: [char; 2]| match (meta.mode & mask != 0, meta.mode & special != 0)
        {
            (true, true) => set[0],
            (false, true) => set[1],
            (true, false) => 'x',
            (false, false) => '-',
        };
        let (kind, size) = match node {
            Node::Directory(_) => ('d', None),
            Node::File { content, .. } => ('-', Some(content.size().to_string())),
            Node::Symlink { target, .. } => ('l', Some(target.len().to_string())),
            Node::Device { kind, major, minor, .. } => {
                // unsquashfs shows the low 8 bits of the device number, and the rest as the major number.
                let number = (minor & 0xff) | major << 8 | (minor >> 8) << 20;
                let letter = if *kind == DeviceKind::Block { 'b' } else { 'c' };
                (letter, Some(format!("{}, {}", number.cast_signed() >> 8, number & 0xff)))
            }
            Node::Fifo { .. } => ('p', Some("0".into())),
        };
        let mut line = format!(
            "{kind}{}{}{}{}{}{}{}{}{} {}/{}",
            bit(0o400, 'r'),
            bit(0o200, 'w'),
            execute(0o100, 0o4000, ['s', 'S']),
            bit(0o40, 'r'),
            bit(0o20, 'w'),
            execute(0o10, 0o2000, ['s', 'S']),
            bit(4, 'r'),
            bit(2, 'w'),
            execute(1, 0o1000, ['t', 'T']),
            meta.uid,
            meta.gid
        );
        // The size of a directory is that of its listing, which is the format's own business.
        write!(line, " {}", size.as_deref().unwrap_or("*")).unwrap();
        write!(line, " 2023-11-14 22:13 squashfs-root").unwrap();
        if !path.is_empty() {
            write!(line, "/{}", String::from_utf8_lossy(&path)).unwrap();
        }
        if let Node::Symlink { target, .. } = node {
            write!(line, " -> {}", String::from_utf8_lossy(target)).unwrap();
        }
        lines.push(line);
    }
    lines.sort();
    lines
}

/// Compares what `unsquashfs` lists and extracts with the tree.
fn check_with_unsquashfs(tree: &Tree, packs: &[Pack], image: &[u8], case: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    fs::write(&path, image).unwrap();
    let Some(text) = run("unsquashfs", &["-lln", path.to_str().unwrap()]) else { return };
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| line.contains(" squashfs-root")) {
        let (fields, name) = line.split_at(line.find(" squashfs-root").unwrap());
        let mut fields: Vec<_> = fields.split_whitespace().collect();
        if fields[0].starts_with('d') {
            fields[2] = "*";
        }
        lines.push(format!("{}{name}", fields.join(" ")));
    }
    lines.sort();
    // unsquashfs writes device numbers with varying space.
    let lines: Vec<_> = lines.iter().map(|line| line.replace(",", ", ").replace(",  ", ", ")).collect();
    let expected: Vec<_> = listing(tree).iter().map(|line| line.replace(",", ", ").replace(",  ", ", ")).collect();
    let wrong = lines.iter().zip(&expected).find(|(line, expected)| line != expected);
    assert!(wrong.is_none() && lines.len() == expected.len(), "{case}: {wrong:?}");

    let out = directory.path().join("out");
    // Devices need root and owners too: contents, links and permissions are what is compared here.
    let mut plain = tree.clone();
    plain.for_each_mut(|_, node| {
        if let Node::Directory(directory) = node {
            directory.retain(|_, node| !matches!(node, Node::Device { .. }));
        }
    });
    plain.root_mut().retain(|_, node| !matches!(node, Node::Device { .. }));
    let paths: Vec<_> = plain.walk().collect();
    let status = Command::new("unsquashfs")
        .args(["-no-xattrs", "-n", "-i", "-d", out.to_str().unwrap(), path.to_str().unwrap()])
        .output()
        .unwrap();
    // Without root, unsquashfs reports devices and owners that it cannot make, and goes on.
    let stderr = String::from_utf8_lossy(&status.stderr).into_owned();
    let mut contents = rootfs::pack::Contents::new(packs).unwrap();
    let mut found = 0;
    for (name, node) in &paths {
        let at = out.join(Path::new(std::ffi::OsStr::from_bytes(name)));
        let metadata = fs::symlink_metadata(&at).unwrap_or_else(|error| panic!("{case}: {at:?}: {error}: {stderr}"));
        match node {
            Node::File { content, .. } => {
                assert!(metadata.is_file(), "{case}: {at:?}");
                assert!(fs::read(&at).unwrap() == contents.read(content).unwrap(), "{case}: content of {at:?}");
            }
            Node::Symlink { target, .. } => {
                assert_eq!(fs::read_link(&at).unwrap().as_os_str().as_bytes(), target, "{case}");
            }
            Node::Directory(_) => assert!(metadata.is_dir(), "{case}: {at:?}"),
            Node::Device { .. } | Node::Fifo { .. } => {}
        }
        if !metadata.is_symlink() {
            assert_eq!(metadata.permissions().mode() & 0o777, u32::from(node.meta().mode & 0o777), "{case}: {at:?}");
        }
        found += 1;
    }
    assert_eq!(found, paths.len());
}

/// Compares what our reader finds with the tree, contents and extended attributes included.
fn check_with_reader(tree: &Tree, packs: &[Pack], image: &[u8], case: &str) {
    let mut image = Image::open(Cursor::new(image)).unwrap();
    let entries = image.entries().unwrap();
    assert_eq!((entries[0].path.len(), &entries[0].meta), (0, &tree.root().meta), "{case}");
    let mut contents = rootfs::pack::Contents::new(packs).unwrap();
    let expected: Vec<_> = tree.walk().collect();
    assert_eq!(entries.len(), expected.len() + 1, "{case}");
    for (entry, (path, node)) in entries[1..].iter().zip(&expected) {
        let Entry { path: found, meta, mtime, links, kind } = entry;
        assert_eq!((found, meta, mtime), (path, node.meta(), &OPTIONS.mtime), "{case}");
        match (node, kind) {
            (Node::Directory(directory), Kind::Directory) => {
                let below = directory.entries().filter(|(_, node)| matches!(node, Node::Directory(_))).count();
                assert_eq!(*links as usize, 2 + below, "{case}: {path:?}");
            }
            (Node::File { content, .. }, Kind::File(file)) => {
                assert!(
                    image.read_file(file, 1 << 30).unwrap() == contents.read(content).unwrap(),
                    "{case}: content of {path:?}"
                );
            }
            (Node::Symlink { target, .. }, Kind::Symlink(found)) => assert_eq!(target, found, "{case}"),
            (Node::Device { kind, major, minor, .. }, Kind::Device { kind: is, major: major_is, minor: minor_is }) => {
                assert_eq!((kind, major, minor), (is, major_is, minor_is), "{case}: {path:?}");
            }
            (Node::Fifo { .. }, Kind::Fifo) => {}
            other => panic!("{case}: {path:?}: {other:?}"),
        }
    }
    if let Some((path, _)) = expected.last() {
        assert_eq!(image.lookup(path).unwrap().as_ref(), entries.last(), "{case}");
    }
    assert_eq!(image.lookup("not/there").unwrap(), None, "{case}");
}

/// Files together take what the writer wrote of data, each at most its length, and directories nothing.
fn check_stored_sizes(image: &[u8], summary: &ImageSummary, case: &str) {
    let mut image = Image::open(Cursor::new(image)).unwrap();
    let entries = image.entries().unwrap();
    let stored = image.stored_sizes(&entries).unwrap();
    assert_eq!((stored.len(), stored.iter().sum::<u64>()), (entries.len(), summary.data_bytes), "{case}");
    for (entry, stored) in entries.iter().zip(stored) {
        let size = if let Kind::File(file) = &entry.kind { file.size() } else { 0 };
        assert!(stored <= size, "{case}: {:?} takes {stored} bytes of {size}", entry.path);
    }
}

fn check(tree: &Tree, packs: &[Pack], case: &str) -> ImageSummary {
    let (bytes, summary) = image(tree, packs, &OPTIONS);
    assert_eq!(bytes.len() as u64, summary.size, "{case}");
    assert_eq!(summary.size % 4096, 0, "{case}");
    check_with_reader(tree, packs, &bytes, case);
    check_stored_sizes(&bytes, &summary, case);
    check_with_unsquashfs(tree, packs, &bytes, case);
    for threads in [1, 5] {
        assert!(image(tree, packs, &Options { threads, ..OPTIONS }).0 == bytes, "{case}: with {threads} threads");
    }
    summary
}

fn special_tree() -> (Tree, Vec<Vec<u8>>) {
    let mut numbers = Numbers(7);
    let mut packing = [Packing::new(0), Packing::new(1)];
    let mut tree = Tree::new();
    let block = BLOCK as usize;
    let sizes = [0, 1, block - 1, block, block + 1, 2 * block - 1, 2 * block, 2 * block + 1, 10 * block + 77];
    for (index, size) in sizes.into_iter().enumerate() {
        let content = numbers.content(size);
        let packed = packing[index % 2].add(&content);
        tree.insert_with_parents(format!("sizes/packed-{size}"), Node::file(0o644, packed)).unwrap();
        let content = numbers.content(size);
        tree.insert(format!("sizes/inline-{size}"), Node::inline(0o600, content)).unwrap();
    }
    let sparse = [vec![0; 3 * block], numbers.content(block), vec![0; 7 * block + 5]].concat();
    tree.insert("sizes/sparse", Node::file(0o644, packing[0].add(&sparse))).unwrap();
    tree.insert("sizes/zeros", Node::file(0o644, packing[0].add(&vec![0; 5 * block + 1]))).unwrap();
    // The same content in both packs and inline: once in the image.
    let twice = numbers.content(3 * block + 9);
    for (name, content) in
        [("a", packing[0].add(&twice)), ("b", packing[1].add(&twice)), ("c", Content::Inline(twice.into()))]
    {
        tree.insert_with_parents(format!("same/{name}"), Node::file(0o644, content)).unwrap();
    }
    tree.insert("setuid", Node::inline(0o4755, *b"s")).unwrap();
    tree.insert("sticky", Node::directory(0o1777)).unwrap();
    tree.insert("setgid", Node::directory(0o2750)).unwrap();
    let owned = Meta { mode: 0o640, uid: 4_000_000_000, gid: 65534, ..Meta::default() };
    tree.insert("owned", Node::File { meta: owned.clone(), content: Content::Inline((*b"o").into()) }).unwrap();
    tree.insert("link", Node::symlink("sizes/sparse")).unwrap();
    tree.insert("long-link", Node::symlink(vec![b'x'; 4000])).unwrap();
    tree.insert("fifo", Node::Fifo { meta: owned }).unwrap();
    for (name, kind, major, minor) in [
        ("null", DeviceKind::Character, 1, 3),
        ("disk", DeviceKind::Block, 259, 1_048_575),
        ("high", DeviceKind::Character, 4095, 256),
    ] {
        let device = Node::Device { meta: Meta::new(0o660), kind, major, minor };
        tree.insert_with_parents(format!("dev/{name}"), device).unwrap();
    }
    tree.insert(vec![b'n'; 255], Node::inline(0o644, *b"long name")).unwrap();
    tree.insert("Ümläute und 空白", Node::inline(0o644, *b"utf-8")).unwrap();
    tree.insert_with_parents(vec!["deep"; 200].join("/"), Node::inline(0o644, *b"deep")).unwrap();
    (tree, packing.into_iter().map(Packing::finish).collect())
}

fn open(packs: &[Vec<u8>]) -> Vec<Pack> {
    packs.iter().map(|bytes| Pack::from_bytes(bytes.clone()).unwrap()).collect()
}

#[test]
fn special_files_and_sizes() {
    let (tree, packs) = special_tree();
    let summary = check(&tree, &open(&packs), "special");
    assert!(summary.duplicates >= 2, "{summary:?}");
}

#[test]
fn equal_contents_are_counted_once() {
    let mut packing = Packing::new(0);
    let mut numbers = Numbers(3);
    let block = BLOCK as usize;
    let contents = [numbers.content(2 * block + 100), numbers.content(300), vec![0; 3 * block]];
    let mut tree = Tree::new();
    for (name, content) in [("a", 0), ("b", 0), ("c", 1), ("d", 1), ("e", 2), ("f", 2)] {
        tree.insert(name, Node::file(0o644, packing.add(&contents[content]))).unwrap();
    }
    let (bytes, summary) = image(&tree, &open(&[packing.finish()]), &OPTIONS);
    let mut image = Image::open(Cursor::new(bytes)).unwrap();
    let entries = image.entries().unwrap();
    let [root, a, b, c, d, e, f] = image.stored_sizes(&entries).unwrap()[..] else { panic!("{entries:?}") };
    assert_eq!((root, b, d, e, f), (0, 0, 0, 0, 0), "directories, repeated contents and zeros take nothing");
    assert!(a > 0 && c > 0 && a + c == summary.data_bytes, "{a} {c} {summary:?}");
}

#[test]
fn empty_trees() {
    let mut tree = Tree::new();
    tree.root_mut().meta = Meta { mode: 0o700, uid: 7, gid: 8, ..Meta::default() };
    assert_eq!(check(&tree, &[], "root alone").inodes, 1);
    tree.insert("empty", Node::inline(0o644, *b"")).unwrap();
    tree.insert("none", Node::directory(0o755)).unwrap();
    let summary = check(&tree, &[], "no data");
    assert_eq!((summary.inodes, summary.fragments, summary.data_bytes), (3, 0, 0));
}

#[test]
fn large_directories() {
    let mut tree = Tree::new();
    for index in 0..10_000 {
        tree.insert_with_parents(format!("many/entry-{index:05}"), Node::inline(0o644, *b"same")).unwrap();
        if index % 40 == 0 {
            tree.insert_with_parents(format!("some/{:0200}", index), Node::directory(0o755)).unwrap();
        }
    }
    let summary = check(&tree, &[], "large directories");
    assert_eq!((summary.inodes, summary.fragments), (10_253, 1));
    let (bytes, _) = image(&tree, &[], &OPTIONS);
    let mut image = Image::open(Cursor::new(bytes)).unwrap();
    for name in ["many/entry-00000", "many/entry-04711", "many/entry-09999"] {
        assert!(image.lookup(name).unwrap().is_some(), "{name}");
    }
}

#[test]
fn extended_attributes() {
    let mut tree = Tree::new();
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    let sets = [
        BTreeMap::from([(b"security.capability".to_vec(), capability)]),
        BTreeMap::from([(b"user.a".to_vec(), b"1".to_vec()), (b"trusted.overlay.opaque".to_vec(), b"y".to_vec())]),
        BTreeMap::from([(b"user.large".to_vec(), vec![b'v'; 60_000]), (b"user.none".to_vec(), Vec::new())]),
    ];
    for index in 0..600 {
        let xattrs = sets[index % 3].clone();
        let meta = Meta { mode: 0o755, xattrs, ..Meta::default() };
        let node = match index % 5 {
            0 => Node::Directory(Directory::new(meta)),
            1 => Node::Symlink { meta: Meta { mode: 0o777, ..meta }, target: b"t".to_vec() },
            2 => Node::Fifo { meta },
            3 => Node::Device { meta, kind: DeviceKind::Character, major: 1, minor: 3 },
            _ => Node::File { meta, content: Content::Inline((*b"c").into()) },
        };
        tree.insert(format!("{index}"), node).unwrap();
    }
    tree.root_mut().meta.xattrs = sets[0].clone();
    check(&tree, &[], "extended attributes");
    for name in ["system.posix_acl_access", "user.", "none"] {
        let mut tree = Tree::new();
        let xattrs = BTreeMap::from([(name.as_bytes().to_vec(), b"v".to_vec())]);
        let node = Node::Fifo { meta: Meta { mode: 0o600, xattrs, ..Meta::default() } };
        tree.insert_with_parents("dir/file", node).unwrap();
        let error = write_image(&tree, &[], &tempfile::tempfile().unwrap(), &OPTIONS).unwrap_err().to_string();
        assert!(error.starts_with("/dir/file: ") && error.contains(name), "{error}");
    }
}

#[test]
fn random_trees() {
    for seed in 1..=12 {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
        let mut packing: Vec<_> = (0..3).map(Packing::new).collect();
        let mut tree = Tree::new();
        let mut directories = vec![String::new()];
        for index in 0..numbers.below(300) {
            let parent = &directories[numbers.below(directories.len() as u64) as usize];
            let long = "y".repeat(numbers.below(60) as usize);
            let name =
                format!("{parent}/{}{index}{long}", char::from(b'A' + numbers.below(50) as u8).to_ascii_lowercase());
            let mode = [0o644, 0o755, 0o4755, 0o600, 0o1777][numbers.below(5) as usize];
            let meta = Meta { mode: mode | 0o700, uid: numbers.below(4) as u32, gid: 1000, ..Meta::default() };
            let size = [numbers.below(50), numbers.below(5000), numbers.below(60_000)][numbers.below(3) as usize];
            let node = match numbers.below(8) {
                0 | 1 => {
                    directories.push(name.clone());
                    Node::Directory(Directory::new(meta))
                }
                2 => Node::symlink(name.clone()),
                3 => Node::Fifo { meta },
                4 => Node::File { meta, content: Content::Inline(numbers.content(size as usize).into()) },
                _ => {
                    let content = numbers.content(size as usize);
                    let pack = numbers.below(3) as usize;
                    Node::File { meta, content: packing[pack].add(&content) }
                }
            };
            tree.insert(name, node).unwrap();
        }
        let packs: Vec<_> = packing.into_iter().map(Packing::finish).collect();
        check(&tree, &open(&packs), &format!("seed {seed}"));
    }
}

#[test]
fn images_can_lie_anywhere() {
    let (tree, packs) = special_tree();
    let packs = open(&packs);
    let (expected, summary) = image(&tree, &packs, &OPTIONS);
    let file = tempfile::tempfile().unwrap();
    let offset = 1_000_000;
    file.write_all_at(&[0xee; 4], offset + summary.size).unwrap();
    file.write_all_at(&[0xee; 1_000_000], 0).unwrap();
    write_image_at(&tree, &packs, &file, offset, &OPTIONS).unwrap();
    let mut found = vec![0; expected.len()];
    file.read_exact_at(&mut found, offset).unwrap();
    assert!(found == expected);
    let mut around = [0; 4];
    file.read_exact_at(&mut around, offset - 4).unwrap();
    assert_eq!(around, [0xee; 4]);
    file.read_exact_at(&mut around, offset + summary.size).unwrap();
    assert_eq!(around, [0xee; 4]);
}

#[test]
fn damaged_packs_are_refused() {
    let mut numbers = Numbers(3);
    let mut packing = Packing::new(0);
    let mut tree = Tree::new();
    for (name, size) in [("large", 20_000), ("small", 500), ("other", 700)] {
        let content = numbers.content(size);
        tree.insert_with_parents(format!("usr/{name}"), Node::file(0o644, packing.add(&content))).unwrap();
    }
    let good = packing.finish();
    assert!(write_image(&tree, &open(std::slice::from_ref(&good)), &tempfile::tempfile().unwrap(), &OPTIONS).is_ok());
    let data_end = good.len() - 64 - u64::from_le_bytes(good[good.len() - 56..][..8].try_into().unwrap()) as usize;
    for at in (16..data_end).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        let out = tempfile::tempfile().unwrap();
        let error = write_image(&tree, &open(&[bad]), &out, &OPTIONS).unwrap_err();
        let Error::PackDigest { what, expected, actual, .. } = &error else { panic!("byte {at}: {error}") };
        assert!(what.contains("/usr/") && expected != actual, "byte {at}: {what}");
        let text = error.to_string();
        assert!(text.contains(&expected.to_string()) && text.contains(&actual.to_string()), "{text}");
        assert!(Image::open(out).is_err(), "byte {at}: what was written is no image");
    }
}

#[test]
fn contents_must_be_in_the_packs() {
    let mut packing = Packing::new(0);
    let content = packing.add(b"content");
    let packs = open(&[packing.finish()]);
    let Content::Packed { digest, size, pack, file } = content else { panic!("packed") };
    let wrong = rootfs::Digest::of(b"another");
    let cases = [
        Content::Packed { digest: wrong, size, pack, file },
        Content::Packed { digest, size: 8, pack, file },
        Content::Packed { digest, size, pack: PackId::new(1), file },
        Content::Packed { digest, size, pack, file: FileId::new(1) },
    ];
    for content in cases {
        let mut tree = Tree::new();
        tree.insert("f", Node::file(0o644, content.clone())).unwrap();
        let error = write_image(&tree, &packs, &tempfile::tempfile().unwrap(), &OPTIONS).unwrap_err();
        assert!(error.to_string().starts_with("/f: "), "{content:?}: {error}");
    }
    let other = Options { block_size: 8192, ..OPTIONS };
    assert!(write_image(&Tree::new(), &packs, &tempfile::tempfile().unwrap(), &other).is_err());
    assert!(
        write_image(&Tree::new(), &packs, &tempfile::tempfile().unwrap(), &Options { level: 99, ..OPTIONS }).is_err()
    );
}

#[test]
fn damaged_images_do_no_harm() {
    let (tree, packs) = special_tree();
    let (good, summary) = image(&tree, &open(&packs), &OPTIONS);
    let mut numbers = Numbers(11);
    let metadata = (summary.data_bytes + 102) as usize;
    let mut refused = 0;
    for round in 0..1500 {
        let mut bad = good.clone();
        let at = match round % 3 {
            0 => numbers.below(96) as usize,
            _ => metadata + numbers.below((good.len() - metadata) as u64) as usize,
        };
        bad[at] ^= 1 << numbers.below(8);
        if round % 5 == 0 {
            bad.truncate(numbers.below(good.len() as u64) as usize);
        }
        let Ok(mut image) = Image::open(Cursor::new(bad)) else {
            refused += 1;
            continue;
        };
        let Ok(entries) = image.entries() else {
            refused += 1;
            continue;
        };
        for entry in entries {
            if let Kind::File(file) = entry.kind {
                refused += usize::from(image.read_file(&file, 1 << 20).is_err());
            }
        }
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn superblock_is_as_the_format_says() {
    let mut tree = Tree::new();
    tree.insert("hello", Node::inline(0o644, *b"hello, world\n")).unwrap();
    let (bytes, summary) = image(&tree, &[], &OPTIONS);
    assert_eq!((summary.inodes, summary.fragments, summary.bytes_used, summary.size), (2, 1, 233, 4096));
    // Magic, inodes, time, block size, fragments, compressor, its logarithm, flags, IDs, version 4.0.
    let start = "68737173020000000 0f15365001000000100000006000c0040060100 04000000";
    let hex: String = bytes[..32].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, start.replace(' ', ""));
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &bytes).unwrap();
    if let Some(text) = run("unsquashfs", &["-stat", file.path().to_str().unwrap()]) {
        for line in [
            "Compression zstd",
            "compression-level 3",
            "Block size 4096",
            "Number of fragments 1",
            "Number of inodes 2",
            "Number of ids 1",
            "Duplicates are removed",
            "Xattrs are not stored",
            "Filesystem is not exportable via NFS",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}

#[test]
fn reader_agrees_with_mksquashfs() {
    let directory = tempfile::tempdir().unwrap();
    let (root, out) = (directory.path().join("root"), directory.path().join("image"));
    fs::create_dir_all(root.join("a/b")).unwrap();
    let mut numbers = Numbers(5);
    let mut expected = BTreeMap::new();
    for (name, size) in [("a/one", 300_000), ("a/b/two", 131_072), ("three", 17), ("a/four", 0)] {
        let content = numbers.content(size);
        fs::write(root.join(name), &content).unwrap();
        expected.insert(name.as_bytes().to_vec(), content);
    }
    std::os::unix::fs::symlink("a/one", root.join("link")).unwrap();
    let arguments = [root.to_str().unwrap(), out.to_str().unwrap(), "-comp", "zstd", "-quiet", "-no-progress"];
    if run("mksquashfs", &arguments).is_none() {
        return;
    }
    let mut image = Image::open(File::open(&out).unwrap()).unwrap();
    let mut found = BTreeMap::new();
    for entry in image.entries().unwrap() {
        match &entry.kind {
            Kind::File(file) => {
                found.insert(entry.path, image.read_file(file, 1 << 20).unwrap());
            }
            Kind::Symlink(target) => {
                assert_eq!((entry.path.as_slice(), target.as_slice()), (&b"link"[..], &b"a/one"[..]))
            }
            _ => assert_eq!(entry.kind, Kind::Directory),
        }
    }
    assert!(found == expected);
}

/// A mounted image, unmounted when dropped.
struct Mount(tempfile::TempDir);

impl Drop for Mount {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.0.path()).status();
        assert!(std::thread::panicking() || status.is_ok_and(|status| status.success()));
    }
}

#[test]
#[ignore = "mounts an image: needs root and loop devices"]
fn the_kernel_reads_it() {
    let (mut tree, packs) = special_tree();
    for index in 0..5000 {
        tree.insert_with_parents(format!("many/entry-{index:05}"), Node::inline(0o644, *b"same")).unwrap();
    }
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    tree.lookup_mut("owned").unwrap().meta_mut().xattrs.insert(b"security.capability".to_vec(), capability);
    let packs = open(&packs);
    let file = tempfile::NamedTempFile::new().unwrap();
    write_image(&tree, &packs, file.as_file(), &OPTIONS).unwrap();
    let mount = Mount(tempfile::tempdir().unwrap());
    let (image, at) = (file.path().to_str().unwrap(), mount.0.path());
    run("mount", &["-o", "loop,ro", image, at.to_str().unwrap()]).expect("mount is there");
    let mut contents = rootfs::pack::Contents::new(&packs).unwrap();
    for (path, node) in tree.walk() {
        // Lookups by name go through the directory's index, in any order.
        let path = at.join(Path::new(std::ffi::OsStr::from_bytes(&path)));
        let found = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let meta = node.meta();
        let owner = (found.mode() & 0o7777, found.uid(), found.gid(), found.mtime());
        let expected = (u32::from(meta.mode), meta.uid, meta.gid, i64::from(OPTIONS.mtime));
        assert_eq!(owner, expected, "{path:?}");
        match node {
            Node::Directory(directory) => {
                let below = directory.entries().filter(|(_, node)| matches!(node, Node::Directory(_))).count() as u64;
                assert_eq!((fs::read_dir(&path).unwrap().count(), found.nlink()), (directory.len(), 2 + below));
            }
            Node::File { content, .. } => {
                assert!(fs::read(&path).unwrap() == contents.read(content).unwrap(), "content of {path:?}");
            }
            Node::Symlink { target, .. } => {
                assert_eq!(fs::read_link(&path).unwrap().as_os_str().as_bytes(), target);
            }
            Node::Device { major, minor, .. } => {
                let (minor, major) = (u64::from(*minor), u64::from(*major));
                assert_eq!(found.rdev(), (minor & 0xff) | major << 8 | (minor & !0xff) << 12, "{path:?}");
            }
            Node::Fifo { .. } => assert!(found.file_type().is_fifo()),
        }
    }
    if let Some(text) = run("getcap", &[at.join("owned").to_str().unwrap()]) {
        assert!(text.trim_end().ends_with("owned cap_net_raw=ep"), "{text}");
    }
}
