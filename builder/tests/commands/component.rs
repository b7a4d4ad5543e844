//! Components: which source is taken, what is said of it, and what reaches the image.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::archive::Package;
use crate::server::Fault;
use crate::world::{Outcome, World, digest, package, run};

const PROGRAM: &[u8] = b"the official program";
const IMAGES: &[u8] = b"the official images";
/// What our rig's programs have in them.
const STANDIN: &[u8] = b"a program of nodezero.dev/rig/cmd/prog";
const SUM: &str = "h1:pinned";

/// A world with the component `prog`: a program and optional images, from a release, else a stand-in.
fn world() -> World {
    world_of(World::warm())
}

fn world_of(world: World) -> World {
    let url = world.server.url();
    world.write(
        "components/prog.toml",
        &format!(
            r#"description = "a program"
roles = ["worker"]
[[file]]
name = "prog"
path = "usr/bin/prog"
mode = "0755"
reason = "it runs"
[[file]]
name = "images.tar.zst"
path = "usr/lib/prog/images.tar.zst"
optional = true
reason = "it needs them"
[[source]]
release = "v1+r1"
[[source.download]]
url = "{url}/{{version}}/prog"
files = ["prog"]
checksums = "{url}/{{version}}/sums"
[[source.download]]
url = "{url}/{{version}}/images.tar.zst"
files = ["images.tar.zst"]
checksums = "{url}/{{version}}/sums"
[[source]]
standin = "v0"
directory = "rig"
set = "prog-standin"
[[source.build]]
package = "./cmd/prog"
file = "prog"
[[source.build]]
package = "./cmd/images"
file = "images.tar.zst"
run = ["-o", "{{file}}"]
"#
        ),
    );
    world.write("sets/prog-standin.toml", &format!("description = \"for the stand-in\"\n{}", package("tool")));
    fs::create_dir_all(world.path("rig")).expect("the directory can be written");
    fs::write(world.path("rig/go.mod"), "module nodezero.dev/rig\n").expect("the directory can be written");
    serve(&world);
    let sums = format!("{}  prog\n{}  images.tar.zst\n", digest(PROGRAM), digest(IMAGES));
    world.server.put("/v1%2Br1/sums", sums);
    world.lock(&[]).succeeds();
    world
}

fn serve(world: &World) {
    world.server.put("/v1%2Br1/prog", PROGRAM);
    world.server.put("/v1%2Br1/images.tar.zst", IMAGES);
}

/// The release is nowhere any more.
fn withdraw(world: &World) {
    for name in ["prog", "images.tar.zst"] {
        world.server.fail(&format!("/v1%2Br1/{name}"), usize::MAX, &Fault::Status(404));
    }
}

/// Puts a `go` into the world's `PATH` that writes what it is told and what it was asked.
fn install_go(world: &World) {
    let script = format!(
        r#"#!/bin/sh
echo "$PWD $*" >> '{log}'
env | grep ^GO >> '{log}'
case $1 in
version) echo "go version go1.2.3 linux/amd64" ;;
mod) printf '{{"Path":"m","Dir":"%s","Sum":"{SUM}"}}' '{module}' ;;
build)
    while [ "$1" != -o ]; do shift; done
    case $3 in
    ./cmd/images) printf '#!/bin/sh\nprintf "images of a stand-in" > "$2"\n' > "$2"; chmod +x "$2" ;;
    *) printf '{standin}' > "$2" ;;
    esac ;;
