//! `nodezero lock`: what it pins and shows, and which archives and recipes it refuses.

use std::fs;

use crate::archive::{Key, Package};
use crate::server::Fault;
use crate::world::{World, digest, flip, package, run};

/// 2025-06-01 00:00:00 UTC.
const JUNE: u64 = 1_748_736_000;

fn lock_text(world: &World) -> String {
    fs::read_to_string(world.images().join("lock.toml")).expect("there is a lock")
}

fn assert_not_locked(world: &World) {
    assert!(!world.images().join("lock.toml").exists(), "{}", lock_text(world));
}

#[test]
fn changes_are_shown_and_written() {
    let mut world = World::new();
    let first = world.lock(&[]).succeeds();
    for line in ["+ base-files 13-1", "+ tiny-data 1.0-1", "+ tool 1-1", "+ systemd-boot-efi 257-1"] {
        assert!(first.stdout.lines().any(|found| found == line), "{line}: {first:?}");
    }
    assert!(!first.stdout.contains("left"), "nobody asks for it: {first:?}");
    let before = lock_text(&world);
    let again = world.lock(&[]).succeeds();
    assert!(again.stdout.contains(" 0 changed") && lock_text(&world) == before, "{again:?}");

    world.republish(|archive| {
        archive.date = "Sun, 02 Mar 2025 00:00:00 UTC";
        archive.package("tiny-service").version = "1.1-1".to_owned();
        let extra = Package::new("tiny-extra", "2:0~rc1-1").suite("trixie-updates");
        archive.packages.push(extra);
        // The highest version counts, wherever it is.
        archive.packages.push(Package::new("tiny-data", "1.0-1+deb13u1").suite("trixie-security"));
    });
    world.append("sets/base.toml", &package("tiny-extra"));
    let tools = world.images().join("tools.toml");
    fs::write(tools, "description = \"none\"\n").expect("it can be written");
    let expected =
        ["+ tiny-extra 2:0~rc1-1", "- tool 1-1", "~ tiny-data 1.0-1 -> 1.0-1+deb13u1", "~ tiny-service 1.0-1 -> 1.1-1"];

    let dry = world.lock(&["--dry-run"]).succeeds();
    assert_eq!(sorted_changes(&dry.stdout), expected, "{dry:?}");
    assert_eq!(lock_text(&world), before, "--dry-run writes nothing");
    let json = world.lock(&["--dry-run", "--json"]).succeeds().json();
    assert_eq!(json["written"], false);
    assert_eq!(json["changes"].as_array().map(Vec::len), Some(expected.len()), "{json}");

    let real = world.lock(&[]).succeeds();
    assert_eq!(sorted_changes(&real.stdout), expected, "{real:?}");
    let after = lock_text(&world);
    assert!(after.contains("2025-03-02T00:00:00Z") && after.contains("archive = \"debian-security\""), "{after}");
}

