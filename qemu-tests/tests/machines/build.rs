//! What a build promises, shown on the real packages by running the command as a user does: the same bytes from any
//! directory, user and cache, nothing half-written after an interruption, and one clear error for what goes wrong.
//!
//! The edge image serves, as the smallest. Downloads are shared with the user's cache; everything else begins anew.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use qemu_tests::images::{self, Platform, Role};

/// Without the component of an edge image: building it is no part of these promises, and takes minutes.
const BARE: [&str; 2] = ["--component", "tailscale=none"];
/// An unprivileged user that every system has.
const NOBODY: u32 = 65534;
/// Long enough for a cold build on a busy machine.
const DEADLINE: Duration = Duration::from_secs(600);

/// A place to build in, with a cache of its own that holds nothing but downloads.
struct Place {
    dir: tempfile::TempDir,
    images: PathBuf,
    firstboot: PathBuf,
}

impl Place {
    fn new() -> Result<Place> {
        let images = recipes()?.to_owned();
        let dir = tempfile::tempdir()?;
        let place = Place { images, firstboot: first_boot_binary()?, dir };
        fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755))?;
        for name in ["cache", "out"] {
            fs::create_dir(place.path(name))?;
        }
        copy_tree(&user_cache()?.join("debs"), &place.path("cache/debs"))?;
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self) -> Result<Command> {
        self.command_to("out")
    }

    fn command_to(&self, out: &str) -> Result<Command> {
        let mut command = Command::new(images::nodezero()?);
        command
            .args(["build", "edge", "--platform", "vps", "--offline", "--json", "--quiet"])
            .args(BARE)
            .arg("--cache")
            .arg(self.path("cache"))
            .arg("--images")
            .arg(&self.images)
            .arg("--firstboot")
            .arg(&self.firstboot)
            .arg("--out")
            .arg(self.path(out))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }

    fn build(&self) -> Result<PathBuf> {
        let output = self.command()?.output()?;
        ensure!(output.status.success(), "building failed: {}", String::from_utf8_lossy(&output.stderr));
        self.image()?.context("the build left no image")
    }

    /// The image under its final name, if there is one.
    fn image(&self) -> Result<Option<PathBuf>> {
        let mut found = None;
        for entry in fs::read_dir(self.path("out"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|ext| ext == "raw") {
                found = Some(path);
            }
        }
        Ok(found)
    }

    /// The largest file of the cache in `kind`.
    fn largest(&self, kind: &str) -> Result<PathBuf> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.path("cache").join(kind))? {
            let entry = entry?;
            files.push((entry.metadata()?.len(), entry.path()));
        }
        files.sort();
        Ok(files.pop().context("the cache is empty")?.1)
    }
}

/// The recipes to build from, with all that they need in the user's cache: the workspace's own, or a copy with a new
/// lock where mirrors have dropped a pinned package, which without the network could not be replaced.
fn recipes() -> Result<&'static Path> {
    static RECIPES: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let prepare = || -> Result<PathBuf> {
        // Makes the first-boot binary too.
        images::built(Role::Edge, Platform::Vps)?;
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the package lies in the workspace")?;
        let own = workspace.join("images");
        let out = qemu_tests::scenario::base()?.join("locked");
        let build = |images: &Path| -> Result<Output> {
            let mut command = Command::new(images::nodezero()?);
            command
                .args(["build", "edge", "--platform", "vps", "--locked", "--quiet"])
                .args(BARE)
                .arg("--images")
                .arg(images);
            command.arg("--firstboot").arg(first_boot_binary()?).arg("--out").arg(&out);
            Ok(command.output()?)
        };
        let output = build(&own)?;
        if output.status.success() {
            return Ok(own);
        }
        ensure!(error_of(&output).contains("run nodezero lock"), "building failed: {}", error_of(&output));
        let copy = qemu_tests::scenario::base()?.join("recipes");
        if copy.exists() {
            fs::remove_dir_all(&copy)?;
        }
        copy_tree(&own, &copy)?;
        // Not through the hard link, which is the workspace's own lock.
        let lock = fs::read(copy.join("lock.toml"))?;
        fs::remove_file(copy.join("lock.toml"))?;
        fs::write(copy.join("lock.toml"), lock)?;
        let output = Command::new(images::nodezero()?).args(["lock", "--images"]).arg(&copy).output()?;
        ensure!(output.status.success(), "locking anew failed: {}", error_of(&output));
        let output = build(&copy)?;
        ensure!(output.status.success(), "building failed: {}", error_of(&output));
        Ok(copy)
    };
    let found = RECIPES.get_or_init(|| prepare().map_err(|error| format!("{error:#}")));
    found.as_deref().map_err(|error| anyhow::Error::msg(error.clone()))
}

