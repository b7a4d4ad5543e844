//! A user's machine: an `images/` directory, a cache, a home, and an archive on the loopback.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use debian::digest::Sha256;
use serde_json::Value;
use tempfile::TempDir;

use crate::archive::Archive;
use crate::binaries;
use crate::server::Server;

const BASE: &str = r#"description = "what every image has"

[[package]]
name = "base-files"
reason = "the links of a merged /usr"

[[package]]
name = "tiny-service"
reason = "something to run"

[[enable]]
unit = "tiny.service"
reason = "it is to run"

[[drop]]
paths = ["usr/share/doc/**"]
reason = "nobody reads on a node"
"#;

const USERS: &str = r#"[[user]]
name = "root"
uid = 0
home = "/root"
shell = "/bin/sh"
reason = "the administrator"

[[user]]
name = "tiny"
uid = 200
home = "/"
shell = "/usr/sbin/nologin"
reason = "of tiny-service"

[[group]]
name = "root"
gid = 0
reason = "the administrator"

[[group]]
name = "shadow"
gid = 42
reason = "reads /etc/shadow"

[[group]]
name = "tiny"
gid = 200
reason = "of tiny-service"
"#;

const ARCHIVE: &str = r#"components = ["main", "non-free-firmware"]
architecture = "amd64"

[[suite]]
name = "trixie"
archive = "debian"

[[suite]]
name = "trixie-updates"
archive = "debian"

[[suite]]
name = "trixie-security"
archive = "debian-security"
"#;

/// One user's machine.
#[derive(Debug)]
pub(crate) struct World {
    dir: TempDir,
    pub(crate) server: Server,
    pub(crate) archive: Archive,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl World {
    /// A machine with recipes and an archive, without lock and cache.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let world = Self { dir, server: Server::start(), archive: Archive::new() };
        world.archive.publish(&world.server);
        fs::create_dir(world.path("home")).expect("the directory is new");
        fs::write(world.path("firstboot"), binaries::static_program()).expect("the directory can be written");
        for (name, text) in [("archive.toml", ARCHIVE), ("sets/base.toml", BASE), ("users.toml", USERS)] {
            world.write(name, text);
        }
        world.write("scripts.toml", "[[ignored-script]]\nkind = \"prerm\"\nreason = \"nothing is removed\"\n");
        world.write("tools.toml", &format!("description = \"tools\"\n{}", package("tool")));
        world.write("files/base/etc/hosts", "127.0.0.1 localhost\n");
        world.write("keyring/test.asc", &world.archive.key.armored());
        for (role, platform) in [("control", "metal"), ("worker", "metal"), ("edge", "vps")] {
            let text = format!("description = \"{role}\"\ndefault-platform = \"{platform}\"\nsets = [\"base\"]\n");
            world.write(&format!("roles/{role}.toml"), &text);
        }
        for (platform, kernel) in [("metal", "linux-image-amd64"), ("vps", "linux-image-cloud-amd64")] {
            let (kernel_package, input) = (package(kernel), package("systemd-boot-efi").replace("package", "input"));
            let text = format!(
                "description = \"{platform}\"\nkernel = \"{kernel}\"\nloaders = [\"uefi\"]\ncmdline = [\"console=ttyS0\"]\n\
                 {kernel_package}{input}[initrd]\nload = [\"disk\"]\n[[initrd.modules]]\nname = \"disk\"\nreason = \"a disk\"\n"
            );
            world.write(&format!("platforms/{platform}.toml"), &text);
        }
        world
    }

    /// A machine with a lock.
    pub(crate) fn locked() -> Self {
        let world = Self::new();
        fs::copy(BUILT.images().join("lock.toml"), world.images().join("lock.toml"))
            .expect("the other world has a lock");
        world
    }

    /// A machine with a lock and with the cache of a build.
    pub(crate) fn warm() -> Self {
        let world = Self::locked();
        copy_dir(&BUILT.path("cache"), &world.path("cache"));
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.path("images")
    }

