//! Downloads: what is refused, what is tried again, and where else a file is looked for.

use std::fs;

use crate::archive::{Package, SNAPSHOT};
use crate::server::Fault;
use crate::world::{World, digest, run};

/// In the path of a package that every image has.
const DEB: &str = "tiny-data_1.0-1_all.deb";
/// How messages name that package.
const TITLE: &str = "tiny-data 1.0-1 (all)";

#[test]
fn a_tampered_package_is_refused() {
    let world = World::locked();
    let good = world.server.content(DEB);
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for bad in [flipped, good[..good.len() - 1].to_vec(), Vec::new()] {
        world.server.change(DEB, |bytes| bytes.clone_from(&bad));
        world.build(&[]).fails_with(&[TITLE, &digest(&bad), &digest(&good)]);
        world.assert_no_outputs();
        assert!(world.cached("debs").iter().all(|(name, _)| *name != digest(&good)), "nothing is cached");
    }
    world.server.change(DEB, |bytes| bytes.clone_from(&good));
    world.build(&[]).succeeds();
}

#[test]
fn a_package_larger_than_pinned_is_cut_off() {
    let world = World::locked();
    world.server.fail(DEB, usize::MAX, &Fault::Endless);
    let size = world.server.content(DEB).len();
    world.build(&[]).fails_with(&[TITLE, &format!("larger than the {size} bytes expected")]);
    assert!(world.server.endless_bytes() < size + (24 << 20), "{} bytes were taken", world.server.endless_bytes());
    world.assert_no_outputs();
    assert!(world.cached("tmp").is_empty(), "{:?}", world.cached("tmp"));
}

#[test]
fn a_broken_transfer_is_tried_again_and_then_refused() {
    let world = World::locked();
    world.server.fail(DEB, usize::MAX, &Fault::Cut);
    world.build(&["--locked"]).fails_with(&[TITLE, &world.server.url()]);
    world.assert_no_outputs();
    let tries = world.server.take_requests().iter().filter(|path| path.ends_with(DEB) && path.starts_with('/')).count();
    assert!((2..=5).contains(&tries), "{tries} tries");
    world.server.fail(DEB, 1, &Fault::Cut);
    world.build(&["--locked"]).succeeds();
}

const PASSING: [Fault; 3] = [Fault::Status(500), Fault::Status(503), Fault::Cut];

#[test]
fn errors_that_pass_are_outlasted_by_packages() {
    let world = World::locked();
    for fault in &PASSING {
        world.server.fail(DEB, 1, fault);
        world.build(&["--locked"]).succeeds();
        assert_tried_again(&world, DEB);
        fs::remove_dir_all(world.path("cache")).expect("it is there");
    }
}

#[test]
fn errors_that_pass_are_outlasted_by_indexes() {
    assert_lock_outlasts("/debian/dists/trixie/main/");
}

#[test]
fn errors_that_pass_are_outlasted_by_releases() {
    assert_lock_outlasts("/debian/dists/trixie/InRelease");
}

fn assert_lock_outlasts(part: &str) {
    for fault in &PASSING {
        let world = World::new();
        world.server.fail(part, 1, fault);
        world.lock(&[]).succeeds();
        assert_tried_again(&world, part);
    }
}

fn assert_tried_again(world: &World, part: &str) {
    let requests = world.server.take_requests();
    assert!(requests.iter().filter(|path| path.contains(part)).count() > 1, "{part}: {requests:?}");
}

#[test]
fn an_error_that_stays_is_named() {
    let world = World::locked();
    for (status, word) in [(403, "403"), (500, "500")] {
        world.server.fail(DEB, usize::MAX, &Fault::Status(status));
        world.build(&["--locked"]).fails_with(&[TITLE, &world.server.url(), word]);
        world.assert_no_outputs();
    }
}

