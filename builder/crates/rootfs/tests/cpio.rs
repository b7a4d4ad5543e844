//! Archives as `cpio` sees them, and a golden one.

use std::{
    io::{Cursor, Read, Write},
    process::{Command, Stdio},
};

use rootfs::{Content, Error, Meta, Node, Pack, PackId, PackOptions, PackWriter, Tree, cpio, tree::DeviceKind};

fn sample() -> (Tree, Vec<Pack>) {
    let options = PackOptions { block_size: 4096, level: 3 };
    let mut writer = PackWriter::new(Cursor::new(Vec::new()), options).unwrap();
    let contents = [b"module ".repeat(3000), b"small".to_vec(), Vec::new()];
    let ids = contents.clone().map(|content| writer.add(&mut &content[..], content.len() as u64).unwrap());
    let packs = vec![Pack::from_bytes(writer.finish(b"").unwrap().0.into_inner()).unwrap()];
    let mut tree = Tree::new();
    for (name, id) in ["lib/module", "lib/small", "lib/empty"].into_iter().zip(ids) {
        let content = packs[0].content(PackId::new(0), id).unwrap();
        tree.insert_with_parents(name, Node::file(0o644, content)).unwrap();
    }
    tree.insert("init", Node::inline(0o4755, *b"#!/bin/false\n")).unwrap();
    tree.insert("link", Node::symlink("lib/small")).unwrap();
    let meta = Meta { mode: 0o622, uid: 5, gid: 6, ..Meta::default() };
    let device = Node::Device { meta: meta.clone(), kind: DeviceKind::Character, major: 5, minor: 1 };
    tree.insert_with_parents("dev/console", device).unwrap();
    tree.insert("fifo", Node::Fifo { meta }).unwrap();
    (tree, packs)
}

fn archive(tree: &Tree, packs: &[Pack]) -> Vec<u8> {
    let mut out = Vec::new();
    let summary = cpio::write(tree, packs, &mut out, 1_700_000_000).unwrap();
    assert_eq!(summary.bytes, out.len() as u64);
    assert_eq!(out.len() % 512, 0);
    out
}