esac
"#,
        log = world.path("go.log").display(),
        module = world.path("module").display(),
        standin = String::from_utf8_lossy(STANDIN),
    );
    let path = world.path("bin/go");
    fs::create_dir_all(world.path("bin")).expect("the directory can be written");
    fs::create_dir_all(world.path("module")).expect("the directory can be written");
    fs::write(&path, script).expect("the directory can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

/// `build worker` with a `PATH` that has the world's own programs first.
fn build(world: &World, args: &[&str]) -> Outcome {
    let path = format!("{}:/usr/bin:/bin", world.path("bin").display());
    run(world.build_command(args).env("PATH", path))
}

fn go_log(world: &World) -> String {
    fs::read_to_string(world.path("go.log")).unwrap_or_default()
}

fn inspect(world: &World) -> String {
    run(world.bare(&["inspect", "--files"]).arg(world.output(".raw"))).succeeds().stdout
}

fn clear_out(world: &World) {
    fs::remove_dir_all(world.path("out")).expect("it was made");
}

#[test]
fn the_release_is_taken_where_it_can_be_had() {
    let world = world();
    let outcome = build(&world, &["--quiet", "--official-only"]).succeeds();
    assert_eq!(outcome.stderr, "", "nothing is worth a warning");
    let manifest = world.manifest();
    assert_eq!(manifest["components"][0]["version"], "v1+r1");
    assert_eq!(manifest["components"][0]["source"], "release");
    assert_eq!(manifest["components"][0]["files"][0]["sha256"], digest(PROGRAM));
    assert_eq!(manifest["components"][0]["files"][0]["size"], PROGRAM.len());
    assert!(manifest.get("standin").is_none() && manifest.get("missing").is_none(), "{manifest}");
    let text = inspect(&world);
    for line in
        ["-0755 0:0 20 /usr/bin/prog", "-0644 0:0 19 /usr/lib/prog/images.tar.zst", "component prog v1+r1 (release)"]
    {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("standin") && !text.contains("package tool"), "{text}");
    for line in ["prog /usr/bin/prog ", "prog /usr/lib/prog/images.tar.zst "] {
        assert!(text.lines().any(|found| found.starts_with(line)), "each file of a component is a share: {text}");
    }

    // Again without network, with nothing but packs.
    let before = world.contents();
    fs::remove_dir_all(world.path("cache/files")).expect("the cache has it");
    world.server.take_requests();
    clear_out(&world);
    build(&world, &["--offline"]).succeeds();
    assert_eq!(world.contents(), before, "the same bytes");
    assert_eq!(world.server.take_requests(), [""; 0]);
}

#[test]
fn a_stand_in_is_taken_where_the_release_cannot_be_had_and_says_so_everywhere() {
    let world = world();
    withdraw(&world);
    install_go(&world);
    let outcome = build(&world, &["--quiet"]).succeeds();
    assert_eq!(outcome.stderr.lines().count(), 1, "one warning: {outcome:?}");
    outcome.says(&["warning: prog cannot be had", "v1+r1", "stand-in", "--component prog=PATH", "--official-only"]);
    let names: Vec<String> = world.outputs().into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().all(|name| name.contains("-standin.")), "{names:?}");
    let manifest = world.manifest();
    assert_eq!(manifest["standin"], serde_json::json!(["prog"]));
    assert_eq!(manifest["components"][0]["go"], "go1.2.3");
    assert!(manifest["cmdline"].as_str().is_some_and(|line| line.contains(" nodezero.standin=prog ")), "{manifest}");
    let text = inspect(&world);
    assert!(
        text.contains("stand-in: prog") && text.contains("package tool") && text.contains("/usr/bin/prog"),
        "{text}"
    );
    let bill = fs::read_to_string(world.output(".spdx.json")).expect("it was found");
    assert!(bill.contains("stand-in"), "{bill}");
    // What a go client is told does not depend on the user.
    let log = go_log(&world);
    for word in
        ["build -trimpath -mod=readonly", "GOFLAGS=-buildvcs=false", "GOTOOLCHAIN=local", "GOOS=linux", "GOWORK=off"]
    {
        assert!(log.contains(word), "{word}: {log}");
    }
    assert!(log.contains(&format!("{} build", world.path("rig").display())), "{log}");

    // What did not change is not built again, and gives the same bytes.
    let before = world.contents();
    fs::remove_file(world.path("go.log")).expect("it was written");
    clear_out(&world);
    build(&world, &["--component", "prog=standin", "--quiet"]).succeeds();
    assert_eq!(world.contents(), before);
    assert!(!go_log(&world).contains(" build "), "{}", go_log(&world));
    // What changed is.
    fs::write(world.path("rig/new.go"), "package rig\n").expect("the directory can be written");
    build(&world, &["--component", "prog=standin", "--quiet"]).succeeds();
    assert!(go_log(&world).contains(" build "), "{}", go_log(&world));

    clear_out(&world);
    build(&world, &["--official-only"]).fails_with(&["component prog", "--official-only", "not at any of its sources"]);
    build(&world, &["--component", "prog=release"]).fails_with(&["component prog", "--component prog=PATH"]);
    world.assert_no_outputs();
}

