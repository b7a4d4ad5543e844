//! `nodezero build` and `inspect`: outputs, their formats, their sameness, and what each mistake is answered with.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::archive::{KERNEL, Package};
use crate::world::{BUILT, Outcome, World, json, package, run, sha256, sparse_digest};

fn inspect(world: &World, image: &Path, args: &[&str]) -> Outcome {
    run(world.bare(&["inspect"]).arg(image).args(args))
}

#[test]
fn every_format_holds_the_same_bytes() {
    let world = World::warm();
    let formats = ["raw", "raw.zst", "raw.gz", "qcow2"];
    let mut command = world.build_command(&["--json"]);
    for format in formats {
        command.args(["--format", format]);
    }
    let printed = run(&mut command).succeeds().json();
    let raw = world.output(".raw");
    let expected = sha256(&raw);
    assert_eq!(sparse_digest(&raw), sparse_digest(&BUILT.output(".raw")), "other formats change nothing");
    assert_eq!(printed["outputs"].as_array().map(Vec::len), Some(4), "{printed}");
    let compressed = |end: &str| File::open(world.output(end)).expect("it was found");
    let zst = zstd::Decoder::new(compressed(".raw.zst")).expect("it is zstd");
    assert_eq!(digest_of(zst), expected, "raw.zst");
    assert_eq!(digest_of(flate2::read::GzDecoder::new(compressed(".raw.gz"))), expected, "raw.gz");
    let sums = fs::read_to_string(world.output(".sha256")).expect("it was found");
    assert_eq!(sums.lines().count(), 4, "{sums}");
    for (line, format) in sums.lines().zip(formats) {
        let (sum, name) = line.split_once("  ").expect("as sha256sum writes it");
        let path = world.path("out").join(name);
        assert!(name.ends_with(&format!(".{format}")) && sum == sha256(&path), "{line}");
        let output =
            printed["outputs"].as_array().and_then(|list| list.iter().find(|output| output["format"] == format));
        assert_eq!(output.expect("it was printed")["sha256"], sum);
        let mode = fs::metadata(path).expect("it was found").permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "{name}");
    }
    for end in [".raw", ".raw.zst", ".raw.gz"] {
        let text = inspect(&world, &world.output(end), &[]).succeeds().stdout;
        assert!(text.contains("slot root-a root hash ") && text.contains(": verified"), "{end}: {text}");
    }
    inspect(&world, &world.output(".qcow2"), &[]).fails_with(&["qcow2", "qemu-img convert"]);
    if let Some(mut qemu_img) = tool("qemu-img") {
        run(qemu_img.arg("check").arg(world.output(".qcow2"))).succeeds();
        let mut compare = Command::new("qemu-img");
        compare.args(["compare", "-f", "qcow2", "-F", "raw"]).arg(world.output(".qcow2")).arg(&raw);
        run(&mut compare).succeeds();
    }
    let left: Vec<String> = world.outputs().into_iter().map(|(name, _)| name).collect();
    assert_eq!(left.len(), 7, "four images, sums, manifest and bill, nothing else: {left:?}");
}

fn digest_of(mut reader: impl Read) -> String {
    use sha2::Digest as _;
    let mut hasher = sha2::Sha256::new();
    std::io::copy(&mut reader, &mut hasher).expect("it decompresses to its end");
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A program to check with. Where the project is tested for good, it has to be there.
fn tool(name: &str) -> Option<Command> {
    let found = Command::new(name).arg("--version").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "{name} is not installed");
    if !found {
        eprintln!("skipped: {name} is not installed");
    }
    found.then(|| Command::new(name))
}