    /// Writes a file of `images/`.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.images().join(name);
        fs::create_dir_all(path.parent().expect("it is below images")).expect("the directory can be written");
        fs::write(path, text).expect("the directory can be written");
    }

    /// Adds to a file of `images/`.
    pub(crate) fn append(&self, name: &str, text: &str) {
        let path = self.images().join(name);
        let before = fs::read_to_string(path).expect("it was written");
        self.write(name, &(before + text));
    }

    /// Changes the archive and serves it as it is then.
    pub(crate) fn republish(&mut self, change: impl FnOnce(&mut Archive)) {
        change(&mut self.archive);
        self.archive.publish(&self.server);
    }

    /// `nodezero` with `args`, for this machine's images, cache and mirror; other hosts are asked through the server.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.program();
        command.arg("--mirror").arg(self.server.url()).env("http_proxy", self.server.url()).args(args);
        command
    }

    /// As [`Self::command`], without mirror.
    pub(crate) fn bare(&self, args: &[&str]) -> Command {
        let mut command = self.program();
        command.args(args);
        command
    }

    fn program(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nodezero"));
        command.env_clear().env("HOME", self.path("home")).env("NO_PROXY", "127.0.0.1").current_dir(self.dir.path());
        command.arg("--images").arg(self.images()).arg("--cache").arg(self.path("cache"));
        command
    }

    /// The command `build worker`, into `out`, with `args`.
    pub(crate) fn build_command(&self, args: &[&str]) -> Command {
        let mut command = self.command(&["build", "worker", "--firstboot"]);
        command.arg(self.path("firstboot")).arg("--out").arg(self.path("out")).args(args);
        command
    }

    pub(crate) fn lock(&self, args: &[&str]) -> Outcome {
        run(self.command(&["lock"]).args(args))
    }

    pub(crate) fn build(&self, args: &[&str]) -> Outcome {
        run(&mut self.build_command(args))
    }

    /// Names and paths of what a build left in `out`, sorted.
    pub(crate) fn outputs(&self) -> Vec<(String, PathBuf)> {
        files(&self.path("out"))
    }

    /// Names and digests of what a build left in `out`, without temporary files.
    pub(crate) fn contents(&self) -> Vec<(String, String)> {
        let named = self.outputs().into_iter().filter(|(name, _)| !name.starts_with('.'));
        named.map(|(name, path)| (name, sparse_digest(&path))).collect()
    }

    /// The one output whose name ends so.
    pub(crate) fn output(&self, end: &str) -> PathBuf {
        let outputs = self.outputs();
        let mut found = outputs.iter().filter(|(name, _)| name.ends_with(end));
        let Some((_, path)) = found.next() else { panic!("no output ends in {end}: {outputs:?}") };
        path.clone()
    }

    pub(crate) fn manifest(&self) -> Value {
        json(&fs::read(self.output(".manifest.json")).expect("it was found"))
    }

    /// The entries of a kind in the cache.
    pub(crate) fn cached(&self, kind: &str) -> Vec<(String, PathBuf)> {
        files(&self.path("cache").join(kind))
    }

    /// Asserts that no image, whole or in part, was left behind.
    pub(crate) fn assert_no_outputs(&self) {
        assert!(!self.path("out").exists() || self.outputs().is_empty(), "left behind: {:?}", self.outputs());
    }
}

/// A world where the worker was built, with its cache: what builds with a warm cache start from.
pub(crate) static BUILT: LazyLock<World> = LazyLock::new(|| {
    let world = World::new();
    world.lock(&[]).succeeds();
    world.build(&["--locked"]).succeeds();
    world
});

impl Outcome {
    #[track_caller]
    pub(crate) fn succeeds(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// Asserts that it failed with one error that says all of `parts`.
    #[track_caller]
    pub(crate) fn fails_with(self, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(1), "{self:#?}");
        assert_eq!(self.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{self:#?}");
        self.says(parts)
    }

    /// Asserts that all of `parts` stand in its messages.
    #[track_caller]
    pub(crate) fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {self:#?}");
        }
        self
    }

    pub(crate) fn json(&self) -> Value {
        json(self.stdout.as_bytes())
    }
}

pub(crate) fn run(command: &mut Command) -> Outcome {
    let Output { status, stdout, stderr } = command.output().expect("the command can be started");
    let text = |bytes| String::from_utf8(bytes).expect("messages are UTF-8");
    Outcome { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// A `[[package]]` entry of a recipe.
pub(crate) fn package(name: &str) -> String {
    format!("\n[[package]]\nname = \"{name}\"\nreason = \"a test\"\n")
}

pub(crate) fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("it is JSON")
}

pub(crate) fn sha256(path: &Path) -> String {
    nodezero::fetch::hash_file(path).expect("it can be read").0.to_string()
}

/// Stands for the content of a file that is mostly a hole: a digest of its length and of its blocks that are not zero.
pub(crate) fn sparse_digest(path: &Path) -> String {
    const BLOCK: u64 = 1 << 16;
    let file = File::open(path).expect("it can be opened");
    let length = file.metadata().expect("it was opened").len();
    let mut text = format!("{length}\n");
    let mut block = vec![0; BLOCK as usize];
    let mut at = 0;
    while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        at = data / BLOCK * BLOCK;
        let count = (length - at).min(BLOCK) as usize;
        file.read_exact_at(&mut block[..count], at).expect("it can be read");
        if block[..count].iter().any(|byte| *byte != 0) {
            text += &format!("{at} {}\n", digest(&block[..count]));
        }
        at += BLOCK;
    }
    digest(text.as_bytes())
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::of(bytes).to_string()
}

/// Changes one bit of a file, `at` bytes into it.
pub(crate) fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("it can be read");
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("it can be written");
}

fn files(dir: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(dir).expect("the directory is there");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("the directory can be read"))
        .map(|entry| (entry.file_name().into_string().expect("names are UTF-8"), entry.path()))
        .collect();
    files.sort();
    files
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the directory can be written");
    for (name, path) in files(from) {
        if path.is_dir() {
            copy_dir(&path, &to.join(name));
        } else {
            fs::copy(path, to.join(name)).expect("it can be copied");
        }
    }
}