fn user_cache() -> Result<PathBuf> {
    let given = std::env::var_os("NODEZERO_CACHE").map(PathBuf::from);
    let xdg = || std::env::var_os("XDG_CACHE_HOME").map(|dir| Path::new(&dir).join("nodezero"));
    let home = || std::env::var_os("HOME").map(|dir| Path::new(&dir).join(".cache/nodezero"));
    given.or_else(xdg).or_else(home).context("no cache directory is known")
}

/// The binary that the shared image was made with, which a build from the workspace has left in its target directory.
fn first_boot_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("NODEZERO_FIRSTBOOT") {
        return Ok(path.into());
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the package lies in the workspace")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    Ok(target.join("x86_64-unknown-linux-gnu/firstboot/nodezero-firstboot"))
}

/// Copies files by hard link where that is possible.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if fs::hard_link(entry.path(), &target).is_err() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits for a build that says little, and kills it when it has not ended in time: two that wait for each other would
/// never.
fn finish(mut child: Child, start: Instant) -> Result<Output> {
    while child.try_wait()?.is_none() {
        if start.elapsed() > DEADLINE {
            child.kill()?;
            let error = error_of(&child.wait_with_output()?);
            bail!("not ended after {DEADLINE:?}: {error}");
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(child.wait_with_output()?)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn builds_in_other_directories_by_other_users_with_cold_and_warm_caches_are_equal() -> Result<()> {
    let first = Place::new()?;
    let cold = fs::read(first.build()?)?;
    fs::remove_dir_all(first.path("out"))?;
    let warm = fs::read(first.build()?)?;
    ensure!(cold == warm, "a warm cache gives other bytes than a cold one");

    let second = Place::new()?;
    let mut command = second.command()?;
    command.env("TZ", "Pacific/Kiritimati").env("LANG", "tr_TR.UTF-8").current_dir("/");
    if is_root() {
        // Everything that another user needs must be readable to them; the checkout may not be.
        for (name, from) in [("nodezero", images::nodezero()?.to_owned()), ("firstboot", second.firstboot.clone())] {
            fs::copy(from, second.path(name))?;
        }
        copy_tree(&second.images, &second.path("images"))?;
        let own = |path: &Path| std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY));
        for name in ["cache", "out", "cache/debs"] {
            own(&second.path(name))?;
        }
        let mut other = Command::new(second.path("nodezero"));
        other.args(["build", "edge", "--platform", "vps", "--offline", "--quiet"]).args(BARE);
        other.arg("--cache").arg(second.path("cache")).arg("--images").arg(second.path("images"));
        other.arg("--firstboot").arg(second.path("firstboot")).arg("--out").arg(second.path("out"));
        other.env("HOME", "/").uid(NOBODY).gid(NOBODY).current_dir("/").stdin(Stdio::null());
        command = other;
    }
    let output = command.output()?;
    ensure!(output.status.success(), "another user's build failed: {}", error_of(&output));
    let other = fs::read(second.image()?.context("the build left no image")?)?;
    ensure!(cold == other, "another directory and user give other bytes");
    Ok(())
}

#[test]
fn an_interrupted_build_leaves_nothing_and_the_next_is_right() -> Result<()> {
    let place = Place::new()?;
    for milliseconds in [50, 300, 800, 1500, 2500, 4000, 6000] {
        let mut child = place.command()?.spawn()?;
        thread::sleep(Duration::from_millis(milliseconds));
        // It may have ended by itself on a fast machine; then it is complete.
        let ended = child.try_wait()?;
        child.kill()?;
        child.wait()?;
        if ended.is_none() {
            ensure!(place.image()?.is_none(), "an image stands there after an interruption at {milliseconds} ms");
        }
        fs::remove_dir_all(place.path("out"))?;
        fs::create_dir(place.path("out"))?;
    }
    let after = fs::read(place.build()?)?;
    let untouched = fs::read(Place::new()?.build()?)?;
    ensure!(after == untouched, "the build after interruptions differs");
    Ok(())
}

#[test]
fn two_builds_at_once_share_a_cache() -> Result<()> {
    let place = Place::new()?;
    fs::create_dir(place.path("out2"))?;
    let first = place.command_to("out")?.spawn()?;
    let second = place.command_to("out2")?.spawn()?;
    let start = Instant::now();
    for (name, child) in [("first", first), ("second", second)] {
        let output = finish(child, start).with_context(|| format!("the {name} of two builds"))?;
        ensure!(output.status.success(), "the {name} of two builds failed: {}", error_of(&output));
    }
    let image = place.image()?.context("the first build left no image")?;
    let name = image.file_name().context("an image has a name")?;
    ensure!(fs::read(&image)? == fs::read(place.path("out2").join(name))?, "two builds at once differ");
    Ok(())
}

#[test]
fn tampered_downloads_and_packs_are_refused() -> Result<()> {
    let place = Place::new()?;
    let flip = |path: &Path| -> Result<Vec<u8>> {
        let before = fs::read(path)?;
        let mut bytes = before.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        // Not in place: the file may be a hard link to the user's own.
        fs::remove_file(path)?;
        fs::write(path, bytes)?;
        Ok(before)
    };
    let kernel = kernel_archive(&place.images)?;
    let deb = place.path("cache/debs").join(&kernel);
    let before = flip(&deb)?;
    let output = place.command()?.output()?;
    let error = error_of(&output);
    let found = error.split("SHA-256 is ").nth(1).and_then(|rest| rest.get(..64)).unwrap_or_default();
    ensure!(
        !output.status.success() && error.contains(&format!("expected {kernel}")),
        "a tampered archive is used: {error}"
    );
    ensure!(found.len() == 64 && found != kernel, "the digest found is not named: {error}");
    fs::write(&deb, before)?;

    place.build()?;
    fs::remove_dir_all(place.path("out"))?;
    let pack = place.largest("packs")?;
    let pack_name = pack.file_name().context("a pack has a name")?.to_string_lossy().into_owned();
    flip(&pack)?;
    let output = place.command()?.output()?;
    let error = error_of(&output);
    ensure!(!output.status.success() && error.contains(&pack_name), "a tampered pack is used: {error}");
    Ok(())
}

/// SHA-256 of the kernel's package, which every build of the image unpacks.
fn kernel_archive(images: &Path) -> Result<String> {
    let lock = fs::read_to_string(images.join("lock.toml"))?;
    let kernel = lock
        .split("[[package]]")
        .find(|package| package.contains("name = \"linux-image-6") && package.contains("-cloud-amd64\""));
    let digest = kernel.and_then(|package| package.split("sha256 = \"").nth(1)?.get(..64));
    Ok(digest.context("the lock pins a cloud kernel")?.to_owned())
}

#[test]
fn what_cannot_work_gives_one_clear_error() -> Result<()> {
    let place = Place::new()?;
    let program = images::nodezero()?;
    let run = |args: &[&str], images: &Path| -> Result<String> {
        let mut command = Command::new(program);
        command.args(args).arg("--images").arg(images).arg("--cache").arg(place.path("cache"));
        command.arg("--firstboot").arg(&place.firstboot).arg("--out").arg(place.path("out")).args(BARE);
        let output = command.output()?;
        ensure!(!output.status.success(), "{args:?} succeeded");
        let error = error_of(&output);
        let lines = error.lines().filter(|line| line.starts_with("error: ")).count();
        ensure!(lines == 1, "{args:?} gives {lines} errors: {error}");
        Ok(error)
    };
    let error = run(&["build", "wroker"], &place.images)?;
    ensure!(error.contains("wroker") && error.contains("worker"), "an unknown role: {error}");

    let copy = place.path("images");
    copy_tree(&place.images, &copy)?;
    let base = copy.join("sets/base.toml");
    let good = fs::read_to_string(&base)?;
    let edit = |text: String| -> Result<()> {
        fs::remove_file(&base)?;
        Ok(fs::write(&base, text)?)
    };
    edit(good.replacen("[[package]]\nname", "[[package]]\nnmae", 1))?;
    let error = run(&["build", "edge", "--offline"], &copy)?;
    ensure!(error.contains("base.toml:") && error.contains("nmae"), "a typo: {error}");
    edit(good.replacen("name = \"systemd\"", "name = \"systemdd\"", 1))?;
    let error = run(&["build", "edge", "--offline"], &copy)?;
    ensure!(
        error.contains("base.toml:") && error.contains("systemdd") && error.contains("nodezero lock"),
        "a package that does not exist: {error}"
    );
    edit(good)?;

    // A file where the output directory should be.
    let blocked = place.path("blocked");
    fs::write(&blocked, "")?;
    fs::remove_dir(place.path("out"))?;
    symlink(&blocked, place.path("out"))?;
    let error = run(&["build", "edge", "--offline"], &place.images)?;
    ensure!(error.contains("output directory"), "a file in place of the output directory: {error}");
    Ok(())
}

#[test]
fn full_and_read_only_disks_are_named() -> Result<()> {
    if !is_root() {
        eprintln!("skipped: mounting a small file system takes root");
        return Ok(());
    }
    let place = Place::new()?;
    let small = place.path("out");
    let mount = |options: &str| -> Result<()> {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&small).status()?;
        ensure!(status.success(), "mounting a tmpfs failed");
        Ok(())
    };
    let unmount = || Command::new("umount").arg(&small).status();
    let check = |what: &str, words: &[&str]| -> Result<()> {
        let output = place.command()?.output()?;
        let error = error_of(&output);
        let left = fs::read_dir(&small)?.count();
        ensure!(!output.status.success(), "a build on a {what} succeeded");
        ensure!(words.iter().all(|word| error.contains(word)), "a {what}: {error}");
        ensure!(left == 0, "{left} files are left on a {what}");
        Ok(())
    };
    mount("size=16m")?;
    let full = check("full disk", &["No space left on device", "out"]);
    unmount()?;
    mount("ro")?;
    let read_only = check("read-only disk", &["Read-only file system", "out"]);
    unmount()?;
    full.and(read_only)
}