#[test]
fn manifest_and_bill_say_what_is_in_the_image() {
    let manifest = BUILT.manifest();
    let lock: Value = toml::from_str(&fs::read_to_string(BUILT.images().join("lock.toml")).expect("there is a lock"))
        .expect("the lock is TOML");
    let pin = |name: &str| {
        let pins = lock["package"].as_array().expect("a list");
        pins.iter().find(|pin| pin["name"] == name).expect("it is pinned").clone()
    };
    let packages = manifest["packages"].as_array().expect("a list");
    let names: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let kernel = format!("linux-image-{KERNEL}");
    assert_eq!(names, ["base-files", &kernel, "linux-image-amd64", "tiny-data", "tiny-service"]);
    for package in packages {
        assert_eq!(package["sha256"], pin(package["name"].as_str().expect("a name"))["sha256"]);
    }
    assert_eq!(manifest["kernel"], KERNEL);
    assert_eq!(manifest["timestamp"], "2025-03-01T00:00:00Z");
    assert_eq!(manifest["role"], "worker");
    assert_eq!(manifest["raw_sha256"], sha256(&BUILT.output(".raw")));
    assert_eq!(manifest["firstboot_sha256"], sha256(&BUILT.path("firstboot")));
    let cmdline = manifest["cmdline"].as_str().expect("text");
    let hash = manifest["root_hash"].as_str().expect("text");
    assert!(cmdline.starts_with(&format!("roothash={hash} ")) && cmdline.ends_with(" console=ttyS0"), "{cmdline}");
    let labels: Vec<&str> =
        manifest["partitions"].as_array().expect("a list").iter().filter_map(|part| part["label"].as_str()).collect();
    assert_eq!(labels, ["ESP", "root-a", "root-a-verity"]);

    let bill = json(&fs::read(BUILT.output(".spdx.json")).expect("it was found"));
    assert_eq!(bill["spdxVersion"], "SPDX-2.3");
    let text = bill.to_string();
    for name in names.iter().chain(&["systemd-boot-efi"]) {
        assert!(text.contains(name), "{name}: {text}");
    }

    let report = inspect(&BUILT, &BUILT.output(".raw"), &["--json", "--files"]).succeeds().json();
    assert_eq!(report["image"]["packages"], manifest["packages"]);
    assert_eq!(report["partitions"], manifest["partitions"]);
    assert_eq!(report["slots"][0]["root_hash"], manifest["root_hash"]);
    assert_eq!(report["shares"], manifest["sizes"]["shares"]);
    let files: Vec<&str> = report["files"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    for line in [
        "-0644 0:0 700000 /usr/share/tiny/data",
        "l0777 0:0 0 /etc/systemd/system/multi-user.target.wants/tiny.service -> /usr/lib/systemd/system/tiny.service",
        "-0640 0:42",
        "/usr/lib/nodezero/nodezero-firstboot",
    ] {
        assert!(files.iter().any(|file| file.contains(line)), "{line}: {files:#?}");
    }
    assert!(!files.iter().any(|file| file.contains("usr/share/doc/base-files")), "it is left out: {files:#?}");
}

#[test]
fn the_size_is_shared_without_a_rest() {
    let sizes = &BUILT.manifest()["sizes"];
    let shares = sizes["shares"].as_array().expect("a list");
    let of = |part: &str, size: &str| {
        let mut found = shares.iter().filter(|share| share["part"] == part);
        let size = found.next().unwrap_or_else(|| panic!("{part}: {shares:#?}"))[size].as_u64().expect("a number");
        assert!(found.next().is_none(), "{part} is there once: {shares:#?}");
        size
    };
    let packed = |parts: &[&str]| parts.iter().map(|part| of(part, "packed")).sum::<u64>();
    let root = sizes["root"].as_u64().expect("a number");
    let of_root = packed(&["modules", "firstboot", "debian", "file-system"]);
    // The root is padded to whole blocks.
    assert!((root - 4096..=root).contains(&of_root), "{of_root} of {root}: {shares:#?}");
    assert_eq!(sizes["initrd"], of("initrd", "packed"), "{shares:#?}");
    assert!(of("initrd", "bytes") > of("firstboot", "bytes"), "the initrd holds that program, too: {shares:#?}");
    assert!(of("debian", "bytes") > 700_000, "the packages' files: {shares:#?}");
    assert!(packed(&["kernel", "initrd", "esp"]) > sizes["uki"].as_u64().expect("a number"), "{shares:#?}");
    let text = inspect(&BUILT, &BUILT.output(".raw"), &[]).succeeds().stdout;
    for part in ["size of ", "kernel ", "kernel modules ", "initrd ", "rest of Debian ", "hash tree ", "all "] {
        assert!(text.lines().any(|line| line.starts_with(part)), "{part}: {text}");
    }
}

#[test]
fn a_flipped_bit_is_seen() {
    let world = World::warm();
    let image = world.path("image.raw");
    let partitions = BUILT.manifest()["partitions"].clone();
    let place = |label: &str| {
        let list = partitions.as_array().expect("a list");
        let part = list.iter().find(|part| part["label"] == label).expect("the image has it");
        (part["offset"].as_u64().expect("a number"), part["size"].as_u64().expect("a number"))
    };
    let (root, root_size) = place("root-a");
    let (tree, _) = place("root-a-verity");
    fs::copy(BUILT.output(".raw"), &image).expect("it can be copied");
    let file = File::options().read(true).write(true).open(&image).expect("it was copied");
    let flip = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("it lies in the image");
        file.write_all_at(&[byte[0] ^ 0x10], at).expect("it lies in the image");
    };
    for at in [root, root + root_size / 2, tree + 4096] {
        flip(at);
        let outcome = inspect(&world, &image, &[]);
        assert_eq!(outcome.code, Some(1), "{at}: {outcome:?}");
        assert!(
            outcome.stdout.contains("slot root-a") && outcome.stdout.contains("NOT VERIFIED: "),
            "{at}: {outcome:?}"
        );
        let report = inspect(&world, &image, &["--json"]);
        assert_eq!((report.code, report.json()["slots"][0]["verified"].clone()), (Some(1), Value::Bool(false)), "{at}");
        assert!(report.json()["image"].is_null(), "what did not verify is not parsed");
        flip(at);
    }
    inspect(&world, &image, &[]).succeeds();
    fs::write(&image, vec![0; 1 << 20]).expect("it can be written");
    inspect(&world, &image, &[]).fails_with(&["image.raw"]);
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let expected = BUILT.contents();
    // Cold, elsewhere, as somebody else.
    let world = World::locked();
    let home = world.path("images").join("home");
    let mut command = Command::new("sh");
    command.args(["-c", "umask 077; exec \"$@\"", "sh"]);
    let build = world.build_command(&[]);
    command.arg(build.get_program()).args(build.get_args()).env_clear().current_dir("/");
    command.env("http_proxy", world.server.url()).env("NO_PROXY", "127.0.0.1");
    command.env("HOME", home).env("TZ", "Pacific/Kiritimati").env("LANG", "de_DE.UTF-8").env("USER", "somebody");
    fs::set_permissions(world.images().join("files/base/etc/hosts"), fs::Permissions::from_mode(0o600))
        .expect("it is ours");
    run(&mut command).succeeds();
    assert_eq!(world.contents(), expected, "cold, elsewhere");
    // Warm, again, over what is there.
    world.build(&[]).succeeds();
    assert_eq!(world.contents(), expected, "warm, again");
    // With the packs of another role there.
    fs::remove_dir_all(world.path("cache")).expect("it is there");
    let mut edge = world.command(&["build", "edge", "--firstboot"]);
    run(edge.arg(world.path("firstboot")).arg("--out").arg(world.path("edge"))).succeeds();
    world.build(&[]).succeeds();
    assert_eq!(world.contents(), expected, "after another role");
}