#[test]
fn without_release_and_go_all_that_was_tried_is_said() {
    let world = world();
    withdraw(&world);
    fs::create_dir_all(world.path("bin")).expect("the directory can be written");
    let empty = world.path("bin").display().to_string();
    let outcome = run(world.build_command(&[]).env("PATH", empty));
    outcome.fails_with(&["component prog", "release v1+r1", "standin v0", "no go client", "prog=PATH", "prog=none"]);
    world.assert_no_outputs();
    let offline = build(&world, &["--offline"]);
    offline.fails_with(&["component prog", "is not in the cache, and --offline forbids"]);
}

#[test]
fn what_is_wrong_with_a_release_is_never_a_reason_for_a_stand_in() {
    let world = world();
    install_go(&world);
    let tampered = b"the official Program";
    world.server.put("/v1%2Br1/prog", tampered.as_slice());
    build(&world, &[]).fails_with(&["prog v1+r1 (prog)", &digest(tampered), &digest(PROGRAM)]);
    serve(&world);
    world.server.fail("/v1%2Br1/prog", usize::MAX, &Fault::Cut);
    build(&world, &[]).fails_with(&["prog v1+r1 (prog)"]);
    world.assert_no_outputs();
    assert_eq!(go_log(&world), "");
}

#[test]
fn a_path_goes_before_all_sources() {
    let world = world();
    let dir = world.path("mine");
    fs::create_dir(&dir).expect("the directory is new");
    let program = dir.join("prog");
    let argument = |path: &Path| format!("prog={}", path.display());
    for (case, content, path, source, stem) in [
        ("a program of the user's own", b"my own".as_slice(), &program, "local", ""),
        ("the release, from elsewhere", PROGRAM, &dir, "release", ""),
        ("a stand-in, however it comes", STANDIN, &dir, "standin", "-standin"),
    ] {
        fs::write(&program, content).expect("the directory can be written");
        build(&world, &["--quiet", "--component", &argument(path)]).succeeds();
        let manifest = world.manifest();
        assert_eq!(manifest["components"][0]["source"], source, "{case}");
        let files = manifest["components"][0]["files"].as_array().map(Vec::len);
        assert_eq!(files, Some(1), "{case}: images are optional");
        assert!(!manifest.to_string().contains("mine"), "{case}: no path of the user's reaches an image");
        world.output(&format!("{stem}.raw"));
        clear_out(&world);
    }
    build(&world, &["--official-only", "--component", &argument(&program)])
        .fails_with(&["stand-in", "--official-only"]);
    fs::remove_file(&program).expect("it was written");
    build(&world, &["--component", &argument(&dir)]).fails_with(&["holds no prog", "mine"]);
    build(&world, &["--component", &argument(&program)]).fails_with(&["reading", "mine/prog"]);
    fs::write(&program, "").expect("the directory can be written");
    build(&world, &["--component", &argument(&program)]).fails_with(&["mine/prog is empty"]);
    assert!(world.server.take_requests().iter().all(|path| !path.contains("/v1%2Br1/prog")), "nothing was fetched");
    world.assert_no_outputs();
}

#[test]
fn an_image_may_go_without_and_says_so() {
    let world = world();
    build(&world, &["--quiet", "--component", "prog=none"]).succeeds();
    assert_eq!(world.manifest()["missing"], serde_json::json!(["prog"]));
    world.output("-incomplete.raw");
    let text = inspect(&world);
    assert!(text.contains("incomplete: the image goes without prog") && !text.contains("usr/bin/prog"), "{text}");
}