#[test]
fn redirections_are_followed() {
    let world = World::new();
    for part in [DEB, "/debian/dists/trixie/InRelease", "/debian/dists/trixie/main/"] {
        world.server.move_away(part);
    }
    world.lock(&[]).succeeds();
    world.build(&["--locked"]).succeeds();
    assert!(world.server.take_requests().iter().any(|path| path.starts_with("/elsewhere") && path.ends_with(DEB)));
}

/// A world whose mirror has replaced a package that the lock pins.
fn superseded() -> (World, Vec<u8>) {
    let mut world = World::locked();
    let old = world.server.content(DEB);
    world.republish(|archive| {
        archive.packages.retain(|package| package.name != "tiny-data");
        archive.packages.push(Package::new("tiny-data", "1.0-2").file("usr/share/tiny/data", "newer"));
    });
    (world, old)
}

#[test]
fn a_package_that_is_gone_is_replaced_by_its_successor() {
    let (world, _) = superseded();
    let before = fs::read(world.images().join("lock.toml")).expect("there is a lock");
    world.build(&["--locked"]).fails_with(&[
        TITLE,
        "not at any of its sources",
        "--locked",
        "nodezero lock",
        &world.server.url(),
    ]);
    world.assert_no_outputs();

    let note = "tiny-data 1.0-1 is gone from all sources; 1.0-2 is taken instead";
    world.build(&["--quiet"]).succeeds().says(&[note, "nodezero lock"]);
    assert_eq!(
        fs::read(world.images().join("lock.toml")).expect("there is a lock"),
        before,
        "a build leaves the lock alone"
    );
    let manifest = world.manifest();
    assert_eq!(manifest["notes"], serde_json::json!([note]));
    let packages = manifest["packages"].as_array().expect("a list");
    let data = packages.iter().find(|package| package["name"] == "tiny-data").expect("the image has it");
    assert_eq!(data["version"], "1.0-2");
    let text = run(world.command(&["inspect"]).arg(world.output(".raw"))).succeeds().stdout;
    assert!(text.contains(note) && text.contains("package tiny-data 1.0-2"), "{text}");
}

#[test]
fn a_package_that_is_gone_without_successor_is_named() {
    let mut world = World::locked();
    world.republish(|archive| archive.packages.retain(|package| package.name != "tiny-data"));
    world.build(&[]).fails_with(&[TITLE, "not at any of its sources", &world.server.url()]);
    world.assert_no_outputs();
}

#[test]
fn a_successor_is_verified_as_any_other() {
    let (mut world, _) = superseded();
    world.server.change("tiny-data_1.0-2", |bytes| bytes[100] ^= 1);
    world.build(&[]).fails_with(&["tiny-data 1.0-2", "SHA-256"]);
    world.republish(|archive| archive.key = crate::archive::Key::new(2, None));
    world.build(&[]).fails_with(&["InRelease", "not in the keyring"]);
    world.assert_no_outputs();
}

#[test]
fn the_snapshot_is_asked_for_what_the_mirror_has_no_more() {
    let (world, old) = superseded();
    let path = format!("snapshot.debian.org/archive/debian/{SNAPSHOT}/pool/main/t/tiny-data/{DEB}");
    world.server.put(&path, old);
    let outcome = world.build(&["--locked", "--quiet"]).succeeds();
    assert_eq!(outcome.stderr, "", "nothing departs from the lock");
    assert!(world.server.take_requests().contains(&path));
    assert_eq!(world.manifest()["notes"], serde_json::json!([]));
}

#[test]
fn offline_asks_for_nothing() {
    let world = World::locked();
    let outcome = world.build(&["--offline"]).fails_with(&["is not in the cache", "--offline"]);
    assert!(outcome.stderr.contains("(all)"), "a package is named: {outcome:?}");
    world.assert_no_outputs();
    assert_eq!(world.server.take_requests(), [""; 0]);

    let warm = World::warm();
    warm.build(&["--offline"]).succeeds();
    // Packs are made from packages again.
    fs::remove_dir_all(warm.path("cache/packs")).expect("the cache has it");
    warm.build(&["--offline"]).succeeds();
    assert_eq!(warm.server.take_requests(), [""; 0]);
}