#[test]
fn every_input_changes_the_version() {
    let version = |world: &World| {
        json(run(&mut world.command(&["plan", "worker"])).succeeds().stdout.as_bytes())["version"].clone()
    };
    let world = World::locked();
    let before = version(&world);
    world.write("files/base/etc/hosts", "127.0.0.1 other\n");
    let with_file = version(&world);
    world.append("users.toml", "\n# a comment\n");
    let with_users = version(&world);
    assert!(before != with_file && with_file != with_users, "{before} {with_file} {with_users}");
}

#[test]
fn words_that_mean_nothing_are_refused() {
    let world = World::locked();
    let outcome = run(world.command(&["build", "wroker"]).arg("--firstboot").arg(world.path("firstboot")));
    outcome.fails_with(&["wroker", "control, edge, worker", &world.images().join("roles").display().to_string()]);
    for (args, named) in [
        (["--format", "iso"], ["\"iso\" is not a format", "raw.zst"]),
        (["--platform", "pc"], ["\"pc\" is not a platform", "metal or vps"]),
    ] {
        let outcome = world.build(&args).says(&named);
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
    }
    world.assert_no_outputs();
}

#[test]
fn a_lock_that_does_not_fit_is_refused() {
    let world = World::locked();
    world.append("sets/base.toml", &package("left"));
    world.build(&[]).fails_with(&["sets/base.toml:", "left", "nodezero lock"]);

    let world = World::locked();
    world.append("sets/base.toml", "\n[[omit]]\nname = \"x\"\nreason = \"a test\"\n");
    world.build(&[]).fails_with(&["worker-metal", "nodezero lock"]);

    let world = World::new();
    world.build(&[]).fails_with(&["lock.toml", "nodezero lock"]);
    world.write("lock.toml", "version = 1\ntimestamp = 3\n");
    world.build(&[]).fails_with(&["lock.toml:2:13"]);
}