#[test]
fn mistakes_in_choices_are_named() {
    let world = world();
    for (args, words) in [
        (["--component", "prgo=none"], ["no component prgo", "prog"]),
        (["--component", "prog=go"], ["no source go", "release, standin, none, or a path"]),
    ] {
        build(&world, &args).fails_with(&words);
    }
    let edge = run(world.command(&["build", "edge", "--component", "prog=./x"]).env("PATH", "/usr/bin"));
    edge.fails_with(&["prog is no component of edge"]);
    let usage = build(&world, &["--component", "prog"]);
    assert_eq!(usage.code, Some(2), "{usage:?}");
    world.assert_no_outputs();
}

#[test]
fn the_lock_keeps_pins_and_learns_new_ones() {
    let world = world();
    let lock = || fs::read_to_string(world.images().join("lock.toml")).expect("there is a lock");
    assert!(lock().contains(&digest(PROGRAM)) && lock().contains("name = \"worker-metal+prog-standin\""), "{}", lock());
    // What is pinned is not asked for again.
    world.server.take_requests();
    world.lock(&[]).succeeds();
    assert!(world.server.take_requests().iter().all(|path| !path.contains("sums")));

    let recipe = fs::read_to_string(world.images().join("components/prog.toml")).expect("it was written");
    world.write("components/prog.toml", &recipe.replace("v1+r1", "v2"));
    build(&world, &["--component", "prog=release"]).fails_with(&["the lock pins no", "/v2/prog", "nodezero lock"]);
    world.lock(&[]).fails_with(&["pinning prog v2", "/v2/sums"]);
    world.server.put("/v2/sums", format!("{} *prog\n{} *images.tar.zst\n", digest(b"2"), digest(IMAGES)));
    let outcome = world.lock(&[]).succeeds();
    assert!(outcome.stdout.contains("- prog v1+r1") && outcome.stdout.contains("+ prog v2"), "{outcome:?}");
    world.server.put("/v2/prog", "2");
    world.server.put("/v2/images.tar.zst", IMAGES);
    build(&world, &["--quiet"]).succeeds();
    assert_eq!(world.manifest()["components"][0]["version"], "v2");
}

/// A world whose `prog` comes as an archive of two programs, else as one program of a module that is both.
fn module_world() -> (World, Vec<u8>) {
    let world = World::warm();
    let url = world.server.url();
    world.write(
        "components/prog.toml",
        &format!(
            r#"description = "a program"
roles = ["worker", "edge"]
[[file]]
name = "progd"
path = "usr/sbin/progd"
mode = "0755"
reason = "it runs"
[[file]]
name = "prog"
path = "usr/bin/prog"
mode = "0755"
or-link = "progd"
reason = "it asks"
[[source]]
release = "1"
[[source.download]]
url = "{url}/prog_{{version}}.tgz"
files = ["progd", "prog"]
checksums = "{url}/prog_{{version}}.tgz.sha256"
[[source]]
module = "example.com/m"
version = "v2.0.0"
[[source.build]]
package = "./cmd/progd"
file = "progd"
tags = ["both"]
variables = {{ "example.com/m.version" = "2.0.0" }}
"#
        ),
    );
    let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, content) in [("prog_1/progd", "daemon"), ("prog_1/prog", "client"), ("prog_1/x/prog", "another")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        archive.append_data(&mut header, name, content.as_bytes()).expect("memory can be written");
    }
    let bytes = archive.into_inner().and_then(flate2::write::GzEncoder::finish).expect("memory can be written");
    world.server.put("/prog_1.tgz", bytes.clone());
    world.server.put("/prog_1.tgz.sha256", digest(&bytes));
    install_go(&world);
    let path = format!("{}:/usr/bin:/bin", world.path("bin").display());
    run(world.command(&["lock"]).env("PATH", path)).succeeds();
    (world, bytes)
}