fn sorted_changes(stdout: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = stdout.lines().filter(|line| line.starts_with(['+', '-', '~'])).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn a_content_that_changed_under_its_version_is_shown() {
    let mut world = World::locked();
    world.republish(|archive| {
        let data = archive.package("tiny-data");
        *data = Package::new("tiny-data", "1.0-1").file("usr/share/tiny/data", "other");
    });
    let outcome = world.lock(&[]).succeeds();
    let line = "~ tiny-data 1.0-1: the same version with another SHA-256";
    assert_eq!(sorted_changes(&outcome.stdout), [line], "{outcome:?}");
}

#[test]
fn a_tampered_release_is_refused() {
    let part = "/debian/dists/trixie/InRelease";
    let world = World::new();
    let good = world.server.content(part);
    let place = |what: &[u8]| good.windows(what.len()).position(|window| window == what).expect("it stands there");
    for at in [place(b"Origin"), place(b"SHA256:\n ") + 10, place(b"2025")] {
        world.server.change(part, |bytes| {
            bytes.clone_from(&good);
            bytes[at] ^= 1;
        });
        let named = ["debian dists/trixie/InRelease", "the signature does not match the text"];
        world.lock(&[]).fails_with(&named).says(&[&world.archive.key.fingerprint()]);
        assert_not_locked(&world);
    }
    world.server.change(part, |bytes| bytes.splice(0..0, *b"Origin: Mallory\n").for_each(drop));
    world.lock(&[]).fails_with(&["debian dists/trixie/InRelease"]);
    assert_not_locked(&world);
}

#[test]
fn keys_that_do_not_count_are_refused() {
    let mut world = World::new();
    let (stranger, expired) = (Key::new(2, None), Key::new(3, Some(JUNE)));
    world.republish(|archive| archive.key = stranger.clone());
    world.lock(&[]).fails_with(&["debian dists/trixie/InRelease", &stranger.fingerprint(), "not in the keyring"]);
    assert_not_locked(&world);

    world.write("keyring/expired.asc", &expired.armored());
    world.republish(|archive| archive.key = expired.clone());
    let named = ["debian dists/trixie/InRelease", &expired.fingerprint(), "the key expired at 2025-06-01"];
    world.lock(&[]).fails_with(&named);
    assert_not_locked(&world);

    world.write("keyring/stranger.asc", &stranger.armored());
    world.republish(|archive| archive.key = stranger);
    world.lock(&[]).succeeds();

    fs::remove_dir_all(world.images().join("keyring")).expect("it is there");
    world.lock(&[]).fails_with(&["keyring"]);
    world.write("keyring/test.asc", "no key");
    world.lock(&[]).fails_with(&["keyring/test.asc"]);
}

#[test]
fn a_release_that_ceased_to_count_is_refused() {
    let mut world = World::new();
    world.republish(|archive| archive.release_field = "Valid-Until: Sat, 08 Mar 2025 00:00:00 UTC\n".to_owned());
    world.lock(&[]).fails_with(&["debian dists/trixie/InRelease", "valid until 2025-03-08"]);
    assert_not_locked(&world);
}

#[test]
fn a_tampered_index_is_refused() {
    let world = World::new();
    let part = "debian/dists/trixie/main/binary-amd64/";
    let good = world.server.content(&format!("{part}Packages.xz"));
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    for bad in
        [flipped(0), flipped(good.len() / 2), flipped(good.len() - 1), good[..good.len() - 1].to_vec(), Vec::new()]
    {
        world.server.change(part, |bytes| bytes.clone_from(&bad));
        let named = ["trixie main/binary-amd64/Packages.xz", &digest(&bad), &digest(&good)];
        world.lock(&[]).fails_with(&named);
        assert_not_locked(&world);
        assert!(world.cached("indexes").iter().all(|(name, _)| *name != digest(&good)), "nothing is cached");
    }
}

#[test]
fn a_tampered_index_in_the_cache_is_refused() {
    let world = World::new();
    world.lock(&["--dry-run"]).succeeds();
    let index = world.server.content("debian/dists/trixie/main/binary-amd64/Packages.xz");
    let cached = world.path("cache/indexes").join(digest(&index));
    flip(&cached, index.len() / 2);
    let now = digest(&fs::read(&cached).expect("it is there"));
    world.lock(&[]).fails_with(&[&cached.display().to_string(), &now, &digest(&index)]);
    assert_not_locked(&world);
}

#[test]
fn indexes_without_end_are_cut_off() {
    let world = World::new();
    for (part, limit, named) in [
        ("/debian/dists/trixie/InRelease", 4 << 20, "InRelease"),
        ("/debian/dists/trixie/main/", 0, "trixie main/binary-amd64/Packages.xz"),
    ] {
        world.server.fail(part, usize::MAX, &Fault::Endless);
        let before = world.server.endless_bytes();
        world.lock(&[]).fails_with(&[named, "larger than the"]);
        let taken = world.server.endless_bytes() - before;
        // What the kernel's buffers take beyond what the command reads.
        assert!(taken < limit + (24 << 20), "{named}: {taken} bytes were taken");
        world.server.fail(part, 0, &Fault::Endless);
    }
    assert_not_locked(&world);
}

#[test]
fn an_unknown_package_is_named_with_its_place_and_its_neighbours() {
    let world = World::new();
    let lines = fs::read_to_string(world.images().join("sets/base.toml")).expect("it was written").lines().count();
    world.append("sets/base.toml", &package("tiny-servise"));
    let place = format!("sets/base.toml:{}:8", lines + 3);
    world.lock(&[]).fails_with(&["tiny-servise", "tiny-service", &place]);
    assert_not_locked(&world);

    let world = World::new();
    world.append("platforms/metal.toml", "\n[[input]]\nname = \"no-loader\"\nreason = \"a test\"\n");
    world.lock(&[]).fails_with(&["no-loader", "platforms/metal.toml:"]);
}

#[test]
fn an_unsatisfiable_dependency_is_named_with_who_needs_it() {
    let mut world = World::new();
    world.republish(|archive| archive.package("tiny-data").version = "0.9-1".to_owned());
    world.lock(&[]).fails_with(&[
        "tiny-data (>= 1)",
        "there is only tiny-data 0.9-1",
        "sets/base.toml:8:8 -> tiny-service",
    ]);
}

#[test]
fn a_conflict_is_named_with_who_asks_for_both() {
    let mut world = World::new();
    world.republish(|archive| {
        archive.packages.push(Package::new("needs-right", "1-1").field("Depends: right"));
    });
    world.append("sets/base.toml", &package("left"));
    world.append("platforms/metal.toml", &package("needs-right"));
    let asked = ["sets/base.toml:", "platforms/metal.toml:", "-> needs-right"];
    world.lock(&[]).fails_with(&["control-metal", "left conflicts with right"]).says(&asked);
    assert_not_locked(&world);
}

#[test]
fn mistakes_in_recipes_have_a_place() {
    for (file, text, place, what) in [
        ("sets/base.toml", "\n[[pakage]]\nname = \"x\"\n", "sets/base.toml:19:3", "unknown field `pakage`"),
        ("roles/worker.toml", "set = []\n", "roles/worker.toml:4:1", "unknown field `set`"),
        ("platforms/vps.toml", "\n[[package]]\nname = 7\nreason = \"r\"\n", "platforms/vps.toml:", "expected a string"),
        ("archive.toml", "\n[[suite]]\nname = \"x\"\narchive = \"debain\"\n", "archive.toml:18:11", "debain"),
        ("tools.toml", "\n[[package]]\nname = \"x\"\nreason = \"\"\n", "tools.toml:", "the reason is empty"),
    ] {
        let world = World::new();
        world.append(file, text);
        world.lock(&[]).fails_with(&[file, place, what]);
        assert_not_locked(&world);
    }
}

#[test]
fn a_lock_that_is_none_is_replaced_with_a_warning() {
    let world = World::new();
    world.write("lock.toml", "version = [\n");
    world.lock(&[]).succeeds().says(&["the present lock cannot be read and is replaced", "lock.toml:1:"]);
    assert_eq!(lock_text(&world), lock_text(&World::locked()));
}

#[test]
fn no_images_no_mirror_no_server() {
    let world = World::new();
    let nowhere = world.path("nowhere").display().to_string();
    run(world.command(&["lock"]).env("NODEZERO_IMAGES", &nowhere)).succeeds();
    fs::remove_dir_all(world.images()).expect("it is there");
    world.lock(&[]).fails_with(&["no images directory", &world.images().display().to_string(), "--images"]);

    let world = World::new();
    let url = {
        let gone = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("the loopback has a free port");
        format!("http://{}", gone.local_addr().expect("it is bound"))
    };
    let named = ["debian dists/trixie/InRelease", &url, "onnection refused"];
    run(world.bare(&["lock"]).args(["--mirror", &url])).fails_with(&named);
    assert_not_locked(&world);
}
