//! The cache: what was changed in it is refused, and builds that share it or are interrupted do no harm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::world::{BUILT, World, digest, flip, sha256, sparse_digest};

#[test]
fn a_tampered_package_is_refused() {
    let world = World::warm();
    fs::remove_dir_all(world.path("cache/packs")).expect("the cache has it");
    let deb = world.server.content("tiny-data_1.0-1_all.deb");
    let cached = world.path("cache/debs").join(digest(&deb));
    flip(&cached, deb.len() / 2);
    world.build(&[]).fails_with(&[&cached.display().to_string(), &sha256(&cached), &digest(&deb)]);
    world.assert_no_outputs();
    fs::write(&cached, &deb[..100]).expect("it can be written");
    world.build(&["--offline"]).fails_with(&[&cached.display().to_string(), &sha256(&cached), &digest(&deb)]);
    world.assert_no_outputs();
}

#[test]
fn a_tampered_pack_is_refused() {
    let world = World::warm();
    let packs = world.cached("packs");
    let size = |path: &Path| fs::metadata(path).expect("it is there").len() as usize;
    let (_, largest) = packs.iter().max_by_key(|(_, path)| size(path)).expect("the cache has packs");
    let good = fs::read(largest).expect("it is there");
    // In the header, in a file's content, and in the trailer's numbers.
    for at in [9, 100, good.len() / 2, good.len() - 60] {
        flip(largest, at);
        let outcome = world.build(&[]).fails_with(&[&largest.display().to_string()]);
        let digests = outcome.stderr.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 64).count();
        // One is in the pack's name; what is wrong with header or numbers may be said without digests.
        assert!(digests >= 3 || !(64..good.len() - 64).contains(&at), "both digests at {at}: {outcome:?}");
        world.assert_no_outputs();
        fs::write(largest, &good).expect("it can be written");
    }
    for (name, path) in &packs {
        let good = fs::read(path).expect("it is there");
        fs::write(path, &good[..good.len() - 1]).expect("it can be written");
        world.build(&[]).fails_with(&[name]);
        fs::write(path, &good).expect("it can be written");
    }
    world.build(&[]).succeeds();
    assert_eq!(sparse_digest(&world.output(".raw")), sparse_digest(&BUILT.output(".raw")));
}

#[test]
fn a_tampered_initrd_never_reaches_an_image() {
    let world = World::warm();
    let part = part(&world, "initrd-");
    flip(&part, fs::read(&part).expect("it is there").len() / 2);
    assert_refused_or_made_anew(&world, &part);
}

#[test]
fn tampered_facts_of_modules_never_reach_an_image() {
    let world = World::warm();
    let part = part(&world, "modinfo-");
    let mut bytes = fs::read(&part).expect("it is there");
    let alias = b"v00001AF4d";
    let at = bytes.windows(alias.len()).position(|window| window == alias).expect("a module has this alias");
    bytes[at + alias.len() - 2] = b'5';
    fs::write(&part, bytes).expect("it can be written");
    assert_refused_or_made_anew(&world, &part);
}

/// The cached part whose name begins so.
fn part(world: &World, kind: &str) -> PathBuf {
    let parts = world.cached("parts");
    let (_, path) = parts.iter().find(|(name, _)| name.starts_with(kind)).expect("the cache has it");
    path.clone()
}

/// A changed part of the cache is an error that names it, or no better than none.
fn assert_refused_or_made_anew(world: &World, part: &Path) {
    let outcome = world.build(&[]);
    if outcome.code == Some(0) {
        let (found, expected) = (sparse_digest(&world.output(".raw")), sparse_digest(&BUILT.output(".raw")));
        assert_eq!(found, expected, "what was changed in {} is in the image", part.display());
    } else {
        outcome.fails_with(&[&part.display().to_string()]);
        world.assert_no_outputs();
    }
}

#[test]
fn builds_at_once_share_a_cache() {
    let world = World::locked();
    let mut builds: Vec<_> = ["one", "two", "three"]
        .into_iter()
        .map(|out| {
            let mut command = world.command(&["build", "worker", "--firstboot"]);
            command.arg(world.path("firstboot")).arg("--out").arg(world.path(out));
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the command can be started")
        })
        .collect();
    let expected = sparse_digest(&BUILT.output(".raw"));
    for (build, out) in builds.drain(..).zip(["one", "two", "three"]) {
        let output = build.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let name = BUILT.output(".raw");
        let image = world.path(out).join(name.file_name().expect("it is a file"));
        assert_eq!(sparse_digest(&image), expected, "{out}");
    }
    assert!(world.cached("tmp").is_empty(), "{:?}", world.cached("tmp"));
}

#[test]
fn an_interrupted_build_leaves_nothing_half_done() {
    let world = World::locked();
    let expected = BUILT.contents();
    for delay in [20, 60, 150, 300, 500, 800] {
        let mut command = world.build_command(&[]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it can be started");
        thread::sleep(Duration::from_millis(delay));
        // It may have ended by itself.
        let _ = child.kill();
        child.wait().expect("it ends");
        if !world.path("out").exists() {
            continue;
        }
        for output in world.contents() {
            assert!(expected.contains(&output), "{output:?} after {delay} ms");
        }
    }
    world.build(&[]).succeeds();
    assert_eq!(world.contents(), expected);
}