#[test]
fn a_typo_in_a_recipe_has_a_place() {
    let world = World::warm();
    world.append("sets/base.toml", "\n[[enable]]\nunti = \"tiny.service\"\nreason = \"a test\"\n");
    world.build(&[]).fails_with(&["sets/base.toml:20:1", "unknown field `unti`"]);
    world.assert_no_outputs();
}

/// A world whose archive and recipe have one package more, locked.
fn with_package(extra: Package) -> World {
    let mut world = World::warm();
    world.append("sets/base.toml", &package(&extra.name));
    world.republish(|archive| archive.packages.push(extra));
    world.lock(&[]).succeeds();
    world
}

#[test]
fn a_script_that_no_rule_covers_is_refused() {
    let script = "#!/bin/sh\nset -e\nuseradd mallory\n";
    let world =
        with_package(Package::new("scripted", "1-1").script("postinst", script).script("prerm", "#!/bin/sh\nfalse\n"));
    let sum = crate::world::digest(script.as_bytes());
    let named = ["package scripted", "postinst", &sum, "line 3: useradd mallory", "scripts.toml"];
    let outcome = world.build(&[]).fails_with(&named);
    assert!(!outcome.stderr.contains("prerm"), "it is ignored: {outcome:?}");
    world.assert_no_outputs();
    let rule = format!(
        "\n[[script]]\npackage = \"scripted\"\nkind = \"postinst\"\nsha256 = \"{sum}\"\ncovered-by = \"nothing\"\nreason = \"a test\"\n"
    );
    world.append("scripts.toml", &rule);
    world.build(&[]).succeeds();
}

#[test]
fn a_trigger_that_no_rule_covers_is_refused() {
    let world = with_package(Package::new("triggered", "1-1").script("triggers", "activate-noawait ldconfig\n"));
    world.build(&[]).fails_with(&["package triggered", "triggers", "trigger ldconfig"]);
    world.append("scripts.toml", "\n[[trigger]]\nname = \"ldconfig\"\nreason = \"a test\"\n");
    world.build(&[]).succeeds();
}

#[test]
fn packages_that_ship_different_files_at_one_path_are_refused() {
    let world = with_package(Package::new("tiny-impostor", "1-1").file("usr/share/tiny/data", "other"));
    world.build(&[]).fails_with(&["usr/share/tiny/data", "tiny-impostor", "tiny-data"]);
    world.assert_no_outputs();
    let equal =
        with_package(Package::new("tiny-twin", "1-1").file("usr/share/tiny/data", crate::archive::noise(700_000)));
    equal.build(&[]).succeeds();
}