#[test]
fn archives_give_their_members() {
    let (world, bytes) = module_world();
    build(&world, &["--quiet"]).succeeds();
    let text = inspect(&world);
    assert!(text.contains("-0755 0:0 6 /usr/sbin/progd") && text.contains("-0755 0:0 6 /usr/bin/prog\n"), "{text}");
    let before = world.contents();
    world.server.take_requests();
    fs::remove_dir_all(world.path("cache/files")).expect("the cache has it");
    clear_out(&world);
    build(&world, &["--quiet", "--offline"]).succeeds();
    assert_eq!(world.contents(), before, "neither the archive nor its members are needed again");

    // The user's own copy of it.
    let path = world.path("given.tgz");
    fs::write(&path, &bytes).expect("the directory can be written");
    clear_out(&world);
    build(&world, &["--quiet", "--component", &format!("prog={}", path.display())]).succeeds();
    assert_eq!(world.manifest()["components"][0]["files"].as_array().map(Vec::len), Some(2));
    let mut file = fs::File::options().write(true).open(&path).expect("it was written");
    file.write_all(&bytes[..20]).and_then(|()| file.set_len(40)).expect("it was opened");
    build(&world, &["--component", &format!("prog={}", path.display())]).fails_with(&["unpacking", "given.tgz"]);
}

#[test]
fn a_module_is_built_where_the_release_cannot_be_had() {
    let (world, _) = module_world();
    world.server.fail("/prog_1.tgz", usize::MAX, &Fault::Status(403));
    let outcome = build(&world, &["--official-only"]).succeeds();
    assert!(!outcome.stderr.contains("warning"), "it is the publisher's own: {outcome:?}");
    outcome.says(&["prog v2.0.0 is built from its sources", "403"]);
    let text = inspect(&world);
    assert!(text.contains("/usr/bin/prog -> ../sbin/progd"), "one program is both: {text}");
    assert_eq!(world.manifest()["components"][0]["from"], format!("example.com/m@v2.0.0 {SUM}"));
    let log = go_log(&world);
    for word in [
        "mod download -json example.com/m@v2.0.0",
        "-X example.com/m.version=2.0.0 -tags both",
        "GONOSUMDB=example.com/m",
    ] {
        assert!(log.contains(word), "{word}: {log}");
    }

    // Another sum than the lock's.
    let lock = fs::read_to_string(world.images().join("lock.toml")).expect("there is a lock");
    world.write("lock.toml", &lock.replace(SUM, "h1:other"));
    let args = ["--component", "prog=go"];
    build(&world, &args).fails_with(&["the sum of example.com/m v2.0.0 is h1:pinned, expected h1:other"]);
}

/// With the real Go, where there is one.
#[test]
fn the_same_sources_give_the_same_bytes_in_any_directory() {
    let Ok(output) = Command::new("go").args(["env", "GOCACHE"]).output() else {
        eprintln!("skipped: there is no go client");
        return;
    };
    let gocache = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let mut programs = Vec::new();
    for _ in 0..2 {
        let world = world();
        withdraw(&world);
        for (name, text) in [
            ("go.mod", "module nodezero.dev/rig\n\ngo 1.24\n"),
            ("cmd/prog/main.go", "package main\n\nfunc main() { println(\"nodezero.dev/rig/\") }\n"),
            (
                "cmd/images/main.go",
                "package main\n\nimport \"os\"\n\nfunc main() { os.WriteFile(os.Args[2], []byte(\"images\"), 0o600) }\n",
            ),
        ] {
            let path = world.path("rig").join(name);
            fs::create_dir_all(path.parent().expect("it is in a directory")).expect("the directory can be written");
            fs::write(path, text).expect("the directory can be written");
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        run(world.build_command(&["--quiet"]).env("PATH", path).env("GOCACHE", &gocache)).succeeds();
        programs.push(world.manifest()["components"][0]["files"].clone());
    }
    assert_eq!(programs[0], programs[1]);
    assert_eq!(programs[0].as_array().map(Vec::len), Some(2));
}

/// A component's file at a path that a package has is a mistake of the recipe.
#[test]
fn conflicts_with_packages_are_named() {
    let mut world = World::warm();
    world.republish(|archive| archive.packages.push(Package::new("other", "1").file("usr/bin/prog", "of a package")));
    world.append("sets/base.toml", &package("other"));
    let world = world_of(world);
    build(&world, &[]).fails_with(&["laying in /usr/bin/prog of a component"]);
    world.assert_no_outputs();
}