/// What `cpio` writes for an archive, or nothing where it is missing, which is an error on CI.
fn run_cpio(arguments: &[&str], archive: &[u8]) -> Option<Vec<u8>> {
    let child = Command::new("cpio")
        .args(arguments)
        .envs([("LC_ALL", "C"), ("TZ", "UTC")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("skipped: cpio: {error}");
            return None;
        }
        Err(error) => panic!("cpio: {error}"),
    };
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // cpio may stop before it has read the padding.
        scope.spawn(move || drop(stdin.write_all(archive)));
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

#[test]
fn cpio_lists_and_extracts_it() {
    let (tree, packs) = sample();
    let archive = archive(&tree, &packs);
    let Some(list) = run_cpio(&["-tvn"], &archive) else { return };
    let list = String::from_utf8(list).unwrap();
    let lines: Vec<_> = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let expected = [
        "drwxr-xr-x 2 0 0 0 Nov 14 2023 dev",
        "crw--w--w- 1 5 6 5, 1 Nov 14 2023 dev/console",
        "prw--w--w- 1 5 6 0 Nov 14 2023 fifo",
        "-rwsr-xr-x 1 0 0 13 Nov 14 2023 init",
        "drwxr-xr-x 2 0 0 0 Nov 14 2023 lib",
        "-rw-r--r-- 1 0 0 0 Nov 14 2023 lib/empty",
        "-rw-r--r-- 1 0 0 21000 Nov 14 2023 lib/module",
        "-rw-r--r-- 1 0 0 5 Nov 14 2023 lib/small",
        "lrwxrwxrwx 1 0 0 9 Nov 14 2023 link -> lib/small",
    ];
    assert_eq!(lines, expected);
    for (name, content) in [("lib/module", b"module ".repeat(3000)), ("lib/small", b"small".to_vec())] {
        assert!(run_cpio(&["-i", "--quiet", "--to-stdout", name], &archive).unwrap() == content, "{name}");
    }
}

#[test]
fn golden_archive() {
    let mut tree = Tree::new();
    tree.insert("f", Node::inline(0o644, *b"hi")).unwrap();
    let zeros = "00000000";
    let expected = format!(
        "070701{}f\0hi\0\0070701{}TRAILER!!!\0\0\0\0",
        [
            "00000001", "000081A4", zeros, zeros, "00000001", "6553F100", "00000002", zeros, zeros, zeros, zeros,
            "00000002", zeros
        ]
        .concat(),
        [zeros, zeros, zeros, zeros, "00000001", zeros, zeros, zeros, zeros, zeros, zeros, "0000000B", zeros].concat(),
    );
    let mut expected = expected.into_bytes();
    expected.resize(512, 0);
    assert_eq!(archive(&tree, &[]), expected);
}

#[test]
fn zstd_members_are_whole_archives() {
    let (mut tree, packs) = sample();
    for index in 0..40u32 {
        let content: Vec<u8> =
            (0..100_000u32).flat_map(|word| (word.wrapping_mul(word) ^ index).to_le_bytes()).collect();
        tree.insert(format!("lib/large-{index:02}"), Node::inline(0o644, content)).unwrap();
    }
    let compress = |threads| {
        let mut out = Vec::new();
        let summary = cpio::write_zstd(&tree, &packs, &mut out, 1_700_000_000, 3, threads).unwrap();
        (out, summary)
    };
    let (bytes, summary) = compress(1);
    for threads in [2, 7] {
        assert!(compress(threads) == (bytes.clone(), summary), "{threads} threads");
    }
    assert_eq!(summary.entries as usize, tree.walk().count());
    // As the kernel does it: one frame, which must end where an archive ends, then the next.
    let mut rest = bytes.as_slice();
    let mut members = Vec::new();
    while !rest.is_empty() {
        let mut decoder = zstd::Decoder::with_buffer(rest).unwrap().single_frame();
        let mut member = Vec::new();
        decoder.read_to_end(&mut member).unwrap();
        rest = decoder.finish();
        assert_eq!(member.len() % 512, 0);
        let trailer = member.windows(10).rposition(|window| window == b"TRAILER!!!").unwrap();
        assert!(member[trailer + 10..].iter().all(|byte| *byte == 0));
        assert_eq!(&member[..6], b"070701");
        members.push(member);
    }
    assert!(members.len() >= 4, "{}", members.len());
    assert_eq!(members.iter().map(Vec::len).sum::<usize>() as u64, summary.bytes);
    // Without their trailers the members are the one archive.
    let body = |archive: &[u8]| {
        let trailer = archive.windows(10).rposition(|window| window == b"TRAILER!!!").unwrap();
        archive[..trailer - 110].to_vec()
    };
    assert!(members.iter().flat_map(|member| body(member)).collect::<Vec<_>>() == body(&archive(&tree, &packs)));
    let mut empty = Vec::new();
    assert_eq!(cpio::write_zstd(&Tree::new(), &[], &mut empty, 0, 3, 2).unwrap().bytes, 512);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (mut tree, packs) = sample();
    let Some(Node::File { content: Content::Packed { size, .. }, .. }) = tree.lookup_mut("lib/small") else {
        panic!("a packed file")
    };
    *size += 1;
    assert!(matches!(cpio::write(&tree, &packs, Vec::new(), 0), Err(Error::UnknownContent { .. })));
    assert!(matches!(cpio::write_zstd(&tree, &packs, Vec::new(), 0, 3, 2), Err(Error::UnknownContent { .. })));
    let (mut tree, packs) = sample();
    tree.lookup_mut("init").unwrap().meta_mut().xattrs.insert(b"user.a".to_vec(), b"1".to_vec());
    let error = cpio::write(&tree, &packs, Vec::new(), 0).unwrap_err();
    assert_eq!(error.to_string(), "/init: has extended attributes, which cpio cannot hold");
    assert!(cpio::write_zstd(&Tree::new(), &[], Vec::new(), 0, 0, 1).is_err());
}