#[test]
fn a_user_without_a_fixed_id_is_refused() {
    let world =
        with_package(Package::new("new-user", "1-1").file("usr/lib/sysusers.d/new.conf", "u newcomer - \"New\"\n"));
    world.build(&[]).fails_with(&["/usr/lib/sysusers.d/new.conf", "newcomer", "images/users.toml"]);
    let world = with_package(Package::new("new-id", "1-1").file("usr/lib/sysusers.d/id.conf", "u tiny 201 \"Tiny\"\n"));
    world.build(&[]).fails_with(&["/usr/lib/sysusers.d/id.conf", "tiny", "201", "200"]);
    world.assert_no_outputs();
}

#[test]
fn units_that_cannot_be_enabled_are_refused() {
    for (unit, what) in [("absent.service", "there is no such unit"), ("static.service", "no [Install] section")] {
        let world = World::warm();
        world.append("sets/base.toml", &format!("\n[[enable]]\nunit = \"{unit}\"\nreason = \"a test\"\n"));
        world.build(&[]).fails_with(&["sets/base.toml:20:8", unit, what]);
        world.assert_no_outputs();
    }
    let world = World::warm();
    world.append("sets/base.toml", "\n[[mask]]\nunit = \"tiny.service\"\nreason = \"a test\"\n");
    world.build(&[]).fails_with(&["tiny.service", "masked"]);
}

#[test]
fn kernels_and_modules_that_are_not_there_are_named() {
    let world = World::warm();
    world.append("platforms/metal.toml", "[[initrd.modules]]\nname = \"no-disk\"\nreason = \"a test\"\n");
    world.build(&[]).fails_with(&["platforms/metal.toml:", KERNEL, "no-disk"]);
    let other = Package::new("other-kernel", "1-1").file("boot/vmlinuz-1.0-other", "x");
    with_package(other).build(&[]).fails_with(&["more than one kernel", KERNEL, "1.0-other"]);
}

#[test]
fn a_first_boot_binary_that_is_not_static_is_refused() {
    let world = World::warm();
    for (content, what) in [
        (fs::read(env!("CARGO_BIN_EXE_nodezero")).expect("it was built"), "linked dynamically"),
        (b"#!/bin/sh\n".to_vec(), "not an x86-64 program"),
    ] {
        fs::write(world.path("firstboot"), content).expect("it can be written");
        world.build(&[]).fails_with(&[&world.path("firstboot").display().to_string(), what]);
    }
    fs::remove_file(world.path("firstboot")).expect("it was written");
    world.build(&[]).fails_with(&[&world.path("firstboot").display().to_string()]);
    world.assert_no_outputs();
}

#[test]
fn places_that_cannot_be_written_are_named() {
    let world = World::warm();
    fs::write(world.path("out"), "a file").expect("it can be written");
    world.build(&[]).fails_with(&["output directory", &world.path("out").display().to_string()]);
    fs::remove_file(world.path("out")).expect("it was written");

    fs::create_dir(world.path("out")).expect("nothing is there");
    fs::set_permissions(world.path("out"), fs::Permissions::from_mode(0o555)).expect("it is ours");
    if File::create(world.path("out/probe")).is_ok() {
        eprintln!("skipped: root may write to a read-only directory");
        fs::remove_file(world.path("out/probe")).expect("it was made");
    } else {
        world.build(&[]).fails_with(&["output directory", &world.path("out").display().to_string(), "denied"]);
    }

    fs::remove_dir_all(world.path("cache")).expect("it is there");
    fs::write(world.path("cache"), "a file").expect("it can be written");
    world.build(&[]).fails_with(&["cache directory", &world.path("cache").display().to_string()]);
    world.assert_no_outputs();
}

/// A limit on the size of files stands for a full disk: both end a write in the middle with an error.
#[test]
fn a_full_disk_is_one_clear_error() {
    let world = World::warm();
    for (blocks, what) in [("200", "writing"), ("20000", &world.path("out").display().to_string()[..])] {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\"", blocks]);
        let build = world.build_command(&[]);
        command.arg(build.get_program()).args(build.get_args()).env("HOME", world.path("home"));
        run(&mut command).fails_with(&[what, "File too large"]);
        world.assert_no_outputs();
        assert!(world.cached("tmp").is_empty(), "{:?}", world.cached("tmp"));
    }
}
